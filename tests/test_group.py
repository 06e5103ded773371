"""Several workers: every algorithm gives what one process gives, whatever the number of workers."""

import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import towpath as tp
from towpath.recipe import Model
from towpath.run import training
from towpath.runtime.group import Group
from towpath.runtime.launch import local
from towpath.runtime.local import Local
from towpath.runtime.workers import shared_workers
from towpath.stages.job import Job

ALGORITHMS = {
    "ppo": {"kl": 0.1, "steps": 3, "rollout": 12, "batch": 6, "ppo__critic_warmup": 0},
    "ppo-trained-critic": {"kl": 0.1, "steps": 3, "rollout": 12, "batch": 6, "ppo__critic": "adapter"},
    "grpo": {"kl": 0.1, "steps": 3, "rollout": 12, "batch": 12, "group": 4},
    "rloo": {"kl": 0.1, "steps": 3, "rollout": 12, "batch": 12, "group": 2},
    "reinforce": {"kl": 0.1, "steps": 3, "rollout": 12, "batch": 12},
    "dpo": {"epochs": 1, "batch": 8},
    "kto": {"epochs": 1, "batch": 8},
}
PROMPTS = [f"Tell me something about the number {i}." for i in range(24)]


def vowels(_prompts, answers):
    """The share of vowels of every answer."""
    return [sum(c in "aeiou" for c in answer) / max(1, len(answer)) for answer in answers]


def group_of(count: int, model: Model, pad: int, packing: bool, training: bool, dtype: torch.dtype) -> Group:
    return Group(shared_workers(["cpu"] * count, 1, 60.0), model, pad, dtype, packing, training)


def launch_with(workers: int, dtype: torch.dtype, model: Model, pad, packing=True, training=True, cluster=None):
    """Local for 0 workers, else a group."""
    if workers:
        return group_of(workers, model, pad, packing, training, dtype)
    return local(Local, model, pad, packing, training, dtype, torch.device("cpu"))


def train(name: str, folder: Path, workers: int, dtype: torch.dtype, monkeypatch) -> training.Trained:
    launcher = functools.partial(launch_with, workers, dtype)
    monkeypatch.setattr(training, "Job", functools.partial(Job, launcher=launcher))
    common = {"model": "tiny", "dtype": "float32", "max_new_tokens": 8, "validate_every": 2, "learning_rate": 1e-5}
    data = {"prompts": PROMPTS, "reward": vowels}
    algo = name.partition("-")[0]
    if algo in ("dpo", "kto"):
        data = {"pairs": [(prompt, "aaaa bbb", "???? !!!") for prompt in PROMPTS]}
    return tp.train(algo, folder=folder, **data, **common, **ALGORITHMS[name])


def curves(trained: training.Trained) -> list[dict[str, float]]:
    """The metrics without times, memory and throughput, and without the accuracy of DPO: at the first step all margins
    are zero but for rounding."""
    timed = "seconds", "memory", "tokens"
    return [
        {key: x for key, x in row.items() if not isinstance(x, str) and not key.startswith((*timed, "accuracy"))}
        for row in trained.metrics
    ]


def weights(trained: training.Trained) -> dict[str, torch.Tensor]:
    return load_file(trained.job.folder / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Trainings in one process, by algorithm and precision."""
    folder = tmp_path_factory.mktemp("alone")
    done: dict[tuple[str, torch.dtype], training.Trained] = {}

    def get(name: str, dtype: torch.dtype, monkeypatch) -> training.Trained:
        if (name, dtype) not in done:
            done[name, dtype] = train(name, folder / f"{name}-{dtype}", 0, dtype, monkeypatch)
        return done[name, dtype]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_one_worker_gives_the_same_bits(name: str, alone, tmp_path: Path, monkeypatch) -> None:
    one = alone(name, torch.float32, monkeypatch)
    other = train(name, tmp_path / "group", 1, torch.float32, monkeypatch)
    assert curves(one) == curves(other)
    for key, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_workers_give_the_same_curves(name: str, workers: int, alone, tmp_path: Path, monkeypatch) -> None:
    """In float64, so that the order of sums makes no visible difference."""
    one = alone(name, torch.float64, monkeypatch)
    other = train(name, tmp_path / "group", workers, torch.float64, monkeypatch)
    assert len(one.metrics) >= 3
    for row, expected in zip(curves(other), curves(one), strict=True):
        assert row == pytest.approx(expected, rel=1e-6, abs=1e-9)
    for key, tensor in weights(one).items():
        difference = (weights(other)[key] - tensor).abs().max()
        assert float(difference) <= 1e-6 * float(tensor.abs().max()) + 1e-12, key
