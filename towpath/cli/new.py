"""New runs from the recipes that come along."""

import shutil
import tomllib
from pathlib import Path

from towpath.data.bundled import recipes_folder
from towpath.errors import RecipeError


def new(folder: Path, recipe: str) -> None:
    """A folder with recipe.toml and a copy of the recipe's data."""
    path = Path(recipe) if recipe.endswith(".toml") else recipes_folder() / f"{recipe}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in recipes_folder().glob("*.toml")))
        raise RecipeError(
            f"--recipe {recipe}: no such recipe", f"one of {known}, or a path to a .toml file", "mend the name"
        )
    if (folder / "recipe.toml").exists():
        raise RecipeError(
            f"{folder}: there is a run already",
            "a new run needs a new folder",
            "choose another name, or `towpath run` this one",
        )
    folder.mkdir(parents=True, exist_ok=True)
    data = path.parent / tomllib.loads(path.read_text()).get("name", path.stem)
    for place in (data, path.parent / "quickstart"):
        if place.is_dir():
            shutil.copytree(place, folder / "data", dirs_exist_ok=True)
            break
    shutil.copyfile(path, folder / "recipe.toml")
