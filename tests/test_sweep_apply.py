"""`towpath sweep RUN --apply`: values change, comments and layout stay; verdict and constraints of a sweep."""

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from towpath.errors import RecipeError
from towpath.recipe import Sweep
from towpath.recipe.reader import merge
from towpath.sweep.apply import recipe_change, set_values, write_change
from towpath.sweep.objective import TrialCurve, measure
from towpath.sweep.record import SweepRecord
from towpath.sweep.trial_record import TrialRecord, empty_curve, from_row, to_row
from towpath.sweep.verdict import SweepVerdict, breaks, finalists, judge_sweep, sampler_value

RECIPE = """# My recipe
name = "mine"  # shown in reports

[policy]
# the rate we agreed on
learning_rate = 2e-5  # see the wiki
steps = 12
kl.target = 0.5

[policy.kl]
coef = 0.05 # beta

[gates]
sft = { threshold = 0.7, action = "warn" }
"""


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"policy.learning_rate": 1.25e-06}, "learning_rate = 1.25e-06  # see the wiki"),
        ({"policy.kl.coef": 0.1}, "coef = 0.1 # beta"),
        ({"policy.ppo.clip": 0.3}, "ppo.clip = 0.3"),
        ({"policy.group": 8}, "group = 8"),
        ({"policy.schedule": "cosine"}, 'schedule = "cosine"'),
        ({"policy.grpo.scale": "none", "policy.steps": 20}, "steps = 20"),
    ],
)
def test_only_values_change(settings: dict, line: str):
    recipe = RECIPE.replace("kl.target = 0.5\n", "")
    changed = set_values(recipe, settings)
    assert line in changed.splitlines()
    assert tomllib.loads(changed) == merge(tomllib.loads(recipe), settings)
    old = recipe.splitlines()
    kept_lines = [text for text in changed.splitlines() if text in old]
    assert len(kept_lines) >= len(old) - len(settings)
    assert all(comment in changed for comment in ("# My recipe", "# the rate we agreed on", "# see the wiki", "# beta"))


@pytest.mark.parametrize(
    "recipe",
    [
        "",
        "seed = 3",
        "policy.learning_rate = 1e-5\n",
        "[policy]\nlearning_rate = 1e-5\nkl = { coef = 0.05, target = 0.2 } # held\n",
        "[policy]\nkl = { target = 0.2 }\n",
        '["policy"]\n"learning_rate" = 1e-5\n',
        "[policy.kl]\ntarget = 0.2\n[policy]\nsteps = 3\n",
        "[[policy.rewards.sources]]\nsource = 'math'\n[policy]\nlearning_rate = 1e-5\n",
        "[policy]\n\n[evaluate]\nprompts = 3\n",
    ],
)
def test_layouts_of_a_recipe(recipe: str):
    settings = {"policy.learning_rate": 3e-05, "policy.kl.coef": 0.1}
    changed = set_values(recipe, settings)
    assert tomllib.loads(changed) == merge(tomllib.loads(recipe), settings)
    assert set_values(changed, settings) == changed


def test_layout_that_cannot_be_changed_is_left_alone():
    recipe = "[policy]\nlearning_rate = 1e-5\nkl = { target = 0.2, \n coef = 0.05 }\n"
    try:
        tomllib.loads(recipe)
    except tomllib.TOMLDecodeError:
        recipe = '[policy]\nschedule = """\nlinear"""\n'
    with pytest.raises(RecipeError, match="by hand"):
        set_values(recipe, {"policy.schedule": "cosine", "policy.kl.coef": 0.1})


def trial(number: int, win: float, settings: dict | None = None, seed: int = 0, gap: float = 0.0) -> TrialRecord:
    """A trial whose outcomes are the same for equal seeds up to its win rate."""
    order = np.random.default_rng(seed).random(100)
    win_P = (order < win).astype(float)
    gap_P = np.where(win_P == 1, gap, 0.0)
    curve = TrialCurve((3,), np.full((1, 100), 0.5), win_P[None], gap_P[None], np.array([0.0]))
    value = measure(curve, "win_rate", 0.5, 100, 0)
    return TrialRecord(number, settings or {"policy.kl.coef": 0.1 * number}, seed, "complete", "", 4, curve, value)


def judge(confirmed: dict[int, list[TrialRecord]], sweep: Sweep | None = None) -> SweepVerdict:
    return judge_sweep(confirmed, sweep or Sweep(), "win_rate", 0.5, 200, 0)


def runs(number: int, win: float, gap: float = 0.0) -> list[TrialRecord]:
    return [trial(number, win, seed=seed, gap=gap) for seed in (1, 2)]


def test_winner_is_named_where_a_difference_is_shown():
    verdict = judge({0: runs(0, 0.5), 4: runs(4, 0.7), 5: runs(5, 0.6)})
    assert (verdict.outcome, verdict.winner) == ("better", 4)
    assert "trial 4 is better" in verdict.text and "over 2 new seeds" in verdict.text
    assert [t.number for t in verdict.trials] == [0, 4, 5]


def test_no_difference_shown_is_an_answer():
    luckier = [trial(4, 0.62, seed=seed) for seed in (71, 72)]
    verdict = judge({0: runs(0, 0.6), 4: luckier})
    low, high = verdict.trials[1].interval
    assert low < 0 < high and verdict.trials[1].difference > 0
    assert (verdict.outcome, verdict.winner) == ("no difference shown", None)
    assert "no difference shown" in verdict.text


def test_verdict_says_where_the_target_was_not_reached():
    near = [replace(record, value=replace(record.value, kl=0.17, reached=False)) for record in runs(4, 0.7)]
    verdict = judge({0: runs(0, 0.5), 4: near})
    assert verdict.winner == 4 and "its KL stays at 0.17, below the target" in verdict.text
    idle = [replace(record, value=replace(record.value, kl=0.0, reached=False)) for record in runs(4, 0.5)]
    verdict = judge({0: runs(0, 0.5), 4: idle})
    assert verdict.outcome == "no difference shown" and "a weaker KL penalty" in verdict.text


def test_own_settings_may_be_better():
    verdict = judge({0: runs(0, 0.8), 4: runs(4, 0.5)})
    assert (verdict.outcome, verdict.winner) == ("own settings", None)


def test_constraints_exclude_a_winner():
    sweep = Sweep(min_length_controlled=0.55)
    longer = runs(4, 0.7, gap=30.0)
    assert longer[0].value.length_controlled < 0.5
    verdict = judge({0: runs(0, 0.5), 4: longer}, sweep)
    assert verdict.winner is None and "constraints" in verdict.text
    unsafe = replace(trial(3, 0.9), value=replace(trial(3, 0.9).value, safety_rise=0.3))
    assert "safety rise 30.0%" in breaks(unsafe, Sweep(max_safety_rise=0.1))
    assert sampler_value(unsafe, Sweep(max_safety_rise=0.1)) == pytest.approx(unsafe.value.value - 0.2)


def test_samplers_learn_that_a_trial_ended_early():
    whole = trial(3, 0.7)
    half = replace(whole, status="pruned", reason="kl-rising", share=0.5)
    assert sampler_value(half, Sweep()) == pytest.approx(sampler_value(whole, Sweep()) - 0.1)
    untrained = replace(whole, status="failed", value=replace(whole.value, value=0.0), share=0.0)
    assert sampler_value(untrained, Sweep()) == pytest.approx(0.3)


def test_finalists_are_the_best_within_constraints_and_the_own_settings():
    records = [trial(0, 0.5), trial(1, 0.9), trial(2, 0.8), trial(3, 0.7), trial(4, 0.6)]
    records[1] = replace(records[1], status="pruned", reason="kl-rising")
    assert finalists(records, Sweep(confirm=2)) == [0, 2, 3]
    assert finalists(records, Sweep(confirm=0)) == []
    assert judge({}).outcome == "not confirmed"


def test_trial_survives_json():
    record = trial(3, 0.7)
    other = from_row(to_row(record))
    assert other.value == record.value and other.settings == record.settings
    np.testing.assert_array_equal(other.curve.win_VP, record.curve.win_VP)


def record_of(tmp_path: Path, verdict: SweepVerdict) -> SweepRecord:
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("kl.target = 0.5\n", ""), encoding="utf-8")
    trials = [trial(0, 0.5), trial(4, 0.7)]
    return SweepRecord(tmp_path, "s", "ppo", "rubric", "win_rate", 0.5, {}, {"trials": 2}, trials, (), (), verdict)


def test_apply_shows_a_diff_and_writes_the_winner(tmp_path: Path):
    change = recipe_change(tmp_path, record_of(tmp_path, judge({0: runs(0, 0.5), 4: runs(4, 0.7)})))
    assert "-coef = 0.05 # beta" in change.diff and "+coef = 0.4 # beta" in change.diff
    write_change(change)
    text = (tmp_path / "recipe.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["policy"]["kl"]["coef"] == pytest.approx(0.4) and "# My recipe" in text
    assert recipe_change(tmp_path, replace(record_of(tmp_path, judge({0: runs(0, 0.5), 4: runs(4, 0.7)})))).diff


def test_settings_that_fail_with_a_seed_are_no_winner():
    good, bad = runs(4, 0.8)
    failed = replace(bad, status="failed", reason="loss is not finite", curve=empty_curve())
    verdict = judge({0: runs(0, 0.5), 4: [good, failed]})
    assert verdict.outcome == "own settings" and verdict.winner is None
    assert "loss is not finite" in next(row for row in verdict.trials if row.number == 4).note


def test_apply_without_a_winner_is_refused(tmp_path: Path):
    with pytest.raises(RecipeError, match="no difference shown"):
        recipe_change(tmp_path, record_of(tmp_path, judge({0: runs(0, 0.6), 4: runs(4, 0.6)})))
