"""Pack rows into sequences for a forward pass, and unpack outputs into rows.

B rows, T answer tokens, N answer tokens of all rows, S tokens of a row, P packed sequences of L tokens, D hidden size.
"""

import numpy as np
import torch
from torch import Tensor

from towpath.algos.contract import Outputs
from towpath.data.batch import Batch, PackedRows
from towpath.models.packed_batch import PackedBatch

PER_TOKEN = ("logp_BT", "entropy_BT", "value_BT", "features_BTD")
PER_ROW = ("score_B", "last_BD")


def packed_batch(packed: PackedRows, device: torch.device) -> PackedBatch:
    """The packed rows as tensors on a device."""
    columns = packed.ids_PL, packed.position_PL, packed.segment_PL, packed.parent_PL
    return PackedBatch(*(torch.from_numpy(column).to(device) for column in columns))


def read_positions(packed: PackedRows, batch: Batch, wants: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the states that are read: before each answer token [N], and at the last token of each row [B]."""
    nowhere = np.zeros(0, np.int64)
    # the state at position t - 1 predicts token t
    before = [positions[row.start - 1 : -1] for positions, row in zip(packed.token_positions, batch.rows, strict=True)]
    last = np.array([positions[-1] for positions in packed.token_positions])
    per_token = bool(set(wants) - {"score", "last"})
    per_row = bool({"score", "last"} & set(wants))
    return np.concatenate(before) if per_token else nowhere, last if per_row else nowhere


def lay_out(states_BSD: Tensor, packed: PackedRows) -> Tensor:
    """States of rows [B,S,D] at their packed positions [P,L,D]."""
    out = states_BSD.new_zeros(packed.ids_PL.size, states_BSD.shape[2])
    for states_SD, positions in zip(states_BSD, packed.token_positions, strict=True):
        out[torch.from_numpy(positions).to(out.device)] = states_SD[: len(positions)]
    return out.view(*packed.ids_PL.shape, -1)


def spread(x_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Values of answer tokens [N] or [N,D] as [B,T] or [B,T,D], zeros elsewhere."""
    out = x_N.new_zeros(*mask_BT.shape, *x_N.shape[1:])
    out[mask_BT] = x_N
    return out


def join(parts: list[tuple[np.ndarray, Outputs]], mask_BT: Tensor) -> Outputs:
    """Merge the outputs of passes, each with its row numbers, into those of the whole batch."""
    out = Outputs(mask_BT)
    for field in PER_TOKEN + PER_ROW:
        first = getattr(parts[0][1], field)
        if not first.numel():
            continue
        shape = mask_BT.shape[:1] if field in PER_ROW else mask_BT.shape
        whole = first.new_zeros(*shape, *first.shape[len(shape) :])
        for rows, part in parts:
            value = getattr(part, field)
            # a pass is as wide as its longest answer, the batch as its longest of all
            if field in PER_ROW:
                whole[torch.from_numpy(rows)] = value
            else:
                whole[torch.from_numpy(rows), : value.shape[1]] = value
        setattr(out, field, whole)
    return out
