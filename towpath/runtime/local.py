"""Runtime of one process on one device: the reference implementation of the contract.

B rows, T answer tokens, N answer tokens of all rows, S tokens of a row, D width, F features of a value head.
"""

import copy
import math
import os
import socket
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from towpath.algos.contract import Metrics, Outputs, add, to_floats
from towpath.data.batch import Batch, Row
from towpath.data.chat import Chat
from towpath.data.draws import generator
from towpath.errors import ResourceError
from towpath.models import base, export, fused, heads, lm
from towpath.models.adapters import Adapters
from towpath.models.check_model import can_split_layers
from towpath.models.cpu import kernels
from towpath.models.cpu.optimizer import AdamW, merge_float32, split_float32
from towpath.models.head import token_logprobs
from towpath.models.heads import WIDE, RidgeHead, ScalarHead, random_feature_mean, running_mean
from towpath.models.packed_batch import concatenates_rows
from towpath.models.varlen import determinism_restored
from towpath.progress import print_note, progress
from towpath.recipe import Compile
from towpath.runtime import memory_plan, passes, state_files
from towpath.runtime.contract import Handle, Loss, Needs, OptimizerConfig, RoleSpec, Snapshot, WeightSink, WeightSource
from towpath.runtime.out_of_memory import with_less
from towpath.runtime.process import memory_in_use, release_memory
from towpath.runtime.transfer import to_device
from towpath.runtime.weight_source import weight_source
from towpath.runtime.worker_states import Usage, WorkerState

PACK_WIDTH = 256
"""Widest line that short rows are packed into; wider ones spend on attention what they save on padding."""
FEWEST_TOKENS = 16
"""Tokens a pass below which splitting further gains nothing."""
BEST = "best:"
"""Begins the names of the best weights in a checkpoint."""
MOST_PREFIX_BYTES = 2**30
"""States of frozen layers that are cached for one batch."""


@dataclass
class Role:
    """Which model a role reads, through which adapter, with which head, and what of it trains."""

    trunk: str = "base"
    adapter: str | None = None
    head: ScalarHead | None = None
    trains: tuple[str, ...] = ()
    """Any of trunk, adapter, head."""
    closed_form_head: RidgeHead | None = None
    """Solves for the head, where that is how it learns."""


class Local:
    """Models, the roles that read them, and one optimizer for whatever trains."""

    def __init__(
        self,
        tokens_per_pass: int | Literal["auto"] = 1024,
        pack_width: int = PACK_WIDTH,
        pad: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        attention: str = "grouped",
        compile: Compile | None = None,
        quantize: bool = False,
        gradient_checkpointing: bool = False,
        kernels: str = "auto",
    ) -> None:
        self.trunks: dict[str, Any] = {}
        self.adapters: dict[str, Adapters] = {}
        self.roles: dict[str, Role] = {}
        self.optimizer: AdamW | None = None
        self._plans_tokens = tokens_per_pass == "auto"
        self.tokens_per_pass: int = memory_plan.ON_A_CPU if tokens_per_pass == "auto" else tokens_per_pass
        self.pack_width = pack_width
        self.pad = pad
        self.dtype = dtype
        """Arithmetic of passes; weights that train stay float32."""
        self._device = device or torch.device("cpu")
        self._attention = attention
        self._compile = compile or Compile()
        self._quantize = quantize
        self._gradient_checkpointing = gradient_checkpointing
        self._kernels = kernels
        self._specs: dict[str, RoleSpec] = {}
        self._pads: dict[str, int] = {}
        """Padding tokens of models with a tokenizer of their own, by trunk."""
        self._plain: dict[str, Any] = {}
        """Plain copies of models with adapters, which engines sample from."""
        self._stored: dict[int, Tensor] = {}
        self._masks: dict[int, Tensor] = {}
        self._initial_fits: dict[str, RidgeHead] = {}
        self._nonfinite: list[str] = []
        self._version = 0
        self._dropping = False
        self.device_share = 1
        """Workers on the same device."""
        self.usage = Usage()
        """What this process has done and moved."""

    # Roles

    def open(self, roles: Mapping[str, RoleSpec], optimizer: OptimizerConfig | None = None) -> None:
        """Load models, add adapters and heads, and make an optimizer if a role trains."""
        for name, spec in roles.items():
            self._specs[name] = spec
            self.roles[name] = self._role(name, spec)
        self.prepare_training()
        rates = {name: spec.learning_rate for name, spec in roles.items() if spec.learning_rate is not None}
        rates |= {
            f"{name}/head": spec.head_learning_rate
            for name, spec in roles.items()
            if spec.head_learning_rate is not None
        }
        if rates:
            config = optimizer or OptimizerConfig()
            self.start(rates, config.eps, config.weight_decay)
        if self._plans_tokens:
            self._plan_tokens()

    def _plan_tokens(self) -> None:
        """As many tokens a pass as the device's memory holds beside the models."""
        adapted = [adapters for name, adapters in self.adapters.items() if name not in self._plain]
        copies = sum(adapters.parameter_count * self.dtype.itemsize for adapters in adapted)
        checkpointing = self._gradient_checkpointing
        trained = self.trained().values()
        tokens = memory_plan.tokens_per_pass(
            self.trunks, trained, copies, checkpointing, self.device, self.device_share
        )
        if tokens != self.tokens_per_pass:
            print_note(f"passes of {tokens} tokens, by the device's memory; model.tokens_per_pass sets another number")
        self.tokens_per_pass = tokens

    def prepare_training(self) -> None:
        """What is done to models once their adapters are there, before an optimizer is made."""

    def close(self, role: str) -> None:
        """Close a role, and free its model if no other role uses it."""
        trunk = self.roles.pop(role).trunk
        self._specs.pop(role, None)
        if all(other.trunk != trunk for other in self.roles.values()):
            for owned in (self.trunks, self.adapters, self._plain, self._pads):
                owned.pop(trunk, None)
            release_memory()

    def _role(self, name: str, spec: RoleSpec) -> Role:
        if spec.reads:
            basis = self.roles[spec.reads]
            width = self.trunks[basis.trunk].config.hidden_size + WIDE * (spec.head == "closed_form")
            head = ScalarHead(width).to(self.device).requires_grad_(False)
            return Role(basis.trunk, basis.adapter, head, closed_form_head=RidgeHead(head))
        if spec.copies:
            return self._copied(name, spec)
        whole = spec.learning_rate is not None and spec.lora is None
        trunk = name if whole else f"{spec.model} {spec.dtype}"
        if trunk not in self.trunks:
            exact = whole or spec.dtype == "float32"
            dtype = torch.promote_types(torch.float32, self.dtype) if exact else self.dtype
            self.add_trunk(trunk, self._load(spec, dtype, self._quantize), lora=False)
            if self._gradient_checkpointing:
                lm.checkpoint_layers(self.trunks[trunk])
            if spec.pad is not None:
                self._pads[trunk] = spec.pad
            self._compile_layers(self.trunks[trunk])
        if spec.lora and trunk not in self.adapters:
            self.adapters[trunk] = Adapters(self.trunks[trunk])
        if spec.lora:
            _add_adapter(self.adapters[trunk], name, spec)
        tensors = load_file(spec.init) if spec.init else {}
        if spec.lora and tensors:
            self.adapters[trunk].load(name, tensors)
        head = self._new_head(spec, trunk, tensors) if spec.head == "scalar" else None
        return Role(trunk, name if spec.lora else None, head, _trained_parts(spec))

    def _copied(self, name: str, spec: RoleSpec) -> Role:
        basis = self.roles[spec.copies]
        head = self._new_head(spec, basis.trunk, {}) if spec.head == "scalar" else None
        if basis.trunk not in self.adapters:
            self.add_trunk(name, copy.deepcopy(self.trunks[basis.trunk]), lora=False)
            return Role(name, None, head, _trained_parts(replace(spec, lora=None)))
        assert spec.lora is not None
        adapters = self.adapters[basis.trunk]
        _add_adapter(adapters, name, spec)
        if basis.adapter:
            adapters.load(name, {key: p.detach() for key, p in adapters.parameters(basis.adapter).items()})
        return Role(basis.trunk, name, head, _trained_parts(spec))

    def _new_head(self, spec: RoleSpec, trunk: str, tensors: Mapping[str, Tensor]) -> ScalarHead:
        width = self.trunks[trunk].config.hidden_size
        head = ScalarHead(width, spec.seed if spec.random_head else None).to(self.device)
        if tensors:
            head.load_state_dict({part: tensors[f"head.{part}"] for part in ("weight", "bias")})
        elif not spec.random_head:
            heads.copy_score_head(self.trunks[trunk], head)
        return head.requires_grad_(spec.learning_rate is not None)

    def _load(self, spec: RoleSpec, dtype: torch.dtype, quantize: bool = False) -> Any:
        pad = self.pad if spec.pad is None else spec.pad
        model = base.load(spec.model, dtype, self._attention, self._device, pad, quantize)
        fused.apply(model, self._kernels)
        return model

    def _compile_layers(self, model: Any) -> None:
        if self._compile.on:
            options = self._compile.model_dump(exclude={"on", "cudagraphs"})
            options["triton.cudagraphs"] = self._compile.cudagraphs
            for layer in lm.layers_of(model):
                layer.compile(dynamic=True, options=options)

    def add_trunk(self, name: str, model: Any, lora: bool) -> None:
        """Add a frozen model for roles; `lora` prepares it for adapters."""
        self.trunks[name] = model
        if lora:
            self.adapters[name] = Adapters(model)
        else:
            model.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """The device of the models."""
        return next((trunk.device for trunk in self.trunks.values()), self._device)

    def trained(self) -> dict[str, nn.Parameter]:
        """All trainable weights, by role and name."""
        parameters: dict[str, nn.Parameter] = {}
        for name, role in self.roles.items():
            if "adapter" in role.trains and role.adapter:
                own = self.adapters[role.trunk].parameters(role.adapter)
                parameters |= {f"{name}/{key}": p for key, p in own.items()}
            if "trunk" in role.trains:
                parameters |= {f"{name}/{key}": p for key, p in self.trunks[role.trunk].named_parameters()}
            if "head" in role.trains and role.head is not None:
                parameters |= {f"{name}/head.{key}": p for key, p in role.head.named_parameters()}
        return parameters

    def start(self, rates: Mapping[str, float], eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        """Unfreeze the trainable weights and make their optimizer, with one learning rate per role or `role/head`."""
        groups: dict[str, list[nn.Parameter]] = {}
        for key, parameter in self.trained().items():
            if self.dtype == torch.float64:  # to compare runtimes that sum in different orders
                parameter.data = parameter.data.double()
            parameter.requires_grad_(True)
            role, _, name = key.partition("/")
            group = f"{role}/head" if name.startswith("head.") and f"{role}/head" in rates else role
            groups.setdefault(group, []).append(parameter)
        # with weight decay the usual betas of pre-training, else those of Adam
        betas = 0.9, 0.95 if weight_decay else 0.999
        self.optimizer = AdamW([(rates[name], weights) for name, weights in groups.items()], eps, weight_decay, betas)
        self.split_weights()

    def split_weights(self) -> None:
        """Divide float32 weights that train into the bfloat16 that passes read, and low bits."""
        assert self.optimizer is not None
        for role in self.roles.values():
            if "trunk" in role.trains and self.dtype == torch.bfloat16:
                for weight in self.trunks[role.trunk].parameters():
                    self.optimizer.split_bf16(weight)
        if self.optimizer.low_bits:
            release_memory()  # the float32 weights that were loaded

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

    # The optimizer

    def step(self, rate: float, max_grad_norm: float) -> float:
        """Clip the gradient, move what trains by `rate` of its peak rate; the gradient's norm. Nothing moves where
        that is not finite."""
        assert self.optimizer is not None
        self._initial_fits.clear()
        norm = self.gradient_norm()
        if np.isfinite(norm):
            # clipped while it is read: no pass over the gradients of its own
            self.optimizer.step(rate, min(1.0, max_grad_norm / (norm + 1e-6)))
        else:
            gradients = self.optimizer.gradients()
            bad = {p for p, grad in gradients.items() if not bool(grad.isfinite().all())}
            self._nonfinite = [key for key, p in self.trained().items() if p in bad]
        self.optimizer.zero_grad()
        return norm

    def gradient_norm(self) -> float:
        """The norm of all gradients together."""
        assert self.optimizer is not None
        return self.optimizer.norm()

    def nonfinite(self) -> list[str]:
        """Names of the weights whose gradient was not finite in the last step that had one."""
        return self._nonfinite

    def reset_optimizer(self) -> None:
        """Reset the optimizer's moments, which belong to other weights."""
        assert self.optimizer is not None
        self.optimizer.state.clear()

    # State

    def write_state(self, folder: Path, best: Snapshot | None) -> None:
        """Write weights, optimizer state and a snapshot to a folder."""
        state_files.write_slices(folder, 0, 1, self.state() | {f"{BEST}{key}": x for key, x in (best or {}).items()})

    def read_state(self, folder: Path) -> Snapshot | None:
        """Load what `write_state` wrote, here or on workers, and return its snapshot."""
        reader = state_files.StateReader(folder)
        state, best = state_files.split_prefix({key: reader.read(key) for key in reader.keys()}, BEST)  # noqa: SIM118
        self.load_tensors(state)
        return best or None

    def snapshot(self) -> Snapshot:
        """A copy of all that trains: weights, and closed-form heads with the sums they rest on."""
        return {key: tensor.clone() for key, tensor in self._learned().items()}

    def state(self) -> dict[str, Tensor]:
        """Weights and optimizer: the tensors themselves, to be written before the next step."""
        assert self.optimizer is not None
        tensors = self._learned()
        for key, parameter in self.trained().items():
            for name, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam:{name}:{key}"] = value.cpu()
        return tensors

    def live(self) -> dict[str, Tensor]:
        """The tensors that are learned, themselves."""
        weights = {key: parameter.detach() for key, parameter in self.trained().items()}
        return weights | self._low_bits() | self._closed_form()

    def _learned(self) -> dict[str, Tensor]:
        return {key: tensor.cpu() for key, tensor in self.live().items()}

    def _low_bits(self) -> dict[str, Tensor]:
        """The low bits of weights that are split into bfloat16 and a rest."""
        low_bits = self.optimizer.low_bits if self.optimizer is not None else {}
        return {f"low_bits:{key}": low_bits[p] for key, p in self.trained().items() if p in low_bits}

    def _closed_form(self) -> dict[str, Tensor]:
        """Tensors of the closed-form heads."""
        heads = {name: role.closed_form_head for name, role in self.roles.items() if role.closed_form_head is not None}
        return {f"fit:{name}/{key}": x for name, head in heads.items() for key, x in head.state().items()}

    def restore(self, snapshot: Snapshot) -> None:
        """Load the weights of a snapshot."""
        self.load_tensors(snapshot)

    def load_tensors(self, state: Mapping[str, Tensor]) -> None:
        """Load the tensors of `snapshot` or `state`."""
        for key, part in self._closed_form().items():
            if key in state:
                part.copy_(state[key])
        low_bits = self._low_bits()
        for key, parameter in self.trained().items():
            value = state[key]
            with torch.no_grad():
                if f"low_bits:{key}" in state:
                    value = merge_float32(value, state[f"low_bits:{key}"])
                if f"low_bits:{key}" in low_bits:
                    value, low = split_float32(value)
                    low_bits[f"low_bits:{key}"].copy_(low)
                parameter.copy_(value)
            if self.optimizer is not None and f"adam:step:{key}" in state:
                self.optimizer.load_state(parameter, {name: state[f"adam:{name}:{key}"] for name in AdamW.STATE})

    @contextmanager
    def float32_weights(self, trunk: str) -> Iterator[Any]:
        """The model with split weights merged to float32, for writing."""
        low_bits = self.optimizer.low_bits if self.optimizer is not None else {}
        upper = {weight: weight.data for weight in self.trunks[trunk].parameters() if weight in low_bits}
        for weight, half in upper.items():
            weight.data = merge_float32(half, low_bits[weight])
        try:
            yield self.trunks[trunk]
        finally:
            for weight, half in upper.items():
                weight.data = half

    # Files and engines

    def save(self, role: str, path: Path) -> None:
        """Write a role's adapter and head to a safetensors file."""
        own = self.roles[role]
        tensors: dict[str, Tensor] = {}
        if own.head is not None:
            tensors |= {f"head.{name}": tensor for name, tensor in own.head.named_parameters()}
        if own.adapter:
            tensors |= self.adapters[own.trunk].parameters(own.adapter)
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, path)

    def export(self, role: str, folder: Path, chat: Chat) -> None:
        """Write the role's model as transformers loads it, in float32, adapter merged, with the tokenizer."""
        own = self.roles[role]
        if own.adapter is None:
            with self.float32_weights(own.trunk) as model:
                export.write_model(model, chat, folder)
            return
        model = self._load(self._specs[role], self.dtype).to(torch.float32)
        self.adapters[own.trunk].merge_into(model, own.adapter)
        export.write_model(model, chat, folder)

    def export_adapter(self, role: str, folder: Path) -> None:
        """Write the role's adapter in peft's format."""
        spec = self._specs[role]
        assert spec.lora is not None
        export.write_adapter(self.adapters[self.roles[role].trunk], role, spec.lora, spec.model, folder)

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


def _add_adapter(adapters: Adapters, name: str, spec: RoleSpec) -> None:
    lora = spec.lora
    assert lora is not None
    adapters.add(name, lora.rank, lora.alpha, spec.seed, lora.last_n_layers, lora.targets, lora.dropout)


def _trained_parts(spec: RoleSpec) -> tuple[str, ...]:
    """The trainable parts of a role."""
    if spec.learning_rate is None:
        return ()
    return ("adapter" if spec.lora else "trunk", *(["head"] if spec.head == "scalar" else []))


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
