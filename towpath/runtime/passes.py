"""What a pass reads, on its device: rows packed into sequences, where their states and answer tokens are; and its
outputs, laid out in rows again.

B rows, T answer tokens, N answer tokens of all rows, R states that are read, S tokens of a row, M tokens of all rows, P
packed sequences of L tokens, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from towpath.algos.contract import Outputs
from towpath.data.batch import Batch, PackedRows
from towpath.models import lm
from towpath.models.packed_batch import PackedBatch
from towpath.runtime.transfer import to_device

PER_TOKEN = ("logp_BT", "entropy_BT", "value_BT", "features_BTD")
PER_ROW = ("score_B", "last_BD")


@dataclass(frozen=True)
class Pass:
    """One forward pass over some rows, on the device of its model."""

    lines: PackedBatch
    mask_BT: Tensor
    token_N: Tensor
    """Answer tokens, in the flattened mask."""
    target_N: Tensor
    """Their ids."""
    read_R: Tensor
    """Positions of the states that are read: before each answer token, then at the last token of each row."""
    before: int
    """How many of them are before an answer token."""
    state_M: Tensor
    """Where the cached states of the rows' tokens are among those of all rows [B*S], if there are any."""
    position_M: Tensor
    """And where in the flattened lines they belong."""


def prepare(
    model: Any, batch: Batch, wants: tuple[str, ...], pad: int, width: int, device: torch.device, cached: int = 0
) -> Pass:
    """Pack the rows of a pass as the model reads them, and copy what it needs to the device. `cached` is the number S
    of tokens of a row for which states are cached, if they are."""
    packed = lm.pack_rows(model, batch.rows, pad, width)
    before_N, last_B = read_positions(packed, batch, wants)
    mask_BT: Any = batch.mask_BT
    nowhere = np.zeros(0, np.int64)
    states = state_positions(packed, batch.on_host("cached_row"), cached) if cached else (nowhere, nowhere)
    ids, position, segment, parent, begin, mask_BT, token_N, target_N, read_R, state_M, position_M = to_device(
        [
            packed.ids_PL,
            packed.position_PL,
            packed.segment_PL,
            packed.parent_PL,
            packed.begin_B1,
            mask_BT,
            np.flatnonzero(mask_BT),
            np.concatenate([row.ids[row.start :] for row in batch.rows]),
            np.concatenate([before_N, last_B]),
            *states,
        ],
        device,
    )
    lines = PackedBatch(ids, position, segment, parent, begin, packed.longest)
    return Pass(lines, mask_BT, token_N, target_N, read_R, len(before_N), state_M, position_M)


def columns_on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its columns on a device; those in host memory stay at hand."""
    columns = dict(zip(batch.columns, to_device(list(batch.columns.values()), device), strict=True))
    return replace(batch, columns=columns, host={name: torch.as_tensor(c) for name, c in batch.columns.items()})


def read_positions(packed: PackedRows, batch: Batch, wants: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the states that are read: before each answer token [N], and at the last token of each row [B]."""
    nowhere = np.zeros(0, np.int64)
    # the state at position t - 1 predicts token t
    before = [positions[row.start - 1 : -1] for positions, row in zip(packed.token_positions, batch.rows, strict=True)]
    last = np.array([positions[-1] for positions in packed.token_positions])
    per_token = bool(set(wants) - {"score", "last"})
    per_row = bool({"score", "last"} & set(wants))
    return np.concatenate(before) if per_token else nowhere, last if per_row else nowhere


def state_positions(packed: PackedRows, row_B: Any, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every token of every row: its place among the states of all rows, `longest` a row, and its position in the
    flattened lines."""
    places = [
        int(row) * longest + np.arange(len(positions))
        for row, positions in zip(row_B, packed.token_positions, strict=True)
    ]
    return np.concatenate(places), np.concatenate(packed.token_positions)


def lay_out(states_BSD: Tensor, work: Pass) -> Tensor:
    """Cached states of rows [B,S,D] at their packed positions [P,L,D]; a shared prompt has the same in all its rows."""
    lines, length = work.lines.ids_PL.shape
    out_MD = states_BSD.new_zeros(lines * length, states_BSD.shape[2])
    out_MD.index_copy_(0, work.position_M, states_BSD.flatten(0, 1)[work.state_M])
    return out_MD.view(lines, length, -1)


def spread(x_N: Tensor, work: Pass) -> Tensor:
    """Values of answer tokens [N] or [N,D] as [B,T] or [B,T,D], zeros elsewhere."""
    out = x_N.new_zeros(work.mask_BT.numel(), *x_N.shape[1:])
    return out.index_copy(0, work.token_N, x_N).view(*work.mask_BT.shape, *x_N.shape[1:])


def join(parts: Sequence[tuple[np.ndarray, Outputs]], mask_BT: Tensor) -> Outputs:
    """Merge the outputs of passes, each with its row numbers, into those of the whole batch."""
    out = Outputs(mask_BT)
    rows_of = to_device([rows for rows, _ in parts], mask_BT.device)
    for field in PER_TOKEN + PER_ROW:
        first = getattr(parts[0][1], field)
        if not first.numel():
            continue
        shape = mask_BT.shape[:1] if field in PER_ROW else mask_BT.shape
        whole = first.new_zeros(*shape, *first.shape[len(shape) :])
        for rows, (_, part) in zip(rows_of, parts, strict=True):
            value = getattr(part, field)
            # a pass is as wide as its longest answer, the batch as its longest of all
            if field in PER_ROW:
                whole[rows] = value
            else:
                whole[rows, : value.shape[1]] = value
        setattr(out, field, whole)
    return out
