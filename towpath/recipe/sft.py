"""`[sft]`: supervised fine-tuning."""

from typing import Annotated, Literal

from pydantic import Field

from towpath.recipe.model import Lora, Schedule
from towpath.recipe.reader import Section, value

Positive = Annotated[float, Field(gt=0)]


class Sft(Section):
    """Supervised fine-tuning."""

    method: Literal["lora", "full", "none"] = value(
        "lora",
        "LoRA adapters, merged at the end, or all weights; none if `model.source` is tuned already: nothing is "
        "trained, and no demonstrations are needed",
    )
    compare_with: str = value(
        "",
        "with method none: the model that the gate `sft` compares the tuned one with, a source like `model.source`; "
        "empty: that gate is off",
    )
    learning_rate: float = value(
        2e-4, "peak learning rate", "5e-5-2e-4", "supervised targets: low-variance gradients", gt=0
    )
    epochs: float = value(3.0, "maximum passes over the demonstrations", "1-3", "early stopping ends sooner", gt=0)
    batch: int = value(16, "demonstrations in one optimizer step", "8-128", ge=1)
    warmup: float = value(0.1, "share of steps with a rising learning rate", "0.03-0.1", ge=0, lt=1)
    turns: Literal["all", "last"] = value(
        "all", "answers of a conversation to train on: all, or the last one", why="all teaches more for the same tokens"
    )
    reasoning: Literal["train", "mask"] = value(
        "train", "reasoning text of answers (<think>…</think>): train on it, or leave it out of the loss"
    )
    schedule: Schedule = value("linear", "decay of the learning rate: linear or cosine to zero, or constant")
    packing: bool = value(True, "pack several short sequences into one row, separated by the attention mask")
    max_grad_norm: float = value(1.0, "gradient clipping", "0.5-1", gt=0)
    weight_decay: float = value(0.0, "decoupled weight decay", "0-0.1", ge=0)
    validate_every: float = value(0.5, "epochs between two validations", "0.25-1", gt=0)
    patience: int = value(2, "validations without improvement before training stops", "1-3", ge=1)
    validation: float = value(0.1, "share of demonstrations held out for validation", "0.05-0.2", gt=0, lt=0.5)
    domains: dict[str, Positive] = value(
        {},
        "loss weight of the demonstrations of each domain; 1 by default",
        "0.5-4",
        "helps rare but important domains",
    )
    lora: Lora = value(Lora(), "LoRA of this stage")
