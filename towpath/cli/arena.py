"""`towpath arena …`: two models compared blind, from the shell. Parse and call."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from towpath.terminal import out, say

if TYPE_CHECKING:
    from towpath.recipe import Recipe
    from towpath.store.store import Store

arena_app = typer.Typer(no_args_is_help=True, help="Two models compared blind, by people and by a judge.")

Run = Annotated[Path, typer.Argument(help="the run's folder", show_default=False)]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="lay a value over the recipe; may be repeated")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON for scripts")]
Number = Annotated[int, typer.Option("--arena", help="the arena's number; 0 for the newest")]


def _opened(run: Path, set_: list[str] | None) -> "tuple[Recipe, Store]":
    from towpath import recipe
    from towpath.store import location
    from towpath.store.store import Store

    settings = recipe.load(run, set_)
    return settings, Store.open(location.of(run, settings.store.url))


def _numbered(store: "Store", number: int) -> int:
    """The number of an arena that there is."""
    from towpath.errors import DataError
    from towpath.store import arenas

    known = store.read(arenas.arenas)
    if not known:
        raise DataError("no arena yet", "an arena is begun before it is looked at", "`towpath arena start RUN`")
    return number or known[0].number


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
    other: Annotated[str, typer.Option(help="the model it is held against")] = "sft",
    prompts: Annotated[int, typer.Option(min=0, help="prompts at most; 0 for all that both answered")] = 0,
    threshold: Annotated[float, typer.Option(help="share of prompts on which it must be preferred")] = 0.7,
    overlap: Annotated[float, typer.Option(help="share of prompts that two people judge")] = 0.2,
    as_json: Json = False,
) -> None:
    """Put two models' answers to the same held-out prompts in the raters' queue, sources hidden, sides drawn."""
    from dataclasses import asdict

    from towpath.arena import matches

    _, opened = _opened(run, set_)
    with opened as store:
        made = matches.begin(store, run, matches.Terms(one, other, prompts, threshold, overlap))
    if as_json:
        out(json.dumps(asdict(made), indent=1))
        return
    out(made.number)
    say(
        f"arena {made.number}: {one} against {other}. `towpath serve {run}` lets people judge; `towpath arena judge "
        f"{run}` asks the judge"
    )


@arena_app.command("stats", epilog="Example: towpath arena stats my-run --json")
def arena_stats(run: Run, set_: Set = None, number: Number = 0, as_json: Json = False) -> None:
    """How an arena stands: rate, intervals, verdict, about how many more would decide; with --json and when it has
    ended every comparison too."""
    from towpath.arena import matches

    _, opened = _opened(run, set_)
    with opened as store:
        matches.settle(store)
        wanted = _numbered(store, number)
        found = matches.standing(store, wanted)
        told = matches.as_json(found) | {"comparisons": matches.revealed(store, wanted)}
    out(json.dumps(told, indent=1, ensure_ascii=False) if as_json else matches.lines(found))


@arena_app.command("stop", epilog="Example: towpath arena stop my-run")
def arena_stop(run: Run, set_: Set = None, number: Number = 0) -> None:
    """End an arena before it is decided: nobody is asked any more, and its comparisons are shown."""
    from towpath.arena import matches

    _, opened = _opened(run, set_)
    with opened as store:
        wanted = _numbered(store, number)
        matches.stop(store, wanted)
        out(matches.lines(matches.standing(store, wanted)))


@arena_app.command("judge", epilog="Example: towpath arena judge my-run --set judge.model=judge-70b")
def arena_judge(run: Run, set_: Set = None, number: Number = 0, as_json: Json = False) -> None:
    """Ask the recipe's judge about an arena's comparisons, each in both orders; what turns with the order is a tie.
    People's record stays apart."""
    from collections import Counter

    from towpath.arena import matches
    from towpath.feedback import judge_runner

    settings, opened = _opened(run, set_)
    with opened as store:
        judge = judge_runner.judge_settings(settings.judge, run)
        wanted = _numbered(store, number)
        abstained = matches.ask_judge(store, judge, wanted)
        found = matches.standing(store, wanted)
    told: dict[str, Any] = {"abstained": dict(Counter(a.reason for a in abstained)), **matches.as_json(found)}
    out(json.dumps(told, indent=1, ensure_ascii=False) if as_json else matches.lines(found))
    if abstained:
        say(f"no verdict on {len(abstained)}: {', '.join(f'{why} {n}' for why, n in told['abstained'].items())}")
