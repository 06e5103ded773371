"""A reward model from elsewhere in every worker of a group: rows are encoded once, here, and divided over workers."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from towpath.data.classifier_format import Encoded
from towpath.models.classifier import Classifier
from towpath.runtime.group import Group
from towpath.runtime.shares import deal

ROWS_AT_ONCE = 256
"""Rows that a worker gets at a time, so that an idle one can take over from another."""


class GroupClassifier(Classifier):
    """`Classifier` whose weights are in the workers."""

    def __init__(
        self,
        group: Group,
        folder: str,
        label: str,
        template: str,
        dtype: torch.dtype,
        device: torch.device,
        tokens: int,
    ) -> None:
        self.group = group
        self._name = f"{folder}#{label}"
        self._arguments = {"folder": folder, "label": label, "template": template, "tokens": tokens}
        super().__init__(folder, label, template, dtype, device, tokens)

    def load(self, folder: str, dtype: torch.dtype, device: torch.device) -> None:
        """Load the weights in every worker."""
        arguments = {**self._arguments, "dtype": str(dtype).removeprefix("torch.")}
        self.group.run_everywhere(f"{__name__}:load_here", name=self._name, **arguments)

    def score_rows(self, rows: Sequence[Encoded], count: Callable[[int], None]) -> list[float]:
        """One score for each row, in their order, whichever worker gives it."""
        if not rows:
            return []
        workers = self.group.workers.count
        parts = min(len(rows), workers * max(1, round(len(rows) / (ROWS_AT_ONCE * workers))))
        part_N = deal([len(row.ids) for row in rows], parts)
        indices = [np.flatnonzero(part_N == part).tolist() for part in range(parts)]
        arguments = [{"name": self._name, **_pack([rows[i] for i in index])} for index in indices]
        scores = np.zeros(len(rows))
        for index, own in zip(indices, self.group.run(f"{__name__}:score_here", arguments, count), strict=True):
            scores[index] = own
        return scores.tolist()


def _pack(rows: Sequence[Encoded]) -> dict[str, Any]:
    """Rows as few arrays."""
    return {
        "ids": np.concatenate([np.asarray(row.ids, np.int64) for row in rows]),
        "types": np.concatenate([np.asarray(row.types, np.int64) for row in rows]),
        "lengths": np.array([len(row.ids) for row in rows]),
    }


# In a worker


def load_here(
    runtime: Any,
    count: Callable[[int], None],
    name: str,
    folder: str,
    label: str,
    template: str,
    tokens: int,
    dtype: str,
) -> None:
    """Load the model on this worker's device; it goes with the runtime."""
    known = runtime.__dict__.setdefault("classifiers", {})
    known[name] = Classifier(folder, label, template, getattr(torch, dtype), runtime.device, tokens)


def score_here(
    runtime: Any, count: Callable[[int], None], name: str, ids: np.ndarray, types: np.ndarray, lengths: np.ndarray
) -> list[float]:
    """Scores of some rows by this worker's model."""
    ends = np.cumsum(lengths)[:-1]
    types_of = np.split(types, ends) if len(types) else [types] * len(lengths)
    rows = [
        Encoded(row.tolist(), kinds.tolist(), False) for row, kinds in zip(np.split(ids, ends), types_of, strict=True)
    ]
    runtime.usage.scored_tokens += len(ids)
    return runtime.classifiers[name].score_rows(rows, count)
