"""Speeds and memory of this machine for a recipe: measured once and cached, or by formula from a table of devices."""

import hashlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from towpath.data.corpus import Corpus
from towpath.data.data_summary import DataSummary
from towpath.data.file_cache import cache_file, read_cache, write_cache
from towpath.planning.devices import Device, TrainedSize, adapter_parameters, formula_speed, layers_of
from towpath.planning.speed import Measurement, Speed
from towpath.planning.work import Counts
from towpath.recipe import Recipe
from towpath.run.fingerprint import stage_kinds
from towpath.store import manifest

CACHE = "speed"
SPEED_SECTIONS = ("model", "engine", "cluster")
"""Sections that speeds depend on."""
COMPARED = ("prompts", "completions", "base_share")
"""Keys of `preferences` that decide how many comparisons are sampled."""
CHARACTERS_PER_TOKEN = 4
TEMPLATE_TOKENS = 12
"""That a chat template adds to a prompt."""


def measure_machine(recipe: Recipe, run: Path, corpus: Corpus, say: Callable[[str], None]) -> None:
    """Measure speeds and memory of the recipe's models at the lengths of its data, and cache them; `say` is called
    with the name of each part before it begins."""
    from towpath.stages.speed import measure

    measured = measure(recipe, run, corpus, stage_kinds(recipe), say)
    path = cache_file(run, CACHE)
    write_cache(path, read_cache(path) | {_key(recipe): asdict(measured)})


def read_measurement(recipe: Recipe, run: Path) -> Measurement | None:
    """What was measured here for this recipe's models, methods and lengths."""
    entry = read_cache(cache_file(run, CACHE)).get(_key(recipe)) or {}
    try:
        parts = {"counts": Counts(**entry["counts"]), "speed": Speed(**entry["speed"])}
        return Measurement(**entry | parts)
    except (KeyError, TypeError):
        return None


def counts_of(recipe: Recipe, data: DataSummary, run: Path, measured: Measurement | None) -> Counts:
    """What a plan needs to know of the data: tokens as measured, else by their characters; and what finished stages
    say of answers and labels."""
    known = known_counts(recipe, run)
    rows = {name: getattr(data, name) for name in ("train", "heldout", "safety", "harmful", "demonstrations")}
    if measured:
        return replace(measured.counts, **rows, **known)
    prompt = TEMPLATE_TOKENS + _mean_tokens(data.prompt_lengths)
    demonstration = TEMPLATE_TOKENS + _mean_tokens(data.demonstration_lengths) if data.demonstrations else 0.0
    return Counts(**rows, prompt_tokens=prompt, demonstration_tokens=demonstration, **known)


def _mean_tokens(characters: tuple[int, ...]) -> float:
    return sum(characters) / len(characters) / CHARACTERS_PER_TOKEN if characters else 0.0


def speed_by_formula(recipe: Recipe, device: Device, parameters: float) -> Speed:
    """Speeds of one device for a model of so many parameters, which is the reward model's size, too."""
    layers = layers_of(parameters)
    trained = {}
    for stage in ("sft", "reward", "policy"):
        section = getattr(recipe, stage)
        adapters = adapter_parameters(parameters, layers, section.lora.rank) if section.method == "lora" else 0.0
        trained[stage] = TrainedSize(parameters, adapters)
    by_model = any(source.source == "model" for source in recipe.policy.rewards.sources)
    # a rollout is scored by reference, policy and reward model
    passes = 2.0 + (recipe.reward.ensemble_size if by_model else 0)
    passes_of = {"score": 1.0, "reward": 1.0, "reward/frozen": 0.0, "reward/upper": 1.0, "experience": passes}
    has_server = recipe.engine.type != "local"
    return formula_speed(device, parameters, layers, parameters, trained, passes_of, has_server)


def known_counts(recipe: Recipe, run: Path) -> dict[str, Any]:
    """What finished stages say of answers and labels. Labels of as many comparisons as the recipe samples are counted;
    of another number of them, the share that is decided is known."""
    known: dict[str, Any] = {"answer_tokens": sampled_length(run)}
    record = _newest_record(run, "label")
    if record is None:
        return known
    labels = record["result"]
    now = recipe.preferences.model_dump(mode="json")
    before = record["recipe"]["preferences"]
    is_recorded = now["raters"] == "recorded"
    if is_recorded != (before["raters"] == "recorded"):
        return known
    if is_recorded or all(now[key] == before[key] for key in COMPARED):
        return known | {"pairs": labels["decided"], "pair_answers": labels.get("decided_answers")}
    return known | {"decided": labels["decided"] / labels["comparisons"]}


def sampled_length(run: Path) -> float | None:
    """Mean tokens of the completions that the newest sample stage has sampled, or of the tuned model's answers in the
    baseline stage; None before."""
    records = (_newest_record(run, stage) for stage in ("sample", "baseline"))
    lengths = (record["result"].get("mean_tokens") for record in records if record)
    return next((length for length in lengths if length), None)


def _newest_record(run: Path, stage: str) -> dict[str, Any] | None:
    files = sorted(run.glob(f"stages/{stage}*/*/manifest.json"), key=lambda path: path.stat().st_mtime)
    return manifest.read(files[-1].parent) if files else None


def _key(recipe: Recipe) -> str:
    """What speeds depend on: the sections of models, methods and lengths, and this machine."""
    content = {name: getattr(recipe, name).model_dump(mode="json") for name in SPEED_SECTIONS}
    for stage in ("sft", "reward", "policy"):
        section = getattr(recipe, stage)
        content[stage] = [section.method, section.lora.model_dump(mode="json")]
    content["algo"] = recipe.policy.algo
    content["base"] = [recipe.reward.base, recipe.reward.pretrained]
    sampled = recipe.preferences, recipe.policy, recipe.evaluate
    content["longest"] = [section.max_new_tokens for section in sampled]
    content["data"] = recipe.data.model_dump(mode="json")
    content["stages"] = stage_kinds(recipe)
    content["machine"] = [platform.node(), platform.machine(), _processor(), os.environ.get("OMP_NUM_THREADS", "")]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _processor() -> str:
    """The model of the processor, as Linux names it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
