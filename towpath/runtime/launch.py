"""The runtime that a recipe asks for."""

from towpath.recipe import Compile, Model
from towpath.runtime.contract import Runtime
from towpath.runtime.local import PACK_WIDTH, Local
from towpath.runtime.process import device_named, dtype_named


def launch(model: Model, pad: int, packing: bool = True, training: bool = True) -> Runtime:
    """One process on one device. Layers are compiled, where the recipe says so, only for training."""
    device = device_named(model.device)
    return Local(
        model.tokens_per_pass,
        PACK_WIDTH if packing else 0,
        pad,
        dtype_named(model.dtype, device),
        device,
        model.attention,
        model.compile if training else Compile(),
    )
