"""Whole runs of the tiny recipe through the command line: resume bit for bit, reruns, people, export, bad input."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import new_database

pytestmark = pytest.mark.slow
SMALL = [
    "sft.epochs=0.3",
    "evaluate.prompts=12",
    "preferences.prompts=30",
    "preferences.min_labels=8",
    "policy.steps=3",
    "policy.validate_every=1",
    "evaluate.bootstrap=100",
    "policy.max_new_tokens=12",
    "evaluate.max_new_tokens=12",
    "preferences.max_new_tokens=12",
]
SETTINGS = [part for value in SMALL for part in ("--set", value)]


def towpath(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "towpath", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment, timeout=300
    )


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An uninterrupted run, in a path with spaces."""
    run = tmp_path_factory.mktemp("a run") / "with spaces"
    assert towpath("new", run, "--recipe", "tiny").returncode == 0
    done = towpath("run", run, *SETTINGS)
    assert done.returncode == 0, done.stderr
    return run


def test_a_run_ends_with_reports_and_all_stages_done(whole):
    told = json.loads(towpath("status", whole, *SETTINGS, "--json").stdout)
    assert [s["name"] for s in told["stages"]] == ["sft", "baseline", "sample", "label", "reward", "policy", "evaluate"]
    assert {s["state"] for s in told["stages"]} == {"done"}
    assert told["waiting_for"] == ""
    assert (whole / "reports" / "report.html").stat().st_size > 10_000
    summary = json.loads((whole / "reports" / "summary.json").read_text())
    for name in ("sft", "reward", "policy", "evaluate"):
        assert summary["stages"][name]["gate"]["verdict"] in ("PASS", "FAIL", "UNDECIDED")
    assert list(whole.glob("stages/policy/*/tensorboard/events*"))


def test_on_postgresql_the_run_ends_with_the_same_weights_and_labels(whole, tmp_path, postgres_server):
    run = tmp_path / "run"
    towpath("new", run, "--recipe", "tiny")
    with (run / "recipe.toml").open("a", encoding="utf-8") as recipe:
        recipe.write(f'\n[store]\nurl = "{new_database(postgres_server)}"\n')
    done = towpath("run", run, *SETTINGS)
    assert done.returncode == 0, done.stderr
    assert weights(run) == weights(whole)
    assert results(run) == results(whole)


def test_killed_in_every_stage_and_resumed_it_ends_in_the_same_bits(whole, tmp_path):
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
    assert weights(run) == {
        key: value
        for key, value in weights(whole).items()
        if "checkpoints" not in key and "pending_rollouts" not in key
    } or _same(run, whole)
    assert results(run) == results(whole)
    steps = [
        json.loads(line)["step"]
        for path in run.glob("stages/policy/*/metrics.jsonl")
        for line in path.read_text().splitlines()
        if '"train"' in line
    ]
    assert steps == [0, 1, 2]


def _same(run: Path, whole: Path) -> bool:
    ours = weights(run)
    theirs = weights(whole)
    kept = [key for key in theirs if "/weights/" in key or "/adapter/" in key]
    assert kept
    return all(ours[key] == theirs[key] for key in kept)


def test_a_changed_value_reruns_what_depends_on_it_and_says_why(whole, tmp_path):
    run = tmp_path / "changed"
    shutil.copytree(whole, run)
    done = towpath("run", run, *SETTINGS, "--set", "policy.learning_rate=3e-5")
    assert done.returncode == 0, done.stderr
    assert "policy will run again: policy.learning_rate 2e-05 → 3e-05" in done.stderr
    for name in ("sft", "baseline", "sample", "label", "reward"):
        assert f"{name}: already done" in done.stderr
    for name in ("policy", "evaluate"):
        assert f"{name}: done in" in done.stderr


def test_people_label_and_the_run_goes_on(whole, tmp_path):
    run = tmp_path / "people"
    shutil.copytree(whole, run)
    settings = [*SETTINGS, "--set", "preferences.raters=people", "--set", "preferences.min_labels=5"]
    (run / "towpath.db").unlink()
    for stage in ("sample", "label"):  # a ledger that is missing beside them is an error
        shutil.rmtree(run / "stages" / stage)
    waits = towpath("run", run, *settings)
    assert waits.returncode == 0, waits.stderr
    assert "0 of 5" in waits.stderr
    told = json.loads(towpath("status", run, *settings, "--json").stdout)
    assert "0 of 5" in told["waiting_for"]
    assert {s["name"]: s["state"] for s in told["stages"]}["label"] == "waiting"
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


def test_two_rounds_learn_from_the_policys_own_answers(whole, tmp_path):
    run = tmp_path / "rounds"
    shutil.copytree(whole, run)
    done = towpath("run", run, *SETTINGS, "--set", "rounds=2")
    assert done.returncode == 0, done.stderr
    found = results(run)
    assert {"sample@2", "label@2", "reward@2", "policy@2", "evaluate@2"} <= set(found)
    assert found["label@2"]["comparisons"] > found["label"]["comparisons"]


def test_export_says_what_the_run_said_and_the_adapter_loads_in_peft(whole, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    recipe = whole / "recipe.toml"
    assert recipe.is_file()
    for flag, name in ((), "plain"), (("--adapter",), "adapter"):
        done = towpath("export", whole, *SETTINGS, "--to", tmp_path / name, *flag)
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
def test_bad_recipes_end_in_a_clear_error(whole, arguments, words):
    done = towpath("run", whole, *SETTINGS, *arguments)
    assert done.returncode not in (0, -9)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "rule:" in done.stderr or "fix:" in done.stderr


def test_bad_rows_are_named_by_file_and_line(whole, tmp_path):
    run = tmp_path / "bad"
    shutil.copytree(whole, run)
    path = run / "data" / "prompts" / "home.jsonl"
    path.write_text(path.read_text() + '{"prompt": ""}\nnot json\n')
    done = towpath("check", run, *SETTINGS)
    assert done.returncode == 1
    assert "home.jsonl:121" in done.stderr
    assert "home.jsonl:122" in done.stderr


def test_a_tokenizer_without_end_is_refused(whole, tiny_folder, tmp_path):
    folder = tmp_path / "no-eos"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "eos_token"}))
    done = towpath("run", whole, *SETTINGS, "--set", f"model.source={folder}")
    assert done.returncode == 1
    assert "EOS" in done.stderr


def test_a_gate_that_stops_closes_the_run(whole, tmp_path):
    run = tmp_path / "closed"
    shutil.copytree(whole, run)
    done = towpath("run", run, *SETTINGS, "--set", "gates.sft.action=stop", "--set", "gates.sft.threshold=0.99")
    assert done.returncode == 3
    assert "gate sft is closed" in done.stderr


FULL = [f"{stage}.method=full" for stage in ("sft", "reward", "policy")]


def test_full_weights_in_every_stage_killed_and_resumed(tmp_path):
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
    assert _same(runs[1], runs[0])
    assert results(runs[0])["policy"]["kl_per_prompt"] != 0, "all weights of the policy move"
    assert not list(runs[0].glob("stages/*/*/adapter"))


def test_a_policy_that_leaves_its_bounds_stops_and_the_last_good_weights_are_kept(whole, tmp_path):
    run = tmp_path / "bounded"
    shutil.copytree(whole, run)
    limits = [
        "policy.kl.alarm=1e-7",
        "policy.kl.stop=1e-6",
        "policy.steps=6",
        "policy.lora.alpha=400000",
        "policy.learning_rate=5e-4",
        "policy.ppo.critic_warmup=0",
        "gates.policy.action=warn",
    ]
    done = towpath("run", run, *SETTINGS, *(part for value in limits for part in ("--set", value)))
    assert done.returncode == 0, done.stderr
    assert "no validated step within policy.kl.alarm" in done.stderr
    (manifest,) = (
        m
        for p in run.glob("stages/policy/*/manifest.json")
        if (m := json.loads(p.read_text()))["result"]["best_step"] == 0
    )
    assert "above policy.kl.stop" in manifest["result"]["stopped"]
    (kept,) = (
        p
        for p in run.glob("stages/policy/*")
        if json.loads((p / "manifest.json").read_text())["result"]["best_step"] == 0
    )
    (tuned,) = run.glob("stages/sft/*")
    names = "weights/model.safetensors"
    assert hashlib.sha256((kept / names).read_bytes()).digest() == hashlib.sha256((tuned / names).read_bytes()).digest()


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(whole, tmp_path):
    """A real small file system, where this user may mount one."""
    small = tmp_path / "small"
    small.mkdir()
    size = sum(p.stat().st_size for p in whole.rglob("*") if p.is_file())
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size // 1024 + 400}k", "tmpfs", small], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        run = small / "run"
        shutil.copytree(whole, run)
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


def test_weights_that_are_no_numbers_stop_with_a_clear_error(whole, tiny_folder, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"].fill_(torch.nan)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    done = towpath("run", run, *SETTINGS, "--set", f"model.source={broken}")
    assert done.returncode == 1
    assert "the tensor model.norm.weight holds NaN or infinity" in done.stderr
    assert "Traceback" not in done.stderr


def test_interrupted_by_hand_nothing_finished_is_lost(whole, tmp_path):
    run = tmp_path / "interrupted"
    shutil.copytree(whole, run)
    command = [sys.executable, "-m", "towpath", "run", str(run), *SETTINGS, "--set", "seed=5", "--set", "sft.epochs=3"]
    # A shell's background job inherits an ignored SIGINT; a user's terminal does not.
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listening)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(list(run.glob("stages/sft/*/metrics.jsonl"))) < 2:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "completed work is saved" in said
    assert {s["state"] for s in json.loads(towpath("status", run, *SETTINGS, "--json").stdout)["stages"]} == {"done"}
