"""`[sweep]`: search for the hyper-parameters of the policy stage."""

from typing import Any, Literal

from towpath.recipe.reader import Section, value


class Sweep(Section):
    """Hyper-parameter search of the policy stage at equal KL."""

    space: dict[str, Any] = value(
        {},
        "range of each key: `{ low, high, log, step }` or `{ choices }`; empty for the usual ranges of the algorithm",
        why="see docs/sweep.md",
    )
    trials: int = value(20, "trials, the recipe's own settings among them", "10-50", ge=2)
    sampler: Literal["rules", "tpe", "random"] = value(
        "rules",
        "how settings of a trial are chosen: rules on the findings and the KL of the trial before, a model of earlier "
        "trials, or at random",
    )
    objective: Literal["win_rate", "area"] = value(
        "win_rate",
        "win rate over the SFT model at `target_kl`, or the mean win rate over all KL up to it",
        why="at equal KL, so that a trial is not preferred for having drifted further",
    )
    target_kl: float = value(
        0.0, "KL per prompt in nats at which trials are compared; 0 for `policy.kl.target`, or 0.5", "0.1-1.0", ge=0
    )
    confirm: int = value(
        3, "best trials that are trained again with other seeds before a winner is named; 0 for none", "2-4", ge=0
    )
    seeds: int = value(
        2,
        "new seeds of the confirmation, for each of those trials and for the recipe's own settings",
        "2-5",
        "the best of many trials is partly luck, which other seeds show",
        ge=1,
    )
    min_length_controlled: float = value(
        0.0, "smallest length-controlled win rate of a winner; 0 for no limit", "0.5", ge=0, lt=1
    )
    max_safety_rise: float = value(
        1.0,
        "largest rise of harmful compliance or over-refusal of a winner over the SFT model, on the safety probes",
        "0.05-0.2",
        "as many prompts as health.probes measure it",
        ge=0,
        le=1,
    )
    pruning: Literal["all", "findings", "off"] = value(
        "all",
        "what ends a trial early: critical findings of the health monitor; all: also a value below the median of other "
        "trials at equal KL, after a quarter and a half of the steps",
    )
    processes: int = value(
        1, "trials at once on this machine, each with its share of the cores, or a GPU each", "1-8", ge=1
    )
    storage: str = value(
        "",
        "postgresql+psycopg://… where several machines share the sweep, also as env:NAME or file:PATH; empty for a "
        "file in the run folder",
    )
    patience: float = value(
        120.0, "seconds without a sign of life after which another machine takes over a trial", "60-600", gt=0
    )
