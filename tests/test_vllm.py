"""vLLM as the engine, on CPUs: the same completions as the local engine, and every fault of an update is caught.

The environments are those of `make .bench/vllm/.ready .bench/vllm-prev/.ready`, of the newest and the oldest tested
version; without them these tests are skipped.
"""

import copy
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from engine_cases import STOPS, assert_same, change, change_one_projection, sample_requests

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
from towpath.rollout.vllm import VllmEngine, VllmSettings
from towpath.rollout.vllm_environment import FIRST_TESTED, LAST_TESTED

SHAPE = {"layers": 2, "width": 64, "heads": 2, "inner": 128, "vocabulary": 512}
"""Heads of 32, the smallest that vLLM supports on a CPU."""
VERSIONS = {"vllm": LAST_TESTED, "vllm-prev": FIRST_TESTED}
BOTH = ["vllm", pytest.param("vllm-prev", marks=pytest.mark.proof)]


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


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return base.load(str(prepare_model(SHAPE, tmp_path_factory.mktemp("models"))), torch.float32, "grouped")


@pytest.fixture
def model(loaded):
    return copy.deepcopy(loaded)


@pytest.fixture(scope="module")
def fault(tmp_path_factory):
    return tmp_path_factory.mktemp("fault") / "fault"


@pytest.fixture(scope="module", params=BOTH)
def running(request, tmp_path_factory, fault):
    path = python_of(request.param)
    if path == sys.executable:
        pytest.skip(f"no environment with vLLM {VERSIONS[request.param]}: make .bench/{request.param}/.ready")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOWPATH_ENGINE_FAULT", str(fault))
        engine = VllmEngine(VllmSettings(path, STOPS, 64, 0.1, rows=7), tmp_path_factory.mktemp("vllm"))
        yield engine
        if engine.facts:
            assert engine.facts["ready"] == VERSIONS[request.param]
        process = engine.process
        engine.client.end()
        assert process.poll() is not None


@pytest.fixture
def engine(running, model, fault):
    running.refresh(model)
    yield running
    fault.unlink(missing_ok=True)


def ours(model, requests, greedy=False):
    return LocalEngine(model, eos=list(STOPS), pad=0).generate(requests, greedy)


@pytest.mark.slow
def test_vllm_matches_the_local_engine(engine, model):
    """vLLM schedules rows in any order; each row uses its own uniform numbers. Head and embedding differ after the
    change, as they do not where a model ties them."""
    for amount in (0.0, 0.5):
        with torch.no_grad():
            model.get_output_embeddings().weight[2:40] += amount  # EOS too: some answers end
        engine.refresh(model)
        ended = []
        theirs = engine.generate(sample_requests(), tick=lambda _tokens, rows, ended=ended: ended.append(rows))
        assert sum(ended) == len(theirs)
        assert_same(theirs, ours(model, sample_requests()))
        if amount:
            assert {d.token_ids[-1] for d in theirs if d.finish == "stop"} == set(STOPS)
        assert_same(engine.generate(sample_requests(6), greedy=True), ours(model, sample_requests(6), greedy=True))
    assert engine.last_sync.checked > 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("corrupt", "came with other values"),
        ("skip", "tensors came; the first that is missing is model"),
        ("stale", "vLLM serves version"),
        ("damage", "embed_tokens.weight serves with other values"),
    ],
)
def test_wrong_weights_are_caught(engine, model, fault, name, reason):
    change(model)
    fault.write_text(name)
    with pytest.raises(ResourceError, match=reason):
        engine.refresh(model)
    assert not fault.exists(), "the fault happened"
    engine.refresh(model)
    assert_same(engine.generate(sample_requests(6)), ours(model, sample_requests(6)))


@pytest.mark.slow
def test_stale_weights_that_vllm_repacked_are_caught(engine, model, fault):
    change_one_projection(model)
    fault.write_text("stale")
    with pytest.raises(ResourceError, match="vLLM serves version"):
        engine.refresh(model)


@pytest.mark.slow
def test_a_killed_engine_costs_only_its_requests(engine, model, fault, capsys):
    fault.write_text("die")
    ended = []
    theirs = engine.generate(sample_requests(), tick=lambda _units, rows: ended.append(rows))
    assert_same(theirs, ours(model, sample_requests()))
    assert len(ended) == len(theirs)
    assert "it is started again" in capsys.readouterr().err


@pytest.mark.slow
def test_own_sampler_gives_the_log_probabilities_of_the_model(engine, model, tmp_path, capsys):
    """Under the temperature, and by the request alone; with a filter vLLM starts again with exact draws."""
    settings = VllmSettings(engine.settings.python, STOPS, 64, 0.1, exact=False)
    own = VllmEngine(settings, tmp_path)
    own.refresh(model)
    rng = np.random.default_rng(1)
    requests = [SampleRequest([5, 9, 20], Decoding(temperature=t), rng.random(12)) for t in (0.7, 1.0, 1.3) * 4]
    first = own.generate(requests)
    assert [d.token_ids for d in own.generate(requests[::-1])] == [d.token_ids for d in first[::-1]]
    assert len({tuple(d.token_ids) for d in first}) > 6
    for request, answer in zip(requests, first, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*request.prompt, *answer.token_ids]])).logits[0, 2:-1].float()
        logp = (logits / request.decoding.temperature).log_softmax(-1)
        expected = logp.gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        assert answer.logprobs == pytest.approx(expected.tolist(), abs=1e-3)
    filtered = sample_requests(6)
    with pytest.raises(RecipeError, match=r"engine\.exact = false"):
        own.generate(filtered)
    own.settings = VllmSettings(engine.settings.python, STOPS, 64, 0.1)
    assert_same(own.generate(filtered), ours(model, filtered))
    assert "exact draws" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.proof
@pytest.mark.parametrize("transport", ["shm", "nccl"])
def test_tensor_parallel_workers_draw_by_the_request(model, tmp_path, monkeypatch, transport):
    """Two workers of one engine; NCCL's place is taken by gloo."""
    python = python_of("vllm")
    if python == sys.executable or (os.cpu_count() or 1) < 2:
        pytest.skip(f"no environment with vLLM {LAST_TESTED}, or one core")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    engine = VllmEngine(VllmSettings(python, STOPS, 64, 0.1, tensor_parallel=2, transport=transport), tmp_path)
    for _ in range(2):
        change(model)
        engine.refresh(model)
        assert_same(engine.generate(sample_requests()), ours(model, sample_requests()))
    assert len(engine.facts["devices"]) == 2
    assert engine.last_sync.transport == transport
    group = engine.process.pid
    engine.client.end()
    until = time.monotonic() + 30
    while running_in_group(group) and time.monotonic() < until:
        time.sleep(0.1)
    assert not running_in_group(group), "workers of the engine end with it"


def running_in_group(group):
    """Processes of a group, but for those that ended and were not waited for."""
    done = subprocess.run(["ps", "-eo", "pgid=,stat=,pid="], capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    return [pid for pgid, stat, pid in rows if int(pgid) == group and not stat.startswith("Z")]


SECOND_RUNNER = """
import json, sys
from types import SimpleNamespace as Box
sys.path.insert(0, sys.argv[1])
import numpy as np, torch
import draw
from vllm import SamplingParams
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState

case = json.load(sys.stdin)
logits = torch.tensor(case["logits"])                      # [B,V]
slots = case["slots"]
states = LogitsProcRequestState(
    device=torch.device("cpu"), max_num_reqs=16, vocab_size=logits.shape[1], all_token_ids=None,
    prompt_len=Box(gpu=torch.zeros(16, dtype=torch.int32)), prefill_len=None, total_len=None,
)
processor = draw.Draw(Box(model_config=Box(max_model_len=64)), states)
for slot, one in zip(slots, case["requests"]):
    states.prompt_len.gpu[slot] = one["prompt"]
    extra = {name: one[name] for name in draw.COLUMNS} | {"uniforms": np.array(one["uniforms"]).tobytes()}
    how = SamplingParams(temperature=0.0, extra_args=extra if one["exact"] else None)
    assert processor.add_request(slot, how) == one["exact"]
processor.apply_staged_writes()
context = LogitsContext(
    expanded_idx_mapping=torch.tensor(slots, dtype=torch.int32), idx_mapping=torch.tensor(slots, dtype=torch.int32),
    idx_mapping_np=np.array(slots), expanded_local_pos=torch.zeros(len(slots), dtype=torch.int32),
    input_ids=torch.zeros(len(slots), dtype=torch.int32),
    pos=torch.tensor([one["prompt"] + one["step"] - 1 for one in case["requests"]]),
    seq_lens_upper_bound_np=np.zeros(len(slots)),
)
out = processor.apply(logits.clone(), context)
left = (out > -1e30).sum(-1)
print(json.dumps({"token": out.argmax(-1).tolist(), "logp": out.amax(-1).tolist(), "left": left.tolist()}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("environment", BOTH)
def test_draws_of_the_second_model_runner(environment):
    """Its kernels need a GPU; here its own request state and context are given to the processor, in vLLM's Python."""
    python = python_of(environment)
    if python == sys.executable:
        pytest.skip(f"no environment with vLLM {VERSIONS[environment]}: make .bench/{environment}/.ready")
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(10, 64)).astype(np.float32) * 3
    decodings = [request.decoding.model_dump() for request in sample_requests(10)]
    cases = [
        decoding | {"prompt": 3 + i, "step": i, "uniforms": rng.random(12).tolist(), "greedy": i == 7, "exact": i != 4}
        for i, decoding in enumerate(decodings)
    ]
    slots = rng.permutation(16)[:10].tolist()
    code = json.dumps({"logits": logits.tolist(), "slots": slots, "requests": cases})
    folder = str(base_folder())
    done = subprocess.run(
        [python, "-P", "-c", SECOND_RUNNER, folder], input=code, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    draws = json.loads(done.stdout.splitlines()[-1])
    for i, case in enumerate(cases):
        if not case["exact"]:
            assert draws["left"][i] == 64, "vLLM's own sampler draws this row"
            continue
        token, logp = expected_draw(logits[i], case)
        assert (draws["token"][i], draws["left"][i]) == (token, 1)
        assert draws["logp"][i] == pytest.approx(logp, abs=1e-5)


def base_folder():
    from towpath.rollout.vllm_client import SERVE

    return SERVE.parent


def expected_draw(logits_V, case):
    """By sorting nothing: the definition of each filter, then the first token whose running mass passes the uniform
    number."""
    z = logits_V.astype(np.float64) / case["temperature"]
    p = np.exp(z - z.max())
    p /= p.sum()
    if case["greedy"]:
        return int(logits_V.argmax()), float(np.log(p[logits_V.argmax()]))
    filtered = p.copy()
    if case["top_k"]:
        filtered[p < np.sort(p)[-case["top_k"]]] = 0
    filtered[filtered < case["min_p"] * filtered.max()] = 0
    if case["top_p"] < 1:
        order = np.argsort(-filtered)
        count = int((np.cumsum(filtered[order]) < case["top_p"] * filtered.sum()).sum()) + 1
        filtered[order[count:]] = 0
    goal = case["uniforms"][case["step"]] * filtered.sum()
    token = int((np.cumsum(filtered) <= goal).sum())
    return token, float(np.log(p[token]))


@pytest.mark.slow
def test_ppo_run_with_vllm(model, tmp_path):
    python = python_of("vllm")
    if python == sys.executable:
        pytest.skip(f"no environment with vLLM {LAST_TESTED}: make .bench/vllm/.ready")
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
