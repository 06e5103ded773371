"""Layout of the monitor: which charts a stage has for the metrics that it writes. A metric that no chart names gets a
chart of its own."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from towpath.metrics import CHARTS, METRICS, ChartSpec, Form, form, label
from towpath.run.metric_columns import Phase

COLOURS = 9
VALIDATION_COLOUR = COLOURS - 5
MORE = "More"
"""The group of metrics that no chart names."""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve of a chart: a metric in one phase, and its name in the legend."""

    name: str
    label: str
    phase: Phase
    tone: int


@dataclass(frozen=True, slots=True)
class Guide:
    """A level that the recipe sets, or a band between two."""

    low: float
    high: float
    label: str
    kind: Literal["good", "bad"]


@dataclass(frozen=True, slots=True)
class ChartLayout:
    """A chart of curves that share a scale."""

    key: str
    title: str
    lines: tuple[Line, ...]
    form: Form = "number"
    guides: tuple[Guide, ...] = ()
    log: bool = False


@dataclass(frozen=True, slots=True)
class ChartGroup:
    """Charts under one heading."""

    title: str
    charts: tuple[ChartLayout, ...]


def chart_groups(train: Iterable[str], validation: Iterable[str], facts: Mapping[str, Any]) -> list[ChartGroup]:
    """The charts for these metrics, with the levels that the recipe sets."""
    phases: dict[Phase, list[str]] = {"train": list(train), "validation": list(validation)}
    unused = dict.fromkeys([*phases["train"], *phases["validation"]])
    groups: dict[str, list[ChartLayout]] = {}
    for spec in CHARTS:
        names = _take(spec, unused)
        if names:
            groups.setdefault(spec.group, []).append(_layout(spec, names, phases, facts))
    while unused:
        spec = _own_chart(next(iter(unused)), unused)
        groups.setdefault(MORE, []).append(_layout(spec, _take(spec, unused), phases, facts))
    return [ChartGroup(title, tuple(charts)) for title, charts in groups.items()]


def _own_chart(name: str, unused: Iterable[str]) -> ChartSpec:
    """A chart for a metric that no chart names; metrics before the same `/` share one."""
    family, slash, _ = name.partition("/")
    if slash and family not in unused:
        return ChartSpec(MORE, title_of(family), (f"{family}/",))
    return ChartSpec(MORE, title_of(name), (name,))


def _take(spec: ChartSpec, unused: dict[str, None]) -> list[str]:
    """The metrics of a chart in its order, removed from those that have none yet."""

    def position(name: str) -> int | None:
        matches = (at for at, one in enumerate(spec.names) if name == one or (one[-1] == "/" and name.startswith(one)))
        return next(matches, None)

    positions = {name: at for name in unused if (at := position(name)) is not None}
    for name in positions:
        del unused[name]
    return sorted(positions, key=lambda name: (positions[name], name))


def _layout(
    spec: ChartSpec, names: list[str], phases: Mapping[Phase, list[str]], facts: Mapping[str, Any]
) -> ChartLayout:
    alone = len(names) == 1 and "/" not in names[0]
    lines = []
    for position, name in enumerate(names):
        legend = "training" if alone else _legend(name, spec)
        colour = position % COLOURS
        if name in phases["train"]:
            lines.append(Line(name, legend, "train", colour))
        if name in phases["validation"]:
            # Held-out points lie over the training curve, in a colour of their own where there are few curves.
            few = alone or (position == 0 and len(names) < 3)
            held_out = "held out" if few else f"{legend}, held out"
            lines.append(Line(name, held_out, "validation", VALIDATION_COLOUR if few and position == 0 else colour))
    return ChartLayout(spec.names[0], spec.title, tuple(lines), form(names[0]), _guides(spec, facts), spec.log)


def _legend(name: str, spec: ChartSpec) -> str:
    family, slash, rest = name.partition("/")
    if not slash:
        return METRICS[name].legend or label(name) if name in METRICS else label(name)
    families = sum(one.endswith("/") for one in spec.names)
    return f"{rest}, not rewarded" if families > 1 and family == "watched" else rest


def title_of(name: str) -> str:
    """A metric's name as a title."""
    text = name.replace("_", " ").replace("/", ": ")
    return text[:1].upper() + text[1:]


def _guides(spec: ChartSpec, facts: Mapping[str, Any]) -> tuple[Guide, ...]:
    if spec.names[0] == "kl":
        return _kl_guides(facts)
    threshold = facts.get("gates.reward.threshold")
    if spec.names[0] == "accuracy" and _is_positive(threshold):
        return (Guide(threshold, threshold, f"gate {threshold * 100:g} %", "good"),)
    return ()


def _kl_guides(facts: Mapping[str, Any]) -> tuple[Guide, ...]:
    """The KL target, its alarm and its stop. In the band around the target the coefficient changes by less than half of
    its step."""
    guides = []
    target = facts.get("policy.kl.target")
    if _is_positive(target):
        guides.append(Guide(target / 2, target * 1.5, f"target {target:g}", "good"))
    for name in ("alarm", "stop"):
        level = facts.get(f"policy.kl.{name}")
        if _is_positive(level):
            guides.append(Guide(level, level, f"{name} {level:g}", "bad"))
    return tuple(guides)


def _is_positive(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and value > 0
