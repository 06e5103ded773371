"""Where the ledger of a run lies."""

from pathlib import Path
from urllib.parse import urlsplit

from towpath.config import secret
from towpath.errors import RecipeError


def of(run: Path, url: str) -> Path | str:
    """The database that a recipe names in `store.url`, or a file in the run's folder."""
    if not url:
        return run / "towpath.db"
    if url.partition(":")[0] not in ("env", "file") and urlsplit(url).password:
        fix = "store.url = 'env:NAME' or 'file:PATH' with the whole address there, or a ~/.pgpass file"
        raise RecipeError("store.url holds a password", "a recipe is copied into reports and manifests; a password is named, never written down", fix)
    return secret(url, "store.url")
