"""Which evaluation judges a recipe has: those it names, or the default that follows how its labels are made."""

from collections.abc import Mapping

from towpath.data.bundled import is_bundled
from towpath.data.corpus import Corpus
from towpath.data.data_summary import DataSummary
from towpath.recipe import Evaluate

DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "simulated": ("rubric",),
    "judge": ("judge",),
    "blend": ("judge",),
    "people": ("people",),
    "recorded": ("model",),
}
"""The judge of a run by its `preferences.raters`."""


def select_judges(evaluate: Evaluate, raters: str, corpus: Corpus | DataSummary) -> tuple[str, ...]:
    """The judges in their order; the first decides the gates. The written rubric judges the bundled recipes' data
    alone."""
    specs = tuple(evaluate.judges) or DEFAULTS[raters]
    return specs if is_bundled(corpus) else tuple(spec for spec in specs if spec != "rubric")


def reserved_share(evaluate: Evaluate, raters: str) -> float:
    """The share of prompts whose labels train the held-out reward model and nothing else; 0 without that judge."""
    specs = tuple(evaluate.judges) or DEFAULTS[raters]
    return evaluate.reserved_labels if "model" in specs else 0.0
