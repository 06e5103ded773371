"""Feedback statistics on simulated raters with known errors: consensus against majority, blended against human labels,
calibration, and diagnosis.

python -m benchmarks.simulated_raters [--first 100] [--seeds 20] [--json OUT]

Seeds 0 to 9 are for development, 100 to 119 for the reported results. Results depend on the seeds only.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from scipy.stats import t

from towpath.data.draws import generator
from towpath.data.intervals import accuracy_ceiling
from towpath.evals.winrate import fit_logistic
from towpath.feedback import aggregation, agreement, blend, calibration, dawid_skene
from towpath.feedback.reward_diagnosis import Cause, RewardEvidence, TrainingResult, diagnose_reward_model
from towpath.feedback.routing import Route, RoutingConfig, Signals, route_comparisons
from towpath.records import Choice, Judgement

JUDGE = 0.85  # correlation of the judge's score with the true quality: accuracy ½ + asin(0.85)/π = 82 %
PEOPLE = 0.39  # share of pairs routed to people: at most 40 % of the cost of labelling all
JUDGES = {"errors by chance": 1.0, "a liking for length": 0.95, "a strong liking for length": 0.85}
CAUSES: tuple[Cause, ...] = ("noise", "little data", "small capacity", "length shortcut", "healthy")


def spread(values: Sequence[float]) -> dict[str, float]:
    """The mean over seeds with its 95 % interval."""
    mean = float(np.mean(values))
    off = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return {
        "mean": mean,
        "low": mean - off,
        "high": mean + off,
        "least": float(np.min(values)),
        "most": float(np.max(values)),
        "seeds": len(values),
    }


def judgement(comparison: int, rater: str, choice: Choice, **more: Any) -> Judgement:
    """One judgement, by default of a person."""
    return Judgement(f"{comparison}/{rater}", str(comparison), rater, more.pop("kind", "person"), choice, **more)


def consensus_study(seed: int) -> dict[str, float]:
    """Accuracy of consensus and majority on 400 pairs, a tenth of them ties, with three of twelve raters each, whose
    accuracies are from 45 to 95 %."""
    draws = generator(seed, "bench/consensus")
    right = np.linspace(0.45, 0.95, 12)
    truth = draws.choice(["a", "b", "tie"], 400, p=[0.45, 0.45, 0.1])
    judgements = []
    for item, true in enumerate(truth):
        for rater in draws.choice(12, 3, replace=False):
            others = [choice for choice in ("a", "b", "tie") if choice != true]
            choice = str(true) if draws.random() < right[rater] else others[int(draws.random() < 0.25)]
            judgements.append(judgement(item, f"r{rater}", choice))  # pyright: ignore[reportArgumentType]

    def accuracy(labels: Sequence[Any]) -> float:
        return float(np.mean([label.choice == truth[int(label.comparison)] for label in labels]))

    consensus = dawid_skene.consensus(judgements)
    accuracies = dawid_skene.rater_accuracy(consensus)
    off = float(
        np.mean([abs(accuracies[f"r{rater}"] - right[rater]) for rater in range(12) if f"r{rater}" in accuracies])
    )
    weighed = accuracy(dawid_skene.consensus_labels(judgements))
    counted = accuracy(aggregation.majority_labels(judgements))
    return {
        "dawid_skene": weighed,
        "majority": counted,
        "gain": weighed - counted,
        "error_of_rater_accuracy": off,
        "converged": float(consensus.converged),
    }


@dataclass(frozen=True)
class World:
    """Pairs as feature differences, a true direction, people with random errors, and a judge with noise and possibly a
    bias in direction."""

    seed: int
    features_ND: np.ndarray
    true_D: np.ndarray
    askew_D: np.ndarray
    lengths: dict[str, tuple[int, int]]
    """Lengths of both answers of each pair; the judge's direction may be biased towards length."""
    dim: float
    """Standard deviation of the judge's noise per pair; that of the true quality is 1."""
    slips_R: np.ndarray

    @classmethod
    def sample(cls, seed: int, pairs: int, cosine: float = 1.0, features: int = 20, raters: int = 8) -> "World":
        """A world with people who err in 10 to 25 % of pairs, and a judge with an accuracy of 82 % whose direction has
        this cosine to the true one."""
        draws = generator(seed, "bench/world")
        true, other = np.linalg.qr(draws.normal(size=(features, 2)))[0].T
        askew = cosine * true + np.sqrt(1 - cosine**2) * other
        dim = np.sqrt((cosine / JUDGE) ** 2 - 1)
        features_ND = draws.normal(size=(pairs, features))
        lengths = {
            str(pair): (int(200 * np.exp(by / 4)), int(200 * np.exp(-by / 4)))
            for pair, by in enumerate(features_ND @ other)
        }
        return cls(seed, features_ND, true, askew, lengths, float(dim), np.linspace(0.1, 0.25, raters))

    def people(self, seats: dict[int, int], stream: str) -> list[Judgement]:
        """Judgements of each pair by the given number of random raters."""
        judgements = []
        for pair, count in seats.items():
            draws = generator(self.seed, f"bench/{stream}", pair)
            for rater in draws.choice(len(self.slips_R), count, replace=False):
                first = (self.features_ND[pair] @ self.true_D > 0) != (draws.random() < self.slips_R[rater])
                judgements.append(judgement(pair, f"r{rater}", "a" if first else "b"))
        return judgements

    def judge(self) -> list[Judgement]:
        """Judgements of every pair by two votes in each order, with a bias to the first answer; confidence is the share
        of votes, and an inconsistent verdict is a tie."""
        judgements = []
        draws = generator(self.seed, "bench/judge")
        perceived_N = self.features_ND @ self.askew_D + draws.normal(0, self.dim, len(self.features_ND))
        noise_N4 = draws.normal(0, 0.5, (len(perceived_N), 4))
        for pair, perceived in enumerate(perceived_N):
            votes = perceived + noise_N4[pair] + np.array([0.15, 0.15, -0.15, -0.15]) > 0
            firsts = int(votes.sum())
            orders = (votes[:2].mean(), votes[2:].mean())
            consistent = (orders[0] > 0.5) == (orders[1] > 0.5) and 0.5 not in orders
            choice: Choice = ("a" if firsts > 2 else "b") if consistent else "tie"
            strength = 1 + int(abs(perceived) > 0.7) + int(abs(perceived) > 1.4)
            details = {"confidence": max(firsts, 4 - firsts) / 4, "consistent": consistent}
            judgements.append(
                judgement(pair, "judge:j", choice, kind="judge", strength=strength, details=details, cost=0.014)
            )
        return judgements

    def accuracy(self, labels: Sequence[Any]) -> float:
        """True accuracy of a linear reward model trained on these labels, on new pairs."""
        chance_N = np.array(
            [aggregation.PREFERENCE[label.choice] if label.chance is None else label.chance for label in labels]
        )
        trained = fit_logistic(self.features_ND[[int(label.comparison) for label in labels]], chance_N, ridge=1.0)
        fresh_ND = generator(self.seed, "bench/held").normal(size=(10_000, len(self.true_D)))
        return float(((fresh_ND @ trained > 0) == (fresh_ND @ self.true_D > 0)).mean())


def route_in_two_rounds(
    world: World, verdicts: list[Judgement]
) -> tuple[list[Route], list[Judgement], calibration.Calibration]:
    """Route the audit sample, calibrate the judge on it, then route all pairs and calibrate again."""
    _, _, fitted = route_and_judge(world, verdicts, 0.12, {})
    sure = {j.comparison: fitted.chance(calibration.certainty(j), longer(world, j)) for j in verdicts}
    return route_and_judge(world, verdicts, PEOPLE, sure)


def route_and_judge(
    world: World, verdicts: list[Judgement], people: float, sure: dict[str, float]
) -> tuple[list[Route], list[Judgement], calibration.Calibration]:
    """One round of routing, the human judgements of the routed pairs, and the judge's calibration on them."""
    signals = [
        Signals(j.comparison, judge=j.choice, certainty=sure.get(j.comparison), consistent=j.details["consistent"])
        for j in verdicts
    ]
    routes = route_comparisons(signals, RoutingConfig(human_share=people, audit_share=0.12), seed=world.seed)
    human_judgements = world.people({int(r.comparison): r.seats for r in routes if r.seats}, "routed")
    rows = calibration.audit_rows(
        [*human_judgements, *verdicts], "judge:j", {r.comparison: r.propensity for r in routes}, world.lengths
    )
    return routes, human_judgements, calibration.calibrate(rows)


def gap(world: World, comparison: str) -> float:
    """Length of a minus length of b, relative to their mean."""
    a, b = world.lengths[comparison]
    return 2 * (a - b) / (a + b)


def longer(world: World, judgement: Judgement) -> float:
    """Relative length of the chosen answer minus that of the other."""
    return gap(world, judgement.comparison) * {"a": 1, "b": -1}.get(judgement.choice, 0)


def blend_study(seed: int, cosine: float, pairs: int = 4000) -> dict[str, float]:
    """Reward-model accuracy in one world labelled by people alone (15 % twice) and by a blend, the cost in human
    judgements, and the judge's held-out calibration error."""
    world = World.sample(seed, pairs, cosine)
    overlap = generator(seed, "bench/overlap").random(pairs) < 0.15
    by_people = world.people({pair: 1 + int(overlap[pair]) for pair in range(pairs)}, "people")
    verdicts = world.judge()
    routes, human_judgements, fitted = route_in_two_rounds(world, verdicts)
    right = max(accuracy_ceiling(agreement.pairwise_agreement(human_judgements)[0]), 0.6)
    labels = blend.blend_labels(
        [*human_judgements, *verdicts],
        {"judge:j": fitted},
        None,
        right,
        {name: gap(world, name) for name in world.lengths},
    )
    others = world.people({int(r.comparison): 1 for r in routes if not r.seats}, "unseen")
    fresh = [
        row
        for row in calibration.audit_rows([*others, *verdicts], "judge:j", lengths=world.lengths)
        if row.judge in ("a", "b")
    ]
    credit_N = np.array([calibration.credit(row.judge, row.person) for row in fresh])
    raw_N, calibrated_N = (
        np.array(x)
        for x in zip(*((row.certainty, fitted.chance(row.certainty, row.longer)) for row in fresh), strict=True)
    )
    result = {
        "people": world.accuracy(dawid_skene.consensus_labels(by_people)),
        "blend": world.accuracy(labels),
        "judge": world.accuracy(aggregation.majority_labels(verdicts)),
        "people_at_the_same_cost": world.accuracy(dawid_skene.consensus_labels(by_people[: len(human_judgements)])),
        "cost": len(human_judgements) / len(by_people),
        "calibration_error": calibration.calibration_error(calibrated_N, credit_N),
        "calibration_error_raw": calibration.calibration_error(raw_N, credit_N),
        "lean": fitted.length_bias[1],
    }
    return result | {"loss": result["people"] - result["blend"]}


def features(answers_ND: np.ndarray, rich: bool) -> np.ndarray:
    """Features of an answer: ten qualities, with `rich` all their products, and in the last column the length."""
    first, second = np.triu_indices(10)
    products = answers_ND[:, first] * answers_ND[:, second] if rich else answers_ND[:, :0]
    return np.concatenate([answers_ND[:, :10], products, answers_ND[:, -1:]], axis=1)


@dataclass(frozen=True)
class Planted:
    """A planted cause: number of pairs, error rate of raters, whether the model is rich, and labels by length."""

    pairs: int
    slips: float
    rich: bool = True
    longer: float = 0.0
    """Probability that a label prefers the longer answer whatever its quality."""
    longer_held: float = 0.0

    @classmethod
    def sample(cls, cause: Cause, seed: int) -> "Planted":
        """The cause at a degree that depends on the seed. With a length shortcut all raters prefer length (even seeds),
        or only those of the training pairs."""
        draws = generator(seed, "bench/planted", cause)
        slips = draws.uniform(0.01, 0.05)
        pairs = int(draws.integers(2000, 4000))
        if cause == "noise":
            return cls(pairs, draws.uniform(0.22, 0.32))
        if cause == "little data":
            return cls(int(draws.integers(60, 150)), slips)
        if cause == "small capacity":
            return cls(pairs, slips, rich=False)
        if cause == "length shortcut":
            longer = draws.uniform(0.8, 0.95)
            return cls(pairs, slips, longer=longer, longer_held=longer if seed % 2 == 0 else 0.0)
        return cls(pairs, slips)


def evidence(cause: Cause, seed: int, held: int = 800) -> tuple[RewardEvidence, set[str]]:
    """The evidence that a team would have, and the ids of wrong training labels."""
    plan = Planted.sample(cause, seed)
    draws = generator(seed, "bench/diagnosis", cause)
    size = plan.pairs + held
    weights = draws.normal(size=10)
    mix = np.triu(draws.normal(size=(10, 10)), 1) / 2.1
    answers = draws.normal(size=(2, size, 11))
    quality = answers[..., :10] @ weights + np.einsum("...i,ij,...j->...", answers[..., :10], mix, answers[..., :10])
    answers[..., 10] += 0.25 * quality / quality.std()  # better answers are a little longer
    gap = quality[0] - quality[1]
    longer = answers[0, :, 10] - answers[1, :, 10] > 0
    share_longer = np.where(np.arange(size) < plan.pairs, plan.longer, plan.longer_held)

    def label() -> np.ndarray:
        chosen = np.where(
            draws.random(size) < share_longer, longer, draws.random(size) < 1 / (1 + np.exp(-12 * gap / gap.std()))
        )
        return chosen != (draws.random(size) < plan.slips)

    first = label()
    second = label()
    doubled = draws.choice(plan.pairs, int(0.15 * plan.pairs) if plan.pairs > 1000 else plan.pairs // 2, replace=False)
    x_ND = features(answers[0], plan.rich) - features(answers[1], plan.rich)
    train = np.arange(plan.pairs)
    test = np.arange(plan.pairs, size)

    def trained(rows: np.ndarray) -> TrainingResult:
        w = fit_logistic(x_ND[rows], first[rows].astype(float), ridge=1.0)
        return TrainingResult(
            len(rows),
            float(((x_ND[rows] @ w > 0) == first[rows]).mean()),
            ((x_ND[test] @ w > 0) == first[test]).astype(float),
        )

    shares = [0.25] * 8 + [0.5] * 8 + [0.8] * 8 + [1.0]
    curve = tuple(trained(draws.permutation(train)[: int(plan.pairs * part)]) for part in shares)
    margins = out_of_fold(x_ND[train], first[train])
    wrong = {str(pair) for pair in train if first[pair] != (gap[pair] > 0)}
    winner_longer = np.where(first[test] == longer[test], 1, -1)
    rate = float((first[doubled] == second[doubled]).mean())
    return RewardEvidence(curve, winner_longer, (rate, len(doubled)), margins=margins), wrong


def out_of_fold(x_ND: np.ndarray, label_N: np.ndarray, folds: int = 5) -> dict[str, float]:
    """The margin towards each label by a model that was not trained on it."""
    fold_N = np.arange(len(label_N)) % folds
    margins = {}
    for fold in range(folds):
        w = fit_logistic(x_ND[fold_N != fold], label_N[fold_N != fold].astype(float), ridge=1.0)
        for pair in np.flatnonzero(fold_N == fold):
            margins[str(pair)] = float((x_ND[pair] @ w) * (1 if label_N[pair] else -1))
    return margins


def diagnosis_study(seeds: Sequence[int]) -> dict[str, Any]:
    """Diagnoses of every cause with every seed, and the share of wrong labels among those to rate again."""
    named: dict[str, list[str]] = {}
    wrong = []
    for cause in CAUSES:
        named[cause] = []
        for seed in seeds:
            known, truly = evidence(cause, seed)
            diagnosis = diagnose_reward_model(known, seed)
            named[cause].append(diagnosis.verdict)
            if cause == "noise":
                wrong.append(np.mean([name in truly for name in diagnosis.again]))
    right = {cause: sum(verdict == cause for verdict in verdicts) for cause, verdicts in named.items()}
    blamed = sum(verdict not in ("healthy", "undetermined") for verdict in named["healthy"])
    return {
        "cases": len(seeds),
        "named": right,
        "healthy_blamed": blamed,
        "verdicts": named,
        "again_wrong": spread(wrong),
    }


def over_seeds(seeds: Sequence[int], study: Callable[[int], dict[str, float]]) -> dict[str, dict[str, float]]:
    """The metrics of a study over seeds."""
    rows = [study(seed) for seed in seeds]
    return {name: spread([row[name] for row in rows]) for name in rows[0]}


def main() -> None:
    """Run every study over the seeds, print and store the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    start = perf_counter()
    studies = {"consensus": over_seeds(seeds, consensus_study)}
    studies |= {
        f"blend, {name}": over_seeds(seeds, partial(blend_study, cosine=cosine)) for name, cosine in JUDGES.items()
    }
    for study, figures in studies.items():
        for name, e in figures.items():
            print(
                f"{study:32} {name:24} {e['mean']:+.4f} [{e['low']:+.4f}, {e['high']:+.4f}]  from {e['least']:+.4f} "
                f"to {e['most']:+.4f}"
            )
    diagnosis = diagnosis_study(seeds)
    for cause in CAUSES:
        print(f"{'diagnosis':32} {cause:24} {diagnosis['named'][cause]} of {options.seeds}")
    print(f"{'diagnosis':32} {'healthy runs blamed':24} {diagnosis['healthy_blamed']} of {options.seeds}")
    results = {"seeds": [seeds[0], seeds[-1]], **studies, "diagnosis": diagnosis}
    print(f"{perf_counter() - start:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
