"""Hostile external servers: responses stay within time and size limits."""

import asyncio
import json
import resource
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest
from scripted import CASE, ReplyCache, judge_one, served, verdict_json

from towpath import network
from towpath.errors import RecipeError, ResourceError, RewardError
from towpath.feedback.endpoint import JudgeSettings
from towpath.feedback.judging import judge_pairs
from towpath.rewards import sources
from towpath.store import location


@contextmanager
def serving_bytes(*parts: bytes, pause: float = 0.0):
    """A server that sends these bytes to every client, the last of them repeatedly while the client reads."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.recv(65_536)
                for part in parts[:-1]:
                    connection.sendall(part)
                while True:
                    connection.sendall(parts[-1])
                    time.sleep(pause)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(sources, "ATTEMPTS", 1)


def test_endless_reward_response_is_cut_off():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (
        serving_bytes(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65_536) as address,
        pytest.raises(RewardError, match="more than 4194304 bytes"),
    ):
        sources.load_source(f"{address}/score")(["p"], ["a"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64_000


@pytest.mark.parametrize(
    "opening", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"], ids=["headers", "body"]
)
def test_server_that_drips_headers_or_body_times_out(opening):
    client = network.HttpClient(0.5)
    with (
        serving_bytes(opening, b"x: y\r\n", pause=0.05) as address,
        pytest.raises(network.ResponseFailed, match=r"in 0\.5 s"),
    ):
        client.post(address, b"{}")


def test_judge_that_drips_headers_times_out():
    with serving_bytes(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n", pause=0.05) as address:
        settings = JudgeSettings(f"{address}/v1", "m", retries=0, timeout=0.4)
        (result,) = judge_pairs(settings, [CASE], ReplyCache())
    assert result.reason == "unreachable"


def test_redirects_are_not_followed():
    reply = b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
    with (
        serving_bytes(reply, b"") as address,
        pytest.raises(RewardError, match=r"307 to http://127\.0\.0\.1:1/, which is not followed"),
    ):
        sources.load_source(f"{address}/score")(["p"], ["a"])


def test_compressed_response_is_not_unpacked():
    with (
        serving_bytes(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n", b"\x1f\x8b" * 100) as address,
        pytest.raises(RewardError, match="compressed"),
    ):
        sources.load_source(f"{address}/score")(["p"], ["a"])


FORBIDDEN = [
    "http://169.254.169.254/latest/meta-data",
    "http://[fe80::1]/x",
    "http://[fd00:ec2::254]/",
    "http://2852039166/",
    "http://0xa9.0xfe.43518/",
    "http://[::ffff:169.254.169.254]/",
    "http://100.100.100.200/",
]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_link_local_and_metadata_addresses_are_refused_before_a_run(address):
    with pytest.raises(RecipeError, match="link-local or metadata"):
        sources.load_source(address)
    with pytest.raises(RecipeError, match="link-local or metadata"):
        list(judge_pairs(JudgeSettings(address, "m", retries=0), [CASE], ReplyCache()))


@pytest.mark.parametrize("address", FORBIDDEN)
def test_host_name_of_a_metadata_address_is_refused(address, monkeypatch):
    # as for a host name
    monkeypatch.setattr(network, "require_allowed_literal", lambda _address: None)
    with pytest.raises(RewardError, match="link-local or metadata"):
        sources.load_source(address)(["p"], ["a"])
    with pytest.raises(ResourceError, match="link-local or metadata"):
        list(judge_pairs(JudgeSettings(address, "m", retries=0), [CASE], ReplyCache()))


@pytest.mark.parametrize(
    "address",
    ["http://localhost:8000/v1", "http://10.0.0.7/v1", "http://[::1]:8000/v1", "https://judge.example.org/v1"],
)
def test_private_network_addresses_are_allowed(address):
    network.require_allowed_literal(address)


def test_lone_surrogate_in_a_judge_reply_is_replaced():
    content = verdict_json("first", explanation="\ud800 it says")
    with served(lambda _request, _number: {"choices": [{"message": {"content": content}}]}) as server:
        result = judge_one(server)
    assert result.details["verdicts"]
    json.dumps(result.details, ensure_ascii=False).encode()


def test_echoed_api_key_is_redacted(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    with served(
        lambda _request, _number: {
            "choices": [{"message": {"content": verdict_json("first", explanation="your key is sk-very-secret")}}]
        }
    ) as server:
        result = judge_one(server, api_key="env:JUDGE_KEY")
    assert "sk-very-secret" not in json.dumps(result.details)
    assert "[key]" in json.dumps(result.details)


def test_password_in_store_url_is_refused_and_a_reference_accepted(tmp_path, monkeypatch):
    url = "postgresql+psycopg://towpath:hunter2@db.example.org/ledger"
    with pytest.raises(RecipeError) as refused:
        location.ledger_location(tmp_path, url)
    assert "hunter2" not in str(refused.value)
    for hidden in ("postgresql+psycopg://u@h/db?password=hunter2", "postgresql+psycopg://u@h/db?sslpassword=hunter2"):
        with pytest.raises(RecipeError, match="holds a password"):
            location.ledger_location(tmp_path, hidden)
    monkeypatch.setenv("LEDGER", url)
    assert location.ledger_location(tmp_path, "env:LEDGER") == url
    assert location.ledger_location(tmp_path, "postgresql+psycopg://towpath@db.example.org/ledger").endswith("/ledger")


def test_first_requests_of_many_threads_share_one_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client's connections belong to one loop; two loops broke a run whose judge was slow."""
    new_event_loop = asyncio.new_event_loop

    def slowly() -> asyncio.AbstractEventLoop:
        time.sleep(0.05)
        return new_event_loop()

    monkeypatch.setattr(network, "_loops", {})
    monkeypatch.setattr(asyncio, "new_event_loop", slowly)
    with ThreadPoolExecutor(8) as pool:
        loops = set(pool.map(lambda _: network._event_loop(), range(8)))
    assert len(loops) == 1
    (loop,) = loops
    loop.call_soon_threadsafe(loop.stop)
    while loop.is_running():
        time.sleep(0.01)
    loop.close()
