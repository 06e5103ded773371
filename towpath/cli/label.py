"""`towpath label`: the preference ledger on the command line."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from towpath.cli.options import Json, Run, Set, open_store
from towpath.terminal import print_output, print_status

label_app = typer.Typer(no_args_is_help=True, help="The preference ledger on the command line.")

MAX_LISTED = 20
EXPORT_FORMATS = "pairs, conversational, transcripts, comparisons, argilla, label-studio"


@label_app.command("export", epilog="Example: towpath label export my-run --to pairs.jsonl")
def label_export(
    run: Run,
    to: Annotated[Path, typer.Option(help="the file to write")],
    set_: Set = None,
    all_: Annotated[bool, typer.Option("--all", help="every comparison in the ledger, judged or not")] = False,
    as_: Annotated[
        str,
        typer.Option(
            "--as",
            help="sheet (to fill in), demonstrations (written answers that the owner approved), or judged pairs: "
            f"{EXPORT_FORMATS}",
        ),
    ] = "sheet",
) -> None:
    """Write unjudged comparisons as a sheet to fill in, or the whole ledger in another tool's format."""
    from towpath.data import examples, formats
    from towpath.run import pipeline
    from towpath.store import verdicts
    from towpath.store.exchange import export_pairs

    _, opened = open_store(run, set_)
    with opened as store:
        if as_ == "sheet":
            count = export_pairs(store, to, all_, () if all_ else pipeline.sample_prefixes(run))
            print_status(f"{count} comparisons written to {to}")
            return
        if as_ == "demonstrations":
            demonstrations = store.written_demonstrations()
            waiting = store.read(verdicts.count_unreviewed)
            examples.write_examples(to, demonstrations)
            print_status(
                f"{len(demonstrations)} demonstrations written to {to}; put it into data/demonstrations/ to train on it"
            )
            if waiting:
                print_status(
                    f"{waiting} written answers wait for approval on the page /owner/answers and are not included"
                )
            return
        written = formats.write_preferences(store, to, as_)  # pyright: ignore[reportArgumentType]
    _print_list(written.left_out, "comparisons omitted")
    print_status(f"{written.rows} comparisons written to {to}")


@label_app.command("import", epilog="Example: towpath label import my-run pairs.jsonl --rater ann")
def label_import(
    run: Run,
    path: Annotated[Path, typer.Argument(help="a filled-in sheet, or a preference file")],
    set_: Set = None,
    rater: Annotated[str | None, typer.Option(help="the rater, for rows that name none")] = None,
    as_: Annotated[
        str,
        typer.Option(
            "--as",
            help="sheet, or another tool's format: auto, pairs, comparisons, rankings, trees, argilla, label-studio",
        ),
    ] = "sheet",
) -> None:
    """Import judgements: all rows of a sheet or none; every usable row of other files, and the rest is listed."""
    from towpath.data import formats, refused_rows
    from towpath.store.exchange import import_judgements

    _, opened = open_store(run, set_)
    with opened as store:
        if as_ == "sheet":
            added, known = import_judgements(store, path, rater)
            print_status(f"{added} judgements added, {known} already present")
            return
        imported = formats.read_preferences(path, as_, rater=rater or "")  # pyright: ignore[reportArgumentType]
        _print_list(imported.refused, "rows refused")
        rows = [refused_rows.refused_row("preferences", *row.split(": ", 1)) for row in imported.refused]
        if listed := refused_rows.write_refused_rows(run, rows, refused_rows.IMPORT_FILE):
            print_status(f"  {listed}")
        counts = formats.add_to_store(store, imported)
    print_status(
        "added: "
        + ", ".join(f"{count} {part}" for part, count in counts.items())
        + f"; {len(imported.refused)} rows refused"
    )


def _print_list(rows: list[str], what: str) -> None:
    """Print the first rows and the number of all."""
    for row in rows[:MAX_LISTED]:
        print_status(f"  {row}")
    if len(rows) > MAX_LISTED:
        print_status(f"  … of {len(rows)} {what}")


@label_app.command("judge", epilog="Example: towpath label judge my-run --set judge.model=judge-70b")
def label_judge(
    run: Run,
    set_: Set = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="only estimate calls and dollars")] = False,
    as_json: Json = False,
) -> None:
    """Ask the recipe's judge about every comparison it has not judged; verdicts are saved as they arrive, so it can
    be interrupted and resumed."""
    from collections import Counter
    from dataclasses import asdict

    from towpath.errors import DataError
    from towpath.feedback import judge_runner, judging

    settings, opened = open_store(run, set_)
    with opened as store:
        judge = judge_runner.judge_settings(settings.judge, run)
        comparisons = store.comparisons()
        if not comparisons:
            raise DataError(
                f"{run}: no comparisons to judge",
                "a judge compares sampled or imported answers",
                f"`towpath stage sample {run}`",
            )
        pairs = list(judge_runner.pair_texts(store, comparisons))
        if estimate:
            pending = judge_runner.pending_for_judge(judge, pairs, store.judgements())
            summary: dict[str, Any] = {"comparisons": len(pending), **asdict(judging.estimate_cost(judge, pending))}
        else:
            abstained = judge_runner.run_judge(store, judge, pairs, store.judgements(), judging.rater_name(judge))
            judgements = [j for j in store.judgements() if j.rater == judging.rater_name(judge)]
            summary = {
                "judged": len(judgements),
                "abstained": dict(Counter(a.reason for a in abstained)),
                "dollars": round(store.judge_account(judging.rater_name(judge)).total(), 6),
            }
    print_output(
        json.dumps(summary, indent=1) if as_json else "\n".join(f"{key}: {value}" for key, value in summary.items())
    )


@label_app.command("stats", epilog="Example: towpath label stats my-run --json")
def label_stats(run: Run, set_: Set = None, as_json: Json = False) -> None:
    """Show counts, agreement with intervals, statistics of each rater, and findings for the owner."""
    from dataclasses import asdict

    from towpath.feedback import rater_reliability

    _, opened = open_store(run, set_)
    with opened as store:
        reliability = rater_reliability.measure_raters(store)
    print_output(json.dumps(asdict(reliability), indent=1) if as_json else rater_reliability.format_stats(reliability))
