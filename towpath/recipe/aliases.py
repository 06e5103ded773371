"""Other libraries' words, and earlier words, for recipe keys, so that an unknown key names the one that is meant."""

import difflib
from collections.abc import Collection

_BATCH = ("sft.batch", "reward.batch", "policy.batch")
_EPOCHS = ("sft.epochs", "reward.epochs")
_RATE = ("sft.learning_rate", "reward.learning_rate", "policy.learning_rate")
_RANK = ("sft.lora.rank", "reward.lora.rank", "policy.lora.rank")
_ALPHA = ("sft.lora.alpha", "reward.lora.alpha", "policy.lora.alpha")
_LAST = ("sft.lora.last_n_layers", "reward.lora.last_n_layers", "policy.lora.last_n_layers")
_WARMUP = ("sft.warmup", "reward.warmup")
_VALIDATE = ("sft.validate_every", "policy.validate_every")
_LENGTH = ("data.max_prompt_tokens", "policy.max_new_tokens")
_DATA = ("data.prompts", "data.demonstrations", "data.preferences")
_CLIP = ("policy.ppo.clip", "policy.grpo.clip_low")

ALIASES: dict[str, tuple[str, ...]] = {
    # TRL, transformers and peft
    "beta": ("policy.kl.coef", "policy.dpo.beta", "policy.kto.beta"),
    "num_generations": ("policy.group",),
    "rloo_k": ("policy.group",),
    "max_completion_length": ("policy.max_new_tokens",),
    "response_length": ("policy.max_new_tokens",),
    "max_prompt_length": ("data.max_prompt_tokens",),
    "max_length": _LENGTH,
    "max_seq_length": _LENGTH,
    "per_device_train_batch_size": _BATCH,
    "gradient_accumulation_steps": ("model.tokens_per_pass",),
    "num_mini_batches": ("policy.batch",),
    "generation_batch_size": ("policy.rollout",),
    "num_train_epochs": _EPOCHS,
    "num_ppo_epochs": ("policy.epochs",),
    "num_iterations": ("policy.epochs",),
    "max_steps": ("policy.steps",),
    "total_episodes": ("policy.steps", "policy.rollout"),
    "warmup_ratio": _WARMUP,
    "warmup_steps": _WARMUP,
    "eval_steps": _VALIDATE,
    "kl_estimator": ("policy.grpo.kl",),
    "cliprange": _CLIP,
    "cliprange_value": ("policy.ppo.value_clip",),
    "vf_coef": ("policy.ppo.value_weight",),
    "epsilon": _CLIP,
    "epsilon_high": ("policy.grpo.clip_high",),
    "scale_rewards": ("policy.grpo.scale",),
    "loss_type": ("policy.algo", "policy.grpo.average"),
    "missing_eos_penalty": ("policy.rewards.eos_penalty",),
    "reward_funcs": ("policy.rewards.sources",),
    "reward_weights": ("policy.rewards.sources",),
    "reward_model_path": ("policy.rewards.sources",),
    "desirable_weight": ("policy.kto.desirable",),
    "undesirable_weight": ("policy.kto.undesirable",),
    "rpo_alpha": ("policy.orpo.weight",),
    "center_rewards_coefficient": ("reward.center",),
    "lora_r": _RANK,
    "r": _RANK,
    "lora_rank": _RANK,
    "lora_alpha": _ALPHA,
    "layers_to_transform": _LAST,
    "target_modules": ("sft.lora.targets", "policy.lora.targets"),
    "lora_target_modules": ("sft.lora.targets", "policy.lora.targets"),
    "lora_dropout": ("sft.lora.dropout", "reward.lora.dropout"),
    "lr_scheduler_type": ("sft.schedule", "policy.schedule"),
    "load_in_4bit": ("model.quantize",),
    "wandb_project": ("track.project",),
    "run_project": ("track.project",),
    "wandb_entity": ("track.entity",),
    "use_peft": ("sft.method", "policy.method"),
    "model_name_or_path": ("model.source",),
    "model_name": ("model.source",),
    "torch_dtype": ("model.dtype",),
    "bf16": ("model.dtype",),
    "fp16": ("model.dtype",),
    "attn_implementation": ("model.attention",),
    "chat_template": ("model.template",),
    "chat_template_path": ("model.template",),
    "torch_compile": ("model.compile.on",),
    "use_vllm": ("engine.type",),
    "vllm_gpu_memory_utilization": ("engine.cache",),
    "vllm_importance_sampling_cap": ("engine.correction",),
    "dataset_name": _DATA,
    "train_file": _DATA,
    "report_to": ("track.tensorboard", "track.wandb", "track.mlflow"),
    "run_name": ("name",),
    "packing_strategy": ("sft.packing",),
    # OpenRLHF
    "init_kl_coef": ("policy.kl.coef",),
    "kl_target": ("policy.kl.target",),
    "target_kl": ("policy.kl.target",),
    "n_samples_per_prompt": ("policy.group",),
    "generate_max_len": ("policy.max_new_tokens",),
    "prompt_max_len": ("data.max_prompt_tokens",),
    "train_batch_size": _BATCH,
    "micro_train_batch_size": ("model.tokens_per_pass",),
    "rollout_batch_size": ("policy.rollout",),
    "actor_learning_rate": ("policy.learning_rate",),
    "critic_learning_rate": ("policy.ppo.critic_learning_rate",),
    "eps_clip": _CLIP,
    "advantage_estimator": ("policy.algo",),
    "pretrain": ("model.source",),
    "prompt_data": ("data.prompts",),
    "value_clip": ("policy.ppo.value_clip",),
    # verl
    "adv_estimator": ("policy.algo",),
    "kl_coef": ("policy.kl.coef",),
    "kl_loss_coef": ("policy.kl.coef",),
    "kl_ctrl": ("policy.kl.coef", "policy.kl.target"),
    "clip_ratio": _CLIP,
    "clip_ratio_low": ("policy.grpo.clip_low",),
    "clip_ratio_high": ("policy.grpo.clip_high",),
    "loss_agg_mode": ("policy.grpo.average",),
    "ppo_epochs": ("policy.epochs",),
    "ppo_mini_batch_size": ("policy.batch",),
    "ppo_micro_batch_size_per_gpu": ("model.tokens_per_pass",),
    "max_response_length": ("policy.max_new_tokens",),
    "rollout_n": ("policy.group",),
    "grad_clip": ("policy.max_grad_norm",),
    "project_name": ("name",),
    "experiment_name": ("name",),
    # Towpath before its first release
    "people": ("preferences.human_share",),
    "audit": ("preferences.audit_share",),
    "inconsistent": ("judge.on_position_flip",),
    "hourly": ("budget.wage",),
    "top": _LAST,
    "members": ("reward.ensemble_size",),
    "caution": ("policy.rewards.std_penalty",),
    "critic_memory": ("policy.ppo.critic_decay",),
    "surprise": ("health.limits.z_threshold",),
    "of": ("engine.type", "policy.rewards.sources[].source"),
    # Common words
    "lr": _RATE,
    "batch_size": _BATCH,
    "mini_batch_size": ("policy.batch",),
    "micro_batch_size": ("model.tokens_per_pass",),
    "group_size": ("policy.group",),
    "gae_lambda": ("policy.ppo.lam",),
    "lambda": ("policy.ppo.lam",),
    "algorithm": ("policy.algo",),
    "trainer": ("policy.algo",),
    "model_path": ("model.source",),
    "base_model": ("model.source",),
    "tokenizer": ("model.source", "model.template"),
}
"""Another library's word, in lower case, and the keys that say the same here."""


def meant(key: str, known: Collection[str]) -> tuple[str, ...]:
    """The keys that an unknown key stands for: another library's word, the same word in another table, or the
    nearest spelling."""
    word = key.rpartition(".")[2].lower().lstrip("-").replace("-", "_")
    aliased = tuple(target for target in ALIASES.get(word, ()) if target in known)
    table = key.partition(".")[0]
    if aliased:
        return tuple(target for target in aliased if target.startswith(f"{table}.")) or aliased
    elsewhere = tuple(other for other in known if other.rpartition(".")[2] == word)
    return elsewhere or tuple(difflib.get_close_matches(key.lower(), list(known), n=1, cutoff=0.6))


def suggestion(key: str, known: Collection[str]) -> str:
    """A question that names the keys meant; empty where none is near."""
    keys = list(meant(key, known))
    if not keys:
        return ""
    last = keys.pop()
    return f"did you mean {', '.join(keys)} or {last}?" if keys else f"did you mean {last}?"
