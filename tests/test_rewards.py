"""Reward sources and how they are combined to one reward; the endpoint is a real HTTP server."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import numpy as np
import pytest

from towpath.errors import RecipeError, RewardError
from towpath.recipe import Rewards
from towpath.rewards import shaping, sources

SCORES = np.array([[1.0, -2.0, 0.5], [0.0, 4.0, 0.5]])
ENDED = np.array([True, False, True])
ANSWERS = [[1, 2, 3, 4], [1, 2, 1, 2, 1, 2], [7, 8, 9]]


def rewards(**settings) -> Rewards:
    return Rewards.model_validate({"eos_penalty": 0.0} | settings)


@pytest.mark.parametrize(
    ("how", "want"),
    [
        ("sum", [2.0, 0.0, 1.5]),
        ("mean", [2 / 3, 0.0, 0.5]),
        ("min", [0.0, -4.0, 0.5]),
        ("cautious", [2 / 3 - 2**0.5 / 6, 0.0 - 2**0.5, 0.5]),
    ],
)
def test_combine_modes(how, want):
    cfg = rewards(sources=[{"source": "model", "weight": 2.0}, {"source": "rule:prose"}], combine=how, std_penalty=0.5)
    assert shaping.combine_sources(SCORES, cfg).tolist() == pytest.approx(want)


def test_zero_weight_is_ignored_and_weights_are_normalized():
    scores = np.array([[2.0], [100.0]])
    both = [{"source": "model", "weight": 1.0}, {"source": "rule:prose", "weight": 0.0}]
    assert shaping.combine_sources(scores, rewards(sources=both, combine="cautious")).tolist() == [2.0]
    for weight in (1.0, 2.0):
        against = [{"source": "model", "weight": weight}, {"source": "rule:prose", "weight": -weight}]
        assert shaping.combine_sources(
            np.array([[2.0], [2.0]]), rewards(sources=against, combine="cautious", std_penalty=1.0)
        ).tolist() == pytest.approx([-2.0])


@pytest.mark.parametrize(
    ("how", "want"), [("mean", [0.5, 1.0, 0.5]), ("min", [0.0, -2.0, 0.5]), ("cautious", [0.25, -0.5, 0.5])]
)
def test_ensemble_modes(how, want):
    assert shaping.combine_ensemble(SCORES, rewards(ensemble=how, std_penalty=0.5)).tolist() == pytest.approx(want)


def test_single_source_is_unchanged():
    cfg = rewards()
    assert shaping.shape_rewards(shaping.combine_sources(SCORES[:1], cfg), ANSWERS, ENDED, ["a"] * 3, cfg).tolist() == [
        1.0,
        -2.0,
        0.5,
    ]


@pytest.mark.parametrize(("how", "want"), [("subtract", [1.0, -3.0, 0.5]), ("replace", [1.0, -1.0, 0.5])])
def test_missing_eos_modes(how, want):
    assert (
        shaping.shape_rewards(SCORES[0], ANSWERS, ENDED, ["a"] * 3, rewards(missing_eos=how, eos_penalty=1.0)).tolist()
        == want
    )


def test_shaping_order_is_clip_penalty_domain_weight():
    cfg = rewards(clip=1.0, eos_penalty=0.5, domains={"b": 3.0})
    assert shaping.shape_rewards(SCORES[0], ANSWERS, ENDED, ["a", "b", "b"], cfg).tolist() == [1.0, -4.5, 1.5]


def test_length_repetition_and_diversity_terms():
    zero = np.zeros(3)
    assert shaping.shape_rewards(
        zero, ANSWERS, ENDED, [""] * 3, rewards(length_limit=4, length_penalty=0.1)
    ).tolist() == pytest.approx([0, -0.2, 0])
    # 1 2 1, 2 1 2, 1 2 1, 2 1 2: four trigrams, two of them distinct.
    assert shaping.shape_rewards(
        zero, ANSWERS, ENDED, [""] * 3, rewards(repetition_penalty=1.0)
    ).tolist() == pytest.approx([0, -0.5, 0])
    # The first answer has the bigrams 12 23 34, the second 12 21 and shares 12; the third shares none.
    assert shaping.unique_ngram_share(ANSWERS).tolist() == pytest.approx([2 / 3, 1 / 2, 1.0])
    assert shaping.shape_rewards(
        zero, ANSWERS, ENDED, [""] * 3, rewards(diversity_bonus=0.3)
    ).tolist() == pytest.approx([0.2, 0.15, 0.3])


@pytest.mark.parametrize(
    ("source", "answers", "want"),
    [
        ("rule:words:2-3", ["one", "one two", "one two three four"], [0.0, 1.0, 0.0]),
        ("rule:regex:\\bbecause\\b", ["because of it", "becausely"], [1.0, 0.0]),
        ("rule:prose", ["A sentence.", "1. First\n2. Second", "- a point", "It costs 1.50 now."], [1.0, 0.0, 0.0, 1.0]),
    ],
)
def test_rules(source, answers, want):
    assert list(sources.load_source(source)([""] * len(answers), answers)) == want


@pytest.mark.parametrize(
    "source",
    [
        "rule:words:3",
        "rule:words:5-2",
        "rule:regex:(",
        "rule:nothing",
        "python:os:no_such",
        "python:nowhere:f",
        "ftp://x",
        "x",
        "http://",
        "python:os:path",
    ],
)
def test_invalid_source_is_refused(source):
    with pytest.raises(RecipeError) as error:
        sources.load_source(source)
    assert error.value.rule
    assert error.value.fix


def test_python_function_source(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def brevity(prompts, answers):\n    return [len(p) - len(a) for p, a in zip(prompts, answers)]\n"
        "def short(prompts, answers):\n    return [1.0]\ndef odd(prompts, answers):\n    return [float('nan')] * "
        "len(answers)\n"
        "def words(prompts, answers):\n    return [1.0, 'good']\ndef none(prompts, answers):\n    return None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(sources.load_source("python:my_rewards:brevity")(["abc", "a"], ["a", "abc"])) == [2.0, -2.0]
    for name, text in (
        ("short", "1 scores for 2 answers"),
        ("odd", "a score of nan"),
        ("words", "scores are .1.0, 'good'."),
        ("none", "scores are None"),
    ):
        with pytest.raises(RewardError, match=text):
            sources.load_source(f"python:my_rewards:{name}")(["a", "b"], ["a", "b"])
    sys.modules.pop("my_rewards", None)


def test_functions_with_the_same_name_and_different_code():
    def scorer(value):
        def reward(prompts, answers):
            return [len(answer) for answer in answers]

        def other(prompts, answers):
            return [-len(answer) for answer in answers]

        other.__qualname__ = reward.__qualname__
        return reward if value else other

    assert sources.register_function(scorer(True)) == sources.register_function(scorer(True))
    assert sources.register_function(scorer(True)) != sources.register_function(scorer(False))
    assert list(sources.load_source(sources.register_function(scorer(False)))([""], ["abc"])) == [-3.0]


class _RewardEndpoint(BaseHTTPRequestHandler):
    batch_sizes: ClassVar[list[int]] = []
    error_statuses: ClassVar[list[int]] = []

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.batch_sizes.append(len(content["answers"]))
        if self.error_statuses:
            self.send_response(self.error_statuses.pop(0))
            self.end_headers()
            return
        scores = [len(answer) for answer in content["answers"]]
        if self.path == "/shifted":
            scores = scores[:-1] if len(self.batch_sizes) == 1 else [*scores, 0]
        text = json.dumps({"other": 1} if self.path == "/elsewhere" else {"scores": scores}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text) + (1000 if self.path == "/torn" else 0)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def judge(monkeypatch):
    _RewardEndpoint.batch_sizes = []
    _RewardEndpoint.error_statuses = []
    monkeypatch.setattr(sources.time, "sleep", lambda _seconds: None)
    server = HTTPServer(("127.0.0.1", 0), _RewardEndpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_endpoint_is_called_in_batches_and_retried(judge):
    _RewardEndpoint.error_statuses = [503, 429]
    answers = ["x" * i for i in range(100)]
    assert list(sources.load_source(f"{judge}/score")([""] * 100, answers)) == list(range(100))
    assert _RewardEndpoint.batch_sizes == [64, 64, 64, 36]


def test_endpoint_score_count_is_checked_per_batch(judge):
    # 63 and 37 scores for 64 and 36 answers have the right sum, but belong to other answers
    with pytest.raises(RewardError, match="63 scores for 64 answers"):
        sources.load_source(f"{judge}/shifted")([""] * 100, ["x"] * 100)


def test_failing_function_error_names_the_line():
    def mine(_prompts, _answers):
        raise ValueError("no such word")

    with pytest.raises(RewardError, match=r"mine.*ValueError: no such word \(.*test_rewards\.py:\d+\)"):
        sources.load_source(sources.register_function(mine))(["p"], ["a"])
    for wrong in ("11", {0.0: 1, 1.0: 1}):
        with pytest.raises(RewardError, match="scores are"):
            sources.validate_scores("mine", wrong, 2)  # pyright: ignore[reportArgumentType]


def test_score_beyond_float32_is_refused():
    with pytest.raises(RewardError, match=r"a score of 1e\+39"):
        sources.validate_scores("mine", [0.0, 1e39], 2)


def test_endpoint_errors(judge):
    _RewardEndpoint.error_statuses = [400]
    with pytest.raises(RewardError, match="400"):
        sources.load_source(f"{judge}/score")([""], ["a"])
    assert _RewardEndpoint.batch_sizes == [1], "a client error is not retried"
    with pytest.raises(RewardError, match="KeyError"):
        sources.load_source(f"{judge}/elsewhere")([""], ["a"])
    with pytest.raises(RewardError, match="the connection broke"):
        sources.load_source(f"{judge}/torn")([""], ["a"])
    assert _RewardEndpoint.batch_sizes == [1] * 7, "an interrupted response is tried three times"
    with pytest.raises(RewardError, match=r"refused|Connect call failed"):
        sources.load_source("http://127.0.0.1:9/score")([""], ["a"])
