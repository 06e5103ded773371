"""Accounts in a real browser: invitation, password change, reset, audit log; axe on phone and desktop, light and
dark."""

import re
from time import time

import pytest
from conftest import running, serious

from towpath.store import people, rating_settings
from towpath.store.rating_settings import RatingSettings
from towpath.store.store import Store
from towpath.web.passwords import Hasher

PASSWORD = "correct horse battery"
OTHER = "kitten lamp river"


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "towpath.db") as opened:
        for name, role in (("olga", "owner"), ("ann", "rater"), ("Bartholomäus Wiesengrund-Schmidt", "viewer")):
            opened.submit_write(people.add_account, name, role, Hasher().hash(PASSWORD)).result()
        opened.submit_write(rating_settings.save, RatingSettings(gold_share=0.2, safety=True), "olga").result()
        yield opened


@pytest.fixture
def visit(browser, store):
    """Open a new browser window; console errors fail the test, except for refused forms."""
    contexts = []
    errors = []
    with running(store, team=True) as (url, _):

        def opened(**options):
            context = browser.new_context(base_url=url, **options)
            context.set_default_timeout(10_000)
            contexts.append(context)
            page = context.new_page()
            page.on(
                "console",
                lambda message: (
                    errors.append(message.text) if message.type == "error" and "409" not in message.text else None
                ),
            )
            page.on("pageerror", lambda error: errors.append(str(error)))
            return page

        yield opened
        for context in contexts:
            context.close()
    assert not errors


def sign_in(page, name, password=PASSWORD):
    page.goto("/sign-in")
    page.fill("#name", name)
    page.fill("#password", password)
    page.press("#password", "Enter")


def test_account_lifecycle_from_invitation_to_reset(visit, store):
    owner = visit()
    new = visit()
    sign_in(owner, "olga")
    owner.goto("/owner/people")
    owner.click("text=Create a link")
    new.goto(owner.inner_text(".link"))
    new.fill("#name", "ANN")
    new.fill("#password", OTHER)
    new.click("button.main")
    assert "too similar to 'ann'" in new.inner_text("#wrong")
    new.fill("#name", "dan")
    new.fill("#password", OTHER)
    new.click("button.main")
    new.wait_for_url("**/rate")
    new.goto("/account")
    new.fill("#present", OTHER)
    new.fill("#password", "another few words")
    new.click("text=Change the password")
    assert "Your password is changed" in new.inner_text("main")
    owner.goto("/owner/people")
    owner.click("[aria-label='Reset password of dan']")
    link = owner.inner_text(".link")
    assert "Send this link to dan" in owner.inner_text(".notice")
    owner.click("[aria-label='Sign out dan everywhere']")
    new.goto("/account")
    new.wait_for_url("**/sign-in")
    new.goto(link)
    new.fill("#password", "yet another few words")
    new.click("button.main")
    new.wait_for_url("**/rate")
    owner.goto("/owner/audit")
    owner.select_option("[name=who]", "dan")
    owner.click("text=Filter")
    assert owner.locator("tbody td:nth-child(3)").all_inner_texts() == ["reset password", "change password", "join"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_account_pages_are_accessible_and_responsive(visit, store, axe, width, scheme):
    page = visit(viewport={"width": width, "height": 844}, color_scheme=scheme)
    join = store.submit_write(people.create_invitation, "rater", "olga", time()).result()
    reset = store.submit_write(people.create_reset, "ann", "olga", time()).result()
    bad = []
    sign_in(page, "olga")
    page.wait_for_url(re.compile("/owner$"))
    for path in ("/owner/people", "/owner/audit", "/account", f"/join/{join}", f"/reset/{reset}"):
        page.goto(path)
        bad += serious(page, axe)
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            bad.append(f"{path}: wider than the screen")
    assert not bad, "\n".join(bad)
