"""The engine in this process: any transformers model, batched decoding, finished rows leave the batch."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from towpath.data.chat import Chat
from towpath.models.cpu import kernels, layers, native
from towpath.models.head import head_of
from towpath.models.packed_batch import attention_mask, cache_name, windowed
from towpath.recipe import EngineConfig
from towpath.rollout import sampling
from towpath.rollout.cache import Room, leaving, merge_caches
from towpath.rollout.engine import SampleOutput, SampleRequest, Tick, prompt_cost

CPU_TOKENS = 2048
GPU_TOKENS = 32_768
"""Tokens of prompts, with their padding, that are read in one pass."""


def open_engine(section: EngineConfig, chat: Chat, folder: Path, max_tokens: int) -> "LocalEngine":
    """The engine in this process; `refresh` gives it a model."""
    return LocalEngine(None, chat.stops, chat.pad)


class LocalEngine:
    """Left-padded batches with position ids; a row's draws depend on its own request alone."""

    def __init__(self, model: Any, eos: int | Sequence[int], pad: int, rows: int = 256) -> None:
        self.model = model
        self.pad = pad
        self.rows = rows
        self.eos: list[int] = [eos] if isinstance(eos, int) else sorted(eos)
        """Every token that ends an answer."""

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[SampleRequest], greedy: bool = False, tick: Tick | None = None
    ) -> list[SampleOutput]:
        """Answers in the order of the requests."""
        # prompts of similar length together, and equal prompts side by side: they are read once
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), requests[i].prompt))
        outputs: dict[int, SampleOutput] = {}
        with layers.sampling_head(self.model, head_of(self.model)) as self.head:
            for begin in range(0, len(order), self.rows):
                chosen = order[begin : begin + self.rows]
                answers = self._batch([requests[i] for i in chosen], greedy, tick or (lambda _tokens, _ended: None))
                outputs |= dict(zip(chosen, answers, strict=True))
        return [outputs[i] for i in range(len(requests))]

    def refresh(self, model: Any, version: int = 0) -> None:
        """Sample from this model; its weights are read in place."""
        self.model = model

    def _batch(self, requests: list[SampleRequest], greedy: bool, tick: Tick) -> list[SampleOutput]:
        draw = _Draw(requests, self.model.device, greedy)
        limit = np.array([len(request.uniforms) for request in requests])
        tokens: list[list[int]] = [[] for _ in requests]
        logprobs: list[list[float]] = [[] for _ in requests]
        live = np.arange(len(requests))
        spared = 0
        stops = torch.tensor(self.eos, device=self.model.device)
        # logits [B,V], position [B,1] of the last token; `room` holds the KV cache and its mask
        logits, position, room = self._prefill([request.prompt for request in requests], tick)
        for step in range(int(limit.max())):
            token_B, logp_B = draw(logits, step)
            for index, token, logp in zip(live, token_B.tolist(), logp_B.tolist(), strict=True):
                tokens[index].append(token)
                logprobs[index].append(logp)
            going_B = ~torch.isin(token_B, stops) & torch.from_numpy(limit[live] > step + 1).to(token_B.device)
            ended_B = ~going_B.cpu().numpy()
            ended = int(ended_B.sum())
            # Tokens that ended rows will not need count as done bit by bit until the last step: a step takes about as
            # long for few rows as for many, and an estimate by tokens alone would grow once most rows have ended.
            spared += int((limit[live] - step - 1)[ended_B].sum())
            steps_left = int((limit[live] - step - 1)[~ended_B].max(initial=0))
            done = spared if not steps_left else spared // (steps_left + 1)
            spared -= done
            tick(len(live) + done, ended)
            if ended == len(live):
                break
            if ended:  # finished rows leave the batch and the cache
                order = leaving(going_B)
                token_B = token_B[order]
                position = position[order]
                live = live[order.cpu().numpy()]
                draw.keep(order)
                room.keep(order)
            position = position + 1
            mask = windowed(self.model.config, room.next(), room.filled)
            logits = self._logits(token_B[:, None], mask, position, room.cache)
        finish = ["stop" if row and row[-1] in self.eos else "length" for row in tokens]
        return [SampleOutput(t, lp, f) for t, lp, f in zip(tokens, logprobs, finish, strict=True)]  # pyright: ignore[reportArgumentType]

    def _logits(self, ids: Tensor, mask: Any, position: Tensor, cache: Cache) -> Tensor:
        """Logits [B,V] after the last column. The head reads a matrix: given a strided [B,1,D] and frozen weights,
        torch repeats the head's weights for every row, which costs seconds and gigabytes."""
        if layers.is_supported(self.model):
            return self.head(layers.decode_step(self.model, ids, position, mask, cache))
        body = self.model.base_model
        out = body(
            input_ids=ids, attention_mask=mask, position_ids=position, use_cache=True, **{cache_name(type(body)): cache}
        )
        return self.head(out.last_hidden_state[:, -1].contiguous())

    def _prefill(self, prompts: Sequence[Sequence[int]], tick: Tick) -> tuple[Tensor, Tensor, Room]:
        """Logits, last positions [B,1] and cache of every row; a prompt that several rows share is read once. Prompts
        are read a few thousand tokens at a time, the shorter ones first, so that few are read with much padding."""
        rows: dict[tuple[int, ...], int] = Counter(map(tuple, prompts))
        different = sorted(rows, key=len)
        number = {prompt: i for i, prompt in enumerate(different)}
        index = torch.tensor([number[tuple(prompt)] for prompt in prompts], device=self.model.device)
        logits: list[Tensor] = []
        caches: list[Cache] = []
        for part in _parts(different, CPU_TOKENS if self.model.device.type == "cpu" else GPU_TOKENS):
            ids, mask, position = self._left_padded(part)
            caches.append(Cache(layers=[DynamicLayer() for _ in range(self.model.config.num_hidden_layers)]))
            additive = windowed(self.model.config, attention_mask(mask, self.model.dtype), ids.shape[1])
            logits.append(self._logits(ids, additive, position, caches[-1]))
            tick(sum(rows[prompt] * prompt_cost(prompt) for prompt in part), 0)
        _, mask, position = self._left_padded(different)
        compiled = layers.is_supported(self.model) and kernels.compiled(logits[0])
        return torch.cat(logits)[index], position[index, -1:], Room(merge_caches(caches), mask, index, compiled)

    def _left_padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self.pad)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, longest - len(prompt) :] = torch.tensor(prompt)
            mask[i, longest - len(prompt) :] = 1
        position = (mask.cumsum(-1) - 1).clamp(min=0)
        device = self.model.device
        return ids.to(device), mask.to(device), position.to(device)


def _parts(prompts: Sequence[tuple[int, ...]], tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """Prompts, the shorter ones first, in parts of at most so many tokens with their padding, or of one prompt."""
    part: list[tuple[int, ...]] = []
    for prompt in prompts:
        if part and (len(part) + 1) * len(prompt) > tokens:
            yield part
            part = []
        part.append(prompt)
    yield part


class _Draw:
    """The rows' decoding settings as columns, and the draw itself."""

    def __init__(self, requests: list[SampleRequest], device: torch.device, greedy: bool) -> None:
        def column(name: str, dtype: torch.dtype) -> Tensor:
            return torch.tensor([getattr(request.decoding, name) for request in requests], dtype=dtype, device=device)

        longest = max(len(request.uniforms) for request in requests)
        uniforms = np.zeros((len(requests), longest))
        for i, request in enumerate(requests):
            uniforms[i, : len(request.uniforms)] = request.uniforms
        self.greedy = greedy
        # without top-k, top-p and min-p a compiled kernel samples straight from the logits
        self.narrowed = any(r.decoding.top_k > 0 or r.decoding.top_p < 1 or r.decoding.min_p > 0 for r in requests)
        self.columns = {
            "uniforms": torch.from_numpy(uniforms).to(device),
            "temperature": column("temperature", torch.float32),
            "top_k": column("top_k", torch.int64),
            "top_p": column("top_p", torch.float32),
            "min_p": column("min_p", torch.float32),
        }

    def keep(self, index: Tensor) -> None:
        self.columns = {name: column[index] for name, column in self.columns.items()}

    def __call__(self, logits_BV: Tensor, step: int) -> tuple[Tensor, Tensor]:
        c = self.columns
        if kernels.compiled(logits_BV) and not self.greedy and not self.narrowed:
            return native.sample_tokens(logits_BV, c["temperature"], c["uniforms"][:, step])
        # log-probabilities are those at the temperature, before top-k, top-p and min-p: the trainer's
        p_BV = sampling.scaled(logits_BV, c["temperature"])
        if self.greedy:
            token_B = logits_BV.argmax(-1)
        else:
            token_B = sampling.inverse_cdf(
                sampling.filtered(p_BV, c["top_k"], c["top_p"], c["min_p"]), c["uniforms"][:, step]
            )
        return token_B, p_BV.gather(1, token_B[:, None])[:, 0].log()
