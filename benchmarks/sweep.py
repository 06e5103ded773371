"""Sweep from a bad start against hand-tuned settings, random search and rules of thumb, with a known reward.

The start model, the prompts and the reward are those of benchmarks/frontier.py, as a run folder: the start model as the
base, `sft.method = "none"`, a `python:` reward, and a `python:` judge that prefers the higher reward. The recipe of
each seed begins with a learning rate thirty times too high and a KL coefficient that is too small. Each sampler gets
the same number of trials; what they cost in training steps is recorded. Random search, more of whose trials end early,
then gets trials until it has made as many steps as the first sampler (`equal`).

The settings that a sweep chooses are trained again with seeds that it never used; weights of two checkpoints on either
side of the target KL are measured on held-out prompts with 64 answers each and the exact KL, and interpolated. The same
is done for hand-tuned settings (the rate of benchmarks/frontier.py with several coefficients); the best of them at the
target KL is the reference.

python -m benchmarks.sweep [--seeds 0,1,2] [--samplers rules,tpe,random] [--trials 20] [--folder DIR] [--json OUT]

Restartable: run folders are kept in DIR, results in OUT.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import frontier
from towpath import recipe as recipes
from towpath.progress import prepare_libraries
from towpath.recipe.stage_configs import PolicyConfig
from towpath.runtime.launch import launch
from towpath.runtime.process import prepare_process
from towpath.stages import policy
from towpath.stages.job import Job
from towpath.store.location import ledger_location
from towpath.store.publish import replace_file
from towpath.store.store import Store
from towpath.sweep.objective import value_at
from towpath.sweep.preparation import read_plan
from towpath.sweep.record import SweepRecord, read_sweep
from towpath.sweep.run import run_sweep
from towpath.sweep.space import with_settings

STEPS = 40
TARGET = 0.5
GOOD_RATE = 1e-3
MORE = 5
"""Trials that random search gets at a time, until it has made as many steps as another sampler."""
BAD_START = {"policy.learning_rate": 30 * GOOD_RATE, "policy.kl.coef": 0.01}
HAND_TUNED = [
    {"policy.learning_rate": rate, "policy.kl.coef": coef} for rate, coef in ((1e-4, 0.7), (3e-4, 0.4), (3e-4, 0.7))
]
"""The best of a grid of rates 1e-4 and 3e-4 and coefficients 0.4, 0.7 and 1.2 at this number of steps."""
RECIPE = """name = "sweep-benchmark"
seed = {seed}

[model]
source = "{model}"
dtype = "float32"
device = "cpu"

[data]
prompts = "data/prompts.jsonl"
demonstrations = ""
safety = ""
heldout = 0.25

[sft]
method = "none"

[policy]
algo = "grpo"
method = "full"
steps = {steps}
rollout = 128
group = 8
batch = 64
epochs = 1
learning_rate = {rate}
max_new_tokens = 8
validate_every = 4
validation_prompts = 256

[policy.kl]
coef = {coef}
target = 0.0

[policy.rewards]
sources = [{{ source = "python:gold:reward" }}]
eos_penalty = 0.0

[evaluate]
judges = ["python:gold:reward"]
tie_margin = 0.0
max_new_tokens = 8
bootstrap = 300

[sweep]
trials = {trials}
sampler = "{sampler}"
target_kl = {target}
confirm = 3
seeds = 2

[sweep.space]
"policy.learning_rate" = {{ low = 3e-5, high = 6e-2, log = true }}
"policy.kl.coef" = {{ low = 0.01, high = 3.0, log = true }}
"policy.epochs" = {{ choices = [1, 2] }}
"policy.grpo.clip_high" = {{ low = 0.1, high = 0.5 }}
"""
EQUAL = "random, equal steps"
GOLD = """import math

import numpy as np

LETTER_VALUES = np.random.default_rng(7).standard_normal(997)


def reward(prompts, answers):
    return [sum(LETTER_VALUES[ord(sign) % 997] for sign in answer) / math.sqrt(8) for answer in answers]
"""


def start_model(folder: Path) -> str:
    """The start model, trained once."""
    weights = folder / "start" / "sft" / "weights"
    if not (folder / "start.done").exists():
        frontier.train_start_model(folder / "start")
        (folder / "start.done").write_text("")
    return str(weights)


def create(folder: Path, model: str, seed: int, sampler: str, trials: int) -> Path:
    """A run folder with the recipe of a seed and a sampler."""
    run = folder / f"{sampler}-{seed}"
    if run.exists():
        return run
    (run / "data").mkdir(parents=True)
    rows = [{"id": f"p{i}", "prompt": text} for i, text in enumerate(frontier.TRAIN)]
    (run / "data" / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "gold.py").write_text(GOLD)
    text = RECIPE.format(
        seed=seed, model=model, steps=STEPS, trials=trials, sampler=sampler, target=TARGET,
        rate=BAD_START["policy.learning_rate"], coef=BAD_START["policy.kl.coef"],
    )  # fmt: skip
    (run / "recipe.toml").write_text(text)
    return run


def note(line: object) -> None:
    print(line, file=sys.stderr, flush=True)


class Exporter:
    """Exports the policy's weights at every validation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime: Any = None
        self.job: Any = None
        self.points: list[tuple[int, float]] = []

    def launch(self, *arguments: Any, **options: Any) -> Any:
        """The runtime, which is remembered."""
        self.runtime = launch(*arguments, **options)
        return self.runtime

    def on_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Export the weights after a step."""
        if step >= 0:
            self.runtime.export("policy", self.folder / str(step), self.job.chat)
            self.points.append((step, metrics["kl_k3"]))


def train_and_measure(run: Path, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train with these settings and a seed; the win rate on held-out prompts at the target KL, measured exactly."""
    # every step, so that the path near the target is its own and no chord from the start
    recipe = with_settings(recipes.load(run), {**settings, "policy.validate_every": 1})
    recipe = recipe.model_copy(update={"seed": seed})
    with tempfile.TemporaryDirectory() as temporary:
        exporter = Exporter(Path(temporary) / "weights")
        with Store.open(ledger_location(run, "")) as store:
            plan = read_plan(recipes.load(run), run, store)
            inputs = {stage.name: stage.folder for stage in plan.stages if stage.name == "sft"}
            config = PolicyConfig.from_recipe(recipe)
            job = Job(
                config, run, "policy", Path(temporary) / "job", inputs, store, plan.corpus,
                callbacks=(exporter,), launcher=exporter.launch,
            )  # fmt: skip
            exporter.job = job
            policy.run(job)
        start = recipes.load(run).model.source
        path = [measure_weights(exporter.folder / str(step), start, seed) for step in around(exporter.points)]
    kl, win = (np.array([point[name] for point in path]) for name in ("kl", "win_rate"))
    value, reached = value_at(kl, win, TARGET)
    return {"settings": dict(settings), "seed": seed, "value": value, "reached": reached, "path": path}


def around(points: list[tuple[int, float]]) -> list[int]:
    """The steps whose weights are measured: those on either side of the last passage of the target KL, and the last."""
    path = [(-1, 0.0), *points]
    for i in range(len(path) - 1, 0, -1):
        if min(path[i - 1][1], path[i][1]) <= TARGET <= max(path[i - 1][1], path[i][1]):
            first = max(i - 2, 1)
            return [step for step, _ in path[first : i + 2]]
    return [points[-1][0]]


def measure_weights(weights: Path, start: str, seed: int) -> dict[str, float]:
    """KL and win rate on held-out prompts, as benchmarks/frontier.py measures them."""
    prompts = frontier.HELDOUT * frontier.DRAWS
    prompt_ids, answers, texts = frontier.sample(str(weights), prompts, seed, "frontier/policy")
    _, _, before = frontier.sample(start, prompts, seed, "frontier/start")
    nats = frontier.kl(str(weights), start, prompt_ids, answers)
    ours, others = (
        np.array(frontier.gold(prompts, text)).reshape(frontier.DRAWS, len(frontier.HELDOUT))
        for text in (texts, before)
    )
    rate = float(np.where(ours[:, None] == others[None], 0.5, ours[:, None] > others[None]).mean())
    return {"kl": nats, "win_rate": rate}


class Results:
    """A JSON file of results by name, written after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, name: str, make: Any) -> Any:
        """A result, computed if it is not there."""
        if name not in self.rows:
            started = time.monotonic()
            self.rows[name] = make()
            note(f"{name}: {time.monotonic() - started:.0f} s")
            replace_file(self.path, json.dumps(self.rows, indent=1))
        return self.rows[name]


def run_and_read(run: Path, *assignments: str) -> SweepRecord:
    """Run or resume the sweep of a run."""
    run_sweep(
        recipes.load(run, list(assignments)), run, note, assignments, force=True
    )  # prompts are alike, the rate refused
    record = read_sweep(run)
    assert record is not None
    return record


def with_equal_steps(run: Path, trials: int, steps: int) -> dict[str, Any]:
    """The sweep of a run with more trials, until they have made so many steps."""
    while True:
        record = run_and_read(run, f"sweep.trials={trials}", "sweep.confirm=0")
        if sum(t.steps for t in record.trials) >= steps:
            return sweep_result(run, f"sweep.trials={trials}")
        trials += MORE


def sweep_result(run: Path, *assignments: str) -> dict[str, Any]:
    """Run or resume the sweep of a run; what it chose and what it cost."""
    record = run_and_read(run, *assignments)
    assert record.verdict is not None
    winner = record.winner()
    chosen = winner or record.trials[0]
    return {
        "verdict": record.verdict.text,
        "outcome": record.verdict.outcome,
        "trials": len(record.trials),
        "chosen": chosen.number,
        "settings": chosen.settings,
        "values": [t.value.value for t in record.trials],
        "reached": [t.value.reached for t in record.trials],
        "status": [t.status for t in record.trials],
        "steps": sum(t.steps for t in record.trials),
        "confirmation_steps": sum(t.steps for t in record.confirmations),
        "seconds": record.seconds,
    }


def main() -> None:
    """Run everything that is missing and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--samplers", default="rules,tpe,random")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("sweep-benchmark"))
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "sweep.json")
    arguments = parser.parse_args()
    prepare_libraries()
    prepare_process()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    model = start_model(arguments.folder.resolve())
    results = Results(arguments.json)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    samplers = arguments.samplers.split(",")
    for seed in seeds:
        for sampler in samplers:
            run = create(arguments.folder.resolve(), model, seed, sampler, arguments.trials)
            sweep = results.get(f"sweep/{sampler}/{seed}", partial(sweep_result, run))
            measured = partial(train_and_measure, run, sweep["settings"], 100 + seed)
            results.get(f"measured/{sampler}/{seed}", measured)
        if "random" in samplers:
            run = create(arguments.folder.resolve(), model, seed, "random", arguments.trials)
            steps = results.rows[f"sweep/{samplers[0]}/{seed}"]["steps"]
            sweep = results.get(f"sweep/{EQUAL}/{seed}", partial(with_equal_steps, run, arguments.trials, steps))
            results.get(f"measured/{EQUAL}/{seed}", partial(train_and_measure, run, sweep["settings"], 100 + seed))
        run = create(arguments.folder.resolve(), model, seed, samplers[0], arguments.trials)
        for settings in HAND_TUNED:
            name = "/".join(f"{value:g}" for value in settings.values())
            results.get(f"hand/{name}/{seed}", partial(train_and_measure, run, settings, 100 + seed))
    summarise(results.rows, seeds, samplers)


def summarise(rows: Mapping[str, Any], seeds: list[int], samplers: list[str]) -> None:
    """Print the reference, and each sampler's distance from it."""
    hand = {}
    for settings in HAND_TUNED:
        name = "/".join(f"{value:g}" for value in settings.values())
        hand[name] = float(np.mean([rows[f"hand/{name}/{seed}"]["value"] for seed in seeds]))
    best = max(hand, key=lambda name: hand[name])
    print(f"hand-tuned at KL {TARGET}: {hand[best]:.1%} with rate/coefficient {best} (mean of {len(seeds)} seeds)")
    for sampler in (*samplers, *([EQUAL] if "random" in samplers else [])):
        for seed in seeds:
            sweep = rows[f"sweep/{sampler}/{seed}"]
            value = rows[f"measured/{sampler}/{seed}"]["value"]
            same_seed = max(rows[f"hand/{name}/{seed}"]["value"] for name in hand)
            print(
                f"{sampler} seed {seed}, {sweep['trials']} trials: "
                f"chosen {value:.1%} ({100 * (value - hand[best]):+.1f} points of the best "
                f"hand-tuned on average, {100 * (value - same_seed):+.1f} of the best with this seed); "
                f"{sweep['steps']} steps and {sweep['confirmation_steps']} of confirmation, {sweep['seconds']:.0f} s; "
                f"{sweep['outcome']}"
            )


if __name__ == "__main__":
    main()
