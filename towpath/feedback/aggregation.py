"""Many judgements to one label."""

from collections import Counter
from collections.abc import Iterable

from towpath.records import Choice, Judgement, Label


def latest(judgements: Iterable[Judgement]) -> dict[str, dict[str, Judgement]]:
    """By comparison and rater, what was said last: a later round takes back an earlier one."""
    found: dict[str, dict[str, Judgement]] = {}
    for judgement in judgements:
        said = found.setdefault(judgement.comparison, {})
        if judgement.rater not in said or judgement.round >= said[judgement.rater].round:
            said[judgement.rater] = judgement
    return found


def majority(judgements: Iterable[Judgement]) -> list[Label]:
    """Each comparison's most frequent choice; an even split is a tie. Strength is the mean of those who chose it."""
    labels = []
    for comparison, by_rater in latest(judgements).items():
        said = list(by_rater.values())
        counted: Counter[Choice] = Counter(j.choice for j in said)
        ranked = counted.most_common()
        even = len(ranked) > 1 and ranked[0][1] == ranked[1][1]
        choice = "tie" if even else ranked[0][0]
        strengths = [j.strength for j in said if j.choice == choice] or [1]
        labels.append(Label(comparison, choice, sum(strengths) / len(strengths), len(said)))
    return labels
