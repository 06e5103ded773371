"""The manifest: every run with a recorded log, the finding codes that name its fault, and its half.

The split was fixed before any log was read. Each run has variants 0 and 1, which differ in seed, model size, number of
steps and often in the strength of the fault. The variant sha256(name)[0] % 2 is held out, the other one is for tuning.
Variants 2 and 3 were made after the held-out half had been evaluated once with 4 missed faults: the other model size
and number of steps, other seeds, batches of 24; docs/doctor.md has the results. Variant 4 was made and evaluated after
the last change of a detector.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

Trainer = Literal["sft", "dpo", "reward", "grpo", "ppo", "trainer"]
VARIANTS = (0, 1)
SIZES = ("small", "medium")
STEPS = (60, 80)
RATE = {"sft": 2e-3, "trainer": 2e-3, "dpo": 3e-4, "reward": 1e-3, "grpo": 1e-3, "ppo": 1e-3}
"""Good learning rates for these tiny models."""


@dataclass(frozen=True)
class Run:
    """One training: its trainer, the codes of which one must be among the first two findings (none: healthy), and its
    options."""

    name: str
    trainer: Trainer
    codes: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    second: dict[str, Any] = field(default_factory=dict)
    """Options that differ in variant 1."""

    def settings(self, variant: int) -> dict[str, Any]:
        """The options of one variant including defaults."""
        shape = (variant + variant // 2) % 2
        usual = {"size": SIZES[shape], "steps": STEPS[shape], "rate": RATE[self.trainer], "seed": variant}
        batch = {"batch": 24} if variant > 1 else {}
        return usual | batch | self.options | (self.second if variant % 2 else {})

    def held_out(self, variant: int) -> bool:
        """Whether this variant is held out."""
        return variant > 1 or hashlib.sha256(self.name.encode()).digest()[0] % 2 == variant


HIGH = ("learning-rate-high",)
LOW = ("learning-rate-low",)
FAULTS = (
    Run("sft rate x100", "sft", HIGH, {"rate": 0.2}, {"rate": 0.1}),
    Run(
        "sft rate x1000, no clipping",
        "sft",
        (*HIGH, "not-finite"),
        {"rate": 2.0, "clip": 0.0},
        {"rate": 30.0, "optim": "sgd", "clip": 0.0},
    ),
    Run("sft rate /1000", "sft", LOW, {"rate": 2e-6}, {"rate": 1e-6}),
    Run(
        "sft few rows, many epochs",
        "sft",
        ("overfit",),
        {"base": "taught", "rows": 16, "eval": 5},
        {"base": "taught", "rows": 24, "steps": 120, "eval": 10},
    ),
    Run("dpo rate x100", "dpo", HIGH, {"rate": 3e-2}, {"rate": 5e-2}),
    Run("dpo rate /1000", "dpo", LOW, {"rate": 3e-7}, {"rate": 5e-7}),
    Run(
        "dpo collapse of chosen",
        "dpo",
        ("likelihood-displacement", *HIGH),
        {"rate": 2e-3, "beta": 0.01},
        {"rate": 1e-3, "beta": 0.005},
    ),
    Run("dpo swapped labels", "dpo", ("labels-swapped",), {"swap": 1.0, "eval": 10}, {"swap": 1.0, "eval": 8}),
    Run(
        "dpo random labels", "dpo", ("label-noise",), {"swap": 0.5, "eval": 10}, {"swap": 0.5, "eval": 8, "rate": 2e-4}
    ),
    Run("reward rate x100", "reward", HIGH, {"rate": 0.1, "eval": 10}, {"rate": 0.2, "eval": 8}),
    Run(
        "reward overfit",
        "reward",
        ("reward-overfit",),
        {"rows": 32, "swap": 0.3, "eval": 10},
        {"rows": 40, "swap": 0.25, "eval": 10, "steps": 100},
    ),
    Run("reward swapped labels", "reward", ("labels-swapped",), {"swap": 1.0, "eval": 10}, {"swap": 1.0, "eval": 8}),
    Run("reward random labels", "reward", ("label-noise",), {"swap": 0.5, "eval": 10}, {"swap": 0.5, "eval": 8}),
    Run("grpo rate x100", "grpo", HIGH, {"rate": 0.1, "beta": 0.04}, {"rate": 0.05, "beta": 0.01}),
    Run("grpo rate /1000", "grpo", LOW, {"rate": 1e-6, "beta": 0.04}, {"rate": 5e-7, "beta": 0.01}),
    Run(
        "grpo length paid",
        "grpo",
        ("length-hacking",),
        {"reward": "length", "beta": 0.01, "rate": 2e-3},
        {"reward": "length", "beta": 0.0, "steps": 70},
    ),
    Run(
        "grpo length added",
        "grpo",
        ("length-hacking",),
        {"reward": "polite+length", "rate": 2e-3},
        {"reward": "polite+length", "beta": 0.01},
    ),
    Run(
        "grpo constant reward",
        "grpo",
        ("reward-constant", "gradient-zero"),
        {"reward": "constant", "beta": 0.0},
        {"reward": "constant", "beta": 0.04},
    ),
    Run(
        "grpo missing EOS",
        "grpo",
        ("missing-eos",),
        {"base": "endless", "beta": 0.01},
        {"base": "endless", "beta": 0.0},
    ),
    Run("grpo held tight", "grpo", ("kl-penalty-too-strong",), {"beta": 5.0}, {"beta": 20.0}),
    Run(
        "grpo drift without hold",
        "grpo",
        ("no-kl-penalty", "kl-rising", *HIGH),
        {"reward": "noise", "beta": 1e-4, "rate": 6e-3},
        {"reward": "noise", "beta": 1e-5, "rate": 5e-3},
    ),
    Run("ppo rate x100", "ppo", HIGH, {"rate": 0.1}, {"rate": 0.05}),
    Run(
        "ppo drift without hold",
        "ppo",
        ("no-kl-penalty", "kl-rising"),
        {"beta": 0.0, "rate": 3e-3, "reward": "noise"},
        {"beta": 0.0, "rate": 2e-3, "reward": "noise"},
    ),
    Run("ppo held tight", "ppo", ("kl-penalty-too-strong",), {"beta": 5.0}, {"beta": 3.0}),
)
ENDED = "polite, ended"
"""A reward that only ended answers get; otherwise policies learn never to end, which is not healthy."""
HEALTHY = (
    Run("sft", "sft", (), {}, {"rate": 1e-3}),
    Run(
        "sft, eval, every fifth step",
        "sft",
        (),
        {"steps": 100, "logging": 5, "eval": 20, "size": "large"},
        {"steps": 150, "logging": 10, "eval": 50, "schedule": "cosine"},
    ),
    Run(
        "sft of text that cannot be foreseen",
        "sft",
        (),
        {"data": "letters"},
        {"data": "letters", "steps": 100, "eval": 20},
    ),
    Run(
        "sft of a model that knows",
        "sft",
        (),
        {"base": "taught", "rate": 2e-5},
        {"base": "taught", "rate": 5e-6, "eval": 20},
    ),
    Run(
        "trainer, eval by epoch",
        "trainer",
        (),
        {"rows": 160, "eval": "epoch"},
        {"rows": 240, "eval": "epoch", "logging": 5, "steps": 100},
    ),
    Run("dpo", "dpo", (), {"eval": 20}, {"beta": 0.3, "rate": 2e-4}),
    Run(
        "dpo, longer, every tenth step",
        "dpo",
        (),
        {"steps": 160, "logging": 10, "eval": 40, "rate": 1e-4},
        {"steps": 120, "logging": 5, "rate": 1e-4},
    ),
    Run("reward", "reward", (), {"eval": 10}, {"eval": "epoch", "rows": 200}),
    Run("grpo", "grpo", (), {"reward": ENDED, "beta": 0.04}, {"reward": ENDED, "beta": 0.01, "rate": 5e-4}),
    Run(
        "grpo, longer answers",
        "grpo",
        (),
        {"reward": ENDED, "base": "long", "limit": 80, "beta": 0.02, "steps": 40},
        {"reward": ENDED, "base": "long", "limit": 96, "beta": 0.04, "steps": 50},
    ),
    Run(
        "grpo without KL, every fifth step",
        "grpo",
        (),
        {"reward": ENDED, "beta": 0.0, "logging": 5, "steps": 100},
        {"reward": ENDED, "beta": 0.0, "logging": 10, "steps": 120},
    ),
    Run(
        "grpo, solved",
        "grpo",
        (),
        {"reward": ENDED, "beta": 0.001, "steps": 100, "rate": 2e-3},
        {"reward": "easy", "beta": 0.0, "rate": 2e-3},
    ),
    Run(
        "grpo, from random weights",
        "grpo",
        (),
        {"base": "random", "reward": "letter", "beta": 0.001},
        {"base": "random", "reward": "letter", "beta": 0.01, "limit": 16},
    ),
    Run("ppo", "ppo", (), {"beta": 0.05}, {"beta": 0.1, "rate": 5e-4}),
)
RUNS = (*FAULTS, *HEALTHY)


def slug(run: Run, variant: int) -> str:
    """The name of a log."""
    return "-".join("".join(c if c.isalnum() else " " for c in run.name.lower()).split()) + f"-{variant}"
