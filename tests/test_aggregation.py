"""Aggregation of judgements to labels: Dawid-Skene against a plain implementation and known truths, and the blend of
people and judges."""

import math

import numpy as np
import pytest

from towpath.data.draws import generator
from towpath.errors import DataError
from towpath.feedback import aggregation, blend, dawid_skene
from towpath.feedback.aggregation import CHOICES
from towpath.feedback.calibration import Calibration
from towpath.records import Judgement

SURE = Calibration(np.array([0.0, 1.0]), np.array([0.5, 0.9]), 100.0)


def judgement(comparison, rater, choice, kind="person", **more):
    return Judgement(f"{comparison}/{rater}", str(comparison), rater, kind, choice, **more)


def simulated(seed, items=300, right=(0.95, 0.9, 0.85, 0.6, 0.55, 0.5, 0.5), each=4, ties=0.1):
    """Judgements by raters of these accuracies, and the true choices."""
    draws = generator(seed, "test/consensus")
    truth = draws.choice(["a", "b", "tie"], items, p=[(1 - ties) / 2, (1 - ties) / 2, ties])
    judgements = []
    for item, true in enumerate(truth):
        for rater in draws.choice(len(right), each, replace=False):
            others = [choice for choice in ("a", "b", "tie") if choice != true]
            judgements.append(
                judgement(
                    item, f"r{rater}", str(true) if draws.random() < right[rater] else others[int(draws.random() < 0.2)]
                )
            )
    return judgements, {str(item): str(true) for item, true in enumerate(truth)}


def accuracy(labels, truth):
    return np.mean([label.choice == truth[label.comparison] for label in labels])


def plain_dawid_skene(judgements, prior, chances, mirrored, rounds):
    """Dawid and Skene 1979, equations 2.3 to 2.5 with pseudo-counts, one number at a time."""
    raters = sorted({j.rater for j in judgements})
    size = range(4)
    swap = [1, 0, 2, 3] if mirrored else [0, 1, 2, 3]
    for _ in range(rounds):
        count = {(r, k, c): 0.0 for r in raters for k in size for c in size}
        for j in judgements:
            for k in size:
                for a, b in ((k, CHOICES.index(j.choice)), (swap[k], swap[CHOICES.index(j.choice)])):
                    count[j.rater, a, b] += chances[j.comparison][k] / 2
        rate = {(r, k, c): count[r, k, c] + prior[r][k][c] for r, k, c in count}
        rate = {(r, k, c): rate[r, k, c] / sum(rate[r, k, other] for other in size) for r, k, c in rate}
        total = [sum(chance[k] + chance[swap[k]] for chance in chances.values()) / 2 + 1 for k in size]
        share = [part / sum(total) for part in total]
        for item in chances:
            own = [j for j in judgements if j.comparison == item]
            joint = [share[k] * math.prod(rate[j.rater, k, CHOICES.index(j.choice)] for j in own) for k in size]
            chances[item] = [part / sum(joint) for part in joint]
    return rate, share, chances


@pytest.mark.parametrize("mirrored", [True, False])
def test_consensus_matches_dawid_skene_1979(mirrored):
    judgements, _ = simulated(1, items=40)
    result = dawid_skene.consensus(judgements, mirrored=mirrored, rounds=12, tolerance=-1.0)
    items = list(dict.fromkeys(j.comparison for j in judgements))
    start = {i: [sum(j.comparison == i and j.choice == c for j in judgements) / 4 for c in CHOICES] for i in items}
    as_one = [judgement(j.comparison, "all", j.choice) for j in judgements]
    pooled, _, start = plain_dawid_skene(as_one, {"all": dawid_skene.PRIOR_CC.tolist()}, start, mirrored, 12)
    prior = [[10 * pooled["all", k, c] for c in range(4)] for k in range(4)]
    rate, share, chances = plain_dawid_skene(judgements, dict.fromkeys(result.raters, prior), dict(start), mirrored, 12)
    report = np.array([[[rate[rater, k, c] for c in range(4)] for k in range(4)] for rater in result.raters])
    np.testing.assert_allclose(result.chance_IC, [chances[i] for i in result.items], atol=1e-9)
    np.testing.assert_allclose(result.confusion_RCC, report, atol=1e-9)
    np.testing.assert_allclose(result.prior_C, share, atol=1e-9)


def test_em_objective_increases_until_convergence():
    result = dawid_skene.consensus(simulated(2)[0])
    assert result.converged and len(result.objective) > 5
    assert (np.diff(result.objective) > -1e-9).all()
    stopped = dawid_skene.consensus(simulated(2)[0], rounds=3)
    assert not stopped.converged and len(stopped.objective) == 3


def test_consensus_beats_majority_with_raters_of_unequal_accuracy():
    gains = []
    for seed in range(10):
        judgements, truth = simulated(seed)
        gains.append(
            accuracy(dawid_skene.consensus_labels(judgements), truth)
            - accuracy(aggregation.majority_labels(judgements), truth)
        )
    assert min(gains) > 0 and np.mean(gains) > 0.05


def test_rater_accuracies_are_recovered():
    right = (0.95, 0.85, 0.75, 0.65, 0.55)
    judgements, _ = simulated(3, items=1500, right=right, each=3, ties=0.2)
    result = dawid_skene.consensus(judgements)
    report = dawid_skene.rater_accuracy(result)
    assert [report[f"r{i}"] for i in range(5)] == pytest.approx(right, abs=0.04)
    np.testing.assert_allclose(result.prior_C, [0.4, 0.4, 0.2, 0.0], atol=0.04)
    a = CHOICES.index("a")
    b = CHOICES.index("b")
    # the order of a and b is random, so the confusion matrix is symmetric
    np.testing.assert_allclose(result.confusion_RCC[:, a, b], result.confusion_RCC[:, b, a])


def test_single_judgement_gives_moderate_confidence():
    labels = dawid_skene.consensus_labels([judgement(item, f"r{item % 3}", "a") for item in range(200)])
    assert {label.choice for label in labels} == {"a"}
    # the prior accuracy of raters whose judgements were never compared
    assert all(0.75 < label.chance < 0.9 for label in labels)
    poor = [judgement(f"d{i}", rater, "ab"[(i + n) % 2]) for i in range(200) for n, rater in enumerate(("x", "y"))]
    chance = {
        label.comparison: label.chance for label in dawid_skene.consensus_labels([*poor, judgement("k", "x", "a")])
    }["k"]
    assert 0.4 < chance < 0.65  # raters who never agree carry no information


def test_gold_labels_are_fixed_and_improve_rater_estimates():
    judgements, truth = simulated(4, items=200, right=(0.9, 0.3, 0.3), each=3)
    gold = {item: truth[item] for item in list(truth)[:60]}
    known = dawid_skene.consensus_labels(judgements, gold)
    unknown = dawid_skene.consensus_labels(judgements)
    rest = [label for label in known if label.comparison not in gold]
    assert all(label.choice == gold[label.comparison] for label in known if label.comparison in gold)
    assert accuracy(rest, truth) > accuracy([label for label in unknown if label.comparison not in gold], truth) + 0.1
    assert accuracy(rest, truth) > 0.85


def test_zero_smoothing_is_refused():
    with pytest.raises(DataError, match="above 0"):
        dawid_skene.consensus([judgement("k", "x", "a")], smoothing=0)
    assert dawid_skene.consensus_labels([]) == []


def test_blend_combines_people_judges_rules_and_gold():
    doubles = [
        judgement(f"d{i}", rater, "a" if (i + n) % 5 else "b")
        for i in range(100)
        for n, rater in enumerate(("ann", "bob"))
    ]
    all_judgements = [
        judgement("alone", "ann", "a"),
        judgement("both", "ann", "a"),
        judgement("both", "judge:m", "a", "judge", strength=3),
        judgement("against", "ann", "a"),
        judgement("against", "judge:m", "b", "judge", strength=3),
        judgement("machine", "judge:m", "b", "judge", strength=3),
        judgement("unsure", "judge:m", "b", "judge", strength=1, details={"confidence": 0.5}),
        judgement("even", "judge:m", "tie", "judge"),
        judgement("rule", "rule:short", "a", "rule"),
        judgement("gold", "judge:m", "a", "judge"),
        judgement("gold", "ann", "a"),
    ]
    by = {
        label.comparison: label
        for label in blend.blend_labels([*doubles, *all_judgements], {"judge:m": SURE}, gold={"gold": "b"})
    }
    assert by["alone"].by == "people" and by["both"].by == "people+judge:m" and by["machine"].by == "judge:m"
    assert by["against"].chance < by["alone"].chance < by["both"].chance
    assert by["machine"].chance == pytest.approx(0.1) and by["machine"].choice == "b"
    assert by["machine"].chance < by["unsure"].chance < 0.5
    assert (by["even"].choice, by["even"].chance) == ("tie", 0.5)
    assert (by["rule"].choice, by["rule"].chance, by["rule"].by) == ("a", None, "rule:short, uncalibrated")
    assert (by["gold"].choice, by["gold"].chance, by["gold"].by) == ("b", 0.0, "gold")
    assert (by["both"].judgements, by["both"].strength) == (2, 2.0)


def test_length_bias_lowers_confidence_in_longer_choices():
    likes = Calibration(np.array([0.0, 1.0]), np.array([0.5, 0.9]), 100.0, (0.0, -1.0))
    all_judgements = [
        judgement(name, "judge:m", choice, "judge", strength=3)
        for name, choice in (("longer", "a"), ("shorter", "b"), ("alike", "a"))
    ]
    by = {
        label.comparison: label.chance
        for label in blend.blend_labels(all_judgements, {"judge:m": likes}, gaps={"longer": 1.0, "shorter": 1.0})
    }
    assert by["alike"] == pytest.approx(0.9)
    assert by["longer"] == pytest.approx(9 / math.e / (1 + 9 / math.e))
    assert by["shorter"] == pytest.approx(1 / (1 + 9 * math.e))


def test_odds_of_person_and_judge_multiply():
    gold = {f"g{i}": "a" for i in range(4000)}
    all_judgements = [
        judgement(f"g{i}", "ann", "a" if i % 5 else "b") for i in range(4000)
    ]  # ann is right in four of five
    both = [judgement("k", "ann", "a"), judgement("k", "judge:m", "a", "judge", strength=3)]
    chance = {
        label.comparison: label.chance
        for label in blend.blend_labels([*all_judgements, *both], {"judge:m": SURE}, gold)
    }["k"]
    odds = 0.8 / 0.2 * 0.9 / 0.1
    assert chance == pytest.approx(odds / (1 + odds), abs=0.01)


@pytest.mark.parametrize(("right", "person"), [(0.9, 0.8), (0.7, 0.75), (0.85, 1.0)])
def test_rater_error_is_removed_from_agreement(right, person):
    agrees = right * person + (1 - right) * (1 - person)
    assert blend.without_rater_error(agrees, person) == pytest.approx(right)
    assert blend.without_rater_error(0.999, 0.8) == 0.99 and blend.without_rater_error(0.0, 0.8) == pytest.approx(0.01)
    with pytest.raises(DataError, match=r"above 0\.5"):
        blend.blend_labels([], {}, rater_accuracy=0.5)


def test_disputes_are_ordered_by_closeness():
    all_judgements = [
        *(judgement("split", rater, choice) for rater, choice in (("x", "a"), ("y", "b"))),
        *(judgement("settled", rater, choice) for rater, choice in zip("xyz", "aab", strict=True)),
        *(judgement("agreed", rater, "a") for rater in "xy"),
        *(judgement("half", rater, choice) for rater, choice in (("x", "a"), ("y", "tie"))),
        judgement("split", "judge:m", "a", "judge"),
        judgement("lone", "x", "a"),
        judgement("lone", "judge:m", "b", "judge"),
        *(judgement("three ways", rater, choice) for rater, choice in (("x", "a"), ("y", "b"), ("z", "tie"))),
    ]
    queue = blend.find_disputes(
        all_judgements, dawid_skene.consensus_labels([j for j in all_judgements if j.kind == "person"])
    )
    assert {dispute.comparison for dispute in queue} == {"split", "half", "three ways"}
    assert [dispute.comparison for dispute in queue][-1] == "half"
    assert next(d for d in queue if d.comparison == "split").choices == {"x": "a", "y": "b"}
