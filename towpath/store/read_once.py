"""A ledger of which each reading is made once, for several plans of the same state of it."""

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from towpath.store.store import Store

P = ParamSpec("P")
T = TypeVar("T")


class ReadOnce(Store):
    """Keeps what reading functions return; the store that it reads from is closed by its owner."""

    def __init__(self, store: Store) -> None:
        super().__init__(store._engine)
        self._results: dict[Any, Any] = {}

    def read(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a reading function with these arguments, as it was the first time."""
        key = (work, args, tuple(sorted(kwargs.items())))
        if key not in self._results:
            self._results[key] = super().read(work, *args, **kwargs)
        return self._results[key]
