"""Store functions behind the raters' and owners' pages: trials, approval, bulk retraction, names, search, findings,
exports, safe HTML."""

import csv
import io
import json
import re

import pytest
from conftest import running
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from test_rating import NOW, assert_counters, fill, judge, save_settings, take_lease, tasks, undo
from test_web import PASSWORD, signed_in

from towpath.data import formats
from towpath.errors import DataError
from towpath.feedback import rater_quality
from towpath.records import Completion, Judgement
from towpath.store import (
    acknowledgements,
    exchange,
    ledger,
    people,
    pseudonyms,
    rater_stats,
    review,
    schema,
    sides,
    takeouts,
    trials,
    verdicts,
)
from towpath.store.review import PairFilter
from towpath.store.store import Store
from towpath.store.task_queue import Gold, Lease
from towpath.store.verdicts import StoredVerdict, Submission
from towpath.web import answer_diff, rater_reports, safe_html


@pytest.fixture
def store(location):
    with Store.open(location) as opened:
        fill(opened)
        yield opened


@pytest.fixture
def light(tmp_path):
    with Store.open(tmp_path / "towpath.db") as opened:
        fill(opened)
        yield opened


def judge_trial(store, rater, side_of):
    """Judge trial pairs until an attempt is over; `side_of` maps the correct side to the chosen one."""
    while True:
        trial = store.submit_write(rater_stats.rating_page, rater, NOW).result().trial
        right = sides.side_of(gold_of(store, trial.lease.comparison), trial.lease.order)
        feedback = store.submit_write(
            trials.record_verdict, rater, trial.lease.comparison, trial.attempt, side_of(right), NOW
        ).result()
        again = store.submit_write(
            trials.record_verdict, rater, trial.lease.comparison, trial.attempt, "tie", NOW
        ).result()
        assert again == feedback, "a repeated submission gets the same response"
        assert feedback.side == right
        if feedback.finished:
            return feedback


def gold_of(store, name):
    return store.read(lambda c: c.scalar(select(schema.gold.c.choice).where(schema.gold.c.comparison == name)))


def test_trial_pairs_come_first_and_never_become_judgements(store):
    store.add_tasks(tasks(8))
    store.set_gold([Gold(f"k{i:02}", "a" if i % 2 else "b", f"note {i}") for i in range(6, 11)])
    save_settings(store, trial_pairs=3, trial_threshold=0.6)
    failed = judge_trial(store, "ann", lambda right: "tie")
    assert (failed.right, failed.total, failed.needed, failed.passed, failed.correct) == (0, 3, 2, False, False)
    assert failed.note.startswith("note ")
    assert store.submit_write(rater_stats.rating_page, "ann", NOW).result().trial.attempt == 2
    passed = judge_trial(store, "ann", lambda right: right)
    assert (passed.passed, passed.right) == (True, 3)
    view = store.submit_write(rater_stats.rating_page, "ann", NOW).result()
    assert view.trial is None
    assert view.task is not None
    assert store.judgements() == []
    met = set(store.read(lambda c: c.scalars(select(schema.trials.c.comparison)).all()))
    save_settings(store, gold_share=1.0, trial_pairs=3, trial_threshold=0.99)
    pairs = []
    while isinstance(lease := take_lease(store, "ann"), Lease):
        pairs.append(lease.comparison)
        judge(store, lease)
    assert not met & set(pairs), "a pair whose answer was revealed is neither assigned nor used as gold"
    assert {"k00", "k01"} <= set(pairs)
    name = next(iter(met))
    for work in (verdicts.undo, verdicts.skip):
        with pytest.raises(DataError, match="trial pair"):
            store.submit_write(work, name, "ann", NOW).result()
    assert_counters(store)


def test_no_trial_for_owners_or_without_gold(store):
    store.add_tasks(tasks(2))
    save_settings(store, trial_pairs=3)
    assert store.submit_write(rater_stats.rating_page, "ann", NOW).result().trial is None
    store.set_gold([Gold("k05", "a")])
    store.submit_write(people.add_account, "olga", "owner", "hash").result()
    assert store.submit_write(rater_stats.rating_page, "olga", NOW).result().trial is None
    assert store.submit_write(rater_stats.rating_page, "ann", NOW).result().trial.total == 1


@pytest.mark.parametrize(
    ("total", "threshold", "needed"), [(3, 0.7, 3), (10, 0.7, 7), (5, 0.6, 3), (4, 0.0, 0), (4, 1.0, 4), (3, 1 / 3, 1)]
)
def test_trial_pass_mark(total, threshold, needed):
    assert trials._pass_mark(total, threshold) == needed


def test_each_guideline_version_is_acknowledged_once(store):
    assert store.submit_write(rater_stats.rating_page, "ann", NOW).result().acknowledged, "there are no guidelines yet"
    store.submit_write(people.add_guideline, "Be kind.", "olga").result()
    assert not store.submit_write(rater_stats.rating_page, "ann", NOW).result().acknowledged
    for _ in range(2):
        store.submit_write(acknowledgements.acknowledge, "ann", 1).result()
    assert store.submit_write(rater_stats.rating_page, "ann", NOW).result().acknowledged
    store.submit_write(people.add_guideline, "Be brief.", "olga").result()
    assert not store.submit_write(rater_stats.rating_page, "ann", NOW).result().acknowledged
    with pytest.raises(DataError, match="version 9"):
        store.submit_write(acknowledgements.acknowledge, "ann", 9).result()


def test_newest_approved_written_answer_counts(store):
    store.add_tasks(tasks(1))
    lease = take_lease(store, "ann")
    for number in (1, 2):
        store.submit_write(
            verdicts.save_written_answer, f"write-{number}", lease.comparison, "ann", f"Answer {number}."
        ).result()
    assert store.written_demonstrations() == [], "written answers are not exported without approval"
    assert [row["text"] for row in store.read(review.list_written_answers, "waiting")[0]] == ["Answer 2."]
    with pytest.raises(DataError, match="replaced"):
        store.submit_write(verdicts.review_written_answer, "write-1", "approved").result()
    store.submit_write(verdicts.review_written_answer, "write-2", "approved").result()
    assert [d.response for d in store.written_demonstrations()] == ["Answer 2."]
    store.submit_write(verdicts.save_written_answer, "write-3", lease.comparison, "ann", "Answer 3.").result()
    assert store.written_demonstrations() == []
    assert store.read(rater_stats.rating_stats, NOW).unreviewed == 1
    store.submit_write(verdicts.review_written_answer, "write-3", "declined").result()
    assert store.written_demonstrations() == []


def test_time_worked_is_limited_by_the_lease(store):
    store.add_tasks(tasks(3))
    judge(store, take_lease(store, "ann", NOW), at=NOW + 2.5, milliseconds=86_400_000)
    judge(store, take_lease(store, "ann", NOW + 10), at=NOW + 20, milliseconds=4000)
    late = take_lease(store, "ann", NOW + 30)
    take_lease(store, "bob", NOW + 30 + 1900)  # the lease of the first rater expired
    judge(store, late, at=NOW + 30 + 1901, milliseconds=5000)
    assert [j.milliseconds for j in store.judgements()] == [2500, 4000, 5000]


def test_bulk_retraction_and_restore(store):
    store.add_tasks(tasks(4))
    for i in range(4):
        judge(store, take_lease(store, "ann", NOW + i), at=NOW + i)
    before = store.judgements()
    made = store.submit_write(takeouts.retract_all, "ann", "olga").result()
    assert (made.judgements, store.judgements()) == (4, [])
    assert store.counts()["judgements"] == 4, "retracted judgements stay in the ledger"
    assert isinstance(take_lease(store, "bob"), Lease), "the pairs wait for other raters"
    assert take_lease(store, "ann") == "empty"
    with pytest.raises(DataError, match="no judgements"):
        store.submit_write(takeouts.retract_all, "ann", "olga").result()
    assert [one.rater for one in store.read(takeouts.list_retractions)] == ["ann"]
    assert store.submit_write(takeouts.restore, made.number).result() == 4
    assert store.judgements() == before
    assert_counters(store)
    with pytest.raises(DataError, match="restored already"):
        store.submit_write(takeouts.restore, made.number).result()


def test_rename_and_remove_a_person_everywhere(store):
    store.add_tasks(tasks(3))
    store.submit_write(people.add_account, "olga", "owner", "hash").result()
    store.submit_write(people.add_account, "ann", "rater", "hash").result()
    lease = take_lease(store, "ann")
    judge(store, lease, key="first-key")
    store.submit_write(verdicts.save_written_answer, "write-key", lease.comparison, "ann", "So.").result()
    store.submit_write(pseudonyms.rename, "ann", "anna").result()
    assert [j.rater for j in store.judgements()] == ["anna"]
    assert store.read(people.get_account, "anna").role == "rater"
    assert store.read(rater_stats.rating_stats, NOW).raters[0].name == "anna"
    assert undo(store, Lease(lease.comparison, "anna", lease.order, 0.0)).judgements == 1
    judge(store, take_lease(store, "anna"), at=NOW + 5, key="second-key")
    name = store.submit_write(pseudonyms.remove, "anna").result()
    assert re.fullmatch(r"person-[0-9a-f]{8}", name)
    assert {j.rater for j in store.judgements()} == {name}
    rows = store.read(
        lambda c: [str(row) for table in schema.metadata.sorted_tables for row in c.execute(select(table))]
    )
    assert not [row for row in rows if "ann" in row], "the name is in no table"
    with pytest.raises(DataError, match="reserved"):
        store.submit_write(pseudonyms.rename, name, "judge:x").result()
    with pytest.raises(DBAPIError, match="append-only"), ledger.transaction(store._engine) as connection:
        connection.execute(text("UPDATE judgements SET rater = 'x'"))
    with pytest.raises(DataError, match="taken"):
        store.submit_write(pseudonyms.rename, name, "olga").result()
    with pytest.raises(DataError, match="last owner"):
        store.submit_write(pseudonyms.remove, "olga").result()
    assert_counters(store)


def test_judged_pairs_search_and_filters(store):
    store.add_tasks(tasks(6))
    for i in range(6):
        lease = take_lease(store, "ann" if i < 3 else "bob", NOW + i)
        judge(store, lease, "tie" if i == 0 else "left", NOW + i, comment="100%_sure" if i == 1 else "")
        if i == 2:
            store.submit_write(
                verdicts.save_written_answer, "write-key", lease.comparison, "ann", "Better so."
            ).result()

    def names(**wanted):
        return [pair.comparison for pair in store.read(review.list_judged_pairs, PairFilter(**wanted)).pairs]

    assert names() == ["k05", "k04", "k03", "k02", "k01", "k00"]
    assert names(rater="bob") == ["k05", "k04", "k03"]
    assert names(choice="tie") == ["k00"]
    assert names(domain="work") == ["k04", "k02", "k00"]
    assert names(having="comment") == names(text="100%_SURE") == ["k01"]
    assert names(text="%") == ["k01"], "characters of the search syntax are literal"
    assert names(having="written") == names(text="better so") == ["k02"]
    assert names(text="why 3?") == names(text="3 0", rater="bob") == ["k03"]
    assert names(rater="bob", choice="tie") == []
    pair = store.read(review.list_judged_pairs, PairFilter(having="written")).pairs[0]
    assert (pair.prompt, pair.a, pair.b, pair.sources) == ("Why 2?", "2 0", "2 1", ("sft", "sft"))
    assert ([j["rater"] for j in pair.judgements], [w["text"] for w in pair.written]) == (["ann"], ["Better so."])


def test_reasons_and_criteria_are_stored_and_exported(store):
    store.add_tasks(tasks(2))
    for i in range(2):
        lease = take_lease(store, "ann", NOW + i)
        judge(store, lease, "left", NOW + i, reasons=("too long",), criteria={"helpful": "right", "style": "tie"})
        row = store.read(rater_stats.judgement_rows, 0)[-1]
        assert row["details"] == {
            "reasons": ["too long"],
            "criteria": {"helpful": sides.choice_of("right", lease.order), "style": "tie"},
        }


def test_messages_to_raters_contain_no_ids(store):
    store.add_tasks(tasks(2))
    lease = take_lease(store, "ann")
    judge(store, lease, "left", key="the-first-key")
    messages = []
    attempts = [
        lambda: judge(store, lease, "right", key="other-key-1"),
        lambda: judge(store, Lease("k01", "eve", "ab", 0.0)),
        lambda: judge(store, Lease("k01", "bob", "ab", 0.0), key="the-first-key"),
        lambda: store.submit_write(verdicts.flag, lease.comparison, "ann", "odd", NOW).result(),
        lambda: store.submit_write(
            verdicts.rank, verdicts.RankingSubmission("rank-key", lease.comparison, "ann", (1, 2, 3, 4)), NOW
        ).result(),
    ]
    for attempt in attempts:
        with pytest.raises(DataError) as error:
            attempt()
        messages.append(str(error.value))
    assert not [words for words in messages if re.search(r"k\d\d|ann|eve|key-", words)]


def test_daily_count_and_history(store):
    store.add_tasks(tasks(4))
    save_settings(store, goal=5)
    for i in range(3):
        judge(store, take_lease(store, "ann", NOW + i), "right", NOW + i)
    store.submit_write(verdicts.skip, take_lease(store, "ann", NOW + 4).comparison, "ann", NOW + 4).result()
    progress = store.read(rater_stats.rater_progress, "ann", NOW + 5, NOW + 1)
    assert (progress.today, progress.goal, progress.judgements) == (2, 5, 3)
    rows = store.read(review.rater_history, "ann")
    assert [(row["state"], row["side"]) for row in rows] == [
        ("skipped", ""),
        ("judged", "right"),
        ("judged", "right"),
        ("judged", "right"),
    ]


def test_finding_for_a_rater_who_is_too_fast():
    texts = {f"k{i}": (f"word {i} " * 30, f"other {i} " * 30) for i in range(12)}
    fast = [Judgement(f"a{i}", f"k{i}", "ann", "person", "a", "ab" if i % 2 else "ba", 1, 400) for i in range(12)]
    slow = [Judgement(f"a{i}", f"k{i}", "ann", "person", "a", "ab" if i % 2 else "ba", 1, 24_000) for i in range(12)]
    findings = rater_quality.rater_findings(rater_quality.measure_quality(fast, texts=texts))
    assert [one.code for one in findings] == ["rater-hurried"]
    assert findings[0].evidence == "ann: 0.4 s per pair, a median of 300 words a second over 12 judgements"
    assert rater_quality.rater_findings(rater_quality.measure_quality(slow, texts=texts)) == []
    assert rater_quality.rater_findings(rater_quality.measure_quality(fast[:9], texts=texts)) == []


def many_verdicts(store, rater, count, side="left"):
    for i in range(count):
        judge(store, take_lease(store, rater, NOW + i), side, NOW + i + 0.4, milliseconds=400)


@pytest.fixture
def team(light):
    with running(light, team=True) as (url, auth):
        for name, role in (("olga", "owner"), ("ann", "rater"), ("vic", "viewer")):
            light.submit_write(people.add_account, name, role, auth.hash_password(PASSWORD)).result()
        yield url


def test_rater_findings_on_the_owner_page(team, light):
    save_settings(light)
    light.add_tasks(tasks())
    many_verdicts(light, "ann", 12)
    with signed_in(team, "vic") as viewer:
        page = viewer.get("/owner").text
    assert "ann: chose the left answer in 100% [76%, 100%] of 12" in page
    assert "76 to 100 % of 12" in page
    percents = re.findall(r"\d+ %", re.sub(r"<small>[^<]*</small>|data-\S+|aria-\S+", "", page))
    assert len(percents) <= 2, "every other percentage has an interval"
    assert rater_reports.rater_report(light).findings[0].code == "rater-side"


def test_owner_review_actions_over_http(team, light):
    save_settings(light)
    light.add_tasks(tasks(2))
    lease = take_lease(light, "ann")
    judge(light, lease)
    light.submit_write(verdicts.save_written_answer, "write-key", lease.comparison, "ann", "**Better**.").result()
    with signed_in(team, "olga") as owner, signed_in(team, "ann") as ann:
        for path in ("/owner/takeout", "/owner/restore", "/owner/rename", "/owner/remove", "/owner/answers"):
            assert ann.post(path, data={}).status_code == 403, path
        assert (
            ann.get("/owner/pairs").status_code
            == ann.get("/owner/answers").status_code
            == ann.get("/owner/export/pairs.jsonl").status_code
            == 403
        )
        assert "<strong>Better</strong>" in owner.get("/owner/answers").text
        assert owner.post("/owner/answers", data={"key": "write-key", "state": "approved"}).status_code == 303
        assert [d.response for d in light.written_demonstrations()] == ["**Better**."]
        assert "Why 0?" in owner.get("/owner/pairs", params={"rater": "ann", "text": "why"}).text
        assert "No matching pairs" in owner.get("/owner/pairs", params={"rater": "nobody"}).text
        assert owner.get("/owner/pairs", params={"text": "é'%", "page": 100_000}).status_code == 200
        owner.post("/owner/takeout", data={"rater": "ann"})
        assert light.judgements() == []
        owner.post("/owner/restore", data={"number": 1})
        assert len(light.judgements()) == 1
        owner.post("/owner/rename", data={"name": "ann", "new": "anna"})
        assert light.judgements()[0].rater == "anna"
        assert "Rename or remove anna" in owner.get("/owner/people").text


def test_exported_pairs_can_be_imported(team, light, tmp_path):
    save_settings(light)
    light.add_completions([Completion("s1.p0.x", "p0", "sft", "=1+1", (1,), (-0.1,), "stop")])
    light.add_tasks(tasks(3))
    with signed_in(team, "olga") as owner:
        assert owner.get("/owner/export/pairs.jsonl").status_code == 409, "no pair is decided yet"
        for i in range(3):
            judge(light, take_lease(light, "ann", NOW + i), at=NOW + i)
        for kind in ("jsonl", "csv"):
            answer = owner.get(f"/owner/export/pairs.{kind}")
            assert f'filename="pairs.{kind}"' in answer.headers["content-disposition"]
            path = tmp_path / f"pairs.{kind}"
            path.write_bytes(answer.content)
            imported = formats.read_preferences(path)
            assert (len(imported.judgements), imported.refused) == (3, [])
        row = json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[0])
        assert {"prompt", "chosen", "rejected"} <= set(row)


def test_csv_export_escapes_formulas_reversibly():
    odd = ["=1+1", "+1", "-1 is less", "@SUM(A1)", "\tx", "\rx", "plain", "'=kept", ""]
    rows = [{"name": value, "number": -0.5} for value in odd]
    out = io.StringIO()
    exchange.write_csv(out, rows, ["name", "number"])
    cells = list(csv.DictReader(io.StringIO(out.getvalue(), newline="")))
    assert all(not row["name"].startswith(exchange.FORMULA_PREFIXES) for row in cells)
    assert [row["name"] for row in cells][:4] == ["'=1+1", "'+1", "'-1 is less", "'@SUM(A1)"]
    assert [row["number"] for row in cells] == ["-0.5"] * len(odd)
    assert [row["name"] for _, row in exchange.csv_rows(io.StringIO(out.getvalue(), newline=""))] == odd
    plain = io.StringIO()
    exchange.write_csv(plain, [{"name": "x"}], ["name"])
    assert plain.getvalue() == "name\r\nx\r\n"


def test_formulas_and_code_are_rendered_safely():
    html = safe_html.markdown(
        "So $e^{i\\pi} = -1$, $$\\frac{1}{2}$$ and \\(x < y\\), for $5 or $6.\n\n```python\ndef f(): return '<b>'\n```"
    )
    assert html.count("<math ") == 3
    assert "<mfrac>" in html
    assert "for $5 or $6." in html
    assert '<span class="k">def</span>' in html
    assert "<b>" not in html
    assert "<code>$a$</code>" in safe_html.markdown("`$a$`")
    assert safe_html.markdown("```nolang\n<i>\n```") == "<pre><code>&lt;i&gt;\n</code></pre>\n"


@pytest.mark.parametrize(
    "hostile",
    [
        "$\\text{<script>alert(1)</script>}$",
        "$\\text{&lt;script&gt;}$",
        "$\\href{javascript:alert(1)}{x}$",
        "$\\style{color:red}{x}$",
        "$\\newcommand{\\a}{\\a\\a}\\a$",
        '$\\class{x" onload="alert(1)}{y}$',
        "$" + "{" * 400 + "$",
        "$" + "x^{" * 200 + "y" + "}" * 200 + "$",
        "\ue0000\ue001 $x$ \ue0001\ue001",
        "$<img src=x onerror=alert(1)>$",
        "[a](javascript:alert(1) '$x$')",
        "$\\color{red}{x}$",
        "```html\n<script>alert(1)</script>\n```",
        "$\\rule{9999999em}{9999999em}$",
        '<math><mtext><table><mglyph><style><img src=x onerror="alert(1)"></style></mglyph></table></mtext></math>',
    ],
)
def test_hostile_formulas_yield_allowed_elements_only(hostile):
    html = safe_html.markdown(hostile)
    tags = set(re.findall(r"<\s*([a-zA-Z]\w*)", html))
    assert tags <= safe_html.TAGS | {
        "math",
        "mrow",
        "mi",
        "mn",
        "mo",
        "mtext",
        "mspace",
        "msup",
        "msub",
        "mstyle",
        "mpadded",
        "msubsup",
    }, html
    attributes = {name for tag in re.findall(r"<[a-z][^>]*>", html) for name in re.findall(r"\s([\w-]+)=\"", tag)}
    assert attributes <= {"display", "class", "width", "stretchy", "href", "title", "rel", "displaystyle"}, html
    assert "javascript:" not in "".join(re.findall(r'href="[^"]*"', html))
    assert "9999999" not in "".join(re.findall(r"<[a-z][^>]*>", html))


def test_diff_by_word_or_by_sentence():
    left, right, manner = answer_diff.rendered_diff(
        "The **cat** sat on a mat.\n\n- It was `warm`.", "The **dog** sat on a mat.\n\n- It was `warm`."
    )
    assert manner == "words"
    assert (
        left == "<p>The <strong><mark>cat</mark></strong> sat on a mat.</p>\n<ul>\n<li>It was "
        "<code>warm</code>.</li>\n</ul>\n"
    )
    one = "Boats are slow. Water is level in every lock. Gates are shut first."
    two = "A canal has many reaches. Gates are shut first. Nobody knows who built the oldest ones."
    left, right, manner = answer_diff.rendered_diff(one, two)
    assert manner == "sentences"
    assert left == "<p><mark>Boats are slow. Water is level in every lock.</mark> Gates are shut first.</p>\n"
    assert (
        right
        == "<p><mark>A canal has many reaches.</mark> Gates are shut first. <mark>Nobody knows who built the oldest "
        "ones.</mark></p>\n"
    )
    assert answer_diff.rendered_diff("Same *here*", "Same *here*")[2] == "same"
    assert answer_diff.rendered_diff("One two three.", "Four five six.")[2] == "unlike"
    assert answer_diff.rendered_diff("", "new words")[1] == "<p><mark>new words</mark></p>\n"


def test_marks_never_cross_tags_or_formulas():
    left, right, _ = answer_diff.rendered_diff("a **b c** $x<y$ [d e](http://x.y 'q>r')", "z *b q* $x<z$ `d e`")
    for html in (left, right):
        depth = 0
        for tag in re.findall(r"<(/?mark)>|<(?:[^m/]|m[^a]|/[^m])[^>]*>", re.sub(r"<math.*?</math>", "", html)):
            depth += {"mark": 1, "/mark": -1, "": 0}[tag]
            assert depth in (0, 1)
            assert tag or depth == 0, html
        assert depth == 0 and "<mark>" in html


def test_submission_is_stored_completely(store):
    store.add_tasks(tasks(1))
    lease = take_lease(store, "ann")
    submission = Submission(
        "a-key-1", lease.comparison, "ann", StoredVerdict("left"), reasons=("x",), safety=StoredVerdict("tie")
    )
    assert store.submit_write(verdicts.judge, submission, NOW).result().judgements == 1
    assert set(store.judgements()[0].details) == {"reasons", "safety"}
