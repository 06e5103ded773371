"""One thread that writes: what waits together is committed together, and everyone is answered after the commit."""

from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any

from sqlalchemy import Connection, Engine

from towpath.errors import ResourceError
from towpath.store import ledger
from towpath.store.publish import fault_point

MAX_BATCH = 256  # jobs in one transaction at most

Work = Callable[[Connection], Any]
Job = tuple[Work, "Future[Any]"]


class Writer:
    """Takes jobs in the order they come. A job that fails leaves nothing behind and does not touch its neighbours."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._closing = Lock()
        self._closed = False
        self._thread = Thread(target=self._run, name="towpath-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> "Future[Any]":
        """Have a job done; its future holds the result once that is on disk."""
        future: Future[Any] = Future()
        with self._closing:
            if self._closed:
                raise ResourceError(
                    "the ledger is closed", "what is said is written while the server runs", "start it again"
                )
            self._jobs.put((work, future))
        return future

    def close(self) -> None:
        """Finish what waits, then stop."""
        with self._closing:
            self._closed = True
            self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        going = True
        while going:
            jobs = self._waiting()
            going = None not in jobs
            asked = [job for job in jobs if job is not None and job[1].set_running_or_notify_cancel()]
            if asked:
                self._commit(asked)

    def _waiting(self) -> list[Job | None]:
        """The next job, and with it all that have come meanwhile."""
        jobs = [self._jobs.get()]
        while len(jobs) < MAX_BATCH and jobs[-1] is not None:
            try:
                jobs.append(self._jobs.get_nowait())
            except Empty:
                break
        return jobs

    def _commit(self, jobs: list[Job]) -> None:
        try:
            with ledger.translate_errors(self._engine), ledger.transaction(self._engine) as connection:
                told = [_run_job(self._engine, connection, work) for work, _ in jobs]
                fault_point("commit")
        except BaseException as error:  # the thread's boundary: nothing was kept, and everyone hears it
            for _, future in jobs:
                future.set_exception(error)
            return
        for (_, future), (result, error) in zip(jobs, told, strict=True):
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)


def _run_job(engine: Engine, connection: Connection, work: Work) -> tuple[Any, Exception | None]:
    """What a job returned or raised; when it raised, all it wrote is undone."""
    try:
        with ledger.translate_errors(engine), connection.begin_nested():
            return work(connection), None
    except Exception as error:  # the job's boundary: its asker hears it
        if connection.invalidated:  # the connection was lost, and with it what the jobs before this one wrote
            raise
        return None, error
