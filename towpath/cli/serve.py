"""While a run waits for people: the rating page is served, and the run goes on when they have said enough."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from towpath import interrupt
from towpath.errors import Waiting
from towpath.recipe import Recipe
from towpath.run import pipeline
from towpath.store import location
from towpath.store.store import Store
from towpath.view.report import report

LOOK = 5.0
"""Seconds between two looks at whether anything has been said."""

Say = Callable[[str], None]


def run(
    recipe: Recipe, folder: Path, settings: Sequence[str], say: Say, force: bool = False, redo: Sequence[str] = ()
) -> None:
    """Run every stage; where people must act, serve the pages and go on when they have. Ctrl-C leaves the run
    waiting."""
    with interrupt.handle_signals():  # so that the server ends with the run
        while True:
            try:
                pipeline.run(recipe, folder, say, "", force, redo, report.write)
                return
            except Waiting as waiting:
                say(f"waiting: {waiting}")
                say(
                    "The rating page is served meanwhile. The run goes on by itself when enough is said; Ctrl-C "
                    "leaves it waiting."
                )
            redo = ()
            _serve(recipe, folder, settings, say)


def _serve(recipe: Recipe, folder: Path, settings: Sequence[str], say: Say) -> None:
    """Serve in a process of its own until the labels suffice."""
    assignments = [part for value in settings for part in ("--set", value)]
    server = subprocess.Popen([sys.executable, "-m", "towpath", "serve", str(folder), "--port", "0", *assignments])
    try:
        said = -1  # what was said before the server stood is looked at too
        while True:
            time.sleep(LOOK)
            if server.poll() is not None:
                raise Waiting(
                    "the rating page's server ended", "a run that waits serves the page", f"`towpath serve {folder}`"
                )
            if said != (said := _said(recipe, folder)) and _enough(recipe, folder, say):
                return
    finally:
        server.terminate()
        server.wait()


def _said(recipe: Recipe, folder: Path) -> int:
    with Store.open(location.ledger_location(folder, recipe.store.url)) as store:
        return store.counts()["judgements"]


def _enough(recipe: Recipe, folder: Path, say: Say) -> bool:
    """Whether the label stage ends now; what is still missing is said."""
    try:
        pipeline.run(recipe, folder, lambda _line: None, "label", force=True, write_report=report.write)
    except Waiting as waiting:
        say(waiting.value)
        return False
    return True
