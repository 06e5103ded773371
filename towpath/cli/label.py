"""`towpath label …`: the preference ledger from the shell. Parse and call."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from towpath.terminal import out, say

if TYPE_CHECKING:
    from towpath.recipe import Recipe
    from towpath.store.store import Store

label_app = typer.Typer(no_args_is_help=True, help="The preference ledger from the shell.")

Run = Annotated[Path, typer.Argument(help="the run's folder", show_default=False)]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="lay a value over the recipe; may be repeated")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON for scripts")]
SHOWN = 20
OTHERS = "pairs, conversational, transcripts, comparisons, argilla, label-studio"


def _opened(run: Path, set_: list[str] | None) -> "tuple[Recipe, Store]":
    from towpath import recipe
    from towpath.store import location
    from towpath.store.store import Store

    settings = recipe.load(run, set_)
    return settings, Store.open(location.of(run, settings.store.url))


@label_app.command("export", epilog="Example: towpath label export my-run --to pairs.jsonl")
def label_export(
    run: Run,
    to: Annotated[Path, typer.Option(help="the file to write")],
    set_: Set = None,
    all_: Annotated[bool, typer.Option("--all", help="every comparison of the ledger, judged or not")] = False,
    as_: Annotated[
        str,
        typer.Option(
            "--as",
            help="sheet (to be filled in), demonstrations (better answers that the owner approved), or judged "
            f"pairs: {OTHERS}",
        ),
    ] = "sheet",
) -> None:
    """Write the comparisons that wait for a judgement, as a sheet to be filled in; or the whole ledger in a format
    of others."""
    from towpath.data import examples, formats
    from towpath.run import pipeline
    from towpath.store import verdicts
    from towpath.store.exchange import export_pairs

    _, opened = _opened(run, set_)
    with opened as store:
        if as_ == "sheet":
            say(f"{export_pairs(store, to, all_, () if all_ else pipeline.samples(run))} comparisons written to {to}")
            return
        if as_ == "demonstrations":
            found = store.written()
            waiting = store.read(verdicts.unreviewed)
            examples.write_examples(to, found)
            say(f"{len(found)} demonstrations written to {to}; in data/demonstrations/ the next run learns from them")
            if waiting:
                say(f"{waiting} better answers wait for approval on the page /owner/answers and are not among them")
            return
        written = formats.write_preferences(store, to, as_)  # pyright: ignore[reportArgumentType]
    _list(written.left_out, "comparisons left out")
    say(f"{written.rows} comparisons written to {to}")


@label_app.command("import", epilog="Example: towpath label import my-run pairs.jsonl --rater ann")
def label_import(
    run: Run,
    path: Annotated[Path, typer.Argument(help="a sheet that was filled in, or a file of preferences")],
    set_: Set = None,
    rater: Annotated[str | None, typer.Option(help="who judged, where the rows do not say")] = None,
    as_: Annotated[
        str,
        typer.Option(
            "--as", help="sheet, or what others write: auto, pairs, comparisons, rankings, trees, argilla, label-studio"
        ),
    ] = "sheet",
) -> None:
    """Add judgements to the ledger: of a sheet all rows or none, of others' files every row that can be used, the
    rest named."""
    from towpath.data import formats, refused_rows
    from towpath.store.exchange import import_judgements

    _, opened = _opened(run, set_)
    with opened as store:
        if as_ == "sheet":
            added, known = import_judgements(store, path, rater)
            say(f"{added} judgements added, {known} were there already")
            return
        found = formats.read_preferences(path, as_, rater=rater or "")  # pyright: ignore[reportArgumentType]
        _list(found.refused, "rows refused")
        rows = [refused_rows.refused_row("preferences", *row.split(": ", 1)) for row in found.refused]
        if listed := refused_rows.write_refused_rows(run, rows, refused_rows.IMPORT_FILE):
            say(f"  {listed}")
        counts = formats.add_to_store(store, found)
    say(
        "added: "
        + ", ".join(f"{count} {part}" for part, count in counts.items())
        + f"; {len(found.refused)} rows refused"
    )


def _list(rows: list[str], what: str) -> None:
    """The first of what could not be used, and how many there are."""
    for row in rows[:SHOWN]:
        say(f"  {row}")
    if len(rows) > SHOWN:
        say(f"  … of {len(rows)} {what}")


@label_app.command("judge", epilog="Example: towpath label judge my-run --set judge.model=judge-70b")
def label_judge(
    run: Run,
    set_: Set = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="only tell what it would take")] = False,
    as_json: Json = False,
) -> None:
    """Ask the recipe's judge about every comparison that it has not judged; kept as it comes, goes on where it was
    stopped."""
    from collections import Counter
    from dataclasses import asdict

    from towpath.errors import DataError
    from towpath.feedback import judge_runner, judging

    settings, opened = _opened(run, set_)
    with opened as store:
        judge = judge_runner.judge_settings(settings.judge, run)
        comparisons = store.comparisons()
        if not comparisons:
            raise DataError(
                f"{run}: no comparisons to judge",
                "a judge compares answers that were drawn or imported",
                f"`towpath stage sample {run}`",
            )
        pairs = judge_runner.pair_texts(store, comparisons)
        if estimate:
            cases = judge_runner.pending_for_judge(judge, pairs, store.judgements())
            told: dict[str, Any] = {"comparisons": len(cases), **asdict(judging.estimate_cost(judge, cases))}
        else:
            abstained = judge_runner.run_judge(store, judge, pairs, store.judgements(), judging.rater_name(judge))
            said = [j for j in store.judgements() if j.rater == judging.rater_name(judge)]
            told = {
                "judged": len(said),
                "abstained": dict(Counter(a.reason for a in abstained)),
                "dollars": round(store.account(judging.rater_name(judge)).total(), 6),
            }
    out(json.dumps(told, indent=1) if as_json else "\n".join(f"{key}: {value}" for key, value in told.items()))


@label_app.command("stats", epilog="Example: towpath label stats my-run --json")
def label_stats(run: Run, set_: Set = None, as_json: Json = False) -> None:
    """Counts, agreement with intervals, each rater in figures, and what an owner should look at."""
    from dataclasses import asdict

    from towpath.feedback import rater_reliability

    _, opened = _opened(run, set_)
    with opened as store:
        told = rater_reliability.measure_raters(store)
    out(json.dumps(asdict(told), indent=1) if as_json else rater_reliability.format_stats(told))
