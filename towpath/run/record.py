"""Run record: the only reader of a run folder, with its stages, manifests, metrics, answers and findings.

`read_run` reads a whole run once. `towpath.run.live_record` follows a run while it is written.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from towpath.evals.gate_rule import judge_of
from towpath.evals.no_judge import NO_JUDGE_CODE
from towpath.progress import print_note
from towpath.recipe import Recipe, load
from towpath.records import Finding, Verdict
from towpath.store import jsonl
from towpath.store.jsonl import is_number
from towpath.store.manifest import NAME as MANIFEST
from towpath.store.manifest import damaged_error, read_object
from towpath.store.publish import replace_file

STAGES = ("sft", "baseline", "sample", "label", "judge_model", "reward", "policy", "evaluate")
"""Kinds of stages, in the order in which they run; with a judge model `baseline` comes after it."""
OPTIONAL_STAGES = ("judge_model",)
"""Stages that only some recipes have."""
TRAINING_STAGES = ("sft", "reward", "policy")
CURRENT = "current.json"
METRICS = "metrics.jsonl"
MAX_POINTS = 240
"""Points that a small chart can show."""


def stage_kind(name: str) -> str:
    """A stage's name without its round: `label` of `label@2`."""
    return name.partition("@")[0]


def stage_round(name: str) -> int:
    """The round of a stage; the first has no number in the name."""
    return int(name.partition("@")[2] or 1)


@dataclass(frozen=True, slots=True)
class Current:
    """current.json: the stages of the present recipe, what the run waits for, and its findings."""

    stages: dict[str, str] = field(default_factory=dict)
    """Fingerprints by stage name."""
    waiting_for: str = ""
    findings: tuple[dict[str, Any], ...] = ()


def read_current(run: Path, quiet: bool = False) -> Current:
    """The content of current.json; empty if there is none or if it is damaged, which is printed."""
    content = read_object(run / CURRENT)
    if content is None:
        content = {}
        if not quiet:
            print_note(f"{run / CURRENT}: damaged; `towpath run {run}` writes it again")
    stages = content.get("stages")
    findings = content.get("findings")
    return Current(
        {name: str(fingerprint) for name, fingerprint in stages.items()} if isinstance(stages, dict) else {},
        str(content.get("waiting_for") or ""),
        tuple(row for row in findings if isinstance(row, dict)) if isinstance(findings, list) else (),
    )


def write_current(run: Path, stages: Mapping[str, str], findings: Iterable[Finding], waiting_for: str = "") -> None:
    """Write current.json."""
    content = {"stages": dict(stages), "waiting_for": waiting_for, "findings": [asdict(f) for f in findings]}
    replace_file(run / CURRENT, json.dumps(content, indent=1))


def stage_folders(run: Path, current: Current) -> dict[str, Path]:
    """The folder of each stage of the present recipe; without current.json the newest folder of each stage."""
    if current.stages:
        return {name: run / "stages" / name / fingerprint for name, fingerprint in current.stages.items()}
    folders = {}
    for stage in sorted((run / "stages").glob("*/"), key=lambda path: _position(path.name)):
        attempts = [folder for folder in stage.iterdir() if folder.is_dir()]
        if attempts:
            folders[stage.name] = max(attempts, key=modified_at)
    return folders


def _position(name: str) -> tuple[int, str]:
    kind = stage_kind(name)
    return STAGES.index(kind) if kind in STAGES else len(STAGES), name


def modified_at(path: Path) -> float:
    """The modification time of a file; 0 if it does not exist."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a stage, empty while it is not finished; raises if it is damaged."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:  # JSON and UTF-8 errors are both of this kind
        raise damaged_error(path, f"damaged: {error}") from None
    if not isinstance(content, dict):
        raise damaged_error(path, f"damaged: a JSON {type(content).__name__}")
    return content


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage of the present recipe, and what it has written."""

    name: str
    folder: Path
    manifest: dict[str, Any] = field(default_factory=dict)
    metrics: tuple[dict[str, Any], ...] = ()

    @property
    def fingerprint(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @property
    def done(self) -> bool:
        """Whether it has finished."""
        return self.manifest.get("status") == "done"

    @property
    def started(self) -> bool:
        """Whether it has a folder: it has finished, is running or was interrupted."""
        return self.folder.is_dir()

    @property
    def kind(self) -> str:
        """Its name without the round."""
        return stage_kind(self.name)

    @property
    def round(self) -> int:
        """Its round."""
        return stage_round(self.name)

    @property
    def result(self) -> dict[str, Any]:
        """Its result, empty until it has finished."""
        return self.manifest.get("result") or {} if self.done else {}

    def curve(self, name: str, phase: str = "train") -> list[tuple[float, float]]:
        """(step counted from 1, value) of one metric, averaged over neighbours to at most MAX_POINTS."""
        points = [
            (float(row["step"]) + 1, float(row[name]))
            for row in self.metrics
            if row.get("phase") == phase and is_number(row.get(name))
        ]
        return average_neighbours(points)


def average_neighbours(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points averaged in groups of neighbours to at most MAX_POINTS; a group keeps its last step."""
    size = math.ceil(len(points) / MAX_POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run folder, read once."""

    folder: Path
    recipe: Recipe
    stages: dict[str, StageRecord]
    waiting_for: str = ""
    findings: tuple[dict[str, Any], ...] = ()

    def latest(self, kind: str) -> StageRecord | None:
        """The finished stage of that kind in the newest round, else the newest unfinished one."""
        stages = [stage for stage in self.stages.values() if stage.kind == kind]
        done = [stage for stage in stages if stage.done]
        return max(done or stages, key=lambda stage: stage.round, default=None)

    def result(self, kind: str) -> dict[str, Any]:
        """The result of the latest stage of that kind, empty if there is none."""
        stage = self.latest(kind)
        return stage.result if stage else {}

    def setting(self, kind: str, section: str, *keys: str) -> Any:
        """A setting as the stage had it, else as the recipe has it now."""
        stage = self.latest(kind)
        manifest = stage.manifest if stage else {}
        config = manifest.get("config") or {}
        recipe = manifest.get("recipe") or {}
        for values in (recipe.get(section), config.get(section), config, self.recipe.model_dump()[section]):
            value = _nested(values, keys)
            if value is not None:
                return value
        return None

    def answers(self) -> list[dict[str, Any]]:
        """The held-out answers of the latest evaluation."""
        stage = self.latest("evaluate")
        return jsonl.read(stage.folder / "answers.jsonl", strict=True) if stage and stage.done else []

    def win_over_base(self) -> dict[str, Any]:
        """The win rate of SFT over the base model, by the baseline stage or by SFT itself."""
        return self.result("baseline").get("win") or self.result("sft").get("win") or {}

    def evaluation_judge(self) -> str | None:
        """Who judged the win rates; None if no judge fits the run's data, or nothing has been judged yet."""
        results = [result for kind in ("evaluate", "baseline") if (result := self.result(kind)).get("win")]
        return results[0].get("judge") if results else None

    def lacks_judge(self) -> bool:
        """Whether no evaluation judge fits the run's data, by its results or by the findings of its check."""
        results = [self.result(kind) for kind in ("evaluate", "baseline")]
        measured = [result for result in results if "win" in result and not result.get("off")]
        if measured:
            return judge_of(measured[0]) is None
        return any(finding.get("code") == NO_JUDGE_CODE for finding in self.findings)

    def verdict(self, stage: StageRecord, verdicts: list[Verdict], gate: str = "") -> Verdict | None:
        """The verdict on a stage: the one that names its round, else for the newest round the one without a round."""
        gate = gate or stage.kind
        by_gate = {verdict.gate: verdict for verdict in verdicts}
        of_round = by_gate.get(f"{gate}@{stage.round}")
        return of_round or (by_gate.get(gate) if stage is self.latest(stage.kind) else None)


def read_run(folder: Path) -> RunRecord:
    """A run folder with the stages of its present recipe, in the order in which they run."""
    current = read_current(folder)
    stages = [
        _read_stage(name, folder / "stages" / name / fingerprint)
        for name, fingerprint in current.stages.items()
        if stage_kind(name) in STAGES
    ]
    stages.sort(key=lambda stage: (stage.round, STAGES.index(stage.kind)))
    by_name = {stage.name: stage for stage in stages}
    return RunRecord(folder, load(folder), by_name, current.waiting_for, current.findings)


def _read_stage(name: str, folder: Path) -> StageRecord:
    manifest = read_manifest(folder)
    rows = jsonl.read(folder / METRICS, strict=bool(manifest))
    # A resumed stage repeats the steps after its last checkpoint: the later row counts.
    by_step = {(row.get("phase"), row["step"]): row for row in rows if is_number(row.get("step"))}
    return StageRecord(name, folder, manifest, tuple(sorted(by_step.values(), key=lambda row: row["step"])))


def _nested(values: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values
