"""Answers of finished evaluations that an arena can compare."""

import json
from pathlib import Path
from typing import Any

from towpath.errors import DataError
from towpath.records import Prompt
from towpath.store import manifest

MODELS = ("policy", "sft", "base")


def answer_sources(run: Path) -> dict[str, tuple[Path, str]]:
    """Map model names to the file and column of their answers to held-out prompts, the current evaluation first."""
    stages = (manifest.read_object(run / "current.json") or {}).get("stages", {})
    newest = max(
        (name for name in stages if name.startswith("evaluate")),
        key=lambda name: int(name.partition("@")[2] or 1),
        default="",
    )
    sources: dict[str, tuple[Path, str]] = {}
    current = run / "stages" / newest / stages[newest] / "answers.jsonl" if newest else None
    if current is not None and current.is_file():
        sources |= {model: (current, model) for model in MODELS}
    for path in sorted(run.glob("stages/evaluate*/*/answers.jsonl")):
        if path != current and (path.parent / "manifest.json").is_file():
            sources |= {f"{path.parent.parent.name}/{path.parent.name}/{model}": (path, model) for model in MODELS}
    return sources


def load_answers(run: Path, name: str) -> dict[str, tuple[Prompt, str]]:
    """Return the held-out prompts by id, each with the answer of the model `name`."""
    sources = answer_sources(run)
    if name not in sources:
        known = ", ".join(list(sources)[:12]) or "none yet"
        raise DataError(
            f"{name!r}: no answers of this model", f"known models: {known}", "run the evaluation, or correct the name"
        )
    path, model = sources[name]
    return {row["prompt_id"]: (_prompt(row), row[model]) for row in _read_rows(path)}


def reward_model_disagreements(run: Path) -> list[dict[str, Any]]:
    """Return labelled pairs on which the newest reward model contradicts the label, most confident first."""
    evaluations = [path.parent for path, model in answer_sources(run).values() if model == "policy"]
    files = (folder / "disagreements.jsonl" for folder in evaluations)
    path = next((path for path in files if path.is_file()), None)
    return sorted(_read_rows(path) if path else [], key=lambda row: -row["confidence"])


def _prompt(row: dict[str, Any]) -> Prompt:
    return Prompt(
        row["prompt_id"], row["prompt"], row.get("domain", "general"), row.get("difficulty", "medium"), split="heldout"
    )


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
