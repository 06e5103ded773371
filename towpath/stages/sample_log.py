"""What a look shows to people: the answers to the prompts kept from training, and how harmful requests were met;
kept as JSON lines."""

import json
from collections.abc import Sequence
from typing import Any

from towpath.data.batch import Batch
from towpath.data.draws import hash_uniform
from towpath.feedback import rubric
from towpath.records import Prompt
from towpath.stages.job import Job
from towpath.store import jsonl
from towpath.store.publish import replace_file

Numbers = dict[str, float]


class Showing:
    """samples.jsonl of a stage: of each look every prompt with its answer and its score; step -1 is where training
    began."""

    def __init__(self, job: Job) -> None:
        self.path = job.folder / "samples.jsonl"
        self.probes = probes(job)
        rows = [row for row in jsonl.read(self.path) if "step" in row and "prompt_id" in row]
        self._looks: dict[tuple[int, str], dict[str, Any]] = {(row["step"], row["prompt_id"]): row for row in rows}

    def answers(self, step: int, prompts: Sequence[Prompt], texts: Sequence[str], batch: Batch) -> None:
        """Keep the answers of one look, in place of those of the same step before an interruption."""
        rows = []
        for i, (p, text) in enumerate(zip(prompts, texts, strict=True)):
            row: dict[str, Any] = {
                "step": step,
                "prompt_id": p.id,
                "prompt": p.prompt,
                "domain": p.domain,
                "text": text,
            }
            row |= {
                name: round(float(batch.columns[name][i]), 5) for name in ("score", "reward") if name in batch.columns
            }
            rows.append(row)
        self._put(rows)

    def declined(self, step: int, prompts: Sequence[Prompt], texts: Sequence[str]) -> Numbers:
        """Keep the answers to the probes; shares declined of the harmful and of the harmless."""
        said = [rubric.is_refusal(text) for text in texts]
        rows = [
            {
                "step": step,
                "prompt_id": p.id,
                "prompt": p.prompt,
                "domain": p.domain,
                "text": text,
                "harmful": p.harmful,
                "declined": no,
            }
            for p, text, no in zip(prompts, texts, said, strict=True)
        ]
        self._put(rows)
        sides = {"harmful_refusal": True, "harmless_refusal": False}
        shares = {
            name: [no for p, no in zip(prompts, said, strict=True) if p.harmful == side] for name, side in sides.items()
        }
        return {name: sum(told) / len(told) for name, told in shares.items() if told} | {"probes": float(len(prompts))}

    def _put(self, rows: Sequence[dict[str, Any]]) -> None:
        known = {(row["step"], row["prompt_id"]) for row in rows} & self._looks.keys()
        self._looks |= {(row["step"], row["prompt_id"]): row for row in rows}
        if known:
            replace_file(self.path, "".join(map(_line, self._looks.values())))
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, rows)))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def probes(job: Job) -> list[Prompt]:
    """So many harmful prompts of the safety set as the recipe asks at every look, and as many harmless: twins of
    theirs where there are."""
    count = job.recipe.health.probes
    seed = job.recipe.seed
    order = sorted(job.corpus.safety, key=lambda p: hash_uniform(seed, "health/probes", p.id))
    bad = [p for p in order if p.harmful][:count]
    theirs = {p.twin for p in bad}
    own = {p.id for p in bad}
    fine = sorted((p for p in order if not p.harmful), key=lambda p: p.id not in theirs and p.twin not in own)[
        : len(bad) or count
    ]
    return [*bad, *fine]
