"""The engine in this process: any transformers model, batched decoding, finished rows leave the batch."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from towpath.rollout import sampling
from towpath.rollout.engine import Drawn, Request


class LocalEngine:
    """Left-padded batches with position ids; a row's draws depend on its own request alone."""

    def __init__(self, model: Any, eos: int, pad: int, rows: int = 256) -> None:
        self.model, self.eos, self.pad, self.rows = model, eos, pad, rows

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], greedy: bool = False, tick: Callable[[int], None] | None = None) -> list[Drawn]:
        """Answers in the order of the requests."""
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
        drawn: dict[int, Drawn] = {}
        for begin in range(0, len(order), self.rows):
            chosen = order[begin : begin + self.rows]
            answers = self._batch([requests[i] for i in chosen], greedy, tick or (lambda _ended: None))
            drawn |= dict(zip(chosen, answers, strict=True))
        return [drawn[i] for i in range(len(requests))]

    def _batch(self, requests: list[Request], greedy: bool, tick: Callable[[int], None]) -> list[Drawn]:
        draw = _Draw(requests, self.model.device, greedy)
        limit = np.array([len(request.uniforms) for request in requests])
        tokens: list[list[int]] = [[] for _ in requests]
        logprobs: list[list[float]] = [[] for _ in requests]
        live = np.arange(len(requests))
        ids, mask, position = self._prefill_inputs(requests)
        cache = DynamicCache(config=self.model.config)
        for step in range(int(limit.max(initial=0))):
            token_B, logp_B = draw(self._logits(ids, mask, position, cache), step)
            for index, token, logp in zip(live, token_B.tolist(), logp_B.tolist(), strict=True):
                tokens[index].append(token)
                logprobs[index].append(logp)
            going = (token_B != self.eos).cpu().numpy() & (limit[live] > step + 1)
            tick(int((~going).sum()))
            if not going.any():
                break
            ids, position = token_B[:, None], position[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            if not going.all():
                kept = torch.from_numpy(going.nonzero()[0]).to(ids.device)
                ids, position, mask = ids[kept], position[kept], mask[kept]
                cache.batch_select_indices(kept)
                draw.keep(kept)
                live = live[going]
        finish = ["stop" if row and row[-1] == self.eos else "length" for row in tokens]
        return [Drawn(t, lp, f) for t, lp, f in zip(tokens, logprobs, finish, strict=True)]  # pyright: ignore[reportArgumentType]

    def _logits(self, ids: Tensor, mask: Tensor, position: Tensor, cache: DynamicCache) -> Tensor:
        """Logits [B,V] after the last column. The head reads a matrix: given a strided [B,1,D] and frozen weights,
        torch repeats the head's weights for every row, which costs seconds and gigabytes."""
        out = self.model.base_model(input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True)
        return self.model.get_output_embeddings()(out.last_hidden_state[:, -1].contiguous())

    def _prefill_inputs(self, requests: list[Request]) -> tuple[Tensor, Tensor, Tensor]:
        longest = max(len(request.prompt) for request in requests)
        ids = torch.full((len(requests), longest), self.pad)
        mask = torch.zeros_like(ids)
        for i, request in enumerate(requests):
            ids[i, longest - len(request.prompt) :] = torch.tensor(request.prompt)
            mask[i, longest - len(request.prompt) :] = 1
        position = (mask.cumsum(-1) - 1).clamp(min=0)
        device = self.model.device
        return ids.to(device), mask.to(device), position.to(device)


class _Draw:
    """The rows' decoding settings as columns, and the draw itself."""

    def __init__(self, requests: list[Request], device: torch.device, greedy: bool) -> None:
        def column(name: str, dtype: torch.dtype) -> Tensor:
            return torch.tensor([getattr(request.decoding, name) for request in requests], dtype=dtype, device=device)

        longest = max(len(request.uniforms) for request in requests)
        uniforms = np.zeros((len(requests), longest))
        for i, request in enumerate(requests):
            uniforms[i, : len(request.uniforms)] = request.uniforms
        self.greedy = greedy
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
        p_BV = sampling.scaled(logits_BV, c["temperature"])
        if self.greedy:
            token_B = logits_BV.argmax(-1)
        else:
            token_B = sampling.inverse_cdf(sampling.filtered(p_BV, c["top_k"], c["top_p"], c["min_p"]), c["uniforms"][:, step])
        return token_B, p_BV.gather(1, token_B[:, None])[:, 0].log()
