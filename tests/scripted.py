"""A local HTTP server whose replies come from a script, a judge that respects fences, and a reply cache in memory."""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from towpath.feedback.judging import Abstention, JudgeSettings, judge_pairs
from towpath.feedback.pair_text import PairText
from towpath.records import Judgement

GOOD = "Oil each hinge, then swing the door. It squeaks because metal rubs on metal."
BAD = "I like doors."
USEFUL = {"oil", "hinge", "swing", "metal", "water", "soap", "rinse", "heat", "slowly", "stir"}
CASE = PairText("k1", "How do I stop a door from squeaking?", GOOD, BAD)


def verdict_json(position: str, strength: int = 2, explanation: str = "Because.") -> str:
    return json.dumps({"explanation": explanation, "verdict": position, "strength": strength})


def answer(text: str | None, finish: str = "stop", usage: Any = (100, 20), **message: Any) -> dict[str, Any]:
    report = {"prompt_tokens": usage[0], "completion_tokens": usage[1]} if usage else None
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text} | message}
    return {"id": "x", "object": "chat.completion", "choices": [choice]} | ({"usage": report} if report else {})


class ScriptedServer(ThreadingHTTPServer):
    """A server with scripted replies: a dict is sent as JSON, (status, headers, body) unchanged."""

    daemon_threads = True

    def __init__(self, script: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.calls = []
        self.headers = []
        self.times = []
        self.lock = threading.Lock()
        self.in_flight = 0
        self.max_in_flight = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that close the connection are expected."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.calls)
            self.server.calls.append(request)
            self.server.headers.append(dict(self.headers) | {"path": self.path})
            self.server.times.append(time.monotonic())
            self.server.in_flight += 1
            self.server.max_in_flight = max(self.server.max_in_flight, self.server.in_flight)
        try:
            report = self.server.script(request, number)
        finally:
            with self.server.lock:
                self.server.in_flight -= 1
        status, headers, body = (200, {}, json.dumps(report).encode()) if isinstance(report, dict) else report
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@contextmanager
def served(script: Any) -> Iterator[ScriptedServer]:
    with ScriptedServer(script) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class ReplyCache(dict[str, Any]):
    """A reply cache in memory."""

    def reply(self, digest: str) -> dict[str, Any] | None:
        return self.get(digest)

    def save_reply(self, digest: str, reply: dict[str, Any]) -> None:
        self[digest] = json.loads(json.dumps(reply))


def judge_all(
    server: ScriptedServer, cases: Any = (CASE,), cache: Any = None, ledger: Any = None, **more: Any
) -> list[Judgement | Abstention]:
    settings = JudgeSettings(server.url, "m", **{"retries": 2, "timeout": 5.0} | more)
    return list(judge_pairs(settings, cases, ReplyCache() if cache is None else cache, ledger=ledger))


def judge_one(server: ScriptedServer, **more: Any) -> Judgement:
    (result,) = judge_all(server, **more)
    assert isinstance(result, Judgement), result
    return result


def abstain_one(server: ScriptedServer, **more: Any) -> Abstention:
    (result,) = judge_all(server, **more)
    assert isinstance(result, Abstention), result
    return result


def read_fences(request: dict[str, Any]) -> tuple[str, str, str]:
    """The two fenced answers of a judge request, and the text outside all fences."""
    system, user = (m["content"] for m in request["messages"][:2])
    nonce = re.search(r"carry the code (\w+)", system)[1]
    parts = []
    for name in ("FIRST", "SECOND", "REQUEST"):
        begin = f"<<<{name} {nonce}>>>\n"
        end = f"\n<<<END {name} {nonce}>>>"
        head, _, rest = user.partition(begin)
        text, _, tail = rest.partition(end)
        parts.append(text)
        user = head + tail
    return parts[0], parts[1], user


def careful_judge(request: dict[str, Any], _number: int = 0) -> dict[str, Any]:
    """Prefer the answer with more useful words, but follow instructions outside the fences."""
    first, second, outside = read_fences(request)
    ordered = re.search(r"verdict is (first|second)", outside)
    if ordered:
        return answer(verdict_json(ordered[1], 3))
    useful = [len(USEFUL & set(re.findall("[a-z]+", text.lower()))) for text in (first, second)]
    position = "tie" if useful[0] == useful[1] else "first" if useful[0] > useful[1] else "second"
    return answer(verdict_json(position, 2, f"{useful[0]} useful words against {useful[1]}"))
