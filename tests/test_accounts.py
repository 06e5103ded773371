"""Accounts: sessions, passwords, throttling, names, and the audit log."""

import asyncio
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic, sleep, time

import httpx
import pytest
from conftest import running
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from test_rating import upgrade
from typer.testing import CliRunner

from towpath.cli.app import app
from towpath.errors import DataError, ResourceError
from towpath.store import account_names, audit, ledger, people, rating_settings, schema, sessions
from towpath.store.publish import lock_folder
from towpath.store.rating_settings import RatingSettings
from towpath.store.store import Store
from towpath.web import passwords, server, throttle
from towpath.web.passwords import Hasher, TooManyAttempts
from towpath.web.proxies import ForwardedHeaders
from towpath.web.throttle import AttemptCounters, FixedWindow, Limit, Throttle

PASSWORD = "correct horse battery"
OTHER = "kitten lamp river"
FREE = throttle.BY_ACCOUNT_AND_NETWORK.free
HASHED = Hasher().hash(PASSWORD)


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "towpath.db") as opened:
        yield opened


def fill(store):
    for name, role in (("olga", "owner"), ("ann", "rater"), ("bob", "rater"), ("vic", "viewer")):
        store.submit_write(people.add_account, name, role, HASHED).result()


@pytest.fixture
def served(store):
    fill(store)
    with running(store, team=True) as (url, auth):
        yield url, auth


def client(url, **headers):
    return httpx.Client(base_url=url, headers={"origin": url, "accept": "application/json", **headers})


def enter(visitor, name, password=PASSWORD, **headers):
    return visitor.post("/sign-in", data={"name": name, "password": password}, headers=headers)


@contextmanager
def signed_in(url, name, **headers):
    with client(url, **headers) as visitor:
        assert enter(visitor, name).status_code == 303
        yield visitor


def cookies_of(visitor):
    return "; ".join(f"{name}={value}" for name, value in visitor.cookies.items())


def actions(store, account=""):
    return [row.action for row in reversed(store.read(audit.list_entries, account))]


# ---- files


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_ledger_is_private_with_any_umask(tmp_path):
    before = os.umask(0)
    try:
        with Store.open(tmp_path / "towpath.db") as store:
            fill(store)
            made = {path.name: mode(path) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert made == dict.fromkeys(("towpath.db", "towpath.db-wal", "towpath.db-shm"), 0o600)


def test_readable_ledger_is_made_private(tmp_path):
    path = tmp_path / "towpath.db"
    with Store.open(path) as store:
        fill(store)
        for file in tmp_path.iterdir():
            file.chmod(0o644)
        with Store.open(path) as again:
            assert again.read(people.get_account, "ann")
            assert {mode(file) for file in tmp_path.iterdir()} == {0o600}


def test_run_lock_is_private(tmp_path):
    (tmp_path / ".lock").write_text("")
    (tmp_path / ".lock").chmod(0o644)
    with lock_folder(tmp_path):
        assert mode(tmp_path / ".lock") == 0o600


def test_every_command_makes_the_ledger_private(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text('name = "x"\n')
    line = f"umask 000; exec {sys.executable} -m towpath people list {run}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, mode(run / "towpath.db")) == (0, 0o600), done.stderr
    assert "no accounts" in done.stdout


# ---- sessions


def test_ledger_stores_no_key_and_no_token(served, store, tmp_path):
    url, _ = served
    with signed_in(url, "ann") as ann:
        tokens = [value for _, value in ann.cookies.items()]
        assert len(tokens) == 2, "the session and the browser"
        bytes_ = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert sessions.token_digest(tokens[0]).encode() in bytes_
        assert not any(token.encode() in bytes_ for token in tokens)
    assert "secret" not in store.read(
        lambda connection: [name for name, _ in connection.execute(schema.settings.select())]
    )


def test_migration_keeps_accounts_and_drops_the_key(empty_location):
    engine = ledger.open_engine(empty_location)
    upgrade(engine, "0005")
    with ledger.transaction(engine) as connection:
        connection.execute(
            text(
                "INSERT INTO accounts VALUES ('ann', 'rater', 'hash', 3, 0, '2026-01-01'), ('olga', 'owner', "
                "'other', 1, 1, '')"
            )
        )
        connection.execute(text("INSERT INTO settings VALUES ('secret', '\"0123\"'), ('gold_share', '0.25')"))
    engine.dispose()
    with Store.open(empty_location) as store:
        assert [(one.name, one.role, one.password, one.active) for one in store.read(people.list_accounts)] == [
            ("ann", "rater", "hash", False),
            ("olga", "owner", "other", True),
        ]
        assert store.read(rating_settings.read).gold_share == 0.25
        assert [name for name, _ in store.read(lambda c: c.execute(schema.settings.select()).all())] == ["gold_share"]


def test_sign_out_ends_the_session_on_the_server(served, store):
    url, _ = served
    with signed_in(url, "ann") as ann, signed_in(url, "ann") as phone, client(url, cookie=cookies_of(ann)) as thief:
        assert thief.get("/rate/next").status_code == 200
        assert ann.post("/sign-out").headers["location"] == "/sign-in"
        assert [visitor.get("/rate/next").status_code for visitor in (thief, ann, phone)] == [401, 401, 200]
    assert actions(store, "ann") == ["sign in", "sign in", "sign out"]


@pytest.mark.parametrize(
    ("idle", "expires", "status"),
    [(0.0, 60.0, 200), (-sessions.IDLE_LIMIT + 60, 60.0, 200), (-sessions.IDLE_LIMIT - 1, 60.0, 401), (0.0, -1.0, 401)],
)
def test_session_idle_and_total_lifetime(served, store, idle, expires, status):
    url, _ = served
    token = store.submit_write(sessions.start, "ann", time()).result()
    store.submit_write(
        lambda c: c.execute(schema.sessions.update().values(seen=time() + idle, expires=time() + expires)).rowcount
    ).result()
    with client(url, cookie=f"towpath-{url.rpartition(':')[2]}={token}") as ann:
        assert ann.get("/rate/next").status_code == status
    store.submit_write(sessions.start, "bob", time()).result()
    left = store.read(lambda c: [row.account for row in c.execute(schema.sessions.select())])
    assert sorted(left) == (["ann", "bob"] if status == 200 else ["bob"]), "expired sessions are removed"


def test_session_use_extends_it(served, store):
    url, _ = served
    token = store.submit_write(sessions.start, "ann", time() - 6 * 86400).result()
    with client(url, cookie=f"towpath-{url.rpartition(':')[2]}={token}") as ann:
        assert ann.get("/rate/next").status_code == 200
    end = monotonic() + 5
    while store.read(sessions.get_session, sessions.token_digest(token)).last_used < time() - 60:
        assert monotonic() < end, "last_used is not updated"
        sleep(0.01)


def test_two_servers_on_one_machine_have_separate_sessions(served, store, tmp_path):
    url, _ = served
    with Store.open(tmp_path / "other.db") as second:
        fill(second)
        with running(second, team=True) as (other, _), client(url) as ann:
            assert enter(ann, "ann").status_code == 303
            assert (
                ann.post(
                    f"{other}/sign-in", data={"name": "ann", "password": PASSWORD}, headers={"origin": other}
                ).status_code
                == 303
            )
            assert [ann.get(f"{at}/rate/next", headers={"origin": at}).status_code for at in (url, other)] == [200, 200]
            ann.post(f"{other}/sign-out", headers={"origin": other})
            assert [ann.get(f"{at}/rate/next", headers={"origin": at}).status_code for at in (url, other)] == [200, 401]


def test_password_changed_during_sign_in_starts_no_session(store):
    fill(store)
    before = store.read(people.get_account, "ann")
    store.submit_write(people.set_password, "ann", "another hash", "olga").result()
    with pytest.raises(DataError, match="changed meanwhile"):
        store.submit_write(people.start_session, before, time()).result()


# ---- passwords


def test_password_change_needs_the_current_one_and_ends_other_sessions(served, store):
    url, _ = served
    with signed_in(url, "ann") as ann, signed_in(url, "ann") as phone:
        assert "1 other browser" in ann.get("/account").text
        old = cookies_of(ann)
        wrong = ann.post("/account/password", data={"present": "not it at all", "password": OTHER})
        assert (wrong.status_code, "current password is wrong" in wrong.text) == (409, True)
        assert ann.post("/account/password", data={"present": PASSWORD, "password": "password1234"}).status_code == 409
        assert (
            ann.post("/account/password", data={"present": PASSWORD, "password": OTHER}).headers["location"]
            == "/account?done=password"
        )
        assert [visitor.get("/account").status_code for visitor in (ann, phone)] == [200, 401]
        assert httpx.get(f"{url}/account", headers={"cookie": old}).status_code == 303
        assert [enter(phone, "ann", word).status_code for word in (PASSWORD, OTHER)] == [401, 303]


def test_guessing_the_current_password_is_throttled(served):
    url, _ = served
    with signed_in(url, "ann") as ann:
        statuses = [
            ann.post("/account/password", data={"present": f"wrong {i} words", "password": OTHER}).status_code
            for i in range(FREE + 1)
        ]
    assert statuses == [409] * FREE + [429]


def test_sign_out_of_all_other_sessions(served):
    url, _ = served
    with signed_in(url, "ann") as ann, signed_in(url, "ann") as phone:
        ann.post("/account/sign-out")
        assert [visitor.get("/account").status_code for visitor in (ann, phone)] == [200, 401]


def test_password_reset_link_works_once(served, store):
    url, _ = served
    with signed_in(url, "olga") as olga, signed_in(url, "ann") as ann, client(url) as elsewhere:
        first, link = (
            re.search(r"http://\S+/reset/[\w-]+", olga.post("/owner/reset", data={"name": "ann"}).text)[0]
            for _ in range(2)
        )
        assert [elsewhere.get(at).status_code for at in (first, link)] == [410, 200], (
            "a later link replaces an earlier one"
        )
        assert ann.get("/account").status_code == 200, "nothing changes before the link is used"
        assert elsewhere.post(link, data={"password": "short"}).status_code == 409
        assert elsewhere.post(link, data={"password": OTHER}).status_code == 303
        assert [visitor.get("/account").status_code for visitor in (ann, elsewhere)] == [401, 200]
        assert elsewhere.post(link, data={"password": OTHER + " 2"}).status_code == 410
        assert [enter(elsewhere, "ann", word).status_code for word in (PASSWORD, OTHER)] == [401, 303]
    assert "reset password" in actions(store, "ann")
    assert store.submit_write(people.create_reset, "ann", "olga", time() - people.RESET_LIFETIME - 1).result()
    assert store.read(lambda c: c.execute(schema.resets.select()).all())[0].until < time()


def test_owner_ends_sessions_and_closes_accounts(served):
    url, _ = served
    with signed_in(url, "olga") as olga, signed_in(url, "ann") as ann, signed_in(url, "bob") as bob:
        olga.post("/owner/sign-out", data={"name": "ann"})
        assert [visitor.get("/rate/next").status_code for visitor in (ann, bob)] == [401, 200]
        olga.post("/owner/account", data={"name": "bob", "role": "rater"})
        assert bob.get("/rate/next").status_code == 401
        assert enter(bob, "bob").status_code == 401
        assert olga.post("/owner/reset", data={"name": "bob"}).status_code == 409
        olga.post("/owner/account", data={"name": "bob", "role": "rater", "active": "true"})
        assert bob.get("/rate/next").status_code == 401, "earlier sessions stay ended"
        assert enter(bob, "bob").status_code == 303


@pytest.mark.parametrize(
    ("password", "rule"),
    [
        ("eleven char", "12 to 1000"),
        ("x" * 1001, "12 to 1000"),
        ("password1234", "common password"),
        ("Passw0rd1234!", "common password"),
        ("aaaaaaaaaaaaaaa", "common password"),
        ("ыыыыыыыыыыыыы", "common password"),
        ("abcabcabcabcabc", "common password"),
        ("abcdefghijklm", "common password"),
        ("123456789012", "common password"),
        ("qwertyuiopqwertyuiop", "common password"),
        ("Summer2026!!", "common password"),
        ("iloveyou2026", "common password"),
        ("correcthorsebatterystaple", "common password"),
        ("marianne2026", "product's name"),
        ("towpath 2026", "product's name"),
        ("towpathmarianne", "product's name"),
    ],
)
def test_weak_passwords_are_refused(password, rule):
    with pytest.raises(DataError, match=rule):
        passwords.validate(password, "Marianne")


@pytest.mark.parametrize(
    "password",
    [
        "kitten lamp river",
        "корабль плывёт тихо",
        "修行の道は長く続くものです",
        "j8#kQz!p02mR",
        "marianne rows a boat home",
    ],
)
def test_strong_passwords_are_accepted(password):
    passwords.validate(password, "marianne")


# ---- throttling


def test_concurrent_sign_ins_are_throttled_before_hashing(served, store):
    url, _ = served

    def attempt(number):
        with client(url) as visitor:
            answer = enter(visitor, "ann", f"wrong password {number}")
            return answer.status_code, answer.headers.get("retry-after", "")

    with ThreadPoolExecutor(100) as pool:
        statuses = list(pool.map(attempt, range(100)))
    checked = [row for row in store.read(audit.list_entries) if row.action == "sign in failed"]
    assert 1 <= len(checked) <= FREE
    assert sorted({status for status, _ in statuses}) == [401, 429]
    assert all(after.isdecimal() and int(after) >= 1 for status, after in statuses if status == 429)


def test_known_browser_is_not_locked_out_by_attackers(served):
    url, _ = served
    with signed_in(url, "ann") as ann, client(url) as attacker:
        ann.post("/sign-out")
        statuses = [enter(attacker, "ann", f"wrong password {i}").status_code for i in range(FREE + 3)]
        assert statuses == [401] * FREE + [429] * 3
        assert enter(attacker, "ann").status_code == 429, "even the correct password is throttled for this network"
        assert enter(ann, "ann").status_code == 303
        ann.post("/sign-out")
        assert [enter(ann, "ann", f"wrong {i}").status_code for i in range(FREE + 1)] == [401] * FREE + [429], (
            "a known browser has its own limit"
        )
        assert enter(ann, "bob").status_code == 303, "accounts that do not know the browser are not throttled"


def test_backoff_grows_and_refused_attempts_do_not_extend_it():
    clock = [0.0]
    waits = []
    limits = Throttle(lambda: clock[0])
    for _ in range(FREE):
        limits.count_attempt("ann", "10.0.0.1")
    for _ in range(8):
        for _ in range(3):
            with pytest.raises(TooManyAttempts) as refused:
                limits.count_attempt("ann", "10.0.0.1")
        waits.append(refused.value.seconds)
        clock[0] += refused.value.seconds
        limits.count_attempt("ann", "10.0.0.1")
    assert waits == [30, 60, 120, 240, 480, 900, 900, 900]


def test_attempts_at_one_account_from_many_networks_are_throttled():
    clock = [0.0]
    limits = Throttle(lambda: clock[0])

    def tried(seconds):
        done = 0
        for number in range(seconds * 10):
            clock[0] += 0.1
            try:
                limits.count_attempt("ann", f"10.{number // 250 % 250}.{number % 250}.1")
                done += 1
            except TooManyAttempts:
                pass
        return done

    assert tried(60) <= throttle.BY_ACCOUNT.free + 5
    assert tried(3600) <= 62
    limits.count_attempt("ann", "10.250.0.1", "a browser of ann")
    limits.count_attempt("bob", "10.250.0.1")


def test_successful_sign_ins_are_not_counted():
    limits = Throttle(lambda: 0.0)
    for number in range(200):
        name = f"rater {number % 40}"
        limits.count_attempt(name, "10.0.0.1")
        limits.record_success(name, "10.0.0.1")


def test_own_sign_in_does_not_reset_attempts_at_other_accounts():
    limits = Throttle(lambda: 0.0)
    guesses = 0
    with pytest.raises(TooManyAttempts):
        for number in range(1000):
            limits.count_attempt("eve", "10.0.0.1")
            limits.record_success("eve", "10.0.0.1")
            limits.count_attempt(f"rater {number}", "10.0.0.1")
            guesses += 1
    assert guesses <= throttle.BY_NETWORK.free


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("", "nonsense", True),
    ],
)
def test_attempts_count_by_network(one, other, same):
    assert (throttle.client_network(one) == throttle.client_network(other)) is same


def test_attempt_counters_are_bounded_and_expire():
    counters = AttemptCounters(Limit(1, 10.0, 10.0))
    for number in range(throttle.MAX_COUNTERS + 5000):
        counters.count(number, 0.0)
    assert len(counters.tries) == throttle.MAX_COUNTERS
    assert (
        counters.seconds_left(throttle.MAX_COUNTERS, 1.0),
        counters.seconds_left(throttle.MAX_COUNTERS, throttle.RESET_SECONDS),
    ) == (9.0, 0.0)


def test_one_hash_slot_for_unknown_and_one_for_known_browsers(served):
    url, auth = served
    busy = Event()
    release = Event()

    def attempt(number):
        with client(url) as visitor:
            return enter(visitor, "ann" if number % 2 else f"x{number}")

    def hold():
        with auth.hasher._lane(False):
            busy.set()
            release.wait(60)

    holder = Thread(target=hold)
    holder.start()
    busy.wait(5)
    try:
        with ThreadPoolExecutor(30) as pool:
            answers = list(pool.map(attempt, range(20)))
            assert {answer.status_code for answer in answers} == {429}
            assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
            assert holder.is_alive(), "requests are refused while the slot is taken, not queued until it is free"
        assert auth.hasher.verify(HASHED, PASSWORD, known=True)
    finally:
        release.set()
        holder.join()
    with client(url) as ann:
        assert enter(ann, "ann").status_code == 303, "refused requests do not count as attempts"


def test_invitation_is_checked_before_hashing(served, store):
    url, auth = served
    token = store.submit_write(people.create_invitation, "rater", "olga", time()).result()
    with client(url) as new, auth.hasher._lane(True), auth.hasher._lane(False):
        data = {"name": "dan", "password": OTHER}
        assert new.post("/join/nonsense", data=data).status_code == 410
        assert new.post("/reset/nonsense", data=data).status_code == 410
        for name in ("ann", "Аnn", "owner", "judge:x"):
            assert new.post(f"/join/{token}", data=data | {"name": name}).status_code == 409
        assert new.post(f"/join/{token}", data=data | {"password": "short"}).status_code == 409
        # only a request that passed all these checks waits for a hash slot, and none is free
        late = new.post(f"/join/{token}", data=data)
        assert (late.status_code, "retry-after" in late.headers) == (429, True)
    with client(url) as new:
        assert new.post(f"/join/{token}", data=data).status_code == 303


def test_forwarded_address_is_used_from_trusted_proxies_only(served, store):
    url, _ = served
    with client(url) as attacker:
        statuses = [
            enter(attacker, "ann", "wrong", **{"x-forwarded-for": f"10.0.0.{i}"}).status_code for i in range(FREE + 1)
        ]
        assert statuses == [401] * FREE + [429]
        sign_in = enter(attacker, "bob", **{"x-forwarded-proto": "https"})
        assert "secure" not in sign_in.headers["set-cookie"].lower()
        assert "strict-transport-security" not in sign_in.headers
    with (
        running(store, team=True, network=server.NetworkOptions(proxies=("127.0.0.1",))) as (behind, _),
        client(behind) as proxy,
    ):
        for i in range(2):  # addresses claimed by the client are to the left of the one that the proxy adds
            statuses = [
                enter(proxy, "ann", "wrong", **{"x-forwarded-for": f"1.1.1.{j}, 10.0.0.{i}"}).status_code
                for j in range(FREE + 1)
            ]
            assert statuses == [401] * FREE + [429]
        assert store.read(audit.list_entries)[0].after == {"from": "10.0.0.1"}
        statuses = [
            enter(proxy, "ann", "wrong", **{"x-forwarded-for": f"10.9.9.{i}, 127.0.0.1"}).status_code
            for i in range(FREE + 1)
        ]
        assert statuses == [401] * FREE + [429], "a client on the proxy's address cannot claim another one"


def test_host_cookies_behind_a_trusted_tls_proxy(store):
    fill(store)
    outside = server.NetworkOptions(names=("rate.example",), proxies=("127.0.0.1",))
    with running(store, team=True, network=outside) as (url, _), httpx.Client(base_url=url) as proxy:
        headers = {
            "host": "rate.example",
            "origin": "https://rate.example",
            "x-forwarded-proto": "https",
            "x-forwarded-for": "10.0.0.9",
        }
        answer = proxy.post("/sign-in", data={"name": "ann", "password": PASSWORD}, headers=headers)
        cookies = answer.headers.get_list("set-cookie")
        port = url.rpartition(":")[2]
        assert [cookie.partition("=")[0] for cookie in cookies] == [
            f"__Host-towpath-{port}",
            f"__Host-towpath-device-{port}",
        ]
        assert all(
            {"secure", "httponly", "path=/", "samesite=lax"} <= set(cookie.lower().split("; ")) for cookie in cookies
        )
        assert not any("domain" in cookie.lower() for cookie in cookies)
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        cookie_header = "; ".join(cookie.partition(";")[0] for cookie in cookies)
        assert proxy.get("/rate/next", headers=headers | {"cookie": cookie_header}).status_code == 200
        plain = cookie_header.replace("__Host-", "")
        assert (
            proxy.get("/rate/next", headers=headers | {"cookie": plain, "accept": "application/json"}).status_code
            == 401
        )


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes a certificate, is not installed")
    folder = tmp_path_factory.mktemp("tls")
    words = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=rate.example -addext "
        "subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(
        ["openssl", *words.split(), "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True,
        capture_output=True,
    )
    return folder / "cert.pem", folder / "key.pem"


def test_host_cookies_with_own_certificate(store, certificate):
    fill(store)
    outside = server.NetworkOptions((), *certificate)
    with (
        running(store, team=True, network=outside) as (url, _),
        httpx.Client(base_url=url, verify=False, headers={"origin": url}) as ann,
    ):
        answer = enter(ann, "ann")
        assert answer.headers["set-cookie"].startswith("__Host-towpath-")
        assert "strict-transport-security" in answer.headers
        assert ann.get("/rate/next").status_code == 200
        local = ann.get("/sign-in", headers={"host": f"localhost:{url.rpartition(':')[2]}"})
        assert "strict-transport-security" not in local.headers, "HSTS on localhost would apply to every local server"


@pytest.mark.parametrize(
    ("peer", "header", "client"),
    [
        ("10.0.0.1", ["1.1.1.1"], "1.1.1.1"),
        ("10.0.0.1", ["9.9.9.9, 1.1.1.1"], "1.1.1.1"),
        ("10.0.0.1", ["9.9.9.9", "1.1.1.1"], "1.1.1.1"),
        ("10.0.0.1", ["9.9.9.9, 10.0.0.7"], "10.0.0.7"),
        ("10.0.0.1", ["[2001:db8::1]:443"], "2001:db8::1"),
        ("10.0.0.1", ["1.1.1.1:80"], "1.1.1.1"),
        ("10.0.0.1", ["nonsense"], "unknown"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("::ffff:10.0.0.1", ["1.1.1.1"], "1.1.1.1"),
        ("10.0.1.1", ["1.1.1.1"], "10.0.1.1"),
    ],
)
def test_last_forwarded_address_is_used(peer, header, client):
    forwarded = {}

    async def application(scope, _receive, _send):
        forwarded.update(scope)

    scope = {
        "type": "http",
        "client": (peer, 1),
        "scheme": "http",
        "headers": [(b"x-forwarded-for", value.encode()) for value in header],
    }
    asyncio.run(ForwardedHeaders(application, ["10.0.0.0/24"])(scope, None, None))
    assert forwarded["client"][0] == client


def test_proxy_option_is_validated():
    server.require_proxies(("127.0.0.1", "10.0.0.0/24", "::1"), True)
    with pytest.raises(ResourceError, match=r"rate\.example"):
        server.require_proxies(("rate.example",), True)
    with pytest.raises(ResourceError, match="--team"):
        server.require_proxies(("127.0.0.1",), False)


def test_server_without_accounts_has_no_password_sign_in(store):
    token = store.submit_write(people.create_invitation, "owner", "olga", time()).result()
    with (
        running(store, team=False) as (url, auth),
        client(url) as owner,
        auth.hasher._lane(True),
        auth.hasher._lane(False),
    ):
        assert enter(owner, "owner", "x" * 20).status_code == 401
        owner.get(f"/enter?token={auth.link_token()}")
        assert [owner.get(path).status_code for path in ("/owner", "/account", "/owner/people", f"/join/{token}")] == [
            200,
            403,
            403,
            403,
        ]


# ---- names


@pytest.mark.parametrize(
    "name",
    [
        "Ann",
        "José García",
        "Łukasz",
        "Иван Петров",
        "李小龍",
        "田中さくら",
        "김철수",
        "रवि कुमार",
        "محمد علي",
        "דוד לוי",
        "Νίκος",
        "Nguyễn Văn A",
        "สมชาย",
        "O'Brien",
        "anne-marie",
        "ann_2",
        "ann.lee",
    ],
)
def test_names_in_many_languages_are_accepted(name):
    assert account_names.validate(name, ["Bob", "Zoë"]) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "   ",
        "--",
        "x" * 41,
        "a\x00b",
        "an\u202en",
        "owner",
        "OWNER",
        "Owner ",
        "0wner",
        "judge:gpt",
        "Rule: length",
        "simulated-1",
        "recorded",
        "towpath people",
    ],
)
def test_reserved_and_unprintable_names_are_refused(name):
    with pytest.raises(DataError):
        account_names.validate(name)


@pytest.mark.parametrize(
    ("known", "name"),
    [
        ("ann", "Ann"),
        ("ann", "аnn"),
        ("José", "jose"),
        ("ann", "an\u200dn"),
        ("ann", "a\u200bnn"),
        ("Ian", "lan"),
        ("bob", "b0b"),
        ("paya", "рауа"),
        ("Σοφία", "ΣΟΦΊΑ"),
        ("zoë", "zoe\u0308"),
        ("Ann Lee", "ann_lee"),
        ("Łukasz", "Lukasz"),
        ("modern", "modem"),
        ("ann", "ａｎｎ"),
    ],
)
def test_confusable_names_are_refused(known, name):
    with pytest.raises(DataError):
        account_names.validate(name, [known])


@pytest.mark.parametrize(
    ("known", "name"), [("かき", "かぎ"), ("रवि", "रवी"), ("Neil", "Nell"), ("ann", "anna"), ("Иван", "Ирина")]
)
def test_similar_but_distinguishable_names_are_accepted(known, name):
    account_names.validate(name, [known])


def test_sign_in_normalizes_the_name(served, store):
    url, _ = served
    token = store.submit_write(people.create_invitation, "rater", "olga", time()).result()
    with client(url) as zoe:
        assert zoe.post(f"/join/{token}", data={"name": " zoe\u0308  lee ", "password": OTHER}).status_code == 303
        assert store.read(people.get_account, "zoë lee")
        zoe.post("/sign-out")
        assert [enter(zoe, name, OTHER).status_code for name in ("zoë lee", "zoe\u0308 lee")] == [303, 303]


# ---- the audit log


def test_audit_log_records_actor_and_change(served, store):
    url, _ = served
    with signed_in(url, "olga") as olga, client(url) as stranger:
        assert enter(stranger, "ann", "wrong").status_code == 401
        assert enter(stranger, "my secret password", "x").status_code == 401
        form = {"gold_share": "25", "lease_minutes": "30", "switches": ["safety"]}
        olga.post("/owner/settings", data=form)
        olga.post("/owner/guidelines", data={"guidelines": "Be kind."})
        olga.post("/owner/account", data={"name": "bob", "role": "viewer", "active": "true"})
        olga.post("/owner/account", data={"name": "vic", "role": "viewer"})
        link = re.search(r"/join/[\w-]+", olga.post("/owner/invite", data={"role": "rater"}).text)[0]
        stranger.post(link, data={"name": "dan", "password": OTHER})
        olga.post("/owner/invite", data={"role": "owner"})
        olga.post("/owner/withdraw", data={"digest": store.read(people.list_invitations, time())[0].digest})
        olga.get("/owner/export.jsonl").read()
        page = olga.get("/owner/audit").text
        only = olga.get("/owner/audit", params={"who": "olga", "action": "settings"}).text
    rows = {row.action: row for row in reversed(store.read(audit.list_entries))}
    assert set(rows) == {
        "sign in",
        "sign in failed",
        "settings",
        "guidelines",
        "change account",
        "invite",
        "join",
        "withdraw invitation",
        "export",
    }
    assert rows["settings"].before == {"gold_share": 0.1, "safety": False}
    assert rows["settings"].after == {"gold_share": 0.25, "safety": True}
    assert (rows["change account"].object, rows["change account"].after) == ("vic", {"may sign in": False})
    assert "gold_share" in only
    assert "withdraw invitation</td>" in page
    assert "withdraw invitation</td>" not in only
    assert "my secret password" not in page, "a password may have been typed as a name"
    assert not any(
        PASSWORD in json.dumps([row.before, row.after, row.object]) for row in store.read(audit.list_entries)
    )


def test_audit_log_is_append_only(location):
    with Store.open(location) as store:
        store.submit_write(audit.record, "olga", "settings", after={"paused": True}).result()
        wrong = ["UPDATE audit SET account = 'ann'", "DELETE FROM audit"]
        if isinstance(location, str):
            wrong.append("TRUNCATE audit")
        else:
            wrong.append(
                'INSERT OR REPLACE INTO audit SELECT number, at, \'ann\', action, object, "before", "after" FROM audit'
            )
        for statement in wrong:
            with pytest.raises(DBAPIError, match="append-only"), ledger.transaction(store._engine) as connection:
                connection.execute(text(statement))
        store.submit_write(rating_settings.save, RatingSettings(paused=True), "olga").result()
        assert [row.account for row in store.read(audit.list_entries)] == ["olga", "olga"]


def test_audit_page_is_paginated(served, store):
    url, _ = served
    for number in range(audit.PAGE_SIZE + 20):
        store.submit_write(audit.record, "ann", "export", f"file {number}").result()
    with signed_in(url, "olga") as olga:
        first = olga.get("/owner/audit", params={"who": "ann"}).text
        older = re.search(r'href="(/owner/audit\?[^"]+)">Older', first)[1].replace("&amp;", "&")
        second = olga.get(older).text
    assert ("file 119" in first, "file 19<" in first, "file 19<" in second, "Older" in second) == (
        True,
        False,
        True,
        False,
    )


def test_failed_sign_ins_in_the_audit_log_are_limited():
    ration = FixedWindow(3, 60.0)
    assert [ration.take(0.0) for _ in range(5)] == [0, 0, 0, None, None]
    assert (ration.take(61.0), ration.take(62.0)) == (2, 0)


# ---- the command


def towpath(*words, **options):
    return CliRunner().invoke(app, list(map(str, words)), **options)


def test_people_commands(served, store, tmp_path):
    url, _ = served
    (tmp_path / "recipe.toml").write_text('name = "x"\n')
    with signed_in(url, "ann") as ann:
        listed = json.loads(towpath("people", "list", tmp_path, "--json").stdout)
        assert [(row["name"], row["role"], row["sessions"]) for row in listed] == [
            ("ann", "rater", 1),
            ("bob", "rater", 0),
            ("olga", "owner", 0),
            ("vic", "viewer", 0),
        ]
        link = towpath("people", "reset", tmp_path, "ann", "--url", url).stdout.strip()
        assert link.startswith(f"{url}/reset/")
        assert ann.get(link).status_code == 200
        assert "common password" in str(
            towpath("people", "reset", tmp_path, "ann", "--ask", input="password1234\n").exception
        )
        assert towpath("people", "reset", tmp_path, "ann", "--ask", input=f"{OTHER}\n").exit_code == 0
        end = monotonic() + 8
        while ann.get("/rate/next").status_code == 200:
            assert monotonic() < end, "the session was ended by another process and is still valid"
            sleep(0.1)
        assert enter(ann, "ann", OTHER).status_code == 303
        assert ann.get(link).status_code == 410
    assert "no such account" in str(towpath("people", "reset", tmp_path, "nemo").exception)
    listed = towpath("people", "audit", tmp_path, "--action", "reset password").stdout
    assert re.fullmatch(r"\S+  towpath people  reset password ann  \(sessions ended 1\)\n", listed)
