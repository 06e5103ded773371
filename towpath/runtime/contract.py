"""The contract between training code and the machine it runs on: verbs on named roles.

Batches and results lie in host memory. Only a runtime knows devices, adapters and processes; what is too large to
leave it is addressed by a handle. `Local` is the specification; other runtimes give the same numbers.

B rows, T answer tokens, N answer tokens of all rows, F features of a value head.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from towpath.algos.contract import Metrics, Outputs
from towpath.data.batch import Batch
from towpath.data.chat import Chat
from towpath.recipe import Lora
from towpath.runtime.worker_states import WorkerState

Needs = Mapping[str, tuple[str, ...]]
"""role -> what is wanted of it: logp, entropy, value, score, features, last."""
Snapshot = Any
"""A copy of what has been learned, where the runtime keeps it."""


@dataclass(frozen=True)
class RoleSpec:
    """A part that a model plays in a stage, as plain data.

    Roles on the same `model` share its frozen weights, each through an adapter of its own or none.
    """

    model: str = ""
    """Folder of the model; empty where `reads` or `copies` names a role instead."""
    lora: Lora | None = None
    """LoRA over the frozen model; None reads the model as it is, or trains all its weights."""
    seed: int = 0
    """Of a new adapter and a new head."""
    head: Literal["none", "scalar", "closed_form"] = "none"
    """A linear head: a scalar one that steps or stands still, or one that `fit` solves for."""
    random_head: bool = False
    """Begin with a random head, not with zeros or with the score head of a sequence-classification model."""
    init: Path | None = None
    """safetensors file with the adapter and the head that it begins with."""
    reads: str = ""
    """Role whose hidden states the head reads, at no extra pass."""
    copies: str = ""
    """Role whose weights it begins with, as a copy."""
    learning_rate: float | None = None
    """Peak rate; None freezes the role."""
    head_learning_rate: float | None = None
    """Peak rate of the head, where it differs."""
    pad: int | None = None
    """Padding token of the model's own tokenizer, where that is not the runtime's."""
    dtype: Literal["auto", "float32"] = "auto"
    """Arithmetic, where the runtime's own will not do."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW."""

    eps: float = 1e-8
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Loss:
    """A loss by name: an import path and plain data, so that it can be sent to another process."""

    algo: str
    config: dict[str, Any]
    knobs: dict[str, float] = field(default_factory=dict)

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        module = importlib.import_module(self.algo)
        return module, module.CONFIG.model_validate(self.config)

    def __call__(self, out: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        """Sum of weighted losses of a micro-batch, and its metrics."""
        module, config = self._parts
        return module.loss(out, batch, config, self.knobs)


class Handle:
    """Something large that stays in a runtime, freed when the last reference to the handle goes."""

    __slots__ = ("__weakref__",)


@dataclass(frozen=True)
class WeightSource:
    """A model's weights for an engine elsewhere: streamed one at a time, so that no second copy of the model exists."""

    config: Any
    """Of transformers."""
    architecture: str
    dtype: str
    """Of the weights as they are sent."""
    size: int
    """Bytes of all weights."""
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    """A fresh pass over the weights as a checkpoint names them, adapters merged, the head apart where it is tied."""
    last_logprobs: Callable[[Sequence[Sequence[int]]], list[float]]
    """Log-probability of the last token of each row after the others, by the trainer."""


class WeightSink(Protocol):
    """What weights are published to: an engine. One that has `receive(source, version)` is given a `WeightSource`
    instead of a model."""

    def refresh(self, model: Any, version: int) -> None:
        """Sample from this model, with the weights that it has now."""
        ...


class Runtime(Protocol):
    """Roles on models, and one optimizer for whatever trains."""

    def open(self, roles: Mapping[str, RoleSpec], optimizer: OptimizerConfig | None = None) -> None:
        """Load models, make adapters and heads; an optimizer where something trains. May be called again for more."""
        ...

    def close(self, role: str) -> None:
        """Let go of a role, and of its model where no other role reads it."""
        ...

    def score(self, role: str, batch: Batch, wants: tuple[str, ...], temperature: float = 1.0) -> Outputs:
        """Outputs of a role on a batch of any size, without gradient, rows in their order, in host memory."""
        ...

    def forward(self, needs: Needs, batch: Batch, loss: Loss, temperature: float = 1.0) -> Metrics:
        """Metrics of a loss, without gradient."""
        ...

    def forward_backward(
        self,
        needs: Needs,
        batch: Batch,
        loss: Loss,
        weight: float,
        temperature: float = 1.0,
        count: Callable[[int], None] = lambda rows: None,
    ) -> Metrics:
        """Add the gradient of loss / weight, where `weight` is the whole step's; metrics of the batch. `count` is
        told rows as they are done."""
        ...

    def step(self, rate: float, max_grad_norm: float) -> float:
        """Clip the gradient, move what trains by `rate` of its peak rate; the gradient's norm. Where that is not
        finite nothing moves."""
        ...

    def nonfinite(self) -> Sequence[str]:
        """Weights whose gradient was not finite in the last step."""
        ...

    def cache_frozen_prefix(self, batch: Batch, role: str) -> Batch:
        """The batch with a handle to what the frozen layers below all adapters give for it, computed once for all
        roles and epochs; the same batch where that does not pay."""
        ...

    def read_features(self, features: Handle, row_N: Tensor, token_N: Tensor) -> Tensor:
        """Some rows of value-head features [N,F]."""
        ...

    def fit(self, role: str, features: Handle | Tensor, target: Tensor, decay: float = 1.0) -> None:
        """Solve for a role's head: features of a batch and targets [B,T], or rows [N,F] and [N]; earlier calls weigh
        `decay`."""
        ...

    def head(self, role: str) -> dict[str, Tensor]:
        """Weight and bias of a role's head."""
        ...

    def set_head(self, role: str, weight: Tensor, bias: Tensor) -> None:
        """Replace a role's head."""
        ...

    def snapshot(self) -> Snapshot:
        """A copy of all trainable weights."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Load the weights of a snapshot."""
        ...

    def write_state(self, folder: Path, best: Snapshot | None) -> None:
        """Write trainable weights, optimizer state and a snapshot to a folder, for a checkpoint; what is written does
        not depend on the number of processes."""
        ...

    def read_state(self, folder: Path) -> Snapshot | None:
        """Load what `write_state` wrote, and return its snapshot."""
        ...

    def reset_optimizer(self) -> None:
        """Reset the optimizer's moments, which belong to other weights."""
        ...

    def save(self, role: str, path: Path) -> None:
        """Write a role's adapter and head to a safetensors file."""
        ...

    def export(self, role: str, folder: Path, chat: Chat) -> None:
        """Write the role's model as transformers loads it, adapter merged, with the tokenizer."""
        ...

    def export_adapter(self, role: str, folder: Path) -> None:
        """Write the role's adapter in peft's format."""
        ...

    def publish(self, role: str, engine: WeightSink) -> int:
        """Give an engine the role's weights and return their version."""
        ...

    def describe(self, role: str) -> dict[str, Any]:
        """Which modules an adapter changes, and their share of all parameters."""
        ...

    def environment(self) -> dict[str, str]:
        """Arithmetic and kernels, for the record of a run."""
        ...

    def memory_in_use(self) -> float:
        """Bytes."""
        ...

    def worker_states(self) -> Sequence[WorkerState]:
        """What each worker has done, without asking them: the present process where there are none."""
        ...

    def record_workers(self, path: Path) -> None:
        """Keep a file with the state of the workers from now on, where there are several."""
        ...

    def agree(self, value: float) -> float:
        """The first process's number, on every process; for decisions that depend on a clock."""
        ...
