"""Findings about raters on the owner's page, computed from the newest verdicts and cached."""

from dataclasses import dataclass, field
from threading import Lock
from time import monotonic

from towpath.feedback import agreement, rater_quality
from towpath.feedback.agreement import Estimate
from towpath.feedback.rater_quality import RaterQuality
from towpath.records import Finding
from towpath.store import rater_stats, review
from towpath.store.store import Store

CACHE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class RaterReport:
    """Quality of each rater, findings, and agreement, over the newest judged pairs."""

    quality: dict[str, RaterQuality]
    findings: list[Finding]
    agreement: Estimate | None


@dataclass
class RaterReportCache:
    """The latest report, recomputed when it is old."""

    computed_at: float = -CACHE_SECONDS
    report: RaterReport | None = None
    lock: Lock = field(default_factory=Lock)

    def get(self, store: Store) -> RaterReport:
        """Return a report that is at most some seconds old."""
        with self.lock:
            if self.report is None or monotonic() - self.computed_at >= CACHE_SECONDS:
                self.report = rater_report(store)
                self.computed_at = monotonic()
            return self.report

    def invalidate(self) -> None:
        """Drop the report because judgements have changed."""
        with self.lock:
            self.report = None


def rater_report(store: Store) -> RaterReport:
    """Compute the report of people who judged the newest pairs."""
    judgements = [j for j in store.read(rater_stats.recent_judgements) if j.kind == "person"]
    texts = store.read(review.answer_texts, list({j.comparison for j in judgements}))
    gold = {row["comparison"]: row["choice"] for row in store.read(rater_stats.list_gold)}
    quality = rater_quality.measure_quality(judgements, gold, texts)  # pyright: ignore[reportArgumentType]
    agreed = agreement.measure_agreement(judgements).get("percent_without_ties")
    return RaterReport({one.rater: one for one in quality}, rater_quality.rater_findings(quality), agreed)
