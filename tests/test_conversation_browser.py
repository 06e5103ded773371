"""A conversation of eight turns on the pages of raters and owners, on a desktop and a phone."""

import pytest
from conftest import serious
from test_browser import answers, comparison, fill, press
from test_rating_browser import visit

from towpath.records import Comparison, Completion, Message, Prompt
from towpath.store import arenas
from towpath.store.arenas import MatchInput
from towpath.store.store import Store
from towpath.store.task_queue import Task

__all__ = ["visit"]
TURNS = [
    "We hired a narrowboat for a week. Which rivers may we go on?",
    "Only canals and navigable rivers with a valid licence.",
    "And **locks**? We are two people.",
    "Two people manage a lock: one steers, one works the gates.",
    "How long does one take?",
    "About 15 minutes.",
    "So how far do we get in a day?",
]
HISTORY = (
    Message("system", "You are a skipper. Be brief."),
    *(Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(TURNS[:-1])),
)
REASONING = "<think>\n4 miles an hour, 15 minutes a lock\n</think>\n\nAbout 15 miles with ten locks."


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "towpath.db") as opened:
        fill(opened)
        opened.add_prompts([Prompt("talk", TURNS[-1], "boats", history=HISTORY)])
        texts = {"talk.a": REASONING, "talk.b": "It depends.", "talk.c": "<think>\nmiles"}
        made = [Completion(name, "talk", "sft", text, (1,), (-0.1,), "stop") for name, text in texts.items()]
        opened.add_completions(made)
        opened.add_comparisons([Comparison("talk", "talk", "talk.a", "talk.b")])
        opened.add_comparisons([Comparison("talk2", "talk", "talk.a", "talk.c")])
        opened.add_tasks([Task("talk", "boats", priority=10), Task("talk2", "boats", priority=9)])
        yield opened


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_earlier_turns_are_folded_and_shown_on_demand(visit, store, axe, width, scheme):
    page = visit(viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert comparison(page) == "talk"
    assert page.inner_text(".prompt .last-turn") == TURNS[-1]
    assert page.locator(".prompt h1").inner_text().startswith("Conversation")
    assert not page.locator(".turn").first.is_visible()
    assert "6 earlier turns, from “We hired" in page.inner_text("[data-earlier] summary")
    assert not serious(page, axe)
    page.keyboard.press("e")
    assert page.locator(".turn .text").all_inner_texts() == [text.replace("**", "") for text in TURNS[:-1]]
    assert page.locator(".turn .speaker").all_inner_texts() == ["User", "Assistant"] * 3
    page.get_by_text("System prompt").click()
    assert page.get_by_text("You are a skipper. Be brief.").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not serious(page, axe)


def test_folding_is_remembered_and_the_keys_stay(visit, store):
    page = visit()
    page.keyboard.press("e")
    press(page, "2", "Saved")
    assert comparison(page) == "talk2" and page.locator(".turn").first.is_visible()
    page.keyboard.press("e")
    press(page, "2", "Saved")
    press(page, "e", "no earlier turns")
    (first,) = [j for j in store.judgements() if j.comparison == "talk"]
    assert first.choice in ("a", "b")


def test_reasoning_is_folded_and_not_compared(visit, store):
    page = visit()
    assert sorted(answers(page)) == ["About 15 miles with ten locks.", "It depends."]
    assert not page.get_by_text("4 miles an hour").is_visible()
    page.get_by_text("Reasoning, 8 words").click()
    assert page.get_by_text("4 miles an hour").is_visible()
    press(page, "d", "share no sentence")
    assert "think" not in "".join(page.locator(".differing").all_inner_texts())
    press(page, "2", "Saved")
    assert "The reasoning did not end in an answer." in answers(page)


def test_owner_sees_the_conversation_of_pairs_and_of_a_closed_arena(visit, store, axe):
    page = visit()
    press(page, "2", "Saved")
    owner = visit("olga", "/owner/pairs")
    owner.get_by_text("6 earlier turns").click()
    assert owner.get_by_text("Two people manage a lock").is_visible()
    assert not serious(owner, axe)
    item = MatchInput(Prompt("talk", TURNS[-1], "boats", history=HISTORY), REASONING, "It depends.", "a")
    number = store.submit_write(arenas.create, "policy", "sft", 0.5, "olga", [item]).result().number
    store.submit_write(arenas.close, number, "stopped", "UNDECIDED").result()
    owner.goto(f"/arena/{number}")
    owner.locator("#pairs details > summary").first.click()
    owner.get_by_text("6 earlier turns").click()
    assert owner.get_by_text("Two people manage a lock").is_visible()
    assert not serious(owner, axe)
