"""Whole runs of the tiny recipe with a reward model from elsewhere: as reward, and as a watched source."""

import shutil
from pathlib import Path

import pytest
from classifiers_of_others import make_classifier
from command import SMALL
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
