"""Fuzzing with requests from the application's own schema: none causes a server error."""

import os
import warnings
from collections import Counter

import pytest
from conftest import new_database
from test_web import PASSWORD, fill
from watched_run import serving_run, short_run

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

import requests  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis.errors import Unsatisfiable  # noqa: E402
from schemathesis.generation import GenerationMode  # noqa: E402

from towpath.store import people  # noqa: E402
from towpath.store.store import Store  # noqa: E402
from towpath.web import limits  # noqa: E402
from towpath.web.application import application  # noqa: E402

CASES = int(os.environ.get("TOWPATH_FUZZ_CASES", "500"))
"""Per database."""
ENDS_SESSIONS = ("/sign-out", "/owner/account", "/account", "/owner/people")
NEVER_ENDS = ("/monitor/events",)
SLOW = ("/sign-in", "/join/{token}", "/reset/{token}")
"""Routes that verify a password each time."""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_no_fuzzed_request_causes_a_server_error(kind, tmp_path, request, monkeypatch):
    monkeypatch.setattr(limits, "BURST", 10 * CASES)
    location = tmp_path / "towpath.db" if kind == "sqlite" else new_database(request.getfixturevalue("postgres_server"))
    with Store.open(location) as store:
        fill(store)
        with serving_run(short_run(tmp_path / "run"), store, team=True) as (url, auth), requests.Session() as session:
            store.submit_write(people.add_account, "olga", "owner", auth.hash_password(PASSWORD)).result()
            session.headers["origin"] = url
            assert (
                session.post(
                    f"{url}/sign-in", data={"name": "olga", "password": PASSWORD}, allow_redirects=False
                ).status_code
                == 303
            )
            schema = schemathesis.openapi.from_dict(application(store, auth, ["x"]).openapi())
            operations = [item.ok() for item in schema.get_all_operations()]
            operations = [one for one in operations if not one.path.startswith(ENDS_SESSIONS + NEVER_ENDS)]
            statuses: Counter[int] = Counter()
            failures: list[str] = []
            for turn in range(20):  # operations with few kinds of input take fewer cases; others take more
                for number, operation in enumerate(operations):
                    if statuses.total() < CASES and (turn == 0 or operation.path not in SLOW):
                        _try(
                            operation,
                            url,
                            session,
                            statuses,
                            failures,
                            2 * CASES // len(operations) // (1 + turn),
                            1000 * turn + number,
                        )
            assert statuses.total() >= CASES
            assert failures == []
            assert session.get(f"{url}/owner/settings", allow_redirects=False).status_code == 200, (
                "the session is still valid after the test"
            )
            assert statuses[200] > CASES / 20, statuses
            assert statuses[422] > CASES / 20, statuses


def _try(operation, url, session, statuses, failures, most, start):
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

        @seed(start)
        @settings(
            max_examples=10 if operation.path in SLOW else max(1, most // 2),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode))
        def send(case):
            answer = case.call(
                base_url=url,
                session=session,
                headers={"origin": url, "accept": "application/json"},
                allow_redirects=False,
            )
            statuses[answer.status_code] += 1
            if answer.status_code >= 500:
                failures.append(f"{answer.status_code} {case.as_curl_command()[:500]}")

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                send()
            except Unsatisfiable:  # this operation has no invalid input
                continue
