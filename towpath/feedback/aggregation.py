"""Many judgements to one label."""

from collections import Counter
from collections.abc import Iterable

from towpath.records import Choice, Judgement, Label


def majority(judgements: Iterable[Judgement]) -> list[Label]:
    """Each comparison's most frequent choice; an even split is a tie. Strength is the mean of those who chose it."""
    by_comparison: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        by_comparison.setdefault(judgement.comparison, []).append(judgement)
    labels = []
    for comparison, said in by_comparison.items():
        ranked = Counter(j.choice for j in said).most_common()
        even = len(ranked) > 1 and ranked[0][1] == ranked[1][1]
        choice: Choice = "tie" if even else ranked[0][0]
        strengths = [j.strength for j in said if j.choice == choice] or [1]
        labels.append(Label(comparison, choice, sum(strengths) / len(strengths), len(said)))
    return labels
