"""Take the policy away: a folder plain transformers or peft loads, with its lineage on the card."""

import json
import shutil
from pathlib import Path
from typing import Any

from towpath.errors import RecipeError, TowpathError
from towpath.evals.evaluator import NO_JUDGE
from towpath.recipe import Recipe
from towpath.run import loading, pipeline
from towpath.store import location, manifest
from towpath.store.store import Store


def export(recipe: Recipe, run: Path, to: Path, adapter: bool, verify: bool) -> Path:
    """Copy the chosen weights, write the card, and prove that they say what the run said."""
    if to.exists() and any(to.iterdir()):
        raise RecipeError(f"--to {to}: not empty", "an export never overwrites", "name a new folder")
    with Store.open(location.ledger_location(run, recipe.store.url)) as store:
        planned = {p.name: p for p in pipeline.plan(recipe, run, loading.summarise(recipe, run), store)}
    policy = next((p for name, p in reversed(planned.items()) if name.startswith("policy") and p.done), None)
    if policy is None:
        raise RecipeError(f"{run}: no policy yet", "export takes a finished policy", f"`towpath run {run}`")
    for step in (policy, *([planned["sft"]] if adapter else [])):
        manifest.verify(step.folder)
    evaluated = next((p for name, p in reversed(planned.items()) if name.startswith("evaluate") and p.done), None)
    if adapter:
        _copy_adapter(policy, planned["sft"], to)
    else:
        shutil.copytree(policy.folder / "weights", to, dirs_exist_ok=True)
    (to / "README.md").write_text(_card(recipe, policy, evaluated, planned))
    if verify and evaluated and not adapter:
        _verify(to, evaluated.result()["samples"])
    return to


def _copy_adapter(policy: pipeline.Planned, sft: pipeline.Planned, to: Path) -> None:
    source = policy.folder / "adapter"
    if not source.is_dir():
        raise RecipeError(
            "--adapter: this policy was trained with all weights",
            "only LoRA makes an adapter",
            "export without --adapter",
        )
    shutil.copytree(source, to, dirs_exist_ok=True)
    shutil.copytree(sft.folder / "weights", to / "base")
    config = json.loads((to / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str((to / "base").resolve())
    (to / "adapter_config.json").write_text(json.dumps(config, indent=2))


def _verify(folder: Path, samples: list[dict]) -> None:
    """Plain transformers, greedily, must say what the run said, token for token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from towpath.data.chat import Chat

    chat = Chat(AutoTokenizer.from_pretrained(folder))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stops = model.generation_config.eos_token_id
    # repetition penalties and the like are no part of it
    model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=chat.pad)
    for sample in samples:
        if chat.holds_control(sample["prompt"]):
            continue  # transformers reads a special token in it, the run read characters
        ids = torch.tensor([chat.template_tokens(sample["prompt"])])
        longest = len(sample["policy_tokens"])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=longest, do_sample=False
        )
        said = out[0, ids.shape[1] :].tolist()
        if said != sample["policy_tokens"]:
            value = f"{folder}: to {sample['prompt'][:60]!r} transformers says {said[:12]}…"
            rule = f"an export says what the run said, {sample['policy_tokens'][:12]}…"
            raise TowpathError(value, rule, "report this as a bug in towpath, with this message")


def _card(
    recipe: Recipe, policy: pipeline.Planned, evaluated: pipeline.Planned | None, planned: dict[str, pipeline.Planned]
) -> str:
    """A model card: what it is, what was measured, and where every part came from."""
    unjudged = evaluated is not None and evaluated.result()["win"] is None
    lines = [
        f"# {recipe.name}: policy",
        "",
        *(
            [
                f"**{NO_JUDGE.capitalize()}**: whether this model is better than the one it started from was not "
                "measured.",
                "",
            ]
            if unjudged
            else []
        ),
        f"Base model: `{recipe.model.source}`. Trained with Towpath ({recipe.policy.algo}, {recipe.policy.method}).",
        "",
    ]
    if evaluated:
        result = evaluated.result()
        lines += [
            *_win_lines(result["win"]),
            f"- KL to the tuned model: {result['kl_per_prompt']:.2f} nats per prompt",
            "",
        ]
    if recipe.preferences.raters == "simulated":
        lines += ["Preferences came from a **simulated rater** (a written rubric with noise), not from people.", ""]
    lines += ["## Lineage", "", "| stage | fingerprint |", "|---|---|"]
    lines += [f"| {p.name} | {p.fingerprint} |" for p in planned.values() if p.done]
    return "\n".join([*lines, "", f"Seed {recipe.seed}; weights from policy step {policy.result()['best_step']}.", ""])


def _win_lines(win: dict[str, Any] | None) -> list[str]:
    """The win rate with who judged it; nothing where nobody could."""
    if win is None:
        return []
    low, high = win["interval"]
    return [
        f"- wins over the tuned model on {win['rate']:.1%} of {win['n']} held-out prompts (interval {low:.1%} to "
        f"{high:.1%}), judged by the written "
        "rubric of the bundled recipes, not by people",
        f"- at equal length: {win['length_controlled']['rate']:.1%}",
    ]
