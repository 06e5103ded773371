"""Several processes: a step divided over them has the same gradient, and a replicated runtime runs the same stages."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from replicated import Exact, Replicated, launch
from torch.multiprocessing import start_processes

import towpath as tp
from towpath.algos import grpo, ppo
from towpath.data.batch import Batch, Row
from towpath.models import base
from towpath.models.heads import ScalarHead
from towpath.recipe import Policy
from towpath.run import training
from towpath.runtime.local import Local, Role
from towpath.stages.job import Job

ALGORITHMS = {"ppo": ppo, "grpo": grpo}


def batch_of(seed: int = 0) -> Batch:
    """A prepared batch of ten ragged rollouts in five groups."""
    draw = np.random.default_rng(seed)
    rows = [Row(draw.integers(3, 250, int(n)), 3) for n in draw.integers(5, 24, 10)]
    shape = len(rows), max(len(row.ids) - row.start for row in rows)
    columns = {
        name: torch.from_numpy(draw.normal(-2.0, 0.1, shape)).float()
        for name in ("old_logp", "ref_logp", "value", "returns")
    }
    columns |= {
        "advantage": torch.from_numpy(draw.normal(size=shape)).float(),
        "reward": torch.from_numpy(draw.normal(size=len(rows))).float(),
    }
    return Batch(rows, columns, (2,) * 5)


def gradient(name: str, model: str, share: slice, tokens_per_pass: int) -> dict[str, torch.Tensor]:
    """The gradient of one process for its share of the groups."""
    runtime = Local(tokens_per_pass)
    algo = ALGORITHMS[name]
    cfg = Policy(algo=name, group=2)
    runtime.add_trunk("base", base.load(model, torch.float32, "grouped"), lora=False)
    head = ScalarHead(runtime.trunks["base"].config.hidden_size)
    torch.nn.init.normal_(head.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    runtime.roles |= {"policy": Role(trains=("trunk",)), "critic": Role(head=head, trains=("head",))}
    runtime.start({"policy": 1e-3, "critic": 1e-3})
    batch = batch_of()
    knobs = {"kl_coef": 0.1, "policy_weight": 1.0}
    weight = algo.weigh(batch, cfg)
    runtime.forward_backward(
        algo.TRAINS, batch.take(np.arange(5)[share]), lambda out, part: algo.loss(out, part, cfg, knobs), weight
    )
    return {key: p.grad.clone() for key, p in runtime.trained().items() if p.grad is not None}


def run_processes(function: Callable[..., None], world: int, *arguments: str) -> None:
    """Run `function(rank, world, *arguments)` in `world` processes, forked from one that has imported torch."""
    start_processes(function, (world, *arguments), nprocs=world, start_method="forkserver")


def work(rank: int, world: int, name: str, model: str, address: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}/meeting", rank=rank, world_size=world)
    gradients = gradient(name, model, slice(rank, None, world), 64)
    for part in gradients.values():
        dist.all_reduce(part)
    if rank == 0:
        torch.save(gradients, f"{address}/gradients.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_gradient_does_not_depend_on_the_number_of_processes(tiny_folder: str, tmp_path: Path, name: str, world: int):
    run_processes(work, world, name, tiny_folder, str(tmp_path))
    together = torch.load(tmp_path / "gradients.pt")
    alone = gradient(name, tiny_folder, slice(None), 10_000)
    assert set(together) == set(alone)
    largest = max(float(part.abs().max()) for part in alone.values())
    assert largest > 1e-3
    for key, part in alone.items():
        assert float((together[key] - part).abs().max()) < 1e-6 * max(largest, 1.0), key


STAGES = {
    "ppo": {"kl": 0.1, "steps": 3, "rollout": 12, "batch": 6, "ppo__critic_warmup": 0},
    "grpo": {"kl": 0.1, "steps": 3, "rollout": 12, "batch": 12, "group": 4},
    "dpo": {"epochs": 1, "batch": 8},
}
PROMPTS = [f"Tell me something about the number {i}." for i in range(24)]


def vowels(_prompts, answers):
    """The share of vowels of every answer."""
    return [sum(c in "aeiou" for c in answer) / max(1, len(answer)) for answer in answers]


def train_all(folder: Path, runtime: type[Local]) -> None:
    """Train a policy with every algorithm of STAGES."""
    training.Job = functools.partial(Job, launcher=functools.partial(launch, runtime))
    common = {"model": "tiny", "dtype": "float32", "max_new_tokens": 8, "validate_every": 2, "learning_rate": 1e-5}
    for algo, settings in STAGES.items():
        data = {"prompts": PROMPTS, "reward": vowels}
        if algo == "dpo":
            data = {"pairs": [(prompt, "aaaa bbb", "???? !!!") for prompt in PROMPTS]}
        tp.train(algo, folder=folder / algo, **data, **common, **settings)


def stage_work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    train_all(Path(folder) / f"rank{rank}", Replicated)
    dist.destroy_process_group()


def curves(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl without times, memory and throughput."""
    (path,) = folder.glob("*/metrics.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    timed = "seconds", "memory", "tokens"
    return [{key: x for key, x in row.items() if not isinstance(x, str) and not key.startswith(timed)} for row in rows]


@pytest.mark.slow
def test_replicated_runtime_gives_the_same_curves(tmp_path: Path, monkeypatch) -> None:
    """Two gloo processes with replicated LoRA weights run the stages through the runtime contract."""
    monkeypatch.setattr(training, "Job", Job)
    train_all(tmp_path / "alone", Exact)
    run_processes(stage_work, 2, str(tmp_path))
    for algo in STAGES:
        alone = curves(tmp_path / "alone" / algo)
        for rank in (0, 1):
            together = curves(tmp_path / f"rank{rank}" / algo)
            assert len(together) == len(alone) >= 3
            for one, other in zip(alone, together, strict=True):
                assert other == pytest.approx(one, rel=1e-6, abs=1e-6), algo
