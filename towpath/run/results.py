"""Results of finished stages: verified before they are read, written again where they can be, moved aside on
request."""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from towpath.errors import DataError
from towpath.store import manifest
from towpath.store.store import Store

ASIDE = "aside"
"""The folder of a run that `--redo` moves stages to."""
LONG = 5.0
"""Seconds of verifying that are reported."""
Say = Callable[[str], None]


def verify(stage: str, folder: Path, inputs: Mapping[str, Path], say: Say) -> None:
    """Raise where what a stage reads, or has left where it is done, is not what was written, or where it was made of
    other results."""
    begun = time.monotonic()
    for place in inputs.values():
        manifest.verify(place)
    if (folder / manifest.NAME).is_file():
        manifest.verify(folder)
        made_of = manifest.read(folder).get("results", {})
        if other := [
            name for name, told in made_of.items() if name in inputs and told != manifest.results_digest(inputs[name])
        ]:
            rule = "a stage is done while what it was made of is there unchanged"
            fix = f"`towpath run {folder.parents[2]} --redo {stage}`, and what comes after it"
            raise DataError(f"{stage} was made of other results of {', '.join(other)} than there are now", rule, fix)
    if (seconds := time.monotonic() - begun) > LONG:
        say(f"{stage}: results verified in {seconds:.0f} s")


def restore_labels(folder: Path, store: Store, say: Say) -> None:
    """Labels are in the ledger, too: a damaged file of theirs is written again."""
    from towpath.stages import label

    try:
        manifest.verify(folder)
    except DataError as error:
        if error.value.startswith(str(folder / label.LABELS)) and label.restore(folder, store):
            say(f"warning: {error.value}; it was written again from the ledger")


def move_aside(run: Path, stages: Iterable[tuple[str, Path]], say: Say) -> None:
    """Make way for stages that are to be run again; nothing is deleted."""
    for name, folder in stages:
        if not folder.exists():
            continue
        manifest.invalidate(folder)
        number = 1
        while (to := run / ASIDE / f"{name}-{folder.name}-{number}").exists():
            number += 1
        to.parent.mkdir(exist_ok=True)
        folder.rename(to)
        say(f"{name}: moved aside to {to}; it is run again")
