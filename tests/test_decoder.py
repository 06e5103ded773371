"""The CPU layers against transformers: states and gradients, full weights and adapters, padding and packed rows."""

import copy
from contextlib import contextmanager
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from towpath.data.batch import Batch, Row
from towpath.models import attention_choice, lm, packed_batch
from towpath.models.adapters import Adapters
from towpath.models.cpu import layers
from towpath.models.packed_batch import PackedBatch
from towpath.runtime.local import Local
from towpath.runtime.models import Role

KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "mistral": (MistralForCausalLM, MistralConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
}
POSITION = torch.arange(11).expand(4, -1).contiguous()
SEGMENT = torch.ones(4, 11, dtype=torch.long)
SEGMENT[1, 7:], SEGMENT[2, 5:] = 0, 2
READ = {"all": (SEGMENT > 0).flatten().nonzero()[:, 0], "some": torch.tensor([2, 3, 9, 14, 14, 25, 30, 43])}
"""Indices of the tokens whose states are read; `some` reads one token twice."""


def make_model(kind, dtype=torch.float32, **more):
    more = {"sliding_window": None, **more} if kind == "mistral" else more
    attention_choice.register()
    torch.manual_seed(0)
    model_class, config = KINDS[kind]
    shape = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    }
    model = model_class(
        config(**shape, max_position_embeddings=128, tie_word_embeddings=True, attn_implementation="grouped", **more)
    )
    for name, weight in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.2)
    return model.to(dtype).eval()


@contextmanager
def by_transformers(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(layers, "is_supported", lambda _model: False)
        yield


def states_and_gradients(model, lora, read="all"):
    """Last hidden states, and the gradients of all trained weights for a loss over these states."""
    ids = torch.randint(3, 97, (4, 11), generator=torch.Generator().manual_seed(1))
    if lora:
        adapters = Adapters(model)
        adapters.add("policy", 4, 4.0, 0, last_n_layers=2)
        learned = adapters.parameters("policy")
        draw = torch.Generator().manual_seed(2)
        for weight in learned.values():
            weight.data = torch.randn(weight.shape, generator=draw).to(weight.dtype) * 0.1
            weight.requires_grad_(True)
        adapters.switch.active = "policy"
    else:
        learned = dict(model.named_parameters())
    states = lm.hidden(model, PackedBatch(ids, POSITION, SEGMENT, SEGMENT), READ[read])
    weight = torch.randn(states.shape, generator=torch.Generator().manual_seed(3)).to(states.dtype)
    (states * weight).sum().backward()
    return {"states": states.detach(), **{name: part.grad for name, part in learned.items()}}


def distance(one, other):
    """The largest relative distance over all tensors."""
    return max(float((one[key].double() - other[key].double()).norm() / other[key].double().norm()) for key in other)


@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_states_and_gradients_match_transformers(kind, lora, read, by_kernels, monkeypatch):
    assert layers.is_supported(make_model(kind))
    ours = states_and_gradients(make_model(kind), lora, read)
    with by_transformers(monkeypatch):
        assert distance(ours, states_and_gradients(make_model(kind), lora, read)) < 2e-5


@pytest.fixture(params=["together", "apart"])
def cut(request, monkeypatch):
    """The number of length buckets: attention over all lines at once, or per length."""
    monkeypatch.setattr(packed_batch, "CALL_COST", 1 if request.param == "apart" else 10**9)
    return {"together": 1, "apart": 3}[request.param]


@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_ragged_lines_match_transformers(lora, read, cut, by_kernels, monkeypatch):
    monkeypatch.setitem(globals(), "SEGMENT", ragged := torch.zeros_like(SEGMENT))
    for line, tokens in enumerate((11, 10, 5, 5)):
        ragged[line, :tokens] = 1
    monkeypatch.setitem(READ, "all", (ragged > 0).flatten().nonzero()[:, 0])
    monkeypatch.setitem(READ, "some", torch.tensor([2, 3, 9, 14, 14, 25, 33, 37]))
    assert len(packed_batch.length_buckets([11, 10, 5, 5])) == cut
    ours = states_and_gradients(make_model("llama"), lora, read)
    with by_transformers(monkeypatch):
        assert distance(ours, states_and_gradients(make_model("llama"), lora, read)) < 2e-5


@pytest.mark.parametrize("seed", range(8))
def test_length_buckets_minimize_attention_cost(seed):
    draw = np.random.default_rng(seed)
    lengths = sorted(draw.integers(5, 300, 9).tolist(), reverse=True)

    def cost(cuts):
        ends = pairwise((0, *cuts, 9))
        return sum(packed_batch.CALL_COST + (end - begin) * lengths[begin] ** 2 for begin, end in ends)

    least = min(cost(cuts) for some in range(9) for cuts in combinations(range(1, 9), some))
    buckets = packed_batch.length_buckets(lengths)
    assert cost([part.start for part in buckets[1:]]) == least
    assert [i for part in buckets for i in range(9)[part]] == list(range(9))


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_bfloat16_error_is_no_larger_than_that_of_transformers(lora, by_kernels, monkeypatch):
    with by_transformers(monkeypatch):
        exact = states_and_gradients(make_model("llama", torch.float64), lora)
        theirs = distance(states_and_gradients(make_model("llama", torch.bfloat16), lora), exact)
    assert distance(states_and_gradients(make_model("llama", torch.bfloat16), lora), exact) < 1.25 * theirs


def test_in_place_weight_updates_are_used():
    model = make_model("llama")
    before = states_and_gradients(model, False)["states"]
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight.mul_(1.5)
    written = states_and_gradients(model, False)["states"]
    assert not torch.equal(before, written)
    model.model.layers[1].self_attn.k_proj.weight.data = model.model.layers[1].self_attn.k_proj.weight.data / 1.5
    assert torch.allclose(before, states_and_gradients(model, False)["states"], atol=1e-5)


def test_stacked_weights_survive_save_and_load(tmp_path):
    model = make_model("llama")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    states_and_gradients(model, False)
    model.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in before.items())


@pytest.mark.parametrize(
    ("kind", "more"),
    [("mistral", {"sliding_window": 4}), ("llama", {"hidden_act": "gelu"}), ("llama", {"attention_dropout": 0.1})],
)
def test_unsupported_models_use_transformers(kind, more):
    assert not layers.is_supported(make_model(kind, **more))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learning_curve_matches_transformers(tiny, dtype, monkeypatch):
    """Thirty steps on the same rows with the CPU layers and with transformers."""
    rows = [Row(np.random.default_rng(i).integers(3, 250, 20 + i), 5) for i in range(8)]

    def curve():
        local = Local(dtype=dtype)
        local.add_trunk("base", copy.deepcopy(tiny).float(), lora=False)
        local.roles["policy"] = Role(trains=("trunk",))
        local.start({"policy": 1e-3})
        losses = []
        for _ in range(30):
            metrics = local.forward_backward(
                {"policy": ("logp",)},
                Batch(rows),
                lambda out, _: (-out.logp_BT.sum(), {"loss": (-float(out.logp_BT.detach().sum()), 200.0)}),
                200.0,
            )
            losses.append(metrics["loss"][0] / metrics["loss"][1])
            local.step(1.0, 1.0)
        return torch.tensor(losses)

    ours = curve()
    monkeypatch.setattr(layers, "is_supported", lambda _model: False)
    theirs = curve()
    assert theirs[-1] < 0.8 * theirs[0]
    assert (ours - theirs).abs().max() < (1e-3 if dtype == torch.float32 else 0.03)
