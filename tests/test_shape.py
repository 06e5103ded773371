"""Model architectures: `check` refuses what loading refuses, sliding windows, and the share of weights with LoRA."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from families import EXPERTS, LATENT
from tokenizers_of_others import CONTROLS, tokenizer_of

from towpath.data.batch import Batch, Row
from towpath.data.chat import Chat
from towpath.data.corpus import Corpus
from towpath.errors import ModelError
from towpath.models import base, shape
from towpath.models.adapters import Adapters
from towpath.planning import sizes
from towpath.recipe import Decoding, Recipe
from towpath.recipe.reader import check
from towpath.rollout import local
from towpath.rollout.engine import SampleRequest
from towpath.rollout.local import LocalEngine
from towpath.run import model_checks
from towpath.runtime.local import Local
from towpath.runtime.models import Role

TINY: dict[str, Any] = {
    "vocab_size": 800,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 3,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "Llama": ({}, ""),
    "Mistral": ({"sliding_window": 20}, ""),
    "DeepseekV3": (LATENT, ""),
    "Qwen3Moe": (EXPERTS, ""),
    "Mixtral": (EXPERTS, ""),
    "Gemma3Text": ({"head_dim": 8, "sliding_window": 20}, ""),
    "Olmo3": ({"head_dim": 8, "sliding_window": 20}, ""),
    "Phi3": ({}, ""),
    "Falcon": ({"intermediate_size": None}, 'model.attention = "eager"'),
    "GPT2": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}, ""),
    "OPT": ({"word_embed_proj_dim": 32, "ffn_dim": 64}, "those of its last hidden states"),
    "Qwen3_5Text": ({}, "rows packed into lines are read otherwise"),
    "GptOss": (EXPERTS, ""),
    "Gemma2": ({"head_dim": 8}, ""),
    "Cohere": ({}, ""),
    "Mamba": ({}, "a pass through a MambaForCausalLM fails"),
}
"""Settings of a small model, and words of the error if it is refused."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of small random models saved by transformers, with a tokenizer."""
    paths = {}
    for kind, (settings, _words) in KINDS.items():
        config = {name: value for name, value in (TINY | settings).items() if value is not None}
        torch.manual_seed(0)
        model: Any = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{kind}Config")(**config))
        paths[kind] = tmp_path_factory.mktemp(kind)
        model.save_pretrained(paths[kind])
        tokenizer_of("byte-level", "chatml").save_pretrained(paths[kind])
    return paths


@pytest.mark.parametrize("kind", KINDS)
def test_check_and_loading_agree(folders: dict[str, Path], kind: str) -> None:
    words = KINDS[kind][1]
    _size, findings = model_checks.check_model(check(Recipe, {}, "test"), folders[kind])
    errors = [f for f in findings if f.severity == "error"]
    if not words:
        assert not errors
        base.load(str(folders[kind]), torch.float32, "grouped")
        return
    with pytest.raises(ModelError) as refusal:
        base.load(str(folders[kind]), torch.float32, "grouped")
    assert [(f.code, f.evidence, f.cause, f.remedy) for f in errors] == [
        ("model", refusal.value.value, refusal.value.rule, refusal.value.fix)
    ]
    assert words in str(refusal.value) and str(folders[kind]) in refusal.value.value


@pytest.mark.parametrize("kind", ["Llama", "DeepseekV3", "Qwen3Moe", "Gemma3Text"])
def test_full_size_models_are_checked_on_a_small_copy(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    }
    getattr(transformers, f"{kind}Config")(**(large if kind == "Llama" else {})).save_pretrained(tmp_path)
    sizes_of_copies = []
    check_model = shape.check_model.check_model

    def record_size(model: Any, folder: str) -> None:
        sizes_of_copies.append(sum(weight.numel() for weight in model.parameters()))
        check_model(model, folder)

    monkeypatch.setattr(shape, "_measured", {})
    monkeypatch.setattr(shape.check_model, "check_model", record_size)
    assert shape.require(str(tmp_path), "grouped")
    assert sizes_of_copies and max(sizes_of_copies) <= shape.MOST


def test_unsupported_model_is_refused_from_its_configuration(tmp_path: Path) -> None:
    transformers.MambaConfig(**TINY).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="packed into lines"):
        shape.require(str(tmp_path), "grouped")


WINDOWED = {"Mistral": 20, "Gemma3Text": 20, "Olmo3": 20}


@pytest.mark.parametrize("kind", WINDOWED)
def test_logprobs_of_rows_longer_than_a_sliding_window(folders: dict[str, Path], kind: str) -> None:
    model = base.load(str(folders[kind]), torch.float32, "grouped")
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.normal_(0.0, 1.5 / weight.shape[-1] ** 0.5)
    assert sizes.model_size(folders[kind]).context == 256
    draw = np.random.default_rng(0)
    runtime = Local()
    runtime.add_trunk("base", model, lora=False)
    runtime.roles["policy"] = Role()
    rows = [Row(draw.integers(20, 700, n), 4) for n in (9, 70, 33, 50)]
    scores = runtime.score("policy", Batch(rows), ("logp",)).logp_BT
    for i, row in enumerate(rows):
        ids = torch.from_numpy(row.ids)[None]
        with torch.no_grad():
            logp = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        plain = logp[torch.arange(row.start - 1, len(row.ids) - 1), ids[0, row.start :]]
        torch.testing.assert_close(scores[i, : row.answer_length], plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("at_once", [1, 2048], ids=["prompt by prompt", "at once"])
@pytest.mark.parametrize("kind", [*WINDOWED, "DeepseekV3", "Llama"])
def test_completions_longer_than_a_sliding_window_match_transformers(
    folders: dict[str, Path], kind: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "CPU_TOKENS", at_once)
    model = base.load(str(folders[kind]), torch.float32, "grouped")
    draw = np.random.default_rng(1)
    prompts = [draw.integers(20, 700, n).tolist() for n in (5, 30, 16)]
    ours = LocalEngine(model, eos=2, pad=3).generate(
        [SampleRequest(p, Decoding(), np.zeros(24)) for p in prompts], greedy=True
    )
    for prompt, sampled in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        settings = transformers.GenerationConfig(eos_token_id=2, pad_token_id=3, max_new_tokens=24, do_sample=False)
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        assert out[0, len(prompt) :].tolist() == sampled.token_ids


def test_experts_without_lora_are_a_warning_with_their_share(folders: dict[str, Path]) -> None:
    size, findings = model_checks.check_model(check(Recipe, {}, "test"), folders["Qwen3Moe"])
    (finding,) = [f for f in findings if f.code == "lora"]
    model = base.load(str(folders["Qwen3Moe"]), torch.float32, "grouped")
    adapters = Adapters(model)
    adapters.add("policy", 4, 8.0, seed=0)
    adapted = sum(layer.base.weight.numel() for layer in adapters.layers.values())
    total = adapters.parameter_count
    assert finding.severity == "warning" and f"{adapted / total:.1%} of" in finding.evidence
    summary = adapters.summary("policy")
    assert summary["share"] == pytest.approx(adapted / total) and summary["modules"] == [
        "k_proj",
        "o_proj",
        "q_proj",
        "v_proj",
    ]
    assert (
        "experts.gate_up_proj (" in finding.evidence
        and "experts.down_proj (" in finding.evidence
        and "q_proj" in finding.evidence
    )
    assert size.lora_sides == sum(sum(layer.base.weight.shape) for layer in adapters.layers.values())
    _size, dense = model_checks.check_model(check(Recipe, {}, "test"), folders["Llama"])
    assert [f.severity for f in dense if f.code == "lora"] == ["info"]
    full = {stage: {"method": "full"} for stage in ("sft", "reward", "policy")}
    assert not [
        f for f in model_checks.check_model(check(Recipe, full, "test"), folders["Qwen3Moe"])[1] if f.code == "lora"
    ]


def test_chat_stop_tokens(folders: dict[str, Path]) -> None:
    chat = Chat(base.load_tokenizer(str(folders["Llama"])))
    assert chat.stops == (2, CONTROLS.index("<|im_end|>"))


def test_tokens_without_an_embedding_are_an_error(folders: dict[str, Path]) -> None:
    chat = Chat(base.load_tokenizer(str(folders["Llama"])))
    assert not model_checks.check_template(chat, Corpus(()), sizes.Size(vocabulary=800))
    (finding,) = model_checks.check_template(chat, Corpus(()), sizes.Size(vocabulary=5))
    assert finding.severity == "error" and "'<|im_end|>' (5)" in finding.evidence and "5 embeddings" in finding.evidence


def test_configured_pad_token_without_an_embedding_is_accepted(tmp_path: Path) -> None:
    transformers.LlamaConfig(**TINY | {"pad_token_id": TINY["vocab_size"]}).save_pretrained(tmp_path)
    assert shape.require(str(tmp_path), "grouped")
