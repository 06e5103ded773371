"""A log in the house's terms: rows under foreign names become a history, with an account of which name was taken for
what."""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from towpath.errors import DataError
from towpath.health import history
from towpath.health.history import History
from towpath.view.foreign import names
from towpath.view.foreign.names import Dialect, Kind, Meaning

Row = Mapping[str, Any]
Numbers = dict[str, float]
PHASES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "eval": "validation",
    "val": "validation",
    "test": "validation",
}
SMALL = 1e-9
MOST_STEPS = 2**53
LATELY = 3


@dataclass(frozen=True, slots=True)
class Raw:
    """What a reader found: rows under their own names, and settings that lay beside them."""

    source: str
    rows: Sequence[Row]
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Taken:
    """A name of theirs and what it was taken for."""

    ours: str
    phase: str
    says: str = ""
    rest: bool = False
    """Whether the rest to one was taken."""
    scale: float = 1.0
    """What the logged number was multiplied with."""


@dataclass(frozen=True, slots=True)
class Log:
    """A run to be judged, and what of its record could be read."""

    source: str
    dialect: str
    kind: Kind
    history: History
    taken: Mapping[str, Taken] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What was assumed in reading it."""
    begins: int = 0
    """The number that the log itself gives to the first step, which is 0 here: logs of others mostly count from 1."""

    own: bool = False
    """Whether it was written by this house, so that every name is known."""

    @property
    def steps(self) -> int:
        """How many steps were told of in training."""
        return len({int(step) for curve in self.history.train.values() for step in curve.steps})

    @property
    def last(self) -> int:
        """The last step, counted from 0."""
        return max(
            (
                int(curve.steps[-1])
                for curves in (self.history.train, self.history.validation)
                for curve in curves.values()
                if len(curve)
            ),
            default=0,
        )

    def has(self, *ours: str) -> bool:
        """Whether any of these was told, in training or in validation."""
        told = (self.history.train, self.history.validation)
        return any(
            len(curves[name])
            for curves in told
            for name in curves
            for wanted in ours
            if name == wanted or _of_family(name, wanted)
        )


def _of_family(name: str, wanted: str) -> bool:
    return wanted.endswith("/") and name.startswith(wanted)


def translated(raw: Raw, maps: Mapping[str, str] | None = None) -> Log:
    """The log of a run in the house's terms; `maps` says of some columns what they are."""
    own = _mapped(maps or {})
    steps = list(_stepped(raw.rows, maps or {}))
    columns = list(dict.fromkeys(name for _, _, numbers in steps for name in numbers))
    if not columns:
        raise DataError(
            f"{raw.source}: no numbers",
            "a log has rows of steps and numbers",
            "name the file that training wrote its metrics to",
        )
    _require_there(raw.source, maps or {}, {name for row in raw.rows for name in row})
    dialect = names.dialect_of(columns)
    taken, unused, unknown = _sorted_out(columns, dialect, own)
    if not taken:
        rule = "a log of which some numbers are known"
        raise DataError(
            f"{raw.source}: none of its numbers is known: {', '.join(columns[:12])}",
            rule,
            "say what they are: --map theirs=reward",
        )
    kind = _kind(dialect, taken)
    taken, more = _fitting(taken, kind, steps)
    rows = _rows(steps, taken, kind)
    begins = int(min((row["step"] for row in rows if row["phase"] == "train"), default=1) >= 1)
    notes = [*raw.notes, *_assumed(raw.rows, maps or {}, dialect, taken), *_completed(rows, steps)]
    notes += [*_fill_kl_coef(rows, dialect.algo), *_estimate_lengths(rows, steps)]
    notes += [] if begins else ["the log counts steps from 0; here they are counted from 1"]
    facts = _facts(rows, kind, dialect, raw.settings)
    told = _watched_too(history.history_from_rows(({**row, "step": row["step"] - begins} for row in rows), facts))
    return Log(raw.source, dialect.name, kind, told, taken, unused | more, unknown, tuple(notes), begins)


def _watched_too(told: History) -> History:
    """What is watched on held-out prompts alone stands beside the reward of training too."""
    watched = {
        name: curve for name, curve in told.validation.items() if name.startswith("watched/") and name not in told.train
    }
    return replace(told, train={**told.train, **watched})


def number(value: Any) -> float | None:
    """A number, also where it is written as text, NaN and infinities among them; None for all else."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float | np.number):
        return float(value)
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _stepped(rows: Iterable[Row], maps: Mapping[str, str]) -> Iterator[tuple[int, str, Numbers]]:
    """(step, phase where the row says it, numbers) of each row; a row that counts no step goes with the one before
    it."""
    counters = [column for column, ours in maps.items() if ours == "step"] or list(names.STEPS)
    present = {name for row in rows for name in counters if number(row.get(name)) is not None}
    true = [name for name in counters if name in present]
    last = 0
    for place, row in enumerate(rows):
        told = [
            value
            for name in _of_one_count(true)
            if (value := number(row.get(name))) is not None and abs(value) < MOST_STEPS
        ]
        last = int(told[0]) if told else last if true else place
        numbers = {
            name: value for name, each in row.items() if isinstance(name, str) and (value := number(each)) is not None
        }
        yield (
            last,
            PHASES.get(str(row.get("phase", "")).lower(), ""),
            {name: value for name, value in numbers.items() if name not in true},
        )


def _of_one_count(counters: list[str]) -> list[str]:
    """Columns that count the same thing: where updates are counted, calls of the logger are left aside."""
    updates = [name for name in counters if name != "_step"]
    return updates or counters


def _require_there(source: str, maps: Mapping[str, str], columns: set[str]) -> None:
    for column in maps:
        if column not in columns:
            near = difflib.get_close_matches(column, sorted(columns), n=1, cutoff=0.4)
            fix = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(columns)[:12])}"
            raise DataError(f"{source}: no column {column!r}", "--map names a column of the log", fix)


def _mapped(maps: Mapping[str, str]) -> dict[str, tuple[Meaning, str]]:
    """What the user says that columns are: `kl`, `validation/reward`, `1-finish_rate`."""
    found = {}
    for column, text in maps.items():
        if text == "step":
            continue
        rest = text.startswith("1-")
        name = text.removeprefix("1-")
        phase = "validation" if name.startswith("validation/") else ""
        name = name.removeprefix("validation/")
        if not names.is_ours(name) and name not in names.ON_PAIRS:
            near = difflib.get_close_matches(name, names.OURS, n=1, cutoff=0.4)
            fix = f"did you mean {near[0]}?" if near else "docs/doctor.md lists the names"
            raise DataError(
                f"--map {column}={text}: no such name", f"one of the house's, or {', '.join(names.FAMILIES)}…", fix
            )
        found[column] = Meaning(name, "as you say", rest), phase
    return found


def _sorted_out(
    columns: Sequence[str], dialect: Dialect, own: Mapping[str, tuple[Meaning, str]]
) -> tuple[dict[str, Taken], dict[str, str], tuple[str, ...]]:
    """Which column is taken for what, which is known and not used and why, and which nobody knows."""
    order = list(dialect.names)
    taken: dict[str, Taken] = {}
    unused: dict[str, str] = {}
    unknown: list[str] = []
    by_ours: dict[tuple[str, str], str] = {}

    def rank(column: str) -> tuple[int, int, int]:
        name = names.bare(column)[0]
        return (0 if column in own else 1, order.index(name) if name in order else len(order), len(column) - len(name))

    for column in sorted(columns, key=rank):
        meaning, phase = own[column] if column in own else names.meaning(column, dialect)
        if meaning is None:
            if not names.BOOKKEEPING.fullmatch(column):
                unknown.append(column)
        elif not meaning.ours:
            unused[column] = meaning.says
        elif (meaning.ours, phase or "train") in by_ours:
            unused[column] = f"{by_ours[meaning.ours, phase or 'train']} is taken for {meaning.ours}"
        else:
            by_ours[meaning.ours, phase or "train"] = column
            taken[column] = Taken(meaning.ours, phase, meaning.says, meaning.rest, meaning.scale)
    return taken, unused, tuple(column for column in columns if column in unknown)


def _rows(steps: Iterable[tuple[int, str, Numbers]], taken: Mapping[str, Taken], kind: Kind) -> list[dict[str, Any]]:
    """Rows as metrics.jsonl has them, those of one step and phase made one; of two numbers for one thing the later
    counts."""
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for step, said, numbers in steps:
        for column, value in numbers.items():
            if column in taken:
                told = taken[column]
                phase = told.phase or said or "train"
                ours = (
                    names.ON_PAIRS.get(told.ours, told.ours) if kind == "pairs" and phase == "validation" else told.ours
                )
                rows.setdefault((step, phase), {"step": step, "phase": phase})[ours] = (
                    1 - value if told.rest else value * told.scale
                )
    return [rows[key] for key in sorted(rows)]


def _kind(dialect: Dialect, taken: Mapping[str, Taken]) -> Kind:
    """What was trained; of plain names, what they are numbers of."""
    ours = {told.ours for told in taken.values()}
    if dialect is not names.PLAIN:
        return dialect.kind
    if ours & {"reward", "score", "kl", "kl_per_token", "policy_loss", "clip_fraction", "length"}:
        return "policy"
    if ours & {"pairs_loss", "pairs_accuracy", "chosen", "rejected"}:
        return "pairs"
    return "reward" if "accuracy" in ours else "training"


def _fitting(
    taken: Mapping[str, Taken], kind: Kind, steps: Iterable[tuple[int, str, Numbers]]
) -> tuple[dict[str, Taken], dict[str, str]]:
    """Names as this kind of training means them, and those that say nothing in it, with why."""
    kept: dict[str, Taken] = {}
    left: dict[str, str] = {}
    moved = {column for _, _, numbers in steps for column, value in numbers.items() if value != 0}
    parts = {told.phase for told in taken.values() if told.ours == "policy_loss"}
    for column, told in taken.items():
        if kind == "pairs" and told.phase == "validation":
            kept[column] = replace(told, ours=names.ON_PAIRS.get(told.ours, told.ours))
        elif kind == "policy" and told.ours == "loss" and told.phase in parts:
            left[column] = "the sum of its parts"
        elif kind == "policy" and told.ours == "loss":
            # a surrogate begins at 0 and may rise: it is no loss that should fall
            kept[column] = replace(told, ours="policy_loss")
        elif told.ours == "approx_kl" and column not in moved:
            left[column] = "0 throughout: each rollout is learned from once"
        else:
            kept[column] = told
    return kept, left


def _assumed(
    rows: Sequence[Row], maps: Mapping[str, str], dialect: Dialect, taken: Mapping[str, Taken]
) -> Iterator[str]:
    """What a reader of the log could not know."""
    counters = {*names.STEPS, *(column for column, ours in maps.items() if ours == "step")}
    if not any(name in row for row in rows for name in counters):
        yield "no column counts steps: rows are counted, from 0"
    for column, told in taken.items():
        if dialect is names.PLAIN and told.ours == "kl" and column not in maps:
            yield f"{column} is taken as nats per answer; if it is nats a token: --map {column}=kl_per_token"


def _completed(rows: list[dict[str, Any]], steps: Iterable[tuple[int, str, Numbers]]) -> Iterator[str]:
    """What follows from what was told: a KL per answer is that per token times the length; a coefficient is the
    penalty over the KL."""
    penalty = {
        step: numbers[name]
        for step, _, numbers in steps
        for name in numbers
        if names.bare(name)[0] == "objective/non_score_reward"
    }
    said = set()
    lengths: Numbers = {}
    for row in rows:
        # A rollout that is learned from in several steps has its length told once.
        length = lengths[row["phase"]] = row.get("length", lengths.get(row["phase"], math.nan))
        kl = row.get("kl")
        per_token = row.get("kl_per_token")
        if kl is None and per_token is not None and math.isfinite(length):
            row["kl"] = per_token * length
            said.add("kl per answer is kl_per_token times length")
        elif per_token is None and kl is not None and math.isfinite(length) and length > 0:
            row["kl_per_token"] = kl / length
        if (
            "kl_coef" not in row
            and row["phase"] == "train"
            and row["step"] in penalty
            and abs(row.get("kl", 0.0)) > SMALL
        ):
            row["kl_coef"] = -penalty[row["step"]] / row["kl"]
            said.add("kl_coef is the KL penalty over the KL")
    yield from sorted(said)


SLOPE_ROWS = 10
SLOPE_CORRELATION = 0.95


def _fill_kl_coef(rows: Sequence[dict[str, Any]], algo: str) -> Iterator[str]:
    """GRPO's loss has the value of the KL penalty alone where a rollout is learned from once: its slope on the KL is
    the coefficient."""
    train = [row for row in rows if row["phase"] == "train"]
    points = [
        (row["kl_per_token"], row["policy_loss"]) for row in train if "kl_per_token" in row and "policy_loss" in row
    ]
    known = any("kl_coef" in row for row in train)
    finite = np.array([point for point in points if np.isfinite(point).all()])
    if algo != "grpo" or known or len(finite) < SLOPE_ROWS or not finite.std(axis=0).all():
        return
    kl, loss = finite.T
    slope = float(kl @ loss / (kl @ kl))
    if slope <= 0 or np.corrcoef(kl, loss)[0, 1] < SLOPE_CORRELATION:
        return
    for row in train:
        row["kl_coef"] = slope
    yield "kl_coef is the slope of the loss on the KL"


def _estimate_lengths(rows: Sequence[dict[str, Any]], steps: Iterable[tuple[int, str, Numbers]]) -> Iterator[str]:
    """TRL's PPO logs no length, but the entropy of an answer and that of a token."""
    answers = {
        step: numbers[name]
        for step, _, numbers in steps
        for name in numbers
        if names.bare(name)[0] == "objective/entropy"
    }
    estimated = False
    for row in rows:
        per_token = row.get("entropy", 0.0)
        if "length" in row or row["step"] not in answers or not per_token > SMALL or not answers[row["step"]] > 0:
            continue
        row["length_estimate"] = answers[row["step"]] / per_token
        if "kl" in row:
            row["kl_per_token"] = row["kl"] / max(row["length_estimate"], 1.0)
        estimated = True
    if estimated:
        yield "lengths are not logged; limits of the KL use objective/entropy over policy/entropy_avg"


SETTINGS = {
    "learning_rate": "{stage}.learning_rate",
    "max_grad_norm": "{stage}.max_grad_norm",
    "temperature": "policy.temperature",
    "kl_coef": "policy.kl.coef",
    "num_generations": "policy.group",
    "max_completion_length": "policy.max_new_tokens",
    "response_length": "policy.max_new_tokens",
    "batch_size": "policy.rollout",
    "generation_batch_size": "policy.rollout",
    "num_ppo_epochs": "policy.epochs",
    "num_iterations": "policy.epochs",
    "cliprange": "policy.ppo.clip",
    "cliprange_value": "policy.ppo.value_clip",
    "vf_coef": "policy.ppo.value_weight",
    "gamma": "policy.ppo.gamma",
    "lam": "policy.ppo.lam",
    "whiten_rewards": "policy.ppo.whiten_rewards",
    "missing_eos_penalty": "policy.rewards.eos_penalty",
    "epsilon": "policy.grpo.clip_low",
    "epsilon_high": "policy.grpo.clip_high",
}
"""Arguments of TRL's trainers and the recipe's keys for them; `beta` means one thing with rollouts and another with
pairs."""
STAGES = {"policy": "policy", "pairs": "policy", "reward": "reward", "sft": "sft", "training": "sft"}
"""The stage that each kind of training is of."""


def settings_as_facts(settings: Mapping[str, Any], kind: Kind, algo: str = "") -> dict[str, Any]:
    """Arguments of a trainer as keys of a recipe, those that mean the same."""
    said = {key: value for key, value in settings.items() if isinstance(value, int | float | bool)}
    facts = {SETTINGS[key].format(stage=STAGES[kind]): value for key, value in said.items() if key in SETTINGS}
    if said.get("max_steps", 0) > 0:
        facts |= {"steps": said["max_steps"]} | (
            {"policy.steps": said["max_steps"]} if kind in ("policy", "pairs") else {}
        )
    if "beta" in said:
        place = {"policy": "policy.kl.coef", "pairs": f"policy.{algo or 'dpo'}.beta"}.get(kind)
        facts |= {place: said["beta"]} if place else {}
    return facts


def _facts(rows: Sequence[Row], kind: Kind, dialect: Dialect, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a run's settings: what its numbers tell, and what lay beside them."""
    train = [row for row in rows if row["phase"] == "train"]
    told: dict[str, Any] = {"stage": STAGES[kind]}
    rates = [row["learning_rate"] for row in train if math.isfinite(row.get("learning_rate", math.nan))]
    if rates and max(rates) > 0:
        told[f"{STAGES[kind]}.learning_rate"] = max(rates)
    weights = [row["kl_coef"] for row in train if math.isfinite(row.get("kl_coef", math.nan))]
    if weights:
        told["policy.kl.coef"] = weights[0]
    if kind == "reward":
        told |= _accuracies(rows)
    critic = kind == "policy" and any("value_loss" in row for row in train)
    algo = dialect.algo or ("ppo" if critic else "")
    if algo:
        told["policy.algo"] = algo
    return told | settings_as_facts(settings, kind, algo)


def _accuracies(rows: Sequence[Row]) -> dict[str, float]:
    """How often a reward model was right on what it is trained on, lately, and on held-out pairs: as its stage would
    end with."""
    seen, held = (
        [row["accuracy"] for row in rows if row["phase"] == phase and "accuracy" in row]
        for phase in ("train", "validation")
    )
    if len(seen) < LATELY or not held:
        return {}
    lately = seen[-max(LATELY, len(seen) // 4) :]
    return {"reward.result.train_accuracy": sum(lately) / len(lately), "reward.result.accuracy": held[-1]}
