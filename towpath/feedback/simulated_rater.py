"""Simulated rater: the rubric with seeded noise, for runs without people. Its judgements are marked as simulated."""

from typing import Literal

from towpath.data.draws import uniforms
from towpath.feedback import rubric
from towpath.hashing import hash_uniform
from towpath.recipe import Preferences
from towpath.records import Choice, Comparison, Judgement, Prompt

GUIDELINE = "rubric-7"


def choose(a: float, b: float, tie_margin: float, both_bad: float) -> tuple[Choice, int]:
    """Choice and strength (1 slight, 2 clear, 3 strong) from two scores."""
    if max(a, b) < both_bad:
        return "both_bad", 1
    gap = abs(a - b)
    if gap < tie_margin:
        return "tie", 1
    return ("a" if a > b else "b"), 1 + (gap > 0.2) + (gap > 0.4)


def judge_comparison(
    comparison: Comparison,
    prompt: Prompt,
    a: tuple[str, bool],
    b: tuple[str, bool],
    rater: str,
    seed: int,
    cfg: Preferences,
) -> Judgement:
    """One judgement; a and b are (text, ended). The same seed and rater always give the same judgement."""
    totals = [rubric.score_answer(prompt, text, ended).total for text, ended in (a, b)]
    choice, strength = choose(totals[0], totals[1], cfg.tie_margin, cfg.both_bad)
    error_draw, time_draw = uniforms(2, seed, "rater", rater, comparison.id)
    if choice in ("a", "b") and error_draw < cfg.noise:
        choice = "b" if choice == "a" else "a"
        strength = 1
    order: Literal["ab", "ba"] = "ab" if hash_uniform(seed, f"order/{rater}", comparison.id) < 0.5 else "ba"
    word_count = len(rubric.lower_words(a[0])) + len(rubric.lower_words(b[0]))
    milliseconds = int(2000 + word_count * 180 * (0.7 + 0.6 * time_draw))
    key = f"{comparison.id}/{rater}/{comparison.round}"
    return Judgement(
        key, comparison.id, rater, "simulated", choice, order, strength, milliseconds, comparison.round, GUIDELINE
    )
