"""Watches a stage while it trains: after every step findings, and where the recipe says so, a turn of a knob."""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

from towpath.health import remedies
from towpath.health.diagnosis import diagnose
from towpath.health.history import History
from towpath.progress import print_note
from towpath.recipe.reader import flat
from towpath.records import Finding, finding_of
from towpath.stages.job import Job, read_rows
from towpath.store import manifest
from towpath.store.publish import replace_file

MOST_LOOKS = 400
"""Diagnoses in one stage: of longer ones not every step is looked at."""
Numbers = dict[str, float]


@dataclass(frozen=True)
class Done:
    """What the loop is to do: go on with these knobs, from the best weights, or not at all."""

    knobs: Numbers
    back: bool = False
    anew: bool = False
    """Another reward is asked for: what was best by the old one is asked anew."""
    stop: str = ""


class Watch:
    """Findings of one stage so far, each told once; and the turns made for them."""

    def __init__(self, job: Job, steps: int, knobs: Numbers) -> None:
        self.job = job
        self.cfg = job.recipe.health
        self.steps = steps
        self.every = max(1, steps // MOST_LOOKS)
        self.facts = facts(job) | {"steps": steps}
        self.mended = -1
        """The last step after which the best weights were taken up again."""
        self.lately = 0.0
        """Seconds that the last look at the curves took."""
        self._turnable = "kl_coef" in knobs
        self._findings = job.folder / "findings.json"
        self._turns = job.folder / "interventions.jsonl"
        begun = job.log.recorder.history().steps
        self.turns = self._turns_before(begun)
        replace_file(self._turns, "".join(map(_line, self.turns)))
        self.found = {finding.code: finding for finding in self._before()} if begun else {}
        job.findings += self.found.values()

    def _turns_before(self, begun: int) -> list[remedies.Turn]:
        """Turns made before an interruption."""
        try:
            return [remedies.of_row(row) for row in read_rows(self._turns) if row["step"] < begun]
        except (ValueError, KeyError, TypeError):
            print_note(f"{self._turns}: damaged; turns made before are not known")
            return []

    def _before(self) -> list[Finding]:
        """What was found before an interruption; what still holds is found again where the file is damaged."""
        if not self._findings.is_file():
            return []
        try:
            return [finding_of(row) for row in json.loads(self._findings.read_text(encoding="utf-8"))]
        except (ValueError, KeyError, TypeError, AttributeError):
            print_note(f"{self._findings}: damaged; findings are told again")
            return []

    def after(self, step: int, knobs: Numbers) -> Done:
        """Look at the run as it stands after a step."""
        due = (step + 1) % self.every == 0 or step + 1 == self.steps
        if self.cfg.act == "off" or not due:
            return Done(knobs)
        begun = time.monotonic()
        history = self.job.log.recorder.history(self.facts)
        findings = diagnose(history, self.cfg.limits)
        self._tell(findings)
        done = self._act(findings, history, step, knobs) if self.cfg.act == "auto" and self._turnable else Done(knobs)
        self.lately = time.monotonic() - begun
        return done

    def _tell(self, findings: tuple[Finding, ...]) -> None:
        """Say what is new, once; a finding that grew worse is told again."""
        fresh = [f for f in findings if f.code not in self.found or worse(f, self.found[f.code])]
        if not fresh:
            return
        for finding in fresh:
            self.found[finding.code] = finding
            if finding.severity != "info":
                at = "" if finding.first_step is None else f" from step {finding.first_step + 1}"
                print_note(
                    f"{finding.severity}: {finding.code}{at}: {finding.evidence}. {finding.cause}; {finding.remedy}"
                )
        replace_file(self._findings, json.dumps([asdict(f) for f in self.found.values()], indent=1))
        known = {f.code for f in fresh}
        self.job.findings[:] = [f for f in self.job.findings if f.code not in known] + fresh

    def _act(self, findings: tuple[Finding, ...], history: History, step: int, knobs: Numbers) -> Done:
        if self.turns and not remedies.lost(history):  # what has been answered is past, unless all is lost again
            findings = diagnose(history.after(self.turns[-1].step), self.cfg.limits)
        turn = remedies.next_turn(findings, history, knobs, self.turns, step, self.cfg.max_interventions)
        if turn is None:
            return Done(knobs)
        self.turns.append(turn)
        with self._turns.open("a", encoding="utf-8") as file:
            file.write(_line(turn))
        if turn.stop:
            print_note(f"remedy after step {step + 1}: training ends; {turn.reason}")
            return Done(knobs, stop=f"{turn.finding}: {turn.reason}")
        print_note(f"remedy after step {step + 1}: {turn.knob} {turn.before:g} → {turn.after:g}; {turn.reason}")
        self.mended = step if turn.back else self.mended
        return Done(knobs | {turn.knob: turn.after}, turn.back, turn.anew)

    def story(self) -> list[dict[str, Any]]:
        """The turns made, each with whether it helped."""
        history = self.job.log.recorder.history(self.facts)
        return [remedies.row(turn) | {"helped": remedies.helped(turn, history)} for turn in self.turns]


def worse(now: Finding, before: Finding) -> bool:
    """Whether a finding is graver than when it was told."""
    return now.severity == "critical" and before.severity in ("info", "warning")


def facts(job: Job) -> dict[str, Any]:
    """The recipe's values by their dotted keys, and what earlier stages ended with under `STAGE.result.NAME`."""
    found = flat(job.recipe.model_dump(mode="json"))
    for name, folder in job.inputs.items():
        if (folder / manifest.NAME).is_file():
            result = manifest.read(folder)["result"]
            found |= {f"{name.split('@')[0]}.result.{key}": value for key, value in result.items()}
    return found | {"stage": job.name.split("@")[0]}


def _line(turn: remedies.Turn) -> str:
    return json.dumps(remedies.row(turn)) + "\n"
