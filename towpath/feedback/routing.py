"""Which comparisons go to people: an audit drawn by lot, gold and safety always, and of the rest those whose
synthetic label is most in doubt."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import exp, log

from towpath.data.draws import hash_uniform
from towpath.errors import DataError
from towpath.records import Choice

CERTAIN = 0.99  # no single source is believed beyond this


@dataclass(frozen=True, slots=True)
class Signals:
    """What is known of a comparison before a person sees it."""

    comparison: str
    domain: str = "general"
    judge: Choice | None = None
    certainty: float | None = None
    """Chance that the judge's verdict is right, calibrated where it can be."""
    consistent: bool = True
    """Whether the verdict stood when the order was turned."""
    rule: Choice | None = None
    margin: float | None = None
    """The reward model's score of a less that of b: log odds."""
    safety: bool = False
    gold: bool = False


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """Shares and counts by which comparisons are sent."""

    human_share: float = 0.35
    """Share of all comparisons that people see, apart from gold and safety beyond it."""
    audit_share: float = 0.12
    """Share that people see by lot, whatever is known: at least a tenth."""
    overlap: float = 0.15
    """Share of those seen by people that a second one sees."""
    gold_seats: int = 3
    unsure: float = 0.75
    """A certainty below this is told as a reason."""
    rule_accuracy: float = 0.7
    """How often a rule is taken to be right."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.audit_share <= self.human_share <= 1:
            rule = "0.1 ≤ audit ≤ people ≤ 1: without a random slice no rate can be estimated for all pairs"
            raise DataError(
                f"audit_share {self.audit_share}, human_share {self.human_share}",
                rule,
                "audit_share = 0.12, human_share = 0.35",
            )


@dataclass(frozen=True, slots=True)
class Route:
    """Where a comparison goes: how many people see it, why, and how likely it was that any would. No seats: it stays
    with judge and rules."""

    comparison: str
    reasons: tuple[str, ...]
    propensity: float
    seats: int
    doubt: float


def route_comparisons(
    signals: Sequence[Signals],
    settings: RoutingConfig | None = None,
    known: Collection[str] | None = None,
    seed: int = 0,
) -> list[Route]:
    """A route for every comparison, the same for the same seed, names and signals; `known` are the domains the judge
    is calibrated on.

    The audit is an independent lot for each name. Apart from it, as many of the most doubtful go to people as make
    the share `people` in expectation; among equals at the edge a second lot decides. So the propensity is exact: 1
    where the signals alone send a pair, elsewhere that of the lots.
    """
    cfg = settings or RoutingConfig()
    doubts = {s.comparison: label_doubt(s, cfg, known) for s in signals}
    always = {s.comparison for s in signals if s.gold or s.safety}
    room = (
        max(0, round(len(signals) * (cfg.human_share - cfg.audit_share) / (1 - cfg.audit_share)) - len(always))
        if cfg.audit_share < 1
        else 0
    )
    ranked = sorted(
        (name for name in doubts if name not in always),
        key=lambda name: (-doubts[name], hash_uniform(seed, "route", name)),
    )
    sent = set(ranked[:room])
    edge = doubts[ranked[room - 1]] if 0 < room <= len(ranked) else None
    level = [name for name in ranked if edge is not None and doubts[name] == edge]
    lot = sum(name in sent for name in level) / len(level) if level else 0.0
    routes = []
    for s in signals:
        name = s.comparison
        by_signals = (
            1.0 if name in always or (name in sent and doubts[name] != edge) else lot if doubts[name] == edge else 0.0
        )
        audited = hash_uniform(seed, "audit", name) < cfg.audit_share
        why = _reasons(s, cfg, known) if name in sent or name in always else ()
        why += ("doubt",) if name in sent and not why else ()
        why += ("audit",) if audited else ()
        routes.append(
            Route(
                name,
                why,
                by_signals + (1 - by_signals) * cfg.audit_share,
                _seats(s, cfg, seed) if why else 0,
                doubts[name],
            )
        )
    return routes


def label_doubt(signals: Signals, settings: RoutingConfig, known: Collection[str] | None = None) -> float:
    """The chance that the synthetic label is wrong: the judge's odds, with those of the rule and the reward model
    for or against it."""
    s = signals
    if s.judge not in ("a", "b"):
        return 0.5
    trusted = s.consistent and (known is None or s.domain in known)
    odds = _odds(s.certainty if s.certainty is not None else 0.5) if trusted else 0.0
    towards = 1 if s.judge == "a" else -1
    if s.rule in ("a", "b"):
        odds += _odds(settings.rule_accuracy) * (1 if s.rule == s.judge else -1)
    if s.margin is not None:
        odds += towards * max(-_odds(CERTAIN), min(_odds(CERTAIN), s.margin))
    return 1 / (1 + exp(odds))


def _odds(chance: float) -> float:
    kept = min(max(chance, 1 - CERTAIN), CERTAIN)
    return log(kept / (1 - kept))


def _reasons(s: Signals, cfg: RoutingConfig, known: Collection[str] | None) -> tuple[str, ...]:
    """Everything that speaks for a person's eye, gravest first."""
    decided = s.judge in ("a", "b")
    against = s.margin is not None and decided and (s.margin > 0) != (s.judge == "a") and s.margin != 0
    told = {
        "gold": s.gold,
        "safety": s.safety,
        "no verdict": s.judge is None,
        "order turns the verdict": not s.consistent,
        "judge and rule differ": s.judge is not None and s.rule is not None and s.rule not in (s.judge, "tie"),
        "reward model differs": against,
        "new domain": known is not None and s.domain not in known,
        "judge is unsure": s.judge is not None
        and (not decided or (s.certainty is not None and s.certainty < cfg.unsure)),
    }
    return tuple(reason for reason, holds in told.items() if holds)


def _seats(s: Signals, cfg: RoutingConfig, seed: int) -> int:
    return cfg.gold_seats if s.gold else 1 + (hash_uniform(seed, "overlap", s.comparison) < cfg.overlap)
