"""AdamW against torch's own, and weights in halves: nothing is lost of a float32, whatever passes, stops and
precisions come between."""

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
from towpath.runtime.local import Local, Role
from towpath.stages import policy

FOUND = pytest.mark.skipif(build.library() is None, reason=build.refusal())
STEP = AdamWStep(0.5, 0.9, 0.99, 1e-2, 3.0, 1e-8, 0.999)
ROWS = [Row(np.random.default_rng(i).integers(3, 250, 20 + i), 5) for i in range(8)]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def apart(one, other):
    """How many float32 steps at most lie between."""
    return int((one.view(torch.int32).long() - other.view(torch.int32).long()).abs().max())


def test_split_bf16_round_trip_is_exact_except_for_ties():
    bits = torch.randint(-(2**31), 2**31 - 1, (200_000,), generator=torch.Generator().manual_seed(0)).int()
    ends = torch.tensor([0, -(2**31), 0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, -0x40808000, 1, 0x007FFFFF])
    x = torch.cat([bits, ends.int()]).view(torch.float32)
    x = x[x.isfinite() & (x.abs() < 3e38)]
    upper, rest = split_bf16.split_float32(x)
    again = split_bf16.merge_float32(upper, rest)
    tie = (x.view(torch.int32) & 0xFFFF) == 0x8000
    assert torch.equal(upper, x.bfloat16())
    assert torch.equal(again[~tie].view(torch.int32), x[~tie].view(torch.int32))
    assert tie.any() and apart(again[tie], x[tie]) == 1
    assert torch.equal(again.bfloat16(), upper)
    assert all(torch.equal(one, two) for one, two in zip(split_bf16.split_float32(again), (upper, rest), strict=True))
    kept, none = split_bf16.split_float32(upper)
    assert kept is upper and torch.equal(none, torch.zeros_like(rest)) and none.dtype == rest.dtype


@FOUND
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
    ours, theirs = ([nn.Parameter(drawn(*shape, seed=i).to(dtype)) for i, shape in enumerate(shapes)] for _ in range(2))
    adam = AdamW([(1e-2, ours[:2]), (3e-2, ours[2:])], 1e-5, decay, betas)
    groups = [{"params": theirs[:2], "lr": 1e-2}, {"params": theirs[2:], "lr": 3e-2}]
    torch_s = torch.optim.AdamW(groups, eps=1e-5, weight_decay=decay, betas=betas)
    for step in range(20):
        for i, (one, two) in enumerate(zip(ours, theirs, strict=True)):
            if i == 2 and step % 3 == 0:
                continue  # without a gradient it does not move
            one.grad = drawn(*one.shape, seed=100 * step + i).to(dtype)
            two.grad = one.grad.clone()
        norm = adam.norm()
        assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(theirs, 5.0)), rel=1e-6)
        adam.step(0.7, min(1.0, 5.0 / (norm + 1e-6)))
        for group, peak in zip(torch_s.param_groups, (1e-2, 3e-2), strict=True):
            group["lr"] = 0.7 * peak
        torch_s.step()
        adam.zero_grad(), torch_s.zero_grad()
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=1e-12 if dtype == torch.float64 else 2e-6, rtol=0)


def moved(ops, halved, grad, steps=3):
    """A weight of 10,001 numbers after some steps, and its moments."""
    weight = drawn(10_001, seed=1)
    rest = None
    if halved:
        weight, rest = split_bf16.split_float32(weight)
    mean = torch.zeros(10_001)
    square = torch.zeros(10_001)
    for _ in range(steps):
        ops.adamw_step(weight, rest, grad, mean, square, STEP)
    return split_bf16.merge_float32(weight, rest) if rest is not None else weight, mean, square


@FOUND
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_step_matches_the_plain_step_and_split_weights_match_float32(dtype):
    grad = drawn(10_001, seed=2).to(dtype)
    for ops in (native, plain):
        (one, *moments), (two, *others) = moved(ops, True, grad), moved(ops, False, grad)
        assert apart(one, two) <= 1
        assert (one == two).double().mean() > 0.999
        assert all(torch.equal(a, b) for a, b in zip(moments, others, strict=True))
    for one, two in zip(moved(native, True, grad), moved(plain, True, grad), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-6)
    assert float(native.sum_of_squares(grad)) == pytest.approx(float(grad.double().square().sum()), rel=1e-9)
    # a sum in float32
    assert float(plain.sum_of_squares(grad)) == pytest.approx(float(grad.double().square().sum()), rel=1e-5)


@FOUND
def test_compiled_step_does_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    found = []
    grad = drawn(10_001, seed=2).bfloat16()
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append([*moved(native, True, grad), native.sum_of_squares(grad)])
    torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for other in found[1:] for one, two in zip(found[0], other, strict=True))


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


def learned(local, rows=ROWS):
    return local.forward_backward({"policy": ("logp",)}, Batch(rows), lambda out, _: (-out.logp_BT.sum(), {}), 200.0)


def gradients(local, rows=ROWS):
    learned(local, rows)
    found = {key: local.optimizer.gradients()[p].double() for key, p in local.trained().items()}
    local.optimizer.zero_grad()
    return found


def error(one, other):
    return max(float((one[key] - other[key]).norm() / other[key].norm()) for key in other)


def test_gradients_accumulate_in_float32(tiny):
    """Split into one pass a row the gradient is the rows' own gradients' sum, and no further from float32's than in
    one pass."""
    exact = gradients(local_of(tiny, torch.float32))
    once, split = (gradients(local_of(tiny, tokens_per_pass=size)) for size in (4096, 20))
    assert 1e-3 < error(once, exact) < 0.05
    assert error(split, exact) < 1.1 * error(once, exact)
    alone = [gradients(local_of(tiny), [row]) for row in ROWS]
    assert error(split, {key: torch.stack([one[key] for one in alone]).sum(0) for key in exact}) < 1e-6
    twice = local_of(tiny)
    learned(twice), learned(twice)
    both = {key: twice.optimizer.gradients()[p].double() / 2 for key, p in twice.trained().items()}
    assert error(both, once) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_optimizer_state_are_freed_with_the_runtime(tiny, dtype):
    local = local_of(tiny, dtype, tokens_per_pass=40)
    learned(local)
    local.step(1.0, 1.0)
    slots = [x for kept in local.optimizer.state.values() for x in kept.values()]
    held = [weakref.ref(x) for x in (*local.trained().values(), *local.optimizer.low_bits.values(), *slots)]
    del slots, local
    gc.collect()
    assert len(held) > 50 and not [x for x in held if x() is not None]


def test_embedding_gradient_of_a_repeated_token_is_summed_in_float32():
    weight = nn.Parameter(torch.zeros(5, 3).bfloat16())
    states = lm._Lookup.apply(weight, torch.full((1000,), 2), None)
    states.backward(torch.full_like(states, 1 / 256))
    assert weight.grad[2].tolist() == [1000 / 256] * 3
    assert not weight.grad[[0, 1, 3, 4]].any()


@pytest.mark.parametrize("pad", [None, 0, 3, 6])
def test_embedding_lookup_matches_torch(pad):
    ids = torch.tensor([0, 3, 3, 1, 0, 5])
    one = nn.Embedding(7, 4, padding_idx=pad).double()
    two = nn.Parameter(one.weight.detach().clone())
    for states in (one(ids), lm._Lookup.apply(two, ids, pad)):
        (states * torch.arange(24.0).view(6, 4)).sum().backward()
    assert torch.equal(one.weight.grad, two.grad)


def test_resume_with_split_weights_is_bit_equal(tiny):
    straight = local_of(tiny)
    stopped = local_of(tiny)
    for local in (straight, stopped):
        for _ in range(3):
            learned(local), local.step(1.0, 1.0)
    kept = {key: tensor.clone() for key, tensor in stopped.state().items()}
    again = local_of(tiny)
    again.restore(kept)
    for local in (straight, again):
        for _ in range(3):
            learned(local), local.step(1.0, 1.0)
    assert straight.state().keys() == again.state().keys()
    assert all(torch.equal(value, again.state()[key]) for key, value in straight.state().items())


def test_sampling_before_training_does_not_change_training(tiny, by_kernels):
    """Its stacks are first laid while nothing may learn; the engine sees the weights as they are, and those of
    another model once told."""
    drawn_first = local_of(tiny)
    alone = local_of(tiny)
    ask = [SampleRequest([5, 9, 200], Decoding(temperature=1.0), uniforms(12, 0, "test", str(i))) for i in range(4)]
    engine = LocalEngine(drawn_first.trunks["base"], 2, 0)
    before = engine.generate(ask)
    for local in (drawn_first, alone):
        for _ in range(5):
            learned(local), local.step(1.0, 1.0)
    assert all(torch.equal(value, alone.state()[key]) for key, value in drawn_first.state().items())
    after = engine.generate(ask)
    assert after != before
    assert after == LocalEngine(alone.trunks["base"], 2, 0).generate(ask)
    engine.refresh(local_of(tiny).trunks["base"])
    assert engine.generate(ask) == before


def test_checkpoint_restores_into_the_other_precision(tiny):
    """A machine where bfloat16 does not pay goes on from a checkpoint of one where it does, and the other way about."""
    halved = local_of(tiny)
    wide = local_of(tiny, torch.float32)
    for local in (halved, wide):
        for _ in range(3):
            learned(local), local.step(1.0, 1.0)
    for one, other in ((halved, local_of(tiny, torch.float32)), (wide, local_of(tiny))):
        other.restore(one.state())
        with one.float32_weights("base") as mine, other.float32_weights("base") as theirs:
            for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
                assert a.dtype == b.dtype == torch.float32
                assert apart(a, b) <= 1


def test_trunk_is_saved_in_float32_and_scores_stay_equal(tiny, tmp_path):
    local = local_of(tiny)
    learned(local), local.step(1.0, 1.0)
    before = local.score("policy", Batch(ROWS), ("logp",)).logp_BT
    with local.float32_weights("base") as trunk:
        trunk.save_pretrained(tmp_path)
    assert type(tiny).from_pretrained(tmp_path, dtype="auto").dtype == torch.float32
    loaded = type(tiny).from_pretrained(tmp_path).state_dict()
    rest = {
        key.removeprefix("low_bits:policy/"): value
        for key, value in local.state().items()
        if key.startswith("low_bits:")
    }
    assert all(
        torch.equal(split_bf16.merge_float32(p.detach(), rest[name]), loaded[name])
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
    said = [local.score(role, Batch(ROWS), ("logp",)).logp_BT for role in ("policy", "reference")]
    assert torch.equal(*said)


def test_reference_completions_come_from_the_reference_weights(tmp_path):
    """With full weights the engine draws from the policy itself, and from the reference when asked for it."""
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
    asked = [(prompt, "0") for prompt in trained.job.corpus.prompts]
    first = experience._generate("policy", asked, "test", 1.0)
    with torch.no_grad():
        for weight in runtime.trunks["policy"].parameters():
            weight.mul_(3.0)
    assert experience._generate("policy", asked, "test", 1.0) != first
    assert experience._generate("reference", asked, "test", 1.0) == first
    assert experience._generate("policy", asked, "test", 1.0) != first
