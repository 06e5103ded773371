"""Accuracy of held-out answers as a gate: the interval of the rise, and a run whose reward and gate check answers."""

import json
from pathlib import Path

import numpy as np
import pytest
from command import towpath

from towpath import recipe
from towpath.run.gates import verdicts
from towpath.stages.answer_accuracy import paired_rise


@pytest.mark.parametrize("rise", [0.0, 0.1, 0.3])
def test_interval_of_the_rise_covers_the_truth(rise: float) -> None:
    draw = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        before = draw.random(150) < 0.4
        after = np.where(before, draw.random(150) < 0.9, draw.random(150) < (0.04 + rise) / 0.6)
        low, high = paired_rise(list(zip(before.tolist(), after.tolist(), strict=True)))["interval"]
        covered += low <= rise <= high
    assert 0.92 <= covered / 400 <= 0.99


def test_rise_counts_changes_and_leaves_out_unscored_prompts() -> None:
    both = [(False, True)] * 6 + [(True, False)] * 2 + [(True, True)] * 2 + [(None, True)]
    row = paired_rise(both)
    assert (row["rate"], row["n"], row["gained"], row["lost"], row["unscored"]) == (0.4, 10, 6, 2, 1)


@pytest.mark.parametrize(
    ("rise", "verdict"), [([0.05, 0.2], "PASS"), ([-0.1, 0.2], "UNDECIDED"), ([-0.2, -0.05], "FAIL")]
)
def test_gate_reads_the_interval(tmp_path: Path, rise: list[float], verdict: str) -> None:
    (tmp_path / "recipe.toml").write_text("[gates]\nrule = 'lower_bound'\n")
    rate = {"rate": 0.5, "interval": [0.4, 0.6], "n": 100}
    accuracy = {"source": "math", "sft": rate, "policy": rate, "rise": rate | {"rate": sum(rise) / 2, "interval": rise}}
    result = {"win": None, "accuracy": accuracy, "safety": {"sft": NO_SAFETY, "policy": NO_SAFETY}}
    by_gate = {v.gate: v for v in verdicts(recipe.load(tmp_path), {"evaluate": result})}
    assert by_gate["accuracy"].verdict == verdict and by_gate["accuracy"].judge == "math"
    assert by_gate["accuracy"].note.startswith("50.0% before, 50.0% after")


NO_SAFETY = {"refusal": 0.0, "over_refusal": 0.0, "harmful_n": 0, "harmless_n": 0}


def test_run_with_a_reward_and_a_gate_that_check_answers(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "data/prompts").mkdir(parents=True)
    (run / "data/demonstrations").mkdir()
    rows = [
        {"prompt": f"{a} + {b} = ?", "reference": str(a + b), "split": "heldout" if b == 3 else "train"}
        for a in range(10, 30)
        for b in range(1, 4)
    ]
    train = [row for row in rows if row["split"] == "train"]
    (run / "data/prompts/p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    demonstrations = [{"prompt": row["prompt"], "response": row["reference"]} for row in train]
    (run / "data/demonstrations/d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in demonstrations))
    (run / "recipe.toml").write_text(
        """
[model]
source = "tiny"
dtype = "float32"
[data]
safety = ""
[sft]
epochs = 1
[policy]
algo = "grpo"
group = 4
rollout = 16
batch = 16
steps = 2
max_new_tokens = 8
validation_prompts = 8
rewards = { sources = [{ source = "rule:reference" }, { source = "math", weight = 0.5 }] }
[evaluate]
judges = ["math"]
accuracy = "rule:reference"
max_new_tokens = 8
bootstrap = 100
[gates]
sft = { action = "warn" }
policy = { action = "warn" }
evaluate = { action = "warn" }
accuracy = { action = "warn" }
"""
    )
    done = towpath("run", run, "--force")
    assert done.returncode == 0, done.stderr
    assert "gate accuracy: " in done.stderr + done.stdout and "by rule:reference" in done.stderr + done.stdout
    summary = json.loads((run / "reports" / "summary.json").read_text())
    gate = summary["stages"]["evaluate"]["accuracy"]
    assert gate["n"] == 20 and gate["judge"] == "rule:reference"
    assert "reward" not in summary["stages"], "no labels and no reward model"
    assert summary["outcome"].startswith("Accuracy by rule:reference on 20 held-out prompts ")
    page = (run / "reports" / "report.html").read_text()
    assert "Accuracy by rule:reference: base" in page
    assert "simulated rater" not in page and "Completions to compare" not in page, "no stage of this run needs labels"
