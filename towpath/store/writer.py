"""The single writer thread: jobs that wait together are committed together, and each is answered after the commit."""

from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any

from sqlalchemy import Connection, Engine

from towpath.errors import ResourceError
from towpath.store import ledger
from towpath.store.publish import fault_point

MAX_BATCH = 256  # jobs in one transaction

Work = Callable[[Connection], Any]
Job = tuple[Work, "Future[Any]"]


class Writer:
    """Runs jobs in order; a failed job leaves no trace and does not affect others of its batch."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._closing = Lock()
        self._closed = False
        self._thread = Thread(target=self._run, name="towpath-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> "Future[Any]":
        """Submit a job; its future resolves once the result is on disk."""
        future: Future[Any] = Future()
        with self._closing:
            if self._closed:
                raise ResourceError(
                    "the ledger is closed", "judgements are saved while the server runs", "start it again"
                )
            self._jobs.put((work, future))
        return future

    def close(self) -> None:
        """Finish pending jobs, then stop."""
        with self._closing:
            self._closed = True
            self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        running = True
        while running:
            batch = self._next_batch()
            running = None not in batch
            jobs = [job for job in batch if job is not None and job[1].set_running_or_notify_cancel()]
            if jobs:
                self._commit(jobs)

    def _next_batch(self) -> list[Job | None]:
        """Return the next job and all others that wait."""
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
                outcomes = [_run_job(self._engine, connection, work) for work, _ in jobs]
                fault_point("commit")
        except BaseException as error:  # thread boundary: nothing was committed, and every caller is told
            for _, future in jobs:
                future.set_exception(error)
            return
        for (_, future), (result, error) in zip(jobs, outcomes, strict=True):
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)


def _run_job(engine: Engine, connection: Connection, work: Work) -> tuple[Any, Exception | None]:
    """Return a job's result or exception; the writes of a failed job are rolled back."""
    try:
        with ledger.translate_errors(engine), connection.begin_nested():
            return work(connection), None
    except Exception as error:  # job boundary: its caller gets it
        if connection.invalidated:  # the connection and the writes of earlier jobs in the batch are lost
            raise
        return None, error
