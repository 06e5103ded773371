"""`run_sweep`: run or resume the sweep of a run, in this process or in several."""

from collections.abc import Sequence
from pathlib import Path

from towpath import interrupt
from towpath.recipe import Recipe
from towpath.run.cluster_checks import connected
from towpath.sweep.preparation import Say, announce, check_sweep, prepare


def run_sweep(recipe: Recipe, folder: Path, say: Say, overrides: Sequence[str] = (), force: bool = False) -> None:
    """Run or resume the sweep of a run: its missing inputs, its trials, their confirmation."""
    check_sweep(recipe)
    with interrupt.handle_signals(), connected(recipe, folder):
        plan = prepare(recipe, folder, say, force)
        announce(plan, say)
        if recipe.sweep.processes > 1:
            from towpath.sweep.processes import run_processes

            run_processes(plan, say, overrides)
        else:
            from towpath.sweep.search import work

            work(plan, say)
