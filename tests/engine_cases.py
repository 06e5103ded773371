"""Requests and models for tests of engines in a process of their own."""

import numpy as np
import torch

from towpath.recipe import Decoding
from towpath.rollout.engine import SampleRequest

DECODINGS = [
    Decoding(),
    Decoding(temperature=0.6),
    Decoding(top_k=7),
    Decoding(temperature=1.2, top_p=0.8),
    Decoding(min_p=0.05),
]
PROMPTS = [[5, 9, 20, 31], [7, 8], [40, 41, 42, 43, 44, 45, 46]]
STOPS = (2, 30)


def sample_requests(count=24, longest=20):
    rng = np.random.default_rng(3)
    return [
        SampleRequest(PROMPTS[i % 3], DECODINGS[i % 5], rng.random(1 + int(rng.integers(longest))))
        for i in range(count)
    ]


@torch.no_grad()
def change(model, amount=0.02):
    """A step of training: every weight moves a little."""
    torch.manual_seed(1)
    for weight in model.parameters():
        weight += amount * torch.randn_like(weight)


@torch.no_grad()
def change_one_projection(model, amount=1e-4):
    """So small a step that no log-probability shows it, in a weight that vLLM repacks on CPUs."""
    next(p for name, p in model.named_parameters() if "down_proj" in name)[0, 0] += amount


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.token_ids == b.token_ids
        assert a.finish == b.finish
        assert np.allclose(a.logprobs, b.logprobs, atol=1e-4)
