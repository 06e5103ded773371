"""Evidence for the diagnosis of a reward model, computed from planted features."""

import numpy as np
import pytest

from towpath.stages import evidence

D = 24


def planted(count, seed, noise=0.0, signal=2.0, longer=None):
    """Pairs whose feature differences lie along one direction; a share `noise` of the labels is flipped."""
    draws = np.random.default_rng(seed)
    direction = np.ones(D) / np.sqrt(D)
    gap = draws.normal(size=(count, D))
    gap *= np.sign(gap @ direction)[:, None]
    gap += signal * direction
    gap[draws.random(count) < noise] *= -1
    texts = [
        ("word " * 9, "word " * 4)
        if draws.random() < (0.5 if longer is None else longer)
        else ("word " * 4, "word " * 9)
        for _ in range(count)
    ]
    return evidence.pair_features([f"k{seed}-{i}" for i in range(count)], gap, texts, [1.0] * count)


def test_clear_labels_are_healthy():
    result = evidence.diagnose_labels(planted(400, 1), planted(200, 2), None, 0.85, 10.0, 0)
    assert result is not None and result["verdict"] == "healthy"


def test_labels_with_low_agreement_are_noise():
    result = evidence.diagnose_labels(
        planted(2000, 1, noise=0.3), planted(600, 2, noise=0.3), (0.58, 500), 0.85, 10.0, 0
    )
    assert result is not None and result["verdict"] == "noise"
    turned = set(result["again"])
    assert turned and turned <= {f"k1-{i}" for i in range(2000)}


def test_few_pairs_give_no_diagnosis():
    assert evidence.diagnose_labels(planted(39, 1), planted(200, 2), None, 0.85, 10.0, 0) is None


def test_features_of_a_swapped_pair_are_negated():
    one = evidence.pair_features(["k"], np.ones((1, D)), [("a rope holds the boat", "no")], [1.0])
    other = evidence.pair_features(["k"], -np.ones((1, D)), [("no", "a rope holds the boat")], [1.0])
    assert (one.words_NW == -other.words_NW).all() and one.words_NW.any()
    assert one.longer_N == -other.longer_N == pytest.approx(1.0)
