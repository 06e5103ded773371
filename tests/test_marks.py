"""A function's mark is another where it does something else, and the same wherever it lies."""

import abc
import functools
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from towpath.rewards import sources
from towpath.rewards.marks import Untold, mark

READS = SimpleNamespace(rate=1.0)
LOCK = threading.Lock()


def closed(weight):
    def reward(_prompts, answers):
        return [weight * len(answer) for answer in answers]

    return reward


def weighed(_prompts, answers, weight=1.0):
    return [weight for _ in answers]


class Abstract(abc.ABC):
    @abc.abstractmethod
    def rate(self): ...


class Rubric(Abstract):
    def __init__(self, rate):
        self.given = rate

    def rate(self):
        return self.given


class Judge:
    def __init__(self, rate):
        self.rate = rate

    def __call__(self, _prompts, answers):
        return [self.rate for _ in answers]


def by_a_global(_prompts, answers):
    return [READS.rate for _ in answers]


def under_a_lock(_prompts, answers):
    with LOCK:
        return [0.0 for _ in answers]


@pytest.mark.parametrize(
    "made",
    [
        closed, Judge, lambda rate: closed(Rubric(rate)), lambda rate: Judge(rate).__call__, lambda rate: functools.partial(weighed, weight=rate),
        lambda rate: closed(np.full(3, rate)), lambda rate: closed(torch.full((2,), rate, dtype=torch.bfloat16)),
        lambda rate: closed(re.compile("x" * int(rate))), lambda rate: closed({"a": [rate, {1, 2}]}), lambda rate: closed(closed(rate)),
    ],
)  # fmt: skip
def test_what_it_holds_tells_it_apart(made):
    assert mark(made(1.0)) == mark(made(1.0)) != mark(made(2.0))


def test_so_does_a_global_that_it_names_and_a_weight_of_a_model(monkeypatch):
    before = mark(by_a_global)
    monkeypatch.setattr(READS, "rate", 2.0)
    assert mark(by_a_global) != before
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    before = mark(closed(model))
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    assert mark(closed(model)) != before


def test_neither_its_place_nor_the_process_does(tmp_path):
    text = "WORDS = {'a', 'b', 'c'}\ndef reward(prompts, answers):\n    return [float(answer in WORDS) for answer in answers]\n"
    told = "from towpath.rewards.marks import mark\nimport mine\nprint(mark(mine.reward))"
    said = []
    for place, before in (("one", ""), ("other", "\n\n# a line\n")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine.py").write_text(before + text)
        done = subprocess.run([sys.executable, "-c", told], cwd=tmp_path / place, capture_output=True, text=True, check=True)
        said.append(done.stdout)
    assert said[0] == said[1]


def test_what_cannot_be_told_is_never_taken_for_what_was_there_before():
    with pytest.raises(Untold):
        mark(under_a_lock)
    with pytest.warns(UserWarning, match="cannot be told apart"):
        one, other = sources.given(under_a_lock), sources.given(under_a_lock)
    assert one != other


def test_a_function_that_calls_itself_has_one():
    def reward(prompts, answers):
        return reward(prompts, answers[1:]) if answers else []

    assert mark(reward) == mark(reward)
