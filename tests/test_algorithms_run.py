"""Every algorithm from a recipe and from Python: whole runs on the tiny model, and that each learns what it is
rewarded for."""

import errno
import gc
import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command import SETTINGS, towpath
from safetensors.torch import load_file
from test_runs import results

import towpath as tp
from towpath.algos import dpo
from towpath.data.corpus import Corpus
from towpath.errors import DataError, RecipeError, ResourceError
from towpath.models import base
from towpath.recipe import Recipe
from towpath.recipe.reader import check
from towpath.records import Prompt
from towpath.rollout import experience
from towpath.rollout.engine import SampleOutput
from towpath.rollout.local import LocalEngine
from towpath.run import arguments, training
from towpath.runtime import state_files
from towpath.runtime.local import Local
from towpath.stages import reward, reward_training
from towpath.stages.comparisons import Comparisons
from towpath.store import publish

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tuned(finished, tmp_path_factory) -> Path:
    """A run with its labels and nothing after them: what follows differs by algorithm."""
    run = tmp_path_factory.mktemp("algorithms") / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "reports")
    for name in ("reward", "policy", "evaluate"):
        shutil.rmtree(run / "stages" / name)
    return run


def sets(*assignments: str) -> list[str]:
    return [part for value in assignments for part in ("--set", value)]


@pytest.mark.parametrize("algo", ["grpo", "rloo", "reinforce"])
def test_rollout_algorithms_without_a_critic(algo, tuned, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    done = towpath("run", run, *SETTINGS, *sets(f"policy.algo={algo}", "policy.group=4"))
    assert done.returncode == 0, done.stderr
    (metrics,) = run.glob("stages/policy/*/metrics.jsonl")
    looked, first, *_ = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert (looked["step"], looked["phase"]) == (-1, "validation")
    assert first["first_ratio_error"] < 1e-5
    assert "value_loss" not in first
    assert results(run)["evaluate"]["reward"].keys() == {"sft", "policy"}


@pytest.mark.parametrize("algo", ["dpo", "ipo", "kto", "orpo"])
def test_comparison_algorithms_train_no_reward_model(algo, tuned, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    done = towpath(
        "run",
        run,
        *SETTINGS,
        *sets(f"policy.algo={algo}", "policy.learning_rate=1e-4", "policy.batch=8", "policy.epochs=3"),
    )
    assert done.returncode == 0, done.stderr
    assert not (run / "stages" / "reward").exists()
    result = results(run)
    assert result["policy"]["rose"]["n"] > 0
    assert result["policy"]["kl_per_prompt"] != 0
    assert (run / "reports" / "report.html").is_file()
    assert (
        towpath(
            "export",
            run,
            *SETTINGS,
            *sets(f"policy.algo={algo}", "policy.learning_rate=1e-4", "policy.batch=8", "policy.epochs=3"),
            "--to",
            tmp_path / "out",
        ).returncode
        == 0
    )


def test_dpo_with_a_reward_model(tuned, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    done = towpath("run", run, *SETTINGS, *sets("policy.algo=dpo", "reward.use=always", "policy.batch=8"))
    assert done.returncode == 0, done.stderr
    assert results(run)["policy"]["reward_gain"] is not None
    assert results(run)["evaluate"]["reward"]


def test_ensemble_of_reward_models(tuned, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    done = towpath("run", run, *SETTINGS, *sets("reward.ensemble_size=3", 'policy.rewards.ensemble="min"'))
    assert done.returncode == 0, done.stderr
    result = results(run)["reward"]
    assert len(result["members"]) == 3 and result["disagreement"] > 0
    (weights,) = run.glob("stages/reward/*/weights")
    heads = [
        load_file(weights.with_name(name) / "reward.safetensors")["head.weight"]
        for name in ("weights", "weights-2", "weights-3")
    ]
    assert not any(torch.equal(a, b) for a, b in pairwise(heads))
    again = towpath("run", run, *SETTINGS, *sets("reward.ensemble_size=3", 'policy.rewards.ensemble="cautious"'))
    assert "reward: already done" in again.stderr and "policy: done in" in again.stderr


def test_rule_rewards_need_no_labels_and_no_reward_model(tuned, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    shutil.rmtree(run / "stages" / "label")
    done = towpath(
        "run",
        run,
        *SETTINGS,
        "--set",
        'policy.rewards.sources=[{ source = "rule:words:1-5"}, { source = "rule:prose", weight=0.5}]',
    )
    assert done.returncode == 0, done.stderr
    assert not (run / "stages" / "reward").exists()
    assert not (run / "stages" / "label").exists()
    (metrics,) = run.glob("stages/policy/*/metrics.jsonl")
    assert "score/rule:prose" in json.loads(metrics.read_text().splitlines()[0])


def test_reward_function_in_the_run_folder_and_its_changed_code(tuned, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    settings = [*SETTINGS, "--set", 'policy.rewards.sources=[{ source = "python:short_reward:score"}]']
    code = "def score(prompts, answers):\n    return [SIGN * len(answer) for answer in answers]\nSIGN = {}\n"
    (run / "short_reward.py").write_text(code.format(-1))
    for sign, message in ((-1, "policy: done in"), (-1, "policy: already done"), (1, "code.short_reward")):
        (run / "short_reward.py").write_text(code.format(sign))
        done = towpath("run", run, *settings)
        assert done.returncode == 0, done.stderr
        assert message in done.stderr
    missing = towpath(
        "run", run, *SETTINGS, "--set", 'policy.rewards.sources=[{ source = "python:nowhere.at_all:score"}]'
    )
    assert missing.returncode == 1
    assert "nowhere" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_dpo_runs_again_when_the_validation_split_changes(tuned, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tuned, run)

    def planned(*more):
        return towpath("run", run, *SETTINGS, *sets("policy.algo=dpo", "policy.batch=8", *more)).stderr

    assert "policy: done in" in planned()
    assert "policy will run again: validation" in planned("reward.validation=0.3")


@pytest.mark.proof
def test_killed_kto_resumes_bit_exactly(tuned, tmp_path):
    settings = [*SETTINGS, *sets("policy.algo=kto", "policy.batch=8")]
    runs = tmp_path / "at once", tmp_path / "killed"
    for run in runs:
        shutil.copytree(tuned, run)
    assert (
        towpath("run", runs[1], *settings, TOWPATH_FAULT="step-policy:2", TOWPATH_CHECKPOINT_SECONDS="0").returncode
        == -9
    )
    for run in runs:
        done = towpath("run", run, *settings)
        assert done.returncode == 0, done.stderr
    assert results(runs[0]) == results(runs[1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["policy.algo=dppo"], "no such algorithm"),
        (["policy.algo=my.own"], "no such algorithm"),
        (["policy.algo=sft"], "no such algorithm"),
        (["policy.algo=grpo", "policy.group=1"], "compared with others"),
        (["policy.algo=grpo", "policy.group=5"], "whole groups"),
        (['policy.rewards.sources=[{ source = "rule:wordz"}]'], "no such rule"),
    ],
)
def test_check_refuses_settings_that_cannot_work(settings, words, tuned):
    done = towpath("check", tuned, *SETTINGS, *sets(*settings))
    assert done.returncode == 1
    assert words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def letters(prompts, answers):
    """A reward that anyone can check: the share of plain letters."""
    return [sum(sign.isascii() and sign.isalpha() for sign in answer) / 10 for answer in answers]


@pytest.mark.parametrize(
    ("algo", "settings", "expected"),
    [
        ("ppo", {}, (1, 54, 4)),
        ("grpo", {}, (4, 64, 1)),
        ("grpo", {"group": 5}, (5, 60, 1)),
        ("rloo", {"group": 128}, (128, 128, 1)),
        ("dpo", {}, (1, 54, 4)),
    ],
)
def test_train_rounds_rollouts_to_whole_groups(algo, settings, expected):
    policy = training._recipe(algo, {}, settings, 60).policy
    assert (policy.group, policy.rollout, policy.epochs) == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"group": 3, "rollout": 64}, "set policy.rollout to 63"),
        ({"group": 1}, "compared with others"),
        ({"group": 0}, "greater than or equal to 1"),
        ({"batch": 65}, "set policy.batch to 64 or less"),
        ({"rollout": 220}, "set policy.rollout to 216 or less"),
        ({"epoch": 1}, "did you mean policy.epochs"),
    ],
)
def test_train_refuses_settings_that_cannot_work(settings, words, tmp_path):
    with pytest.raises(RecipeError, match=words):
        tp.train(
            "grpo",
            model="tiny",
            prompts=[f"p{i}" for i in range(60)],
            reward=letters,
            steps=1,
            folder=tmp_path,
            **settings,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("algo", ["ppo", "grpo", "rloo", "reinforce"])
def test_train_learns_and_resumes(algo, tmp_path):
    prompts = [f"Tell me something about the number {i}." for i in range(60)]
    far = {
        "kl__stop": 1e3,
        "kl__alarm": 1e3,
        "rewards__eos_penalty": 0.0,
        "max_new_tokens": 10,
        "epochs": 2,
        "validate_every": 12,
    }
    settings = {
        "method": "full",
        "dtype": "float32",
        "learning_rate": 3e-3,
        "kl": 0.0,
        "steps": 12,
        "folder": tmp_path,
        **far,
    }
    frozen = gc.get_freeze_count()
    trained = tp.train(algo, model="tiny", prompts=prompts, reward=letters, **settings)
    assert gc.get_freeze_count() <= frozen, "objects of the user's program stay subject to garbage collection"
    rewards = [row["reward"] for row in trained.metrics if row["phase"] == "train"]
    assert rewards[0] == pytest.approx(0.2, abs=0.03), "52 of 256 bytes are letters"
    assert rewards[-1] > 0.35
    assert trained.result["reward_gain"] > 0
    again = tp.train(algo, model="tiny", prompts=prompts, reward=letters, **settings)
    assert again.result == trained.result
    assert len(trained.generate(prompts[:2])) == 2


@pytest.mark.parametrize("off", [0.0, 0.01])
def test_float32_rollouts_recompute_logprobs_only_of_inexact_samplers(off, tmp_path, monkeypatch):
    """Of an exact sampler's rows an eighth, of any other's all; and what is learned is the same as by asking for
    all."""
    scored = []
    score = Local.score
    generate = LocalEngine.generate

    def counted(runtime, name, batch, *arguments):
        scored.append((name, len(batch)))
        return score(runtime, name, batch, *arguments)

    def mistaken(engine, *arguments):
        return [
            SampleOutput(d.token_ids, [logp + off for logp in d.logprobs], d.finish)
            for d in generate(engine, *arguments)
        ]

    monkeypatch.setattr(Local, "score", counted)
    monkeypatch.setattr(LocalEngine, "generate", mistaken)
    prompts = [f"Tell me something about the number {i}." for i in range(60)]
    settings = {
        "method": "full",
        "dtype": "float32",
        "max_new_tokens": 10,
        "epochs": 2,
        "rollout": 32,
        "steps": 2,
        "validate_every": 9,
    }
    settings |= {"model": "tiny", "prompts": prompts, "reward": letters}
    quick = tp.train("grpo", folder=tmp_path / "quick", **settings)
    rows = [size for name, size in scored if name == "policy" and size in (4, 32)]  # of the rollouts; looks are at six
    assert rows == ([4, 32] * 2 if off else [4, 4]), scored
    monkeypatch.setattr(experience, "TOLERANCE", -1.0)
    plain = tp.train("grpo", folder=tmp_path / "plain", **settings)
    for ours, theirs in zip(quick.metrics, plain.metrics, strict=True):
        names = [name for name in theirs if not name.startswith(("seconds", "tokens", "memory", "phase"))]
        assert {name: ours[name] for name in names} == pytest.approx(
            {name: theirs[name] for name in names}, rel=1e-4, abs=1e-5
        )
        assert ours.get("sampler_error", off) == pytest.approx(off, abs=1e-5)


@pytest.mark.parametrize("algo", ["dpo", "kto"])
def test_train_learns_from_pairs(algo, tmp_path):
    pairs = [(f"Tell me something about the number {i // 2}.", f"aaaa bbb {i}", f"???? !!! {i}") for i in range(80)]
    settings = {
        "method": "full",
        "dtype": "float32",
        "learning_rate": 1e-3,
        "epochs": 3,
        "max_new_tokens": 8,
        "kl__alarm": 1e3,
        "validate_every": 9,
    }
    trained = tp.train(algo, model="tiny", pairs=pairs, folder=tmp_path, **settings)
    assert trained.result["pairs"]["rate"] > 0.9, "letters are preferred to signs on held-out prompts"
    assert tp.train(algo, model="tiny", pairs=pairs, folder=tmp_path, **settings).result == trained.result
    assert len(trained.generate(["Tell me something."])) == 1


def test_train_refuses_invalid_data(tmp_path):
    with pytest.raises(RecipeError, match=r"(?s)pairs\[1\].*three texts"):
        tp.train("dpo", model="tiny", pairs=[("a", "b", "c"), ("a", "b")], folder=tmp_path)
    with pytest.raises(RecipeError, match="learns from its own answers"):
        tp.train("ppo", model="tiny", pairs=[("a", "b", "c")], folder=tmp_path)
    with pytest.raises(RecipeError, match="judged pairs"):
        tp.train("dpo", model="tiny", prompts=["a"], reward=letters, folder=tmp_path)
    with pytest.raises(RecipeError, match="no such algorithm"):
        tp.train("pppo", model="tiny", prompts=["a"], reward=letters, folder=tmp_path)
    with pytest.raises(RecipeError, match="prompts"):
        tp.train("ppo", model="tiny", prompts=["a"], reward=letters, folder=tmp_path)
    with pytest.raises(DataError, match=r"tokens with max_new_tokens = 80\n.*the model's context is 1024"):
        tp.train("ppo", model="tiny", prompts=[*"abcdefghi", "word " * 200], reward=letters, folder=tmp_path)
    with pytest.raises(DataError, match="tokens with its prompt"):
        tp.train("dpo", model="tiny", pairs=[(f"a{i}", "word " * 250, "c") for i in range(20)], folder=tmp_path)
    with pytest.raises(RecipeError, match="weight 0"):
        tp.train(
            "ppo", model="tiny", prompts=[*"abcdefghi"], reward={"source": "rule:prose", "weight": 0.0}, folder=tmp_path
        )
    with pytest.raises(RecipeError, match="did you mean"):
        tp.train("ppo", model="tiny", prompts=[*"abcdefghi"], reward=letters, folder=tmp_path, learning_rat=1e-5)
    with pytest.raises(RecipeError, match="one place"):
        tp.train("ppo", model="tiny", prompts=[*"abcdefghi"], reward=letters, folder=tmp_path, rewards__sources=[])
    with pytest.raises(RecipeError, match="steps is a value"):
        tp.train("ppo", model="tiny", prompts=[*"abcdefghi"], reward=letters, folder=tmp_path, steps__x=1)
    with pytest.raises(RecipeError, match="finite"):
        tp.train("ppo", model="tiny", prompts=[*"abcdefghi"], reward=letters, folder=tmp_path, kl=float("inf"))


def test_reward_model_restarts_from_the_fitted_head_when_its_first_checkpoint_fails(tmp_path, monkeypatch):
    pairs = [(f"Question {i} of many", f"yes {i} good", f"no {i} bad") for i in range(24)]
    recipe = check(Recipe, {"model": {"source": "tiny", "dtype": "float32"}, "reward": {"learning_rate": 1e-6}}, "test")
    corpus = Corpus(tuple(Prompt(f"p{i}", prompt) for i, (prompt, _, _) in enumerate(pairs)))
    pairs = arguments.pairs(pairs)

    def train(folder: Path) -> torch.Tensor:
        stage = replace(training._job(recipe, folder, corpus, pairs), name="reward")
        stage.folder.mkdir(exist_ok=True)
        decided = reward.decided_pairs(stage)
        reward_training.train_member(stage, 1, decided[6:], decided[:6])
        return load_file(stage.folder / "weights" / "reward.safetensors")["head.weight"]

    def full(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(state_files, "save_file", full)
        with pytest.raises(ResourceError):
            train(tmp_path / "torn")
    torch.testing.assert_close(train(tmp_path / "torn"), train(tmp_path / "whole"))


def valued(worth: float):
    def reward(_prompts, answers):
        return [worth * len(answer) for answer in answers]

    return reward


def test_train_folder_depends_on_reward_and_start_model(tmp_path):
    """A function of the same text that holds another number was taken for the first; a second model moved the start
    of the first's training."""
    other = tmp_path / "other"
    shutil.copytree(base.find("tiny"), other)
    settings = {
        "prompts": [f"Why {i}?" for i in range(24)] * 2,
        "steps": 1,
        "max_new_tokens": 6,
        "folder": tmp_path / "run",
        "dtype": "float32",
    }

    def meanwhile(_prompts, answers):
        return [float(len(answer)) for answer in answers if training._job(recipe, tmp_path / "run", Corpus(()), ())]

    recipe = check(Recipe, {"model": {"source": str(other)}}, "test")
    trained = [
        tp.train("grpo", model="tiny", reward=reward, **settings)
        for reward in (valued(1.0), valued(-1.0), {"source": meanwhile, "name": "meanwhile"}, valued(1.0))
    ]
    assert len({one.folder for one in trained}) == 3 and trained[0].result == trained[3].result
    assert [
        one.folder.parent.joinpath("start", "weights").resolve() == Path(base.find("tiny")).resolve() for one in trained
    ] == [True] * 4
    assert [finding.evidence for finding in trained[0].findings if finding.code == "prompts"] == [
        "24 prompts are there more than once"
    ]
    with publish.lock_folder(trained[0].folder.parent), pytest.raises(ResourceError, match="another process"):
        tp.train("grpo", model="tiny", reward=valued(1.0), **settings)


def test_full_weights_use_the_model_itself(tmp_path):
    pairs = [(f"Why {i}?", f"good {i}", f"bad {i}") for i in range(12)]
    settings = {"model": "tiny", "folder": tmp_path, "method": "full", "max_new_tokens": 6, "epochs": 1}
    for algo in ("dpo", "kto"):
        assert tp.train(algo, pairs=pairs, **settings).result["pairs"]["n"] > 0


def test_held_out_pairs_do_not_depend_on_settings(tmp_path):
    pairs = [(f"Question {i}?", f"good {i}", f"bad {i}") for i in range(24)]
    corpus = Corpus(tuple(Prompt(f"p{i}", prompt) for i, (prompt, _, _) in enumerate(pairs)))
    pairs = arguments.pairs(pairs)
    held = []
    for rate, count in ((1e-5, 24), (3e-5, 24), (1e-5, 3)):
        recipe = check(Recipe, {"model": {"source": "tiny"}, "policy": {"algo": "dpo", "learning_rate": rate}}, "test")
        job = training._job(recipe, tmp_path, corpus, pairs[:count])
        runtime = SimpleNamespace(
            cache_frozen_prefix=lambda batch, _role: batch,
            score=lambda _role, batch, _wants, _temperature: SimpleNamespace(logp_BT=torch.zeros(len(batch), 1)),
        )
        held.append([row.ids.tolist() for row in Comparisons(job, runtime, dpo).held_out.rows])
    assert held[0] == held[1] and 2 <= len(held[2]) <= 4, "of three prompts one is held out too"
