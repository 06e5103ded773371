"""The command `towpath`. Commands import what they need themselves, so that `towpath --help` starts fast."""

import errno
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from towpath.cli.arena import arena_app
from towpath.cli.engine import engine_app
from towpath.cli.label import label_app
from towpath.cli.options import Force, Json, Run, Set, is_task, load_as_task
from towpath.cli.people import people_app
from towpath.cli.plan import plan
from towpath.cli.sweep import sweep
from towpath.terminal import print_output, print_status

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="RLHF for teams, from data to an optimized policy.",
)
app.add_typer(label_app, name="label")
app.add_typer(arena_app, name="arena")
app.add_typer(people_app, name="people")
app.add_typer(engine_app, name="engine")
app.command(epilog="Example: towpath sweep my-run --set sweep.trials=30")(sweep)


def _version(wanted: bool) -> None:
    if wanted:
        from towpath import __version__

        print_output(f"towpath {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """RLHF for teams, from data to an optimized policy."""


INTERRUPTED = 130
DISK_ERRORS = {
    errno.ENOSPC: ("a run writes checkpoints and weights", "free space and run the same command to resume"),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), ("a run's folder must be one you may write to", "name another folder")
    ),
    errno.ENOTDIR: ("a run is a folder", "name another folder"),
}
"""Rule and fix for each operating system error of a path."""


@app.command(epilog="Example: towpath new my-run --recipe quickstart")
def new(
    folder: Annotated[Path, typer.Argument(help="the folder to create", show_default=False)],
    recipe: Annotated[
        str,
        typer.Option(
            help="quickstart, tiny, harmless-dialogue, assistant-oasst, checkable-arithmetic, or a path to a recipe"
        ),
    ] = "quickstart",
    data: Annotated[
        str, typer.Option(metavar="FILE", help="file or pattern of your data, for recipes that bring none")
    ] = "",
) -> None:
    """Create a run: a folder with recipe.toml and data/."""
    from towpath.run.new_run import create_run

    create_run(folder, recipe, data)
    print_status(f"{folder}: the run is ready. Next: towpath check {folder}")


@app.command(epilog="Example: towpath check my-run")
def check(run: Run, set_: Set = None, as_json: Json = False, force: Force = False) -> None:
    """Validate data, chat template and EOS, learning rates, batch sizes, disk and memory before a run."""
    from dataclasses import asdict

    from towpath.progress import prepare_libraries, progress
    from towpath.run import loading, pipeline, preflight
    from towpath.run.cluster_checks import connected
    from towpath.sweep.space import parse_space

    prepare_libraries()
    settings = load_as_task(run, set_)
    parse_space(settings)
    with progress("check"), connected(settings, run):
        findings = pipeline.examine(settings, run, loading.load_corpus(settings, run), force)
    print_output(
        json.dumps([asdict(f) for f in findings], indent=1)
        if as_json
        else preflight.lines(findings) or "nothing to report"
    )
    preflight.require(findings, force)


@app.command(epilog="Example: towpath data my-run --part prompts --file 'chat-*.jsonl'")
def data(
    run: Run,
    set_: Set = None,
    as_json: Json = False,
    part: Annotated[str, typer.Option(help="prompts, demonstrations or safety")] = "",
    file: Annotated[str, typer.Option(metavar="PATTERN", help="only rows of files that match this pattern")] = "",
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="also write an HTML page with histograms")] = None,
) -> None:
    """Describe the data: rows by domain, difficulty and length, duplicates, leaks, and why rows are left out."""
    from dataclasses import asdict

    from towpath import recipe
    from towpath.run.loading import describe_data
    from towpath.view.data_page import lines, write_page

    settings = recipe.load(run, set_)
    overview = describe_data(settings, run, part, file)
    if html:
        write_page(html, settings.name, overview)
    print_output(json.dumps(asdict(overview), indent=1) if as_json else lines(overview))


app.command(epilog="Example: towpath plan my-run --set budget.pairs=50000")(plan)


@app.command(epilog="Example: towpath run my-run --set policy.steps=20")
def run(
    run: Run,
    set_: Set = None,
    force: Force = False,
    serve: Annotated[
        bool | None, typer.Option(help="serve the rating page while the run waits for people; default: on a terminal")
    ] = None,
    redo: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help="run a finished stage again, keeping the old result aside; may be repeated"),
    ] = None,
) -> None:
    """Run or resume all stages; while the run waits for people it serves the rating page."""
    if serve if serve is not None else sys.stdin.isatty() and not is_task():
        from towpath import progress
        from towpath.view.report import report
        from towpath.web.run_and_serve import run_and_serve

        progress.prepare_libraries()
        run_and_serve(load_as_task(run, set_), run, set_ or [], print_status, force, redo or ())
        print_output(report.terminal(run))
        return
    _run(run, set_, force, redo=redo or ())


@app.command(epilog="Example: towpath serve my-run --port 8080")
def serve(
    run: Run,
    set_: Set = None,
    host: Annotated[str, typer.Option(help="the address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="the port to listen on; 0 for any free port")] = 8000,
    team: Annotated[bool, typer.Option("--team", help="accounts and invitations, for several people")] = False,
    name: Annotated[
        list[str] | None, typer.Option(help="with --team: a host name of the server; may be repeated")
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(help="with --team: a TLS certificate; without one, a proxy on this machine terminates TLS"),
    ] = None,
    key: Annotated[Path | None, typer.Option(help="the certificate's key")] = None,
    proxy: Annotated[
        list[str] | None, typer.Option(help="with --team: the address of a trusted proxy; may be repeated")
    ] = None,
) -> None:
    """Serve the web pages: rating, statistics, accounts, monitor, arena. Starts no stage."""
    from towpath import recipe
    from towpath.store.location import ledger_location
    from towpath.web.server import NetworkOptions, serve_run

    ledger = str(ledger_location(run, recipe.load(run, set_).store.url))
    network = NetworkOptions(tuple(name or ()), certificate, key, tuple(proxy or ()), host, port)
    serve_run(run, ledger if "://" in ledger else None, team, network, print_status, set_ or ())


@app.command(epilog="Example: towpath watch my-run")
def watch(
    run: Run,
    set_: Set = None,
    once: Annotated[bool, typer.Option("--once", help="print once and exit; the default without a terminal")] = False,
) -> None:
    """Follow a run in the terminal: headline metrics, curves, findings, interventions, samples. Ctrl-C exits."""
    from towpath.view.live.terminal import show_run

    show_run(run, set_ or [], once)


@app.command(epilog="Example: towpath stage sft my-run")
def stage(
    name: Annotated[str, typer.Argument(help="sft, baseline, sample, label, reward, policy or evaluate")],
    run: Run,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Run a single stage."""
    _run(run, set_, force, name)


def _run(folder: Path, overrides: list[str] | None, force: bool, only: str = "", redo: Sequence[str] = ()) -> None:
    from towpath import progress
    from towpath.run import pipeline
    from towpath.view.report import report

    progress.prepare_libraries()
    pipeline.run(load_as_task(folder, overrides), folder, print_status, only, force, redo, report.write)
    print_output(report.terminal(folder))


@app.command(epilog="Example: towpath status my-run --json")
def status(run: Run, set_: Set = None, as_json: Json = False) -> None:
    """Show stages, gates, findings, and what the run waits for."""
    from dataclasses import asdict

    from towpath import recipe
    from towpath.run.status import read_status, status_lines

    state = read_status(recipe.load(run, set_), run)
    if as_json:
        print_output(json.dumps(asdict(state), indent=1))
        return
    for line in status_lines(state):
        print_output(line)


@app.command(epilog="Example: towpath report my-run")
def report(run: Run, set_: Set = None, as_json: Json = False) -> None:
    """Write reports/report.html and reports/summary.json."""
    from towpath import recipe
    from towpath.run.status import run_verdicts
    from towpath.view.report.report import write

    settings = recipe.load(run, set_)
    path = write(run, run_verdicts(settings, run), settings.name)
    print_output((path.parent / "summary.json").read_text() if as_json else path)


@app.command(epilog="Example: towpath doctor outputs/trainer_state.json --fact policy.kl.coef=0.05")
def doctor(
    path: Annotated[Path, typer.Argument(help="a run's folder, or the log of another trainer", show_default=False)],
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="THEIRS=OURS", help="the metric that a column holds; may be repeated"),
    ] = None,
    fact: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="a setting that the log lacks; may be repeated")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="also write an HTML page with curves")] = None,
    as_json: Json = False,
) -> None:
    """Diagnose a run or another trainer's log, with causes and fixes. Exit code: 0 clean, 1 warnings, 2 critical."""
    import shutil

    from towpath.view import doctor_report
    from towpath.view.doctor import examine, exit_code, write_page

    diagnoses = examine(path, map_ or [], fact or [])
    if html:
        write_page(html, path, diagnoses)
    width = min(shutil.get_terminal_size((120, 24)).columns, 140)
    if as_json:
        print_output(json.dumps(doctor_report.as_json(str(path), diagnoses), indent=1))
    else:
        print_output(doctor_report.lines(diagnoses, width))
    raise typer.Exit(exit_code(diagnoses))


@app.command(epilog="Example: towpath export my-run --to my-model")
def export(
    run: Run,
    to: Annotated[Path, typer.Option(help="the folder to write", show_default=False)],
    set_: Set = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="only the LoRA adapter, for peft, with the tuned model it belongs to")
    ] = False,
    verify: Annotated[bool, typer.Option(help="generate with transformers and compare with the run")] = True,
    push: Annotated[
        str, typer.Option(metavar="NAME", help="also upload it to this repository of the Hugging Face hub")
    ] = "",
    public: Annotated[bool, typer.Option("--public", help="with --push: a new repository is public")] = False,
) -> None:
    """Export the policy as a folder for transformers (or peft), with a model card."""
    from towpath import progress

    progress.prepare_libraries()
    from towpath import recipe
    from towpath.run import export as exporting

    with progress.progress("export"):
        folder = exporting.export(recipe.load(run, set_), run, to, adapter, verify)
        address = exporting.push(folder, push, public) if push else ""
    print_output(folder)
    if address:
        print_output(address)


@app.command(epilog="Example: towpath explain policy.kl.coef")
def explain(
    key: Annotated[str, typer.Argument(help="a recipe key, or part of one")] = "", as_json: Json = False
) -> None:
    """Explain a recipe key: meaning, default, usual range and reason."""
    from towpath import recipe

    rows = recipe.explain(key)
    if as_json:
        print_output(json.dumps(rows, indent=1, default=str))
        return
    for row in rows:
        usual = f"  usual: {row['usual']}" if row["usual"] else ""
        why = f"  why: {row['why']}" if row["why"] else ""
        print_output(f"{row['key']} = {row['default']}\n  {row['meaning']}{usual}{why}")


def main() -> None:
    """Run the command `towpath`; errors print value, rule and fix, and the exit code is non-zero on failure."""
    from towpath.errors import TowpathError, Waiting

    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer turns Ctrl-C into a return value
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except TowpathError as error:
        kind = "waiting" if isinstance(error, Waiting) else "error"
        print_status(f"{kind}: {error}")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, EOFError):
        print_status("stopped; completed work is saved. Run the same command to resume.")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # process boundary
        sys.exit(_report_error(error))


def _report_error(error: Exception) -> int:
    """Print a usage error, an operating system error or a bug, and return the exit code."""
    show = getattr(error, "show", None)  # typer's own usage errors
    if show or type(error).__name__ == "Abort":
        if show:
            show()
        return getattr(error, "exit_code", INTERRUPTED)
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        rule, fix = DISK_ERRORS[error.errno]
        reason = "no space left" if error.errno == errno.ENOSPC else (error.strerror or "").lower()
        print_status(f"error: {error.filename or 'disk'}: {reason}\n  rule: {rule}\n  fix:  {fix}")
        return 1
    from towpath.cli import crash

    message, code = crash.describe_crash(error, sys.argv)
    print_status(message)
    return code


if __name__ == "__main__":
    main()
