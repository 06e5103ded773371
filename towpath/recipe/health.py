"""`[health]` and `[track]`: monitoring of a run, and experiment trackers."""

from typing import Literal

from towpath.recipe.reader import Section, value


class Limits(Section):
    """Where findings begin."""

    kl_low: float = value(0.05, "KL per prompt below which the policy counts as not moving", "0.02-0.1", ge=0)
    kl_high: float = value(
        1.0, "KL per prompt that warns for short answers; policy.kl.alarm is where it is critical", "1", gt=0
    )
    kl_short_answer: int = value(
        100, "tokens up to which an answer is short: kl_high and policy.kl.alarm apply as they are", "50-200", ge=1
    )
    kl_high_per_token: float = value(
        0.3,
        "KL allowed for each token beyond kl_short_answer; in logs without an alarm, KL per token that warns",
        "0.1-0.5",
        "GRPO is usually at 0.01-0.3 nats per token",
        gt=0,
    )
    clip_fraction: float = value(0.3, "share of clipped tokens", "0.2-0.4", "healthy: 0.02-0.15", gt=0, le=1)
    approx_kl: float = value(
        0.1, "KL per token between the policy before and after the updates of a step", "0.03-0.2", gt=0
    )
    sampler_error: float = value(
        0.1, "mean difference of log-probabilities of sampler and trainer", "0.05-0.2", "bfloat16: 0.01-0.04", gt=0
    )
    diversity: float = value(0.4, "share of distinct bigrams lost since the start", "0.3-0.5", gt=0, lt=1)
    repetition: float = value(0.15, "rise of the share of repeated trigrams in an answer", "0.1-0.2", gt=0, lt=1)
    repetition_correlation: float = value(0.6, "correlation of reward and repetition", "0.4-0.7", gt=0, lt=1)
    length_correlation: float = value(0.6, "correlation of score and length", "0.5-0.8", gt=0, lt=1)
    finish_rate: float = value(0.5, "share of answers that end with EOS; lower warns", "0.5-0.9", gt=0, lt=1)
    explained_variance: float = value(
        -0.5, "explained variance of the critic; a lower one does harm", "-1-0", "an uninformative critic has 0"
    )
    refusal: float = value(0.2, "change of the refusal rate on harmful or harmless prompts", "0.1-0.3", gt=0, lt=1)
    overfit: float = value(0.15, "training accuracy minus held-out accuracy", "0.1-0.2", gt=0, lt=1)
    prompts: float = value(0.9, "share of distinct prompts in a rollout batch; lower warns", "0.8-1", gt=0, le=1)
    z_threshold: float = value(3.0, "rise or fall of a curve, in standard deviations of its own noise", "2.5-4", gt=0)


class Health(Section):
    """Health monitor."""

    act: Literal["off", "advise", "auto"] = value(
        "advise", "off, report findings and remedies, or also apply remedies within bounds", why="see docs/health.md"
    )
    max_interventions: int = value(6, "interventions that auto may make in one stage", "3-10", ge=0)
    probes: int = value(
        8,
        "harmful prompts of the safety set, and as many harmless ones, sampled at each validation; 0 for none",
        "8-32",
        ge=0,
    )
    limits: Limits = value(Limits(), "where findings begin")


class Track(Section):
    """Experiment trackers."""

    tensorboard: bool = value(True, "write TensorBoard event files")
    wandb: bool = value(
        False, "log to Weights & Biases", why="needs towpath[track]; WANDB_MODE = offline keeps logs local"
    )
    mlflow: bool = value(
        False, "log to MLflow", why="needs towpath[track]; to MLFLOW_TRACKING_URI, or a file in the stage's folder"
    )
    trackio: bool = value(False, "log to Trackio", why="needs towpath[track]")
    project: str = value(
        "", "project of Weights & Biases and Trackio, experiment of MLflow; empty for the recipe's name"
    )
    entity: str = value("", "team or user of Weights & Biases; empty for the default of the account")
