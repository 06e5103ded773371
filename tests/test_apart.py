"""Workers that only sample, and rollouts that are sampled one update ahead: the same bits as one process gives, also
after a kill."""

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from command import towpath
from test_group import ALGORITHMS, PROMPTS, curves, vowels, weights

import towpath as tp
from towpath import recipe as recipes
from towpath.algos import surrogate
from towpath.data.batch import Batch
from towpath.errors import ResourceError, TrainingError
from towpath.recipe import Cluster, EngineConfig, Lora, Model
from towpath.run import training
from towpath.run.cluster_checks import check_cluster
from towpath.run.fingerprint import plan_stages
from towpath.run.loading import load_corpus
from towpath.runtime.background import Background
from towpath.runtime.contract import OptimizerConfig, RoleSpec
from towpath.runtime.group import Group
from towpath.runtime.launch import launch
from towpath.runtime.launchers import open_workers
from towpath.runtime.weight_bridge import WeightBridge
from towpath.runtime.workers import _shared, close_shared_workers, shared_workers
from towpath.stages.job import Job
from towpath.store import manifest

pytestmark = pytest.mark.slow
APART = {"workers": 2, "sample_workers": 1, "threads": 1, "timeout": 5.0}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """As each worker has."""
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    close_shared_workers()


def train(name: str, folder: Path, cluster: dict | None = None, **settings) -> training.Trained:
    common = {"model": "tiny", "dtype": "float32", "max_new_tokens": 8, "validate_every": 2, "learning_rate": 1e-4}
    algo = name.partition("-")[0]
    settings = common | ALGORITHMS[name] | {"steps": 4} | settings
    return tp.train(algo, folder=folder, prompts=PROMPTS, reward=vowels, cluster=cluster or {}, **settings)


def require_same(one: training.Trained, other: training.Trained) -> None:
    assert curves(one) == curves(other)
    for key, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[key]), key


PROOF = pytest.mark.proof
"""What a case shows is shown by another one, too, on other parts of the code."""


@pytest.mark.parametrize(
    ("name", "staleness"),
    [
        ("ppo", 0),
        ("ppo-full", 1),
        *(pytest.param(*case, marks=PROOF) for case in (("ppo", 1), ("ppo-full", 0), ("grpo", 1))),
    ],
)
def test_a_worker_that_trains_and_one_that_samples_give_the_bits_of_one_process(name, staleness, tmp_path) -> None:
    one = train(name, tmp_path / "one", staleness=staleness)
    apart = train(name, tmp_path / "apart", APART, staleness=staleness)
    require_same(one, apart)
    # the worker that trains has sampled nothing, and the other has trained nothing
    trains, samples = manifest.read_workers(apart.job.folder)["workers"]
    assert (trains["rank"], samples["rank"]) == (0, 1)
    assert trains["seconds"]["train"] > 0 and trains["seconds"]["sample"] == 0
    assert samples["seconds"]["sample"] > 0 and samples["seconds"]["train"] == 0
    assert trains["seconds"]["sync"] > 0 and samples["sync_bytes"] > 0


def test_stale_rollouts_are_those_of_the_policy_one_update_earlier(tmp_path) -> None:
    fresh = train("grpo", tmp_path / "fresh")
    stale = train("grpo", tmp_path / "stale", staleness=1)
    steps = [[row for row in one.metrics if row["phase"] == "train"] for one in (fresh, stale)]
    assert all(row["sampler_error"] < 1e-4 and "stale_error" not in row for row in steps[0])
    # the first rollout is sampled by the policy that it trains
    first, *later = (row["stale_error"] for row in steps[1])
    assert first < 1e-4 and all(error > 100 * first for error in later), (first, later)
    # it is the same in both, so that the first update is, and the policy has moved when the second is scored
    assert steps[1][0]["policy_loss"] == pytest.approx(steps[0][0]["policy_loss"], abs=1e-6)
    assert steps[1][0]["kl"] == pytest.approx(0.0, abs=1e-5) and abs(steps[1][1]["kl"]) > 1e-4
    assert not any("sampler_error" in row for row in steps[1])


def test_stale_tokens_are_weighted_by_the_policy_over_the_one_that_sampled(tmp_path, monkeypatch) -> None:
    weights_seen: list[torch.Tensor] = []

    def corrected(old_BT: torch.Tensor, batch: Batch) -> torch.Tensor:
        weights_seen.append(original(old_BT, batch)[torch.as_tensor(batch.mask_BT)])
        return original(old_BT, batch)

    original = surrogate._corrected
    monkeypatch.setattr(surrogate, "_corrected", corrected)
    train("grpo", tmp_path / "fresh")
    assert not weights_seen  # the engine is the trainer's own, and samples by the weights that it has
    train("grpo", tmp_path / "stale", staleness=1)
    spread = [float((weights - 1).abs().max()) for weights in weights_seen]
    assert len(spread) >= 4 and spread[0] < 1e-4 and max(spread[1:]) > 1e-3
    assert max(float(weights.max()) for weights in weights_seen) <= EngineConfig().correction


@pytest.mark.parametrize(
    ("name", "shard"),
    [
        ("ppo-full", "fsdp"),
        *(
            pytest.param(*case, marks=PROOF)
            for case in (("ppo", "replicate"), ("ppo", "fsdp"), ("ppo-full", "replicate"))
        ),
    ],
)
def test_two_workers_train_and_two_sample(name, shard, tmp_path, monkeypatch) -> None:
    """In float64, so that the order of sums makes no visible difference; also with weights that are gathered before
    they are sent."""

    def launch_apart(model: Model, pad, packing=True, training=True, cluster=None, samples_apart=False):
        parts = [shared_workers(["cpu"] * 2, 1, 60.0, part=part) for part in ("training", "sampling")]
        sampling = Group(parts[1], model, pad, torch.float64, packing, training)
        return Group(parts[0], model, pad, torch.float64, packing, training, shard, sampling)

    def launch_one(model: Model, pad, packing=True, training=True, cluster=None, samples_apart=False):
        return Group(shared_workers(["cpu"], 1, 60.0), model, pad, torch.float64, packing, training)

    trained = []
    for number, launcher in enumerate((launch_one, launch_apart)):
        monkeypatch.setattr(training, "Job", functools.partial(Job, launcher=launcher))
        model = {"source": "tiny", "attention": "sdpa"}
        trained.append(train(name, tmp_path / str(number), model=model, learning_rate=1e-5, staleness=1))
    one, apart = trained
    for row, expected in zip(curves(apart), curves(one), strict=True):
        assert row == pytest.approx(expected, rel=1e-6, abs=1e-9)
    for key, tensor in weights(one).items():
        assert float((weights(apart)[key] - tensor).norm()) <= 1e-6 * float(tensor.norm()), key


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> training.Trained:
    trained = train("ppo", tmp_path_factory.mktemp("undisturbed"), APART, staleness=1)
    close_shared_workers()
    return trained


POINTS = (
    "begin-send_here",
    "begin-receive_here",
    "end-receive_here",
    "end-publish_here",
    "begin-generate_here",
    "end-generate_here",
)


@pytest.mark.parametrize(
    ("point", "action"),
    [
        ("begin-receive_here", "kill"),
        *(
            pytest.param(point, action, marks=PROOF)
            for point in (*POINTS, "begin-step", "begin-connect_here", "begin-connect_first_here")
            for action in ("kill", "stop", "garbage", *["raise"] * point.startswith("begin"))
        ),
    ],
)
def test_a_lost_worker_costs_a_restart(undisturbed, point, action, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TOWPATH_CHECKPOINT_SECONDS", "0")
    fault_file = tmp_path / "fault_file"
    monkeypatch.setenv("TOWPATH_WORKER_FAULT", f"0:{point}:1:{action}:{fault_file}")
    if action == "raise":
        with pytest.raises(Exception, match="a fault at"):
            train("ppo", tmp_path / "run", APART, staleness=1)
    trained = train("ppo", tmp_path / "run", APART, staleness=1)
    assert fault_file.exists(), f"{point} was not passed"
    require_same(undisturbed, trained)
    if action != "raise":
        assert len(manifest.read_restarts(trained.job.folder)) == 1


@PROOF
@pytest.mark.parametrize("moment", range(20))
def test_random_moments(undisturbed, moment, tmp_path, monkeypatch) -> None:
    import random

    monkeypatch.setenv("TOWPATH_CHECKPOINT_SECONDS", "0")
    draw = random.Random(moment)

    def strike() -> None:
        for workers in list(_shared.values())[draw.randrange(2) :][:1]:
            with suppress(ProcessLookupError):
                os.kill(workers.states[0].pid, draw.choice([signal.SIGKILL, signal.SIGSTOP]))

    timer = threading.Timer(draw.uniform(0.1, 6.0), strike)
    timer.start()
    trained = train("ppo", tmp_path / "run", APART, staleness=1)
    timer.cancel()
    require_same(undisturbed, trained)


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_apart import APART, train
train("ppo", Path(sys.argv[2]), APART, staleness=1)
"""


@pytest.mark.parametrize(
    ("how", "step"), [("kill", 2), *(pytest.param(*case, marks=PROOF) for case in (("stop", 1), ("kill", 1)))]
)
def test_a_training_that_ends_early_resumes_with_the_same_bits(undisturbed, how, step, tmp_path, monkeypatch) -> None:
    """Killed or stopped while a rollout is ahead: the checkpoint has that of its next step."""
    environment = os.environ | {"TOWPATH_CHECKPOINT_SECONDS": "0" if how == "kill" else "1000"}
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(tmp_path / "run")]
    with (tmp_path / "err").open("w") as errors:
        process = subprocess.Popen(command, env=environment, stderr=errors)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        metrics = "".join(path.read_text() for path in tmp_path.glob("run/*/metrics.jsonl"))
        saved = list(tmp_path.glob(f"run/*/checkpoints/step_{step}"))
        if saved if how == "kill" else metrics.count('"train"') >= step:
            break
        time.sleep(0.005)
    process.kill() if how == "kill" else process.terminate()
    assert process.wait(60) == (-9 if how == "kill" else 75), (tmp_path / "err").read_text()
    newest = max(tmp_path.glob("run/*/checkpoints/step_*"))
    assert (newest / "rollout_ahead.safetensors").exists()
    require_same(undisturbed, train("ppo", tmp_path / "run", APART, staleness=1))


def test_the_placement_does_not_change_a_stage_and_staleness_does(tmp_path) -> None:
    run = tmp_path / "run"
    assert towpath("new", run, "--recipe", "tiny").returncode == 0

    def fingerprint(*settings: str) -> str:
        recipe = recipes.load(run, [*settings])
        stages = plan_stages(recipe, run, load_corpus(recipe, run), None)
        return next(stage.fingerprint for stage in stages if stage.kind == "policy")

    plain = fingerprint()
    assert fingerprint("cluster.workers=2", "cluster.sample_workers=1") == plain
    assert fingerprint("policy.staleness=1") != plain
    assert fingerprint("policy.staleness=1", "engine.correction=3") != fingerprint("policy.staleness=1")
    assert fingerprint("engine.correction=3") == plain


def test_workers_of_all_stages_and_of_parts_are_not_there_at_the_same_time() -> None:
    cluster = Cluster(**APART)
    model = Model(source="tiny")
    everyone = open_workers(model, cluster)
    training_part = open_workers(model, cluster, "training")
    sampling_part = open_workers(model, cluster, "sampling")
    assert everyone and training_part and sampling_part
    assert (everyone.count, training_part.count, sampling_part.count) == (2, 1, 1)
    with pytest.raises(ProcessLookupError):
        for _ in range(50):
            os.kill(everyone.states[0].pid, 0)
            time.sleep(0.1)
    assert open_workers(model, cluster, "training") is training_part
    again = open_workers(model, cluster)
    assert again is not everyone and again is not None and again.ask("memory", [{}, {}])


@pytest.mark.parametrize(("workers", "word"), [("auto", "one process"), (1, "1 worker"), (2, "2 workers")])
def test_at_least_one_worker_must_train(workers, word) -> None:
    cluster = Cluster(workers=workers, sample_workers=2)
    with pytest.raises(ResourceError, match=rf"cluster.sample_workers = 2 with {word} in all"):
        launch(Model(source="tiny", device="cpu"), 0, cluster=cluster, samples_apart=True)


def test_check_names_too_few_workers_and_staleness_without_gain(tmp_path) -> None:
    run = tmp_path / "run"
    assert towpath("new", run, "--recipe", "tiny").returncode == 0
    recipe = recipes.load(run, ["cluster.sample_workers=1"])
    (finding,) = check_cluster(recipe, run, tmp_path)
    assert (
        finding.severity == "error" and "one process" in finding.evidence and "cluster.workers to 2" in finding.remedy
    )
    recipe = recipes.load(run, ["policy.staleness=1"])
    (finding,) = check_cluster(recipe, run, tmp_path)
    assert finding.severity == "warning" and "no time is gained" in finding.cause
    recipe = recipes.load(
        run, ["policy.staleness=1", "cluster.workers=2", "cluster.sample_workers=1", "engine.correction=0"]
    )
    findings = [one for one in check_cluster(recipe, run, tmp_path) if one.severity == "warning"]
    assert [one.remedy for one in findings] == ["set engine.correction = 2"]
    recipe = recipes.load(run, ["policy.staleness=1", "policy.algo=dpo"])
    (finding,) = check_cluster(recipe, run, tmp_path)
    assert "with dpo" in finding.evidence and "there are no rollouts" in finding.cause


def test_a_background_function_gives_its_result_or_its_error() -> None:
    assert Background(lambda: 3).result() == 3
    failed = Background(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failed.result()
    assert failed.done and failed.wait(0)


def test_other_weights_than_were_sent_are_named(monkeypatch, tiny_folder) -> None:
    """The bits that arrived are compared with those that were sent, each time."""
    model = Model(source="tiny", dtype="float32")
    runtime = launch(model, 0, cluster=Cluster(**APART), samples_apart=True)
    assert isinstance(runtime, Group) and runtime.samplers
    spec = RoleSpec(tiny_folder, Lora(), learning_rate=1e-4)
    runtime.open({"policy": spec}, OptimizerConfig())
    bridge = WeightBridge(runtime, runtime.samplers)
    bridge.send("policy")
    received = runtime.samplers.run_everywhere
    monkeypatch.setattr(
        runtime.samplers, "run_everywhere", lambda name, **own: [bits + 1 for bits in received(name, **own)]
    )
    with pytest.raises(
        TrainingError, match=r"worker 1 of those that sample \(.*\) has other weights than were sent for"
    ):
        bridge.send("policy")
