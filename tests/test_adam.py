"""AdamW against torch's own, and float32 weights split into bfloat16 and low bits: no precision is lost over passes,
restarts and changes of dtype."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import towpath as tp
from towpath.algos import ppo
from towpath.data.batch import Batch, Row
from towpath.data.draws import uniforms
from towpath.models import base, lm
from towpath.models.cpu import build, native, plain, split_bf16
from towpath.models.cpu.optimizer import AdamW
from towpath.models.cpu.plain import AdamWStep
from towpath.recipe import Decoding
from towpath.rollout.engine import SampleRequest
from towpath.rollout.local import LocalEngine
from towpath.runtime.local import Local
from towpath.runtime.models import Role
from towpath.stages import policy

needs_kernels = pytest.mark.skipif(build.library() is None, reason=build.refusal())
STEP = AdamWStep(0.5, 0.9, 0.99, 1e-2, 3.0, 1e-8, 0.999)
ROWS = [Row(np.random.default_rng(i).integers(3, 250, 20 + i), 5) for i in range(8)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def max_ulps(one, other):
    """The largest distance in float32 units in the last place."""
    return int((one.view(torch.int32).long() - other.view(torch.int32).long()).abs().max())


def test_split_bf16_round_trip_is_exact_except_for_ties():
    bits = torch.randint(-(2**31), 2**31 - 1, (200_000,), generator=torch.Generator().manual_seed(0)).int()
    ends = torch.tensor([0, -(2**31), 0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, -0x40808000, 1, 0x007FFFFF])
    x = torch.cat([bits, ends.int()]).view(torch.float32)
    x = x[x.isfinite() & (x.abs() < 3e38)]
    upper, low_bits = split_bf16.split_float32(x)
    merged = split_bf16.merge_float32(upper, low_bits)
    tie = (x.view(torch.int32) & 0xFFFF) == 0x8000
    assert torch.equal(upper, x.bfloat16())
    assert torch.equal(merged[~tie].view(torch.int32), x[~tie].view(torch.int32))
    assert tie.any() and max_ulps(merged[tie], x[tie]) == 1
    assert torch.equal(merged.bfloat16(), upper)
    assert all(
        torch.equal(one, two) for one, two in zip(split_bf16.split_float32(merged), (upper, low_bits), strict=True)
    )
    upper_again, zero_bits = split_bf16.split_float32(upper)
    assert (
        upper_again is upper
        and torch.equal(zero_bits, torch.zeros_like(low_bits))
        and zero_bits.dtype == low_bits.dtype
    )


@needs_kernels
def test_bfloat16_weight_without_low_bits_is_updated_by_the_torch_step():
    weight = nn.Parameter(torch.ones(10).bfloat16())
    with pytest.raises(ValueError, match=r"adamw_step: a weight of torch.bfloat16 without low bits"):
        native.adamw_step(weight.data, None, torch.ones(10).bfloat16(), torch.zeros(10), torch.zeros(10), STEP)
    adam = AdamW([(0.1, [weight])], 1e-8, 0.0, (0.9, 0.999))
    weight.grad = torch.ones(10).bfloat16()
    adam.step(1.0, 1.0)
    assert weight.tolist() == pytest.approx([0.9] * 10, abs=4e-3)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_adamw_matches_torch(dtype, decay, by_kernels):
    shapes = ((7, 5), (5000,), (3,))
    betas = (0.9, 0.95)
    ours, theirs = (
        [nn.Parameter(normal(*shape, seed=i).to(dtype)) for i, shape in enumerate(shapes)] for _ in range(2)
    )
    adam = AdamW([(1e-2, ours[:2]), (3e-2, ours[2:])], 1e-5, decay, betas)
    groups = [{"params": theirs[:2], "lr": 1e-2}, {"params": theirs[2:], "lr": 3e-2}]
    reference = torch.optim.AdamW(groups, eps=1e-5, weight_decay=decay, betas=betas)
    for step in range(20):
        for i, (one, two) in enumerate(zip(ours, theirs, strict=True)):
            if i == 2 and step % 3 == 0:
                continue  # a weight without a gradient is not updated
            one.grad = normal(*one.shape, seed=100 * step + i).to(dtype)
            two.grad = one.grad.clone()
        norm = adam.norm()
        assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(theirs, 5.0)), rel=1e-6)
        adam.step(0.7, min(1.0, 5.0 / (norm + 1e-6)))
        for group, peak in zip(reference.param_groups, (1e-2, 3e-2), strict=True):
            group["lr"] = 0.7 * peak
        reference.step()
        adam.zero_grad(), reference.zero_grad()
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=1e-12 if dtype == torch.float64 else 2e-6, rtol=0)


def run_adamw(ops, split, grad, steps=3):
    """A weight of 10,001 numbers and its moments after some steps."""
    weight = normal(10_001, seed=1)
    low_bits = None
    if split:
        weight, low_bits = split_bf16.split_float32(weight)
    mean = torch.zeros(10_001)
    square = torch.zeros(10_001)
    for _ in range(steps):
        ops.adamw_step(weight, low_bits, grad, mean, square, STEP)
    return split_bf16.merge_float32(weight, low_bits) if low_bits is not None else weight, mean, square


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_step_matches_the_plain_step_and_split_weights_match_float32(dtype):
    grad = normal(10_001, seed=2).to(dtype)
    for ops in (native, plain):
        (one, *moments), (two, *others) = run_adamw(ops, True, grad), run_adamw(ops, False, grad)
        assert max_ulps(one, two) <= 1
        assert (one == two).double().mean() > 0.999
        assert all(torch.equal(a, b) for a, b in zip(moments, others, strict=True))
    for one, two in zip(run_adamw(native, True, grad), run_adamw(plain, True, grad), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-6)
    assert float(native.sum_of_squares(grad)) == pytest.approx(float(grad.double().square().sum()), rel=1e-9)
    # torch accumulates in float32
    assert float(plain.sum_of_squares(grad)) == pytest.approx(float(grad.double().square().sum()), rel=1e-5)


@needs_kernels
def test_compiled_step_does_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    results = []
    grad = normal(10_001, seed=2).bfloat16()
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append([*run_adamw(native, True, grad), native.sum_of_squares(grad)])
    torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for other in results[1:] for one, two in zip(results[0], other, strict=True))


def test_updates_below_bfloat16_resolution_accumulate(by_kernels):
    weight = nn.Parameter(torch.ones(1000))
    adam = AdamW([(1e-5, [weight])], 1e-8, 0.0, (0.9, 0.999))
    adam.split_bf16(weight)
    for _ in range(1000):
        weight.grad = torch.ones(1000).bfloat16()
        adam.step(1.0, 1.0)
    assert weight.dtype == torch.bfloat16
    assert split_bf16.merge_float32(weight.detach(), adam.low_bits[weight]).mean().item() == pytest.approx(
        0.99, abs=1e-4
    )


def local_of(tiny, dtype=torch.bfloat16, **kwargs):
    local = Local(dtype=dtype, **kwargs)
    local.add_trunk("base", copy.deepcopy(tiny).float(), lora=False)
    local.roles["policy"] = Role(trains=("trunk",))
    local.start({"policy": 1e-3})
    return local


def backward(local, rows=ROWS):
    return local.forward_backward({"policy": ("logp",)}, Batch(rows), lambda out, _: (-out.logp_BT.sum(), {}), 200.0)


def gradients(local, rows=ROWS):
    backward(local, rows)
    grads = {key: local.optimizer.gradients()[p].double() for key, p in local.trained().items()}
    local.optimizer.zero_grad()
    return grads


def error(one, other):
    return max(float((one[key] - other[key]).norm() / other[key].norm()) for key in other)


def test_gradients_accumulate_in_float32(tiny):
    """With one pass per row the gradient is the sum of the rows' gradients, and as close to float32 as in one pass."""
    exact = gradients(local_of(tiny, torch.float32))
    once, split = (gradients(local_of(tiny, tokens_per_pass=size)) for size in (4096, 20))
    assert 1e-3 < error(once, exact) < 0.05
    assert error(split, exact) < 1.1 * error(once, exact)
    alone = [gradients(local_of(tiny), [row]) for row in ROWS]
    assert error(split, {key: torch.stack([one[key] for one in alone]).sum(0) for key in exact}) < 1e-6
    twice = local_of(tiny)
    backward(twice), backward(twice)
    both = {key: twice.optimizer.gradients()[p].double() / 2 for key, p in twice.trained().items()}
    assert error(both, once) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_optimizer_state_are_freed_with_the_runtime(tiny, dtype):
    local = local_of(tiny, dtype, tokens_per_pass=40)
    backward(local)
    local.step(1.0, 1.0)
    slots = [x for state in local.optimizer.state.values() for x in state.values()]
    references = [weakref.ref(x) for x in (*local.trained().values(), *local.optimizer.low_bits.values(), *slots)]
    del slots, local
    gc.collect()
    assert len(references) > 50 and not [x for x in references if x() is not None]


def test_embedding_gradient_of_a_repeated_token_is_summed_in_float32():
    weight = nn.Parameter(torch.zeros(5, 3).bfloat16())
    states = lm._Embedding.apply(weight, torch.full((1000,), 2), None)
    states.backward(torch.full_like(states, 1 / 256))
    assert weight.grad[2].tolist() == [1000 / 256] * 3
    assert not weight.grad[[0, 1, 3, 4]].any()


@pytest.mark.parametrize("pad", [None, 0, 3, 6])
def test_embedding_lookup_matches_torch(pad):
    ids = torch.tensor([0, 3, 3, 1, 0, 5])
    one = nn.Embedding(7, 4, padding_idx=pad).double()
    two = nn.Parameter(one.weight.detach().clone())
    for states in (one(ids), lm._Embedding.apply(two, ids, pad)):
        (states * torch.arange(24.0).view(6, 4)).sum().backward()
    assert torch.equal(one.weight.grad, two.grad)


def test_resume_with_split_weights_is_bit_equal(tiny):
    straight = local_of(tiny)
    stopped = local_of(tiny)
    for local in (straight, stopped):
        for _ in range(3):
            backward(local), local.step(1.0, 1.0)
    saved = {key: tensor.clone() for key, tensor in stopped.state().items()}
    resumed = local_of(tiny)
    resumed.restore(saved)
    for local in (straight, resumed):
        for _ in range(3):
            backward(local), local.step(1.0, 1.0)
    assert straight.state().keys() == resumed.state().keys()
    assert all(torch.equal(value, resumed.state()[key]) for key, value in straight.state().items())


def test_sampling_before_training_does_not_change_training(tiny, by_kernels):
    """The engine stacks the weights first, under no_grad; it follows their updates, and `refresh` switches models."""
    sampled_first = local_of(tiny)
    never_sampled = local_of(tiny)
    requests = [
        SampleRequest([5, 9, 200], Decoding(temperature=1.0), uniforms(12, 0, "test", str(i))) for i in range(4)
    ]
    engine = LocalEngine(sampled_first.trunks["base"], 2, 0)
    before = engine.generate(requests)
    for local in (sampled_first, never_sampled):
        for _ in range(5):
            backward(local), local.step(1.0, 1.0)
    assert all(torch.equal(value, never_sampled.state()[key]) for key, value in sampled_first.state().items())
    after = engine.generate(requests)
    assert after != before
    assert after == LocalEngine(never_sampled.trunks["base"], 2, 0).generate(requests)
    engine.refresh(local_of(tiny).trunks["base"])
    assert engine.generate(requests) == before


def test_checkpoint_restores_into_the_other_precision(tiny):
    """A machine that computes in float32 resumes a checkpoint of one that computes in bfloat16, and vice versa."""
    split_weights = local_of(tiny)
    wide = local_of(tiny, torch.float32)
    for local in (split_weights, wide):
        for _ in range(3):
            backward(local), local.step(1.0, 1.0)
    for one, other in ((split_weights, local_of(tiny, torch.float32)), (wide, local_of(tiny))):
        other.restore(one.state())
        with one.float32_weights("base") as mine, other.float32_weights("base") as theirs:
            for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
                assert a.dtype == b.dtype == torch.float32
                assert max_ulps(a, b) <= 1


def test_trunk_is_saved_in_float32_and_scores_stay_equal(tiny, tmp_path):
    local = local_of(tiny)
    backward(local), local.step(1.0, 1.0)
    before = local.score("policy", Batch(ROWS), ("logp",)).logp_BT
    with local.float32_weights("base") as trunk:
        trunk.save_pretrained(tmp_path)
    assert type(tiny).from_pretrained(tmp_path, dtype="auto").dtype == torch.float32
    loaded = type(tiny).from_pretrained(tmp_path).state_dict()
    low_bits = {
        key.removeprefix("low_bits:policy/"): value
        for key, value in local.state().items()
        if key.startswith("low_bits:")
    }
    assert all(
        torch.equal(split_bf16.merge_float32(p.detach(), low_bits[name]), loaded[name])
        for name, p in local.trunks["base"].named_parameters()
    )
    assert torch.equal(before, local.score("policy", Batch(ROWS), ("logp",)).logp_BT)


def test_trained_and_frozen_copies_start_with_equal_logprobs(tiny_folder):
    local = Local(dtype=torch.bfloat16)
    for name, dtype in (("policy", torch.float32), ("reference", torch.bfloat16)):
        local.add_trunk(name, base.load(tiny_folder, dtype, "grouped"), lora=False)
    local.roles |= {"policy": Role("policy", trains=("trunk",)), "reference": Role("reference")}
    local.start({"policy": 1e-3})
    assert {p.dtype for trunk in local.trunks.values() for p in trunk.parameters()} == {torch.bfloat16}
    assert len(local.optimizer.low_bits) == len(list(local.trunks["policy"].parameters()))
    logprobs = [local.score(role, Batch(ROWS), ("logp",)).logp_BT for role in ("policy", "reference")]
    assert torch.equal(*logprobs)


def test_reference_completions_come_from_the_reference_weights(tmp_path):
    """With full weights policy and reference are separate models: each role samples from its own."""
    more = {
        "rollout": 4,
        "batch": 4,
        "max_new_tokens": 8,
        "validation_prompts": 4,
        "method": "full",
        "dtype": "bfloat16",
    }
    trained = tp.train(
        "ppo",
        model="tiny",
        prompts=list("abcdefgh"),
        reward=lambda _p, a: [float(len(x)) for x in a],
        kl=0.1,
        steps=1,
        folder=tmp_path,
        **more,
    )
    runtime, roles = policy.open_runtime(trained.job, ppo)
    experience = policy._experience(trained.job, runtime, roles)
    prompts = [(prompt, "0") for prompt in trained.job.corpus.prompts]
    first = experience._generate("policy", prompts, "test", 1.0)
    with torch.no_grad():
        for weight in runtime.trunks["policy"].parameters():
            weight.mul_(3.0)
    assert experience._generate("policy", prompts, "test", 1.0) != first
    assert experience._generate("reference", prompts, "test", 1.0) == first
    assert experience._generate("policy", prompts, "test", 1.0) != first
