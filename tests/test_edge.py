"""The server under hostile input and faults: bodies, connections, unreachable storage, unstorable text."""

import json
import logging
import resource
import select
import socket
from contextlib import contextmanager, suppress
from time import sleep

import httpx
import pytest
from conftest import new_database, running
from test_web import client, fill, signed_in, store, team, verdict_body  # noqa: F401

from towpath.errors import ResourceError, RowRefused
from towpath.records import Comparison, Completion, Prompt
from towpath.store import people
from towpath.store.store import Store
from towpath.web import connections, guard, limits, server


def raw(url: str) -> socket.socket:
    url_ = httpx.URL(url)
    return socket.create_connection((url_.host, url_.port), timeout=10)


def head(url: str, method: str, path: str, *lines: str) -> bytes:
    host = url.removeprefix("http://")
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"host: {host}", f"origin: {url}", *lines, "", ""]).encode()


def status(connection: socket.socket) -> int:
    return int(connection.recv(4096).split(b" ", 2)[1])


@pytest.mark.parametrize("path", ["/sign-in", "/rate/judge", "/join/x"])
@pytest.mark.parametrize(
    "lines",
    [
        ("content-length: 5", "transfer-encoding: chunked"),
        ("transfer-encoding: chunked",),
        ("content-length: 1000001",),
    ],
)
def test_body_without_one_stated_length_is_refused(team, path, lines):  # noqa: F811
    with raw(team) as connection:
        connection.sendall(head(team, "POST", path, "content-type: application/x-www-form-urlencoded", *lines))
        assert status(connection) in (400, 411, 413)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sent = 0
        with pytest.raises(OSError):  # the server closed the connection
            while sent < 64_000_000:
                connection.sendall(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
                sent += 65_536
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_client_that_is_still_sending_reads_the_refusal(team):  # noqa: F811
    """A proxy would report an error of its own if the connection were reset."""
    with raw(team) as connection:
        connection.sendall(head(team, "POST", "/rate/judge", "content-length: 1500000"))
        assert select.select([connection], [], [], 10)[0], "the refusal arrives before the body is sent"
        for _ in range(150):
            connection.sendall(b"x" * 10_000)
        assert status(connection) == 413
        while connection.recv(4096):
            pass
        connection.shutdown(socket.SHUT_WR)


def test_anonymous_body_is_not_read(team):  # noqa: F811
    with raw(team) as connection:
        connection.sendall(
            head(
                team,
                "POST",
                "/rate/judge",
                "accept: application/json",
                "content-type: application/json",
                "content-length: 900000",
            )
        )
        assert status(connection) == 401
    with raw(team) as connection:  # more than any name and password
        connection.sendall(head(team, "POST", "/sign-in", "content-length: 900000"))
        assert status(connection) == 413


def test_slow_headers_and_bodies_time_out(store, monkeypatch):  # noqa: F811
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    with running(store, team=True) as (url, _), raw(url) as slow, raw(url) as silent, raw(url) as body:
        body.sendall(head(url, "POST", "/sign-in", "content-length: 100") + b"name=")
        with pytest.raises(OSError):
            for letter in "GET / HTTP/1.1\r\n" * 20:
                slow.sendall(letter.encode())
                sleep(0.05)
        assert status(body) == 408
        with pytest.raises(OSError):
            assert silent.recv(10) == b""
            raise OSError
        with client(url) as quick:  # the deadline is for headers, not for idle connections between requests
            assert quick.get("/sign-in").status_code == 200
            sleep(0.5)
            assert quick.get("/sign-in").status_code == 200


def test_connection_limit(store, monkeypatch):  # noqa: F811
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 20)
    with running(store, team=True) as (url, _):
        held = [raw(url) for _ in range(20)]
        with raw(url) as beyond:  # connections are accepted in order
            beyond.settimeout(3)
            try:
                beyond.sendall(head(url, "GET", "/sign-in"))
                assert beyond.recv(10) == b""
            except OSError:
                pass
        held[0].sendall(head(url, "GET", "/sign-in"))
        assert status(held[0]) == 200
        for one in held:
            one.close()
        assert answered_status(url) == 200


def answered_status(url: str, tries: int = 250) -> int:
    """The status of the sign-in page once the server has noticed that other connections were closed."""
    for _ in range(tries):
        with suppress(httpx.TransportError), client(url) as visitor:
            return visitor.get("/sign-in").status_code
        sleep(0.02)
    return 0


def record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    exc_info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("towpath.web", logging.ERROR, "", 0, message, args, exc_info)


def raised(line: int) -> Exception:
    try:
        if line == 1:
            raise ValueError("first")
        raise ValueError("second")
    except ValueError as error:
        return error


def test_log_is_rate_limited_by_message(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(connections, "monotonic", lambda: clock[0])
    limited = connections.RateLimitedLog(seconds=60.0)
    assert sum(limited.filter(record("socket.accept() out of system resource")) for _ in range(1000)) == 1
    assert limited.filter(record("%s", "the disk is full"))
    assert limited.filter(record("%s", "no connection"))
    assert [limited.filter(record("%s failed", f"/{n}", error=raised(1))) for n in range(3)] == [True, False, False]
    assert limited.filter(record("%s failed", "/1", error=raised(2)))
    clock[0] += 60.0
    again = record("%s failed", "/\x1b[2J\x07", error=raised(1))
    assert limited.filter(again)
    assert again.getMessage() == "/[2J failed (2 more like this before)"


@contextmanager
def locked(store: Store):  # noqa: F811
    """Lock the file from another process while the server's timeout is short."""
    import sqlite3

    other = sqlite3.connect(store._engine.url.database, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def test_verdict_during_a_locked_ledger_is_retried(tmp_path, monkeypatch):
    monkeypatch.setattr("towpath.store.ledger.LOCK_TIMEOUT", 0.2)
    with Store.open(tmp_path / "towpath.db") as opened:
        fill(opened)
        with running(opened, team=True) as (url, auth):
            opened.submit_write(
                people.add_account, "ann", "rater", auth.hash_password("correct horse battery")
            ).result()
            with signed_in(url, "ann") as ann:
                seat = ann.get("/rate/next").json()
                with locked(opened):
                    answer = ann.post("/rate/judge", json=verdict_body(seat, "key-one-1"))
                    assert answer.status_code == 503
                    assert int(answer.headers["retry-after"]) > 0
                    assert "towpath.db" not in answer.text
                    assert str(tmp_path) not in answer.text
                assert ann.post("/rate/judge", json=verdict_body(seat, "key-one-1")).json()["judgements"] == 1


ODD = "before\x00after \ud83d \udc4d end \U0001f44d"


def test_unstorable_text_is_cleaned(location):
    with Store.open(location) as opened:
        opened.add_prompts([Prompt("p", ODD, domain="d\x00", about=("x\x00\ud800",))])
        opened.add_completions(
            [Completion("s.p.0", "p", "model", ODD, (1,), (-0.1,), "stop", {"note": ODD}) for _ in range(2)]
        )
        clean = "before\ufffdafter \ufffd \ufffd end \U0001f44d"
        prompt = opened.prompts()["p"]
        assert (prompt.prompt, prompt.domain, prompt.about) == (clean, "d\ufffd", ("x\ufffd\ufffd",))
        assert opened.completions()["s.p.0"].text == clean
        assert opened.completions()["s.p.0"].decoding == {"note": clean}
        with pytest.raises(RowRefused):
            opened.add_comparisons([Comparison("k", "p", "s.p.0", "s.p.0", round=2**70)])


BODIES = [
    b'{"key": "key-one-1", "comparison": "k0", "side": "left", "milliseconds": NaN}',
    b'{"key": "key-one-1", "comparison": "k0", "side": "left", "milliseconds": Infinity}',
    b'{"key": "key-one-1", "comparison": "k0", "side": "left", "milliseconds": 1e999}',
    b'{"key": "key-one-1", "comparison": "\\ud800", "side": "left"}',
    b'{"key": "key-one-1", "comparison": "k0", "side": "left", "comment": "\\udfff\\u0000"}',
    '{"key": "key-one-1", "comparison": "k0", "side": "left", "comment": "\ud800"}'.encode("utf-16", "surrogatepass"),
    '{"key": "key-one-1", "comparison": "k0", "side": "up"}'.encode("utf-16"),
    '{"key": "key-one-1", "comparison": "k0"}'.encode("utf-32"),
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"1" * 10_000,
    b"null",
    b"[]",
    b"",
    b'{"key": "key-one-1", "comparison": "k0", "side": "left", "guideline": 99999999999999999999999999}',
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_invalid_bodies_are_refused_without_echo(team, body):  # noqa: F811
    with signed_in(team, "ann") as ann:
        ann.get("/rate/next")
        for path in ("/rate/judge", "/rate/skip", "/rate/flag", "/rate/write", "/rate/rank"):
            answer = ann.post(path, content=body, headers={"content-type": "application/json"})
            assert answer.status_code < 500, (path, answer.text)
            if answer.status_code == 422:
                assert set(answer.json()) == {"error"}
                assert "key-one" not in answer.text


PATHS = [
    "/arena/99999999999999999999",
    "/arena/-1",
    "/arena/99999999999999999999/live",
    "/monitor/step?stage=sft&step=99999999999999999999999",
    "/monitor/curves?stage=sft&low=-99999999999999999999",
    "/static/%00",
    "/join/%00",
    "/enter?token=%00",
    "/owner/%00",
    "/%00",
    "/join/%ED%A0%80",
    "/rate/differences?comparison=%00",
    "/rate/differences?comparison=%ED%A0%80",
    "/monitor/curves?stage=%00",
    "/arena/disagreements?returned=99999999999999999999",
    "/static/../../etc/passwd",
    "/static/%2e%2e/%2e%2e/app.py",
    "/nowhere",
    "/owner/settings?saved=x",
]


@pytest.mark.parametrize("path", PATHS)
def test_invalid_addresses_return_error_pages(team, path):  # noqa: F811
    with signed_in(team, "olga") as olga:
        for accept in ("text/html", "application/json"):
            answer = olga.get(path, headers={"accept": accept})
            assert answer.status_code < 500, answer.text
            if answer.status_code in (400, 404, 405, 422) and accept == "text/html":
                assert "<main" in answer.text
                assert "content-security-policy" in answer.headers


def test_form_errors_name_the_field_without_echo(team):  # noqa: F811
    with signed_in(team, "olga") as olga:
        answer = olga.post(
            "/owner/settings",
            data={"gold_share": "<b>much</b>", "lease_minutes": "30"},
            headers={"accept": "text/html"},
        )
        assert answer.status_code == 422
        assert "gold_share" in answer.text
        assert "much" not in answer.text
    with client(team, accept="text/html") as stranger:
        answer = stranger.post(
            "/sign-in", data={"name": "ann\x00", "password": "a secret password\ud800".encode("utf-8", "surrogatepass")}
        )
        assert answer.status_code < 500
        assert "secret" not in stranger.post("/sign-in", data={"password": "my secret word"}).text


def test_internal_error_page_has_all_headers(team, store, monkeypatch):  # noqa: F811
    def broken(*_):
        raise RuntimeError("a bug at /secret/place")

    with signed_in(team, "olga") as olga:
        monkeypatch.setattr(type(store), "read", broken)
        answer = olga.get("/owner/guidelines", headers={"accept": "text/html"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "content-security-policy" in answer.headers


def test_write_rate_limit_per_account(team, monkeypatch):  # noqa: F811
    monkeypatch.setattr(limits, "BURST", 10)
    with signed_in(team, "ann") as ann, signed_in(team, "bob") as bob:
        statuses = [ann.post("/rate/skip", json={"comparison": "none"}).status_code for _ in range(30)]
        assert statuses[:10] == [409] * 10
        assert statuses[-1] == 429
        assert int(ann.post("/rate/skip", json={"comparison": "none"}).headers["retry-after"]) >= 1
        assert bob.post("/rate/skip", json={"comparison": "none"}).status_code == 409


def test_json_errors_have_one_format(team):  # noqa: F811
    with client(team) as stranger:
        assert set(json.loads(stranger.get("/nowhere").text)) == {"error"}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_unwritable_ledger_is_reported_at_start(kind, tmp_path, request):
    from sqlalchemy import text

    run = tmp_path / "run"
    run.mkdir()
    location = run / "towpath.db" if kind == "sqlite" else new_database(request.getfixturevalue("postgres_server"))
    Store.open(location).close()
    read_only = {
        "sqlite": f"sqlite:///file:{location}?mode=ro&uri=true",
        "postgresql": f"{location}?options=-c%20default_transaction_read_only%3Don",
    }
    with pytest.raises(ResourceError, match=r"read-?only"):
        server.serve_run(run, read_only[kind], False, server.NetworkOptions(port=0), lambda _line: None)
    with Store.open(location) as opened:
        assert opened.read(lambda connection: connection.execute(text("SELECT 1")).scalar()) == 1
        opened.require_writable()
