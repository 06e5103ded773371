"""Verdict of a sweep: finalists, their confirmation with new seeds, and whether one is better than the recipe's own
settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from towpath.recipe import Sweep
from towpath.sweep.objective import Objective, paired_difference
from towpath.sweep.space import Settings
from towpath.sweep.trial_record import TrialRecord

Outcome = Literal["better", "no difference shown", "own settings", "not confirmed"]
EARLY_END = 0.2
"""By which a trial that ended at once is worth less to samplers than one with its win rate that did not."""
OWN = 0
"""The trial with the recipe's own settings."""


@dataclass(frozen=True)
class ConfirmedTrial:
    """Settings trained again with other seeds."""

    number: int
    settings: Settings
    values: tuple[float, ...]
    """Value with each seed."""
    mean: float
    difference: float
    """To the recipe's own settings, paired on seeds and prompts."""
    interval: tuple[float, float]
    allowed: bool
    """Whether it is within the constraints."""
    note: str = ""


@dataclass(frozen=True)
class SweepVerdict:
    """The winner, if one was shown to be better, in words and numbers."""

    outcome: Outcome
    winner: int | None
    """The trial whose settings `--apply` writes; None if the recipe should stay as it is."""
    text: str
    trials: tuple[ConfirmedTrial, ...] = ()
    seeds: int = 0


def finalists(records: Sequence[TrialRecord], sweep: Sweep) -> list[int]:
    """The numbers of the trials that are trained again: the recipe's own, and the best within the constraints."""
    if not sweep.confirm or not records:
        return []
    candidates = [r for r in records if r.status == "complete" and r.number != OWN and not breaks(r, sweep)]
    best = sorted(candidates, key=lambda record: (-record.value.value, record.number))
    return [OWN, *(record.number for record in best[: sweep.confirm])]


def breaks(record: TrialRecord, sweep: Sweep) -> str:
    """The constraint that a trial breaks, empty if none."""
    if record.value.length_controlled < sweep.min_length_controlled:
        rate = record.value.length_controlled
        return f"length-controlled win rate {rate:.1%} below sweep.min_length_controlled"
    if record.value.safety_rise > sweep.max_safety_rise:
        return f"safety rise {record.value.safety_rise:.1%} above sweep.max_safety_rise"
    return ""


def sampler_value(record: TrialRecord, sweep: Sweep) -> float:
    """What samplers learn from: the value, less the amount by which constraints are broken, and less the earlier a
    trial has ended, since it cannot win; a trial that could not be trained is the worst of those."""
    if record.status == "failed":
        return 0.5 - EARLY_END
    short = max(0.0, sweep.min_length_controlled - record.value.length_controlled)
    unsafe = max(0.0, record.value.safety_rise - sweep.max_safety_rise)
    early = EARLY_END * (1 - record.share) if record.status == "pruned" else 0.0
    return record.value.value - short - unsafe - early


def judge_sweep(
    confirmed: Mapping[int, Sequence[TrialRecord]],
    sweep: Sweep,
    objective: Objective,
    target: float,
    resamples: int,
    seed: int,
) -> SweepVerdict:
    """Compare the finalists with the recipe's own settings; records by trial number, the same seeds in the same
    order."""
    own = confirmed.get(OWN, ())
    others = [number for number in confirmed if number != OWN]
    if not own or not others:
        text = "no winner: no trial was within the constraints to the end" if own else NOT_CONFIRMED
        return SweepVerdict("own settings" if own else "not confirmed", None, text)
    rows = [_confirmed(OWN, own, 0.0, (0.0, 0.0), sweep)]
    for number in others:
        records = confirmed[number]
        if not any(len(record.curve) for record in records) or not any(len(record.curve) for record in own):
            continue
        pairs = [(a.curve, b.curve) for a, b in zip(records, own, strict=True) if len(a.curve) and len(b.curve)]
        paired = paired_difference(
            [a for a, _ in pairs], [b for _, b in pairs], objective, target, resamples, seed, len(others)
        )
        rows.append(_confirmed(number, records, paired.difference, paired.interval, sweep))
    allowed = [row for row in rows if row.number != OWN and row.allowed]
    best = max(allowed, key=lambda row: row.difference, default=None)
    seeds = len(own)
    return _decide(best, rows, seeds, objective, target, _stays_at(confirmed[best.number]) if best else None)


def _stays_at(records: Sequence[TrialRecord]) -> float | None:
    """The mean KL of settings that reached the target with no seed."""
    if any(record.value.reached for record in records):
        return None
    return sum(record.value.kl for record in records) / len(records)


NOT_CONFIRMED = (
    "not confirmed: the best of many trials is partly luck; sweep.confirm = 3 trains the best again with other seeds"
)


def _decide(
    best: ConfirmedTrial | None,
    rows: Sequence[ConfirmedTrial],
    seeds: int,
    objective: Objective,
    target: float,
    stays_at: float | None,
) -> SweepVerdict:
    trials = tuple(rows)
    if best is None:
        return SweepVerdict("own settings", None, "no finalist is within the constraints", trials, seeds)
    low, high = best.interval
    what = f"win rate at KL {target:g}" if objective == "win_rate" else f"mean win rate up to KL {target:g}"
    gap = f"{100 * best.difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}] in {what}"
    with_seeds = f"over {seeds} new seed{'s' if seeds > 1 else ''}"
    more = "more seeds (sweep.seeds) or validation prompts would narrow the interval"
    if stays_at is not None:
        more = "a higher rate, a weaker KL penalty or more steps would come nearer to the target"
        with_seeds += f"; its KL stays at {stays_at:.2g}, below the target"
    if low > 0:
        text = f"trial {best.number} is better than the recipe's own settings: {gap} {with_seeds}"
        return SweepVerdict("better", best.number, text, trials, seeds)
    if high < 0:
        text = f"the recipe's own settings are better: the best finalist, trial {best.number}, has {gap} {with_seeds}"
        return SweepVerdict("own settings", None, text, trials, seeds)
    text = (
        f"no difference shown between the recipe's own settings and the best finalist, trial {best.number}: {gap} "
        f"{with_seeds}; {more}"
    )
    return SweepVerdict("no difference shown", None, text, trials, seeds)


def _confirmed(
    number: int, records: Sequence[TrialRecord], difference: float, interval: tuple[float, float], sweep: Sweep
) -> ConfirmedTrial:
    values = tuple(record.value.value for record in records)
    n = len(records)
    length_controlled = sum(record.value.length_controlled for record in records) / n
    safety_rise = sum(record.value.safety_rise for record in records) / n
    notes = []
    if length_controlled < sweep.min_length_controlled:
        notes.append(f"length-controlled {length_controlled:.1%}")
    if safety_rise > sweep.max_safety_rise:
        notes.append(f"safety rise {safety_rise:.1%}")
    failed = [record.seed for record in records if record.status == "failed"]
    allowed = not notes and not failed
    notes += [f"seed {record.seed}: {record.reason}" for record in records if record.reason]
    settings = records[0].settings
    return ConfirmedTrial(number, settings, values, sum(values) / n, difference, interval, allowed, "; ".join(notes))


def to_row(verdict: SweepVerdict) -> dict[str, Any]:
    """The verdict as JSON."""
    rows = [
        {
            "number": t.number,
            "settings": t.settings,
            "values": list(t.values),
            "mean": t.mean,
            "difference": t.difference,
            "interval": list(t.interval),
            "allowed": t.allowed,
            "note": t.note,
        }
        for t in verdict.trials
    ]
    return {
        "outcome": verdict.outcome,
        "winner": verdict.winner,
        "text": verdict.text,
        "seeds": verdict.seeds,
        "trials": rows,
    }


def from_row(row: Mapping[str, Any]) -> SweepVerdict:
    """The verdict from JSON."""
    trials = tuple(
        ConfirmedTrial(
            t["number"],
            t["settings"],
            tuple(t["values"]),
            t["mean"],
            t["difference"],
            (t["interval"][0], t["interval"][1]),
            t["allowed"],
            t["note"],
        )
        for t in row["trials"]
    )
    return SweepVerdict(row["outcome"], row["winner"], row["text"], trials, row["seeds"])
