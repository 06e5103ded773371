"""Diagnosis: runs all detectors on a history and orders their findings, the most likely cause first."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType

from towpath.health import detectors
from towpath.health.history import History
from towpath.recipe import Limits
from towpath.records import Finding

Detector = Callable[[History, Limits], Iterator[Finding]]
_FIRST = (
    "system",
    "rollouts",
    "reward_model_quality",
    "preference_pairs",
    "step_size",
    "stalled_policy",
    "supervised",
    "kl",
    "reward_hacking",
    "diversity",
    "domains",
)
"""Files of `detectors` whose findings come first among equals; those of other files follow by name."""


def _modules() -> list[ModuleType]:
    """Every file of `detectors`."""
    names = sorted(module.name for module in pkgutil.iter_modules(detectors.__path__))
    ordered = [*_FIRST, *(name for name in names if name not in _FIRST)]
    return [importlib.import_module(f"{detectors.__name__}.{name}") for name in ordered]


_MODULES = _modules()
DETECTORS: tuple[Detector, ...] = (
    *(detector for module in _MODULES for detector in module.DETECTORS),
    *(detector for module in _MODULES for detector in getattr(module, "RESOURCES", ())),
)
POSSIBLE_CAUSES: Mapping[str, set[str]] = {
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
"""For each finding the findings that may cause it: it is listed after those of them that are not clearly later."""
SEVERITY_RANK = {"critical": 0, "error": 0, "warning": 1, "info": 2}
CAUSE_LAG = 3
"""Steps by which a cause may show later than its consequence, because curves are read over windows."""
NO_STEP = 10**9


def _onset(finding: Finding) -> int:
    """The first step of a finding; findings on a whole run or an earlier stage have none."""
    return NO_STEP if finding.first_step is None or finding.first_step < 0 else finding.first_step


def _is_dated(finding: Finding) -> bool:
    return _onset(finding) < NO_STEP


def _causes(finding: Finding, findings: Mapping[str, Finding]) -> set[str]:
    """The other findings that may have caused this one."""
    possible = (findings[code] for code in POSSIBLE_CAUSES.get(finding.code, set()) & findings.keys())
    causes = [
        cause
        for cause in possible
        if not (_is_dated(finding) and _is_dated(cause) and _onset(cause) > _onset(finding) + CAUSE_LAG)
    ]
    return {
        cause.code
        for cause in causes
        if SEVERITY_RANK[cause.severity] < SEVERITY_RANK["info"] or finding.severity == "info"
    }


def diagnose(history: History, limits: Limits = Limits()) -> tuple[Finding, ...]:  # noqa: B008
    """The findings on a history.

    Findings that others explain come last. The rest are ordered by severity, by how many others they explain, and by
    detector.
    """
    findings: dict[str, Finding] = {}
    for detector in DETECTORS:
        for finding in detector(history, limits):
            before = findings.get(finding.code)
            if before is None or SEVERITY_RANK[finding.severity] < SEVERITY_RANK[before.severity]:
                findings[finding.code] = finding
    position = {code: number for number, code in enumerate(findings)}
    causes = {code: _causes(finding, findings) for code, finding in findings.items()}

    def started_before(code: str, other: str) -> bool:
        return (_onset(findings[code]), position[code]) < (_onset(findings[other]), position[other])

    def is_consequence(code: str) -> bool:
        mutual = {cause for cause in causes[code] if code in POSSIBLE_CAUSES.get(cause, set())}
        return bool(causes[code] - mutual) or any(started_before(cause, code) for cause in mutual)

    def rank(finding: Finding) -> tuple[bool, int, int, int]:
        explains = sum(finding.code in others for others in causes.values())
        return is_consequence(finding.code), SEVERITY_RANK[finding.severity], -explains, position[finding.code]

    return tuple(sorted(findings.values(), key=rank))
