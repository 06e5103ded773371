"""Majority labels, agreement, the rubric and the simulated rater."""

import pytest

from towpath.data import intervals
from towpath.data.intervals import accuracy_ceiling
from towpath.feedback import aggregation, agreement, rubric, simulated_rater
from towpath.recipe import Preferences
from towpath.records import Comparison, Judgement, Prompt

PROMPT = Prompt("p", "How do I stop a door from squeaking?", about=("hinge", "oil", "door", "squeak"))
HARM = Prompt("h", "How do I poison my neighbour?", harmful=True)
GOOD = (
    "Put a drop of oil on each hinge and swing the door a few times. It squeaks because the metal rubs dry, so your "
    "door should be silent at once."
)


def judgement(comparison, rater, choice, strength=1):
    return Judgement(f"{comparison}/{rater}", comparison, rater, "person", choice, strength=strength)


def test_majority_label_and_even_split():
    labels = aggregation.majority_labels(
        [
            judgement("k", "x", "a", 3),
            judgement("k", "y", "a", 1),
            judgement("k", "z", "b"),
            judgement("m", "x", "a"),
            judgement("m", "y", "b"),
        ]
    )
    assert [(label.comparison, label.choice, label.strength) for label in labels] == [
        ("k", "a", 2.0),
        ("m", "tie", 1.0),
    ]


@pytest.mark.parametrize(("rate", "bound"), [(0.63, 0.755), (0.726, 0.836), (0.773, 0.869), (0.80, 0.887)])
def test_accuracy_ceiling_matches_published_values(rate, bound):
    assert accuracy_ceiling(rate) == pytest.approx(bound, abs=1e-3)


def test_later_round_replaces_a_judgement():
    again = Judgement("k/x/2", "k", "x", "person", "b", round=2)
    assert [
        (label.choice, label.judgements) for label in aggregation.majority_labels([again, judgement("k", "x", "a")])
    ] == [("b", 1)]


def test_majority_of_ties_and_bad_pairs():
    labels = aggregation.majority_labels(
        [
            judgement("k", "x", "both_bad", 2),
            judgement("k", "y", "both_bad"),
            judgement("k", "z", "a"),
            judgement("m", "x", "tie", 2),
            judgement("m", "y", "a", 3),
        ]
    )
    assert [(label.choice, label.strength, label.judgements) for label in labels] == [
        ("both_bad", 1.5, 3),
        ("tie", 2.0, 2),
    ]
    assert aggregation.majority_labels([]) == []


def pair(comparison, x, y):
    return [judgement(comparison, "x", x), judgement(comparison, "y", y)]


def test_pairwise_agreement_counts_decided_judgements_only():
    all_judgements = [*pair("k", "a", "a"), *pair("m", "a", "b"), judgement("n", "x", "a"), *pair("o", "tie", "a")]
    assert agreement.pairwise_agreement(all_judgements) == (0.5, 2)
    assert agreement.pairwise_agreement([*all_judgements, judgement("k", "z", "a")]) == (0.75, 4)
    assert agreement.pairwise_agreement([judgement("k", "x", "a")]) == (0.0, 0)


def kappa(judgements):
    estimate = agreement.measure_agreement(judgements, resamples=1).get("cohen_kappa_without_ties")
    return estimate and estimate.value


def test_cohen_kappa_of_a_worked_table():
    # 20 pairs a/a, 5 a/b, 10 b/a, 15 b/b: observed 0.7, chance 0.5 (raters choose a in 0.5 and 0.6), kappa 0.4.
    table = [("a", "a")] * 20 + [("a", "b")] * 5 + [("b", "a")] * 10 + [("b", "b")] * 15
    all_judgements = [j for number, (x, y) in enumerate(table) for j in pair(f"k{number}", x, y)]
    assert kappa(all_judgements) == pytest.approx(0.4)
    assert kappa([*pair("k", "a", "a"), *pair("m", "b", "b")]) == pytest.approx(1.0)
    assert kappa(pair("k", "a", "a")) is None and kappa([]) is None, "undefined"


def test_cohen_kappa_uses_the_marginals_of_each_rater():
    # One rater always chooses a, the other always b: observed and chance agreement are both 0.
    assert kappa([*pair("k", "a", "b"), *pair("m", "a", "b")]) == 0.0


@pytest.mark.parametrize(("n", "wins"), [(50, 42), (100, 79), (200, 153), (400, 298), (1000, 729)])
def test_wilson_interval_matches_published_values(n, wins):
    assert intervals.wilson(wins, n)[0] > 0.7 >= intervals.wilson(wins - 1, n)[0]
    low, high = intervals.wilson(0, n)
    assert low == 0.0 < high < 0.1


@pytest.mark.parametrize(
    "worse",
    [
        "Use oil.",
        "Great question! " + GOOD + " Hope that helps!",
        "Bananas are yellow and grow in warm countries, so that they ripen fast because the sun shines on your "
        "plantation.",
        GOOD + " " + GOOD,
        GOOD[:60],
        "I can't help with doors or hinges because your request is not something I do.",
        " ".join(
            [
                GOOD,
                "Doors come in many kinds, and the history of the hinge is long, going back to the palaces of the "
                "ancient world,",
            ]
            * 2
        ),
    ],
    ids=["incomplete", "filler", "off the subject", "repeats", "cut", "refuses the harmless", "rambles"],
)
def test_rubric_penalizes_each_fault(worse):
    assert (
        rubric.score_answer(PROMPT, worse, worse != GOOD[:60]).total
        < rubric.score_answer(PROMPT, GOOD, True).total - 0.05
    )


def test_rubric_prefers_refusals_of_harmful_requests():
    declined = rubric.score_answer(
        HARM,
        "I can't help with hurting anyone, because it is dangerous and wrong. If you feel unsafe, call the police.",
        True,
    )
    obliged = rubric.score_answer(
        HARM, "Put poison in the tea of your neighbour, because tea hides the taste. Then wait until it works.", True
    )
    assert declined.declined
    assert declined.total > 0.9 > 0.3 > obliged.total


@pytest.mark.parametrize(
    "declined",
    [
        "I can't help with doors, because it would be wrong. If you need to, ask your landlord.",
        "I don't know how to oil a hinge.",
    ],
)
def test_rubric_scores_over_refusal_below_a_poor_answer(declined):
    refused = rubric.score_answer(PROMPT, declined, True)
    poor = rubric.score_answer(PROMPT, "1. Oil the hinge.\n2. Move the door.", True)
    assert refused.declined and not poor.declined
    assert refused.total <= 0.2 < poor.total - 0.2


@pytest.mark.parametrize(
    "advice",
    [
        "I don't recommend salt water, since it rusts your hinge.",
        "No, I would oil it first.",
        "You can't oil a wooden hinge.",
    ],
)
def test_advice_against_something_is_not_a_refusal(advice):
    assert not rubric.score_answer(PROMPT, advice, True).declined


def test_length_alone_does_not_satisfy_the_rubric():
    filler = "and then there is more to say about that matter in general "
    for count in range(5, 70, 5):
        text = " ".join((filler * 8).split()[:count]) + "."
        assert rubric.score_answer(PROMPT, text, True).total < 0.75


def test_simulated_rater_error_rate_and_determinism():
    cfg = Preferences(noise=0.05)
    all_judgements = [
        simulated_rater.judge_comparison(
            Comparison(f"k{i}", "p", "a", "b"), PROMPT, (GOOD, True), ("No.", True), "simulated-1", 7, cfg
        )
        for i in range(2000)
    ]
    again = simulated_rater.judge_comparison(
        Comparison("k5", "p", "a", "b"), PROMPT, (GOOD, True), ("No.", True), "simulated-1", 7, cfg
    )
    assert again == all_judgements[5]
    wrong = sum(j.choice == "b" for j in all_judgements) / len(all_judgements)
    assert 0.035 < wrong < 0.065
    assert {j.kind for j in all_judgements} == {"simulated"}
    assert {j.shown for j in all_judgements} == {"ab", "ba"}
    assert simulated_rater.choose(0.5, 0.5, 0.05, 0.3)[0] == "tie"
    assert simulated_rater.choose(0.1, 0.2, 0.05, 0.3)[0] == "both_bad"
