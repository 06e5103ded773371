"""The runtime that a recipe asks for, and reward models from elsewhere on its device."""

from pathlib import Path

from towpath.models.classifier import Classifier, split_label
from towpath.models.locate import find
from towpath.recipe import Compile, Model
from towpath.runtime.contract import Runtime
from towpath.runtime.local import PACK_WIDTH, Local
from towpath.runtime.memory_plan import of_classifier
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
        model.quantize == "4bit" and training,
        model.gradient_checkpointing and training,
        model.kernels,
    )


def launch_classifier(
    model: Model, source: str, run: Path | None = None, template: str = "model", key: str = "policy.rewards"
) -> Classifier:
    """The reward model from elsewhere that MODEL or MODEL#LABEL names, on the recipe's device and in its precision."""
    name, label = split_label(source)
    device = device_named(model.device)
    dtype = dtype_named(model.dtype, device)
    tokens = of_classifier(model.tokens_per_pass, device)
    return Classifier(find(name, run, key), label, template, dtype, device, tokens)
