"""The rating page under load: `python -m benchmarks.rating load|doubles|kills|figures [--json FILE]`.

The server is the real one in a process of its own; the clients speak HTTP over sockets from this process, on the
same machine and the same cores. `load` lets 200 raters think and submit for a minute; `doubles` sends every submit
twice at once; `kills` ends the server with SIGKILL `--kills` times meanwhile; `figures` fills a ledger with a
million prompts (`--fill` does only that) and times the next pair and the figures page.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from math import inf
from pathlib import Path
from time import perf_counter, time
from typing import Any

from sqlalchemy import func, select, text

from benchmarks.postgres import Postgres, new_database
from towpath.records import Comparison, Completion, Prompt
from towpath.store import ledger, people, rating_settings, schema, task_queue
from towpath.store.rating_settings import RatingSettings
from towpath.store.store import Store
from towpath.web.passwords import Hasher
from towpath.web.server import create_server, open_socket, run_until_stopped

ROOT = Path(__file__).parent.parent
WORDS = re.findall(
    r"\w+",
    "the lock keeps water level so that a boat may pass from one reach of the canal to the next without haste or harm",
)
BLOCK = 20_000
DOMAINS = 20
START = 1_700_000_000.0


@dataclass
class Client:
    """One rater's connection: HTTP/1.1 by hand, for a client that costs little."""

    port: int
    cookie: str
    timings: list[float] = field(default_factory=list)
    _streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """One request and its answer; OSError or EOFError where the connection fails."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        payload = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nOrigin: "
            f"http://127.0.0.1:{self.port}\r\nAccept: application/json\r\n"
        )
        head += f"Cookie: towpath-{self.port}={self.cookie}\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(payload)}\r\n\r\n"
        try:
            writer.write(head.encode() + payload)
            await writer.drain()
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            told = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
            answer = await reader.readexactly(int(told["content-length"]))
        except (OSError, EOFError, asyncio.IncompleteReadError):
            self.close()
            raise
        return int(lines[0].split(" ")[1]), json.loads(answer) if "json" in told.get("content-type", "") else answer

    def close(self) -> None:
        """Let go of the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@dataclass
class Server:
    """The server in a process of its own."""

    place: str
    port: int = 0
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start, and return when it listens; the port stays the same over restarts."""
        command = [sys.executable, "-m", "benchmarks.rating", "serve", "--place", self.place, "--port", str(self.port)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, gently or not."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait()


def serve(place: str, port: int) -> None:
    """The server's side of the benchmark: the product's own server."""
    with Store.open(place) as store, open_socket("127.0.0.1", port) as socket:
        server, _ = create_server(store, team=True)
        print(socket.getsockname()[1], flush=True)
        run_until_stopped(server, socket)


def sentence(rng: random.Random, words: int) -> str:
    """Plain words."""
    return " ".join(rng.choices(WORDS, k=words)).capitalize() + "."


def small(store: Store, pairs: int) -> None:
    """So many pairs in the queue."""
    rng = random.Random(1)
    store.add_prompts(Prompt(f"p{i}", sentence(rng, 12), domain=f"d{i % DOMAINS:02}") for i in range(pairs))
    made = (
        Completion(f"s.p{i}.{k}", f"p{i}", "sft", sentence(rng, 60), (1,), (-0.1,), "stop")
        for i in range(pairs)
        for k in range(2)
    )
    store.add_completions(made)
    store.add_comparisons(Comparison(f"s.p{i}.0", f"p{i}", f"s.p{i}.0", f"s.p{i}.1") for i in range(pairs))
    store.add_tasks(task_queue.Task(f"s.p{i}.0", f"d{i % DOMAINS:02}") for i in range(pairs))
    store.submit_write(rating_settings.save, RatingSettings(gold_share=0.0)).result()


def clients(store: Store, count: int, port: int) -> list[Client]:
    """Raters who are signed in."""
    hashed = Hasher().hash("a password of the benchmark")
    made = [store.submit_write(people.add_account, f"r{i:03}", "rater", hashed).result() for i in range(count)]
    return [signed_in(store, account, port) for account in made]


def signed_in(store: Store, account: people.Account, port: int) -> Client:
    """A rater with a session."""
    return Client(port, store.submit_write(people.start_session, account, time()).result())


async def rate(client: Client, rng: random.Random, until: float, think: float, kept: list[str]) -> None:
    """One rater: look, think, submit; a submit that fails is sent again with its key until it is acknowledged."""
    await asyncio.sleep(rng.random() * think)
    while perf_counter() < until:
        _, shown = await patiently(lambda: client.ask("GET", "/rate/next"), until)
        if shown is None or not shown["comparison"]:
            return
        await asyncio.sleep(think * (0.5 + rng.random()))
        key = rng.randbytes(16).hex()
        side = rng.choice(["left", "right", "tie"])
        body = {"key": key, "comparison": shown["comparison"], "side": side, "milliseconds": 1000 * int(think)}
        begin = perf_counter()
        status, _ = await patiently(lambda body=body: client.ask("POST", "/rate/judge", body), until + 60)
        if status == 200:
            client.timings.append(perf_counter() - begin)
            kept.append(key)
        elif status:
            raise SystemExit(f"a submit was answered with {status}")


async def patiently(ask: Callable[[], Awaitable[tuple[int, Any]]], until: float) -> tuple[int, Any]:
    """Ask again until there is an answer, as the page does."""
    while perf_counter() < until:
        try:
            status, told = await ask()
        except (OSError, EOFError):
            await asyncio.sleep(0.1)
            continue
        if status < 500 and status != 429:
            return status, told
        await asyncio.sleep(0.1)
    return 0, None


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds below which so many lie."""
    cuts = statistics.quantiles(seconds, n=1000, method="inclusive")
    named = {"p50": cuts[499], "p95": cuts[949], "p99": cuts[989], "max": max(seconds)}
    return {f"{name}_ms": round(1000 * value, 2) for name, value in named.items()}


def load(place: str, raters: int, seconds: float, think: float) -> dict[str, Any]:
    """Raters who look, think and submit; how long a submit takes to be acknowledged."""
    with Store.open(place) as store:
        small(store, int(raters * (seconds / max(think, 0.1) * 1.5 + 50)))
        server = Server(place)
        server.start()
        found = clients(store, raters, server.port)
        kept = list[str]()
    begin = perf_counter()

    async def all_of_them() -> None:
        await asyncio.gather(*(rate(c, random.Random(i), begin + seconds, think, kept) for i, c in enumerate(found)))

    asyncio.run(all_of_them())
    wall = perf_counter() - begin
    server.stop()
    timings = [t for client in found for t in client.timings]
    told = {
        "raters": raters,
        "seconds": seconds,
        "think_seconds_mean": think,
        "submits": len(timings),
        "submits_per_second": round(len(timings) / wall, 1),
    }
    return (
        told
        | {"pairs_an_hour_each": round(3600 * len(timings) / wall / raters)}
        | percentiles(timings)
        | verified(place, kept)
    )


def verified(place: str, kept: list[str]) -> dict[str, int]:
    """What was acknowledged against what is in the ledger."""
    with Store.open(place) as store:
        there = Counter(store.read(lambda c: c.scalars(select(schema.judgements.c.key)).all()))
        doubled = store.read(_doubled)
        if (
            not place.startswith("postgresql")
            and store.read(lambda c: c.execute(text("PRAGMA integrity_check")).scalar()) != "ok"
        ):
            raise SystemExit("the file is damaged")
    return {"acknowledged": len(kept), "lost": sum(key not in there for key in kept), "doubled": doubled}


def _doubled(connection: Any) -> int:
    table = schema.judgements
    twice = (
        select(table.c.comparison, table.c.rater)
        .group_by(table.c.comparison, table.c.rater)
        .having(func.count() > 1)
        .subquery()
    )
    return connection.scalar(select(func.count()).select_from(twice)) or 0


def doubles(place: str, submits: int, raters: int = 100) -> dict[str, Any]:
    """Every submit sent twice at once, over two connections."""
    with Store.open(place) as store:
        small(store, submits)
        house = store.read(rating_settings.read)

        def seat(connection: Any) -> list[task_queue.Lease]:
            return [
                task_queue.lease_task(connection, f"r{i % raters:03}", f"s.p{i}.0", time(), house)
                for i in range(submits)
            ]

        seats = store.submit_write(seat).result()
        server = Server(place)
        server.start()
        ones = clients(store, raters, server.port)
    twos = [Client(client.port, client.cookie) for client in ones]
    answers: list[tuple[int, Any]] = []

    async def send(number: int) -> None:
        for i in range(number, submits, raters):
            body = {"key": f"double-{i:08}", "comparison": seats[i].comparison, "side": "left"}
            both = (ones[number], twos[number])
            answers.extend(
                await asyncio.gather(*(patiently(partial(one.ask, "POST", "/rate/judge", body), inf) for one in both))
            )

    async def everyone() -> None:
        await asyncio.gather(*(send(number) for number in range(raters)))

    begin = perf_counter()
    asyncio.run(everyone())
    wall = perf_counter() - begin
    server.stop()
    again = sum(bool(told["again"]) for status, told in answers if status == 200)
    told = {
        "submits": submits,
        "sent": len(answers),
        "answered_200": sum(status == 200 for status, _ in answers),
        "answered_as_told_before": again,
    }
    return told | {"seconds": round(wall, 1)} | verified(place, [f"double-{i:08}" for i in range(submits)])


def kills(place: str, times: int, raters: int, think: float) -> dict[str, Any]:
    """The server killed and started again under load; the clients go on as the page does."""
    rng = random.Random(3)
    waits = [1.5 + 2 * rng.random() for _ in range(times)]
    with Store.open(place) as store:
        small(store, int(raters * (5 * times + 10) / think) + 1000)
        server = Server(place)
        server.start()
        found = clients(store, raters, server.port)
        kept = list[str]()
    counted: list[int] = []

    async def everyone() -> None:
        ended = asyncio.Event()
        raters_ = [
            asyncio.create_task(rate_until(ended, c, random.Random(i), think, kept)) for i, c in enumerate(found)
        ]
        for wait in waits:
            await asyncio.sleep(wait)
            await asyncio.to_thread(server.stop, signal.SIGKILL)
            counted.append(len(kept))
            await asyncio.to_thread(server.start)
        await asyncio.sleep(1.5)
        ended.set()
        await asyncio.gather(*raters_)

    asyncio.run(everyone())
    server.stop()
    return {
        "kills": times,
        "raters": raters,
        "think_seconds_mean": think,
        "acknowledged_at_some_kills": counted[:: max(1, times // 20)],
    } | verified(place, kept)


async def rate_until(ended: asyncio.Event, client: Client, rng: random.Random, think: float, kept: list[str]) -> None:
    """Rate in short stretches until it is over."""
    while not ended.is_set():
        await rate(client, rng, perf_counter() + 2 * think, think, kept)


def fill(place: str, prompts: int) -> None:
    """A ledger with so many prompts, three times as many completions, as many judgements, and a quarter as many
    pairs that wait."""
    with Store.open(place) as store:
        store.submit_write(rating_settings.save, RatingSettings(gold_share=0.05)).result()
        for table, rows in _bulk(prompts):
            begin = perf_counter()
            count = 0
            with ledger.transaction(store._engine) as connection:
                while block := list(islice(rows, BLOCK)):
                    connection.execute(table.insert(), block)
                    count += len(block)
            print(f"{table.name}: {count} rows in {perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
        store.set_gold(task_queue.Gold(f"s.p{i}.0", "a") for i in range(min(500, prompts)))


def _bulk(prompts: int) -> Iterator[tuple[Any, Iterator[dict[str, Any]]]]:
    rng = random.Random(2)
    waiting = prompts // 4
    raters = [f"r{i:03}" for i in range(200)]
    long = [sentence(rng, 50) for _ in range(200)]
    short = [sentence(rng, 12) for _ in range(200)]
    everyone = range(prompts)
    yield (
        schema.prompts,
        (
            {
                "id": f"p{i}",
                "prompt": f"{short[i % 200]} {i}",
                "domain": f"d{i % DOMAINS:02}",
                "difficulty": "medium",
                "about": [],
                "harmful": 0,
                "split": "train",
                "twin": "",
            }
            for i in everyone
        ),
    )
    yield (
        schema.completions,
        (
            {
                "id": f"s.p{i}.{k}",
                "prompt_id": f"p{i}",
                "source": "sft",
                "text": f"{long[(i + k) % 200]} {i}",
                "token_ids": [],
                "logprobs": [],
                "finish": "stop",
                "decoding": {},
            }
            for i in everyone
            for k in range(3)
        ),
    )
    pairs = [(i, 0) for i in everyone] + [(i, 1) for i in range(waiting)]
    yield (
        schema.comparisons,
        (
            {"id": f"s.p{i}.{k}", "prompt_id": f"p{i}", "a": f"s.p{i}.{k}", "b": f"s.p{i}.{k + 1}", "round": 1}
            for i, k in pairs
        ),
    )
    yield (
        schema.judgements,
        (
            {
                "key": f"key-{i}",
                "comparison": f"s.p{i}.0",
                "rater": raters[i * 7 % 200],
                "kind": "person",
                "choice": "ab"[i % 2],
                "shown": "ab",
                "strength": 1,
                "milliseconds": 18_000,
                "round": 1,
                "guideline": "1",
                "at": "2026-01-01T00:00:00+00:00",
            }
            for i in everyone
        ),
    )
    yield (
        schema.tasks,
        (
            {
                "comparison": f"s.p{i}.{k}",
                "domain": f"d{i % DOMAINS:02}",
                "reason": "random",
                "propensity": 1.0,
                "seats": 1,
                "taken": 1 - k,
                "judged": 1 - k,
                "rank": 0,
                "lane": k,
                "state": "open",
                "group_id": None,
            }
            for i, k in pairs
        ),
    )
    yield (
        schema.seats,
        (
            {
                "comparison": f"s.p{i}.0",
                "rater": raters[i * 7 % 200],
                "state": "judged",
                "until": 0.0,
                "shown": "ab",
                "at": START + i,
                "gold": 0,
            }
            for i in everyone
        ),
    )
    ours = Counter(i % DOMAINS for i in everyone)
    left = Counter(i % DOMAINS for i in range(waiting))
    yield (
        schema.queues,
        (
            {"domain": f"d{d:02}", "tasks": ours[d] + left[d], "waiting": left[d], "done": ours[d], "paused": 0}
            for d in range(DOMAINS)
        ),
    )
    judged = Counter(raters[i * 7 % 200] for i in everyone)
    yield (
        schema.tallies,
        (
            {
                "rater": name,
                "kind": "person",
                "judged": count,
                "retracted": 0,
                "milliseconds": 18_000 * count,
                "cost": 0.0,
            }
            for name, count in judged.items()
        ),
    )


def figures(place: str, prompts: int, times: int = 300) -> dict[str, Any]:
    """The next pair and the figures page over HTTP, on a full ledger."""
    with Store.open(place) as store:
        if not store.read(lambda c: c.scalar(select(schema.prompts.c.id).limit(1))):
            fill(place, prompts)
        server = Server(place)
        server.start()
        if store.read(people.get_account, "r000") is None:
            found = clients(store, 10, server.port)
            store.submit_write(people.change_account, "r000", "owner").result()
        found = [signed_in(store, account, server.port) for account in store.read(people.list_accounts)]
        counts = store.counts()

    async def measure() -> tuple[list[float], list[float], list[float]]:
        pages = list[float]()
        nexts = list[float]()
        submits = list[float]()
        for _ in range(20):
            pages.append(await timed(found[0], "GET", "/owner"))
        for i in range(times):
            client = found[1 + i % (len(found) - 1)]
            nexts.append(await timed(client, "GET", "/rate/next"))
            _, shown = await client.ask("GET", "/rate/next")
            submits.append(
                await timed(
                    client,
                    "POST",
                    "/rate/judge",
                    {"key": os.urandom(16).hex(), "comparison": shown["comparison"], "side": "left"},
                )
            )
        return pages, nexts, submits

    pages, nexts, submits = asyncio.run(measure())
    server.stop()
    told: dict[str, Any] = {"rows": counts, "times": times}
    told["next_pair"] = percentiles(nexts)
    told["submit"] = percentiles(submits)
    return told | {"figures_page": percentiles(pages), "figures_page_first_ms": round(1000 * pages[0], 1)}


async def timed(client: Client, method: str, path: str, body: dict[str, Any] | None = None) -> float:
    """Seconds of one request."""
    begin = perf_counter()
    status, _ = await client.ask(method, path, body)
    if status != 200:
        raise SystemExit(f"{path}: {status}")
    return perf_counter() - begin


def main() -> None:
    """Measure one thing, print it, and keep it under its name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["load", "doubles", "kills", "figures", "serve"], nargs="?", default="figures")
    parser.add_argument(
        "--place",
        default="",
        help="a path, the URL of an empty PostgreSQL database, or `postgresql` for a server of its own; a new file "
        "where left out",
    )
    parser.add_argument("--json", type=Path, help="a file in which the result is kept under its name")
    parser.add_argument("--name", default="", help="the name it is kept under")
    parser.add_argument("--fill", action="store_true", help="fill the ledger and stop")
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--raters", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--think", type=float, default=2.0, help="seconds that a rater thinks, on average")
    parser.add_argument("--submits", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=10, help="how often the server is killed")
    parser.add_argument("--port", type=int, default=0)
    asked = parser.parse_args()
    if asked.what == "serve":
        return serve(asked.place, asked.port)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        own = running.enter_context(Postgres()) if asked.place == "postgresql" else None
        place = new_database(own.url) if own else asked.place or str(Path(folder) / "towpath.db")
        if asked.fill:
            return fill(place, asked.prompts)
        measured = {
            "load": lambda: load(place, asked.raters, asked.seconds, asked.think),
            "doubles": lambda: doubles(place, asked.submits),
            "kills": lambda: kills(place, asked.kills, asked.raters, asked.think),
            "figures": lambda: figures(place, asked.prompts),
        }[asked.what]()
    told = {"database": "postgresql" if "://" in place else "sqlite", "cores": os.cpu_count(), **measured}
    print(json.dumps(told, indent=1))
    if asked.json:
        known = json.loads(asked.json.read_text()) if asked.json.is_file() else {}
        asked.json.write_text(json.dumps(known | {asked.name or asked.what: told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
