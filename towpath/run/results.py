"""Results of finished stages: verified before they are used, restored from the ledger, or moved aside."""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from towpath.errors import DataError
from towpath.store import manifest
from towpath.store.store import Store

ASIDE = "aside"
"""The folder of a run that `--redo` moves stages to."""
SLOW_SECONDS = 5.0
"""Seconds of verification from which they are reported."""
Say = Callable[[str], None]


def verify(stage: str, folder: Path, inputs: Mapping[str, Path], say: Say) -> None:
    """Raise if results that a stage reads, or its own when it is done, are damaged, or if it was made of other
    inputs."""
    start = time.monotonic()
    for input_folder in inputs.values():
        manifest.verify(input_folder)
    if (folder / manifest.NAME).is_file():
        manifest.verify(folder)
        digests = manifest.read(folder).get("results", {})
        changed = [name for name in digests if name in inputs and not _is_same(digests[name], inputs[name])]
        if changed:
            raise DataError(
                f"{stage} was made of other results of {', '.join(changed)} than there are now",
                "a stage is done while its inputs are unchanged",
                f"`towpath run {folder.parents[2]} --redo {stage}`, and the stages after it",
            )
    seconds = time.monotonic() - start
    if seconds > SLOW_SECONDS:
        say(f"{stage}: results verified in {seconds:.0f} s")


def _is_same(digest: str, folder: Path) -> bool:
    return digest == manifest.results_digest(folder)


def restore_labels(folder: Path, store: Store, say: Say) -> None:
    """Write a damaged label file again from the ledger."""
    from towpath.stages import label

    try:
        manifest.verify(folder)
    except DataError as error:
        if error.value.startswith(str(folder / label.LABELS)) and label.restore(folder, store):
            say(f"warning: {error.value}; it was restored from the ledger")


def move_aside(run: Path, stages: Iterable[tuple[str, Path]], say: Say) -> None:
    """Move stage folders away, so that these stages run again; nothing is deleted."""
    for name, folder in stages:
        if not folder.exists():
            continue
        manifest.invalidate(folder)
        number = 1
        while (run / ASIDE / f"{name}-{folder.name}-{number}").exists():
            number += 1
        target = run / ASIDE / f"{name}-{folder.name}-{number}"
        target.parent.mkdir(exist_ok=True)
        folder.rename(target)
        say(f"{name}: moved aside to {target}; it is run again")
