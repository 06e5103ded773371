"""Load a user's function by the name `python:MODULE:FUNCTION`."""

import importlib
import importlib.util
import reprlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from towpath.errors import RecipeError

FIX = "put the module into the run folder, or into the folder where the command is started"


def load_function(name: str, rule: str, folder: Path | None = None) -> tuple[Callable[..., Any], ModuleType]:
    """The function that `[python:]MODULE:FUNCTION` names and its module; a file in `folder` comes first.

    `rule` describes the function that is asked for, for the error.
    """
    module_name, _, function_name = name.removeprefix("python:").partition(":")
    file = folder / f"{module_name.replace('.', '/')}.py" if folder else None
    try:
        module = _load_file(file, module_name) if file and file.is_file() else importlib.import_module(module_name)
        function = getattr(module, function_name)
    except (ImportError, AttributeError, ValueError, SyntaxError, OSError) as error:
        raise RecipeError(f"{name}: {error}", rule, FIX) from None
    if not callable(function):
        raise RecipeError(f"{name}: {reprlib.repr(function)} is not a function", rule, "name a function")
    return function, module


def find_file(name: str) -> Path:
    """The file of that name: a path, or relative to the working directory or the run folder."""
    path = Path(name).expanduser()
    folders = [Path.cwd(), *(Path(folder) for folder in sys.path)]
    return next((folder / path for folder in folders if (folder / path).is_file()), path)


def _load_file(path: Path, name: str) -> ModuleType:
    # a name of its own: two runs may have modules of the same name
    spec = importlib.util.spec_from_file_location(f"towpath_user_{name.replace('.', '_')}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
