"""The engine in a process of its own, with a stand-in for vLLM: weights are verified, a lost process is replaced, and
nothing waits without a limit. tests/test_vllm.py has the same with vLLM."""

import copy
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_cases import STOPS, assert_same, change, change_one_projection, sample_requests

from towpath.errors import RecipeError, ResourceError
from towpath.models import base
from towpath.rollout import vllm_client, weight_sync, weight_transport
from towpath.rollout.local import LocalEngine
from towpath.rollout.vllm import VllmEngine, VllmSettings
from towpath.rollout.vllm_process import frames
from towpath.rollout.weight_transport import SharedMemory
from towpath.runtime.weight_source import plain_source, weight_source

REAL = vllm_client.SERVE
STAND_IN = Path(__file__).with_name("stand_in_vllm.py")


@pytest.fixture(scope="module")
def fault(tmp_path_factory):
    """A file in which the name of a fault makes it happen, once."""
    return tmp_path_factory.mktemp("fault") / "fault"


@pytest.fixture(scope="module")
def running(tiny_folder, tmp_path_factory, fault):
    """An engine with the tiny model; the process is replaced by tests that end it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_client, "SERVE", STAND_IN)
        patch.setenv("TOWPATH_ENGINE_FAULT", str(fault))
        settings = VllmSettings(sys.executable, STOPS, 64, timeout=120)
        yield VllmEngine(settings, tmp_path_factory.mktemp("engine") / "vllm")


@pytest.fixture
def model(tiny_folder):
    return base.load(tiny_folder, torch.float32, "grouped")


@pytest.fixture
def engine(running, model, fault):
    running.refresh(model)
    yield running
    fault.unlink(missing_ok=True)


def ours(model, requests, greedy=False):
    return LocalEngine(model, eos=list(STOPS), pad=0).generate(requests, greedy)


def synchronise(engine, model):
    """As `refresh`, but an engine that fails is not ended, so that the next test need not start one."""
    engine._synchronise(plain_source(model), engine._version + 1)


def left_in_shared_memory():
    return list(SharedMemory(Path()).folder.glob(f"towpath-{os.getpid()}-*"))


def test_completions_are_those_of_the_weights_sent_last(engine, model):
    for _ in range(2):
        assert_same(engine.generate(sample_requests()), ours(model, sample_requests()))
        change(model)
        engine.refresh(model)
    assert_same(engine.generate(sample_requests(6), greedy=True), ours(model, sample_requests(6), greedy=True))
    report = engine.last_sync
    assert report.tensors == len(model.state_dict())
    assert report.transport == "shm"
    assert 0 < report.checked <= weight_sync.CHECKED
    assert not left_in_shared_memory()


def test_chunks_are_bounded_and_a_larger_tensor_has_its_own(engine, model, monkeypatch):
    sizes = []
    monkeypatch.setattr(weight_sync, "CHUNK", 50_000)
    buffer = SharedMemory.buffer

    def spy(transport, size):
        sizes.append(size)
        return buffer(transport, size)

    monkeypatch.setattr(SharedMemory, "buffer", spy)
    change(model)
    engine.refresh(model)
    largest = max(weight.numel() * weight.itemsize for weight in model.parameters())
    assert largest > 50_000
    assert max(sizes) <= weight_sync.padded(largest)
    assert_same(engine.generate(sample_requests()), ours(model, sample_requests()))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("corrupt", "came with other values"),
        ("skip", "tensors came; the first that is missing is model"),
        ("stale", "vLLM serves version"),
        ("version", "vLLM serves version"),
        ("damage", "embed_tokens.weight serves with other values"),
    ],
)
def test_wrong_weights_are_caught(engine, model, fault, name, reason):
    change(model)
    fault.write_text(name)
    with pytest.raises(ResourceError, match=reason):
        synchronise(engine, model)
    assert not fault.exists(), "the fault happened"
    assert not left_in_shared_memory()
    engine.refresh(model)
    assert_same(engine.generate(sample_requests(6)), ours(model, sample_requests(6)))


def test_stale_weights_that_cannot_be_read_back_are_caught(engine, model, fault):
    """Only a repacked weight moved, by less than any limit of log-probabilities."""
    change_one_projection(model)
    fault.write_text("stale")
    with pytest.raises(ResourceError, match="vLLM serves version"):
        synchronise(engine, model)
    engine.refresh(model)


def test_an_engine_with_wrong_weights_is_ended(engine, model, fault):
    change(model)
    fault.write_text("corrupt")
    process = engine.process
    with pytest.raises(ResourceError, match="other values"):
        engine.refresh(model)
    assert process.poll() is not None
    engine.refresh(model)


def test_the_same_weights_sent_twice_are_no_stale_weights(engine, model):
    version = engine._version
    engine.refresh(model)
    assert engine._version == version + 1


@pytest.mark.parametrize("name", ["die", "garbage", "half", "hang"])
def test_a_lost_process_costs_only_its_requests(engine, model, fault, name, capsys):
    lost = engine.process
    if name == "hang":
        engine.client.limit = 1.0
    requests = sample_requests()
    sampled = []
    fault.write_text(name)
    completions = engine.generate(requests, tick=lambda units, ended: sampled.append(units))
    assert_same(completions, ours(model, requests))
    assert len(sampled) == len(requests), "completions that were received stay"
    assert engine.process.pid != lost.pid
    assert lost.poll() is not None, "nothing is left of the lost process"
    note = {"die": "ended in sampling", "half": "half a frame", "garbage": "bytes that are no frame", "hang": "nothing"}
    assert note[name] in capsys.readouterr().err


def test_process_lost_between_rollouts_is_replaced(engine, model):
    engine.process.kill()
    change(model)
    engine.refresh(model)
    assert_same(engine.generate(sample_requests(6)), ours(model, sample_requests(6)))


def test_restarts_are_limited(engine, fault, monkeypatch):
    monkeypatch.setattr(engine, "_restarts_left", 0)
    fault.write_text("die")
    with pytest.raises(ResourceError, match="its log") as error:
        engine.generate(sample_requests(6))
    assert "settings" in error.value.value, "the last lines of the log"
    assert "vllm.log" in error.value.fix


def test_weights_that_changed_while_the_process_was_lost_are_refused(engine, model, fault):
    fault.write_text("die")
    change(model)  # the source reads the trainer's own tensors
    with pytest.raises(ResourceError, match="no longer version"):
        engine.generate(sample_requests(6))


def test_transport_that_fails_is_skipped(model, engine, monkeypatch, capsys):
    monkeypatch.setattr(
        weight_sync,
        "candidates",
        lambda device, workers, folder, seconds, wanted: [
            Elsewhere(folder),
            weight_transport.Nccl(device, len(workers), 30),
        ],
    )
    engine._sync.transport = None
    change(model)
    engine.refresh(model)
    assert engine.last_sync.transport == "nccl"
    assert "weights go to vLLM by nccl (shm refused: OSError" in capsys.readouterr().err
    assert_same(engine.generate(sample_requests(6)), ours(model, sample_requests(6)))
    engine._sync.transport = None


class Elsewhere(SharedMemory):
    """A file where the engine does not look."""

    def __init__(self, folder):
        super().__init__(folder)
        self.folder = folder


def test_environment_without_vllm_is_an_error(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_client, "SERVE", REAL)
    engine = VllmEngine(VllmSettings(sys.executable, (2,), 64), tmp_path)
    with pytest.raises(ResourceError, match="No module named 'vllm'"):
        engine.refresh(tiny)


def test_missing_python_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="/nowhere/python"):
        VllmEngine(VllmSettings("/nowhere/python", (2,), 64), tmp_path)


def test_process_ends_with_its_parent(tmp_path, monkeypatch):
    """Even while it is stopped at work, and even if the parent is killed."""
    monkeypatch.setattr(vllm_client, "SERVE", STAND_IN)
    code = f"""
import sys
from pathlib import Path
from towpath.rollout import vllm_client
vllm_client.SERVE = Path({str(STAND_IN)!r})
client = vllm_client.VllmClient(sys.executable, Path({str(tmp_path / "log")!r}), 60)
print(client.process.pid, flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=STAND_IN.parents[1]
    )
    assert parent.stdout
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    until = time.monotonic() + 60
    while Path(f"/proc/{child}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


@pytest.fixture
def channels():
    a, b = socket.socketpair()
    with a, b:
        yield frames.FrameSocket(a), frames.FrameSocket(b), b


def test_frames_keep_arrays(channels):
    sender, receiver, _ = channels
    arrays = {"ids": np.arange(6, dtype=np.int64).reshape(2, 3), "none": np.zeros((0, 4)), "u": np.random.rand(5)}
    sender.send({"do": "x", "n": [1]}, arrays)
    message, received = receiver.receive(5)
    assert message == {"do": "x", "n": [1]}
    for name, array in arrays.items():
        assert received[name].dtype == array.dtype
        assert np.array_equal(received[name], array)


def head(header, arrays):
    return frames.HEAD.pack(frames.MAGIC, header, arrays)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"Traceback (most recent call last)", "no frame"),
        (head(frames.MAX_HEADER + 1, 0), "no frame"),
        (head(2, 0) + b"no", "no JSON object"),
        (head(2, 0) + b"[]", "no JSON object"),
        (head(50, 0) + b"{", "half a frame: 1 of 50"),
        (
            frames.HEAD.pack(frames.MAGIC, 34, 8) + b'{"arrays":[["x","float64",[2]]]}  ' + bytes(8),
            "longer than its frame",
        ),
        (head(34, 8) + b'{"arrays":[["x","object_",[1]]]}  ' + bytes(8), "type 'object_'"),
        (head(13, 8) + b'{"arrays":[]}' + bytes(8), "belong to no array"),
    ],
)
def test_bytes_that_are_no_frame_are_refused(channels, data, reason):
    sender, receiver, _ = channels
    sender.socket.sendall(data)
    sender.socket.shutdown(socket.SHUT_WR)
    with pytest.raises(frames.FrameError, match=reason):
        receiver.receive(5)


def test_silence_is_limited_and_an_end_between_frames_is_an_end(channels):
    sender, receiver, _ = channels
    with pytest.raises(TimeoutError):
        receiver.receive(0.01)
    sender.socket.close()
    with pytest.raises(EOFError):
        receiver.receive(5)


def test_a_copy_of_the_model_is_not_made(tiny_folder, engine):
    """Published weights are merged one at a time."""
    from towpath.recipe import Lora
    from towpath.runtime.contract import RoleSpec
    from towpath.runtime.local import Local

    runtime = Local()
    runtime.open({"policy": RoleSpec(model=tiny_folder, lora=Lora(rank=4), seed=1, learning_rate=1e-3)})
    with torch.no_grad():
        for weight in runtime.trained().values():
            weight += 0.1
    runtime.publish("policy", engine)
    assert not runtime._plain
    streamed = engine.generate(sample_requests())
    local = LocalEngine(None, eos=list(STOPS), pad=0)
    runtime.publish("policy", local)
    assert_same(streamed, local.generate(sample_requests()))


def test_stopped_process_is_named_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_client, "SERVE", STAND_IN)
    client = vllm_client.VllmClient(sys.executable, tmp_path / "log", 0.2)
    os.kill(client.process.pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(ResourceError, match=r"sent nothing for 0\.2 s after 'sleep'"):
        client.ask({"do": "sleep"})
    waited = time.monotonic() - started
    client.end()
    assert client.process.poll() is not None
    assert waited < 60


def test_source_of_a_plain_model_and_of_an_adapter_name_the_same_weights(model):
    from towpath.models.adapters import Adapters

    wrapped = copy.deepcopy(model)
    adapters = Adapters(wrapped)
    adapters.add("policy", 4, 8, seed=1)
    with torch.no_grad():
        for weight in adapters.parameters("policy").values():
            weight += 0.1
    merged = dict(weight_source(wrapped, torch.float32, lambda rows: [], adapters, "policy").tensors())
    plain = copy.deepcopy(model)
    adapters.merge_into(plain, "policy")
    expected = dict(plain_source(plain).tensors())
    assert merged.keys() == expected.keys() == plain.state_dict().keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    assert any(not torch.equal(weight, model.state_dict()[name]) for name, weight in merged.items())
