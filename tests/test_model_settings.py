"""Settings of models and training: LoRA targets and dropout, schedules, gradient checkpointing, four bits, templates,
checkpoints in other precisions and in parts."""

import math
from pathlib import Path
from typing import Any

import families
import pytest
import torch
import transformers
from families import Family
from safetensors.torch import load_file

from towpath.algos import sft
from towpath.data.batch import Batch
from towpath.data.chat import Chat
from towpath.errors import ModelError
from towpath.models import base, files
from towpath.models.cpu import layers
from towpath.recipe import Lora, Recipe
from towpath.recipe.reader import check
from towpath.records import Message
from towpath.run import model_checks
from towpath.run.trackers import RunNames
from towpath.runtime.contract import RoleSpec
from towpath.runtime.local import Local
from towpath.stages.loop import schedule

LLAMA = Family("Llama", "", {})
QWEN = Family("Qwen3", "", {"head_dim": 8})


@pytest.mark.parametrize(
    ("targets", "modules"),
    [
        (["attention"], {"q_proj", "k_proj", "v_proj", "o_proj"}),
        (["mlp"], {"gate_proj", "up_proj", "down_proj"}),
        (["q_proj", "*.layers.1.mlp.*"], {"q_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_lora_on_some_layers_has_plain_gradients_and_is_read_by_peft(
    targets: list[str], modules: set[str], tmp_path: Path
) -> None:
    folder = families.make(LLAMA, tmp_path / "model")
    lora = Lora(rank=4, alpha=8.0, targets=targets)
    families.check_lora_gradient(LLAMA, folder, lora)
    families.check_export(LLAMA, folder, tmp_path, lora)
    local = families.open_local(LLAMA, folder, lora)
    assert set(local.describe("policy")["modules"]) == modules
    changed = [name for name in local.trained() if ".layers.0.mlp" in name]
    assert bool(changed) == (targets == ["mlp"])


def test_targets_that_name_no_layer_are_an_error(tmp_path: Path) -> None:
    folder = families.make(LLAMA, tmp_path)
    with pytest.raises(ModelError, match=r"no such layer[\s\S]*q_proj"):
        families.open_local(LLAMA, folder, Lora(targets=["query"]))
    recipe = check(Recipe, {"sft": {"lora": {"targets": ["query"]}}}, "test")
    _, findings = model_checks.check_model(recipe, tmp_path)
    assert [f.severity for f in findings if "lora.targets of sft" in f.evidence] == ["error"]


@pytest.mark.parametrize("family", [LLAMA, QWEN], ids=lambda family: family.name)
def test_dropout_acts_in_gradient_passes_alone_and_is_repeatable(family: Family, tmp_path: Path) -> None:
    folder = families.make(family, tmp_path)
    local = families.open_local(family, folder, Lora(rank=4, alpha=8.0, dropout=0.5))
    plain = families.open_local(family, folder, Lora(rank=4, alpha=8.0))
    batch = Batch(families.ROWS)
    assert torch.equal(*(part.score("policy", batch, ("logp",)).logp_BT for part in (local, plain)))
    generator = torch.get_rng_state()
    first = families.gradients(local)
    assert torch.equal(generator, torch.get_rng_state()), "no generator state is used"
    local.optimizer.zero_grad()
    again = families.gradients(local)
    assert all(torch.equal(first[name], again[name]) for name in first)
    without = families.gradients(plain)
    assert any(families.differ(first[name], without[name], 0.1) for name in first)
    local.step(1e-9, 1.0)
    later = families.gradients(local)
    assert any(families.differ(first[name], later[name], 0.1) for name in first), "other draws at another step"


def test_dropout_keeps_the_expected_gradient(tmp_path: Path) -> None:
    """The mean over many draws is near the gradient without dropout: kept inputs are scaled up."""
    folder = families.make(LLAMA, tmp_path)
    plain = families.gradients(families.open_local(LLAMA, folder, Lora(rank=4, alpha=8.0)))
    local = families.open_local(LLAMA, folder, Lora(rank=4, alpha=8.0, dropout=0.1))
    total: dict[str, torch.Tensor] = {}
    for _ in range(30):
        for name, grad in families.gradients(local).items():
            total[name] = total.get(name, 0) + grad / 30
        local.step(0.0, 1.0)
    similar = [torch.cosine_similarity(total[n].flatten(), plain[n].flatten(), 0) for n in plain if "lora_B" in n]
    assert min(similar) > 0.9


def test_dropout_in_reinforcement_learning_is_an_error() -> None:
    recipe = check(Recipe, {"policy": {"lora": {"dropout": 0.1}}}, "test")
    assert [f.severity for f in model_checks.check_settings(recipe)] == ["error"]
    assert not model_checks.check_settings(check(Recipe, {"policy": {"algo": "dpo", "lora": {"dropout": 0.1}}}, "test"))


def test_schedules() -> None:
    done = [0.0, 0.05, 0.1, 0.55, 1.0]
    assert [schedule("linear", 0.1)(x) for x in done] == pytest.approx([0.01, 0.51, 1.0, 0.5, 0.0])
    assert [schedule("cosine", 0.1)(x) for x in done] == pytest.approx([0.01, 0.51, 1.0, 0.5, 0.0])
    assert [schedule("constant", 0.1)(x) for x in done] == pytest.approx([0.01, 0.51, 1.0, 1.0, 1.0])
    assert schedule("cosine")(0.25) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert schedule("linear")(0.25) == 0.75


@pytest.mark.parametrize("lora", [None, Lora(rank=4, alpha=8.0)], ids=["full", "lora"])
@pytest.mark.parametrize("family", [LLAMA, QWEN, Family("Gemma2", "", {"head_dim": 8})], ids=lambda f: f.name)
def test_gradient_checkpointing_holds_less_and_gives_the_same_gradient(
    family: Family, lora: Lora | None, tmp_path: Path
) -> None:
    folder = families.make(family, tmp_path)
    gradients = []
    held = []
    for checkpointing in (False, True):
        local = Local(pad=3, gradient_checkpointing=checkpointing)
        local.open({"policy": RoleSpec(folder, lora, learning_rate=1e-3)})
        assert layers.is_supported(next(iter(local.trunks.values()))) == (family is LLAMA)
        bytes_held = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal bytes_held
            bytes_held += tensor.numel() * tensor.element_size()
            return tensor

        batch = Batch(families.ROWS)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            local.forward_backward(sft.TRAINS, batch, lambda o, p: sft.loss(o, p, None, {}), sft.weigh(batch, None))
        gradients.append({name: p.grad.clone() for name, p in local.trained().items() if p.grad is not None})
        held.append(bytes_held)
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad, atol=1e-6, rtol=1e-4)
    assert held[1] < 0.8 * held[0]


def test_four_bit_weights_are_refused_without_a_gpu(tmp_path: Path) -> None:
    folder = families.make(LLAMA, tmp_path)
    with pytest.raises(ModelError, match="CUDA GPUs"):
        base.load(folder, torch.float32, "grouped", quantize=True)
    recipe = check(Recipe, {"model": {"quantize": "4bit", "device": "cpu"}, "sft": {"method": "full"}}, "test")
    findings = model_checks.check_settings(recipe)
    assert [f.severity for f in findings] == ["error", "error"]
    assert "sft.method = 'full'" in findings[0].evidence and "on cpu" in findings[1].evidence


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_tied_and_untied_heads(tied: bool, tmp_path: Path) -> None:
    family = Family("Llama", "", {"tie_word_embeddings": tied})
    folder = families.make(family, tmp_path / "model")
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    families.check_full_gradient(family, folder, plain)
    families.check_export(family, folder, tmp_path, Lora(rank=4, alpha=8.0))
    exported = load_file(tmp_path / "merged" / "model.safetensors")
    assert ("lm_head.weight" in exported) != tied


@pytest.mark.parametrize("kind", ["bfloat16", "sharded"])
@pytest.mark.filterwarnings("ignore")
def test_checkpoints_in_half_precision_and_in_parts(kind: str, tmp_path: Path) -> None:
    folder = families.make(LLAMA, tmp_path / "model")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    if kind == "bfloat16":
        model.to(torch.bfloat16).save_pretrained(folder)
    else:
        (tmp_path / "model" / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="40KB")
        assert len(files.weight_files(tmp_path / "model")) > 2
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    families.check_logprobs(LLAMA, folder, plain)
    families.check_export(LLAMA, folder, tmp_path, Lora(rank=4, alpha=8.0))


def test_a_tokenizer_without_template_or_pad_token_is_offered_one_and_works_with_it(tmp_path: Path) -> None:
    folder = families.make(LLAMA, tmp_path)
    tokenizer = base.load_tokenizer(folder)
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"model\.template = 'chatml', whose control tokens it has"):
        Chat(tokenizer)
    tokenizer = base.load_tokenizer(folder)
    tokenizer.chat_template = None
    tokenizer.pad_token = None
    tokenizer.get_vocab = lambda: {}
    with pytest.raises(ModelError, match=r"model\.template = 'plain'"):
        Chat(tokenizer)
    chat = Chat(tokenizer, "plain")
    assert chat.pad not in chat.stops
    history = (Message("user", "Hello"), Message("assistant", "Hi"), Message("user", "What is an egg?"))
    assert chat.prompt(history)[: len(chat.prompt("Hello"))] == chat.prompt("Hello")
    text = tokenizer.decode([*chat.prompt(history), *chat.answer("Food.")])
    assert text == "User: Hello\n\nAssistant: Hi</s>\n\nUser: What is an egg?\n\nAssistant: Food.</s>"
    assert chat.answer("Food.")[-1] == tokenizer.eos_token_id


def test_trackers_have_the_project_and_team_of_the_recipe(tmp_path: Path) -> None:
    recipe = check(Recipe, {"name": "eggs", "track": {"project": "kitchen", "entity": "team"}}, "test")
    names = RunNames(recipe, tmp_path, "sft", tmp_path)
    assert (names.project, names.entity) == ("kitchen", "team")
    assert RunNames(check(Recipe, {"name": "eggs"}, "test"), tmp_path, "sft", tmp_path).project == "eggs"
