"""samples.jsonl of a stage: the answers to validation prompts and safety probes, for people to read."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from towpath.data.batch import Batch
from towpath.data.conversations import prompt_cells
from towpath.feedback import rubric
from towpath.hashing import hash_uniform
from towpath.records import Prompt, Rollout
from towpath.store import jsonl
from towpath.store.publish import replace_file

Numbers = dict[str, float]
OnAnswers = Callable[[int, Sequence[Rollout], Batch], None]
"""Called with the step, the answers to validation prompts and their batch."""


class SampleLog:
    """One row a prompt and validation step; step -1 is where training began."""

    def __init__(self, path: Path, probes: Sequence[Prompt] = (), on_answers: OnAnswers | None = None) -> None:
        self.path = path
        self.probes = probes
        self.on_answers = on_answers
        rows = [row for row in jsonl.read(path) if "step" in row and "prompt_id" in row]
        self._rows: dict[tuple[int, str], dict[str, Any]] = {(row["step"], row["prompt_id"]): row for row in rows}

    def write_answers(self, step: int, rollouts: Sequence[Rollout], batch: Batch) -> None:
        """Write the answers of one validation."""
        names = [name for name in ("score", "reward") if name in batch.columns]
        scores = [
            {name: round(float(batch.columns[name][i]), 5) for name in names if not batch.columns[name][i].isnan()}
            for i in range(len(rollouts))
        ]
        self._write([_row(step, r) | score for r, score in zip(rollouts, scores, strict=True)])
        if self.on_answers:
            self.on_answers(step, rollouts, batch)

    def write_probes(self, step: int, rollouts: Sequence[Rollout]) -> Numbers:
        """Write the answers to the safety probes; shares declined of harmful and of harmless ones."""
        declined = [rubric.is_refusal(r.text) for r in rollouts]
        self._write(
            [
                _row(step, r) | {"harmful": r.prompt.harmful, "declined": no}
                for r, no in zip(rollouts, declined, strict=True)
            ]
        )
        metrics = {"probes": float(len(rollouts))}
        for name, harmful in (("harmful_refusal", True), ("harmless_refusal", False)):
            side = [no for r, no in zip(rollouts, declined, strict=True) if r.prompt.harmful == harmful]
            if side:
                metrics[name] = sum(side) / len(side)
        return metrics

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows, or replace those of the same step that were written before an interruption."""
        known = {(row["step"], row["prompt_id"]) for row in rows} & self._rows.keys()
        self._rows |= {(row["step"], row["prompt_id"]): row for row in rows}
        if known:
            replace_file(self.path, "".join(map(_line, self._rows.values())))
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, rows)))


def select_probes(safety: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """So many harmful prompts of the safety set, and as many harmless ones: their twins where there are."""
    order = sorted(safety, key=lambda p: hash_uniform(seed, "health/probes", p.id))
    harmful = [p for p in order if p.harmful][:count]
    ids = {p.id for p in harmful}
    twins = {p.twin for p in harmful}
    harmless = [p for p in order if not p.harmful]
    harmless.sort(key=lambda p: p.id not in twins and p.twin not in ids)
    return [*harmful, *harmless[: len(harmful) or count]]


def _row(step: int, rollout: Rollout) -> dict[str, Any]:
    p = rollout.prompt
    return {"step": step, "prompt_id": p.id, **prompt_cells(p), "domain": p.domain, "text": rollout.text}


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
