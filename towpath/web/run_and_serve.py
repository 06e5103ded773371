"""`towpath run` on a terminal: while the run waits for raters it serves the rating page, and then resumes."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from towpath import interrupt
from towpath.errors import Waiting
from towpath.recipe import Recipe
from towpath.run import pipeline
from towpath.store.location import ledger_location
from towpath.store.store import Store
from towpath.view.report import report

POLL_SECONDS = 5.0

PrintLine = Callable[[str], None]


def run_and_serve(
    recipe: Recipe,
    folder: Path,
    overrides: Sequence[str],
    print_line: PrintLine,
    force: bool = False,
    redo: Sequence[str] = (),
) -> None:
    """Run every stage, serving the rating page whenever the run waits for raters; Ctrl-C leaves the run waiting."""
    with interrupt.handle_signals():  # so that the server ends with the run
        while True:
            try:
                pipeline.run(recipe, folder, print_line, "", force, redo, report.write)
                return
            except Waiting as waiting:
                print_line(f"waiting: {waiting}")
                print_line(
                    "Serving the rating page. The run resumes when there are enough judgements; Ctrl-C leaves it "
                    "waiting."
                )
                stage = waiting.stage
            redo = ()
            _serve_until_judged(recipe, folder, stage, overrides, print_line)


def _serve_until_judged(
    recipe: Recipe, folder: Path, stage: str, overrides: Sequence[str], print_line: PrintLine
) -> None:
    """Serve in a child process until the stage that waits can finish."""
    options = [part for value in overrides for part in ("--set", value)]
    server = subprocess.Popen([sys.executable, "-m", "towpath", "serve", str(folder), "--port", "0", *options])
    try:
        last_count = -1  # judgements from before the server started count, too
        while True:
            time.sleep(POLL_SECONDS)
            if server.poll() is not None:
                raise Waiting(
                    "the rating page's server ended",
                    "a waiting run serves the rating page",
                    f"`towpath serve {folder}`",
                )
            count = _judgement_count(recipe, folder)
            if count != last_count and _judgements_suffice(recipe, folder, stage, print_line):
                return
            last_count = count
    finally:
        server.terminate()
        server.wait()


def _judgement_count(recipe: Recipe, folder: Path) -> int:
    with Store.open(ledger_location(folder, recipe.store.url)) as store:
        return store.counts()["judgements"]


def _judgements_suffice(recipe: Recipe, folder: Path, stage: str, print_line: PrintLine) -> bool:
    """Try the stage that waits; print what is missing if it still does."""
    try:
        pipeline.run(recipe, folder, lambda _line: None, stage, force=True, write_report=report.write)
    except Waiting as waiting:
        print_line(waiting.value)
        return False
    return True
