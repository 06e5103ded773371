"""The health monitor in small real trainings: findings, interventions, samples, and equal results after a resume."""

import json
import math
import os
import subprocess
import sys
import textwrap
from itertools import count
from pathlib import Path

import pytest
import torch

import towpath as tp
from towpath import metrics
from towpath.data.corpus import Corpus
from towpath.errors import TrainingError
from towpath.health import monitor, remedies
from towpath.health.monitor import Action
from towpath.models.heads import RidgeHead, ScalarHead
from towpath.recipe import Recipe
from towpath.recipe.stage_configs import PolicyConfig
from towpath.records import Prompt
from towpath.runtime.local import Local
from towpath.runtime.models import Role
from towpath.stages import loop as train_loop
from towpath.stages import requeue
from towpath.stages.job import Job
from towpath.stages.loop import TrainState
from towpath.store import jsonl, manifest, rater_stats
from towpath.store.store import Store

PROMPTS = [f"Say something about number {i}." for i in range(40)]


def vowels(_prompts, answers):
    return [sum(sign in "aeiou" for sign in answer) / max(len(answer), 1) for answer in answers]


def consonants(_prompts, answers):
    return [sum(sign in "bcdfg" for sign in answer) / max(len(answer), 1) for answer in answers]


def unbounded(prompts, answers):
    return [1e38 if i == 0 else x for i, x in enumerate(vowels(prompts, answers))]


COMMON = {
    "steps": 8,
    "method": "full",
    "dtype": "float32",
    "max_new_tokens": 8,
    "rollout": 16,
    "batch": 8,
    "epochs": 1,
    "validate_every": 2,
}


def train(folder: Path, **more):
    options = (
        {"model": "tiny", "prompts": PROMPTS, "reward": vowels, "folder": folder, "learning_rate": 1e-3, "kl": 0.1}
        | COMMON
        | more
    )
    return tp.train("ppo", **options)


def test_high_learning_rate_is_reported_and_lowered(tmp_path: Path, capsys) -> None:
    plain = train(tmp_path / "plain", learning_rate=0.3)
    assert "learning-rate-high" in [f.code for f in plain.findings]
    assert "critical: learning-rate-high from step" in capsys.readouterr().err
    assert not jsonl.read(plain.job.folder / "interventions.jsonl")
    mended = train(tmp_path / "mended", learning_rate=0.3, health={"act": "auto"})
    turns = jsonl.read(mended.job.folder / "interventions.jsonl")
    assert turns[0]["knob"] == "learning_rate_scale"
    assert turns[0]["to"] == pytest.approx(0.1)
    assert "remedy after step" in capsys.readouterr().err
    after = [row for row in mended.metrics if row["phase"] == "train" and row["step"] == turns[0]["step"] + 1]
    assert after[0]["learning_rate_scale"] == pytest.approx(0.1)
    assert mended.result["interventions"][0]["finding"] == "learning-rate-high"


def test_best_step_is_reset_after_a_reward_change(tmp_path: Path, monkeypatch) -> None:
    turn = remedies.Intervention(
        3, "diversity_bonus", 0.0, -5.0, "for this test: every earlier validation was better", "diversity-collapse"
    )
    monkeypatch.setattr(
        remedies, "next_intervention", lambda _f, _h, _k, made, step, _most: turn if step == 3 and not made else None
    )
    trained = train(tmp_path, health={"act": "auto"})
    looks = {row["step"]: row for row in trained.metrics if row["phase"] == "validation"}
    assert [step for step, row in looks.items() if "reward_turned" in row] == [5, 7]
    assert all(looks[step]["reward_turned"] < looks[step]["reward"] for step in (5, 7))
    assert trained.result["best_step"] == max((5, 7), key=lambda step: looks[step]["reward_turned"]) + 1


def test_nan_gradient_stops_training_and_names_the_weights(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"gradient is nan in policy/model\."):
        train(tmp_path / "plain", reward=unbounded)
    calls = count()

    def once(prompts, answers):
        return (unbounded if next(calls) == 1 else vowels)(
            prompts, answers
        )  # call 1 is the first rollout, after the first validation

    reward = {"source": once, "name": "once"}
    mended = train(tmp_path / "mended", reward=reward, health={"act": "auto", "max_interventions": 1})
    made = jsonl.read(mended.job.folder / "interventions.jsonl")
    assert [(turn["knob"], turn["back"]) for turn in made] == [("learning_rate_scale", True)]
    assert {"not-finite", "reward-unbounded"} <= {f.code for f in mended.findings}


def test_restoring_the_best_weights_resets_the_optimizer(tiny) -> None:
    runtime = Local(512, pad=0)
    runtime.add_trunk("base", tiny, lora=False)
    runtime.roles["policy"] = Role("base", trains=("trunk",))
    runtime.start({"policy": 1e-3})
    head = ScalarHead(4)
    runtime.roles["critic"] = Role("base", head=head, closed_form_head=RidgeHead(head))
    runtime.roles["critic"].closed_form_head.learn(torch.randn(8, 4), torch.randn(8))
    best = runtime.snapshot()
    weight = next(iter(runtime.trained().values()))
    state = TrainState({}, stopped="KL 5 above policy.kl.stop = 4")
    runtime.roles["critic"].closed_form_head.learn(
        torch.randn(8, 4), 200 * torch.randn(8)
    )  # values of a diverged policy
    for _ in range(2):
        weight.grad = torch.ones_like(weight)
        runtime.step(1.0, 1.0)
    train_loop._apply(Action({"learning_rate_scale": 0.1}, restore_best=True), runtime, state, best)
    assert all(torch.equal(value, best[name]) for name, value in runtime.snapshot().items())
    assert torch.equal(runtime.roles["critic"].closed_form_head.products_EE, best["fit:critic/products"])
    assert not any(value.any() for name, value in runtime.state().items() if "exp_avg" in name)
    assert (state.stopped, state.knobs) == ("", {"learning_rate_scale": 0.1})


def test_samples_of_every_validation_are_stored(tmp_path: Path) -> None:
    trained = train(tmp_path, rewards__watch=[])
    rows = jsonl.read(trained.job.folder / "samples.jsonl")
    steps = sorted({row["step"] for row in rows})
    assert steps == [-1, 1, 3, 5, 7]
    assert {row["prompt_id"] for row in rows if row["step"] == -1} == {
        row["prompt_id"] for row in rows if row["step"] == 7
    }
    assert all(math.isclose(row["score"], vowels([], [row["text"]])[0], abs_tol=1e-4) for row in rows)
    first = next(row for row in trained.metrics if row["phase"] == "validation")
    assert first["step"] == -1
    assert abs(first["kl"]) < 1e-4


def test_watched_source_is_logged_and_never_rewarded(tmp_path: Path) -> None:
    from towpath.rewards import sources

    name = sources.register_function(consonants)
    watched = train(tmp_path / "one", rewards__watch=[name])
    alone = train(tmp_path / "two")
    pick = ("reward", "kl", "grad_norm")
    ours, theirs = (
        [[row[key] for key in pick] for row in t.metrics if row["phase"] == "train"] for t in (watched, alone)
    )
    assert ours == theirs
    assert all(f"watched/{name}" in row for row in watched.metrics)


def test_number_of_diagnoses_is_limited(tmp_path: Path, monkeypatch) -> None:
    diagnosed = []
    diagnose = monitor.diagnose
    monkeypatch.setattr(monitor, "diagnose", lambda *arguments: diagnosed.append(1) or diagnose(*arguments))
    trained = train(tmp_path / "every")
    assert len(diagnosed) == COMMON["steps"]
    assert all("seconds_watch" in row for row in trained.metrics if row["phase"] == "train")
    diagnosed.clear()
    monkeypatch.setattr(monitor, "MAX_DIAGNOSES", 4)
    train(tmp_path / "limited")
    assert len(diagnosed) == 4


INTERRUPTED = """
    import sys, towpath as tp
    sys.path.insert(0, {tests!r})
    from test_watch import train
    from pathlib import Path
    train(Path({folder!r}), learning_rate=0.3, health={{"act": "auto"}})
"""


def test_resumed_run_makes_the_same_interventions(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", learning_rate=0.3, health={"act": "auto"})
    code = textwrap.dedent(INTERRUPTED.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "cut")))
    environment = {"TOWPATH_FAULT": "step-policy:6", "TOWPATH_CHECKPOINT_SECONDS": "0"}
    broken = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert broken.returncode != 0, broken.stderr[-2000:]
    again = train(tmp_path / "cut", learning_rate=0.3, health={"act": "auto"})
    assert json.dumps(jsonl.read(again.job.folder / "interventions.jsonl")) == json.dumps(
        jsonl.read(whole.job.folder / "interventions.jsonl")
    )
    keep = ("reward", "kl", "grad_norm", "learning_rate_scale")
    ours, theirs = ([{k: row.get(k) for k in keep} for row in t.metrics] for t in (again, whole))
    assert ours == theirs
    assert {f.code for f in again.job.findings} == {f.code for f in whole.job.findings} != set()


def test_exploited_answers_are_requeued(tmp_path: Path) -> None:
    reward = tmp_path / "reward"
    folder = tmp_path / "policy" / "f1f2f3f4"
    for stage_folder in (reward, folder):
        stage_folder.mkdir(parents=True)
    manifest.write(reward, {"inputs": {"sft": "aaaa", "sample": "abcdef012345", "label": "bbbb"}})
    prompts = tuple(Prompt(f"p{i}", f"Ask {i}", "money") for i in range(30))
    rows = [
        {
            "step": step,
            "prompt_id": p.id,
            "prompt": p.prompt,
            "domain": p.domain,
            "text": f"{step} {p.id}" if p.id != "p3" else "same",
            "score": float(i),
        }
        for step in (-1, 4, 9)
        for i, p in enumerate(prompts)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Store.open(tmp_path / "towpath.db") as store:
        job = Job(
            PolicyConfig.from_recipe(Recipe()), tmp_path, "policy", folder, {"reward": reward}, store, Corpus(prompts)
        )
        assert requeue.requeue_hacked_samples(job, "no gain in 3 validations") == 0
        assert requeue.requeue_hacked_samples(job, "reward-hacking: it is exploited") == 20
        assert requeue.requeue_hacked_samples(job, "reward-hacking: it is exploited") == 20  # idempotent
        made = store.comparisons()
        assert len(made) == 20
        assert {c.id.split(".")[0] for c in made} == {"abcdef"}, (
            "ids belong to that sample stage, so that its labels include them"
        )
        completions = store.completions()
        assert {completions[c.a].text for c in made} == {f"9 p{i}" for i in range(10, 30)}, (
            "the highest scores of the last validation"
        )
        assert {completions[c.b].text for c in made} == {f"-1 p{i}" for i in range(10, 30)}
        assert [(queue.domain, queue.waiting) for queue in store.read(rater_stats.rating_stats, 0.0).queues] == [
            ("money", 20)
        ]
    assert [f.code for f in job.findings] == ["exploited-queued"] * 2


def test_every_logged_metric_is_documented(tmp_path: Path) -> None:
    pairs = [(prompt, f"Good answer {i}.", f"Bad {i}.") for i, prompt in enumerate(PROMPTS)]
    rewarded = train(tmp_path / "ppo", steps=2, rewards__watch=["rule:words:8-35"])
    settings = {"model": "tiny", "pairs": pairs, "max_new_tokens": 8, "batch": 8, "epochs": 1}
    on_pairs = [tp.train(algo, folder=tmp_path / algo, **settings) for algo in ("kto", "orpo")]
    for trained in (rewarded, *on_pairs):
        assert metrics.undocumented({name for row in trained.metrics for name in row}) == []
    assert metrics.undocumented(["reward/cooking", "pairs_gap", "surprise"]) == ["surprise"]
