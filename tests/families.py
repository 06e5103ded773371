"""What is checked of every model family, on small random models, and the table of docs/models.md that it gives.

`python -m tests.families` writes the table.
"""

import copy
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from peft import PeftModel

sys.path.insert(0, str(Path(__file__).parent))
from tokenizers_of_others import tokenizer_of

from towpath.algos import sft
from towpath.data.batch import Batch, Row
from towpath.data.chat import Chat
from towpath.errors import ModelError
from towpath.models import base, shape
from towpath.models.head import has_plain_logits
from towpath.recipe import Decoding, Lora
from towpath.rollout.engine import SampleRequest
from towpath.rollout.local import LocalEngine
from towpath.runtime.contract import RoleSpec
from towpath.runtime.local import Local

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
BEGIN = "<!-- families: python -m tests.families -->\n"
END = "<!-- end of families -->\n"
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 3,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48, "rotary_dim": 4}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "moe_intermediate_size": 16,
    "num_experts_per_tok": 2,
    "head_dim": 8,
}
LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
WINDOW = {"sliding_window": 20}
GRANITE = {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1}


@dataclass(frozen=True)
class Family:
    """A model class of transformers, its small configuration, and models that have it."""

    name: str
    models: str
    settings: dict[str, Any]
    attention: str = "grouped"
    peft: bool = True
    """Whether peft reads its adapters as they are; towpath.run.export refuses them otherwise."""

    @property
    def has_experts(self) -> bool:
        return "num_experts_per_tok" in self.settings


SUPPORTED = [
    Family("Llama", "Llama 2 and 3, SmolLM 1 and 2, TinyLlama, Yi", {}),
    Family("Mistral", "Mistral 7B, Mistral Nemo", WINDOW),
    Family("Qwen2", "Qwen 2 and 2.5", {}),
    Family("Qwen3", "Qwen 3", {"head_dim": 8}),
    Family("SmolLM3", "SmolLM 3", {}),
    Family("Gemma", "Gemma 1", {"head_dim": 8}),
    Family("Gemma2", "Gemma 2", {"head_dim": 8, **WINDOW}),
    Family("Gemma3Text", "Gemma 3 (text)", {"head_dim": 8, **WINDOW}),
    Family("Olmo2", "OLMo 2", {}),
    Family("Olmo3", "OLMo 3", WINDOW),
    Family("Phi", "Phi 1.5 and 2", {}),
    Family("Phi3", "Phi 3, Phi 4", {}),
    Family("Granite", "Granite 3", GRANITE | {"logits_scaling": 8.0}),
    Family("Cohere", "Command R", {}),
    Family("Cohere2", "Command R7B, Command A", WINDOW),
    Family("Glm4", "GLM 4", {"head_dim": 8}),
    Family("Exaone4", "EXAONE 4", WINDOW),
    Family("StableLm", "StableLM 2", {}),
    Family("Starcoder2", "StarCoder 2", {}),
    Family("Apertus", "Apertus", {}),
    Family("GPT2", "GPT-2", GPT),
    Family("GPTNeoX", "Pythia, GPT-NeoX", {}),
    Family("GPTJ", "GPT-J", GPT),
    Family("Falcon", "Falcon", {"intermediate_size": None, "num_kv_heads": 2, "new_decoder_architecture": True},
           "eager"),
    Family("Mixtral", "Mixtral", EXPERTS),
    Family("Qwen3Moe", "Qwen 3 MoE", EXPERTS),
    Family("Olmoe", "OLMoE", EXPERTS),
    Family("GptOss", "GPT-OSS", EXPERTS | WINDOW | {"rope_scaling": None}),
    Family("GraniteMoe", "Granite 3 MoE", EXPERTS | GRANITE | {"logits_scaling": 4.0}),
    Family("DeepseekV3", "DeepSeek V3 and R1", LATENT, peft=False),
]  # fmt: skip
REFUSED = [
    (Family("OPT", "OPT", {"word_embed_proj_dim": 32, "ffn_dim": 48}), "those of its last hidden states"),
    (Family("Bloom", "BLOOM", {}, "eager"), "packed into lines"),
    (Family("Mamba", "Mamba and other recurrent models", {}), "packed into lines"),
    (Family("Qwen3_5Text", "Qwen 3.5 and other linear attention", {}), "packed into lines are read otherwise"),
    (Family("Jamba", "Jamba and other hybrids", {}), "packed into lines are read otherwise"),
]
DRAW = np.random.default_rng(3)
ROWS = [Row(DRAW.integers(20, 300, n), start) for n, start in ((9, 3), (34, 20), (14, 6), (26, 1))]
PROMPTS = [DRAW.integers(20, 300, n).tolist() for n in (5, 27, 12)]
NEW_TOKENS = 10


def make(family: Family, folder: Path) -> str:
    """A folder with a random model of the family; weights are large enough that every one of them counts."""
    settings = {name: value for name, value in (SIZES | family.settings).items() if value is not None}
    config = getattr(transformers, f"{family.name}Config")(**settings)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim >= 2:
                    weight.normal_(0.0, 1.2 / weight.shape[-1] ** 0.5)
                elif "bias" in name:
                    weight.normal_(0.0, 0.1)
    model.save_pretrained(folder)
    tokenizer_of("byte-level", "chatml").save_pretrained(folder)
    return str(folder)


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def open_local(family: Family, folder: str, lora: Lora | None, rate: float | None = 1e-3) -> Local:
    """A runtime with the role `policy`; a new adapter is made to matter."""
    local = Local(tokens_per_pass=60, pack_width=64, pad=3, attention=family.attention)
    local.open({"policy": RoleSpec(folder, lora, learning_rate=rate)})
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in local.trained().items():
            if "lora_B" in name:
                weight.normal_(0, 0.05, generator=draw)
    return local


def plain_logprobs(model: Any, row: Row, temperature: float) -> torch.Tensor:
    """Log-probabilities of a row by plain transformers."""
    ids = torch.from_numpy(row.ids)[None]
    logits = model(input_ids=ids, use_cache=False).logits[0].float() / temperature
    return logits.log_softmax(-1)[torch.arange(row.start - 1, len(row.ids) - 1), ids[0, row.start :]]


def plain_greedy(model: Any, prompt: list[int]) -> list[int]:
    """Greedy tokens by plain transformers."""
    settings = transformers.GenerationConfig(eos_token_id=2, pad_token_id=3, max_new_tokens=NEW_TOKENS, do_sample=False)
    ids = torch.tensor([prompt])
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return out[0, len(prompt) :].tolist()


def greedy(model: Any) -> list[list[int]]:
    """Greedy tokens of all prompts by our engine, in one batch."""
    requests = [SampleRequest(prompt, Decoding(), np.zeros(NEW_TOKENS)) for prompt in PROMPTS]
    return [output.token_ids for output in LocalEngine(model, eos=2, pad=3).generate(requests, greedy=True)]


def gradients(local: Local) -> dict[str, torch.Tensor]:
    """Gradients of the mean negative log-probability of all answer tokens."""
    batch = Batch(ROWS)
    local.forward_backward(sft.TRAINS, batch, lambda out, part: sft.loss(out, part, None, {}), sft.weigh(batch, None))
    return {name.partition("/")[2]: p.grad.clone() for name, p in local.trained().items() if p.grad is not None}


def plain_gradients(model: Any) -> dict[str, torch.Tensor]:
    """The same by plain autograd, one row after the other."""
    model.requires_grad_(True)
    tokens = sum(row.answer_length for row in ROWS)
    for row in ROWS:
        (-plain_logprobs(model, row, 1.0).sum() / tokens).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def differ(one: torch.Tensor, other: torch.Tensor, limit: float = 2e-4) -> bool:
    """Whether two tensors differ by more than rounding."""
    return float((one - other).norm()) > limit * max(float(other.norm()), 1e-3)


def check_logprobs(family: Family, folder: str, plain: Any) -> None:
    """Log-probabilities of packed rows are those of plain transformers."""
    out = open_local(family, folder, None, rate=None).score("policy", Batch(ROWS), ("logp",), 0.7)
    for i, row in enumerate(ROWS):
        with torch.no_grad():
            torch.testing.assert_close(
                out.logp_BT[i, : row.answer_length], plain_logprobs(plain, row, 0.7), atol=2e-4, rtol=0
            )


def check_greedy(family: Family, folder: str, plain: Any) -> None:
    """Greedy answers of a padded batch are those of plain transformers."""
    assert greedy(base.load(folder, torch.float32, family.attention)) == [plain_greedy(plain, p) for p in PROMPTS]


def check_full_gradient(family: Family, folder: str, plain: Any) -> None:
    """The gradient of every weight is plain autograd's."""
    ours = gradients(open_local(family, folder, None))
    theirs = plain_gradients(copy.deepcopy(plain))
    pad = plain.get_input_embeddings().padding_idx
    assert theirs.keys() <= ours.keys() and pad not in ROWS[0].ids
    wrong = [name for name, grad in theirs.items() if differ(ours[name], grad)]
    assert not wrong, wrong


def check_lora_gradient(family: Family, folder: str, lora: Lora) -> None:
    """The gradient of an adapter is the chain rule on plain autograd's gradient of the merged weights."""
    local = open_local(family, folder, lora)
    adapters = local.adapters[local.roles["policy"].trunk]
    merged = base.load(folder, torch.float32, family.attention)
    adapters.merge_into(merged, "policy")
    ours = gradients(local)
    theirs = plain_gradients(merged)
    names = {id(p): key for key, p in adapters.parameters("policy").items()}
    for path, layer in adapters.weights.items():
        if "policy" not in layer.scale:
            continue
        grad = theirs[path if path in adapters.experts else f"{path}.weight"]
        grad = grad.mT if layer.is_transposed else grad
        a, b = (layer.a["policy"].detach(), layer.b["policy"].detach())
        if path in adapters.experts:
            a_grad = 2 * (b.view(len(b), -1, layer.experts).permute(2, 1, 0) @ grad).reshape(a.shape)
            b_grad = 2 * (grad @ a.view(layer.experts, -1, a.shape[1]).mT).permute(1, 2, 0).reshape(b.shape)
        else:
            a_grad, b_grad = (2 * b.T @ grad, 2 * grad @ a.T)
        assert not differ(ours[names[id(layer.a["policy"])]], a_grad), path
        assert not differ(ours[names[id(layer.b["policy"])]], b_grad), path


def check_export(family: Family, folder: str, to: Path, lora: Lora) -> None:
    """What is exported answers in plain transformers as it did in training, merged or as an adapter of peft."""
    local = open_local(family, folder, lora)
    engine = LocalEngine(None, eos=2, pad=3)
    local.publish("policy", engine)
    expected = greedy(engine.model)
    local.export("policy", to / "merged", Chat(base.load_tokenizer(folder)))
    local.export_adapter("policy", to)
    adapter = to / "adapter_model.safetensors"
    assert adapter.is_file()
    models = [transformers.AutoModelForCausalLM.from_pretrained(to / "merged").eval()]
    if family.peft:
        plain = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        models.append(PeftModel.from_pretrained(plain, to).eval())
    for model in models:
        assert [plain_greedy(model, p) for p in PROMPTS] == expected


def row_of(family: Family, folder: str) -> str:
    """The family's row of the table."""
    model = base.load(folder, torch.float32, family.attention)
    head = "plain" if has_plain_logits(model) else "own code"
    adapted = ", ".join(f"`{name}`" for name in shape.coverage(model).adapted)
    note = "" if family.peft else "; export merged, not with `--adapter`"
    attention = "" if family.attention == "grouped" else f'; needs `model.attention = "{family.attention}"`'
    return f"| {family.models} | `{type(model).__name__}` | {head}{attention} | {adapted}{note} |\n"


def refused_row(family: Family, folder: str) -> str:
    """The row of a family that is refused, with the words of the error."""
    try:
        base.load(folder, torch.float32, family.attention)
    except ModelError as error:
        name = type(transformers.AutoModelForCausalLM.from_pretrained(folder)).__name__
        return f"| {family.models} | `{name}` | {error.rule} |\n"
    raise AssertionError(f"{family.name} is not refused")


def table(rows: list[str], refused: list[str]) -> str:
    """The tables of docs/models.md."""
    return "".join(
        [
            "| models | class | logits | LoRA adapts by default |\n|---|---|---|---|\n",
            *rows,
            "\nRefused, on loading and by `towpath check`:\n\n",
            "| models | class | rule that they break |\n|---|---|---|\n",
            *refused,
        ]
    )


def main() -> None:
    """Write the table into docs/models.md."""
    with TemporaryDirectory() as scratch, quiet():
        rows = [row_of(f, make(f, Path(scratch) / f.name)) for f in SUPPORTED]
        refused = [refused_row(f, make(f, Path(scratch) / f.name)) for f, _ in REFUSED]
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    PAGE.write_text(before + BEGIN + table(rows, refused) + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
