"""Location of a run's ledger."""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from towpath.errors import DataError, RecipeError
from towpath.recipe.reader import secret


def ledger_location(run: Path, url: str) -> Path | str:
    """Return the database URL of `store.url`, or the file in the run's folder, which must exist once stages are
    finished."""
    location = configured_location(run, url)
    if isinstance(location, Path):
        _require_ledger(location)
    return location


def configured_location(run: Path, url: str) -> Path | str:
    """Return the ledger's location without checking that it exists."""
    return database_url(url, "store.url") if url else run / "towpath.db"


def database_url(url: str, key: str) -> str:
    """Return the database URL that a recipe key holds or refers to; a password in the recipe is refused."""
    if url.partition(":")[0] not in ("env", "file") and _has_password(url):
        fix = f"{key} = 'env:NAME' or 'file:PATH' with the whole URL there, or a ~/.pgpass file"
        raise RecipeError(
            f"{key} holds a password",
            "a recipe is copied into reports and manifests, so it must reference a password, not contain it",
            fix,
        )
    return secret(url, key)


def _has_password(url: str) -> bool:
    """Return whether a URL contains a password, before its host or among its options."""
    parts = urlsplit(url)
    return bool(parts.password) or any(
        "password" in name.lower() for name in parse_qs(parts.query, keep_blank_values=True)
    )


def _require_ledger(path: Path) -> None:
    """Refuse a missing file after stages have sampled or labelled: an empty ledger would silently replace it."""
    if path.exists():
        return
    done = sorted(
        stage for kind in ("sample", "label") for stage in path.parent.glob(f"stages/{kind}*/*/manifest.json")
    )
    if done:
        value = f"{path}: no such file, though {done[0].parent.parent.name} is finished"
        rule = "the ledger holds the completions, judgements and labels of finished stages"
        raise DataError(value, rule, "restore towpath.db from a backup; to start over, move the folder `stages` away")
