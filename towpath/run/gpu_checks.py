"""Checks of a recipe on a machine with a GPU."""

from collections.abc import Iterator

from towpath.recipe import Recipe
from towpath.records import Finding


def check_gpu(recipe: Recipe) -> Iterator[Finding]:
    """A GPU that is named and missing, and the slow engine where there is one."""
    if recipe.model.is_on_cpu:
        return
    from towpath.runtime.process import describe_gpu, device_named

    if device_named(recipe.model.device).type != "cuda":
        return
    gpu = describe_gpu()
    if gpu is None:
        evidence = f"model.device = {recipe.model.device!r}: torch finds no GPU"
        cause = "torch needs a build for CUDA, and a driver that fits it"
        yield Finding("device", "error", evidence, cause, "set model.device = 'auto', or install torch for your driver")
        return
    yield Finding("device", "info", gpu)
    if recipe.engine.type == "local":
        cause = (
            "the local engine is the reference that others are tested against: on a GPU it launches more than a "
            "thousand kernels a token"
        )
        fix = "run `towpath engine install vllm` and set engine.type = 'vllm'"
        yield Finding("engine-speed", "warning", f"engine.type = 'local' on {gpu}", cause, fix)
