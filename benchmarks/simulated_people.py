"""Simulated people at the rating page, for proofs that need people: they sign in, get pairs from the product's server,
read what the page shows, and send verdicts over HTTP.

What they like is written here and in no recipe: an answer that ends, repeats no phrase, takes up the words of its
prompt and says enough, up to forty words. Each rater has their own noise, so that two agree on about three of four
pairs, as people do.
"""

import asyncio
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from http import HTTPStatus
from math import inf, log
from pathlib import Path
from random import Random
from secrets import token_hex
from time import monotonic, sleep

from benchmarks.rating import Client, retry, sign_in
from towpath.store import people, rating_settings
from towpath.store.rating_settings import RatingSettings
from towpath.store.store import Store
from towpath.web.passwords import Hasher

ENOUGH = 40
NOISE = 0.35
"""Scale of the logistic noise of one reading."""
TIE = 0.05
SHORT_WORD = 3
"""Letters of words that carry no topic."""
START_SECONDS = 60.0


class PageText(HTMLParser):
    """The prompt and the answers of a task as the page shows them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.prompt = ""
        self.answers: list[str] = []
        self._depth = 0
        self._in_prompt = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        if tag not in ("div", "p"):
            return
        if self._depth:
            self._depth += 1
        elif "data-text" in names:
            self.answers.append("")
            self._depth = 1
        elif "last-turn" in (names.get("class") or ""):
            self._in_prompt = True
            self._depth = 1

    def handle_endtag(self, tag: str) -> None:
        if self._depth and tag in ("div", "p"):
            self._depth -= 1
            self._in_prompt = self._in_prompt and self._depth > 0

    def handle_data(self, data: str) -> None:
        if not self._depth:
            return
        if self._in_prompt:
            self.prompt += data
        else:
            self.answers[-1] += data


def quality(prompt: str, answer: str) -> float:
    """What a simulated person thinks of an answer, before noise."""
    words = re.findall(r"\w+", answer.lower())
    if not words:
        return -1.0
    phrases = list(zip(words, words[1:], words[2:], strict=False))
    repeated = 1 - len(set(phrases)) / len(phrases) if phrases else 0.0
    topic = {word for word in re.findall(r"\w+", prompt.lower()) if len(word) > SHORT_WORD}
    on_topic = len(topic & set(words)) / len(topic) if topic else 0.0
    ends = answer.rstrip()[-1:] in ".!?)\"'`"
    return 0.6 * ends + 0.4 * min(len(words), ENOUGH) / ENOUGH + 0.5 * on_topic - 1.5 * repeated


def prefer(html: str, rng: Random) -> str:
    """The side that a rater chooses in this reading."""
    page = PageText(html)
    left, right = (quality(page.prompt, answer) for answer in page.answers)
    uniform = rng.uniform(1e-9, 1 - 1e-9)
    difference = left - right + NOISE * log(uniform / (1 - uniform))
    if abs(difference) < TIE:
        return "tie"
    return "left" if difference > 0 else "right"


def rate_everything(run: Path, ledger: str | Path, raters: int = 4, seed: int = 0) -> int:
    """Serve the run, and rate until no rater gets another pair; the number of verdicts."""
    names = [f"simulated-{i}" for i in range(1, raters + 1)]
    with Store.open(ledger) as store, serve(run) as port:
        store.submit_write(rating_settings.save, RatingSettings(gold_share=0.0, min_view=0.0)).result()
        hashed = Hasher().hash("a password of the simulation")
        known = {account.name: account for account in store.read(people.list_accounts)}
        accounts = [known.get(n) or store.submit_write(people.add_account, n, "rater", hashed).result() for n in names]
        connections = [sign_in(store, account, port) for account in accounts]
        return asyncio.run(_everyone(connections, seed))


@contextmanager
def serve(run: Path) -> Iterator[int]:
    """`towpath serve --team` of a run, until the block ends; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command = [sys.executable, "-m", "towpath", "serve", str(run), "--team", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        begin = monotonic()
        while not _answers(port):
            if server.poll() is not None or monotonic() - begin > START_SECONDS:
                raise SystemExit(f"the server of {run} did not start")
            sleep(0.2)
        yield port
    finally:
        server.terminate()
        server.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


async def _everyone(connections: list[Client], seed: int) -> int:
    return sum(await asyncio.gather(*(_rate(client, Random(f"{seed}/{i}")) for i, client in enumerate(connections))))


async def _rate(client: Client, rng: Random) -> int:
    """Rate until there is nothing left; the number of verdicts."""
    count = 0
    while True:
        _, task = await retry(lambda: client.ask("GET", "/rate/next"), inf)
        if not task["comparison"]:
            return count
        body = {"key": token_hex(16), "comparison": task["comparison"], "side": prefer(task["html"], rng)}
        status, reply = await retry(lambda body=body: client.ask("POST", "/rate/judge", body), inf)
        if status != HTTPStatus.OK:
            raise SystemExit(f"a verdict was answered with {status}: {reply}")
        count += 1
