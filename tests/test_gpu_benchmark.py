"""`make gpu` tried on a CPU: every check and every mark, with nothing installed but what it names; jobs that fail."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import checks, jobs, marks
from benchmarks.gpu.models import Setting
from benchmarks.gpu.targets import targets, unmeasured
from towpath.models import varlen

ROOT = Path(__file__).parent.parent
SETTING = Setting(torch.device("cpu"), tiny=True)
WITHOUT = {"alembic", "argon2", "bitsandbytes", "datasets", "fastapi", "gguf", "nh3", "peft", "pyarrow", "sqlalchemy"}
COMMAND = """
import runpy, sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {without}:
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Missing())
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu_with_few_packages(tmp_path):
    command = [sys.executable, "-c", COMMAND.replace("{without}", repr(WITHOUT)), "--tiny", "--device", "cpu"]
    folders = [tmp_path / "one", tmp_path / "two"]
    outs = [part for folder in folders for part in ("--out", str(folder))]
    done = subprocess.run([*command, *outs], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    one, two = (json.loads((folder / "gpu-tiny-cpu.json").read_text()) for folder in folders)
    assert one == two
    assert [*one["checks"]] == [job.__name__ for job in checks.CHECKS]
    assert [*one["marks"]] == [job.__name__ for job in marks.MARKS]
    assert {result["status"] for kind in ("checks", "marks") for result in one[kind].values()} == {"done"}
    assert one["machine"]["versions"]["torch"] == torch.__version__ and one["machine"]["gemm_flops"] > 0
    assert {target["met"] for target in one["targets"]} == {None}
    assert "12 of 12 checks passed" in done.stdout and "not measured (tiny shapes)" in done.stdout


def test_missing_package_is_named():
    program = "import importlib.util as u; u.find_spec = lambda name: None if name == 'pydantic' else 1\n"
    program += "from benchmarks.gpu.__main__ import require_packages; require_packages()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "missing: pydantic\n" in done.stderr and "pip install pydantic" in done.stderr


def sleeps(_setting):
    time.sleep(60)


def dies(_setting):
    os._exit(9)


def raises(_setting):
    raise ValueError("a figure is wrong")


def measures(setting):
    return {"tiny": setting.tiny}


def test_a_job_that_fails_is_a_result(tmp_path):
    results = [jobs.run(job, SETTING, limit, tmp_path) for job, limit in ((dies, 30), (raises, 30), (sleeps, 0.2))]
    assert [result["status"] for result in results] == ["failed", "failed", "stopped"]
    assert "status 9" in results[0]["reason"] and "not done after 0" in results[2]["reason"]
    assert results[1]["reason"] == "ValueError: a figure is wrong" and "raises" in results[1]["traceback"]
    assert jobs.run(measures, SETTING, 30, tmp_path)["figures"] == {"tiny": True}


def test_checks_notice_rows_that_see_each_other(monkeypatch):
    real = varlen.row_mask
    monkeypatch.setattr(varlen, "row_mask", lambda begin, longest: real(begin[[0, *range(2, len(begin))]], 10**3))
    for check in (checks.log_probabilities, checks.gradients_of_lora):
        with pytest.raises(checks.Wrong, match="varlen is"):
            check(SETTING)


def test_checks_notice_another_optimizer_and_lost_state(monkeypatch):
    monkeypatch.setattr(checks.RandomLocal, "restore", lambda _self, _state: None)
    with pytest.raises(checks.Wrong, match="lora is"):
        checks.resume(SETTING)
    with pytest.raises(checks.Wrong, match=r"x is 0\.3, at most 0\.2"):
        checks.require({"x": 0.3}, {"x": 0.2})
    with pytest.raises(checks.Wrong):
        checks.require({"x": float("nan")}, {"x": 0.2})


def test_targets_are_met_missed_or_not_measured():
    results = {
        "sft_06b": {"figures": {"tokens_per_second": 30_000.0, "flops": 4e14}},
        "policy_06b": {"figures": {"tokens_per_second": 10_000.0, "flops": 1e14}},
        "policy_4b": {"status": "stopped", "reason": "not done after 120 s"},
        "memory_of_ppo": {"figures": {"peak_bytes": 12}},
        "memory_of_sft": {"figures": {"peak_bytes": 10}},
    }
    by_name = {target.name: target for target in targets(results, 1e15)}
    assert [target.is_met for target in by_name.values()] == [True, False, None, True, False, None, None, True, None]
    assert "not measured (not done after 120 s)" in by_name["policy, LoRA, Qwen3-4B shape"].line()
    assert by_name["memory of PPO with four roles over SFT, LoRA"].value == 1.2
    assert "needs vLLM" in by_name["weight sync of 2B"].line() and "MISSED" in "".join(
        t.line() for t in by_name.values()
    )
    assert {target.is_met for target in unmeasured("no GPU")} == {None}
