"""The written rubric as evaluation judge, for the bundled recipes' data alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from towpath.evals.judges import AnswerPair, JudgeOutcomes, outcome_of_scores
from towpath.feedback.rubric import score_answer
from towpath.records import Completion, Prompt

NAME = "the written rubric"


@dataclass(frozen=True)
class RubricJudge:
    """Scores both answers by the rubric, without noise."""

    margin: float

    def compare(self, pairs: Sequence[AnswerPair], title: str) -> JudgeOutcomes:
        """Score all pairs, which takes no time."""
        outcomes = [
            outcome_of_scores(rubric_score(pair.prompt, pair.ours), rubric_score(pair.prompt, pair.other), self.margin)
            for pair in pairs
        ]
        return JudgeOutcomes(NAME, tuple(outcomes))


def rubric_score(prompt: Prompt, completion: Completion) -> float:
    """The total of the written rubric, without noise."""
    return score_answer(prompt, completion.text, completion.finish == "stop").total
