"""Rewards that are no model: rules, a Python function of one's own, an HTTP endpoint.  All take prompts and answers,
and give a score each."""

import importlib
import json
import os
import re
import reprlib
import secrets
import time
import traceback
import urllib.parse
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from towpath import network
from towpath.errors import RecipeError, RewardError
from towpath.rewards import calling, fingerprint
from towpath.rewards.calling import NO_COLUMNS, Columns

Scorer = Callable[..., Sequence[float]]
"""Takes prompts, answers and, where there are any, further columns of the prompts' rows; returns a number an answer."""
TRIES = 3
TIMEOUT = 60.0
PART = 64
SHOWN = 300
RULE = (
    "a reward function takes lists of prompts and completions, and returns a list of finite numbers, one for each "
    "completion"
)
FUNCTION_RULE = "python:MODULE:FUNCTION takes prompts and completions, returns a number each"
LARGEST = float(np.finfo(np.float32).max)
_given: dict[str, Callable[..., Any]] = {}


def given(function: Callable[..., Any], name: str = "", columns: Collection[str] = ()) -> str:
    """A name for a function handed over in this process, for a recipe's source: another where it does something
    else. What cannot be told gets a name that never was, so that nothing done before is taken for its work; unless
    the caller names it."""
    if not callable(function):
        raise RecipeError(
            f"reward = {reprlib.repr(function)}",
            "a function of prompts and completions, or a source by name",
            "give one of these",
        )
    calling.caller(f"reward {getattr(function, '__qualname__', type(function).__name__)}", function, columns)
    try:
        told = name or fingerprint.mark(function)
    except Exception as error:  # somebody else's objects raise what they will
        told = f"once-{secrets.token_hex(4)}"
        why = "a training that was stopped begins anew; give the reward a name to go on by"
        warnings.warn(
            f"what the reward holds cannot be told apart ({type(error).__name__}: {error}): {why}", stacklevel=4
        )
    name = f"given:{getattr(function, '__qualname__', type(function).__name__)}-{told}"
    _given[name] = function
    return name


def named(of: str, key: str = "sources", columns: Collection[str] = ()) -> Scorer:
    """The scorer that a recipe's source names; `model` is not one of these. `columns` are those that the prompts'
    rows have."""
    kind, _, rest = of.partition(":")
    if kind == "rule":
        return _rule(rest)
    if kind == "python":
        return _function(rest, columns)
    if of in _given:
        return _checked_call(of, calling.caller(of, _given[of], columns))
    if kind.lower() in ("http", "https") and urllib.parse.urlsplit(of).hostname:
        try:
            network.require_allowed_literal(of)
        except network.ForbiddenAddress as error:
            rule = "link-local addresses and those that serve a cloud's credentials are never asked for rewards"
            raise RecipeError(f"policy.rewards.{key}: {of!r}: {error}", rule, "correct the address") from None
        return lambda prompts, answers, _columns=NO_COLUMNS: over_http(of, prompts, answers)
    rule = ("model, " if key == "sources" else "") + "rule:NAME, python:MODULE:FUNCTION or an http(s) address"
    raise RecipeError(f"policy.rewards.{key}: {of!r}", rule, "for example rule:words:8-35")


def checked(of: str, scores: Sequence[float], count: int) -> list[float]:
    """The scores as finite numbers, as many as there were answers."""
    try:
        found = None if isinstance(scores, str | bytes | Mapping) else [float(score) for score in scores]
    except (TypeError, ValueError):
        found = None
    if found is None or len(found) != count or not all(abs(score) <= LARGEST for score in found):
        bad = next((score for score in found or () if not abs(score) <= LARGEST), None)
        said = (
            f"scores are {reprlib.repr(scores)}"
            if found is None
            else f"{len(found)} scores for {count} answers"
            if bad is None
            else f"a score of {bad}"
        )
        raise RewardError(f"{of}: {said}", RULE, mended(of))
    return found


def mended(of: str) -> str:
    """What to do about a source that failed."""
    again = "the run goes on from the last checkpoint" if of.startswith("http") else "other code trains the policy anew"
    return f"mend the reward and start again; {again}"


def _checked_call(of: str, call: calling.Call) -> Scorer:
    """A function's scores, checked; or an error that names it, with the line it stopped at."""

    def scores(prompts: Sequence[str], answers: Sequence[str], columns: Columns = NO_COLUMNS) -> list[float]:
        try:
            returned = call(prompts, answers, columns)
        except Exception as error:  # whatever a function of somebody else's raises
            at = traceback.extract_tb(error.__traceback__)[-1]
            value = f"{of}: {type(error).__name__}: {error} ({at.filename}:{at.lineno})"
            raise RewardError(value, RULE, mended(of)) from error
        return checked(of, returned, len(answers))

    return scores


def _rule(text: str) -> Scorer:
    name, _, argument = text.partition(":")
    if name == "words":
        low, _, high = argument.partition("-")
        if not (low.isdigit() and high.isdigit() and int(low) <= int(high)):
            raise RecipeError(f"rule:{text}", "rule:words:LOW-HIGH", "for example rule:words:8-35")
        return lambda _prompts, answers, _columns=NO_COLUMNS: [
            float(int(low) <= len(answer.split()) <= int(high)) for answer in answers
        ]
    if name == "regex":
        try:
            pattern = re.compile(argument, re.DOTALL)
        except re.error as error:
            raise RecipeError(f"rule:{text}: {error}", "rule:regex:PATTERN", "mend the pattern") from None
        return lambda _prompts, answers, _columns=NO_COLUMNS: [
            float(bool(pattern.search(answer))) for answer in answers
        ]
    if name == "prose":
        listed = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
        return lambda _prompts, answers, _columns=NO_COLUMNS: [float(not listed.search(answer)) for answer in answers]
    raise RecipeError(
        f"rule:{text}: no such rule", "words:LOW-HIGH, regex:PATTERN or prose", "or write python:MODULE:FUNCTION"
    )


def _function(text: str, columns: Collection[str]) -> Scorer:
    module, _, name = text.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        fix = "the module must be importable from where the run is started"
        raise RecipeError(f"python:{text}: {error}", FUNCTION_RULE, fix) from None
    if not callable(function):
        fix = "name a function"
        raise RecipeError(f"python:{text}: {reprlib.repr(function)}", FUNCTION_RULE, fix)
    return _checked_call(f"python:{text}", calling.caller(f"python:{text}", function, columns))


def over_http(address: str, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """POST {"prompts", "answers"}, get {"scores"}; in parts, each tried again when the server is away or busy."""
    scores: list[float] = []
    for begin in range(0, len(answers), PART):
        part = slice(begin, begin + PART)
        scores += checked(
            address,
            _posted(address, {"prompts": list(prompts[part]), "answers": list(answers[part])}),
            len(answers[part]),
        )
    return scores


def _posted(address: str, content: dict[str, list[str]]) -> list[float]:
    said = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(2.0**attempt / 2)
        try:
            reply = _client(os.getpid()).post(address, json.dumps(content).encode())
            if reply.status == 200:
                return list(json.loads(reply.body)["scores"])
        except network.ForbiddenAddress as error:
            said = str(error)
            break
        except (
            network.ConnectFailed,
            network.ResponseFailed,
            RecursionError,
            ValueError,
            KeyError,
            TypeError,
        ) as error:
            said = f"{type(error).__name__}: {error}"
            continue
        told = " ".join(reply.body[:SHOWN].decode(errors="replace").split())
        moved = (
            f" to {reply.headers.get('location', '?')}, which is not followed: name it itself"
            if 300 <= reply.status < 400
            else ""
        )
        said = f"{reply.status}{moved}" + (f": {told}" if told else "")
        if reply.status < 500 and reply.status != 429:
            break
    fix = "start the server, or correct the address, and start again; the run goes on from the last checkpoint"
    raise RewardError(f"{address}: {said}", 'it must answer {"prompts", "answers"} with {"scores"}', fix)


@cache
def _client(_process: int) -> network.HttpClient:
    return network.HttpClient(TIMEOUT)
