"""Algorithms, one file each; the recipe's `policy.algo` is the name of a file or an import path of your own module."""

import ast
import difflib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from towpath.errors import RecipeError
from towpath.recipe.reader import Section, check


def module_name(name: str) -> str:
    """The module of an algorithm named in a recipe."""
    return name if "." in name else f"{__name__}.{name}"


def data_of(name: str) -> str:
    """What a policy algorithm learns from, `rollouts` or `comparisons`: read from its file, which is not run."""
    path = source_of(module_name(str(name)))
    constants = _constants(path) if path else {}
    if not _is_policy_algorithm(constants):
        known = sorted(
            path.stem for path in Path(__file__).parent.glob("*.py") if _is_policy_algorithm(_constants(path))
        )
        rule = f"one of {', '.join(known)}, or the import path of a module with DATA and TRAINS, as in package.module"
        near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
        raise RecipeError(f"policy.algo = {name!r}: no such algorithm", rule, f"use {near[0] if near else 'ppo'!r}")
    return constants["DATA"]


def require_settings(module: ModuleType, settings: dict[str, Any]) -> None:
    """Refuse keys of `policy.settings` that an algorithm's class `Settings` does not have."""
    check(getattr(module, "Settings", Section), settings, "policy.settings")


def source_of(module: str) -> Path | None:
    """The file of a module, which is not run; None if there is none."""
    try:
        spec = find_spec(module)
    except (ModuleNotFoundError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and Path(spec.origin).is_file() else None


def _is_policy_algorithm(constants: dict[str, Any]) -> bool:
    return constants.get("DATA") in ("rollouts", "comparisons") and "policy" in constants.get("TRAINS", ())


def _constants(path: Path) -> dict[str, Any]:
    constants: dict[str, Any] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id in ("DATA", "TRAINS")
        ):
            constants[node.targets[0].id] = ast.literal_eval(node.value)
    return constants
