"""Everything that is looked for, in one list: a history in, findings out, the likeliest cause first."""

from collections.abc import Callable, Iterator

from towpath.health.detectors import distance, domains, hacking, labels, rollouts, sameness, steps, system
from towpath.health.history import History
from towpath.recipe import Limits
from towpath.records import Finding

Detector = Callable[[History, Limits], Iterator[Finding]]
DETECTORS: tuple[Detector, ...] = (
    tuple(detector for room in (system, rollouts, labels, steps, distance, hacking, sameness, domains) for detector in room.DETECTORS)
    + system.RESOURCES
)
FOLLOWS = {
    "not-finite": {"learning-rate-high", "reward-unbounded"},
    "kl-rising": {
        "learning-rate-high", "kl-unheld", "reward-hacking", "length-hacking", "repetition", "diversity-collapse", "sampler-mismatch",
        "missing-eos", "refusing", "critic-broken",
    },
    "kl-negative": {"sampler-mismatch", "missing-eos", "learning-rate-high"},
    "truncated": {"learning-rate-high", "length-hacking", "missing-eos"},
    "learning-rate-high": {"sampler-mismatch", "missing-eos", "critic-broken", "reward-unbounded"},
    "repetition": {"learning-rate-high", "missing-eos"},
    "diversity-collapse": {"learning-rate-high", "repetition", "refusing", "length-hacking"},
    "critic-broken": {"learning-rate-high"},
    "missing-eos": {"learning-rate-high"},
    "kl-unheld": {"learning-rate-high"},
    "held-tight": {"learning-rate-high", "critic-broken", "sampler-mismatch", "missing-eos", "reward-unbounded"},
    "reward-out-of-distribution": {"length-hacking", "reward-hacking"},
    "reward-hacking": {"length-hacking", "reward-overfit", "label-noise", "learning-rate-high"},
    "domain-forgotten": {"learning-rate-high", "safety-traded", "reward-hacking"},
    "safety-traded": {"learning-rate-high"},
    "refusing": {"learning-rate-high"},
    "format-shift": {"learning-rate-high", "length-hacking", "repetition"},
}  # fmt: skip
"""A finding, and what it may merely follow from: where one of those is found too, it is told after it."""
GRAVITY = {"critical": 0, "error": 0, "warning": 1, "info": 2}


def _later(cause: Finding, finding: Finding) -> bool:
    """Whether a would-be cause began clearly after what it is to have caused."""
    return cause.first_step is not None and finding.first_step is not None and cause.first_step > finding.first_step + 3


def _first(cause: Finding, finding: Finding, place: dict[str, int]) -> bool:
    """Of two that may each follow from the other, whether the one began before the other; at the same step the order of detectors counts."""
    began = [other.first_step if other.first_step is not None else 10**9 for other in (cause, finding)]
    return (began[0], place[cause.code]) < (began[1], place[finding.code])


def diagnose(history: History, limits: Limits = Limits()) -> tuple[Finding, ...]:  # noqa: B008
    """What is wrong with a run as far as its numbers tell; causes before what follows from them, grave before light."""
    found: dict[str, Finding] = {}
    for detector in DETECTORS:
        for finding in detector(history, limits):
            before = found.get(finding.code)
            if before is None or GRAVITY[finding.severity] < GRAVITY[before.severity]:
                found[finding.code] = finding
    place = {code: number for number, code in enumerate(found)}

    def rank(finding: Finding) -> tuple[bool, int, int]:
        causes = {code for code in FOLLOWS.get(finding.code, set()) & found.keys() if not _later(found[code], finding)}
        follows = any(finding.code not in FOLLOWS.get(cause, set()) or _first(found[cause], finding, place) for cause in causes)
        return follows, GRAVITY[finding.severity], place[finding.code]

    return tuple(sorted(found.values(), key=rank))
