"""Algorithms, one file each; the recipe's `policy.algo` is a file's name or an import path of one's own."""

import ast
import difflib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from towpath.errors import RecipeError


def place(name: str) -> str:
    """The module a recipe names."""
    return name if "." in name else f"{__name__}.{name}"


def data_of(name: str) -> str:
    """What a policy algorithm learns from, `rollouts` or `comparisons`: read from its file, which is not run."""
    path = source_of(place(str(name)))
    said = _constants(path) if path else {}
    if not _of_a_policy(said):
        known = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if _of_a_policy(_constants(path)))
        rule = f"one of {', '.join(known)}, or an import path of a module with DATA and TRAINS"
        near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
        raise RecipeError(f"policy.algo = {name!r}: no such algorithm", rule, f"use {near[0] if near else 'ppo'!r}")
    return said["DATA"]


def source_of(module: str) -> Path | None:
    """The file of a module, which is not run; None where there is none."""
    try:
        spec = find_spec(module)
    except (ModuleNotFoundError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and Path(spec.origin).is_file() else None


def _of_a_policy(said: dict[str, Any]) -> bool:
    return said.get("DATA") in ("rollouts", "comparisons") and "policy" in said.get("TRAINS", ())


def _constants(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id in ("DATA", "TRAINS")
        ):
            found[node.targets[0].id] = ast.literal_eval(node.value)
    return found
