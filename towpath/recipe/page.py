"""The tables of docs/recipe.md, from the sections: `python -m towpath.recipe.page docs/recipe.md` renews them."""

import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from towpath.recipe.reader import Section
from towpath.recipe.recipe import Recipe

HEAD = "| key | default | usual | meaning |\n|---|---|---|---|\n"


def rows(model: type[BaseModel], prefix: str, values: BaseModel) -> Iterator[tuple[str, Any, Any]]:
    """(key, field, default) of every key of a table and of the tables in it; `[]` marks keys of tables in a list."""
    for name, field in model.model_fields.items():
        default = getattr(values, name)
        if isinstance(default, Section):
            yield from rows(type(default), f"{prefix}{name}.", default)
            continue
        yield prefix + name, field, default
        item = typing.get_args(field.annotation)[:1]
        if item and isinstance(item[0], type) and issubclass(item[0], Section):
            yield from rows(item[0], f"{prefix}{name}[].", item[0]())


def render(page: str) -> str:
    """The page with its tables renewed; links at the end of a row and all text between tables are kept."""
    links = dict(re.findall(r"^\| `([^`]+)` \|.*?((?:; \[[^\]]+\]\([^)]+\))+) \|$", page, re.MULTILINE))
    parts = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    return "".join(_render_part(part, links) for part in parts)


def _render_part(part: str, links: dict[str, str]) -> str:
    heading = re.match(r"## .*?(?:`\[(\w+)\]`)?\n", part)
    if heading is None or HEAD not in part:
        return part
    before, after = part.split(HEAD, 1)
    rest = after[len(re.match(r"(?:\|.*\n)*", after)[0]) :]  # pyright: ignore[reportOptionalSubscript]
    table = heading[1]
    every = list(rows(Recipe, "", Recipe()))
    chosen = [row for row in every if (row[0].startswith(f"{table}.") if table else "." not in row[0])]
    return before + HEAD + "".join(_line(*row, links.get(row[0], "")) for row in chosen) + rest


def _line(key: str, field: Any, default: Any, link: str) -> str:
    extra = field.json_schema_extra or {}
    choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is Literal else ()
    meaning = field.description + (f" ({', '.join(f'`{choice}`' for choice in choices)})" if choices else "")
    meaning += f"; {extra['why']}" if extra.get("why") else ""
    usual = f" {extra['usual']} " if extra.get("usual") else " "
    return f"| `{key}` | `{toml(default)}` |{usual}| {meaning}{link} |\n"


def toml(value: Any) -> str:
    """A default as TOML writes it; of a table only what differs from its own defaults."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, Section):
        changed = value.model_dump(exclude_defaults=True)
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in changed.items()) + " }"
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")
