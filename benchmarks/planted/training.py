"""One planted training from labels to policy, and the policy's win rate by the gold reward."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.planted import world
from benchmarks.planted.faults import Labels, Planted
from towpath.data.chat import Chat
from towpath.data.corpus import Corpus
from towpath.data.draws import generator, uniforms
from towpath.data.intervals import accuracy_ceiling
from towpath.errors import TrainingError
from towpath.feedback import agreement
from towpath.health.monitor import stage_facts
from towpath.models import base
from towpath.recipe import Decoding, Recipe
from towpath.recipe.stage_configs import PolicyConfig, RewardConfig
from towpath.records import Comparison, Completion, Judgement, Label, Prompt, as_row
from towpath.rewards import sources
from towpath.rollout.engine import SampleOutput, SampleRequest
from towpath.rollout.local import LocalEngine
from towpath.stages import policy, reward
from towpath.stages.job import Job
from towpath.store.store import Store

DRAWS = 4


def trained(
    planted: Planted, seed: int, folder: Path, cache: Path, act: str = "off", more: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Train a run into its folder; return its facts and its win rate over the start model by the gold reward."""
    start = world.taught(planted.size, cache)
    prompts = planted.prompts(world.prompts())
    corpus = Corpus(prompts, safety=world.safety())
    reward_settings = (
        []
        if planted.reward is None
        else [f"policy.rewards.sources=[{{source = '{sources.register_function(planted.reward)}'}}]"]
    )
    watch = (
        [] if planted.watched is None else [f"policy.rewards.watch=['{sources.register_function(planted.watched)}']"]
    )
    recipe = world.settings(
        start.weights, seed, [*planted.settings, *reward_settings, *watch, f"health.act='{act}'", *more]
    )
    inputs = {"sft": start.folder}
    folder.mkdir(parents=True, exist_ok=True)
    with Store.open(folder / "towpath.db") as store:
        if planted.labels:
            inputs |= _labelled(planted.labels, recipe, start, prompts, folder, store)
            inputs["reward"] = _rewarded(recipe, inputs, folder, store, corpus)
        needed = (
            inputs
            if recipe.policy.algo == "dpo"
            else {name: inputs[name] for name in ("sft", "reward") if name in inputs}
        )
        config = PolicyConfig.from_recipe(recipe)
        job = Job(config, folder, "policy", folder / "policy", needed, store, corpus, checkpoint_seconds=1e9)
        ended = ""
        with planted.inject():
            try:
                policy.run(job)
            except TrainingError as error:
                ended = str(error)
    facts = stage_facts(job.config, job.name, job.inputs)
    facts = {name: value for name, value in facts.items() if isinstance(value, int | float | str | dict)}
    won = [] if ended else wins(str(job.folder / "weights"), start.weights, prompts, seed)
    rate = float(np.mean(won)) if won else None
    return {
        "facts": facts | {"steps": recipe.policy.steps},
        "ended": ended,
        "win_rate": rate,
        "wins": [round(x, 4) for x in won],
    }


def _labelled(
    labels: Labels, recipe: Recipe, start: world.Start, prompts: tuple[Prompt, ...], folder: Path, store: Store
) -> dict[str, Path]:
    """Write pairs of the start model's answers with labels by gold or by length, a share of them flipped."""
    stage_folder = folder / "labels"
    draws = generator(recipe.seed, "planted/labels")
    stage_folder.mkdir(exist_ok=True)
    chosen = [prompts[i % len(prompts)] for i in range(labels.pairs)]
    sampled = [answers(start.weights, chosen, recipe.seed, f"planted/{side}") for side in "ab"]
    store.add_prompts(list(prompts))
    comparisons = []
    completions = []
    choices = []
    judgements = []
    for i, p in enumerate(chosen):
        (one, text), (two, other) = sampled[0][i], sampled[1][i]
        if text == other or not text or not other:
            continue
        value = [len(text), len(other)] if labels.longer else world.gold([p.prompt] * 2, [text, other])
        if value[0] == value[1]:
            continue
        for side, answer, answer_text in (("a", one, text), ("b", two, other)):
            completions.append(
                Completion(
                    f"{i}{side}",
                    p.id,
                    "sft",
                    answer_text,
                    tuple(answer.token_ids),
                    tuple(answer.logprobs),
                    answer.finish,
                )
            )
        comparisons.append(Comparison(f"c{i}", p.id, f"{i}a", f"{i}b"))
        for rater in ("one", "two")[: 1 + (i % 5 == 0)]:  # every fifth pair has two judgements
            wrong = draws.random() < labels.noise
            choice = "a" if (value[0] > value[1]) != wrong else "b"
            judgements.append(Judgement(f"{rater}{i}", f"c{i}", rater, "person", choice))
            if rater == "one":
                choices.append(Label(f"c{i}", choice, 1.0, 1))
    store.add_completions(completions)
    store.add_comparisons(comparisons)
    (stage_folder / "labels.json").write_text(json.dumps([as_row(label) for label in choices]))
    rate, n = agreement.pairwise_agreement(judgements)
    result = {"agreement": {"rate": rate, "n": n}, "ceiling": accuracy_ceiling(rate)}
    (stage_folder / "manifest.json").write_text(json.dumps({"result": result}))
    return {"sample": stage_folder, "label": stage_folder}


def _rewarded(recipe: Recipe, inputs: dict[str, Path], folder: Path, store: Store, corpus: Corpus) -> Path:
    stage_folder = folder / "reward"
    stage_folder.mkdir(exist_ok=True)
    config = RewardConfig.from_recipe(recipe)
    job = Job(config, folder, "reward", stage_folder, inputs, store, corpus, checkpoint_seconds=1e9)
    result = reward.run(job)
    (stage_folder / "manifest.json").write_text(
        json.dumps({"result": result, "findings": [asdict(f) for f in job.findings]})
    )
    return stage_folder


def answers(model: str, prompts: list[Prompt], seed: int, stream: str) -> list[tuple[SampleOutput, str]]:
    """One completion per prompt at temperature 1."""
    chat = Chat(base.load_tokenizer(model))
    how = Decoding()
    engine = LocalEngine(base.load(model, torch.float32, "grouped"), chat.stops, chat.pad)
    completions = engine.generate(
        [
            SampleRequest(chat.prompt(p.prompt), how, uniforms(world.TOKENS, seed, stream, str(i)))
            for i, p in enumerate(prompts)
        ]
    )
    return [(d, chat.text(d.token_ids)) for d in completions]


def wins(model: str, start: str, prompts: tuple[Prompt, ...], seed: int) -> list[float]:
    """The win rate per prompt over the start model by gold plus 1 for an ended answer, over all pairs of answers."""
    rows = [p for p in prompts for _ in range(DRAWS)]
    ours, theirs = (
        np.array(
            [
                g - (d.finish != "stop")
                for g, (d, _) in zip(
                    world.gold([p.prompt for p in rows], [t for _, t in sampled]), sampled, strict=True
                )
            ]
        )
        for sampled in (answers(m, rows, seed, "planted/win") for m in (model, start))
    )
    a = ours.reshape(-1, DRAWS, 1)
    b = theirs.reshape(-1, 1, DRAWS)
    return np.where(a == b, 0.5, a > b).mean((1, 2)).tolist()
