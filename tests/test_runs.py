"""Whole runs of the tiny recipe through the command line: resume bit for bit, reruns, people, export, bad input."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from command import SETTINGS, towpath
from conftest import new_database

pytestmark = pytest.mark.slow


def weights(run: Path) -> dict[str, str]:
    """The hash of every weight file of a run."""
    return {
        str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(run.glob("stages/*/*/*/*.safetensors"))
        if ".tmp" not in str(p)
    }


def results(run: Path) -> dict:
    manifests = [json.loads(p.read_text()) for p in run.glob("stages/*/*/manifest.json")]
    return {m["stage"]: m["result"] for m in manifests}


def test_finished_run_has_reports_and_all_stages_done(finished):
    status = json.loads(towpath("status", finished, *SETTINGS, "--json").stdout)
    assert [s["name"] for s in status["stages"]] == [
        "sft",
        "baseline",
        "sample",
        "label",
        "reward",
        "policy",
        "evaluate",
    ]
    assert {s["state"] for s in status["stages"]} == {"done"}
    assert status["waiting_for"] == ""
    assert (finished / "reports" / "report.html").stat().st_size > 10_000
    summary = json.loads((finished / "reports" / "summary.json").read_text())
    for name in ("sft", "reward", "policy", "evaluate"):
        assert summary["stages"][name]["gate"]["verdict"] in ("PASS", "FAIL", "UNDECIDED")
    assert list(finished.glob("stages/policy/*/tensorboard/events*"))


def test_postgresql_run_has_the_same_weights_and_labels(finished, tmp_path, postgres_server):
    run = tmp_path / "run"
    towpath("new", run, "--recipe", "tiny")
    with (run / "recipe.toml").open("a", encoding="utf-8") as recipe:
        recipe.write(f'\n[store]\nurl = "{new_database(postgres_server)}"\n')
    done = towpath("run", run, *SETTINGS)
    assert done.returncode == 0, done.stderr
    assert weights(run) == weights(finished)
    assert results(run) == results(finished)


def test_run_killed_in_every_stage_resumes_bit_exactly(finished, tmp_path):
    run = tmp_path / "killed"
    towpath("new", run, "--recipe", "tiny")
    faults = [
        "step-sft:2",
        "end-sft:1",
        "end-baseline:1",
        "end-sample:1",
        "end-label:1",
        "step-reward:1",
        "rollout:2",
        "step-policy:2",
        "fsync:3",
        "end-evaluate:1",
    ]
    for fault in faults:
        done = towpath("run", run, *SETTINGS, TOWPATH_FAULT=fault, TOWPATH_CHECKPOINT_SECONDS="0")
        assert done.returncode == -9, (fault, done.stderr)
    done = towpath("run", run, *SETTINGS)
    assert done.returncode == 0, done.stderr
    assert_same_training(run, finished)
    assert results(run) == results(finished)


def assert_same_training(run: Path, other: Path) -> None:
    """Two runs have the same weights, the same optimizer state in their last checkpoints, and the same metrics."""
    names = [path.relative_to(other) for path in other.glob("stages/*/*/*/*.safetensors")]
    assert {name.parts[1] for name in names} == {"sft", "reward", "policy"}
    for name in names:
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    for stage in ("sft", "reward", "policy"):
        (ours,) = run.glob(f"stages/{stage}/*/")
        (theirs,) = other.glob(f"stages/{stage}/*/")
        assert metrics(ours) == metrics(theirs), stage
        last = max((theirs / "checkpoints").glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))
        tensors = (last / "tensors.safetensors").read_bytes()
        assert b"adam:exp_avg_sq" in tensors
        assert (ours / "checkpoints" / last.name / "tensors.safetensors").read_bytes() == tensors, stage


def metrics(stage: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl without what depends on the clock, the machine's memory, or work that was resumed."""
    measured = ("seconds_", "tokens_per_second", "memory_bytes", "sync_bytes", "collective_bytes")
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) > 1
    return [{key: value for key, value in row.items() if not key.startswith(measured)} for row in rows]


def test_changed_value_reruns_dependent_stages_and_names_it(finished, tmp_path):
    run = tmp_path / "changed"
    shutil.copytree(finished, run)
    done = towpath("run", run, *SETTINGS, "--set", "policy.learning_rate=3e-5")
    assert done.returncode == 0, done.stderr
    assert "policy will run again: policy.learning_rate 2e-05 → 3e-05" in done.stderr
    for name in ("sft", "baseline", "sample", "label", "reward"):
        assert f"{name}: already done" in done.stderr
    for name in ("policy", "evaluate"):
        assert f"{name}: done in" in done.stderr


def test_run_waits_for_people_and_continues(finished, tmp_path):
    run = tmp_path / "people"
    shutil.copytree(finished, run)
    more = ("preferences.raters=people", "preferences.min_labels=5", 'evaluate.judges=["rubric"]')
    settings = [*SETTINGS, *(part for value in more for part in ("--set", value))]
    (run / "towpath.db").unlink()
    for stage in ("sample", "label"):  # a ledger that is missing beside them is an error
        shutil.rmtree(run / "stages" / stage)
    waits = towpath("run", run, *settings)
    assert waits.returncode == 0, waits.stderr
    assert "0 of 5" in waits.stderr
    status = json.loads(towpath("status", run, *settings, "--json").stdout)
    assert "0 of 5" in status["waiting_for"]
    assert {s["name"]: s["state"] for s in status["stages"]}["label"] == "waiting"
    pairs = tmp_path / "pairs.jsonl"
    assert towpath("label", "export", run, "--to", pairs).returncode == 0
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert len(rows) > 10
    pairs.write_text(
        "".join(json.dumps(row | {"choice": "a" if len(row["a"]) > len(row["b"]) else "b"}) + "\n" for row in rows)
    )
    assert towpath("label", "import", run, pairs, "--rater", "ann").returncode == 0
    goes_on = towpath("run", run, *settings)
    assert goes_on.returncode == 0, goes_on.stderr
    assert results(run)["label"]["raters"] == {"ann": "person"} or "ann" in json.dumps(
        [json.loads(p.read_text())["result"] for p in run.glob("stages/label/*/manifest.json")]
    )


def test_second_round_samples_from_the_policy(finished, tmp_path):
    run = tmp_path / "rounds"
    shutil.copytree(finished, run)
    done = towpath("run", run, *SETTINGS, "--set", "rounds=2")
    assert done.returncode == 0, done.stderr
    stages = results(run)
    assert {"sample@2", "label@2", "reward@2", "policy@2", "evaluate@2"} <= set(stages)
    assert stages["label@2"]["comparisons"] > stages["label"]["comparisons"]


def test_export_generates_what_the_run_generated_and_the_adapter_loads_in_peft(finished, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    recipe = finished / "recipe.toml"
    assert recipe.is_file()
    for flag, name in ((), "plain"), (("--adapter",), "adapter"):
        done = towpath("export", finished, *SETTINGS, "--to", tmp_path / name, *flag)
        assert done.returncode == 0, done.stderr
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter" / "base", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter")
    ids = torch.tensor([[5, 9, 20, 31, 44]])
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, adapted(input_ids=ids).logits, atol=1e-5, rtol=0)
    assert "Lineage" in (tmp_path / "plain" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "policy.stepz=3"], "did you mean policy.steps"),
        (["--set", "model.source=./nowhere"], "no model there"),
        (["--set", "model.source=nowhere/"], "no model there"),
        (["--set", "data.prompts=nothing/*.jsonl"], "nothing/*.jsonl"),
        (["--set", "sft.learning_rate=0.5"], "learning_rate"),
        (["--set", "data.max_prompt_tokens=20"], "max_prompt_tokens"),
    ],
)
def test_invalid_recipes_are_refused(finished, arguments, words):
    done = towpath("run", finished, *SETTINGS, *arguments)
    assert done.returncode not in (0, -9)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "rule:" in done.stderr or "fix:" in done.stderr


def test_invalid_rows_are_named_by_file_and_line(finished, tmp_path):
    run = tmp_path / "bad"
    shutil.copytree(finished, run)
    path = run / "data" / "prompts" / "home.jsonl"
    path.write_text(path.read_text() + '{"prompt": ""}\nnot json\n')
    done = towpath("check", run, *SETTINGS)
    assert done.returncode == 1
    assert "home.jsonl:121" in done.stderr
    assert "home.jsonl:122" in done.stderr


def test_tokenizer_without_eos_is_refused(finished, tiny_folder, tmp_path):
    folder = tmp_path / "no-eos"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "eos_token"}))
    done = towpath("run", finished, *SETTINGS, "--set", f"model.source={folder}")
    assert done.returncode == 1
    assert "EOS" in done.stderr


def test_failed_gate_stops_the_run(finished, tmp_path):
    run = tmp_path / "closed"
    shutil.copytree(finished, run)
    done = towpath("run", run, *SETTINGS, "--set", "gates.sft.action=stop", "--set", "gates.sft.threshold=0.99")
    assert done.returncode == 3
    assert "gate sft is closed" in done.stderr


FULL = [f"{stage}.method=full" for stage in ("sft", "reward", "policy")]


@pytest.mark.proof
def test_killed_run_with_full_weights_resumes_bit_exactly(tmp_path):
    rates = [
        "sft.learning_rate=2e-4",
        "reward.learning_rate=5e-5",
        "policy.learning_rate=5e-6",
        "policy.ppo.critic_warmup=0",
    ]
    settings = [*SETTINGS, *(part for value in FULL + rates for part in ("--set", value))]
    runs = tmp_path / "at once", tmp_path / "killed"
    for run in runs:
        towpath("new", run, "--recipe", "tiny")
    for fault in ("step-sft:2", "step-reward:1", "rollout:2", "step-policy:2"):
        done = towpath("run", runs[1], *settings, TOWPATH_FAULT=fault, TOWPATH_CHECKPOINT_SECONDS="0")
        assert done.returncode == -9, (fault, done.stderr)
    for run in runs:
        done = towpath("run", run, *settings)
        assert done.returncode == 0, done.stderr
    assert results(runs[0]) == results(runs[1])
    assert_same_training(runs[1], runs[0])
    assert results(runs[0])["policy"]["kl_per_prompt"] != 0, "all weights of the policy move"
    assert not list(runs[0].glob("stages/*/*/adapter"))


def test_policy_above_the_kl_limit_stops_with_the_best_weights(finished, tmp_path):
    run = tmp_path / "bounded"
    shutil.copytree(finished, run)
    limits = [
        "policy.kl.alarm=1",
        "policy.kl.stop=2",
        "policy.steps=6",
        "policy.method=full",
        "policy.learning_rate=0.2",
        "policy.ppo.critic_warmup=0",
        "gates.policy.action=warn",
    ]
    # 47 nats after the first step; --force, because a check refuses such a learning rate
    done = towpath("run", run, "--force", *SETTINGS, *(part for value in limits for part in ("--set", value)))
    assert done.returncode == 0, done.stderr
    assert "no validated step within policy.kl.alarm" in done.stderr
    (manifest,) = (
        m
        for p in run.glob("stages/policy/*/manifest.json")
        if (m := json.loads(p.read_text()))["result"]["best_step"] == 0
    )
    assert "above policy.kl.stop" in manifest["result"]["stopped"]
    (policy,) = (
        p
        for p in run.glob("stages/policy/*")
        if json.loads((p / "manifest.json").read_text())["result"]["best_step"] == 0
    )
    (tuned,) = run.glob("stages/sft/*")
    names = "weights/model.safetensors"
    assert (
        hashlib.sha256((policy / names).read_bytes()).digest() == hashlib.sha256((tuned / names).read_bytes()).digest()
    )


def test_full_disk_is_reported_and_the_run_resumes(finished, tmp_path):
    """A real small file system, where this user may mount one."""
    small = tmp_path / "small"
    small.mkdir()
    size = sum(p.stat().st_size for p in finished.rglob("*") if p.is_file())
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size // 1024 + 400}k", "tmpfs", small], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        run = small / "run"
        shutil.copytree(finished, run)
        settings = [*SETTINGS, "--set", "sft.learning_rate=1e-4"]
        done = towpath("run", run, *settings, "--force")  # past the check that sees it coming
        assert done.returncode == 1
        assert "no space left" in done.stderr
        assert "fix:" in done.stderr
        assert "Traceback" not in done.stderr
        subprocess.run(["mount", "-o", "remount,size=500m", small], check=True)
        done = towpath("run", run, *settings)
        assert done.returncode == 0, done.stderr
    finally:
        subprocess.run(["umount", small], check=True)


def test_nonfinite_weights_stop_with_a_clear_error(finished, tiny_folder, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"].fill_(torch.nan)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    done = towpath("run", run, *SETTINGS, "--set", f"model.source={broken}")
    assert done.returncode == 1
    assert "the tensor model.norm.weight holds NaN or infinity" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_keeps_finished_work(finished, tmp_path):
    run = tmp_path / "interrupted"
    shutil.copytree(finished, run)
    command = [sys.executable, "-m", "towpath", "run", str(run), *SETTINGS, "--set", "seed=5", "--set", "sft.epochs=3"]
    # A shell's background job inherits an ignored SIGINT; a user's terminal does not.
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listening)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(list(run.glob("stages/sft/*/metrics.jsonl"))) < 2:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "completed work is saved" in errors
    assert {s["state"] for s in json.loads(towpath("status", run, *SETTINGS, "--json").stdout)["stages"]} == {"done"}
