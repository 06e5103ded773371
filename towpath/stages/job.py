"""What a stage is given: its folder, what came before it, the ledger, and where its numbers go."""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from towpath.data.chat import Chat
from towpath.data.corpus import Corpus
from towpath.health.history import Recorder
from towpath.models import base
from towpath.progress import print_note
from towpath.recipe import Recipe
from towpath.records import Completion, Finding
from towpath.runtime.local import device_of, dtype_of
from towpath.store import jsonl, manifest
from towpath.store.publish import MANIFEST, is_intact, newest_intact, publish, replace_file
from towpath.store.store import Store


@dataclass
class Job:
    """One stage of one run. Its result is a dictionary of numbers; all else lies in its folder."""

    recipe: Recipe
    run: Path
    name: str
    folder: Path
    inputs: dict[str, Path]
    store: Store
    corpus: Corpus
    round: int = 1
    checkpoint_seconds: float = field(default_factory=lambda: float(os.environ.get("TOWPATH_CHECKPOINT_SECONDS", "20")))
    findings: list[Finding] = field(default_factory=list)

    @cached_property
    def device(self) -> torch.device:
        return device_of(self.recipe.model.device)

    @cached_property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.recipe.model.dtype, self.device)

    @cached_property
    def chat(self) -> Chat:
        return Chat(base.load_tokenizer(base.find(self.recipe.model.source, self.run)), self.recipe.model.template)

    def model(self, folder: str | Path | None = None, dtype: torch.dtype | None = None) -> Any:
        """A model of this run on its device: the base model, or one that a stage wrote."""
        place = str(folder) if folder else base.find(self.recipe.model.source, self.run)
        return base.load(place, dtype or self.dtype, self.recipe.model.attention, self.device, self.chat.pad)

    def trunk(self, folder: str | Path | None = None, dtype: torch.dtype | None = None) -> Any:
        """A model to train or to ask; its layers are compiled where the recipe says so."""
        model = self.model(folder, dtype)
        cfg = self.recipe.model.compile
        if cfg.on:
            said = cfg.model_dump(exclude={"on", "cudagraphs"}) | {"triton.cudagraphs": cfg.cudagraphs}
            for layer in model.base_model.layers:
                layer.compile(dynamic=True, options=said)
        return model

    def tokens(self, completion: Completion) -> Sequence[int]:
        """The tokens that were drawn; a text from elsewhere is cut where a drawn answer would have been."""
        return completion.token_ids or self.chat.answer(completion.text)[: self.recipe.preferences.max_new_tokens]

    @cached_property
    def log(self) -> "Log":
        return Log(self.folder)

    def result_of(self, stage: str) -> dict[str, Any]:
        """The numbers an earlier stage ended with."""
        return manifest.read(self.inputs[stage])["result"]


class Log:
    """metrics.jsonl, the record of a stage; trackers follow the file."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        self.recorder = Recorder([row for row in jsonl.read(self.path) if "step" in row and "phase" in row])

    def rewind(self, step: int) -> None:
        """Remove rows written after the checkpoint that is being resumed."""
        rows = [row for row in jsonl.read(self.path) if isinstance(row.get("step"), int) and row["step"] < step]
        replace_file(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self.recorder = Recorder(rows)

    def write(self, step: int, phase: str, numbers: dict[str, float]) -> None:
        """Append one row; it is on disk when this returns."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "phase": phase, **numbers}) + "\n")
        self.recorder.add(step, phase, numbers)


class Checkpoints:
    """Numbered, verified checkpoints of a stage; the newest two are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkpoints"
        self.passed_over: list[str] = []
        """Damaged ones that `newest` moved aside."""

    def save(
        self, step: int, tensors: dict[str, Tensor], notes: dict[str, Any], prefix: str = "step", keep: int = 2
    ) -> None:
        """Publish tensors and notes as `prefix_step`; what has a later number is of a past that was left, and goes."""

        def write(place: Path) -> None:
            save_file(tensors, place / "tensors.safetensors")
            (place / "notes.json").write_text(json.dumps(notes))

        target = self.folder / f"{prefix}_{step}"
        self.folder.mkdir(parents=True, exist_ok=True)
        publish(target, write)
        numbered = {
            int(number): path
            for path in self.folder.glob(f"{prefix}_*")
            if (number := path.name.removeprefix(f"{prefix}_")).isdigit()
        }
        kept = sorted(number for number in numbered if number <= step)[-keep:]
        for number, path in numbered.items():
            if number not in kept:
                shutil.rmtree(path)

    def newest(self, prefix: str = "step") -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that verifies, or None; damaged ones are moved aside, so that they are not in the
        way of new ones."""
        found, passed_over = newest_intact(self.folder, prefix) if self.folder.is_dir() else (None, [])
        for path in passed_over:
            why = "its files do not match their checksums" if (path / MANIFEST).is_file() else "it has no manifest"
            aside = path.with_name(f"damaged-{path.name}-{secrets.token_hex(4)}")
            path.rename(aside)
            self.passed_over.append(f"{path}: {why}; moved aside to {aside.name}")
            print_note(f"warning: {self.passed_over[-1]}")
        if found is None:
            return None
        return (
            int(found.name.rsplit("_", 1)[1]),
            load_file(found / "tensors.safetensors"),
            json.loads((found / "notes.json").read_text()),
        )


def save_model(job: Job, model: Any, folder: Path) -> None:
    """A plain folder that transformers loads: weights, configuration, tokenizer with the template of this run."""

    if not is_intact(folder):  # a stage that was killed after it had published goes on with what it published
        publish(folder, lambda place: write_model(job, model, place))


def write_model(job: Job, model: Any, place: Path) -> None:
    """The files of `save_model`, into a folder that is about to be published."""
    model.config.pad_token_id = job.chat.pad
    name_stops(model, job.chat)
    model.save_pretrained(place)
    base.save_tokenizer(job.chat, place)


def name_stops(model: Any, chat: Chat) -> None:
    """Plain `generate` stops where this run's engine stops."""
    model.generation_config.pad_token_id = chat.pad
    model.generation_config.eos_token_id = list(chat.stops) if len(chat.stops) > 1 else chat.eos


Runner = Callable[[Job], dict[str, Any]]
