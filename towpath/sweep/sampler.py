"""Settings of a trial: a function of the sweep's seed, the trial's number and the trials that have ended."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from towpath.data.draws import generator, uniforms
from towpath.errors import RecipeError
from towpath.sweep.space import SearchRange, Settings, Space

STARTUP = 5
"""Trials at random before a model is asked."""


@dataclass(frozen=True)
class Observation:
    """A trial that has ended, as samplers read it."""

    number: int
    settings: Settings
    value: float


def draw_random(space: Space, seed: int, number: int) -> Settings:
    """Settings at random."""
    shares = uniforms(len(space), seed, "sweep/random", number)
    return {key: search_range.at(float(u)) for (key, search_range), u in zip(space.items(), shares, strict=True)}


def draw_tpe(space: Space, seed: int, number: int, observations: Sequence[Observation]) -> Settings:
    """Settings by Optuna's TPE, which is given the trials in their order; at random while there are few."""
    inside = [o for o in observations if all(r.contains(o.settings.get(key)) for key, r in space.items())]
    if len(inside) < STARTUP:
        return draw_random(space, seed, number)
    optuna = import_optuna()
    forms = {key: distribution(search_range) for key, search_range in space.items()}
    draw = int(generator(seed, "sweep/tpe", number).integers(2**31))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.TPESampler(seed=draw, n_startup_trials=0, multivariate=True)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for observation in sorted(inside, key=lambda o: o.number):
            settings = {key: observation.settings[key] for key in space}
            trial = optuna.trial.create_trial(params=settings, distributions=forms, value=observation.value)
            study.add_trial(trial)
        params = study.ask(forms).params
    return {key: params[key] for key in space}


def distribution(search_range: SearchRange) -> Any:
    """A range as Optuna has it."""
    optuna = import_optuna()
    if search_range.choices:
        return optuna.distributions.CategoricalDistribution(search_range.choices)
    if search_range.whole:
        step = int(search_range.step) or 1
        return optuna.distributions.IntDistribution(
            int(search_range.low), int(search_range.high), search_range.log, step
        )
    step = search_range.step or None
    return optuna.distributions.FloatDistribution(search_range.low, search_range.high, search_range.log, step)


def import_optuna() -> Any:
    """The module `optuna`; RecipeError names the package where it is not installed."""
    try:
        import optuna
    except ModuleNotFoundError:
        raise RecipeError(
            "towpath sweep: optuna is not installed",
            "a sweep keeps its trials in a study of Optuna",
            "pip install 'towpath[sweep]'",
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
