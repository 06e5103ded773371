"""`[reward]`: the reward model."""

from typing import Literal

from towpath.recipe.model import Lora, Method, Schedule
from towpath.recipe.reader import Section, value


class Reward(Section):
    """Training of the reward model."""

    use: Literal["auto", "always"] = value(
        "auto",
        "auto trains a reward model if the policy's rewards name one; always trains one in any case, and measures a "
        "pretrained one on labels",
    )
    base: str = value(
        "",
        "language model that the reward model is trained from: a folder, a Hugging Face id or gguf:PATH; empty for the "
        "tuned model",
        why="a larger one overfits less; it keeps its own tokenizer and template",
    )
    pretrained: str = value(
        "",
        "sequence-classification model that is the reward model: a folder or a Hugging Face id; SOURCE#LABEL where it "
        "has several labels",
        why="nothing is trained, unless `reward.train` is set; see docs/rewards.md",
    )
    train: bool = value(False, "train the model of `reward.pretrained` further on the labels; decoder families only")
    template: str = value(
        "model",
        "chat template of `reward.base` or `reward.pretrained`: model (its own), chatml or a Jinja file; also pair or "
        "plain for a pretrained one used as it is",
    )
    method: Method = value("lora", "LoRA adapter on the tuned model, or all weights")
    learning_rate: float = value(2e-4, "peak learning rate", "5e-5-2e-4 with LoRA", gt=0)
    fit_head: float = value(
        300.0,
        "ridge of the logistic regression that initialises the head on frozen features; 0 keeps a random head",
        "30-1500",
        "a fitted head does not distort the pretrained features (arXiv 2202.10054)",
        ge=0,
    )
    head_rate: float = value(
        1.0,
        "learning rate of the head, as a multiple of the adapter's",
        "1-30",
        "a random head needs a higher one",
        gt=0,
    )
    epochs: float = value(1.0, "passes over the comparisons", "1-3", "more overfits", gt=0)
    batch: int = value(16, "comparisons in one optimizer step", "8-64", ge=1)
    warmup: float = value(0.1, "share of steps with a rising learning rate", "0.03-0.1", ge=0, lt=1)
    schedule: Schedule = value("linear", "decay of the learning rate: linear or cosine to zero, or constant")
    max_grad_norm: float = value(1.0, "gradient clipping", "0.5-1", gt=0)
    weight_decay: float = value(0.0, "decoupled weight decay", "0-0.1", ge=0)
    validation: float = value(0.25, "share of prompts whose comparisons are held out", "0.1-0.3", gt=0, lt=0.6)
    margin: bool = value(False, "subtract a margin that grows with the strength of the preference (Llama 2)")
    center: float = value(
        0.01, "weight of a term that centres the scores of a pair", "0-0.1", "scores do not drift", ge=0
    )
    label_smoothing: float = value(0.0, "probability that a label is wrong", "0-0.1", "label noise", ge=0, lt=0.5)
    ensemble_size: int = value(
        1, "reward models, each from its own seed and data order", "1-5", "their disagreement shows uncertainty", ge=1
    )
    lora: Lora = value(Lora(), "LoRA of this stage")

    @property
    def source(self) -> str:
        """The model that the reward model begins with; empty for the tuned model."""
        return self.base or self.pretrained

    @property
    def is_trained(self) -> bool:
        """Whether the reward stage trains."""
        return self.train or not self.pretrained
