"""Training charts of the report, stage by stage."""

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from towpath.metrics import METRICS, chart_spec, form, label
from towpath.run.record import MAX_POINTS, RunRecord, StageRecord
from towpath.store.jsonl import is_number
from towpath.view.charts import Chart, ReferenceLine, Series, draw
from towpath.view.format import number

References = Sequence[ReferenceLine]
MAX_COLOURS = 9
VALIDATION_COLOUR = 1


def sft_charts(run: RunRecord) -> list[Markup]:
    """Loss, gradient norm and learning rate of supervised fine-tuning."""
    stage = run.latest("sft")
    if stage is None:
        return []
    charts = [_chart(stage, "loss", _checkpoint(stage)), _chart(stage, "grad_norm"), _chart(stage, "learning_rate")]
    return _figures(stage, charts)


def reward_charts(run: RunRecord) -> list[Markup]:
    """Loss, accuracy and margin of the reward model."""
    stage = run.latest("reward")
    if stage is None:
        return []
    threshold = run.setting("reward", "gates", "reward", "threshold")
    chance = ReferenceLine("y", 0.5, "chance", side="right")
    gate = ReferenceLine("y", threshold, "gate", "good", side="left")
    checkpoint = _checkpoint(stage)
    charts = [
        _chart(stage, "loss", checkpoint),
        _chart(stage, "accuracy", (chance, gate, *checkpoint)),
        _chart(stage, "gap"),
    ]
    return _figures(stage, charts)


def policy_charts(run: RunRecord) -> list[Markup]:
    """Reward, KL, text, losses and cost of policy optimization."""
    stage = run.latest("policy")
    if stage is None:
        return []
    checkpoint = _checkpoint(stage)
    zero = (ReferenceLine("y", 0.0, "no better than the mean"),)
    speeds = [speed for _, speed in stage.curve("tokens_per_second")]
    speed = f"{number(sum(speeds) / len(speeds))} tokens per second on average." if speeds else ""
    charts = [
        _chart(stage, "reward", checkpoint),
        _chart(stage, "kl", (*_kl_limits(run), *checkpoint)),
        _chart(stage, "kl_coef"),
        _chart(stage, "entropy"),
        _chart(stage, "distinct_1"),
        _chart(stage, "repetition"),
        _chart(stage, "length", checkpoint),
        _chart(stage, "finish_rate", checkpoint),
        _chart(stage, "policy_loss"),
        _chart(stage, "value_loss"),
        _chart(stage, "explained_variance", zero),
        _chart(stage, "clip_fraction"),
        _chart(stage, "grad_norm"),
        _chart(stage, "learning_rate"),
        _chart(stage, "seconds_generate", note=speed, stacked=True),
        _chart(stage, "reward/"),
    ]
    return _figures(stage, charts)


def _kl_limits(run: RunRecord) -> list[ReferenceLine]:
    target = run.setting("policy", "policy", "kl", "target")
    alarm = run.setting("policy", "policy", "kl", "alarm")
    lines = []
    if is_number(target) and target:
        lines.append(ReferenceLine("y", float(target), f"target {number(target)}", "good"))
    if is_number(alarm):
        lines.append(ReferenceLine("y", float(alarm), f"alarm {number(alarm)}", "bad"))
    return lines


def _chart(stage: StageRecord, name: str, references: References = (), note: str = "", stacked: bool = False) -> Chart:
    """The chart whose first metric has this name, with training and, of the first metric, validation."""
    spec = chart_spec(name)
    names = [one for one in spec.names if not one.endswith("/")]
    for family in (one for one in spec.names if one.endswith("/")):
        names += sorted({key for row in stage.metrics for key in row if key.startswith(family)})
    curves = {one: points for one in names if (points := stage.curve(one))}
    alone = len(curves) == 1
    validation = stage.curve(name, "validation")
    colours = [colour for colour in range(MAX_COLOURS) if not (validation and colour == VALIDATION_COLOUR)]
    series = [
        Series(_legend(one, alone), points, "area" if stacked else "line", colours[index % len(colours)])
        for index, (one, points) in enumerate(curves.items())
    ]
    if validation:
        series.append(Series("validation", validation, "dashed", VALIDATION_COLOUR))
    form_ = "percent" if form(spec.names[0]) == "percent" else "number"
    return Chart(spec.title, series, references, form=form_, low=spec.low, high=spec.high, note=note)


def _legend(name: str, alone: bool) -> str:
    if alone:
        return "training"
    if "/" in name:
        return name.partition("/")[2]
    return METRICS[name].legend or label(name) if name in METRICS else label(name)


def _checkpoint(stage: StageRecord) -> tuple[ReferenceLine, ...]:
    """The step of the chosen checkpoint."""
    best = stage.result.get("best_step")
    if not is_number(best) or not stage.metrics:
        return ()
    return (ReferenceLine("x", float(best), f"checkpoint: step {number(best)}", "good"),)


def _figures(stage: StageRecord, charts: Iterable[Chart]) -> list[Markup]:
    steps = sum(row.get("phase") == "train" for row in stage.metrics)
    figures = [figure for figure in map(draw, charts) if figure]
    if steps > MAX_POINTS and figures:
        note = Markup('<p class="note wide">Each point is the mean of up to {} steps.</p>')
        figures.append(note.format(-(-steps // MAX_POINTS)))
    return figures
