"""Fused norms and activations from Liger kernels, for models on a GPU."""

from typing import Any

from towpath.errors import ResourceError


def apply(model: Any, kernels: str) -> None:
    """Replace the norms and gated activations of a model where the recipe asks for it."""
    if kernels != "liger":
        return
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        rule = "kernels of Liger come with the extra gpu, and need Triton"
        fix = "pip install 'towpath[gpu]', or set model.kernels = 'auto'"
        raise ResourceError(f"model.kernels = 'liger': {error}", rule, fix) from None
    # rotary embeddings would be replaced for all models of the family, those on a CPU included
    _apply_liger_kernel_to_instance(
        model=model, rope=False, cross_entropy=False, fused_linear_cross_entropy=False, rms_norm=True, swiglu=True
    )
