"""Creation of a run's folder from a bundled recipe or a recipe file."""

import json
import shutil
import tomllib
from pathlib import Path

from towpath.data.bundled import RUBRIC_DATA, recipes_folder
from towpath.errors import RecipeError

OWN_DATA = '"DATA"'
"""What a recipe writes for files that the user has."""


def create_run(folder: Path, recipe: str, data: str = "") -> None:
    """Create a folder with recipe.toml, and a copy of the recipe's data or the name of the user's (`data`)."""
    path = Path(recipe) if recipe.endswith(".toml") else recipes_folder() / f"{recipe}.toml"
    if not path.is_file():
        bundled = ", ".join(sorted(p.stem for p in recipes_folder().glob("*.toml")))
        raise RecipeError(
            f"--recipe {recipe}: no such recipe", f"one of {bundled}, or a path to a .toml file", "correct the name"
        )
    if (folder / "recipe.toml").exists():
        raise RecipeError(
            f"{folder}: already contains a run",
            "a new run needs a new folder",
            "choose another name, or `towpath run` this one",
        )
    text = _with_data(path, data)
    folder.mkdir(parents=True, exist_ok=True)
    if OWN_DATA not in path.read_text(encoding="utf-8"):
        _copy_data(path, folder)
    (folder / "recipe.toml").write_text(text, encoding="utf-8")


def _with_data(path: Path, data: str) -> str:
    """The text of a recipe with the user's files in place of "DATA"."""
    text = path.read_text(encoding="utf-8")
    wanted = text.count(OWN_DATA)
    if wanted and not data:
        fix = f"--data FILE: a file or a pattern of files; see docs/cases.md for what {path.stem} reads"
        raise RecipeError(f"--recipe {path.stem} without --data", "it reads data that you have", fix)
    if data and not wanted:
        fix = "create the run without --data, and set [data] in its recipe.toml"
        raise RecipeError(f"--recipe {path.stem} with --data", "the recipe has data of its own", fix)
    if not wanted:
        return text
    if not data.startswith("hub:"):
        data = str(Path(data).expanduser().absolute())
    return text.replace(OWN_DATA, json.dumps(data, ensure_ascii=False))


def _copy_data(path: Path, folder: Path) -> None:
    """Copy the recipe's own data, else that of quickstart."""
    own_data = path.parent / tomllib.loads(path.read_text(encoding="utf-8")).get("name", path.stem)
    data = next((source for source in (own_data, path.parent / RUBRIC_DATA) if source.is_dir()), None)
    if data is not None:
        shutil.copytree(data, folder / "data", dirs_exist_ok=True)
