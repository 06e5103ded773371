"""`towpath engine`: environments of sampling engines."""

import json
from pathlib import Path
from typing import Annotated

import typer

from towpath.cli.options import Json
from towpath.terminal import print_output, print_status

engine_app = typer.Typer(no_args_is_help=True, help="Environments of sampling engines.")


@engine_app.callback()
def engine() -> None:
    """Environments of sampling engines."""


@engine_app.command("install", epilog="Example: towpath engine install vllm")
def engine_install(
    name: Annotated[str, typer.Argument(help="the engine: vllm", show_default=False)],
    version: Annotated[str, typer.Option(help="a tested version; default: the newest one")] = "",
    folder: Annotated[
        Path | None, typer.Option(help="the environment's folder; default: engines/vllm in the user's data folder")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a Python environment with a tested version of an engine; recipes then need no engine.python."""
    from dataclasses import asdict

    from towpath.errors import RecipeError
    from towpath.rollout import vllm_environment

    if name != "vllm":
        raise RecipeError(f"engine {name!r}", "only vllm has an environment of its own", "towpath engine install vllm")
    made = vllm_environment.install(version or vllm_environment.LAST_TESTED, folder)
    if as_json:
        print_output(json.dumps(asdict(made), indent=1))
        return
    print_output(f"vLLM {made.version}: {made.python}" + ("" if made.installed else " (was there already)"))
    if folder is not None:
        print_status(f"in the recipe: engine.type = 'vllm', engine.python = '{made.python}'")
    else:
        print_status("in the recipe: engine.type = 'vllm'")
