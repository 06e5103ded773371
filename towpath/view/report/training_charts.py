"""The curves of training, stage by stage."""

from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from towpath.run.record import MAX_POINTS, RunRecord, StageRecord
from towpath.store.jsonl import is_number
from towpath.view.charts import Chart, Mark, Series, draw
from towpath.view.format import number

Drawn = list[Markup]


def sft(run: RunRecord) -> Drawn:
    """Loss, gradient norm and rate of supervised fine-tuning."""
    stage = run.latest("sft")
    if stage is None:
        return []
    kept = _kept(stage)
    loss = Chart("Loss, nats per token", _both(stage, "loss"), kept)
    return _drawn(stage, [loss, _norm(stage), _rate(stage)])


def reward(run: RunRecord) -> Drawn:
    """Loss, accuracy and gap of the reward model."""
    stage = run.latest("reward")
    if stage is None:
        return []
    chance = Mark("y", 0.5, "chance", side="right")
    gate = Mark("y", run.setting("reward", "gates", "reward", "threshold"), "gate", "good", side="left")
    charts = [
        Chart("Loss of the pairwise model, nats", _both(stage, "loss"), _kept(stage)),
        Chart(
            "Accuracy in training", _both(stage, "accuracy"), (chance, gate, *_kept(stage)), form="percent", high=1.0
        ),
        Chart("Gap between the chosen and the other", _both(stage, "gap")),
    ]
    return _drawn(stage, charts)


def policy(run: RunRecord) -> Drawn:
    """Everything worth watching of policy optimization."""
    stage = run.latest("policy")
    if stage is None:
        return []
    kept = _kept(stage)
    return _drawn(stage, [*_outcome(run, stage, kept), *_text(stage, kept), *_mechanics(stage), *_cost(stage)])


def _outcome(run: RunRecord, stage: StageRecord, kept: tuple[Mark, ...]) -> list[Chart]:
    target, alarm = (run.setting("policy", "policy", "kl", key) for key in ("target", "alarm"))
    marks = [Mark("y", float(target), f"target {number(target)}", "good")] if is_number(target) and target else []
    marks += [Mark("y", float(alarm), f"alarm {number(alarm)}", "bad")] if is_number(alarm) else []
    kl = (*_one(stage, "kl", "k1", 0), *_one(stage, "kl_k3", "k3", 2), *_validation(stage, "kl"))
    return [
        Chart("Reward", (*_both(stage, "reward"), *_one(stage, "score", "score alone", 2)), kept),
        Chart("KL to SFT, nats per prompt", kl, (*marks, *kept), low=0.0),
        Chart("KL coefficient", _one(stage, "kl_coef", "coefficient", 0), low=0.0),
    ]


def _text(stage: StageRecord, kept: tuple[Mark, ...]) -> list[Chart]:
    shares = (("distinct_1", "different words", 0), ("distinct_2", "different pairs", 2), ("repetition", "repeated", 3))
    diversity = [line for key, name, colour in shares for line in _one(stage, key, name, colour)]
    return [
        Chart("Entropy, nats per token", _one(stage, "entropy", "entropy", 0), low=0.0),
        Chart("Diversity of the answers", diversity, form="percent", low=0.0),
        Chart("Length, tokens", _both(stage, "length"), kept, low=0.0),
        Chart("Answers that end by themselves", _both(stage, "finish_rate"), kept, form="percent", high=1.0),
    ]


def _mechanics(stage: StageRecord) -> list[Chart]:
    return [
        Chart("Policy loss", _one(stage, "policy_loss", "policy loss", 0)),
        Chart("Value loss", _one(stage, "value_loss", "value loss", 0), low=0.0),
        Chart(
            "Explained variance of the critic",
            _one(stage, "explained_variance", "explained", 0),
            (Mark("y", 0.0, "no better than the mean"),),
            high=1.0,
        ),
        Chart("Updates that were clipped", _one(stage, "clip_fraction", "clipped", 0), form="percent", low=0.0),
        _norm(stage),
        _rate(stage),
    ]


def _cost(stage: StageRecord) -> list[Chart]:
    phases = (("seconds_generate", "generate", 0), ("seconds_score", "score", 2), ("seconds_optimise", "optimise", 1))
    layers = [Series(name, stage.curve(key), "area", colour) for key, name, colour in phases]
    rates = [rate for _, rate in stage.curve("tokens_per_second")]
    note = f"{number(sum(rates) / len(rates))} tokens per second on average." if rates else ""
    return [Chart("Seconds by phase", layers, low=0.0, note=note), Chart("Reward by domain", _domains(stage))]


def _domains(stage: StageRecord) -> list[Series]:
    keys = sorted({key for row in stage.metrics for key in row if key.startswith("reward/")})
    return [Series(key.removeprefix("reward/"), stage.curve(key), colour=place % 9) for place, key in enumerate(keys)]


def _both(stage: StageRecord, key: str) -> tuple[Series, ...]:
    return (*_one(stage, key, "training", 0), *_validation(stage, key))


def _one(stage: StageRecord, key: str, name: str, colour: int) -> tuple[Series, ...]:
    points = stage.curve(key)
    return (Series(name, points, colour=colour),) if points else ()


def _validation(stage: StageRecord, key: str) -> tuple[Series, ...]:
    points = stage.curve(key, "validation")
    return (Series("validation", points, "dashed", 1),) if points else ()


def _norm(stage: StageRecord) -> Chart:
    return Chart("Gradient norm", _one(stage, "grad_norm", "gradient norm", 0), low=0.0)


def _rate(stage: StageRecord) -> Chart:
    return Chart("Learning rate", _one(stage, "learning_rate", "learning rate", 0), low=0.0)


def _kept(stage: StageRecord) -> tuple[Mark, ...]:
    """The checkpoint that was kept, where there was one to choose."""
    best: Any = stage.result.get("best_step")
    return (Mark("x", float(best), f"kept: step {number(best)}", "good"),) if is_number(best) and stage.metrics else ()


def _drawn(stage: StageRecord, charts: Iterable[Chart]) -> Drawn:
    steps = sum(row.get("phase") == "train" for row in stage.metrics)
    drawn = [figure for figure in map(draw, charts) if figure]
    if steps > MAX_POINTS and drawn:
        drawn.append(
            Markup('<p class="note wide">Each point is the mean of up to {} steps.</p>').format(-(-steps // MAX_POINTS))
        )
    return drawn
