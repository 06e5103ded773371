"""Samplers and rules: functions of the seed, the trial's number and the trials that have ended."""

import pytest

from towpath.recipe import Recipe
from towpath.sweep import rules, sampler
from towpath.sweep.rules import RuleTrial
from towpath.sweep.sampler import Observation
from towpath.sweep.space import SearchRange, parse_space, recipe_settings

SPACE = {
    "policy.learning_rate": SearchRange("policy.learning_rate", 1e-6, 1e-3, log=True),
    "policy.kl.coef": SearchRange("policy.kl.coef", 0.01, 1.0, log=True),
    "policy.group": SearchRange("policy.group", choices=(4, 8), whole=True),
    "policy.epochs": SearchRange("policy.epochs", 1, 4, step=1, whole=True),
}
USUAL = "1e-6-5e-6 full, 5e-6-1e-4 with LoRA"
OWN = {"policy.learning_rate": 1e-4, "policy.kl.coef": 0.3, "policy.group": 4, "policy.epochs": 1}
RATE = "policy.learning_rate"
COEF = "policy.kl.coef"


def observations(count: int) -> list[Observation]:
    rows = [sampler.draw_random(SPACE, 7, number) for number in range(count)]
    return [Observation(i, row, 1 - abs(row["policy.kl.coef"] - 0.1)) for i, row in enumerate(rows)]


@pytest.mark.parametrize("count", [2, 8])
def test_draw_depends_on_seed_number_and_trials_alone(count: int):
    rows = observations(count)
    first = sampler.draw_tpe(SPACE, 0, count, rows)
    assert first == sampler.draw_tpe(SPACE, 0, count, rows[::-1])
    assert first != sampler.draw_tpe(SPACE, 1, count, rows)
    assert first != sampler.draw_tpe(SPACE, 0, count + 1, rows)
    assert all(search_range.contains(first[key]) for key, search_range in SPACE.items())


def test_tpe_learns_from_values():
    rows = observations(20)
    near = sum(sampler.draw_tpe(SPACE, 0, 100 + i, rows)[COEF] < 0.35 for i in range(12))
    flipped = [Observation(o.number, o.settings, -o.value) for o in rows]
    far = sum(sampler.draw_tpe(SPACE, 0, 100 + i, flipped)[COEF] < 0.35 for i in range(12))
    assert near > far


def test_settings_outside_the_space_teach_nothing():
    outside = Observation(0, OWN | {COEF: 5.0}, 0.9)
    rows = observations(6)
    assert sampler.draw_tpe(SPACE, 0, 6, [outside, *rows[:4]]) == sampler.draw_random(SPACE, 0, 6)


def test_a_trial_elsewhere_keeps_others_away():
    """Two processes that ask at once do not train the same settings."""
    rows = observations(12)
    first = sampler.draw_tpe(SPACE, 0, 12, rows)
    mean = sum(row.value for row in rows) / len(rows)
    second = sampler.draw_tpe(SPACE, 0, 13, [*rows, Observation(12, first, mean)])
    assert abs(second[COEF] / first[COEF] - 1) > 0.01 or second["policy.group"] != first["policy.group"]


def trial(value: float = 0.6, kl: float = 0.5, codes: tuple[str, ...] = (), **settings: float) -> RuleTrial:
    named = {f"policy.{key.replace('__', '.')}": item for key, item in settings.items()}
    return RuleTrial(OWN | named, value, kl, codes)


FIRST = {RATE: 5e-6, COEF: 0.05, "policy.group": 4, "policy.epochs": 1}


def test_first_values_are_conservative():
    assert rules.conservative_settings(SPACE, OWN, USUAL, "full") == FIRST
    assert rules.conservative_settings(SPACE, OWN, USUAL, "lora")[RATE] == pytest.approx(2.5e-5)
    assert rules.next_settings(SPACE, [trial()], FIRST, 0.5) == FIRST


def test_conservative_values_fit_default_spaces():
    for algo in ("ppo", "grpo", "rloo", "reinforce", "dpo", "ipo", "kto", "orpo"):
        recipe = Recipe.model_validate({"policy": {"algo": algo}})
        space = parse_space(recipe)
        first = rules.conservative_settings(space, recipe_settings(recipe, space), USUAL, "lora")
        assert all(space[key].contains(item) for key, item in first.items())


def step(*trials: RuleTrial) -> dict:
    return rules.next_settings(SPACE, [trial(), *trials], FIRST, 0.5)


def test_rising_kl_asks_for_a_stronger_penalty():
    assert step(trial(kl=1.0))[COEF] == pytest.approx(0.6)
    changed = step(trial(kl=4.0, kl__coef=0.1))
    assert changed[COEF] == pytest.approx(0.4) and changed[RATE] == pytest.approx(1e-4 / 3)
    assert step(trial(kl=0.5, codes=("kl-rising",), kl__coef=0.1))[COEF] == pytest.approx(0.2)


def test_large_steps_ask_for_a_lower_rate():
    changed = step(trial(codes=("learning-rate-high",), kl__coef=0.1))
    assert changed[RATE] == pytest.approx(1e-4 / 3) and changed[COEF] == 0.1


def test_low_kl_asks_for_a_weaker_penalty_then_for_larger_steps():
    assert step(trial(kl=0.05))[COEF] == pytest.approx(0.15)
    changed = step(trial(kl=0.05), trial(kl=0.06, kl__coef=0.15))
    assert changed[COEF] == pytest.approx(0.075) and changed[RATE] == pytest.approx(3e-4)
    assert step(trial(kl=0.05, kl__coef=0.01))[RATE] == pytest.approx(3e-4)


def test_repetition_asks_for_a_bonus_or_a_temperature():
    space = SPACE | {"policy.temperature": SearchRange("policy.temperature", 0.7, 1.2)}
    last = RuleTrial(OWN | {"policy.temperature": 0.8}, 0.6, 0.5, ("repetition",))
    changed = rules.next_settings(space, [last, last], FIRST, 0.5)
    assert changed["policy.temperature"] == pytest.approx(0.96)
    bonus = SPACE | {"policy.rewards.diversity_bonus": SearchRange("policy.rewards.diversity_bonus", 0.0, 1.0)}
    last = RuleTrial(OWN | {"policy.rewards.diversity_bonus": 0.0}, 0.6, 0.5, ("diversity-collapse",))
    assert rules.next_settings(bonus, [last, last], FIRST, 0.5)["policy.rewards.diversity_bonus"] == 0.1


def test_processes_that_ask_at_once_get_different_settings():
    running = [OWN]
    for _ in range(4):  # before any trial has ended
        proposal = rules.next_settings(SPACE, [], FIRST, 0.5, running)
        assert proposal not in running
        running.append(proposal)
    assert running[1] == FIRST
    ended = [trial(), trial(value=0.7)]
    first = rules.next_settings(SPACE, ended, FIRST, 0.5, [FIRST])
    assert rules.next_settings(SPACE, ended, FIRST, 0.5, [FIRST, first]) not in (FIRST, first)


def test_at_the_target_neighbours_of_the_best_are_tried_once():
    trials = [trial(), trial(value=0.7)]
    tried = [t.settings for t in trials]
    for _ in range(6):
        proposal = rules.next_settings(SPACE, trials, FIRST, 0.5)
        assert proposal not in tried
        assert all(SPACE[key].contains(item) for key, item in proposal.items())
        tried.append(proposal)
        trials.append(RuleTrial(proposal, 0.6, 0.5))
