"""The runtime and the model of a stage: loading, dtype, compilation and checkpoints."""

import gc
import os
import shutil
import subprocess
import sys
import sysconfig
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from towpath.data.batch import Batch, Row
from towpath.data.corpus import Corpus
from towpath.errors import ModelError
from towpath.models import base
from towpath.recipe import Lora, Recipe
from towpath.recipe.reader import check
from towpath.recipe.stage_configs import SftConfig
from towpath.runtime import process
from towpath.runtime.checkpoints import Checkpoints
from towpath.runtime.contract import RoleSpec
from towpath.stages.job import Job


def fine_tuning(folder: Path, **model: object) -> Job[SftConfig]:
    config = SftConfig.from_recipe(check(Recipe, {"model": {"source": "tiny", "dtype": "float32", **model}}, "test"))
    return Job(config, folder, "sft", folder, {}, None, Corpus(()))  # pyright: ignore[reportArgumentType]


class Held:
    """Refers to itself, as models with hooks do: only the garbage collector frees it."""

    def __init__(self) -> None:
        self.itself = self


def test_memory_is_returned_before_a_model_is_loaded_or_exported(tmp_path):
    job = fine_tuning(tmp_path)
    gc.disable()
    try:
        earlier = weakref.ref(Held())
        runtime = job.launch()
        assert earlier() is None
        runtime.open({"policy": RoleSpec(job.base_model)})
        earlier = weakref.ref(Held())
        runtime.export("policy", tmp_path / "model", job.chat)
        assert earlier() is None
    finally:
        gc.enable()


def curve(tmp_path, compiled: bool) -> list[float]:
    """Losses and gradient norms of four steps on ragged rows."""
    job = fine_tuning(tmp_path, attention="sdpa", compile={"on": compiled})
    runtime = job.launch()
    runtime.tokens_per_pass = 256
    runtime.open({"policy": RoleSpec(job.base_model, Lora(rank=4, alpha=8.0), learning_rate=1e-2)})
    norms = []
    draw = np.random.default_rng(0)
    assert all(
        (layer._compiled_call_impl is not None) == compiled
        for layer in runtime.trunks[runtime.roles["policy"].trunk].base_model.layers
    )
    for _ in range(4):
        batch = Batch([Row(draw.integers(3, 250, int(n)), 3) for n in draw.integers(8, 60, 10)])
        runtime.forward_backward(
            {"policy": ("logp",)}, batch, lambda out, _part: (-out.logp_BT[out.mask_BT].sum(), {}), 100.0
        )
        norms.append(runtime.step(1.0, 1e9))
    return norms


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_loaded_weights_do_not_map_the_file(tmp_path):
    shutil.copytree(base.find("tiny"), tmp_path / "model")
    for dtype in (torch.float32, torch.bfloat16):
        model = base.load(str(tmp_path / "model"), dtype, "grouped")
        assert model.dtype == dtype and model.lm_head.weight is model.model.embed_tokens.weight
        assert str(tmp_path / "model") not in Path("/proc/self/maps").read_text()


def can_compile() -> bool:
    """On a CPU torch.compile needs g++, Python's headers, and a torch path without spaces, which it does not quote."""
    return (
        bool(shutil.which("g++"))
        and Path(sysconfig.get_path("include"), "Python.h").is_file()
        and " " not in torch.__file__
    )


@pytest.mark.proof
@pytest.mark.skipif(not can_compile(), reason="torch.compile cannot compile here")
@pytest.mark.filterwarnings("ignore")
def test_compiled_layers_give_the_same_curve(tmp_path):
    torch._dynamo.reset()
    assert curve(tmp_path, True) == pytest.approx(curve(tmp_path, False), rel=1e-4)


def test_dtype_choice_does_not_depend_on_machine_load() -> None:
    def decided() -> bool:
        process._bfloat16_pays.cache_clear()
        return process._bfloat16_pays()

    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        assert len({decided() for _ in range(8)}) == 1
    finally:
        for loop in busy:
            loop.kill()
            loop.wait()
        torch.set_num_threads(threads)


def test_missing_tokenizer_error_names_the_file(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer that transformers can load(.|\n)*put tokenizer.json"):
        base.load_tokenizer(str(tmp_path))


def test_saving_after_a_rewind_removes_later_rollouts(tmp_path):
    """A run that stopped at step 6 resumes at 3: a rollout saved at step 6 is of a policy that no longer exists."""
    checkpoints = Checkpoints(tmp_path)
    for step in (5, 6):
        checkpoints.save(step, {"x": torch.tensor([step])}, {}, prefix="rollout", keep=1)
        checkpoints.save(step, {"x": torch.tensor([step])}, {})
    checkpoints.save(3, {"x": torch.tensor([3])}, {}, prefix="rollout", keep=1)
    assert checkpoints.newest("rollout")[0] == 3
    assert checkpoints.newest()[0] == 6 and sorted(path.name for path in checkpoints.folder.iterdir()) == [
        "rollout_3",
        "step_5",
        "step_6",
    ]
