"""Creation of a run's folder from a bundled recipe or a recipe file."""

import shutil
import tomllib
from pathlib import Path

from towpath.data.bundled import recipes_folder
from towpath.errors import RecipeError


def create_run(folder: Path, recipe: str) -> None:
    """Create a folder with recipe.toml and a copy of the recipe's data."""
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
    folder.mkdir(parents=True, exist_ok=True)
    own_data = path.parent / tomllib.loads(path.read_text()).get("name", path.stem)
    data = next((source for source in (own_data, path.parent / "quickstart") if source.is_dir()), None)
    if data is not None:
        shutil.copytree(data, folder / "data", dirs_exist_ok=True)
    shutil.copyfile(path, folder / "recipe.toml")
