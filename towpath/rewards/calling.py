"""How a reward function of the user's own is called: by the names of its parameters, or, where none is known, with
prompts and answers."""

import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from towpath.errors import RecipeError

Columns = Mapping[str, Sequence[Any]]
"""Further columns of the prompts' rows, one value an answer."""
NO_COLUMNS: Columns = {}
Call = Callable[[Sequence[str], Sequence[str], Columns], Any]
NAMES = ("prompts", "completions", "answers")
"""Parameters that are filled without any column; `completions` (TRL's word) and `answers` are the same."""
ANSWER_WORDS = re.compile("completion|answer|response|output|generation")
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def caller(of: str, function: Callable[..., Any], columns: Collection[str] = ()) -> Call:
    """The function as something that takes prompts, answers and columns; an error where a parameter cannot be
    filled."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C have none
        return lambda prompts, answers, _columns: function(list(prompts), list(answers))
    parameters = [p for p in signature.parameters.values() if p.kind not in VARIADIC]
    any_keyword = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    known = {*NAMES, *columns}
    if (
        not any(_word(p) in known for p in parameters)
        and _takes_two(signature)
        and not _begins_with_answers(parameters)
    ):
        return lambda prompts, answers, more: function(
            list(prompts), list(answers), **(_listed(more) if any_keyword else {})
        )
    unfilled = [
        p.name for p in parameters if _word(p) not in known and p.default is p.empty and not p.name.startswith("_")
    ]
    if unfilled or not (parameters or any_keyword):
        raise _unfilled(of, signature, unfilled, columns)

    def call(prompts: Sequence[str], answers: Sequence[str], more: Columns) -> Any:
        values: dict[str, Any] = _listed(more) | {
            "prompts": list(prompts),
            "completions": list(answers),
            "answers": list(answers),
        }
        in_place = []
        passed = {}
        for p in parameters:
            if _word(p) not in known and p.default is not p.empty:
                continue
            value = values.get(_word(p), values["prompts"])  # one that begins with _ is not read
            if p.kind is p.POSITIONAL_ONLY:
                in_place.append(value)
            else:
                passed[p.name] = value
        if any_keyword:
            taken = {_word(p) for p in parameters} | {"answers"}
            passed |= {name: value for name, value in values.items() if name not in taken}
        return function(*in_place, **passed)

    return call


def _word(parameter: inspect.Parameter) -> str:
    """What a parameter is called, without the underscore of one that is not read."""
    return parameter.name.lstrip("_")


def _begins_with_answers(parameters: Sequence[inspect.Parameter]) -> bool:
    """Whether the first parameter is called like an answer, so that prompts must not be passed as it."""
    return bool(parameters) and bool(ANSWER_WORDS.search(_word(parameters[0])))


def _takes_two(signature: inspect.Signature) -> bool:
    try:
        signature.bind([], [])
    except TypeError:
        return False
    return True


def _listed(columns: Columns) -> dict[str, list[Any]]:
    return {name: list(values) for name, values in columns.items()}


def _unfilled(of: str, signature: inspect.Signature, unfilled: Sequence[str], columns: Collection[str]) -> RecipeError:
    there = (
        f"the rows of the prompts have the columns {', '.join(sorted(columns))}"
        if columns
        else "no columns are passed on"
    )
    in_recipe = not columns and of.startswith("python:")
    value = f"{of}{signature}: " + (
        f"nothing to pass as {', '.join(unfilled)}" if unfilled else "it takes no arguments"
    )
    rule = f"parameters are prompts, completions (or answers), columns of the rows, and **kwargs; {there}"
    fix = "give prompts as rows {'prompt': ..., 'COLUMN': ...} with that column, or rename the parameter"
    if in_recipe:
        fix = (
            "rename the parameter, or look its value up by the prompt: a recipe passes no columns of its data files "
            "on, `towpath.train` does"
        )
    return RecipeError(value, rule, fix)
