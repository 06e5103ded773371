"""The benchmark harness: workloads give every implementation the same rows, unequal work is refused, and a small
workload runs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import frontier, simulated_people
from benchmarks.machine import optimise_flops
from benchmarks.run import compare_runs, rates
from benchmarks.workload import EOS, Workload
from towpath.records import Message
from towpath.store.task_queue import TaskView
from towpath.view.report.frontier import best_of_n
from towpath.web import pages

ROOT = Path(__file__).parent.parent
SMALL = {
    "model": {"layers": 2, "width": 64, "heads": 4, "inner": 128, "vocabulary": 512},
    "prompts": 8,
    "prompt_tokens": 6,
    "minibatch": 4,
}


def test_workload_files_load_and_rows_are_deterministic():
    for path in sorted((ROOT / "benchmarks" / "workloads").rglob("*.json")):
        workload = Workload.read(path)
        assert workload.prompt_ids(512, 4)[: workload.prompts] == workload.prompt_ids(512)
        assert max(workload.answer_lengths()) == workload.new_tokens[1]
    pairs = Workload("w", "dpo", prompts=5).rows(512, 2)
    assert pairs == Workload("w", "dpo", prompts=5).rows(512, 2)
    assert all(
        answer[-1] == EOS and 16 <= len(prompt) + len(answer) <= 256 for prompt, both in pairs for answer in both
    )


def test_unknown_workload_key_is_refused(tmp_path: Path):
    (tmp_path / "w.json").write_text('{"task": "ppo", "promts": 3}')
    with pytest.raises(SystemExit, match="promts"):
        Workload.read(tmp_path / "w.json")


def run_result(seconds: float, tokens: int) -> dict:
    return {
        "seconds": seconds,
        "phases": {"optimise": seconds},
        "peak_memory_bytes": 100,
        "work": {"updates": 4, "tokens_optimised": tokens},
    }


def test_ratios_use_medians_and_unequal_work_is_refused():
    workload = Workload("w", "sft")
    result = compare_runs(
        workload,
        {
            "a": [run_result(1.0, 9), run_result(3.0, 9), run_result(2.0, 9)],
            "b": [run_result(6.0, 9), run_result(9.0, 9), run_result(8.0, 9)],
        },
    )
    assert result["ratios"]["b"]["speed"] == 4.0
    with pytest.raises(SystemExit, match="unequal work: tokens_optimised"):
        compare_runs(workload, {"a": [run_result(1.0, 9)], "b": [run_result(6.0, 8)]})


def test_optimise_flops_match_a_hand_count(tmp_path: Path):
    """Two layers of width 8: 2(8*8 + 8*4 + ...) per token; a head of 10 tokens; six rows of 20 tokens, five of them
    answer tokens."""
    shape = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 10,
    }
    (tmp_path / "config.json").write_text(json.dumps(shape))
    work = {"answers": 6, "answer_tokens": 30, "tokens_optimised": 120}
    linear = 2 * (2 * 64 + 2 * 8 * 4 + 3 * 8 * 12)
    attention = 2 * 8 * 20
    head = 8 * 10
    once = 2 * 120 * (linear + attention) + 2 * 30 * head
    assert optimise_flops(Workload("w", "grpo"), tmp_path, work) == 3 * once
    assert optimise_flops(Workload("w", "grpo", method="lora"), tmp_path, work) == 2 * once
    assert optimise_flops(Workload("w", "ppo"), tmp_path, work) == 3 * (once + 2 * 120 * (linear + attention))
    result = {"medians": {"a": {"seconds": 4.0, "generate": 2.0, "optimise": 2.0}}, "work": {"a": work}}
    peaks = {"gemm_flops": {"float32": once, "float32, medium": 3 * once, "bfloat16": 9 * once}}
    rates(Workload("w", "grpo", projected_to=5400), tmp_path, peaks, result)
    medians = result["medians"]["a"]
    assert (
        medians["share_of_peak"],
        medians["tokens_per_second_generate"],
        medians["completions_per_second"],
        medians["projected_hours"],
    ) == (0.5, 15, 1.5, 1.0)


@pytest.mark.proof
@pytest.mark.parametrize(
    "task, work",
    [
        ({"task": "ppo", "new_tokens": [2, 7], "epochs": 2, "precision": "float32"}, {"answers": 8, "updates": 4}),
        ({"task": "dpo", "row_tokens": [8, 20], "precision": "bfloat16"}, {"updates": 2}),
    ],
)
def test_small_workload_runs(tmp_path: Path, task: dict, work: dict):
    (tmp_path / "small.json").write_text(json.dumps(SMALL | task))
    command = [
        sys.executable,
        "-m",
        "benchmarks.run",
        str(tmp_path / "small.json"),
        "--implementations",
        "towpath",
        "--turns",
        "1",
    ]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "out.json")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    counted = result["work"]["towpath"]
    assert {key: counted[key] for key in work} == work
    workload = Workload.read(tmp_path / "small.json")
    if workload.task == "ppo":
        lengths = workload.answer_lengths()
        assert counted["answer_tokens"] == sum(lengths)
        assert counted["tokens_optimised"] == 2 * (sum(lengths) + 8 * 6)
    else:
        assert counted["tokens_optimised"] == sum(len(p) + len(a) for p, both in workload.rows(512, 2) for a in both)
    assert result["machine"]["gemm_flops"]["bfloat16"] > 0


@pytest.mark.parametrize("n", [1.5, 2.0, 5.0, 20.0])
def test_best_of_n_has_gain_share_one(n: float):
    assert frontier.gain_share(*best_of_n(n)) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(("strength", "rate"), [(1.0, 0.7602), (2.0, 0.6382)])
def test_optimum_of_a_normal_reward_matches_the_closed_form(
    monkeypatch: pytest.MonkeyPatch, strength: float, rate: float
):
    """A normal tilted by e^(reward / strength) moves by d = 1 / strength: KL is d^2 / 2, win rate Phi(d / sqrt 2)."""
    monkeypatch.setattr(frontier, "sample", lambda start, prompts, seed, stream: (None, None, prompts))
    monkeypatch.setattr(
        frontier, "gold", lambda prompts, answers: np.random.default_rng(0).standard_normal(len(answers)).tolist()
    )
    point = frontier.tilted_optimum("", strength, 0)
    assert point["kl"] == pytest.approx(0.5 / strength**2, rel=0.02)
    assert point["win_rate"] == pytest.approx(rate, abs=0.003)


def test_simulated_people_read_the_page():
    history = (Message("system", "Be brief."), Message("user", "Locks?"), Message("assistant", "Canals have them."))
    answers = ("* water\n* a boat\n\nA **gate** opens.", "<think>Which lock?</think>Which lock", "")
    task = TaskView("k1", "How does a lock fill with *water*?", "work", answers[:2], history=history)
    page = simulated_people.PageText(pages.render_fragment("_task.html", task=task, trial=None))
    assert page.prompt.split() == "How does a lock fill with water ?".replace(" ?", "?").split()
    assert [" ".join(text.split()) for text in page.answers] == ["water a boat A gate opens.", "Which lock"]
    empty = TaskView("k1", "Why?", "work", answers[1:])
    page = simulated_people.PageText(pages.render_fragment("_task.html", task=empty, trial=None))
    assert page.answers[1] == "This answer is empty."
