"""Out-of-memory handling: with a limited address space passes are split and the gradient stays the same."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from towpath.data.batch import Batch, Row
from towpath.errors import ResourceError
from towpath.recipe import Decoding
from towpath.rollout import generate as sampler
from towpath.rollout.engine import SampleRequest
from towpath.rollout.local import LocalEngine
from towpath.runtime.local import Local
from towpath.runtime.models import Role

PROGRAM = """
import json, resource, sys
import numpy as np, torch
from pathlib import Path
from towpath.data.batch import Batch, Row
from towpath.models import base
from towpath.runtime.local import Local
from towpath.runtime.models import Role

torch.set_num_threads(1)
draw, runtime = np.random.default_rng(0), Local(10**9)
runtime.add_trunk("base", base.load(sys.argv[1], torch.float32, "grouped"), lora=False)
runtime.roles["policy"] = Role(trains=("trunk",))
runtime.start({"policy": 1e-3})
batch = Batch([Row(draw.integers(3, 250, int(n)), 3) for n in draw.integers(20, 60, 900)])
def loss(out, _part):
    total = -out.logp_BT[out.mask_BT].sum()
    return total, {"loss": (total.detach(), out.mask_BT.sum())}


rows = 0
def tick(n):
    global rows
    rows += n
def gradient():
    runtime.forward_backward({"policy": ("logp",)}, batch, loss, 1e4, count=tick)
    found = {key: p.grad.clone() for key, p in runtime.trained().items()}
    norm = runtime.optimizer.norm()
    runtime.optimizer.zero_grad()
    return found, norm
runtime.tokens_per_pass = 1024
plain, norm = gradient()
runtime.score("policy", batch, ("logp",))
runtime.tokens_per_pass = 10**9
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[2]) * 2**20,) * 2)
scores = runtime.score("policy", batch, ("logp",)).logp_BT.sum()
scored = runtime.tokens_per_pass
runtime.tokens_per_pass = 10**9
small, small_norm = gradient()
gap = max(float((small[k] - plain[k]).abs().max()) for k in plain)
print(json.dumps({"gap": gap, "norm": norm, "tokens": runtime.tokens_per_pass, "scored": scored, "rows": rows}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_out_of_memory_halves_the_passes_and_keeps_the_gradient(tiny_folder: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tiny_folder, "100"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["tokens"] < 36_000 and report["gap"] < 1e-5 * report["norm"], report
    assert report["rows"] == 2 * 900, "rows of a pass that failed are not counted"
    lines = [line for line in done.stderr.splitlines() if "out of memory" in line]
    assert lines and f"set model.tokens_per_pass = {report['tokens']}" in lines[-1] and len(lines) < 10


class LimitedEngine(LocalEngine):
    """An engine that runs out of memory above `capacity` rows."""

    capacity = 0
    calls = 0

    def generate(self, requests, greedy=False, tick=None):
        self.calls += 1
        if len(requests) > self.capacity:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().generate(requests, greedy, tick)


def test_out_of_memory_splits_generation(tiny, chat, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    requests = [SampleRequest(chat.prompt(f"Say {i}."), Decoding(), draw.random(12)) for i in range(11)]
    wanted = LocalEngine(tiny, chat.stops, chat.pad).generate(requests)
    engine = LimitedEngine(tiny, chat.stops, chat.pad)
    engine.capacity = 3
    assert [d.token_ids for d in sampler.generate(engine, requests, "test")] == [d.token_ids for d in wanted]
    assert "answers are sampled 3 at a time" in capsys.readouterr().err
    engine.capacity = 0
    with pytest.raises(ResourceError, match="out of memory while one answer is sampled"):
        sampler.generate(engine, requests, "test")


def test_out_of_memory_in_one_row_is_an_error_with_a_fix(tiny) -> None:
    runtime = Local(1024)
    runtime.add_trunk("base", tiny, lora=False)
    runtime.roles["policy"] = Role(trains=("trunk",))
    runtime.start({"policy": 1e-3})

    def loss(_out: object, _part: object) -> tuple:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: you tried to allocate "
            "9 bytes."
        )

    batch = Batch([Row(np.arange(3, 40), 3) for _ in range(4)])
    with pytest.raises(ResourceError, match=r"the longest of 4 rows has 37 tokens(.|\n)*lower max_new_tokens"):
        runtime.forward_backward({"policy": ("logp",)}, batch, loss, 1.0)
    with pytest.raises(RuntimeError, match="another"):
        runtime.forward_backward(
            {"policy": ("logp",)}, batch, lambda _out, _part: (_ for _ in ()).throw(RuntimeError("another")), 1.0
        )
