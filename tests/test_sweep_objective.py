"""Value of a trial at equal KL: interpolation, edges, intervals, paired differences, importance and pruning."""

import numpy as np
import pytest

from towpath.records import Finding
from towpath.sweep.importance import importance
from towpath.sweep.objective import TrialCurve, area_under, measure, paired_difference, value_at
from towpath.sweep.pruning import below_median, critical_finding, is_rung
from towpath.sweep.space import SearchRange
from towpath.sweep.trial_record import curve_of, curve_rows


def at(kl: list[float], win: list[float], target: float) -> tuple[float, bool]:
    return value_at(np.array(kl), np.array(win), target)


def curve(kl: list[float], win: list[float], prompts: int = 40, seed: int = 0) -> TrialCurve:
    """A curve whose outcomes have these means up to rounding, prompt by prompt."""
    draws = np.random.default_rng(seed)
    kl_VP = np.array([draws.normal(mean, 0.05, prompts) for mean in kl])
    kl_VP += np.array(kl)[:, None] - kl_VP.mean(1, keepdims=True)
    win_VP = np.array([draws.permutation((np.arange(prompts) < round(rate * prompts)).astype(float)) for rate in win])
    return TrialCurve(tuple(range(len(kl))), kl_VP, win_VP, np.zeros_like(kl_VP), np.zeros(len(kl)))


def test_win_rate_rises_with_the_root_of_the_kl():
    assert at([1.0], [0.8], 0.25) == (pytest.approx(0.65), True)
    kl = [0.1, 0.4, 0.6, 2.0]
    assert at(kl, [0.5 + 0.3 * x**0.5 for x in kl], 0.5) == (pytest.approx(0.5 + 0.3 * 0.5**0.5), True)
    assert at([0.5], [0.7], 0.5) == (pytest.approx(0.7), True)


def test_a_path_that_drifts_further_gains_nothing():
    near = at([0.45, 0.55], [0.6, 0.62], 0.5)[0]
    far = at([0.45, 0.55, 5.0], [0.6, 0.62, 0.99], 0.5)[0]
    assert near == pytest.approx(far, abs=1e-3)


def test_validations_near_the_target_are_averaged():
    draws = np.random.default_rng(0)
    noisy = [at([0.4, 0.5, 0.6, 0.5], list(0.7 + 0.04 * draws.standard_normal(4)), 0.5)[0] for _ in range(2000)]
    assert np.mean(noisy) == pytest.approx(0.7, abs=0.005)
    assert np.std(noisy) < 0.6 * 0.04


def test_the_bend_of_a_concave_curve_costs_little():
    """A policy that is tilted exactly: the win rate of exp(b r) on uniform rewards, with its KL."""
    grid = (np.arange(4000) + 0.5) / 4000
    curve = []
    for strength in (0.8, 1.6, 2.4, 3.2, 4.0, 6.0):
        p = np.exp(strength * grid)
        p /= p.sum()
        curve.append((float((p * np.log(p * len(p))).sum()), float((p * grid).sum())))
    kl, win = map(list, zip(*curve, strict=True))
    for target in (0.2, 0.5, 0.8):
        truth = np.interp(target, kl, win)  # a chord, which is a little lower
        assert at(kl, win, target)[0] == pytest.approx(truth, abs=0.012)


def test_nothing_is_extrapolated():
    value, reached = at([0.1, 0.2], [0.7, 0.6], 0.5)
    assert 0.6 < value < 0.7 and not reached
    assert at([0.3, 0.1], [0.7, 0.6], 0.5) == (pytest.approx(0.6, abs=0.005), False)
    assert at([], [], 0.5) == (0.5, False)
    assert at([-0.01], [0.5], 0.5) == (0.5, False)
    assert at([0.25], [0.95], 0.5)[0] == pytest.approx(0.95)


def test_area_is_the_mean_up_to_the_target():
    value, reached = area_under(np.array([1.0]), np.array([0.9]), 1.0)
    mean_of_root = 0.5 + 0.4 * 2 / 3
    assert (value, reached) == (pytest.approx(mean_of_root, abs=0.005), True)
    value, reached = area_under(np.array([0.5]), np.array([0.9]), 1.0)
    assert (value, reached) == (pytest.approx((mean_of_root + 0.9) / 2, abs=0.01), False)


def test_interval_covers_the_truth():
    covered = 0
    for seed in range(200):
        draws = np.random.default_rng(seed)
        kl_VP = draws.normal([[0.4], [0.8]], 0.3, (2, 80))
        win_VP = (draws.random((2, 80)) < 0.5 + 0.3 * np.array([[0.4], [0.8]]) ** 0.5).astype(float)
        measured = measure(TrialCurve((0, 1), kl_VP, win_VP, np.zeros((2, 80)), np.zeros(2)), "win_rate", 0.5, 200, 0)
        low, high = measured.interval
        covered += low <= 0.5 + 0.3 * 0.5**0.5 <= high
    assert 0.9 <= covered / 200 <= 0.985


def test_unjudged_prompts_are_left_out():
    one = curve([1.0], [0.8])
    win_VP = one.win_VP.copy()
    win_VP[0, :10] = np.nan
    rest = win_VP[0, 10:].mean()
    other = TrialCurve(one.steps, one.kl_VP, win_VP, one.length_gap_VP, one.safety_rise_V)
    assert measure(other, "win_rate", 1.0, 100, 0).value == pytest.approx(rest)


def test_value_of_a_trial_that_was_never_validated():
    empty = curve_of([])
    measured = measure(empty, "win_rate", 0.5, 100, 0)
    assert (measured.value, measured.reached) == (0.5, False)


def test_curve_survives_json():
    one = curve([0.3, 0.9], [0.6, 0.7])
    one.win_VP[0, 0] = np.nan
    other = curve_of(curve_rows(one))
    np.testing.assert_allclose(other.kl_VP, one.kl_VP, atol=1e-6)
    np.testing.assert_array_equal(other.win_VP, one.win_VP)


def test_paired_difference_is_narrower_than_unpaired_and_shows_a_gap():
    draws = np.random.default_rng(1)
    ours = []
    others = []
    for _ in range(2):
        base_P = (draws.random(80) < 0.6).astype(float)
        better_P = np.where(draws.random(80) < 0.25, 1.0, base_P)
        kl_VP = np.full((1, 80), 0.5)
        for rows, win_P in ((ours, better_P), (others, base_P)):
            rows.append(TrialCurve((0,), kl_VP, win_P[None], np.zeros((1, 80)), np.zeros(1)))
    paired = paired_difference(ours, others, "win_rate", 0.5, 300, 0)
    assert paired.shows and paired.interval[0] > 0
    assert paired.interval[1] - paired.interval[0] < 0.15  # of prompts that differ: unpaired it would be 0.21
    none = paired_difference(others, others, "win_rate", 0.5, 100, 0)
    assert none.difference == 0 and not none.shows
    wide = paired_difference(ours, others, "win_rate", 0.5, 300, 0, comparisons=5)
    assert wide.interval[0] < paired.interval[0]


def test_importance_finds_the_key_that_matters():
    draws = np.random.default_rng(0)
    space = {"a": SearchRange("a", 1e-5, 1e-3, log=True), "b": SearchRange("b", choices=(4, 8))}
    trials = []
    for _ in range(30):
        rate = float(10 ** draws.uniform(-5, -3))
        settings = {"a": rate, "b": int(draws.choice([4, 8]))}
        trials.append((settings, -((np.log10(rate) + 4) ** 2) + draws.normal(0, 0.02)))
    shares = importance(space, trials)
    assert next(iter(shares)) == "a" and shares["a"] > 0.9 and shares["b"] < 0.2
    assert importance(space, trials[:5]) == {}
    assert importance(space, [(settings, 0.5) for settings, _ in trials]) == {"a": 0.0, "b": 0.0}


def test_critical_findings_end_a_trial_but_not_those_of_the_machine():
    def finding(code: str, severity: str, first_step: int = 4) -> Finding:
        return Finding(code, severity, "evidence", "cause", "remedy", first_step)

    assert critical_finding([finding("kl-rising", "warning")]) == ""
    assert critical_finding([finding("memory-growing", "critical")]) == ""
    assert critical_finding([finding("kl-rising", "critical")]) == "kl-rising: evidence"
    # what holds before the first update does not come from the settings
    assert critical_finding([finding("missing-eos", "critical", 0), finding("reward-overfit", "critical", -1)]) == ""


def test_halving_compares_at_equal_kl():
    peers = [curve([0.25, 1.0], [0.6 + 0.01 * i, 0.9], 200) for i in range(5)]
    weak = curve([0.25], [0.5], 200)
    assert "median of 5 trials" in below_median(weak, peers, 0.5)
    # a slow trial has a low win rate because its KL is low: at that KL it is as good as the others
    slow = curve([0.1], [0.545], 200)
    assert below_median(slow, peers, 0.5) == ""
    assert below_median(weak, peers[:3], 0.5) == ""
    assert below_median(curve([0.01], [0.3]), peers, 0.5) == ""


def test_rungs_are_the_first_validations_after_a_quarter_and_a_half():
    validated = [1, 3, 5, 7, 9, 11]
    assert [step for step in validated if is_rung(step, [v for v in validated if v <= step], 12)] == [3, 5]
