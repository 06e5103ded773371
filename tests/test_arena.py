"""Arenas: statistics, the ledger on SQLite and PostgreSQL, separation from labels, pages, commands, judge."""

import json
from contextlib import contextmanager
from time import time

import httpx
import numpy as np
import pytest
from command import towpath
from conftest import running
from scripted import answer, served

from towpath.arena.leaderboard_row import format_terminal, leaderboard_row
from towpath.arena.matches import ArenaSpec, close_decided, judge_arena, reveal_comparisons, stop_arena
from towpath.data import formats
from towpath.errors import DataError
from towpath.evals import leaderboard as evals
from towpath.evals.leaderboard import ArenaPair
from towpath.feedback.endpoint import JudgeSettings
from towpath.records import Comparison, Completion, Judgement, Prompt
from towpath.run.answer_sources import answer_sources, start_arena
from towpath.store import arenas, people, rater_stats, rating_settings, task_queue, verdicts
from towpath.store.exchange import export_pairs, import_judgements
from towpath.store.rating_settings import RatingSettings
from towpath.store.store import Store
from towpath.store.task_queue import Gold, Lease, Task
from towpath.store.verdicts import StoredVerdict, Submission

PASSWORD = "correct horse battery"
NOW = 1_800_000_000.0
COUNT = 30


def write_answers(run, count=COUNT, name="evaluate/aaaaaa000000", same=(), **more):
    """Write a run folder with an evaluation's answers, in which the policy's answers are recognizable."""
    folder = run / "stages" / name
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "prompt_id": f"p{i}",
            "prompt": f"Why is the canal number {i} level?",
            "domain": "work",
            "difficulty": "easy",
            "base": f"No. {i}",
            "sft": f"Because. {i}",
            "policy": f"Because. {i}" if i in same else f"A lock keeps it level. {i}",
        }
        for i in range(count)
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "manifest.json").write_text("{}")
    (run / "current.json").write_text(json.dumps({"stages": {"evaluate": "aaaaaa000000"}}))
    (run / "recipe.toml").write_text('name = "x"\n')


@pytest.fixture
def run(tmp_path):
    write_answers(tmp_path)
    return tmp_path


@pytest.fixture
def store(location):
    with Store.open(location) as opened:
        opened.submit_write(rating_settings.save, RatingSettings(gold_share=0.0)).result()
        yield opened


def take_lease(store, rater, at=NOW):
    return store.submit_write(task_queue.next_lease, rater, at).result()


def vote(store, rater, prefers, most=1000, at=NOW):
    """Judge assigned pairs and return how many; `prefers` maps the shown texts to a side."""
    for number in range(most):
        lease = take_lease(store, rater, at)
        if not isinstance(lease, Lease):
            return number
        side = prefers(*store.read(task_queue.task_view, lease).answers)
        store.submit_write(
            verdicts.judge,
            Submission(f"key-{lease.comparison}-{rater}", lease.comparison, rater, StoredVerdict(side)),
            at,
        ).result()
    return most


def for_policy(left, right):
    return "left" if "lock" in left else "right"


def make_judgement(comparison, rater, choice, kind="person", **details):
    return Judgement(f"{comparison}/{rater}", comparison, rater, kind, choice, details=details)


def test_outcome_values_and_position_flips():
    assert [evals.outcome_value(make_judgement("k", "ann", c), "a") for c in ("a", "b", "tie", "both_bad")] == [
        1.0,
        0.0,
        0.5,
        0.5,
    ]
    assert evals.outcome_value(make_judgement("k", "ann", "a"), "b") == 0.0
    assert evals.outcome_value(make_judgement("k", "j", "a", "judge", orders={"ab": "a", "ba": "a"}), "a") == 1.0
    assert evals.outcome_value(make_judgement("k", "j", "a", "judge", orders={"ab": "a", "ba": "b"}), "a") == 0.5
    assert evals.outcome_value(make_judgement("k", "j", "a", "judge", orders={"ab": "a", "ba": "tie"}), "a") == 0.5


def test_outcomes_enter_in_order_when_complete():
    pairs = [
        ArenaPair("k0", 0, "a"),
        ArenaPair("k1", 1, "a", seats=0, same=True),
        ArenaPair("k2", 2, "b", seats=2),
        ArenaPair("k3", 3, "a"),
    ]
    judgements = [make_judgement("k2", "ann", "b"), make_judgement("k0", "ann", "a"), make_judgement("k2", "bob", "a")]
    results = evals.finished_outcomes(pairs, judgements[:2])
    assert [(p.comparison, y) for p, y in results] == [("k0", 1.0)]
    results = evals.finished_outcomes(pairs, judgements)
    assert [(p.comparison, y) for p, y in results] == [("k0", 1.0), ("k1", 0.5), ("k2", 0.5)]
    assert [p.comparison for p, _ in evals.finished_outcomes(pairs, judgements[:2], single_rater=True)] == [
        "k1",
        "k2",
        "k0",
    ]
    everything = [*judgements, make_judgement("k3", "ann", "b")]
    assert [y for _, y in evals.finished_outcomes(pairs, everything)] == [1.0, 0.5, 0.5, 0.0]
    all_same = [ArenaPair(f"s{i}", i, "a", seats=0, same=True) for i in range(3)]
    assert [y for _, y in evals.finished_outcomes(all_same, [])] == [0.5] * 3


def outcomes(wins, ties, losses, gap=0):
    mixed = np.random.default_rng(5).permutation([1.0] * wins + [0.5] * ties + [0.0] * losses)
    return [(ArenaPair(f"k{i}", i, "a", gap), float(y)) for i, y in enumerate(mixed)]


def test_record_counts_ties_and_intervals_contain_the_rate():
    record = evals.win_record(outcomes(60, 20, 20), 0.5)
    assert (record.rate, record.wins, record.ties, record.losses, record.n) == (pytest.approx(0.7), 60, 20, 20, 100)
    assert "half" in record.rule
    for low, high in (record.wilson, record.bootstrap):
        assert low < 0.7 < high
    assert record.anytime[1] - record.anytime[0] > record.wilson[1] - record.wilson[0], (
        "looking again and again has its price"
    )
    empty = evals.win_record([], 0.7)
    assert (empty.n, empty.verdict, empty.anytime) == (0, "UNDECIDED", (0.0, 1.0))


def test_rater_error_correction_keeps_uncertainty():
    right = 0.84  # sixteen errors in a hundred make 70 % of a true 79 %
    agree = right**2 + (1 - right) ** 2
    many = outcomes(697, 0, 303)
    corrected = evals.win_record(many, 0.7, agreement=(agree, 5000)).true_rate
    assert corrected.rate == pytest.approx(0.79, abs=0.005)
    assert corrected.interval[0] < 0.79 < corrected.interval[1]
    vague = evals.win_record(many, 0.7, agreement=(agree, 60)).true_rate
    assert vague.interval[1] - vague.interval[0] > corrected.interval[1] - corrected.interval[0]
    assert evals.win_record(many, 0.7, agreement=(0.52, 50)).true_rate is None
    assert evals.win_record(many, 0.7).true_rate is None


def test_length_control_removes_a_pure_length_effect():
    draws = np.random.default_rng(0)
    gaps = draws.normal(8, 10, 400)
    by_length = draws.random(400) < 1 / (1 + np.exp(-0.3 * gaps))
    record = evals.win_record(
        [(ArenaPair(f"k{i}", i, "a", int(g)), float(y)) for i, (g, y) in enumerate(zip(gaps, by_length, strict=True))],
        0.7,
    )
    assert record.rate > 0.7
    assert record.equal_length.rate == pytest.approx(0.5, abs=0.15)


def test_answer_sources_list_current_and_earlier_evaluations(run):
    write_answers(run, 5, "evaluate@2/bbbbbb000000")
    (run / "current.json").write_text(json.dumps({"stages": {"evaluate": "aaaaaa000000"}}))
    names = list(answer_sources(run))
    assert names[:3] == ["policy", "sft", "base"]
    assert "evaluate@2/bbbbbb000000/policy" in names
    assert answer_sources(run / "nowhere") == {}


@pytest.mark.parametrize(
    "wrong",
    [{"one": "nobody"}, {"one": "sft"}, {"threshold": 1.0}, {"overlap": 2.0}, {"prompts": -1}],
    ids=lambda wrong: str(wrong),
)
def test_invalid_arena_is_refused(store, run, wrong):
    with pytest.raises(DataError):
        start_arena(store, run, ArenaSpec(**{"one": "policy", "other": "sft"} | wrong))
    assert store.read(arenas.list_arenas) == []


def test_arena_is_blind_and_skips_identical_answers(store, run):
    write_answers(run, same=(3, 4))
    made = start_arena(store, run, ArenaSpec("policy", "sft", overlap=0.0))
    matches = store.read(arenas.list_matches, made.number)
    assert len(matches) == COUNT
    assert {m.ours for m in matches} == {"a", "b"}
    assert [m.prompt_id for m in matches] != [f"p{i}" for i in range(COUNT)]
    assert all(("lock" in (m.a if m.ours == "a" else m.b)) != m.same for m in matches)
    assert sum(m.same for m in matches) == 2
    lease = take_lease(store, "ann")
    task = store.read(task_queue.task_view, lease)
    assert task.domain == "work"
    visible = json.dumps([lease.comparison, task.prompt, list(task.answers), lease.order])
    assert "policy" not in visible
    assert "sft" not in visible
    assert vote(store, "ann", for_policy) == COUNT - 2


def test_decided_arena_closes_its_tasks(store, run):
    write_answers(run, 80)
    made = start_arena(store, run, ArenaSpec("policy", "sft", overlap=0.0))
    count = 0
    while store.read(arenas.get_arena, made.number).state == "open":
        count += vote(store, "ann", for_policy, 1)
        close_decided(store)
    row = leaderboard_row(store, made.number)
    assert (row.arena.state, row.arena.verdict) == ("decided", "PASS")
    assert count < 40
    assert row.people.n == row.people.wins == count
    assert take_lease(store, "ann") == "empty"
    revealed = reveal_comparisons(store, made.number)
    assert {side for pair in revealed for verdict in pair["verdicts"] for side in [verdict["for"]]} == {"one"}
    assert "PASS" in format_terminal(row)


def test_verdict_of_a_decided_arena_is_final(store, run):
    write_answers(run, 80)
    made = start_arena(store, run, ArenaSpec("policy", "sft", overlap=0.0))
    lease = take_lease(store, "bob")
    while not close_decided(store):
        vote(store, "ann", for_policy, 1)
    late = Submission(
        "late-00000",
        lease.comparison,
        "bob",
        StoredVerdict("left" if for_policy(*store.read(task_queue.task_view, lease).answers) == "right" else "right"),
    )
    store.submit_write(verdicts.judge, late, NOW).result()
    assert close_decided(store) == []
    assert store.read(arenas.get_arena, made.number).verdict == "PASS"
    assert stop_arena(store, made.number).state == "decided"


def test_comparisons_are_revealed_only_after_closing(store, run):
    made = start_arena(store, run, ArenaSpec("policy", "sft", prompts=6, overlap=1.0))
    assert vote(store, "ann", for_policy) == 6
    row = leaderboard_row(store, made.number)
    assert (row.people.n, row.waiting) == (0, 6), "each prompt wants two"
    assert reveal_comparisons(store, made.number) == []
    vote(store, "bob", for_policy, 4)
    row = leaderboard_row(store, made.number)
    assert (row.people.n, row.waiting, row.agreement) == (4, 2, (1.0, 4))
    assert row.people.more is not None
    assert stop_arena(store, made.number).state == "stopped"
    assert len(reveal_comparisons(store, made.number)) == 6
    assert take_lease(store, "bob") == "empty"


def test_arena_judgements_never_become_labels_or_exports(store, run, tmp_path):
    store.add_prompts([Prompt("t0", "Why?", domain="work")])
    store.add_completions([Completion(f"s1.t0.{k}", "t0", "sft", f"Text {k}", (1,), (-0.1,), "stop") for k in range(2)])
    store.add_comparisons([Comparison("s1.t0", "t0", "s1.t0.0", "s1.t0.1")])
    made = start_arena(store, run, ArenaSpec("policy", "sft", prompts=10, overlap=0.5))
    vote(store, "ann", for_policy)
    vote(store, "bob", for_policy)
    inside = {m.comparison for m in store.read(arenas.list_matches, made.number)}
    assert len(store.read(arenas.list_judgements, made.number)) >= 10
    assert store.judgements() == []
    assert [c.id for c in store.comparisons()] == ["s1.t0"]
    assert store.read(rater_stats.judgement_rows, 0) == []
    assert store.read(rater_stats.recent_judgements) == []
    assert store.read(rater_stats.own_judgements, "ann") == []
    sheet = tmp_path / "sheet.jsonl"
    assert export_pairs(store, sheet, include_judged=True) == 1
    row = {"comparison": next(iter(inside)), "choice": "a", "rater": "eve"}
    sheet.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError):
        import_judgements(store, sheet)
    written = formats.write_preferences(store, tmp_path / "out.jsonl", "comparisons")
    assert (
        not inside & set((tmp_path / "out.jsonl").read_text().split('"'))
        if (tmp_path / "out.jsonl").exists()
        else written.rows == 0
    )
    with pytest.raises(DataError, match="arena"):
        store.set_gold([Gold(next(iter(inside)), "a")])
    with pytest.raises(DataError, match="belongs to an arena"):
        store.submit_write(
            verdicts.save_written_answer,
            "key-12345678",
            next(iter({j.comparison for j in store.read(arenas.list_judgements, made.number)})),
            "ann",
            "x",
        ).result()
    assert store.written_demonstrations() == []


def test_arena_queue_can_be_paused(store, run):
    made = start_arena(store, run, ArenaSpec("policy", "sft", prompts=4, overlap=0.0))
    assert [q.domain for q in store.read(rater_stats.rating_stats, NOW).queues] == [arenas.queue_name(made.number)]
    store.submit_write(task_queue.pause_domain, arenas.queue_name(made.number), True).result()
    assert take_lease(store, "ann") == "empty"


def test_two_arenas_are_independent(store, run):
    first, second = (
        start_arena(store, run, ArenaSpec("policy", other, prompts=5, overlap=0.0)) for other in ("sft", "base")
    )
    assert vote(store, "ann", for_policy) == 10
    assert [leaderboard_row(store, one.number).people.n for one in (first, second)] == [5, 5]
    assert [one.number for one in store.read(arenas.list_arenas)] == [second.number, first.number]
    with pytest.raises(DataError):
        store.read(arenas.get_arena, 99)


def judge_script(turns=()):
    """Script a judge that prefers the answer with a lock, but the first one for prompts numbered in `turns`."""

    def script(request, _number):
        text = request["messages"][1]["content"]
        number = int(text.split("canal number ")[1].split(" ")[0])
        position = (
            "first" if number in turns else "first" if text.index("lock keeps") < text.index("Because.") else "second"
        )
        return answer(json.dumps({"explanation": "x", "verdict": position, "strength": 2}))

    return script


def test_arena_judge_is_asked_in_both_orders_with_a_separate_record(store, run):
    made = start_arena(store, run, ArenaSpec("policy", "sft", prompts=12, overlap=0.0))
    vote(store, "ann", for_policy, 5)
    with served(judge_script(turns=range(0, COUNT, 3))) as server:
        cfg = JudgeSettings(server.url, "m", retries=0, on_position_flip="people")
        assert judge_arena(store, cfg, made.number) == []
        assert len(server.calls) == 24
        assert judge_arena(store, cfg, made.number) == []
        assert len(server.calls) == 24, "nobody is asked twice"
    row = leaderboard_row(store, made.number)
    judge = row.judges["judge:m"]
    turned = sum(int(m.prompt.split()[5]) % 3 == 0 for m in store.read(arenas.list_matches, made.number))
    assert (judge.n, judge.ties, judge.wins) == (12, turned, 12 - turned)
    assert row.people.n == 5
    assert row.judge_agreement["judge:m"][0] in (0.0, 1.0)
    assert store.judgements() == []
    assert store.read(arenas.get_arena, made.number).state == "open", "a judge ends no arena"


# ---- the pages over HTTP


@contextmanager
def signed_in(url, name):
    with httpx.Client(base_url=url, headers={"origin": url}, follow_redirects=True, timeout=20) as visitor:
        assert visitor.post("/sign-in", data={"name": name, "password": PASSWORD}).status_code == 200
        yield visitor


@pytest.fixture
def team(run):
    with Store.open(run / "towpath.db") as store, running(store, team=True) as (url, auth):
        store.submit_write(rating_settings.save, RatingSettings(gold_share=0.0)).result()
        for name, role in (("olga", "owner"), ("ann", "rater"), ("vic", "viewer")):
            store.submit_write(people.add_account, name, role, auth.hash_password(PASSWORD)).result()
        yield url, store


@pytest.mark.parametrize("name", ["ann", "vic"])
def test_arena_pages_are_for_owners_only(team, name):
    url, store = team
    made = start_arena(store, store.folder, ArenaSpec("policy", "sft", prompts=4))
    with signed_in(url, name) as visitor:
        for path in ("/arena", f"/arena/{made.number}", f"/arena/{made.number}/live", "/arena/disagreements"):
            assert visitor.get(path).status_code == 403
        assert visitor.post(f"/arena/{made.number}/stop").status_code == 403
        assert visitor.post("/arena", data={"one": "policy", "other": "sft"}).status_code == 403


def test_arena_pages_start_show_and_stop(team):
    url, store = team
    with signed_in(url, "olga") as owner:
        done = owner.post(
            "/arena", data={"one": "policy", "other": "sft", "prompts": "8", "threshold": "70", "overlap": "0"}
        )
        assert done.status_code == 200
        assert done.url.path == "/arena/1"
        assert "Nothing is judged yet" in done.text
        vote(store, "ann", for_policy, 3)
        live = owner.get("/arena/1/live").text
        assert 'data-state="open"' in live
        assert "A lock keeps it level" not in live, "answers stay hidden while it is open"
        ended = owner.post("/arena/1/stop")
        assert "A lock keeps it level" in ended.text
        assert 'data-state="stopped"' in ended.text
        assert owner.post("/arena", data={"one": "nobody", "other": "sft"}).status_code == 409
        assert owner.get("/arena/7").status_code == 409


def test_decided_arena_closes_without_a_page_view(team):
    url, store = team
    write_answers(store.folder, 80)
    made = start_arena(store, store.folder, ArenaSpec("policy", "sft", overlap=0.0))
    vote(store, "ann", for_policy, 40)
    store.add_prompts([Prompt("t0", "Why?", domain="work")])
    store.add_completions([Completion(f"s1.t0.{k}", "t0", "sft", f"Text {k}", (1,), (-0.1,), "stop") for k in range(2)])
    assert store.read(arenas.get_arena, made.number).state == "open"
    with signed_in(url, "ann") as rater:
        lease = rater.get("/rate/next").json()
        body = {"key": "abcdefgh12", "comparison": lease["comparison"], "side": "left"}
        assert rater.post("/rate/judge", json=body).status_code == 200
        until = time() + 10
        while store.read(arenas.get_arena, made.number).state == "open" and time() < until:
            pass
        assert store.read(arenas.get_arena, made.number).state == "decided"
        assert rater.get("/rate/next").json()["state"] == "empty"


def test_reward_model_disagreements_return_to_the_queue(team):
    url, store = team
    store.add_prompts([Prompt("t0", "Why?", domain="work"), Prompt("t1", "How?", domain="home")])
    store.add_completions(
        [
            Completion(f"s1.t{i}.{k}", f"t{i}", "sft", f"Text {k}", (1,), (-0.1,), "stop")
            for i in range(2)
            for k in range(2)
        ]
    )
    store.add_comparisons([Comparison(f"s1.t{i}", f"t{i}", f"s1.t{i}.0", f"s1.t{i}.1") for i in range(2)])
    store.add_tasks([Task("s1.t0", "work")])
    assert vote(store, "ann", lambda *_: "left") == 1
    row = {"prompt": "Why?", "choice": "a", "chosen": "Text 0", "rejected": "Text 1", "held": True}
    rows = [
        row | {"comparison": "s1.t1", "domain": "home", "confidence": 0.6},
        row | {"comparison": "s1.t0", "domain": "work", "confidence": 0.9},
    ]
    path = store.folder / "stages" / "evaluate" / "aaaaaa000000" / "disagreements.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert take_lease(store, "bob") == "empty"
    with signed_in(url, "olga") as owner:
        page = owner.get("/arena/disagreements").text
        assert page.index("probability 0.90") < page.index("probability 0.60")
        done = owner.post("/arena/disagreements", data={"comparison": ["s1.t0", "s1.t1", "elsewhere"]})
        assert "2 pairs queued" in done.text
    assert vote(store, "bob", lambda *_: "right") == 2
    assert {(j.comparison, j.rater) for j in store.judgements()} == {
        ("s1.t0", "ann"),
        ("s1.t0", "bob"),
        ("s1.t1", "bob"),
    }


# ---- the command line


def test_arena_commands(run):
    done = towpath("arena", "start", run, "--prompts", 10, "--overlap", 0)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr
    with served(judge_script()) as server:
        judge = ["--set", f"judge.base_url={server.url}", "--set", "judge.model=m"]
        done = towpath("arena", "judge", run, *judge, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["judges"]["judge:m"]["wins"] == 10
    with Store.open(run / "towpath.db") as store:
        vote(store, "ann", for_policy, 4)
    stats = json.loads(towpath("arena", "stats", run, "--json").stdout)
    assert (stats["people"]["n"], stats["arena"]["state"], stats["comparisons"]) == (4, "open", [])
    assert "UNDECIDED" in towpath("arena", "stats", run).stdout
    assert towpath("arena", "stop", run, "--arena", 1).returncode == 0
    assert len(json.loads(towpath("arena", "stats", run, "--json").stdout)["comparisons"]) == 10
    missing = towpath("arena", "stats", run, "--arena", 9)
    assert missing.returncode == 1
    assert "no such arena" in missing.stderr


def test_report_shows_arenas(run):
    from towpath.view.report import report

    made_by_hand = '{"stage": "evaluate", "status": "done", "result": {}}'
    (run / "stages" / "evaluate" / "aaaaaa000000" / "manifest.json").write_text(made_by_hand)
    with Store.open(run / "towpath.db") as store:
        start_arena(store, run, ArenaSpec("policy", "sft", prompts=6, overlap=0.0))
        vote(store, "ann", for_policy)
    html = report.write(run, []).read_text()
    assert "Blind arenas" in html
    assert "policy over sft, by people" in html
