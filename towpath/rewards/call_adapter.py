"""Call a user's reward function: arguments by parameter name, or (prompts, answers) where no name is known.

`prompts` and `completions` are texts, or as in TRL lists of messages where the rows give their prompts as messages;
`answers` are always texts, `conversations` always messages.
"""

import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from towpath.errors import RecipeError
from towpath.records import Conversation, transcript

Columns = Mapping[str, Sequence[Any]]
"""Extra columns of the prompts' rows, one value per answer."""
NO_COLUMNS: Columns = {}
Prompts = Sequence[str | Conversation]
"""Texts, or conversations where the rows are conversational."""
RewardCall = Callable[[Prompts, Sequence[str], Columns], Any]
RESERVED_NAMES = ("prompts", "completions", "answers", "conversations")
"""Parameters that need no column."""
ANSWER_WORDS = re.compile("completion|answer|response|output|generation")
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def adapt_function(source: str, function: Callable[..., Any], columns: Collection[str] = ()) -> RewardCall:
    """Wrap a function so that it takes prompts, answers and columns; RecipeError if a parameter has no value."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C have no signature
        return lambda prompts, answers, _columns: function(prompt_texts(prompts), list(answers))
    parameters = [p for p in signature.parameters.values() if p.kind not in VARIADIC]
    takes_keywords = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    known = {*RESERVED_NAMES, *columns}
    by_position = not any(_name(p) in known for p in parameters) and _takes_two(signature)
    if by_position and not _first_is_answer(parameters):

        def call_by_position(prompts: Prompts, answers: Sequence[str], more: Columns) -> Any:
            return function(prompt_texts(prompts), list(answers), **(_as_lists(more) if takes_keywords else {}))

        return call_by_position
    missing = [p.name for p in parameters if _name(p) not in known and p.default is p.empty and p.name[:1] != "_"]
    if missing or not (parameters or takes_keywords):
        raise _missing_error(source, signature, missing, columns)

    def call_by_name(prompts: Prompts, answers: Sequence[str], more: Columns) -> Any:
        values: dict[str, Any] = _as_lists(more) | _named_values(prompts, answers)
        positional = []
        keywords = {}
        for p in parameters:
            if _name(p) not in known and p.default is not p.empty:
                continue
            value = values.get(_name(p), values["prompts"])  # a parameter that begins with _ is not read
            if p.kind is p.POSITIONAL_ONLY:
                positional.append(value)
            else:
                keywords[p.name] = value
        if takes_keywords:
            passed = {_name(p) for p in parameters} | {"answers", "conversations"}
            keywords |= {name: value for name, value in values.items() if name not in passed}
        return function(*positional, **keywords)

    return call_by_name


def prompt_texts(prompts: Prompts) -> list[str]:
    """Prompts as texts, conversations as transcripts."""
    return [prompt if isinstance(prompt, str) else transcript(prompt) for prompt in prompts]


def message_rows(prompts: Prompts) -> list[list[dict[str, str]]]:
    """Prompts as lists of {role, content}."""
    return [
        [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [asdict(message) for message in prompt]
        for prompt in prompts
    ]


def _named_values(prompts: Prompts, answers: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {"answers": list(answers), "conversations": message_rows(prompts)}
    if all(isinstance(prompt, str) for prompt in prompts):
        return values | {"prompts": list(prompts), "completions": list(answers)}
    completions = [[{"role": "assistant", "content": answer}] for answer in answers]
    return values | {"prompts": values["conversations"], "completions": completions}


def _name(parameter: inspect.Parameter) -> str:
    """The parameter's name without the underscore that marks it as unused."""
    return parameter.name.lstrip("_")


def _first_is_answer(parameters: Sequence[inspect.Parameter]) -> bool:
    """Whether the first parameter is named like an answer, so that prompts must not be passed to it."""
    return bool(parameters) and bool(ANSWER_WORDS.search(_name(parameters[0])))


def _takes_two(signature: inspect.Signature) -> bool:
    try:
        signature.bind([], [])
    except TypeError:
        return False
    return True


def _as_lists(columns: Columns) -> dict[str, list[Any]]:
    return {name: list(values) for name, values in columns.items()}


def _missing_error(
    source: str, signature: inspect.Signature, missing: Sequence[str], columns: Collection[str]
) -> RecipeError:
    problem = f"no value for {', '.join(missing)}" if missing else "it takes no arguments"
    available = f"the rows of the prompts have the columns {', '.join(sorted(columns))}"
    if not columns:
        available = "no columns are passed"
    rule = (
        "parameters are prompts, completions (or answers, conversations), columns of the rows, and **kwargs; "
        f"{available}"
    )
    fix = "give prompts as rows {'prompt': ..., 'COLUMN': ...} with that column, or rename the parameter"
    return RecipeError(f"{source}{signature}: {problem}", rule, fix)
