"""The examples of docs/extending.md, run unchanged."""

import importlib
import re
import sys
from pathlib import Path

import pytest

import towpath as tp
from towpath.errors import RecipeError
from towpath.health import diagnosis
from towpath.health.history import history_from_rows
from towpath.recipe import Limits, Policy, Recipe
from towpath.recipe.reader import check
from towpath.run import engine_checks, fingerprint, preflight
from towpath.store import jsonl

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))
PROMPTS = [f"Say {word}." for word in ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")]


@pytest.fixture
def team(tmp_path, monkeypatch):
    """The examples as modules of an external package; returns the importer of one module."""
    folder = tmp_path / "my_team"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for name, source in EXAMPLES.items():
        (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda name: importlib.import_module(f"my_team.{name}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_team"]:
        del sys.modules[name]


def train(team, folder, algo="my_team.my_awr", **settings):
    common = {"model": "tiny", "dtype": "float32", "method": "full", "max_new_tokens": 6, "steps": 2, "rollout": 6}
    return tp.train(algo, prompts=PROMPTS, reward=team("my_rewards").polite, folder=folder, **common | settings)


def test_page_has_all_examples():
    assert set(EXAMPLES) == {"my_rewards", "my_awr", "my_engine", "answers_empty"}


def test_external_algorithm_trains_with_its_own_settings(team, tmp_path):
    trained = train(team, tmp_path / "run", settings={"temperature": 0.5})
    weights = [row["awr_weight"] for row in trained.metrics if row["phase"] == "train"]
    assert len(weights) == 2 and all(weight > 0 for weight in weights)


def test_unknown_setting_of_an_external_algorithm_is_refused(team, tmp_path):
    with pytest.raises(RecipeError, match=r"policy\.settings: unknown key temprature"):
        train(team, tmp_path / "run", settings={"temprature": 0.5})


def test_external_engine_samples_the_same_completions(team, tmp_path):
    """Both engines use the same uniform numbers, so that completions before training are equal."""
    answers = []
    for kind in ("local", "my_team.my_engine"):
        trained = train(team, tmp_path / kind, "reinforce", engine=kind)
        rows = jsonl.read(trained.job.folder / "samples.jsonl")
        answers.append({row["prompt_id"]: row["text"] for row in rows if row["step"] == -1})
        assert len(trained.metrics) >= 3
    assert answers[0] == answers[1] and len(set(answers[0].values())) > 1


def test_external_detector_reports_its_finding(team):
    (detector,) = team("answers_empty").DETECTORS
    rows = [{"step": step, "phase": "train", "length": 5.0 - step} for step in range(7)]
    (finding,) = detector(history_from_rows(rows), Limits())
    assert finding.code == "answers-empty" and finding.first_step == 4
    assert not list(detector(history_from_rows(rows[:6]), Limits()))


def test_every_detector_module_is_registered():
    folder = Path(diagnosis.__file__).parent / "detectors"
    names = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert {module.__name__.rpartition(".")[2] for module in diagnosis._MODULES} == names


@pytest.mark.parametrize(
    ("settings", "evidence"),
    [
        ({"engine": {"type": "my_team.no_engine"}}, "engine.type = 'my_team.no_engine': no such engine"),
        ({"engine": {"type": "my_team.my_awr"}}, "engine.type = 'my_team.my_awr': no such engine"),
        ({"engine": {"type": "locl"}}, "engine.type = 'locl': no such engine"),
        ({"engine": {"type": "generate"}}, "engine.type = 'generate': no such engine"),
        ({"engine": {"settings": {"x": 1}}}, "engine.settings with engine.type = 'local'"),
        ({"policy": {"settings": {"x": 1}}}, "policy.settings with policy.algo = 'ppo'"),
    ],
)
def test_preflight_refuses_unknown_engines_and_settings(team, settings, evidence):
    recipe = check(Recipe, settings, "test")
    findings = [*engine_checks.check_engine(recipe), *preflight.check_rollouts(recipe.policy, 1000)]
    assert [finding.evidence for finding in findings if finding.severity == "error"] == [evidence]


def test_preflight_validates_settings_of_an_external_algorithm(team):
    for settings in ({"temperature": 0.5}, {"temprature": 0.5}):
        policy = Policy(algo="my_team.my_awr", settings=settings)
        if "temperature" in settings:
            assert not [f for f in preflight.check_rollouts(policy, 1000) if f.severity == "error"]
        else:
            with pytest.raises(RecipeError, match="temprature"):
                list(preflight.check_rollouts(policy, 1000))


def test_engine_code_is_part_of_the_fingerprint(team, tmp_path):
    recipe = check(Recipe, {"engine": {"type": "my_team.my_engine"}}, "test")
    before = fingerprint._engine_settings(recipe.engine)
    path = tmp_path / "my_team" / "my_engine.py"
    path.write_text(path.read_text() + "\n# changed\n")
    assert fingerprint._engine_settings(recipe.engine) != before
