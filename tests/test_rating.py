"""The task queue and raters' actions on SQLite and PostgreSQL."""

import os
import random
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from time import time

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import event, select, text
from sqlalchemy.exc import DBAPIError

import towpath
from towpath.errors import DataError, ResourceError
from towpath.hashing import hash_uniform
from towpath.records import Comparison, Completion, Judgement, Prompt
from towpath.store import ledger, people, rater_stats, rating_settings, schema, sides, task_queue, verdicts
from towpath.store.rating_settings import RatingSettings
from towpath.store.store import Store
from towpath.store.task_queue import Gold, Lease, RankingGroup, Task
from towpath.store.verdicts import RankingSubmission, StoredVerdict, Submission

PAIRS = 12
NOW = 1_800_000_000.0


def fill(store, pairs=PAIRS):
    store.add_prompts([Prompt(f"p{i}", f"Why {i}?", domain="home" if i % 2 else "work") for i in range(pairs)])
    store.add_completions(
        [
            Completion(f"s1.p{i}.{k}", f"p{i}", "sft", f"{i} {k}", (1,), (-0.1,), "stop")
            for i in range(pairs)
            for k in range(5)
        ]
    )
    store.add_comparisons([Comparison(f"k{i:02}", f"p{i}", f"s1.p{i}.0", f"s1.p{i}.1") for i in range(pairs)])


@pytest.fixture
def store(location):
    with Store.open(location) as opened:
        fill(opened)
        yield opened


def tasks(count=PAIRS, **more):
    return [Task(f"k{i:02}", "home" if i % 2 else "work", **more) for i in range(count)]


def take_lease(store, rater, at=NOW):
    return store.submit_write(task_queue.next_lease, rater, at).result()


def judge(store, lease, side="left", at=NOW, key="", **more):
    submission = Submission(
        key or f"key-{lease.comparison}-{lease.rater}-{at}", lease.comparison, lease.rater, StoredVerdict(side), **more
    )
    return store.submit_write(verdicts.judge, submission, at).result()


def undo(store, lease, at=NOW):
    return store.submit_write(verdicts.undo, lease.comparison, lease.rater, at).result()


def save_settings(store, **changed):
    store.submit_write(rating_settings.save, RatingSettings(**{"gold_share": 0.0} | changed)).result()


def rate_all(store, rater, at=NOW):
    """Judge all pairs that a rater is assigned, and return them."""
    names = []
    while isinstance(lease := take_lease(store, rater, at), Lease):
        names.append(lease.comparison)
        judge(store, lease, at=at)
    return names


def test_queue_order_by_priority_and_age(store):
    assert store.add_tasks([*tasks(4), Task("k07", "home", priority=5), Task("k06", "new", priority=9)]) == 6
    assert store.add_tasks(tasks(4)) == 0
    assert rate_all(store, "ann") == ["k06", "k07", "k00", "k01", "k02", "k03"]
    assert take_lease(store, "ann") == "empty"
    assert take_lease(store, "bob") == "empty"


def test_no_double_lease_without_overlap(store):
    store.add_tasks([*tasks(4), Task("k09", "home", seats=2)])
    ann = take_lease(store, "ann")
    bob = take_lease(store, "bob")
    assert ann.comparison != bob.comparison
    judge(store, ann)
    judge(store, bob)
    counts = Counter([ann.comparison, bob.comparison, *rate_all(store, "ann"), *rate_all(store, "bob")])
    assert counts == {"k00": 1, "k01": 1, "k02": 1, "k03": 1, "k09": 2}


def test_answer_order_per_rater_is_stable(store):
    store.add_tasks(tasks(1, seats=9))
    save_settings(store, lease=100.0)
    orders = {}
    for name in "abcdefgh":
        first = take_lease(store, name)
        assert take_lease(store, name) == first
        assert take_lease(store, name, NOW + 1000).order == first.order
        orders[name] = first.order
    assert set(orders.values()) == {"ab", "ba"}


@pytest.mark.parametrize(
    ("side", "order", "choice"),
    [("left", "ab", "a"), ("left", "ba", "b"), ("right", "ab", "b"), ("right", "ba", "a"), ("tie", "ba", "tie")],
)
def test_choice_of_side(side, order, choice):
    assert sides.choice_of(side, order) == choice


def test_stored_choice_matches_the_shown_side(store):
    store.add_tasks(tasks(6))
    for _ in range(6):
        lease = take_lease(store, "ann")
        left = store.read(task_queue.task_view, lease).answers[0]
        judge(
            store, lease, "left", NOW + 1, milliseconds=900, guideline="3", comment="so", safety=StoredVerdict("right")
        )
        judgement = store.judgements()[-1]
        comparison = next(c for c in store.comparisons() if c.id == lease.comparison)
        chosen, other = (comparison.a, comparison.b) if judgement.choice == "a" else (comparison.b, comparison.a)
        assert store.completions()[chosen].text == left
        assert judgement.details == {"safety": {"choice": "b" if judgement.choice == "a" else "a", "strength": 1}}
        assert (judgement.shown, judgement.kind, judgement.milliseconds, judgement.guideline, judgement.comment) == (
            lease.order,
            "person",
            900,
            "3",
            "so",
        )
        assert other != chosen
    assert {j.shown for j in store.judgements()} == {"ab", "ba"}


def test_expired_lease_is_reassigned_and_a_late_verdict_counts(store):
    store.add_tasks(tasks(1))
    late = take_lease(store, "ann")
    assert take_lease(store, "bob") == "empty"
    taken = take_lease(store, "bob", NOW + 3600)
    assert taken.comparison == late.comparison
    judge(store, late, "left", NOW + 3601)
    judge(store, taken, "right", NOW + 3602)
    assert [j.rater for j in store.judgements()] == ["ann", "bob"]
    assert store.read(rater_stats.rating_stats, NOW).queues[0].done == 1


def test_repeated_verdict_is_idempotent_and_a_conflict_is_refused(store):
    store.add_tasks(tasks(2))
    lease = take_lease(store, "ann")
    assert not judge(store, lease, "left", key="the-first-key").again
    assert judge(store, lease, "left", key="the-first-key").again
    assert judge(store, lease, "left", key="another-tab").again
    with pytest.raises(DataError, match="undo first"):
        judge(store, lease, "right", key="a-third-key")
    with pytest.raises(DataError, match="key of another"):
        judge(store, take_lease(store, "bob"), key="the-first-key")
    assert len(store.judgements()) == 1


def test_unassigned_pair_cannot_be_judged(store):
    store.add_tasks(tasks(1))
    with pytest.raises(DataError, match="not assigned to you"):
        judge(store, Lease("k00", "eve", "ab", 0.0))


def test_undo_retracts_and_starts_a_new_round(store):
    store.add_tasks(tasks(2))
    lease = take_lease(store, "ann")
    judge(store, lease, "left")
    other = take_lease(store, "ann", NOW + 1)
    assert store.read(verdicts.last_settled, "ann") == (lease.comparison, "judged")
    assert undo(store, lease, NOW + 2).judgements == 1
    assert undo(store, lease, NOW + 2).again
    assert store.judgements() == []
    assert take_lease(store, "ann", NOW + 3).comparison == lease.comparison
    judge(store, lease, "right", NOW + 4)
    assert take_lease(store, "ann", NOW + 5).comparison == other.comparison
    assert [(j.comparison, j.round) for j in store.judgements()] == [(lease.comparison, 2)]
    assert store.counts()["judgements"] == 2
    stats = store.read(rater_stats.rating_stats, NOW + 5).raters[0]
    assert (stats.judgements, stats.retracted) == (1, 1)


def test_skipped_pair_goes_to_others(store):
    store.add_tasks(tasks(1))
    lease = take_lease(store, "ann")
    store.submit_write(verdicts.skip, lease.comparison, "ann", NOW).result()
    assert store.submit_write(verdicts.skip, lease.comparison, "ann", NOW).result().again
    assert take_lease(store, "ann") == "empty"
    undo(store, lease)
    assert take_lease(store, "ann").comparison == lease.comparison
    store.submit_write(verdicts.skip, lease.comparison, "ann", NOW).result()
    assert take_lease(store, "bob").comparison == lease.comparison


@pytest.mark.parametrize("how", ["returned", "dropped", "rate"])
def test_flagged_pair_goes_to_the_owner(store, how):
    store.add_tasks(tasks(1))
    lease = take_lease(store, "ann")
    store.submit_write(verdicts.flag, lease.comparison, "ann", "no question", NOW).result()
    assert store.submit_write(verdicts.flag, lease.comparison, "ann", "no question", NOW).result().again
    assert [take_lease(store, name) for name in ("ann", "bob")] == ["empty", "empty"]
    with pytest.raises(DataError, match="have flagged"):
        judge(store, lease)
    assert [row["reason"] for row in store.read(rater_stats.flagged_pairs)] == ["no question"]
    if how == "rate":
        store.submit_write(verdicts.adjudicate, lease.comparison, "owner", NOW).result()
        judge(store, take_lease(store, "owner"))
    else:
        store.submit_write(verdicts.settle_flags, lease.comparison, how).result()
    assert store.read(rater_stats.flagged_pairs) == []
    assert take_lease(store, "ann") == "empty"
    queue = store.read(rater_stats.rating_stats, NOW).queues[0]
    assert (queue.waiting, queue.done) == {"returned": (1, 0), "dropped": (0, 1), "rate": (0, 1)}[how]
    assert isinstance(take_lease(store, "bob"), Lease) == (how == "returned")


def test_undo_of_a_flag(store):
    store.add_tasks(tasks(1))
    lease = take_lease(store, "ann")
    store.submit_write(verdicts.flag, lease.comparison, "ann", "by mistake", NOW).result()
    undo(store, lease)
    assert store.read(rater_stats.flagged_pairs) == []
    judge(store, take_lease(store, "ann"))
    assert len(store.judgements()) == 1


def submit_ranking(store, lease, places, key="rank-key"):
    return store.submit_write(
        verdicts.rank, RankingSubmission(key, lease.comparison, lease.rater, places, 60_000, "2", "well"), NOW + 60
    ).result()


def test_ranking_yields_judgements_of_all_pairs(store):
    members = tuple(f"s1.p0.{k}" for k in range(4))
    assert store.add_groups([RankingGroup("g1", "p0", members, "work")]) == 1
    assert store.add_groups([RankingGroup("g1", "p0", members, "work")]) == 0
    lease = take_lease(store, "ann")
    answers = store.read(task_queue.task_view, lease).answers
    assert sorted(answers) == ["0 0", "0 1", "0 2", "0 3"]
    wanted = {"0 3": 1, "0 1": 2, "0 0": 2, "0 2": 4}
    assert submit_ranking(store, lease, tuple(wanted[answer] for answer in answers)).judgements == 6
    assert submit_ranking(store, lease, tuple(wanted[answer] for answer in answers)).again
    by_pair = {j.comparison.rpartition(".")[2]: j for j in store.judgements()}
    assert {pair: j.choice for pair, j in by_pair.items()} == {
        "0-1": "tie",
        "0-2": "a",
        "0-3": "b",
        "1-2": "a",
        "1-3": "b",
        "2-3": "b",
    }
    assert all(j.details["group"] == "g1" and j.milliseconds == 10_000 for j in by_pair.values())
    assert by_pair["0-3"].shown == ("ab" if answers.index("0 0") < answers.index("0 3") else "ba")
    assert undo(store, lease).judgements == 6
    assert store.judgements() == []
    submit_ranking(store, take_lease(store, "ann"), (1, 2, 3, 4), "rank-again")
    assert {j.round for j in store.judgements()} == {2}


def test_invalid_ranking_is_refused(store):
    store.add_groups([RankingGroup("g1", "p0", tuple(f"s1.p0.{k}" for k in range(4)))])
    with pytest.raises(DataError, match="each answer of its group a rank"):
        submit_ranking(store, take_lease(store, "ann"), (1, 2, 3))
    with pytest.raises(DataError, match="four to nine"):
        store.add_groups([RankingGroup("g2", "p1", tuple(f"s1.p1.{k}" for k in range(3)))])
    assert store.judgements() == []


def test_ranking_groups_are_proposed(store):
    store.add_prompts([Prompt("held", "Why?", split="heldout")])
    store.add_completions([Completion(f"s1.held.{k}", "held", "sft", "x", (1,), (-0.1,), "stop") for k in range(5)])
    proposed = store.read(task_queue.propose_groups, 100)
    assert {group.prompt_id for group in proposed} == {f"p{i}" for i in range(PAIRS)}
    assert proposed[0].id == f"s1.{proposed[0].prompt_id}.ranking"
    store.add_groups(proposed[:5])
    assert len(store.read(task_queue.propose_groups, 100)) == PAIRS - 5


def test_gold_is_assigned_and_counted(store):
    store.add_tasks(tasks(10))
    store.set_gold([Gold("k10", "a"), Gold("k11", "b", "long but wrong")])
    save_settings(store, gold_share=1.0)
    for name in ("ann", "bob"):
        for wanted in ("k10", "k11"):
            lease = take_lease(store, name)
            assert lease.comparison == wanted
            judge(store, lease, "left" if lease.order == "ab" else "right")
        assert take_lease(store, name).comparison not in ("k10", "k11")
    stats = store.read(rater_stats.rating_stats, NOW)
    assert [(rater.name, rater.gold) for rater in stats.raters] == [("ann", (1, 2)), ("bob", (1, 2))]
    assert store.read(rater_stats.rater_progress, "ann", NOW).gold is None
    save_settings(store, show_gold=True)
    assert store.read(rater_stats.rater_progress, "ann", NOW).gold == (1, 2)


def test_gold_share(store):
    is_gold = [hash_uniform(f"gold/r{i}", str(j)) < 0.1 for i in range(50) for j in range(40)]
    assert 0.08 < sum(is_gold) / len(is_gold) < 0.12


def test_overlap_share(store):
    store.add_tasks(tasks())
    save_settings(store, overlap=0.5)
    ann = rate_all(store, "ann")
    bob = rate_all(store, "bob")
    assert len(ann) == PAIRS
    assert set(bob) == {name for name in ann if hash_uniform("overlap", name) < 0.5}
    assert 0 < len(bob) < PAIRS


def test_add_seats(store):
    store.add_tasks(tasks(3))
    rate_all(store, "ann")
    assert store.submit_write(task_queue.add_seats, ["k01", "nowhere"], "disagreement").result() == 1
    assert take_lease(store, "ann") == "empty"
    assert rate_all(store, "bob") == ["k01"]


def test_pause_budget_and_paused_domain(store):
    store.add_tasks(tasks(4))
    save_settings(store, paused=True)
    assert take_lease(store, "ann") == "paused"
    save_settings(store)
    store.submit_write(task_queue.pause_domain, "work", True).result()
    assert rate_all(store, "ann") == ["k01", "k03"]
    store.submit_write(task_queue.pause_domain, "work", False).result()
    lease = take_lease(store, "ann")
    save_settings(store, hours=0.5)
    judge(store, lease, at=NOW + 600, milliseconds=600_000)
    judge(store, take_lease(store, "ann"), at=NOW + 600, milliseconds=600_000)
    store.add_tasks([Task("k04"), Task("k05")])
    judge(store, take_lease(store, "ann"), at=NOW + 3600, milliseconds=3_600_000)
    assert take_lease(store, "ann") == "spent"
    assert store.read(rater_stats.rater_progress, "ann", NOW).hours_left == 0.0
    assert len(store.judgements()) == 5


def test_pace_covers_the_last_hour(store):
    store.add_tasks(tasks())
    for i in range(11):
        judge(store, take_lease(store, "ann", NOW + 60 * i), at=NOW + 60 * i)
    assert store.read(rater_stats.rater_progress, "ann", NOW + 600).pace == 60.0
    assert store.read(rater_stats.rater_progress, "ann", NOW + 3600 * 3).pace is None


def test_counters_match_a_recount(store):
    """After random actions of three raters every counter equals a recount."""
    store.add_tasks([*tasks(8), Task("k08", "work", seats=2), Task("k09", "home", seats=3)])
    store.add_groups([RankingGroup("g1", "p11", tuple(f"s1.p11.{k}" for k in range(5)), "work")])
    save_settings(store, overlap=0.3, lease=50.0)
    rng = random.Random(5)
    for step in range(400):
        rater = rng.choice(["ann", "bob", "cid"])
        at = NOW + 10 * step
        lease = take_lease(store, rater, at)
        last = store.read(verdicts.last_settled, rater)
        act = rng.choice(["judge", "judge", "skip", "flag", "undo", "nothing", "return"])
        if act == "undo" and last:
            store.submit_write(verdicts.undo, last[0], rater, at).result()
        elif act == "return":
            for row in store.read(rater_stats.flagged_pairs):
                store.submit_write(verdicts.settle_flags, row["comparison"], "returned").result()
        elif isinstance(lease, Lease) and act == "judge" and lease.group:
            store.submit_write(
                verdicts.rank, RankingSubmission(f"key-{step}", lease.comparison, rater, (1, 2, 3, 4, 5)), at
            ).result()
        elif isinstance(lease, Lease) and act == "judge":
            judge(store, lease, rng.choice(["left", "right", "tie", "both_bad"]), at, f"key-{step}")
        elif isinstance(lease, Lease) and act in ("skip", "flag"):
            work = (
                (verdicts.skip, lease.comparison, rater, at)
                if act == "skip"
                else (verdicts.flag, lease.comparison, rater, "odd", at)
            )
            store.submit_write(*work).result()
    assert_counters(store)
    assert len(store.judgements()) > 10
    assert store.read(lambda c: c.execute(select(schema.retractions)).all())


def assert_counters(store):
    rows = store.read(lambda c: c.execute(select(schema.tasks)).all())
    seats = store.read(lambda c: c.execute(select(schema.seats)).all())
    for task in rows:
        states = Counter(lease.state for lease in seats if lease.comparison == task.comparison)
        assert task.taken == states["leased"] + states["judged"], task
        assert task.judged == states["judged"], task
        assert task.lane == (0 if task.state != "open" or task.taken >= task.seats else 2 if task.taken else 1), task
    for queue in store.read(rater_stats.rating_stats, NOW).queues:
        mine = [task for task in rows if task.domain == queue.domain]
        assert queue.tasks == len(mine)
        assert queue.waiting == sum(max(0, task.seats - task.taken) for task in mine if task.state == "open")
        assert queue.done == sum(task.judged >= task.seats or task.state == "closed" for task in mine)
    standing = Counter(j.rater for j in store.judgements())
    assert {rater.name: rater.judgements for rater in store.read(rater_stats.rating_stats, NOW).raters} == standing


def test_concurrent_stores_lose_and_duplicate_nothing(store, location):
    """Two stores on one ledger, as with two servers: every pair goes to one rater, every repeated verdict is stored
    once."""
    store.add_tasks(tasks())

    def work(number):
        at = [store, other][number % 2]
        lease = take_lease(at, f"r{number}", time())
        if not isinstance(lease, Lease):
            return None
        for _ in range(2):
            judge(at, lease, "left", time(), key=f"the-key-of-{number}")
        return lease.comparison

    with Store.open(location) as other, ThreadPoolExecutor(20) as pool:
        names = [name for name in pool.map(work, range(20)) if name]
    assert sorted(names) == sorted(f"k{i:02}" for i in range(PAIRS))
    assert Counter(j.comparison for j in store.judgements()) == Counter(names)
    assert_counters(store)


def test_failed_job_does_not_affect_its_batch(store):
    store.add_tasks(tasks(3))

    def fail(connection):
        task_queue.pause_domain(connection, "work", True)
        raise DataError("no", "no", "no")

    jobs = [
        store.submit_write(task_queue.pause_domain, "home", True),
        store.submit_write(fail),
        store.submit_write(people.add_guideline, "Be kind.", "owner"),
    ]
    with pytest.raises(DataError):
        jobs[1].result()
    assert jobs[2].result().version == 1
    assert {queue.domain: queue.paused for queue in store.read(rater_stats.rating_stats, NOW).queues} == {
        "home": True,
        "work": False,
    }


def test_group_commit(store):
    commits = []
    gate = Event()
    event.listen(store._engine, "commit", commits.append)
    jobs = [
        store.submit_write(lambda connection: gate.wait(10)),
        *(store.submit_write(lambda connection: True) for _ in range(200)),
    ]
    gate.set()
    assert all(job.result() for job in jobs)
    assert len(commits) <= 3


def test_closed_store_refuses_writes_and_keeps_earlier_ones(location):
    with Store.open(location) as store:
        fill(store)
        job = store.submit_write(people.add_guideline, "Be kind.", "owner")
    assert job.result().version == 1
    with pytest.raises(ResourceError, match="closed"):
        store.submit_write(people.add_guideline, "Be brief.", "owner")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_killed_writer_has_acknowledged_only_committed_jobs(store, location, count):
    store.add_tasks(tasks(8))
    script = (
        "import sys, time; from pathlib import Path; from towpath.store import task_queue, verdicts; from "
        "towpath.store.store import Store\n"
        "location = sys.argv[1] if '://' in sys.argv[1] else Path(sys.argv[1]); store = Store.open(location)\n"
        "for i in range(8):\n"
        "    lease = store.submit_write(task_queue.next_lease, 'ann', time.time()).result()\n"
        "    sent = verdicts.Submission(f'a-key-of-{i}', lease.comparison, 'ann', verdicts.StoredVerdict('left'))\n"
        "    store.submit_write(verdicts.judge, sent, time.time()).result(); print(sent.key, flush=True)\n"
    )
    environment = os.environ | {"TOWPATH_FAULT": f"commit:{2 * count}"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(location)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    acknowledged = done.stdout.split()
    assert len(acknowledged) == count - 1
    assert [j.key for j in store.judgements()] == acknowledged
    assert_counters(store)


def test_approved_answer_becomes_a_demonstration(store):
    store.add_tasks(tasks(1))
    lease = take_lease(store, "ann")
    assert store.submit_write(
        verdicts.save_written_answer, "write-key", lease.comparison, "ann", "Because so."
    ).result()
    assert not store.submit_write(
        verdicts.save_written_answer, "write-key", lease.comparison, "ann", "Because so."
    ).result()
    assert store.written_demonstrations() == []
    store.submit_write(verdicts.review_written_answer, "write-key", "approved").result()
    assert [(d.prompt, d.response, d.domain) for d in store.written_demonstrations()] == [
        ("Why 0?", "Because so.", "work")
    ]


def test_reply_cache_keeps_the_first(store):
    assert store.reply("x") is None
    store.save_reply("x", {"choice": "a", "samples": [1, 2]})
    store.save_reply("x", {"choice": "b"})
    assert store.reply("x") == {"choice": "a", "samples": [1, 2]}


def test_invitations_are_single_use_and_one_owner_remains(store):
    token = store.submit_write(people.create_invitation, "rater", "owner", NOW).result()
    assert store.read(people.find_invitation, token, NOW + people.INVITATION_LIFETIME + 1) is None
    assert store.submit_write(people.accept_invitation, token, "ann", "hash", NOW).result().role == "rater"
    with pytest.raises(DataError, match="one account"):
        store.submit_write(people.accept_invitation, token, "eve", "hash", NOW).result()
    token = store.submit_write(people.create_invitation, "owner", "owner", NOW).result()
    with pytest.raises(DataError, match="taken"):
        store.submit_write(people.accept_invitation, token, "ann", "hash", NOW).result()
    store.submit_write(people.accept_invitation, token, "olga", "hash", NOW).result()
    with pytest.raises(DataError, match="last owner"):
        store.submit_write(people.change_account, "olga", "rater").result()
    store.submit_write(people.change_account, "ann", None, False).result()
    assert not store.read(people.get_account, "ann").active


def test_guideline_versions(store):
    assert store.read(people.get_guideline).version == 0
    for words in ("Be kind.", "Be kind.", "Be brief."):
        store.submit_write(people.add_guideline, words, "owner").result()
    assert [(g.version, g.text) for g in store.read(people.list_guidelines)] == [(2, "Be brief."), (1, "Be kind.")]
    assert store.read(people.get_guideline, 1).text == "Be kind."


def test_judgement_rows_have_texts_and_no_retractions(store):
    store.add_tasks(tasks(3))
    seats = []
    for i in range(3):
        seats.append(take_lease(store, "ann", NOW + i))
        judge(store, seats[-1], at=NOW + i)
    undo(store, seats[1], NOW + 9)
    rows = store.read(rater_stats.judgement_rows, 0)
    assert [row["comparison"] for row in rows] == [seats[0].comparison, seats[2].comparison]
    assert (rows[0]["prompt"], rows[0]["a"], rows[0]["source_a"]) == ("Why 0?", "0 0", "sft")
    assert store.read(rater_stats.judgement_rows, rows[0]["number"])[0]["comparison"] == seats[2].comparison


def upgrade(engine, version):
    config = Config()
    config.set_main_option(
        "script_location", str(Path(towpath.__file__).parent / "store" / "migrations").replace("%", "%%")
    )
    with ledger.transaction(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, version)


@pytest.mark.parametrize("version", ["0001", "0002"])
def test_migration_keeps_rows(empty_location, version):
    engine = ledger.open_engine(empty_location)
    upgrade(engine, version)
    old = [
        "INSERT INTO prompts VALUES ('p1', 'Why?', 'work', 'easy', '[\"x\"]', 1, 'train', '')",
        "INSERT INTO completions VALUES ('c0', 'p1', 'sft', 'so', '[1]', '[-0.5]', 'stop', '{}')",
        "INSERT INTO completions VALUES ('c1', 'p1', 'sft', 'no', '[2]', '[-0.5]', 'length', '{\"top_k\": 3}')",
        "INSERT INTO comparisons (id, prompt_id, a, b, round) VALUES ('k1', 'p1', 'c0', 'c1', 2)",
        "INSERT INTO judgements (key, comparison, rater, kind, choice, shown, strength, milliseconds, round, "
        "guideline, at)"
        " VALUES ('x', 'k1', 'ann', 'person', 'b', 'ba', 2, 1500, 2, 'g', '2026-01-01')",
        "INSERT INTO labels VALUES ('k1', 'b', 2.0, 1)",
    ]
    with ledger.transaction(engine) as connection:
        for statement in old:
            connection.execute(text(statement.replace(":", "\\:")))
    engine.dispose()
    with Store.open(empty_location) as store:
        assert store.prompts()["p1"] == Prompt("p1", "Why?", "work", "easy", ("x",), True)
        assert store.completions()["c1"] == Completion("c1", "p1", "sft", "no", (2,), (-0.5,), "length", {"top_k": 3})
        assert store.comparisons() == [Comparison("k1", "p1", "c0", "c1", 2)]
        assert store.judgements() == [Judgement("x", "k1", "ann", "person", "b", "ba", 2, 1500, 2, "g", "2026-01-01")]
        assert (store.labels()[0].choice, store.labels()[0].chance, store.labels()[0].by) == ("b", None, "majority")
        raters = store.read(rater_stats.rating_stats, NOW).raters
        assert [(rater.name, rater.judgements, rater.seconds) for rater in raters] == [("ann", 1, 1.5)]
        with pytest.raises(DBAPIError, match="append-only"), ledger.transaction(store._engine) as connection:
            connection.execute(text("DELETE FROM judgements"))
        store.add_tasks([Task("k1")])
        judge(store, take_lease(store, "bob"))
        assert len(store.judgements()) == 2
