"""What a GPU does otherwise, tested without one: nothing reads a device within a pass, rows without padding, optimizer
steps over lists of weights, one copy a pass."""

import copy
import importlib
import itertools
import json
import sys
import types

import families
import numpy as np
import pytest
import torch
import transformers
from families import SUPPORTED, Family
from torch import nn
from transformers import AutoModelForCausalLM

from towpath.algos.contract import add, means, to_floats
from towpath.data.batch import Batch, Row
from towpath.errors import ResourceError
from towpath.models import attention_choice, foreach, fused, heads, pass_memory, varlen
from towpath.models.cpu import plain, split_bf16
from towpath.models.cpu.optimizer import AdamW
from towpath.models.cpu.plain import AdamWStep
from towpath.models.head import has_plain_logits
from towpath.models.pass_memory import ModelShape
from towpath.planning import sizes
from towpath.recipe import Lora, Policy, Recipe, Reward, Sft
from towpath.recipe.reader import check
from towpath.run import gpu_checks
from towpath.runtime import local as local_module
from towpath.runtime import memory_plan, process, transfer
from towpath.runtime.contract import RoleSpec
from towpath.runtime.local import Local
from towpath.runtime.models import Role

DRAW = np.random.default_rng(5)
PROMPTS = [DRAW.integers(3, 250, n) for n in (4, 9)]
ROWS = [
    Row(np.concatenate([PROMPTS[i // 2], DRAW.integers(3, 250, n)]), len(PROMPTS[i // 2]))
    for i, n in enumerate((7, 12, 3, 21))
]
KNOBS = {"kl_coef": 0.05, "policy_weight": 1.0}
CONFIGS = {"sft": Sft(), "reward_model": Reward()}
ALGOS = ("sft", "reward_model", "ppo", "grpo", "rloo", "reinforce", "dpo", "ipo", "kto", "orpo")
META = torch.device("meta")


def columns(seed=0):
    draw = torch.Generator().manual_seed(seed)
    width = max(row.answer_length for row in ROWS)
    per_token = {
        name: torch.randn(4, width, generator=draw) * 0.1
        for name in ("old_logp", "ref_logp", "value", "sampler_logp", "weight")
    }
    reward = torch.randn(4, generator=draw)
    return per_token | {
        "reward": reward,
        "correction": torch.full((4,), 2.0),
        "group": torch.tensor([0, 0, 1, 1]),
        "desirable": torch.tensor([True, False, True, False]),
        "point": torch.full((4,), 0.02),
        "beats": torch.tensor([[0, 1.0], [0, 0], [0, 0], [2.0, 0]]),
        "sure": torch.full((4, 2), 0.8),
        "place": torch.tensor([0, 1, 0, 1]),
    }


def prepared(name):
    """An algorithm, its settings and a minibatch."""
    algo = importlib.import_module(f"towpath.algos.{name}")
    config = CONFIGS.get(name, Policy())
    paired = algo.DATA == "comparisons" and getattr(algo, "PAIRED", True)
    batch = Batch(ROWS, columns(), (2, 2) if paired else (), frozenset({"beats", "sure"}))
    return algo, config, algo.prepare(batch, config, KNOBS)


def opened(model, algo, attention="grouped", lora=True, device=None):
    model.config._attn_implementation = attention
    runtime = Local(tokens_per_pass=40, pack_width=48, device=device)
    runtime.add_trunk("base", model, lora)
    for role in algo.TRAINS:
        head = heads.ScalarHead(model.config.hidden_size, seed=1) if role in ("reward", "critic") else None
        if lora:
            runtime.adapters["base"].add(role, 4, 8.0, seed=2)
        runtime.roles[role] = Role("base", role if lora else None, head, ("adapter" if lora else "trunk", "head"))
    if device is not None:
        assert has_plain_logits(model)  # measured once a model
        model.to(device)
        for role in runtime.roles.values():
            if role.head is not None:
                role.head.to(device)
    runtime.start(dict.fromkeys(algo.TRAINS, 1e-3))
    return runtime


@pytest.mark.parametrize("attention", ["grouped", "varlen"])
@pytest.mark.parametrize("name", ALGOS)
def test_a_pass_reads_nothing_from_its_device(name, attention, tiny, monkeypatch):
    """On the meta device there is nothing to read: a number taken to the host, a boolean mask as an index or a search
    for non-zeros raises an exception. One transfer comes at the end. FlashAttention is called as torch defines it."""
    algo, config, batch = prepared(name)
    runtime = opened(copy.deepcopy(tiny), algo, attention, device=META)
    monkeypatch.setattr(varlen, "is_flash", lambda *_args: True)
    transfers = []

    def read(metrics):
        transfers.append(metrics)
        return {}

    monkeypatch.setattr(local_module, "to_floats", read)
    runtime.forward_backward(
        algo.TRAINS, batch, lambda out, part: algo.loss(out, part, config, KNOBS), algo.weigh(batch, config)
    )
    (metrics,) = transfers
    assert any(torch.is_tensor(total) for total, _ in metrics.values())
    assert len(runtime.optimizer.gradients()) >= 2


def test_metrics_are_summed_in_float64_whatever_they_are():
    total = {}
    for number in (0.1, 0.2, 0.3):
        add(total, {"tensor": (torch.tensor(number), torch.tensor(2)), "float": (torch.tensor(number).item(), 2.0)})
    read = to_floats(total)
    assert read["tensor"] == read["float"] and isinstance(read["tensor"][0], float)
    assert means(total)["tensor"] == means(read)["float"]


def test_one_copy_to_a_device_keeps_types_shapes_and_values():
    values = [np.arange(7), torch.rand(3, 5), np.array([[True], [False]]), torch.zeros(0, dtype=torch.int32)]
    buffer, begins = importlib.import_module("towpath.runtime.transfer")._concatenate(
        list(map(torch.as_tensor, values)), False
    )
    part = importlib.import_module("towpath.runtime.transfer")._part
    for begin, value in zip(begins, values, strict=True):
        assert torch.equal(part(buffer, begin, torch.as_tensor(value)), torch.as_tensor(value))
    there = transfer.to_device(values, META)
    assert [(x.dtype, tuple(x.shape)) for x in there] == [(torch.as_tensor(x).dtype, tuple(x.shape)) for x in values]
    assert torch.equal(transfer.to_device(values, torch.device("cpu"))[1], values[1])


@pytest.mark.parametrize("split", [False, True])
def test_list_step_has_the_bits_of_the_step_of_each_weight(split, monkeypatch):
    monkeypatch.setattr(foreach, "NUMBERS", 700)
    step = AdamWStep(0.5, 0.9, 0.99, 1e-2, 3.0, 1e-8, 0.999)
    draw = torch.Generator().manual_seed(0)

    def state(size):
        weight, grad = torch.randn(2, size, generator=draw)
        upper, low_bits = split_bf16.split_float32(weight) if split else (weight, None)
        return [upper, low_bits, grad, torch.zeros(size), torch.zeros(size)]

    one = [state(size) for size in (300, 5, 900, 41)]
    other = copy.deepcopy(one)
    for _ in range(3):
        for tensors in one:
            plain.adamw_step(*tensors, step)
        foreach.adamw_step([foreach.Update(*tensors) for tensors in other], step)
    for mine, theirs in zip(one, other, strict=True):
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_optimizer_steps_by_lists_as_by_weights(monkeypatch):
    """Two groups with rates of their own, and a weight that misses a step."""
    results = []
    for by_lists in (False, True):
        monkeypatch.setattr(AdamW, "_by_lists", by_lists)
        draw = torch.Generator().manual_seed(0)
        weights = [nn.Parameter(torch.randn(n, generator=draw)) for n in (30, 40, 50)]
        adam = AdamW([(1e-2, weights[:2]), (3e-2, weights[2:])], 1e-8, 0.1, (0.9, 0.95))
        adam.split_bf16(weights[1])
        for step in range(4):
            for weight in weights[step == 1 :]:
                weight.grad = torch.randn(weight.shape, generator=draw).to(weight.dtype)
            norm = adam.norm()
            adam.step(0.5, 1.0 / norm)
            adam.zero_grad()
        results.append([norm, *(weight.detach().float() for weight in weights)])
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    for one, other in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


VARLEN = [family for family in SUPPORTED if family.attention == "grouped"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", VARLEN, ids=lambda family: family.name)
def test_rows_without_padding_conform_to_plain_transformers(family: Family, tmp_path):
    folder = families.make(family, tmp_path / "model")
    plain_model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    unpadded = Family(family.name, family.models, family.settings, varlen.NAME)
    families.check_logprobs(unpadded, folder, plain_model)
    families.check_full_gradient(unpadded, folder, plain_model)
    families.check_lora_gradient(unpadded, folder, Lora(rank=4, alpha=8.0))
    families.check_greedy(unpadded, folder, plain_model)


class Probe(torch.autograd.Function):
    """Notes in its backward pass whether sums in a fixed order are requested."""

    modes: list[int] = []  # noqa: RUF012

    @staticmethod
    def forward(_ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(_ctx, grad):
        Probe.modes.append(torch.get_deterministic_debug_mode())
        return grad


def by_rows(query, key, value, begin, longest, window, scale, gqa):
    """What torch's function computes, row by row: tensors [T,H,W]."""
    ends = begin.tolist()
    assert begin.dtype == torch.int32 and longest == max(np.diff(ends))
    assert gqa or query.shape[1] == key.shape[1]
    out = []
    for start, end in itertools.pairwise(ends):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        position = torch.arange(end - start)
        apart = position[:, None] - position
        visible = (apart >= 0) & (apart <= (window if window >= 0 else end))
        out.append(
            torch.nn.functional.scaled_dot_product_attention(q, k, v, visible, scale=scale, enable_gqa=gqa).transpose(
                0, 1
            )
        )
    return Probe.apply(torch.cat(out))


def newest(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    assert cu_seq_k is cu_seq_q and max_k == max_q and window_size[1] == 0
    return by_rows(query, key, value, cu_seq_q, max_q, window_size[0], scale, enable_gqa)


def of_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    return by_rows(query, key, value, cu_seq_q, max_q, window_size[0], scale, False)


def of_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
    assert is_causal
    return by_rows(query, key, value, cu_seq_q, max_q, -1, None, False)


@pytest.mark.parametrize("function", [newest, of_2_11, of_2_10])
def test_flash_attention_is_called_as_its_version_asks(function, monkeypatch):
    """Grouped heads, a scale of the model's own, a window; gradients, in a fixed order of summation."""
    monkeypatch.setattr(varlen.flash, "varlen_attn", function)
    varlen._parameters.cache_clear()
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 20, 8, generator=draw).requires_grad_() for heads in (4, 2, 2))
    mask = varlen.row_mask(torch.tensor([0, 3, 14, 20], dtype=torch.int32), 11)
    windows = (None,) if function is of_2_10 else (None, 4)
    for window in windows:
        results = []
        for is_flash in (False, True):
            monkeypatch.setattr(varlen, "is_flash", lambda *_args, answer=is_flash: answer)
            with varlen.determinism_restored():
                out, _ = varlen.attention(nn.Module(), query, key, value, mask, 0.3, sliding_window=window)
                grads = torch.autograd.grad((out * torch.arange(8.0)).sum(), (query, key, value))
            results.append((out, *grads))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)
        assert results[0][0].shape == (1, 20, 4, 8)
    assert Probe.modes and set(Probe.modes) == {2} and torch.get_deterministic_debug_mode() == 0
    varlen._parameters.cache_clear()


def test_fixed_order_of_summation_ends_with_an_exception(tiny, monkeypatch):
    def backward_fails(_grad):
        assert torch.get_deterministic_debug_mode() == 2
        raise RuntimeError("another")

    def fails(query, *_args, **_more):
        query = query.clone()
        query.register_hook(backward_fails)
        return query

    monkeypatch.setattr(varlen.flash, "varlen_attn", fails)
    monkeypatch.setattr(varlen, "is_flash", lambda *_args: True)
    algo, config, batch = prepared("sft")
    runtime = opened(copy.deepcopy(tiny), algo, varlen.NAME)
    with pytest.raises(RuntimeError, match="another"):
        runtime.forward_backward(algo.TRAINS, batch, lambda out, part: algo.loss(out, part, config, KNOBS), 1.0)
    assert torch.get_deterministic_debug_mode() == 0


def test_prompts_are_counted_with_every_row_where_they_are_read_with_every_row(tiny):
    rows = [Row(np.concatenate([PROMPTS[1], DRAW.integers(3, 250, 6)]), 9) for _ in range(8)]
    runtime = opened(copy.deepcopy(tiny), importlib.import_module("towpath.algos.sft"), varlen.NAME)
    runtime.tokens_per_pass = 45
    assert [sum(len(row.ids) for row in part.rows) for part in runtime.micro_batches(Batch(rows))] == [45, 45, 30]
    shared = opened(copy.deepcopy(tiny), importlib.import_module("towpath.algos.sft"))
    shared.tokens_per_pass = 45
    assert len(list(shared.micro_batches(Batch(rows)))) == 2


@pytest.mark.parametrize("name", ["sft", "ppo", "dpo"])
def test_gradient_of_rows_without_padding_is_that_of_packed_rows(name, tiny):
    algo, config, batch = prepared(name)
    grads = []
    for attention in ("grouped", varlen.NAME):
        runtime = opened(copy.deepcopy(tiny).double(), algo, attention)
        metrics = runtime.forward_backward(
            algo.TRAINS, batch, lambda out, part: algo.loss(out, part, config, KNOBS), algo.weigh(batch, config)
        )
        grads.append({key: weight.grad for key, weight in runtime.trained().items() if weight.grad is not None})
    assert grads[0].keys() == grads[1].keys() and metrics
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, atol=1e-8, rtol=1e-5)


def test_frozen_layers_below_are_cached_for_rows_without_padding(tiny):
    scores = []
    for cached in (False, True):
        model = copy.deepcopy(tiny)
        model.config._attn_implementation = varlen.NAME
        runtime = Local(tokens_per_pass=60)
        runtime.add_trunk("base", model, lora=True)
        runtime.adapters["base"].add("policy", 4, 8.0, seed=2, last_n_layers=1)
        runtime.roles["policy"] = Role("base", "policy", None, ("adapter",))
        batch = Batch(ROWS)
        if cached:
            batch = runtime.cache_frozen_prefix(batch, "policy")
            assert batch.handles
        scores.append(runtime.score("policy", batch, ("logp",)).logp_BT)
    assert torch.equal(scores[0] != 0, scores[1] != 0)
    torch.testing.assert_close(*scores)


GIB = 2**30
QWEN3_06B = ModelShape(layers=28, width=1024, inner=3072, queries=2048, keys=1024, vocabulary=151_936)
QWEN3_4B = ModelShape(layers=36, width=2560, inner=9728, queries=4096, keys=1024, vocabulary=151_936)


def test_tokens_of_a_pass_follow_from_the_memory():
    fits = pass_memory.tokens_that_fit
    assert fits(130 * GIB, QWEN3_06B) == pass_memory.MOST
    assert 8192 <= fits(120 * GIB, QWEN3_4B) < fits(120 * GIB, QWEN3_4B, checkpointing=True)
    assert fits(60 * GIB, QWEN3_4B) < fits(120 * GIB, QWEN3_4B)
    assert fits(30 * GIB, QWEN3_06B, head_trains=True) < fits(60 * GIB, QWEN3_06B)
    assert fits(40 * GIB, QWEN3_4B) < fits(40 * GIB, QWEN3_4B, trains=False)
    assert fits(GIB, QWEN3_4B) == fits(-GIB, QWEN3_4B) == pass_memory.LEAST
    assert fits(100 * GIB, QWEN3_4B) == fits(101 * GIB, QWEN3_4B) == 8192, "resumed with a little more memory"
    assert [pass_memory.round_down(tokens) for tokens in (1024, 2047, 2048, 32_768)] == [1024, 1024, 2048, 32_768]


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("family", ["LlamaConfig", "Qwen3Config"])
def test_memory_of_a_token_is_what_autograd_saves(family, lora):
    sizes = {"hidden_size": 128, "intermediate_size": 384, "head_dim": 32, "num_key_value_heads": 2, "vocab_size": 500}
    config = getattr(transformers, family)(num_hidden_layers=4, num_attention_heads=4, **sizes)
    attention_choice.register()
    config._attn_implementation = varlen.NAME
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=varlen.NAME).eval()
    runtime = opened(model, importlib.import_module("towpath.algos.sft"), varlen.NAME, lora)
    runtime.tokens_per_pass = 10**6
    batch = Batch([Row(DRAW.integers(3, 250, 100), 50) for _ in range(8)])
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved = {}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = runtime._forward("policy", batch, ("logp",))
    assert out.logp_BT.requires_grad
    measured = sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) / 800
    counted = pass_memory.token_bytes(ModelShape.of_config(config), True, not lora, False)
    assert 0.6 * counted < measured < 1.1 * counted, (measured, counted)


def test_runtime_plans_its_passes_by_the_free_memory(tiny_folder, monkeypatch):
    """Free memory is a GPU's; here the plan is made as for one."""
    monkeypatch.setattr(memory_plan, "free_bytes", lambda _device: 2 * GIB)
    plan = memory_plan.tokens_per_pass

    def on_a_gpu(trunks, trained, copies, checkpointing, _device, share):
        assert share == 1
        assert copies == 2 * sum(
            weight.numel() for trunk in trunks.values() for weight in trunk.parameters()
        ) - 2 * sum(weight.numel() for weight in trained)
        return plan(trunks, trained, copies, checkpointing, torch.device("cuda"))

    runtime = Local("auto", dtype=torch.bfloat16)
    assert runtime.tokens_per_pass == 1024
    runtime.open({"reference": RoleSpec(tiny_folder)})
    assert runtime.tokens_per_pass == 1024
    monkeypatch.setattr(memory_plan, "tokens_per_pass", on_a_gpu)
    runtime.open({"policy": RoleSpec(tiny_folder, Lora(), learning_rate=1e-3)})
    assert runtime.tokens_per_pass > 8192
    runtime._halve(Batch([Row(DRAW.integers(3, 250, 100), 50) for _ in range(800)]))
    halved = runtime.tokens_per_pass
    runtime.open({"reward": RoleSpec(tiny_folder, Lora(), head="scalar")})
    assert runtime.tokens_per_pass == halved, "what ran out of memory is not tried again"


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_out_of_memory_within_a_pass_halves_it_and_gives_the_same_gradient(where, tiny, capsys):
    """A layer raises torch's own error for passes of more than 60 tokens, as a GPU would."""
    algo, config, _ = prepared("sft")
    batch = Batch([Row(DRAW.integers(3, 250, 25), 5) for _ in range(9)])
    grads = []
    for limit in (10**6, 60):
        model = copy.deepcopy(tiny).double()
        runtime = opened(model, algo, varlen.NAME, lora=False)
        runtime.tokens_per_pass = 1000

        def check(x, limit=limit):
            if x.shape[1] > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        def watch(_layer, _inputs, output, check=check):
            if where == "forward":
                check(output)
            elif output.requires_grad:
                output.register_hook(check)

        model.model.layers[1].register_forward_hook(watch)
        loss = lambda out, part: algo.loss(out, part, config, KNOBS)  # noqa: E731
        metrics = runtime.forward_backward(algo.TRAINS, batch, loss, algo.weigh(batch, config))
        grads.append((metrics["loss"], {key: w.grad for key, w in runtime.trained().items() if w.grad is not None}))
        assert runtime.tokens_per_pass == 1000 if limit > 60 else runtime.tokens_per_pass < 60
    assert "set model.tokens_per_pass = " in capsys.readouterr().err
    assert grads[0][0] == pytest.approx(grads[1][0], rel=1e-12)
    for key, grad in grads[0][1].items():
        torch.testing.assert_close(grads[1][1][key], grad, atol=1e-12, rtol=1e-9)


def test_attention_follows_from_device_model_and_precision(tmp_path, monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    config = {"num_attention_heads": 4, "hidden_size": 256}

    def auto(device=cuda, dtype=torch.bfloat16, **more):
        (tmp_path / "config.json").write_text(json.dumps(config | more))
        return attention_choice.resolve("auto", str(tmp_path), dtype, device)

    capability = (9, 0)
    assert auto() == varlen.NAME
    assert auto(torch.device("cpu")) == auto(dtype=torch.float32) == "grouped"
    assert auto(attn_logit_softcapping=50.0) == auto(model_type="gpt_oss") == auto(kv_lora_rank=16) == "grouped"
    assert auto(head_dim=288) == auto(head_dim=20) == "grouped" and auto(head_dim=128) == varlen.NAME
    assert attention_choice.resolve("eager", str(tmp_path), torch.bfloat16, cuda) == "eager"
    capability = (7, 5)
    assert auto() == "grouped"


def test_rows_of_the_head_suit_the_device():
    assert pass_memory.head_rows(True, 151_936) == 256
    assert pass_memory.head_rows(False, 151_936) == 4096 and pass_memory.head_rows(False, 49_152) == 8192


def test_liger_is_asked_for_norms_and_activations_only(tiny, monkeypatch):
    calls = []
    package = types.ModuleType("liger_kernel.transformers")
    package._apply_liger_kernel_to_instance = lambda **settings: calls.append(settings)
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", package)
    fused.apply(tiny, "auto")
    assert not calls
    fused.apply(tiny, "liger")
    (settings,) = calls
    assert settings.pop("model") is tiny
    assert {name for name, on in settings.items() if on} == {"rms_norm", "swiglu"}
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", None)
    with pytest.raises(ResourceError, match=r"towpath\[gpu\]"):
        fused.apply(tiny, "liger")


def test_check_recommends_vllm_where_there_is_a_gpu(monkeypatch):
    def findings(**settings):
        return {f.code: f for f in gpu_checks.check_gpu(check(Recipe, settings, "test"))}

    assert findings(model={"device": "cpu"}) == {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert findings() == {}
    assert findings(model={"device": "cuda"})["device"].severity == "error"
    monkeypatch.setattr(process, "describe_gpu", lambda: "a GPU, 139 GiB")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    slow = findings()["engine-speed"]
    assert slow.severity == "warning" and "towpath engine install vllm" in slow.remedy and "a GPU" in slow.evidence
    assert "engine-speed" not in findings(engine={"type": "vllm"})


def test_plan_of_passes_counts_optimizer_copies_and_a_head_that_trains(monkeypatch):
    config = transformers.Qwen3Config(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    with META:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    monkeypatch.setattr(memory_plan, "free_bytes", lambda _device: 40 * GIB)
    monkeypatch.setattr(pass_memory, "round_down", lambda tokens: tokens)
    adapter = nn.Parameter(torch.empty(10_000_000, device=META))
    body = [weight for weight in model.parameters() if weight is not model.get_output_embeddings().weight]

    def plan(trained, copies=0, checkpointing=False):
        return memory_plan.tokens_per_pass({"base": model}, trained, copies, checkpointing, torch.device("cuda"))

    small = plan([adapter])
    assert small > plan([adapter], copies=10 * GIB) > plan([adapter], copies=20 * GIB)
    assert small > plan(body) > plan(list(model.parameters()))
    per_token = pass_memory.token_bytes(ModelShape.of_config(config), True, False, False)
    optimizer = sum(weight.numel() for weight in body) * memory_plan.OPTIMIZER_BYTES
    assert abs((small - plan(body)) * per_token - pass_memory.USED * optimizer) < 1024 * 2 * per_token
    assert plan([adapter], checkpointing=True) > small
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (40 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 5 * GIB)
    # two workers: each has half of the GPU, of which 5 GiB are taken; four have a quarter
    cuda = torch.device("cuda")
    assert [memory_plan.room_on(cuda, share) // GIB for share in (1, 2, 4)] == [40, 35, 15]
    assert memory_plan.tokens_per_pass({"base": model}, [adapter], 0, False, cuda, 4) < small
    assert memory_plan.tokens_per_pass({"base": model}, [adapter], 0, False, torch.device("cpu")) == 1024


def test_a_pass_with_a_sliding_window_reads_nothing_from_its_device(tiny, monkeypatch):
    algo, config, batch = prepared("sft")
    model = copy.deepcopy(tiny)
    model.config.sliding_window = 8
    runtime = opened(model, algo, device=META)
    monkeypatch.setattr(local_module, "to_floats", lambda metrics: metrics)
    runtime.forward_backward(algo.TRAINS, batch, lambda out, part: algo.loss(out, part, config, KNOBS), 1.0)
    assert runtime.optimizer.gradients()


def test_check_compares_weights_and_optimizer_with_the_memory_of_the_gpu(monkeypatch):
    recipe = check(Recipe, {"sft": {"method": "full"}, "model": {"device": "cuda"}}, "test")
    size = sizes.Size(parameters=10**9, lora_sides=10**6, vocabulary=1000)
    needed = sizes.gpu_memory_needed(recipe, size)
    assert needed == 18 * 10**9
    smaller = sizes.gpu_memory_needed(check(Recipe, {}, "test"), size)
    assert 2 * 2 * 10**9 < smaller < 10**10
    monkeypatch.setattr(process, "describe_gpu", lambda: "a GPU, 20 GiB")
    severities = []
    for free in (20 * 10**9, 10 * 10**9):
        monkeypatch.setattr(process, "gpu_memory", lambda free=free: free)
        (finding,) = gpu_checks.check_gpu_memory(recipe, needed, "1,000 M parameters")
        severities.append(finding.severity)
    (finding_of_two,) = gpu_checks.check_gpu_memory(recipe, needed // 3, "1,000 M parameters", 2)
    assert finding_of_two.severity == "error" and "5.0 GB free on the GPU for each of 2" in finding_of_two.evidence
    assert severities == ["info", "error"] and "18.0 GB besides passes, 10.0 GB free" in finding.evidence
    assert gpu_checks.uses_gpu(recipe) and not gpu_checks.uses_gpu(check(Recipe, {}, "test"))
