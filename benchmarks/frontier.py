"""How much win rate an algorithm buys for its nats where the gold reward is known, beside best-of-n.

A small model, taught to write by the quickstart's demonstrations sign by sign; the reward is a fixed number for
every sign of an answer, so that it is known, without noise and without ties. Every algorithm draws the same number
of completions; DPO gets as many from the starting policy, as pairs judged by the same reward. A win is a higher
reward than that of the start's answer to the same held-out prompt; every answer of one is compared with every answer
of the other.

`optimum` is the start tilted by the reward, which no algorithm with that KL penalty can surpass: its answers are the
start's, weighed anew.

TRL's PPO and GRPO, as `trl-ppo` and `trl-grpo`, run in the environments that `make bench` makes, with the same
start, prompts, reward, rollouts, passes, minibatches, strengths and rate (`trl-ppo-slow` and `trl-grpo-slow`: three
tenths of it).

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
WORTH = np.random.default_rng(7).standard_normal(997)
ASKED = [
    f"{ask} the number {i}{end}"
    for i in range(176)
    for ask, end in (("Tell me something about", "."), ("What do you think of", "?"), ("Why is", " odd?"))
]
TRAIN = ASKED[:400]
HELD = ASKED[400:]
STRENGTHS = {
    "optimum": (0.5, 0.7, 1.2),
    "ppo": (0.5, 0.7, 1.2),
    "grpo": (0.5, 0.7, 1.2),
    "rloo": (0.5, 0.7, 1.2),
    "dpo": (1.0, 2.0, 4.0),
}
PEERS = {f"trl-{algo}{rate}": STRENGTHS[algo] for algo in ("ppo", "grpo") for rate in ("", "-slow")}
"""Weights of the KL (beta of DPO), strongest hold last."""
EPOCHS = {"ppo": 2, "grpo": 1, "rloo": 1, "dpo": 2}
"""Passes over a rollout, or over DPO's pairs, where no others are asked for."""


def kind(name: str) -> str:
    """The algorithm, whoever's it is."""
    return name.split("-")[1] if name in PEERS else name


def gold(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """The known reward: the sum of what the signs of an answer are worth, near unit scale."""
    return [sum(WORTH[ord(sign) % len(WORTH)] for sign in answer) / math.sqrt(TOKENS) for answer in answers]


def taught(folder: Path) -> str:
    """The start: the tiny model after a minute of supervised fine-tuning, about as sure of its next sign as a
    language model is."""
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
    told = sft.run(job)
    print(f"the start: {told['validation_loss']:.2f} nats a sign on held-out demonstrations", file=sys.stderr)
    return str(job.folder / "weights")


def digest(weights: Path) -> str:
    """Machines round otherwise, and teach another start: points of one are not to stand beside another's."""
    return hashlib.sha256((weights / "model.safetensors").read_bytes()).hexdigest()[:16]


def drawn(
    folder: str, prompts: Sequence[str], seed: int, stream: str
) -> tuple[list[list[int]], list[SampleOutput], list[str]]:
    """Prompt tokens, answers at temperature 1, and their texts."""
    chat = Chat(base.load_tokenizer(folder))
    engine = LocalEngine(base.load(folder, torch.float32, "grouped"), chat.stops, chat.pad)
    how = Decoding()
    asked = [(chat.prompt(prompt), i) for i, prompt in enumerate(prompts)]
    told = engine.generate([SampleRequest(ids, how, uniforms(TOKENS, seed, stream, str(i))) for ids, i in asked])
    return [ids for ids, _ in asked], told, [chat.text(answer.token_ids) for answer in told]


@torch.no_grad()
def kl(policy: str, start: str, asked: Sequence[list[int]], answers: Sequence[SampleOutput]) -> float:
    """Nats per prompt from the start, on the policy's own answers: at every sign that of the two whole
    distributions, whose mean is the same as that of the drawn signs' log-ratios, and wavers less than half as much."""
    models = [base.load(folder, torch.float32, "grouped") for folder in (policy, start)]
    batch = Batch([make_row(ids, answer.token_ids) for ids, answer in zip(asked, answers, strict=True)])
    total = 0.0
    for part in batch.micro_batches(4096):
        packed = pack(part.rows, 0)
        lines = PackedBatch(
            *map(torch.from_numpy, (packed.ids_PL, packed.position_PL, packed.segment_PL, packed.parent_PL))
        )
        read_N = torch.from_numpy(
            np.concatenate(
                [place[r.start - 1 : -1] for place, r in zip(packed.token_positions, part.rows, strict=True)]
            )
        )
        ours, theirs = (
            (lm.hidden(model, lines, read_N) @ model.get_output_embeddings().weight.T).log_softmax(-1)
            for model in models
        )
        total += float((ours.exp() * (ours - theirs)).sum())
    return total / len(batch)


def peer(start: str, name: str, strength: float, steps: int, epochs: int, seed: int, folder: Path) -> str:
    """TRL's algorithm, in its own environment; `-slow` at three tenths of the rate."""
    algo = kind(name)
    python = python_of("trl110" if algo == "ppo" else "trl")
    told = folder / "told.json"
    chat = Chat(base.load_tokenizer(start))
    asked = {
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
        "worth": WORTH.tolist(),
        "prompts": [chat.prompt(text) for text in TRAIN],
    }
    told.write_text(json.dumps(asked))
    command = [python, "-m", "benchmarks.implementations.frontier_trl", str(told)]
    done = subprocess.run(
        command, cwd=HERE.parent, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return asked["folder"]


def trained(start: str, algo: str, strength: float, steps: int, epochs: int, seed: int, folder: Path) -> Any:
    """The algorithm at one strength of its hold on the start."""
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
        _, _, texts = drawn(start, prompts, seed, "frontier/pairs")
        worth = gold(prompts, texts)
        pairs = [
            (prompts[i], *(texts[i + k] for k in ((0, 1) if worth[i] > worth[i + 1] else (1, 0))))
            for i in range(0, len(prompts) - 1, 2)
        ]
        pairs = [
            pair for pair, i in zip(pairs, range(0, len(prompts), 2), strict=False) if prompts[i] == prompts[i + 1]
        ]
        pairs = [pair for pair in pairs if all(pair)]  # an answer of no signs is none
        # at 1e-3 no beta holds it
        return tp.train("dpo", pairs=pairs, dpo__beta=strength, **settings | {"learning_rate": 2e-4})
    group = 1 if algo == "ppo" else GROUP
    return tp.train(
        algo, prompts=TRAIN, reward=gold, kl=strength, steps=steps, rollout=ROLLOUT, group=group, **settings
    )


def point(start: str, algo: str, strength: float, steps: int, epochs: int, seed: int) -> dict[str, float]:
    """KL and gold win rate on held-out prompts, and the share of best-of-n's gain at that KL."""
    if algo == "optimum":
        return {"strength": strength, "seed": seed, **tilted(start, strength, seed)}
    prompts = HELD * DRAWS
    with tempfile.TemporaryDirectory() as folder:
        how = (start, algo, strength, steps, epochs, seed, Path(folder))
        policy = peer(*how) if algo in PEERS else str(trained(*how).folder)
        asked, answers, texts = drawn(policy, prompts, seed, "frontier/policy")
        _, _, before = drawn(start, prompts, seed, "frontier/start")
        nats = kl(policy, start, asked, answers)
    ours, theirs = (np.array(gold(prompts, said)).reshape(DRAWS, len(HELD)) for said in (texts, before))
    # every pair of answers to a prompt
    rate = float(np.where(ours[:, None] == theirs[None], 0.5, ours[:, None] > theirs[None]).mean())
    return {"strength": strength, "seed": seed, "kl": nats, "win_rate": rate, "share": share(nats, rate)}


def tilted(start: str, strength: float, seed: int) -> dict[str, float]:
    """The same of the start's distribution times e^(reward / strength), from as many answers to every prompt as its
    weights ask for."""
    prompts = HELD * TILTED
    reward = np.array(gold(prompts, drawn(start, prompts, seed, "frontier/tilted")[2])).reshape(TILTED, len(HELD))
    weight = np.exp((reward - reward.max(0)) / strength)
    weight /= weight.sum(0)
    nats = float((weight * np.log(np.maximum(weight * TILTED, 1e-300))).sum(0).mean())
    beaten = np.stack([((one[:, None] > one).mean(1) + (one[:, None] == one).mean(1) / 2) for one in reward.T], 1)
    rate = float((weight * beaten).sum(0).mean())
    return {"kl": nats, "win_rate": rate, "share": share(nats, rate)}


def share(nats: float, rate: float) -> float:
    """Of what best-of-n gains over a half at so many nats."""
    return (rate - 0.5) / (bound(nats) - 0.5) if nats > 0 else 0.0


def bound(nats: float) -> float:
    """Best-of-n's win rate at so many nats."""
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
"""The size of a picture, where its numbers begin, and how many nats it shows."""
COLOURS = {"optimum": "#333", "ppo": "#0b6e99", "grpo": "#b4541a", "rloo": "#3f7d3a", "dpo": "#7a4a9e"}


def svg(points: dict[str, list[dict[str, float]]]) -> str:
    """Points of every algorithm on best-of-n's curve, and beside it what they reach of it; a peer's points are
    rings."""
    looks = {}
    for algo in points:
        colour = COLOURS[kind(algo)]
        looks[algo] = (
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
    rates = panel(points, looks, "win_rate", "win rate over the start by the known reward", 0.5, 1.0, lines)
    told = panel(points, looks, "share", "share of best-of-n's gain at the same KL", 0.85, 1.0, flat)
    legend = [
        f'<circle cx="{LEFT + 84 * i}" cy="{HIGH + 14}" {look}/><text x="{LEFT + 9 + 84 * i}" '
        f'y="{HIGH + 18}">{algo.upper()}</text>'
        for i, (algo, look) in enumerate(looks.items())
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * PANEL} {HIGH + 30}" font-family="sans-serif" '
        'font-size="12">'
    )
    return "\n".join(
        [
            head,
            '<rect width="100%" height="100%" fill="white"/>',
            *rates,
            f'<g transform="translate({PANEL})">',
            *told,
            "</g>",
            *legend,
            "</svg>\n",
        ]
    )


def panel(
    points: Any, looks: dict[str, str], what: str, title: str, low: float, high: float, lines: Sequence[Any]
) -> list[str]:
    """One picture: a number against KL, and lines to hold it against."""

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
        shown = [at(nats, number) for nats, number in through if nats <= FAR]
        parts.append(
            f'<path d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in shown)}" fill="none" stroke="#333" '
            f'stroke-width="1.5"{dashes}/>'
        )
        parts.append(
            f'<text x="{shown[-1][0]:.0f}" y="{shown[-1][1] + (30 if dashes else -7):.0f}" '
            f'text-anchor="end">{name}</text>'
        )
    for algo, found in points.items():
        places = [at(point["kl"], point[what]) for point in found if point["kl"] <= FAR]
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" {looks[algo]}/>' for x, y in places]
    return parts


def main() -> None:
    """Every algorithm at every strength with every seed; points that the file has already are kept."""
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
    told = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(told.processes, get_context("spawn"), prepare_process) as pool,
    ):
        start = pool.submit(taught, Path(folder)).result()
        said: dict[str, Any] = {"steps": told.steps, "rollout": ROLLOUT, "group": GROUP, "tokens": TOKENS}
        said |= {"epochs": told.epochs or EPOCHS, "start": digest(Path(start))}
        before = json.loads(told.json.read_text()) if told.json and told.json.is_file() else {}
        other = [name for name in said if before and before.get(name) != said[name]]
        if other:
            raise SystemExit(
                f"{told.json} holds points of another {', '.join(other)}; points of one are not to stand beside "
                "another's: name another file"
            )
        points: dict[str, list[Any]] = before.get("points", {})
        asked = []
        for algo in told.algorithms.split(","):
            have = {(p["strength"], p["seed"]) for p in points.setdefault(algo, [])}
            epochs = told.epochs or EPOCHS.get(kind(algo), 1)
            wanted = [(strength, int(seed)) for strength in (STRENGTHS | PEERS)[algo] for seed in told.seeds.split(",")]
            asked += [
                (algo, pool.submit(point, start, algo, at, told.steps, epochs, seed))
                for at, seed in wanted
                if (at, seed) not in have
            ]
        for algo, answer in asked:
            points[algo].append(answer.result())
            print(algo, {key: round(value, 3) for key, value in answer.result().items()}, file=sys.stderr, flush=True)
            if told.json:
                told.json.write_text(json.dumps(said | {"points": points}, indent=1) + "\n")
    for algo, found in points.items():
        shares = [p["share"] for p in found if 0.2 <= p["kl"] <= 2.0]
        if shares:
            print(
                f"{algo}: median {statistics.median(shares):.0%} of best-of-n's gain at equal KL, least "
                f"{min(shares):.0%}, {len(shares)} points"
            )
    if told.svg:
        told.svg.write_text(svg(points))


if __name__ == "__main__":
    main()
