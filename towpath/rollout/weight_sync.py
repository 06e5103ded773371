"""Weights from the trainer to an engine in four phases: connect, start, update, finish. Each update is verified."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from towpath.errors import ResourceError
from towpath.progress import print_note
from towpath.rollout.engine import SampleOutput
from towpath.rollout.vllm_client import VllmClient
from towpath.rollout.vllm_process.tensors import CHUNK, Fingerprint, checksum, describe, fingerprint, padded
from towpath.rollout.weight_transport import Transport, candidates
from towpath.runtime.contract import WeightSource

CHECKED = 8
"""Weights that are read back from the engine after an update; after the first all are."""
TRY_BYTES = 2**16
TOLERANCE = 1e-9
"""Relative error of a float64 sum in another order."""
PROBE_LIMIT = {"float32": 0.02, "float16": 0.1, "bfloat16": 0.25}
"""Mean gap in nats between the engine's log-probabilities and the trainer's, beyond which the weights differ."""
RULE = "an engine samples only from weights that were read back from it and agree with the trainer's"

FIX = "report this with the engine's log; engine.type = 'local' samples in this process"


@dataclass(frozen=True)
class SyncReport:
    """What one update moved and how it was verified."""

    version: int
    tensors: int
    bytes: int
    seconds: float
    transport: str
    checked: int
    """Weights that were read back."""


@dataclass
class Sent:
    """What was sent in one update."""

    wanted: frozenset[str] | None
    """Tensors that have fingerprints besides checksums; None for all."""
    checksums: dict[str, int] = field(default_factory=dict)
    prints: dict[str, Fingerprint] = field(default_factory=dict)

    def add(self, name: str, tensor: Tensor) -> None:
        """Note a tensor."""
        self.checksums[name] = checksum(tensor)
        if self.wanted is None or name in self.wanted:
            self.prints[name] = fingerprint(tensor)


class WeightSync:
    """Updates of one engine's weights; knows what it sent last."""

    def __init__(self, client: VllmClient, workers: list[dict[str, Any]], folder: Path, transport: str) -> None:
        self.client = client
        self.workers = workers
        self.folder = folder
        self.wanted = transport
        self.transport: Transport | None = None
        self.checksums: dict[str, int] = {}
        """Of every tensor of the last update."""
        self.version = 0
        self._served: dict[str, Fingerprint] = {}
        self._parts: dict[str, list[str]] = {}
        """Readable weights, and the tensors that each is made of; empty before the first update."""

    def update(self, source: WeightSource, version: int) -> SyncReport:
        """Send all weights, and compare what came and what serves now."""
        started = time.monotonic()
        if self.transport is None:
            self.transport = self._connect(next(source.tensors())[1].device)
        names = self._spread(version)
        sent = Sent(frozenset(part for name in names for part in self._parts[name]) if self._parts else None)
        self.client.ask({"do": "begin"})
        try:
            for chunk, size in self._chunks(self.transport, source, sent):
                self._send(self.transport, chunk, size, sent.checksums)
        finally:
            self.transport.release()
        finished, _ = self.client.ask({"do": "finish", "version": version})
        if finished["finished"] != version:
            raise stale(finished["finished"], version)
        checked = self._verify(sent, version, names if self._parts else None)
        self.checksums = sent.checksums
        self.version = version
        seconds = time.monotonic() - started
        return SyncReport(version, len(sent.checksums), source.size, seconds, self.transport.name, checked)

    def _connect(self, device: torch.device) -> Transport:
        """The first transport that moves 64 KiB, said in one line."""
        refusals: list[str] = []
        for transport in candidates(device, self.workers, self.folder, self.client.limit, self.wanted):
            reason = self._try(transport)
            if not reason:
                note = f" ({'; '.join(refusals)})" if refusals else ""
                print_note(f"weights go to vLLM by {transport.name}{note}")
                return transport
            refusals.append(f"{transport.name} refused: {reason}")
        fix = "set engine.transport = 'auto', and see the engine's log"
        raise ResourceError(f"no way to send weights to vLLM: {'; '.join(refusals) or 'none fits'}", RULE, fix)

    def _try(self, transport: Transport) -> str:
        """Why a transport does not work, or nothing."""
        try:
            self.client.send({"do": "connect", "transport": transport.name, "connect": transport.connect()})
            transport.accept()
            reply, _ = self.client.receive(f"connecting by {transport.name}")
            if "refused" in reply:
                return reply["refused"]
            buffer = transport.buffer(TRY_BYTES)
            buffer.copy_(torch.arange(TRY_BYTES, device=buffer.device) % 251)
            self.client.send({"do": "attempt", "size": TRY_BYTES, "source": transport.source(TRY_BYTES)})
            transport.send(TRY_BYTES)
            reply, _ = self.client.receive(f"64 KiB by {transport.name}")
            if "refused" in reply:
                return reply["refused"]
            same = all(there == checksum(buffer) for there in reply["answer"])
            return "" if same else "other bytes came"
        except (OSError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            transport.release()

    def _chunks(
        self, transport: Transport, source: WeightSource, sent: Sent
    ) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """Descriptions of tensors that lie in the transport's buffer, and their bytes; each is copied as it comes."""
        largest = min(CHUNK, source.size + 2**20)
        chunk: list[dict[str, Any]] = []
        end = 0
        for name, tensor in source.tensors():
            size = padded(tensor.numel() * tensor.itemsize)
            if chunk and end + size > largest:
                yield chunk, end
                chunk = []
                end = 0
            buffer = transport.buffer(max(largest, size))
            _copy_to(buffer[end : end + size], tensor)
            sent.add(name, tensor)
            chunk.append(describe(name, tensor, end))
            end += size
        if chunk:
            yield chunk, end

    def _send(self, transport: Transport, chunk: list[dict[str, Any]], size: int, checksums: Mapping[str, int]) -> None:
        """One chunk, acknowledged by the checksums of what came."""
        self.client.send({"do": "update", "size": size, "source": transport.source(size), "tensors": chunk})
        transport.send(size)
        _, arrays = self.client.receive("a weight update")
        names = [one["name"] for one in chunk]
        for received in arrays["checksums"].tolist():
            wrong = next((i for i, name in enumerate(names) if checksums[name] not in received[i : i + 1]), None)
            if len(received) != len(names):
                missing = names[len(received) if wrong is None else wrong]
                raise _corrupt(f"{len(received)} of {len(names)} tensors came; the first that is missing is {missing}")
            if wrong is not None:
                raise _corrupt(f"{names[wrong]} came with other values")

    def _verify(self, sent: Sent, version: int, names: list[str] | None) -> int:
        """Read back version, count and weights; how many were compared."""
        reply, _ = self.client.ask({"do": "verify", "names": names})
        if reply["version"] != version:
            raise stale(reply["version"], version)
        if reply["count"] != len(sent.checksums):
            raise _corrupt(f"{reply['count']} of {len(sent.checksums)} tensors were loaded")
        first = reply["ranks"][0]
        parts = {name: p for name, p in first["parts"].items() if all(part in sent.checksums for part in p)}
        missing = [name for name in first["missing"] if name in parts]
        if missing:
            raise _corrupt(f"{len(missing)} weights were not loaded; the first is {missing[0]}")
        self._parts = {name: parts[name] for name in first["readable"] if name in parts}
        serves = {name: [tuple(rank["prints"][name]) for rank in reply["ranks"]] for name in first["prints"]}
        serves = {name: ranks for name, ranks in serves.items() if name in parts}
        # over several GPUs a rank may hold a slice of one part and the whole of another
        serves = {name: ranks for name, ranks in serves.items() if len(ranks) == 1 or len(parts[name]) == 1}
        wrong = [name for name, ranks in serves.items() if not _serves(ranks, [sent.prints[p] for p in parts[name]])]
        if wrong:
            old = all(_same(serves[name][0], self._served.get(name, (math.nan, math.nan))) for name in wrong)
            raise stale(self.version, version) if old else _corrupt(f"{wrong[0]} serves with other values")
        self._served |= {name: ranks[0] for name, ranks in serves.items()}
        return len(serves)

    def _spread(self, version: int) -> list[str]:
        """Some readable weights, others at each version."""
        readable = list(self._parts)
        step = max(1, len(readable) // CHECKED)
        return readable[version % step :: step][:CHECKED]


class Probe:
    """Prompts whose likeliest next token has the same log-probability in the engine and in the trainer."""

    def __init__(self, vocabulary: int) -> None:
        ids = [(7919 * i + 104729) % vocabulary for i in range(1, 25)]
        self.prompts = [ids[:length] for length in (1, 2, 3, 5, 8, 12, 16, 24)]
        self._last: tuple[list[int], list[float]] | None = None

    def verify(
        self, source: WeightSource, answers: Sequence[SampleOutput], changed: bool, versions: tuple[int, int]
    ) -> float:
        """The mean gap in nats. Bit-equal answers of weights that changed are those of the old weights: a gap could
        not show that after a small step."""
        tokens = [answer.token_ids[0] for answer in answers]
        logprobs = [answer.logprobs[0] for answer in answers]
        if changed and (tokens, logprobs) == self._last:
            raise stale(*versions)
        trainer = source.last_logprobs([[*prompt, token] for prompt, token in zip(self.prompts, tokens, strict=True)])
        gap = float(np.abs(np.array(trainer) - np.array(logprobs)).mean())
        limit = PROBE_LIMIT[source.dtype]
        if not gap <= limit:
            raise _corrupt(
                f"log-probabilities of fixed prompts differ by {gap:.3g} nats from the trainer's, more than {limit:g}"
            )
        self._last = tokens, logprobs
        return gap


def stale(served: int, version: int) -> ResourceError:
    """The engine samples from weights of an earlier version."""
    return ResourceError(f"vLLM serves version {served} of the weights, not {version}", RULE, FIX)


def _corrupt(what: str) -> ResourceError:
    return ResourceError(f"the weights in vLLM are not the trainer's: {what}", RULE, FIX)


def _copy_to(room: Tensor, tensor: Tensor) -> None:
    """Copy a tensor to the start of some bytes."""
    size = tensor.numel() * tensor.itemsize
    room[:size].view(tensor.dtype).copy_(tensor.reshape(-1))


def _same(a: Fingerprint, b: Fingerprint) -> bool:
    total = TOLERANCE * (1 + math.sqrt(abs(b[1])))
    return abs(a[0] - b[0]) <= total and abs(a[1] - b[1]) <= TOLERANCE * (1 + abs(b[1]))


def _serves(ranks: Sequence[Fingerprint], parts: Sequence[Fingerprint]) -> bool:
    """Whether a parameter is made of these tensors: whole on every rank, or in slices."""
    expected = sum(part[0] for part in parts), sum(part[1] for part in parts)
    slices = sum(rank[0] for rank in ranks), sum(rank[1] for rank in ranks)
    return all(_same(rank, expected) for rank in ranks) or _same(slices, expected)
