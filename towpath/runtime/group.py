"""Runtime of several worker processes: the verbs of the contract, each on a share of the rows.

Weights are replicated; gradients and the sums of closed-form heads are added over all workers. What a worker keeps of
a row, such as states of frozen layers, stays with it, and the row is computed there from then on.

B rows, T answer tokens, N rows of features, F features of a value head.
"""

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from towpath.algos.contract import Metrics, Outputs, add
from towpath.data.batch import Batch
from towpath.data.chat import Chat
from towpath.errors import TrainingError
from towpath.planning.memory import SHARE_OF_GPU
from towpath.progress import print_note
from towpath.recipe import Model
from towpath.runtime import passes, sharding
from towpath.runtime.contract import Handle, Loss, Needs, OptimizerConfig, RoleSpec, Snapshot
from towpath.runtime.shares import deal_rows, rows_of_groups
from towpath.runtime.worker_states import WorkerState
from towpath.runtime.workers import Workers

CHECK_STEPS = 50
"""Steps between two comparisons of the workers' weights."""


class SharedHandle(Handle):
    """Something that workers keep for rows: for each row its worker and its number there."""

    __slots__ = ("numbers", "row_index_B", "row_rank_B")

    def __init__(self, numbers: dict[int, int], row_rank_B: np.ndarray, row_index_B: np.ndarray) -> None:
        self.numbers = numbers
        """The worker's own number of the handle, by rank."""
        self.row_rank_B = row_rank_B
        self.row_index_B = row_index_B


class Group:
    """`Local` in each worker, and this process as their controller."""

    def __init__(
        self,
        workers: Workers,
        model: Model,
        pad: int,
        dtype: torch.dtype,
        packing: bool = True,
        training: bool = True,
        shard: Literal["auto", "replicate", "fsdp"] = "replicate",
        samplers: "Group | None" = None,
    ) -> None:
        self.workers = workers
        self.samplers = samplers
        """Workers that only sample; None where those that train do."""
        self.specs: dict[str, RoleSpec] = {}
        """Of the roles that are open."""
        self._shard = shard
        self._sharded = False
        self._launched = False
        self._number = _next_number()
        self._free: dict[int, list[int]] = {rank: [] for rank in range(workers.count)}
        """Handles without a reference in this process, by rank."""
        self._steps = 0
        self._model = model
        self._settings = {
            "pad": pad,
            "packing": packing,
            "training": training,
            "dtype": str(dtype).removeprefix("torch."),
            "path": [entry for entry in sys.path if entry],
        }
        weakref.finalize(self, workers.drop, self._number).atexit = False

    def _launch(self, roles: Mapping[str, RoleSpec]) -> None:
        """Make the workers' runtimes, once it is known what they must hold."""
        self._launched = True
        self._sharded = self._shard == "fsdp"
        if self._shard == "auto":
            room = min(self.workers.ask("capacity", [{}] * self.workers.count))
            needed = sharding.bytes_on_a_gpu(roles)
            self._sharded = needed > SHARE_OF_GPU * room
            if self._sharded:
                print_note(
                    f"weights take {needed / 2**30:.0f} GiB of {room / 2**30:.0f} GiB a GPU: they are divided over "
                    f"{self.workers.count} workers"
                )
        shares = self.workers.device_shares()
        by_share = {
            share: {
                "runtime": self._number,
                "model": self._model,
                "settings": {**self._settings, "sharded": self._sharded, "device_share": share},
            }
            for share in set(shares)
        }
        self.workers.ask("launch", [by_share[share] for share in shares])

    # Asking workers

    def _ask(
        self,
        method: str,
        arguments: Sequence[Mapping[str, Any] | None],
        count: Callable[[int], None] = lambda units: None,
    ) -> list[Any]:
        """A method on each worker that has arguments."""
        messages: list[dict[str, Any] | None] = []
        for rank, own in enumerate(arguments):
            if own is None:
                messages.append(None)
                continue
            free, self._free[rank] = self._free[rank], []
            messages.append({"runtime": self._number, "method": method, "arguments": own, "free": free})
        return self.workers.ask("call", messages, count)

    def _all(self, method: str, **arguments: Any) -> list[Any]:
        return self._ask(method, [arguments] * self.workers.count)

    def _first(self, method: str, **arguments: Any) -> Any:
        return self._ask(method, [arguments, *[None] * (self.workers.count - 1)])[0]

    def _require_launched(self) -> None:
        """Make the workers' runtimes, if functions are called before any role is open."""
        if not self._launched:
            self._launch({})

    def run(
        self, function: str, arguments: Sequence[Mapping[str, Any]], count: Callable[[int], None] = lambda units: None
    ) -> list[Any]:
        """`package.module:function` with each of the arguments, on whichever worker is idle; results in order."""
        self._require_launched()
        messages = [{"runtime": self._number, "function": function, "arguments": own} for own in arguments]
        results: list[Any] = [None] * len(messages)
        for number, result in self.workers.ask_idle("run", messages, count):
            results[number] = result
        return results

    def run_everywhere(self, function: str, **arguments: Any) -> list[Any]:
        """`package.module:function` once on each worker."""
        self._require_launched()
        message = {"runtime": self._number, "function": function, "arguments": arguments}
        return self.workers.ask("run", [message] * self.workers.count)

    # Rows and their workers

    def _split(self, batch: Batch, handle: SharedHandle | None = None) -> list[tuple[np.ndarray, Batch] | None]:
        """For each worker the numbers of its rows and the batch of them; None for a worker without rows, if it is not
        needed. With a `handle` only those that have it are."""
        resident = handle is not None
        handle = handle or next(iter(batch.handles.values()), None)
        if handle is None:
            group_rank = deal_rows(batch, self.workers.count)
        else:
            sizes = np.array(batch.sizes or [1] * len(batch))
            starts = np.cumsum(sizes) - sizes
            group_rank = handle.row_rank_B[np.asarray(batch.columns["cached_row"])[starts]]
        parts: list[tuple[np.ndarray, Batch] | None] = []
        for rank in range(self.workers.count):
            groups = np.flatnonzero(group_rank == rank)
            if not len(groups):
                # models that are divided need all workers in each pass
                nothing = np.zeros(0, np.int64), Batch([])
                parts.append(nothing if self._sharded and not resident else None)
                continue
            parts.append((rows_of_groups(batch, groups), self._on_worker(batch.take(groups), rank, handle)))
        return parts

    def _on_worker(self, batch: Batch, rank: int, handle: SharedHandle | None) -> Batch:
        """A share of a batch with the worker's own numbers of handles and rows."""
        if handle is None:
            return batch
        cached_row = handle.row_index_B[np.asarray(batch.columns["cached_row"])]
        handles = {name: h.numbers[rank] for name, h in batch.handles.items() if h.row_rank_B is handle.row_rank_B}
        return replace(batch, columns={**batch.columns, "cached_row": cached_row}, handles=handles)

    def _handle(
        self, numbers: dict[int, int], parts: Sequence[tuple[np.ndarray, Batch] | None], rows: int
    ) -> SharedHandle:
        row_rank_B = np.zeros(rows, np.int64)
        row_index_B = np.zeros(rows, np.int64)
        for rank, part in enumerate(parts):
            if part is not None:
                row_rank_B[part[0]] = rank
                row_index_B[part[0]] = np.arange(len(part[0]))
        handle = SharedHandle(numbers, row_rank_B, row_index_B)
        weakref.finalize(handle, _free, self._free, numbers)
        return handle

    # Roles

    def open(self, roles: Mapping[str, RoleSpec], optimizer: OptimizerConfig | None = None) -> None:
        """Open the roles in every worker; what trains must begin the same everywhere."""
        if not self._launched:
            self._launch(roles)
        self.specs |= roles
        self._all("open", roles=dict(roles), optimizer=optimizer)
        if any(spec.learning_rate is not None for spec in roles.values()):
            self._require_equal("at the start")

    def close(self, role: str) -> None:
        self.specs.pop(role, None)
        self._all("close", role=role)

    def _require_equal(self, when: str) -> None:
        digests = self._all("digest") if self.workers.count > 1 else [""]
        other = next((rank for rank, digest in enumerate(digests) if digest != digests[0]), 0)
        if other:
            state = self.workers.states[other]
            raise TrainingError(
                f"worker {other + 1} of {self.workers.count} ({state.host}, {state.device}) has other weights {when}",
                "weights that train are the same on all workers",
                "run again to resume from the last checkpoint; workers must have the same versions and processors",
            )

    # Passes

    def score(self, role: str, batch: Batch, wants: tuple[str, ...], temperature: float = 1.0) -> Outputs:
        """Outputs of a role, rows in their order; features stay with the workers."""
        parts = self._split(batch, batch.handles.get("features") if "value" in wants else None)
        arguments = [
            None if part is None else {"role": role, "batch": part[1], "wants": wants, "temperature": temperature}
            for part in parts
        ]
        replies = self._ask("score", arguments)
        outputs = [(part[0], reply) for part, reply in zip(parts, replies, strict=True) if part and reply is not None]
        whole = passes.join(outputs, torch.from_numpy(batch.mask_BT))
        numbers = {rank: reply.features for rank, reply in enumerate(replies) if reply is not None}
        if any(number is not None for number in numbers.values()):
            whole.features = self._handle(numbers, parts, len(batch))
        return whole

    def forward(self, needs: Needs, batch: Batch, loss: Loss, temperature: float = 1.0) -> Metrics:
        """Metrics of a loss, without gradient."""
        shared = {"needs": dict(needs), "loss": loss, "temperature": temperature}
        return self._added("forward", batch, shared)

    def forward_backward(
        self,
        needs: Needs,
        batch: Batch,
        loss: Loss,
        weight: float,
        temperature: float = 1.0,
        count: Callable[[int], None] = lambda rows: None,
    ) -> Metrics:
        """Add the gradient of loss / weight on each worker, for its rows; they are added up in `step`."""
        shared = {"needs": dict(needs), "loss": loss, "weight": weight, "temperature": temperature}
        return self._added("forward_backward", batch, shared, count)

    def _added(
        self, method: str, batch: Batch, shared: Mapping[str, Any], count: Callable[[int], None] = lambda rows: None
    ) -> Metrics:
        parts = self._split(batch)
        arguments = [None if part is None else {**shared, "batch": part[1]} for part in parts]
        metrics: Metrics = {}
        for reply in self._ask(method, arguments, count):
            add(metrics, reply or {})
        return metrics

    def step(self, rate: float, max_grad_norm: float) -> float:
        """Add up the gradients, clip, and move what trains, the same on all workers; the gradient's norm."""
        norm = self._all("step", rate=rate, max_grad_norm=max_grad_norm)[0]
        self._steps += 1
        if self._steps % CHECK_STEPS == 0:
            self._require_equal(f"after {self._steps} optimizer steps")
        return norm

    def nonfinite(self) -> Sequence[str]:
        return next((names for names in self._all("nonfinite") if names), [])

    # What workers keep

    def cache_frozen_prefix(self, batch: Batch, role: str) -> Batch:
        """The batch with a handle to what the frozen layers give; each worker keeps that of its rows."""
        parts = self._split(batch)
        numbered = [
            None if part is None else {"role": role, "batch": replace(part[1], handles={}, columns={})}
            for part in parts
        ]
        replies = self._ask("cache_frozen_prefix", numbered)
        numbers = {rank: reply["prefix"] for rank, reply in enumerate(replies) if reply}
        owners = sum(part is not None and len(part[0]) > 0 for part in parts)
        if len(numbers) < owners:  # too large for one worker: for none
            _free(self._free, numbers)
            return batch
        return batch.with_handle("prefix", self._handle(numbers, parts, len(batch)))

    def read_features(self, features: Handle, row_N: Tensor, token_N: Tensor) -> Tensor:
        """Some rows of value-head features [N,F]."""
        assert isinstance(features, SharedHandle)
        rank_N = torch.from_numpy(features.row_rank_B)[row_N]
        index_N = torch.from_numpy(features.row_index_B)[row_N]
        arguments: list[Mapping[str, Any] | None] = []
        for rank in range(self.workers.count):
            mine_N = rank_N == rank
            wanted = {"row_N": index_N[mine_N], "token_N": token_N[mine_N]}
            arguments.append(_handle_argument(features, rank) | wanted if bool(mine_N.any()) else None)
        parts = self._ask("read_features", arguments)
        width = next(part.shape[1] for part in parts if part is not None)
        whole_NF = torch.zeros(len(row_N), width)
        for rank, part in enumerate(parts):
            if part is not None:
                whole_NF[rank_N == rank] = part
        return whole_NF

    # Heads

    def fit(self, role: str, features: Handle | Tensor, target: Tensor, decay: float = 1.0) -> None:
        """Solve for a role's head on the rows of all workers."""
        arguments: list[Mapping[str, Any]] = []
        for rank in range(self.workers.count):
            own: dict[str, Any] = {"role": role, "decay": decay, "features": None, "target": None}
            if isinstance(features, SharedHandle):
                mine_B = torch.from_numpy(features.row_rank_B == rank)
                if rank in features.numbers:
                    own |= _handle_argument(features, rank) | {"target": target[mine_B]}
            elif isinstance(features, Tensor):
                part_N = torch.arange(len(target)).tensor_split(self.workers.count)[rank]
                own |= {"features": features[part_N], "target": target[part_N]}
            arguments.append(own)
        self._ask("fit", arguments)

    def head(self, role: str) -> dict[str, Tensor]:
        return self._first("head", role=role)

    def set_head(self, role: str, weight: Tensor, bias: Tensor) -> None:
        self._all("set_head", role=role, weight=weight, bias=bias)

    # State

    def snapshot(self) -> Snapshot:
        """A copy of the weights, which the workers keep."""
        return self._stored_by_workers(self._all("snapshot"))

    def restore(self, snapshot: Snapshot) -> None:
        """Load a snapshot on all workers."""
        self._ask("restore", [{"snapshot": _number(snapshot, rank)} for rank in range(self.workers.count)])

    def write_state(self, folder: Path, best: Snapshot | None) -> None:
        """Each worker writes what it alone has."""
        arguments = [{"folder": folder, "best": _number(best, rank)} for rank in range(self.workers.count)]
        self._ask("write_state", arguments)

    def read_state(self, folder: Path) -> Snapshot | None:
        """Load a checkpoint on all workers, whatever number of them wrote it."""
        return self._stored_by_workers(self._all("read_state", folder=folder))

    def _stored_by_workers(self, numbers: Sequence[int | None]) -> SharedHandle | None:
        """A handle to what each worker keeps under its number."""
        if all(number is None for number in numbers):
            return None
        by_rank = {rank: number for rank, number in enumerate(numbers) if number is not None}
        return self._handle(by_rank, [None] * self.workers.count, 0)

    def reset_optimizer(self) -> None:
        self._all("reset_optimizer")

    # Files and engines

    def save(self, role: str, path: Path) -> None:
        self._first("save", role=role, path=path)

    def export(self, role: str, folder: Path, chat: Chat) -> None:
        ask = self._all if self._sharded else self._first
        ask("export", role=role, folder=folder, chat=chat)

    def export_adapter(self, role: str, folder: Path) -> None:
        self._first("export_adapter", role=role, folder=folder)

    def publish(self, role: str, engine: Any) -> int:
        """Give the engine of every worker, or of every one that only samples, the role's weights."""
        return engine.publish(role)

    # Facts

    def describe(self, role: str) -> dict[str, Any]:
        return self._first("describe", role=role)

    def environment(self) -> dict[str, str]:
        return self._first("environment") | {"workers": str(len(self.worker_states()))}

    def memory_in_use(self) -> float:
        """Bytes of all workers."""
        own = sum(self._all("memory_in_use"))
        return own + sum(state.memory_bytes for state in self.samplers.workers.states) if self.samplers else own

    def worker_states(self) -> Sequence[WorkerState]:
        """As this process last heard of them."""
        return [*self.workers.states, *(self.samplers.workers.states if self.samplers else ())]

    def record_workers(self, path: Path) -> None:
        """Keep a file with the state of the workers from now on."""
        self.workers.record(path, self.samplers.workers.states if self.samplers else ())

    def agree(self, value: float) -> float:
        """The number itself: one process decides."""
        return value


def _number(handle: SharedHandle | None, rank: int) -> dict[str, Any] | None:
    """A worker's own number of a handle, as an argument."""
    return None if handle is None or rank not in handle.numbers else {"handle": handle.numbers[rank]}


def _handle_argument(features: SharedHandle, rank: int) -> dict[str, Any]:
    return {"features": {"handle": features.numbers[rank]}}


def _free(free: dict[int, list[int]], numbers: Mapping[int, int | None]) -> None:
    """Remember handles to be freed with the next message."""
    for rank, number in numbers.items():
        if number is not None:
            free[rank].append(number)


_numbers = iter(range(1, 10**9))


def _next_number() -> int:
    return next(_numbers)
