"""The vocabulary: banned names, banned words in messages, and one meaning per class name."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = [*sorted((ROOT / "towpath").rglob("*.py")), *sorted((ROOT / "examples").glob("*.py"))]
TESTS = [*sorted((ROOT / "tests").glob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]
NEVER = {
    *("told", "said", "found", "asked", "kept", "heard", "given", "drawn", "shown", "seen", "spent", "begun", "laid"),
    *("parted", "joined", "judged", "of", "look", "mark", "place"),
}
"""Participles and verbs of saying in place of a noun; `place` for a path or a position."""
STORED = {("Judgement", "shown")}
"""Columns of the ledger, which are data of users."""
NEVER_IN_TEXT = re.compile(r"\b(anew|mend|theirs|so far|nobody|goes on|without a word)\b")


def bindings(tree: ast.AST, owner: str = "") -> Iterator[tuple[str, str, int]]:
    """(class or function, name, line) of everything that gets a name."""
    for node in ast.iter_child_nodes(tree):
        inside = owner
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield owner, node.name, node.lineno
            inside = node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield owner, node.id if isinstance(node, ast.Name) else node.attr, node.lineno
        elif isinstance(node, ast.arg):
            yield owner, node.arg, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield owner, node.asname, node.lineno
        yield from bindings(node, inside)


def test_no_banned_names():
    wrong = []
    for path in [*FILES, *TESTS]:
        for owner, name, line in bindings(ast.parse(path.read_text(encoding="utf-8"))):
            if name.strip("_") in NEVER and (owner, name) not in STORED:
                wrong.append(f"{path.relative_to(ROOT)}:{line} {name}")
    assert not wrong, "\n".join(wrong)


def test_no_banned_words_in_messages():
    pages = [*(ROOT / "towpath").rglob("*.html"), *(ROOT / "towpath").rglob("*.js")]
    wrong = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and NEVER_IN_TEXT.search(node.value):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {NEVER_IN_TEXT.search(node.value)[0]}")
    for path in pages:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if NEVER_IN_TEXT.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number} {NEVER_IN_TEXT.search(line)[0]}")
    assert not wrong, "\n".join(wrong)


def test_class_names_are_unique():
    paths_of = defaultdict(list)
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                paths_of[node.name].append(str(path.relative_to(ROOT)))
    twice = {name: paths for name, paths in paths_of.items() if len({p for p in paths if p.startswith("towpath")}) > 1}
    assert not twice, twice
