"""All detectors in one list: a history in, findings out, the likeliest cause first."""

from collections.abc import Callable, Iterator, Mapping

from towpath.health.detectors import (
    distance,
    domains,
    hacking,
    labels,
    movement,
    pairs,
    rollouts,
    sameness,
    steps,
    supervised,
    system,
)
from towpath.health.history import History
from towpath.recipe import Limits
from towpath.records import Finding

Detector = Callable[[History, Limits], Iterator[Finding]]
_MODULES = (system, rollouts, labels, pairs, steps, movement, supervised, distance, hacking, sameness, domains)
DETECTORS: tuple[Detector, ...] = (
    *(detector for module in _MODULES for detector in module.DETECTORS),
    *system.RESOURCES,
)
FOLLOWS: Mapping[str, set[str]] = {
    "not-finite": {"learning-rate-high", "reward-unbounded"},
    "gradient-zero": {"reward-constant", "learning-rate-high", "length-hacking", "not-finite"},
    "kl-rising": {
        "learning-rate-high",
        "no-kl-penalty",
        "reward-hacking",
        "length-hacking",
        "repetition",
        "diversity-collapse",
        "sampler-mismatch",
        "missing-eos",
        "refusing",
        "critic-broken",
        "reward-constant",
    },
    "kl-negative": {"sampler-mismatch", "missing-eos", "learning-rate-high"},
    "truncated": {"learning-rate-high", "length-hacking", "missing-eos", "no-kl-penalty"},
    "learning-rate-high": {"sampler-mismatch", "missing-eos", "critic-broken", "reward-unbounded"},
    "learning-rate-low": {"reward-constant", "gradient-zero"},
    "repetition": {"learning-rate-high", "missing-eos"},
    "diversity-collapse": {"learning-rate-high", "repetition", "refusing", "length-hacking"},
    "critic-broken": {"learning-rate-high"},
    "missing-eos": {"learning-rate-high"},
    "no-kl-penalty": {"learning-rate-high"},
    "kl-penalty-too-strong": {
        "learning-rate-high",
        "critic-broken",
        "sampler-mismatch",
        "missing-eos",
        "reward-unbounded",
        "reward-constant",
        "gradient-zero",
    },
    "reward-out-of-distribution": {"length-hacking", "reward-hacking"},
    "reward-hacking": {"length-hacking", "reward-overfit", "label-noise", "learning-rate-high"},
    "domain-forgotten": {"learning-rate-high", "safety-traded", "reward-hacking"},
    "safety-traded": {"learning-rate-high"},
    "refusing": {"learning-rate-high"},
    "format-shift": {"learning-rate-high", "length-hacking", "repetition"},
    "overfit": {"labels-swapped", "learning-rate-high", "reward-overfit"},
    "reward-overfit": {"labels-swapped"},
    "label-noise": {"labels-swapped", "learning-rate-high", "learning-rate-low"},
    "likelihood-displacement": {"learning-rate-high", "labels-swapped"},
}
"""A finding, and what it may be a consequence of: where one of those is found too, and not clearly later, it comes
after it."""
GRAVITY = {"critical": 0, "error": 0, "warning": 1, "info": 2}
LATE = 3
"""Steps by which a cause may show later than its consequence: curves are read over windows."""
NEVER = 10**9


def _onset(finding: Finding) -> int:
    """The step from which a finding shows; those about a whole run or an earlier stage have none."""
    return NEVER if finding.first_step is None or finding.first_step < 0 else finding.first_step


def _is_dated(finding: Finding) -> bool:
    return _onset(finding) < NEVER


def _causes(finding: Finding, findings: Mapping[str, Finding]) -> set[str]:
    """Which of the other findings may have caused this one."""
    possible = (findings[code] for code in FOLLOWS.get(finding.code, set()) & findings.keys())
    causes = [
        cause
        for cause in possible
        if not (_is_dated(finding) and _is_dated(cause) and _onset(cause) > _onset(finding) + LATE)
    ]
    return {cause.code for cause in causes if GRAVITY[cause.severity] < GRAVITY["info"] or finding.severity == "info"}


def diagnose(history: History, limits: Limits = Limits()) -> tuple[Finding, ...]:  # noqa: B008
    """What is wrong with a run as far as its numbers tell.

    Findings that others explain come last; of the rest the grave before the light, then what explains more of the
    others, then what began earlier.
    """
    findings: dict[str, Finding] = {}
    for detector in DETECTORS:
        for finding in detector(history, limits):
            before = findings.get(finding.code)
            if before is None or GRAVITY[finding.severity] < GRAVITY[before.severity]:
                findings[finding.code] = finding
    place = {code: number for number, code in enumerate(findings)}
    causes = {code: _causes(finding, findings) for code, finding in findings.items()}

    def began_before(code: str, other: str) -> bool:
        return (_onset(findings[code]), place[code]) < (_onset(findings[other]), place[other])

    def is_consequence(code: str) -> bool:
        mutual = {cause for cause in causes[code] if code in FOLLOWS.get(cause, set())}
        return bool(causes[code] - mutual) or any(began_before(cause, code) for cause in mutual)

    def rank(finding: Finding) -> tuple[bool, int, int, int]:
        explains = sum(finding.code in others for others in causes.values())
        return is_consequence(finding.code), GRAVITY[finding.severity], -explains, place[finding.code]

    return tuple(sorted(findings.values(), key=rank))
