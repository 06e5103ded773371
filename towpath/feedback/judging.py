"""Pairwise LLM judge: every pair is judged in both orders; a failure is an abstention, never a number."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from towpath.feedback import judge_prompt
from towpath.feedback.aggregation import majority_choice
from towpath.feedback.endpoint import ChatReply, Endpoint, JudgeSettings, NoReply
from towpath.feedback.judge_budget import BudgetExceeded, SpendingLedger, estimate_tokens
from towpath.feedback.judge_pool import ProgressBar, call_concurrently
from towpath.feedback.judge_prompt import JudgeVerdict, Rubric
from towpath.feedback.pair_text import PairText
from towpath.records import Choice, Judgement

Reason = Literal["unreachable", "rejected", "refused", "unreadable", "inconsistent", "ceiling"]
Order = Literal["ab", "ba"]
ORDERS: tuple[Order, Order] = ("ab", "ba")
USUAL_COMPLETION = 120
"""Tokens of a typical verdict, for the cost estimate."""

_CHOICES: dict[tuple[Order, str], Choice] = {
    ("ab", "first"): "a",
    ("ab", "second"): "b",
    ("ba", "first"): "b",
    ("ba", "second"): "a",
}


class ReplyCache(Protocol):
    """Stores replies by the hash of the request."""

    def reply(self, digest: str) -> dict[str, Any] | None:
        """The stored reply, if any."""
        ...

    def save_reply(self, digest: str, reply: dict[str, Any]) -> None:
        """Store a reply."""
        ...


@dataclass(frozen=True, slots=True)
class Abstention:
    """A pair without a judgement: the reason, and what its calls cost."""

    comparison: str
    rater: str
    reason: Reason
    note: str = ""
    round: int = 1
    cost: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Vote:
    """One verdict on a pair in one order; `repaired` if the first reply was unreadable."""

    order: Order
    verdict: JudgeVerdict
    reply: ChatReply
    repaired: bool = False
    cached: bool = False

    @property
    def choice(self) -> Choice:
        position = self.verdict.position
        return position if position in ("tie", "both_bad") else _CHOICES[self.order, position]


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """Estimated calls, tokens read and written, and dollars."""

    calls: int
    read: int
    written: int
    dollars: float


def judge_pairs(
    settings: JudgeSettings,
    pairs: Iterable[PairText],
    cache: ReplyCache,
    progress: ProgressBar | None = None,
    ledger: SpendingLedger | None = None,
) -> Iterator[Judgement | Abstention]:
    """Judge pairs concurrently and yield each result as soon as it is known.

    Replies come from `cache` where it has them, so a stopped run continues without paying twice. `ledger` stores the
    cost of every call; what it holds already counts towards the ceiling.
    """
    rubric = judge_prompt.read_rubric(settings.rubric)

    def judge_pair(endpoint: Endpoint, pair: PairText) -> Judgement | Abstention:
        return _Judge(settings, rubric, endpoint, cache).judge_pair(pair)

    def unreachable(result: Judgement | Abstention) -> str:
        return result.note if isinstance(result, Abstention) and result.reason == "unreachable" else ""

    yield from call_concurrently(settings, pairs, judge_pair, unreachable, progress, ledger)


def estimate_cost(settings: JudgeSettings, pairs: Iterable[PairText]) -> CostEstimate:
    """Estimated cost of judging these pairs, from the length of the texts."""
    rubric = judge_prompt.read_rubric(settings.rubric)
    calls = 0
    read = 0
    for pair in pairs:
        messages = judge_prompt.judge_messages(rubric, pair.prompt, pair.a, pair.b)
        calls += 2 * settings.samples
        read += 2 * settings.samples * sum(estimate_tokens(m["content"]) for m in messages)
    written = calls * min(USUAL_COMPLETION, settings.max_tokens)
    return CostEstimate(calls, read, written, settings.price.dollars(read, written))


def rater_name(settings: JudgeSettings) -> str:
    """The rater under which the judgements of a judge are stored."""
    return f"judge:{settings.model}"


@dataclass
class _Judge:
    settings: JudgeSettings
    rubric: Rubric
    endpoint: Endpoint
    cache: ReplyCache

    def judge_pair(self, pair: PairText) -> Judgement | Abstention:
        """Collect all votes on a pair and combine them; an abstention if any vote is missing."""
        start = time.monotonic()
        votes: list[Vote] = []
        try:
            for sample in range(self.settings.samples):
                for order in ORDERS:
                    votes.append(self._vote(pair, order, sample))
        except BudgetExceeded as error:
            note = f"judge.ceiling = {self.settings.ceiling:g} allows no further call"
            return self._abstention(pair, votes, "ceiling", note, error.dollars)
        except NoReply as error:
            return self._abstention(pair, votes, error.reason, error.message, error.dollars)
        except _TwiceUnreadable as error:
            return self._abstention(pair, votes, "unreadable", error.message, error.dollars)
        choice, strength, details = combine_votes(votes)
        if not details["consistent"] and self.settings.on_position_flip == "people":
            note = "the verdict changes with the order of the answers"
            return self._abstention(pair, votes, "inconsistent", note, 0.0, details)
        rater = rater_name(self.settings)
        return Judgement(
            f"{pair.comparison}/{rater}/{pair.round}",
            pair.comparison,
            rater,
            "judge",
            choice,
            "ab",
            strength,
            round(1000 * (time.monotonic() - start)),
            pair.round,
            self.rubric.version,
            cost=sum(vote.reply.dollars for vote in votes),
            details=details,
        )

    def _abstention(
        self,
        pair: PairText,
        votes: list[Vote],
        reason: Reason,
        note: str,
        dollars: float = 0.0,
        details: dict[str, Any] | None = None,
    ) -> Abstention:
        cost = dollars + sum(vote.reply.dollars for vote in votes)
        details = details or {"verdicts": _verdict_rows(votes)}
        return Abstention(pair.comparison, rater_name(self.settings), reason, note, pair.round, cost, details)

    def _vote(self, pair: PairText, order: Order, sample: int) -> Vote:
        """One vote, from the cache or from the server."""
        first, second = (pair.a, pair.b) if order == "ab" else (pair.b, pair.a)
        digest = self._digest(pair.prompt, first, second, sample)
        row = self.cache.reply(digest)
        vote = _vote_from_row(row, order) if row else None
        if vote is None:
            vote = self._request_vote(pair.prompt, first, second, order, sample)
            self.cache.save_reply(digest, _row_from_vote(vote))
        return vote

    def _request_vote(self, prompt: str, first: str, second: str, order: Order, sample: int) -> Vote:
        """One vote from the server; an unreadable reply is sent back once with the reason."""
        messages = judge_prompt.judge_messages(self.rubric, prompt, first, second)
        reply = self.endpoint.ask(messages, judge_prompt.SCHEMA, sample)
        try:
            return Vote(order, judge_prompt.parse_verdict(reply.text, reply.complete), reply)
        except judge_prompt.UnreadableReply as error:
            problem = str(error)
        try:
            retry_messages = judge_prompt.repair_messages(messages, reply.text, problem)
            second_reply = self.endpoint.ask(retry_messages, judge_prompt.SCHEMA, sample)
        except (NoReply, BudgetExceeded) as error:
            error.dollars += reply.dollars
            raise
        total = _add_usage(reply, second_reply)
        try:
            return Vote(order, judge_prompt.parse_verdict(total.text, total.complete), total, repaired=True)
        except judge_prompt.UnreadableReply as error:
            raise _TwiceUnreadable(f"{problem}; asked again: {error}", total.dollars) from None

    def _digest(self, *request: str | int) -> str:
        """The cache key: everything that the reply depends on, except the random fence code."""
        s = self.settings
        content = [judge_prompt.VERSION, s.base_url, s.model, s.temperature, s.max_tokens, self.rubric.text, *request]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class _TwiceUnreadable(Exception):
    """Two unreadable replies to one request."""

    def __init__(self, message: str, dollars: float) -> None:
        self.message = message
        self.dollars = dollars
        super().__init__(message)


def combine_votes(votes: list[Vote]) -> tuple[Choice, int, dict[str, Any]]:
    """Choice, strength and details of a pair; a tie where the two orders disagree."""
    count = Counter(vote.choice for vote in votes)
    by_order: list[Choice] = [majority_choice(vote.choice for vote in votes if vote.order == order) for order in ORDERS]
    consistent = by_order[0] == by_order[1]
    choice: Choice = by_order[0] if consistent else "tie"
    agreeing = [vote.verdict for vote in votes if vote.choice == choice]
    strength = 1
    if choice in ("a", "b") and agreeing:
        strength = round(sum(verdict.strength for verdict in agreeing) / len(agreeing))
    details = {
        "explanation": (agreeing or [votes[0].verdict])[0].explanation,
        "verdicts": _verdict_rows(votes),
        "orders": dict(zip(ORDERS, by_order, strict=True)),
        "votes": dict(count),
        "confidence": max(count.values()) / len(votes),
        "consistent": consistent,
        "tokens": {
            "read": sum(vote.reply.prompt_tokens for vote in votes),
            "written": sum(vote.reply.completion_tokens for vote in votes),
        },
        "counted": all(vote.reply.usage_reported for vote in votes),
        "cached": sum(vote.cached for vote in votes),
        "repaired": sum(vote.repaired for vote in votes),
    }
    return choice, strength, details


def _verdict_rows(votes: list[Vote]) -> list[dict[str, Any]]:
    return [{"order": vote.order, "choice": vote.choice, "strength": vote.verdict.strength} for vote in votes]


def _row_from_vote(vote: Vote) -> dict[str, Any]:
    """A vote as the reply cache stores it."""
    return {
        "explanation": vote.verdict.explanation,
        "place": vote.verdict.position,
        "strength": vote.verdict.strength,
        "read": vote.reply.prompt_tokens,
        "written": vote.reply.completion_tokens,
        "dollars": vote.reply.dollars,
        "counted": vote.reply.usage_reported,
        "repaired": vote.repaired,
    }


def _vote_from_row(row: dict[str, Any], order: Order) -> Vote | None:
    """The vote in a row of the cache; None if the row is damaged."""
    try:
        stored = {"explanation": row["explanation"], "verdict": row["place"], "strength": row["strength"]}
        verdict = judge_prompt.parse_verdict(json.dumps(stored))
        reply = ChatReply("", True, int(row["read"]), int(row["written"]), float(row["dollars"]), bool(row["counted"]))
        return Vote(order, verdict, reply, bool(row["repaired"]), cached=True)
    except (KeyError, TypeError, ValueError, judge_prompt.UnreadableReply):
        return None


def _add_usage(first: ChatReply, second: ChatReply) -> ChatReply:
    """The second reply with the usage of both."""
    return ChatReply(
        second.text,
        second.complete,
        first.prompt_tokens + second.prompt_tokens,
        first.completion_tokens + second.completion_tokens,
        first.dollars + second.dollars,
        first.usage_reported and second.usage_reported,
    )
