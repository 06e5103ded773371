"""The page's outbox against a server that answers 503, 500, 409 or not at all: no verdict is lost or hidden."""

import asyncio
import re
import subprocess
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from time import sleep

import pytest
from conftest import new_database, serious
from test_browser import PASSWORD, answers, comparison, fill, press

from towpath.store import people, review, sides, task_queue, verdicts
from towpath.store.store import Store
from towpath.web.server import create_server, open_socket

WEB = "() => document.getElementById('{}').textContent.includes({!r})"


class Faults:
    """The server's application with scripted responses for some paths, over real HTTP."""

    def __init__(self, app):
        self.app = app
        self.answers = {}
        self.requests = []
        self.held = {}

    async def __call__(self, scope, receive, send):
        path = scope.get("path", "")
        self.requests += [path] if scope.get("method") == "POST" else []
        status, body, headers = self.answers.get(path, (0, "", {}))
        if path in self.held:
            await asyncio.to_thread(self.held[path].wait)
        if not status:
            return await self.app(scope, receive, send)
        fields = {"content-type": "application/json" if body.startswith("{") else "text/html"} | headers
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(a.encode(), b.encode()) for a, b in fields.items()],
            }
        )
        await send({"type": "http.response.body", "body": body.encode()})


@contextmanager
def serve_with_faults(store):
    server, auth = create_server(store, True)
    faults = Faults(server.config.app)
    server.config.app = faults
    with open_socket("127.0.0.1", 0) as listener:
        thread = Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            sleep(0.01)
        for name in ("ann", "bob"):
            store.submit_write(people.add_account, name, "rater", auth.hash_password(PASSWORD)).result()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", faults
        server.should_exit = True
        thread.join()


def enter(browser, url, **options):
    context = browser.new_context(base_url=url, **options)
    context.set_default_timeout(15_000)
    page = context.new_page()
    page.goto("/sign-in")
    page.fill("#name", "ann")
    page.fill("#password", PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url("**/rate")
    return page


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "towpath.db") as opened:
        fill(opened)
        yield opened


@pytest.fixture
def served(store, browser):
    with serve_with_faults(store) as (url, faults):
        page = enter(browser, url)
        yield page, faults
        page.context.close()


def shows(page, where, words):
    page.wait_for_function(WEB.format(where, words))


def stored(page, kind):
    return page.evaluate(
        "kind => Object.keys(localStorage).filter(name => name.startsWith(`towpath/${kind}/`)).length", kind
    )


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((503, '{"error": "postgresql://secret"}', {"retry-after": "1"}), "the server is unavailable"),
        ((429, '{"error": "slowly"}', {"retry-after": "1"}), "too many requests"),
        ((403, '{"error": "no"}', {}), "may not rate"),
        ((401, '{"error": "sign in"}', {}), "signed out"),
        ((409, "<h1>Conflict of a proxy</h1>", {}), "server error (409)"),
        ((200, "<h1>Welcome to the hotel</h1>", {}), "a proxy answered in place of the server"),
        ((413, "too large", {}), "server error (413)"),
    ],
)
def test_unrelated_responses_never_drop_a_verdict(served, store, answer, words):
    page, faults = served
    first = comparison(page)
    faults.answers["/rate/judge"] = answer
    page.keyboard.press("1")
    shows(page, "outbox", words)
    assert "1 stored on this device" in page.inner_text("#outbox")
    assert "secret" not in page.content()
    faults.answers.clear()
    page.wait_for_function("before => document.getElementById('task').dataset.comparison !== before", arg=first)
    assert [j.comparison for j in store.judgements()] == [first]
    assert stored(page, "outbox") == stored(page, "unsaved") == 0


def test_retry_after_is_respected(served):
    page, faults = served
    faults.answers["/rate/judge"] = (503, "{}", {"retry-after": "30"})
    page.keyboard.press("1")
    shows(page, "outbox", "the server is unavailable")
    page.wait_for_timeout(3500)  # without Retry-After there would be retries after 1 s and 3 s
    assert faults.requests.count("/rate/judge") == 1


def test_rejected_items_are_listed(served, store, axe):
    page, faults = served
    first = comparison(page)
    faults.answers["/rate/judge"] = (500, "Internal Server Error", {})
    page.keyboard.press("c")
    page.keyboard.type("Because of the lock")
    page.keyboard.press("Control+Enter")
    page.keyboard.press("1")
    page.wait_for_function(
        "before => document.getElementById('task').dataset.comparison !== before", arg=first, timeout=30_000
    )
    assert "Not saved: A is much better" in page.inner_text("#message")
    assert page.inner_text("#unsaved") == "Could not be saved: 1 item"
    assert stored(page, "outbox") == 0
    faults.answers.clear()
    press(page, "2", "Saved: A is better")  # the rater can continue
    page.reload()
    page.click("#unsaved")
    listed = page.inner_text("#unsaved-list")
    assert "A is much better, for “Why is the water in the canal" in listed
    assert "comment: Because of the lock" in listed
    assert not serious(page, axe)
    page.get_by_role("button", name="Try again").click()
    shows(page, "message", "Saved: A is much better")
    judgements = {j.comparison: j for j in store.judgements()}
    assert (judgements[first].strength, judgements[first].comment) == (3, "Because of the lock")
    assert page.is_hidden("#unsaved")


def test_refused_verdict_is_listed_with_its_content(served, store):
    page, faults = served
    first = comparison(page)
    task = store.read(
        lambda c: c.exec_driver_sql(f"SELECT shown FROM seats WHERE comparison = '{first}' AND rater = 'ann'").scalar()
    )
    other = verdicts.Submission("from-another-device", first, "ann", verdicts.StoredVerdict("right"))
    store.submit_write(verdicts.judge, other, 2_000_000_000.0).result()
    faults.held["/rate/next"] = Event()
    page.keyboard.press("1")
    shows(page, "message", "Not saved: A is much better")
    assert "You have judged this pair differently" in page.inner_text("#message")
    assert not re.search(r"\bk\d\d\b", page.inner_text("body")), "no ids of the ledger"
    page.click("#unsaved")
    assert "A is much better" in page.inner_text("#unsaved-list"), "also while the next pair is being loaded"
    faults.held.pop("/rate/next").set()
    page.get_by_role("button", name="Discard").click()
    assert page.is_hidden("#unsaved")
    assert [j.choice for j in store.judgements()] == [sides.choice_of("right", task)]


def test_drafts_survive_a_reload(served, store):
    page, _ = served
    first = comparison(page)
    for key, words in (("c", "a remark"), ("w", "A better answer."), ("f", "odd")):
        page.keyboard.press(key)
        page.keyboard.type(words)
        page.keyboard.press("Control+Enter" if key == "c" else "Escape")
    page.reload()
    assert comparison(page) == first
    assert "Restored drafts: a better answer, a comment, a flag" in page.inner_text("#message")
    page.keyboard.press("w")
    assert page.input_value("#write-text") == "A better answer."
    page.keyboard.press("Control+Enter")
    shows(page, "message", "Saved: your better answer")
    press(page, "1", "Saved")
    assert [j.comment for j in store.judgements()] == ["a remark"]
    assert [row["text"] for row in store.read(review.list_written_answers, "waiting")[0]] == ["A better answer."]
    press(page, "u", "Undone")
    assert page.input_value("#comment-text") == page.input_value("#write-text") == ""
    assert page.input_value("#flag-text") == "odd"


def test_verdict_is_not_credited_to_another_account(served, store):
    page, faults = served
    first = comparison(page)
    store.submit_write(task_queue.add_seats, [first], "overlap").result()
    faults.answers["/rate/judge"] = (503, "{}", {"retry-after": "1"})
    page.keyboard.press("1")
    shows(page, "outbox", "the server is unavailable")
    other = page.context.new_page()
    other.goto("/sign-in")
    other.fill("#name", "bob")
    other.fill("#password", PASSWORD)
    other.keyboard.press("Enter")
    other.wait_for_url("**/rate")
    assert comparison(other) == first, "bob has a lease on the same pair"
    faults.answers.clear()
    shows(page, "outbox", "you are signed out")
    assert store.judgements() == []
    assert stored(page, "outbox") == 1


def test_browser_without_storage_warns(served):
    page, faults = served
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new Error('full'); }; }")
    faults.answers["/rate/judge"] = (503, "{}", {"retry-after": "1"})
    page.keyboard.press("1")
    shows(page, "outbox", "in this tab only, do not close it")
    faults.answers.clear()
    shows(page, "message", "Saved")


def test_load_failure_is_not_reported_as_stored(served):
    page, faults = served
    faults.answers["/rate/next"] = (503, "{}", {"retry-after": "1"})
    page.keyboard.press("1")
    shows(page, "outbox", "The next pair cannot be loaded (the server is unavailable)")
    assert "stored" not in page.inner_text("#outbox")
    faults.answers.clear()
    shows(page, "outbox", "")


def test_database_restart_loses_nothing(postgres_server, browser):
    control = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))[-1]
    port = postgres_server.rpartition(":")[2]
    folder = next(path for path in Path("/tmp").glob("towpath-postgres-*") if (path / f".s.PGSQL.{port}").exists())
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c max_connections=200"

    def run(*words):
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        subprocess.run(
            [*user, control, "-D", folder / "data", "-w", "-l", folder / "log", *words],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )

    with Store.open(new_database(postgres_server)) as store:
        fill(store)
        with serve_with_faults(store) as (url, _):
            page = enter(browser, url)
            pairs = []
            for _ in range(2):
                pairs.append(comparison(page))
                run("-m", "immediate", "stop")
                page.keyboard.press("1")
                shows(page, "outbox", "the server is unavailable")
                assert "postgresql" not in page.inner_text("body")
                run("-o", options, "start")
                page.wait_for_function(
                    "before => document.getElementById('task').dataset.comparison !== before",
                    arg=pairs[-1],
                    timeout=60_000,
                )
            assert [j.comparison for j in store.judgements()] == pairs
            assert answers(page)
            page.context.close()
