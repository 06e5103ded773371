"""A PostgreSQL server for tests and benchmarks, in its own folder and on its own port."""

import os
import random
import shutil
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from uuid import uuid4


class Postgres:
    """A temporary PostgreSQL server on a free port; if the user is root, it runs as `postgres`. Without `fsync` it
    survives the death of its processes, but not of the machine."""

    def __init__(self, fsync: bool = True) -> None:
        if not self.installed():
            raise SystemExit("Debian's postgresql is not installed")
        self._user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        self._folder = Path(tempfile.mkdtemp(prefix="towpath-postgres-"))
        self._binaries = self.installed()[-1].parent
        port = free_port()
        if self._user:
            shutil.chown(self._folder, "postgres", "postgres")
        self._options = f"-p {port} -k {self._folder} -c listen_addresses=127.0.0.1 -c max_connections=200"
        if not fsync:
            self._options += " -c fsync=off"
        self.url = f"postgresql+psycopg://towpath@127.0.0.1:{port}"
        self._command("initdb", "-U", "towpath", "-A", "trust", "-E", "UTF8", "--no-sync")

    @staticmethod
    def installed() -> list[Path]:
        """The initdb programs of Debian's PostgreSQL versions, the newest last."""
        return sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))

    def __enter__(self) -> "Postgres":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        self._command("pg_ctl", "-w", "-l", self._folder / "log", "-o", self._options, "start")

    def stop(self, mode: str = "immediate") -> None:
        self._command("pg_ctl", "-m", mode, "stop")

    def _command(self, name: str, *words: str | Path) -> None:
        command = [*self._user, self._binaries / name, "-D", self._folder / "data", *words]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, cwd="/")


def new_database(server: str, template: str = "template1") -> str:
    """Create an empty database, or a copy of another one of the server, and return its URL."""
    import psycopg

    name = f"t{uuid4().hex[:12]}"
    with psycopg.connect(f"{server.replace('+psycopg', '')}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    return f"{server}/{name}"


def free_port() -> int:
    """A free port below the ephemeral range, so that it stays free while a server is restarted."""
    while True:
        port = random.SystemRandom().randrange(15_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
