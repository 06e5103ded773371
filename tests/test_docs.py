"""Documentation against the code: every recipe key with default and meaning, every command with its options."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from towpath import recipe
from towpath.cli.app import app
from towpath.recipe import Recipe, page

ROOT = Path(__file__).parent.parent
RECIPE = (ROOT / "docs" / "recipe.md").read_text()
COMMANDS = (ROOT / "docs" / "commands.md").read_text()


def commands(group: Any, path: str = "towpath") -> Iterator[tuple[str, Any]]:
    """(full command line name, command) of every command."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def test_recipe_page_is_up_to_date():
    """Update the page with `python -m towpath.recipe.page docs/recipe.md`."""
    assert page.render(RECIPE) == RECIPE
    keys = {key for key, field, _ in page.rows(Recipe, "", Recipe()) if field.description}
    assert keys == set(re.findall(r"^\| `([a-z_.\[\]0-9]+)` \|", RECIPE, re.MULTILINE))


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


def test_bundled_recipes_are_valid():
    recipes = sorted((ROOT / "recipes").glob("*.toml"))
    assert recipes
    for path in recipes:
        recipe.load(path)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: page.name
)
def test_links_resolve(page: Path):
    targets = re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)[^)]*\)", page.read_text())
    broken = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not broken, f"{page.relative_to(ROOT)}: {broken}"
