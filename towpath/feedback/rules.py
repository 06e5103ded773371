"""Rules that label: a Python function of the user's, or an expression that says when answer a is better."""

import ast
import hashlib
import importlib
import importlib.util
import operator
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from towpath.errors import DataError, RecipeError
from towpath.feedback import text_features
from towpath.feedback.pair_text import PairText
from towpath.feedback.rubric import is_refusal
from towpath.records import Choice, Judgement

Says = Callable[[str, str, str], Choice | None]
"""Prompt, a and b to a choice; None where the rule has nothing to say."""
Kind = Literal["text", "number", "truth"]
Value = Callable[[dict[str, str]], Any]

LONGEST = 500
"""Characters of an expression; a longer one wants to be a function."""
MOST_PARTS = 120
LARGEST = 1_000_000
NAMES = ("a", "b", "prompt")
FUNCTIONS: dict[str, tuple[Callable[..., Any], Kind, str]] = {
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
"""What an expression may call: the function, what it gives, and how many texts it takes."""
_COMPARED: dict[type, Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_RECKONED: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
_FUNCTION = re.compile(r"(?:python:)?([A-Za-z_][\w.]*):([A-Za-z_]\w*)")


@dataclass(frozen=True)
class Rule:
    """A rule by its name, with the version of its words or its code."""

    name: str
    version: str
    says: Says


def load_rule(text: str, name: str = "", folder: Path | None = None) -> Rule:
    """The rule in a text: `module:function`, looked for in a folder first, or an expression such as `words(a) <
    words(b)`."""
    text = text.strip()
    found = _FUNCTION.fullmatch(text)
    if found:
        says, code = _imported(text, found[1], found[2], folder)
        return Rule(name or f"{found[1]}.{found[2]}", f"python@{_hash(code)}", says)
    better = _expression(text)
    short = text if len(text) <= 60 else f"expression-{_hash(text)}"
    return Rule(name or short, f"expression@{_hash(text)}", better)


def apply_rule(rule: Rule, cases: Iterable[PairText]) -> Iterator[Judgement]:
    """A judgement for each pair that the rule has something to say on."""
    for case in cases:
        choice = rule.says(case.prompt, case.a, case.b)
        if choice is not None:
            rater = f"rule:{rule.name}"
            key = f"{case.comparison}/{rater}/{case.round}"
            yield Judgement(key, case.comparison, rater, "rule", choice, round=case.round, guideline=rule.version)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _imported(text: str, module: str, name: str, folder: Path | None) -> tuple[Says, str]:
    """A user's function, what it gives checked, and the code it lies in."""
    rule = "module:function, a function of prompt, a and b"
    place = folder / f"{module.replace('.', '/')}.py" if folder else None
    try:
        if place is not None and place.is_file():
            spec = importlib.util.spec_from_file_location(f"towpath_rule_{module.replace('.', '_')}", place)
            assert spec is not None and spec.loader is not None
            found = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(found)
        else:
            found = importlib.import_module(module)
        function = getattr(found, name)
    except (ImportError, AttributeError, SyntaxError, OSError) as error:
        raise RecipeError(
            f"rule {text!r}: {error}", rule, "put the module into the run's folder, or where the command is typed"
        ) from None
    if not callable(function):
        raise RecipeError(f"rule {text!r}: {name} is no function", rule, "name a function")
    file = getattr(found, "__file__", None)
    return lambda prompt, a, b: _checked(text, function(prompt, a, b), prompt), Path(file).read_text(
        encoding="utf-8"
    ) if file else text


def _checked(text: str, said: object, prompt: str) -> Choice | None:
    if said is not None and said not in get_args(Choice):
        fix = "mend the function; judgements before this one are kept"
        raise DataError(f"rule {text!r} gave {said!r} on {prompt[:60]!r}", "a, b, tie, both_bad or None", fix)
    return cast(Choice | None, said)


def _expression(text: str) -> Callable[[str, str, str], Choice | None]:
    """Evaluated both ways round, so that neither side has an advantage: a is better where that holds of a and b and
    not of b and a."""
    holds = compile_expression(text)

    def says(prompt: str, a: str, b: str) -> Choice | None:
        one = holds({"prompt": prompt, "a": a, "b": b})
        other = holds({"prompt": prompt, "a": b, "b": a})
        return None if one == other else "a" if one else "b"

    return says


def compile_expression(text: str) -> Callable[[dict[str, str]], bool]:
    """An expression as a function of its texts; only what is allowed, known by its type before it is ever used."""
    if not 0 < len(text) <= LONGEST:
        raise _not_allowed(text, f"{len(text)} characters", f"1 to {LONGEST}")
    try:
        tree = ast.parse(text, mode="eval").body
        parts = sum(1 for _ in ast.walk(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _not_allowed(text, str(getattr(error, "msg", error))) from None
    if parts > MOST_PARTS:
        raise _not_allowed(text, f"{parts} parts", f"at most {MOST_PARTS}")
    kind, value = _part(tree, text)
    if kind != "truth":
        raise _not_allowed(text, f"it gives a {kind}", "a rule is true where a is better")
    return value


def _part(node: ast.expr, text: str) -> tuple[Kind, Value]:
    """One part of an expression: what it gives and how to get it."""
    if isinstance(node, ast.Name) and node.id in NAMES:
        name = node.id
        return "text", lambda texts: texts[name]
    if isinstance(node, ast.Constant):
        return _constant(node.value, text)
    if isinstance(node, ast.Call):
        return _call(node, text)
    if isinstance(node, ast.BoolOp):
        values = [_of(value, "truth", text) for value in node.values]
        joined = all if isinstance(node.op, ast.And) else any
        return "truth", lambda texts: joined(value(texts) for value in values)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        denied = _of(node.operand, "truth", text)
        return "truth", lambda texts: not denied(texts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _of(node.operand, "number", text)
        return "number", lambda texts: -number(texts)
    if isinstance(node, ast.BinOp) and type(node.op) in _RECKONED:
        reckon = _RECKONED[type(node.op)]
        left = _of(node.left, "number", text)
        right = _of(node.right, "number", text)
        return "number", lambda texts: reckon(left(texts), right(texts))
    if isinstance(node, ast.Compare):
        return _comparison(node, text)
    raise _not_allowed(text, _shown(node))


def _constant(value: object, text: str) -> tuple[Kind, Value]:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _not_allowed(text, repr(value), "texts and numbers")
    if not isinstance(value, str) and not abs(value) <= LARGEST:
        raise _not_allowed(text, f"{value:g}", f"numbers up to {LARGEST}")
    return ("text" if isinstance(value, str) else "number"), lambda _: value


def _call(node: ast.Call, text: str) -> tuple[Kind, Value]:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name not in FUNCTIONS:
        raise _not_allowed(text, _shown(node.func), f"functions: {', '.join(FUNCTIONS)}")
    function, kind, takes = FUNCTIONS[name]
    fits = len(node.args) >= 2 if takes == "2+" else len(node.args) == int(takes)
    if node.keywords or not fits:
        raise _not_allowed(text, _shown(node), f"{name} takes {takes} texts")
    values = [_of(argument, "text", text) for argument in node.args]
    return kind, lambda texts: function(*(value(texts) for value in values))


def _comparison(node: ast.Compare, text: str) -> tuple[Kind, Value]:
    kinds, values = zip(*(_part(part, text) for part in (node.left, *node.comparators)), strict=True)
    compare = [_COMPARED.get(type(op)) for op in node.ops]
    equal = all(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops)
    if None in compare or len(set(kinds)) > 1 or (kinds[0] != "number" and not equal):
        raise _not_allowed(text, _shown(node), "numbers by < <= > >= == !=, texts by == and !=")
    steps = list(zip(compare, values, values[1:], strict=False))
    return "truth", lambda texts: all(step(left(texts), right(texts)) for step, left, right in steps if step)


def _of(node: ast.expr, kind: Kind, text: str) -> Value:
    found, value = _part(node, text)
    if found != kind:
        raise _not_allowed(text, f"{_shown(node)} is a {found}", f"a {kind} stands here")
    return value


def _shown(node: ast.expr) -> str:
    return ast.unparse(node)[:80]


def _not_allowed(text: str, what: str, rule: str = "") -> RecipeError:
    rule = rule or f"a, b, prompt, texts, numbers, + - *, comparisons, and, or, not, and {', '.join(FUNCTIONS)}"
    return RecipeError(
        f"rule {text[:120]!r}: {what}",
        rule,
        "for example words(a) < words(b), or write a function and name it module:function",
    )
