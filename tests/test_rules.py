"""Labelling rules: allowed and disallowed expressions, and functions of the user."""

import json
from pathlib import Path

import pytest

from towpath.errors import DataError, RecipeError
from towpath.feedback import rules, text_features
from towpath.feedback.pair_text import PairText

LONG = "Put a drop of oil on each hinge and swing the auth."
SHORT = "Oil it."


def choice(rule: str, a: str, b: str, prompt: str = "How?") -> str | None:
    return rules.load_rule(rule).choose(prompt, a, b)


@pytest.mark.parametrize(
    ("rule", "a", "b", "expected"),
    [
        ("words(a) < words(b)", SHORT, LONG, "a"),
        ("words(a) < words(b)", LONG, SHORT, "b"),
        ("words(a) < words(b)", "One two.", "Two one.", None),
        ("words(a) < 2 * words(b) - 1", LONG, SHORT, "b"),
        ("chars(a) > chars(b)", LONG, SHORT, "a"),
        ("-words(a) > -words(b)", SHORT, LONG, "a"),
        ("lines(a) <= 2", "one", "one\n\ntwo\nthree", "a"),
        ("sentences(a) == 2", "Yes. No.", "Yes", "a"),
        ("1 < words(a) < 4", SHORT, LONG, "a"),
        ('not has(a, "sorry", "cannot")', "I am Sorry.", SHORT, "b"),
        ('has(a, "oil")', "Oil.", "Oily boil.", "a"),
        ('count(a, "the") > 1', LONG, "the the", "b"),
        ("is_json(a)", '{"x": [1]}', '{"x": ', "a"),
        ("is_json(a)", "[]", "7", "a"),
        ("markdown(a)", "**No** one", "2 * 3 * 4", "a"),
        ("not markdown(a) and listed(a) == 0", "- x\n- y", "plain", "b"),
        ('language(a) == "de"', "Das ist nicht die Antwort auf die Frage.", LONG, "a"),
        ("language(a) == language(prompt) and words(a) > 3", "Das ist eine Antwort und sie ist nicht lang.", LONG, "b"),
        ('starts(a, "Put")', LONG, SHORT, "a"),
        ('ends(a, ".")', "No end", SHORT, "b"),
        ("declines(a)", "I can't help with that.", LONG, "a"),
        ("repeats(a) < 0.2", "go on go on go on go on", LONG, "b"),
        ("words(a) > 3 or has(a, prompt)", LONG, LONG, None),
    ],
)
def test_rule_expressions(rule: str, a: str, b: str, expected: str | None):
    prompt = "What is the best way to stop it, and how long does it take?"
    assert choice(rule, a, b, prompt) == expected
    assert choice(rule, b, a, prompt) == {"a": "b", "b": "a", None: None}[expected]


@pytest.mark.parametrize(
    "rule",
    [
        "__import__('os').system('true')",
        "a.__class__",
        "(lambda: 1)()",
        "[x for x in a]",
        "a[0] == b[0]",
        "open(a)",
        "exec(a)",
        "eval('1')",
        "words",
        "words(a) ** 9 > 1",
        "words(a) / 2 > 1",
        "words(a) % 2 == 1",
        "a if is_json(a) else b",
        "f'{a}' == b",
        "{a: 1}",
        "(a := b) == a",
        "words(*a)",
        "words(text=a)",
        "c == a",
        "words(c) > 1",
        "words(a, x=b) > 1",
        "words(a)",
        "a",
        "1",
        "'x'",
        "True",
        "words(a) < b",
        "a < b",
        "a in b",
        "a is b",
        "words(a, b)",
        "words(1) > 1",
        "has(a)",
        "words(a) + a > 1",
        "not words(a)",
        "-a == b",
        "words(a) and is_json(a)",
        "10000000 > words(a)",
        "1e400 > words(a)",
        "1j == 1j",
        "b'x' == b'x'",
        "None == None",
        "... == ...",
        "words(a) <",
        "import os",
        "a == b; b",
        "",
        "   ",
        "words(a) < 1" + " or words(a) < 1" * 40,
        "(" * 240 + "is_json(a)" + ")" * 240,
        "-" * 400 + "1 > words(a)",
        "words(a) < words(b) #" + "x" * 600,
    ],
)
def test_disallowed_expressions_are_refused(rule: str):
    with pytest.raises(RecipeError) as error:
        rules.load_rule(rule)
    assert error.value.value.startswith("rule ") and error.value.rule and "module:function" in error.value.fix


def test_expression_error_names_the_part_and_the_alternatives():
    with pytest.raises(RecipeError) as error:
        rules.load_rule("words(a) < length(b)")
    assert "length" in error.value.value and "words, chars" in error.value.rule
    with pytest.raises(RecipeError, match=r"words\(a\) is a number"):
        rules.load_rule("not words(a)")


def test_answer_text_is_never_evaluated():
    text = "__import__('os')._exit(3) or words(b)"
    assert choice("words(a) < words(b)", SHORT, text) == "a"
    assert choice(f"has(a, {json.dumps(text)})", text, SHORT) == "a"


def test_rule_judgements_have_name_and_version():
    rule = rules.load_rule("words(a) < words(b)", name="short")
    result = list(
        rules.apply_rule(
            rule,
            [
                PairText("k1", "p", SHORT, LONG, 2),
                PairText("k2", "p", "same", "same"),
                PairText("k3", "p", LONG, SHORT),
            ],
        )
    )
    assert [(j.key, j.rater, j.kind, j.choice, j.round, j.guideline) for j in result] == [
        ("k1/rule:short/2", "rule:short", "rule", "a", 2, rule.version),
        ("k3/rule:short/1", "rule:short", "rule", "b", 1, rule.version),
    ]
    assert rules.load_rule(" words(a) < words(b) ").name == "words(a) < words(b)"
    assert rules.load_rule("words(a)  < words(b)").version != rule.version
    assert len(rules.load_rule(" or ".join(["is_json(a)"] * 9)).name) < 40


FUNCTION = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Pair:
    a: str
    b: str

def shorter(prompt, a, b):
    if "?" not in prompt:
        return None
    pair = Pair(a, b)
    return "tie" if len(pair.a) == len(pair.b) else "a" if len(pair.a) < len(pair.b) else "b"

def wrong(prompt, a, b):
    return 1.0

bad = "both_bad"
"""


def test_rule_function_from_a_file(tmp_path: Path):
    (tmp_path / "mine.py").write_text(FUNCTION)
    rule = rules.load_rule("python:mine:shorter", folder=tmp_path)
    assert [rule.choose("Why?", *pair) for pair in ((SHORT, LONG), (LONG, SHORT), ("ab", "ba"))] == ["a", "b", "tie"]
    assert list(rules.apply_rule(rule, [PairText("k", "Why.", SHORT, LONG)])) == []
    assert rule.name == "mine.shorter" and rules.load_rule("mine:shorter", "s", tmp_path).name == "s"
    with pytest.raises(DataError, match=r"returned 1\.0"):
        rules.load_rule("mine:wrong", folder=tmp_path).choose("Why?", "a", "b")
    (tmp_path / "mine.py").write_text(FUNCTION + "# another version\n")
    assert rules.load_rule("mine:shorter", folder=tmp_path).version != rule.version


@pytest.mark.parametrize("rule", ["mine:nothing", "nowhere:f", "mine:bad", "broken:f", "json:loads.x"])
def test_missing_rule_function_is_refused(tmp_path: Path, rule: str):
    (tmp_path / "mine.py").write_text(FUNCTION)
    (tmp_path / "broken.py").write_text("def f(:")
    with pytest.raises(RecipeError, match="rule "):
        rules.load_rule(rule, folder=tmp_path)


def test_rule_function_from_an_installed_module():
    assert rules.load_rule("textwrap:dedent").name == "textwrap.dedent"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat is on the table and it wants some of the food.", "en"),
        ("Ich habe das Buch nicht gelesen, aber es ist auf dem Tisch.", "de"),
        ("Je ne sais pas si les enfants sont dans la maison.", "fr"),
        ("El perro no está en la casa, pero los gatos sí.", "es"),
        ("Non so se il cane è nella casa, ma i gatti sono qui.", "it"),
        ("O cachorro não está em casa, mas os gatos estão na rua.", "pt"),
        ("Ik weet niet of het boek op de tafel ligt, maar er is een stoel.", "nl"),
        ("Кошка сидит на столе.", "ru"),
        ("猫はテーブルの上にいます。", "ja"),
        ("猫在桌子上。", "zh"),
        ("고양이가 테이블 위에 있습니다.", "ko"),
        ("القطة على الطاولة.", "ar"),
        ("42", ""),
        ("para con se por as", ""),
        ("", ""),
        ("Xyzzy plugh.", ""),
    ],
)
def test_language_detection(text: str, expected: str):
    assert text_features.language(text) == expected


def test_text_features_by_hand():
    assert text_features.count_words("It's a well-known fact, isn't it?") == 6
    assert text_features.count_lines(" \n a\n\n b ") == 2
    assert text_features.count_phrase("The theory of the other", "the") == 2
    assert text_features.count_phrase("C++ and c++, not C", "c++") == 2
    assert not text_features.has_phrase("x", "")
    assert text_features.count_sentences("One. Two! Three") == 2
    assert text_features.repetition_rate("one two") == 0.0
