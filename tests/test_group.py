"""Several workers: every algorithm gives what one process gives, whatever the number of workers."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import towpath as tp
from towpath import algos
from towpath.algos import reward_model, sft
from towpath.data.batch import Batch, Row
from towpath.models import base
from towpath.recipe import Lora, Model, Reward, Sft
from towpath.run import training
from towpath.runtime.contract import Loss, OptimizerConfig, RoleSpec, Runtime
from towpath.runtime.group import Group
from towpath.runtime.launch import local
from towpath.runtime.local import Local
from towpath.runtime.process import prepare_process
from towpath.runtime.sharding import bytes_on_a_gpu
from towpath.runtime.shares import deal, deal_rows, rows_of_groups
from towpath.runtime.state_files import StateReader
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
    "ipo": {"epochs": 1, "batch": 8},
    "orpo": {"epochs": 1, "batch": 8},
    "ppo-full": {
        "kl": 0.1,
        "steps": 3,
        "rollout": 12,
        "batch": 6,
        "method": "full",
        "learning_rate": 1e-6,
        "ppo__critic": "adapter",
    },
    "dpo-full": {"epochs": 1, "batch": 8, "method": "full", "learning_rate": 1e-6},
}
SHARDED = ("ppo", "grpo", "dpo", "ppo-full", "dpo-full")
PROMPTS = [f"Tell me something about the number {i}." for i in range(24)]


def vowels(_prompts, answers):
    """The share of vowels of every answer."""
    return [sum(c in "aeiou" for c in answer) / max(1, len(answer)) for answer in answers]


def launch_with(
    workers: int, dtype: torch.dtype, shard: bool, model: Model, pad, packing=True, training=True, cluster=None
):
    """Local for 0 workers, else a group."""
    if workers:
        group = shared_workers(["cpu"] * workers, 1, 60.0)
        return Group(group, model, pad, dtype, packing, training, "fsdp" if shard else "replicate")
    return local(Local, model, pad, packing, training, dtype, torch.device("cpu"))


def train(
    name: str, folder: Path, workers: int, dtype: torch.dtype, monkeypatch, shard: bool = False, attention: str = "auto"
) -> training.Trained:
    launcher = functools.partial(launch_with, workers, dtype, shard)
    monkeypatch.setattr(training, "Job", functools.partial(Job, launcher=launcher))
    model = {"source": "tiny", "attention": attention}
    common = {"model": model, "dtype": "float32", "max_new_tokens": 8, "validate_every": 2, "learning_rate": 1e-5}
    data = {"prompts": PROMPTS, "reward": vowels}
    algo = name.partition("-")[0]
    if algos.data_of(algo) == "comparisons":
        data = {"pairs": [(prompt, "aaaa bbb", "???? !!!") for prompt in PROMPTS]}
    return tp.train(algo, folder=folder, **data, **(common | ALGORITHMS[name]))


def curves(trained: training.Trained) -> list[dict[str, float]]:
    """The metrics without times, memory, throughput and bytes moved, and without the accuracy of DPO: at the first step
    all margins are zero but for rounding."""
    timed = "seconds", "memory", "tokens", "collective", "sync"
    return [
        {key: x for key, x in row.items() if not isinstance(x, str) and not key.startswith((*timed, "accuracy"))}
        for row in trained.metrics
    ]


def weights(trained: training.Trained) -> dict[str, torch.Tensor]:
    adapter = trained.job.folder / "adapter" / "adapter_model.safetensors"
    return load_file(adapter if adapter.exists() else trained.job.folder / "weights" / "model.safetensors")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """As each worker has: a product by two threads sums in another order."""
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which a training reads
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Trainings in one process, by algorithm and precision."""
    folder = tmp_path_factory.mktemp("alone")
    done: dict[tuple[str, torch.dtype, str], training.Trained] = {}

    def get(name: str, dtype: torch.dtype, monkeypatch, attention: str = "auto") -> training.Trained:
        key = name, dtype, attention
        if key not in done:
            done[key] = train(name, folder / "-".join(map(str, key)), 0, dtype, monkeypatch, attention=attention)
        return done[key]

    return get


QUICK = ("ppo", "grpo", "dpo", "ppo-full")
"""Algorithms that each test run covers; the others are a proof."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.proof) for name in ALGORITHMS]
)
def test_one_worker_gives_the_same_bits(name: str, alone, tmp_path: Path, monkeypatch) -> None:
    one = alone(name, torch.float32, monkeypatch)
    other = train(name, tmp_path / "group", 1, torch.float32, monkeypatch)
    assert curves(one) == curves(other)
    for key, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[key]), key


COUNTS = [(name, 2 + number % 3) for number, name in enumerate((*QUICK, "rloo", "ppo-trained-critic"))]
"""Each with another number of workers; all combinations are a proof."""
OTHERS = [(name, workers) for name in ALGORITHMS for workers in (2, 3, 4) if (name, workers) not in COUNTS]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "workers"), [*COUNTS, *(pytest.param(*o, marks=pytest.mark.proof) for o in OTHERS)])
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


SHARDED_COUNTS = [(name, 1 + number % 3) for number, name in enumerate(SHARDED)]
OTHER_SHARDED = [(name, workers) for name in SHARDED for workers in (1, 2, 3) if (name, workers) not in SHARDED_COUNTS]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "workers"), [*SHARDED_COUNTS, *(pytest.param(*o, marks=pytest.mark.proof) for o in OTHER_SHARDED)]
)
def test_divided_weights_give_the_same_curves(name: str, workers: int, alone, tmp_path: Path, monkeypatch) -> None:
    """FSDP2, with adapters on a frozen model that is divided, and with full weights; through the model's own layers,
    which round norms to float32 where ours do not."""
    one = alone(name, torch.float64, monkeypatch, "sdpa")
    other = train(name, tmp_path / "group", workers, torch.float64, monkeypatch, shard=True, attention="sdpa")
    for row, expected in zip(curves(other), curves(one), strict=True):
        assert row == pytest.approx(expected, rel=1e-6, abs=1e-9)
    for key, tensor in weights(one).items():
        assert float((weights(other)[key] - tensor).norm()) <= 1e-6 * float(tensor.norm()), key


# One verb after the other


def rows_of(count: int, seed: int = 0) -> list[Row]:
    draw = np.random.default_rng(seed)
    return [Row(draw.integers(3, 250, int(n)), 3) for n in draw.integers(5, 24, count)]


def runtime_of(workers: int, shard: bool = False, tokens: int = 1024) -> Runtime:
    model = Model(source="tiny", attention="sdpa" if shard else "auto", tokens_per_pass=tokens)
    return launch_with(workers, torch.float64, shard, model, 0)


def trained_state(runtime: Runtime, folder: Path) -> dict[str, torch.Tensor]:
    """What has been learned, by way of a checkpoint."""
    folder.mkdir(parents=True)
    runtime.write_state(folder, None)
    return state_in(folder)


def state_in(folder: Path) -> dict[str, torch.Tensor]:
    reader = StateReader(folder)
    return {key: reader.read(key) for key in reader.keys()}  # noqa: SIM118


def update(runtime: Runtime, name: str, model: str, count: int) -> None:
    """Three optimizer steps of supervised fine-tuning or of a reward model, on `count` groups."""
    algo, config = (sft, Sft(method="full")) if name == "sft" else (reward_model, Reward())
    spec = RoleSpec(model, learning_rate=1e-4)
    if name == "reward":
        spec = RoleSpec(model, Lora(), head="scalar", random_head=True, learning_rate=1e-4)
    runtime.open({"policy" if name == "sft" else "reward": spec}, OptimizerConfig())
    loss = Loss(algo.__name__, config.model_dump())
    for step in range(3):
        batch = Batch(rows_of(2 * count, step))
        if name == "reward":
            beats = torch.zeros(2 * count, 2)
            beats[::2, 1] = 1.0
            columns = {"beats": beats, "sure": torch.ones(2 * count, 2), "place": torch.arange(2 * count) % 2}
            batch = Batch(batch.rows, columns, (2,) * count, frozenset({"beats", "sure"}))
        runtime.forward_backward(algo.TRAINS, batch, loss, algo.weigh(batch, config))
        runtime.step(1.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize(("workers", "groups", "tokens"), [(2, 4, 1024), (3, 1, 1024), (3, 4, 40), (4, 5, 16)])
@pytest.mark.parametrize("name", ["sft", "reward"])
def test_updates_do_not_depend_on_workers(name, workers, groups, tokens, shard, tiny_folder, tmp_path) -> None:
    """Also with fewer groups than workers, and with one row a pass."""
    states = []
    for count in (0, workers):
        runtime = runtime_of(count, shard, tokens)
        update(runtime, name, tiny_folder, groups)
        states.append(trained_state(runtime, tmp_path / str(count)))
    one, other = states
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert float((other[key] - tensor).norm()) <= 1e-6 * float(tensor.norm()) + 1e-12, key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "reward"])
def test_updates_of_one_worker_have_the_same_bits(name, tiny_folder, tmp_path) -> None:
    prepare_process()  # as workers do: float32 products by the fastest kernel that keeps float32
    states = []
    for count in (0, 1):
        model = Model(source="tiny")
        runtime = launch_with(count, torch.float32, False, model, 0)
        update(runtime, name, tiny_folder, 4)
        states.append(trained_state(runtime, tmp_path / str(count)))
    one, other = states
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


@pytest.mark.slow
def test_weights_with_low_bits_are_restored_on_all_workers(tiny_folder, tmp_path) -> None:
    """Weights in bfloat16 with the 16 bits that training needs besides, which gloo does not send as they are."""
    runtime = launch_with(2, torch.bfloat16, False, Model(source="tiny"), 0)
    update(runtime, "sft", tiny_folder, 4)
    before = trained_state(runtime, tmp_path / "before")
    assert any(key.startswith("low_bits:") and tensor.element_size() == 2 for key, tensor in before.items())
    best = runtime.snapshot()
    runtime.forward_backward(
        sft.TRAINS, Batch(rows_of(8, 9)), Loss(sft.__name__, Sft().model_dump()), sft.weigh(Batch(rows_of(8, 9)), Sft())
    )
    runtime.step(1.0, 1.0)
    moved = trained_state(runtime, tmp_path / "moved")
    runtime.restore(best)
    restored = trained_state(runtime, tmp_path / "restored")
    learned = [key for key in before if not key.startswith("adam:")]
    assert all(torch.equal(restored[key], before[key]) for key in learned)
    assert not all(torch.equal(moved[key], before[key]) for key in learned)
    runtime.read_state(tmp_path / "moved")
    again = trained_state(runtime, tmp_path / "again")
    assert all(torch.equal(again[key], tensor) for key, tensor in moved.items())


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_a_checkpoint_has_no_number_of_workers(shard, tiny_folder, tmp_path) -> None:
    """Written by three workers, then read and written by two, by one process, by one worker, and by three: the same
    bits."""
    first = runtime_of(3, shard)
    update(first, "sft", tiny_folder, 4)
    previous = tmp_path / "3"
    previous.mkdir()
    first.write_state(previous, first.snapshot())
    expected = state_in(previous)
    assert any(key.startswith("best:") for key in expected) and any(key.startswith("adam:") for key in expected)
    for workers in (2, 0, 1, 3):
        runtime = runtime_of(workers, shard)
        runtime.open({"policy": RoleSpec(tiny_folder, learning_rate=1e-4)}, OptimizerConfig())
        best = runtime.read_state(previous)
        previous = tmp_path / f"from-{previous.name}-to-{workers}"
        previous.mkdir()
        runtime.write_state(previous, best)
        state = state_in(previous)
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in expected.items()), workers
        if shard and workers > 1:
            assert len(list(previous.glob("tensors-*.safetensors"))) == workers


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_sums_of_a_closed_form_head(workers, tiny_folder, tmp_path) -> None:
    """Of value features that stay with the workers, and of rows that are sent to them."""
    states = []
    for count in (0, workers):
        runtime = runtime_of(count)
        policy = RoleSpec(tiny_folder, Lora(), learning_rate=1e-4)
        roles = {"policy": policy, "critic": RoleSpec(reads="policy", head="closed_form")}
        runtime.open(roles, OptimizerConfig())
        draw = np.random.default_rng(5)
        for number in range(2):
            batch = Batch(rows_of(7, number))
            out = runtime.score("critic", batch, ("value", "features"))
            runtime.fit("critic", out.features, torch.from_numpy(draw.normal(size=out.mask_BT.shape)), 0.9)
        width = len(runtime.head("critic")["weight"])
        runtime.fit("critic", torch.from_numpy(draw.normal(size=(50, width))), torch.from_numpy(draw.normal(size=50)))
        states.append(trained_state(runtime, tmp_path / str(count)))
    one, other = states
    # errors are those of heads that were solved, on 14 rows with 1,600 features
    for name, limit in (("products", 1e-12), ("moments", 1e-12), ("missed", 1e-9)):
        key = f"fit:critic/{name}"
        assert float((other[key] - one[key]).abs().max()) <= limit * float(one[key].abs().max()), key
    for part in ("weight", "bias"):
        assert torch.allclose(other[f"fit:critic/{part}"], one[f"fit:critic/{part}"], rtol=1e-4)


def test_rows_of_one_prompt_stay_together_where_that_divides_as_well() -> None:
    prompts = [np.arange(20) + k for k in range(4)]
    rows = [Row(np.concatenate([prompts[i % 4], np.arange(5 + i % 3)]), 20) for i in range(16)]
    rank = deal_rows(Batch(rows), 2)
    assert all(len({rank[i] for i in range(k, 16, 4)}) == 1 for k in range(4))
    one_prompt = [Row(np.concatenate([prompts[0], np.arange(5)]), 20) for _ in range(8)]
    assert np.bincount(deal_rows(Batch(one_prompt), 2)).tolist() == [4, 4]


def test_dealing_is_even_and_covers_each_row_once() -> None:
    draw = np.random.default_rng(0)
    for workers in (1, 2, 3, 8):
        costs = draw.integers(1, 100, 64)
        rank = deal(costs, workers)
        loads = np.bincount(rank, costs, workers)
        assert loads.sum() == costs.sum() and loads.max() <= loads.mean() + costs.max()
    batch = Batch(rows_of(9), {}, (2, 3, 4))
    groups = [np.flatnonzero(deal_rows(batch, 2) == rank) for rank in range(2)]
    assert sorted(np.concatenate([rows_of_groups(batch, part) for part in groups]).tolist()) == list(range(9))


def test_weights_are_divided_where_they_take_too_much_of_a_gpu(tiny_folder) -> None:
    parameters = sum(p.numel() for p in base.load(tiny_folder, torch.float32, "grouped").parameters())
    lora = RoleSpec(tiny_folder, Lora(), learning_rate=1e-4)
    full = RoleSpec(tiny_folder, learning_rate=1e-4)
    reference = RoleSpec(tiny_folder)
    assert bytes_on_a_gpu({"policy": lora, "reference": reference}) == 2 * parameters
    assert bytes_on_a_gpu({"policy": full, "reference": reference}) == (2 + 18) * parameters
    copied = RoleSpec(copies="policy", learning_rate=1e-4, head="scalar")
    assert bytes_on_a_gpu({"policy": full, "critic": copied}) == 2 * 18 * parameters
