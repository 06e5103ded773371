"""What watches a run: files read as they grow, curves thinned without losing a spike, samples, runs side by side,
the terminal, and the pages."""

import io
import json
import math
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from time import monotonic, sleep

import httpx
import numpy as np
import pytest
from rich.console import Console
from watched_run import (
    FINDINGS,
    FINGERPRINT,
    INTERVENTIONS,
    append,
    finish,
    folder_of,
    policy_rows,
    samples,
    serving_run,
    short_run,
    write_run,
    write_workers,
)

from towpath.errors import ResourceError
from towpath.run.live_record import MIN_INTERVAL, LiveRun, is_locked
from towpath.run.metric_columns import ARROW_BYTES, PHASES, Columns, MetricColumns, to_columns
from towpath.run.new_run import create_run
from towpath.run.samples import Samples
from towpath.store import people
from towpath.store.jsonl import JsonlTail, objects
from towpath.store.publish import lock_folder
from towpath.store.store import Store
from towpath.view.downsample import bucket_means, downsample, moving_average
from towpath.view.live import compare, layout, terminal, workers
from towpath.view.live.headline import recent_mean, seconds_left, stage_headline
from towpath.view.live.marks import stage_marks
from towpath.view.report.frontier import best_of_n_curve

PASSWORD = "correct horse battery"


def lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


# ---- a file that grows


def test_tail_reads_every_byte_once_and_leaves_partial_lines(tmp_path):
    path = tmp_path / "m.jsonl"
    tail = JsonlTail(path)
    assert tail.read() == (b"", False)
    path.write_bytes(b'{"step": 0}\n{"step": 1')
    assert tail.read() == (b'{"step": 0}\n', False)
    assert tail.read() == (b"", False)
    with path.open("ab") as file:
        file.write(b'1}\n{"ste')
    assert tail.read() == (b'{"step": 11}\n', False)


@pytest.mark.parametrize("how", ["shorter", "replaced", "in place, longer"])
def test_tail_restarts_when_the_file_is_replaced(tmp_path, how):
    path = tmp_path / "m.jsonl"
    path.write_bytes(lines({"step": step} for step in range(9)))
    tail = JsonlTail(path)
    tail.read()
    new = lines({"step": step, "again": 1} for step in range(3 if how == "shorter" else 30))
    if how == "replaced":
        (tmp_path / "aside").write_bytes(new)
        (tmp_path / "aside").replace(path)
    else:
        path.write_bytes(new)
    assert tail.read() == (new, True)
    assert tail.read() == (b"", False)


def test_invalid_rows_are_skipped():
    assert objects(b'{"step": 1}\ngarb{age\n[3]\n\n{"step": 2}\n') == [{"step": 1}, {"step": 2}]


def test_columns_grow_and_repeated_steps_are_replaced():
    columns = Columns()
    assert not columns.add(to_columns({"step": s, "a": float(s)} for s in range(600)))
    assert not columns.add(to_columns([{"step": 600, "a": 1.0, "late": 5}]))
    assert columns.count == 601
    assert math.isnan(columns.values("late")[0])
    assert columns.row(600) == {"a": 1.0, "late": 5.0}
    assert columns.add(to_columns([{"step": 400, "a": -1.0}, {"step": 401, "a": -2.0}]))
    assert columns.last == 401
    assert columns.values("a")[-3:].tolist() == [399.0, -1.0, -2.0]
    assert columns.between(399, 400) == slice(399, 401)


def test_steps_repeated_within_a_chunk_are_kept_once():
    columns = Columns()
    assert columns.add(to_columns({"step": s, "a": float(i)} for i, s in enumerate([0, 1, 2, 3, 2, 3, 4])))
    assert columns.steps.tolist() == [0, 1, 2, 3, 4]
    assert columns.values("a").tolist() == [0, 1, 4, 5, 6]


def test_rows_in_one_chunk_equal_rows_one_by_one(tmp_path):
    rows = list(policy_rows(1500))
    rows[7]["reward"], rows[8]["kl"] = math.nan, math.inf
    rows[9]["late"], rows[10]["text"] = 3, "words"
    assert len(lines(rows)) > ARROW_BYTES
    (tmp_path / "bulk.jsonl").write_bytes(lines(rows))
    bulk = MetricColumns(tmp_path / "bulk.jsonl")
    slowly = MetricColumns(tmp_path / "slow.jsonl")
    bulk.refresh()
    for at in range(0, len(rows), 100):
        append(tmp_path / "slow.jsonl", rows[at : at + 100])
        slowly.refresh()
    for phase in PHASES:
        one = bulk.of_phase(phase)
        two = slowly.of_phase(phase)
        assert one.steps.tolist() == two.steps.tolist()
        assert set(one.names) == set(two.names)
        for name in one.names:
            np.testing.assert_array_equal(one.values(name), two.values(name))
    assert math.inf in bulk.train.values("reward")
    assert (bulk.train.steps[0], bulk.train.last) == (1, 1500)


def test_invalid_line_loses_no_other_line(tmp_path):
    content = lines(policy_rows(1500))
    (tmp_path / "m.jsonl").write_bytes(
        content[:50_000].rpartition(b"\n")[0] + b'\n{"step": torn\n' + content[50_000:].partition(b"\n")[2]
    )
    metrics = MetricColumns(tmp_path / "m.jsonl")
    metrics.refresh()
    assert metrics.train.last == 1500
    assert metrics.train.count > 1490


def test_resumed_run_starts_a_new_generation(tmp_path):
    path = tmp_path / "m.jsonl"
    append(path, policy_rows(40))
    metrics = MetricColumns(path)
    metrics.refresh()
    assert (metrics.generation, metrics.train.count) == (0, 40)
    rows = list(policy_rows(20))
    path.write_bytes(lines(rows))
    metrics.refresh()
    assert (metrics.generation, metrics.train.count) == (1, 20)
    append(path, [{"step": 20, "phase": "train", "reward": 9.0}])
    metrics.refresh()
    assert (metrics.generation, metrics.train.last) == (1, 21)
    append(path, [{"step": 5, "phase": "train", "reward": 9.0}])
    metrics.refresh()
    assert (metrics.generation, metrics.train.last) == (2, 6)


# ---- thinning


def test_downsampling_keeps_every_spike():
    steps = np.arange(100_000)
    values = np.sin(steps / 5000)
    for at in (0, 3, 51_234, 99_999):
        values[at] = 40.0 + at
    values[77_777] = -40.0
    indices = downsample(steps, values, 300)
    assert len(indices) <= 2 * 300 + 2
    assert {0, 3, 51_234, 77_777, 99_999} <= set(indices.tolist())
    assert (np.diff(indices) > 0).all()
    share = np.ptp(values[indices][(steps[indices] > 10_000) & (steps[indices] < 12_000)])
    assert share == pytest.approx(np.ptp(values[10_000:12_000]), abs=0.05)


@pytest.mark.parametrize("seed", range(8))
def test_downsampling_keeps_minimum_and_maximum_of_every_bucket(seed):
    draw = np.random.default_rng(seed)
    steps = np.unique(draw.integers(0, 9000, 4000))
    values = draw.normal(size=len(steps))
    values[draw.integers(0, len(steps), 50)] = np.nan
    buckets = int(draw.integers(20, 200))
    indices = downsample(steps, values, buckets)
    finite = np.isfinite(values)
    bucket = ((steps - steps[finite][0]) / ((steps[finite][-1] - steps[finite][0] + 1) / buckets)).astype(int)
    for one in np.unique(bucket[finite]):
        inside = np.flatnonzero(finite & (bucket == one))
        assert values[inside].min() in values[indices]
        assert values[inside].max() in values[indices]


def test_downsampling_keeps_short_series_and_invents_no_value():
    assert downsample(np.arange(5), np.array([1, np.nan, 2, np.inf, 3]), 20).tolist() == [0, 2, 4]
    assert downsample(np.array([], dtype=int), np.array([]), 20).tolist() == []
    assert downsample(np.arange(90), np.full(90, np.nan), 20).tolist() == []


def test_smoothing_is_a_centred_mean_and_skips_gaps():
    values = np.array([0.0, 2.0, np.nan, 4.0, 6.0])
    assert moving_average(values, 2).tolist()[:2] == [1.0, 1.0]
    assert math.isnan(moving_average(values, 2)[2])
    assert moving_average(np.full(50, 3.0), 9).tolist() == pytest.approx([3.0] * 50)
    assert bucket_means(np.arange(100.0), 4).tolist() == [12.0, 37.0, 62.0, 87.0]


# ---- what is drawn


def test_every_metric_has_exactly_one_chart():
    names = [name for name in next(policy_rows(1)) if name not in ("step", "phase")] + [
        "z_threshold",
        "odd/one",
        "odd/two",
        "domain/travel",
    ]
    groups = layout.chart_groups(names, ["reward", "pairs_loss"], {"policy.kl.target": 0.5, "policy.kl.alarm": 2.0})
    charted = [line.name for group in groups for chart in group.charts for line in chart.lines if line.phase == "train"]
    assert sorted(charted) == sorted(names)
    titles = {chart.title: chart for group in groups for chart in group.charts}
    assert [line.name for line in titles["Reward by source"].lines] == [
        "score/model",
        "score/rule:ends",
        "watched/second",
    ]
    assert [(guide.label, guide.kind) for guide in titles["KL, nats per prompt"].guides] == [
        ("target 0.5", "good"),
        ("alarm 2", "bad"),
    ]
    assert titles["Score by domain"].form == "number"
    assert [line.name for line in titles["Odd"].lines] == ["odd/one", "odd/two"]
    assert len({(group.title, chart.key) for group in groups for chart in group.charts}) == len(titles)


def test_number_of_steps_of_every_training_stage(tmp_path):
    run = write_run(tmp_path / "run", 40, 60)
    (folder_of(run, "sft") / "manifest.json").unlink()
    watched = LiveRun(run)
    watched.refresh()
    assert [watched.stages[name].steps for name in ("sft", "reward", "policy")] == [50, 50, 60]
    (folder_of(run, "sft") / "run_info.json").unlink()
    watched = LiveRun(run)
    watched.refresh()
    assert watched.stages["sft"].steps is None


def test_headline_of_a_run(tmp_path):
    run = write_run(tmp_path / "run", 40, 60)
    watched = LiveRun(run)
    watched.refresh()
    headline = {number.label: number for number in stage_headline(watched, "policy")}
    assert headline["steps"].value == "40 of 60"
    assert headline["steps"].share == pytest.approx(2 / 3)
    assert "held out" in headline["reward"].note
    assert headline["KL, nats per prompt"].tone == "good"
    assert float(headline["reward"].value) == pytest.approx(
        recent_mean(watched.stages["policy"].metrics.train, "reward"), abs=0.01
    )
    assert seconds_left(watched.stages["policy"].metrics.train, 60) == pytest.approx(20 * 6.6, rel=0.1)
    append(folder_of(run) / "metrics.jsonl", [{"step": s, "phase": "train", "kl": 3.0} for s in range(40, 60)])
    sleep(MIN_INTERVAL * 1.5)
    watched.refresh()
    assert {number.label: number for number in stage_headline(watched, "policy")}["KL, nats per prompt"].tone == "bad"
    assert stage_headline(watched, "sft")[0].value == "50 of 50"


def test_run_is_running_while_its_lock_is_held(tmp_path):
    run = write_run(tmp_path / "run")
    (run / ".lock").write_text("")
    if is_locked(run) is None:
        pytest.skip("locks cannot be seen here")
    watched = LiveRun(run)
    watched.refresh()
    assert watched.state("policy") == "stopped"
    holds = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); "
        "sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", holds, str(run / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    assert is_locked(run)
    assert watched.state("policy") == "running"
    assert watched.state("sft") == "done"
    holder.communicate()
    assert not is_locked(run)


def test_axis_marks_are_interventions_findings_and_the_checkpoint(tmp_path):
    run = write_run(tmp_path / "run")
    finish(run, 40)
    watched = LiveRun(run)
    watched.refresh()
    marks = stage_marks(watched.stages["policy"])
    assert [(event["step"], event["kind"]) for event in marks] == [
        (9, "critical"),
        (12, "intervention"),
        (21, "warning"),
        (27, "intervention"),
        (40, "checkpoint"),
    ]
    assert "0.05 → 0.1" in marks[1]["label"]
    assert marks[1]["reason"] == INTERVENTIONS[0]["reason"]
    assert FINDINGS[0]["cause"].capitalize() in marks[0]["reason"]


def test_intervention_that_ends_training_says_so(tmp_path):
    run = write_run(tmp_path / "run")
    append(
        folder_of(run) / "interventions.jsonl",
        [{"step": 38, "knob": "", "from": 0.0, "to": 0.0, "reason": "the reward is exploited", "stop": True}],
    )
    watched = LiveRun(run)
    watched.refresh()
    assert [event["label"] for event in stage_marks(watched.stages["policy"]) if event["kind"] == "intervention"][
        -1
    ] == "training stopped"


def test_steps_are_counted_from_one_and_step_0_is_the_first_validation(tmp_path):
    run = short_run(tmp_path / "run")
    watched = LiveRun(run)
    watched.refresh()
    policy = watched.stages["policy"]
    assert policy.metrics.train.steps.tolist() == [1, 2, 3]
    assert policy.metrics.validation.steps.tolist() == [0, 3]
    headline = {number.label: number for number in stage_headline(watched, "policy")}
    assert (headline["steps"].value, headline["steps"].share) == ("3 of 3", 1.0)
    assert "at step 3" in headline["reward"].note
    assert [(event["step"], event["label"]) for event in stage_marks(policy)] == [
        (0, "spread-low"),
        (2, "checkpoint"),
        (3, "kl-rising"),
    ]
    assert [row["first_step"] for row in (*policy.findings, *watched.findings)] == [3, 0, 2]
    versions = [(version.key, version.label) for version in policy.samples.prompts["p0"].answers]
    assert versions == [("base", "base model"), ("0", "tuned model"), ("3", "step 3")]
    assert [step for step, _, _ in policy.samples.win_rates()] == [3]
    assert [point.label for point in compare.frontier("run", watched, "reward")] == ["tuned model", "step 3"]
    assert dict(compare.final_numbers(watched))["steps"] == "3"
    assert seconds_left(policy.metrics.train, 3) == 0
    assert seconds_left(policy.metrics.train, 4) > 3
    assert "samples of step 3" in terminal_view(run)
    (folder_of(run) / "samples.jsonl").write_bytes(lines(row for row in samples(3, 3) if row["step"] < 0))
    assert "samples of the tuned model" in terminal_view(run)


# ---- samples


def test_samples_of_one_prompt_at_several_steps(tmp_path):
    run = write_run(tmp_path / "run", 40, evaluated=True)
    tracked = Samples(folder_of(run) / "samples.jsonl", folder_of(run, "evaluate") / "answers.jsonl")
    tracked.refresh()
    prompt = tracked.prompts["p0"]
    assert [version.label for version in prompt.answers][:2] == ["tuned model", "step 4"]
    assert prompt.change == pytest.approx(1.5)
    assert [version.key for version in tracked.prompts["h1"].answers] == ["base", "sft", "policy"]
    assert tracked.prompts["h1"].change == pytest.approx(0.4)
    falls = tracked.sorted_prompts(sort="fall")
    assert falls[0].id == "p7"
    assert tracked.sorted_prompts(sort="rise")[0].id == "p0"
    assert {one.domain for one in tracked.sorted_prompts("travel")} == {"travel"}
    step, rate, n = tracked.win_rates()[-1]
    assert (step, n) == (40, 8)
    assert rate == pytest.approx(np.mean([float(0.4 * k < 1.5) for k in range(8)]))
    append(
        folder_of(run) / "samples.jsonl",
        [{"step": 43, "prompt_id": "p0", "prompt": "x", "domain": "", "text": "new", "reward": 5.0}],
    )
    tracked.refresh()
    assert tracked.prompts["p0"].answers[-1].text == "new"
    (folder_of(run) / "samples.jsonl").write_bytes(lines(samples(8)))
    tracked.refresh()
    assert max(tracked.prompts["p0"].steps) == 8
    assert "h1" in tracked.prompts


# ---- runs side by side


def test_runs_are_compared(tmp_path):
    own = write_run(tmp_path / "one", 40, 60)
    other = write_run(tmp_path / "two", 40, 40, "learning_rate = 1e-4\n[store]\nurl = 'env:SECRET'\n", evaluated=True)
    (tmp_path / "not-a-run").mkdir()
    assert set(compare.sibling_runs(own)) == {"one", "two"}
    assert compare.sibling_runs(own)[0] == "one"
    watched = {run.name: LiveRun(run) for run in (own, other)}
    for one in watched.values():
        one.refresh()
    rows = dict(compare.differences({name: compare.settings(one) for name, one in watched.items()}))
    assert rows["policy.learning_rate"] == ["2e-05", "0.0001"]
    assert rows["policy.steps"] == ["60", "40"]
    assert "store.url" not in rows
    assert "seed" not in rows
    diff = dict(compare.by_section(list(rows.items())))
    assert ("steps", ["60", "40"]) in diff["policy"]
    assert [name for name, _ in diff[""]] == ["name"] if "name" in rows else "" not in diff
    ends = dict(compare.final_numbers(watched["two"]))
    assert ends["win rate over the tuned model"].startswith("78")
    points = compare.frontier("two", watched["two"], "win")
    assert points[-1].evaluated
    assert (points[-1].kl, points[-1].value) == (0.7, 0.78)
    assert len(points) == 11
    reward = compare.frontier("one", watched["one"], "reward")
    assert [point.label for point in reward][:2] == ["step 4", "step 8"]
    curve = best_of_n_curve(1.0)
    assert curve[0] == (0.0, 0.5)
    assert all(kl <= 1.0 for kl, _ in curve)
    assert compare.selected_runs(["a", "b"], ["../etc", "b"]) == ["b"]


# ---- the terminal


def terminal_view(run, width=110) -> str:
    watched = LiveRun(run)
    watched.refresh()
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(terminal.frame(watched, console))
    return console.file.getvalue()


def test_terminal_view_of_a_run(tmp_path):
    text = terminal_view(write_run(tmp_path / "run"))
    for words in (
        "40 of 60",
        "KL, nats per prompt",
        "▁",
        "kl-runaway",
        "double policy.kl.coef",
        "kl_coef: 0.05 → 0.1",
        "KL rose past the alarm",
        "samples of step 40",
        "after step 12",
        "cooking",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 110
    assert "No metrics yet" in terminal_view(write_run(tmp_path / "new", stages=()))


RESTART = {
    "at": "2026-05-04T10:00:00+00:00",
    "finding": {"code": "worker-restarted", "severity": "warning", "evidence": "worker 2 of 4 was ended by SIGKILL"},
    "stack": [],
}


def test_several_workers_have_a_panel(tmp_path):
    run = write_run(tmp_path / "run")
    folder = folder_of(run)
    (folder / "restarts.json").write_text(json.dumps([RESTART]))
    assert "worker 1" not in terminal_view(run)
    write_workers(folder, late=1)
    with lock_folder(run):
        live = LiveRun(run)
        live.refresh()
        stage = live.stages["policy"]
        panel = workers.workers_panel(stage, live.state("policy"))
        text = terminal_view(run)
    assert panel is not None and [row.tone for row in panel.rows] == ["", "bad", "", ""]
    assert panel.rows[1].heartbeat == "31\u00a0s, limit 1\u00a0min\u00a00\u00a0s" and panel.rows[2].heartbeat == "idle"
    assert sum(phase.share for phase in panel.rows[0].phases) == pytest.approx(1)
    assert panel.rows[3].sampled == "5\u00a0320" and panel.rows[0].memory == "57.3\u00a0GiB"
    assert panel.note == "now; 1 restart"
    assert [row["code"] for row in stage.findings][-1] == "worker-restarted"
    for words in ("worker 4: lock-keeper", "weight sync 1.4", "limit 1", "SIGKILL"):
        assert words in text.replace("\u00a0", " ")
    done = workers.workers_panel(stage, "done")
    assert done is not None and {row.heartbeat + row.verb for row in done.rows} == {""}
    write_workers(folder, count=1)
    live = LiveRun(run)
    live.refresh()
    assert workers.workers_panel(live.stages["policy"], "running") is None


def test_sparkline_spans_minimum_to_maximum():
    assert terminal.sparkline(np.arange(8.0), 8) == "▁▂▃▄▅▆▇█"
    assert terminal.sparkline(np.array([1.0, np.nan, 1.0]), 8) == "▅▅"
    assert len(terminal.sparkline(np.arange(1000.0), 30)) == 30
    assert terminal.sparkline(np.array([]), 30) == ""
    assert set(terminal.sparkline(np.arange(9.0), 9, terminal.ASCII_BLOCKS)) <= set(terminal.ASCII_BLOCKS)


def test_samples_cannot_control_the_terminal(tmp_path):
    run = write_run(tmp_path / "run")
    append(
        folder_of(run) / "samples.jsonl",
        [{"step": 99, "prompt_id": "p0", "prompt": "a", "text": "\x1b[2Jgone \x07[bold]x[/bold]", "reward": 1.0}],
    )
    text = terminal_view(run)
    assert "\x1b" not in text
    assert "[bold]x[/bold]" in text


def test_watch_once_prints_and_exits_and_a_missing_run_is_an_error(tmp_path):
    run = write_run(tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-m", "towpath", "watch", str(run), "--once"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "40 of 60" in done.stdout
    piped = subprocess.run(
        [sys.executable, "-m", "towpath", "watch", str(run)], capture_output=True, text=True, check=False, timeout=60
    )
    assert piped.returncode == 0
    lost = subprocess.run(
        [sys.executable, "-m", "towpath", "watch", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert lost.returncode == 1
    assert "towpath new" in lost.stderr


def test_watch_on_a_terminal_runs_until_ctrl_c(tmp_path):
    run = write_run(tmp_path / "run")
    mine, theirs = os.openpty()
    # A shell's background job inherits an ignored SIGINT; a user's terminal does not.
    process = subprocess.Popen(
        [sys.executable, "-m", "towpath", "watch", str(run)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    output = b""
    start = monotonic()
    grown = False
    while monotonic() - start < 60 and b"41 of 60" not in output:
        output += os.read(mine, 65536)
        if b"40 of 60" in output and not grown:
            grown = True
            append(folder_of(run) / "metrics.jsonl", [{"step": 40, "phase": "train", "reward": 2.0}])
    assert b"41 of 60" in output
    process.send_signal(signal.SIGINT)
    reader = Thread(target=_drain, args=(mine,), daemon=True)
    reader.start()
    assert process.wait(20) == 0


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 65536):
            pass
    except OSError:
        pass


# ---- the pages


@pytest.fixture
def run(tmp_path, request):
    return getattr(request, "param", write_run)(tmp_path / "runs" / "canal")


@pytest.fixture
def team(run):
    with Store.open(run / "towpath.db") as store, serving_run(run, store, team=True) as (url, auth):
        for name, role in (("olga", "owner"), ("ann", "rater"), ("vic", "viewer")):
            store.submit_write(people.add_account, name, role, auth.hash_password(PASSWORD)).result()
        yield url


@contextmanager
def signed_in(url, name):
    with httpx.Client(base_url=url, headers={"origin": url, "accept": "application/json"}) as visitor:
        assert visitor.post("/sign-in", data={"name": name, "password": PASSWORD}).status_code == 303
        yield visitor


PAGES = (
    "/monitor",
    "/monitor/curves?stage=policy",
    "/monitor/step?stage=policy&step=3",
    "/monitor/samples",
    "/monitor/samples/list?stage=policy",
    "/monitor/compare",
    "/monitor/compare/curves?stage=policy&names=reward",
    "/monitor/compare/frontier",
    "/monitor/sweep",
    "/monitor/events?stage=policy",
)


def test_monitor_is_for_owners_and_viewers(team):
    with httpx.Client(base_url=team, headers={"accept": "application/json"}) as nobody, signed_in(team, "ann") as ann:
        assert {nobody.get(page).status_code for page in PAGES} == {401}
        assert {ann.get(page).status_code for page in PAGES} == {403}
        assert "/monitor" not in ann.get("/rate", headers={"accept": "text/html"}).text
    for name in ("olga", "vic"):
        with signed_in(team, name) as visitor:
            assert {visitor.get(page).status_code for page in PAGES[:-1]} == {200}
            assert 'href="/monitor"' in visitor.get("/owner", headers={"accept": "text/html"}).text


def test_monitor_api_returns_requested_curves(team, run):
    with signed_in(team, "vic") as vic:
        response = vic.get("/monitor/curves", params={"stage": "policy"}).json()
        lines = {
            (line["phase"], line["name"]): line
            for group in response["groups"]
            for chart in group["charts"]
            for line in chart["lines"]
        }
        assert lines["train", "reward"]["steps"] == list(range(1, 41))
        assert lines["validation", "reward"]["steps"] == list(range(4, 41, 4))
        assert (response["first"], response["last"]) == (1, 40)
        part = vic.get("/monitor/curves", params={"stage": "policy", "low": 10, "high": 19, "smooth": True}).json()
        lines_by_name = {
            (line["phase"], line["name"]): line
            for group in part["groups"]
            for chart in group["charts"]
            for line in chart["lines"]
        }
        assert lines_by_name["train", "reward"]["steps"] == list(range(10, 20))
        row = vic.get("/monitor/step", params={"stage": "policy", "step": 17}).json()
        assert (row["train"]["step"], row["validation"]["step"]) == (17, 16)
        assert set(row["train"]["numbers"]) == set(next(policy_rows(1))) - {"step", "phase"}
        assert vic.get("/monitor/curves", params={"stage": "nothing"}).status_code == 409
        smoothed = vic.get("/monitor/curves", params={"stage": "sft", "smooth": True}).json()["groups"][0]["charts"][0][
            "lines"
        ][0]
        assert "smooth_values" not in smoothed or len(smoothed["smooth_values"]) == 50
        prompt = vic.get("/monitor/samples/prompt", params={"stage": "policy", "id": "p0"}).json()
        assert [version["key"] for version in prompt["versions"]][:2] == ["0", "4"]
        marked = vic.get(
            "/monitor/samples/differences", params={"stage": "policy", "id": "p0", "left": "0", "right": "40"}
        ).json()
        assert "<mark>" in marked["left"]
        assert "<b>" not in marked["left"] + marked["right"]
        response = vic.get(
            "/monitor/compare/curves", params={"stage": "policy", "names": "reward", "runs": "../canal"}
        ).json()
        assert (response["first"], response["last"]) == (1, 40)


@pytest.mark.parametrize("run", [lambda folder: create_run(folder, "tiny") or folder], indirect=True, ids=["tiny"])
def test_plan_page_answers_what_if(team):
    with signed_in(team, "vic") as vic:
        page = vic.get("/monitor/plan", headers={"accept": "text/html"}).text
        assert "Critical path" in page and "towpath plan" in page
        wanted = {"on": "8xH100", "model_size": "7B", "pairs": "50,000", "completions": ""}
        elsewhere = vic.get("/monitor/plan", params=wanted, headers={"accept": "text/html"}).text
        assert "on 8 × H100" in elsewhere and 'value="50000"' in elsewhere
        for wrong in ({"pairs": "many"}, {"model_size": "7B"}, {"on": "8xP100"}):
            assert vic.get("/monitor/plan", params=wrong).status_code == 409


def next_event(stream, wanted, seconds=10.0):
    """The next event of a name, with its id and data."""
    name = ""
    number = ""
    start = monotonic()
    for line in stream:
        if line.startswith("id: "):
            number = line[4:]
        elif line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: ") and name == wanted:
            return number, json.loads(line[6:])
        assert monotonic() - start < seconds, f"no {wanted} came"
    raise AssertionError("the stream ended")


def test_event_stream_sends_new_rows_and_missed_rows(team, run):
    path = folder_of(run) / "metrics.jsonl"
    with signed_in(team, "vic") as vic:
        cursor = vic.get("/monitor/curves", params={"stage": "policy"}).json()["cursor"]
        with vic.stream("GET", "/monitor/events", params={"stage": "policy", "after": cursor}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            stream = response.iter_lines()
            next_event(stream, "state")
            append(path, [{"step": 40, "phase": "train", "reward": 2.5}])
            number, data = next_event(stream, "rows")
            assert data == [{"step": 41, "phase": "train", "numbers": {"reward": 2.5}}]
            assert next_event(stream, "state")[1]["headline"][0]["value"] == "41 of 60"
        append(
            path, [{"step": 41, "phase": "train", "reward": 2.6}, {"step": 41, "phase": "validation", "reward": 2.0}]
        )
        headers = {"last-event-id": number}
        with vic.stream(
            "GET", "/monitor/events", params={"stage": "policy", "after": cursor}, headers=headers
        ) as response:
            stream = response.iter_lines()
            assert [(row["step"], row["phase"]) for row in next_event(stream, "rows")[1]] == [
                (42, "train"),
                (42, "validation"),
            ]
            path.write_bytes(lines(policy_rows(12)))
            assert next_event(stream, "again")[1] == {}
            (folder_of(run) / "interventions.jsonl").write_bytes(lines([INTERVENTIONS[0]]))
            assert next_event(stream, "marks")[1]["interventions"] == [INTERVENTIONS[0] | {"step": 12}]
            path.write_bytes(lines(list(policy_rows(60, 90))[5:]))
            assert next_event(stream, "again")[1] == {}  # though there are more rows than before
        assert vic.get("/monitor/curves", params={"stage": "policy"}).json()["last"] == 60


def test_event_stream_ends_when_the_account_is_closed(team, run):
    with (
        signed_in(team, "vic") as vic,
        signed_in(team, "olga") as olga,
        vic.stream("GET", "/monitor/events", params={"stage": "policy"}) as response,
    ):
        stream = response.iter_lines()
        next_event(stream, "state")
        assert olga.post("/owner/account", data={"name": "vic", "role": "viewer", "active": "false"}).status_code == 303
        start = monotonic()
        for _ in stream:
            assert monotonic() - start < 15


def test_server_stops_while_an_event_stream_is_open(run):
    with Store.open(run / "towpath.db") as store:
        with serving_run(run, store) as (url, auth):
            owner = httpx.Client(base_url=url, headers={"accept": "application/json"})
            owner.get(f"/enter?token={auth.link_token()}")
            response = owner.send(
                owner.build_request("GET", "/monitor/events", params={"stage": "policy"}), stream=True
            )
            stream = response.iter_lines()
            next_event(stream, "state")
            start = monotonic()
        assert monotonic() - start < 5
        for _ in stream:
            assert monotonic() - start < 5
        owner.close()


def test_monitor_without_a_run(tmp_path):
    from conftest import running

    with (
        Store.open(tmp_path / "towpath.db") as store,
        running(store, team=False) as (url, auth),
        httpx.Client(base_url=url, headers={"accept": "application/json"}) as owner,
    ):
        owner.get(f"/enter?token={auth.link_token()}")
        assert owner.get("/monitor").status_code == 409
    with pytest.raises(ResourceError, match="towpath new"):
        LiveRun(tmp_path)


# ---- many steps


@pytest.fixture(scope="module")
def long_run(tmp_path_factory) -> Path:
    """100,000 steps of 40 numbers."""
    run = write_run(tmp_path_factory.mktemp("runs") / "long", 4, 200_000)
    draw = np.random.default_rng(0)
    values = np.round(draw.normal(size=(100_000, 34)) * 0.1 + 1.0, 6)
    names = [name for name in next(policy_rows(1)) if name not in ("step", "phase")][:34]
    heads = [f'"{name}": ' for name in names]
    values[61_803, names.index("reward")] = 77.0
    with (folder_of(run) / "metrics.jsonl").open("w") as file:
        for step, row in enumerate(values.tolist()):
            file.write(
                f'{{"step": {step}, "phase": "train", '
                + ", ".join(head + repr(value) for head, value in zip(heads, row, strict=True))
                + "}\n"
            )
            if step % 1000 == 999:
                file.write(json.dumps({"step": step, "phase": "validation", "reward": 1.0, "kl": 0.4}) + "\n")
    return run


@contextmanager
def owning(run):
    with (
        Store.open(run / "towpath.db") as store,
        serving_run(run, store) as (url, auth),
        httpx.Client(base_url=url, headers={"accept": "application/json"}) as owner,
    ):
        owner.get(f"/enter?token={auth.link_token()}")
        yield owner


def test_cost_of_drawing_a_hundred_thousand_steps(long_run):
    """Against parsing the same rows one by one in this process, the best of three each: a loaded or slow machine is
    slow at both."""
    response_times = []
    parsed = []
    answer = {}
    for _ in range(3):
        start = monotonic()
        with (folder_of(long_run) / "metrics.jsonl").open("rb") as file:
            assert sum(len(json.loads(line)) for line in file) > 3_000_000
        parsed.append(monotonic() - start)
        start = monotonic()
        with owning(long_run) as owner:
            first = owner.get("/monitor/curves", params={"stage": "policy"})
            response_times.append(monotonic() - start)
            answer = first.json()
    assert min(response_times) < 4 * min(parsed), (response_times, parsed)
    assert answer["last"] == 100_000
    assert len(first.content) < 1_500_000
    reward = next(
        line
        for group in answer["groups"]
        for chart in group["charts"]
        for line in chart["lines"]
        if line["name"] == "reward"
    )
    assert max(reward["values"]) == 77.0
    assert len(reward["steps"]) < 500


def test_event_stream_of_a_long_run_sends_only_new_steps(long_run):
    with owning(long_run) as owner:
        answer = owner.get("/monitor/curves", params={"stage": "policy"}).json()
        near = owner.get("/monitor/curves", params={"stage": "policy", "low": 50_000, "high": 50_400, "smooth": True})
        assert len(near.content) < 500_000
        with owner.stream("GET", "/monitor/events", params={"stage": "policy", "after": answer["cursor"]}) as response:
            stream = response.iter_lines()
            next_event(stream, "state")
            for step in range(100_000, 100_005):
                append(folder_of(long_run) / "metrics.jsonl", [{"step": step, "phase": "train", "reward": 3.0}])
                assert [row["step"] for row in next_event(stream, "rows")[1]] == [step + 1]


def test_changed_fingerprint_is_another_stage(run):
    watched = LiveRun(run)
    watched.refresh()
    assert watched.stages["policy"].metrics.train.count == 40
    new = {**FINGERPRINT, "policy": "eeeeeeeeeeee"}
    sleep(0.02)
    (run / "current.json").write_text(json.dumps({"stages": new}))
    append(run / "stages" / "policy" / "eeeeeeeeeeee" / "metrics.jsonl", policy_rows(3))
    sleep(MIN_INTERVAL * 1.5)
    watched.refresh()
    assert watched.stages["policy"].metrics.train.count == 3


def test_file_that_is_removed_while_it_is_looked_at_counts_as_removed(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n')
    tail = JsonlTail(path)
    assert tail.read() == (b'{"step": 0}\n', False)
    path.write_text('{"step": 0}\n{"step": 1}\n')
    before = path.stat()
    path.unlink()
    monkeypatch.setattr(Path, "stat", lambda self, **_: before)
    assert tail.read() == (b"", True)
