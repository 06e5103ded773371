"""The compiled CPU kernels against plain torch and float64; how they are built, and the fallback without a compiler."""

import os
import subprocess
import sys

import pytest
import torch

from towpath.models.cpu import build, kernels, native, plain
from towpath.recipe import Model, Recipe
from towpath.rollout import sampling
from towpath.run import preflight

LINES = 3
LENGTH = 13
HEADS = 6
KEY_HEADS = 2
HALF = 9
TOKENS = LINES * LENGTH
WIDTH = 70
INNER = 45
needs_kernels = pytest.mark.skipif(build.library() is None, reason=build.refusal())


def normal(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double() * scale


def mask():
    """A causal mask; in the second line the first four columns are a segment of their own."""
    visible = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().repeat(LINES, 1, 1)
    visible[1, 4:, :4] = False
    return (
        torch.zeros(LINES, 1, LENGTH, LENGTH).masked_fill_(~visible[:, None], torch.finfo(torch.bfloat16).min).double()
    )


def rotary(lines, length):
    angles = normal(lines, 1, length, HALF, seed=9)
    return angles.cos(), angles.sin()


def kernel_arguments():
    """float64 arguments of each kernel."""
    batch = LINES * KEY_HEADS
    group = HEADS // KEY_HEADS
    x, grad, more, weight = (normal(TOKENS, WIDTH, seed=i) for i in (1, 2, 3, 4))
    scale = plain.rms_norm(x, weight[0], 1e-5)[1]
    q = normal(batch, group * LENGTH, 2 * HALF, seed=5)
    k = normal(batch, LENGTH, 2 * HALF, seed=6)
    shape = (HEADS + 2 * KEY_HEADS) * 2 * HALF
    cache = normal(LINES, KEY_HEADS, 16, 2 * HALF, seed=7), normal(LINES, KEY_HEADS, 16, 2 * HALF, seed=8)
    barred = torch.zeros(LINES, 1, 1, 16).double()
    barred[0, ..., :3], barred[..., 12:] = -1e38, -1e38
    begin = torch.tensor([2, 2 + LENGTH, 2 + LENGTH + 4, 2 + LENGTH + 4 + LENGTH - 1])
    target = torch.randint(0, 777, (10,), generator=torch.Generator().manual_seed(1))
    return {
        "rms_norm": (x, weight[0], 1e-5),
        "apply_rms_norm": (x, scale, weight[0]),
        "rms_norm_backward": (grad, x, scale, weight[0], more, True),
        "swiglu": (normal(TOKENS, 2 * INNER, scale=3.0),),
        "swiglu_backward": (normal(TOKENS, INNER), normal(TOKENS, 2 * INNER, seed=1, scale=3.0)),
        "rotate_and_split_qkv": (normal(TOKENS, shape), rotary(LINES, LENGTH), begin, HEADS, KEY_HEADS),
        "rotate_and_split_qkv_backward": (
            q,
            k,
            k + 1,
            rotary(LINES, LENGTH),
            begin,
            HEADS,
            KEY_HEADS,
            normal(TOKENS, shape),
        ),
        "split_heads": (normal(TOKENS, HEADS * 2 * HALF), begin, LENGTH, HEADS, KEY_HEADS),
        "merge_heads": (q, begin, HEADS, normal(TOKENS, HEADS * 2 * HALF)),
        "masked_softmax": (normal(batch, group * LENGTH, LENGTH, scale=3.0), mask(), HEADS),
        "decode_attention": (normal(LINES, shape), rotary(LINES, 1), barred, *cache, 11, HEADS),
        "token_logprobs": (normal(10, 777, scale=4.0), target, 0.7, True, True),
    }


def flat(values):
    for value in values if isinstance(values, tuple) else (values,):
        yield from flat(value) if isinstance(value, tuple) else (value,) if isinstance(value, torch.Tensor) else ()


def run_kernel(ops, name, dtype):
    """Outputs of a kernel, followed by its arguments, which it may change in place."""

    def cast(value):
        if isinstance(value, tuple):
            return tuple(cast(v) for v in value)
        if not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point:
            return value
        # per-row factors stay in float32
        return value.to(torch.float32 if value.shape[-1] == 1 and dtype != torch.float64 else dtype)

    arguments = tuple(cast(value) for value in kernel_arguments()[name])
    outputs = list(flat(getattr(ops, name)(*arguments)))
    return [x.double() for x in outputs + list(flat(arguments))]


def distance(one, other):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(one, other, strict=True))


@needs_kernels
@pytest.mark.parametrize("name", kernel_arguments())
def test_compiled_kernel_matches_the_plain_one(name):
    exact = run_kernel(plain, name, torch.float64)
    assert distance(run_kernel(native, name, torch.float32), exact) < 1e-6
    theirs, ours = (distance(run_kernel(ops, name, torch.bfloat16), exact) for ops in (plain, native))
    assert ours < 1.1 * theirs and theirs > 1e-4


@needs_kernels
@pytest.mark.parametrize("dtype", native.NAMES)
@pytest.mark.parametrize("name", kernel_arguments())
def test_kernels_do_not_depend_on_the_number_of_threads(name, dtype):
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(run_kernel(native, name, dtype))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@needs_kernels
@pytest.mark.parametrize("position", [0, 1, 15, 16, 40])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", native.NAMES)
def test_decode_attention_with_grouped_heads_of_64(dtype, group, position):
    lines = 3
    key_heads = 2
    columns = 48
    heads = group * key_heads
    qkv = normal(lines, (heads + 2 * key_heads) * 64)
    angles = normal(lines, 1, 1, 32, seed=1)
    barred = torch.zeros(lines, 1, 1, columns).double()
    barred[1, ..., : position // 2], barred[..., position + 1 :] = -1e38, -1e38

    def attend(ops, dtype):
        keys, values = (normal(lines, key_heads, columns, 64, seed=seed).to(dtype) for seed in (2, 3))
        cos_sin = angles.cos().to(dtype), angles.sin().to(dtype)
        return [
            ops.decode_attention(qkv.to(dtype), cos_sin, barred.to(dtype), keys, values, position, heads).double(),
            keys.double(),
            values.double(),
        ]

    exact = attend(plain, torch.float64)
    assert distance(attend(native, dtype), exact) < (
        1e-6 if dtype == torch.float32 else 1.1 * distance(attend(plain, dtype), exact)
    )


@needs_kernels
def test_masked_positions_have_zero_weight():
    scores = normal(LINES * KEY_HEADS, HEADS // KEY_HEADS * LENGTH, LENGTH).float()
    weights = native.masked_softmax(scores.clone(), mask().float(), HEADS).view(LINES, HEADS, LENGTH, LENGTH)
    assert bool((weights[mask().expand_as(weights) < 0] == 0).all())
    wider = torch.nn.functional.pad(scores, (0, 5), value=7.0)
    barred = torch.nn.functional.pad(mask().float(), (0, 5), value=torch.finfo(torch.float32).min)
    assert torch.equal(
        native.masked_softmax(wider, barred, HEADS).view(LINES, HEADS, LENGTH, -1)[..., :LENGTH], weights
    )


@needs_kernels
@pytest.mark.parametrize("dtype", native.NAMES)
def test_sample_tokens_matches_torch_and_does_not_depend_on_the_batch(dtype):
    logits = normal(200, 1003, scale=4.0).to(dtype)
    warm = torch.linspace(0.5, 2, 200)
    uniform = torch.rand(200, generator=torch.Generator().manual_seed(3)).double()
    token, logp = native.sample_tokens(logits, warm, uniform)
    p = sampling.scaled(logits, warm)
    assert torch.equal(token, sampling.inverse_cdf(p, uniform))
    torch.testing.assert_close(logp, p.gather(1, token[:, None])[:, 0].log(), atol=2e-5, rtol=0)
    assert torch.equal(native.sample_tokens(logits[7:8], warm[7:8], uniform[7:8])[0], token[7:8])


@needs_kernels
def test_sample_tokens_at_the_ends_of_the_uniform_range():
    logits = torch.full((4, 600), -1e30)
    logits[:, 300:302] = 0.0
    token, logp = native.sample_tokens(
        logits, torch.ones(4), torch.tensor([0.0, 0.49, 0.51, 1 - 1e-16], dtype=torch.float64)
    )
    assert token.tolist() == [300, 300, 301, 301]
    torch.testing.assert_close(logp, torch.full((4,), 0.5).log())


@needs_kernels
@pytest.mark.parametrize("dtype", native.NAMES)
def test_nan_is_propagated(dtype):
    logits = torch.zeros(3, 50, dtype=dtype)
    target = torch.tensor([1, 2, 3])
    logits[1, 30] = torch.nan
    logp, entropy = native.token_logprobs(logits, target, 1.0, True, True)
    assert logp.isnan().tolist() == entropy.isnan().tolist() == logits.isnan().all(1).tolist() == [False, True, False]
    x = torch.ones(2, 8, dtype=dtype)
    x[0, 3] = torch.nan
    assert native.rms_norm(x, x[1], 1e-5)[0].isnan().all(1).tolist() == [True, False]


@needs_kernels
@pytest.mark.parametrize("dtype", native.NAMES)
def test_extreme_logits_give_finite_logprobs(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e30, -1e30, -1e30]], dtype=dtype)
    logp, entropy = native.token_logprobs(logits, torch.tensor([0, 1]), 0.1, True, False)
    torch.testing.assert_close(logp, torch.tensor([0.0, -1.0986123]))
    torch.testing.assert_close(entropy, torch.tensor([0.0, 1.0986123]))


def backend_of_a_process(tmp_path, **settings):
    """The backend that a new process reports."""
    code = "from towpath.models.cpu import kernels; print(kernels.describe_backend())"
    env = {**os.environ, "TOWPATH_CACHE": str(tmp_path), **settings}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_plain_backend_without_a_compiler(tmp_path):
    assert (
        backend_of_a_process(tmp_path, PATH="/nonexistent", CXX="")
        == "plain: no C++ compiler (install g++, or name one in CXX)"
    )
    assert backend_of_a_process(tmp_path, TOWPATH_KERNELS="0") == "plain: switched off by TOWPATH_KERNELS=0"
    assert "could not make them" in backend_of_a_process(tmp_path, CXX="/bin/false")
    assert list((tmp_path / "kernels").iterdir()) == []


def test_kernels_are_not_built_on_other_systems(monkeypatch):
    monkeypatch.setattr(build.sys, "platform", "darwin")
    monkeypatch.setattr(build, "_key", lambda: pytest.fail("looked for /proc"))
    assert build._load_library.__wrapped__() == "not tried on darwin"


@needs_kernels
def test_non_contiguous_input_is_refused():
    with pytest.raises(ValueError, match=r"masked_softmax: .* is not contiguous"):
        native.masked_softmax(torch.zeros(4, 6, 6).transpose(1, 2), torch.zeros(2, 1, 6, 6), 2)


def test_preflight_reports_a_missing_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("TOWPATH_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    [finding] = preflight._check_kernels(Recipe(model=Model(device="cpu")))
    assert finding.severity == "info" and "no C++ compiler" in finding.evidence and "g++" in finding.remedy
    assert list(preflight._check_kernels(Recipe(model=Model(device="cuda")))) == []
    monkeypatch.setenv("CXX", sys.executable)
    assert list(preflight._check_kernels(Recipe(model=Model(device="cpu")))) == []


@needs_kernels
def test_concurrent_processes_build_one_library(tmp_path):
    command = [sys.executable, "-c", "from towpath.models.cpu import kernels; print(kernels.describe_backend())"]
    env = {**os.environ, "TOWPATH_CACHE": str(tmp_path)}
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["compiled", "compiled"]
    assert len(list((tmp_path / "kernels").iterdir())) == 1


def test_float64_and_other_devices_use_the_plain_backend():
    assert kernels.dispatch(torch.zeros(1, dtype=torch.float64)) is plain
    assert kernels.dispatch(torch.zeros(1, device="meta")) is plain
