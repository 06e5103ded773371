"""Accuracy of each model's held-out answers by a source that checks them, such as `math`."""

from collections.abc import Sequence
from typing import Any

from towpath.data.intervals import wilson
from towpath.evals.safety import mcnemar
from towpath.recipe.stage_configs import EvaluateConfig
from towpath.records import Completion, Prompt
from towpath.rewards.sources import load_source
from towpath.stages.job import Job

RIGHT = 0.5
"""An answer is right if its score is above this."""


def answer_accuracy(
    job: Job[EvaluateConfig], prompts: Sequence[Prompt], answers: dict[str, list[Completion]]
) -> dict[str, Any]:
    """The part of the stage's result that the gate `accuracy` reads; empty without `evaluate.accuracy`."""
    source = job.config.evaluate.accuracy
    if not source:
        return {}
    scorer = load_source(source, job.corpus.column_names, job.config.policy.rewards.command)
    columns = job.corpus.columns_of(prompts)
    texts = job.corpus.as_rows_have_them(prompts)
    right = {
        name: [_is_right(score) for score in scorer(texts, [c.text for c in part], columns)]
        for name, part in answers.items()
    }
    both = [(before, after) for before, after in zip(right["sft"], right["policy"], strict=True)]
    rates = {name: _rate([one for one in part if one is not None]) for name, part in right.items()}
    return {"accuracy": {"source": source, **rates, "rise": paired_rise(both)}}


def _is_right(score: float | None) -> bool | None:
    """None for an answer that is not scored."""
    return None if score is None or score != score else score > RIGHT


def _rate(right: Sequence[bool]) -> dict[str, Any]:
    n = len(right)
    return {"rate": sum(right) / max(n, 1), "interval": list(wilson(sum(right), n)), "n": n}


def paired_rise(both: Sequence[tuple[bool | None, bool | None]]) -> dict[str, Any]:
    """The rise of the accuracy on prompts that are scored before and after, with Bonett and Price's interval of a
    difference of paired proportions, and McNemar's p-value."""
    scored = [(before, after) for before, after in both if before is not None and after is not None]
    n = len(scored)
    gained = sum(after and not before for before, after in scored)
    lost = sum(before and not after for before, after in scored)
    # one is added to each count, so that the interval holds for small counts
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    margin = 1.96 * ((up + down - (up - down) ** 2) / (n + 2)) ** 0.5
    return {
        "rate": (gained - lost) / max(n, 1),
        "interval": [max(-1.0, up - down - margin), min(1.0, up - down + margin)],
        "n": n,
        "gained": gained,
        "lost": lost,
        "unscored": len(both) - n,
        "p": mcnemar(gained, lost),
    }
