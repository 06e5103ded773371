"""`towpath arena`: blind comparison of two models."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from towpath.cli.options import Json, Run, Set, open_store
from towpath.terminal import print_output, print_status

if TYPE_CHECKING:
    from towpath.store.store import Store

arena_app = typer.Typer(no_args_is_help=True, help="Blind comparison of two models by people and by a judge.")

Number = Annotated[int, typer.Option("--arena", help="the arena's number; 0 for the newest")]


def _arena_number(store: "Store", number: int) -> int:
    """Return `number`, or the newest arena's for 0; raise if there is no arena."""
    from towpath.errors import DataError
    from towpath.store import arenas

    existing = store.read(arenas.list_arenas)
    if not existing:
        raise DataError("no arena yet", "start an arena first", "`towpath arena start RUN`")
    return number or existing[0].number


def _print_row(row: Any, as_json: bool, extra: dict[str, Any]) -> None:
    from dataclasses import asdict

    from towpath.arena.leaderboard_row import format_terminal

    print_output(json.dumps(extra | asdict(row), indent=1, ensure_ascii=False) if as_json else format_terminal(row))


@arena_app.command("start", epilog="Example: towpath arena start my-run --one policy --other sft")
def arena_start(
    run: Run,
    set_: Set = None,
    one: Annotated[
        str,
        typer.Option(
            help="the model that should win: policy, sft, base, or STAGE/FINGERPRINT/MODEL of an earlier evaluation"
        ),
    ] = "policy",
    other: Annotated[str, typer.Option(help="the model to compare it with")] = "sft",
    prompts: Annotated[int, typer.Option(min=0, help="number of prompts at most; 0 for all that both answered")] = 0,
    threshold: Annotated[float, typer.Option(help="win rate to reach")] = 0.7,
    overlap: Annotated[float, typer.Option(help="share of prompts that two people judge")] = 0.2,
    as_json: Json = False,
) -> None:
    """Queue two models' answers to the same held-out prompts for raters, with hidden sources and random sides."""
    from dataclasses import asdict

    from towpath.arena.matches import ArenaSpec
    from towpath.run.answer_sources import start_arena

    _, opened = open_store(run, set_)
    with opened as store:
        arena = start_arena(store, run, ArenaSpec(one, other, prompts, threshold, overlap))
    if as_json:
        print_output(json.dumps(asdict(arena), indent=1))
        return
    print_output(arena.number)
    print_status(
        f"arena {arena.number}: {one} against {other}. `towpath serve {run}` lets people judge; `towpath arena judge "
        f"{run}` asks the judge"
    )


@arena_app.command("stats", epilog="Example: towpath arena stats my-run --json")
def arena_stats(run: Run, set_: Set = None, number: Number = 0, as_json: Json = False) -> None:
    """Show win rate, intervals, verdict and how many more prompts would decide; --json lists every comparison of a
    closed arena."""
    from towpath.arena.leaderboard_row import leaderboard_row
    from towpath.arena.matches import close_decided, reveal_comparisons

    _, opened = open_store(run, set_)
    with opened as store:
        close_decided(store)
        number = _arena_number(store, number)
        row = leaderboard_row(store, number)
        comparisons = reveal_comparisons(store, number)
    _print_row(row, as_json, {"comparisons": comparisons})


@arena_app.command("stop", epilog="Example: towpath arena stop my-run")
def arena_stop(run: Run, set_: Set = None, number: Number = 0) -> None:
    """Close an arena before it is decided; its comparisons are revealed."""
    from towpath.arena.leaderboard_row import leaderboard_row
    from towpath.arena.matches import stop_arena

    _, opened = open_store(run, set_)
    with opened as store:
        number = _arena_number(store, number)
        stop_arena(store, number)
        _print_row(leaderboard_row(store, number), False, {})


@arena_app.command("judge", epilog="Example: towpath arena judge my-run --set judge.model=judge-70b")
def arena_judge(run: Run, set_: Set = None, number: Number = 0, as_json: Json = False) -> None:
    """Ask the recipe's judge about an arena's comparisons in both orders; a choice that flips with the order is a
    tie. People's win rate stays separate."""
    from collections import Counter

    from towpath.arena.leaderboard_row import leaderboard_row
    from towpath.arena.matches import judge_arena
    from towpath.feedback import judge_runner

    settings, opened = open_store(run, set_)
    with opened as store:
        judge = judge_runner.judge_settings(settings.judge, run)
        number = _arena_number(store, number)
        abstained = judge_arena(store, judge, number)
        row = leaderboard_row(store, number)
    reasons = dict(Counter(a.reason for a in abstained))
    _print_row(row, as_json, {"abstained": reasons})
    if abstained:
        print_status(f"no verdict on {len(abstained)}: {', '.join(f'{why} {n}' for why, n in reasons.items())}")
