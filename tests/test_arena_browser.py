"""An arena in a real browser: started by its owner, judged blind by two raters, followed live to its verdict, checked
by axe."""

import json
import re
from time import time

import pytest
from conftest import running, serious
from test_arena import PASSWORD, write_answers
from test_browser import comparison

from towpath.arena.leaderboard_row import leaderboard_row
from towpath.arena.matches import ArenaSpec, close_decided
from towpath.run.answer_sources import start_arena
from towpath.store import arenas, people, rating_settings, task_queue, verdicts
from towpath.store.rating_settings import RatingSettings
from towpath.store.store import Store


@pytest.fixture
def opened(tmp_path, browser):
    """Start a team server with an evaluation's answers and open pages; console errors fail the test."""
    write_answers(tmp_path, 60)
    contexts = []
    errors = []
    with Store.open(tmp_path / "towpath.db") as store, running(store, team=True) as (url, auth):
        store.submit_write(rating_settings.save, RatingSettings(gold_share=0.0, min_view=0.0)).result()
        for name, role in (("olga", "owner"), ("ann", "rater"), ("bob", "rater")):
            store.submit_write(people.add_account, name, role, auth.hash_password(PASSWORD)).result()

        def visit(name, path, **options):
            context = browser.new_context(base_url=url, **options)
            context.set_default_timeout(15_000)
            contexts.append(context)
            page = context.new_page()
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto("/sign-in")
            page.fill("#name", name)
            page.fill("#password", PASSWORD)
            page.keyboard.press("Enter")
            page.wait_for_url(lambda url: "sign-in" not in url)
            page.goto(path)
            return page

        yield store, visit
        for context in contexts:
            context.close()
    assert not errors


def judge(page) -> bool:
    """Prefer the answer that has a lock, by keyboard; return whether there was a pair."""
    if page.get_attribute("#task", "data-state") != "pair":
        return False
    before = comparison(page)
    answers = page.locator("#answers [data-text]").all_inner_texts()
    page.keyboard.press("2" if "lock" in answers[0] else "4")
    page.wait_for_function("before => document.getElementById('task').dataset.comparison !== before", arg=before)
    page.wait_for_function("() => !document.body.classList.contains('busy')")
    return True


def test_arena_from_start_to_verdict(opened, axe):
    store, visit = opened
    owner = visit("olga", "/arena")
    violations = serious(owner, axe)
    assert owner.input_value("#one") == "policy"
    assert owner.input_value("#other") == "sft"
    owner.fill("#overlap", "30")
    owner.get_by_role("button", name="Start").click()
    owner.wait_for_url("**/arena/1")
    assert "Nothing is judged yet" in owner.inner_text("#verdict")
    violations += serious(owner, axe)
    ann = visit("ann", "/rate")
    bob = visit("bob", "/rate")
    for page in (ann, bob):
        html = page.content()
        assert "policy" not in html
        assert "arena" not in page.inner_text("main").lower()
        assert "sft" not in html
    assert judge(ann)
    assert judge(bob)
    owner.wait_for_function("() => document.getElementById('verdict').textContent.includes('UNDECIDED')")
    assert "A lock keeps" not in owner.content(), "sources are hidden while the arena is open"
    violations += serious(ann, axe)
    count = 2
    while count < 110 and (judge(ann) | judge(bob)):
        count += 1
    owner.wait_for_function("() => document.querySelector('[data-state]').dataset.state === 'decided'")
    owner.wait_for_selector("#pairs")
    assert "PASS" in owner.inner_text("#verdict")
    assert "A lock keeps" in owner.content()
    violations += serious(owner, axe)
    standing = leaderboard_row(store, 1)
    assert (standing.arena.state, standing.arena.verdict) == ("decided", "PASS")
    assert set(standing.raters) == {"ann", "bob"}
    assert standing.people.n < 60, "the arena ended early"
    assert [judge(ann), judge(ann)].count(True) <= 1, "only the current lease may be judged"
    assert store.judgements() == []
    assert store.comparisons() == []
    assert store.labels() == []
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_on_arena_pages(opened, axe, scheme):
    store, visit = opened
    made = start_arena(store, store.folder, ArenaSpec("policy", "sft", prompts=3))
    store.submit_write(arenas.close, made.number, "stopped", "UNDECIDED").result()
    row = {
        "comparison": "s1.t0",
        "prompt": "Why?",
        "domain": "work",
        "choice": "a",
        "chosen": "**One**",
        "rejected": "Two",
        "held": True,
        "confidence": 0.9,
    }
    (store.folder / "stages" / "evaluate" / "aaaaaa000000" / "disagreements.jsonl").write_text(json.dumps(row) + "\n")
    page = visit("olga", "/arena", color_scheme=scheme, viewport={"width": 375, "height": 800})
    violations = serious(page, axe)
    for path in (f"/arena/{made.number}", "/arena/disagreements"):
        page.goto(path)
        for summary in page.locator("summary").all():
            summary.click()
        violations += serious(page, axe)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert not violations, "\n".join(violations)


def finish_arena(store, one, other, prefers):
    """Judge an arena to its end by two people who prefer the answers with a lock, or those without."""
    made = start_arena(store, store.folder, ArenaSpec(one, other, overlap=1.0))
    while leaderboard_row(store, made.number).arena.state == "open":
        for name in ("ann", "bob"):
            seat = store.submit_write(task_queue.next_lease, name, time()).result()
            first = store.read(task_queue.task_view, seat).answers[0]
            side = "left" if ("lock" in first) == prefers else "right"
            submission = verdicts.Submission(
                f"key-{name}-{seat.comparison}", seat.comparison, name, verdicts.StoredVerdict(side)
            )
            store.submit_write(verdicts.judge, submission, time()).result()
        close_decided(store)
    return made.number


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pass_and_fail_differ_visually(opened, axe, scheme):
    store, visit = opened
    shapes = []
    colours = []
    appearances = []
    for one, other in (("policy", "sft"), ("sft", "policy")):
        page = visit(
            "olga",
            f"/arena/{finish_arena(store, one, other, True)}",
            color_scheme=scheme,
            viewport={"width": 1280, "height": 900},
        )
        appearances += serious(page, axe)
        shapes.append(page.locator(".outcome svg").inner_html())
        colours.append(page.locator(".outcome b").evaluate("it => getComputedStyle(it).color"))
        words = page.inner_text("main")
        for heading in (
            "95 % interval, anytime-valid",
            "95 % interval, Wilson",
            "bootstrap over prompts",
            "Length-controlled win rate",
            "rater error",
        ):
            assert heading in words
        assert re.search(r"Inter-rater agreement\s+[\d.]+\s%\s+[\d.]+\sto\s[\d.]+\s% of \d+", words)
        boxes = page.locator(".scroll").all()
        assert boxes
        for box in boxes:
            assert box.evaluate("it => it.scrollWidth <= it.clientWidth"), "no horizontal scrolling at 1280"
    assert len(set(shapes)) == len(set(colours)) == 2
    page.goto("/arena")
    assert page.locator(".outcome-chip").all_inner_texts() == ["✗ FAIL", "✓ PASS"]
    assert not appearances, "\n".join(appearances)
