"""The pages over real HTTP: access, refusals, and the effects of a rater's actions."""

import json
import re
from contextlib import contextmanager
from time import time

import httpx
import pytest
from argon2 import PasswordHasher
from conftest import running
from sqlalchemy import select

from towpath.errors import ResourceError
from towpath.records import Comparison, Completion, Prompt
from towpath.store import people, rating_settings, schema, sessions, task_queue, verdicts
from towpath.store.rating_settings import RatingSettings
from towpath.store.store import Store
from towpath.store.task_queue import Gold, RankingGroup, Task
from towpath.web import passwords, safe_html, server, throttle

PASSWORD = "correct horse battery"
FREE = throttle.BY_ACCOUNT_AND_NETWORK.free
NASTY = (
    "# Big\n\n<script>alert(1)</script><img src=x onerror=alert(1)> ![p](http://evil/x.png) "
    "[go](javascript:alert(1)) **bold**"
)


def fill(store):
    store.add_prompts([Prompt(f"p{i}", f"Why {i}?", domain="work") for i in range(8)])
    answers = [
        Completion(f"s1.p{i}.{k}", f"p{i}", f"model-{k}", f"{NASTY} {i}.{k}", (1,), (-0.1,), "stop")
        for i in range(8)
        for k in range(5)
    ]
    store.add_completions(answers)
    store.add_comparisons([Comparison(f"k{i}", f"p{i}", f"s1.p{i}.0", f"s1.p{i}.1") for i in range(8)])
    store.add_tasks([Task(f"k{i}", "work") for i in range(8)])
    store.submit_write(rating_settings.save, RatingSettings(gold_share=0.0)).result()


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "towpath.db") as opened:
        fill(opened)
        yield opened


@pytest.fixture
def team(store):
    with running(store, team=True) as (url, auth):
        for name, role in (("olga", "owner"), ("ann", "rater"), ("bob", "rater"), ("vic", "viewer")):
            store.submit_write(people.add_account, name, role, auth.hash_password(PASSWORD)).result()
        yield url


def client(url, **headers):
    return httpx.Client(base_url=url, headers={"origin": url, "accept": "application/json", **headers})


@contextmanager
def signed_in(url, name):
    with client(url) as visitor:
        done = visitor.post("/sign-in", data={"name": name, "password": PASSWORD})
        assert (done.status_code, done.headers["location"]) == (303, "/")
        yield visitor


def verdict_body(seat, key, side="left", **more):
    return {"key": key, "comparison": seat["comparison"], "side": side, "milliseconds": 1200} | more


def test_owner_link_works_once(store):
    with running(store, team=False) as (url, auth), client(url) as owner, client(url) as other:
        link = server.startup_message(store, auth, url).split()[1]
        assert owner.get("/rate", headers={"accept": "text/html"}).headers["location"] == "/sign-in"
        done = owner.get(link)
        assert done.status_code == 303
        cookie = done.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert owner.get("/owner").status_code == 200
        assert other.get(link).status_code == 403
        assert other.get("/owner").status_code == 401
        assert other.post("/sign-in", data={"name": "owner", "password": ""}).status_code in (401, 422)
        assert other.post("/sign-in", data={"name": "owner", "password": "x" * 12}).status_code == 401


def test_foreign_cookie_is_rejected(store):
    with running(store, team=False) as (url, _):
        store.submit_write(people.add_account, "owner", "owner", "").result()
        store.submit_write(sessions.start, "owner", time()).result()
        stored = store.read(lambda connection: connection.scalar(select(schema.sessions.c.digest)))
        name = f"towpath-{url.rpartition(':')[2]}"
        for value in (stored, "", "nonsense", "a.b.c", "owner"):
            assert (
                httpx.get(
                    f"{url}/owner", headers={"accept": "application/json", "cookie": f"{name}={value}"}
                ).status_code
                == 401
            )


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_foreign_hosts_and_origins_are_refused(team, method):
    port = team.rpartition(":")[2]
    for headers in (
        {"host": f"evil.example:{port}"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"host": "127.0.0.1.evil.example"},
    ):
        assert httpx.request(method, f"{team}/sign-in", headers=headers).status_code in (403, 421), headers
    if method == "POST":
        assert httpx.post(f"{team}/sign-in", data={"name": "ann", "password": PASSWORD}).status_code == 403
    assert httpx.get(f"{team}/sign-in", headers={"host": f"10.1.2.3:{port}"}).status_code == 200


def test_server_without_accounts_accepts_local_hosts_only(store):
    with running(store, team=False) as (url, _):
        port = url.rpartition(":")[2]
        statuses = [
            httpx.get(f"{url}/sign-in", headers={"host": f"{name}:{port}"}).status_code
            for name in ("localhost", "127.0.0.1", "[::1]", "10.1.2.3")
        ]
    assert statuses == [200, 200, 200, 421]


def test_csp_header_and_no_inline_content(team):
    with signed_in(team, "olga") as owner:
        paths = (
            "/rate",
            "/owner",
            "/owner/settings",
            "/owner/guidelines",
            "/owner/gold",
            "/owner/flags",
            "/owner/people",
            "/sign-in",
            "/static/rate.js",
        )
        for path in (*paths, "/nowhere"):
            page = owner.get(path)
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert page.headers["x-content-type-options"] == "nosniff"
            if path in paths[:-1]:
                assert page.status_code == 200
                ours = re.sub(r'<div class="answers.*?</div>\n</div>', "", page.text, flags=re.DOTALL)
                assert not re.search(
                    r"<script(?![^>]*\ssrc=\"/static/)|<style|\son\w+=|\sstyle=|(?:src|href)=\"(?![/#])", ours
                ), path


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("ann", ["/rate"]), ("vic", ["/owner", "/owner/stats"]), ("olga", ["/rate", "/owner", "/owner/people"])],
)
def test_roles_open_their_own_pages_only(team, name, allowed):
    paths = [
        "/rate",
        "/rate/next",
        "/owner",
        "/owner/stats",
        "/owner/people",
        "/owner/settings",
        "/owner/export.jsonl",
        "/owner/gold",
    ]
    with signed_in(team, name) as visitor:
        for path in paths:
            wanted = 200 if path in allowed or (path == "/rate/next" and "/rate" in allowed) or name == "olga" else 403
            assert visitor.get(path).status_code == wanted, path
        if name != "olga":
            for path in (
                "/owner/settings",
                "/owner/invite",
                "/owner/gold",
                "/owner/flags",
                "/owner/account",
                "/owner/guidelines",
                "/owner/queue",
            ):
                assert visitor.post(path, data={"role": "owner", "comparison": "k0"}).status_code in (403, 422), path
    with client(team) as stranger:
        assert [stranger.get(path).status_code for path in paths] == [401] * len(paths)


def test_invitation_creates_an_account_and_signs_in(team, store):
    with signed_in(team, "olga") as owner, client(team) as new:
        link = re.search(r"http://\S+/join/[\w-]+", owner.post("/owner/invite", data={"role": "rater"}).text)[0]
        assert link.startswith(team)
        assert new.get(link).status_code == 200
        assert new.post(link, data={"name": "dan", "password": "short"}).status_code == 409
        assert new.post(link, data={"name": "ann", "password": PASSWORD}).status_code == 409
        assert new.post(link, data={"name": "dan", "password": PASSWORD}).headers["location"] == "/"
        assert new.get("/").headers["location"] == "/rate"
        assert new.get(link).status_code == 410
        owner.post("/owner/account", data={"name": "dan", "role": "rater"})
        assert new.get("/rate").status_code == 401
    assert store.read(people.get_account, "dan").password.startswith("$argon2")


def test_passwords_are_hashed_at_the_cost_of_rfc_9106(monkeypatch):
    monkeypatch.setattr(passwords, "PasswordHasher", PasswordHasher)  # tests hash at less
    assert passwords.Hasher().hash(PASSWORD).startswith("$argon2id$v=19$m=65536,t=3,p=4$")


def test_correct_password_waits_after_failed_attempts(team):
    with client(team) as visitor:
        statuses = [
            visitor.post("/sign-in", data={"name": "ann", "password": "wrong"}).status_code for _ in range(FREE + 1)
        ]
        assert statuses == [401] * FREE + [429]
        assert visitor.post("/sign-in", data={"name": "ann", "password": PASSWORD}).status_code == 429
    with signed_in(team, "bob"):
        pass


def test_judge_undo_and_judge_again(team, store):
    with signed_in(team, "ann") as ann:
        first = ann.get("/rate/next").json()
        assert ann.get("/rate/next").json() == first
        assert first["state"] == "pair"
        assert f'data-comparison="{first["comparison"]}"' in ann.get("/rate").text
        answer = ann.post("/rate/judge", json=verdict_body(first, "key-one-1"))
        assert answer.json() == {"comparison": first["comparison"], "judgements": 1, "again": False}
        assert ann.post("/rate/judge", json=verdict_body(first, "key-one-1")).json()["again"]
        assert ann.post("/rate/judge", json=verdict_body(first, "key-two-2", "right")).status_code == 409
        second = ann.get("/rate/next").json()
        assert (second["last"], second["last_was"]) == (first["comparison"], "judged")
        ann.post("/rate/undo", json={"comparison": first["comparison"]})
        assert ann.get("/rate/next").json()["comparison"] == first["comparison"]
        ann.post(
            "/rate/judge",
            json=verdict_body(
                first, "key-three-3", "both_bad", safety={"side": "tie"}, comment="both\x00 wrong", guideline=4
            ),
        )
    judgements = store.judgements()
    assert [(j.choice, j.round, j.rater, j.guideline, j.comment) for j in judgements] == [
        ("both_bad", 2, "ann", "4", "both\ufffd wrong")
    ]
    assert judgements[0].details == {"safety": {"choice": "tie", "strength": 1}}


@pytest.mark.parametrize(
    "wrong",
    [
        {"side": "a"},
        {"strength": 2},
        {"key": "short"},
        {"key": "no spaces please"},
        {"comparison": ""},
        {"milliseconds": -1},
        {"safety": {"side": "up"}},
    ],
)
def test_invalid_requests_are_refused(team, store, wrong):
    with signed_in(team, "ann") as ann:
        seat = ann.get("/rate/next").json()
        assert ann.post("/rate/judge", json=verdict_body(seat, "key-one-1") | wrong).status_code == 422
        assert ann.post("/rate/judge", json=verdict_body({"comparison": "k7"}, "key-one-1")).status_code == 409
    assert store.judgements() == []


def test_raters_see_no_sources_and_no_other_verdicts(team, store):
    with signed_in(team, "ann") as ann, signed_in(team, "bob") as bob:
        store.submit_write(task_queue.add_seats, ["k0"], "overlap").result()
        seat = ann.get("/rate/next").json()
        ann.post("/rate/judge", json=verdict_body(seat, "key-one-1", comment="SECRET WORD"))
        pages = [bob.get("/rate").text, bob.get("/rate/next").text, ann.get("/rate").text]
    assert seat["comparison"] == "k0"
    assert all("model-" not in page and "s1.p" not in page and "SECRET" not in page for page in pages)
    assert 'data-comparison="k0"' in pages[0]


def test_answers_are_sanitized(team):
    with signed_in(team, "ann") as ann:
        html = ann.get("/rate/next").json()["html"]
    assert "<strong>bold</strong>" in html
    assert "<h4>Big</h4>" in html
    assert not re.search(r"<script|<img|href=\"javascript|onerror=\"", html)


def test_ranking_over_http(team, store):
    store.add_groups([RankingGroup("s1.p7.ranking", "p7", tuple(f"s1.p7.{k}" for k in range(5)), "work", priority=9)])
    with signed_in(team, "ann") as ann:
        seat = ann.get("/rate/next").json()
        assert (seat["state"], seat["answers"]) == ("ranking", 5)
        body = {"key": "key-rank-1", "comparison": seat["comparison"], "ranks": [2, 1, 3, 3, 5]}
        assert ann.post("/rate/rank", json=body).json()["judgements"] == 10
        assert ann.post("/rate/rank", json=body).json()["again"]
        assert ann.get("/rate/differences", params={"comparison": seat["comparison"]}).status_code == 409
    assert len(store.judgements()) == 10


def test_skip_flag_and_write(team, store):
    with signed_in(team, "ann") as ann, signed_in(team, "olga") as owner:
        first = ann.get("/rate/next").json()["comparison"]
        ann.post("/rate/skip", json={"comparison": first})
        second = ann.get("/rate/next").json()["comparison"]
        ann.post("/rate/write", json={"key": "key-write-1", "comparison": second, "text": "Like so."})
        ann.post("/rate/flag", json={"comparison": second, "reason": "<b>not</b> a question"})
        assert ann.get("/rate/next").json()["comparison"] not in (first, second)
        page = owner.get("/owner/flags").text
        assert "&lt;b&gt;not&lt;/b&gt; a question" in page
        assert owner.post("/owner/flags", data={"comparison": second, "how": "rate"}).headers["location"] == "/rate"
        assert owner.get("/rate/next").json()["comparison"] == second
    store.submit_write(verdicts.review_written_answer, "key-write-1", "approved").result()
    assert [d.response for d in store.written_demonstrations()] == ["Like so."]


def test_owner_settings_and_statistics(team, store):
    with signed_in(team, "olga") as owner:
        form = {
            "gold_share": "20",
            "lease_minutes": "10",
            "overlap": "15",
            "hours": "2.5",
            "switches": ["safety", "show_gold"],
        }
        assert owner.post("/owner/settings", data=form).status_code == 303
        assert store.read(rating_settings.read) == RatingSettings(False, 0.15, 0.2, True, 2.5, True, 600.0)
        assert 'id="safety"' in owner.get("/rate").text
        assert owner.post("/owner/settings", data=form | {"hours": "many"}).status_code == 409
        owner.post("/owner/guidelines", data={"guidelines": "Be **kind**.\r\nAlways."})
        assert store.read(people.get_guideline).text == "Be **kind**.\nAlways."
        assert "<strong>kind</strong>" in owner.get("/rate/next").json()["guidelines"]
        owner.post("/owner/gold", data={"comparison": "k3", "choice": "b", "note": "sure"})
        assert "sure" in owner.get("/owner/gold").text
        owner.post("/owner/rankings", data={"most": "3"})
        owner.post("/owner/queue", data={"domain": "work", "paused": "true"})
        assert "paused" in owner.get("/owner/stats").text
        owner.post("/owner/settings", data=form | {"switches": ["paused"]})
        assert owner.get("/rate/next").json()["state"] == "paused"
    assert store.read(task_queue.propose_groups, 100)


def test_gold_from_the_owners_judgements(team, store):
    with signed_in(team, "olga") as owner:
        seat = owner.get("/rate/next").json()
        owner.post("/rate/judge", json=verdict_body(seat, "key-one-1"))
        match = re.search(
            r'name="comparison" value="(k\d)"><input type="hidden" name="choice" value="(\w+)"',
            owner.get("/owner/gold").text,
        )
        assert (match[1], match[2]) == (seat["comparison"], store.judgements()[0].choice)
        owner.post("/owner/gold", data={"comparison": match[1], "choice": match[2]})
        assert (
            owner.get("/owner").text.count("21 to 100 % of 1<") + owner.get("/owner").text.count("0 to 79 % of 1<") == 2
        )
        owner.post("/owner/gold/drop", data={"comparison": match[1]})
        assert (
            owner.get("/owner").text.count("21 to 100 % of 1<") + owner.get("/owner").text.count("0 to 79 % of 1<") == 1
        )


def test_export_is_json_lines(team, store):
    with signed_in(team, "olga") as owner:
        for i in range(3):
            owner.post(
                "/rate/judge", json=verdict_body(owner.get("/rate/next").json(), f"key-one-{i}", milliseconds=None)
            )
        rows = [json.loads(line) for line in owner.get("/owner/export.jsonl").text.splitlines()]
    assert [row["key"] for row in rows] == ["key-one-0", "key-one-1", "key-one-2"]
    assert {"prompt", "a", "b", "choice", "rater", "source_a", "shown", "guideline"} <= set(rows[0])


def test_gold_accuracy_is_shown_if_the_owner_allows(team, store):
    store.set_gold([Gold("k0", "a")])
    store.submit_write(rating_settings.save, RatingSettings(gold_share=1.0, show_gold=True, hours=3.0)).result()
    with signed_in(team, "ann") as ann:
        seat = ann.get("/rate/next").json()
        ann.post("/rate/judge", json=verdict_body(seat, "key-one-1", "tie"))
        own = ann.get("/rate/next").json()["own"]
    assert seat["comparison"] == "k0"
    assert "gold <b>0</b> of <b>1</b>" in own
    assert "<b>3.0 h</b> left" in own
    assert "<b>1</b> rated" in own


def test_large_requests_are_refused(team):
    with signed_in(team, "ann") as ann:
        assert (
            ann.post("/rate/write", content=b"x" * 1_000_001, headers={"content-type": "application/json"}).status_code
            == 413
        )
        assert (
            ann.post("/rate/write", content=iter([b"{}"]), headers={"content-type": "application/json"}).status_code
            == 411
        )


@pytest.mark.parametrize(
    ("host", "alone", "together"),
    [("127.0.0.1", True, True), ("::1", True, True), ("0.0.0.0", False, False), ("10.0.0.1", False, False)],
)
def test_remote_access_requires_tls(host, alone, together, tmp_path):
    sealed = server.NetworkOptions(("rate.example",), tmp_path / "cert.pem", tmp_path / "key.pem")
    for team, allowed in ((False, alone), (True, together)):
        if allowed:
            server.require_private(host, team, server.NetworkOptions())
        else:
            with pytest.raises(ResourceError, match=host):
                server.require_private(host, team, server.NetworkOptions())
    server.require_private(host, True, sealed)


def test_team_without_owner_gets_an_invitation(tmp_path):
    with Store.open(tmp_path / "towpath.db") as store, running(store, team=True) as (url, auth), client(url) as first:
        link = re.search(r"http\S+/join/\S+", server.startup_message(store, auth, url))[0]
        assert first.post(link, data={"name": "olga", "password": PASSWORD}).status_code == 303
        assert first.get("/").headers["location"] == "/owner"
        assert "sign in" in server.startup_message(store, auth, url)
        assert first.get("/rate/next").json()["state"] == "empty"


def test_used_port_is_reported():
    with server.open_socket("127.0.0.1", 0) as listener, pytest.raises(ResourceError, match="--port"):
        server.open_socket("127.0.0.1", listener.getsockname()[1])


def test_sessions_end_when_an_account_changes(team, store):
    with signed_in(team, "ann") as ann:
        assert ann.get("/rate/next").status_code == 200
        store.submit_write(people.change_account, "ann", "rater", True, "another hash").result()
        end = time() + 10
        while ann.get("/rate/next").status_code == 200 and time() < end:
            pass
        assert ann.get("/rate/next").status_code == 401


def test_markdown_is_rendered_safely():
    html = safe_html.markdown(
        "## Hi\n\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n`<b>` <iframe "
        "src=x></iframe>\n\n[x](https://a.b 'c')"
    )
    assert "<h5>Hi</h5>" in html
    assert "<td>1</td>" in html
    assert "<code>&lt;b&gt;</code>" in html
    assert "<iframe" not in html
    assert 'rel="noopener noreferrer nofollow"' in html
    assert safe_html.markdown("x" * (safe_html.MAX_MARKDOWN + 1)).startswith("<pre>")


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("the cat sat", "the dog sat", ("the <mark>cat</mark> sat", "the <mark>dog</mark> sat")),
        ("same here", "same here", ("same here", "same here")),
        ("", "new words", ("", "<mark>new words</mark>")),
        ("a <b> c", "a c", ("a <mark>&lt;b&gt;</mark> c", "a c")),
    ],
)
def test_text_diff_by_word(left, right, expected):
    assert safe_html.text_diff(left, right) == expected
