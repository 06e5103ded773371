"""Preflight checks of the sampling engine."""

from collections.abc import Iterator

from towpath import algos
from towpath.errors import RecipeError
from towpath.recipe import Decoding, Recipe
from towpath.records import Finding
from towpath.rollout.engine import engine_module
from towpath.rollout.vllm_environment import engine_python, installed_version, is_tested, tested_range

INSTALL = "towpath engine install vllm, and leave engine.python out"


def check_engine(recipe: Recipe) -> list[Finding]:
    """Whether the engine exists: a module with `open_engine`, and for vLLM a Python with a tested version."""
    engine = recipe.engine
    try:
        path = algos.source_of(engine_module(engine.type))
    except RecipeError as error:
        return [Finding("engine", "error", error.value, error.rule, error.fix)]
    if path is None or "def open_engine(" not in path.read_text(encoding="utf-8"):
        cause = "an import path names a module with open_engine, in the run folder or the working directory"
        return [Finding("engine", "error", f"engine.type = {engine.type!r}: no such engine", cause, "fix the path")]
    if engine.settings and "." not in engine.type:
        evidence = f"engine.settings with engine.type = {engine.type!r}"
        return [
            Finding("engine", "error", evidence, "settings are for an engine of your own", "remove engine.settings")
        ]
    return [*_check_vllm(recipe)] if engine.type == "vllm" else []


def _check_vllm(recipe: Recipe) -> Iterator[Finding]:
    engine = recipe.engine
    try:
        python = engine_python(engine.python)
    except RecipeError as error:
        yield Finding("engine", "error", error.value, error.rule, error.fix)
        return
    version = installed_version(python)
    if version is None:
        evidence = f"engine.python = {python!r}: no Python with vLLM"
        yield Finding("engine", "error", evidence, "engine.type = 'vllm' needs an environment that has vLLM", INSTALL)
    elif not is_tested(version):
        evidence = f"vLLM {version} in the environment of {python}"
        cause = f"tested versions are {tested_range()}: others may load weights or sample in another way"
        yield Finding("engine", "error", evidence, cause, INSTALL)
    if engine.exact is False:
        yield from _check_filters(recipe)


def _check_filters(recipe: Recipe) -> Iterator[Finding]:
    """vLLM's own sampler gives log-probabilities after filters; those of a completion are before."""
    if recipe.preferences.raters == "recorded":
        return
    for number, decoding in enumerate(recipe.preferences.decodings):
        filters = [name for name in ("top_k", "top_p", "min_p") if getattr(decoding, name) != getattr(Decoding(), name)]
        if filters:
            evidence = f"engine.exact = false with preferences.decodings[{number}].{filters[0]}"
            cause = "vLLM's own sampler gives log-probabilities after the filter, a completion has those before"
            yield Finding("engine", "error", evidence, cause, "remove engine.exact, or the filters")
            return
