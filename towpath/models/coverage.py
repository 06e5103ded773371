"""LoRA coverage: which weights of a model are adapted."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Coverage:
    """Which weights LoRA adapts: linear layers other than the head."""

    adapted: dict[str, int]
    """Linear layers by name, and how many there are."""
    share: float
    """Their part of all parameters."""
    sides: int
    """Their inputs plus outputs: times the rank, an adapter's parameters."""
    experts: dict[str, float]
    """Stacked tensors that are no linear layers, by name, and their part of all parameters."""
    parameters: int
