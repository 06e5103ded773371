"""Progress: every phase advances at least every ten seconds, and estimates are based on the work done."""

import itertools
import os
import pty
import re
import subprocess
import sys
import time

import numpy as np
import pytest

import towpath as tp
from towpath import progress as showing
from towpath.progress import Progress, progress
from towpath.recipe import Decoding
from towpath.rollout import local
from towpath.rollout.engine import SampleRequest
from towpath.rollout.generate import generate
from towpath.rollout.local import LocalEngine


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(showing.time, "monotonic", lambda: now[0])
    return now


def test_time_left_estimate_decreases(clock: list[float]) -> None:
    work = Progress("samples", 240, "tokens")
    clock[0] += 30
    assert work.seconds_left() is None and work.line() == "samples 0 %"
    work.advance(3)
    assert work.seconds_left() is None and work.line() == "samples 1 %", (
        "the time before the first tokens does not count"
    )
    lefts = []
    for _ in range(78):
        clock[0] += 1
        work.advance(3)
        lefts.append(work.seconds_left())
        clock[0] += 0.5  # between two advances the estimate decreases with the clock
        assert work.seconds_left() <= lefts[-1]
    assert lefts[40:] == sorted(lefts[40:], reverse=True) and lefts[-1] < 5
    assert work.line().startswith("samples 99 %")


def test_estimate_of_resumed_work(clock: list[float]) -> None:
    work = Progress("policy", 100, start=90)
    clock[0] += 10
    work.advance(1)
    assert work.seconds_left() == pytest.approx(90) and work.amount() == "91/100"


def test_plain_progress_line_every_few_seconds(capsys, monkeypatch) -> None:
    assert showing.LINE_INTERVAL <= 9
    monkeypatch.setattr(showing, "LINE_INTERVAL", 0.05)
    with progress("evaluate"), progress("evaluate: answers", 10) as work:
        work.advance(2, "a note")
        output = ""
        while output.count("\n") < 3:
            time.sleep(0.01)
            output += capsys.readouterr().err
    assert re.fullmatch(r"  evaluate 0 s; answers 2/10, \d+ s left, a note", output.splitlines()[0])
    capsys.readouterr()
    time.sleep(2 * showing.LINE_INTERVAL)
    assert not capsys.readouterr().err, "nothing is printed after the end"


def test_generation_progress_advances_with_every_token(tiny) -> None:
    """Three rows of maximum length used to stay at 0/3 until the end."""
    requests = [SampleRequest([5, 6, 7], Decoding(), np.random.default_rng(i).random(40)) for i in range(3)]
    ticks: list[tuple[int, int]] = []
    LocalEngine(tiny, eos=-1, pad=0).generate(requests, tick=lambda tokens, ended: ticks.append((tokens, ended)))
    assert [tokens for tokens, _ in ticks] == [0] + [3] * 40 and sum(ended for _, ended in ticks) == 3


def test_generation_progress_advances_while_prompts_are_read(tiny, monkeypatch) -> None:
    monkeypatch.setattr(local, "CPU_TOKENS", 64)
    draws = np.random.default_rng(0)
    requests = [SampleRequest([5] * length, Decoding(), draws.random(3)) for length in (20, 20, 31, 31, 31, 7, 64, 90)]
    ticks: list[tuple[int, int]] = []
    LocalEngine(tiny, eos=-1, pad=0).generate(requests, tick=lambda units, ended: ticks.append((units, ended)))
    assert [units for units, _ in ticks[:4]] == [7 // 4 + 2 * (20 // 4), 3 * (31 // 4), 64 // 4, 90 // 4]
    assert sum(units for units, _ in ticks) == sum(request.cost for request in requests)


def test_finished_answers_count_as_done(tiny) -> None:
    requests = [SampleRequest([5, 6, 7], Decoding(), np.random.default_rng(i).random(30 + i)) for i in range(8)]
    plain = LocalEngine(tiny, eos=-1, pad=0).generate(requests)
    eos = plain[0].token_ids[4]
    ticks: list[tuple[int, int]] = []
    completions = LocalEngine(tiny, eos=eos, pad=0).generate(
        requests, tick=lambda tokens, ended: ticks.append((tokens, ended))
    )
    assert any(d.finish == "stop" for d in completions)
    assert sum(tokens for tokens, _ in ticks) == sum(30 + i for i in range(8)) and sum(ended for _, ended in ticks) == 8
    assert generate(LocalEngine(tiny, eos=eos, pad=0), requests, "answers") == completions


def test_estimate_falls_where_most_rows_end_early(tiny, clock: list[float]) -> None:
    """A step takes as long for one row as for eight: tokens that ended rows do not need are not done at once."""
    requests = [SampleRequest([5, 6, 7], Decoding(), np.random.default_rng(i).random(40)) for i in range(8)]
    outputs = LocalEngine(tiny, eos=-1, pad=0).generate(requests)
    eos = tuple(output.token_ids[3 + i] for i, output in enumerate(outputs[:6]))
    work = Progress("answers", 320, "tokens")
    lefts: list[float] = []

    def tick(tokens: int, _ended: int) -> None:
        clock[0] += 1
        work.advance(tokens)
        lefts.extend(left for left in [work.seconds_left()] if left is not None)

    ends = [len(o.token_ids) for o in LocalEngine(tiny, eos=eos, pad=0).generate(requests, tick=tick)]
    assert work.done == 320 and sorted(ends)[3] < 20 <= max(ends), ends
    assert all(later <= earlier for earlier, later in itertools.pairwise(lefts)), lefts


def test_policy_step_shows_its_phases(capsys, monkeypatch, tmp_path, tiny_folder) -> None:
    monkeypatch.setattr(showing, "LINE_INTERVAL", 0.005)
    prompts = [f"Say {number}." for number in range(20)]
    tp.train(
        "ppo",
        model=tiny_folder,
        prompts=prompts,
        reward=lambda prompts, answers: [float(len(a)) for a in answers],
        steps=2,
        rollout=16,
        max_new_tokens=16,
        folder=tmp_path,
        dtype="float32",
    )
    output = capsys.readouterr().err
    for phase in ("rollout", "scoring by reference", "update", "validation answers"):
        assert re.search(rf"ppo \d/2.*; {phase} \d+ %", output), phase


def test_nested_bars_share_one_display() -> None:
    code = """
import time
from towpath.progress import print_note, progress
with progress("evaluate"):
    with progress("evaluate: answers", 100, "tokens") as work:
        for _ in range(4):
            work.advance(25, "2 of 4 answers")
            time.sleep(0.2)
    print_note("a line between")
print("done")
"""
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    child = subprocess.Popen(
        [sys.executable, "-c", code], stderr=follower, stdout=subprocess.PIPE, env=environment, close_fds=True
    )
    os.close(follower)
    output = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # the child has closed its side
            break
        if not part:
            break
        output += part
    os.close(leader)
    assert child.communicate(timeout=20)[0].strip() == b"done" and child.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode())
    assert "evaluate" in text and re.search(r"  answers .*\d+ %.*2 of 4 answers", text) and "a line between" in text


BEFORE_TORCH = """
import os, sys

class Watch:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            assert os.environ.get("LRU_CACHE_CAPACITY") == "64", "torch is imported before its settings are made"

sys.meta_path.insert(0, Watch())
{program}
assert "torch" in sys.modules
"""
PROGRAMS = {
    "check": "from towpath.cli.app import app\napp(['check', RUN], standalone_mode=False)",
    "train": "import towpath\ntowpath.train",
    "worker": "from towpath.runtime.worker import import_everything\nimport_everything()",
}


@pytest.mark.parametrize(
    "name", ["check", *(pytest.param(name, marks=pytest.mark.proof) for name in PROGRAMS if name != "check")]
)
def test_settings_of_libraries_are_made_before_they_are_imported(name, tmp_path) -> None:
    """Torch's part of oneDNN reads its own when it is loaded."""
    run = tmp_path / "run"
    subprocess.run([sys.executable, "-m", "towpath", "new", str(run), "--recipe", "tiny"], check=True)
    program = BEFORE_TORCH.format(program=PROGRAMS[name].replace("RUN", repr(str(run))))
    environment = {key: x for key, x in os.environ.items() if key not in ("LRU_CACHE_CAPACITY",)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
