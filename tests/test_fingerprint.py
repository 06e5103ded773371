"""The fingerprint of a reward function changes with its source, its module and the plain values bound to it."""

import functools
import importlib
import subprocess
import sys

import numpy as np
import pytest

from towpath.rewards import sources
from towpath.rewards.fingerprint import NoFingerprint, fingerprint

MODULE = "RATE = {rate}\n\ndef reward(prompts, answers):\n    return [RATE for _ in answers]\n"


def closure(value):
    def reward(_prompts, answers):
        return [value for _ in answers]

    return reward


def weighted(_prompts, answers, weight=1.0):
    return [weight for _ in answers]


class Judge:
    def __init__(self, rate):
        self.rate = rate

    def __call__(self, _prompts, answers):
        return [self.rate for _ in answers]

    def score(self, _prompts, answers):
        return [self.rate for _ in answers]


@pytest.mark.parametrize(
    "make",
    [
        closure,
        Judge,
        lambda rate: Judge(rate).score,
        lambda rate: functools.partial(weighted, weight=rate),
        lambda rate: lambda _prompts, answers, rate=rate: [rate for _ in answers],
        lambda rate: closure({"a": [rate, "b"]}),
    ],
)
def test_bound_values_change_the_fingerprint(make):
    assert fingerprint(make(1.0)) == fingerprint(make(1.0))
    assert fingerprint(make(1.0)) != fingerprint(make(2.0))


def test_functions_of_one_module_or_line_have_different_fingerprints():
    longer, shorter = (lambda _p, answers: [len(a) for a in answers]), (lambda _p, answers: [-len(a) for a in answers])
    assert len({fingerprint(f) for f in (longer, shorter, weighted, Judge(1.0), Judge(1.0).score)}) == 5


def test_fingerprint_depends_on_module_source_not_on_folder_or_process(tmp_path):
    def fingerprint_of(folder, rate):
        path = tmp_path / folder
        path.mkdir()
        (path / "own_reward.py").write_text(MODULE.format(rate=rate))
        code = "import own_reward\nfrom towpath.rewards.fingerprint import fingerprint\n"
        command = [sys.executable, "-c", code + "print(fingerprint(own_reward.reward))"]
        return subprocess.run(command, cwd=path, capture_output=True, text=True, check=True).stdout

    first = fingerprint_of("first", 1.0)
    assert first == fingerprint_of("second", 1.0)
    assert first != fingerprint_of("third", 2.0), "a global of the module has another value"


def test_decorated_function_has_no_fingerprint():
    @functools.wraps(weighted)
    def reward(_prompts, answers):
        return [2.0 for _ in answers]

    with pytest.raises(NoFingerprint):
        fingerprint(reward)


@pytest.mark.parametrize("value", [np.ones(3), {1, 2}, closure(1.0), (n for n in range(3))])
def test_reward_without_fingerprint_needs_a_name_to_resume(value):
    reward = closure(value)
    with pytest.warns(UserWarning, match="pass a name"):
        names = [sources.register_function(reward) for _ in range(2)]
    assert names[0] != names[1]
    assert sources.register_function(reward, "v1") == sources.register_function(reward, "v1")


def test_function_without_source_has_no_fingerprint():
    namespace: dict = {}
    exec("def reward(prompts, answers):\n    return [1.0 for _ in answers]\n", namespace)
    for function in (namespace["reward"], len):
        with pytest.raises(NoFingerprint):
            fingerprint(function)


def test_function_with_a_deleted_file_has_no_fingerprint(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "vanished_reward.py").write_text(MODULE.format(rate=1.0))
    reward = importlib.import_module("vanished_reward").reward
    (tmp_path / "vanished_reward.py").unlink()
    with pytest.raises(NoFingerprint):
        fingerprint(reward)
