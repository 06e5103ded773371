"""Reward sources that check an answer: against a reference in the prompt's row (`math`, `rule:reference`), or against a
JSON schema (`json:FILE`)."""

import json
import math
import re
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from towpath.data.texts import normalise
from towpath.data.user_code import find_file
from towpath.errors import RecipeError, RewardError
from towpath.reasoning import final_answer
from towpath.rewards.call_adapter import NO_COLUMNS, Columns, Prompts

REFERENCE = "reference"
"""The column of the correct answer, unless the source names another."""
SECONDS = 5
_VALUE = re.compile(
    r"[-+]?\s*(?:(?:(?P<above>\d+)\s*/\s*(?P<below>\d+))|\\[dt]?frac\{(?P<top>\d+)\}\{(?P<bottom>\d+)\}"
    r"|\d[\d,]*(?:\.\d*)?|\.\d+)\s*(?:\\?%)?"
)
CODE_BLOCK = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)
Scorer = Callable[..., list[float | None]]


def load_math(source: str, columns: Sequence[str]) -> Scorer:
    """1 where the answer is mathematically equal to the reference, by math-verify; else 0."""
    column = _column(source, columns)
    try:
        from math_verify import parse, verify
    except ImportError:
        fix = "pip install 'towpath[math]'"
        raise RecipeError(f"{source!r}", "the source math needs the package math-verify", fix) from None

    def limit() -> Any:
        """Seconds for one expression; math-verify counts them by a signal, which only the main thread can."""
        return SECONDS if threading.current_thread() is threading.main_thread() else None

    @cache
    def parsed(reference: str) -> list[Any]:
        # a bare expression is read as LaTeX first
        return parse(f"${reference}$", parsing_timeout=limit()) or parse(reference, parsing_timeout=limit())

    def equal(answer: str, reference: str) -> float:
        gold = parsed(reference)
        if all(isinstance(part, str) for part in gold):  # read as text only
            value = f"{source}: the reference {reference!r} is no number or expression"
            raise RewardError(value, "references are numbers, expressions or LaTeX", f"correct the column {column}")
        result = parse(final_answer(answer), parsing_timeout=limit())
        if is_value(reference) and not (result and is_value(str(result[-1]))):
            return 0.0
        return float(verify(gold, result, timeout_seconds=limit()))

    return _against_reference(source, column, equal)


def is_value(text: str) -> bool:
    """Whether a text is a number: an integer, a decimal, a percentage or a fraction in lowest terms. 3 + 4 is none: a
    policy that is rewarded for it learns to write the question as its answer."""
    match = _VALUE.fullmatch(text.strip().strip("$").strip())
    if match is None:
        return False
    above, below = match["above"] or match["top"], match["below"] or match["bottom"]
    return below is None or (int(below) > 1 and math.gcd(int(above), int(below)) == 1)


def load_reference(source: str, columns: Sequence[str]) -> Scorer:
    """1 where the answer is the reference, whatever its case, spacing and final punctuation; else 0."""
    column = _column(source.removeprefix("rule:"), columns)
    return _against_reference(
        source, column, lambda answer, reference: float(normalise(final_answer(answer)) == normalise(reference))
    )


def load_json(source: str) -> Scorer:
    """1 where the answer is JSON that the schema accepts, alone or in one code block; else 0."""
    path = find_file(source.partition(":")[2])
    rule = "json:FILE names a JSON schema"
    try:
        import jsonschema
        from jsonschema import validators
    except ImportError:
        value = f"{source!r}"
        raise RecipeError(
            value, "the source json needs the package jsonschema", "pip install 'towpath[json]'"
        ) from None
    try:
        schema = json.loads(Path(path).read_text(encoding="utf-8"))
        kind: Any = validators.validator_for(schema)
        kind.check_schema(schema)
    except (OSError, ValueError, jsonschema.SchemaError) as error:
        raise RecipeError(f"{source!r}: {error}", rule, "correct the file") from None
    validator = kind(schema)

    def score(_prompts: Prompts, answers: Sequence[str], _columns: Columns = NO_COLUMNS) -> list[float | None]:
        return [float(_accepts(validator, final_answer(answer))) for answer in answers]

    return score


def _accepts(validator: Any, answer: str) -> bool:
    blocks = CODE_BLOCK.findall(answer)
    try:
        value = json.loads(blocks[0] if len(blocks) == 1 else answer)
    except (ValueError, RecursionError):
        return False
    return validator.is_valid(value)


def _column(source: str, columns: Sequence[str]) -> str:
    """The column that a source reads; RecipeError if no row has it."""
    column = source.partition(":")[2] or REFERENCE
    if column not in columns:
        available = ", ".join(sorted(columns)) or "none"
        rule = (
            f"it compares answers with the column {column!r} of the prompts' rows; they have the columns: {available}"
        )
        fix = f"add the column to the files of data.prompts, or name another: {source.partition(':')[0]}:COLUMN"
        raise RecipeError(f"{source!r}", rule, fix)
    return column


def _against_reference(source: str, column: str, equal: Callable[[str, str], float]) -> Scorer:
    """Scores of answers by their references; None where a row has no reference."""

    def score(_prompts: Prompts, answers: Sequence[str], columns: Columns = NO_COLUMNS) -> list[float | None]:
        references = columns.get(column) or [None] * len(answers)
        return [
            None if reference is None or str(reference).strip() == "" else equal(answer, str(reference))
            for answer, reference in zip(answers, references, strict=True)
        ]

    return score
