"""The rating page under load: `python -m benchmarks.rating load|doubles|kills|figures [--json FILE]`.

The product's server runs in its own process; the clients send HTTP requests from this process, on the same machine and
cores. `load` simulates 200 raters for a minute; `doubles` sends every submission twice at once; `kills` stops the
server with SIGKILL `--kills` times under load; `figures` fills a ledger with a million prompts (`--fill` does only
that) and times the next pair and the owner's figures page.
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
    """The connection of one rater: a minimal HTTP/1.1 client with little overhead."""

    port: int
    cookie: str
    timings: list[float] = field(default_factory=list)
    _streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Send one request and return status and body; OSError or EOFError if the connection fails."""
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
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
            answer = await reader.readexactly(int(headers["content-length"]))
        except (OSError, EOFError, asyncio.IncompleteReadError):
            self.close()
            raise
        return int(lines[0].split(" ")[1]), json.loads(answer) if "json" in headers.get("content-type", "") else answer

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@dataclass
class Server:
    """The server in its own process."""

    location: str
    port: int = 0
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the server and return when it listens; the port stays the same over restarts."""
        command = [
            sys.executable,
            "-m",
            "benchmarks.rating",
            "serve",
            "--location",
            self.location,
            "--port",
            str(self.port),
        ]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop the server with a signal."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait()


def serve(location: str, port: int) -> None:
    """Run the product's server."""
    with Store.open(location) as store, open_socket("127.0.0.1", port) as socket:
        server, _ = create_server(store, team=True)
        print(socket.getsockname()[1], flush=True)
        run_until_stopped(server, socket)


def sentence(rng: random.Random, words: int) -> str:
    """A sentence of random words."""
    return " ".join(rng.choices(WORDS, k=words)).capitalize() + "."


def fill_small(store: Store, pairs: int) -> None:
    """Fill the queue with `pairs` pairs."""
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
    """Clients of signed-in raters."""
    hashed = Hasher().hash("a password of the benchmark")
    made = [store.submit_write(people.add_account, f"r{i:03}", "rater", hashed).result() for i in range(count)]
    return [sign_in(store, account, port) for account in made]


def sign_in(store: Store, account: people.Account, port: int) -> Client:
    """The client of a rater with a session."""
    return Client(port, store.submit_write(people.start_session, account, time()).result())


async def rate(client: Client, rng: random.Random, until: float, think: float, acknowledged: list[str]) -> None:
    """One rater: get a pair, wait, submit; a failed submission is repeated with its key until it is acknowledged."""
    await asyncio.sleep(rng.random() * think)
    while perf_counter() < until:
        _, task = await retry(lambda: client.ask("GET", "/rate/next"), until)
        if task is None or not task["comparison"]:
            return
        await asyncio.sleep(think * (0.5 + rng.random()))
        key = rng.randbytes(16).hex()
        side = rng.choice(["left", "right", "tie"])
        body = {"key": key, "comparison": task["comparison"], "side": side, "milliseconds": 1000 * int(think)}
        begin = perf_counter()
        status, _ = await retry(lambda body=body: client.ask("POST", "/rate/judge", body), until + 60)
        if status == 200:
            client.timings.append(perf_counter() - begin)
            acknowledged.append(key)
        elif status:
            raise SystemExit(f"a submit was answered with {status}")


async def retry(ask: Callable[[], Awaitable[tuple[int, Any]]], until: float) -> tuple[int, Any]:
    """Repeat a request until it is answered, as the page does."""
    while perf_counter() < until:
        try:
            status, reply = await ask()
        except (OSError, EOFError):
            await asyncio.sleep(0.1)
            continue
        if status < 500 and status != 429:
            return status, reply
        await asyncio.sleep(0.1)
    return 0, None


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    cuts = statistics.quantiles(seconds, n=1000, method="inclusive")
    named = {"p50": cuts[499], "p95": cuts[949], "p99": cuts[989], "max": max(seconds)}
    return {f"{name}_ms": round(1000 * value, 2) for name, value in named.items()}


def load(location: str, raters: int, seconds: float, think: float) -> dict[str, Any]:
    """Raters under load: the time until a submission is acknowledged."""
    with Store.open(location) as store:
        fill_small(store, int(raters * (seconds / max(think, 0.1) * 1.5 + 50)))
        server = Server(location)
        server.start()
        connections = clients(store, raters, server.port)
        acknowledged = list[str]()
    begin = perf_counter()

    async def all_of_them() -> None:
        await asyncio.gather(
            *(rate(c, random.Random(i), begin + seconds, think, acknowledged) for i, c in enumerate(connections))
        )

    asyncio.run(all_of_them())
    wall = perf_counter() - begin
    server.stop()
    timings = [t for client in connections for t in client.timings]
    result = {
        "raters": raters,
        "seconds": seconds,
        "think_seconds_mean": think,
        "submits": len(timings),
        "submits_per_second": round(len(timings) / wall, 1),
    }
    return (
        result
        | {"pairs_an_hour_each": round(3600 * len(timings) / wall / raters)}
        | percentiles(timings)
        | verify(location, acknowledged)
    )


def verify(location: str, acknowledged: list[str]) -> dict[str, int]:
    """Compare acknowledged submissions with the ledger."""
    with Store.open(location) as store:
        there = Counter(store.read(lambda c: c.scalars(select(schema.judgements.c.key)).all()))
        doubled = store.read(_doubled)
        if (
            not location.startswith("postgresql")
            and store.read(lambda c: c.execute(text("PRAGMA integrity_check")).scalar()) != "ok"
        ):
            raise SystemExit("the file is damaged")
    return {
        "acknowledged": len(acknowledged),
        "lost": sum(key not in there for key in acknowledged),
        "doubled": doubled,
    }


def _doubled(connection: Any) -> int:
    table = schema.judgements
    twice = (
        select(table.c.comparison, table.c.rater)
        .group_by(table.c.comparison, table.c.rater)
        .having(func.count() > 1)
        .subquery()
    )
    return connection.scalar(select(func.count()).select_from(twice)) or 0


def doubles(location: str, submits: int, raters: int = 100) -> dict[str, Any]:
    """Send every submission twice at once, over two connections."""
    with Store.open(location) as store:
        fill_small(store, submits)
        house = store.read(rating_settings.read)

        def seat(connection: Any) -> list[task_queue.Lease]:
            return [
                task_queue.lease_task(connection, f"r{i % raters:03}", f"s.p{i}.0", time(), house)
                for i in range(submits)
            ]

        seats = store.submit_write(seat).result()
        server = Server(location)
        server.start()
        ones = clients(store, raters, server.port)
    twos = [Client(client.port, client.cookie) for client in ones]
    answers: list[tuple[int, Any]] = []

    async def send(number: int) -> None:
        for i in range(number, submits, raters):
            body = {"key": f"double-{i:08}", "comparison": seats[i].comparison, "side": "left"}
            both = (ones[number], twos[number])
            answers.extend(
                await asyncio.gather(*(retry(partial(one.ask, "POST", "/rate/judge", body), inf) for one in both))
            )

    async def everyone() -> None:
        await asyncio.gather(*(send(number) for number in range(raters)))

    begin = perf_counter()
    asyncio.run(everyone())
    wall = perf_counter() - begin
    server.stop()
    again = sum(bool(result["again"]) for status, result in answers if status == 200)
    result = {
        "submits": submits,
        "sent": len(answers),
        "answered_200": sum(status == 200 for status, _ in answers),
        "answered_as_told_before": again,
    }
    return result | {"seconds": round(wall, 1)} | verify(location, [f"double-{i:08}" for i in range(submits)])


def kills(location: str, times: int, raters: int, think: float) -> dict[str, Any]:
    """Kill and restart the server under load; the clients retry as the page does."""
    rng = random.Random(3)
    waits = [1.5 + 2 * rng.random() for _ in range(times)]
    with Store.open(location) as store:
        fill_small(store, int(raters * (5 * times + 10) / think) + 1000)
        server = Server(location)
        server.start()
        connections = clients(store, raters, server.port)
        acknowledged = list[str]()
    counted: list[int] = []

    async def everyone() -> None:
        ended = asyncio.Event()
        raters_ = [
            asyncio.create_task(rate_until(ended, c, random.Random(i), think, acknowledged))
            for i, c in enumerate(connections)
        ]
        for wait in waits:
            await asyncio.sleep(wait)
            await asyncio.to_thread(server.stop, signal.SIGKILL)
            counted.append(len(acknowledged))
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
    } | verify(location, acknowledged)


async def rate_until(
    ended: asyncio.Event, client: Client, rng: random.Random, think: float, acknowledged: list[str]
) -> None:
    """Rate in short periods until `ended` is set."""
    while not ended.is_set():
        await rate(client, rng, perf_counter() + 2 * think, think, acknowledged)


def fill(location: str, prompts: int) -> None:
    """Fill a ledger: per prompt three completions and one judgement, and a waiting pair for every fourth prompt."""
    with Store.open(location) as store:
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
    judgement_counts = Counter(raters[i * 7 % 200] for i in everyone)
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
            for name, count in judgement_counts.items()
        ),
    )


def figures(location: str, prompts: int, times: int = 300) -> dict[str, Any]:
    """Time the next pair, submissions and the figures page over HTTP on a large ledger."""
    with Store.open(location) as store:
        if not store.read(lambda c: c.scalar(select(schema.prompts.c.id).limit(1))):
            fill(location, prompts)
        server = Server(location)
        server.start()
        if store.read(people.get_account, "r000") is None:
            connections = clients(store, 10, server.port)
            store.submit_write(people.change_account, "r000", "owner").result()
        connections = [sign_in(store, account, server.port) for account in store.read(people.list_accounts)]
        counts = store.counts()

    async def measure() -> tuple[list[float], list[float], list[float]]:
        pages = list[float]()
        nexts = list[float]()
        submits = list[float]()
        for _ in range(20):
            pages.append(await timed(connections[0], "GET", "/owner"))
        for i in range(times):
            client = connections[1 + i % (len(connections) - 1)]
            nexts.append(await timed(client, "GET", "/rate/next"))
            _, task = await client.ask("GET", "/rate/next")
            submits.append(
                await timed(
                    client,
                    "POST",
                    "/rate/judge",
                    {"key": os.urandom(16).hex(), "comparison": task["comparison"], "side": "left"},
                )
            )
        return pages, nexts, submits

    pages, nexts, submits = asyncio.run(measure())
    server.stop()
    result: dict[str, Any] = {"rows": counts, "times": times}
    result["next_pair"] = percentiles(nexts)
    result["submit"] = percentiles(submits)
    return result | {"figures_page": percentiles(pages), "figures_page_first_ms": round(1000 * pages[0], 1)}


async def timed(client: Client, method: str, path: str, body: dict[str, Any] | None = None) -> float:
    """The seconds of one request."""
    begin = perf_counter()
    status, _ = await client.ask(method, path, body)
    if status != 200:
        raise SystemExit(f"{path}: {status}")
    return perf_counter() - begin


def main() -> None:
    """Run one measurement, print the result, and store it under its name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["load", "doubles", "kills", "figures", "serve"], nargs="?", default="figures")
    parser.add_argument(
        "--location",
        default="",
        help="a path, the URL of an empty PostgreSQL database, or `postgresql` for a temporary server; default: a new "
        "file",
    )
    parser.add_argument("--json", type=Path, help="a file to which the result is added")
    parser.add_argument("--name", default="", help="the key of the result in that file")
    parser.add_argument("--fill", action="store_true", help="fill the ledger and stop")
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--raters", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--think", type=float, default=2.0, help="mean seconds that a rater waits before submitting")
    parser.add_argument("--submits", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=10, help="how often the server is killed")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    if options.what == "serve":
        return serve(options.location, options.port)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        own = running.enter_context(Postgres()) if options.location == "postgresql" else None
        location = new_database(own.url) if own else options.location or str(Path(folder) / "towpath.db")
        if options.fill:
            return fill(location, options.prompts)
        measured = {
            "load": lambda: load(location, options.raters, options.seconds, options.think),
            "doubles": lambda: doubles(location, options.submits),
            "kills": lambda: kills(location, options.kills, options.raters, options.think),
            "figures": lambda: figures(location, options.prompts),
        }[options.what]()
    result = {"database": "postgresql" if "://" in location else "sqlite", "cores": os.cpu_count(), **measured}
    print(json.dumps(result, indent=1))
    if options.json:
        known = json.loads(options.json.read_text()) if options.json.is_file() else {}
        options.json.write_text(json.dumps(known | {options.name or options.what: result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
