"""Towpath: RLHF for teams, from data to an optimized policy."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["train"]

if TYPE_CHECKING:
    from towpath.run.training import train


def __getattr__(name: str) -> Any:
    """`towpath.train`, loaded when it is asked for: the command line starts without torch."""
    if name == "train":
        from towpath.progress import prepare_libraries

        prepare_libraries()
        from towpath.run.training import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
