"""The contract of every algorithm: masking, row order, padding and micro-batches do not change the loss."""

import importlib
import pkgutil

import numpy as np
import pytest
import torch

import towpath.algos
from towpath.algos.contract import Outputs
from towpath.data.batch import Batch, Row
from towpath.recipe import Policy, Reward

SHARED = {"functional", "contract", "surrogate", "pairwise"}
NAMES = [m.name for m in pkgutil.iter_modules(towpath.algos.__path__) if m.name not in SHARED]
CONFIG = dict.fromkeys(NAMES, Policy()) | {"reward_model": Reward()}
KNOBS = {"kl_coef": 0.05, "policy_weight": 1.0}


def make(name, lengths=(5, 2, 4, 3), extra=0, seed=0):
    """The algorithm and an unprepared batch; `extra` widens the padding."""
    algo = importlib.import_module(f"towpath.algos.{name}")
    draw = np.random.default_rng(seed)
    rows = [Row(draw.integers(0, 9, 3 + n), 3) for n in lengths]
    width = max(lengths) + extra
    generator = torch.Generator().manual_seed(seed)
    columns = {
        key: torch.zeros(len(rows), width, dtype=torch.float64)
        for key in ("old_logp", "ref_logp", "value", "logp", "new_value")
    }
    for column in columns.values():
        column[:, : max(lengths)] = torch.randn(len(rows), max(lengths), generator=generator, dtype=torch.float64) * 0.3
    scores = torch.randn(len(rows), generator=generator, dtype=torch.float64)
    columns |= {
        "score": scores,
        "reward": scores,
        "group": torch.tensor([0, 0, 1, 1]),
        "strength": torch.ones(len(rows), dtype=torch.float64),
    }
    columns |= {
        "desirable": torch.tensor([True, False, True, False]),
        "point": torch.full((len(rows),), 0.02, dtype=torch.float64),
    }
    beats = torch.tensor([[0, 1.0], [0, 0], [0, 0], [2.0, 0]], dtype=torch.float64)
    sure = torch.where(beats > 0, 0.8, 1.0).to(torch.float64)
    columns |= {"beats": beats, "sure": sure, "place": torch.tensor([0, 1, 0, 1])}
    grouped = algo.DATA == "comparisons" and getattr(algo, "PAIRED", True)
    batch = Batch(rows, columns, (2, 2) if grouped else (), frozenset({"beats", "sure"}))
    trimmed = batch.take(range(batch.groups)) if not extra else batch
    return algo, trimmed


def outputs(batch, extra=0):
    c = batch.columns
    mask = torch.from_numpy(batch.mask_BT)
    if extra:
        mask = torch.nn.functional.pad(mask, (0, extra))
    logp, value, score = (c[key].clone().requires_grad_() for key in ("logp", "new_value", "score"))
    out = Outputs(mask, logp_BT=logp, entropy_BT=torch.zeros_like(logp), value_BT=value, score_B=score)
    return out, (logp, value, score)


def run(algo, batch):
    cfg = CONFIG.get(algo.__name__.rsplit(".", 1)[1])
    batch = algo.prepare(batch, cfg, KNOBS)
    out, leaves = outputs(batch)
    total, metrics = algo.loss(out, batch, cfg, KNOBS)
    total.backward()
    return total, metrics, leaves, out.mask_BT


@pytest.mark.parametrize("name", NAMES)
def test_masked_tokens_get_no_gradient_and_real_ones_do(name):
    algo, batch = make(name)
    _, _, (logp, value, score), mask = run(algo, batch)
    grads = [x.grad for x in (logp, value) if x.grad is not None]
    assert all(not g[~mask].any() for g in grads)
    assert any(g[mask].any() for g in grads) or (score.grad is not None and score.grad.any())


@pytest.mark.parametrize("name", NAMES)
def test_loss_does_not_depend_on_row_order(name):
    algo, batch = make(name)
    flipped = batch.take(range(batch.groups)[::-1])
    assert run(algo, batch)[0].item() == pytest.approx(run(algo, flipped)[0].item(), abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_the_sum_over_roles(name):
    algo, batch = make(name)
    cfg = CONFIG[name]
    prepared = algo.prepare(batch, cfg, KNOBS)
    out, leaves = outputs(prepared)
    whole, metrics = algo.loss(out, prepared, cfg, KNOBS)
    slopes = torch.autograd.grad(whole, leaves, allow_unused=True)
    summed = 0.0
    metrics_of_roles = {}
    for wants in algo.TRAINS.values():
        part = Outputs(out.mask_BT)
        for want in wants:
            field = f"{want}_B" if want == "score" else f"{want}_BT"
            setattr(part, field, getattr(out, field))
        cost, more = algo.loss(part, prepared, cfg, KNOBS)
        assert not metrics_of_roles.keys() & more.keys()
        summed = summed + cost
        metrics_of_roles = metrics_of_roles | more
    torch.testing.assert_close(summed, whole)
    assert metrics_of_roles == metrics
    for one, other in zip(torch.autograd.grad(summed, leaves, allow_unused=True), slopes, strict=True):
        assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_micro_batch_losses_add_up(name):
    algo, batch = make(name)
    cfg = CONFIG.get(name)
    prepared = algo.prepare(batch, cfg, KNOBS)
    whole = algo.loss(outputs(prepared)[0], prepared, cfg, KNOBS)[0]
    parts = [algo.loss(outputs(p)[0], p, cfg, KNOBS)[0] for p in prepared.micro_batches(1)]
    assert len(parts) == prepared.groups
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_step_lowers_the_loss(name):
    algo, batch = make(name)
    cfg = CONFIG.get(name)
    prepared = algo.prepare(batch, cfg, KNOBS)
    out, leaves = outputs(prepared)
    before = algo.loss(out, prepared, cfg, KNOBS)[0]
    before.backward()
    moved, again = outputs(prepared)
    with torch.no_grad():
        for leaf, old in zip(again, leaves, strict=True):
            if old.grad is not None:
                leaf -= 1e-3 * old.grad
    assert algo.loss(moved, prepared, cfg, KNOBS)[0].item() < before.item()


def test_ppo_is_finite_at_extreme_ratios_and_ratio_one_gives_the_policy_gradient():
    algo, batch = make("ppo")
    prepared = algo.prepare(batch, Policy(), KNOBS)
    out, (logp, _, _) = outputs(prepared)
    with torch.no_grad():
        logp[0, 0], logp[1, 0] = 1e4, -1e4
    total, _ = algo.loss(out, prepared, Policy(), KNOBS)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(logp.grad).all()
    same = Outputs(
        out.mask_BT,
        logp_BT=prepared.columns["old_logp"].clone().requires_grad_(),
        entropy_BT=out.entropy_BT,
        value_BT=out.value_BT.detach(),
    )
    total, metrics = algo.loss(same, prepared, Policy(), KNOBS)
    total.backward()
    assert metrics["ratio"][0] == metrics["ratio"][1]
    assert metrics["ratio_error"][0] == 0
    torch.testing.assert_close(same.logp_BT.grad, -prepared.columns["advantage"], atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce"])
def test_critic_free_loss_is_finite_at_extreme_ratios_and_ratio_one_gives_the_advantage(name):
    algo, batch = make(name)
    cfg = Policy()
    knobs = KNOBS | {"kl_coef": 0.0}
    prepared = algo.prepare(batch, cfg, knobs)
    out, _ = outputs(prepared)
    same = Outputs(
        out.mask_BT, logp_BT=prepared.columns["old_logp"].clone().requires_grad_(), entropy_BT=out.entropy_BT
    )
    total, metrics = algo.loss(same, prepared, cfg, knobs)
    total.backward()
    assert metrics["ratio_error"][0] == 0
    want = torch.where(out.mask_BT, -prepared.columns["advantage"][:, None], 0.0)
    torch.testing.assert_close(same.logp_BT.grad, want, atol=1e-12, rtol=0)
    wild = Outputs(out.mask_BT, logp_BT=(out.logp_BT.detach() * 1e5).requires_grad_(), entropy_BT=out.entropy_BT)
    total, _ = algo.loss(wild, prepared, cfg, knobs)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(wild.logp_BT.grad).all()


def test_single_update_uses_current_logprobs_as_old_logprobs():
    """Rounding of the sampler does not change the first ratio, which is one; it is reported as sampler_error."""
    algo, batch = make("grpo")
    cfg = Policy()
    knobs = KNOBS | {"kl_coef": 0.0}
    prepared = algo.prepare(batch, cfg, knobs)
    exact = prepared.columns["old_logp"]
    noisy = prepared.with_columns(old_logp=exact + 0.01, on_policy=torch.ones(len(exact), dtype=torch.bool))
    out, _ = outputs(prepared)
    same = Outputs(out.mask_BT, logp_BT=exact.clone().requires_grad_(), entropy_BT=out.entropy_BT)
    total, metrics = algo.loss(same, noisy, cfg, knobs)
    total.backward()
    torch.testing.assert_close(
        same.logp_BT.grad, torch.where(out.mask_BT, -prepared.columns["advantage"][:, None], 0.0), atol=1e-12, rtol=0
    )
    assert metrics["ratio_error"][0] == 0
    assert metrics["sampler_error"][0] / metrics["sampler_error"][1] == pytest.approx(0.01)


@pytest.mark.parametrize("average", ["answer", "token", "constant"])
def test_grpo_average_modes(average):
    algo, batch = make("grpo")
    cfg = Policy.model_validate({"grpo": {"average": average}, "max_new_tokens": 10})
    prepared = algo.prepare(batch, cfg, KNOBS)
    out, _ = outputs(prepared)
    same = Outputs(
        out.mask_BT, logp_BT=prepared.columns["old_logp"].clone().requires_grad_(), entropy_BT=out.entropy_BT
    )
    total, _ = algo.loss(same, prepared, cfg, KNOBS | {"kl_coef": 0.0})
    (total / algo.weigh(prepared, cfg)).backward()
    advantage = prepared.columns["advantage"]
    length = out.mask_BT.sum(1)
    share = {
        "answer": 1 / (4 * length.double()),
        "token": torch.ones(4).double() / length.sum(),
        "constant": torch.ones(4).double() / 40,
    }[average]
    want = torch.where(out.mask_BT, (-advantage * share)[:, None], 0.0)
    torch.testing.assert_close(same.logp_BT.grad, want, atol=1e-12, rtol=0)


def test_advantages_do_not_depend_on_padding():
    algo, batch = make("ppo", extra=0)
    short = algo.prepare(batch, Policy(), KNOBS).columns["advantage"]
    one_by_one = [
        algo.prepare(batch.take([i]), Policy.model_validate({"ppo": {"whiten_advantages": False}}), KNOBS).columns[
            "advantage"
        ]
        for i in range(4)
    ]
    raw = algo.prepare(batch, Policy.model_validate({"ppo": {"whiten_advantages": False}}), KNOBS).columns["advantage"]
    for i, single in enumerate(one_by_one):
        assert torch.equal(raw[i, : single.shape[1]], single[0])
    assert short.shape == raw.shape
