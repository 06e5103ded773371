"""Logs of other trainers, translated: their columns become metrics of Towpath, with a record of each mapping."""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from towpath.errors import DataError
from towpath.health.history import History, history_from_rows
from towpath.metrics import FAMILIES, METRICS
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
EPSILON = 1e-9
MAX_STEP = 2**53
RECENT_LOGS = 3
SLOPE_ROWS = 10
SLOPE_CORRELATION = 0.95


@dataclass(frozen=True, slots=True)
class RawLog:
    """Rows of a log under their own names, and settings that were saved with them."""

    source: str
    rows: Sequence[Row]
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MappedColumn:
    """A column of a log and the metric that it is read as."""

    ours: str
    phase: str
    description: str = ""
    complement: bool = False
    """Whether the metric is 1 minus the column."""
    scale: float = 1.0
    """The factor on the column."""


@dataclass(frozen=True, slots=True)
class StepRow:
    """The numbers of one row, with its step, and its phase if the row states it."""

    step: int
    phase: str
    numbers: Numbers


@dataclass(frozen=True, slots=True)
class Log:
    """A log as a history, and what was read of it."""

    source: str
    dialect: str
    kind: Kind
    history: History
    mapped_columns: Mapping[str, MappedColumn] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    """Known columns that are not used, with the reason."""
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Assumptions of the translation."""
    first_step: int = 0
    """The number that the log gives to its first step, which is 0 here."""
    own: bool = False
    """Whether Towpath wrote it, so that every name is known."""

    @property
    def steps(self) -> int:
        """The number of logged training steps."""
        return len({int(step) for curve in self.history.train.values() for step in curve.steps})

    @property
    def last(self) -> int:
        """The last step, counted from 0."""
        curves = (*self.history.train.values(), *self.history.validation.values())
        return max((int(curve.steps[-1]) for curve in curves if len(curve)), default=0)

    def has(self, *metrics: str) -> bool:
        """Whether any of these metrics, or of these families, has values in training or validation."""
        curves = (*self.history.train.items(), *self.history.validation.items())
        logged = [name for name, curve in curves if len(curve)]
        return any(name == one or (one.endswith("/") and name.startswith(one)) for name in logged for one in metrics)


def translate(raw: RawLog, maps: Mapping[str, str] | None = None) -> Log:
    """Translate a log; `maps` names the metrics of some columns."""
    maps = maps or {}
    stated = _stated_meanings(maps)
    steps = list(_step_rows(raw.rows, maps))
    columns = list(dict.fromkeys(name for row in steps for name in row.numbers))
    if not columns:
        fix = "name the file that training wrote its metrics to"
        raise DataError(f"{raw.source}: no numbers", "a log has rows of steps and numbers", fix)
    _require_columns(raw.source, maps, {name for row in raw.rows for name in row})
    dialect = names.dialect_of(columns)
    mapped_columns, unused, unknown = _map_columns(columns, dialect, stated)
    if not mapped_columns:
        value = f"{raw.source}: no known metric among its columns: {', '.join(columns[:12])}"
        raise DataError(value, "a log with known metrics", "map a column: --map column=reward")
    kind = _kind(dialect, mapped_columns)
    mapped_columns, not_used = _for_kind(mapped_columns, kind, steps)
    rows = _metric_rows(steps, mapped_columns, kind)
    first_step = int(min((row["step"] for row in rows if row["phase"] == "train"), default=1) >= 1)
    notes = [*raw.notes, *_assumptions(raw.rows, maps, dialect, mapped_columns), *_derive_kl(rows, steps)]
    notes += [*_derive_kl_coef(rows, dialect.algo), *_estimate_lengths(rows, steps)]
    if not first_step:
        notes.append("the log counts steps from 0; here they are counted from 1")
    facts = _facts(rows, kind, dialect, raw.settings)
    history = history_from_rows(({**row, "step": row["step"] - first_step} for row in rows), facts)
    history = _with_watched(history)
    return Log(
        raw.source, dialect.name, kind, history, mapped_columns, unused | not_used, unknown, tuple(notes), first_step
    )


def _with_watched(history: History) -> History:
    """A history whose watched sources of validation are in training too, beside the reward."""
    watched = {
        name: curve
        for name, curve in history.validation.items()
        if name.startswith("watched/") and name not in history.train
    }
    return replace(history, train={**history.train, **watched})


def to_number(value: Any) -> float | None:
    """A number, also one written as text, including NaN and infinity; else None."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float | np.number):
        return float(value)
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _step_rows(rows: Iterable[Row], maps: Mapping[str, str]) -> Iterator[StepRow]:
    """Rows with their steps; a row without a step belongs to the one before it."""
    candidates = [column for column, ours in maps.items() if ours == "step"] or list(names.STEPS)
    present = {name for row in rows for name in candidates if to_number(row.get(name)) is not None}
    counters = [name for name in candidates if name in present]
    # `_step` of Weights & Biases counts calls of the logger: it is used only if nothing counts updates.
    update_counters = [name for name in counters if name != "_step"] or counters
    step = 0
    for index, row in enumerate(rows):
        counts = [value for name in update_counters if (value := to_number(row.get(name))) is not None]
        counts = [value for value in counts if abs(value) < MAX_STEP]
        if counts:
            step = int(counts[0])
        elif not counters:
            step = index
        numbers = {name: to_number(value) for name, value in row.items() if isinstance(name, str)}
        numbers = {name: value for name, value in numbers.items() if value is not None and name not in counters}
        yield StepRow(step, PHASES.get(str(row.get("phase", "")).lower(), ""), numbers)


def _require_columns(source: str, maps: Mapping[str, str], columns: set[str]) -> None:
    for column in maps:
        if column not in columns:
            near = difflib.get_close_matches(column, sorted(columns), n=1, cutoff=0.4)
            fix = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(columns)[:12])}"
            raise DataError(f"{source}: no column {column!r}", "--map names a column of the log", fix)


def _stated_meanings(maps: Mapping[str, str]) -> dict[str, tuple[Meaning, str]]:
    """The meanings that the user states: `kl`, `validation/reward`, `1-finish_rate`."""
    meanings = {}
    for column, text in maps.items():
        if text == "step":
            continue
        name = text.removeprefix("1-")
        phase = "validation" if name.startswith("validation/") else ""
        name = name.removeprefix("validation/")
        if not names.is_ours(name) and name not in names.VALIDATION_ON_PAIRS:
            near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.4)
            fix = f"did you mean {near[0]}?" if near else "docs/doctor.md lists the metrics"
            rule = f"a metric of Towpath, or {', '.join(FAMILIES)}…"
            raise DataError(f"--map {column}={text}: no such metric", rule, fix)
        meanings[column] = Meaning(name, "as stated", text.startswith("1-")), phase
    return meanings


def _map_columns(
    columns: Sequence[str], dialect: Dialect, stated: Mapping[str, tuple[Meaning, str]]
) -> tuple[dict[str, MappedColumn], dict[str, str], tuple[str, ...]]:
    """The columns that are metrics, those that are known and not used with the reason, and the unknown ones."""
    order = list(dialect.names)
    mapped_columns: dict[str, MappedColumn] = {}
    unused: dict[str, str] = {}
    unknown: list[str] = []
    column_of: dict[tuple[str, str], str] = {}

    def rank(column: str) -> tuple[int, int, int]:
        name = names.split_phase(column)[0]
        position = order.index(name) if name in order else len(order)
        return (0 if column in stated else 1, position, len(column) - len(name))

    for column in sorted(columns, key=rank):
        meaning, phase = stated[column] if column in stated else names.meaning(column, dialect)
        if meaning is None:
            if not names.BOOKKEEPING.fullmatch(column):
                unknown.append(column)
            continue
        metric = (meaning.ours, phase or "train")
        if not meaning.ours:
            unused[column] = meaning.description
        elif metric in column_of:
            unused[column] = f"{column_of[metric]} is used as {meaning.ours}"
        else:
            column_of[metric] = column
            mapped_columns[column] = MappedColumn(
                meaning.ours, phase, meaning.description, meaning.complement, meaning.scale
            )
    return mapped_columns, unused, tuple(column for column in columns if column in unknown)


def _metric_rows(
    steps: Iterable[StepRow], mapped_columns: Mapping[str, MappedColumn], kind: Kind
) -> list[dict[str, Any]]:
    """Rows as in metrics.jsonl, one for each step and phase; of two values for one metric the later counts."""
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for row in steps:
        for column, value in row.numbers.items():
            if column not in mapped_columns:
                continue
            mapped = mapped_columns[column]
            phase = mapped.phase or row.phase or "train"
            name = mapped.ours
            if kind == "pairs" and phase == "validation":
                name = names.VALIDATION_ON_PAIRS.get(name, name)
            metrics = rows.setdefault((row.step, phase), {"step": row.step, "phase": phase})
            metrics[name] = 1 - value if mapped.complement else value * mapped.scale
    return [rows[key] for key in sorted(rows)]


def _kind(dialect: Dialect, mapped_columns: Mapping[str, MappedColumn]) -> Kind:
    """The kind of training; of plain names, by the metrics."""
    ours = {mapped.ours for mapped in mapped_columns.values()}
    if dialect is not names.PLAIN:
        return dialect.kind
    if ours & {"reward", "score", "kl", "kl_per_token", "policy_loss", "clip_fraction", "length"}:
        return "policy"
    if ours & {"pairs_loss", "pairs_accuracy", "chosen", "rejected"}:
        return "pairs"
    return "reward" if "accuracy" in ours else "training"


def _for_kind(
    mapped_columns: Mapping[str, MappedColumn], kind: Kind, steps: Iterable[StepRow]
) -> tuple[dict[str, MappedColumn], dict[str, str]]:
    """The mapping for this kind of training, and columns that mean nothing in it, with the reason."""
    mapping: dict[str, MappedColumn] = {}
    not_used: dict[str, str] = {}
    changing = {column for row in steps for column, value in row.numbers.items() if value != 0}
    phases_of_parts = {mapped.phase for mapped in mapped_columns.values() if mapped.ours == "policy_loss"}
    for column, mapped in mapped_columns.items():
        if kind == "pairs" and mapped.phase == "validation":
            name = names.VALIDATION_ON_PAIRS.get(mapped.ours, mapped.ours)
            mapping[column] = replace(mapped, ours=name)
        elif kind == "policy" and mapped.ours == "loss" and mapped.phase in phases_of_parts:
            not_used[column] = "the sum of its parts"
        elif kind == "policy" and mapped.ours == "loss":
            # A surrogate starts at 0 and may rise: it is no loss that should fall.
            mapping[column] = replace(mapped, ours="policy_loss")
        elif mapped.ours == "approx_kl" and column not in changing:
            not_used[column] = "0 throughout: each rollout is used for one update"
        else:
            mapping[column] = mapped
    return mapping, not_used


def _assumptions(
    rows: Sequence[Row], maps: Mapping[str, str], dialect: Dialect, mapped_columns: Mapping[str, MappedColumn]
) -> Iterator[str]:
    """Notes on what the log does not state."""
    counters = {*names.STEPS, *(column for column, ours in maps.items() if ours == "step")}
    if not any(name in row for row in rows for name in counters):
        yield "no column counts steps: rows are counted, from 0"
    for column, mapped in mapped_columns.items():
        if dialect is names.PLAIN and mapped.ours == "kl" and column not in maps:
            yield f"{column} is read as nats per answer; if it is nats per token: --map {column}=kl_per_token"


def _by_name(steps: Iterable[StepRow], wanted: str) -> Numbers:
    """The values of a column by step, whatever the prefix of its name."""
    return {
        row.step: value for row in steps for name, value in row.numbers.items() if names.split_phase(name)[0] == wanted
    }  # pyright: ignore[reportReturnType]


def _derive_kl(rows: list[dict[str, Any]], steps: Iterable[StepRow]) -> Iterator[str]:
    """Fill in metrics that follow from others: KL per answer is KL per token times length; the KL coefficient is the
    penalty over the KL."""
    penalty: Mapping[Any, float] = _by_name(steps, "objective/non_score_reward")
    notes = set()
    lengths: Numbers = {}
    for row in rows:
        # A rollout that is used for several steps logs its length once.
        length = row.get("length", lengths.get(row["phase"], math.nan))
        lengths[row["phase"]] = length
        kl = row.get("kl")
        per_token = row.get("kl_per_token")
        if kl is None and per_token is not None and math.isfinite(length):
            row["kl"] = per_token * length
            notes.add("kl per answer is kl_per_token times length")
        elif per_token is None and kl is not None and math.isfinite(length) and length > 0:
            row["kl_per_token"] = kl / length
        has_penalty = row["phase"] == "train" and row["step"] in penalty
        if "kl_coef" not in row and has_penalty and abs(row.get("kl", 0.0)) > EPSILON:
            row["kl_coef"] = -penalty[row["step"]] / row["kl"]
            notes.add("kl_coef is the KL penalty over the KL")
    yield from sorted(notes)


def _derive_kl_coef(rows: Sequence[dict[str, Any]], algo: str) -> Iterator[str]:
    """Fill in the KL coefficient of GRPO: with one update a rollout, the loss has the value of the KL penalty, so its
    slope on the KL is the coefficient."""
    train = [row for row in rows if row["phase"] == "train"]
    points = [
        (row["kl_per_token"], row["policy_loss"]) for row in train if "kl_per_token" in row and "policy_loss" in row
    ]
    is_logged = any("kl_coef" in row for row in train)
    finite = np.array([point for point in points if np.isfinite(point).all()])
    if algo != "grpo" or is_logged or len(finite) < SLOPE_ROWS or not finite.std(axis=0).all():
        return
    kl, loss = finite.T
    slope = float(kl @ loss / (kl @ kl))
    if slope <= 0 or np.corrcoef(kl, loss)[0, 1] < SLOPE_CORRELATION:
        return
    for row in train:
        row["kl_coef"] = slope
    yield "kl_coef is the slope of the loss on the KL"


def _estimate_lengths(rows: Sequence[dict[str, Any]], steps: Iterable[StepRow]) -> Iterator[str]:
    """Estimate lengths for TRL's PPO, which logs the entropy of an answer and that of a token."""
    answer_entropy: Mapping[Any, float] = _by_name(steps, "objective/entropy")
    estimated = False
    for row in rows:
        per_token = row.get("entropy", 0.0)
        per_answer = answer_entropy.get(row["step"], 0.0)
        if "length" in row or not per_token > EPSILON or not per_answer > 0:
            continue
        row["length_estimate"] = per_answer / per_token
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
"""Arguments of TRL's trainers by recipe key; `beta` depends on the kind of training."""
STAGES = {"policy": "policy", "pairs": "policy", "reward": "reward", "sft": "sft", "training": "sft"}
"""The stage of each kind of training."""


def settings_as_facts(settings: Mapping[str, Any], kind: Kind, algo: str = "") -> dict[str, Any]:
    """Arguments of a trainer as recipe keys."""
    values = {key: value for key, value in settings.items() if isinstance(value, int | float | bool)}
    facts = {SETTINGS[key].format(stage=STAGES[kind]): value for key, value in values.items() if key in SETTINGS}
    max_steps = values.get("max_steps", 0)
    if max_steps > 0:
        facts["steps"] = max_steps
        if kind in ("policy", "pairs"):
            facts["policy.steps"] = max_steps
    beta_key = {"policy": "policy.kl.coef", "pairs": f"policy.{algo or 'dpo'}.beta"}.get(kind)
    if "beta" in values and beta_key:
        facts[beta_key] = values["beta"]
    return facts


def _facts(rows: Sequence[Row], kind: Kind, dialect: Dialect, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the run, from its metrics and from what was saved with them."""
    train = [row for row in rows if row["phase"] == "train"]
    facts: dict[str, Any] = {"stage": STAGES[kind]}
    rates = [row["learning_rate"] for row in train if math.isfinite(row.get("learning_rate", math.nan))]
    if rates and max(rates) > 0:
        facts[f"{STAGES[kind]}.learning_rate"] = max(rates)
    coefs = [row["kl_coef"] for row in train if math.isfinite(row.get("kl_coef", math.nan))]
    if coefs:
        facts["policy.kl.coef"] = coefs[0]
    if kind == "reward":
        facts |= _accuracies(rows)
    has_critic = kind == "policy" and any("value_loss" in row for row in train)
    algo = dialect.algo or ("ppo" if has_critic else "")
    if algo:
        facts["policy.algo"] = algo
    return facts | settings_as_facts(settings, kind, algo)


def _accuracies(rows: Sequence[Row]) -> dict[str, float]:
    """The recent training accuracy and the last held-out accuracy of a reward model, as in the result of its stage."""
    train = [row["accuracy"] for row in rows if row["phase"] == "train" and "accuracy" in row]
    validation = [row["accuracy"] for row in rows if row["phase"] == "validation" and "accuracy" in row]
    if len(train) < RECENT_LOGS or not validation:
        return {}
    recent = train[-max(RECENT_LOGS, len(train) // 4) :]
    return {"reward.result.train_accuracy": sum(recent) / len(recent), "reward.result.accuracy": validation[-1]}
