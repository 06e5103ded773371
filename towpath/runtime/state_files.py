"""Tensors of a checkpoint in files that do not depend on the number of workers: each worker writes the slices that it
has, and reads the slices that it needs, whoever wrote them.

A slice is some first-dimension rows of a tensor. One file with whole tensors, `tensors.safetensors`, is the same with
one writer.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from towpath.errors import DataError

WHOLE = "tensors.safetensors"
LAYOUT = "towpath_slices"
"""Key of the file's metadata: JSON of tensor -> [first row, rows of the whole tensor]."""


@dataclass(frozen=True)
class Slice:
    """Rows of a tensor from `begin` on, of `rows` in all."""

    tensor: Tensor
    begin: int
    rows: int


def write_slices(folder: Path, writer: int, writers: int, slices: Mapping[str, Slice | Tensor]) -> None:
    """Write one worker's slices; a tensor that is not sliced is written as it is, by one worker only."""
    tensors = {}
    layout = {}
    for key, part in slices.items():
        if isinstance(part, Slice):
            layout[key] = [part.begin, part.rows]
            part = part.tensor
        tensors[key] = part.detach().cpu().contiguous()
    name = WHOLE if writers == 1 else f"tensors-{writer + 1}-of-{writers}.safetensors"
    save_file(tensors, folder / name, metadata={LAYOUT: json.dumps(layout)} if layout else None)


class StateReader:
    """The tensors in the files of a checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parts: dict[str, list[tuple[int, int, Path]]] = {}
        """(first row, last row + 1, file) of each tensor; (0, 0, file) where it is whole."""
        for path in sorted(folder.glob("tensors*.safetensors")):
            with safe_open(path, "pt") as file:
                layout = json.loads((file.metadata() or {}).get(LAYOUT, "{}"))
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    begin = layout[key][0] if key in layout else 0
                    count = file.get_slice(key).get_shape()[0] if key in layout else 0
                    self._parts.setdefault(key, []).append((begin, begin + count, path))

    def keys(self) -> list[str]:
        """The names of all tensors."""
        return list(self._parts)

    def read(self, key: str) -> Tensor:
        """A whole tensor."""
        return self.read_rows(key, None)

    def read_rows(self, key: str, wanted: tuple[int, int] | None) -> Tensor:
        """The rows from the first to before the second number, or all."""
        pieces = []
        for begin, end, path in sorted(self._parts[key], key=lambda part: part[0]):
            with safe_open(path, "pt") as file:
                if end == begin == 0:
                    whole = file.get_tensor(key)
                    return whole if wanted is None else whole[wanted[0] : wanted[1]].clone()
                low = begin if wanted is None else max(begin, wanted[0])
                high = end if wanted is None else min(end, wanted[1])
                if low < high:
                    pieces.append(file.get_slice(key)[low - begin : high - begin])
        rows = sum(len(piece) for piece in pieces)
        if (wanted is not None and rows != wanted[1] - wanted[0]) or (not pieces and wanted is None):
            value = f"{self.folder}: {rows} rows of {key}"
            raise DataError(value, "the slices of a checkpoint cover each tensor", "remove this checkpoint folder")
        return torch.cat(pieces)


def split_prefix(tensors: Mapping[str, Any], prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Entries without a prefix, and those with it, less the prefix."""
    rest = {key: value for key, value in tensors.items() if not key.startswith(prefix)}
    chosen = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return rest, chosen
