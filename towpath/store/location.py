"""Where the ledger of a run lies."""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from towpath.errors import DataError, RecipeError
from towpath.recipe.reader import secret


def ledger_location(run: Path, url: str) -> Path | str:
    """The database that a recipe names in `store.url`, or a file in the run's folder, which must be there where
    stages are done."""
    found = configured_location(run, url)
    if isinstance(found, Path):
        _require_ledger(found)
    return found


def configured_location(run: Path, url: str) -> Path | str:
    """`of` for whoever looks at a run and opens no ledger that is not there."""
    if not url:
        return run / "towpath.db"
    if url.partition(":")[0] not in ("env", "file") and _has_password(url):
        fix = "store.url = 'env:NAME' or 'file:PATH' with the whole address there, or a ~/.pgpass file"
        raise RecipeError(
            "store.url holds a password",
            "a recipe is copied into reports and manifests; a password is named, never written down",
            fix,
        )
    return secret(url, "store.url")


def _has_password(url: str) -> bool:
    """Whether a password stands in an address, before its host or among its options."""
    parts = urlsplit(url)
    return bool(parts.password) or any(
        "password" in name.lower() for name in parse_qs(parts.query, keep_blank_values=True)
    )


def _require_ledger(path: Path) -> None:
    """A run that has drawn or labelled comparisons has them in its ledger: an empty one would take their place
    unnoticed."""
    if path.exists():
        return
    done = sorted(
        stage for kind in ("sample", "label") for stage in path.parent.glob(f"stages/{kind}*/*/manifest.json")
    )
    if done:
        value = f"{path}: no such file, though {done[0].parent.parent.name} is done"
        rule = "the ledger holds the completions, judgements and labels of finished stages"
        raise DataError(
            value, rule, "bring towpath.db back from a backup; to begin anew, move the folder `stages` away"
        )
