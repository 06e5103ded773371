"""Requirements on models: small random models of several families are accepted or refused, and split into layers only
if that changes nothing."""

import numpy as np
import pytest
import torch
import transformers

from towpath.data.batch import Batch, Row
from towpath.errors import ModelError
from towpath.models import check_model
from towpath.models.attention_choice import register
from towpath.models.head import has_plain_logits, head_of, token_logprobs
from towpath.runtime.local import Local
from towpath.runtime.models import Role

SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
SLIDING = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "sliding_window": 64,
}


def make_model(family: str, config: str = "", attention: str = "grouped", **settings):
    register()
    configuration = getattr(transformers, config or f"{family}Config")(**SMALL, **settings)
    configuration._attn_implementation = attention
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")._from_config(configuration).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Olmo2", "Gemma", "Mixtral"])
def test_supported_families_pass_check_model(family, dtype):
    check_model.check_model(
        make_model(family, **({"head_dim": 8} if family in ("Qwen3", "Gemma") else {})).to(dtype), "here"
    )


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Granite", {"logits_scaling": 8.0}),
        ("Cohere", {}),
        ("Gemma2", {"head_dim": 8, "final_logit_softcapping": 3.0}),
        ("Phi", {}),
        ("Llama", {}),
    ],
)
def test_scaled_capped_and_biased_logits_are_the_models_own(family, settings):
    model = make_model(family, **settings)
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.normal_(0, 0.5)
        if head.bias is not None:
            head.bias.normal_(0, 0.1)
    check_model.check_model(model, "here")
    assert has_plain_logits(model) == (family == "Llama")
    ids = torch.arange(7)[None]
    states = model.base_model(input_ids=ids).last_hidden_state[0].detach().requires_grad_(True)
    target = torch.arange(3, 10)
    logp, entropy = token_logprobs(model, states, target, 0.7, True, chunk=3)
    logp.sum().backward()
    grad = states.grad.clone()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    states.grad = None
    model.zero_grad()
    with torch.no_grad():
        expected = (model(input_ids=ids).logits[0] / 0.7).log_softmax(-1)
    torch.testing.assert_close(logp, expected.gather(1, target[:, None])[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, -(expected.exp() * expected).sum(-1), atol=1e-5, rtol=0)
    plain = (head_of(model)(states) / 0.7).log_softmax(-1).gather(1, target[:, None]).sum()
    plain.backward()
    torch.testing.assert_close(grad, states.grad, atol=1e-5, rtol=1e-4)
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(grads[name], p.grad, atol=1e-5, rtol=1e-4)
    assert "forward" not in vars(model.base_model)


def test_logits_that_do_not_follow_from_the_last_states_are_refused():
    model = make_model("Llama")
    forward = type(model).forward

    class Odd(type(model)):
        def forward(self, input_ids, **settings):
            out = forward(self, input_ids, **settings)
            return type(out)(logits=out.logits + input_ids[..., None])

    model.__class__ = Odd
    with pytest.raises(ModelError, match="not those of its last hidden states"):
        check_model.check_model(model, "here")


@pytest.mark.parametrize(
    ("family", "config", "settings", "is_cached"),
    [
        ("Llama", "", {}, True),
        ("Qwen3", "", {"head_dim": 8}, True),
        ("Granite", "", {"embedding_multiplier": 12.0}, False),
        ("Gemma3", "Gemma3TextConfig", {"head_dim": 8, **SLIDING}, False),
        ("Qwen2", "", {"use_sliding_window": True, **SLIDING}, False),
    ],
)
def test_frozen_prefix_is_cached_for_supported_models_only(family, config, settings, is_cached):
    model = make_model(family, config, **settings)
    draw = np.random.default_rng(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.2)
    runtime = Local()
    runtime.add_trunk("base", model, lora=True)
    runtime.adapters["base"].add("policy", 4, 8.0, 0, last_n_layers=1)
    runtime.roles["policy"] = Role(adapter="policy", trains=("adapter",))
    batch = Batch([Row(draw.integers(3, 128, n), 4) for n in (9, 30, 17)])
    cached = runtime.cache_frozen_prefix(batch, "policy")
    assert ("prefix" in cached.handles) == is_cached
    from_cache, plain = (runtime.score("policy", rows, ("logp",)).logp_BT for rows in (cached, batch))
    torch.testing.assert_close(from_cache, plain, atol=1e-4, rtol=0)
