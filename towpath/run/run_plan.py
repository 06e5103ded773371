"""The plan of a run: time, people, money, memory and disk of each stage, on this machine or on GPUs that are named."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from towpath.data.data_summary import DataSummary
from towpath.errors import RecipeError
from towpath.models import locate
from towpath.models.pass_memory import ModelShape
from towpath.planning.amounts import NOTHING, Amount, Source, exactly
from towpath.planning.devices import (
    Device,
    Devices,
    adapter_parameters,
    layers_of,
    load_devices,
    parse_devices,
    parse_size,
    processor,
    usual_shape,
)
from towpath.planning.estimate import StageTime, stage_times
from towpath.planning.memory import DeviceLimits, StageMemory, must_divide, stage_memories, with_measured
from towpath.planning.run_plan import RunPlan, StagePlan
from towpath.planning.sizes import Size, disk_by_stage, model_size
from towpath.planning.speed import Measurement
from towpath.planning.work import Counts, answer_length
from towpath.recipe import Recipe
from towpath.run.evaluation_plan import EvaluationPlan
from towpath.run.fingerprint import stage_kinds
from towpath.run.machine_speed import CHARACTERS_PER_TOKEN, counts_of, read_measurement, speed_by_formula
from towpath.run.model_checks import classifier_sizes
from towpath.run.plan import MIN_JUDGEMENTS, LabelPlan, plan_labels
from towpath.run.what_if import WhatIf, scaled
from towpath.run.worker_plan import Placement, limits_of, model_shape, place_workers
from towpath.store.store import Store

CALL_SECONDS = 2.0
"""Of one call of an AI judge, until it is measured."""
WEEK = 7 / 5
"""Days of a week over those that people work."""
SECONDS_KNOWN = 0.15
SECONDS_ASSUMED = 0.6, 2.0
"""How far the seconds that a person takes for a pair may be off: measured, and assumed (36 and 120 instead of 60)."""
DOLLARS_KNOWN, DOLLARS_ASSUMED = 0.1, 0.5
"""The same for the dollars of a judge."""


@dataclass(frozen=True)
class RunModels:
    """The models of a run."""

    model: Size
    reward: Size | None
    """Of the model that the reward model begins with, where it is another."""
    others: int
    """Parameters of other reward models."""
    shape: ModelShape | None


@dataclass(frozen=True)
class Machine:
    """Where the run computes."""

    name: str
    limits: DeviceLimits
    workers: int
    gpus: int
    device: Device | None
    """None where speeds were measured."""
    dollars: tuple[float, float, float] | None
    """Of an hour of all its GPUs."""
    price: tuple[Source, str]
    """Where that is from."""


@dataclass(frozen=True)
class Planned:
    """A plan, and what it was made from."""

    run: RunPlan
    labels: LabelPlan
    recipe: Recipe
    """With the numbers that were asked for."""
    counts: Counts
    placement: Placement | None
    """The workers of this machine; None where other GPUs are planned."""


def plan_run(recipe: Recipe, run: Path, data: DataSummary, store: Store, wanted: WhatIf | None = None) -> Planned:
    """The plan of a run, or of what is wanted instead."""
    wanted = wanted or WhatIf()
    measured = None if wanted.on else read_measurement(recipe, run)
    recipe, counts = scaled(recipe, counts_of(recipe, data, run, measured), wanted)
    models = _models(recipe, run, wanted)
    placement = None if wanted.on else place_workers(recipe, models.model, models.reward, models.others)
    machine = (
        _named_machine(recipe, wanted, models) if placement is None else _this_machine(recipe, placement, measured)
    )
    labels = plan_labels(recipe, run, replace(data, train=max(data.train, counts.train)), store)
    times = _times(recipe, counts, machine, measured, models)
    memories = _memories(recipe, counts, machine.limits, measured, models)
    disk = disk_by_stage(recipe, models.model, models.reward)
    stages = [
        _stage(kind, recipe, machine, times.get(kind), memories.get(kind), disk.get(kind, 0), labels)
        for kind in stage_kinds(recipe)
    ]
    notes = (_lengths(counts, recipe, measured), *_notes(recipe, run, machine, measured, models))
    plan = RunPlan(machine.name, tuple(stages), machine.limits.bytes, machine.limits.share, machine.limits.parts, notes)
    return Planned(plan, labels, recipe, counts, placement)


def _models(recipe: Recipe, run: Path, wanted: WhatIf) -> RunModels:
    if wanted.model_size:
        parameters = parse_size(wanted.model_size)
        sides = adapter_parameters(parameters, layers_of(parameters), 1)
        shape = usual_shape(parameters)
        return RunModels(Size(round(parameters), round(sides), None, shape.vocabulary), None, 0, shape)
    size = model_size(Path(locate.find(recipe.model.source, run)))
    return RunModels(size, *classifier_sizes(recipe, run), shape_of_model(recipe, run))


def shape_of_model(recipe: Recipe, run: Path) -> ModelShape | None:
    """The shape of the recipe's model; None where its configuration has other names for it."""
    return model_shape(Path(locate.find(recipe.model.source, run)))


def memories_here(recipe: Recipe, run: Path, placement: Placement, models: RunModels) -> Mapping[str, StageMemory]:
    """The memory of each stage on this machine, as `towpath check` compares it with what there is."""
    measured = read_measurement(recipe, run)
    return _memories(recipe, measured.counts if measured else None, limits_of(placement), measured, models)


def _this_machine(recipe: Recipe, placement: Placement, measured: Measurement | None) -> Machine:
    limits = limits_of(placement)
    gpus = len(set(placement.devices)) if limits.on_gpu else 0
    hour = recipe.budget.device_hour * max(1, gpus)
    device = None
    name = "this machine"
    if measured is None:
        device = _present_gpu(load_devices()) if limits.on_gpu else processor()
        name = f"this machine, as {device.name}"
    dollars = (hour, hour, hour) if hour else None
    workers = 1 if measured else len(placement.devices)  # measured speeds are those of all workers together
    return Machine(name, limits, workers, gpus, device, dollars, ("recipe", "budget.device_hour"))


def _present_gpu(table: Devices) -> Device:
    """The entry of the table for this machine's GPU."""
    from towpath.runtime.process import describe_gpu, gpu_capacity

    return table.like(describe_gpu() or "", gpu_capacity())


def _named_machine(recipe: Recipe, wanted: WhatIf, models: RunModels) -> Machine:
    if not models.model.parameters:
        raise RecipeError("the size of the model is not known", "time goes with it", "give --model-size, such as 7B")
    table = load_devices(wanted.devices)
    gpus, device = parse_devices(wanted.on, table)
    own = recipe.budget.device_hour
    prices = (own, own, own) if own else device.dollars
    dollars = (gpus * prices[0], gpus * prices[1], gpus * prices[2]) if prices else None
    price: tuple[Source, str] = ("recipe", "budget.device_hour") if own else ("table", f"{table.source}, {table.date}")
    alone = DeviceLimits(True, round(device.memory))
    divides = gpus > 1 and must_divide(recipe, alone, models.model, models.reward, models.others)
    limits = replace(alone, parts=gpus if divides else 1)
    return Machine(f"{gpus} × {device.name}", limits, gpus, gpus, device, dollars, price)


def _times(
    recipe: Recipe, counts: Counts, machine: Machine, measured: Measurement | None, models: RunModels
) -> dict[str, StageTime]:
    kinds = stage_kinds(recipe)
    if measured:
        return {time.stage: time for time in stage_times(recipe, counts, kinds, measured.speed, "measured")}
    assert machine.device
    if not models.model.parameters:
        return {}
    speed = speed_by_formula(recipe, machine.device, float(models.model.parameters))
    source: Source = "formula" if machine.limits.on_gpu else "assumption"
    return {time.stage: time for time in stage_times(recipe, counts, kinds, speed, source, machine.workers)}


def _memories(
    recipe: Recipe, counts: Counts | None, limits: DeviceLimits, measured: Measurement | None, models: RunModels
) -> Mapping[str, StageMemory]:
    sizes = (models.model, models.reward, models.others)
    number_bytes = measured.number_bytes if measured else 0
    memories = stage_memories(
        recipe, limits, models.shape, sizes, stage_kinds(recipe), counts, number_bytes=number_bytes
    )
    return with_measured(memories, measured, models.shape) if measured else memories


def _stage(
    kind: str,
    recipe: Recipe,
    machine: Machine,
    time: StageTime | None,
    memory: StageMemory | None,
    disk: int,
    labels: LabelPlan,
) -> StagePlan:
    computation = NOTHING
    if time:
        basis = f"speeds of {machine.device.name}" if machine.device else "a trial on this machine"
        computation = Amount(time.low, time.likely, time.high, time.source, basis)
    stage = StagePlan(
        kind,
        computation,
        memory=memory,
        disk=exactly(float(disk), "formula", "weights and checkpoints of the parameters") if disk else NOTHING,
        per_step=time.per_step if time else None,
        parts=time.parts if time else None,
    )
    if kind == "label":
        stage = _with_labels(stage, recipe, labels)
    if kind in ("baseline", "evaluate"):
        stage = _with_evaluation(stage, recipe, labels)
    if machine.dollars and computation.high:
        hours = [getattr(computation, name) / 3600 for name in ("low", "likely", "high")]
        low, likely, high = (amount * price for amount, price in zip(hours, machine.dollars, strict=True))
        stage = replace(stage, gpu_dollars=Amount(low, likely, high, *machine.price))
    return stage


def _person_amount(value: float, labels: LabelPlan) -> Amount:
    """What people's seconds decide."""
    if labels.measured >= MIN_JUDGEMENTS:
        low, high = 1 - SECONDS_KNOWN, 1 + SECONDS_KNOWN
        basis = f"{labels.seconds:.0f} s a pair, on {labels.measured:,} judgements"
        return Amount(low * value, value, high * value, "measured", basis)
    low, high = SECONDS_ASSUMED
    basis = f"{labels.seconds:.0f} s a pair; published values are 36 to 480"
    return Amount(low * value, value, high * value, "assumption", basis)


def _judge_dollars(value: float, is_measured: bool) -> Amount:
    spread = DOLLARS_KNOWN if is_measured else DOLLARS_ASSUMED
    source: Source = "measured" if is_measured else "formula"
    basis = "earlier calls" if is_measured else "lengths of prompts and answers at judge.price_in and price_out"
    return Amount((1 - spread) * value, value, (1 + spread) * value, source, basis)


def _judge_seconds(calls: float, concurrency: int) -> Amount:
    likely = calls * CALL_SECONDS / concurrency
    basis = f"{CALL_SECONDS:g} s a call, {concurrency} at a time"
    return Amount(likely / 2, likely, 3 * likely, "assumption", basis)


def waiting_seconds(hours: float, recipe: Recipe) -> float:
    """From the first judgement to the last, where people work some hours on five days a week."""
    budget = recipe.budget
    days = hours / (budget.raters * budget.hours_a_day)
    whole = math.floor(days)
    return whole * WEEK * 86_400 + (days - whole) * budget.hours_a_day * 3600


def _with_people(stage: StagePlan, recipe: Recipe, hours: Amount) -> StagePlan:
    waits = [waiting_seconds(getattr(hours, name), recipe) for name in ("low", "likely", "high")]
    budget = recipe.budget
    basis = f"{hours.basis}; {budget.raters} raters, {budget.hours_a_day:g} hours a day, five days a week"
    waiting = Amount(waits[0], waits[1], waits[2], hours.source, basis)
    dollars = replace(hours.times(budget.wage), basis=f"{hours.basis}; ${budget.wage:g} an hour")
    return replace(stage, people=hours, waiting=waiting, people_dollars=dollars)


def _with_labels(stage: StagePlan, recipe: Recipe, labels: LabelPlan) -> StagePlan:
    if labels.plan.hours:
        stage = _with_people(stage, recipe, _person_amount(labels.plan.hours, labels))
    if recipe.preferences.raters in ("judge", "blend"):
        calls = 2 * recipe.judge.samples * labels.pairs
        dollars = _judge_dollars(labels.plan.judge_dollars, labels.judge_measured)
        stage = replace(stage, judge=_judge_seconds(calls, recipe.judge.concurrency), judge_dollars=dollars)
    return stage


def _with_evaluation(stage: StagePlan, recipe: Recipe, labels: LabelPlan) -> StagePlan:
    """The share of the evaluation's comparisons that this stage judges."""
    plan: EvaluationPlan = labels.evaluation
    before = plan.comparisons - recipe.rounds
    count = before if stage.stage == "baseline" else recipe.rounds
    share = count / plan.comparisons if plan.comparisons else 0.0
    if plan.hours and share:
        most, likely = share * plan.hours, share * plan.likely_hours
        basis = "arenas end early at a win rate of 80 %; at most all pairs"
        seconds = _person_amount(1.0, labels)
        hours = Amount(seconds.low * likely, likely, seconds.high * most, seconds.source, f"{seconds.basis}; {basis}")
        stage = _with_people(stage, recipe, hours)
    if plan.calls and share:
        stage = replace(
            stage,
            judge=_judge_seconds(share * plan.calls, recipe.evaluate.judge.concurrency),
            judge_dollars=_judge_dollars(share * plan.dollars, False),
        )
    return stage


def _lengths(counts: Counts, recipe: Recipe, measured: Measurement | None) -> str:
    """The lengths that times follow from."""
    answer = answer_length(counts, recipe.policy.max_new_tokens)
    if counts.answer_tokens is not None:
        source = "completions that were sampled"
    elif counts.demonstrations:
        source = "demonstrations" if measured else f"demonstrations at {CHARACTERS_PER_TOKEN} characters a token"
    else:
        source = "policy.max_new_tokens"
    return f"prompts of {counts.prompt_tokens:.0f} and answers of {answer:.0f} tokens on average, by {source}"


def _without_price(recipe: Recipe) -> list[str]:
    """The AI judges that the run calls at no price."""
    judges = []
    if recipe.preferences.raters in ("judge", "blend"):
        judges.append(("judge", recipe.judge))
    if recipe.evaluate.judge.base_url:
        judges.append(("evaluate.judge", recipe.evaluate.judge))
    return [name for name, judge in judges if not (judge.price_in or judge.price_out)]


def _notes(
    recipe: Recipe, run: Path, machine: Machine, measured: Measurement | None, models: RunModels
) -> tuple[str, ...]:
    notes = []
    if not models.model.parameters:
        notes.append("time and memory are not planned: the model's files do not say how large it is")
    if measured is None and machine.gpus == 0:
        measure = f"`towpath plan {run} --measure` takes about a minute"
        notes.append(f"speeds are assumed, a factor of three either way: {measure}")
    sources = [source.source for source in recipe.policy.rewards.sources]
    others = [name for name in sources if name.startswith(("http", "command:", "python:"))]
    if others:
        notes.append(f"not counted: the time of {', '.join(others)}")
    notes += [f"not counted: dollars of {name}, whose price_in and price_out are 0" for name in _without_price(recipe)]
    if machine.limits.parts > 1:
        notes.append(f"models are divided over {machine.limits.parts} devices")
    if machine.gpus and not machine.dollars:
        notes.append("dollars of GPUs are not known: set budget.device_hour")
    return tuple(notes)
