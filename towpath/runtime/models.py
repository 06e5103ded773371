"""The models of a process, the roles that read them, and an optimizer of what trains."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from towpath.models import base, fused, heads, lm
from towpath.models.adapters import Adapters
from towpath.models.cpu.optimizer import AdamW
from towpath.models.heads import WIDE, RidgeHead, ScalarHead
from towpath.progress import print_note
from towpath.recipe import Compile
from towpath.runtime import memory_plan
from towpath.runtime.contract import OptimizerConfig, RoleSpec
from towpath.runtime.process import release_memory
from towpath.runtime.worker_states import Usage

PACK_WIDTH = 256
"""Widest line that short rows are packed into; wider ones spend on attention what they save on padding."""


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


class Models:
    """Models, adapters and heads by role; made as the specifications of roles say."""

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


def _add_adapter(adapters: Adapters, name: str, spec: RoleSpec) -> None:
    lora = spec.lora
    assert lora is not None
    adapters.add(name, lora.rank, lora.alpha, spec.seed, lora.last_n_layers, lora.targets, lora.dropout)


def _trained_parts(spec: RoleSpec) -> tuple[str, ...]:
    """The trainable parts of a role."""
    if spec.learning_rate is None:
        return ()
    return ("adapter" if spec.lora else "trunk", *(["head"] if spec.head == "scalar" else []))
