"""Doctor: diagnoses a run or a log, with the cause and the remedy of each finding."""

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
from towpath.recipe.reader import check, flatten, keys, override
from towpath.store.publish import replace_file
from towpath.view.doctor_report import Diagnosis, page
from towpath.view.foreign.log import Log
from towpath.view.foreign.names import KEYS, Kind
from towpath.view.foreign.open_log import open_logs

CLEAN = 0
WARNINGS = 1
CRITICAL = 2
LIMITS_PREFIX = "health.limits."
POLICY: tuple[Kind, ...] = ("policy",)
POLICY_OR_PAIRS: tuple[Kind, ...] = ("policy", "pairs")
ALL_KINDS: tuple[Kind, ...] = ("policy", "pairs", "sft", "reward", "training")
SIGNALS: tuple[tuple[tuple[Kind, ...], tuple[str, ...], str], ...] = (
    (POLICY, ("kl", "kl_k3", "kl_per_token"), "no KL: distance to the reference not checked"),
    (POLICY, ("reward", "score"), "no reward: neither learning nor reward hacking checked"),
    (POLICY, ("watched/",), "no score but the rewarded one (watched/…): reward hacking checked by its symptoms only"),
    (POLICY, ("length",), "no answer length: length hacking not checked"),
    (
        POLICY,
        ("reward_length_corr",),
        "no correlation of score and length: length hacking checked from step to step only",
    ),
    (POLICY, ("entropy", "distinct_2"), "neither entropy nor distinct words: diversity collapse not checked"),
    (POLICY, ("repetition",), "no share of repeated words: repetition not checked"),
    (POLICY, ("finish_rate",), "no finish rate: truncation not checked"),
    (POLICY, ("clip_fraction", "approx_kl"), "neither clip fraction nor approximate KL: size of updates not checked"),
    (
        POLICY,
        ("sampler_error",),
        "no log-probabilities of the sampler beside the trainer's: sampler mismatch not checked",
    ),
    (POLICY, ("domain/", "reward/"), "no reward by domain: regressions of a domain not checked"),
    (POLICY_OR_PAIRS, ("harmful_refusal", "harmless_refusal", "refusal"), "no refusal rates: safety not checked"),
    (("pairs", "reward"), ("accuracy", "pairs_accuracy"), "no accuracy on pairs: learning checked by the loss only"),
    (("pairs", "sft", "reward", "training"), ("loss", "pairs_loss"), "no loss: learning not checked"),
    (ALL_KINDS, ("grad_norm",), "no gradient norm: unstable updates checked by the other curves only"),
    (ALL_KINDS, ("learning_rate",), "no learning rate: whether it is usual not checked"),
)
"""Metrics that detectors need: kinds of training, names of which one is enough, and what is not checked without."""


def examine(path: Path, maps: Sequence[str] = (), facts: Sequence[str] = ()) -> list[Diagnosis]:
    """Diagnose a run, finished or not, or a log; a run of Towpath stage by stage."""
    stated = parse_facts(facts)
    diagnoses = [diagnose_log(log, stated) for log in open_logs(path, _parse_maps(maps))]
    return list(_without_repeats(diagnoses))


def _without_repeats(diagnoses: Sequence[Diagnosis]) -> Iterator[Diagnosis]:
    """Diagnoses in which a finding of two stages is reported for the first only."""
    reported: set[tuple[str, str]] = set()
    for diagnosis in diagnoses:
        new = tuple(f for f in diagnosis.findings if (f.code, f.evidence) not in reported)
        reported |= {(finding.code, finding.evidence) for finding in new}
        yield replace(diagnosis, findings=new)


def diagnose_log(log: Log, stated: Mapping[str, Any] | None = None) -> Diagnosis:
    """The findings on one log; facts that the user states override those of the log."""
    facts = {**log.history.facts, **(stated or {})}
    log = replace(log, history=_with_kl_coef(History(log.history.train, log.history.validation, facts)))
    findings = diagnose(log.history, _limits(facts))
    findings = tuple(replace(finding, remedy=_translate_keys(finding.remedy, log.dialect)) for finding in findings)
    return Diagnosis(log, findings, tuple(missing_signals(log)))


def _translate_keys(remedy: str, dialect: str) -> str:
    """A remedy with the names that its recipe keys have in another trainer."""
    names = {
        key: theirs
        for key, theirs in KEYS.get(dialect, {}).items()
        if re.search(rf"\b{re.escape(key)}\b(?![._]\w)", remedy)
    }
    if not names:
        return remedy
    return f"{remedy}; in {dialect} " + ", ".join(f"{key} is {theirs}" for key, theirs in names.items())


def _with_kl_coef(history: History) -> History:
    """A history with a constant KL coefficient, if it is known and not logged."""
    kl = history.curve("kl")
    coef = history.facts.get("policy.kl.coef")
    if "kl_coef" in history.train or not len(kl) or not isinstance(coef, int | float):
        return history
    return replace(history, train={**history.train, "kl_coef": Curve(kl.steps, np.full(len(kl), float(coef)))})


def missing_signals(log: Log) -> Iterator[str]:
    """What could not be checked, and which metric is missing for it."""
    for kinds, names, text in SIGNALS:
        if log.kind in kinds and not log.has(*names):
            yield text
    if log.kind == "policy" and log.has("kl") and not log.has("kl_coef"):
        yield "no KL coefficient: strength of the KL penalty not checked (--fact policy.kl.coef=…)"
    is_ppo = log.history.facts.get("policy.algo") == "ppo"
    if is_ppo and log.kind == "policy" and not log.has("explained_variance"):
        yield "no explained variance: critic not checked"
    if not log.history.validation:
        yield "no validation: overfitting, and gains on training prompts alone, not checked"
    elif log.kind == "policy" and not log.history.validation_curve("reward").values.size:
        yield "no reward in validation: gains on training prompts alone not checked"


def exit_code(diagnoses: Sequence[Diagnosis]) -> int:
    """0 without warnings, 1 with warnings, 2 with critical findings."""
    severities = {finding.severity for diagnosis in diagnoses for finding in diagnosis.findings}
    if severities & {"critical", "error"}:
        return CRITICAL
    return WARNINGS if "warning" in severities else CLEAN


def write_page(file: Path, path: Path, diagnoses: Sequence[Diagnosis]) -> None:
    """Write the findings as a page."""
    try:
        replace_file(file, page(path.resolve().name, diagnoses))
    except OSError as error:
        rule = "a file in a folder that can be written to"
        raise ResourceError(f"--html {file}: {error.strerror}", rule, "name another file") from None


def _limits(facts: Mapping[str, Any]) -> Limits:
    values = {key.removeprefix(LIMITS_PREFIX): value for key, value in facts.items() if key.startswith(LIMITS_PREFIX)}
    return check(Limits, values, "health.limits") if values else Limits()


def _parse_maps(maps: Sequence[str]) -> dict[str, str]:
    names = {}
    for text in maps:
        theirs, equals, ours = (part.strip() for part in text.rpartition("="))
        if not equals or not theirs or not ours:
            rule = "a name of the log, =, and a metric of Towpath"
            raise RecipeError(f"--map {text}", rule, "for example --map train/return=reward")
        names[theirs] = ours
    return names


def parse_facts(facts: Sequence[str]) -> dict[str, Any]:
    """Facts that the user states, `policy.kl.coef=0.05`: recipe keys, or results of earlier stages."""
    known = [*keys(Recipe), "stage", "steps"]
    for text in facts:
        key, equals, _ = (part.strip() for part in text.partition("="))
        if not equals:
            rule = "a key of the recipe, =, and its value"
            raise RecipeError(f"--fact {text}", rule, "for example --fact policy.kl.coef=0.05")
        if key not in known and ".result." not in key:
            fix = aliases.suggestion(key, known) or "`towpath explain` lists all"
            raise RecipeError(f"--fact {text}: no such key", "a key of the recipe", fix)
    return flatten(override({}, list(facts)))
