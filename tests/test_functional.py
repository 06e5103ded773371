"""The functions of algos/functional.py against published numbers, brute force and hand calculation."""

import itertools
import math

import numpy as np
import pytest
import torch

from towpath.algos import functional as F


def everywhere(x: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def test_whitening_matches_the_published_matrix():
    x = torch.tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]], dtype=torch.float64)
    white = F.whiten(x, everywhere(x), shift_mean=False)
    expected = [0.0508, 0.4381, 0.8254, 1.2127, 1.6000, 1.9873, 2.3746, 2.7619, 3.1492]
    assert white.flatten().tolist() == pytest.approx(expected, abs=5e-5)


def test_whitening_ignores_pads():
    x = torch.randn(4, 6, dtype=torch.float64)
    mask = torch.arange(6)[None] < torch.tensor([6, 3, 1, 5])[:, None]
    poisoned = torch.where(mask, x, 1e9)
    assert torch.equal(F.whiten(torch.where(mask, x, 0.0), mask), F.whiten(poisoned, mask))
    inside = F.whiten(x, mask)[mask]
    assert float(inside.mean()) == pytest.approx(0, abs=1e-9)
    assert float(inside.var(unbiased=False)) == pytest.approx(1, abs=1e-6)


def brute_force_gae(reward, value, gamma, lam):
    length = len(reward)
    advantages = []
    for t in range(length):
        total = 0.0
        for k in range(t, length):
            following = value[k + 1] if k + 1 < length else 0.0
            total += (gamma * lam) ** (k - t) * (reward[k] + gamma * following - value[k])
        advantages.append(total)
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_gae_against_brute_force_on_ragged_rows(gamma, lam):
    torch.manual_seed(0)
    lengths = [5, 1, 3]
    mask = torch.arange(5)[None] < torch.tensor(lengths)[:, None]
    reward = torch.randn(3, 5, dtype=torch.float64)
    value = torch.randn(3, 5, dtype=torch.float64)
    advantage, returns = F.gae(torch.where(mask, reward, 0.0), value, mask, gamma, lam)
    for row, length in enumerate(lengths):
        expected = brute_force_gae(reward[row, :length].tolist(), value[row, :length].tolist(), gamma, lam)
        assert advantage[row, :length].tolist() == pytest.approx(expected, abs=1e-12)
        assert returns[row, :length].tolist() == pytest.approx(
            [a + v for a, v in zip(expected, value[row, :length].tolist(), strict=True)]
        )
        assert not advantage[row, length:].any()


def test_gae_by_hand():
    advantage, returns = F.gae(
        torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.6, 0.7]]), torch.ones(1, 3, dtype=torch.bool), 1.0, 0.95
    )
    last = 1.0 - 0.7
    middle = (0.7 - 0.6) + 0.95 * last
    first = (0.6 - 0.5) + 0.95 * middle
    assert advantage[0].tolist() == pytest.approx([first, middle, last])
    assert returns[0].tolist() == pytest.approx([first + 0.5, middle + 0.6, last + 0.7])


def test_kl_estimators_are_unbiased_on_an_exact_distribution():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    exact = float((p * (p / q).log()).sum())
    k1, k2, k3 = F.kl_estimates(p.log(), q.log())
    assert float((p * k1).sum()) == pytest.approx(exact, abs=1e-12)
    assert float((p * k3).sum()) == pytest.approx(exact, abs=1e-12)
    assert (k3 >= 0).all()
    assert (k2 == 0.5 * k1**2).all()


def test_k3_gradient_is_finite_for_very_unlikely_tokens():
    for behind in (19.0, 30.0, 100.0, 1e4):
        logp = torch.tensor(-behind, requires_grad=True)
        (k3,) = F.kl_estimates(logp, torch.tensor(0.0))[2:]
        k3.backward()
        assert (
            math.isfinite(k3.item())
            and logp.grad is not None
            and logp.grad.item() == pytest.approx(-math.exp(min(behind, 20.0)), rel=1e-5)
        )


@pytest.mark.parametrize("reward", [7.3, 100.1, -1000.1])
@pytest.mark.parametrize("size", [3, 7])
def test_group_of_equal_rewards_has_zero_advantage(reward, size):
    reward_B = torch.full((2 * size,), reward)
    group_B = torch.arange(2 * size) // size
    for advantage_B in (
        F.group_centred(reward_B, group_B, True),
        F.group_centred(reward_B, group_B, False),
        F.leave_one_out(reward_B, group_B),
    ):
        assert advantage_B.dtype == reward_B.dtype and not advantage_B.any()


def test_score_is_added_to_the_last_token_only():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    reward = F.token_rewards(torch.tensor([2.0, -1.0]), torch.full((2, 3), 0.5), mask, 0.1)
    assert reward.tolist() == [pytest.approx([-0.05, 1.95, 0.0]), pytest.approx([-0.05, -0.05, -1.05])]


def test_policy_loss_is_finite_at_extreme_ratios_and_clips_as_published():
    log_ratio = torch.tensor([-1e4, -1.0, 0.0, 1.0, 1e4])
    for sign in (1.0, -1.0):
        loss, _ = F.clipped_policy_loss(log_ratio, torch.full((5,), sign), 0.2, 0.2)
        assert torch.isfinite(loss).all()
    loss, clipped = F.clipped_policy_loss(
        torch.tensor([math.log(1.5), math.log(0.5)]), torch.tensor([1.0, -1.0]), 0.2, 0.2
    )
    assert loss.tolist() == pytest.approx([-1.2, 0.8])
    assert clipped.tolist() == [True, True]


def test_value_loss_is_the_maximum_of_clipped_and_unclipped():
    loss = F.clipped_value_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]), 0.2)
    assert loss.item() == pytest.approx(0.5 * 0.8**2)


def test_adaptive_coefficient_follows_the_target():
    assert F.adaptive_kl_coef(0.1, 1.0, 0.5, 0.1) == pytest.approx(0.11)
    assert F.adaptive_kl_coef(0.1, 0.0, 0.5, 0.1) == pytest.approx(0.09)
    assert F.adaptive_kl_coef(0.1, 9.0, 0.5, 0.1) == pytest.approx(0.11)
    assert F.adaptive_kl_coef(0.1, 9.0, 0.0, 0.1) == 0.1


def test_bradley_terry_against_numpy():
    gaps = np.linspace(-8, 8, 9)
    for smoothing, gap in itertools.product((0.0, 0.1), gaps):
        expected = -(1 - smoothing) * math.log(1 / (1 + math.exp(-gap))) - smoothing * math.log(1 / (1 + math.exp(gap)))
        assert float(F.bradley_terry(torch.tensor(gap, dtype=torch.float64), smoothing)) == pytest.approx(
            expected, rel=1e-9
        )


def test_adam_epsilon_placement_matters_early():
    """PyTorch adds epsilon after the bias correction; in TensorFlow's form the first steps are smaller by about
    sqrt(1 - beta2)."""
    gradient = 1e-5
    eps = 1e-5
    beta2 = 0.999
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=1.0, eps=eps, weight_decay=0.0, betas=(0.9, beta2))
    weight.grad = torch.full((1,), gradient, dtype=torch.float64)
    optimizer.step()
    torch_step = gradient / (gradient + eps)
    tensorflow_step = gradient / (gradient + eps / math.sqrt(1 - beta2))
    assert -weight.item() == pytest.approx(torch_step, rel=1e-6)
    assert torch_step > 10 * tensorflow_step
