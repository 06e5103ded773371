"""A run folder as the report reads it: stages with their manifests, metrics and answers."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from towpath.evals.evaluator import NO_JUDGE_CODE
from towpath.progress import print_note
from towpath.recipe import Recipe, load
from towpath.records import Verdict
from towpath.store.jsonl import is_number
from towpath.store.manifest import damaged_error, read_object

ORDER = ("sft", "baseline", "sample", "label", "reward", "policy", "evaluate")
MOST_POINTS = 240  # more than a narrow chart can show


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the present recipe: what it wrote so far."""

    name: str
    fingerprint: str
    folder: Path
    manifest: dict[str, Any] = field(default_factory=dict)
    metrics: tuple[dict[str, Any], ...] = ()

    @property
    def done(self) -> bool:
        """Whether its manifest says it is finished."""
        return self.manifest.get("status") == "done"

    @property
    def begun(self) -> bool:
        """Whether it has a folder: finished, at work or interrupted."""
        return self.folder.is_dir()

    @property
    def kind(self) -> str:
        """The stage without its round: `label` of `label@2`."""
        return self.name.partition("@")[0]

    @property
    def round(self) -> int:
        """The round it belongs to; the first carries no number."""
        return int(self.name.partition("@")[2] or 1)

    @property
    def result(self) -> dict[str, Any]:
        """Its result, empty until it is done."""
        return self.manifest.get("result") or {} if self.done else {}

    def curve(self, key: str, phase: str = "train") -> list[tuple[float, float]]:
        """(step counted from 1, value) of one metric, thinned by averaging neighbours to what a chart can show."""
        points = [
            (float(row["step"]) + 1, float(row[key]))
            for row in self.metrics
            if row.get("phase") == phase and is_number(row.get(key))
        ]
        width = math.ceil(len(points) / MOST_POINTS)
        groups = [points[at : at + width] for at in range(0, len(points), width or 1)]
        return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder, read once."""

    folder: Path
    recipe: Recipe
    stages: dict[str, Stage]
    waiting_for: str = ""
    findings: tuple[dict[str, Any], ...] = ()

    def latest(self, kind: str) -> Stage | None:
        """The stage of that kind in the newest round that finished it, else the newest that began."""
        found = [stage for stage in self.stages.values() if stage.kind == kind]
        done = [stage for stage in found if stage.done]
        return max(done or found, key=lambda stage: stage.round, default=None)

    def result(self, kind: str) -> dict[str, Any]:
        """The result of the latest stage of that kind, empty when there is none."""
        stage = self.latest(kind)
        return stage.result if stage else {}

    def setting(self, kind: str, section: str, *keys: str) -> Any:
        """A setting as the stage had it, else as the recipe has it now."""
        stage = self.latest(kind)
        manifest = stage.manifest if stage else {}
        config = manifest.get("config") or {}
        places = (
            (manifest.get("recipe") or {}).get(section),
            config.get(section),
            config,
            self.recipe.model_dump()[section],
        )
        return next((found for found in (_dig(place, keys) for place in places) if found is not None), None)

    def answers(self) -> list[dict[str, Any]]:
        """The held-out answers of the latest evaluation."""
        stage = self.latest("evaluate")
        return list(_rows(stage.folder / "answers.jsonl")) if stage and stage.done else []

    def win_over_base(self) -> dict[str, Any]:
        """SFT against the base model: what the baseline measured, or the SFT stage itself."""
        return self.result("baseline").get("win") or self.result("sft").get("win") or {}

    def evaluation_judge(self) -> str | None:
        """Who judged the win rates; None where no judge fits the run's data, or nothing has been judged yet."""
        results = [result for kind in ("evaluate", "baseline") if (result := self.result(kind)).get("win")]
        return results[0].get("judge", "rubric") if results else None

    def lacks_judge(self) -> bool:
        """Whether no evaluation judge fits the run's data, by its results or by the findings of its check."""
        measured = [result for kind in ("evaluate", "baseline") if "win" in (result := self.result(kind))]
        if measured:
            return measured[0]["win"] is None
        return any(finding.get("code") == NO_JUDGE_CODE for finding in self.findings)

    def verdict(self, stage: Stage, verdicts: list[Verdict], gate: str = "") -> Verdict | None:
        """The verdict on a stage: the one that names its round, else for the newest round the plain one."""
        gate = gate or stage.kind
        named = {verdict.gate: verdict for verdict in verdicts}
        own = named.get(f"{gate}@{stage.round}")
        return own or (named.get(gate) if stage is self.latest(stage.kind) else None)


def read(folder: Path) -> Run:
    """A run folder with the stages of its present recipe, in the order they are run."""
    current = read_object(folder / "current.json")
    if current is None:
        print_note(f"{folder / 'current.json'}: damaged; `towpath run {folder}` writes it again")
        current = {}
    stages = [_stage(folder, name, str(fingerprint)) for name, fingerprint in (current.get("stages") or {}).items()]
    known = sorted(
        (stage for stage in stages if stage.kind in ORDER), key=lambda stage: (stage.round, ORDER.index(stage.kind))
    )
    said = tuple(row for row in current.get("findings") or [] if isinstance(row, dict))
    return Run(
        folder, load(folder), {stage.name: stage for stage in known}, str(current.get("waiting_for") or ""), said
    )


def _dig(place: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        place = place.get(key) if isinstance(place, dict) else None
    return place


def _stage(run: Path, name: str, fingerprint: str) -> Stage:
    folder = run / "stages" / name / fingerprint
    path = folder / "manifest.json"
    manifest = _json(path) if path.exists() else {}
    # A resumed stage repeats the steps after its last checkpoint: the later row is what was kept.
    kept = {
        (row.get("phase"), row["step"]): row
        for row in _rows(folder / "metrics.jsonl", whole=bool(manifest))
        if is_number(row.get("step"))
    }
    return Stage(name, fingerprint, folder, manifest, tuple(sorted(kept.values(), key=lambda row: row["step"])))


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON and UTF-8 errors are both of this kind
        raise damaged_error(path, f"damaged: {error}") from None
    if not isinstance(value, dict):
        raise damaged_error(path, f"damaged: a JSON {type(value).__name__}")
    return value


def _rows(path: Path, whole: bool = True) -> Iterator[dict[str, Any]]:
    """The rows of a jsonl file; a last line without its end is still being written and is left for later. A file
    that need not be whole, since its stage goes on, is read up to the first damaged line."""
    if not path.exists():
        return
    # Not splitlines(): JSON may hold the other line ends of Unicode inside its strings.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines) or not whole:
                return
            raise damaged_error(path, f"damaged: line {number}: {error}") from None
        if isinstance(row, dict):
            yield row
