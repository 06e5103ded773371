"""What a ledger's judgements are worth, in figures: counts, agreement, each rater, a judge beside people."""

from dataclasses import dataclass
from math import isnan
from typing import Any

from towpath.feedback import agreement, calibration
from towpath.feedback import rater_quality as raters
from towpath.feedback.agreement import Estimate
from towpath.feedback.calibration import JudgeReport
from towpath.feedback.rater_quality import PEOPLE, RaterQuality
from towpath.records import Finding
from towpath.store import rater_stats
from towpath.store.store import Store

AUDITED = 10
"""Words of people beside a judge's below which it is not reported on."""


@dataclass(frozen=True)
class RaterStats:
    """A ledger in figures."""

    counts: dict[str, int]
    raters: dict[str, int]
    agreement: dict[str, Estimate]
    ceiling: float | None
    quality: list[RaterQuality]
    judges: dict[str, JudgeReport]
    concerns: list[Finding]


def measure_raters(store: Store) -> RaterStats:
    """All figures of a store; agreement is people's."""
    judgements = store.judgements()
    comparisons = {c.id: c for c in store.comparisons()}
    completions = store.completions()
    prompts = store.prompts()
    texts = {name: (completions[c.a].text, completions[c.b].text) for name, c in comparisons.items()}
    gold: dict[str, Any] = {row["comparison"]: row["choice"] for row in store.read(rater_stats.list_gold)}
    people = [j for j in judgements if j.kind in PEOPLE]
    rate, n = agreement.pairwise_agreement(people)
    lengths = {name: (len(a.split()), len(b.split())) for name, (a, b) in texts.items()}
    domains = {name: prompts[c.prompt_id].domain for name, c in comparisons.items()}
    counts: dict[str, int] = {}
    for j in judgements:
        counts[f"{j.rater} ({j.kind})"] = counts.get(f"{j.rater} ({j.kind})", 0) + 1
    quality = raters.measure_quality(judgements, gold, texts)
    judges = {}
    for name in sorted({j.rater for j in judgements if j.kind not in PEOPLE}):
        rows = calibration.audit_rows(judgements, name, None, lengths, domains)
        if len(rows) >= AUDITED:
            judges[name] = calibration.judge_report(rows)
    bound = agreement.accuracy_ceiling(rate) if n else None
    return RaterStats(
        store.counts(),
        counts,
        agreement.measure_agreement(people),
        bound,
        quality,
        judges,
        raters.rater_findings(quality),
    )


def format_stats(found: RaterStats) -> str:
    """The figures for the terminal."""
    shown = [f"{name}: {count:,}" for name, count in found.counts.items() if count]
    if not found.quality:
        return "\n".join([*shown, "no judgements yet"])
    shown += ["", "agreement of people"] + [f"  {name:<26} {_told(e)}" for name, e in found.agreement.items()]
    shown.append(
        "  nothing was judged twice"
        if not found.agreement
        else f"  accuracy against one label ends at {found.ceiling:.1%}"
    )
    width = max(len("rater"), *(len(one.rater) for one in found.quality))
    shown += ["", f"{'rater':<{width}} {'n':>6} {'seconds':>8}  {'with others':<26} {'with gold':<26} left"]
    for one in found.quality:
        pace = f"{one.seconds:.1f}" if one.seconds is not None else "-"
        shown.append(
            f"{one.rater:<{width}} {one.n:>6} {pace:>8}  {_told(one.agreement):<26} {_told(one.gold):<26} "
            f"{_told(one.left)}"
        )
    for name, report in found.judges.items():
        shown += [
            "",
            f"{name} beside people: right {_told(report.accuracy)}, verdict turns with the order {_told(report.flips)}",
        ]
        shown.append(
            f"  longer answer wins: judge {_told(report.longer[0])}, people {_told(report.longer[1])}; calibration "
            f"error {report.error:.3f}"
        )
    shown += [""] * bool(found.concerns) + [
        f"{f.severity}: {f.evidence}" + (f" ({f.remedy})" if f.remedy else "") for f in found.concerns
    ]
    return "\n".join(shown)


def _told(e: Estimate) -> str:
    return "-" if not e.n or isnan(e.value) else f"{e.value:.1%} [{e.low:.1%}, {e.high:.1%}]"
