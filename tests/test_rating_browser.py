"""The rating page in a browser: view time, trial pairs, guidelines, criteria, tags, my activity, text size, phone."""

import re

import pytest
from conftest import running, serious
from test_browser import LONG, PASSWORD, answers, comparison, fill, press

from towpath.records import Comparison, Completion, Prompt
from towpath.store import people, rater_stats, rating_settings, sides, verdicts
from towpath.store.rating_settings import RatingSettings
from towpath.store.store import Store
from towpath.store.task_queue import Gold, RankingGroup, Task

SAID = "words => document.getElementById('message').textContent.includes(words)"
CODE = (
    "Use `level`:\n\n```python\ndef lock(gates):\n    return not any(gates)  # shut\n```\n\nThe head is $h = "
    "\\frac{p}{\\rho g}$."
)


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "towpath.db") as opened:
        fill(opened)
        yield opened


def put(store, **changed):
    store.submit_write(rating_settings.save, RatingSettings(**{"gold_share": 0.0, "min_view": 0.0} | changed)).result()


@pytest.fixture
def visit(store, browser):
    """Open the rating page for ann, or for new, who has not acknowledged the guidelines."""
    contexts = []
    errors = []
    with running(store, team=True) as (url, auth):
        for name, role in (("olga", "owner"), ("ann", "rater"), ("new", "rater")):
            store.submit_write(people.add_account, name, role, auth.hash_password(PASSWORD)).result()

        def opened(name="ann", path="/rate", **options):
            context = browser.new_context(base_url=url, **options)
            context.set_default_timeout(10_000)
            contexts.append(context)
            page = context.new_page()
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.goto("/sign-in")
            page.fill("#name", name)
            page.fill("#password", PASSWORD)
            page.keyboard.press("Enter")
            page.wait_for_url(lambda url: "sign-in" not in url)
            page.goto(path)
            return page

        yield opened
        for context in contexts:
            context.close()
    assert not errors


def test_minimum_view_time(visit, store):
    put(store, min_view=1.0)
    page = visit()
    page.keyboard.press("1")
    page.wait_for_function(SAID, arg="Too soon: a verdict is accepted after 1 s")
    page.locator("#scale button").first.click()
    assert store.judgements() == []
    page.wait_for_timeout(1000)
    press(page, "1", "Saved: A is much better")
    page.wait_for_timeout(100)
    press(page, "u", "Undone")
    press(page, "5", "Saved: B is much better")  # this pair was viewed long enough before
    assert [j.strength for j in store.judgements()] == [3]


def test_guidelines_are_acknowledged_first_and_after_changes(visit, store, axe):
    page = visit("new")
    page.wait_for_selector("#guidelines-dialog[open]")
    assert "read these guidelines" in page.inner_text("#guidelines-must")
    assert not serious(page, axe)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.wait_for_selector("#guidelines-dialog[open]")
    page.keyboard.press("1")
    assert store.judgements() == []
    page.get_by_role("button", name="I have read them").click()
    press(page, "1", "Saved")
    page.reload()
    assert not page.is_visible("#guidelines-dialog")
    store.submit_write(people.add_guideline, "Be brief.", "olga").result()
    page.keyboard.press("1")
    page.wait_for_selector("#guidelines-dialog[open]")
    assert "Be brief." in page.inner_text("#guidelines-dialog")
    page.keyboard.press("Enter")
    page.wait_for_selector("#guidelines-dialog", state="hidden")
    press(page, "2", "Saved: A is better")
    assert [j.guideline for j in store.judgements()] == ["1", "1", "2"]


def test_trial_pairs_with_feedback_come_first(visit, store, axe):
    store.set_gold([Gold(f"k{i:02}", "tie", "They say the same.") for i in (9, 10, 11)])
    put(store, trial_pairs=2, trial_threshold=1.0)
    page = visit()
    assert "Trial pair 1 of 2" in page.inner_text(".prompt")
    assert page.is_hidden("#skip")
    page.keyboard.press("1")
    page.wait_for_selector("#feedback:not([hidden])")
    assert (
        "The owner's answer is: a tie. You chose: A is better. Note: They say the same. 0 of 1 correct."
        in page.inner_text("#feedback")
    )
    assert not serious(page, axe)
    page.keyboard.press("n")
    page.wait_for_function("() => document.querySelector('.prompt').innerText.includes('Trial pair 2 of 2')")
    page.keyboard.press("3")
    page.wait_for_selector("#feedback:not([hidden])")
    assert "1 of 2 correct, 2 needed" in page.inner_text("#feedback")
    page.get_by_role("button", name="Try again").click()
    for _ in range(2):
        page.wait_for_selector("#feedback", state="hidden")
        page.wait_for_function("() => !document.body.classList.contains('busy')")
        page.keyboard.press("3")
        page.wait_for_selector("#feedback:not([hidden])")
        assert "Correct." in page.inner_text("#feedback")
        passed = page.inner_text("#next")
        page.keyboard.press("n")
    assert passed.endswith("Start")
    page.wait_for_function("() => document.getElementById('task').dataset.state === 'pair'")
    assert store.judgements() == []
    press(page, "1", "Saved")
    assert len(store.judgements()) == 1


def test_criteria_and_reason_tags_are_stored(visit, store, axe):
    put(store, reasons=("wrong fact", "too long"), criteria=("helpful", "clear"))
    page = visit()
    assert not serious(page, axe)
    page.get_by_role("button", name="too long").click()
    press(page, "1", "Missing: helpful, clear")
    page.keyboard.press("Shift+Digit1")
    page.wait_for_function(SAID, arg="Missing: clear")
    page.keyboard.press("Shift+Digit5")
    page.wait_for_function(SAID, arg="Saved: A is much better")
    judgement = store.judgements()[0]
    first = sides.choice_of("left", judgement.shown)
    assert judgement.details == {"reasons": ["too long"], "criteria": {"helpful": first, "clear": "tie"}}
    page.wait_for_function(
        "() => !document.querySelector('[data-reason][aria-pressed=true], [data-criterion] [aria-pressed=true]')"
    )


def test_my_activity_dialog(visit, store, axe):
    put(store, goal=4, break_minutes=0.01)
    page = visit()
    press(page, "1", "Saved")
    page.keyboard.press("c")
    page.keyboard.type("too short")
    page.keyboard.press("Control+Enter")
    page.wait_for_timeout(250)
    press(page, "4", "Saved: B is better")
    page.wait_for_timeout(250)
    page.evaluate("document.getElementById('message').textContent = ''")
    press(page, "3", "Saved: a tie")
    page.wait_for_timeout(250)
    press(page, "2", "Saved: A is better")
    page.wait_for_selector("#break:not([hidden])")
    assert "without a break" in page.inner_text("#break")
    assert "today 4 of 4" in page.inner_text("#progress")
    page.keyboard.press("m")
    page.wait_for_selector("#history-text li")
    text = page.inner_text("#history-text")
    assert "goal reached" in text
    assert "“too short”" in text
    assert page.locator("#history-text .last li").count() == 4
    assert not serious(page, axe)
    page.get_by_role("button", name="Undo", exact=True).last.click()
    page.wait_for_function(SAID, arg="Undone: your verdict")
    assert len(store.judgements()) == 3


def lines_of(page) -> list[int]:
    """Return the number of characters in each full line of the long answer."""
    return page.evaluate(
        """() => {
        const counts = [];
        for (const text of document.querySelectorAll('[data-text] p')) {
          const range = document.createRange();
          const node = text.firstChild;
          let top = null, count = 0;
          const words = node.textContent;
          for (let i = 0; i < words.length; i += 1) {
            range.setStart(node, i);
            range.setEnd(node, i + 1);
            const box = range.getBoundingClientRect();
            if (top !== null && box.top > top + 3) { counts.push(count); count = 0; }
            top = box.top;
            count += 1;
          }
        }
        return counts;
        }"""
    )


def one_pair(store, left, right, name="zz"):
    store.add_prompts([Prompt(f"p-{name}", "Why?", domain="work")])
    store.add_completions(
        [
            Completion(f"{name}.{k}", f"p-{name}", "sft", words, (1,), (-0.1,), "stop")
            for k, words in enumerate((left, right))
        ]
    )
    store.add_comparisons([Comparison(name, f"p-{name}", f"{name}.0", f"{name}.1")])
    store.add_tasks([Task(name, "work", priority=9)])


@pytest.mark.parametrize("width", [1280, 1920])
def test_line_length_and_button_position(visit, store, width):
    one_pair(store, LONG.replace("**", ""), LONG.replace("**", ""))
    page = visit(viewport={"width": width, "height": 900})
    full = sorted(lines_of(page))
    assert 55 <= full[len(full) // 2] <= 82
    press(page, "1", "Saved")
    bottom = page.locator("#answers").bounding_box()
    assert page.locator("#scale").bounding_box()["y"] - bottom["y"] - bottom["height"] < 120, (
        "with short answers the buttons are near them"
    )
    for label in ("#answers", "#answers article"):
        style = page.locator(label).first.evaluate(
            "it => { const s = getComputedStyle(it); return [s.outlineStyle, s.borderTopWidth]; }"
        )
        assert style == ["none", "0px"], "no frame that looks like a selection"


def test_text_size_and_compact_layout_persist(visit):
    page = visit()
    size = "() => parseFloat(getComputedStyle(document.querySelector('#answers .text')).fontSize)"
    space = "() => parseFloat(getComputedStyle(document.querySelector('#answers article')).paddingTop)"
    before = page.evaluate(size)
    roomy = page.evaluate(space)
    press(page, "+", "Text: large")
    press(page, "+", "Text: very large")
    assert page.evaluate(size) > before * 1.2
    page.keyboard.press("?")
    page.check("#compact")
    page.keyboard.press("Escape")
    page.reload()
    assert page.evaluate(size) > before * 1.2
    assert page.evaluate(space) < roomy


@pytest.mark.parametrize("width", [360, 390])
def test_tools_fit_on_a_phone(visit, store, width):
    put(store, reasons=("wrong fact", "too long"), criteria=("helpful", "correct", "style"))
    page = visit(viewport={"width": width, "height": 740}, has_touch=True, is_mobile=True)
    press(page, "s", "Skipped")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for button in page.locator(".tools button:visible, .extra button:visible").all():
        box = button.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width, button.inner_text()
        assert button.evaluate("it => it.scrollWidth <= it.clientWidth + 1"), button.inner_text()
    assert page.locator(".tools").evaluate("it => it.scrollWidth <= it.clientWidth")
    assert page.locator(".tools button:visible").count() == 9
    assert page.locator("#bar").bounding_box()["height"] < 330


def test_differences_keep_markdown(visit, store, axe):
    one_pair(store, CODE, CODE.replace("shut", "open"))
    page = visit()
    assert page.locator("#answers math").count() == 2
    assert page.locator("#answers pre .k").count() >= 2
    assert page.locator("#answers .k").first.evaluate("it => getComputedStyle(it).color") != page.evaluate(
        "getComputedStyle(document.body).color"
    )
    press(page, "d", "Differing words are underlined.")
    assert sorted(page.locator(".differing mark").all_inner_texts()) == ["open", "shut"]
    assert page.locator(".differing pre").count() == 2
    assert not serious(page, axe)


def test_draft_stays_with_its_pair(visit, store):
    page = visit()
    first = comparison(page)
    page.keyboard.press("w")
    page.keyboard.type("half an answer")
    page.keyboard.press("Escape")
    press(page, "s", "Skipped")
    page.keyboard.press("w")
    assert page.input_value("#write-text") == ""
    page.keyboard.press("Escape")
    press(page, "u", "Undone")
    assert comparison(page) == first
    page.keyboard.press("w")
    assert page.input_value("#write-text") == "half an answer"
    assert answers(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_on_owner_pages(visit, store, axe, scheme, width):
    for i in range(3):
        lease = store.submit_write(rater_stats.rating_page, "ann", 1_800_000_000.0 + i).result().task
        submission = verdicts.Submission(
            f"key-of-{i}",
            lease.comparison,
            "ann",
            verdicts.StoredVerdict("left"),
            400,
            comment="so",
            reasons=("x",),
            criteria={"y": "left"},
        )
        store.submit_write(verdicts.judge, submission, 1_800_000_001.0 + i).result()
    store.submit_write(verdicts.save_written_answer, "write-key", lease.comparison, "ann", "**Better**").result()
    page = visit("olga", "/owner", viewport={"width": width, "height": 800}, color_scheme=scheme)
    violations = serious(page, axe)
    for path in ("/owner/pairs?having=written", "/owner/answers", "/owner/settings", "/owner/people"):
        page.goto(path)
        for summary in page.locator("main summary").all():
            if summary.evaluate("it => !it.parentElement.open"):
                summary.click()
        violations += serious(page, axe)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert not re.search(r"\bk\d\d\b", page.inner_text("main"))
    assert not violations, "\n".join(violations)


def test_ranking_shows_full_answers(visit, store):
    store.add_completions(
        [
            Completion(f"s1.p12.r{k}", "p12", "sft", f"{k} is level water. " * 40, (1,), (-0.1,), "stop")
            for k in range(5)
        ]
    )
    store.add_groups([RankingGroup("g1", "p12", tuple(f"s1.p12.r{k}" for k in range(5)), "work", priority=9)])
    page = visit(viewport={"width": 1280, "height": 700})
    articles = page.locator("#answers article").all()
    assert len(articles) == 5
    for article in articles:
        assert article.evaluate("it => it.scrollHeight <= it.clientHeight + 1")
    page.keyboard.press("2")
    assert "is 1st" in page.locator("#answers article").nth(1).inner_text()
