"""The doctor inside a trainer of others: a callback for transformers' Trainer and whatever is built on it, TRL's
trainers among them.

from towpath.callback import DoctorCallback
trainer = GRPOTrainer(..., callbacks=[DoctorCallback(stop_on_critical=True)])

"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from towpath.errors import DataError, RecipeError
from towpath.records import Finding
from towpath.view import doctor
from towpath.view.foreign.log import Log, Raw, settings_as_facts, translated
from towpath.view.report.findings import shown_step

ALGOS = {
    "PPOConfig": "ppo",
    "GRPOConfig": "grpo",
    "RLOOConfig": "rloo",
    "DPOConfig": "dpo",
    "KTOConfig": "kto",
    "ORPOConfig": "orpo",
}
"""TRL's settings by the recipe's name of what they are for."""


class DoctorCallback(TrainerCallback):
    """Diagnoses a run as it goes on: on every `every`-th log, and never for more than `share` of the time that
    training has taken.

    New findings are said once, and again where they grow critical. `findings` holds the last diagnosis, `seen`
    the numbers it was made from, `seconds` what all of them took.
    With `stop_on_critical` a critical finding ends training, in trainers that heed `control.should_training_stop`.

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
            rule = "advise or off: another trainer's knobs are not the doctor's to turn"
            raise RecipeError(f"act = {act!r}", rule, "stop_on_critical=True ends training where it is in danger")
        if every < 1:
            raise RecipeError(f"every = {every}", "1 or more logs between two looks", "every=1")
        self.act = act
        self.every = every
        self.say = say
        self.stop_on_critical = stop_on_critical
        self.share = share
        self.facts = dict(facts or {})
        self.maps = dict(maps or {})
        self.findings: tuple[Finding, ...] = ()
        self.blind: tuple[str, ...] = ()
        self.seen: Log | None = None
        self.seconds = 0.0
        self.looks = 0
        self._said: dict[str, str] = {}
        self._unread = ""
        self._logs = 0
        self._begun = time.monotonic()

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The clock that the cost is held against."""
        self._begun = time.monotonic()

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at the run, where it is time to."""
        self._logs += 1
        affordable = self.seconds <= self.share * (time.monotonic() - self._begun)
        if self._logs % self.every == 0 and affordable:
            self._look(args, state, control)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A last look at all of it."""
        if self._logs:
            self._look(args, state, control)
        if self._unread and self.act != "off":
            self._say(state, f"the doctor could not read this run: {self._unread}")

    def _look(self, args: Any, state: TrainerState, control: TrainerControl) -> None:
        if self.act == "off":
            return
        begun = time.monotonic()
        try:
            self._diagnose(args, state)
        except DataError as error:  # nothing that is known has been logged yet
            self._unread = str(error)
        except Exception as error:  # the border to somebody else's training, which a fault of ours must not end
            self.act = "off"
            self._say(state, f"the doctor failed, training goes on without it: {type(error).__name__}: {error}")
        self.seconds += time.monotonic() - begun
        self.looks += 1
        self._tell(state)
        if self.stop_on_critical and any(finding.severity == "critical" for finding in self.findings):
            control.should_training_stop = True

    def _diagnose(self, args: Any, state: TrainerState) -> None:
        log = translated(Raw("trainer", state.log_history, {"max_steps": state.max_steps}), self.maps)
        algo = ALGOS.get(type(args).__name__, "")
        facts = settings_as_facts(vars(args), log.kind, algo) | ({"policy.algo": algo} if algo else {})
        found = doctor.told(log, facts | self.facts)
        self.findings = found.findings
        self.blind = found.blind
        self.seen = found.log
        self._unread = ""

    def _say(self, state: TrainerState, line: str) -> None:
        if state.is_world_process_zero:
            self.say(line)

    def _tell(self, state: TrainerState) -> None:
        for finding in self.findings:
            if self._said.get(finding.code) in (finding.severity, "critical"):
                continue
            self._said[finding.code] = finding.severity
            self._say(state, sentence(finding))


def sentence(finding: Finding) -> str:
    """A finding in one line."""
    step = shown_step(finding.first_step)
    at = "" if step is None else f" from step {step}"
    why = "; ".join(text for text in (finding.cause, finding.remedy) if text)
    return f"{finding.severity}: {finding.code}{at}: {finding.evidence}" + (f". {why}" if why else "")
