"""A reward model that the policy's training never used, as evaluation judge."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from towpath.evals.judges import TIE, AnswerPair, JudgeOutcomes, PairOutcome, outcome_of_scores
from towpath.records import Completion, Prompt

Answer = tuple[Prompt, Completion]
Score = Callable[[Sequence[Answer]], Sequence[float]]


@dataclass(frozen=True)
class ModelJudge:
    """Scores both answers of every pair that differs."""

    name: str
    margin: float
    score: Score | None
    """None if the model could not be trained."""
    unfit: str = ""

    def compare(self, pairs: Sequence[AnswerPair], title: str) -> JudgeOutcomes:
        """Score all answers."""
        if self.score is None:
            missing = PairOutcome(None, "no model")
            return JudgeOutcomes(self.name, tuple(missing for _ in pairs), unfit=self.unfit)
        todo = [i for i, pair in enumerate(pairs) if not pair.same]
        ours = [(pairs[i].prompt, pairs[i].ours) for i in todo]
        others = [(pairs[i].prompt, pairs[i].other) for i in todo]
        scores = self.score([*ours, *others]) if todo else []
        outcomes = [TIE] * len(pairs)
        for i, a, b in zip(todo, scores[: len(todo)], scores[len(todo) :], strict=True):
            outcomes[i] = outcome_of_scores(a, b, self.margin)
        return JudgeOutcomes(self.name, tuple(outcomes), unfit=self.unfit)
