"""`towpath sweep`: search for hyper-parameters at equal KL."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from towpath.cli.options import Force, Json, Run, Set
from towpath.terminal import print_output, print_status

if TYPE_CHECKING:
    from towpath.sweep.record import SweepRecord


def sweep(
    run: Run,
    set_: Set = None,
    show: Annotated[bool, typer.Option("--show", help="print the sweep without running trials")] = False,
    apply: Annotated[
        bool, typer.Option("--apply", help="write the winner's settings into recipe.toml, after showing the change")
    ] = False,
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Search for hyper-parameters of the policy stage at equal KL; resumes. Each trial is judged on validation prompts,
    and the best are confirmed with new seeds."""
    from towpath import progress, recipe
    from towpath.sweep import record
    from towpath.sweep.run import run_sweep

    settings = recipe.load(run, set_)
    if not show and not apply:
        progress.prepare_libraries()
        run_sweep(settings, run, print_status, set_ or [], force)
    result = record.read_sweep(run)
    if result is None:
        from towpath.errors import RecipeError

        raise RecipeError(f"{run}: no sweep", "there is nothing to show", f"`towpath sweep {run}`")
    if apply:
        _apply(run, result)
        return
    if as_json:
        print_output(json.dumps(record.as_json(result), indent=1))
        return
    from towpath.view.sweep_table import sweep_lines

    print_output("\n".join(sweep_lines(result, settings.sweep)))


def _apply(run: Path, result: "SweepRecord") -> None:
    """Show the change, ask on a terminal, write."""
    from towpath.sweep.apply import recipe_change, write_change

    change = recipe_change(run, result)
    if not change.diff:
        print_status("recipe.toml has the winner's settings already")
        return
    print_output(change.diff)
    if sys.stdin.isatty() and not typer.confirm("Write this to recipe.toml?"):
        raise typer.Exit(1)
    write_change(change)
    print_status(f"{change.path}: written. Next: towpath run {run}")
