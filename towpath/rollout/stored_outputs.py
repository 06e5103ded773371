"""Completions on disk: as tensors of a checkpoint, and a cache of those of untrained weights."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from towpath.errors import DataError
from towpath.rollout.engine import SampleOutput, SampleRequest
from towpath.store.publish import is_intact, publish

FILE = "outputs.safetensors"


def pack_outputs(outputs: Sequence[SampleOutput]) -> dict[str, Tensor]:
    """Completions as tensors of a checkpoint."""
    return {
        "lengths": torch.tensor([len(o.token_ids) for o in outputs]),
        "tokens": torch.tensor([t for o in outputs for t in o.token_ids]),
        "logprobs": torch.tensor([x for o in outputs for x in o.logprobs], dtype=torch.float64),
    }


def unpack_outputs(tensors: dict[str, Tensor], stops: Sequence[int]) -> list[SampleOutput]:
    """Completions from tensors."""
    outputs = []
    begin = 0
    for length in tensors["lengths"].tolist():
        end = begin + length
        tokens = tensors["tokens"][begin:end].tolist()
        finish = "stop" if tokens[-1] in stops else "length"
        outputs.append(SampleOutput(tokens, tensors["logprobs"][begin:end].tolist(), finish))
        begin = end
    return outputs


class StartCache:
    """Completions of the policy before its first update, shared by the trials of a sweep: one that asks for the same
    prompts, random numbers, temperature and length gets the same bits."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder
        self.identity = identity
        """What else the completions depend on, such as the adapters."""

    def outputs(
        self, requests: Sequence[SampleRequest], stops: Sequence[int], make: Callable[[], list[SampleOutput]]
    ) -> list[SampleOutput]:
        """The completions of these requests, which `make` samples the first time."""
        path = self.folder / self._digest(requests)
        if is_intact(path):
            return unpack_outputs(load_file(path / FILE), stops)
        outputs = make()
        try:
            publish(path, lambda target: save_file(pack_outputs(outputs), target / FILE))
        except (DataError, OSError):
            if not is_intact(path):  # else another trial has stored them meanwhile
                raise
        return outputs

    def _digest(self, requests: Sequence[SampleRequest]) -> str:
        digest = hashlib.sha256(self.identity.encode())
        for request in requests:
            digest.update(repr((list(request.prompt), request.decoding)).encode())
            digest.update(request.uniforms.tobytes())
        return digest.hexdigest()[:16]
