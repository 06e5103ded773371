"""Win rates, length control and reward accuracy: against theory and constructed data."""

import numpy as np
import pytest

from towpath.evals import reward_accuracy, safety, text_statistics, winrate
from towpath.records import Completion


@pytest.mark.parametrize(("n", "kl", "rate"), [(2, 0.193, 2 / 3), (3, 0.432, 0.75), (4, 0.636, 0.8), (8, 1.204, 8 / 9)])
def test_best_of_n_curve_as_published(n, kl, rate):
    result = winrate.best_of_n(np.log(n) - (n - 1) / n)
    assert result["kl"] == pytest.approx(kl, abs=1e-3)
    assert result["n"] == pytest.approx(n, rel=1e-3)
    assert result["rate"] == pytest.approx(rate, abs=1e-3)


def test_win_rate_counts_ties_as_half():
    record = winrate.win_rate_record([1.0] * 60 + [0.5] * 20 + [0.0] * 20, [0] * 100, 100, 0)
    assert record["rate"] == pytest.approx(0.7)
    assert (record["wins"], record["ties"], record["losses"], record["n"]) == (60, 20, 20, 100)
    assert "half" in record["rule"]


def test_length_control_removes_length_only_wins():
    draws = np.random.default_rng(0)
    gaps = draws.normal(8, 10, 4000)
    by_length = (draws.random(4000) < 1 / (1 + np.exp(-0.3 * gaps))).astype(float)
    assert by_length.mean() > 0.7
    assert winrate.length_controlled(by_length, gaps) == pytest.approx(0.5, abs=0.05)
    by_merit = (draws.random(4000) < 0.8).astype(float)
    assert winrate.length_controlled(by_merit, gaps) == pytest.approx(0.8, abs=0.04)


def test_length_only_baseline_finds_the_best_length():
    draws = np.random.default_rng(1)
    a = draws.integers(1, 80, 2000).astype(float)
    b = draws.integers(1, 80, 2000).astype(float)
    swap = np.abs(a - 30) > np.abs(b - 30)
    chosen = np.where(swap, b, a)
    rejected = np.where(swap, a, b)
    result = reward_accuracy.length_only_accuracy(chosen[:1500], rejected[:1500], chosen[1500:], rejected[1500:])
    assert result > 0.85
    same = np.full(100, 20.0)
    assert reward_accuracy.length_only_accuracy(same, same, same, same) == pytest.approx(0.5)


def test_calibration_error_of_calibrated_and_overconfident_models():
    draws = np.random.default_rng(2)
    size = np.abs(draws.normal(0, 2, 20000))
    gap = np.where(draws.random(20000) < 1 / (1 + np.exp(-size)), size, -size)
    assert reward_accuracy.calibration_error(gap)[0] < 0.02
    assert reward_accuracy.calibration_error(gap * 5)[0] > 0.1


def test_accuracy_interval_resamples_prompts():
    gap = np.array([1.0] * 50 + [-1.0] * 50)
    together = reward_accuracy.pair_accuracy(gap, ["p"] * 25 + ["q"] * 25 + ["r"] * 50)
    apart = reward_accuracy.pair_accuracy(gap, [f"p{i}" for i in range(100)])
    assert together["interval"][1] - together["interval"][0] > apart["interval"][1] - apart["interval"][0]
    assert together["accuracy"] == 0.5


def test_perfect_accuracy_has_an_interval():
    low, high = reward_accuracy.pair_accuracy(np.ones(55), [f"p{i}" for i in range(55)])["interval"]
    assert (low, high) == pytest.approx((0.9347, 1.0), abs=1e-3)


def test_within_prompt_correlation_ignores_differences_between_prompts():
    lengths = np.array([10.0, 20, 110, 120])
    scores = np.array([5.0, 4.0, 1.0, 0.0])
    assert reward_accuracy.within_prompt_correlation(["p", "p", "q", "q"], scores, lengths) == pytest.approx(-1.0)


def test_text_statistics_by_hand():
    text = [
        Completion("1", "p", "sft", "a b a b", (1, 2, 1, 2, 1, 2), (0.0,) * 6, "stop"),
        Completion("2", "p", "sft", "c", (3,), (0.0,), "length"),
    ]
    result = text_statistics.text_statistics(text)
    assert result["distinct_1"] == pytest.approx(3 / 7)
    assert result["distinct_2"] == pytest.approx(2 / 5)
    assert result["repetition"] == pytest.approx(0.25)
    assert result["finish_rate"] == 0.5


def test_safety_counts_each_side():
    result = safety.refusal_rates([True, True, False, False], [True, False, True, False])
    assert (result["refusal"], result["over_refusal"], result["harmful_n"], result["harmless_n"]) == (0.5, 0.5, 2, 2)
