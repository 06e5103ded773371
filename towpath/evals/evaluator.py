"""Choose the evaluator of win-rate gates: the written rubric for bundled recipes, none for other data."""

from typing import Literal

from towpath.data.bundled import is_bundled
from towpath.data.corpus import Corpus
from towpath.data.data_summary import DataSummary

Evaluator = Literal["rubric"]
NO_JUDGE = "no evaluation judge fits this data"
NO_JUDGE_CODE = "no-evaluation-judge"
RUBRIC_CAVEAT = "Win rates are judged by the written rubric of the bundled recipes, not by people."
NO_JUDGE_REASON = (
    "the written rubric was made for the bundled recipes' data alone: short, plain, English answers to household "
    "questions"
)
NO_JUDGE_FIX = "compare the models blind with people or your own judge: `towpath arena start RUN`"


def find_evaluator(corpus: Corpus | DataSummary) -> Evaluator | None:
    """The evaluator of win rates for a corpus, or None."""
    return "rubric" if is_bundled(corpus) else None
