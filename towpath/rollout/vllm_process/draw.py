"""Exact draws in vLLM: each token by its request's own uniform number, as the local engine draws.

A logits processor draws the token and leaves vLLM no other choice: the token's logit is its log-probability under the
temperature, all others are minus infinity. vLLM returns that logit (`logprobs_mode = "processed_logits"`). All that a
request needs travels in its `extra_args`, so that every worker of a tensor-parallel group has it.

B rows, V vocabulary, T new tokens.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor import LogitsProcessor as ProcessorV1

try:
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as ProcessorV2
except ImportError:  # versions whose second model runner takes no processors
    ProcessorV2 = object

_spec = importlib.util.spec_from_file_location("sampling", Path(__file__).parents[1] / "sampling.py")
assert _spec and _spec.loader
sampling = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sampling)

COLUMNS = ("temperature", "top_k", "top_p", "min_p", "greedy")
DTYPES = (torch.float32, torch.int64, torch.float32, torch.float32, torch.bool)


@dataclass
class How:
    """How one request draws."""

    columns: tuple[float, ...]
    """Values of COLUMNS."""
    uniform_T: np.ndarray


def how(params: SamplingParams) -> How | None:
    """What a request brings; None where vLLM's own sampler draws."""
    extra = params.extra_args or {}
    if "uniforms" not in extra:
        return None
    return How(tuple(extra[name] for name in COLUMNS), np.frombuffer(extra["uniforms"], np.float64))


def draw(logits_BV: Tensor, columns: dict[str, Tensor], uniform_B: Tensor) -> Tensor:
    """Logits that leave one token of each row, with its log-probability under the temperature, before any filter."""
    greedy_B = columns["greedy"]
    p_BV = sampling.scaled(logits_BV.clone(), columns["temperature"])
    kept_BV = sampling.filtered(p_BV, columns["top_k"], columns["top_p"], columns["min_p"])
    token_B = torch.where(greedy_B, logits_BV.argmax(-1), sampling.inverse_cdf(kept_BV, uniform_B))
    logp_B1 = p_BV.gather(1, token_B[:, None]).log()
    return torch.full_like(logits_BV, -torch.inf).scatter_(1, token_B[:, None], logp_B1.to(logits_BV.dtype))


class DrawV1(ProcessorV1):
    """For the first model runner, which names rows by their index in the batch and lists their output."""

    def __init__(self, _config: Any, device: torch.device, _pinned: bool) -> None:
        self.device = device
        self.rows: dict[int, tuple[How, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for slot in batch_update.removed:
            self.rows.pop(slot, None)
        for slot, params, _prompt, output in batch_update.added:
            request = how(params)
            self.rows.pop(slot, None)
            if request is not None:
                self.rows[slot] = (request, output)
        for a, b, way in batch_update.moved:
            first = self.rows.pop(a, None)
            second = self.rows.pop(b, None)
            if first:
                self.rows[b] = first
            if second and way == MoveDirectionality.SWAP:
                self.rows[a] = second

    def apply(self, logits: Tensor) -> Tensor:
        slots = [slot for slot in range(len(logits)) if slot in self.rows]
        if not slots:
            return logits
        requests = [self.rows[slot] for slot in slots]
        uniforms = [float(request.uniform_T[min(len(out), len(request.uniform_T) - 1)]) for request, out in requests]
        values = zip(*(request.columns for request, _ in requests), strict=True)
        columns = {
            name: torch.tensor(column, dtype=dtype, device=self.device)
            for name, dtype, column in zip(COLUMNS, DTYPES, values, strict=True)
        }
        uniform_B = torch.tensor(uniforms, dtype=torch.float64, device=self.device)
        if len(slots) == len(logits):
            return draw(logits, columns, uniform_B)
        index = torch.tensor(slots, device=self.device)
        return logits.index_copy(0, index, draw(logits[index], columns, uniform_B))


class DrawV2(ProcessorV2):
    """For the second model runner, which keeps a request in one slot and knows positions on the device."""

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        self.states = req_states
        slots = req_states.max_num_reqs
        length = vllm_config.model_config.max_model_len
        self.uniform_ST = torch.zeros(slots, length, dtype=torch.float64, device=req_states.device)
        self.columns = {
            name: torch.zeros(slots, dtype=dtype, device=req_states.device)
            for name, dtype in zip(COLUMNS, DTYPES, strict=True)
        }
        self.active = np.zeros(slots, dtype=bool)
        self.staged: dict[int, How] = {}

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        request = how(sampling_params)
        self.active[req_idx] = request is not None
        self.staged.pop(req_idx, None)
        if request is not None:
            self.staged[req_idx] = request
        return request is not None

    def apply_staged_writes(self) -> None:
        if not self.staged:
            return
        slots = list(self.staged)
        index = torch.tensor(slots, device=self.states.device)
        values = zip(*(self.staged[slot].columns for slot in slots), strict=True)
        for name, dtype, column in zip(COLUMNS, DTYPES, values, strict=True):
            self.columns[name][index] = torch.tensor(column, dtype=dtype, device=self.states.device)
        for slot, request in self.staged.items():
            uniform_T = torch.from_numpy(request.uniform_T.copy())
            self.uniform_ST[slot, : len(uniform_T)] = uniform_T.to(self.states.device)
        self.staged.clear()

    def apply(self, logits: Tensor, ctx: Any) -> Tensor:
        active = self.active[ctx.idx_mapping_np]
        if not active.any():
            return logits
        slot_B = ctx.expanded_idx_mapping.long()
        # of a chunk of a long prompt the row is before the answer, and what it draws is not used
        step_B = (ctx.pos + 1 - self.states.prompt_len.gpu[slot_B]).clamp(0, self.uniform_ST.shape[1] - 1).long()
        columns = {name: column[slot_B] for name, column in self.columns.items()}
        drawn_BV = draw(logits, _neutral(columns), self.uniform_ST[slot_B, step_B])
        if active.all():
            return drawn_BV
        own_B = torch.from_numpy(self.active).to(logits.device)[slot_B]
        return torch.where(own_B[:, None], drawn_BV, logits)


class Draw(ProcessorV1, ProcessorV2):
    """Whichever of the two the model runner asks for: it gives the first a device, the second its request states."""

    def __new__(cls, config: Any, *rest: Any) -> Any:
        return DrawV1(config, *rest) if len(rest) == 2 else DrawV2(config, *rest)


def _neutral(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Slots that vLLM's own sampler draws have no temperature; any will do."""
    return columns | {"temperature": torch.where(columns["temperature"] > 0, columns["temperature"], 1.0)}
