"""Metrics of a rollout, on answers small enough to count by hand."""

import pytest
import torch

from towpath.data.batch import Batch, make_row
from towpath.records import Prompt, Rollout
from towpath.rollout.statistics import rollout_metrics

SAME = [5, 5, 5, 5, 5, 9]
HALF = [1, 2, 3, 1, 2, 3]
NONE = [1, 2, 3, 4, 6, 9]
"""Of four trigrams two, one and none are repeated."""
ANSWERS = (SAME, HALF, NONE, [7, 9])
PROMPTS = tuple(
    Prompt(f"p{i}", text, domain) for i, (text, domain) in enumerate((("A", "x"), ("B", "x"), ("b ", "y"), ("C", "y")))
)


def metrics_of(reward, score=None, **more):
    """Metrics of the four answers with these rewards; `more` overrides columns."""
    longest = max(map(len, ANSWERS))
    ragged = torch.zeros(len(ANSWERS), longest)
    columns = {
        "old_logp": ragged - 1.0,
        "ref_logp": ragged - 1.5,
        "sampler_logp": ragged - 1.25,
        "ended": torch.tensor([True, False, True, True]),
        "reward": torch.tensor(reward),
        "score": torch.tensor(score or reward),
    } | more
    texts = ["a a a a", "- one\n- two", "I can't help with that.", "x"]
    rollouts = [
        Rollout(p, tuple(ids), (-1.0,) * len(ids), "stop", text)
        for p, ids, text in zip(PROMPTS, ANSWERS, texts, strict=True)
    ]
    return rollout_metrics(Batch([make_row([3], ids) for ids in ANSWERS], columns), rollouts)


def test_kl_counts_answer_tokens_only() -> None:
    numbers = metrics_of([0.0, 1.0, 2.0, 3.0])
    assert numbers["kl"] == pytest.approx(0.5 * (6 + 6 + 6 + 2) / 4)
    assert numbers["kl_per_token"] == pytest.approx(0.5)
    assert numbers["sampler_error"] == pytest.approx(0.25)


def test_sampler_error_uses_rescored_rows() -> None:
    old = torch.full((4, 6), -1.25)
    old[1] = -1.0
    checked = torch.tensor([False, True, False, False])
    assert metrics_of([0.0, 1.0, 2.0, 3.0], old_logp=old, checked=checked)["sampler_error"] == pytest.approx(0.25)


def test_single_completion_has_zero_kl_std() -> None:
    columns = {name: torch.zeros(1, 2) for name in ("old_logp", "ref_logp", "sampler_logp")} | {
        "ended": torch.tensor([True])
    }
    rollout = Rollout(PROMPTS[0], (7, 9), (-1.0, -1.0), "stop", "x")
    metrics = rollout_metrics(Batch([make_row([3], [7, 9])], columns), [rollout])
    assert metrics["kl_std"] == 0.0


def test_text_statistics_of_a_rollout() -> None:
    numbers = metrics_of([0.0, 1.0, 2.0, 3.0])
    assert numbers["length"] == 5.0
    assert numbers["finish_rate"] == 0.75
    assert numbers["repetition"] == pytest.approx((2 / 4 + 1 / 4 + 0 + 0) / 4)
    assert (numbers["refusal"], numbers["lists"], numbers["code"]) == (0.25, 0.25, 0.0)
    assert numbers["prompts_distinct"] == 0.75


def test_means_per_domain() -> None:
    numbers = metrics_of([0.0, 1.0, 2.0, 4.0], [0.0, 2.0, 2.0, 6.0])
    assert (numbers["reward/x"], numbers["reward/y"]) == (0.5, 3.0)
    assert (numbers["domain/x"], numbers["domain/y"]) == (1.0, 4.0)


def test_repetition_worth_is_the_slope_of_the_reward() -> None:
    paid = metrics_of([1 + 20 * share for share in (0.5, 0.25, 0.0, 0.0)])
    assert paid["reward_repetition_corr"] == pytest.approx(1.0)
    assert paid["repetition_worth"] == pytest.approx(20.0)
    fined = metrics_of([0.0, 0.0, 1.0, 1.0], [1 + 20 * share for share in (0.5, 0.25, 0.0, 0.0)])
    assert fined["reward_repetition_corr"] < 0  # computed from the reward after penalties, not from the score
    assert "repetition_worth" not in metrics_of([1.0, 1.0, 1.0, 1.0])


def test_length_worth_is_the_slope_of_the_score() -> None:
    paid = metrics_of([0.0, 1.0, 2.0, 3.0], [3.0, 3.0, 3.0, 1.0])
    assert paid["reward_length_corr"] == pytest.approx(1.0)
    assert paid["length_worth"] == pytest.approx(0.5)
