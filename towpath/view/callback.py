"""DoctorCallback: the doctor inside transformers' Trainer and the trainers built on it, such as TRL's.

from towpath.view.callback import DoctorCallback
trainer = GRPOTrainer(..., callbacks=[DoctorCallback(stop_on_critical=True)])

"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from towpath.errors import DataError, RecipeError
from towpath.records import Finding
from towpath.view import doctor
from towpath.view.doctor_report import step_from_one
from towpath.view.foreign.log import Log, RawLog, settings_as_facts, translate

ALGORITHMS = {
    "PPOConfig": "ppo",
    "GRPOConfig": "grpo",
    "RLOOConfig": "rloo",
    "DPOConfig": "dpo",
    "KTOConfig": "kto",
    "ORPOConfig": "orpo",
}
"""The algorithm of each of TRL's configurations."""


class DoctorCallback(TrainerCallback):
    """Diagnoses a run while it trains: on every `every`-th log, in at most the share `share` of the training time.

    A finding is reported once, and again when it becomes critical. `findings` holds the last diagnosis, `log` the
    metrics it was made from, `seconds` the time of all diagnoses. With `stop_on_critical` a critical finding stops
    training, in trainers that respect `control.should_training_stop`.
    """

    def __init__(
        self,
        act: str = "advise",
        every: int = 1,
        say: Callable[[str], Any] = print,
        stop_on_critical: bool = False,
        facts: Mapping[str, Any] | None = None,
        maps: Mapping[str, str] | None = None,
        share: float = 0.01,
    ) -> None:
        if act not in ("advise", "off"):
            rule = "advise or off: the doctor does not change settings of another trainer"
            raise RecipeError(f"act = {act!r}", rule, "stop_on_critical=True stops training at a critical finding")
        if every < 1:
            raise RecipeError(f"every = {every}", "1 or more logs between two diagnoses", "every=1")
        self.act = act
        self.every = every
        self.say = say
        self.stop_on_critical = stop_on_critical
        self.share = share
        self.facts = dict(facts or {})
        self.maps = dict(maps or {})
        self.findings: tuple[Finding, ...] = ()
        self.missing_signals: tuple[str, ...] = ()
        self.log: Log | None = None
        self.seconds = 0.0
        self.diagnoses = 0
        self._reported: dict[str, str] = {}
        self._error = ""
        self._logs = 0
        self._start = time.monotonic()

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock that the cost is compared with."""
        self._start = time.monotonic()

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Diagnose if it is due."""
        self._logs += 1
        affordable = self.seconds <= self.share * (time.monotonic() - self._start)
        if self._logs % self.every == 0 and affordable:
            self._diagnose(args, state, control)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Diagnose the whole run."""
        if self._logs:
            self._diagnose(args, state, control)
        if self._error and self.act != "off":
            self._say(state, f"the doctor could not read this run: {self._error}")

    def _diagnose(self, args: Any, state: TrainerState, control: TrainerControl) -> None:
        if self.act == "off":
            return
        start = time.monotonic()
        try:
            self._read(args, state)
        except DataError as error:  # no known metric has been logged yet
            self._error = str(error)
        except Exception as error:  # process boundary: a bug here must not stop the user's training
            self.act = "off"
            self._say(state, f"the doctor failed, training continues without it: {type(error).__name__}: {error}")
        self.seconds += time.monotonic() - start
        self.diagnoses += 1
        self._report(state)
        if self.stop_on_critical and any(finding.severity == "critical" for finding in self.findings):
            control.should_training_stop = True

    def _read(self, args: Any, state: TrainerState) -> None:
        log = translate(RawLog("trainer", state.log_history, {"max_steps": state.max_steps}), self.maps)
        algo = ALGORITHMS.get(type(args).__name__, "")
        facts = settings_as_facts(vars(args), log.kind, algo) | ({"policy.algo": algo} if algo else {})
        diagnosis = doctor.diagnose_log(log, facts | self.facts)
        self.findings = diagnosis.findings
        self.missing_signals = diagnosis.missing_signals
        self.log = diagnosis.log
        self._error = ""

    def _say(self, state: TrainerState, line: str) -> None:
        if state.is_world_process_zero:
            self.say(line)

    def _report(self, state: TrainerState) -> None:
        for finding in self.findings:
            if self._reported.get(finding.code) in (finding.severity, "critical"):
                continue
            self._reported[finding.code] = finding.severity
            self._say(state, finding_line(finding))


def finding_line(finding: Finding) -> str:
    """A finding in one line."""
    step = step_from_one(finding.first_step)
    at = "" if step is None else f" from step {step}"
    advice = "; ".join(text for text in (finding.cause, finding.remedy) if text)
    return f"{finding.severity}: {finding.code}{at}: {finding.evidence}" + (f". {advice}" if advice else "")
