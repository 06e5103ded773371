"""Whole runs of the tiny recipe with a reward model from elsewhere: as reward, and as a watched source."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from classifiers_of_others import make_classifier, make_language_model
from command import SMALL
from safetensors.torch import load_file
from test_classifier import plain_scores

from towpath import recipe
from towpath.recipe import Recipe
from towpath.records import Message
from towpath.run import fingerprint, loading, model_checks, pipeline
from towpath.run.new_run import create_run
from towpath.store import jsonl, location
from towpath.store.store import Store

pytestmark = pytest.mark.slow
OFF = ["evaluate.jailbreaks=false", "track.tensorboard=false", "evaluate.prompts=6", "policy.validation_prompts=4"]

SOURCES = '[{source="model:models/judge"}, {source="rule:words:1-9", weight=0.5}]'
WATCHED = '["model:models/other"]'


def new_run(folder: Path, *settings: str) -> Recipe:
    create_run(folder, "tiny")
    make_classifier(folder / "models" / "judge", "Bert", max_position_embeddings=512)
    make_classifier(folder / "models" / "other", "Qwen2", template="llama-3", max_position_embeddings=2048)
    return recipe.load(folder, [*SMALL, *OFF, *settings])


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("elsewhere") / "run"
    made = new_run(run, f"policy.rewards.sources={SOURCES}", f"policy.rewards.watch={WATCHED}")
    pipeline.run(made, run, lambda _line: None)
    return run


def test_no_reward_model_is_trained_and_scores_are_plain_transformers_own(rewarded: Path) -> None:
    assert not list(rewarded.glob("stages/reward")) and not list(rewarded.glob("stages/label"))
    (folder,) = rewarded.glob("stages/policy/*")
    rows = [row for row in jsonl.read(folder / "samples.jsonl") if "score" in row][:4]
    assert rows
    metrics = jsonl.read(folder / "metrics.jsonl")
    first = next(row for row in metrics if row["phase"] == "validation")
    assert {"score/model:models/judge", "watched/model:models/other"} <= set(first)
    conversations = [(Message("user", row["prompt"]),) for row in rows]
    expected = plain_scores(rewarded / "models" / "judge", conversations, [row["text"] for row in rows])
    for row, score in zip(rows, expected, strict=True):
        words = 0.5 * (1 <= len(row["text"].split()) <= 9)
        assert row["score"] == pytest.approx(score + words, abs=2e-4)


def test_a_changed_reward_model_trains_the_policy_again(rewarded: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(rewarded, run)
    made = recipe.load(run, [*SMALL, *OFF, f"policy.rewards.sources={SOURCES}", f"policy.rewards.watch={WATCHED}"])

    def planned() -> dict[str, bool]:
        with Store.open(location.ledger_location(run, "")) as store:
            return {s.name: s.done for s in fingerprint.plan_stages(made, run, loading.summarise(made, run), store)}

    assert all(planned().values())
    make_classifier(run / "models" / "other", "Llama", template="llama-3")
    assert all(planned().values()), "a watched model changes no weights"
    make_classifier(run / "models" / "judge", "Bert", hidden_size=16)
    assert planned() == {"sft": True, "baseline": True, "policy": False, "evaluate": False}


def test_check_names_a_model_that_is_no_reward_model(tmp_path: Path, tiny_folder: str) -> None:
    run = tmp_path / "run"
    for source, words in ((tiny_folder, "sequence-classification model"), ("./none", "no model there")):
        made = new_run(run, f'policy.rewards.watch=["model:{source}"]') if not run.exists() else recipe.load(
            run, [*SMALL, *OFF, f'policy.rewards.watch=["model:{source}"]']
        )  # fmt: skip
        (finding,) = model_checks.check_classifiers(made, run)
        assert finding.severity == "error" and words in f"{finding.evidence} {finding.cause}"


def results(run: Path) -> dict[str, dict[str, Any]]:
    manifests = [json.loads(path.read_text()) for path in run.glob("stages/*/*/manifest.json")]
    return {m["stage"]: m["result"] for m in manifests}


def answers_of(run: Path, source: str) -> tuple[list[tuple[Message, ...]], list[str], list[float]]:
    """Prompts, answers and normalised rewards of the evaluate stage."""
    (path,) = run.glob("stages/evaluate/*/answers.jsonl")
    rows = jsonl.read(path)
    texts = [row[source] for row in rows]
    return [(Message("user", row["prompt"]),) for row in rows], texts, [row[f"reward_{source}"] for row in rows]


def test_a_pretrained_reward_model_needs_no_labels_and_is_normalised(tmp_path: Path) -> None:
    run = tmp_path / "run"
    made = new_run(run, "reward.pretrained=models/judge")
    verdicts = pipeline.run(made, run, lambda _line: None)
    made_results = results(run)
    assert set(made_results) == {"sft", "baseline", "reward", "policy", "evaluate"}
    (gate,) = [v for v in verdicts if v.gate == "reward"]
    assert gate.verdict == "UNDECIDED" and "no labels" in gate.note
    reward = made_results["reward"]
    conversations, texts, scores = answers_of(run, "policy")
    expected = plain_scores(run / "models" / "judge", conversations, texts)
    assert scores == pytest.approx([(x - reward["mean"]) / reward["std"] for x in expected], abs=2e-4)
    (path,) = run.glob("stages/policy/*/metrics.jsonl")
    assert any("explained_variance" in row for row in jsonl.read(path)), "the critic reads the tuned model"


def test_a_pretrained_reward_model_is_trained_further(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["reward.method=full", "policy.ppo.critic=adapter", "reward.learning_rate=1e-4"]
    made = new_run(run, "reward.pretrained=models/other", "reward.train=true", *settings)
    pipeline.run(made, run, lambda _line: None)
    reward = results(run)["reward"]
    assert reward["train_accuracy"] > 0 and reward["std"] > 0
    conversations, texts, scores = answers_of(run, "sft")
    expected = plain_scores(run / "models" / "other", conversations, texts, cut=1)
    normalised = [(x - reward["mean"]) / reward["std"] for x in expected]
    # none of these answers ended, so their turns have no end; two small steps move scores little
    assert scores == pytest.approx(normalised, abs=0.3)
    assert scores != pytest.approx(normalised, abs=1e-4)


def test_a_reward_model_has_a_base_and_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    run = tmp_path / "run"
    made = new_run(run, "reward.base=models/base", "reward.ensemble_size=2", "reward.epochs=0.5")
    make_language_model(run / "models" / "base", "Qwen3", "chatml", head_dim=8, hidden_size=48)
    pipeline.run(made, run, lambda _line: None)
    made_results = results(run)
    assert len(made_results["reward"]["members"]) == 2
    assert made_results["policy"]["reward_gain"] is not None
    (weights,) = run.glob("stages/reward/*/weights")
    assert not list(weights.glob("value_features*")), "they would be of other tokens"
    assert load_file(weights / "reward.safetensors")["head.weight"].shape == (48,)
