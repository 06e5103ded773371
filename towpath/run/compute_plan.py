"""Time of a run's stages on this machine, at speeds that are measured once and cached."""

import hashlib
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from towpath.data.corpus import Corpus
from towpath.data.file_cache import cache_file, read_cache, write_cache
from towpath.errors import RecipeError
from towpath.planning.devices import (
    Device,
    TrainedSize,
    adapter_parameters,
    formula_speed,
    layers_of,
    load_devices,
    parse_devices,
    parse_size,
)
from towpath.planning.estimate import StageTime, stage_times
from towpath.planning.speed import Speed
from towpath.planning.work import Counts, sampled_pairs
from towpath.progress import format_duration
from towpath.recipe import Recipe
from towpath.run.fingerprint import stage_kinds
from towpath.run.sizes import Size, gigabytes, gpu_memory_needed, model_size
from towpath.store import manifest

CACHE = "speed"
SPEED_SECTIONS = ("model", "engine", "cluster")
"""Sections that speeds depend on."""


def measure_compute(recipe: Recipe, run: Path, corpus: Corpus) -> None:
    """Measure the speeds of the recipe's models at the lengths of its data, and cache them."""
    from towpath.stages.speed import count_tokens, measure, read_texts

    texts = read_texts(recipe, run, corpus)
    counts = count_tokens(recipe, corpus, texts)
    path = cache_file(run, CACHE)
    speed = measure(recipe, run, corpus, texts, stage_kinds(recipe))
    entry = {"counts": asdict(counts), "speed": asdict(speed)}
    write_cache(path, read_cache(path) | {_key(recipe): entry})


def plan_compute(recipe: Recipe, run: Path) -> list[StageTime]:
    """The time of each stage at the measured speeds; empty where they were not measured."""
    entry = read_cache(cache_file(run, CACHE)).get(_key(recipe))
    if not isinstance(entry, dict):
        return []
    counts = replace(Counts(**entry["counts"]), answer_tokens=sampled_length(run), pairs=decided_pairs(run))
    # the speeds are those of all workers together
    return stage_times(recipe, counts, stage_kinds(recipe), Speed(**entry["speed"]), "measured")


@dataclass(frozen=True)
class WhatIf:
    """Another machine, or another size of model and task, than the run's own."""

    on: str = ""
    """Such as 8xH100."""
    model_size: str = ""
    pairs: int = 0
    completions: int = 0
    devices: Path | None = None

    def require_on(self) -> None:
        """RecipeError where something is asked of other GPUs, and none are named."""
        sizes = {"--model-size": self.model_size, "--pairs": self.pairs, "--completions": self.completions}
        options = [f"{name} {value}" for name, value in (sizes | {"--devices": self.devices or ""}).items() if value]
        if options and not self.on:
            rule = "another size of model and task is planned by formula, for GPUs that are named"
            raise RecipeError(f"{options[0]} without --on", rule, "add --on, such as --on 8xH100")


@dataclass(frozen=True)
class FormulaPlan:
    """The time of each stage on GPUs that are not here, and what they cost."""

    gpus: int
    device: Device
    parameters: float
    times: list[StageTime]
    dollars: tuple[float, float, float] | None
    price: str
    """Where the price is from."""
    needed: int
    """Bytes of the largest stage on each GPU, besides its passes."""
    divided: bool
    """Whether models must be divided over the GPUs for that."""

    @property
    def fits(self) -> bool:
        """Whether a GPU holds that."""
        return self.needed < self.device.memory


def plan_elsewhere(recipe: Recipe, run: Path, corpus: Corpus, wanted: WhatIf) -> FormulaPlan:
    """The plan by formula, at the lengths of the run's data."""
    from towpath.models import base
    from towpath.stages.speed import count_tokens, read_texts

    counts = count_tokens(recipe, corpus, read_texts(recipe, run, corpus))
    return plan_on(recipe, counts, model_size(Path(base.find(recipe.model.source, run))), wanted)


def plan_on(recipe: Recipe, counts: Counts, size: Size, wanted: WhatIf) -> FormulaPlan:
    """The plan by formula, for a model of this size where none is wanted."""
    from towpath.runtime.sharding import SHARE_OF_GPU

    table = load_devices(wanted.devices)
    gpus, device = parse_devices(wanted.on, table)
    parameters = parse_size(wanted.model_size) if wanted.model_size else float(size.parameters or 0)
    if not parameters:
        raise RecipeError("the size of the model is not known", "time goes with it", "give --model-size, such as 7B")
    recipe, counts = scaled(recipe, counts, wanted)
    layers = layers_of(parameters)
    trained = {}
    for stage in ("sft", "reward", "policy"):
        section = getattr(recipe, stage)
        adapters = adapter_parameters(parameters, layers, section.lora.rank) if section.method == "lora" else 0.0
        trained[stage] = TrainedSize(parameters, adapters)
    speed = formula_speed(device, parameters, layers, parameters, trained, _passes(recipe))
    times = stage_times(recipe, counts, stage_kinds(recipe), speed, "formula", gpus)
    wide = Size(round(parameters), round(adapter_parameters(parameters, layers, 1)))
    alone, divided = (gpu_memory_needed(recipe, wide, parts=parts) for parts in (1, gpus))
    must_divide = alone >= SHARE_OF_GPU * device.memory and gpus > 1
    own = recipe.budget.device_hour
    prices = (own, own, own) if own else device.dollars
    dollars = None
    if prices:
        hours = [sum(getattr(time, name) for time in times) / 3600 for name in ("low", "likely", "high")]
        dollars = (gpus * hours[0] * prices[0], gpus * hours[1] * prices[1], gpus * hours[2] * prices[2])
    price = "budget.device_hour" if own else f"{table.source}, {table.date}" if prices else "no price in the table"
    needed = divided if must_divide else alone
    return FormulaPlan(gpus, device, parameters, times, dollars, price, needed, must_divide)


def _passes(recipe: Recipe) -> dict[str, float]:
    """Passes of each unit of scoring: of a rollout by reference, policy and reward model."""
    by_model = any(source.source == "model" for source in recipe.policy.rewards.sources)
    scorers = recipe.reward.ensemble_size if by_model else 0
    return {"score": 1.0, "reward": 1.0, "reward/frozen": 0.0, "reward/upper": 1.0, "experience": 2.0 + scorers}


def scaled(recipe: Recipe, counts: Counts, wanted: WhatIf) -> tuple[Recipe, Counts]:
    """The recipe with as many pairs and completions as are wanted, and data that has enough prompts."""
    if wanted.pairs:
        each = max(1, sampled_pairs(recipe, 1000)) / 1000
        prompts = math.ceil(wanted.pairs / each)
        preferences = recipe.preferences.model_copy(update={"prompts": prompts})
        recipe = recipe.model_copy(update={"preferences": preferences})
        counts = replace(counts, train=max(counts.train, prompts), pairs=wanted.pairs)
    if wanted.completions:
        steps = math.ceil(wanted.completions / recipe.policy.rollout)
        recipe = recipe.model_copy(update={"policy": recipe.policy.model_copy(update={"steps": steps})})
    return recipe, counts


def formula_lines(plan: FormulaPlan, run: Path) -> list[str]:
    """The plan on other GPUs for a terminal."""
    title = f"on {plan.gpus} × {plan.device.name}, a model of {plan.parameters / 1e9:.3g}B parameters:"
    how = ", models divided over all GPUs" if plan.divided else ""
    fits = f"  memory of a GPU: {gigabytes(plan.needed)} besides passes, of {gigabytes(round(plan.device.memory))}{how}"
    lines = [title, *compute_lines(plan.times, run), fits]
    if not plan.fits:
        lines.append("  it does not fit: use LoRA, more or larger GPUs, or a smaller model; the times are as if it did")
    if plan.dollars:
        low, likely, high = (f"${amount:,.0f}" for amount in plan.dollars)
        return [*lines, f"  GPUs cost {likely} ({low} to {high}): {plan.price}"]
    return [*lines, f"  dollars: {plan.price}; set budget.device_hour"]


def sampled_length(run: Path) -> float | None:
    """Mean tokens of the completions that the newest sample stage has sampled; None before."""
    return _newest_result(run, "sample").get("mean_tokens")


def decided_pairs(run: Path) -> int | None:
    """Comparisons that labels have decided; None before there are labels."""
    return _newest_result(run, "label").get("decided")


def _newest_result(run: Path, stage: str) -> dict[str, Any]:
    files = sorted(run.glob(f"stages/{stage}*/*/manifest.json"), key=lambda path: path.stat().st_mtime)
    return manifest.read(files[-1].parent)["result"] if files else {}


def _key(recipe: Recipe) -> str:
    """What speeds depend on: the sections of models, methods and lengths, and this machine."""
    content = {name: getattr(recipe, name).model_dump(mode="json") for name in SPEED_SECTIONS}
    for stage in ("sft", "reward", "policy"):
        section = getattr(recipe, stage)
        content[stage] = [section.method, section.lora.model_dump(mode="json")]
    content["algo"] = recipe.policy.algo
    content["base"] = [recipe.reward.base, recipe.reward.pretrained]
    content["longest"] = [recipe.policy.max_new_tokens, recipe.preferences.max_new_tokens]
    content["data"] = recipe.data.model_dump(mode="json")
    content["stages"] = stage_kinds(recipe)
    content["machine"] = [platform.node(), platform.machine(), _processor(), os.environ.get("OMP_NUM_THREADS", "")]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _processor() -> str:
    """The model of the processor, as Linux names it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def compute_lines(times: Sequence[StageTime], run: Path) -> list[str]:
    """The plan of computation for a terminal."""
    if not times:
        return [f"time of computation: not measured on this machine yet; `towpath plan {run} --measure` takes a minute"]
    rows = [f"  {'stage':<12}{'low':>14}{'likely':>14}{'high':>14}   per step"]
    for time in times:
        step = f"{time.per_step:.3g} s" if time.per_step is not None else ""
        spans = "".join(f"{format_duration(seconds):>14}" for seconds in (time.low, time.likely, time.high))
        rows.append(f"  {time.stage:<12}{spans}   {step}")
    spans = "".join(
        f"{format_duration(sum(getattr(time, name) for time in times)):>14}" for name in ("low", "likely", "high")
    )
    not_counted = "  not counted: people, AI judges, and rewards by functions, programs and addresses"
    return [f"time of computation, {times[0].source}:", *rows, f"  {'all':<12}{spans}", not_counted]
