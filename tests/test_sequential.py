"""The anytime-valid test, applied after every comparison: against simulation, theory and by construction."""

import numpy as np
import pytest

from benchmarks import stopping_rule
from towpath.evals import sequential

SEQUENCES = 2000
LONGEST = 300


def error_rate(x_RN, threshold):
    return stopping_rule.anytime_decides(x_RN, threshold).mean()


@pytest.mark.parametrize("threshold", [0.5, 0.7])
@pytest.mark.parametrize("ties", [0.0, 0.3])
def test_sequential_test_error_rate_is_at_most_five_percent(threshold, ties):
    x_RN = stopping_rule.outcomes(threshold, ties, (SEQUENCES, LONGEST), "test")
    assert x_RN.mean() == pytest.approx(threshold, abs=0.005)
    assert error_rate(x_RN, threshold) <= 0.05
    assert stopping_rule.fixed_n_decides(x_RN, threshold)["wilson"].mean() > (0.15 if ties == 0 else 0.08), (
        "a test for one fixed n errs far more often if it is applied after every comparison"
    )


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_verdicts_of_one_prompt_are_averaged(threshold):
    verdicts_RPK = stopping_rule.clustered_outcomes(threshold, 3, (SEQUENCES, LONGEST // 3), "test")
    assert error_rate(verdicts_RPK.mean(2), threshold) <= 0.05
    assert error_rate(verdicts_RPK.reshape(SEQUENCES, -1), threshold) > 0.05, (
        "verdicts of one prompt are correlated, so counting each errs more often"
    )


def test_confidence_sequence_covers_the_rate_at_every_n():
    rate = 0.7
    missed = 0
    draws = np.random.default_rng(3)
    for _ in range(200):
        low_N, high_N = sequential.confidence_sequence((draws.random(150) < rate).astype(float))
        missed += bool(((low_N > rate) | (high_N < rate)).any())
    assert missed / 200 <= 0.05


def test_verdict_compares_interval_and_threshold():
    draws = np.random.default_rng(4)
    for rate, word in ((0.9, "PASS"), (0.4, "FAIL")):
        wins = (draws.random(200) < rate).astype(float)
        result = sequential.decide(wins, 0.7)
        assert result.verdict == word
        assert (result.interval[0] > 0.7) if word == "PASS" else (result.interval[1] < 0.7)
        assert result.at is not None
        assert result.at <= 200
        assert sequential.decide(wins[: result.at - 1], 0.7).verdict == "UNDECIDED"


def test_decision_is_final():
    x_N = np.array([1.0] * 60 + [0.0] * 20)
    assert sequential.decide(x_N[:60], 0.7).verdict == sequential.decide(x_N, 0.7).verdict == "PASS"
    low_N, high_N = sequential.confidence_sequence(x_N[:64])
    assert (np.diff(low_N) >= 0).all()
    assert (np.diff(high_N) <= 0).all()
    drifted_low_N, drifted_high_N = sequential.confidence_sequence(np.array([1.0] * 60 + [0.0] * 60))
    assert (drifted_low_N <= drifted_high_N).all(), (
        "if the rate drifts no rate fits all data, and there is still an interval"
    )


def test_log_wealth_is_order_free_and_symmetric():
    x_N = np.array([1, 0, 0.5, 1, 1, 0.25, 0.75, 1])
    assert sequential.log_wealth(x_N, 0.6)[-1] == pytest.approx(sequential.log_wealth(x_N[::-1], 0.6)[-1])
    assert sequential.log_wealth(x_N, 0.6, above=False) == pytest.approx(sequential.log_wealth(1 - x_N, 0.4))
    low, high = sequential.interval(x_N)
    assert sequential.interval(1 - x_N) == pytest.approx((1 - high, 1 - low))


def test_little_evidence_is_undecided():
    assert sequential.interval([]) == (0.0, 1.0)
    assert sequential.decide([], 0.7).verdict == "UNDECIDED"
    three = sequential.decide([1.0] * 3, 0.7)
    assert (three.verdict, three.interval[1]) == ("UNDECIDED", 1.0)
    assert three.more > 10
    assert sequential.interval([0.0] * 5)[0] == 0.0


@pytest.mark.parametrize(("rate", "low", "high"), [(0.75, 400, 900), (0.8, 110, 240), (0.85, 50, 110)])
def test_required_comparisons_match_the_simulated_median(rate, low, high):
    won = (
        sequential.log_wealth(stopping_rule.outcomes(rate, 0.0, (400, 2000), "estimate"), 0.7)
        >= stopping_rule.DECISION_LOG_WEALTH
    )
    median = np.median(np.where(won.any(1), won.argmax(1) + 1, 2000))
    assert low < median < high
    assert 0.75 < sequential.required_comparisons(rate, 0.7) / median < 1.4
    assert sequential.required_comparisons(rate, 0.7, ties=0.2) < sequential.required_comparisons(rate, 0.7), (
        "ties lower the variance"
    )


def test_remaining_comparisons_shrink_with_evidence():
    x_N = np.tile([1.0, 1.0, 1.0, 1.0, 0.0], 20)
    report = [sequential.remaining(x_N[:n], 0.7) for n in (10, 50, 100)]
    assert report[0] > report[1] > report[2] > 0
    assert sequential.remaining([1.0, 0.0] * 50, 0.5) is None
    assert sequential.required_comparisons(0.5, 0.5) is None
    assert sequential.required_comparisons(0.95, 0.7, ties=0.2) is None, "this rate is impossible with so many ties"


def test_wilson_coverage_at_fixed_n():
    for row in stopping_rule.coverage():
        assert all(0.93 < row[rate] < 0.98 for rate in ("0.5", "0.7", "0.85"))


def test_stopping_rule_benchmark_runs():
    result = stopping_rule.measure(60, 60)
    report = stopping_rule.markdown_tables(result)
    assert "by verdict" in report
    assert len(result["errors"]) == 8
