"""An AI judge as evaluation judge: any OpenAI-compatible server, asked in both orders."""

import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, replace

from towpath.errors import ResourceError
from towpath.evals.judges import TIE, AnswerPair, JudgeOutcomes, PairOutcome
from towpath.feedback.endpoint import JudgeSettings
from towpath.feedback.judging import Abstention, judge_pairs, rater_name
from towpath.feedback.pair_text import PairText
from towpath.progress import progress
from towpath.records import Judgement
from towpath.store.store import Store

VALUES = {"a": 1.0, "b": 0.0}
"""Outcome of a choice; our answer is `a`. Ties and both bad count half."""
ATTEMPTS = 2
"""Passes over the pairs that were not reached; each call has its own retries."""


@dataclass(frozen=True)
class AiJudge:
    """Asks about every pair in both orders. The ledger caches replies by content, and counts every call."""

    settings: JudgeSettings
    store: Store
    account: str
    """The account of its costs in the ledger."""

    @property
    def name(self) -> str:
        """The judge as reports name it."""
        return judge_name(self.settings)

    def compare(self, pairs: Sequence[AnswerPair], title: str) -> JudgeOutcomes:
        """Judge the pairs that differ; a server that does not answer leaves them unjudged."""
        todo = [PairText(str(i), pair.prompt.text, *pair.texts) for i, pair in enumerate(pairs) if not pair.same]
        outcomes: dict[str, PairOutcome] = {}
        results: list[Judgement | Abstention] = []
        problem = ""
        for _ in range(ATTEMPTS):
            pending = [pair for pair in todo if outcomes.get(pair.comparison, NOT_REACHED).reason == NOT_REACHED.reason]
            if not pending or problem:
                break
            problem = self._ask(pending, title, results)
            outcomes |= {result.comparison: _outcome(result) for result in results}
        missing = replace(NOT_REACHED, reason=f"{NOT_REACHED.reason}: {problem}") if problem else NOT_REACHED
        return JudgeOutcomes(
            self.name,
            tuple(TIE if pair.same else outcomes.get(str(i), missing) for i, pair in enumerate(pairs)),
            sum(len(result.details.get("verdicts", ())) for result in results),
            sum(result.cost for result in results),
        )

    def _ask(self, pairs: Sequence[PairText], title: str, results: list[Judgement | Abstention]) -> str:
        """Append the results of these pairs; returns why the judge was given up, if it was."""
        settings = replace(self.settings, on_position_flip="tie")
        ledger = self.store.judge_account(self.account)
        try:
            with progress(title, len(pairs)) as bar:
                results.extend(judge_pairs(settings, pairs, self.store, bar, ledger))
        except ResourceError as error:
            return error.value
        return ""


NOT_REACHED = PairOutcome(None, "unreachable")


def _outcome(result: Judgement | Abstention) -> PairOutcome:
    if isinstance(result, Abstention):
        return PairOutcome(None, result.reason)
    return PairOutcome(VALUES.get(result.choice, 0.5))


def judge_name(settings: JudgeSettings) -> str:
    """The judge with its model and the host of its server."""
    address = urllib.parse.urlsplit(settings.base_url)
    host = address.netloc.rpartition("@")[2]
    return f"AI judge {settings.model} at {host}"


def account_name(settings: JudgeSettings, label_ceiling: float) -> str:
    """The account of the evaluation's calls: that of labels, whose ceiling covers both; with a ceiling of its own in
    [evaluate.judge], one for the evaluation alone."""
    name = rater_name(settings)
    return name if settings.ceiling == label_ceiling else f"evaluation {name}"
