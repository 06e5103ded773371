"""Messages between a controller and its workers as JSON with raw arrays beside it: plain data and a closed list of
records. Nothing in a message is executed when it is read.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from towpath.algos.contract import Outputs
from towpath.data.batch import Batch, Row
from towpath.data.chat import Chat
from towpath.models import base
from towpath.recipe import Compile, Decoding, EngineConfig, Lora, Model
from towpath.runtime.contract import Loss, OptimizerConfig, RoleSpec

RECORDS: Mapping[str, type[Any]] = {
    record.__name__: record
    for record in (Compile, Decoding, EngineConfig, Lora, Loss, Model, OptimizerConfig, Outputs, RoleSpec)
}
TAG = "#"
"""The key that says what a JSON object stands for."""


class MessageError(ValueError):
    """Bytes that are no message."""


class _Encoder:
    def __init__(self) -> None:
        self.arrays: list[memoryview] = []
        """Of bytes, in the order in which the JSON names them."""

    def encode(self, x: Any) -> Any:
        if x is None or isinstance(x, bool | int | float | str):
            return x
        if isinstance(x, Tensor):
            return self._tensor(x)
        if isinstance(x, np.ndarray):
            return self._array(x)
        if isinstance(x, list):
            return [self.encode(item) for item in x]
        if isinstance(x, tuple):
            return {TAG: "tuple", "items": [self.encode(item) for item in x]}
        if isinstance(x, Mapping):
            return {TAG: "map", "keys": list(x), "items": [self.encode(item) for item in x.values()]}
        if isinstance(x, frozenset):
            return {TAG: "set", "items": sorted(x)}
        if isinstance(x, Path):
            return {TAG: "path", "text": str(x)}
        if isinstance(x, np.generic):
            return x.item()
        if isinstance(x, Batch):
            return self._batch(x)
        if isinstance(x, Chat):
            return {TAG: "chat", "source": list(x.source)}
        return self._record(x)

    def _tensor(self, x: Tensor) -> Any:
        host = x.detach().cpu().contiguous()
        dtype = str(host.dtype).removeprefix("torch.")
        self.arrays.append(host.reshape(-1).view(torch.uint8).numpy().data)
        return {TAG: "tensor", "dtype": dtype, "shape": list(host.shape)}

    def _array(self, x: np.ndarray) -> Any:
        if x.dtype.kind not in "biuf":
            raise TypeError(f"an array of {x.dtype} is not sent to a worker")
        self.arrays.append(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
        return {TAG: "array", "dtype": x.dtype.str, "shape": list(x.shape)}

    def _batch(self, batch: Batch) -> Any:
        """Rows as one array of tokens: thousands of small ones would each cost a header."""
        content = {
            "ids": np.concatenate([row.ids for row in batch.rows]) if batch.rows else np.zeros(0, np.int64),
            "lengths": np.array([len(row.ids) for row in batch.rows], np.int64),
            "starts": np.array([row.start for row in batch.rows], np.int64),
            "columns": dict(batch.columns),
            "sizes": np.array(batch.sizes, np.int64),
            "fixed": batch.fixed,
            "handles": dict(batch.handles),
        }
        return {TAG: "batch", "content": self.encode(content)}

    def _record(self, x: Any) -> Any:
        name = type(x).__name__
        if RECORDS.get(name) is not type(x):
            raise TypeError(f"{type(x).__module__}.{name} is not sent to a worker")
        names = type(x).model_fields if isinstance(x, BaseModel) else [field.name for field in fields(x)]
        return {TAG: "record", "name": name, "fields": {field: self.encode(getattr(x, field)) for field in names}}


def encode(message: Any) -> tuple[bytes, list[memoryview]]:
    """A message as a header and the bytes of its arrays, which follow it."""
    encoder = _Encoder()
    content = encoder.encode(message)
    header = {"message": content, "bytes": [array.nbytes for array in encoder.arrays]}
    return json.dumps(header, separators=(",", ":")).encode(), encoder.arrays


def array_bytes(header: bytes) -> int:
    """How many bytes of arrays follow a header."""
    return sum(_sizes(header))


def _sizes(header: bytes) -> list[int]:
    try:
        return [int(size) for size in json.loads(header)["bytes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise MessageError(f"not a message: {header[:60]!r}") from error


def decode(header: bytes, arrays: memoryview) -> Any:
    """The message; its arrays share the memory they arrived in."""
    try:
        content = json.loads(header)
        return _Decoder(arrays, content["bytes"]).decode(content["message"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise MessageError(f"not a message: {header[:60]!r}") from error


class _Decoder:
    def __init__(self, arrays: memoryview, sizes: list[int]) -> None:
        self.arrays = arrays
        self.ends = np.cumsum([0, *sizes])
        self.number = 0

    def decode(self, x: Any) -> Any:
        if isinstance(x, list):
            return [self.decode(item) for item in x]
        if not isinstance(x, dict):
            return x
        kind = x[TAG]
        if kind == "tuple":
            return tuple(self.decode(item) for item in x["items"])
        if kind == "map":
            return dict(zip(x["keys"], map(self.decode, x["items"]), strict=True))
        if kind == "set":
            return frozenset(x["items"])
        if kind == "path":
            return Path(x["text"])
        if kind == "batch":
            return self._batch(x["content"])
        if kind == "record":
            return self._record(x)
        if kind == "chat":
            return _chat(*x["source"])
        return self._values(x)

    def _values(self, x: dict[str, Any]) -> Any:
        part = self.arrays[self.ends[self.number] : self.ends[self.number + 1]]
        self.number += 1
        if x[TAG] == "array":
            return np.frombuffer(part, np.dtype(x["dtype"])).reshape(x["shape"])
        dtype = getattr(torch, x["dtype"])
        if not len(part):
            return torch.zeros(x["shape"], dtype=dtype)
        return torch.frombuffer(part, dtype=torch.uint8).view(dtype).reshape(x["shape"])

    def _batch(self, content: Any) -> Batch:
        content = self.decode(content)
        ends = np.cumsum(content["lengths"])
        parts = np.split(content["ids"], ends[:-1]) if len(ends) else []
        rows = [Row(ids, start) for ids, start in zip(parts, content["starts"].tolist(), strict=True)]
        sizes = tuple(content["sizes"].tolist())
        return Batch(rows, content["columns"], sizes, content["fixed"], content["handles"])

    def _record(self, x: dict[str, Any]) -> Any:
        record = RECORDS[x["name"]]
        values = {name: self.decode(item) for name, item in x["fields"].items()}
        if is_dataclass(record):
            return record(**values)
        return record.model_construct(**values)


@lru_cache
def _chat(folder: str, template: str) -> Chat:
    return Chat(base.load_tokenizer(folder), template)
