"""What tests share: a real tiny model, made on the spot; a real PostgreSQL, where Debian's is installed."""

import fcntl
import gc
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from time import sleep
from typing import Any

import pytest
import torch
from argon2 import PasswordHasher
from command import SETTINGS, towpath

from benchmarks.postgres import Postgres, new_database
from towpath.store.store import Store
from towpath.web import passwords

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")


LONG = (
    "test_runs.py",
    "test_algorithms_run.py",
    "test_other_models_run.py",
    "test_interrupt.py",
    "test_artefacts.py",
    "test_api_fuzz.py",
)
"""Files of whole runs, begun first: of two workers none is left alone with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def cheap_password_hashes() -> Iterator[None]:
    """Argon2 at its least cost: the tests sign in hundreds of times. tests/test_web.py checks the real cost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "PasswordHasher", partial(PasswordHasher, time_cost=1, memory_cost=8, parallelism=1))
        yield


@pytest.fixture(scope="session")
def tiny_folder() -> str:
    from towpath.models import base

    return base.find("tiny")


@pytest.fixture
def tiny(tiny_folder: str):
    from towpath.models import base

    return base.load(tiny_folder, torch.float32, "grouped")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny recipe, in a path with spaces, made once for all workers; tests change copies."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    run = root / "a finished" / "run with spaces"
    with (root / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not run.parent.exists():
            partial = root / "unfinished" / "run"
            assert towpath("new", partial, "--recipe", "tiny").returncode == 0
            done = towpath("run", partial, *SETTINGS)
            assert done.returncode == 0, done.stderr
            run.parent.mkdir()
            partial.rename(run)
    return run


@pytest.fixture(params=["compiled", "plain"])
def by_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either implementation of what lies between the products."""
    from towpath.models.cpu import build, kernels, plain

    if request.param == "plain":
        monkeypatch.setattr(kernels, "dispatch", lambda _x: plain)
    elif build.library() is None:
        pytest.skip(build.refusal())


@pytest.fixture(scope="session")
def chat(tiny_folder: str):
    from towpath.data.chat import Chat
    from towpath.models import base

    return Chat(base.load_tokenizer(tiny_folder))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL server, less the database's name."""
    with running_postgres() as server:
        yield server.url


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of its own; without Debian's package the tests that ask for it are skipped."""
    if not Postgres.installed():
        pytest.skip("Debian's postgresql is not installed")
    with Postgres(fsync=False) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> str:
    """The name of a database with the ledger's tables, which tests copy: migrating each anew takes longer."""
    url = new_database(postgres_server)
    with Store.open(url):
        pass
    return url.rpartition("/")[2]


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a ledger may lie: a file with an odd name, or a database."""
    if request.param == "sqlite":
        return tmp_path / "led ger%?.db"
    template = request.getfixturevalue("postgres_template")
    return new_database(request.getfixturevalue("postgres_server"), template)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_location(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a ledger without tables may lie, for tests of migrations."""
    if request.param == "sqlite":
        return tmp_path / "led ger%?.db"
    return new_database(request.getfixturevalue("postgres_server"))


@contextmanager
def running(store: Any, team: bool, network: Any = None) -> Iterator[tuple[str, Any]]:
    """The real server of a store in a thread: where it is, and its auth."""
    from towpath.web.server import create_server, open_socket

    server, auth = create_server(store, team, network=network)
    with open_socket("127.0.0.1", 0) as listener:
        thread = Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            sleep(0.01)
        scheme = "https" if network and network.certificate else "http"
        yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", auth
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium; without one the tests that ask for it are skipped."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def axe(request) -> str:
    """The source of axe-core, fetched once by npm."""
    if shutil.which("npm") is None:
        pytest.skip("npm, which fetches axe-core, is not installed")
    folder = Path(request.config.cache.mkdir("axe"))
    if not list(folder.glob("axe-core-4*.tgz")):
        done = subprocess.run(
            ["npm", "pack", "axe-core@4", "--silent"], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"npm could not fetch axe-core: {done.stderr.strip()[-200:]}")
    with tarfile.open(max(folder.glob("axe-core-4*.tgz"))) as packed:
        return packed.extractfile("package/axe.min.js").read().decode()


def serious(page, axe: str) -> list[str]:
    """What axe-core finds that is serious or critical."""
    page.evaluate(axe)
    violations = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    bad = [v for v in violations if v["impact"] in ("serious", "critical")]
    return [f"{page.url}: {v['id']}: {json.dumps([node['html'][:120] for node in v['nodes'][:3]])}" for v in bad]


def pytest_collection_finish() -> None:
    """Imported modules stay: without this every full garbage collection walks two million of their objects."""
    gc.collect()
    gc.freeze()
