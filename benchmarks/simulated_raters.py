"""The statistics of feedback on raters whose errors are known: consensus against majority, blended against human
labels, calibration, diagnosis.

python -m benchmarks.simulated_raters [--first 100] [--seeds 20] [--json OUT]

Seeds 0 to 9 are for development; what is reported is 100 to 119. Everything is drawn from the seed, so two runs
print the same.
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

JUDGE = 0.85  # correlation of what the judge sees with what is true: right in ½ + asin(0.85)/π = 82 % of pairs
PEOPLE = 0.39  # share of pairs that people see of a blend: at most 40 % of the cost of labelling all
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


def said(comparison: int, rater: str, choice: Choice, **more: Any) -> Judgement:
    """One judgement, by a person unless told."""
    return Judgement(f"{comparison}/{rater}", str(comparison), rater, more.pop("kind", "person"), choice, **more)


def by_consensus(seed: int) -> dict[str, float]:
    """400 pairs, a tenth of them ties, three of twelve raters each, right from 45 to 95 %: how often each way of
    counting finds the truth."""
    draws = generator(seed, "bench/consensus")
    right = np.linspace(0.45, 0.95, 12)
    truth = draws.choice(["a", "b", "tie"], 400, p=[0.45, 0.45, 0.1])
    judgements = []
    for item, true in enumerate(truth):
        for rater in draws.choice(12, 3, replace=False):
            others = [choice for choice in ("a", "b", "tie") if choice != true]
            choice = str(true) if draws.random() < right[rater] else others[int(draws.random() < 0.25)]
            judgements.append(said(item, f"r{rater}", choice))  # pyright: ignore[reportArgumentType]

    def accuracy(labels: Sequence[Any]) -> float:
        return float(np.mean([label.choice == truth[int(label.comparison)] for label in labels]))

    found = dawid_skene.consensus(judgements)
    told = dawid_skene.rater_accuracy(found)
    off = float(np.mean([abs(told[f"r{rater}"] - right[rater]) for rater in range(12) if f"r{rater}" in told]))
    weighed = accuracy(dawid_skene.consensus_labels(judgements))
    counted = accuracy(aggregation.majority_labels(judgements))
    return {
        "dawid_skene": weighed,
        "majority": counted,
        "gain": weighed - counted,
        "error_of_rater_accuracy": off,
        "converged": float(found.converged),
    }


@dataclass(frozen=True)
class World:
    """Pairs as differences of features, a true direction, people who slip, and a judge who sees dimly and perhaps
    askew."""

    seed: int
    features_ND: np.ndarray
    true_D: np.ndarray
    askew_D: np.ndarray
    lengths: dict[str, tuple[int, int]]
    """Of both answers of each pair: what the judge's direction is askew by."""
    dim: float
    """Deviation of what the judge mistakes by chance, pair by pair, beside a true deviation of 1."""
    slips_R: np.ndarray

    @classmethod
    def drawn(cls, seed: int, pairs: int, cosine: float = 1.0, features: int = 20, raters: int = 8) -> "World":
        """People who slip in 10 to 25 % of pairs, and a judge right in 82 %, its direction at this cosine to the
        true one, the rest chance."""
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
        """So many people on each of these pairs, drawn from the raters."""
        judgements = []
        for pair, many in seats.items():
            draws = generator(self.seed, f"bench/{stream}", pair)
            for rater in draws.choice(len(self.slips_R), many, replace=False):
                first = (self.features_ND[pair] @ self.true_D > 0) != (draws.random() < self.slips_R[rater])
                judgements.append(said(pair, f"r{rater}", "a" if first else "b"))
        return judgements

    def judge(self) -> list[Judgement]:
        """Every pair twice in each order, with a lean to what is shown first; confidence is the share of votes, a
        turned verdict a tie."""
        judgements = []
        draws = generator(self.seed, "bench/judge")
        seen_N = self.features_ND @ self.askew_D + draws.normal(0, self.dim, len(self.features_ND))
        noise_N4 = draws.normal(0, 0.5, (len(seen_N), 4))
        for pair, seen in enumerate(seen_N):
            votes = seen + noise_N4[pair] + np.array([0.15, 0.15, -0.15, -0.15]) > 0
            firsts = int(votes.sum())
            orders = (votes[:2].mean(), votes[2:].mean())
            consistent = (orders[0] > 0.5) == (orders[1] > 0.5) and 0.5 not in orders
            choice: Choice = ("a" if firsts > 2 else "b") if consistent else "tie"
            strength = 1 + int(abs(seen) > 0.7) + int(abs(seen) > 1.4)
            details = {"confidence": max(firsts, 4 - firsts) / 4, "consistent": consistent}
            judgements.append(
                said(pair, "judge:j", choice, kind="judge", strength=strength, details=details, cost=0.014)
            )
        return judgements

    def accuracy(self, labels: Sequence[Any]) -> float:
        """A linear reward model trained on these labels: how often right, by the truth, on pairs it never saw."""
        chance_N = np.array(
            [aggregation.PREFERENCE[label.choice] if label.chance is None else label.chance for label in labels]
        )
        trained = fit_logistic(self.features_ND[[int(label.comparison) for label in labels]], chance_N, ridge=1.0)
        fresh_ND = generator(self.seed, "bench/held").normal(size=(10_000, len(self.true_D)))
        return float(((fresh_ND @ trained > 0) == (fresh_ND @ self.true_D > 0)).mean())


def routed(world: World, verdicts: list[Judgement]) -> tuple[list[Route], list[Judgement], calibration.Calibration]:
    """The audit first; with the judge calibrated on it, all that people are to see; and the calibration on these."""
    _, _, fitted = sent(world, verdicts, 0.12, {})
    sure = {j.comparison: fitted.chance(calibration.certainty(j), longer(world, j)) for j in verdicts}
    return sent(world, verdicts, PEOPLE, sure)


def sent(
    world: World, verdicts: list[Judgement], people: float, sure: dict[str, float]
) -> tuple[list[Route], list[Judgement], calibration.Calibration]:
    """One round of routing, what people said of what they were sent, and the judge calibrated on it."""
    signals = [
        Signals(j.comparison, judge=j.choice, certainty=sure.get(j.comparison), consistent=j.details["consistent"])
        for j in verdicts
    ]
    routes = route_comparisons(signals, RoutingConfig(human_share=people, audit_share=0.12), seed=world.seed)
    seen = world.people({int(r.comparison): r.seats for r in routes if r.seats}, "routed")
    rows = calibration.audit_rows(
        [*seen, *verdicts], "judge:j", {r.comparison: r.propensity for r in routes}, world.lengths
    )
    return routes, seen, calibration.calibrate(rows)


def gap(world: World, comparison: str) -> float:
    """How much longer a is than b, in parts of their mean."""
    a, b = world.lengths[comparison]
    return 2 * (a - b) / (a + b)


def longer(world: World, judgement: Judgement) -> float:
    """How much longer the chosen answer is."""
    return gap(world, judgement.comparison) * {"a": 1, "b": -1}.get(judgement.choice, 0)


def blended(seed: int, cosine: float, pairs: int = 4000) -> dict[str, float]:
    """One world labelled by people alone (15 % seen twice) and blended; cost in people's judgements. And the judge's
    calibration, held out."""
    world = World.drawn(seed, pairs, cosine)
    overlap = generator(seed, "bench/overlap").random(pairs) < 0.15
    by_people = world.people({pair: 1 + int(overlap[pair]) for pair in range(pairs)}, "people")
    verdicts = world.judge()
    routes, seen, fitted = routed(world, verdicts)
    right = max(accuracy_ceiling(agreement.pairwise_agreement(seen)[0]), 0.6)
    labels = blend.blend_labels(
        [*seen, *verdicts], {"judge:j": fitted}, None, right, {name: gap(world, name) for name in world.lengths}
    )
    others = world.people({int(r.comparison): 1 for r in routes if not r.seats}, "unseen")
    fresh = [
        row
        for row in calibration.audit_rows([*others, *verdicts], "judge:j", lengths=world.lengths)
        if row.judge in ("a", "b")
    ]
    credit_N = np.array([calibration.credit(row.judge, row.person) for row in fresh])
    raw_N, told_N = (
        np.array(x)
        for x in zip(*((row.certainty, fitted.chance(row.certainty, row.longer)) for row in fresh), strict=True)
    )
    told = {
        "people": world.accuracy(dawid_skene.consensus_labels(by_people)),
        "blend": world.accuracy(labels),
        "judge": world.accuracy(aggregation.majority_labels(verdicts)),
        "people_at_the_same_cost": world.accuracy(dawid_skene.consensus_labels(by_people[: len(seen)])),
        "cost": len(seen) / len(by_people),
        "calibration_error": calibration.calibration_error(told_N, credit_N),
        "calibration_error_raw": calibration.calibration_error(raw_N, credit_N),
        "lean": fitted.lean[1],
    }
    return told | {"loss": told["people"] - told["blend"]}


def features(answers_ND: np.ndarray, rich: bool) -> np.ndarray:
    """What a model sees of an answer: ten qualities, and if it is rich all their products. The last column is
    length."""
    first, second = np.triu_indices(10)
    products = answers_ND[:, first] * answers_ND[:, second] if rich else answers_ND[:, :0]
    return np.concatenate([answers_ND[:, :10], products, answers_ND[:, -1:]], axis=1)


@dataclass(frozen=True)
class Planted:
    """A cause planted in a world: how many pairs, how often raters slip, whether the model is rich, whose labels go
    by length."""

    pairs: int
    slips: float
    rich: bool = True
    longer: float = 0.0
    """Chance that a label goes to the longer answer whatever its quality."""
    longer_held: float = 0.0

    @classmethod
    def of(cls, cause: Cause, seed: int) -> "Planted":
        """Each seed another degree of the cause. Length misleads in two ways: raters like it, or only who labelled
        the training pairs did."""
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
    """What a team would know of such a run, and which of its training labels really are wrong."""
    plan = Planted.of(cause, seed)
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
    """The margin towards each label by a model that did not see it."""
    place = np.arange(len(label_N)) % folds
    found = {}
    for fold in range(folds):
        w = fit_logistic(x_ND[place != fold], label_N[place != fold].astype(float), ridge=1.0)
        for pair in np.flatnonzero(place == fold):
            found[str(pair)] = float((x_ND[pair] @ w) * (1 if label_N[pair] else -1))
    return found


def diagnosed(seeds: Sequence[int]) -> dict[str, Any]:
    """Every cause planted once a seed: what was named; and of the labels to rate again in noisy worlds, how many are
    wrong."""
    named: dict[str, list[str]] = {}
    wrong = []
    for cause in CAUSES:
        named[cause] = []
        for seed in seeds:
            known, truly = evidence(cause, seed)
            found = diagnose_reward_model(known, seed)
            named[cause].append(found.verdict)
            if cause == "noise":
                wrong.append(np.mean([name in truly for name in found.again]))
    right = {cause: sum(verdict == cause for verdict in verdicts) for cause, verdicts in named.items()}
    blamed = sum(verdict not in ("healthy", "undetermined") for verdict in named["healthy"])
    return {
        "cases": len(seeds),
        "named": right,
        "healthy_blamed": blamed,
        "verdicts": named,
        "again_wrong": spread(wrong),
    }


def over(seeds: Sequence[int], study: Callable[[int], dict[str, float]]) -> dict[str, dict[str, float]]:
    """A study's figures over seeds."""
    rows = [study(seed) for seed in seeds]
    return {name: spread([row[name] for row in rows]) for name in rows[0]}


def main() -> None:
    """Every study over the seeds, told and kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    seeds = range(told.first, told.first + told.seeds)
    begun = perf_counter()
    studies = {"consensus": over(seeds, by_consensus)}
    studies |= {f"blend, {name}": over(seeds, partial(blended, cosine=cosine)) for name, cosine in JUDGES.items()}
    for study, figures in studies.items():
        for name, e in figures.items():
            print(
                f"{study:32} {name:24} {e['mean']:+.4f} [{e['low']:+.4f}, {e['high']:+.4f}]  from {e['least']:+.4f} "
                f"to {e['most']:+.4f}"
            )
    diagnosis = diagnosed(seeds)
    for cause in CAUSES:
        print(f"{'diagnosis':32} {cause:24} {diagnosis['named'][cause]} of {told.seeds}")
    print(f"{'diagnosis':32} {'healthy runs blamed':24} {diagnosis['healthy_blamed']} of {told.seeds}")
    found = {"seeds": [seeds[0], seeds[-1]], **studies, "diagnosis": diagnosis}
    print(f"{perf_counter() - begun:.0f} s")
    if told.json:
        told.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
