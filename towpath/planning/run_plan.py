"""The plan of a whole run: what each stage takes of time, people, money, memory and disk, with the source of each
number. Arithmetic alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from towpath.planning.amounts import NOTHING, Amount, total
from towpath.planning.memory import StageMemory

Who = Literal["people", "judge", "computation"]


@dataclass(frozen=True)
class StagePlan:
    """One stage, all rounds of it together."""

    stage: str
    computation: Amount
    """Seconds."""
    people: Amount = NOTHING
    """Hours that people work."""
    waiting: Amount = NOTHING
    """Seconds until these people are done, nights and days off included."""
    judge: Amount = NOTHING
    """Seconds of the AI judge's calls."""
    people_dollars: Amount = NOTHING
    judge_dollars: Amount = NOTHING
    gpu_dollars: Amount = NOTHING
    memory: StageMemory | None = None
    disk: Amount = NOTHING
    """Bytes that the stage leaves, checkpoints while it runs included."""
    per_step: float | None = None
    """Seconds of one optimizer step, or of one rollout with its updates."""
    parts: Mapping[str, float] | None = None
    """Seconds of computation by what for, the likely case."""
    actual: float | None = None
    """Seconds that the stage took, once it is done."""

    @property
    def times(self) -> dict[Who, Amount]:
        """Seconds by who works; one after another."""
        return {"people": self.waiting, "judge": self.judge, "computation": self.computation}

    @property
    def seconds(self) -> Amount:
        """From the stage's start to its end."""
        return total(self.times.values())

    @property
    def dollars(self) -> Amount:
        """Of people, judge and GPUs together."""
        return total((self.people_dollars, self.judge_dollars, self.gpu_dollars))


@dataclass(frozen=True)
class Bar:
    """What one stage adds to the critical path: stages run one after another, so all of them are on it."""

    stage: str
    who: Who
    start: float
    end: float
    """Seconds after the run's start, the likely case."""


@dataclass(frozen=True)
class Share:
    """The part of a total that takes the most of it."""

    stage: str
    who: str
    amount: float
    share: float


@dataclass(frozen=True)
class Change:
    """Another setting, and what it would change."""

    title: str
    settings: Mapping[str, object]
    """Keys of the recipe, or options of `towpath plan`."""
    seconds: float
    dollars: float
    """Of the whole run: negative where it saves."""
    consequence: str
    """What is lost or won besides, in words."""


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run."""

    machine: str
    """Such as `this machine` or `8 × A100-80GB`."""
    stages: tuple[StagePlan, ...]
    device_memory: int | None
    """Bytes of one GPU, or what this machine has available."""
    device_share: int = 1
    """Workers of the run on it."""
    parts: int = 1
    """Devices that models are divided over."""
    notes: tuple[str, ...] = ()
    """What is not counted, and what was assumed."""

    @property
    def seconds(self) -> Amount:
        """From start to end."""
        return total(stage.seconds for stage in self.stages)

    @property
    def computation(self) -> Amount:
        """Seconds that the machine computes."""
        return total(stage.computation for stage in self.stages)

    @property
    def people(self) -> Amount:
        """Hours of people."""
        return total(stage.people for stage in self.stages)

    @property
    def dollars(self) -> Amount:
        """Of people, judge and GPUs together."""
        return total(stage.dollars for stage in self.stages)

    @property
    def disk(self) -> Amount:
        """Bytes in the end."""
        return total(stage.disk for stage in self.stages)

    @property
    def largest(self) -> StagePlan | None:
        """The stage with the most memory."""
        known = [stage for stage in self.stages if stage.memory]
        return max(known, key=lambda stage: stage.memory.total if stage.memory else 0, default=None)

    @property
    def too_large(self) -> tuple[StagePlan, ...]:
        """Stages that do not fit the memory of a device."""
        if self.device_memory is None:
            return ()
        each = self.device_memory / self.device_share
        return tuple(stage for stage in self.stages if stage.memory and stage.memory.total > each)

    def bars(self) -> Iterator[Bar]:
        """The critical path."""
        start = 0.0
        for stage in self.stages:
            for who, amount in stage.times.items():
                if amount.likely > 0:
                    yield Bar(stage.stage, who, start, start + amount.likely)
                    start += amount.likely

    def most_time(self) -> Share | None:
        """What takes the most time."""
        return _largest([(stage.stage, who, amount) for stage in self.stages for who, amount in stage.times.items()])

    def most_dollars(self) -> Share | None:
        """What takes the most money."""
        rows: list[tuple[str, str, Amount]] = []
        for stage in self.stages:
            rows.append((stage.stage, "people", stage.people_dollars))
            rows.append((stage.stage, "judge", stage.judge_dollars))
            rows.append((stage.stage, "GPUs", stage.gpu_dollars))
        return _largest(rows)


def _largest(rows: Sequence[tuple[str, str, Amount]]) -> Share | None:
    whole = sum(amount.likely for _, _, amount in rows)
    if not whole:
        return None
    stage, who, amount = max(rows, key=lambda row: row[2].likely)
    return Share(stage, who, amount.likely, amount.likely / whole)


def best_changes(plan: RunPlan, changes: Sequence[Change], count: int = 3) -> list[Change]:
    """The changes that save the largest shares of the run's time and money, without those that save nothing."""
    seconds = plan.seconds.likely or 1.0
    dollars = plan.dollars.likely or 1.0

    def saved(change: Change) -> float:
        return -change.seconds / seconds - change.dollars / dollars

    worth = [change for change in changes if saved(change) > 0.005]
    return sorted(worth, key=saved, reverse=True)[:count]
