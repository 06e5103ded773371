"""Write settings into recipe.toml: only the values of their keys change, comments and layout stay."""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from towpath.errors import RecipeError
from towpath.recipe.reader import merge
from towpath.store.publish import replace_file
from towpath.sweep.record import SweepRecord
from towpath.sweep.space import Settings

_HEADER = re.compile(r"^\s*\[([^\[\]]+)\]\s*(#.*)?$")
_ASSIGNMENT = re.compile(r"^(\s*)([A-Za-z0-9_.\-\"' ]+?)(\s*=\s*)(.*)$")
_SCALAR = re.compile(r"""("(?:[^"\\]|\\.)*"|'[^']*'|[^#\s,\]}]+)""")


@dataclass(frozen=True)
class RecipeChange:
    """The new text of a recipe, and its difference to the present one."""

    path: Path
    text: str
    diff: str


def recipe_change(run: Path, record: SweepRecord) -> RecipeChange:
    """The change that makes the winner's settings the recipe's; RecipeError if no winner was shown to be better."""
    winner = record.winner()
    if winner is None:
        value = record.verdict.text if record.verdict else "the sweep has no verdict yet"
        fix = "see `towpath sweep RUN --show`; run more trials or seeds, or copy the settings of a trial by hand"
        raise RecipeError(value, "--apply writes the settings of a trial that was confirmed to be better", fix)
    path = run / "recipe.toml"
    old = path.read_text(encoding="utf-8")
    new = set_values(old, winner.settings)
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), "recipe.toml", "recipe.toml", lineterm="", n=1)
    return RecipeChange(path, new, "\n".join(lines))


def write_change(change: RecipeChange) -> None:
    """Replace the recipe atomically."""
    replace_file(change.path, change.text)


def set_values(text: str, settings: Mapping[str, Any]) -> str:
    """A recipe's text with these values; RecipeError if its layout does not let a key be changed alone."""
    before = tomllib.loads(text)
    expected = merge(before, _different(before, settings))
    lines = text.splitlines()
    for key, item in _different(before, settings).items():
        lines = _set_value(lines, key, item)
    changed = "\n".join(lines) + "\n"
    try:
        actual = tomllib.loads(changed)
    except tomllib.TOMLDecodeError:
        actual = None
    if actual != expected:
        wanted = ", ".join(f"{key} = {_toml(item)}" for key, item in settings.items())
        rule = "the layout of recipe.toml does not let these keys be changed alone"
        raise RecipeError(f"recipe.toml: {wanted}", rule, "write them by hand")
    return changed


def _different(tables: Mapping[str, Any], settings: Mapping[str, Any]) -> Settings:
    """The settings that the tables do not have yet."""
    changed = {}
    for key, item in settings.items():
        table: Any = tables
        for part in key.split("."):
            table = table.get(part) if isinstance(table, Mapping) else None
        if table != item or type(table) is not type(item):
            changed[key] = item
    return changed


def _set_value(lines: list[str], key: str, item: Any) -> list[str]:
    """Lines with one value replaced where the key is set, or added to the nearest table."""
    parts = key.split(".")
    table: tuple[str, ...] = ()
    last_line: dict[tuple[str, ...], int] = {(): -1}
    for number, line in enumerate(lines):
        header = _HEADER.match(line)
        if header:
            table = _parts(header[1])
            last_line[table] = number
            continue
        if re.match(r"^\s*\[\[", line):
            table = ("[]",)
            continue
        assignment = _ASSIGNMENT.match(line)
        if not assignment:
            continue
        last_line[table] = number
        name = (*table, *_parts(assignment[2]))
        if list(name) == parts:
            value = _SCALAR.sub(lambda _: _toml(item), assignment[4], count=1)
            return [*lines[:number], "".join(assignment.group(1, 2, 3)) + value, *lines[number + 1 :]]
        if list(name) == parts[: len(name)] and assignment[4].lstrip().startswith("{"):
            inner = r"\.".join(map(re.escape, parts[len(name) :]))
            pattern = re.compile(rf"(\b{inner}\s*=\s*){_SCALAR.pattern}")
            if pattern.search(line):
                return [*lines[:number], pattern.sub(lambda m: m[1] + _toml(item), line, count=1), *lines[number + 1 :]]
            opened = line.replace("{", f"{{ {'.'.join(parts[len(name) :])} = {_toml(item)},", 1)
            return [*lines[:number], opened, *lines[number + 1 :]]
    for size in range(len(parts) - 1, 0, -1):
        at = last_line.get(tuple(parts[:size]))
        if at is not None:
            added = f"{'.'.join(parts[size:])} = {_toml(item)}"
            return [*lines[: at + 1], added, *lines[at + 1 :]]
    return [*lines, "", f"[{'.'.join(parts[:-1])}]", f"{parts[-1]} = {_toml(item)}"]


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in name.split("."))


def _toml(item: Any) -> str:
    """A value as TOML writes it, with all digits of a number."""
    if isinstance(item, bool):
        return str(item).lower()
    if isinstance(item, str):
        return json.dumps(item, ensure_ascii=False)
    return repr(item)
