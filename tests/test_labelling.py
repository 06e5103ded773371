"""Labels of whole runs: from files, from a judge with people, from people on the page; plans and statistics."""

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from command import start, towpath

from towpath.errors import DataError, TowpathError, Waiting
from towpath.recipe import load
from towpath.records import Judgement, Label, as_row
from towpath.run import pipeline, status
from towpath.stages.label import labels_json
from towpath.store import rater_stats
from towpath.store.store import Store

pytestmark = pytest.mark.slow
SMALL = [
    "sft.epochs=0.2",
    "preferences.prompts=30",
    "preferences.min_labels=8",
    "preferences.max_new_tokens=12",
    'evaluate.judges=["rubric"]',
]


def settings(*more: str) -> list[str]:
    return [part for value in (*SMALL, *more) for part in ("--set", value)]


def result(run: Path, stage: str) -> dict:
    current = json.loads((run / "current.json").read_text())["stages"][stage]
    return json.loads((run / "stages" / stage / current / "manifest.json").read_text())


@pytest.fixture(scope="module")
def sampled(tmp_path_factory) -> Path:
    """A tiny run up to its completions."""
    run = tmp_path_factory.mktemp("labels") / "run"
    towpath("new", run, "--recipe", "tiny")
    for stage in ("sft", "sample"):
        done = towpath("stage", stage, run, *settings())
        assert done.returncode == 0, done.stderr
    return run


class Longer(BaseHTTPRequestHandler):
    """A judge that prefers the longer answer in either order."""

    calls = 0
    lock = threading.Lock()

    def do_POST(self) -> None:
        with Longer.lock:
            type(self).calls += 1
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        answers = {
            name: re.search(rf"<<<{name} (\w+)>>>\n(.*?)\n<<<END {name} \1>>>", prompt, re.DOTALL)
            for name in ("FIRST", "SECOND")
        }
        first, second = (match[2] if match else "" for match in answers.values())
        verdict = self.verdict(first, second)
        body = json.dumps(
            {
                "choices": [{"message": {"content": verdict}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 20},
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def verdict(self, first: str, second: str) -> str:
        position = "tie" if len(first) == len(second) else "first" if len(first) > len(second) else "second"
        return json.dumps({"explanation": "The longer one.", "verdict": position, "strength": 2})

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def judge(kind: type[Longer] = Longer) -> Iterator[str]:
    kind.calls = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def until(holds: Callable[[], bool]) -> None:
    """Wait until a condition holds, at most two minutes."""
    for _ in range(240):
        if holds():
            return
        time.sleep(0.5)


def copied(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    return to


def answer(run: Path, comparisons: list[str], rater: str = "ann", choice: str = "a") -> None:
    with Store.open(run / "towpath.db") as store:
        store.add_judgements(
            [Judgement(f"{c}/{rater}/1", c, rater, "person", choice, milliseconds=30_000) for c in comparisons]
        )  # pyright: ignore[reportArgumentType]


def test_recorded_preferences_train_a_reward_model(sampled, tmp_path):
    run = copied(sampled, tmp_path / "run")
    prompts = [
        json.loads(line)
        for path in sorted((run / "data" / "prompts").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    held = next(row["prompt"] for row in prompts if row.get("split") == "heldout")
    rows = [
        {"prompt": f"How do I {verb} a boat?", "chosen": f"You {verb} it with a rope.", "rejected": "no no no"}
        for verb in map(str, range(40))
    ]
    rows += [
        {"prompt": held, "chosen": "yes", "rejected": "no"},
        {"prompt": "Why?", "chosen": "same", "rejected": "same"},
        {"prompt": "Why?", "chosen": "alone"},
        {"prompt": "Why?", "chosen": "so " * 200 + "it is", "rejected": "so " * 200 + "it is not"},
    ]
    folder = run / "data" / "preferences"
    folder.mkdir()
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stopped = towpath("stage", "label", run, *settings("preferences.raters=recorded"))
    assert (
        stopped.returncode == 1
        and "2 rows of preferences cannot be used" in stopped.stderr
        and "data.unusable = 'skip'" in stopped.stderr
    )
    options = settings("preferences.raters=recorded", "data.unusable=skip")
    for stage in ("label", "reward"):
        done = towpath("stage", stage, run, *options)
        assert done.returncode == 0, done.stderr
    label = result(run, "label")
    assert label["result"]["decided"] == 40
    evidence = " ".join(f["evidence"] for f in label["findings"])
    assert (
        "2 rows of preferences are left out" in evidence
        and "pairs.jsonl:42" in evidence
        and "pairs.jsonl:43" in evidence
    )
    assert label["data"]["skipped_rows"] == {"preferences": 2}
    listed = [json.loads(line) for line in (run / "reports" / "refused_rows.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in listed] == [
        ("data/preferences/pairs.jsonl", 42),
        ("data/preferences/pairs.jsonl", 43),
    ]
    assert json.loads((run / "reports" / "summary.json").read_text())["skipped_rows"] == {"preferences": 2}
    assert "1 comparisons left out: their prompts are held out" in evidence
    assert "1 comparisons left out: answers equal in their first" in evidence
    assert "2 of 84 answers are truncated to preferences.max_new_tokens" in evidence
    reward = result(run, "reward")["result"]
    assert reward["pairs"] + reward["n"] == 40
    assert "sample" not in json.loads((run / "current.json").read_text())["stages"]


def test_judge_labels_and_people_get_routed_pairs(sampled, tmp_path):
    run = copied(sampled, tmp_path / "run")
    with judge() as address:
        options = settings(
            "preferences.raters=blend",
            f"judge.base_url={address}",
            "judge.model=longer",
            "judge.price_in=1",
            "judge.price_out=2",
            'preferences.rules={short="words(a) < words(b)"}',
        )
        estimate = json.loads(towpath("label", "judge", run, *options, "--estimate", "--json").stdout)
        waits = towpath("stage", "label", run, *options)
        assert waits.returncode == 0 and "waiting: people: 0 of" in waits.stderr, waits.stderr
        with Store.open(run / "towpath.db") as store:
            output = [j for j in store.judgements() if j.kind == "judge"]
            comparisons = store.comparisons()
            assert {j.kind for j in store.judgements()} == {"judge", "rule"}
            queued = sum(queue.tasks for queue in store.read(rater_stats.rating_stats, time.time()).queues)
        assert len(output) == len(comparisons) == estimate["comparisons"]
        assert estimate["calls"] == 2 * len(comparisons) == Longer.calls
        assert sum(j.cost for j in output) == pytest.approx(2 * len(output) * (100 * 1 + 20 * 2) / 1e6)
        assert 0.1 * len(comparisons) <= queued <= 0.6 * len(comparisons)
        answer(run, [c.id for c in comparisons])
        done = towpath("stage", "label", run, *options)
        assert done.returncode == 0, done.stderr
        assert Longer.calls == estimate["calls"], "nobody is asked twice"
        label = result(run, "label")["result"]
        assert label["raters"]["judge:longer"] == "judge" and label["raters"]["ann"] == "person" and label["cost"] > 0
        assert label["judge"] is not None and 0 <= label["judge"]["accuracy"]["value"] <= 1
        stats = towpath("label", "stats", run, *options)
        assert stats.returncode == 0 and "judge:longer against people" in stats.stdout, stats.stderr
    labels = json.loads(next((run / "stages" / "label").glob("*/labels.json")).read_text())
    assert all(row["chance"] is not None and row["by"].startswith("people") for row in labels)


def test_plan_reports_hours_days_and_dollars(sampled):
    options = settings("preferences.raters=people", "budget.pairs=50000", "preferences.overlap=0")
    plan = json.loads(towpath("plan", sampled, *options, "--json").stdout)
    assert round(plan["plan"]["hours"]) == 833 and plan["plan"]["days"] == 105 and plan["measured"] == 0
    memory = {stage["stage"]: stage["memory"] for stage in plan["run"]["stages"] if stage["memory"]}
    assert plan["cluster"]["workers"] == 1 and memory["policy"]["total"] > memory["policy"]["weights"] > 0
    output = towpath("plan", sampled, *options, "--set", "budget.dollars=1000").stdout
    assert "workers: 1 process on " in output and "most memory, " in output
    assert "833 hours" in output and "above the limit" in output and "assumed" in output


def test_run_serves_the_page_and_resumes(sampled, tmp_path):
    run = copied(sampled, tmp_path / "run")
    options = settings(
        "preferences.raters=people", "gates.reward.action=stop", "gates.reward.threshold=0.999", "preferences.overlap=0"
    )
    log = tmp_path / "log"
    process = start("run", run, "--serve", *options, out=log, err=log)
    try:
        until(lambda: "/enter?token=" in log.read_text() or process.exitcode is not None)
        with Store.open(run / "towpath.db") as store:
            names = [c.id for c in store.comparisons()]
        answer(run, names[:4])
        until(lambda: "labels: 4 of 8 decided" in log.read_text() or process.exitcode is not None)
        assert process.exitcode is None, log.read_text()
        answer(run, names[4:])
        process.join(240)
    finally:
        process.kill()
    output = log.read_text()
    assert process.exitcode == 3, output
    assert "labels: 4 of 8 decided" in output and "gate reward is closed" in output
    assert result(run, "label")["result"]["decided"] == len(names)


def test_errors_have_value_rule_and_fix(tmp_path):
    run = tmp_path / "run"
    towpath("new", run, "--recipe", "tiny")
    nothing = towpath("label", "judge", run, "--set", "judge.base_url=http://127.0.0.1:1/v1", "--set", "judge.model=m")
    assert nothing.returncode == 1 and "no comparisons to judge" in nothing.stderr and "fix:" in nothing.stderr
    port = towpath("serve", run, "--port", "99999")
    assert port.returncode == 2 and "65535" in port.stderr and "Traceback" not in port.stderr
    other = towpath("plan", run, "--set", "store.url=mysql://somewhere/x")
    assert other.returncode == 1 and "SQLite or PostgreSQL" in other.stderr


@pytest.mark.parametrize("rater", ["judge", "blend"])
def test_first_run_with_a_judge_passes_the_label_stage(sampled, tmp_path, rater):
    """The judge's labels are part of the label stage's fingerprint, so later stages are planned again."""
    run = copied(sampled, tmp_path / "run")
    share = ["preferences.human_share=0.1", "preferences.audit_share=0.1"] if rater == "blend" else []
    with judge() as address:
        options = [
            *SMALL,
            f"preferences.raters={rater}",
            f"judge.base_url={address}",
            "judge.model=longer",
            "reward.epochs=0.3",
            *share,
        ]
        recipe = load(run, options)
        if rater == "blend":
            with pytest.raises(Waiting):
                pipeline.run(recipe, run, lambda _line: None, "label")
            with Store.open(run / "towpath.db") as store:
                answer(run, [c.id for c in store.comparisons()])
        for stage in ("label", "reward"):
            pipeline.run(recipe, run, lambda _line: None, stage)
        assert result(run, "label")["fingerprint"] == result(run, "reward")["inputs"]["label"]
        calls = Longer.calls
        lines = []
        pipeline.run(recipe, run, lines.append, "label")
        assert any("label: already done" in line for line in lines) and Longer.calls == calls


def test_whole_run_with_a_judge(sampled, tmp_path):
    run = copied(sampled, tmp_path / "run")
    with judge() as address:
        small = [
            "policy.steps=1",
            "policy.max_new_tokens=6",
            "evaluate.prompts=6",
            "evaluate.max_new_tokens=6",
            "data.safety=",
            "reward.epochs=0.3",
        ]
        options = [*SMALL, *small, "preferences.raters=judge", f"judge.base_url={address}", "judge.model=longer"]
        pipeline.run(load(run, options), run, lambda _line: None)
        state = status.read_status(load(run, options), run)
    assert {stage["state"] for stage in state.stages} == {"done"}


class Tying(Longer):
    """A judge that always answers tie."""

    def verdict(self, first: str, second: str) -> str:
        return json.dumps({"explanation": "none", "verdict": "tie", "strength": 1})


class Babbling(Longer):
    """A judge that never returns a verdict."""

    def verdict(self, first: str, second: str) -> str:
        return "I would rather talk about something else."


@pytest.mark.parametrize(
    ("kind", "more", "words", "fix"),
    [
        (Tying, [], r"\d+ ties", "judge.rubric"),
        (Babbling, [], r"gave no judgement on \d+ comparisons: unreadable \d+", "judge.max_tokens"),
        (
            Longer,
            ["judge.price_in=1000", "judge.ceiling=0.0001"],
            r"gave no judgement on \d+ comparisons: ceiling \d+",
            "raise judge.ceiling",
        ),
    ],
)
def test_judge_without_labels_is_an_error_with_the_reason(sampled, tmp_path, kind, more, words, fix):
    run = copied(sampled, tmp_path / "run")
    with judge(kind) as address:
        recipe = load(run, [*SMALL, "preferences.raters=judge", f"judge.base_url={address}", "judge.model=m", *more])
        with pytest.raises(DataError, match=r"labels: 0 of 8 decided, and no more will come") as error:
            pipeline.run(recipe, run, lambda _line: None, "label")
    assert error.value.exit_code == 1 and re.search(words, str(error.value)) and fix in error.value.fix
    assert "rating page" not in str(error.value)
    current = json.loads((run / "current.json").read_text())
    assert current["waiting_for"] == "" and (kind is Tying or any(f["code"] == "judge" for f in current["findings"]))


def test_run_waits_until_every_seat_is_judged(sampled, tmp_path):
    """The second judgement may break a tie of the first, so labels are final only when both are in."""
    run = copied(sampled, tmp_path / "run")
    recipe = load(run, [*SMALL, "preferences.raters=people", "preferences.overlap=1.0"])
    with Store.open(run / "towpath.db") as store:
        comparisons = [c.id for c in store.comparisons()]
    with pytest.raises(Waiting, match="0 of 8"):
        pipeline.run(recipe, run, lambda _line: None, "label")
    answer(run, comparisons, "ann", "tie")
    with pytest.raises(Waiting, match="0 of 8"):
        pipeline.run(recipe, run, lambda _line: None, "label")
    answer(run, comparisons, "bob", "tie")
    with pytest.raises(DataError, match=r"no more will come of \d+ comparisons: \d+ ties, 0 both bad, 0 without"):
        pipeline.run(recipe, run, lambda _line: None, "label")


def test_too_few_recorded_preferences_do_not_wait(sampled, tmp_path):
    run = copied(sampled, tmp_path / "run")
    folder = run / "data" / "preferences"
    folder.mkdir()
    (folder / "pairs.jsonl").write_text(
        json.dumps({"prompt": "How do I row a boat?", "chosen": "With oars.", "rejected": "no no"}) + "\n"
    )
    recipe = load(run, [*SMALL, "preferences.raters=recorded"])
    with pytest.raises(TowpathError, match="the files hold 1 decided comparisons"):
        pipeline.run(recipe, run, lambda _line: None, "label")
    with pytest.raises(DataError, match="labels: 1 of 8 decided") as error:
        pipeline.run(recipe, run, lambda _line: None, "label", force=True)
    assert "add preferences" in error.value.fix


@pytest.mark.parametrize("count", [0, 1, 3])
def test_labels_are_written_as_json_writes_all_of_them(count: int) -> None:
    labels = [Label(f"k{9 - i}", "a", 1.5, 2, chance=None, by="majority") for i in range(count)]
    whole = [as_row(label) for label in reversed(labels)]
    assert "".join(labels_json(labels)) == json.dumps(whole, indent=0)
