"""Reward sources that are not the run's reward model: rules, Python functions, endpoints; names of models from
elsewhere.

Each takes prompts and answers and returns one score per answer.
"""

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
from towpath.data.user_code import load_function
from towpath.errors import RecipeError, RewardError
from towpath.recipe import Rewards
from towpath.recipe.rewards import CommandLimits
from towpath.rewards.call_adapter import (
    NO_COLUMNS,
    Columns,
    Prompts,
    RewardCall,
    adapt_function,
    message_rows,
    prompt_texts,
)
from towpath.rewards.command import load_command
from towpath.rewards.fingerprint import NoFingerprint, fingerprint
from towpath.rewards.verifiable import load_json, load_math, load_reference

Scorer = Callable[..., Sequence[float | None]]
"""Takes prompts, answers and optionally extra columns of the prompts' rows; returns a number for each answer, None
where the source does not apply to it, NaN where it failed."""
ATTEMPTS = 3
FIRST_PAUSE = 2.0
"""Seconds before the second attempt, at most."""
TIMEOUT = 60.0
BATCH = 64
"""Answers per request to an endpoint."""
BODY_SHOWN = 300
UNREADABLE = (RecursionError, ValueError, KeyError, TypeError)
"""Errors of reading a response that has no scores."""
RULE = (
    "a reward function takes lists of prompts and completions and returns a list of finite numbers, one per completion"
)
FUNCTION_RULE = "python:MODULE:FUNCTION takes prompts and completions and returns one number per completion"
ADDRESS_RULE = "link-local addresses and cloud metadata addresses are never called for rewards"
LARGEST = float(np.finfo(np.float32).max)
_registry: dict[str, Callable[..., Any]] = {}


def register_function(function: Callable[..., Any], name: str = "", columns: Collection[str] = ()) -> str:
    """Register a function of this process as a reward source and return the source's name.

    The name contains `name`, or else a fingerprint of the code, so that a stopped training resumes with the same
    reward only. Without either the name is unique to this call, and the training cannot resume.
    """
    if not callable(function):
        value = f"reward = {reprlib.repr(function)}"
        raise RecipeError(value, "a function of prompts and completions, or the name of a source", "give one of these")
    title = getattr(function, "__qualname__", type(function).__name__)
    adapt_function(f"reward {title}", function, columns)
    try:
        version = name or fingerprint(function)
    except NoFingerprint as error:
        version = f"once-{secrets.token_hex(4)}"
        warnings.warn(
            f"the reward {title} has no fingerprint ({error}): a stopped training starts over. "
            "To resume, pass a name: reward={'source': FUNCTION, 'name': 'v1'}",
            stacklevel=4,
        )
    source = f"given:{title}-{version}"
    _registry[source] = function
    return source


def classifiers(rewards: Rewards) -> list[str]:
    """Sources that name a reward model from elsewhere, model:SOURCE."""
    names = [*(source.source for source in rewards.sources), *rewards.watch]
    return list(dict.fromkeys(name for name in names if name.startswith("model:")))


def model_of(source: str) -> str:
    """The model that the reward source model:SOURCE or model:SOURCE#LABEL names."""
    return source.removeprefix("model:").partition("#")[0]


def load_source(source: str, columns: Collection[str] = (), limits: CommandLimits | None = None) -> Scorer:
    """The scorer that a recipe's source names; `columns` are the extra columns of the prompts' rows, `limits` those of
    a command.

    The sources `model` and `model:SOURCE` are not among these.
    """
    kind, _, rest = source.partition(":")
    if kind == "math":
        return load_math(source, list(columns))
    if kind == "json":
        return load_json(source)
    if kind == "command":
        return load_command(source, limits or CommandLimits())
    if kind == "rule" and rest.partition(":")[0] == "reference":
        return load_reference(source, list(columns))
    if kind == "rule":
        return _load_rule(rest)
    if kind == "python":
        function, _ = load_function(source, FUNCTION_RULE)
        return _check_scores(source, adapt_function(source, function, columns))
    if source in _registry:
        return _check_scores(source, adapt_function(source, _registry[source], columns))
    if kind.lower() in ("http", "https") and urllib.parse.urlsplit(source).hostname:
        try:
            network.require_allowed_literal(source)
        except network.ForbiddenAddress as error:
            raise RecipeError(f"{source!r}: {error}", ADDRESS_RULE, "correct the address") from None
        return lambda prompts, answers, columns=NO_COLUMNS: score_over_http(source, prompts, answers, columns)
    rule = "model:SOURCE, rule:NAME, math, json:FILE, command:PROGRAM, python:MODULE:FUNCTION or an http(s) address"
    raise RecipeError(f"{source!r}: no such source", rule, "for example rule:words:8-35")


def validate_scores(source: str, scores: Sequence[float | None], count: int) -> list[float | None]:
    """The scores as floats, None where the source does not apply to an answer; RewardError unless there are `count`
    finite numbers or None."""
    try:
        numbers = None
        if not isinstance(scores, str | bytes | Mapping):
            numbers = [None if score is None else float(score) for score in scores]
    except (TypeError, ValueError):
        numbers = None
    if numbers is None:
        problem = f"scores are {reprlib.repr(scores)}"
    elif len(numbers) != count:
        problem = f"{len(numbers)} scores for {count} answers"
    else:
        # NaN compares false
        invalid = [number for number in numbers if number is not None and not abs(number) <= LARGEST]
        if not invalid:
            return numbers
        problem = f"a score of {invalid[0]}"
    raise RewardError(f"{source}: {problem}", RULE, _failure_fix(source))


def _failure_fix(source: str) -> str:
    resume = "changed code trains the policy again from its first step"
    if source.startswith("http"):
        resume = "the run resumes from the last checkpoint"
    return f"fix the reward and start again; {resume}"


def _check_scores(source: str, call: RewardCall) -> Scorer:
    """A scorer that validates what a user's function returns, and names the line where it raises."""

    def score(prompts: Prompts, answers: Sequence[str], columns: Columns = NO_COLUMNS) -> list[float | None]:
        try:
            scores = call(prompts, answers, columns)
        except Exception as error:  # user code may raise anything
            frame = traceback.extract_tb(error.__traceback__)[-1]
            value = f"{source}: {type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
            raise RewardError(value, RULE, _failure_fix(source)) from error
        return validate_scores(source, scores, len(answers))

    return score


def _load_rule(text: str) -> Scorer:
    name, _, argument = text.partition(":")
    if name == "words":
        low, _, high = argument.partition("-")
        if not (low.isdigit() and high.isdigit() and int(low) <= int(high)):
            raise RecipeError(f"rule:{text}", "rule:words:LOW-HIGH", "for example rule:words:8-35")
        return _score_each(lambda answer: int(low) <= len(answer.split()) <= int(high))
    if name == "regex":
        try:
            pattern = re.compile(argument, re.DOTALL)
        except re.error as error:
            raise RecipeError(f"rule:{text}: {error}", "rule:regex:PATTERN", "fix the pattern") from None
        return _score_each(lambda answer: bool(pattern.search(answer)))
    if name == "prose":
        list_item = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
        return _score_each(lambda answer: not list_item.search(answer))
    raise RecipeError(
        f"rule:{text}: no such rule",
        "words:LOW-HIGH, regex:PATTERN, prose or reference[:COLUMN]",
        "or write python:MODULE:FUNCTION",
    )


def _score_each(holds: Callable[[str], bool]) -> Scorer:
    return lambda _prompts, answers, _columns=NO_COLUMNS: [float(holds(answer)) for answer in answers]


def score_over_http(
    address: str, prompts: Prompts, answers: Sequence[str], columns: Columns = NO_COLUMNS
) -> list[float | None]:
    """POST {"prompts", "answers", "messages"} and the columns in batches and read {"scores"}; a server that is busy or
    away is tried again."""
    scores: list[float | None] = []
    for begin in range(0, len(answers), BATCH):
        part = slice(begin, begin + BATCH)
        batch: dict[str, list[Any]] = {name: list(values[part]) for name, values in columns.items()}
        batch |= {"prompts": prompt_texts(prompts[part]), "answers": list(answers[part])}
        batch["messages"] = message_rows(prompts[part])
        scores += validate_scores(address, post_batch(address, batch, "scores"), len(batch["answers"]))
    return scores


def post_batch(address: str, batch: Mapping[str, list[Any]], field: str) -> list[Any]:
    """POST a batch of texts and read the list `field` of the reply; RewardError after the last attempt."""
    problem = ""
    wait = 0.0
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(max(wait, network.backoff(attempt, FIRST_PAUSE)))
        try:
            reply = _client(os.getpid()).post(address, json.dumps(batch, default=str).encode())
            if reply.status == 200:
                return list(json.loads(reply.body)[field])
        except network.ForbiddenAddress as error:
            problem = str(error)
            break
        except (network.ConnectFailed, network.ResponseFailed, *UNREADABLE) as error:
            problem = f"{type(error).__name__}: {error}"
            continue
        problem = _describe_failure(reply)
        wait = network.retry_after(reply.headers)
        if not network.is_transient(reply.status) or wait > network.MAX_RETRY_AFTER:
            break
    fix = "start the server or correct the address, then start again; the run resumes from the last checkpoint"
    names = ", ".join(f'"{name}"' for name in batch if name in ("prompts", "answers", "a", "b"))
    raise RewardError(f"{address}: {problem}", f'it must answer {{{names}}} with {{"{field}"}}', fix)


def _describe_failure(reply: network.HttpResponse) -> str:
    problem = str(reply.status)
    if 300 <= reply.status < 400:
        problem += f" to {reply.headers.get('location', '?')}, which is not followed: name that address itself"
    body = " ".join(reply.body[:BODY_SHOWN].decode(errors="replace").split())
    return f"{problem}: {body}" if body else problem


@cache
def _client(_process: int) -> network.HttpClient:
    return network.HttpClient(TIMEOUT)
