"""A function's mark is another where it does something else, and the same wherever it lies."""

import abc
import functools
import importlib
import logging
import random
import re
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from towpath.rewards import sources
from towpath.rewards.fingerprint import Untold, mark

READS = SimpleNamespace(rate=1.0)


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


class Named(NamedTuple):
    rate: float


class Words(dict):
    pass


@dataclass(frozen=True)
class Frozen:
    number: int


@dataclass(slots=True)
class Slotted:
    rate: float
    words: set


class Net(torch.nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.rate = rate
        self.layer = torch.nn.Linear(1, 1, bias=False).requires_grad_(False)
        self.layer.weight.fill_(1.0)


def with_attribute(rate):
    def reward(_prompts, answers):
        return [reward.rate for _ in answers]

    reward.rate = rate
    return reward


def wrapped(rate):
    @functools.wraps(np.mean)
    def reward(_prompts, answers):
        return [rate for _ in answers]

    return reward


def chained(rate, length=3000):
    found = rate
    for _ in range(length):
        found = [found]
    return found


class Judge:
    def __init__(self, rate):
        self.rate = rate

    def __call__(self, _prompts, answers):
        return [self.rate for _ in answers]


def by_a_global(_prompts, answers):
    return [READS.rate for _ in answers]


@pytest.mark.parametrize(
    "made",
    [
        closed,
        Judge,
        lambda rate: closed(Rubric(rate)),
        lambda rate: Judge(rate).__call__,
        lambda rate: functools.partial(weighed, weight=rate),
        lambda rate: closed(np.full(3, rate)),
        lambda rate: closed(torch.full((2,), rate, dtype=torch.bfloat16)),
        lambda rate: closed(re.compile("x" * int(rate))),
        lambda rate: closed({"a": [rate, {1, 2}]}),
        lambda rate: closed(closed(rate)),
        lambda rate: closed(re.compile("x" * int(rate)).search),
        lambda rate: {"a": rate}.get,
        lambda rate: sources.named(f"rule:words:{int(rate)}-9"),
        lambda rate: closed(10 ** int(5000 * rate)),
        lambda rate: closed(Named(rate)),
        lambda rate: closed(Slotted(rate, {"a", "b"})),
        lambda rate: closed(Net(rate)),
        with_attribute,
        wrapped,
        lambda rate: closed(defaultdict(closed(rate))),
        lambda rate: closed(torch.tensor(complex(1, rate))),
        lambda rate: closed(random.Random(rate)),
        lambda rate: closed(torch.Generator().manual_seed(int(rate))),
        lambda rate: closed(deque([rate])),
    ],
)
def test_what_it_holds_tells_it_apart(made):
    assert mark(made(1.0)) == mark(made(1.0)) != mark(made(2.0))


def scored(gold, pred):
    return gold - pred


def turned(pred, gold):
    return gold - pred


def tried(x):
    out = []
    try:
        v = float(x)
        out.append(abs(v))
    except ValueError:
        out.append(0.0)
    return out


def tried_less(x):
    out = []
    try:
        v = float(x)
    except ValueError:
        out.append(0.0)
    else:
        out.append(abs(v))
    return out


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([["a"], "b"], [["a", "b"]]),
        ([(1, 2), 3], [(1, 2, 3)]),
        ({"a": {"x": 1}, "b": 2}, {"a": {"x": 1, "b": 2}}),
        ({("a",), "b"}, {("a", "b")}),
        (scored, turned),
        (tried, tried_less),
        (ValueError("a"), ValueError("b")),
        (torch.nn.MaxPool2d((1, 2)), torch.nn.MaxPool2d((2, 1))),
    ],
)
def test_these_differ(one, other):
    if callable(one) and hasattr(one, "__code__"):
        other.__name__ = other.__qualname__ = one.__name__
    assert mark(closed(one)) != mark(closed(other))


def test_the_global_generators_do_not_count_and_a_set_may_lead_back_to_itself():
    choice = random.choice
    rand = np.random.rand
    peers = set()
    before = mark(closed([choice, rand]))
    random.random(), np.random.rand()
    assert mark(closed([choice, rand])) == before

    def one(_prompts, answers):
        return [len(peers) for _ in answers]

    peers.update({one, closed(1.0)})
    assert mark(one) == mark(one)
    begun = time.thread_time()
    mark(closed({Frozen(i) for i in range(5000)}))
    assert time.thread_time() - begun < 5


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
    text = (
        "WORDS = {'a', 'b', 'c'}\ndef reward(prompts, answers):\n    return [float(answer in WORDS) for answer in "
        "answers]\n"
    )
    told = "from towpath.rewards.marks import mark\nimport mine\nprint(mark(mine.reward))"
    said = []
    for place, before in (("one", ""), ("other", "\n\n# a line\n")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine.py").write_text(before + text)
        done = subprocess.run(
            [sys.executable, "-c", told], cwd=tmp_path / place, capture_output=True, text=True, check=True
        )
        said.append(done.stdout)
    assert said[0] == said[1]


def test_a_module_of_ones_own_counts_with_what_stands_in_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_own.py").write_text("RATE = 1.0\n")
    (tmp_path / "mine_within").mkdir()
    (tmp_path / "mine_within" / "__init__.py").touch()
    (tmp_path / "mine_within" / "rates.py").write_text("def rate():\n    return 1.0\n")
    mine_within = importlib.import_module("mine_within.rates") and importlib.import_module("mine_within")
    mine_own = importlib.import_module("mine_own")

    def named(_prompts, answers):
        return [mine_own.RATE for _ in answers]

    def imported(_prompts, answers):
        from mine_own import RATE  # pyright: ignore[reportMissingImports]

        return [RATE for _ in answers]

    def within(_prompts, answers):
        return [mine_within.rates.rate() for _ in answers]

    before = mark(named), mark(imported), mark(within)
    monkeypatch.setattr(mine_within.rates, "rate", closed(2.0))
    assert mark(within) != before[2]
    (tmp_path / "mine_own.py").write_text("RATE = 2.0\n")
    assert mark(named) != before[0] and mark(imported) != before[1]


def test_handles_and_loggers_do_not_count(tmp_path):
    for made in (threading.Lock, threading.RLock, lambda: logging.getLogger("mine"), lambda: sys.stderr):
        assert mark(closed(made())) == mark(closed(made()))
    with (tmp_path / "x").open("w") as one, (tmp_path / "y").open("w") as other:
        assert mark(closed(one)) == mark(closed(other))


def test_what_makes_up_its_attributes_comes_to_an_end():
    assert mark(closed(Mock()))


def test_many_things_take_no_longer_than_they_are_many():
    begun = time.thread_time()
    mark(closed([Judge(i) for i in range(20_000)]))
    assert time.thread_time() - begun < 10, (
        "seven seconds and four times that for twice as many, when each was looked for among all"
    )


def test_what_cannot_be_told_is_never_taken_for_what_was_there_before():
    running = closed(number for number in range(3))
    with pytest.raises(Untold):
        mark(running)
    for reward in (running, closed(chained(1.0)), closed(torch.empty(2, device="meta"))):
        with pytest.warns(UserWarning, match="cannot be told apart"):
            one = sources.given(reward)
            other = sources.given(reward)
        assert one != other and sources.given(reward, "v1") == sources.given(reward, "v1")


def test_a_function_that_calls_itself_has_one():
    def reward(prompts, answers):
        return reward(prompts, answers[1:]) if answers else []

    assert mark(reward) == mark(reward)
