"""Sampling and decoding: exact distributions, greedy decoding equal to transformers, independence of the batch."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import GenerationConfig

from towpath.data.batch import Batch, Row
from towpath.models.adapters import Adapters
from towpath.models.cpu import layers
from towpath.recipe import Decoding
from towpath.rollout import local, sampling
from towpath.rollout.engine import SampleRequest
from towpath.rollout.local import LocalEngine
from towpath.runtime.local import Local
from towpath.runtime.models import Role

PROMPTS = [[5, 9, 20, 31], [7, 8], [40, 41, 42, 43, 44, 45, 46], [99]]


def requests(decoding=None, tokens=12, seed=0):
    rng = np.random.default_rng(seed)
    return [SampleRequest(p, decoding or Decoding(), rng.random(tokens)) for p in PROMPTS]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 7},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
    ],
)
def test_draws_follow_the_filtered_distribution(how):
    torch.manual_seed(1)
    vocabulary = 600
    draws = 20000
    decoding = Decoding(**how)
    logits = torch.randn(1, vocabulary) * 2
    p = sampling.scaled(logits.clone(), torch.tensor([decoding.temperature]))
    column = {name: torch.tensor([getattr(decoding, name)]) for name in ("top_k", "top_p", "min_p")}
    filtered = sampling.filtered(p, column["top_k"], column["top_p"], column["min_p"])[0].double()
    reference = plain_filter((logits[0] / decoding.temperature).softmax(-1).double(), decoding)
    torch.testing.assert_close(filtered / filtered.sum(), reference, atol=1e-6, rtol=0)
    uniform = torch.from_numpy(np.random.default_rng(5).random(draws))
    token = sampling.inverse_cdf(filtered[None].expand(draws, -1).float(), uniform)
    counts = torch.bincount(token, minlength=vocabulary).numpy()
    assert counts[reference.numpy() == 0].sum() == 0
    common = reference.numpy() * draws > 5
    rest_seen = counts[~common].sum()
    rest_due = reference.numpy()[~common].sum() * draws
    observed = np.append(counts[common], rest_seen)
    expected = np.append(reference.numpy()[common] * draws, rest_due)
    keep = expected > 0
    assert chisquare(observed[keep], expected[keep] * observed[keep].sum() / expected[keep].sum()).pvalue > 1e-3


def test_per_row_filters_do_not_depend_on_the_batch(monkeypatch):
    ranked = []
    monkeypatch.setattr(
        sampling, "_nucleus", lambda p, top, plain=sampling._nucleus: ranked.append(len(p)) or plain(p, top)
    )
    p = torch.randn(4, 600, generator=torch.Generator().manual_seed(3)).mul(2).softmax(-1)
    whole = p.clone()
    column = (torch.tensor([0, 9, 5, 0]), torch.tensor([1.0, 0.8, 1.0, 0.3]), torch.tensor([0.0, 0.0, 0.0, 0.05]))
    together = sampling.filtered(p, *column)
    assert ranked == [2], "rows without top-p need no ranking"
    assert torch.equal(p, whole)
    for i in range(4):
        assert torch.equal(together[i : i + 1], sampling.filtered(p[i : i + 1], *(c[i : i + 1] for c in column)))


def test_top_k_beyond_the_vocabulary_keeps_all():
    p = torch.randn(2, 600, generator=torch.Generator().manual_seed(3)).softmax(-1)
    assert torch.equal(sampling.filtered(p, torch.tensor([5000, 600]), torch.ones(2), torch.zeros(2)), p)


def plain_filter(p: torch.Tensor, how: Decoding) -> torch.Tensor:
    """top-k, min-p and top-p by a full sort."""
    order = p.argsort(descending=True)
    if how.top_k:
        p = torch.where(p < p[order[how.top_k - 1]], 0.0, p)
    p = torch.where(p < how.min_p * p.max(), 0.0, p)
    if how.top_p < 1:
        ranked = p[order] / p.sum()
        before = ranked.cumsum(0) - ranked
        p[order[before >= how.top_p]] = 0.0
    return p / p.sum()


def test_edges_of_the_uniform_stay_inside_the_kept_tokens():
    p = torch.zeros(3, 600)
    p[:, 300], p[:, 599] = 0.25, 0.75
    token = sampling.inverse_cdf(p, torch.tensor([0.0, 0.999999999, 0.2]))
    assert token.tolist() == [300, 599, 300]


def test_engine_logprobs_match_the_runtime(tiny):
    completions = LocalEngine(tiny, eos=2, pad=0).generate(requests(Decoding(temperature=0.7)))
    local = Local()
    local.add_trunk("base", tiny, lora=False)
    local.roles["policy"] = Role()
    rows = [Row(np.array([*p, *d.token_ids]), len(p)) for p, d in zip(PROMPTS, completions, strict=True)]
    out = local.score("policy", Batch(rows), ("logp",), 0.7)
    for i, d in enumerate(completions):
        assert out.logp_BT[i, : len(d.logprobs)].tolist() == pytest.approx(d.logprobs, abs=1e-5)


def test_greedy_decoding_matches_transformers(tiny):
    completions = LocalEngine(tiny, eos=2, pad=0).generate(requests(), greedy=True)
    for prompt, d in zip(PROMPTS, completions, strict=True):
        out = tiny.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
        )
        assert out[0, len(prompt) :].tolist() == d.token_ids


def test_completion_does_not_depend_on_the_batch(tiny):
    every = requests()
    together = LocalEngine(tiny, eos=2, pad=0).generate(every)
    alone = [LocalEngine(tiny, eos=2, pad=0).generate([r])[0] for r in every]
    backwards = LocalEngine(tiny, eos=2, pad=0, rows=3).generate(every[::-1])[::-1]
    assert [d.token_ids for d in together] == [d.token_ids for d in alone] == [d.token_ids for d in backwards]


@pytest.mark.parametrize("at_once", [1, 10, 2048])
def test_rows_of_different_lengths_with_shared_prompts_match_single_rows(tiny, monkeypatch, at_once):
    monkeypatch.setattr(local, "CPU_TOKENS", at_once)
    rng = np.random.default_rng(4)
    limits = [40, 3, 17, 25, 1, 33, 16, 32]
    wanted = [
        SampleRequest(PROMPTS[i % 3], Decoding(temperature=0.9), rng.random(limit)) for i, limit in enumerate(limits)
    ]
    together = LocalEngine(tiny, eos=2, pad=0).generate(wanted)
    for request, completion in zip(wanted, together, strict=True):
        (alone,) = LocalEngine(tiny, eos=2, pad=0).generate([request])
        assert completion.token_ids == alone.token_ids
        assert completion.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpu_decoder_matches_the_transformers_path(tiny, monkeypatch, dtype):
    """The CPU decoder, with weights packed in bfloat16, against the model's own layers."""
    model = copy.deepcopy(tiny).to(dtype)
    wanted = [SampleRequest(PROMPTS[i % 3], Decoding(), np.random.default_rng(i).random(12)) for i in range(6)]
    ours = LocalEngine(model, eos=2, pad=0).generate(wanted)
    monkeypatch.setattr(layers, "is_supported", lambda _model: False)
    theirs = LocalEngine(model, eos=2, pad=0).generate(wanted)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    same = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.token_ids == b.token_ids]
    assert len(same) >= (len(wanted) if dtype == torch.float32 else 4)
    assert all(a.logprobs == pytest.approx(b.logprobs, abs=tolerance) for a, b in same)


def test_shared_prompt_is_prefilled_once(tiny):
    shapes = []
    hook = tiny.get_input_embeddings().register_forward_pre_hook(
        lambda _module, inputs: shapes.append(tuple(inputs[0].shape))
    )
    LocalEngine(tiny, eos=2, pad=0).generate([SampleRequest(PROMPTS[0], Decoding(), np.full(2, 0.5))] * 5)
    hook.remove()
    assert shapes[0] == (1, len(PROMPTS[0]))
    assert shapes[1] == (5, 1)


def test_completions_stop_at_eos_and_at_the_limit(tiny):
    with torch.no_grad():
        tiny.get_output_embeddings().weight[2] += 1.0  # EOS is likely, but not certain
    completions = LocalEngine(tiny, eos=2, pad=0).generate(requests(tokens=40))
    assert {d.finish for d in completions} == {"stop", "length"}
    for d in completions:
        assert 2 not in d.token_ids[:-1]
        assert (d.token_ids[-1] == 2) == (d.finish == "stop")
        assert len(d.token_ids) == len(d.logprobs) <= 40


def test_active_adapter_changes_logprobs(tiny):
    """Weights are packed for sampling only if no adapter is active."""
    model = copy.deepcopy(tiny).bfloat16()
    adapters = Adapters(model)
    adapters.add("policy", 4, 8.0, seed=0)
    for weight in adapters.parameters("policy").values():
        torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(1))

    def logprobs():
        wanted = [SampleRequest(PROMPTS[i % 3], Decoding(), np.random.default_rng(i).random(6)) for i in range(4)]
        return [completion.logprobs for completion in LocalEngine(model, eos=2, pad=0).generate(wanted)]

    plain = logprobs()
    with adapters.acting("policy"):
        assert logprobs() != plain


def test_completion_ends_at_any_eos_token(tiny):
    """As in transformers with a list of EOS tokens in the generation configuration."""
    whole = LocalEngine(tiny, eos=[], pad=0).generate(requests(tokens=40))
    stops = [2, whole[0].token_ids[9], whole[2].token_ids[17]]
    completions = LocalEngine(tiny, eos=stops, pad=0).generate(requests(tokens=40))
    for every, d in zip(whole, completions, strict=True):
        places = [i for i, token in enumerate(every.token_ids) if token in stops]
        assert d.token_ids == every.token_ids[: places[0] + 1 if places else None]
        assert d.finish == ("stop" if places else "length")
        assert d.logprobs == pytest.approx(every.logprobs[: len(d.logprobs)], abs=1e-5)
    assert {d.token_ids[-1] for d in completions if d.finish == "stop"} >= set(stops[1:2])
    greedy = LocalEngine(tiny, eos=stops, pad=0).generate(requests(), greedy=True)
    for prompt, d in zip(PROMPTS, greedy, strict=True):
        settings = GenerationConfig(eos_token_id=stops, pad_token_id=0, max_new_tokens=12, do_sample=False)
        out = tiny.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), generation_config=settings
        )
        assert out[0, len(prompt) :].tolist() == d.token_ids
