"""Checkpoints: tensors and notes in a folder that is published whole."""

import json
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from towpath.progress import print_note
from towpath.runtime.state_files import WHOLE
from towpath.store.publish import MANIFEST, newest_intact, publish


class Checkpoints:
    """Numbered, verified checkpoints in a folder; the newest two are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkpoints"
        self.passed_over: list[str] = []
        """Damaged ones that `newest` moved aside."""

    def save(
        self, step: int, tensors: Mapping[str, Tensor], notes: dict[str, Any], prefix: str = "step", keep: int = 2
    ) -> None:
        """Publish tensors and notes as `prefix_step`; those of later steps, of a run that was rewound, are removed."""
        self.publish(step, lambda folder: save_file(dict(tensors), folder / WHOLE), notes, prefix, keep)

    def publish(
        self,
        step: int,
        write_tensors: Callable[[Path], None],
        notes: dict[str, Any],
        prefix: str = "step",
        keep: int = 2,
    ) -> None:
        """`save`, where something else writes the tensors to a folder."""

        def write(folder: Path) -> None:
            write_tensors(folder)
            (folder / "notes.json").write_text(json.dumps(notes))

        target = self.folder / f"{prefix}_{step}"
        self.folder.mkdir(parents=True, exist_ok=True)
        publish(target, write)
        numbered = {
            int(number): path
            for path in self.folder.glob(f"{prefix}_*")
            if (number := path.name.removeprefix(f"{prefix}_")).isdigit()
        }
        newest_steps = sorted(number for number in numbered if number <= step)[-keep:]
        for number, path in numbered.items():
            if number not in newest_steps:
                shutil.rmtree(path)

    def newest(self, prefix: str = "step") -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """Step, tensors and notes of the newest checkpoint that verifies, or None."""
        newest = self.newest_folder(prefix)
        return newest and (newest[0], load_file(newest[1] / WHOLE), newest[2])

    def newest_folder(self, prefix: str = "step") -> tuple[int, Path, dict[str, Any]] | None:
        """The newest checkpoint that verifies, or None; damaged ones are moved aside, so that they are not in the
        way of new ones."""
        path, damaged = newest_intact(self.folder, prefix) if self.folder.is_dir() else (None, [])
        for folder in damaged:
            why = "its files do not match their checksums" if (folder / MANIFEST).is_file() else "it has no manifest"
            aside = folder.with_name(f"damaged-{folder.name}-{secrets.token_hex(4)}")
            folder.rename(aside)
            self.passed_over.append(f"{folder}: {why}; moved aside to {aside.name}")
            print_note(f"warning: {self.passed_over[-1]}")
        if path is None:
            return None
        notes = json.loads((path / "notes.json").read_text())
        return int(path.name.rsplit("_", 1)[1]), path, notes
