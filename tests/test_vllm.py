"""The vLLM engine: the same completions as the local engine; needs the environment that `make bench` makes."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks.models import prepare_model
from benchmarks.run import python_of
from towpath.algos import surrogate
from towpath.algos.contract import Outputs
from towpath.data.batch import Batch, Row
from towpath.errors import RecipeError, ResourceError
from towpath.models import base
from towpath.recipe import Decoding
from towpath.rollout.engine import SampleRequest
from towpath.rollout.local import LocalEngine
from towpath.rollout.vllm import VllmEngine

DECODINGS = [
    Decoding(),
    Decoding(temperature=0.6),
    Decoding(top_k=7),
    Decoding(temperature=1.2, top_p=0.8),
    Decoding(min_p=0.05),
]
PROMPTS = [[5, 9, 20, 31], [7, 8], [40, 41, 42, 43, 44, 45, 46]]


def sample_requests(count=24, longest=20):
    rng = np.random.default_rng(3)
    return [
        SampleRequest(PROMPTS[i % 3], DECODINGS[i % 5], rng.random(1 + int(rng.integers(longest))))
        for i in range(count)
    ]


def test_missing_python_is_refused(tiny, tmp_path):
    with pytest.raises(RecipeError, match="/nowhere/python"):
        VllmEngine(tiny, 2, tmp_path, "/nowhere/python", 64, 0.1)


def test_environment_without_vllm_is_an_error(tiny, tmp_path):
    with pytest.raises(ResourceError, match="No module named 'vllm'"):
        VllmEngine(tiny, 2, tmp_path, sys.executable, 64, 0.1)


def test_importance_correction_is_truncated():
    rows = [Row(np.array([5, 6, 7, 8]), 2), Row(np.array([5, 9]), 1)]
    old = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]])
    sampler = torch.tensor([[-1.2, -3.5], [-0.1, 0.0]])
    columns = {"old_logp": old, "sampler_logp": sampler, "ref_logp": old, "advantage": torch.tensor([1.0, 1.0])}
    out = Outputs(torch.tensor([[True, True], [True, False]]), logp_BT=old.clone(), entropy_BT=torch.zeros(2, 2))
    plain, _ = surrogate.loss(out, Batch(rows, columns), 0.2, 0.2)
    corrected, _ = surrogate.loss(out, Batch(rows, columns | {"correction": torch.full((2,), 2.0)}), 0.2, 0.2)
    assert plain.item() == pytest.approx(-3.0)
    assert corrected.item() == pytest.approx(-(np.exp(0.2) + 2.0 + np.exp(-0.4)))


SHAPE = {"layers": 2, "width": 64, "heads": 2, "inner": 128, "vocabulary": 512}
"""Heads of 32, the smallest that vLLM supports on a CPU."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return base.load(str(prepare_model(SHAPE, tmp_path_factory.mktemp("models"))), torch.float32, "grouped")


@pytest.fixture(scope="module")
def python():
    path = python_of("vllm")
    if path == sys.executable:
        pytest.skip("no environment with vLLM: `make bench` makes it")
    return path


@pytest.mark.slow
def test_vllm_matches_the_local_engine(model, tmp_path, python):
    """vLLM schedules rows in any order; each row uses its own uniform numbers."""
    model = copy.deepcopy(model)
    stops = [2, 30]
    engine = VllmEngine(model, stops, tmp_path, python, 64, 0.1, rows=7)
    for change in (0.0, 0.5):
        with torch.no_grad():
            model.get_output_embeddings().weight[2:40] += change  # EOS too: some answers end
        engine.refresh(engine.model)
        ended = []
        theirs = engine.generate(sample_requests(), tick=lambda _tokens, rows, ended=ended: ended.append(rows))
        ours = LocalEngine(model, eos=stops, pad=0).generate(sample_requests())
        assert sum(ended) == len(ours)
        if change:
            assert {d.token_ids[-1] for d in ours if d.finish == "stop"} == set(stops)
        for a, b in zip(theirs, ours, strict=True):
            assert a.token_ids == b.token_ids
            assert a.finish == b.finish
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
        greedy = engine.generate(sample_requests(6), greedy=True)
        assert [d.token_ids for d in greedy] == [
            d.token_ids for d in LocalEngine(model, eos=stops, pad=0).generate(sample_requests(6), greedy=True)
        ]
    process = engine.process
    del engine
    assert process.poll() is not None, "the worker ends with its engine"
    assert [path.name for path in tmp_path.iterdir()] == ["vllm.log"]


@pytest.mark.slow
def test_dead_worker_is_an_error(model, tmp_path, python):
    engine = VllmEngine(model, 2, tmp_path, python, 64, 0.1)
    engine.process.kill()
    engine.process.wait()
    with pytest.raises(ResourceError, match="see "):
        engine.generate(sample_requests(3))


@pytest.mark.slow
def test_ppo_run_with_vllm(model, tmp_path, python):
    settings = {
        "model": model.name_or_path,
        "template": "chatml",
        "prompts": [f"w{i} w{i + 40}" for i in range(40)],
        "dtype": "float32",
        "steps": 3,
        "rollout": 8,
        "batch": 4,
        "epochs": 2,
        "max_new_tokens": 8,
        "folder": str(tmp_path),
        "engine": {"type": "vllm", "python": python, "cache": 0.1},
    }
    code = f"""
import json
import towpath as tp
done = tp.train("ppo", reward=lambda asked, said: [len(set(x)) / 8 for x in said], **{settings!r})
print(json.dumps(done.metrics))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert '"sampler_error"' in done.stdout
