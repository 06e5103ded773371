"""Where the ledger of a run lies."""

from pathlib import Path

from towpath.config import secret


def of(run: Path, url: str) -> Path | str:
    """The database that a recipe names in `store.url`, or a file in the run's folder."""
    return secret(url, "store.url") if url else run / "towpath.db"
