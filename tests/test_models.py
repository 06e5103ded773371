"""Log-probabilities, gradients, heads and adapters against plain transformers, for every packing and padding."""

import copy
import itertools
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from towpath.data import batch as data_batch
from towpath.data.batch import Batch, Row, pack
from towpath.models import heads, lm
from towpath.models.cpu import layers
from towpath.models.heads import WIDE, RidgeHead, ScalarHead
from towpath.models.lora_layers import LoraLinear, Switch
from towpath.runtime import process
from towpath.runtime.checkpoints import Checkpoints
from towpath.runtime.local import Local
from towpath.runtime.models import Role
from towpath.stages import loop

RNG = np.random.default_rng(3)
ROWS = [Row(RNG.integers(3, 250, n), start) for n, start in ((9, 3), (5, 2), (14, 6), (7, 1))]


def runtime(model, lora=False, **kwargs) -> Local:
    local = Local(pad=0, **kwargs)
    local.add_trunk("base", model, lora)
    local.roles["policy"] = Role(trains=() if lora else ("trunk",))
    return local


def reference_logp(model, row: Row, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of one row by the plain model."""
    ids = torch.from_numpy(row.ids)[None]
    logits = model(input_ids=ids).logits[0].float() / temperature
    return logits.log_softmax(-1)[torch.arange(row.start - 1, len(row.ids) - 1), ids[0, row.start :]]


@pytest.mark.parametrize("width", [0, 16, 40])
@pytest.mark.parametrize("tokens", [8, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_do_not_depend_on_packing(tiny, width, tokens, temperature):
    local = runtime(tiny, pack_width=width, tokens_per_pass=tokens)
    out = local.score("policy", Batch(ROWS), ("logp",), temperature)
    for i, row in enumerate(ROWS):
        with torch.no_grad():
            expected = reference_logp(tiny, row, temperature)
        torch.testing.assert_close(out.logp_BT[i, : row.answer_length], expected, atol=1e-5, rtol=0)
        assert not out.logp_BT[i, row.answer_length :].any()


def gradients(model, rows, **kwargs) -> dict[str, torch.Tensor]:
    from towpath.algos import sft

    local = runtime(copy.deepcopy(model).double(), **kwargs)
    local.start({"policy": 1e-3})
    batch = Batch(rows)
    local.forward_backward(sft.TRAINS, batch, lambda out, part: sft.loss(out, part, None, {}), sft.weigh(batch, None))
    return {key: p.grad.clone() for key, p in local.trained().items() if p.grad is not None}


@pytest.mark.parametrize(
    "change", [{"tokens_per_pass": 8}, {"pack_width": 40}, {"pack_width": 20, "tokens_per_pass": 24}]
)
def test_gradient_does_not_depend_on_padding_packing_or_micro_batches(tiny, change):
    plain = gradients(tiny, ROWS)
    other = gradients(tiny, ROWS, **change)
    reordered = gradients(tiny, ROWS[::-1])
    for key, grad in plain.items():
        torch.testing.assert_close(other[key], grad, atol=1e-6, rtol=0)
        torch.testing.assert_close(reordered[key], grad, atol=1e-6, rtol=0)


def test_weight_of_a_demonstration_equals_repetition(tiny):
    from towpath.algos import sft

    def gradient(batch: Batch) -> dict[str, torch.Tensor]:
        local = runtime(copy.deepcopy(tiny).double())
        local.start({"policy": 1e-3})
        local.forward_backward(
            sft.TRAINS, batch, lambda out, part: sft.loss(out, part, None, {}), sft.weigh(batch, None)
        )
        return {key: p.grad.clone() for key, p in local.trained().items() if p.grad is not None}

    weighed = gradient(Batch(ROWS[:2], {"weight": torch.tensor([[2.0] * 6, [1.0] * 6])}))
    for key, grad in gradient(Batch([ROWS[0], ROWS[0], ROWS[1]])).items():
        torch.testing.assert_close(weighed[key], grad, atol=1e-6, rtol=0)


@pytest.mark.parametrize("learned", [False, True], ids=["frozen", "learned"])
def test_token_logprobs_gradient_matches_autograd(learned):
    torch.manual_seed(0)
    head = torch.randn(50, 8, dtype=torch.float64, requires_grad=learned)
    target = torch.randint(0, 50, (7,))
    weight = torch.randn(7, dtype=torch.float64)
    hidden = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    fast, entropy = lm.token_logprobs(hidden, head, target, 0.7, chunk=3)
    (fast * weight).sum().backward()
    fast_grads = hidden.grad, head.grad
    hidden.grad = head.grad = None
    logp = (hidden @ head.T / 0.7).log_softmax(-1)
    (logp.gather(1, target[:, None])[:, 0] * weight).sum().backward()
    for fast_grad, grad in zip(fast_grads, (hidden.grad, head.grad), strict=True):
        assert (grad is None) == (fast_grad is None)
        if grad is not None:
            torch.testing.assert_close(fast_grad, grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        entropy, -(logp.exp() * logp).sum(-1).detach().float(), check_dtype=False, atol=1e-5, rtol=0
    )


def test_float32_matmul_is_not_rounded_to_bfloat16():
    """On processors with AMX oneDNN computes them in bfloat16 at reduced precision settings."""
    before = torch.get_float32_matmul_precision()
    try:
        process.prepare_process()
        assert not process.products_round()
        torch.set_float32_matmul_precision("medium")
        assert process.products_round() or not torch.cpu._is_amx_tile_supported()
    finally:
        torch.set_float32_matmul_precision(before)


def test_eos_gets_a_gradient_if_the_model_pads_with_eos(tiny, chat):
    assert chat.pad != chat.eos
    row = Row(np.array([*chat.prompt("hi"), *chat.answer("yo")]), len(chat.prompt("hi")))
    grads = gradients(tiny, [row])
    embedding = next(grad for key, grad in grads.items() if "embed_tokens" in key)
    assert embedding[chat.eos].any()


def test_score_is_read_at_the_last_real_token_and_ignores_padding(tiny):
    local = runtime(tiny)
    local.roles["reward"] = Role(head=ScalarHead(tiny.config.hidden_size, seed=1))
    together = local.score("reward", Batch(ROWS), ("score",)).score_B
    for i, row in enumerate(ROWS):
        alone = local.score("reward", Batch([row]), ("score",)).score_B
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)
        with torch.no_grad():
            last = tiny.base_model(input_ids=torch.from_numpy(row.ids)[None]).last_hidden_state[0, -1]
        torch.testing.assert_close(alone[0], local.roles["reward"].head(last), atol=1e-5, rtol=0)


def test_reward_head_is_drawn_with_the_published_standard_deviation():
    draws = torch.stack([ScalarHead(400, seed=s).weight.detach() for s in range(50)])
    assert float(draws.std()) == pytest.approx(1 / 401**0.5, rel=0.02)
    assert ScalarHead(400, seed=1).bias.item() == 0


def test_output_of_an_adapter_is_that_of_the_merged_weight():
    torch.manual_seed(0)
    layer = LoraLinear(torch.nn.Linear(5, 3), Switch())
    layer.a["policy"] = torch.nn.Parameter(torch.randn(2, 5))
    layer.b["policy"] = torch.nn.Parameter(torch.randn(3, 2))
    layer.scale["policy"] = 4.0
    x = torch.randn(7, 5)
    assert torch.equal(layer(x), layer.base(x)), "no adapter is active"
    layer.switch.active = "policy"
    torch.testing.assert_close(layer(x), x @ layer.merged("policy").T + layer.base.bias)
    assert (layer(x) - layer.base(x)).norm().item() > 1.0


def test_adapters_start_at_zero_switch_and_merge(tiny, tmp_path):
    plain = copy.deepcopy(tiny)
    local = runtime(tiny, lora=True)
    local.adapters["base"].add("policy", 4, 8.0, seed=0)
    local.roles |= {"policy": Role(adapter="policy", trains=("adapter",)), "reference": Role()}
    batch = Batch(ROWS)
    before = local.score("policy", batch, ("logp",)).logp_BT
    assert torch.equal(before, local.score("reference", batch, ("logp",)).logp_BT)
    with torch.no_grad():
        for name, p in local.trained().items():
            if "lora_B" in name:
                p.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    after = local.score("policy", batch, ("logp",)).logp_BT
    assert not torch.allclose(before, after)
    assert torch.equal(before, local.score("reference", batch, ("logp",)).logp_BT)
    merged = copy.deepcopy(plain)
    local.adapters["base"].merge_into(merged, "policy")
    torch.testing.assert_close(runtime(merged).score("policy", batch, ("logp",)).logp_BT, after, atol=1e-5, rtol=0)


@pytest.mark.parametrize("width", [0, 64])
def test_cached_frozen_prefix_changes_neither_scores_nor_gradients(tiny, width):
    model = copy.deepcopy(tiny).float()
    runtime = Local(tokens_per_pass=40, pack_width=width)
    runtime.add_trunk("base", model, lora=True)
    adapters = runtime.adapters["base"]
    for name in ("policy", "reward"):
        adapters.add(name, 4, 8, seed=1, last_n_layers=1)
        for parameter in adapters.parameters(name).values():
            torch.nn.init.normal_(parameter, std=0.1)
    assert adapters.common_depth() == model.config.num_hidden_layers - 1
    runtime.roles |= {
        "policy": Role(adapter="policy", trains=("adapter",)),
        "reward": Role(adapter="reward", head=ScalarHead(model.config.hidden_size, 0)),
    }
    runtime.roles["reference"] = Role()
    runtime.start({"policy": 1e-3})
    draw = np.random.default_rng(3)
    plain = Batch([Row(draw.integers(0, 90, 5 + n), 5) for n in (3, 9, 1, 6, 12)])
    quick = runtime.cache_frozen_prefix(plain, "reference")
    assert quick is not plain

    def gradients(batch):
        runtime.forward_backward(
            {"policy": ("logp",)}, batch, lambda out, part: (out.logp_BT[out.mask_BT].sum(), {}), 3.0
        )
        grads = {key: p.grad.clone() for key, p in runtime.trained().items()}
        runtime.step(0.0, 1.0)
        return grads

    for role, want, field in (
        ("policy", "logp", "logp_BT"),
        ("reference", "logp", "logp_BT"),
        ("reward", "score", "score_B"),
    ):
        a, b = (getattr(runtime.score(role, batch, (want,)), field) for batch in (plain, quick))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    slow = gradients(plain)
    fast = gradients(quick.take([4, 0, 3, 1, 2]))
    for key, value in slow.items():
        torch.testing.assert_close(value, fast[key], atol=1e-5, rtol=1e-4)


def test_only_trained_weights_get_gradients_and_a_nan_updates_nothing(tiny):
    from towpath.algos import sft

    local = runtime(tiny, lora=True)
    local.adapters["base"].add("policy", 4, 8.0, seed=0)
    local.roles["policy"] = Role(adapter="policy", trains=("adapter",))
    local.start({"policy": 1e-2})
    local.forward_backward(sft.TRAINS, Batch(ROWS), lambda o, p: sft.loss(o, p, None, {}), 1.0)
    trained = {id(p) for p in local.trained().values()}
    frozen = [p for p in local.trunks["base"].parameters() if id(p) not in trained]
    assert frozen and all(p.grad is None for p in frozen)
    before = local.snapshot()
    next(iter(local.trained().values())).grad.fill_(float("nan"))
    assert not np.isfinite(local.step(1.0, 1.0))
    assert all(torch.equal(before[key], value) for key, value in local.snapshot().items())


def test_save_and_restore_is_bit_equal(tiny):
    from towpath.algos import sft

    def fresh():
        local = runtime(copy.deepcopy(tiny), lora=True)
        local.adapters["base"].add("policy", 4, 8.0, seed=0)
        local.roles["policy"] = Role(adapter="policy", trains=("adapter",))
        local.start({"policy": 1e-2})
        return local

    def step(local):
        local.forward_backward(sft.TRAINS, Batch(ROWS), lambda o, p: sft.loss(o, p, None, {}), 10.0)
        local.step(1.0, 1.0)

    one = fresh()
    step(one)
    saved = {key: tensor.clone() for key, tensor in one.state().items()}
    step(one)
    two = fresh()
    two.restore(saved)
    step(two)
    assert all(torch.equal(value, two.snapshot()[key]) for key, value in one.snapshot().items())


def test_checkpoint_does_not_copy_the_weights(tiny, tmp_path):
    from towpath.algos import sft

    local = runtime(tiny)
    local.start({"policy": 1e-2})
    local.forward_backward(sft.TRAINS, Batch(ROWS), lambda o, p: sft.loss(o, p, None, {}), 10.0)
    local.step(1.0, 1.0)
    state = local.state()
    addresses = {p.data_ptr() for p in local.trained().values()}
    assert {
        tensor.data_ptr() for key, tensor in state.items() if not key.startswith("adam:")
    } == addresses  # the state may be gigabytes, so it shares memory with the weights
    assert not addresses & {
        tensor.data_ptr() for tensor in local.snapshot().values()
    }  # a snapshot must not change with the weights
    Checkpoints(tmp_path).save(3, state, {})
    step, restored, _notes = Checkpoints(tmp_path).newest()
    assert (
        step == 3
        and restored.keys() == state.keys()
        and all(torch.equal(tensor, restored[key]) for key, tensor in state.items())
    )


def test_checkpoint_interval_limits_the_share_of_time():
    assert loop._checkpoint_interval(20.0, 0.5) == 20.0
    assert loop._checkpoint_interval(20.0, 6.0) == pytest.approx(120.0)
    assert loop._checkpoint_interval(0.0, 6.0) == 0.0


def test_packing_keeps_every_token_once():
    packed = pack(ROWS, pad=0, width=24)
    for row, positions in zip(ROWS, packed.token_positions, strict=True):
        assert packed.ids_PL.flatten()[positions].tolist() == row.ids.tolist()
        assert packed.position_PL.flatten()[positions].tolist() == list(range(len(row.ids)))
    assert (packed.segment_PL > 0).sum() == sum(len(row.ids) for row in ROWS)
    assert packed.ids_PL.shape[0] < len(ROWS)


SHARING = [
    Row(np.array([*prompt, *answer]), len(prompt))
    for prompt, answer in [
        (range(10, 30), [5, 6, 7]),
        (range(40, 52), [8, 9]),
        (range(10, 30), [9, 8, 7, 6, 5]),
        (range(10, 30), [5]),
        (range(40, 52), [11] * 7),
    ]
]


@pytest.mark.parametrize("width", [0, 64])
def test_packing_shares_prompt_tokens(width):
    packed = pack(SHARING, pad=0, width=width)
    assert (packed.segment_PL > 0).sum() == 20 + 12 + sum(row.answer_length for row in SHARING)
    for row, positions in zip(SHARING, packed.token_positions, strict=True):
        assert packed.ids_PL.flatten()[positions].tolist() == row.ids.tolist()
        assert packed.position_PL.flatten()[positions].tolist() == list(range(len(row.ids)))
    # with a short prompt and long answers separate lines cost less attention
    assert len(pack([Row(np.arange(400), 2)] * 9, pad=0).ids_PL) == 9


def tokens_of_pass(rows) -> int:
    """Tokens of a pass: each distinct prompt once, and every answer."""
    return sum(len(prompt) // 8 for prompt in {row.prompt for row in rows}) + sum(row.answer_length for row in rows)


def test_micro_batches_are_as_few_and_as_even_passes_as_possible():
    draw = np.random.default_rng(0)
    for _ in range(60):
        prompts = [draw.integers(0, 9, int(n)) for n in draw.integers(1, 40, 4)]
        sizes = tuple(int(n) for n in draw.integers(1, 4, 7))
        rows = [
            Row(np.concatenate([prompts[p], draw.integers(0, 9, int(n))]), len(prompts[p]))
            for size, p in zip(sizes, draw.integers(0, 4, 7), strict=True)
            for n in draw.integers(1, 40, size)
        ]
        batch = Batch(rows, {"row": np.arange(len(rows))}, sizes)
        tokens = int(draw.integers(10, 400))
        passes = list(batch.micro_batches(tokens))
        order = [index for part in passes for index in part.columns["row"]]
        assert sorted(order) == list(range(len(rows)))
        groups = [rows[begin : begin + size] for begin, size in zip(np.cumsum(sizes) - sizes, sizes, strict=True)]
        begins = {int(begin): group for group, begin in enumerate(np.cumsum(sizes) - sizes)}
        units = [groups[begins[index]] for index in order if index in begins]
        best = len(units) + 1, 0
        for cuts in itertools.product([False, True], repeat=len(units) - 1):
            edges = [0, *(edge for edge, cut in enumerate(cuts, 1) if cut), len(units)]
            parts = [units[a:b] for a, b in itertools.pairwise(edges)]
            costs = [tokens_of_pass([row for unit in part for row in unit]) for part in parts]
            if all(cost <= tokens or len(part) == 1 for cost, part in zip(costs, parts, strict=True)):
                best = min(best, (len(parts), max(costs)))
        assert (len(passes), max(tokens_of_pass(part.rows) for part in passes)) == best
    assert not list(Batch([]).micro_batches(100))


@pytest.mark.parametrize("family", ["ours", "theirs"])
@pytest.mark.parametrize("width", [0, 64])
def test_shared_prompts_change_neither_scores_nor_gradients(tiny, width, family, monkeypatch):
    if family == "theirs":
        monkeypatch.setattr(layers, "is_supported", lambda _model: False)

    def measured(cost):
        monkeypatch.setattr(data_batch, "ATTENTION_CROSSOVER", cost)
        local = runtime(copy.deepcopy(tiny), lora=False, pack_width=width)
        local.roles |= {"policy": Role(trains=("trunk",)), "reward": Role(head=ScalarHead(tiny.config.hidden_size, 0))}
        local.start({"policy": 1e-3})
        outputs = (
            local.score("policy", Batch(SHARING), ("logp", "entropy")),
            local.score("reward", Batch(SHARING), ("score",)),
        )
        local.forward_backward({"policy": ("logp",)}, Batch(SHARING), lambda out, part: (out.logp_BT.sum(), {}), 3.0)
        gradients = [p.grad for p in local.trained().values()]
        return [outputs[0].logp_BT, outputs[0].entropy_BT, outputs[1].score_B, *gradients]

    for shared, apart in zip(measured(1500), measured(-(10**9)), strict=True):
        torch.testing.assert_close(shared, apart, atol=2e-5, rtol=1e-4)


def test_backward_of_one_role_runs_before_the_forward_of_the_next(tiny, monkeypatch):
    local = runtime(copy.deepcopy(tiny), lora=True)
    for name in ("policy", "critic"):
        local.adapters["base"].add(name, 4, 4.0, 0)
        local.roles[name] = Role(adapter=name, trains=("adapter",))
    local.start({"policy": 1e-3, "critic": 1e-3})
    forwards = []
    forward = Local._forward

    def recorded(self, name, batch, wants, temperature):
        forwards.append((name, sorted({key.split("/")[0] for key, p in self.trained().items() if p.grad is not None})))
        return forward(self, name, batch, wants, temperature)

    monkeypatch.setattr(Local, "_forward", recorded)
    local.forward_backward(
        {"policy": ("logp",), "critic": ("logp",)}, Batch(ROWS), lambda out, _: (out.logp_BT.sum(), {}), 1.0
    )
    assert [name for name, _ in forwards] == ["policy", "critic"] * (len(forwards) // 2)
    assert forwards[0][1] == []
    assert forwards[1][1] == ["policy"]


def test_unpacked_lines_are_sorted_by_length():
    rows = [Row(np.arange(number, number + size), 1) for number, size in enumerate((7, 30, 12, 30, 5))]
    packed = pack(rows, pad=0)
    assert (packed.segment_PL > 0).sum(1).tolist() == [30, 30, 12, 7, 5]
    assert [packed.ids_PL.flatten()[positions].tolist() for positions in packed.token_positions] == [
        row.ids.tolist() for row in rows
    ]


@pytest.mark.parametrize("seed", range(5))
def test_packing_limits_padding_and_attention_cost(seed):
    draw = np.random.default_rng(seed)
    rows = [Row(np.arange(size), 1) for size in draw.integers(16, 110, 16)]
    total, (lines, width) = sum(len(row.ids) for row in rows), pack(rows, pad=0, width=256).ids_PL.shape
    assert lines * width < 1.1 * total
    assert width <= 256
    assert lines * width * (1500 + width) < 0.8 * 16 * 109 * (1500 + 109)


def test_packing_keeps_equal_rows_apart_and_long_rows_whole():
    assert pack([Row(np.arange(100), 1)] * 6, pad=0, width=256).ids_PL.shape == (6, 100)
    assert pack([Row(np.arange(n), 1) for n in (300, 40, 50)], pad=0, width=256).ids_PL.shape[1] == 300
    # two lines of 190 have no padding but cost more attention than they save
    rows = [Row(np.arange(n), 1) for n in (100, 100, 90, 90)]
    assert pack(rows, pad=0, width=256).ids_PL.shape == (4, 100)


def ridge_by_numpy(rollouts, ridge):
    """Weighted ridge regression of [(x, y, weight)] on features with mean 0 and norm 1, as augmented least squares."""
    x, y, w = (
        np.concatenate(parts)
        for parts in zip(*((x, y, np.full(len(y), weight)) for x, y, weight in rollouts), strict=True)
    )
    mean = np.average(x, axis=0, weights=w)
    middle = np.average(y, weights=w)
    x = np.sqrt(w)[:, None] * (x - mean)
    y = np.sqrt(w) * (y - middle)
    size = np.linalg.norm(x, axis=0)
    rows = np.vstack([x / size, np.sqrt(ridge) * np.eye(x.shape[1])])
    weight = np.linalg.lstsq(rows, np.concatenate([y, np.zeros(x.shape[1])]), rcond=None)[0] / size
    return weight, middle - mean @ weight


def test_solved_head_uses_the_ridge_with_the_best_predictions(monkeypatch):
    draw = np.random.default_rng(0)
    truth = draw.normal(size=7)
    keep = 0.8
    rollouts = [(x := draw.normal(1.0, 2.0, (n, 7)), x @ truth + draw.normal(0, 3.0, n) + 4) for n in (9, 30, 12, 25)]
    head = ScalarHead(7)
    fit = RidgeHead(head)
    history = []
    missed = np.zeros(len(RidgeHead.RIDGES))
    for x, y in rollouts:
        if history:
            predictions = [ridge_by_numpy(history, ridge) for ridge in RidgeHead.RIDGES]
            missed = keep * missed + [np.square(y - x @ weight - bias).sum() for weight, bias in predictions]
        history = [(a, b, keep * w) for a, b, w in history] + [(x, y, 1.0)]
        weight, bias = ridge_by_numpy(history, RidgeHead.RIDGES[int(missed.argmin())] if missed.any() else 1.0)
        fit.learn(torch.from_numpy(x).float(), torch.from_numpy(y).float(), keep)
        np.testing.assert_allclose(head.weight.detach(), weight, atol=1e-5)
        np.testing.assert_allclose(head.bias.detach(), bias, atol=1e-5)
    monkeypatch.setattr(heads, "ROWS", 4)  # the sums do not depend on the chunk size
    parts = RidgeHead(ScalarHead(7))
    for x, y in rollouts:
        parts.learn(torch.from_numpy(x).float(), torch.from_numpy(y).float(), keep)
    torch.testing.assert_close(parts.head.weight, head.weight)


def test_solved_head_with_constant_features_and_few_rows():
    head = ScalarHead(5).requires_grad_(False)
    fit = RidgeHead(head)
    fit.learn(torch.tensor([[1.0, 2.0, 0.0, 7.0, 1e-20]]), torch.tensor([3.0]))
    assert head(torch.tensor([1.0, 2.0, 0.0, 7.0, 1e-20])).item() == pytest.approx(3.0)
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1.0, 0.0, 0.0, 1e-12]) + 5
    fit.learn(x, x[:, 0] - x[:, 1])
    assert head.weight.isfinite().all()
    assert float((head(x) - x[:, 0] + x[:, 1]).var()) < 0.2


def test_solved_head_is_saved_in_the_state(tiny):
    def fresh():
        local = Local()
        local.add_trunk("base", tiny, lora=False)
        head = ScalarHead(6).requires_grad_(False)
        local.roles["critic"] = Role(head=head, closed_form_head=RidgeHead(head))
        local.start({})
        return local, local.roles["critic"].closed_form_head

    draw = torch.Generator().manual_seed(0)
    rollouts = [(torch.randn(20, 6, generator=draw), torch.randn(20, generator=draw)) for _ in range(4)]
    (one, fit), (two, again) = fresh(), fresh()
    for x, y in rollouts[:2]:
        fit.learn(x, y, 0.9)
    two.restore(one.state())
    for x, y in rollouts[2:]:
        fit.learn(x, y, 0.9), again.learn(x, y, 0.9)
    assert all(torch.equal(value, again.state()[name]) for name, value in fit.state().items())


def test_critic_features_are_running_means_of_the_states(tiny):
    local = Local()
    local.add_trunk("base", tiny, lora=False)
    head = ScalarHead(tiny.config.hidden_size, seed=3)
    local.roles["critic"] = Role(head=head, trains=("head",))
    out = local.score("critic", Batch(ROWS), ("value", "features"))
    for i, row in enumerate(ROWS):
        with torch.no_grad():
            states = tiny.base_model(input_ids=torch.from_numpy(row.ids)[None]).last_hidden_state[0, row.start - 1 : -1]
            want = torch.stack([states[: t + 1].mean(0) for t in range(len(states))])
        n = row.answer_length
        width = states.shape[1]
        cast = torch.randn(width, WIDE, generator=torch.Generator().manual_seed(width))
        random = (states / states.norm(dim=1, keepdim=True) @ cast).relu()
        sums = torch.stack([random[: t + 1].sum(0) for t in range(n)])
        torch.testing.assert_close(
            local.read_features(out.features, torch.full((n,), i), torch.arange(n)),
            torch.cat([want, sums], 1),
            atol=2e-5,
            rtol=1e-4,
        )
        torch.testing.assert_close(out.value_BT[i, :n], head(want).detach(), atol=1e-5, rtol=0)
        assert not out.value_BT[i, n:].any()


def test_cached_hub_model_is_found_offline(tiny_folder, tmp_path):
    repository = tmp_path / "models--own--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny_folder, repository / "snapshots" / ("0" * 40))
    outputs = [
        subprocess.run(
            [sys.executable, "-c", f"from towpath.models import base; print(base.find({name!r}))"],
            capture_output=True,
            text=True,
            env=os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        )
        for name in ("own/small", "own/other")
    ]
    assert outputs[0].stdout.strip() == str(repository / "snapshots" / ("0" * 40)), outputs[0].stderr
    assert "ModelError: model.source = 'own/other'" in outputs[1].stderr
