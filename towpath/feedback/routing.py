"""Route comparisons to people: a random audit, gold and safety always, then those whose label is most in doubt."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import exp, log

from towpath.errors import DataError
from towpath.hashing import hash_uniform
from towpath.records import Choice

MAX_CHANCE = 0.99
"""Upper bound of the accuracy of a single source."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What is known about a comparison before people see it."""

    comparison: str
    domain: str = "general"
    judge: Choice | None = None
    certainty: float | None = None
    """Probability that the judge is right, calibrated where possible."""
    consistent: bool = True
    """Whether the judge's verdict is the same in both orders."""
    rule: Choice | None = None
    margin: float | None = None
    """The reward model's score of a minus that of b, in log odds."""
    safety: bool = False
    gold: bool = False


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """Shares of comparisons that people see."""

    human_share: float = 0.35
    """Share of all comparisons that people see; gold and safety may exceed it."""
    audit_share: float = 0.12
    """Share that people see at random, whatever is known: at least a tenth."""
    overlap: float = 0.15
    """Share of people's comparisons that a second person sees."""
    gold_seats: int = 3
    unsure: float = 0.75
    """A certainty below this is a reason."""
    rule_accuracy: float = 0.7
    """Assumed accuracy of a rule."""

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
    """How many people see a comparison, why, and with what probability; without seats it stays with judge and rules."""

    comparison: str
    reasons: tuple[str, ...]
    propensity: float
    seats: int
    doubt: float


def route_comparisons(
    signals: Sequence[Signals],
    settings: RoutingConfig | None = None,
    known_domains: Collection[str] | None = None,
    seed: int = 0,
) -> list[Route]:
    """A route for every comparison, a function of seed, names and signals; `known_domains` are those the judge is
    calibrated on.

    The audit is an independent draw per name. Besides it, the most doubtful are routed until the expected share is
    `human_share`; ties at the edge are drawn at random. So the propensity is exact: 1 where the signals alone route
    a comparison, elsewhere the probability of these draws.
    """
    cfg = settings or RoutingConfig()
    doubts = {s.comparison: label_doubt(s, cfg, known_domains) for s in signals}
    always = {s.comparison for s in signals if s.gold or s.safety}
    quota = 0
    if cfg.audit_share < 1:
        beyond_audit = (cfg.human_share - cfg.audit_share) / (1 - cfg.audit_share)
        quota = max(0, round(len(signals) * beyond_audit) - len(always))
    ranked = sorted(doubts.keys() - always, key=lambda name: (-doubts[name], hash_uniform(seed, "route", name)))
    routed = set(ranked[:quota])
    # comparisons as doubtful as the last one that is routed are drawn at random
    edge = doubts[ranked[quota - 1]] if 0 < quota <= len(ranked) else None
    tied = [name for name in ranked if doubts[name] == edge]
    tie_chance = sum(name in routed for name in tied) / len(tied) if tied else 0.0
    routes = []
    for s in signals:
        name = s.comparison
        chance = float(name in always or name in routed)
        if name not in always and doubts[name] == edge:
            chance = tie_chance
        reasons = _reasons(s, cfg, known_domains) if name in routed or name in always else ()
        if name in routed and not reasons:
            reasons = ("doubt",)
        if hash_uniform(seed, "audit", name) < cfg.audit_share:
            reasons += ("audit",)
        propensity = chance + (1 - chance) * cfg.audit_share
        routes.append(Route(name, reasons, propensity, _seats(s, cfg, seed) if reasons else 0, doubts[name]))
    return routes


def label_doubt(signals: Signals, settings: RoutingConfig, known_domains: Collection[str] | None = None) -> float:
    """Probability that the synthetic label is wrong, from the odds of judge, rule and reward model."""
    s = signals
    if s.judge not in ("a", "b"):
        return 0.5
    trusted = s.consistent and (known_domains is None or s.domain in known_domains)
    odds = _odds(s.certainty if s.certainty is not None else 0.5) if trusted else 0.0
    towards = 1 if s.judge == "a" else -1
    if s.rule in ("a", "b"):
        odds += _odds(settings.rule_accuracy) * (1 if s.rule == s.judge else -1)
    if s.margin is not None:
        odds += towards * max(-_odds(MAX_CHANCE), min(_odds(MAX_CHANCE), s.margin))
    return 1 / (1 + exp(odds))


def _odds(chance: float) -> float:
    clipped = min(max(chance, 1 - MAX_CHANCE), MAX_CHANCE)
    return log(clipped / (1 - clipped))


def _reasons(s: Signals, cfg: RoutingConfig, known_domains: Collection[str] | None) -> tuple[str, ...]:
    """All reasons to ask people, the most severe first."""
    decided = s.judge in ("a", "b")
    contradicts = s.margin is not None and decided and (s.margin > 0) != (s.judge == "a") and s.margin != 0
    conditions = {
        "gold": s.gold,
        "safety": s.safety,
        "no verdict": s.judge is None,
        "verdict depends on order": not s.consistent,
        "judge and rule differ": s.judge is not None and s.rule is not None and s.rule not in (s.judge, "tie"),
        "reward model differs": contradicts,
        "new domain": known_domains is not None and s.domain not in known_domains,
        "judge is unsure": s.judge is not None
        and (not decided or (s.certainty is not None and s.certainty < cfg.unsure)),
    }
    return tuple(reason for reason, holds in conditions.items() if holds)


def _seats(s: Signals, cfg: RoutingConfig, seed: int) -> int:
    return cfg.gold_seats if s.gold else 1 + (hash_uniform(seed, "overlap", s.comparison) < cfg.overlap)
