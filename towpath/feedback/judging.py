"""A model as judge: every pair in both orders, votes to one judgement; a failure stays a failure and becomes no
number."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any, Literal, Protocol

from towpath.errors import ResourceError
from towpath.feedback import protocol
from towpath.feedback.endpoint import Endpoint, JudgeSettings, Reply, Unanswered
from towpath.feedback.judge_budget import Account, Purse, Spent, estimated
from towpath.feedback.pair_text import Case
from towpath.feedback.protocol import Rubric, Verdict
from towpath.records import Choice, Judgement

Reason = Literal["unreachable", "rejected", "refused", "unreadable", "inconsistent", "ceiling"]
Order = Literal["ab", "ba"]
ORDERS: tuple[Order, Order] = ("ab", "ba")
GIVE_UP = 20
"""Pairs in a row that find no server, after which the rest is not tried."""
WRITTEN = 120
"""Tokens of a usual verdict, for what a round of judging will cost."""

_CHOSEN: dict[tuple[Order, str], Choice] = {
    ("ab", "first"): "a",
    ("ab", "second"): "b",
    ("ba", "first"): "b",
    ("ba", "second"): "a",
}


class Cache(Protocol):
    """Where replies are kept by the hash of what was asked."""

    def reply(self, digest: str) -> dict[str, Any] | None:
        """What was answered before, if it was asked."""
        ...

    def save_reply(self, digest: str, reply: dict[str, Any]) -> None:
        """Remember an answer."""
        ...


class Advances(Protocol):
    """What shows how far the work is."""

    def advance(self, units: int = 1, note: str = "") -> None:
        """So many units are done."""
        ...


@dataclass(frozen=True, slots=True)
class Abstention:
    """A pair that the judge gave no judgement on, why, and what that cost; for people, or for another try."""

    comparison: str
    rater: str
    reason: Reason
    note: str = ""
    round: int = 1
    cost: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Vote:
    """One reply: the order it saw, what it said of a and b, and what that cost."""

    order: Order
    choice: Choice
    strength: int
    explanation: str
    read: int
    written: int
    dollars: float
    counted: bool
    repaired: bool = False
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """What judging some pairs will take, before it is begun."""

    calls: int
    read: int
    written: int
    dollars: float


def judge_pairs(
    settings: JudgeSettings,
    pairs: Iterable[Case],
    cache: Cache,
    progress: Advances | None = None,
    account: Account | None = None,
) -> Iterator[Judgement | Abstention]:
    """Judge pairs as they come, several at once, each result as soon as it is there; `account` keeps what every call
    cost, and what it holds counts towards the ceiling.

    What the cache holds is not asked again, so that a round that was stopped goes on where it was.

    """
    rubric = protocol.read_rubric(settings.rubric)
    purse = Purse(settings.ceiling, account)
    endpoint = Endpoint(settings, purse)
    judge = _Judge(settings, rubric, endpoint, cache)
    waiting = iter(pairs)
    failed = 0
    pool = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="judge")
    try:
        running: set[Future[Judgement | Abstention]] = {
            pool.submit(judge.judged, case) for case in islice(waiting, 2 * settings.concurrency)
        }
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(judge.judged, case) for case in islice(waiting, len(done))}
            for result in [future.result() for future in done]:
                lost = isinstance(result, Abstention) and result.reason == "unreachable"
                failed = failed + 1 if lost else 0
                if progress:
                    progress.advance(1, f"${purse.spent:.2f}" if settings.price_in or settings.price_out else "")
                yield result
                if isinstance(result, Abstention) and failed >= GIVE_UP:
                    fix = "look at the server, then go on: what was judged is kept"
                    raise ResourceError(
                        f"{settings.base_url}: {result.note}", f"{GIVE_UP} pairs in a row found no judge", fix
                    )
    finally:
        # What is under way is paid for: it is waited for, and stands in the cache.
        endpoint.stop()
        pool.shutdown(wait=True, cancel_futures=True)
        endpoint.close()


def estimate(settings: JudgeSettings, pairs: Iterable[Case]) -> Estimate:
    """Calls, tokens and dollars that judging these pairs will take, by the length of the texts."""
    rubric = protocol.read_rubric(settings.rubric)
    calls = 0
    read = 0
    for case in pairs:
        asked = sum(estimated(m["content"]) for m in protocol.question(rubric, case.prompt, case.a, case.b))
        calls = calls + 2 * settings.samples
        read = read + 2 * settings.samples * asked
    written = calls * min(WRITTEN, settings.max_tokens)
    return Estimate(calls, read, written, settings.price.of(read, written))


def rater(settings: JudgeSettings) -> str:
    """The name under which a judge's judgements are kept."""
    return f"judge:{settings.model}"


@dataclass
class _Judge:
    settings: JudgeSettings
    rubric: Rubric
    endpoint: Endpoint
    cache: Cache

    def judged(self, case: Case) -> Judgement | Abstention:
        """One pair to its end: all votes, or why there are not all."""
        begun = time.monotonic()
        votes = []
        try:
            for sample in range(self.settings.samples):
                for order in ORDERS:
                    votes.append(self._vote(case, order, sample))
        except Spent as spent:
            return self._abstained(
                case, votes, "ceiling", f"${self.settings.ceiling:g} allow no further call", spent.dollars
            )
        except Unanswered as trouble:
            return self._abstained(case, votes, trouble.trouble, trouble.why, trouble.dollars)
        except _Garbled as garbled:
            return self._abstained(case, votes, "unreadable", garbled.why, garbled.dollars)
        choice, strength, details = tally(votes)
        if not details["consistent"] and self.settings.on_position_flip == "people":
            return self._abstained(case, votes, "inconsistent", "the verdict turns with the order", 0.0, details)
        key = f"{case.comparison}/{rater(self.settings)}/{case.round}"
        name = rater(self.settings)
        return Judgement(
            key,
            case.comparison,
            name,
            "judge",
            choice,
            "ab",
            strength,
            round(1000 * (time.monotonic() - begun)),
            case.round,
            self.rubric.version,
            cost=sum(v.dollars for v in votes),
            details=details,
        )

    def _abstained(
        self,
        case: Case,
        votes: list[Vote],
        reason: Reason,
        note: str,
        lost: float = 0.0,
        details: dict[str, Any] | None = None,
    ) -> Abstention:
        cost = lost + sum(v.dollars for v in votes)
        return Abstention(
            case.comparison, rater(self.settings), reason, note, case.round, cost, details or {"verdicts": _told(votes)}
        )

    def _vote(self, case: Case, order: Order, sample: int) -> Vote:
        """One verdict, from the cache or from the server."""
        first, second = (case.a, case.b) if order == "ab" else (case.b, case.a)
        name = self._digest(case.prompt, first, second, sample)
        kept = self.cache.reply(name)
        found = _kept_vote(kept, order) if kept else None
        if found is None:
            said, reply, repaired = self._asked(case.prompt, first, second, sample)
            cost = {
                "read": reply.read,
                "written": reply.written,
                "dollars": reply.dollars,
                "counted": reply.counted,
                "repaired": repaired,
            }
            self.cache.save_reply(name, asdict(said) | cost)
            found = _vote_of(said, order, reply, repaired)
        return found

    def _asked(self, prompt: str, first: str, second: str, sample: int) -> tuple[Verdict, Reply, bool]:
        """The judge's verdict; a reply that cannot be read is sent back once."""
        messages = protocol.question(self.rubric, prompt, first, second)
        reply = self.endpoint.ask(messages, protocol.SCHEMA, sample)
        try:
            return protocol.verdict(reply.text, reply.whole), reply, False
        except protocol.Unreadable as unreadable:
            why = str(unreadable)
            before = reply
        try:
            again = self.endpoint.ask(protocol.repair(messages, before.text, why), protocol.SCHEMA, sample)
        except (Unanswered, Spent) as ended:
            ended.dollars += before.dollars
            raise
        both = _sum(before, again)
        try:
            return protocol.verdict(again.text, again.whole), both, True
        except protocol.Unreadable as unreadable:
            raise _Garbled(f"{why}; asked again: {unreadable}", both.dollars) from None

    def _digest(self, *asked: str | int) -> str:
        """What names a call in the cache: all that the reply depends on, but not the code of the fence."""
        s = self.settings
        content = [protocol.VERSION, s.base_url, s.model, s.temperature, s.max_tokens, self.rubric.text, *asked]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class _Garbled(Exception):
    """Two replies that could not be read."""

    def __init__(self, why: str, dollars: float) -> None:
        self.why = why
        self.dollars = dollars
        super().__init__(why)


def tally(votes: list[Vote]) -> tuple[Choice, int, dict[str, Any]]:
    """Choice, strength and details of a pair's votes; where the two orders do not say the same it is a tie."""
    counted = Counter(v.choice for v in votes)
    by_order: list[Choice] = [_most(v.choice for v in votes if v.order == order) for order in ORDERS]
    consistent = by_order[0] == by_order[1]
    choice: Choice = by_order[0] if consistent else "tie"
    strengths = [v.strength for v in votes if v.choice == choice]
    strength = round(sum(strengths) / len(strengths)) if choice in ("a", "b") and strengths else 1
    explained = next((v.explanation for v in votes if v.choice == choice), votes[0].explanation)
    return (
        choice,
        strength,
        {
            "explanation": explained,
            "verdicts": _told(votes),
            "orders": dict(zip(ORDERS, by_order, strict=True)),
            "votes": dict(counted),
            "confidence": max(counted.values()) / len(votes),
            "consistent": consistent,
            "tokens": {"read": sum(v.read for v in votes), "written": sum(v.written for v in votes)},
            "counted": all(v.counted for v in votes),
            "cached": sum(v.cached for v in votes),
            "repaired": sum(v.repaired for v in votes),
        },
    )


def _most(choices: Iterable[Choice]) -> Choice:
    """The choice of most votes; an even split is a tie."""
    ranked = Counter(choices).most_common()
    return "tie" if len(ranked) > 1 and ranked[0][1] == ranked[1][1] else ranked[0][0]


def _told(votes: list[Vote]) -> list[dict[str, Any]]:
    return [{"order": v.order, "choice": v.choice, "strength": v.strength} for v in votes]


def _vote_of(said: Verdict, order: Order, reply: Reply, repaired: bool) -> Vote:
    choice = _choice(order, said.place)
    return Vote(
        order,
        choice,
        said.strength,
        said.explanation,
        reply.read,
        reply.written,
        reply.dollars,
        reply.counted,
        repaired,
    )


def _choice(order: Order, place: str) -> Choice:
    return "tie" if place == "tie" else "both_bad" if place == "both_bad" else _CHOSEN[order, place]


def _kept_vote(kept: dict[str, Any], order: Order) -> Vote | None:
    """The vote in a kept reply; none where what was kept is not one."""
    try:
        said = protocol.verdict(
            json.dumps({"explanation": kept["explanation"], "verdict": kept["place"], "strength": kept["strength"]})
        )
        reply = Reply("", True, int(kept["read"]), int(kept["written"]), float(kept["dollars"]), bool(kept["counted"]))
        found = _vote_of(said, order, reply, bool(kept["repaired"]))
    except (KeyError, TypeError, ValueError, protocol.Unreadable):
        return None
    return replace(found, cached=True)


def _sum(one: Reply, two: Reply) -> Reply:
    return Reply(
        two.text,
        two.whole,
        one.read + two.read,
        one.written + two.written,
        one.dollars + two.dollars,
        one.counted and two.counted,
    )
