"""Win rate against KL of every algorithm with a known gold reward, compared with best-of-n.

The start model is a small byte-level model, fine-tuned on the quickstart demonstrations. The reward is a fixed value
per character of an answer: known, without noise and without ties. Every algorithm samples the same number of
completions; DPO gets as many from the start model, as pairs labelled by the same reward. A win is a higher reward than
the start model's answer to the same held-out prompt; all answers of both are compared.

`optimum` is the start distribution tilted by the reward, the upper bound of every algorithm with that KL penalty; it
is estimated by reweighting answers of the start model.

`trl-ppo` and `trl-grpo` are TRL's PPO and GRPO in the environments that `make bench` makes, with the same start,
prompts, reward, rollouts, epochs, minibatches, strengths and learning rate (`-slow`: 0.3 times the rate).

python -m benchmarks.frontier [--algorithms ppo,grpo,rloo,dpo] [--seeds 0,1,2] [--steps 360] [--epochs N]
[--processes 2] [--json OUT] [--svg OUT]
"""

import argparse
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import towpath as tp
from benchmarks.run import HERE, python_of
from towpath.data import corpus_reader
from towpath.data.batch import Batch, make_row, pack
from towpath.data.chat import Chat
from towpath.data.draws import uniforms
from towpath.models import base, lm
from towpath.models.packed_batch import PackedBatch
from towpath.recipe import Decoding, load
from towpath.recipe.stage_configs import SftConfig
from towpath.rollout.engine import SampleOutput, SampleRequest
from towpath.rollout.local import LocalEngine
from towpath.run.new_run import create_run
from towpath.runtime.process import prepare_process
from towpath.stages import sft
from towpath.stages.job import Job
from towpath.store.store import Store
from towpath.view.report.frontier import best_of_n

TOKENS = 8
ROLLOUT = 128
GROUP = 8
DRAWS = 64
TILTED = 384
LETTER_VALUES = np.random.default_rng(7).standard_normal(997)
PROMPTS = [
    f"{ask} the number {i}{end}"
    for i in range(176)
    for ask, end in (("Tell me something about", "."), ("What do you think of", "?"), ("Why is", " odd?"))
]
TRAIN = PROMPTS[:400]
HELDOUT = PROMPTS[400:]
STRENGTHS = {
    "optimum": (0.5, 0.7, 1.2),
    "ppo": (0.5, 0.7, 1.2),
    "grpo": (0.5, 0.7, 1.2),
    "rloo": (0.5, 0.7, 1.2),
    "dpo": (1.0, 2.0, 4.0),
}
PEERS = {f"trl-{algo}{rate}": STRENGTHS[algo] for algo in ("ppo", "grpo") for rate in ("", "-slow")}
"""KL coefficients (beta of DPO), the strongest last."""
EPOCHS = {"ppo": 2, "grpo": 1, "rloo": 1, "dpo": 2}
"""Default epochs over a rollout, or over DPO's pairs."""


def algorithm_of(name: str) -> str:
    """The algorithm without the name of its implementation."""
    return name.split("-")[1] if name in PEERS else name


def gold(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """The gold reward: the sum of the values of an answer's characters, scaled to about unit variance."""
    return [
        sum(LETTER_VALUES[ord(sign) % len(LETTER_VALUES)] for sign in answer) / math.sqrt(TOKENS) for answer in answers
    ]


def train_start_model(folder: Path) -> str:
    """The weights of the start model: the tiny model after a minute of supervised fine-tuning, with about the entropy
    per token of a language model."""
    create_run(folder, "quickstart")
    settings = [
        "model.source=tiny",
        "model.dtype=float32",
        "sft.method=full",
        "sft.learning_rate=3e-3",
        "sft.epochs=6",
        "sft.patience=99",
    ]
    recipe = load(folder, settings)
    job = Job(
        SftConfig.from_recipe(recipe),
        folder,
        "sft",
        folder / "sft",
        {},
        Store.open(folder / "towpath.db"),
        corpus_reader.read_corpus(folder, recipe.data, recipe.seed),
    )
    result = sft.run(job)
    print(f"start model: {result['validation_loss']:.2f} nats per token on held-out demonstrations", file=sys.stderr)
    return str(job.folder / "weights")


def digest(weights: Path) -> str:
    """Hash of the start model: points of different start models, as of machines that round differently, must not be
    mixed."""
    return hashlib.sha256((weights / "model.safetensors").read_bytes()).hexdigest()[:16]


def sample(
    folder: str, prompts: Sequence[str], seed: int, stream: str
) -> tuple[list[list[int]], list[SampleOutput], list[str]]:
    """Prompt tokens, completions at temperature 1, and their texts."""
    chat = Chat(base.load_tokenizer(folder))
    engine = LocalEngine(base.load(folder, torch.float32, "grouped"), chat.stops, chat.pad)
    how = Decoding()
    prompt_ids = [(chat.prompt(prompt), i) for i, prompt in enumerate(prompts)]
    outputs = engine.generate(
        [SampleRequest(ids, how, uniforms(TOKENS, seed, stream, str(i))) for ids, i in prompt_ids]
    )
    return [ids for ids, _ in prompt_ids], outputs, [chat.text(answer.token_ids) for answer in outputs]


@torch.no_grad()
def kl(policy: str, start: str, prompt_ids: Sequence[list[int]], answers: Sequence[SampleOutput]) -> float:
    """KL to the start model in nats per prompt, on the policy's answers, with the exact KL of the two distributions at
    every token; its variance is less than half of that of sampled log-ratios."""
    models = [base.load(folder, torch.float32, "grouped") for folder in (policy, start)]
    batch = Batch([make_row(ids, answer.token_ids) for ids, answer in zip(prompt_ids, answers, strict=True)])
    total = 0.0
    for part in batch.micro_batches(4096):
        packed = pack(part.rows, 0)
        lines = PackedBatch(
            *map(torch.from_numpy, (packed.ids_PL, packed.position_PL, packed.segment_PL, packed.parent_PL))
        )
        read_N = torch.from_numpy(
            np.concatenate(
                [positions[r.start - 1 : -1] for positions, r in zip(packed.token_positions, part.rows, strict=True)]
            )
        )
        ours, theirs = (
            (lm.hidden(model, lines, read_N) @ model.get_output_embeddings().weight.T).log_softmax(-1)
            for model in models
        )
        total += float((ours.exp() * (ours - theirs)).sum())
    return total / len(batch)


def train_with_trl(start: str, name: str, strength: float, steps: int, epochs: int, seed: int, folder: Path) -> str:
    """Train with TRL in its own environment; `-slow` uses 0.3 times the learning rate."""
    algo = algorithm_of(name)
    python = python_of("trl110" if algo == "ppo" else "trl")
    path = folder / "settings.json"
    chat = Chat(base.load_tokenizer(start))
    settings = {
        "algo": algo,
        "start": start,
        "folder": str(folder / "weights"),
        "strength": strength,
        "rate": 3e-4 if name.endswith("-slow") else 1e-3,
        "seed": seed,
        "steps": steps,
        "epochs": epochs,
        "rollout": ROLLOUT,
        "group": GROUP,
        "tokens": TOKENS,
        "worth": LETTER_VALUES.tolist(),
        "prompts": [chat.prompt(text) for text in TRAIN],
    }
    path.write_text(json.dumps(settings))
    command = [python, "-m", "benchmarks.implementations.frontier_trl", str(path)]
    done = subprocess.run(
        command, cwd=HERE.parent, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return settings["folder"]


def train_policy(start: str, algo: str, strength: float, steps: int, epochs: int, seed: int, folder: Path) -> Any:
    """Train an algorithm at one KL coefficient."""
    settings = {
        "model": start,
        "folder": folder,
        "seed": seed,
        "method": "full",
        "dtype": "float32",
        "max_new_tokens": TOKENS,
        "temperature": 1.0,
        "learning_rate": 1e-3,
        "batch": 64,
        "epochs": epochs,
        "validate_every": 10**6,
        "rewards__eos_penalty": 0.0,
        "kl__alarm": 1e3,
        "kl__stop": 1e3,
    }
    if algo == "dpo":
        prompts = [prompt for prompt in TRAIN for _ in range(math.ceil(steps * ROLLOUT / len(TRAIN)))][
            : steps * ROLLOUT
        ]
        _, _, texts = sample(start, prompts, seed, "frontier/pairs")
        worth = gold(prompts, texts)
        pairs = [
            (prompts[i], *(texts[i + k] for k in ((0, 1) if worth[i] > worth[i + 1] else (1, 0))))
            for i in range(0, len(prompts) - 1, 2)
        ]
        pairs = [
            pair for pair, i in zip(pairs, range(0, len(prompts), 2), strict=False) if prompts[i] == prompts[i + 1]
        ]
        pairs = [pair for pair in pairs if all(pair)]  # an empty answer is not a valid pair
        # at 1e-3 the policy leaves the start model with every beta
        return tp.train("dpo", pairs=pairs, dpo__beta=strength, **settings | {"learning_rate": 2e-4})
    group = 1 if algo == "ppo" else GROUP
    return tp.train(
        algo, prompts=TRAIN, reward=gold, kl=strength, steps=steps, rollout=ROLLOUT, group=group, **settings
    )


def measure_point(start: str, algo: str, strength: float, steps: int, epochs: int, seed: int) -> dict[str, float]:
    """KL and win rate by the gold reward on held-out prompts, and the share of best-of-n's gain at that KL."""
    if algo == "optimum":
        return {"strength": strength, "seed": seed, **tilted_optimum(start, strength, seed)}
    prompts = HELDOUT * DRAWS
    with tempfile.TemporaryDirectory() as folder:
        how = (start, algo, strength, steps, epochs, seed, Path(folder))
        policy = train_with_trl(*how) if algo in PEERS else str(train_policy(*how).folder)
        prompt_ids, answers, texts = sample(policy, prompts, seed, "frontier/policy")
        _, _, before = sample(start, prompts, seed, "frontier/start")
        nats = kl(policy, start, prompt_ids, answers)
    ours, theirs = (
        np.array(gold(prompts, answer_texts)).reshape(DRAWS, len(HELDOUT)) for answer_texts in (texts, before)
    )
    # every pair of answers to a prompt
    rate = float(np.where(ours[:, None] == theirs[None], 0.5, ours[:, None] > theirs[None]).mean())
    return {"strength": strength, "seed": seed, "kl": nats, "win_rate": rate, "share": gain_share(nats, rate)}


def tilted_optimum(start: str, strength: float, seed: int) -> dict[str, float]:
    """The same for the start distribution times e^(reward / strength), by importance weights on its answers."""
    prompts = HELDOUT * TILTED
    reward = np.array(gold(prompts, sample(start, prompts, seed, "frontier/tilted")[2])).reshape(TILTED, len(HELDOUT))
    weight = np.exp((reward - reward.max(0)) / strength)
    weight /= weight.sum(0)
    nats = float((weight * np.log(np.maximum(weight * TILTED, 1e-300))).sum(0).mean())
    beaten = np.stack([((one[:, None] > one).mean(1) + (one[:, None] == one).mean(1) / 2) for one in reward.T], 1)
    rate = float((weight * beaten).sum(0).mean())
    return {"kl": nats, "win_rate": rate, "share": gain_share(nats, rate)}


def gain_share(nats: float, rate: float) -> float:
    """The gain over a win rate of 0.5, as a share of best-of-n's gain at the same KL."""
    return (rate - 0.5) / (best_of_n_win_rate(nats) - 0.5) if nats > 0 else 0.0


def best_of_n_win_rate(nats: float) -> float:
    """Best-of-n's win rate at a KL, by bisection over n."""
    low = 1.0
    high = 1e6
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if best_of_n(middle)[0] < nats else (low, middle)
    return best_of_n(low)[1]


PANEL = 500
HIGH = 380
LEFT = 52
TOP = 28
FAR = 2.4
"""Size and margins of a panel, and the largest KL shown."""
COLOURS = {"optimum": "#333", "ppo": "#0b6e99", "grpo": "#b4541a", "rloo": "#3f7d3a", "dpo": "#7a4a9e"}


def svg(points: dict[str, list[dict[str, float]]]) -> str:
    """A panel with win rates and best-of-n's curve, and a panel with shares of its gain; TRL's points are rings."""
    styles = {}
    for algo in points:
        colour = COLOURS[algorithm_of(algo)]
        styles[algo] = (
            f'r="4" fill="none" stroke="{colour}" stroke-width="1.5"'
            if algo in PEERS
            else f'r="4" fill="{colour}" fill-opacity="0.75"'
        )
    curve = [best_of_n(math.exp(i / 40)) for i in range(200)]
    shares = (1.0, "", "best of n"), (0.9, ' stroke-dasharray="5 4"', "nine tenths of its gain")
    lines = [
        ([(nats, 0.5 + share * (rate - 0.5)) for nats, rate in curve], dashes, name) for share, dashes, name in shares
    ]
    flat = [([(0.0, share), (FAR, share)], dashes, name) for share, dashes, name in shares]
    rate_panel = panel(points, styles, "win_rate", "win rate over the start by the known reward", 0.5, 1.0, lines)
    share_panel = panel(points, styles, "share", "share of best-of-n's gain at the same KL", 0.85, 1.0, flat)
    legend = [
        f'<circle cx="{LEFT + 84 * i}" cy="{HIGH + 14}" {style}/><text x="{LEFT + 9 + 84 * i}" '
        f'y="{HIGH + 18}">{algo.upper()}</text>'
        for i, (algo, style) in enumerate(styles.items())
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * PANEL} {HIGH + 30}" font-family="sans-serif" '
        'font-size="12">'
    )
    return "\n".join(
        [
            head,
            '<rect width="100%" height="100%" fill="white"/>',
            *rate_panel,
            f'<g transform="translate({PANEL})">',
            *share_panel,
            "</g>",
            *legend,
            "</svg>\n",
        ]
    )


def panel(
    points: Any, styles: dict[str, str], what: str, title: str, low: float, high: float, lines: Sequence[Any]
) -> list[str]:
    """One panel: a value against KL, and reference lines."""

    def at(nats: float, number: float) -> tuple[float, float]:
        return LEFT + nats / FAR * (PANEL - LEFT - 16), HIGH - 44 - (number - low) / (high - low) * (HIGH - 44 - TOP)

    parts = [f'<text x="{LEFT}" y="16">{title}</text>']
    for number in np.linspace(low, high, 6 if high - low > 0.2 else 4):
        x, y = at(0, number)
        parts.append(
            f'<path d="M{x} {y:.1f}H{PANEL - 16}" stroke="#ddd"/><text x="{x - 8}" y="{y + 4:.1f}" '
            f'text-anchor="end">{number:.0%}</text>'
        )
    for nats in (0.0, 0.5, 1.0, 1.5, 2.0):
        x, y = at(nats, low)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{nats}</text>')
    parts.append(f'<text x="{PANEL / 2}" y="{HIGH - 8}" text-anchor="middle">KL to the start, nats per prompt</text>')
    for through, dashes, name in lines:
        coordinates = [at(nats, number) for nats, number in through if nats <= FAR]
        parts.append(
            f'<path d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in coordinates)}" fill="none" stroke="#333" '
            f'stroke-width="1.5"{dashes}/>'
        )
        parts.append(
            f'<text x="{coordinates[-1][0]:.0f}" y="{coordinates[-1][1] + (30 if dashes else -7):.0f}" '
            f'text-anchor="end">{name}</text>'
        )
    for algo, rows in points.items():
        circles = [at(point["kl"], point[what]) for point in rows if point["kl"] <= FAR]
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" {styles[algo]}/>' for x, y in circles]
    return parts


def main() -> None:
    """Measure every algorithm at every strength with every seed; points that the file already has are not repeated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", default=",".join(STRENGTHS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=360, help="rollouts of 128 completions")
    parser.add_argument(
        "--epochs", type=int, default=0, help=f"passes over a rollout, or over DPO's pairs; by default as in {EPOCHS}"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="points at a time, a thread each")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(options.processes, get_context("spawn"), prepare_process) as pool,
    ):
        start = pool.submit(train_start_model, Path(folder)).result()
        settings: dict[str, Any] = {"steps": options.steps, "rollout": ROLLOUT, "group": GROUP, "tokens": TOKENS}
        settings |= {"epochs": options.epochs or EPOCHS, "start": digest(Path(start))}
        before = json.loads(options.json.read_text()) if options.json and options.json.is_file() else {}
        differing = [name for name in settings if before and before.get(name) != settings[name]]
        if differing:
            raise SystemExit(
                f"{options.json} has points with a different {', '.join(differing)}, which must not be mixed: name "
                "another file"
            )
        points: dict[str, list[Any]] = before.get("points", {})
        jobs = []
        for algo in options.algorithms.split(","):
            have = {(p["strength"], p["seed"]) for p in points.setdefault(algo, [])}
            epochs = options.epochs or EPOCHS.get(algorithm_of(algo), 1)
            wanted = [
                (strength, int(seed)) for strength in (STRENGTHS | PEERS)[algo] for seed in options.seeds.split(",")
            ]
            jobs += [
                (algo, pool.submit(measure_point, start, algo, at, options.steps, epochs, seed))
                for at, seed in wanted
                if (at, seed) not in have
            ]
        for algo, answer in jobs:
            points[algo].append(answer.result())
            print(algo, {key: round(value, 3) for key, value in answer.result().items()}, file=sys.stderr, flush=True)
            if options.json:
                options.json.write_text(json.dumps(settings | {"points": points}, indent=1) + "\n")
    for algo, rows in points.items():
        shares = [p["share"] for p in rows if 0.2 <= p["kl"] <= 2.0]
        if shares:
            print(
                f"{algo}: median {statistics.median(shares):.0%} of best-of-n's gain at equal KL, least "
                f"{min(shares):.0%}, {len(shares)} points"
            )
    if options.svg:
        options.svg.write_text(svg(points))


if __name__ == "__main__":
    main()
