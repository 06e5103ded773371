"""A function of the user, an http endpoint, or a reward that checks answers, as evaluation judge: it scores one answer,
or compares two.

A function compares if it has the parameters `a` and `b`, an address if it ends with `#compare`.
"""

import inspect
import math
import reprlib
import traceback
import urllib.parse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from towpath import network
from towpath.data.user_code import load_function
from towpath.errors import RecipeError, RewardError
from towpath.evals.judges import TIE, AnswerPair, JudgeOutcomes, PairOutcome, outcome_of_orders, outcome_of_scores
from towpath.progress import progress
from towpath.rewards.call_adapter import Columns, Prompts, adapt_function, prompt_texts
from towpath.rewards.sources import ADDRESS_RULE, load_source, post_batch

BATCH = 16
"""Pairs in one call."""
GIVE_UP = 3
"""Consecutive batches without a reply after which an endpoint is given up."""
COMPARE = "#compare"
RULE = (
    "a judge is a function of prompts and answers that returns one number for each answer, or a function of prompts, a "
    "and b that returns 'a', 'b', 'tie', 'both_bad' or None for each pair"
)
VALUES: dict[Any, float] = {"a": 1.0, "b": 0.0, "tie": 0.5, "both_bad": 0.5, 1: 1.0, 0: 0.0, 0.5: 0.5}
"""Outcomes of a comparison: choices, or the probability that a is better where it is 1, 0.5 or 0."""
Scores = Callable[[Prompts, Sequence[str], Columns], list[float | None]]
Choices = Callable[[Sequence[str], Sequence[str], Sequence[str], Columns], list[float | None]]
ColumnsOf = Callable[[Sequence[AnswerPair]], Columns]
PromptsOf = Callable[[Sequence[AnswerPair]], Prompts]
"""Prompts as a reward function gets them: texts, or conversations where the rows are conversational."""


def texts_of(pairs: Sequence[AnswerPair]) -> list[str]:
    """The prompts as texts."""
    return [pair.prompt.text for pair in pairs]


@dataclass(frozen=True)
class FunctionJudge:
    """Calls the user's code in batches: `scores` of single answers, or `choices` between two in both orders."""

    name: str
    margin: float
    columns_of: ColumnsOf
    prompts_of: PromptsOf
    scores: Scores | None = None
    choices: Choices | None = None

    def compare(self, pairs: Sequence[AnswerPair], title: str) -> JudgeOutcomes:
        """Judge the pairs that differ; an endpoint that does not reply leaves them unjudged."""
        outcomes = [TIE if pair.same else PairOutcome(None, "unreachable") for pair in pairs]
        todo = [i for i, pair in enumerate(pairs) if not pair.same]
        failures = 0
        calls = 0
        with progress(title, len(todo)) as bar:
            for begin in range(0, len(todo), BATCH):
                index = todo[begin : begin + BATCH]
                calls += 2
                try:
                    results = self._judge_batch([pairs[i] for i in index])
                    failures = 0
                except Unreachable as error:
                    results = [PairOutcome(None, f"unreachable: {error}")] * len(index)
                    failures += 1
                for i, outcome in zip(index, results, strict=True):
                    outcomes[i] = outcome
                bar.advance(len(index))
                if failures == GIVE_UP:
                    break
        return JudgeOutcomes(self.name, tuple(outcomes), calls)

    def _judge_batch(self, pairs: Sequence[AnswerPair]) -> list[PairOutcome]:
        ours = [pair.texts[0] for pair in pairs]
        other = [pair.texts[1] for pair in pairs]
        columns = self.columns_of(pairs)
        if self.choices is not None:
            prompts = texts_of(pairs)
            first = self.choices(prompts, ours, other, columns)
            swapped = self.choices(prompts, other, ours, columns)
            second = [None if value is None else 1 - value for value in swapped]
            return [outcome_of_orders(a, b) for a, b in zip(first, second, strict=True)]
        assert self.scores is not None
        # one answer at a time of both models: a function that normalises within a batch must see both alike
        values = self.scores(
            [*self.prompts_of(pairs)] * 2, ours + other, {name: list(x) * 2 for name, x in columns.items()}
        )
        return [
            outcome_of_scores(a, b, self.margin)
            for a, b in zip(values[: len(pairs)], values[len(pairs) :], strict=True)
        ]


class Unreachable(Exception):
    """An endpoint that gave no reply after all attempts."""


def load_judge(
    spec: str,
    run: Path,
    margin: float,
    column_names: Sequence[str],
    columns_of: ColumnsOf,
    prompts_of: PromptsOf = texts_of,
) -> FunctionJudge:
    """The judge that `python:MODULE:FUNCTION`, an http(s) address or a reward source names; RecipeError if it cannot be
    called."""
    if spec.startswith("python:"):
        function, _ = load_function(spec, RULE, run)
        parameters = inspect.signature(function).parameters
        if {"a", "b"} <= set(parameters):
            return FunctionJudge(spec, margin, columns_of, prompts_of, choices=_comparison(spec, function, parameters))
        call = adapt_function(spec, function, column_names)
        return FunctionJudge(spec, margin, columns_of, prompts_of, scores=_scoring(spec, call))
    if not spec.startswith(("http://", "https://")):
        scorer = load_source(spec, columns=column_names)
        return FunctionJudge(spec, margin, columns_of, prompts_of, scores=_scoring(spec, scorer))
    address = spec.removesuffix(COMPARE)
    try:
        network.require_allowed_literal(address)
    except network.ForbiddenAddress as error:
        raise RecipeError(f"evaluate.judges: {spec!r}: {error}", ADDRESS_RULE, "correct the address") from None
    if spec.endswith(COMPARE):
        return FunctionJudge(_without_login(spec), margin, columns_of, prompts_of, choices=_remote_comparison(address))
    return FunctionJudge(_without_login(spec), margin, columns_of, prompts_of, scores=_remote_scoring(address))


def _without_login(address: str) -> str:
    """The address as reports name it, without a user name and password."""
    parts = urllib.parse.urlsplit(address)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _scoring(spec: str, call: Callable[..., Any]) -> Scores:
    def scores(prompts: Prompts, answers: Sequence[str], columns: Columns) -> list[float | None]:
        return _numbers(spec, _call(spec, lambda: call(prompts, answers, columns)), len(answers))

    return scores


def _comparison(spec: str, function: Callable[..., Any], parameters: Mapping[str, Any]) -> Choices:
    """A function of lists, or one of a single pair if it has the parameter `prompt`."""
    one_by_one = "prompt" in parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())

    def choices(prompts: Sequence[str], a: Sequence[str], b: Sequence[str], columns: Columns) -> list[float | None]:
        lists: dict[str, Sequence[Any]] = {**columns, "prompts": prompts, "prompt": prompts, "a": a, "b": b}
        lists.pop("prompts" if one_by_one else "prompt")
        chosen = {name: values for name, values in lists.items() if takes_all or name in parameters}

        def call() -> Any:
            if one_by_one:
                return [function(**{name: values[i] for name, values in chosen.items()}) for i in range(len(a))]
            return function(**{name: list(values) for name, values in chosen.items()})

        return _outcomes(spec, _call(spec, call), len(a))

    return choices


def _remote_scoring(address: str) -> Scores:
    def scores(prompts: Prompts, answers: Sequence[str], _columns: Columns) -> list[float | None]:
        batch = {"prompts": prompt_texts(prompts), "answers": list(answers)}
        return _numbers(address, _post(address, batch, "scores"), len(answers))

    return scores


def _remote_comparison(address: str) -> Choices:
    def choices(prompts: Sequence[str], a: Sequence[str], b: Sequence[str], _columns: Columns) -> list[float | None]:
        batch = {"prompts": list(prompts), "a": list(a), "b": list(b)}
        return _outcomes(address, _post(address, batch, "choices"), len(a))

    return choices


def _post(address: str, batch: Mapping[str, list[str]], field: str) -> list[Any]:
    try:
        return post_batch(address, batch, field)
    except RewardError as error:
        raise Unreachable(error.value.removeprefix(f"{address}: ")) from None


def _call(spec: str, call: Callable[[], Any]) -> Any:
    """What the user's function returns; RewardError names the line where it raises."""
    try:
        return call()
    except Exception as error:  # user code may raise anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        value = f"{spec}: {type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
        raise RewardError(value, RULE, "fix the function and start again; the answers are kept") from error


def _numbers(spec: str, values: Any, count: int) -> list[float | None]:
    """One number for each answer; None, NaN and infinity leave an answer without a score."""
    rows = _rows(spec, values, count)
    try:
        numbers = [None if value is None else float(value) for value in rows]
    except (TypeError, ValueError):
        raise RewardError(f"{spec}: scores are {reprlib.repr(rows)}", RULE, "return numbers or None") from None
    return [number if number is not None and math.isfinite(number) else None for number in numbers]


def _outcomes(spec: str, values: Any, count: int) -> list[float | None]:
    """One choice for each pair; None leaves a pair unjudged."""
    rows = _rows(spec, values, count)
    try:
        wrong = [value for value in rows if value is not None and value not in VALUES]
    except TypeError:  # a value that cannot be looked up
        wrong = rows
    if wrong:
        most = Counter(map(reprlib.repr, wrong)).most_common(1)[0][0]
        raise RewardError(f"{spec}: a choice of {most}", RULE, "return 'a', 'b', 'tie', 'both_bad' or None")
    return [None if value is None else VALUES[value] for value in rows]


def _rows(spec: str, values: Any, count: int) -> list[Any]:
    try:
        rows = None if isinstance(values, str | bytes | Mapping) else list(values)
    except TypeError:
        rows = None
    if rows is None or len(rows) != count:
        got = reprlib.repr(values) if rows is None else f"{len(rows)} values"
        raise RewardError(f"{spec}: {got} for {count}", RULE, "return one value for each")
    return rows
