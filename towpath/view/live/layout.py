"""Which charts there are for the numbers that a stage tells: groups of small multiples. What no group knows gets a
chart of its own."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

Form = Literal["number", "percent", "seconds", "bytes"]
TONES = 9


@dataclass(frozen=True, slots=True)
class Line:
    """One curve of a chart: a name in metrics.jsonl, and what the legend calls it."""

    name: str
    label: str
    phase: Literal["train", "validation"]
    tone: int


@dataclass(frozen=True, slots=True)
class Guide:
    """A level that a recipe sets, or a band between two."""

    low: float
    high: float
    label: str
    kind: Literal["good", "bad"]


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture of curves that share a scale."""

    key: str
    title: str
    lines: tuple[Line, ...]
    form: Form = "number"
    guides: tuple[Guide, ...] = ()
    log: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Charts that belong together."""

    title: str
    charts: tuple[Chart, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A chart that is made when any of its names was told; a name that ends in `/` is every name that begins so."""

    title: str
    names: tuple[str, ...]
    form: Form = "number"
    log: bool = False


WANTED: dict[str, tuple[Wanted, ...]] = {
    "Reward": (
        Wanted("Reward", ("reward", "score")),
        Wanted("Reward by part", ("score/", "watched/")),
        Wanted("Reward by domain", ("reward/",)),
        Wanted("Score alone by domain", ("domain/",)),
        Wanted("Spread of rewards", ("reward_std",)),
        Wanted("Reward with length and repetition, correlations", ("reward_length_corr", "reward_repetition_corr")),
    ),
    "Distance from the tuned model": (
        Wanted("KL, nats per prompt", ("kl", "kl_k3"), log=True),
        Wanted("KL, nats per token", ("kl_per_token", "approx_kl"), log=True),
        Wanted("Weight of the KL penalty", ("kl_coef",), log=True),
    ),
    "Pairs and labels": (
        Wanted("Accuracy", ("accuracy", "pairs_accuracy"), "percent"),
        Wanted("Loss on held-out pairs", ("pairs_loss",), log=True),
        Wanted("Gap between chosen and other", ("gap", "margin", "chosen", "rejected")),
    ),
    "Loss": (
        Wanted("Loss", ("loss",), log=True),
        Wanted("Policy loss", ("policy_loss",)),
        Wanted("Value loss", ("value_loss",), log=True),
        Wanted("Critic: explained variance", ("explained_variance",)),
    ),
    "Answers": (
        Wanted("Length, tokens", ("length",)),
        Wanted("Answers that end by themselves", ("finish_rate",), "percent"),
        Wanted("Entropy, nats per token", ("entropy",)),
        Wanted("Diversity: different words, pairs, triples", ("distinct_1", "distinct_2", "distinct_3"), "percent"),
        Wanted("Repetition", ("repetition",), "percent"),
        Wanted("Commonest opening", ("opening",), "percent"),
        Wanted("Refusals", ("refusal", "harmful_refusal", "harmless_refusal"), "percent"),
    ),
    "Optimisation": (
        Wanted("Gradient norm", ("grad_norm",), log=True),
        Wanted("Learning rate", ("learning_rate",), log=True),
        Wanted("Size of an update", ("update",), log=True),
        Wanted("Updates that were clipped", ("clip_fraction",), "percent"),
        Wanted("Ratio to the sampling policy", ("ratio",)),
        Wanted("Error of the ratio", ("ratio_error", "first_ratio_error", "sampler_error"), log=True),
    ),
    "Knobs": (
        Wanted("Temperature", ("temperature",)),
        Wanted("Learning rate, scale", ("learning_rate_scale",)),
        Wanted("Policy, weight", ("policy_weight",)),
        Wanted("Prompts by domain, weight", ("domain_weight/",)),
    ),
    "Machine and data": (
        Wanted("Tokens per second", ("tokens_per_second",)),
        Wanted("Seconds by phase", ("seconds_generate", "seconds_score", "seconds_optimise"), "seconds"),
        Wanted("Memory", ("memory_bytes",), "bytes"),
        Wanted("Different prompts in a rollout", ("prompts_distinct",)),
    ),
}
LABELS = {
    "kl": "k1",
    "kl_k3": "k3",
    "kl_per_token": "to the tuned model",
    "approx_kl": "to the sampling policy",
    "score": "score alone",
    "distinct_1": "words",
    "distinct_2": "pairs",
    "distinct_3": "triples",
    "seconds_generate": "generate",
    "seconds_score": "score",
    "seconds_optimise": "optimise",
    "refusal": "of answers drawn",
    "harmful_refusal": "of harmful prompts",
    "harmless_refusal": "of harmless prompts",
    "ratio_error": "mean",
    "first_ratio_error": "first minibatch",
    "sampler_error": "sampler",
}


def groups(train: Iterable[str], validation: Iterable[str], facts: Mapping[str, Any]) -> list[Group]:
    """The charts for these names, with the levels that the recipe sets."""
    told = {"train": list(train), "validation": list(validation)}
    free = dict.fromkeys([*told["train"], *told["validation"]])
    found = []
    for title, wanted in WANTED.items():
        charts = [chart for want in wanted if (chart := _chart(want, told, facts, free))]
        if charts:
            found.append(Group(title, tuple(charts)))
    rest = [chart for name in list(free) if name in free and (chart := _chart(_own(name, free), told, facts, free))]
    return [*found, Group("More", tuple(rest))] if rest else found


def _own(name: str, free: Mapping[str, None]) -> Wanted:
    """A chart for a name that no group knows; names before the same `/` share one."""
    family, slash, _ = name.partition("/")
    return Wanted(words(family), (f"{family}/",)) if slash and family not in free else Wanted(words(name), (name,))


def _chart(
    want: Wanted, told: Mapping[str, list[str]], facts: Mapping[str, Any], free: dict[str, None]
) -> Chart | None:
    names = [
        name for name in free if any(name.startswith(one) if one.endswith("/") else name == one for one in want.names)
    ]
    names.sort(key=lambda name: (next(i for i, one in enumerate(want.names) if name.startswith(one.rstrip("/"))), name))
    for name in names:
        del free[name]
    if not names:
        return None
    alone = len(names) == 1 and "/" not in names[0]
    lines = []
    for place, name in enumerate(names):
        label = "training" if alone else LABELS.get(name) or _label(name, want)
        if name in told["train"]:
            lines.append(Line(name, label, "train", place % TONES))
        if name in told["validation"]:
            # Held-out points lie over the training line, in a colour of their own where there is only one line.
            only = alone or (place == 0 and len(names) < 3)
            known = "held out" if only else f"{label}, held out"
            lines.append(Line(name, known, "validation", (TONES - 5 if place == 0 and only else place) % TONES))
    return Chart(want.names[0], want.title, tuple(lines), want.form, _guides(want, facts), want.log)


def _label(name: str, want: Wanted) -> str:
    family, slash, rest = name.partition("/")
    if not slash:
        return name.replace("_", " ")
    several = sum(one.endswith("/") for one in want.names) > 1
    return f"{rest}, watched" if several and family == "watched" else rest


def words(name: str) -> str:
    """A name as a title."""
    text = name.replace("_", " ").replace("/", ": ")
    return text[:1].upper() + text[1:]


def _guides(want: Wanted, facts: Mapping[str, Any]) -> tuple[Guide, ...]:
    if want.names[0] == "kl":
        return kl_guides(facts)
    if want.names[0] == "accuracy" and _positive(facts.get("gates.reward.threshold")):
        gate = float(facts["gates.reward.threshold"])
        return (Guide(gate, gate, f"gate {gate * 100:g} %", "good"),)
    return ()


def kl_guides(facts: Mapping[str, Any]) -> tuple[Guide, ...]:
    """The band around the KL that the controller steers to, and the alarm. In the band the coefficient changes by
    less than half of its step."""
    found = []
    target, alarm, stop = (facts.get(f"policy.kl.{key}") for key in ("target", "alarm", "stop"))
    if _positive(target):
        found.append(Guide(target / 2, target * 1.5, f"target {target:g}", "good"))
    if _positive(alarm):
        found.append(Guide(alarm, alarm, f"alarm {alarm:g}", "bad"))
    if _positive(stop):
        found.append(Guide(stop, stop, f"stop {stop:g}", "bad"))
    return tuple(found)


def _positive(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and value > 0
