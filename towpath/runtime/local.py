"""Runtime of one process on one device: the reference implementation of the contract.

B rows, T answer tokens, N answer tokens of all rows, S tokens of a row, D width, F features of a value head.
"""

import math
import os
import socket
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from towpath.algos.contract import Metrics, Outputs, add, to_floats
from towpath.data.batch import Batch, Row
from towpath.data.draws import generator
from towpath.errors import ResourceError
from towpath.models import lm
from towpath.models.check_model import can_split_layers
from towpath.models.cpu import kernels
from towpath.models.head import token_logprobs
from towpath.models.heads import RidgeHead, random_feature_mean, running_mean
from towpath.models.packed_batch import concatenates_rows
from towpath.models.varlen import determinism_restored
from towpath.progress import print_note, progress
from towpath.runtime import passes
from towpath.runtime.contract import Handle, Loss, Needs, WeightSink, WeightSource
from towpath.runtime.models import Role
from towpath.runtime.out_of_memory import with_less
from towpath.runtime.process import memory_in_use
from towpath.runtime.transfer import to_device
from towpath.runtime.weight_source import weight_source
from towpath.runtime.weights import Weights
from towpath.runtime.worker_states import WorkerState

FEWEST_TOKENS = 16
"""Tokens a pass below which splitting further gains nothing."""
MOST_PREFIX_BYTES = 2**30
"""States of frozen layers that are cached for one batch."""


class Local(Weights):
    """The contract in one process: passes of the roles on batches, what stays of them, heads, and engines."""

    # Passes

    def score(self, role: str, batch: Batch, wants: tuple[str, ...], temperature: float = 1.0) -> Outputs:
        """Outputs of a role on a batch of any size, without gradient, in host memory."""
        self.usage.scored_tokens += _tokens(batch)
        out = with_less(lambda: self._score(role, batch, wants, temperature), lambda: self._halve(batch))
        if "features" in wants:
            out.features = self._store(out.features_BTD, out.mask_BT)
            out.features_BTD = torch.zeros(0)
        return out.to_host()

    @torch.no_grad()
    def _score(self, name: str, batch: Batch, wants: tuple[str, ...], temperature: float) -> Outputs:
        closed_form = self.roles[name].closed_form_head
        if closed_form is not None and "value" in wants:
            features = batch.handles.get("features")
            features_BTD = (
                self._score(name, batch, ("features",), temperature).features_BTD
                if features is None
                else self._stored[id(features)]
            )
            mask_BT = torch.from_numpy(batch.mask_BT).to(self.device)
            value_BT = torch.where(mask_BT, closed_form.head(features_BTD), 0.0)
            return Outputs(mask_BT, value_BT=value_BT, features_BTD=features_BTD)
        cached = {key: column for key, column in batch.columns.items() if key == "cached_row"}
        numbered = Batch(batch.rows, {"row": np.arange(len(batch)), **cached}, handles=batch.handles)
        parts = []
        with progress(f"scoring by {name}", _tokens(batch), "tokens") as work:
            for part in self.micro_batches(numbered):
                parts.append((part.columns["row"], self._forward(name, part, wants, temperature)))
                work.advance(_tokens(part))
        return passes.join(parts, torch.from_numpy(batch.mask_BT).to(self.device))

    def forward(self, needs: Needs, batch: Batch, loss: Loss, temperature: float = 1.0) -> Metrics:
        """Metrics of a loss, without gradient."""
        metrics: Metrics = {}
        with torch.no_grad():
            for part in self.micro_batches(batch):
                on_device = passes.columns_on_device(part, self.device)
                for name, wants in needs.items():
                    add(metrics, loss(self._forward(name, part, wants, temperature), on_device)[1])
        return to_floats(metrics)

    def forward_backward(
        self,
        needs: Needs,
        batch: Batch,
        loss: Callable[[Outputs, Batch], tuple[Tensor, Metrics]],
        weight: float,
        temperature: float = 1.0,
        count: Callable[[int], None] = lambda rows: None,
    ) -> Metrics:
        """Add the gradient of loss / weight, one pass and one role after the other; metrics of the batch. Where memory
        runs out passes are halved, which gives the same gradient."""
        self.usage.trained_tokens += _tokens(batch)
        fresh = self.optimizer is None or not self.optimizer.gradients()
        done = 0

        def counted(rows: int) -> None:
            nonlocal done
            done += rows
            count(rows)

        def less() -> None:
            nonlocal done
            self._halve(batch)
            if not fresh:
                raise _no_memory(batch, "gradients of an earlier batch cannot be kept apart")
            if self.optimizer is not None:
                self.optimizer.zero_grad()
            count(-done)
            done = 0

        return with_less(lambda: self._forward_backward(needs, batch, loss, weight, temperature, counted), less)

    def _forward_backward(
        self,
        needs: Needs,
        batch: Batch,
        loss: Callable[[Outputs, Batch], tuple[Tensor, Metrics]],
        weight: float,
        temperature: float,
        count: Callable[[int], None],
    ) -> Metrics:
        metrics: Metrics = {}
        for number, part in enumerate(self.micro_batches(batch)):
            if self.optimizer is not None:
                self.optimizer.accumulate()
            on_device = passes.columns_on_device(part, self.device)
            for name, wants in needs.items():
                # the adapter stays active for the backward pass, which may compute layers again
                with self._dropout(name, part, number), self._acting(self.roles[name]), determinism_restored():
                    total, more = loss(self._forward(name, part, wants, temperature), on_device)
                    if self.roles[name].closed_form_head is None:
                        # `weight` counts the whole minibatch: the sum over passes is its mean, however it is split
                        (total / weight).backward()
                add(metrics, more)
            count(len(part))
        return to_floats(metrics)

    @contextmanager
    def _dropout(self, name: str, part: Batch, number: int) -> Iterator[None]:
        """Within the block the role's adapter has its dropout. The draws are a function of seed, optimizer step and
        pass, so that a resumed training repeats them."""
        spec = self._specs.get(name)
        if spec is None or spec.lora is None or not spec.lora.dropout:
            yield
            return
        steps = max((int(state["step"]) for state in self.optimizer.state.values()), default=0) if self.optimizer else 0
        rows = zlib.crc32(b"".join(row.ids.tobytes() for row in part.rows))
        seed = int(generator(spec.seed, "dropout", name, steps, number, rows).integers(2**62))
        with torch.random.fork_rng([self.device] if self.device.type != "cpu" else []):
            torch.manual_seed(seed)
            self._dropping = True
            try:
                yield
            finally:
                self._dropping = False

    def _forward(self, name: str, batch: Batch, wants: tuple[str, ...], temperature: float = 1.0) -> Outputs:
        """Outputs of a role on the rows of one pass, with gradient if it trains and gradients are on."""
        role = self.roles[name]
        model = self.trunks[role.trunk]
        if role.closed_form_head is not None and "value" in batch.columns:
            mask_BT, value_BT = to_device((batch.mask_BT, batch.columns["value"]), self.device)
            return Outputs(mask_BT, value_BT=value_BT)  # fixed until the next `fit`
        prefix = batch.handles.get("prefix") if role.trunk in self.adapters else None
        states_BSD = None if prefix is None else self._stored[id(prefix)]
        with self._acting(role):
            pad = self._pads.get(role.trunk, self.pad)
            cached = 0 if states_BSD is None else states_BSD.shape[1]
            work = passes.prepare(model, batch, wants, pad, self.pack_width, self.device, cached)
            if states_BSD is not None:
                # layers below all adapters are the same for every role and every epoch: start above them
                states_PLD = passes.lay_out(states_BSD, work)
                depth = self.adapters[role.trunk].common_depth()
                hidden_RD = lm.run_upper_layers(model, states_PLD, work.lines, depth, work.read_R)
            else:
                hidden_RD = lm.hidden(model, work.lines, work.read_R)
        return self._read(role, work, hidden_RD, wants, temperature)

    def _read(
        self, role: Role, work: passes.Pass, hidden_RD: Tensor, wants: tuple[str, ...], temperature: float
    ) -> Outputs:
        """Outputs from the states before each answer token, which predict it, and at each row's last token, which has
        seen the whole answer."""
        hidden_ND = hidden_RD[: work.before]
        last_BD = hidden_RD[work.before :]
        out = Outputs(work.mask_BT, token_N=work.token_N)
        if "logp" in wants:
            # answer tokens of all rows, concatenated [N]; their logits [N,V] are never held at once
            trunk = self.trunks[role.trunk]
            logp_N, entropy_N = token_logprobs(trunk, hidden_ND, work.target_N, temperature, "entropy" in wants)
            out.logp_BT = passes.spread(logp_N, work)
            if "entropy" in wants:
                out.entropy_BT = passes.spread(entropy_N, work)
        if {"value", "features"} & set(wants):
            # float32: a running sum over T tokens in bfloat16 would lose the later ones
            states_BTD = passes.spread(hidden_ND.to(torch.promote_types(hidden_ND.dtype, torch.float32)), work)
            if "value" in wants and role.head is not None:
                out.value_BT = torch.where(work.mask_BT, role.head(running_mean(states_BTD)), 0.0)
            if "features" in wants:
                out.features_BTD = random_feature_mean(states_BTD)
        if "score" in wants and role.head is not None:
            out.score_B = role.head(last_BD)
        if "last" in wants:
            out.last_BD = last_BD
        return out

    def _acting(self, role: Role) -> Any:
        if role.trunk not in self.adapters:
            return nullcontext()
        return self.adapters[role.trunk].acting(role.adapter, self._dropping)

    def micro_batches(self, batch: Batch, tokens: int | None = None) -> Iterator[Batch]:
        repeated = any(concatenates_rows(trunk) for trunk in self.trunks.values())
        return batch.micro_batches(tokens or self.tokens_per_pass, repeated)

    def _halve(self, batch: Batch) -> None:
        """Fewer tokens a pass from now on: as many as make more passes of this batch."""
        before = sum(1 for _ in self.micro_batches(batch))
        tokens = min(self.tokens_per_pass, _tokens(batch))
        while tokens > FEWEST_TOKENS:
            tokens //= 2
            if sum(1 for _ in self.micro_batches(batch, tokens)) > before:
                print_note(
                    f"out of memory: {tokens} tokens a pass from here on, which gives the same gradient; set "
                    f"model.tokens_per_pass = {tokens}"
                )
                self.tokens_per_pass = tokens
                self._plans_tokens = False
                return
        raise _no_memory(batch, "a pass holds all rows of one group at least")

    # What stays in the runtime

    def _store(self, tensor: Tensor, mask_BT: Tensor | None = None) -> Handle:
        """Keep a tensor, and where its answer tokens are, as long as someone has the handle."""
        handle = Handle()
        self._stored[id(handle)] = tensor
        weakref.finalize(handle, self._stored.pop, id(handle), None)
        if mask_BT is not None:
            self._masks[id(handle)] = mask_BT
            weakref.finalize(handle, self._masks.pop, id(handle), None)
        return handle

    def cache_frozen_prefix(self, batch: Batch, role: str) -> Batch:
        """The batch with the states that the layers below all adapters give for it; the same batch where there are
        none, where the model's layers cannot be split, or where the states would take more than a gigabyte."""
        states_BSD = with_less(lambda: self._prefix_states(batch, role), lambda: self._halve(batch))
        return batch if states_BSD is None else batch.with_handle("prefix", self._store(states_BSD))

    @torch.no_grad()
    def _prefix_states(self, batch: Batch, role: str) -> Tensor | None:
        trunk = self.roles[role].trunk
        depth = self.adapters[trunk].common_depth() if trunk in self.adapters else 0
        model = self.trunks[trunk]
        if not depth or not can_split_layers(model, depth):
            return None
        # [B,S,D] for prompts and answers
        shape = len(batch), max(len(row.ids) for row in batch.rows), model.config.hidden_size
        if math.prod(shape) * model.dtype.itemsize > MOST_PREFIX_BYTES:
            return None
        states_BSD = torch.zeros(shape, dtype=model.dtype, device=self.device)
        with progress("lower layers", _tokens(batch), "tokens") as work:
            for part in self.micro_batches(Batch(batch.rows, {"cached_row": np.arange(len(batch))})):
                one = passes.prepare(model, part, (), self._pads.get(trunk, self.pad), 0, self.device, shape[1])
                states_MD = lm.run_lower_layers(model, one.lines, depth)
                states_BSD.flatten(0, 1).index_copy_(0, one.state_M, states_MD[one.position_M])
                work.advance(_tokens(part))
        return states_BSD

    def read_features(self, features: Handle, row_N: Tensor, token_N: Tensor) -> Tensor:
        """Some rows of value-head features [N,F]."""
        return self._stored[id(features)][row_N.to(self.device), token_N.to(self.device)].cpu()

    # Heads

    def fit(self, role: str, features: Handle | Tensor, target: Tensor, decay: float = 1.0) -> None:
        """Solve for a role's head: features of a batch and targets [B,T], or rows [N,F] and [N]; earlier calls weigh
        `decay`. A head that steps is only initialised so."""
        ridge = self._ridge(role)
        ridge.learn(*self.fit_rows(ridge, features, target), decay)

    def _ridge(self, role: str) -> RidgeHead:
        ridge = self.roles[role].closed_form_head
        if ridge is None:
            head = self.roles[role].head
            assert head is not None
            ridge = self._initial_fits.setdefault(role, RidgeHead(head))
        return ridge

    def fit_rows(self, ridge: RidgeHead, features: Handle | Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N,F] and targets [N] of the answer tokens of a batch, or of rows as they are."""
        target = target.to(self.device)
        if isinstance(features, Handle):
            mask_BT = self._masks[id(features)]
            # [B,T,F] to [N,F]; targets may be wider, as those of a batch with rows of other workers
            return self._stored[id(features)][mask_BT], target[:, : mask_BT.shape[1]][mask_BT]
        return features[:, : len(ridge.head.weight)].to(self.device), target

    def head(self, role: str) -> dict[str, Tensor]:
        """Weight and bias of a role's head."""
        head = self.roles[role].head
        assert head is not None
        return {name: parameter.detach().cpu().clone() for name, parameter in head.named_parameters()}

    def set_head(self, role: str, weight: Tensor, bias: Tensor) -> None:
        """Replace a role's head."""
        head = self.roles[role].head
        assert head is not None
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)

    # Engines

    def publish(self, role: str, engine: WeightSink) -> int:
        """Give an engine the role's weights as they are now: as a stream where it takes one; else in a plain copy where
        the model has adapters or compiled layers, which engines do not sample from, or the model itself."""
        started = time.monotonic()
        version = self._publish(role, engine)
        self.usage.sync_seconds += time.monotonic() - started
        return version

    def _publish(self, role: str, engine: WeightSink) -> int:
        trunk = self.roles[role].trunk
        model = self.trunks[trunk]
        adapters = self.adapters.get(trunk)
        if hasattr(engine, "receive"):
            self._version += 1
            source = self._weight_source(role)
            engine.receive(source, self._version)  # pyright: ignore[reportAttributeAccessIssue]
            self.usage.sync_bytes += source.size
            return self._version
        if adapters or self._compile.on:
            plain = self._plain_copy(role, trunk)
            if adapters:
                adapters.merge_into(plain, self.roles[role].adapter)
            else:
                with torch.no_grad():
                    for target, source in zip(plain.parameters(), model.parameters(), strict=True):
                        target.copy_(source)
            model = plain
            self.usage.sync_bytes += byte_count(plain)
        self._version += 1
        engine.refresh(model, self._version)
        return self._version

    def _weight_source(self, role: str) -> WeightSource:
        own = self.roles[role]

        def last_logprobs(rows: Sequence[Sequence[int]]) -> list[float]:
            batch = Batch([Row(np.array(ids), len(ids) - 1) for ids in rows], {})
            return self.score(role, batch, ("logp",)).logp_BT[:, 0].tolist()

        model = self.trunks[own.trunk]
        dtype = self.dtype if own.trunk in self.adapters or self._compile.on else model.dtype
        return weight_source(model, dtype, last_logprobs, self.adapters.get(own.trunk), own.adapter)

    def _plain_copy(self, role: str, trunk: str) -> Any:
        if trunk not in self._plain:
            self._plain[trunk] = self._load(self._specs[role], self.dtype).requires_grad_(False)
        return self._plain[trunk]

    # Facts

    def describe(self, role: str) -> dict[str, Any]:
        """Which modules an adapter changes, and their share of all parameters."""
        return self.adapters[self.roles[role].trunk].summary(role)

    def environment(self) -> dict[str, str]:
        """Arithmetic and kernels, for the record of a run."""
        backend = kernels.describe_backend() if self.device.type == "cpu" else self.device.type
        return {"arithmetic": str(self.dtype).removeprefix("torch."), "kernels": backend}

    def memory_in_use(self) -> float:
        """Bytes: the device's where it has memory of its own, else this process's."""
        return memory_in_use(self.device)

    def worker_states(self) -> Sequence[WorkerState]:
        """This process as the only worker."""
        memory = self.memory_in_use()
        return [WorkerState(0, os.getpid(), socket.gethostname(), str(self.device), "", memory, usage=self.usage)]

    def record_workers(self, path: Path) -> None:
        """Nothing: the metrics of a step say what one process does."""

    def agree(self, value: float) -> float:
        """The number itself: there is one process."""
        return value


def _no_memory(batch: Batch, rule: str) -> ResourceError:
    longest = max(len(row.ids) for row in batch.rows)
    fix = "lower max_new_tokens or data.max_prompt_tokens, use LoRA or a smaller model, lower batch, or free memory"
    return ResourceError(f"out of memory in a pass; the longest of {len(batch)} rows has {longest} tokens", rule, fix)


def byte_count(model: Any) -> int:
    """Bytes of a model's weights."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def _tokens(batch: Batch) -> int:
    """The number of tokens of all rows, with prompts."""
    return sum(len(row.ids) for row in batch.rows)
