"""Loss and gradient norm of a step compared with TRL on the same rows and weights.

Needs the environments that `make bench` makes; skipped without them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.models import prepare_model
from benchmarks.run import python_of

ROOT = Path(__file__).parent.parent
SHAPE = {"layers": 2, "width": 64, "heads": 4, "inner": 128, "vocabulary": 512}


def step_of(implementation: str, workload: dict, folder: Path) -> dict[str, float]:
    """Loss and gradient norm of one step of eight rows or pairs, in float32."""
    path = folder / "workload.json"
    out = folder / f"{implementation}.json"
    path.write_text(json.dumps(workload))
    command = [
        python_of(implementation),
        "-m",
        f"benchmarks.implementations.{implementation}",
        path,
        prepare_model(SHAPE, folder / "models"),
        out,
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text())["numbers"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_loss_and_gradient_norm_match_trl(task: str, tmp_path: Path):
    if python_of("trl") == sys.executable:
        pytest.skip("no environment with TRL: `make bench` makes it")
    workload = {
        "task": task,
        "model": SHAPE,
        "prompts": 8,
        "row_tokens": [8, 32],
        "minibatch": 8,
        "precision": "float32",
    }
    ours, theirs = (step_of(name, workload, tmp_path) for name in ("towpath", "trl"))
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
