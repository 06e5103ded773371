"""Usual learning rates by kind of training, and how far outside of them a run's rate is."""

import math

from towpath.health.history import History

USUAL = {"sft": (5e-6, 2e-4), "reward": (1e-6, 2e-4), "policy": (5e-7, 5e-4), "pairs": (5e-7, 5e-4)}
"""Lowest and highest usual peak rate with AdamW: full fine-tuning of large models at the low end, LoRA at the high
end."""
PAIR_ALGORITHMS = ("dpo", "kto", "orpo", "ipo", "simpo", "cpo")
SUSPECT_FACTOR = 25.0
"""Tiny models learn well at ten times the usual rate; beyond this factor a rate is a suspect."""
ABSURD_FACTOR = 100.0
WEIGHT_SIZE = 0.02
"""Usual size of a transformer's weights; AdamW moves a weight by about the learning rate in a step."""


def training_kind(history: History) -> str:
    """The kind of training, a key of USUAL."""
    stage = str(history.facts.get("stage", "policy"))
    learns_from_pairs = stage == "policy" and history.facts.get("policy.algo") in PAIR_ALGORITHMS
    if learns_from_pairs or len(history.curve("chosen")):
        return "pairs"
    return stage if stage in USUAL else "policy"


def peak_rate(history: History) -> float:
    """The highest learning rate of a run; NaN if it is not known."""
    curve = history.curve("learning_rate")
    if len(curve) and curve.values.max() > 0:
        return float(curve.values.max())
    stated = history.facts.get(f"{history.facts.get('stage', 'policy')}.learning_rate")
    return float(stated) if isinstance(stated, int | float) else math.nan


def excess_factor(history: History) -> float:
    """The peak rate as a multiple of the highest usual one."""
    return peak_rate(history) / USUAL[training_kind(history)][1]


def max_weight_change(history: History) -> float:
    """How far AdamW can have moved a weight: the sum of the learning rates of all steps."""
    curve = history.curve("learning_rate")
    if not len(curve):
        return math.nan
    return float(curve.values.mean()) * history.steps


def describe_excess(history: History) -> str:
    """The peak rate beside the usual ones."""
    low, high = USUAL[training_kind(history)]
    return (
        f"the learning rate of {peak_rate(history):.2g} is {excess_factor(history):.0f} times the highest usual one "
        f"({low:g} to {high:g})"
    )


def rate_note(history: History) -> str:
    """The rate in brackets, empty if it is not known."""
    is_policy = history.facts.get("stage", "policy") == "policy"
    stated = history.facts.get("policy.learning_rate") if is_policy else None
    rate = float(stated) if isinstance(stated, int | float) else peak_rate(history)
    return f" (learning rate {rate:.2g})" if math.isfinite(rate) and rate else ""
