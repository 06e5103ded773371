"""The doctor: a run's record in, what went wrong, why, and what to do."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from towpath.errors import RecipeError, ResourceError
from towpath.health.diagnosis import diagnose
from towpath.health.history import Curve, History
from towpath.recipe import Limits, Recipe, aliases
from towpath.recipe.reader import check, flat, keys, override
from towpath.store.publish import replace_file
from towpath.view.foreign.log import Log
from towpath.view.foreign.names import KEYS, Kind
from towpath.view.foreign.open_log import opened
from towpath.view.report.findings import Told, page

CLEAN = 0
WARNED = 1
CRITICAL = 2
LIMITS = "health.limits."
ROLLOUTS: tuple[Kind, ...] = ("policy",)
POLICIES: tuple[Kind, ...] = ("policy", "pairs")
ALL: tuple[Kind, ...] = ("policy", "pairs", "sft", "reward", "training")
NEEDS: tuple[tuple[tuple[Kind, ...], tuple[str, ...], str], ...] = (
    (ROLLOUTS, ("kl", "kl_k3", "kl_per_token"), "no KL: drift from where it began not judged"),
    (ROLLOUTS, ("reward", "score"), "no reward: neither learning nor hacking judged"),
    (ROLLOUTS, ("watched/",), "no score but the rewarded one (watched/…): hacking is judged by its traces only"),
    (ROLLOUTS, ("length",), "no length of answers: growth by length not judged"),
    (
        ROLLOUTS,
        ("reward_length_corr",),
        "no correlation of score and length: whether length is rewarded is judged from step to step only",
    ),
    (ROLLOUTS, ("entropy", "distinct_2"), "neither entropy nor diversity of words: collapse not judged"),
    (ROLLOUTS, ("repetition",), "no share of repeated words: repetition not judged"),
    (ROLLOUTS, ("finish_rate",), "no share of answers that end: truncation not judged"),
    (ROLLOUTS, ("clip_fraction", "approx_kl"), "neither clipping nor approximate KL: size of updates not judged"),
    (
        ROLLOUTS,
        ("sampler_error",),
        "no log-probabilities of the sampler beside the trainer's: their difference not judged",
    ),
    (ROLLOUTS, ("domain/", "reward/"), "no reward by domain: a domain left behind not judged"),
    (POLICIES, ("harmful_refusal", "harmless_refusal", "refusal"), "refusals not counted: safety not judged"),
    (("pairs", "reward"), ("accuracy", "pairs_accuracy"), "no accuracy on pairs: learning judged by the loss only"),
    (("pairs", "sft", "reward", "training"), ("loss", "pairs_loss"), "no loss: learning not judged"),
    (ALL, ("grad_norm",), "no gradient norm: unsteady updates judged by the other curves only"),
    (ALL, ("learning_rate",), "no learning rate: whether it fits not judged"),
)
"""What a detector needs and whose absence is to be told: kinds of training, names of which one is enough, and what
follows."""


def examine(path: Path, maps: Sequence[str] = (), facts: Sequence[str] = ()) -> list[Told]:
    """What is wrong with a run, finished or under way, as far as its record tells; a run of Towpath stage by stage."""
    given = stated(facts)
    return list(_once([told(log, given) for log in opened(path, _pairs(maps))]))


def _once(found: Sequence[Told]) -> Iterator[Told]:
    """What two stages show alike is told of the first."""
    said: set[tuple[str, str]] = set()
    for one in found:
        fresh = tuple(finding for finding in one.findings if (finding.code, finding.evidence) not in said)
        said |= {(finding.code, finding.evidence) for finding in fresh}
        yield replace(one, findings=fresh)


def told(log: Log, given: Mapping[str, Any] | None = None) -> Told:
    """The findings on one log, with facts of the user's laid over what the log tells itself."""
    facts = {**log.history.facts, **(given or {})}
    log = replace(log, history=_weighted(History(log.history.train, log.history.validation, facts)))
    found = diagnose(log.history, _limits(facts))
    return Told(
        log, tuple(replace(finding, remedy=_there(finding.remedy, log)) for finding in found), tuple(blind(log))
    )


def _there(remedy: str, log: Log) -> str:
    """A remedy with what its keys are called where the log comes from."""
    called = {
        key: theirs
        for key, theirs in KEYS.get(log.dialect, {}).items()
        if re.search(rf"\b{re.escape(key)}\b(?![._]\w)", remedy)
    }
    return (
        f"{remedy}; in {log.dialect} " + ", ".join(f"{key} is {theirs}" for key, theirs in called.items())
        if called
        else remedy
    )


def _weighted(history: History) -> History:
    """Where the weight of the KL is known and was not logged, it stood still."""
    kl = history.curve("kl")
    coef = history.facts.get("policy.kl.coef")
    if "kl_coef" in history.train or not len(kl) or not isinstance(coef, int | float):
        return history
    return replace(history, train={**history.train, "kl_coef": Curve(kl.steps, np.full(len(kl), float(coef)))})


def blind(log: Log) -> Iterator[str]:
    """What could not be looked for, and for want of what."""
    for kinds, wanted, text in NEEDS:
        if log.kind in kinds and not log.has(*wanted):
            yield text
    facts = log.history.facts
    if log.kind == "policy" and log.has("kl") and not log.has("kl_coef"):
        yield "no KL coefficient: whether anything holds the policy not judged (--fact policy.kl.coef=…)"
    if facts.get("policy.algo") == "ppo" and log.kind == "policy" and not log.has("explained_variance"):
        yield "no explained variance: the critic not judged"
    if not log.history.validation:
        yield "no validation: overfitting, and gains on training prompts alone, not judged"
    elif log.kind == "policy" and not log.history.validation_curve("reward").values.size:
        yield "no reward in validation: gains on training prompts alone not judged"


def exit_code(found: Sequence[Told]) -> int:
    """0 where all is well, 1 with warnings, 2 where a run is in danger."""
    severities = {finding.severity for one in found for finding in one.findings}
    return CRITICAL if severities & {"critical", "error"} else WARNED if "warning" in severities else CLEAN


def write_page(file: Path, path: Path, found: Sequence[Told]) -> None:
    """The findings as a page of its own, whole or not at all."""
    try:
        replace_file(file, page(path.resolve().name, found))
    except OSError as error:
        raise ResourceError(
            f"--html {file}: {error.strerror}", "a file in a folder that can be written to", "name another place"
        ) from None


def _limits(facts: Mapping[str, Any]) -> Limits:
    said = {key.removeprefix(LIMITS): value for key, value in facts.items() if key.startswith(LIMITS)}
    return check(Limits, said, "health.limits") if said else Limits()


def _pairs(maps: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in maps:
        theirs, equals, ours = (part.strip() for part in text.rpartition("="))
        if not equals or not theirs or not ours:
            raise RecipeError(
                f"--map {text}",
                "a name of the log, =, and a name of the house",
                "for example --map train/return=reward",
            )
        found[theirs] = ours
    return found


def stated(facts: Sequence[str]) -> dict[str, Any]:
    """Facts as the user states them, `policy.kl.coef=0.05`: keys of the recipe, or results of earlier stages."""
    for text in facts:
        key, equals, _ = (part.strip() for part in text.partition("="))
        known = [*keys(Recipe), "stage", "steps"]
        if not equals:
            raise RecipeError(
                f"--fact {text}", "a key of the recipe, =, and its value", "for example --fact policy.kl.coef=0.05"
            )
        if key not in known and ".result." not in key:
            fix = aliases.suggestion(key, known) or "`towpath explain` lists all"
            raise RecipeError(f"--fact {text}: no such key", "a key of the recipe", fix)
    return flat(override({}, list(facts)))
