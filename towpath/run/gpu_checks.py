"""Checks of a recipe on a machine with a GPU."""

from collections.abc import Iterator

from towpath.recipe import Recipe
from towpath.records import Finding


def uses_gpu(recipe: Recipe) -> bool:
    """Whether this machine runs the recipe on a GPU."""
    from towpath.runtime.process import device_named

    return not recipe.model.is_on_cpu and device_named(recipe.model.device).type == "cuda"


def check_gpu_memory(recipe: Recipe, needed: int, parameters: str, share: int = 1) -> Iterator[Finding]:
    """Whether weights and optimizer fit the GPU, or a worker's share of one that several use; passes take what is
    left."""
    from towpath.runtime.process import describe_gpu, gpu_memory

    if describe_gpu() is None:
        return
    free = gpu_memory() // share
    evidence = f"about {needed / 1e9:,.1f} GB besides passes, {free / 1e9:,.1f} GB free on the GPU"
    evidence += f" for each of {share} workers" if share > 1 else ""
    cause = f"weights, gradients and optimizer of {parameters}"
    if needed <= free:
        yield Finding("memory", "info", evidence, cause)
        return
    fix = "use LoRA or a smaller model, or model.quantize = '4bit', or free the GPU"
    fix += ", or lower cluster.workers" if share > 1 else ""
    yield Finding("memory", "error", evidence, cause, fix)


def check_gpu(recipe: Recipe) -> Iterator[Finding]:
    """A GPU that is named and missing, and the slow engine where there is one."""
    if not uses_gpu(recipe):
        return
    from towpath.runtime.process import describe_gpu

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
