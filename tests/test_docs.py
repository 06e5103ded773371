"""The documentation names every command and every key can be explained."""

from pathlib import Path

import typer

from towpath import recipe
from towpath.cli import app

DOCS = Path(__file__).parent.parent / "docs"


def test_every_command_is_documented():
    text = (DOCS / "commands.md").read_text()
    for name, command in typer.main.get_command(app).commands.items():
        names = [f"{name} {sub}" for sub in command.commands] if hasattr(command, "commands") else [name]
        for full in names:
            assert f"`towpath {full} " in text, full


def test_every_key_has_a_meaning():
    rows = recipe.explained("")
    assert len(rows) > 80
    assert all(row["meaning"] for row in rows)


def test_recipes_that_come_along_are_valid():
    for path in sorted((DOCS.parent / "recipes").glob("*.toml")):
        recipe.load(path)
