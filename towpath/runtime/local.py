"""Where it runs: one process, one device. The specification that other runtimes are held to.

B rows, T answer tokens, N answer tokens of all rows, D width.
"""

import ctypes
import gc
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from towpath.algos.contract import Metrics, Outputs, add
from towpath.data.batch import Batch, PackedRows, pack
from towpath.errors import ResourceError
from towpath.models import check_model, lm
from towpath.models.adapters import Adapters
from towpath.models.cpu import decoder, split_bf16
from towpath.models.heads import Fit, ScalarHead, so_far, widely_so_far
from towpath.models.packed_batch import Lines
from towpath.progress import print_note, progress
from towpath.runtime.optimizer import SLOTS, Adam
from towpath.runtime.out_of_memory import with_less

GROUND = "ground"
"""The column of states that the untouched bottom of a trunk gives [B,S,D]: rows, tokens of a row, width."""
PACKED = 256
"""The widest line that short rows are packed into: wider ones spend on attention what they save on padding."""
FEWEST = 16
"""Tokens a pass below which nothing is gained."""
LossOf = Callable[[Outputs, Batch], tuple[Tensor, Metrics]]


@dataclass
class Role:
    """A part a model plays: which trunk it reads, through which adapter, with which head, and what of it learns."""

    trunk: str = "base"
    adapter: str | None = None
    head: ScalarHead | None = None
    trains: tuple[str, ...] = ()
    """Any of trunk, adapter, head."""
    fit: Fit | None = None
    """Solves for the head, where that is how it learns."""


class Local:
    """Trunks, the roles they play, and one optimizer for whatever learns."""

    def __init__(
        self,
        tokens_per_pass: int = 1024,
        pack_width: int = PACKED,
        pad: int = 0,
        temperature: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.trunks: dict[str, Any] = {}
        self.adapters: dict[str, Adapters] = {}
        self.roles: dict[str, Role] = {}
        self.optimizer: Adam | None = None
        self.tokens_per_pass = tokens_per_pass
        self.pack_width = pack_width
        self.pad = pad
        self.temperature = temperature
        self.dtype = dtype
        """What passes read a trunk in that learns; others are read as they were loaded."""
        self.unfinite: list[str] = []
        """Weights whose gradient was not finite when last one was not."""

    def add_trunk(self, name: str, model: Any, lora: bool) -> None:
        """A model that roles may read; with LoRA its own weights are frozen."""
        self.trunks[name] = model
        if lora:
            self.adapters[name] = Adapters(model)
        else:
            model.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(iter(self.trunks.values())).device

    def trained(self) -> dict[str, nn.Parameter]:
        """Every weight that learns, by role and name."""
        found: dict[str, nn.Parameter] = {}
        for name, role in self.roles.items():
            if "adapter" in role.trains and role.adapter:
                found |= {f"{name}/{key}": p for key, p in self.adapters[role.trunk].parameters(role.adapter).items()}
            if "trunk" in role.trains:
                found |= {f"{name}/{key}": p for key, p in self.trunks[role.trunk].named_parameters()}
            if "head" in role.trains and role.head is not None:
                found |= {f"{name}/head.{key}": p for key, p in role.head.named_parameters()}
        return found

    def start(self, rates: Mapping[str, float], eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        """Open the weights that learn and give them an optimizer: one rate a role, one more for `role/head` where
        named."""
        groups: dict[str, list[nn.Parameter]] = {}
        for key, parameter in self.trained().items():
            parameter.requires_grad_(True)
            role, _, name = key.partition("/")
            own = f"{role}/head" if name.startswith("head.") and f"{role}/head" in rates else role
            groups.setdefault(own, []).append(parameter)
        betas = 0.9, 0.95 if weight_decay else 0.999
        self.optimizer = Adam([(rates[name], weights) for name, weights in groups.items()], eps, weight_decay, betas)
        for role in self.roles.values():
            if "trunk" in role.trains and self.dtype == torch.bfloat16:
                for weight in self.trunks[role.trunk].parameters():
                    self.optimizer.halve(weight)
        if self.optimizer.rest:
            give_back_memory()  # what they were loaded in

    @contextmanager
    def whole(self, name: str) -> Iterator[Any]:
        """A trunk in all its bits, to be written."""
        rest = self.optimizer.rest if self.optimizer is not None else {}
        upper = {weight: weight.data for weight in self.trunks[name].parameters() if weight in rest}
        for weight, half in upper.items():
            weight.data = split_bf16.joined(half, rest[weight])
        try:
            yield self.trunks[name]
        finally:
            for weight, half in upper.items():
                weight.data = half

    def forward(self, name: str, batch: Batch, wants: tuple[str, ...]) -> Outputs:
        """What a role says of a batch, with gradient if it learns and gradients are on."""
        role = self.roles[name]
        mask_BT = torch.from_numpy(batch.mask_BT).to(self.device)
        if role.fit is not None and "value" in batch.columns:
            return Outputs(mask_BT, value_BT=batch.columns["value"])  # as it stands until the next rollout
        packed = pack(batch.rows, self.pad, 0 if decoder.fits(self.trunks[role.trunk]) else self.pack_width)
        lines, (before_N, last_B) = self._lines(packed), _read_places(packed, batch, wants)
        read_N = torch.from_numpy(np.concatenate([before_N, last_B])).to(self.device)
        with self._acting(role):
            if GROUND in batch.columns and role.trunk in self.adapters:
                states = _laid(batch.columns[GROUND], packed)
                hidden = lm.above(
                    self.trunks[role.trunk], states, lines, self.adapters[role.trunk].common_depth(), read_N
                )
            else:
                hidden = lm.hidden(self.trunks[role.trunk], lines, read_N)
        return self._read(role, batch, hidden[: len(before_N)], hidden[len(before_N) :], mask_BT, wants)

    def _read(
        self, role: Role, batch: Batch, hidden_ND: Tensor, last_BD: Tensor, mask_BT: Tensor, wants: tuple[str, ...]
    ) -> Outputs:
        """From the states before each answer token and at each row's last."""
        out = Outputs(mask_BT)
        if "logp" in wants:
            target_N = torch.from_numpy(np.concatenate([r.ids[r.start :] for r in batch.rows])).to(self.device)
            head = self.trunks[role.trunk].get_output_embeddings().weight
            logp_N, entropy_N = lm.token_logprobs(hidden_ND, head, target_N, self.temperature, "entropy" in wants)
            out.logp_BT = _spread(logp_N, mask_BT)
            if "entropy" in wants:
                out.entropy_BT = _spread(entropy_N, mask_BT)
        if {"value", "features"} & set(wants):
            states_BTD = _spread(hidden_ND.float(), mask_BT)
            if "value" in wants and role.head is not None:
                out.value_BT = torch.where(mask_BT, role.head(so_far(states_BTD)), 0.0)
            if "features" in wants:
                out.features_BTD = widely_so_far(states_BTD)
        if "score" in wants and role.head is not None:
            out.score_B = role.head(last_BD)
        if "last" in wants:
            out.last_BD = last_BD
        return out

    def grounded(self, batch: Batch, trunk: str = "base") -> Batch:
        """The batch with what the trunk's untouched bottom layers say of it, computed once for all roles and epochs;
        as it was where there are none, where the model's layers cannot be parted, or where the states would take
        more than a gigabyte."""
        return with_less(lambda: self._grounded(batch, trunk), lambda: self._halve(batch))

    @torch.no_grad()
    def _grounded(self, batch: Batch, trunk: str) -> Batch:
        depth = self.adapters[trunk].common_depth() if trunk in self.adapters else 0
        if not depth:
            return batch
        model = self.trunks[trunk]
        if not (decoder.fits(model) or check_model.parts(model, depth)):
            return batch
        shape = len(batch), max(len(row.ids) for row in batch.rows), model.config.hidden_size
        if math.prod(shape) * model.dtype.itemsize > 2**30:
            return batch
        states_BSD = torch.zeros(shape, dtype=model.dtype, device=self.device)
        with progress("lower layers", _tokens(batch), "tokens") as work:
            for part in Batch(batch.rows, {"row": np.arange(len(batch))}).micro_batches(self.tokens_per_pass):
                packed = pack(part.rows, self.pad)
                states_ND = lm.below(model, self._lines(packed), depth)
                for index, place in zip(part.columns["row"], packed.token_positions, strict=True):
                    states_BSD[index, : len(place)] = states_ND[torch.from_numpy(place).to(self.device)]
                work.advance(_tokens(part))
        return replace(batch.with_columns(**{GROUND: states_BSD}), fixed=batch.fixed | {GROUND})

    def score(self, name: str, batch: Batch, wants: tuple[str, ...]) -> Outputs:
        """`forward` over a batch of any size, without gradient, rows in their order."""
        return with_less(lambda: self._score(name, batch, wants), lambda: self._halve(batch))

    @torch.no_grad()
    def _score(self, name: str, batch: Batch, wants: tuple[str, ...]) -> Outputs:
        sizes = [len(row.ids) for row in batch.rows]
        order = np.argsort(sizes, kind="stable")[::-1]
        kept = {GROUND: batch.columns[GROUND]} if GROUND in batch.columns else {}
        numbered = Batch(batch.rows, {"row": np.arange(len(batch)), **kept}, fixed=frozenset({GROUND}))
        parts = []
        with progress(f"scoring by {name}", sum(sizes), "tokens") as work:
            for part in numbered.micro_batches(self.tokens_per_pass):
                parts.append((part.columns["row"], self.forward(name, part, wants)))
                work.advance(_tokens(part))
        assert sum(len(index) for index, _ in parts) == len(order)
        return _joined(parts, torch.from_numpy(batch.mask_BT).to(self.device))

    def forward_backward(
        self,
        needs: Mapping[str, tuple[str, ...]],
        batch: Batch,
        loss_of: LossOf,
        weight: float,
        tick: Callable[[int], None] | None = None,
    ) -> Metrics:
        """Gradients of (sum of losses) / weight, micro-batch by micro-batch, and one role after the other: what a
        role's way back needs is not held beside another's. `tick` is told how many rows each micro-batch had. Where
        memory runs out micro-batches are halved: their losses add up to the same gradient."""
        fresh = self.optimizer is None or not self.optimizer.gradients()
        told = 0

        def count(rows: int) -> None:
            nonlocal told
            told += rows
            if tick is not None:
                tick(rows)

        def less() -> None:
            self._halve(batch)
            if not fresh:
                raise _no_memory(batch, "what an earlier batch left of gradients cannot be kept apart")
            if self.optimizer is not None:
                self.optimizer.clear()
            count(-told)

        return with_less(lambda: self._forward_backward(needs, batch, loss_of, weight, count), less)

    def _forward_backward(
        self,
        needs: Mapping[str, tuple[str, ...]],
        batch: Batch,
        loss_of: LossOf,
        weight: float,
        count: Callable[[int], None],
    ) -> Metrics:
        metrics: Metrics = {}
        for part in batch.micro_batches(self.tokens_per_pass):
            if self.optimizer is not None:
                self.optimizer.another_pass()
            for name, wants in needs.items():
                total, more = loss_of(self.forward(name, part, wants), part)
                if self.roles[name].fit is None:
                    (total / weight).backward()
                add(metrics, more)
            count(len(part))
        return metrics

    def _halve(self, batch: Batch) -> None:
        """Fewer tokens a pass from here on: as many as make more passes of this batch."""
        before = sum(1 for _ in batch.micro_batches(self.tokens_per_pass))
        tokens = min(self.tokens_per_pass, _tokens(batch))
        while tokens > FEWEST:
            tokens //= 2
            if sum(1 for _ in batch.micro_batches(tokens)) > before:
                print_note(
                    f"out of memory: {tokens} tokens a pass from here on, which gives the same gradient; set "
                    f"model.tokens_per_pass = {tokens}"
                )
                self.tokens_per_pass = tokens
                return
        raise _no_memory(batch, "a pass holds all rows of one group at least")

    def step(self, rate: float, max_grad_norm: float) -> float:
        """Clip, move every weight that learns by `rate` of its peak rate; the gradient's norm. Not moved when not
        finite."""
        assert self.optimizer is not None
        weights = self.trained()
        norm = self.optimizer.norm()
        if not np.isfinite(norm):
            gradients = self.optimizer.gradients()
            self.unfinite = [
                key for key, p in weights.items() if p in gradients and not bool(gradients[p].isfinite().all())
            ]
        else:
            self.optimizer.step(rate, min(1.0, max_grad_norm / (norm + 1e-6)))
        self.optimizer.clear()
        return norm

    def forget(self) -> None:
        """The optimizer begins anew: what it remembers belongs to weights that have been left."""
        assert self.optimizer is not None
        self.optimizer.slots.clear()

    def weights(self) -> dict[str, Tensor]:
        """A copy of all that learns: weights, and heads that are solved for with the sums they stand on."""
        return {key: tensor.clone() for key, tensor in self._learned().items()}

    def state(self) -> dict[str, Tensor]:
        """Weights and optimizer as named tensors: the very ones, to be written before the next step."""
        assert self.optimizer is not None
        tensors = self._learned()
        for key, parameter in self.trained().items():
            for slot, value in self.optimizer.slots.get(parameter, {}).items():
                tensors[f"adam:{slot}:{key}"] = value.cpu()
        return tensors

    def _learned(self) -> dict[str, Tensor]:
        learned = (
            {key: parameter.detach() for key, parameter in self.trained().items()} | self._rests() | self._solved()
        )
        return {key: tensor.cpu() for key, tensor in learned.items()}

    def _rests(self) -> dict[str, Tensor]:
        """What halved weights have beyond their upper half."""
        rest = self.optimizer.rest if self.optimizer is not None else {}
        return {f"rest:{key}": rest[parameter] for key, parameter in self.trained().items() if parameter in rest}

    def _solved(self) -> dict[str, Tensor]:
        """What heads that are solved for consist of."""
        return {
            f"fit:{name}/{key}": x
            for name, role in self.roles.items()
            if role.fit is not None
            for key, x in role.fit.state().items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """What `weights` copied, and where it is there the optimizer's state."""
        for key, part in self._solved().items():
            if key in tensors:
                part.copy_(tensors[key])
        rests = self._rests()
        for key, parameter in self.trained().items():
            kept = split_bf16.joined(tensors[key], tensors[f"rest:{key}"]) if f"rest:{key}" in tensors else tensors[key]
            with torch.no_grad():
                if f"rest:{key}" in rests:
                    kept, rest = split_bf16.parted(kept)
                    rests[f"rest:{key}"].copy_(rest)
                parameter.copy_(kept)
            if self.optimizer is not None and f"adam:step:{key}" in tensors:
                self.optimizer.put(parameter, {slot: tensors[f"adam:{slot}:{key}"] for slot in SLOTS})

    def _lines(self, packed: PackedRows) -> Lines:
        return Lines(
            *(
                torch.from_numpy(x).to(self.device)
                for x in (packed.ids_PL, packed.position_PL, packed.segment_PL, packed.parent_PL)
            )
        )

    def _acting(self, role: Role) -> Any:
        return self.adapters[role.trunk].acting(role.adapter) if role.trunk in self.adapters else nullcontext()


def _no_memory(batch: Batch, why: str) -> ResourceError:
    longest = max(len(row.ids) for row in batch.rows)
    fix = "lower max_new_tokens or data.max_prompt_tokens, use LoRA or a smaller model, lower batch, or free memory"
    return ResourceError(f"out of memory in a pass; the longest of {len(batch)} rows has {longest} tokens", why, fix)


def _tokens(batch: Batch) -> int:
    """Tokens of all rows, prompts included."""
    return sum(len(row.ids) for row in batch.rows)


def _read_places(packed: PackedRows, batch: Batch, wants: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Where the lines are read: before each answer token, and at each row's end, each where something asks for it."""
    none = np.zeros(0, np.int64)
    before = [place[row.start - 1 : -1] for place, row in zip(packed.token_positions, batch.rows, strict=True)]
    last = np.array([place[-1] for place in packed.token_positions])
    return np.concatenate(before) if set(wants) - {"score", "last"} else none, last if {"score", "last"} & set(
        wants
    ) else none


def _laid(states_BSD: Tensor, packed: PackedRows) -> Tensor:
    """States of rows laid into the lines they are packed in."""
    out = states_BSD.new_zeros(packed.ids_PL.size, states_BSD.shape[2])
    for states, place in zip(states_BSD, packed.token_positions, strict=True):
        out[torch.from_numpy(place).to(out.device)] = states[: len(place)]
    return out.view(*packed.ids_PL.shape, -1)


def _spread(x_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Values of answer tokens laid out [B,T(,D)], zeros elsewhere."""
    out = x_N.new_zeros(*mask_BT.shape, *x_N.shape[1:])
    out[mask_BT] = x_N
    return out


def _joined(parts: list[tuple[np.ndarray, Outputs]], mask_BT: Tensor) -> Outputs:
    out = Outputs(mask_BT)
    for field in ("logp_BT", "entropy_BT", "value_BT", "features_BTD", "score_B", "last_BD"):
        first = getattr(parts[0][1], field)
        if not first.numel():
            continue
        per_row = field in ("score_B", "last_BD")
        shape = mask_BT.shape[:1] if per_row else mask_BT.shape
        whole = first.new_zeros(*shape, *first.shape[len(shape) :])
        for index, part in parts:
            value = getattr(part, field)
            if per_row:
                whole[torch.from_numpy(index)] = value
            else:
                whole[torch.from_numpy(index), : value.shape[1]] = value
        setattr(out, field, whole)
    return out


def prepare_process() -> None:
    """Settings of the whole process that cost nothing and help: threads, oneDNN for float32 where it keeps float32,
    an allocator that keeps its memory."""
    # a kernel kept for each of 1,024 shapes is a GiB
    for kept in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(kept, "256")
    torch.set_float32_matmul_precision("medium")
    if torch.cuda.is_available() or products_round():  # a GPU would round them, too
        torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    if sys.platform == "linux":
        trim_threshold = -1
        mmap_max = -4
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, -1)  # never: the largest number would let go of all that lies free beyond 2 GiB
        libc.mallopt(mmap_max, 0)


def products_round() -> bool:
    """Whether float32 products on the processor are made of bfloat16 as they are set now: oneDNN does so where that
    is faster (AMX), and keeps float32 elsewhere."""
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(128, 256, generator=draw)
    b = torch.randn(256, 128, generator=draw)
    exact = a.double() @ b.double()
    return bool((a @ b - exact).norm() > 1e-5 * exact.norm())


def memory_in_use(device: torch.device) -> float:
    """Bytes: the device's where it has memory of its own, else this process's."""
    if device.type == "cuda":
        return float(torch.cuda.memory_reserved(device))
    try:
        return float(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def give_back_memory() -> None:
    """What a finished stage has freed goes back to the system, so that the next one does not add to it."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def device_of(name: str) -> torch.device:
    """The device a recipe names; auto takes a GPU when there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The trunk's arithmetic; auto takes bfloat16 where it is measured to be faster than float32."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    return torch.bfloat16 if device.type == "cuda" or _bfloat16_pays() else torch.float32


@cache
def _bfloat16_pays() -> bool:
    """By one thread's own time on the processor: what else the machine does must not decide how a run rounds, or it
    could not be repeated."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(512, 512, dtype=dtype)
        b = torch.ones(512, 1024, dtype=dtype)
        best = math.inf
        for _ in range(8):
            begin = time.thread_time()
            _ = a @ b
            best = min(best, time.thread_time() - begin)
        return best

    faster = seconds(torch.bfloat16) < 0.8 * seconds(torch.float32)
    torch.set_num_threads(threads)
    return faster
