"""Calibration of judges: isotonic regression against scikit-learn, weights against known sampling, and a simulated
judge with known faults."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from towpath.data.draws import generator
from towpath.errors import DataError
from towpath.feedback import calibration
from towpath.feedback.calibration import AuditRow
from towpath.records import Judgement


def judgement(comparison, rater, choice, kind="person", **more):
    return Judgement(f"{comparison}/{rater}", str(comparison), rater, kind, choice, **more)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("distinct", [8, 1000])
def test_isotonic_regression_matches_scikit_learn(seed, distinct):
    draws = generator(seed, "test/isotonic", distinct)
    x = draws.integers(0, distinct, 200) / distinct
    y = draws.normal(x, 0.5)
    weight = draws.uniform(0.1, 3, 200)
    knots, height = calibration.isotonic(x, y, weight)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(x, y, sample_weight=weight)
    fresh = np.linspace(-0.2, 1.2, 333)
    np.testing.assert_allclose(np.interp(fresh, knots, height), theirs.predict(fresh), atol=1e-9)
    assert (np.diff(height) >= 0).all()


def test_isotonic_regression_without_weights():
    knots, height = calibration.isotonic(np.array([3.0, 1.0, 2.0, 2.0]), np.array([1.0, 1.0, 0.0, 0.0]))
    assert knots.tolist() == [1.0, 2.0, 3.0]
    assert height == pytest.approx([1 / 3, 1 / 3, 1.0])


def overconfident_judge(seed, count=1500, skew=2.0):
    """Audit rows of a judge whose accuracy is its certainty to the power of `skew`; people tie in a tenth of pairs."""
    draws = generator(seed, "test/judge")
    rows = []
    for number in range(count):
        sure = draws.uniform(0.5, 1)
        right = 0.5 + 0.5 * (2 * sure - 1) ** skew
        judge = str(draws.choice(["a", "b"]))
        person = judge if draws.random() < right else {"a": "b", "b": "a"}[judge]
        rows.append(AuditRow(str(number), judge, "tie" if draws.random() < 0.1 else person, sure))
    return rows


def test_calibration_of_an_overconfident_judge_generalizes():
    for seed in range(5):
        fitted = calibration.calibrate(overconfident_judge(seed))
        fresh = overconfident_judge(seed + 50, 4000)
        credit = np.array([calibration.credit(row.judge, row.person) for row in fresh])
        raw = np.array([row.certainty for row in fresh])
        assert calibration.calibration_error(raw, credit) > 0.08
        assert calibration.calibration_error(np.array([fitted.chance(x) for x in raw]), credit) < 0.05
        result = calibration.judge_report(overconfident_judge(seed), seed)
        assert result.error < 0.05 < result.error_raw


def length_biased_judge(seed, lean, count=4000):
    """Audit rows of a judge whose error rate grows with the relative length of its choice."""
    draws = generator(seed, "test/lean")
    rows = []
    for number in range(count):
        judge = str(draws.choice(["a", "b"]))
        longer = draws.uniform(-1, 1)
        agrees = draws.random() < 1 / (1 + np.exp(-1 + lean * longer))
        person = judge if agrees else {"a": "b", "b": "a"}[judge]
        rows.append(AuditRow(str(number), judge, person, 0.8, gap=longer if judge == "a" else -longer))
    return rows


def test_length_bias_of_a_judge_is_fitted():
    fitted = calibration.calibrate(length_biased_judge(0, 1.5))
    assert fitted.length_bias[1] == pytest.approx(-1.5, abs=0.2)
    for longer in (-0.8, 0.0, 0.8):
        assert fitted.chance(0.8, longer) == pytest.approx(1 / (1 + np.exp(-1 + 1.5 * longer)), abs=0.05)
    assert abs(calibration.calibrate(length_biased_judge(1, 0.0)).length_bias[1]) < 0.2
    assert calibration.calibrate(overconfident_judge(0)).length_bias == (
        0.0,
        0.0,
    )  # without lengths there is no correction
    few = [AuditRow(str(i), "a", "b" if i % 2 else "a", 0.8, gap=1.0 if i % 2 else -1.0) for i in range(6)]
    assert -1.5 < calibration.calibrate(few).length_bias[1] < -0.3  # six pairs are not enough for a steep slope


def test_held_out_chance_does_not_depend_on_its_own_label():
    rows = overconfident_judge(0, count=60)
    for position in range(0, 60, 7):
        other = [
            replace(row, person={"a": "b", "b": "a", "tie": "a"}[row.person]) if i == position else row
            for i, row in enumerate(rows)
        ]
        assert calibration.held_out_chances(other)[position] == calibration.held_out_chances(rows)[position]


def test_calibration_on_few_pairs_is_smoothed():
    fitted = calibration.calibrate([AuditRow(str(i), "a", "a", 0.5 + i / 20) for i in range(4)])
    assert fitted.chance(1.0) == pytest.approx(4.5 / 5) and fitted.n == pytest.approx(4)
    with pytest.raises(DataError, match="audited pairs"):
        calibration.calibrate([AuditRow("k", "tie", "a", 0.5)])


def test_calibration_is_monotonic_and_uses_weights():
    rows = [AuditRow(str(i), "a", "a" if i % 2 else "b", 0.6, weight=1.0) for i in range(400)]
    rows += [AuditRow(f"w{i}", "a", "a", 0.6, weight=10.0) for i in range(40)]
    fitted = calibration.calibrate(rows)
    assert fitted.chance(0.6) == pytest.approx((200 + 400) / 800, abs=0.01)
    chances = [calibration.calibrate(overconfident_judge(3)).chance(x) for x in np.linspace(0, 1, 50)]
    assert (np.diff(chances) >= 0).all() and 0 < chances[0] < chances[-1] < 1


def test_calibration_error_by_hand():
    chance = np.array([0.9, 0.9, 0.6, 0.6])
    credit = np.array([1.0, 0.0, 1.0, 1.0])
    assert calibration.calibration_error(chance, credit, bins=2) == pytest.approx((0.4 + 0.4) / 2)
    assert calibration.calibration_error(chance, credit, np.array([3.0, 1.0, 1.0, 1.0]), bins=2) == pytest.approx(
        (4 * 0.15 + 2 * 0.4) / 6
    )
    assert calibration.calibration_error(chance, credit, bins=1) == pytest.approx(0.0)
    perfect = generator(0, "test/perfect").random(20000)
    assert (
        calibration.calibration_error(perfect, (generator(1, "test/perfect").random(20000) < perfect).astype(float))
        < 0.02
    )


def test_hajek_estimate_is_unbiased_on_routed_pairs():
    """Hard pairs are sent to people more often, so that the unweighted rate is biased to them."""
    errors_hajek = []
    covered = 0
    for seed in range(60):
        draws = generator(seed, "test/weights")
        right = draws.random(2000) < 0.8
        propensity = np.where(right, 0.1, 0.6)
        observed = draws.random(2000) < propensity
        hajek = calibration.hajek_estimate(right[observed], 1 / propensity[observed])
        assert right[observed].mean() < 0.5
        errors_hajek.append(hajek.value - 0.8)
        covered += hajek.low <= 0.8 <= hajek.high
    assert abs(np.mean(errors_hajek)) < 0.01
    assert covered >= 52


def test_hajek_estimate_by_hand():
    e = calibration.hajek_estimate(np.array([1.0, 0.0]), np.array([2.0, 4.0]))
    assert e.value == pytest.approx(2 / 6) and e.n == 2
    nothing = calibration.hajek_estimate(np.zeros(0), np.zeros(0))
    assert np.isnan(nothing.value) and (nothing.low, nothing.high, nothing.n) == (0.0, 1.0, 0)


def faulty_judge(seed=0, count=1200):
    """Judgements of a judge that prefers the longer and the first answer, is worse in law and better if certain, and
    of people without these biases."""
    draws = generator(seed, "test/report")
    judgements = []
    lengths = {}
    domains = {}
    propensity = {}
    for number in range(count):
        name = str(number)
        truth, longer = (str(draws.choice(["a", "b"])) for _ in range(2))
        lengths[name] = (100, 50) if longer == "a" else (50, 100)
        domains[name] = str(draws.choice(["law", "cooking"]))
        strength = int(draws.integers(1, 4))
        slips = 0.5 - 0.1 * strength + (0.15 if domains[name] == "law" else 0.0)
        orders = {}
        choice = longer if draws.random() < slips else truth
        for order, first in (("ab", "a"), ("ba", "b")):
            orders[order] = first if draws.random() < 0.1 else choice
        consistent = orders["ab"] == orders["ba"]
        propensity[name] = 1.0 if not consistent else 0.25
        details = {"orders": orders, "confidence": 1.0 if consistent else 0.5, "consistent": consistent}
        judgements.append(
            judgement(
                name, "judge:m", orders["ab"] if consistent else "tie", "judge", strength=strength, details=details
            )
        )
        if draws.random() < propensity[name]:
            judgements.append(judgement(name, "ann", truth if draws.random() < 0.95 else "tie"))
    return judgements, propensity, lengths, domains


def test_judge_report_recovers_planted_faults():
    judgements, propensity, lengths, domains = faulty_judge(count=6000)
    result = calibration.judge_report(calibration.audit_rows(judgements, "judge:m", propensity, lengths, domains))
    flipped = [j for j in judgements if j.kind == "judge" and not j.details["consistent"]]
    # the rate is of all pairs, although people saw every flipped one
    assert result.flips.low < len(flipped) / 6000 < result.flips.high
    assert result.first.low > 0.5 and result.first.value == pytest.approx(0.55, abs=0.02)
    assert result.longer[0].low > 0.55 and result.longer[1].low < 0.5 < result.longer[1].high
    assert result.by_strength[1].high < result.by_strength[3].low
    assert result.by_domain["law"].high < result.by_domain["cooking"].low
    assert result.by_length["longer"].high < result.by_length["shorter"].low and result.by_length["alike"].n == 0
    assert sum(sum(row.values()) for row in result.confusion.values()) == pytest.approx(1.0)
    assert result.confusion["tie"]["tie"] == pytest.approx(0.05 * result.flips.value, abs=0.01)
    assert result.agreement.value == pytest.approx(sum(result.confusion[c][c] for c in result.confusion))
    assert result.accuracy.value > result.agreement.value


def test_pair_weight_does_not_depend_on_the_number_of_raters():
    judgements = [
        judgement("k", "judge:m", "a", "judge"),
        *(judgement("k", f"r{i}", "a") for i in range(9)),
        judgement("m", "judge:m", "a", "judge"),
        judgement("m", "r1", "b"),
    ]
    result = calibration.judge_report(calibration.audit_rows(judgements, "judge:m"))
    assert result.accuracy.value == pytest.approx(0.5) and result.accuracy.n == 2


def test_zero_propensity_is_refused_and_an_empty_report_is_nan():
    pair = [judgement("k", "judge:m", "a", "judge"), judgement("k", "ann", "a")]
    with pytest.raises(DataError, match="propensity 0"):
        calibration.audit_rows(pair, "judge:m", {"k": 0.0})
    assert calibration.audit_rows(pair, "judge:other") == []
    empty = calibration.judge_report([])
    assert empty.accuracy.n == 0 and np.isnan(empty.error)


def test_certainty_increases_with_votes_and_strength():
    votes = [
        calibration.certainty(judgement("k", "j", "a", strength=2, details={"confidence": share}))
        for share in (0.5, 0.75, 1.0)
    ]
    strengths = [calibration.certainty(judgement("k", "j", "a", strength=strength)) for strength in (1, 2, 3)]
    assert votes == sorted(votes) and strengths == sorted(strengths) and strengths[-1] == pytest.approx(1.0)
