"""Answers of `baseline` and `evaluate` that an arena can compare."""

import json
from pathlib import Path
from typing import Any

from towpath.arena.matches import ArenaSpec, create_arena
from towpath.errors import DataError
from towpath.records import Prompt, messages_of
from towpath.run.record import read_current, stage_round
from towpath.store import jsonl
from towpath.store.arenas import Arena
from towpath.store.manifest import NAME as MANIFEST
from towpath.store.store import Store

ANSWERS = "answers.jsonl"
MODELS = ("policy", "sft", "base")


def answer_sources(run: Path) -> dict[str, tuple[Path, str]]:
    """Map model names to the file and column of their answers to held-out prompts: those of the current evaluation
    first, before it those of `baseline`, then those of earlier evaluations."""
    stages = read_current(run, quiet=True).stages
    evaluations = sorted((name for name in stages if name.startswith("evaluate")), key=stage_round, reverse=True)
    files = [run / "stages" / name / stages[name] / ANSWERS for name in (*evaluations, "baseline") if name in stages]
    current = next((path for path in files if path.is_file()), None)
    sources: dict[str, tuple[Path, str]] = {}
    if current is not None:
        sources |= {model: (current, model) for model in _models(current)}
    for path in sorted(run.glob(f"stages/evaluate*/*/{ANSWERS}")):
        if path != current and (path.parent / MANIFEST).is_file():
            name = f"{path.parent.parent.name}/{path.parent.name}"
            sources |= {f"{name}/{model}": (path, model) for model in _models(path)}
    return sources


def _models(path: Path) -> list[str]:
    """The models whose answers a file has."""
    with path.open(encoding="utf-8") as file:
        columns = json.loads(file.readline() or "{}")
    return [model for model in MODELS if model in columns]


def load_answers(run: Path, name: str) -> dict[str, tuple[Prompt, str]]:
    """Return the held-out prompts by id, each with the answer of the model `name`."""
    sources = answer_sources(run)
    if name not in sources:
        known = ", ".join(list(sources)[:12]) or "none yet"
        raise DataError(
            f"{name!r}: no answers of this model", f"known models: {known}", "run the evaluation, or correct the name"
        )
    path, model = sources[name]
    return {row["prompt_id"]: (_prompt(row), row[model]) for row in jsonl.read(path, strict=True)}


def start_arena(store: Store, run: Path, spec: ArenaSpec, created_by: str = "", seed: int | None = None) -> Arena:
    """Create an arena of two models of a run."""
    return create_arena(store, spec, load_answers(run, spec.one), load_answers(run, spec.other), created_by, seed)


def reward_model_disagreements(run: Path) -> list[dict[str, Any]]:
    """Return labelled pairs on which the newest reward model contradicts the label, most confident first."""
    evaluations = [path.parent for path, model in answer_sources(run).values() if model == "policy"]
    files = (folder / "disagreements.jsonl" for folder in evaluations)
    path = next((path for path in files if path.is_file()), None)
    return sorted(jsonl.read(path, strict=True) if path else [], key=lambda row: -row["confidence"])


def _prompt(row: dict[str, Any]) -> Prompt:
    return Prompt(
        row["prompt_id"],
        row["prompt"],
        row.get("domain", "general"),
        row.get("difficulty", "medium"),
        split="heldout",
        history=messages_of(row.get("history", ())),
    )
