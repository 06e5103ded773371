"""Health monitor of a training stage: after each step it diagnoses the metrics and, with `health.act = "auto"`, applies
a remedy."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from towpath.health import remedies
from towpath.health.diagnosis import diagnose
from towpath.health.history import History, Recorder
from towpath.progress import print_note
from towpath.recipe import Health
from towpath.recipe.reader import flatten
from towpath.recipe.stage_configs import StageConfig
from towpath.records import Finding, finding_of
from towpath.store import jsonl, manifest
from towpath.store.publish import replace_file

MAX_DIAGNOSES = 400
"""Diagnoses in one stage; a longer stage is not diagnosed at every step."""
Numbers = dict[str, float]


@dataclass(frozen=True)
class Action:
    """What the training loop must do after a diagnosis."""

    knobs: Numbers
    restore_best: bool = False
    reset_best: bool = False
    """Whether the reward has changed, so that the best validation score is no longer comparable."""
    stop: str = ""


class HealthMonitor:
    """Findings and interventions of one stage; both are kept in its folder and survive a resume."""

    def __init__(
        self,
        cfg: Health,
        folder: Path,
        recorder: Recorder,
        facts: Mapping[str, Any],
        findings: list[Finding],
        steps: int,
        knobs: Numbers,
    ) -> None:
        self.cfg = cfg
        self.recorder = recorder
        self.steps = steps
        self.every = max(1, steps // MAX_DIAGNOSES)
        self.facts = {**facts, "steps": steps}
        self.restored_at = -1
        """The last step after which the best weights were restored."""
        self.last_seconds = 0.0
        """Seconds that the last diagnosis took."""
        self._stage_findings = findings
        self._can_act = cfg.act == "auto" and "kl_coef" in knobs
        self._findings_path = folder / "findings.json"
        self._interventions_path = folder / "interventions.jsonl"
        steps_done = recorder.history().steps
        self.interventions = self._load_interventions(steps_done)
        replace_file(self._interventions_path, "".join(map(_line, self.interventions)))
        self._reported = {finding.code: finding for finding in self._load_findings()} if steps_done else {}
        self._stage_findings += self._reported.values()

    def _load_interventions(self, steps_done: int) -> list[remedies.Intervention]:
        """Interventions before an interruption."""
        try:
            rows = jsonl.read(self._interventions_path)
            return [remedies.from_row(row) for row in rows if row["step"] < steps_done]
        except (ValueError, KeyError, TypeError):
            print_note(f"{self._interventions_path}: damaged; earlier interventions are not known")
            return []

    def _load_findings(self) -> list[Finding]:
        """Findings before an interruption; where the file is damaged, those that still hold are reported again."""
        if not self._findings_path.is_file():
            return []
        try:
            return [finding_of(row) for row in json.loads(self._findings_path.read_text(encoding="utf-8"))]
        except (ValueError, KeyError, TypeError, AttributeError):
            print_note(f"{self._findings_path}: damaged; findings are reported again")
            return []

    def after_step(self, step: int, knobs: Numbers) -> Action:
        """Diagnose the run after a step."""
        due = (step + 1) % self.every == 0 or step + 1 == self.steps
        if self.cfg.act == "off" or not due:
            return Action(knobs)
        start = time.monotonic()
        history = self.recorder.history(self.facts)
        findings = diagnose(history, self.cfg.limits)
        self._report(findings)
        action = self._intervene(findings, history, step, knobs) if self._can_act else Action(knobs)
        self.last_seconds = time.monotonic() - start
        return action

    def _report(self, findings: tuple[Finding, ...]) -> None:
        """Print each new finding once, and again when it becomes critical."""
        new = [f for f in findings if f.code not in self._reported or is_worse(f, self._reported[f.code])]
        if not new:
            return
        for finding in new:
            self._reported[finding.code] = finding
            if finding.severity != "info":
                at = "" if finding.first_step is None else f" from step {finding.first_step + 1}"
                print_note(
                    f"{finding.severity}: {finding.code}{at}: {finding.evidence}. {finding.cause}; {finding.remedy}"
                )
        replace_file(self._findings_path, json.dumps([asdict(f) for f in self._reported.values()], indent=1))
        codes = {f.code for f in new}
        self._stage_findings[:] = [f for f in self._stage_findings if f.code not in codes] + new

    def _intervene(self, findings: tuple[Finding, ...], history: History, step: int, knobs: Numbers) -> Action:
        # Steps before the last intervention are evidence that was acted on, unless the KL is beyond its stop.
        if self.interventions and not remedies.is_past_kl_stop(history):
            findings = diagnose(history.after(self.interventions[-1].step), self.cfg.limits)
        chosen = remedies.next_intervention(
            findings, history, knobs, self.interventions, step, self.cfg.max_interventions
        )
        if chosen is None:
            return Action(knobs)
        self.interventions.append(chosen)
        with self._interventions_path.open("a", encoding="utf-8") as file:
            file.write(_line(chosen))
        if chosen.stop:
            print_note(f"remedy after step {step + 1}: training stops; {chosen.reason}")
            return Action(knobs, stop=f"{chosen.finding}: {chosen.reason}")
        print_note(f"remedy after step {step + 1}: {chosen.knob} {chosen.before:g} → {chosen.after:g}; {chosen.reason}")
        if chosen.restore_best:
            self.restored_at = step
        return Action(knobs | {chosen.knob: chosen.after}, chosen.restore_best, chosen.changes_reward)

    def history(self) -> list[dict[str, Any]]:
        """The interventions, each with whether it helped."""
        curves = self.recorder.history(self.facts)
        return [
            remedies.to_row(intervention) | {"helped": remedies.helped(intervention, curves)}
            for intervention in self.interventions
        ]


def is_worse(now: Finding, before: Finding) -> bool:
    """Whether a finding has become critical since it was reported."""
    return now.severity == "critical" and before.severity in ("info", "warning")


def stage_facts(config: StageConfig, stage: str, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """The stage's settings by dotted recipe key, and the results of input stages as `STAGE.result.NAME`."""
    facts = flatten({name: getattr(config, name) for name in config.sections()})
    for name, folder in inputs.items():
        if (folder / manifest.NAME).is_file():
            result = manifest.read(folder)["result"]
            facts |= {f"{name.split('@')[0]}.result.{key}": value for key, value in result.items()}
    return facts | {"stage": stage.split("@")[0]}


def _line(intervention: remedies.Intervention) -> str:
    return json.dumps(remedies.to_row(intervention)) + "\n"
