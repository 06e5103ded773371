"""Untrusted text in a real browser: nothing in it runs, loads a resource or leaves the page."""

import json

import pytest
from markup_payloads import payloads
from test_web import PASSWORD
from watched_run import append, folder_of, serving_run, short_run

from towpath.records import Comparison, Completion, Prompt
from towpath.store import people, rating_settings, verdicts
from towpath.store.rating_settings import RatingSettings
from towpath.store.store import Store
from towpath.store.task_queue import RankingGroup, Task

PAYLOADS = payloads()
ANSWERS = 9
OWN = "script[src^='/static/'], link[href^='/static/']"
PAGES = (
    "/owner",
    "/owner/settings",
    "/owner/guidelines",
    "/owner/people",
    "/owner/gold",
    "/owner/flags",
    "/arena",
    "/monitor",
    "/monitor/samples",
)
LOOK = """() => {
  const bad = [];
  for (const element of document.querySelectorAll("*")) {
    for (const { name, value } of element.attributes) {
      const acts = name.startsWith("on") || name === "srcdoc"
        || (name === "style" && /url|expression|@import/.test(value));
      if (acts) bad.push(`${element.tagName} ${name}`);
      if (/^(href|src|action|formaction|data|xlink:href)$/.test(name)
          && /^\\s*(javascript|data|vbscript|blob|file):/i.test(value)) bad.push(value);
    }
    if (element.matches("script, iframe, object, embed, base, link, style, meta[http-equiv], img, video, audio")
        && !element.matches(OWN))
      bad.push(element.outerHTML.slice(0, 120));
  }
  return { bad, ran: window.ran ?? null, text: document.body.innerText.length };
}""".replace("OWN", json.dumps(OWN + ", meta[name]"))


def test_at_least_five_hundred_payloads():
    assert len(PAYLOADS) >= 500


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "towpath.db") as opened:
        groups = [PAYLOADS[at : at + ANSWERS] for at in range(0, len(PAYLOADS), ANSWERS)]
        opened.add_prompts([Prompt(f"p{n}", texts[0], domain=texts[-1][:60]) for n, texts in enumerate(groups)])
        made = [
            Completion(f"s1.p{n}.{k}", f"p{n}", texts[0][:60], text, (1,), (-0.1,), "stop")
            for n, texts in enumerate(groups)
            for k, text in enumerate(texts)
        ]
        opened.add_completions(made)
        pairs = [(n, k) for n, texts in enumerate(groups) for k in range(1, len(texts))]
        opened.add_comparisons([Comparison(f"k{n}-{k}", f"p{n}", f"s1.p{n}.{k - 1}", f"s1.p{n}.{k}") for n, k in pairs])
        # rankings show every payload; of the pairs, which show texts by the same template, a few
        opened.add_tasks([Task(f"k{n}-1", "work") for n in range(0, len(groups), 8)])
        opened.add_groups(
            [
                RankingGroup(f"g{n}", f"p{n}", tuple(f"s1.p{n}.{k}" for k in range(len(texts))))
                for n, texts in enumerate(groups)
                if len(texts) >= 4
            ]
        )
        opened.submit_write(rating_settings.save, RatingSettings(gold_share=0.0)).result()
        opened.submit_write(people.add_guideline, "\n\n".join(PAYLOADS[:200]), PAYLOADS[3]).result()
        yield opened


def test_no_payload_runs_loads_or_leaves_the_page(browser, store, tmp_path):
    run = short_run(tmp_path / "run")
    samples = [
        {"step": 0, "prompt_id": f"m{n}", "prompt": text, "domain": text[:40], "answer": text, "reward": 1.0}
        for n, text in enumerate(PAYLOADS)
    ]
    append(folder_of(run) / "samples.jsonl", samples)
    with serving_run(run, store, team=True) as (url, auth):
        for name, role in (("olga", "owner"), ("<img src=x onerror=ran=1>", "rater")):
            store.submit_write(people.add_account, name, role, auth.hash_password(PASSWORD)).result()
        context = browser.new_context(base_url=url)
        context.set_default_timeout(10_000)
        page = context.new_page()
        trouble = []
        page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
        page.on(
            "console",
            lambda message: trouble.append(message.text) if "Content Security Policy" in message.text else None,
        )
        page.on("request", lambda request: None if request.url.startswith(url) else trouble.append(request.url))
        page.on("popup", lambda popup: trouble.append(popup.url))
        page.goto("/sign-in")
        page.fill("#name", "olga")
        page.fill("#password", PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url(lambda where: "sign-in" not in where)

        def check(where: str) -> None:
            problems = page.evaluate(LOOK)
            assert problems["bad"] == [], (where, problems["bad"][:5])
            assert problems["ran"] is None, where
            assert trouble == [], (where, trouble[:5])

        count = 0
        page.goto("/rate")
        while page.get_attribute("#task", "data-state") in ("pair", "ranking"):
            before = page.get_attribute("#task", "data-comparison")
            count += page.locator("#answers [data-text]").count()
            check(before)
            store.submit_write(verdicts.flag, before, "olga", PAYLOADS[count % len(PAYLOADS)], 1e9).result()
            page.reload()
        assert count >= len(PAYLOADS) * 0.9, count
        for path in PAGES:
            page.goto(path)
            page.wait_for_timeout(150)
            check(path)
        context.close()
