"""The rating page in a real browser: keyboard, reloads, lost connections, phone, light and dark, axe."""

from time import time

import pytest
from conftest import running, serious

from towpath.records import Comparison, Completion, Prompt
from towpath.store import acknowledgements, people, rating_settings, review, sides, task_queue, verdicts
from towpath.store.rating_settings import RatingSettings
from towpath.store.store import Store
from towpath.store.task_queue import Gold, RankingGroup, Task

PASSWORD = "correct horse battery"
LONG = "\n\n".join(
    f"Paragraph {i} goes on about **boats**, locks and water, and says so in a good many words." for i in range(40)
)


def fill(store):
    store.add_prompts(
        [Prompt(f"p{i}", f"Why is the water in the canal number {i} level?", domain="work") for i in range(14)]
    )
    texts = [
        "Because the *lock* keeps it level.",
        "Because a lock keeps it level, and the gates are shut.",
        LONG,
        "- one\n- two",
        "No idea.",
    ]
    made = [
        Completion(f"s1.p{i}.{k}", f"p{i}", "sft", f"{text}\n\n{i}.{k}", (1,), (-0.1,), "stop")
        for i in range(14)
        for k, text in enumerate(texts)
    ]
    store.add_completions(made)
    store.add_comparisons([Comparison(f"k{i:02}", f"p{i}", f"s1.p{i}.0", f"s1.p{i}.{1 + i % 2}") for i in range(14)])
    store.add_tasks([Task(f"k{i:02}", "work") for i in range(12)])
    store.submit_write(rating_settings.save, RatingSettings(gold_share=0.0, min_view=0.0)).result()
    store.submit_write(people.add_guideline, "# Be kind\n\nPrefer the answer that **helps**.", "olga").result()
    for name in ("olga", "ann", "bob"):
        store.submit_write(acknowledgements.acknowledge, name, 1).result()


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "towpath.db") as opened:
        fill(opened)
        yield opened


@pytest.fixture
def team(store):
    with running(store, team=True) as (url, auth):
        for name, role in (("olga", "owner"), ("ann", "rater"), ("bob", "rater")):
            store.submit_write(people.add_account, name, role, auth.hash_password(PASSWORD)).result()
        yield url


@pytest.fixture
def visit(browser, team):
    """Open pages for people, signed in by keyboard; console errors fail the test."""
    contexts = []
    errors = []

    def opened(name: str | None, **options):
        context = browser.new_context(base_url=team, **options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto("/sign-in")
        if name:
            page.focus("#name")
            page.keyboard.type(name)
            page.keyboard.press("Tab")
            page.keyboard.type(PASSWORD)
            page.keyboard.press("Enter")
            page.wait_for_url(lambda url: "sign-in" not in url)
            if "/rate" not in page.url:
                page.goto("/rate")
        return page

    opened.errors = errors
    yield opened
    for context in contexts:
        context.close()
    assert not errors


def comparison(page) -> str:
    return page.get_attribute("#task", "data-comparison")


def answers(page) -> list[str]:
    return page.locator("#answers [data-text]").all_inner_texts()


def press(page, key: str, text: str) -> None:
    """Press a key and wait for the page's message."""
    page.keyboard.press(key)
    page.wait_for_function("words => document.getElementById('message').textContent.includes(words)", arg=text)
    page.wait_for_function("() => !document.body.classList.contains('busy')")


def test_keyboard_only_sign_in_and_rating(visit, store):
    page = visit("ann")
    pairs = []
    for key, message in (
        ("1", "A is much better"),
        ("2", "A is better"),
        ("3", "a tie"),
        ("4", "B is better"),
        ("5", "B is much better"),
        ("0", "both are bad"),
    ):
        pairs.append(comparison(page))
        press(page, key, f"Saved: {message}")
        assert page.evaluate("document.activeElement.id") == "answers"
    judgements = store.judgements()
    assert [j.comparison for j in judgements] == pairs
    assert len(set(pairs)) == 6
    assert [j.strength for j in judgements] == [3, 1, 1, 1, 3, 1]
    assert all(j.guideline == "1" and j.milliseconds is not None for j in judgements)
    for j, side in zip(judgements, ["left", "left", "tie", "right", "right", "both_bad"], strict=True):
        assert j.choice == sides.choice_of(side, j.shown)
    assert "6 rated" in page.inner_text("#progress")


def test_undo_restores_the_pair_and_its_order(visit, store):
    page = visit("ann")
    first = comparison(page)
    text = answers(page)
    press(page, "1", "Saved")
    assert comparison(page) != first
    press(page, "u", "Undone: your verdict")
    assert (comparison(page), answers(page)) == (first, text)
    press(page, "5", "Saved: B is much better")
    assert [(j.comparison, j.round, j.strength) for j in store.judgements()] == [(first, 2, 3)]
    press(page, "u", "Undone")
    press(page, "s", "Skipped")
    assert store.judgements() == []


def test_reload_keeps_pair_and_order(visit):
    page = visit("ann")
    press(page, "3", "Saved")
    before = comparison(page), answers(page)
    for _ in range(3):
        page.reload()
        assert (comparison(page), answers(page)) == before


def test_two_raters_never_get_the_same_pair(visit, store):
    ann = visit("ann")
    bob = visit("bob")
    for _ in range(5):
        assert comparison(ann) != comparison(bob)
        press(ann, "1", "Saved")
        press(bob, "5", "Saved")
        ann.evaluate("document.getElementById('message').textContent = ''")
        bob.evaluate("document.getElementById('message').textContent = ''")
    assert len({j.comparison for j in store.judgements()}) == 10


def test_offline_verdicts_are_stored_and_sent_once(visit, store):
    page = visit("ann")
    first = comparison(page)
    page.context.set_offline(True)
    page.keyboard.press("2")
    page.wait_for_function("() => document.getElementById('outbox').textContent.includes('stored on this device')")
    assert store.judgements() == []
    page.keyboard.press("4")  # a second verdict on the same pair is not accepted
    page.context.set_offline(False)
    page.wait_for_function("before => document.getElementById('task').dataset.comparison !== before", arg=first)
    assert [(j.comparison, j.strength) for j in store.judgements()] == [(first, 1)]
    assert page.evaluate("Object.keys(localStorage).filter(name => name.includes('outbox')).length") == 0
    visit.errors.clear()  # the browser reports the lost connection


def test_verdicts_are_sent_after_a_browser_crash(visit, store):
    page = visit("ann")
    first = comparison(page)
    page.context.route("**/rate/judge", lambda route: route.abort())
    page.keyboard.press("1")
    page.wait_for_function("() => document.getElementById('outbox').textContent.includes('stored on this device')")
    page.context.unroute("**/rate/judge")
    page.reload()
    page.wait_for_function("before => document.getElementById('task').dataset.comparison !== before", arg=first)
    assert [j.comparison for j in store.judgements()] == [first]
    visit.errors.clear()


def test_lost_response_does_not_duplicate_a_verdict(visit, store):
    page = visit("ann")
    lost = []

    def lose(route):
        if not lost:
            lost.append(route.fetch())  # the request arrives, the response is lost
            route.abort()
        else:
            route.continue_()

    page.context.route("**/rate/judge", lose)
    press(page, "1", "Saved")
    assert lost
    assert len(store.judgements()) == 1
    visit.errors.clear()


def test_dialogs_by_keyboard(visit, store):
    page = visit("ann")
    page.keyboard.press("g")
    assert "Prefer the answer that helps" in page.inner_text("#guidelines-dialog")
    page.keyboard.press("g")
    assert not page.is_visible("#guidelines-dialog")
    page.keyboard.press("c")
    page.keyboard.type("Because 1 and 2")
    page.keyboard.press("Control+Enter")
    page.keyboard.press("w")
    page.keyboard.type("A better one.")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("() => document.getElementById('message').textContent.includes('Saved: your better answer')")
    press(page, "4", "Saved: B is better")
    assert [j.comment for j in store.judgements()] == ["Because 1 and 2"]
    assert store.written_demonstrations() == []
    for row in store.read(review.list_written_answers, "waiting")[0]:
        store.submit_write(verdicts.review_written_answer, row["key"], "approved").result()
    assert [d.response for d in store.written_demonstrations()] == ["A better one."]
    flagged = comparison(page)
    page.keyboard.press("f")
    page.keyboard.type("Not a question")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_function("before => document.getElementById('task').dataset.comparison !== before", arg=flagged)
    press(page, "u", "Undone: the flag")
    assert comparison(page) == flagged
    page.keyboard.press("f")
    page.keyboard.press("Escape")
    press(page, "3", "Saved: a tie")


def test_differences_toggle_persists(visit):
    page = visit("ann")
    press(page, "d", "underlined")
    assert page.locator("mark").count() > 0
    assert not page.locator("#answers [data-text]").first.is_visible()
    press(page, "1", "Saved")
    page.wait_for_selector("#answers mark")
    press(page, "d", "Differences hidden")
    assert page.locator("mark").count() == 0
    assert page.locator("#answers [data-text]").first.is_visible()


def test_shortcuts_and_immediate_save_can_be_turned_off(visit, store):
    page = visit("ann")
    page.keyboard.press("?")
    page.uncheck("#at-once")
    page.keyboard.press("Escape")
    press(page, "1", "Press N to save")
    press(page, "5", "Press N to save")
    assert store.judgements() == []
    assert page.locator("#scale [aria-pressed=true]").inner_text().endswith("B much better")
    press(page, "n", "Saved: B is much better")
    page.keyboard.press("?")
    page.uncheck("#keys-on")
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.locator("#scale [aria-pressed=true]").count() == 0
    page.focus("#scale button")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.locator("#scale [aria-pressed=true]").inner_text().endswith("A much better")
    assert len(store.judgements()) == 1


def test_separate_safety_question(visit, store):
    store.submit_write(rating_settings.save, RatingSettings(gold_share=0.0, min_view=0.0, safety=True)).result()
    page = visit("ann")
    press(page, "1", "Which is safer?")
    press(page, "8", "Saved: A is much better")
    press(page, "7", "Which is better?")
    press(page, "3", "Saved: a tie")
    first, second = store.judgements()
    assert first.details["safety"]["choice"] == sides.choice_of("right", first.shown)
    assert second.details["safety"]["choice"] == "tie"


def test_ranking_by_keyboard(visit, store):
    store.add_groups(
        [RankingGroup("s1.p13.ranking", "p13", tuple(f"s1.p13.{k}" for k in range(5)), "work", priority=9)]
    )
    page = visit("ann")
    order = answers(page)
    assert len(order) == 5
    for key in "31":
        page.keyboard.press(key)
    page.keyboard.press("Backspace")
    for key in ("=", "4", "1", "5", "2"):
        page.keyboard.press(key)
    assert page.inner_text("#ranked") == "3 = 4, 1, 5, 2"
    press(page, "n", "Saved: 3 = 4, 1, 5, 2")
    assert len(store.judgements()) == 10
    ties = [j for j in store.judgements() if j.choice == "tie"]
    assert len(ties) == 1
    press(page, "u", "Undone")
    assert answers(page) == order
    page.locator("[data-rank]").nth(1).click()
    assert page.inner_text("#ranked") == "2"


def test_phone_layout(visit, store):
    page = visit("ann", viewport={"width": 375, "height": 740}, device_scale_factor=2, has_touch=True, is_mobile=True)
    one, two = (page.locator("#answers article").nth(i).bounding_box() for i in (0, 1))
    assert two["y"] >= one["y"] + one["height"]
    assert one["width"] > 330
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.locator("#scale button").nth(1).tap()
    page.wait_for_function("() => document.getElementById('message').textContent.includes('Saved: A is better')")
    boxes = [button.bounding_box() for button in page.locator("#scale button").all()]
    assert len(boxes) >= 5 and all(box["width"] >= 44 and box["height"] >= 44 for box in boxes)
    assert len(store.judgements()) == 1


def test_answers_scroll_together(visit):
    page = visit("ann", viewport={"width": 1280, "height": 720})
    while "Paragraph" not in "".join(answers(page)):
        press(page, "3", "Saved")
        page.evaluate("document.getElementById('message').textContent = ''")
    both_tops = "[...document.querySelectorAll('#answers article')].map(one => one.getBoundingClientRect().y)"
    tops = page.evaluate(both_tops)
    page.keyboard.press("PageDown")
    page.wait_for_function("() => document.getElementById('answers').scrollTop > 100")
    after = page.evaluate(both_tops)  # in one call, as the scrolling may still be in progress
    assert len(tops) == 2
    assert after[0] < tops[0]
    assert after[0] - tops[0] == after[1] - tops[1]
    assert page.locator("#scale").is_visible()


def test_focus_order(visit):
    page = visit("ann")
    page.focus(".skip-link")
    places = []
    for _ in range(22):
        page.keyboard.press("Tab")
        places.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.className || "
                "document.activeElement.dataset.side || ''"
            )
        )
    wanted = [
        "prompt",
        "answers",
        "left",
        "left",
        "tie",
        "right",
        "right",
        "both_bad",
        "skip",
        "flag",
        "differences",
        "comment",
        "write",
        "guidelines",
        "history",
        "keys",
    ]
    begin = places.index("prompt")
    assert places[begin : begin + len(wanted)] == wanted


def test_ten_pairs_in_a_row(visit, store):
    page = visit("ann")
    for key in "1234501234":
        press(page, key, "Saved")
        page.evaluate("document.getElementById('message').textContent = ''")
    assert len(store.judgements()) == 10


def test_page_polls_when_idle(visit, store):
    store.submit_write(task_queue.pause_domain, "work", True).result()
    page = visit("ann")
    assert "Nothing to rate" in page.inner_text("main")
    assert not page.is_visible("#scale")
    store.submit_write(task_queue.pause_domain, "work", False).result()
    page.wait_for_function("() => document.getElementById('task').dataset.state === 'pair'", timeout=15_000)
    press(page, "1", "Saved")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_axe_on_all_pages(visit, store, axe, scheme, width):
    store.set_gold([Gold("k05", "a", "sure")])
    store.submit_write(
        rating_settings.save, RatingSettings(gold_share=0.0, min_view=0.0, safety=True, show_gold=True, hours=9.0)
    ).result()
    invited = store.submit_write(people.create_invitation, "rater", "olga", time()).result()
    options = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}}
    page = visit("olga", **options)
    violations = serious(page, axe)
    for key in "gcfw?":
        page.keyboard.press(key)
        violations += serious(page, axe)
        page.keyboard.press("Escape")
    press(page, "d", "underlined")
    violations += serious(page, axe)
    press(page, "1", "Which is safer?")
    violations += serious(page, axe)
    press(page, "7", "Saved")
    seat = store.submit_write(task_queue.next_lease, "bob", time()).result()
    store.submit_write(verdicts.flag, seat.comparison, "bob", "odd", time()).result()
    for path in ("", "/settings?saved=true", "/guidelines", "/people", "/gold", "/flags"):
        page.goto(f"/owner{path}")
        violations += serious(page, axe)
    page.goto("/owner/people")
    page.get_by_role("button", name="Create a link").click()
    violations += serious(page, axe)
    store.add_groups(
        [RankingGroup("s1.p13.ranking", "p13", tuple(f"s1.p13.{k}" for k in range(5)), "work", priority=9)]
    )
    page.goto("/rate")
    press(page, "3", "Which is safer?")
    press(page, "7", "Saved")
    page.keyboard.press("2")
    assert page.is_visible("#order")
    violations += serious(page, axe)
    store.submit_write(rating_settings.save, RatingSettings(paused=True)).result()
    for path in ("/rate", "/owner"):
        page.goto(path)
        violations += serious(page, axe)
    stranger = visit(None, **options)
    violations += serious(stranger, axe)
    stranger.goto(f"/join/{invited}")
    violations += serious(stranger, axe)
    assert not violations, "\n".join(violations)
