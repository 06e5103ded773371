"""Rater statistics of a ledger: counts, agreement, each rater's quality, and judges compared with people."""

from dataclasses import dataclass
from math import isnan
from typing import Any

from towpath.data.intervals import accuracy_ceiling
from towpath.feedback import agreement, calibration
from towpath.feedback import rater_quality as raters
from towpath.feedback.agreement import Estimate
from towpath.feedback.calibration import JudgeReport
from towpath.feedback.rater_quality import PEOPLE, RaterQuality
from towpath.records import Finding
from towpath.store import rater_stats
from towpath.store.store import Store

MIN_AUDITED = 10
"""Fewest audit rows for which a judge is reported."""


@dataclass(frozen=True)
class RaterStats:
    """Statistics of a ledger."""

    counts: dict[str, int]
    raters: dict[str, int]
    agreement: dict[str, Estimate]
    ceiling: float | None
    quality: list[RaterQuality]
    judges: dict[str, JudgeReport]
    concerns: list[Finding]


def measure_raters(store: Store) -> RaterStats:
    """All statistics of a store; agreement is between people."""
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
        if len(rows) >= MIN_AUDITED:
            judges[name] = calibration.judge_report(rows)
    bound = accuracy_ceiling(rate) if n else None
    return RaterStats(
        store.counts(),
        counts,
        agreement.measure_agreement(people),
        bound,
        quality,
        judges,
        raters.rater_findings(quality),
    )


def format_stats(stats: RaterStats) -> str:
    """The statistics as text for the terminal."""
    lines = [f"{name}: {count:,}" for name, count in stats.counts.items() if count]
    if not stats.quality:
        return "\n".join([*lines, "no judgements yet"])
    lines += ["", "agreement of people"] + [f"  {name:<26} {_format(e)}" for name, e in stats.agreement.items()]
    if stats.agreement:
        lines.append(f"  accuracy against one label is at most {stats.ceiling:.1%}")
    else:
        lines.append("  no pair was judged twice")
    width = max(len("rater"), *(len(rater.rater) for rater in stats.quality))
    lines += ["", f"{'rater':<{width}} {'n':>6} {'seconds':>8}  {'with others':<26} {'with gold':<26} left"]
    for rater in stats.quality:
        pace = f"{rater.seconds:.1f}" if rater.seconds is not None else "-"
        rates = f"{_format(rater.agreement):<26} {_format(rater.gold):<26} {_format(rater.left)}"
        lines.append(f"{rater.rater:<{width}} {rater.n:>6} {pace:>8}  {rates}")
    for name, report in stats.judges.items():
        judge, people = report.longer
        lines += [
            "",
            f"{name} against people: accuracy {_format(report.accuracy)}, position flips {_format(report.flips)}",
            f"  longer answer wins: judge {_format(judge)}, people {_format(people)}",
            f"  calibration error {report.error:.3f}",
        ]
    lines += [""] * bool(stats.concerns)
    lines += [f"{f.severity}: {f.evidence}" + (f" ({f.remedy})" if f.remedy else "") for f in stats.concerns]
    return "\n".join(lines)


def _format(e: Estimate) -> str:
    return "-" if not e.n or isnan(e.value) else f"{e.value:.1%} [{e.low:.1%}, {e.high:.1%}]"
