"""The registry of metrics: what each name in metrics.jsonl means, and how the monitor, the terminal, the report, the
doctor and the remedies show and read it.

A stage that writes a new metric adds it to METRICS, and to a chart of CHARTS.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Form = Literal["number", "percent", "seconds", "bytes"]
Direction = Literal[-1, 0, 1]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, or with a name that ends in `/` a family of metrics by domain or source."""

    description: str
    """Meaning and unit."""
    label: str = ""
    """Short name for tables and headlines; empty: the metric's own name."""
    legend: str = ""
    """Name of its line in a chart with several metrics; empty: the label."""
    form: Form = "number"
    direction: Direction = 0
    """1 when higher is better, -1 when lower is better, 0 when neither."""


@dataclass(frozen=True, slots=True)
class ChartSpec:
    """One chart and the metrics that share its scale."""

    group: str
    title: str
    names: tuple[str, ...]
    log: bool = False
    """Whether the vertical axis is logarithmic where values allow it."""
    low: float | None = None
    """Lowest value of the vertical axis, where the metric has one."""
    high: float | None = None


METRICS: dict[str, Metric] = {
    "loss": Metric("the training loss", direction=-1),
    "policy_loss": Metric("the clipped surrogate", "policy loss"),
    "value_loss": Metric("the critic's loss", "value loss", direction=-1),
    "clip_fraction": Metric("share of tokens whose ratio was clipped", "clip fraction", form="percent", direction=-1),
    "ratio": Metric("mean probability ratio of the new policy to the old"),
    "ratio_error": Metric("mean distance of that ratio from 1", legend="mean", direction=-1),
    "first_ratio_error": Metric(
        "the same in the first update of a rollout, where it should be 0", legend="first minibatch", direction=-1
    ),
    "approx_kl": Metric(
        "nats a token between the policy before and after updates",
        "KL of an update, nats per token",
        "to the sampling policy",
        direction=-1,
    ),
    "entropy": Metric("nats a token", "entropy"),
    "kl": Metric("nats per answer to the reference", "KL, nats per prompt", "k1", direction=-1),
    "kl_k3": Metric(
        "nats per answer to the reference, by the k3 estimator", "KL (k3), nats per prompt", "k3", direction=-1
    ),
    "kl_per_token": Metric("nats a token to the reference", "KL, nats per token", "to the tuned model", direction=-1),
    "kl_std": Metric("standard deviation of the KL between answers", "KL, standard deviation"),
    "score": Metric("reward before penalties and bonuses", legend="score without penalties", direction=1),
    "reward": Metric("reward of an answer, without the KL penalty", "reward", direction=1),
    "reward_std": Metric("standard deviation of the reward in a rollout", "reward, standard deviation"),
    "reward_turned": Metric("reward with the weights, penalties and bonuses that interventions set", direction=1),
    "score_spread": Metric("standard deviation between reward models", direction=-1),
    "reward_length_corr": Metric("correlation of an answer's score with its length", legend="length"),
    "reward_repetition_corr": Metric(
        "correlation of an answer's reward with its repetition, penalties included", legend="repetition"
    ),
    "length_worth": Metric("score for one more token: the slope of the score on length"),
    "repetition_worth": Metric("reward for an answer of repetition alone: the slope of the reward on repetition"),
    "length": Metric("tokens of an answer", "length, tokens"),
    "length_estimate": Metric("tokens of an answer, estimated from entropies where no length is logged"),
    "finish_rate": Metric("share of answers that end in EOS", "finish rate", form="percent", direction=1),
    "distinct_1": Metric("share of distinct words", "distinct words", "words", "percent", 1),
    "distinct_2": Metric("share of distinct pairs of words", "distinct pairs", "pairs", "percent", 1),
    "distinct_3": Metric("share of distinct triples of words", "distinct triples", "triples", "percent", 1),
    "repetition": Metric("share of repeated triples within an answer", form="percent", direction=-1),
    "opening": Metric("share of answers with the most common opening", form="percent", direction=-1),
    "refusal": Metric("share of answers that decline", legend="of sampled answers", form="percent"),
    "harmful_refusal": Metric(
        "share of harmful requests that are declined", legend="of harmful prompts", form="percent", direction=1
    ),
    "harmless_refusal": Metric(
        "share of harmless requests that are declined", legend="of harmless prompts", form="percent", direction=-1
    ),
    "probes": Metric("harmful and harmless requests that are sampled to measure refusals"),
    "lists": Metric("share of answers with a list", form="percent"),
    "code": Metric("share of answers with code", form="percent"),
    "prompts_distinct": Metric("share of distinct prompts in a rollout", form="percent", direction=1),
    "sampler_error": Metric(
        "mean difference of log-probabilities between sampler and trainer", legend="sampler", direction=-1
    ),
    "stale_error": Metric(
        "mean difference of log-probabilities between the policy and the earlier one that sampled, with "
        "policy.staleness",
        legend="sampler, one update earlier",
        direction=-1,
    ),
    "explained_variance": Metric("of returns by the critic", direction=1),
    "grad_norm": Metric("before clipping", "gradient norm"),
    "learning_rate": Metric("as scheduled", "learning rate"),
    "learning_rate_scale": Metric("factor on the schedule"),
    "kl_coef": Metric("weight of the KL penalty", "KL coefficient"),
    "temperature": Metric("sampling temperature of the rollouts"),
    "update": Metric("size of an update"),
    "policy_weight": Metric("0 while only the critic learns"),
    "diversity_bonus": Metric("reward for text that other answers do not have, set by interventions"),
    "repetition_penalty": Metric("penalty for repeated text, set by interventions"),
    "zero_std_groups": Metric("share of prompts whose answers all score alike", form="percent"),
    "token_entropy": Metric("nats a token, of the predictions on given answers"),
    "token_accuracy": Metric("share of given tokens that are predicted", form="percent", direction=1),
    "chosen_logp": Metric("log-probability of chosen answers, summed over tokens", direction=1),
    "accuracy": Metric("share of pairs whose chosen answer leads", form="percent", direction=1),
    "gap": Metric("lead of the chosen answer", direction=1),
    "chosen": Metric("log-ratio of chosen answers to the reference"),
    "rejected": Metric("log-ratio of rejected answers to the reference"),
    "log_ratio": Metric("log-ratio of an answer to the reference"),
    "point": Metric("reference point of KTO, nats"),
    "odds": Metric("odds-ratio term of the ORPO loss", direction=-1),
    "nll": Metric("negative log-likelihood of chosen answers, a token", direction=-1),
    "pairs_loss": Metric("loss on held-out pairs", direction=-1),
    "pairs_accuracy": Metric(
        "share of held-out pairs whose chosen answer leads", "accuracy", form="percent", direction=1
    ),
    "pairs_": Metric("the metric on held-out pairs"),
    "seconds_generate": Metric("sampling answers", legend="generate", form="seconds", direction=-1),
    "seconds_score": Metric("scoring them", legend="score", form="seconds", direction=-1),
    "seconds_optimise": Metric("updates", legend="optimise", form="seconds", direction=-1),
    "seconds_sync": Metric(
        "giving the new weights to the engine, part of sampling", legend="weight sync", form="seconds", direction=-1
    ),
    "seconds_watch": Metric("diagnosis by the health monitor", form="seconds", direction=-1),
    "tokens_per_second": Metric("sampling speed", "tokens per second", direction=1),
    "memory_bytes": Metric("peak memory", "memory", form="bytes", direction=-1),
    "collective_bytes": Metric(
        "of tensors that a worker adds up, gathers or broadcasts with the others in a step, such as gradients",
        "bytes of collectives",
        "collectives",
        "bytes",
        -1,
    ),
    "sync_bytes": Metric(
        "of weights that an engine is given in a step", "bytes of weight syncs", "weight sync", "bytes", -1
    ),
    "reward/": Metric("reward by domain", direction=1),
    "domain/": Metric("score by domain, before domain weights", direction=1),
    "score/": Metric("score by reward source", direction=1),
    "watched/": Metric("score of a source that is not rewarded", direction=1),
    "domain_weight/": Metric("weight of a domain, set by interventions"),
}
FAMILIES = tuple(name for name in METRICS if name.endswith("/"))
"""Names that continue with a domain or a source."""

CHARTS: tuple[ChartSpec, ...] = (
    ChartSpec("Reward", "Reward", ("reward", "score")),
    ChartSpec("Reward", "Reward by source", ("score/", "watched/")),
    ChartSpec("Reward", "Reward by domain", ("reward/",)),
    ChartSpec("Reward", "Score by domain", ("domain/",)),
    ChartSpec("Reward", "Standard deviation of rewards", ("reward_std",)),
    ChartSpec(
        "Reward", "Correlation of reward with length and repetition", ("reward_length_corr", "reward_repetition_corr")
    ),
    ChartSpec("KL to the tuned model", "KL, nats per prompt", ("kl", "kl_k3"), log=True, low=0.0),
    ChartSpec("KL to the tuned model", "KL, nats per token", ("kl_per_token", "approx_kl"), log=True),
    ChartSpec("KL to the tuned model", "KL coefficient", ("kl_coef",), log=True, low=0.0),
    ChartSpec("Preference pairs", "Accuracy on pairs", ("accuracy", "pairs_accuracy"), high=1.0),
    ChartSpec("Preference pairs", "Loss on held-out pairs", ("pairs_loss",), log=True),
    ChartSpec("Preference pairs", "Margin of the chosen answer", ("gap", "margin", "chosen", "rejected")),
    ChartSpec("Loss", "Loss", ("loss",), log=True),
    ChartSpec("Loss", "Policy loss", ("policy_loss",)),
    ChartSpec("Loss", "Value loss", ("value_loss",), log=True, low=0.0),
    ChartSpec("Loss", "Explained variance of the critic", ("explained_variance",), high=1.0),
    ChartSpec("Answers", "Length, tokens", ("length",), low=0.0),
    ChartSpec("Answers", "Finish rate: answers that end in EOS", ("finish_rate",), high=1.0),
    ChartSpec("Answers", "Entropy, nats per token", ("entropy",), low=0.0),
    ChartSpec(
        "Answers", "Diversity: distinct words, pairs, triples", ("distinct_1", "distinct_2", "distinct_3"), low=0.0
    ),
    ChartSpec("Answers", "Repetition", ("repetition",), low=0.0),
    ChartSpec("Answers", "Most common opening", ("opening",)),
    ChartSpec("Answers", "Refusals", ("refusal", "harmful_refusal", "harmless_refusal")),
    ChartSpec("Optimisation", "Gradient norm", ("grad_norm",), log=True, low=0.0),
    ChartSpec("Optimisation", "Learning rate", ("learning_rate",), log=True, low=0.0),
    ChartSpec("Optimisation", "Size of an update", ("update",), log=True),
    ChartSpec("Optimisation", "Clip fraction: share of tokens clipped", ("clip_fraction",), low=0.0),
    ChartSpec("Optimisation", "Ratio to the sampling policy", ("ratio",)),
    ChartSpec(
        "Optimisation",
        "Error of the ratio",
        ("ratio_error", "first_ratio_error", "sampler_error", "stale_error"),
        log=True,
    ),
    ChartSpec("Knobs", "Temperature", ("temperature",)),
    ChartSpec("Knobs", "Learning rate scale", ("learning_rate_scale",)),
    ChartSpec("Knobs", "Policy weight", ("policy_weight",)),
    ChartSpec("Knobs", "Domain weights", ("domain_weight/",)),
    ChartSpec("Machine and data", "Tokens per second", ("tokens_per_second",)),
    ChartSpec(
        "Machine and data", "Seconds by phase", ("seconds_generate", "seconds_score", "seconds_optimise"), low=0.0
    ),
    ChartSpec("Machine and data", "Memory", ("memory_bytes",)),
    ChartSpec("Machine and data", "Seconds of weight syncs", ("seconds_sync",), low=0.0),
    ChartSpec("Machine and data", "Bytes moved in a step", ("collective_bytes", "sync_bytes"), log=True),
    ChartSpec("Machine and data", "Distinct prompts in a rollout", ("prompts_distinct",)),
)


def metric(name: str) -> Metric | None:
    """The metric of a name, or of its family; None if it is not documented."""
    if name in METRICS:
        return METRICS[name]
    family = next((family for family in (*FAMILIES, "pairs_") if name.startswith(family)), None)
    return METRICS[family] if family else None


def form(name: str) -> Form:
    """How values of a metric are written."""
    known = metric(name)
    return known.form if known else "number"


def label(name: str) -> str:
    """The short name of a metric."""
    known = METRICS.get(name)
    return known.label if known and known.label else name.replace("_", " ")


def chart_spec(name: str) -> ChartSpec:
    """The chart whose first metric has this name."""
    return next(spec for spec in CHARTS if spec.names[0] == name)


def undocumented(names: Iterable[str]) -> list[str]:
    """Names that the registry does not have."""
    return sorted(name for name in names if name not in ("step", "phase") and metric(name) is None)
