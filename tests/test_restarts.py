"""PostgreSQL restarts while people rate: nothing acknowledged is lost or duplicated, and no database address is
shown."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from time import sleep

import httpx
import pytest
from conftest import new_database, running, running_postgres
from test_web import client

from towpath.records import Comparison, Completion, Prompt
from towpath.store import people, rating_settings
from towpath.store.rating_settings import RatingSettings
from towpath.store.store import Store
from towpath.store.task_queue import Task

RATERS = 8
PAIRS = 4000


@pytest.fixture
def own_server():
    with running_postgres() as server:
        yield server


def rate(url: str, cookie: dict[str, str], name: str, over: Event, acknowledged: dict[str, str]) -> list[str]:
    """Act as one rater's page that retries until the server has the verdict, and return all messages."""
    messages: list[str] = []
    number = 0
    with client(url) as page:
        page.timeout = 60
        page.cookies.update(cookie)
        while not over.is_set():
            seat = until_answered(page, "GET", "/rate/next", messages)
            if seat["state"] != "pair":
                break
            number += 1
            key = f"{name}-{number:06d}"
            side = ("left", "right", "tie")[number % 3]
            body = {"key": key, "comparison": seat["comparison"], "side": side, "milliseconds": 900}
            answer = until_answered(page, "POST", "/rate/judge", messages, body)
            assert "error" not in answer, answer
            acknowledged[key] = seat["comparison"]
            sleep(0.01)
    return messages


def until_answered(
    page: httpx.Client, method: str, path: str, messages: list[str], body: dict[str, object] | None = None
) -> dict[str, str]:
    while True:
        try:
            answer = page.request(method, path, json=body)
        except httpx.TransportError:
            sleep(0.05)
            continue
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) > 0
            messages.append(answer.text)
            sleep(0.05)
            continue
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return answer.json()


def test_postgresql_restart_loses_no_verdict(own_server):
    with Store.open(new_database(own_server.url)) as store:
        store.add_prompts([Prompt(f"p{i}", f"Why {i}?") for i in range(PAIRS)])
        store.add_completions(
            [
                Completion(f"s1.p{i}.{k}", f"p{i}", "model", f"{i}.{k}", (1,), (-0.1,), "stop")
                for i in range(PAIRS)
                for k in (0, 1)
            ]
        )
        store.add_comparisons([Comparison(f"k{i}", f"p{i}", f"s1.p{i}.0", f"s1.p{i}.1") for i in range(PAIRS)])
        store.add_tasks([Task(f"k{i}", "work") for i in range(PAIRS)])
        store.submit_write(rating_settings.save, RatingSettings(gold_share=0.0)).result()
        with running(store, team=True) as (url, auth):
            names = [f"rater-{n}" for n in range(RATERS)]
            cookies = []
            for name in names:
                store.submit_write(
                    people.add_account, name, "rater", auth.hash_password("correct horse battery")
                ).result()
                with client(url) as visitor:
                    assert (
                        visitor.post("/sign-in", data={"name": name, "password": "correct horse battery"}).status_code
                        == 303
                    )
                    cookies.append(dict(visitor.cookies))
            over = Event()
            acknowledged = dict[str, str]()

            def wait_for_more(count: int = 10) -> None:
                wanted = len(acknowledged) + count
                while len(acknowledged) < wanted:
                    assert not any(done.done() for done in work), [done.exception() for done in work if done.done()]
                    sleep(0.05)

            with ThreadPoolExecutor(RATERS) as pool:
                work = [
                    pool.submit(rate, url, cookie, name, over, acknowledged)
                    for cookie, name in zip(cookies, names, strict=True)
                ]
                for mode in ("immediate", "fast", "immediate", "fast", "immediate"):
                    wait_for_more()
                    own_server.stop(mode)
                    sleep(0.2)
                    own_server.start()
                wait_for_more()
                over.set()
                receipts = [done.result(timeout=60) for done in work]
        saved = {j.key: j.comparison for j in store.judgements()}
        assert {key: saved.get(key) for key in acknowledged} == acknowledged
        assert len(saved) == len(acknowledged), (
            "unacknowledged verdicts were repeated with their key, so that there are no others"
        )
        messages = {message for several in receipts for message in several}
        assert messages
        assert not any(
            word in message for message in messages for word in ("postgres", "127.0.0.1", "psycopg", "connection")
        )
