"""Data sets of the datasets library: folders that `save_to_disk` wrote, and hub:NAME[:CONFIG]:SPLIT, which is fetched
once and kept in the run's folder in the same form."""

import hashlib
import re
from importlib.util import find_spec
from pathlib import Path

from towpath.errors import DataError
from towpath.store.manifest import read_object

INSTALL = "pip install towpath[hub]"
"""What fetches a data set; reading one takes nothing."""
FORM = "hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT; NAME@REVISION pins a version"


def dataset_files(run: Path, key: str, pattern: str) -> list[Path] | None:
    """The Arrow files that a value of [data] names, in their order; None where it names no data set."""
    if pattern.startswith("hub:"):
        return _arrow_files(_fetched(run, key, pattern), key)
    folder = run / Path(pattern).expanduser()
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return _arrow_files(folder, key)
    return None


def _arrow_files(folder: Path, key: str) -> list[Path]:
    """The files of a data set, as its state.json lists them."""
    if (folder / "dataset_dict.json").is_file():
        splits = (read_object(folder / "dataset_dict.json") or {}).get("splits") or []
        value = f"{key} = {str(folder)!r}: a data set with splits"
        fix = f"name one: {', '.join(str(folder / str(split)) for split in splits)}"
        raise DataError(value, "rows come from one split", fix)
    entries = (read_object(folder / "state.json") or {}).get("_data_files") or []
    names = [str(entry.get("filename")) for entry in entries if isinstance(entry, dict)]
    missing = [name for name in names if "/" in name or not (folder / name).is_file()]
    if missing or not names:
        value = f"{key} = {str(folder)!r}: {'no file ' + missing[0] if missing else 'no data files'}"
        raise DataError(value, "state.json names the Arrow files beside it", "write the data set again")
    return [folder / name for name in names]


def _fetched(run: Path, key: str, source: str) -> Path:
    """The folder of a data set of the hub, fetched where this run has none."""
    name, config, split = _parse(key, source)
    title = re.sub(r"[^\w.-]+", "-", source.removeprefix("hub:"))[:80]
    folder = run / "data" / "hub" / f"{title}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    if (folder / "state.json").is_file():
        return folder
    if find_spec("datasets") is None:
        raise DataError(f"{key} = {source!r}: datasets is not installed", "it fetches data sets of the hub", INSTALL)
    import datasets

    name, _, revision = name.partition("@")
    partial = folder.with_name(f"{folder.name}.tmp")
    try:
        rows = datasets.load_dataset(name, config or None, split=split, revision=revision or None)
        rows.save_to_disk(str(partial))
    except Exception as error:  # whatever the library raises
        message = " ".join(str(error).split())[:300] or type(error).__name__
        fix = "fix the name, the configuration or the split, check the network, or save the data set to a folder"
        raise DataError(f"{key} = {source!r}: {message}", FORM, fix) from None
    partial.rename(folder)
    return folder


def _parse(key: str, source: str) -> tuple[str, str, str]:
    """Name, configuration and split."""
    parts = re.split(r":(?![^\[]*\])", source.removeprefix("hub:"))  # not within train[:10%]
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(f"{key} = {source!r}", FORM, "for example hub:Anthropic/hh-rlhf:train")
    return parts[0], parts[1] if len(parts) == 3 else "", parts[-1]
