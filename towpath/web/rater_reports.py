"""What the owner's figures say of raters: computed from the newest verdicts, and not more often than the page needs."""

from dataclasses import dataclass, field
from threading import Lock
from time import monotonic

from towpath.feedback import agreement, rater_quality
from towpath.feedback.agreement import Estimate
from towpath.feedback.rater_quality import RaterQuality
from towpath.records import Finding
from towpath.store import rater_stats, review
from towpath.store.store import Store

CACHE_SECONDS = 15.0  # seconds


@dataclass(frozen=True, slots=True)
class RaterReport:
    """Each rater's figures, findings about them, and how far raters agree; of the newest judged pairs."""

    quality: dict[str, RaterQuality]
    findings: list[Finding]
    agreement: Estimate | None


@dataclass
class RaterReportCache:
    """The last report of a server, made again when it is old."""

    made: float = -CACHE_SECONDS
    report: RaterReport | None = None
    lock: Lock = field(default_factory=Lock)

    def of(self, store: Store) -> RaterReport:
        """A report that is at most some seconds old."""
        with self.lock:
            if self.report is None or monotonic() - self.made >= CACHE_SECONDS:
                self.report = rater_report(store)
                self.made = monotonic()
            return self.report

    def forget(self) -> None:
        """Make the next report anew: what it stands on has changed."""
        with self.lock:
            self.report = None


def rater_report(store: Store) -> RaterReport:
    """Figures of the people who judged the newest pairs."""
    judgements = [j for j in store.read(rater_stats.recent_judgements) if j.kind == "person"]
    texts = store.read(review.answer_texts, list({j.comparison for j in judgements}))
    gold = {row["comparison"]: row["choice"] for row in store.read(rater_stats.list_gold)}
    quality = rater_quality.measure_quality(judgements, gold, texts)  # pyright: ignore[reportArgumentType]
    agreed = agreement.measure_agreement(judgements).get("percent_without_ties")
    return RaterReport({one.rater: one for one in quality}, rater_quality.rater_findings(quality), agreed)
