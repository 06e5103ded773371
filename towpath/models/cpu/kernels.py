"""What is done between matrix products: compiled for this machine's processor where a C++ compiler is at hand, else
in torch's own steps."""

from types import ModuleType

from torch import Tensor

from towpath.models.cpu import build, native, plain


def dispatch(x: Tensor) -> ModuleType:
    """The implementation for states like these: `native` or `plain`, which offer the same functions."""
    return native if x.device.type == "cpu" and x.dtype in native.NAMES and build.library() is not None else plain


def compiled(x: Tensor) -> bool:
    """Whether that is the compiled one."""
    return dispatch(x) is native


def describe_backend() -> str:
    """Which it is on this machine, and why."""
    return "compiled" if build.library() is not None else f"plain: {build.refusal()}"
