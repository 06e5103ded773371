"""Export of the policy: a folder that plain transformers or peft loads, with a model card."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from towpath.errors import RecipeError, TowpathError
from towpath.models import files
from towpath.recipe import Recipe
from towpath.records import Message, messages_of, transcript
from towpath.run import loading
from towpath.run.fingerprint import PlannedStage, plan_stages
from towpath.run.model_card import model_card
from towpath.store import location, manifest
from towpath.store.store import Store

EXPERT_NAMES = {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
"""Layers that peft fuses into experts when it reads an adapter (its `_MOE_TARGET_MODULE_MAPPING`)."""


def export(recipe: Recipe, run: Path, to: Path, adapter: bool, verify: bool) -> Path:
    """Copy the chosen weights, write the model card, and verify that transformers generates what the run generated."""
    if to.exists() and any(to.iterdir()):
        raise RecipeError(f"--to {to}: not empty", "an export never overwrites", "name a new folder")
    with Store.open(location.ledger_location(run, recipe.store.url)) as store:
        stages = plan_stages(recipe, run, loading.summarise(recipe, run), store)
    policy = _latest(stages, "policy")
    if policy is None:
        raise RecipeError(f"{run}: no policy yet", "export takes a finished policy", f"`towpath run {run}`")
    sft = next(stage for stage in stages if stage.name == "sft")
    for stage in (policy, sft) if adapter else (policy,):
        manifest.verify(stage.folder)
    evaluation = _latest(stages, "evaluate")
    if adapter:
        _copy_adapter(policy, sft, to)
    else:
        shutil.copytree(policy.folder / "weights", to, dirs_exist_ok=True)
    (to / "README.md").write_text(model_card(recipe, run, policy, evaluation, stages, adapter), encoding="utf-8")
    if verify and evaluation and not adapter:
        _verify(to, evaluation.result()["samples"])
    return to


def push(folder: Path, name: str, public: bool = False) -> str:
    """Upload an export to the Hugging Face hub, into a new or an existing repository; its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="Export of a Towpath run")
    except Exception as error:  # process boundary: the library raises its own, and those of its HTTP client
        message = " ".join(str(error).split())[:300]
        rule = "--push writes a repository NAME or OWNER/NAME of an account that you are signed in to"
        raise TowpathError(f"--push {name}: {message}", rule, "`hf auth login`, or set HF_TOKEN") from None
    return str(address)


def _latest(stages: Sequence[PlannedStage], kind: str) -> PlannedStage | None:
    return next((stage for stage in reversed(stages) if stage.kind == kind and stage.done), None)


def _copy_adapter(policy: PlannedStage, sft: PlannedStage, to: Path) -> None:
    source = policy.folder / "adapter"
    if not source.is_dir():
        raise RecipeError(
            "--adapter: this policy was trained with all weights",
            "only LoRA makes an adapter",
            "export without --adapter",
        )
    _require_readable_by_peft(source, sft.folder / "weights")
    shutil.copytree(source, to, dirs_exist_ok=True)
    shutil.copytree(sft.folder / "weights", to / "base")
    config = json.loads((to / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str((to / "base").resolve())
    (to / "adapter_config.json").write_text(json.dumps(config, indent=2))


def _require_readable_by_peft(adapter: Path, base: Path) -> None:
    """Refuse an adapter on dense layers beside experts: peft takes their names for parts of the experts."""
    targets = files.read_json(adapter / "adapter_config.json")["target_modules"]
    clashing = sorted({name.rpartition(".")[2] for name in targets} & EXPERT_NAMES)
    tensors = [name for path in files.weight_files(base) for name in files.header(path)]
    if clashing and any(".experts." in name for name in tensors):
        rule = "peft takes these names of dense layers for parts of the experts beside them"
        fix = "export without --adapter, or train with lora.targets = ['attention']"
        raise RecipeError(f"--adapter: LoRA on {', '.join(clashing)} of a mixture of experts", rule, fix)


def _verify(folder: Path, samples: Sequence[Mapping[str, Any]]) -> None:
    """Raise if greedy decoding with plain transformers differs from the run in any token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from towpath.data.chat import Chat

    chat = Chat(AutoTokenizer.from_pretrained(folder))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stops = model.generation_config.eos_token_id
    # A base model's repetition penalty and similar settings are left out.
    model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=chat.pad)
    for sample in samples:
        prompt = (*messages_of(sample.get("history") or ()), Message("user", sample["prompt"]))
        if chat.holds_control(transcript(prompt)):
            continue  # transformers reads its special tokens, the run read characters
        expected = sample["policy_tokens"]
        ids = torch.tensor([chat.template_tokens(prompt)])
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=len(expected), do_sample=False
        )
        generated = output[0, ids.shape[1] :].tolist()
        if generated != expected:
            value = f"{folder}: for {sample['prompt'][:60]!r} transformers generates {generated[:12]}…"
            rule = f"an export generates what the run generated, {expected[:12]}…"
            raise TowpathError(value, rule, "report this as a bug in towpath, with this message")
