"""The judge against a real local HTTP server that replies, stalls, breaks off and returns unreadable text."""

import json
import re
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from scripted import (
    BAD,
    CASE,
    GOOD,
    ReplyCache,
    abstain_one,
    answer,
    careful_judge,
    judge_all,
    judge_one,
    read_fences,
    served,
    verdict_json,
)

from towpath.errors import DataError, RecipeError, ResourceError
from towpath.feedback import endpoint, judge_pool, judge_prompt, judging
from towpath.feedback.endpoint import JudgeSettings
from towpath.feedback.judge_budget import Budget, BudgetExceeded
from towpath.feedback.judging import Abstention, judge_pairs
from towpath.feedback.pair_text import PairText
from towpath.progress import Progress
from towpath.records import Comparison, Completion, Judgement, Prompt
from towpath.store.store import Store


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.02)


def test_pair_is_judged_in_both_orders_with_rubric_and_cost():
    with served(careful_judge) as server:
        result = judge_one(server, price_in=10.0, price_out=50.0)
        first, second = (read_fences(call)[:2] for call in server.calls)
    assert (first, second) == ((GOOD, BAD), (BAD, GOOD))
    assert (result.choice, result.strength, result.kind, result.rater, result.key) == (
        "a",
        2,
        "judge",
        "judge:m",
        "k1/judge:m/1",
    )
    assert result.guideline == judge_prompt.read_rubric().version and re.fullmatch(
        r"judge_rubric@[0-9a-f]{12}", result.guideline
    )
    assert judge_prompt.read_rubric().text in server.calls[0]["messages"][0]["content"]
    assert result.cost == pytest.approx(2 * (100 * 10 + 20 * 50) / 1e6)
    assert result.details["consistent"] and result.details["confidence"] == 1.0 and result.details["counted"]
    assert result.details["orders"] == {"ab": "a", "ba": "a"}
    assert result.details["verdicts"] == [
        {"order": "ab", "choice": "a", "strength": 2},
        {"order": "ba", "choice": "a", "strength": 2},
    ]
    assert result.details["explanation"] == "4 useful words against 0"
    assert result.details["tokens"] == {"read": 200, "written": 40}
    assert result.milliseconds is not None and result.milliseconds >= 0


@pytest.mark.parametrize(
    "prefix", ["", '<think>Perhaps {"verdict": "second", "strength": 1}?</think>', "Here it is:\n```json\n"]
)
def test_verdict_is_parsed_from_surrounding_text(prefix: str):
    assert judge_prompt.parse_verdict(prefix + verdict_json("first", 3)).position == "first"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("The first, clearly.", "no JSON object"),
        ("", "no JSON object"),
        ('{"verdict": "third", "strength": 1}', "'third'"),
        ('{"strength": 1}', "no JSON"),
        (verdict_json("first", 9), "strength '9'"),
        ('{"verdict": "first"}', "strength 'None'"),
        (verdict_json("first") + verdict_json("second"), "several"),
        ('{"verdict": "first", "strength": true}', "strength 'True'"),
        ('{"verdict": ["first"], "strength": 1}', "verdict"),
        ("{" * 5000, "no JSON"),
    ],
)
def test_unreadable_verdict_names_the_reason(text: str, why: str):
    with pytest.raises(judge_prompt.UnreadableReply, match=re.escape(why)):
        judge_prompt.parse_verdict(text)


def test_verdict_with_a_raw_line_break_is_parsed():
    assert (
        judge_prompt.parse_verdict('{"explanation": "It is\n{better}", "verdict": "second", "strength": 1}').position
        == "second"
    )


def test_prompt_repeated_by_the_model_is_not_a_verdict():
    requested = judge_prompt.judge_messages(judge_prompt.read_rubric(), "Why?", GOOD, BAD)
    for message in judge_prompt.repair_messages(requested, "No.", "it holds no JSON"):
        with pytest.raises(judge_prompt.UnreadableReply):
            judge_prompt.parse_verdict(message["content"])


def test_tie_needs_no_strength():
    assert judge_prompt.parse_verdict('{"explanation": "Alike.", "verdict": "tie"}') == judge_prompt.JudgeVerdict(
        "Alike.", "tie", 1
    )


def test_verdict_that_flips_with_the_order_is_a_tie_or_an_abstention():
    with served(lambda request, number: answer(verdict_json("first"))) as server:
        tie = judge_one(server)
        asks = abstain_one(server, on_position_flip="people", price_in=10.0)
    assert (tie.choice, tie.strength, tie.details["consistent"], tie.details["confidence"]) == ("tie", 1, False, 0.5)
    assert tie.details["votes"] == {"a": 1, "b": 1} and tie.details["orders"] == {"ab": "a", "ba": "b"}
    assert (asks.reason, asks.comparison, asks.rater, asks.cost) == (
        "inconsistent",
        "k1",
        "judge:m",
        pytest.approx(0.002),
    )
    assert asks.details["orders"] == {"ab": "a", "ba": "b"}


@pytest.mark.parametrize(("position", "choice"), [("tie", "tie"), ("both_bad", "both_bad")])
def test_ties_and_bad_pairs_do_not_depend_on_the_order(position: str, choice: str):
    with served(lambda request, number: answer(verdict_json(position))) as server:
        assert judge_one(server).choice == choice


def test_majority_vote_and_confidence():
    def script(request: dict[str, Any], number: int) -> dict[str, Any]:
        first, _, _ = read_fences(request)
        right = "first" if first == GOOD else "second"
        return answer(verdict_json("tie" if request["seed"] == 2 else right, 3 if request["seed"] else 1))

    with served(script) as server:
        result = judge_one(server, samples=3, temperature=0.7)
    assert sorted(call["seed"] for call in server.calls) == [0, 0, 1, 1, 2, 2]
    assert (result.choice, result.strength) == ("a", 2)
    assert result.details["votes"] == {"a": 4, "tie": 2} and result.details["confidence"] == pytest.approx(4 / 6)


def test_cached_replies_are_reused_until_an_input_changes(tmp_path: Path):
    cache = ReplyCache()
    rubric = tmp_path / "mine.md"
    rubric.write_text("Shorter is better.")
    with served(careful_judge) as server:
        before = judge_one(server, cache=cache, price_in=10.0)
        assert len(server.calls) == 2
        again = judge_one(server, cache=cache, price_in=10.0)
        assert len(server.calls) == 2
        assert (again.choice, again.cost, again.details["cached"], before.details["cached"]) == (
            before.choice,
            before.cost,
            2,
            0,
        )
        for change in (
            {"rubric": str(rubric)},
            {"temperature": 0.5},
            {"max_tokens": 50},
            {"cases": [PairText("k1", "What?", GOOD, BAD)]},
        ):
            count = len(server.calls)
            judge_one(server, cache=cache, **change)
            assert len(server.calls) == count + 2, change
        assert judge_one(server, cache=cache, rubric=str(rubric)).guideline.startswith("mine@")
        # The cache is keyed by texts: another comparison of them, or the swapped pair, is cached, too.
        assert judge_one(server, cache=cache, cases=[PairText("k9", CASE.prompt, BAD, GOOD)]).choice == "b"
        assert len(server.calls) == count + 2


def test_broken_cache_entries_are_requested_again():
    cache = ReplyCache()
    with served(careful_judge) as server:
        judge_one(server, cache=cache)
        for name in cache:
            cache[name] = {"place": "first"}
        assert judge_one(server, cache=cache).choice == "a"
    assert len(server.calls) == 4


def test_ledger_is_a_reply_cache(tmp_path: Path):
    with served(careful_judge) as server, Store.open(tmp_path / "a.db") as store:
        store.add_prompts([Prompt("p", CASE.prompt)])
        store.add_completions(
            [Completion(name, "p", "sft", text, (), (), "stop") for name, text in (("x", GOOD), ("y", BAD))]
        )
        store.add_comparisons([Comparison("k1", "p", "x", "y")])
        result = judge_all(server, cache=store)
        store.add_judgements([j for j in result if isinstance(j, Judgement)])
        judge_all(server, cache=store)
        assert len(server.calls) == 2
        (cache,) = store.judgements()
        assert (cache.choice, cache.details["orders"], cache.cost) == ("a", {"ab": "a", "ba": "a"}, 0.0)


@pytest.mark.parametrize("by", ["seconds", "date"])
def test_retry_after_delays_the_next_request(by: str):
    def script(request: dict[str, Any], number: int) -> Any:
        if number:
            return careful_judge(request)
        report = "1" if by == "seconds" else format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        return 429, {"Retry-After": report}, b'{"error": {"message": "slow down"}}'

    with served(script) as server:
        assert judge_one(server).choice == "a"
    assert server.times[1] - server.times[0] >= 0.95
    assert len(server.calls) == 3


def test_long_retry_after_abandons_the_pair():
    with served(lambda request, number: (429, {"Retry-After": "7200"}, b"later")) as server:
        result = abstain_one(server)
    assert (result.reason, len(server.calls)) == ("unreachable", 1)
    assert "429 later" in result.note and "7200 s" in result.note


@pytest.mark.parametrize(
    "trouble",
    [
        (500, {}, b"oops"),
        (503, {}, b""),
        (200, {}, b'{"choi'),
        (200, {}, b"{}"),
        (200, {"Content-Length": "9999"}, b'{"choices": [{"mess'),
        (200, {}, b"[1]"),
    ],
    ids=["500", "503", "cut off", "no choice", "broken off", "a list"],
)
def test_transient_errors_are_retried_and_then_abandoned(trouble: Any):
    with served(lambda request, number: trouble if number < 2 else careful_judge(request)) as server:
        assert judge_one(server).choice == "a"
    with served(lambda request, number: trouble) as server:
        result = abstain_one(server)
    assert (result.reason, len(server.calls)) == ("unreachable", 3)
    assert "3 tries" in result.note


def test_interrupted_reply_is_counted_at_its_maximum_cost():
    broken = (200, {"Content-Length": "9999"}, b'{"choices": [{"mess')
    with served(lambda request, number: broken if number == 0 else careful_judge(request)) as server:
        result = judge_one(server, price_in=10.0, price_out=50.0)
    assert result.cost > 2 * (100 * 10 + 20 * 50) / 1e6 + 400 * 50 / 1e6
    with served(lambda request, number: (500, {}, b"") if number == 0 else careful_judge(request)) as server:
        assert judge_one(server, price_in=10.0, price_out=50.0).cost == pytest.approx(2 * (100 * 10 + 20 * 50) / 1e6)


def test_stalled_request_times_out_and_is_counted_at_its_maximum_cost():
    released = threading.Event()
    with served(lambda request, number: released.wait(60) and answer(verdict_json("first"))) as server:
        result = abstain_one(server, timeout=0.2, retries=1, price_in=10.0, price_out=10.0)
        assert len(server.calls) == server.in_flight == 2, "both requests were abandoned before the server replied"
        released.set()
    assert result.reason == "unreachable" and "no response in 0.2 s" in result.note
    assert result.cost > 2 * 400 * 10 / 1e6


def test_timeout_covers_a_dripping_response():
    parts_sent = 0
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            nonlocal parts_sent
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(1000):
                    connection.sendall(b" ")
                    parts_sent += 1
                    time.sleep(0.05)

        thread = threading.Thread(target=drip)
        thread.start()
        settings = JudgeSettings(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", "m", retries=0, timeout=0.4)
        (result,) = judge_pairs(settings, [CASE], ReplyCache())
        thread.join()
    assert 0 < parts_sent < 1000, "the client hangs up while the server is still sending"
    assert isinstance(result, Abstention) and "no complete response in 0.4 s" in result.note


def test_unreadable_reply_is_repaired_once():
    def script(request: dict[str, Any], number: int) -> dict[str, Any]:
        return careful_judge(request) if len(request["messages"]) > 2 else answer("I would rather not use JSON.")

    with served(script) as server:
        result = judge_one(server, price_in=10.0)
    assert (result.choice, result.details["repaired"], len(server.calls)) == ("a", 2, 4)
    assert [m["role"] for m in server.calls[1]["messages"]] == ["system", "user", "assistant", "user"]
    assert "no JSON object" in server.calls[1]["messages"][3]["content"]
    assert result.cost == pytest.approx(4 * 100 * 10 / 1e6)


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (answer("No."), "no JSON object"),
        (answer('{"explanation": "The fir', "length"), "cut off"),
        (answer(None), "no JSON object"),
        (answer([]), "no JSON"),
    ],
    ids=["words", "cut off", "nothing", "no parts"],
)
def test_two_unreadable_replies_are_an_abstention_without_a_cache_entry(report: dict[str, Any], why: str):
    cache = ReplyCache()
    with served(lambda request, number: report) as server:
        result = abstain_one(server, cache=cache)
    assert (result.reason, len(server.calls), cache) == ("unreadable", 2, {})
    assert why in result.note


def test_unreadable_reply_is_paid_even_if_the_repair_fails():
    with served(lambda request, number: (500, {}, b"") if len(request["messages"]) > 2 else answer("No.")) as server:
        result = abstain_one(server, price_in=10.0)
    assert (result.reason, result.cost) == ("unreachable", pytest.approx(100 * 10 / 1e6))


def test_model_refusal_is_an_abstention():
    with served(lambda request, number: answer(None, refusal="I will not judge this.")) as server:
        result = abstain_one(server)
    assert (result.reason, result.note, len(server.calls)) == ("refused", "I will not judge this.", 1)


def test_partly_judged_pair_is_resumed():
    cache = ReplyCache()
    with served(lambda request, number: careful_judge(request) if number == 0 else (500, {}, b"")) as server:
        result = abstain_one(server, cache=cache, price_in=10.0)
        assert result.details["verdicts"] == [{"order": "ab", "choice": "a", "strength": 2}]
        assert result.cost == pytest.approx(0.001)
        server.script = careful_judge
        before = len(server.calls)
        assert judge_one(server, cache=cache).details["cached"] == 1
        assert len(server.calls) == before + 1


@pytest.mark.parametrize(
    ("status", "says"), [(400, "what?"), (422, "what?"), (501, "what?"), (500, "response_format: unexpected")]
)
@pytest.mark.parametrize(("knows", "tries"), [("json_schema", 2), ("json_object", 3), ("", 4)])
def test_unsupported_response_format_falls_back_and_is_remembered(knows: str, tries: int, status: int, says: str):
    def script(request: dict[str, Any], number: int) -> Any:
        form = request.get("response_format", {}).get("type", "")
        return (
            careful_judge(request) if form == knows else (status, {}, json.dumps({"error": {"message": says}}).encode())
        )

    with served(script) as server:
        assert judge_one(server, retries=0).choice == "a"
    assert len(server.calls) == tries
    first = server.calls[0]["response_format"]
    assert first["json_schema"]["schema"] == judge_prompt.SCHEMA and list(judge_prompt.SCHEMA["properties"]) == [
        "explanation",
        "verdict",
        "strength",
    ]


def test_max_completion_tokens_fallback():
    def script(request: dict[str, Any], number: int) -> Any:
        return (
            careful_judge(request)
            if "max_completion_tokens" in request
            else (400, {}, b'{"error": "use max_completion_tokens instead of max_tokens"}')
        )

    with served(script) as server:
        assert judge_one(server).choice == "a"
    assert len(server.calls) == 3 and all("response_format" in call for call in server.calls)


def test_rejected_pair_does_not_stop_the_next_one():
    long = PairText("k2", "Long?", "x" * 5000, BAD)

    def script(request: dict[str, Any], number: int) -> Any:
        return (
            (400, {}, b'{"error": {"message": "context length exceeded"}}')
            if len(str(request)) > 7000
            else careful_judge(request)
        )

    with served(script) as server:
        result = judge_all(server, [long, CASE], concurrency=1)
    assert [(type(f).__name__, f.comparison) for f in result] == [("Abstention", "k2"), ("Judgement", "k1")]
    assert isinstance(result[0], Abstention) and (result[0].reason, result[0].note) == (
        "rejected",
        "400 context length exceeded",
    )


@pytest.mark.parametrize("status", [401, 403, 404])
def test_authentication_and_address_errors_stop_judging(status: int):
    with served(lambda request, number: (status, {}, b'{"error": {"message": "who are you?"}}')) as server:
        with pytest.raises(ResourceError, match=f"{status} who are you"):
            judge_all(server)
        assert len(server.calls) == 1


def test_api_key_is_sent_to_the_server_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    (tmp_path / "key").write_text("s3cret\n")
    with served(careful_judge) as server:
        for reference in ("env:JUDGE_KEY", f"file:{tmp_path / 'key'}", ""):
            judge_one(server, api_key=reference)
        assert [h.get("Authorization") for h in server.headers[::2]] == ["Bearer s3cret", "Bearer s3cret", None]
        assert server.headers[0]["path"] == "/v1/chat/completions"
        with pytest.raises(RecipeError) as error:
            judge_all(server, api_key="sk-12345")
        assert "sk-12345" not in str(error.value) and "env:NAME" in str(error.value)
        (tmp_path / "key").write_text("two\nlines")
        with pytest.raises(RecipeError, match="one line"):
            judge_all(server, api_key=f"file:{tmp_path / 'key'}")


@pytest.mark.parametrize(
    ("change", "report"),
    [
        ({"base_url": "localhost:8000"}, "judge.base_url"),
        ({"model": ""}, "judge.model"),
        ({"samples": 3}, "temperature 0"),
        ({"ceiling": 5.0}, "without a price"),
        ({"api_key": "env:NOT_SET_ANYWHERE"}, "not set"),
    ],
)
def test_invalid_settings_are_refused_before_any_request(change: dict[str, Any], report: str):
    settings = JudgeSettings(**{"base_url": "http://127.0.0.1:9", "model": "m"} | change)
    with pytest.raises(RecipeError, match=report):
        list(judge_pairs(settings, [CASE], ReplyCache()))


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"x" * 30_000])
def test_missing_or_invalid_rubric_is_refused(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / "r.md").write_bytes(content)
    with pytest.raises(DataError, match=r"judge\.rubric"):
        judge_prompt.read_rubric(str(tmp_path / "r.md"))


def test_rubric_version_depends_on_its_text(tmp_path: Path):
    one_ = tmp_path / "r.md"
    two = tmp_path / "s" / "r.md"
    two.parent.mkdir()
    one_.write_text("Short.")
    two.write_text("Short!")
    assert judge_prompt.read_rubric(str(one_)).version != judge_prompt.read_rubric(str(two)).version
    two.write_text("Short.\n")
    assert judge_prompt.read_rubric(str(one_)).version == judge_prompt.read_rubric(str(two)).version


def cases(count: int) -> list[PairText]:
    return [PairText(f"k{i}", f"Question {i}?", GOOD, BAD) for i in range(count)]


def test_tokens_without_usage_are_estimated():
    with served(lambda request, number: answer(read_fences(request) and verdict_json("tie"), usage=None)) as server:
        result = judge_one(server, price_in=1.0, price_out=1.0)
    assert not result.details["counted"]
    text = "".join(m["content"] for m in server.calls[0]["messages"])
    assert result.details["tokens"]["read"] == pytest.approx(2 * len(text) / 4, rel=0.02)
    assert result.cost == pytest.approx(sum(result.details["tokens"].values()) / 1e6)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_cost_ceiling_is_never_exceeded_and_cached_replies_are_free(concurrency: int, tmp_path: Path):
    cache = ReplyCache()
    ceiling = 0.2
    account = Store.open(tmp_path / "ledger.db").judge_account("judge:m")
    prices = {"price_in": 10.0, "price_out": 50.0, "ceiling": ceiling, "concurrency": concurrency}
    with served(lambda request, number: answer(verdict_json("tie"), usage=(1000, 100))) as server:
        result = judge_all(server, cases(40), cache=cache, ledger=account, **prices)
        paid = 0.015 * len(server.calls)
        assert paid <= ceiling
        assert paid > ceiling - 0.015 - 0.08  # less is left than the maximum cost of one call
        stopped = [f for f in result if isinstance(f, Abstention)]
        assert {f.reason for f in stopped} == {"ceiling"} and len(result) == 40
        assert sum(f.cost for f in result) == pytest.approx(paid) == account.total()
        calls = len(server.calls)
        again = judge_all(server, cases(40), cache=cache, ledger=account, **prices)
        assert len(server.calls) - calls <= (ceiling - paid) / 0.015
        assert sum(isinstance(f, Judgement) for f in again) >= 40 - len(stopped)
        more = judge_all(server, cases(40), cache=cache, **prices | {"ceiling": 10.0})
        assert all(isinstance(f, Judgement) for f in more)


def test_cost_ceiling_holds_over_reruns_without_judgements(tmp_path: Path):
    """Abstentions, repairs, timeouts and refusals cost money, and the ledger counts them over processes."""
    ceiling = 0.2
    prices = {"price_in": 10.0, "price_out": 50.0, "ceiling": 0.2, "retries": 1, "timeout": 0.4}
    kinds = [verdict_json("first"), "no verdict", None]

    def script(request: dict[str, Any], number: int) -> Any:
        if number % 4 == 3:
            time.sleep(0.6)  # times out, and may be billed
        return answer(kinds[number % 3], usage=(1000, 100), **({"refusal": "no"} if number % 3 == 2 else {}))

    with served(script) as server:
        for _ in range(3):
            store = Store.open(tmp_path / "ledger.db")
            judge_all(server, cases(6), cache=ReplyCache(), ledger=store.judge_account("judge:m"), **prices)
            total = store.judge_account("judge:m").total()
            store.close()
            assert 0.015 * len(server.calls) <= total + 1e-9, "every request to the server is counted"
            assert total <= ceiling + 1e-9
        assert total > ceiling - 0.1 and len(server.calls) > 3


def test_account_equals_the_bill_of_the_server(tmp_path: Path):
    """If every call completes, the account equals the server's bill; a call without a connection costs nothing."""
    store = Store.open(tmp_path / "ledger.db")
    with served(
        lambda request, number: answer(["no verdict", verdict_json("tie")][number % 3 == 0], usage=(1000, 100))
    ) as server:
        judge_all(server, cases(5), ledger=store.judge_account("judge:m"), price_in=10.0, price_out=50.0, ceiling=9.0)
        assert store.judge_account("judge:m").total() == pytest.approx(0.015 * len(server.calls))
    before = store.judge_account("judge:m").total()
    gone = JudgeSettings(server.url, "m", price_in=10.0, price_out=50.0, ceiling=9.0, retries=0)
    list(judge_pairs(gone, cases(2), ReplyCache(), ledger=store.judge_account("judge:m")))
    assert store.judge_account("judge:m").total() == before


def test_reservation_of_a_killed_call_stays_at_its_maximum_cost(tmp_path: Path):
    store = Store.open(tmp_path / "ledger.db")
    budget = Budget(1.0, store.judge_account("judge:m"))
    budget.reserve(0.4)
    again = Budget(1.0, store.judge_account("judge:m"))
    assert again.dollars == pytest.approx(0.4)
    with pytest.raises(BudgetExceeded):
        again.reserve(0.7)


def test_budget_holds_under_concurrent_reservations():
    budget = Budget(1.0)
    observed = []
    refused = []

    def spend() -> None:
        while True:
            try:
                number = budget.reserve(0.1)
            except BudgetExceeded:
                refused.append(1)
                return
            observed.append(budget.dollars + budget._reserved)
            time.sleep(0.0005)
            budget.commit(number, 0.1, 0.004)

    threads = [threading.Thread(target=spend) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert max(observed) <= 1.0 + 1e-9
    assert 0.9 < budget.dollars <= 1.0 and budget._reserved == 0.0 and len(refused) == 16


def test_concurrency_limit():
    with served(lambda request, number: time.sleep(0.05) or careful_judge(request)) as server:
        result = judge_all(server, cases(12), concurrency=3)
    assert len(result) == 12 and server.max_in_flight == 3


def test_results_are_streamed_and_stopping_early_limits_requests():
    gate = threading.Event()

    def script(request: dict[str, Any], number: int) -> dict[str, Any]:
        if "Question 0?" in str(request):
            gate.wait(10)
        return careful_judge(request)

    class Counting:
        done = 0
        note = ""
        notes = ()

        def advance(self, units: int = 1, note: str = "") -> None:
            self.done = self.done + units
            self.notes = (*self.notes, note)

    with served(script) as server:
        counting = Counting()
        sampled: list[PairText] = []
        lazily = (sampled.append(case) or case for case in cases(200))
        stream = judge_pairs(
            JudgeSettings(server.url, "m", concurrency=2, price_in=10.0), lazily, ReplyCache(), counting
        )
        early = [next(stream).comparison for _ in range(3)]
        assert "k0" not in early and counting.done == 3 and counting.notes[-1].startswith("$0.0")
        assert len(sampled) < 20
        gate.set()
        stream.close()
        assert len(server.calls) < 40


def test_progress_shows_replies_while_no_pair_is_finished(monkeypatch: pytest.MonkeyPatch):
    """Both orders of a pair are asked one after the other, and a slow server finishes none for a long time."""
    monkeypatch.setattr(judge_pool, "PULSE", 0.02)
    gate = threading.Event()

    def script(request: dict[str, Any], number: int) -> dict[str, Any]:
        if number > 0:
            gate.wait(10)
        return careful_judge(request)

    work = Progress("judge", 1)
    with served(script) as server:
        settings = JudgeSettings(server.url, "m", concurrency=1)
        stream = judge_pairs(settings, [CASE], ReplyCache(), work)
        reader = threading.Thread(target=lambda: list(stream))
        reader.start()
        while work.note != "replies: 1" and reader.is_alive():
            time.sleep(0.01)
        assert work.line() == "judge 0/1, replies: 1"
        gate.set()
        reader.join()
    assert work.line() == "judge 1/1"


def test_closing_the_stream_interrupts_a_retry_wait():
    def script(request: dict[str, Any], number: int) -> Any:
        return careful_judge(request) if "Question 0?" in str(request) else (429, {"Retry-After": "30"}, b"")

    with served(script) as server:
        stream = judge_pairs(JudgeSettings(server.url, "m", concurrency=1), cases(5), ReplyCache())
        assert next(stream).comparison == "k0"
        while len(server.calls) < 3:
            time.sleep(0.01)
        calls = len(server.calls)
        stream.close()
        assert len(server.calls) == calls, "waiting for Retry-After would have been followed by another request"


def test_unreachable_server_stops_after_consecutive_failures(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judge_pool, "GIVE_UP", 4)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    observed = []
    with pytest.raises(ResourceError, match="4 consecutive pairs"):
        for result in judge_pairs(JudgeSettings(f"http://127.0.0.1:{port}", "m", retries=0), cases(100), ReplyCache()):
            observed.append(result)
    assert {f.reason for f in observed} == {"unreachable"} and len(observed) == 4


def test_cost_estimate():
    settings = JudgeSettings("http://x/v1", "m", samples=2, temperature=1.0, price_in=1.0, price_out=2.0)
    report = judging.estimate_cost(settings, cases(10))
    assert (report.calls, report.written) == (40, 40 * judging.USUAL_COMPLETION)
    assert report.dollars == pytest.approx((report.read + 2 * report.written) / 1e6)
    requested = judge_prompt.judge_messages(judge_prompt.read_rubric(), "Question 1?", GOOD, BAD)
    assert report.read == pytest.approx(40 * sum(len(m["content"]) for m in requested) / 4, rel=0.02)
