"""Dialects: the metric names of other trainers, with their units and the metrics of Towpath that they are.

KL per answer is the sum over the tokens of an answer sampled by the policy, to the reference; KL per token is its mean
over tokens. `approx_kl` is the KL of the policy after an update to the policy that sampled.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from towpath.metrics import FAMILIES, METRICS

Kind = Literal["policy", "pairs", "sft", "reward", "training"]
"""What was trained: a policy on its own answers, a policy on pairs, a model on demonstrations, a reward model, or
unknown."""

VALIDATION_ON_PAIRS = {"loss": "pairs_loss", "accuracy": "pairs_accuracy"}
"""Validation metrics of a policy that learns from pairs."""

STEPS = (
    "train/global_step",
    "training/global_step",
    "eval/global_step",
    "trainer/global_step",
    "global_step",
    "step",
    "Step",
    "iteration",
    "_step",
)
"""Columns that count steps, the most reliable first: `_step` of Weights & Biases counts calls of the logger."""
BOOKKEEPING = re.compile(
    r"(train/|eval/|eval_|test_)?(epoch|episode|eps|num_tokens|num_input_tokens_seen|num_samples|step_time|total_flos|total_steps|runtime|train_loss"
    r"|train_runtime|[a-z_]*_per_second|steps_per_second|global_step|step|_step|Step|iteration|_timestamp|_runtime|_wandb.*|phase"
    r"|.*__(MIN|MAX)|timing.*|time/.*|perf/.*|global_seqlen/.*|system/.*|prompt_length/.*|num_turns/.*|training/.*|generated_samples"
    r"|seconds_.*|Unnamed.*|)"
)
"""Columns of counts, clocks and sums, which are not reported as unknown."""
TRAIN_PREFIXES = ("train/",)
VALIDATION_PREFIXES = ("eval/", "eval_", "validation/", "valid/", "val/", "test/", "test_")


@dataclass(frozen=True, slots=True)
class Meaning:
    """The metric of a column, or none if it is known and not used; and its unit, or why it is not used."""

    ours: str = ""
    description: str = ""
    complement: bool = False
    """Whether the metric is 1 minus the column: the finish rate, of the truncated share."""
    scale: float = 1.0
    """The factor on the column."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The names of one trainer. It is recognised by any of `signs`, if all of its names are logged; a name that ends
    in `/` is a prefix."""

    name: str
    kind: Kind
    signs: tuple[tuple[str, ...], ...]
    names: Mapping[str, Meaning]
    algo: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Names of recipe keys in this trainer, for remedies."""


def _unused(why: str) -> Meaning:
    return Meaning("", why)


COMMON = {
    "loss": Meaning("loss", "the training loss"),
    "grad_norm": Meaning("grad_norm", "before clipping"),
    "learning_rate": Meaning("learning_rate"),
    "lr": Meaning("learning_rate"),
    "lr(1e-3)": Meaning("learning_rate", "logged in thousandths by verl's SFT", scale=1e-3),
    "entropy_coef": _unused("a setting"),
    "aux_loss": _unused("balance of experts"),
    "train_loss": _unused("a mean over the whole run"),
}

TRL_PPO = {
    "objective/kl": Meaning("kl", "nats per answer: summed over its tokens"),
    "objective/scores": Meaning("reward", "the score with the penalty for a missing EOS, without the KL penalty"),
    "objective/rlhf_reward": Meaning("reward", "the score minus the KL penalty: used only if the score is not logged"),
    "objective/non_score_reward": _unused("the KL penalty; with the KL it gives the coefficient"),
    "policy/entropy_avg": Meaning("entropy", "nats a token"),
    "objective/entropy": _unused("summed over an answer's tokens, so it grows with length"),
    "policy/approxkl_avg": Meaning("approx_kl", "new policy to old policy: half the squared log-ratio, a token"),
    "policy/clipfrac_avg": Meaning("clip_fraction"),
    "loss/policy_avg": Meaning("policy_loss"),
    "loss/value_avg": Meaning("value_loss"),
    "val/ratio": Meaning("ratio", "of the policy, despite its name"),
    "val/ratio_var": _unused("variance between minibatches"),
    "val/clipfrac_avg": _unused("clipping of the critic"),
    "val/num_eos_tokens": _unused("a count of tokens"),
    "objective/kl_coef": Meaning("kl_coef"),
    "objective/scores_margin": _unused("between two answers of one prompt"),
    "rewards/accuracies": _unused("pairs are sampled again at each step"),
    "rewards/margins": _unused("pairs are sampled again at each step"),
    "rewards/chosen": _unused("pairs are sampled again at each step"),
    "rewards/rejected": _unused("pairs are sampled again at each step"),
    "logps/chosen": _unused("grows with length"),
    "logps/rejected": _unused("grows with length"),
    "beta": Meaning("kl_coef"),
}
TRL_PPO_BEFORE = {
    "objective/kl": Meaning("kl", "nats per answer: summed over its tokens"),
    "ppo/mean_scores": Meaning("reward", "the score, without the KL penalty"),
    "env/reward_mean": Meaning("reward", "the score, without the KL penalty"),
    "ppo/std_scores": Meaning("reward_std"),
    "env/reward_std": Meaning("reward_std"),
    "ppo/mean_non_score_reward": _unused("the KL penalty"),
    "objective/kl_coef": Meaning("kl_coef"),
    "ppo/policy/entropy": Meaning("entropy", "nats a token"),
    "objective/entropy": _unused("summed over an answer's tokens, so it grows with length"),
    "ppo/policy/approxkl": Meaning("approx_kl", "new policy to old policy, a token"),
    "ppo/policy/policykl": _unused("new policy to old policy, by another estimator"),
    "ppo/policy/clipfrac": Meaning("clip_fraction"),
    "ppo/loss/policy": Meaning("policy_loss"),
    "ppo/loss/value": Meaning("value_loss"),
    "ppo/loss/total": _unused("the sum of its parts"),
    "ppo/val/var_explained": Meaning("explained_variance"),
    "ppo/learning_rate": Meaning("learning_rate"),
    "tokens/responses_len_mean": Meaning("length"),
}
TRL_GROUPS = {
    "reward": Meaning("reward", "weighted sum of the reward functions, without the KL penalty"),
    "reward_std": Meaning("reward_std"),
    "frac_reward_zero_std": Meaning("zero_std_groups"),
    "kl": Meaning("kl_per_token", "nats a token, by the k3 estimator"),
    "entropy": Meaning("entropy", "nats a token"),
    "policy_loss": Meaning("policy_loss"),
    "completions/mean_length": Meaning("length"),
    "completion_length": Meaning("length"),
    "completions/clipped_ratio": Meaning(
        "finish_rate", "share of truncated answers, subtracted from 1", complement=True
    ),
    "clip_ratio/region_mean": Meaning("clip_fraction"),
    "clip_ratio": Meaning("clip_fraction"),
    "cispo_clip_ratio": Meaning("clip_fraction"),
    "sampling/sampling_logp_difference/mean": Meaning("sampler_error"),
    "objective/kl": Meaning("kl", "nats per answer: summed over its tokens"),
}
TRL_PAIRS = {
    "rewards/accuracies": Meaning("accuracy"),
    "rewards/margins": Meaning("gap", "beta times the log-ratio"),
    "rewards/chosen": Meaning("chosen", "beta times the log-ratio"),
    "rewards/rejected": Meaning("rejected", "beta times the log-ratio"),
    "entropy": _unused("of given answers: no sign of low diversity"),
    "kl": _unused("the reference point of KTO: no KL of the policy"),
    "logps/chosen": Meaning("chosen_logp", "summed over tokens"),
    "logps/rejected": _unused("grows with length"),
    "logits/chosen": _unused("of unknown scale"),
    "logits/rejected": _unused("of unknown scale"),
    "mean_token_accuracy": _unused("of the chosen answers' tokens"),
    "nll_loss": _unused("the likelihood term of the loss"),
    "log_odds_ratio": _unused("the odds-ratio term of the loss"),
    "log_odds_chosen": _unused("the odds-ratio term of the loss"),
}
TRL_REWARD = {
    "accuracy": Meaning("accuracy"),
    "margin": Meaning("gap"),
    "mean_reward": _unused("a reward model's scores have no zero"),
    "min_reward": _unused("a reward model's scores have no zero"),
    "max_reward": _unused("a reward model's scores have no zero"),
}
TRL_SFT = {
    "mean_token_accuracy": Meaning("token_accuracy"),
    "entropy": Meaning("token_entropy", "of given answers: no sign of low diversity"),
}
VERL = {
    "critic/score/mean": Meaning("reward", "of an answer, without the KL penalty"),
    "critic/rewards/mean": Meaning(
        "reward", "minus the KL penalty, if it is in the reward: used only if the score is not logged"
    ),
    "actor/reward_kl_penalty": Meaning("kl_per_token", "to the reference, a token, although it is logged as a penalty"),
    "actor/kl_loss": Meaning("kl_per_token", "to the reference, a token"),
    "actor/reward_kl_penalty_coeff": Meaning("kl_coef"),
    "actor/kl_coef": Meaning("kl_coef"),
    "actor/ppo_kl": Meaning("approx_kl", "old policy to new policy, a token: not to the reference"),
    "actor/pg_clipfrac": Meaning("clip_fraction"),
    "actor/pg_clipfrac_lower": _unused("the second clip for negative advantages"),
    "actor/pg_loss": Meaning("policy_loss"),
    "actor/loss": _unused("the sum of its parts"),
    "actor/entropy": Meaning("entropy", "nats a token"),
    "actor/entropy_loss": Meaning("entropy", "nats a token"),
    "actor/grad_norm": Meaning("grad_norm"),
    "actor/lr": Meaning("learning_rate"),
    "critic/vf_loss": Meaning("value_loss"),
    "critic/vf_explained_var": Meaning("explained_variance"),
    "critic/vf_clipfrac": _unused("clipping of the critic"),
    "critic/grad_norm": _unused("the critic's"),
    "critic/lr": _unused("the critic's"),
    "response_length/mean": Meaning("length"),
    "response_length/clip_ratio": Meaning(
        "finish_rate", "share of answers of maximal length, subtracted from 1", complement=True
    ),
    "rollout_corr/kl": _unused("sampler to trainer: not to the reference"),
    "rollout_corr/k3_kl": _unused("sampler to trainer: not to the reference"),
    "training/rollout_probs_diff_mean": _unused("difference of probabilities, not of their logarithms"),
}
OPENRLHF = {
    "reward": Meaning("reward", "with penalties for length, without the KL penalty"),
    "score": Meaning("score"),
    "return": _unused("the reward minus baseline and KL penalty"),
    "group_reward_std": Meaning("reward_std", "within the answers to one prompt"),
    "kl": Meaning("kl_per_token", "to the reference: mean over an answer's tokens"),
    "logprobs_diff": _unused("the KL by another estimator"),
    "policy_loss": Meaning("policy_loss"),
    "critic_loss": Meaning("value_loss"),
    "ptx_loss": _unused("of the pretraining mix"),
    "entropy_loss": Meaning("entropy", "nats a token"),
    "ppo_clip_ratio": Meaning("clip_fraction"),
    "clip_ratio": Meaning("clip_fraction"),
    "ppo_kl": Meaning("approx_kl", "old policy to new policy, a token: not to the reference"),
    "vllm_kl": _unused("sampler to trainer: not to the reference"),
    "response_length": Meaning("length"),
    "total_length": _unused("prompt and answer"),
    "truncated": Meaning("finish_rate", "share of truncated answers, subtracted from 1", complement=True),
    "response_clip_ratio": Meaning("finish_rate", "share of truncated answers, subtracted from 1", complement=True),
    "truncated_rate": Meaning("finish_rate", "share of truncated answers, subtracted from 1", complement=True),
    "response_length_mean": Meaning("length"),
    "actor_lr": Meaning("learning_rate"),
    "actor_grad_norm": Meaning("grad_norm"),
    "critic_lr": _unused("the critic's"),
    "critic_grad_norm": _unused("the critic's"),
    "values": _unused("predictions of the critic"),
    "dynamic_filtering_pass_rate": _unused("share of prompts kept"),
}
OPENRLHF_PAIRS = {
    "acc": Meaning("accuracy"),
    "acc_mean": Meaning("accuracy", "in training a running mean: used only in validation"),
    "loss_mean": _unused("a running mean"),
    "chosen_reward": Meaning("chosen", "beta times the log-ratio"),
    "reject_reward": Meaning("rejected", "beta times the log-ratio"),
    "nll_loss": _unused("the likelihood term of the loss"),
    "eval_loss": Meaning("loss"),
}

OPENRLHF_SFT = {
    "gpt_loss": Meaning("loss", "the training loss"),
    "eval gpt_loss": Meaning("loss", "held out"),
    "loss_mean": _unused("a running mean"),
    "ptx_loss": _unused("of the pretraining mix"),
}

KEYS_OF_TRL_PPO = {
    "policy.kl.coef": "kl_coef",
    "policy.temperature": "temperature",
    "policy.max_new_tokens": "response_length",
    "policy.rewards.eos_penalty": "missing_eos_penalty",
}
KEYS_OF_TRL_GROUPS = {
    "policy.kl.coef": "beta",
    "policy.temperature": "temperature",
    "policy.max_new_tokens": "max_completion_length",
    "policy.group": "num_generations",
}
KEYS_OF_VERL = {
    "policy.kl.coef": "actor_rollout_ref.actor.kl_loss_coef (algorithm.kl_ctrl.kl_coef where the KL is in the reward)",
    "policy.temperature": "actor_rollout_ref.rollout.temperature",
    "policy.max_new_tokens": "data.max_response_length",
    "policy.group": "actor_rollout_ref.rollout.n",
    "policy.ppo.critic_learning_rate": "critic.optim.lr",
    "policy.ppo.critic_warmup": "trainer.critic_warmup",
}
KEYS_OF_OPENRLHF = {
    "policy.kl.coef": "--algo.kl.init_coef",
    "policy.temperature": "--rollout.temperature",
    "policy.max_new_tokens": "--rollout.max_new_tokens",
    "policy.group": "--rollout.n_samples_per_prompt",
    "policy.rewards.clip": "--reward.clip_range",
    "policy.ppo.critic_learning_rate": "--critic.adam.lr",
    "policy.ppo.critic_warmup": "--critic.freezing_steps",
}

DIALECTS = (
    Dialect("Towpath", "policy", (("kl_k3", "finish_rate"), ("kl_per_token", "seconds_optimise")), {}),
    Dialect("verl", "policy", (("actor/",), ("critic/score/mean",), ("critic/rewards/mean",)), VERL, keys=KEYS_OF_VERL),
    Dialect(
        "TRL's PPO before 0.12",
        "policy",
        (("ppo/mean_scores",), ("ppo/loss/policy",), ("ppo/policy/approxkl",)),
        TRL_PPO_BEFORE,
    ),
    Dialect(
        "TRL's PPO",
        "policy",
        (("policy/approxkl_avg",), ("loss/policy_avg",), ("val/ratio",)),
        TRL_PPO,
        keys=KEYS_OF_TRL_PPO,
    ),
    Dialect(
        "TRL, online",
        "policy",
        (("objective/kl",), ("objective/scores",), ("objective/rlhf_reward",)),
        TRL_PPO,
        keys={"policy.kl.coef": "beta"},
    ),
    Dialect(
        "TRL's GRPO",
        "policy",
        (
            ("completions/mean_length",),
            ("completion_length", "reward"),
            ("frac_reward_zero_std",),
            ("clip_ratio/region_mean",),
        ),
        TRL_GROUPS,
        "grpo",
        KEYS_OF_TRL_GROUPS,
    ),
    Dialect(
        "OpenRLHF",
        "policy",
        (("actor_lr",), ("ppo_clip_ratio",), ("policy_loss", "response_length"), ("policy_loss", "critic_loss")),
        OPENRLHF,
        keys=KEYS_OF_OPENRLHF,
    ),
    Dialect("OpenRLHF, on pairs", "pairs", (("chosen_reward", "reject_reward"),), OPENRLHF_PAIRS),
    Dialect("OpenRLHF's SFT", "sft", (("gpt_loss",),), OPENRLHF_SFT),
    Dialect("verl's SFT", "sft", (("lr(1e-3)", "loss"),), {}),
    Dialect("TRL's KTO", "pairs", (("rewards/chosen", "kl"),), TRL_PAIRS, "kto"),
    Dialect("TRL's DPO", "pairs", (("rewards/accuracies",), ("rewards/chosen",)), TRL_PAIRS, "dpo"),
    Dialect("TRL's reward model", "reward", (("margin", "accuracy"), ("min_reward", "max_reward")), TRL_REWARD),
    Dialect("TRL's SFT", "sft", (("mean_token_accuracy", "loss"),), TRL_SFT),
    Dialect("plain names", "training", ((),), {}),
)
"""The first dialect that is recognised is used."""
PLAIN = DIALECTS[-1]
KEYS = {dialect.name: dialect.keys for dialect in DIALECTS}
PATTERNS = (
    (re.compile(r"rewards/(.+)/mean"), "score/"),
    (re.compile(r"rewards/(.+)/std"), ""),
    (re.compile(r"val-core/(.+)/reward/mean@\d+"), "reward/"),
    (re.compile(r"val-core/(.+/.+)/mean@\d+"), "watched/"),
    (re.compile(r"val-(core|aux)/.+"), ""),
    (re.compile(r"(critic|actor)/.+"), ""),
    (re.compile(r"response_length\w*/.+|response/.+|rollout_corr/.+|rollout/.+"), ""),
    (re.compile(r"(completions|clip_ratio|sampling|tools|vespo|tokens|ppo|time|objective)/.+"), ""),
)
"""Names that contain a name of the user, or belong to a large family whose useful members are in the tables."""


def dialect_of(columns: Collection[str]) -> Dialect:
    """The dialect of these columns."""
    logged = {split_phase(column)[0] for column in columns}

    def is_logged(sign: str) -> bool:
        return any(name.startswith(sign) for name in logged) if sign.endswith("/") else sign in logged

    return next(dialect for dialect in DIALECTS if any(all(map(is_logged, signs)) for signs in dialect.signs))


def split_phase(column: str) -> tuple[str, str]:
    """A name without its prefix for training or validation, and the phase."""
    if column in TRL_PPO:  # `val/ratio` is of training
        return column, ""
    for prefixes, phase in ((TRAIN_PREFIXES, "train"), (VALIDATION_PREFIXES, "validation")):
        for prefix in prefixes:
            if column.startswith(prefix) and len(column) > len(prefix):
                return column.removeprefix(prefix), phase
    return column, ""


def meaning(column: str, dialect: Dialect) -> tuple[Meaning | None, str]:
    """The meaning of a column in a dialect, None if it is unknown; and its phase, if the name has a prefix."""
    name, phase = split_phase(column)
    for known in (dialect.names, COMMON):
        if name in known:
            return known[name], phase
    if is_ours(name):
        return Meaning(name, METRICS[name].description if name in METRICS else ""), phase
    for pattern, family in PATTERNS:
        match = pattern.fullmatch(name)
        if match:
            phase = "validation" if name.startswith("val-") else phase
            return (
                Meaning(f"{family}{match[1]}")
                if family
                else _unused("one of a family; the tables hold the useful ones")
            ), phase
    return None, phase


def is_ours(name: str) -> bool:
    """Whether this is a metric of Towpath."""
    return (name in METRICS and not name.endswith(("/", "_"))) or (name.startswith(FAMILIES) and not name.endswith("/"))
