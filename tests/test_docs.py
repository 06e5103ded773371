"""Documentation held to the code: every recipe key with its default and meaning, every command with its options."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from towpath import recipe
from towpath.cli.app import app
from towpath.recipe import Decoding, Recipe
from towpath.recipe.reader import Section, keys

ROOT = Path(__file__).parent.parent
RECIPE = (ROOT / "docs" / "recipe.md").read_text()
COMMANDS = (ROOT / "docs" / "commands.md").read_text()


def settings() -> Iterator[tuple[str, Any, str]]:
    """Every key of the recipe with the default it really has, and its meaning."""
    for key, info in keys(Recipe).items():
        value: Any = Recipe()
        for part in key.split("."):
            value = getattr(value, part)
        if not isinstance(value, Section):
            yield key, value, info.description
    for name, info in Decoding.model_fields.items():
        yield f"preferences.decodings[].{name}", info.default, info.description or ""


def told(default: Any) -> str:
    """A default as TOML writes it; of a table only what differs from its own defaults."""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, list):
        return "[" + ", ".join(told(item) for item in default) + "]"
    if isinstance(default, Section):
        return (
            "{ "
            + ", ".join(f"{key} = {told(value)}" for key, value in default.model_dump(exclude_defaults=True).items())
            + " }"
        )
    return (
        f'"{default}"' if isinstance(default, str) else f"{default:g}" if isinstance(default, float) else str(default)
    )


def commands(group: Any, path: str = "towpath") -> Iterator[tuple[str, Any]]:
    """Every command by the words one types."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


@pytest.mark.parametrize(("key", "default", "meaning"), [pytest.param(*row, id=row[0]) for row in settings()])
def test_every_key_is_documented(key: str, default: Any, meaning: str):
    row = next((line for line in RECIPE.splitlines() if line.startswith(f"| `{key}` |")), "")
    assert row, f"docs/recipe.md says nothing of {key}"
    assert f"| `{told(default)}` |" in row, f"docs/recipe.md: the default of {key} is {told(default)}"
    assert meaning, f"{key} has no meaning"
    assert meaning in row, f"docs/recipe.md: {key} is {meaning}"


def test_the_recipe_page_names_no_key_that_is_gone():
    known = {key for key, _, _ in settings()}
    named = set(re.findall(r"^\| `([a-z_.\[\]]+)` \|", RECIPE, re.MULTILINE))
    assert named == known, named ^ known


@pytest.mark.parametrize(
    ("words", "command"), [pytest.param(*row, id=row[0]) for row in commands(typer.main.get_command(app))]
)
def test_every_command_is_documented(words: str, command: Any):
    part = next((part for part in COMMANDS.split("\n## ") if part.startswith(f"`{words} ")), "")
    assert part, f"docs/commands.md has no heading for `{words}`"
    assert re.search(rf"^{words} \S", part, re.MULTILINE), f"docs/commands.md has no example of `{words}`"
    options = [param.opts[0] for param in command.params if param.param_type_name == "option" and param.name != "help"]
    missing = [option for option in options if option not in part]
    assert not missing, f"docs/commands.md: `{words}` also takes {', '.join(missing)}"


def test_recipes_that_come_along_are_valid():
    recipes = sorted((ROOT / "recipes").glob("*.toml"))
    assert recipes
    for path in recipes:
        recipe.load(path)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path):
    targets = re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)[^)]*\)", page.read_text())
    broken = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not broken, f"{page.relative_to(ROOT)}: {broken}"
