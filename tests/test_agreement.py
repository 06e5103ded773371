"""Agreement and rater quality: against scikit-learn, plain implementations of the papers, published tables, and
simulated raters with known faults."""

from itertools import combinations, permutations, product

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from towpath.data.draws import generator
from towpath.feedback import agreement, rater_quality
from towpath.feedback.aggregation import CHOICES
from towpath.records import Judgement

FLEISS_1971 = """0 0 0 6 0|0 3 0 0 3|0 1 4 0 1|0 0 0 0 6|0 3 0 3 0|2 0 4 0 0|0 0 4 0 2|2 0 3 1 0|2 0 0 4 0|0 0 0 0 6|1 0 0 5 0|1 1 0 4 0|0 3 3 0 0
|1 0 0 5 0|0 2 0 3 1|0 0 5 0 1|3 0 0 1 2|5 1 0 0 0|0 2 0 4 0|1 0 2 0 3|0 0 0 0 6|0 1 0 5 0|0 2 0 1 3|2 0 0 4 0|1 0 0 4 1|0 5 0 1 0|4 0 0 0 2
|0 2 0 4 0|1 0 5 0 0|0 0 0 0 6"""
KRIPPENDORFF_2011 = [
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
]


def judgement(comparison, rater, choice, strength=1, **more):
    return Judgement(
        f"{comparison}/{rater}/{more.get('round', 1)}",
        str(comparison),
        rater,
        more.pop("kind", "person"),
        choice,
        strength=strength,
        **more,
    )


def noisy_raters(seed, items=60, people=5, visited=0.6):
    """Judgements by raters who see the same hidden truth with errors, on some items each."""
    draws = generator(seed, "test/crowd")
    truth = draws.choice(CHOICES, items, p=[0.4, 0.35, 0.2, 0.05])
    return [
        judgement(
            item,
            f"r{rater}",
            str(true) if draws.random() < 0.6 else str(draws.choice(CHOICES)),
            int(draws.integers(1, 4)),
        )
        for item, true in enumerate(truth)
        for rater in range(people)
        if draws.random() < visited
    ]


def cohen_kappa(judgements, ties=False):
    name = "cohen_kappa" if ties else "cohen_kappa_without_ties"
    return agreement.measure_agreement(judgements, resamples=1)[name].value


def fleiss_kappa(counts_IC):
    rows = agreement._judged_twice(counts_IC)
    return float(agreement._fleiss(rows)(np.ones((1, len(rows))))[0])


def krippendorff_alpha(counts_IC, values=None, metric="nominal"):
    rows = agreement._judged_twice(counts_IC)
    values = np.arange(rows.shape[1]) if values is None else values
    return float(agreement._alpha(rows, values, metric)(np.ones((1, len(rows))))[0])


def table(judgements, categories, category):
    items = sorted({j.comparison for j in judgements})
    rows = [[sum(j.comparison == item and category(j) == c for j in judgements) for c in categories] for item in items]
    return np.array(rows)


@pytest.mark.parametrize("seed", range(5))
def test_cohen_kappa_matches_scikit_learn(seed):
    judgements = noisy_raters(seed, people=2, visited=1.0)
    mine, theirs = ([j.choice for j in judgements if j.rater == rater] for rater in ("r0", "r1"))
    assert cohen_kappa(judgements, ties=True) == pytest.approx(cohen_kappa_score(mine, theirs), abs=1e-12)
    decided = [(x, y) for x, y in zip(mine, theirs, strict=True) if x in "ab" and y in "ab"]
    assert cohen_kappa(judgements) == pytest.approx(cohen_kappa_score(*zip(*decided, strict=True)), abs=1e-12)


def test_cohen_kappa_pools_pairs_of_raters():
    judgements = noisy_raters(7, people=4)
    by = {(j.comparison, j.rater): j.choice for j in judgements}
    observed = chance = count = 0.0
    for first, second in combinations(["r0", "r1", "r2", "r3"], 2):
        both = [(by[i, first], by[i, second]) for i in {i for i, _ in by} if (i, first) in by and (i, second) in by]
        observed += sum(x == y for x, y in both)
        chance += sum(sum(x == c for x, _ in both) * sum(y == c for _, y in both) for c in CHOICES) / len(both)
        count += len(both)
    assert cohen_kappa(judgements, ties=True) == pytest.approx((observed - chance) / (count - chance), abs=1e-9)


def plain_fleiss(rows):
    """Fleiss 1971, formulas 2 to 8, without vectorization."""
    subjects = len(rows)
    n = sum(rows[0])
    p = [sum(row[j] for row in rows) / (subjects * n) for j in range(len(rows[0]))]
    observed = sum((sum(x * x for x in row) - n) / (n * (n - 1)) for row in rows) / subjects
    chance = sum(x * x for x in p)
    return (observed - chance) / (1 - chance)


def test_fleiss_kappa_of_the_published_table():
    rows = [[int(word) for word in row.split()] for row in FLEISS_1971.split("|")]
    assert len(rows) == 30 and {sum(row) for row in rows} == {6}
    assert fleiss_kappa(np.array(rows)) == pytest.approx(0.430, abs=5e-4)
    assert fleiss_kappa(np.array(rows)) == pytest.approx(plain_fleiss(rows), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_fleiss_kappa_matches_the_formula(seed):
    rows = generator(seed, "test/fleiss").multinomial(7, [0.5, 0.2, 0.2, 0.1], 40)
    assert fleiss_kappa(rows) == pytest.approx(plain_fleiss(rows.tolist()), abs=1e-9)


def plain_alpha(units, metric):
    """Krippendorff 2011, steps B to F: every ordered pair of values within a unit, weighted by 1 / (values - 1)."""
    units = [unit for unit in units if len(unit) > 1]
    values = sorted({value for unit in units for value in unit})
    met = dict.fromkeys(product(values, values), 0.0)
    for unit in units:
        for c, k in permutations(unit, 2):
            met[c, k] += 1 / (len(unit) - 1)
    total = {c: sum(met[c, k] for k in values) for c in values}
    n = sum(total.values())

    def apart(c, k):
        if metric == "nominal":
            return float(c != k)
        if metric == "interval":
            return float(c - k) ** 2
        between = [total[g] for g in values if min(c, k) <= g <= max(c, k)]
        return (sum(between) - (total[c] + total[k]) / 2) ** 2

    visited = sum(met[c, k] * apart(c, k) for c, k in met)
    expected = sum(total[c] * total[k] * apart(c, k) for c, k in met)
    return 1 - (n - 1) * visited / expected


@pytest.mark.parametrize(("metric", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_krippendorff_alpha_of_the_published_example(metric, alpha):
    units = [
        [int(word) for word in column if word != "."]
        for column in zip(*(row.split() for row in KRIPPENDORFF_2011), strict=True)
    ]
    rows = np.array([[unit.count(value) for value in range(1, 6)] for unit in units])
    assert krippendorff_alpha(rows, np.arange(1, 6), metric) == pytest.approx(alpha, abs=5e-4)
    assert krippendorff_alpha(rows, np.arange(1, 6), metric) == pytest.approx(plain_alpha(units, metric), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("metric", ["nominal", "ordinal", "interval"])
def test_krippendorff_alpha_matches_the_definition_with_missing_values(metric, seed):
    draws = generator(seed, "test/alpha")
    places = np.array([-3, -1, 0, 2, 7])
    units = [list(draws.choice(places, draws.integers(0, 6), p=[0.3, 0.3, 0.2, 0.1, 0.1])) for _ in range(50)]
    rows = np.array([[unit.count(value) for value in places] for unit in units])
    assert krippendorff_alpha(rows, places, metric) == pytest.approx(plain_alpha(units, metric), abs=1e-9)


def test_agreement_metrics_match_their_count_tables():
    judgements = noisy_raters(3)
    result = agreement.measure_agreement(judgements, resamples=50)
    choices = table(judgements, CHOICES, lambda j: j.choice)
    sign = {"a": 1, "b": -1, "tie": 0, "both_bad": 99}
    places = table(judgements, range(-3, 4), lambda j: sign[j.choice] * j.strength)
    pairs = (choices.sum(1) * (choices.sum(1) - 1)).sum()
    alike = (choices * (choices - 1)).sum()
    assert result["percent"].value == pytest.approx(alike / pairs, abs=1e-12)
    assert result["percent_without_ties"].value == pytest.approx(agreement.pairwise_agreement(judgements)[0], abs=1e-12)
    assert result["fleiss_kappa"].value == pytest.approx(fleiss_kappa(choices), abs=1e-12)
    assert result["alpha"].value == pytest.approx(krippendorff_alpha(choices), abs=1e-12)
    for metric in ("ordinal", "interval"):
        assert result[f"alpha_{metric}"].value == pytest.approx(
            krippendorff_alpha(places, np.arange(-3, 4), metric), abs=1e-12
        )
    assert result["percent"].n == (choices.sum(1) >= 2).sum()


@pytest.mark.parametrize("figure", ["percent", "cohen_kappa", "fleiss_kappa", "alpha"])
def test_interval_matches_a_bootstrap_over_items(figure):
    judgements = noisy_raters(5, items=80)
    result = agreement.measure_agreement(judgements, resamples=3000)[figure]
    items = sorted({j.comparison for j in judgements})
    draws = np.random.default_rng(0)
    report = []
    of_item = {item: [j for j in judgements if j.comparison == item] for item in items}
    for _ in range(300):
        again = [
            judgement(f"{position}", j.rater, j.choice, j.strength)
            for position, item in enumerate(draws.choice(items, len(items)))
            for j in of_item[item]
        ]
        report.append(agreement.measure_agreement(again, resamples=1)[figure].value)
    low, high = np.quantile(report, [0.025, 0.975])
    assert (result.low, result.high) == pytest.approx((low, high), abs=0.03)
    assert result.low < result.value < result.high


def test_intervals_are_deterministic_and_cover_the_true_value():
    assert agreement.measure_agreement(noisy_raters(1), seed=4) == agreement.measure_agreement(noisy_raters(1), seed=4)
    truth = agreement.measure_agreement(noisy_raters(99, items=4000), resamples=1)["alpha"].value
    inside = [
        e.low <= truth <= e.high
        for e in (
            agreement.measure_agreement(noisy_raters(seed, items=150), resamples=400)["alpha"] for seed in range(60)
        )
    ]
    assert sum(inside) >= 50


def test_interval_of_perfect_agreement_has_nonzero_width():
    result = agreement.measure_agreement([judgement(item, rater, "a") for item in range(10) for rater in "xy"])
    assert (result["percent"].value, result["percent"].high) == (1.0, 1.0)
    assert result["percent"].low == pytest.approx(0.722, abs=1e-3)
    assert (
        "alpha" not in result and "cohen_kappa" not in result
    )  # one choice alone: agreement beyond chance is undefined
    assert agreement.measure_agreement([]) == {} == agreement.measure_agreement([judgement("k", "x", "a")])


def faulty_raters(seed=0):
    """Six raters: r1 prefers the left side, r2 hurries, r3 guesses, r4 sees differences between identical texts."""
    draws = generator(seed, "test/raters")
    judgements = []
    texts = {}
    gold = {}
    for item in range(200):
        texts[str(item)] = (
            ("same", "same")
            if item % 10 == 0
            else (f"x{item % 100}", f"y{item % 100}")
            if item < 100
            else (f"y{item % 100}", f"x{item % 100}")
        )
        truth = "tie" if item % 10 == 0 else "ab"[(item % 100 + item // 100) % 2]
        if item % 4 == 1:
            gold[str(item)] = truth
        for rater in range(6):
            excerpt = str(draws.choice(["ab", "ba"]))
            choice = truth
            if rater == 1 and truth != "tie" and draws.random() < 0.6:
                choice = "a" if excerpt == "ab" else "b"
            if rater == 3 or (rater == 4 and truth == "tie"):
                choice = str(draws.choice(["a", "b"]))
            seconds = draws.lognormal(3.4, 0.4) / (12 if rater == 2 else 1)
            judgements.append(judgement(item, f"r{rater}", choice, shown=excerpt, milliseconds=int(seconds * 1000) + 1))
    return judgements, gold, texts


def test_rater_faults_are_reported_for_faulty_raters_only():
    result = rater_quality.measure_quality(*faulty_raters())
    by = {one.rater: one for one in result}
    assert {f.code for f in rater_quality.rater_findings(result)} == {
        "rater-side",
        "rater-hurried",
        "rater-gold",
        "rater-agreement",
        "rater-inconsistent",
    }
    report = {(f.code, f.evidence.split(":")[0]) for f in rater_quality.rater_findings(result)}
    assert {
        ("rater-side", "r1"),
        ("rater-hurried", "r2"),
        ("rater-gold", "r3"),
        ("rater-agreement", "r3"),
        ("rater-inconsistent", "r4"),
    } <= report
    assert not {who for _, who in report} & {"r0", "r5"}
    assert by["r1"].left.low > 0.6 and by["r1"].left_p < 1e-4 and by["r0"].left_p > 0.001
    assert by["r0"].gold.value == 1.0 and by["r0"].gold.n == 50 and by["r3"].gold.high < 0.7
    assert by["r0"].identical.value == 1.0 and by["r4"].identical.value == 0.0 and by["r4"].identical.n == 20
    assert by["r0"].repeats.value == 1.0 and by["r0"].repeats.n == 90 and by["r3"].repeats.high < 0.7
    assert by["r2"].fast > 50 and by["r0"].fast == 0 and by["r2"].pace < -2 < -0.5 < by["r0"].pace
    assert by["r2"].seconds == pytest.approx(np.exp(3.4) / 12, rel=0.2)


def test_pace_baseline_is_not_dominated_by_the_most_active_rater():
    draws = generator(0, "test/pace")
    many = [judgement(item, "quick", "a", milliseconds=int(1000 * draws.lognormal(0, 0.3))) for item in range(900)]
    few = [
        judgement(item, rater, "a", milliseconds=int(30_000 * draws.lognormal(0, 0.3)))
        for item in range(60)
        for rater in ("ann", "bob")
    ]
    by = {one.rater: one for one in rater_quality.measure_quality([*many, *few])}
    assert by["quick"].pace < -5 and by["quick"].fast > 800
    assert {
        f.evidence.split(":")[0] for f in rater_quality.rater_findings(list(by.values())) if f.code == "rater-hurried"
    } == {"quick"}


def test_mirrored_pairs_and_later_rounds_count_as_repeats():
    texts = {"k": ("p", "q"), "m": ("q", "p")}
    (one,) = rater_quality.measure_quality(
        [judgement("k", "x", "a"), judgement("m", "x", "b"), judgement("m", "x", "b", round=2)], texts=texts
    )
    assert (one.repeats.value, one.repeats.n, one.n) == (1.0, 2, 2)
    (other,) = rater_quality.measure_quality([judgement("k", "x", "a"), judgement("m", "x", "a")], texts=texts)
    assert (other.repeats.value, other.repeats.n) == (0.0, 1)


def test_agreement_with_others_excludes_judges_and_the_rater():
    all_judgements = [
        judgement("k", "x", "a"),
        judgement("k", "y", "b"),
        judgement("k", "z", "b"),
        judgement("k", "judge:m", "a", kind="judge"),
        judgement("m", "x", "a"),
    ]
    by = {one.rater: one.agreement for one in rater_quality.measure_quality(all_judgements)}
    assert (by["x"].value, by["x"].n) == (0.0, 1)  # y and z chose b; the judge does not count
    assert by["y"].n == 0  # x chose a, z chose b: no majority among the others
    assert (by["judge:m"].value, by["judge:m"].n) == (0.0, 1)


def test_fair_raters_rarely_get_findings():
    alarms = 0
    for seed in range(40):
        draws = generator(seed, "test/fair")
        judgements = []
        for item in range(60):
            for rater in draws.choice(8, 3, replace=False):
                judgements.append(
                    judgement(item, f"r{rater}", "ab"[int(draws.random() < 0.3)], shown=str(draws.choice(["ab", "ba"])))
                )
        alarms += len(rater_quality.rater_findings(rater_quality.measure_quality(judgements)))
    assert alarms <= 8  # two families of tests per seed at 5 %: four are expected
