"""Arguments and options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from towpath.recipe import Recipe
    from towpath.store.store import Store

Run = Annotated[Path, typer.Argument(help="the run's folder", show_default=False)]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a recipe value; may be repeated")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON for scripts")]
Force = Annotated[bool, typer.Option("--force", help="continue past closed gates and refused values")]


def open_store(run: Path, overrides: list[str] | None) -> "tuple[Recipe, Store]":
    """Load a run's recipe and open its ledger."""
    from towpath import recipe
    from towpath.store.location import ledger_location
    from towpath.store.store import Store

    settings = recipe.load(run, overrides)
    return settings, Store.open(ledger_location(run, settings.store.url))


def is_task() -> bool:
    """Whether torchrun or srun has started this process among others."""
    from towpath.runtime.present_task import present_task

    task = present_task()
    return task is not None and task.world > 1


def load_as_task(run: Path, overrides: list[str] | None) -> "Recipe":
    """Load a run's recipe; in another than the first task of torchrun or srun, serve that task until the run ends."""
    from towpath import recipe
    from towpath.runtime.present_task import serve_if_worker

    settings = recipe.load(run, overrides)
    serve_if_worker(settings.cluster, run)
    return settings
