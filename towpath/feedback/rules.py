"""Labelling rules: a user's Python function, or an expression that says when answer a is better."""

import ast
import hashlib
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from towpath.data.user_code import load_function
from towpath.errors import DataError, RecipeError
from towpath.feedback import text_features
from towpath.feedback.pair_text import PairText
from towpath.feedback.rubric import is_refusal
from towpath.records import Choice, Judgement

Choose = Callable[[str, str, str], Choice | None]
"""Maps prompt, a and b to a choice; None if the rule does not apply."""
Type = Literal["text", "number", "truth"]
Value = Callable[[dict[str, str]], Any]
"""Computes a node from the texts by name."""

MAX_LENGTH = 500
"""Characters of an expression."""
MAX_NODES = 120
MAX_NUMBER = 1_000_000
NAMES = ("a", "b", "prompt")
FUNCTIONS: dict[str, tuple[Callable[..., Any], Type, str]] = {
    "words": (text_features.count_words, "number", "1"),
    "chars": (len, "number", "1"),
    "lines": (text_features.count_lines, "number", "1"),
    "sentences": (text_features.count_sentences, "number", "1"),
    "listed": (text_features.count_list_items, "number", "1"),
    "repeats": (text_features.repetition_rate, "number", "1"),
    "count": (text_features.count_phrase, "number", "2"),
    "has": (text_features.has_phrase, "truth", "2+"),
    "starts": (lambda text, part: text.lstrip().startswith(part), "truth", "2"),
    "ends": (lambda text, part: text.rstrip().endswith(part), "truth", "2"),
    "is_json": (text_features.is_json, "truth", "1"),
    "markdown": (text_features.has_markdown, "truth", "1"),
    "declines": (is_refusal, "truth", "1"),
    "language": (text_features.language, "text", "1"),
}
"""Functions of an expression: the function, its return type, and the number of texts it takes."""
_COMPARISONS: dict[type, Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
_FUNCTION_NAME = re.compile(r"(?:python:)?([A-Za-z_][\w.]*):([A-Za-z_]\w*)")


@dataclass(frozen=True)
class Rule:
    """A rule with its name, and a version that is a hash of its expression or code."""

    name: str
    version: str
    choose: Choose


def load_rule(text: str, name: str = "", folder: Path | None = None) -> Rule:
    """The rule in a text: `module:function`, first looked for in `folder`, or an expression such as `words(a) <
    words(b)`."""
    text = text.strip()
    match = _FUNCTION_NAME.fullmatch(text)
    if match:
        choose, code = _load_function(text, folder)
        return Rule(name or f"{match[1]}.{match[2]}", f"python@{_hash(code)}", choose)
    choose = _expression(text)
    return Rule(name or (text if len(text) <= 60 else f"expression-{_hash(text)}"), f"expression@{_hash(text)}", choose)


def apply_rule(rule: Rule, pairs: Iterable[PairText]) -> Iterator[Judgement]:
    """A judgement for each pair to which the rule applies."""
    rater = f"rule:{rule.name}"
    for pair in pairs:
        choice = rule.choose(pair.prompt, pair.a, pair.b)
        if choice is not None:
            key = f"{pair.comparison}/{rater}/{pair.round}"
            yield Judgement(key, pair.comparison, rater, "rule", choice, round=pair.round, guideline=rule.version)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _load_function(text: str, folder: Path | None) -> tuple[Choose, str]:
    """A user's function with its result checked, and the code of its module."""
    function, module = load_function(text, "a rule is module:function, a function of prompt, a and b", folder)

    def choose(prompt: str, a: str, b: str) -> Choice | None:
        choice = function(prompt, a, b)
        if choice is not None and choice not in get_args(Choice):
            value = f"rule {text!r} returned {choice!r} for {prompt[:60]!r}"
            fix = "fix the function; judgements before this one are stored"
            raise DataError(value, "a, b, tie, both_bad or None", fix)
        return cast(Choice | None, choice)

    file = getattr(module, "__file__", None)
    return choose, Path(file).read_text(encoding="utf-8") if file else text


def _expression(text: str) -> Choose:
    """Evaluate in both orders: a is better where the expression holds for (a, b) and not for (b, a)."""
    holds = compile_expression(text)

    def choose(prompt: str, a: str, b: str) -> Choice | None:
        a_is_better = holds({"prompt": prompt, "a": a, "b": b})
        b_is_better = holds({"prompt": prompt, "a": b, "b": a})
        if a_is_better == b_is_better:
            return None
        return "a" if a_is_better else "b"

    return choose


def compile_expression(text: str) -> Callable[[dict[str, str]], bool]:
    """Compile an expression to a function of its texts; only allowed nodes, type-checked before use."""
    if not 0 < len(text) <= MAX_LENGTH:
        raise _not_allowed(text, f"{len(text)} characters", f"1 to {MAX_LENGTH}")
    try:
        tree = ast.parse(text, mode="eval").body
        parts = sum(1 for _ in ast.walk(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _not_allowed(text, str(getattr(error, "msg", error))) from None
    if parts > MAX_NODES:
        raise _not_allowed(text, f"{parts} parts", f"at most {MAX_NODES}")
    kind, value = _compile(tree, text)
    if kind != "truth":
        raise _not_allowed(text, f"its type is {kind}", "a rule is true where a is better")
    return value


def _compile(node: ast.expr, text: str) -> tuple[Type, Value]:
    """Type and value function of one node."""
    if isinstance(node, ast.Name) and node.id in NAMES:
        name = node.id
        return "text", lambda texts: texts[name]
    if isinstance(node, ast.Constant):
        return _constant(node.value, text)
    if isinstance(node, ast.Call):
        return _call(node, text)
    if isinstance(node, ast.BoolOp):
        values = [_typed(value, "truth", text) for value in node.values]
        combine = all if isinstance(node.op, ast.And) else any
        return "truth", lambda texts: combine(value(texts) for value in values)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        operand = _typed(node.operand, "truth", text)
        return "truth", lambda texts: not operand(texts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _typed(node.operand, "number", text)
        return "number", lambda texts: -number(texts)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        operation = _OPERATORS[type(node.op)]
        left = _typed(node.left, "number", text)
        right = _typed(node.right, "number", text)
        return "number", lambda texts: operation(left(texts), right(texts))
    if isinstance(node, ast.Compare):
        return _comparison(node, text)
    raise _not_allowed(text, _source(node))


def _constant(value: object, text: str) -> tuple[Type, Value]:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _not_allowed(text, repr(value), "texts and numbers")
    if not isinstance(value, str) and not abs(value) <= MAX_NUMBER:
        raise _not_allowed(text, f"{value:g}", f"numbers up to {MAX_NUMBER}")
    return ("text" if isinstance(value, str) else "number"), lambda _: value


def _call(node: ast.Call, text: str) -> tuple[Type, Value]:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name not in FUNCTIONS:
        raise _not_allowed(text, _source(node.func), f"functions: {', '.join(FUNCTIONS)}")
    function, kind, takes = FUNCTIONS[name]
    fits = len(node.args) >= 2 if takes == "2+" else len(node.args) == int(takes)
    if node.keywords or not fits:
        raise _not_allowed(text, _source(node), f"{name} takes {takes} texts")
    values = [_typed(argument, "text", text) for argument in node.args]
    return kind, lambda texts: function(*(value(texts) for value in values))


def _comparison(node: ast.Compare, text: str) -> tuple[Type, Value]:
    kinds, values = zip(*(_compile(part, text) for part in (node.left, *node.comparators)), strict=True)
    compare = [_COMPARISONS.get(type(op)) for op in node.ops]
    equal = all(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops)
    if None in compare or len(set(kinds)) > 1 or (kinds[0] != "number" and not equal):
        raise _not_allowed(text, _source(node), "numbers by < <= > >= == !=, texts by == and !=")
    steps = list(zip(compare, values, values[1:], strict=False))
    return "truth", lambda texts: all(step(left(texts), right(texts)) for step, left, right in steps if step)


def _typed(node: ast.expr, kind: Type, text: str) -> Value:
    actual, value = _compile(node, text)
    if actual != kind:
        raise _not_allowed(text, f"{_source(node)} is a {actual}", f"a {kind} stands here")
    return value


def _source(node: ast.expr) -> str:
    return ast.unparse(node)[:80]


def _not_allowed(text: str, what: str, rule: str = "") -> RecipeError:
    rule = rule or f"a, b, prompt, texts, numbers, + - *, comparisons, and, or, not, and {', '.join(FUNCTIONS)}"
    return RecipeError(
        f"rule {text[:120]!r}: {what}",
        rule,
        "for example words(a) < words(b), or write a function and name it module:function",
    )
