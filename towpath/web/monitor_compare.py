"""The monitor's comparison of runs: curves, recipe diff, final metrics and the reward-KL frontier."""

from dataclasses import asdict
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response

from towpath.run.live_record import LiveRun, LiveStage
from towpath.run.metric_columns import PHASES
from towpath.run.record import TRAINING_STAGES
from towpath.view.live import compare, curves
from towpath.view.live.layout import Line
from towpath.view.report.frontier import best_of_n_curve
from towpath.web import pages
from towpath.web.auth import StatsViewer
from towpath.web.monitor import LAST_STEP, Buckets, CurrentRun, Step, json_response, step_range

router = APIRouter(prefix="/monitor/compare")

Names = Annotated[list[str] | None, Query(max_length=200)]
TrainingStage = Literal["sft", "reward", "policy"]
DEFAULT_METRICS = ("reward", "kl", "loss", "accuracy")


def _selected_runs(request: Request, run: LiveRun, names: list[str]) -> dict[str, LiveRun]:
    """Return the selected runs of the same folder, each read once for all visitors."""
    cache = request.app.state.sibling_runs
    own = run.run.resolve()
    selected = {}
    for name in compare.selected_runs(compare.sibling_runs(run.run), names):
        if name == own.name:
            selected[name] = run
            continue
        selected[name] = cache.setdefault(name, LiveRun(own.parent / name))
        selected[name].refresh()
    return selected


@router.get("")
def compare_page(
    request: Request,
    account: StatsViewer,
    run: CurrentRun,
    runs: Names = None,
    stage: TrainingStage = "policy",
    names: Names = None,
) -> HTMLResponse:
    """Show several runs side by side."""
    selected = _selected_runs(request, run, runs or [])
    metrics = compare.metric_names(selected.values(), stage)
    displayed = [name for name in names or [] if name in metrics]
    displayed = displayed or [name for name in DEFAULT_METRICS if name in metrics] or metrics[:2]
    final = {name: dict(compare.final_numbers(one)) for name, one in selected.items()}
    labels = list(dict.fromkeys(label for numbers in final.values() for label in numbers))
    differences = compare.differences({name: compare.settings(one) for name, one in selected.items()})
    return pages.render_page(
        request,
        "compare.html",
        account,
        listed=compare.sibling_runs(run.run),
        chosen=list(selected),
        stage=stage,
        stages=TRAINING_STAGES,
        known=metrics,
        displayed=displayed,
        differing=compare.by_section(differences),
        results=[(label, [final[name].get(label, "–") for name in selected]) for label in labels],
        most=compare.MAX_RUNS,
    )


@router.get("/curves")
def compare_curves(
    request: Request,
    account: StatsViewer,
    run: CurrentRun,
    stage: TrainingStage,
    names: Names = None,
    runs: Names = None,
    low: Step = 0,
    high: Step = LAST_STEP,
    buckets: Buckets = 240,
    smooth: bool = False,
) -> Response:
    """Return one chart per metric with one line per run."""
    selected = _selected_runs(request, run, runs or [])
    stages = {name: latest for name, one in selected.items() if (latest := _latest_stage(one, stage))}
    charts = []
    tables = []
    for name in names or []:
        lines = []
        for run_name, training in stages.items():
            tone = list(selected).index(run_name)
            for phase in PHASES:
                columns = training.metrics.of_phase(phase)
                if name not in columns.names:
                    continue
                tables.append(columns)
                label = run_name if phase == "train" else f"{run_name}, held out"
                with selected[run_name].lock:
                    lines.append(curves.curve(Line(name, label, phase, tone), columns, low, high, buckets, smooth))
        if lines:
            charts.append({"key": name, "title": name, "form": "number", "log": True, "guides": [], "lines": lines})
    return json_response(request, step_range(tables) | {"groups": [{"title": "", "charts": charts}]})


def _latest_stage(run: LiveRun, kind: str) -> LiveStage | None:
    stages = [training for training in run.stages.values() if training.kind == kind and training.metrics.train.count]
    return stages[-1] if stages else None


@router.get("/frontier")
def frontier(
    request: Request, account: StatsViewer, run: CurrentRun, runs: Names = None, by: Literal["win", "reward"] = "win"
) -> Response:
    """Return KL and gain of every validation, and the best-of-n curve."""
    selected = _selected_runs(request, run, runs or [])
    points = [
        asdict(point) | {"tone": tone}
        for tone, (name, one) in enumerate(selected.items())
        for point in compare.frontier(name, one, by)
    ]
    end = max([1.6, *(1.15 * point["kl"] for point in points)])
    reference = best_of_n_curve(end) if by == "win" else []
    return json_response(request, {"by": by, "runs": list(selected), "points": points, "reference": reference})
