"""Correctness of what a GPU computes otherwise: each check returns figures, and raises where they break a limit."""

from collections.abc import Mapping
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.models import RandomLocal, Setting, compiled, rollout_columns, uneven
from towpath.algos import grpo, sft
from towpath.algos.contract import Metrics
from towpath.data.batch import Batch
from towpath.models import varlen
from towpath.models.cpu import split_bf16
from towpath.models.cpu.optimizer import AdamW
from towpath.recipe import Lora, Policy, Sft
from towpath.runtime import local as local_module
from towpath.runtime.contract import Loss, RoleSpec

KNOBS = {"kl_coef": 0.05, "policy_weight": 1.0}
SFT_LOSS = Loss(sft.__name__, Sft().model_dump(), KNOBS)
GRPO_LOSS = Loss(grpo.__name__, Policy(algo="grpo").model_dump(), KNOBS)
ON_CPU = torch.device("cpu")
Figures = dict[str, float]
Tensors = Mapping[str, Tensor]


class Wrong(AssertionError):
    """A figure that breaks its limit."""


def require(figures: Figures, limits: Figures) -> Figures:
    """The figures, if none is above its limit."""
    above = [
        f"{name} is {figures[name]:.3g}, at most {most:g}" for name, most in limits.items() if not figures[name] <= most
    ]
    if above:
        raise Wrong("; ".join(above))
    return figures


def difference(one: Tensors, other: Tensors) -> float:
    """The relative difference of two sets of tensors, all together."""
    pairs = [(one[key].detach().cpu().double(), tensor.detach().cpu().double()) for key, tensor in other.items()]
    square = sum(float((a - b).square().sum()) for a, b in pairs)
    return (square / max(sum(float(b.square().sum()) for _, b in pairs), 1e-30)) ** 0.5


def opened(setting: Setting, dtype: torch.dtype, kind: str = "auto", lora: bool = True, **settings: Any) -> RandomLocal:
    """A runtime with one policy of the small shape, whose adapter does something: the same on every device."""
    runtime = RandomLocal(setting, kind, **{"dtype": dtype, "tokens_per_pass": 2048} | settings)
    runtime.open({"policy": RoleSpec("small", Lora(rank=8) if lora else None, learning_rate=1e-3)})
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, weight in runtime.trained().items():
            if "lora_B" in key:
                weight.copy_(0.05 * torch.randn(weight.shape, generator=draw))
    return runtime


def some_rows(setting: Setting) -> Batch:
    """Rows of many lengths."""
    vocabulary = setting.config("small").vocab_size
    return Batch(uneven(setting.size(48, 8), 8, setting.size(300, 40), vocabulary))


def gradients(runtime: RandomLocal, batch: Batch) -> dict[str, Tensor]:
    """Gradients of the mean loss of fine-tuning, and then none."""
    runtime.forward_backward(sft.TRAINS, batch, SFT_LOSS, sft.weigh(batch, Sft()))
    assert runtime.optimizer is not None
    by_weight = runtime.optimizer.gradients()
    grads = {key: by_weight[weight].float() for key, weight in runtime.trained().items() if weight in by_weight}
    runtime.optimizer.zero_grad()
    return grads


def logprobs(runtime: RandomLocal, batch: Batch) -> Tensors:
    """Log-probabilities of all answer tokens."""
    return {"logp": runtime.score("policy", batch, ("logp",)).logp_BT}


def log_probabilities(setting: Setting) -> Figures:
    """Against float32 on the CPU: in float32, and in bfloat16 packed with a mask and without padding."""
    batch = some_rows(setting)
    exact = logprobs(opened(Setting(ON_CPU, setting.tiny), torch.float32), batch)
    figures = {"float32": difference(logprobs(opened(setting, torch.float32), batch), exact)}
    for kind in ("grouped", "varlen", "sdpa"):
        figures[kind] = difference(logprobs(opened(setting, torch.bfloat16, kind), batch), exact)
    return require(figures, {"float32": 1e-4, "grouped": 0.01, "varlen": 0.01, "sdpa": 0.01})


def gradients_of_lora(setting: Setting) -> Figures:
    """Gradients of adapters against float32 on the CPU."""
    return _gradients(setting, True)


def gradients_of_full_weights(setting: Setting) -> Figures:
    """Gradients of all weights against float32 on the CPU."""
    return _gradients(setting, False)


def _gradients(setting: Setting, lora: bool) -> Figures:
    batch = some_rows(setting)
    exact = gradients(opened(Setting(ON_CPU, setting.tiny), torch.float32, lora=lora), batch)
    figures = {"float32": difference(gradients(opened(setting, torch.float32, lora=lora), batch), exact)}
    for kind in ("grouped", "varlen"):
        figures[kind] = difference(gradients(opened(setting, torch.bfloat16, kind, lora), batch), exact)
    return require(figures, {"float32": 1e-3, "grouped": 0.05, "varlen": 0.05})


def packing(setting: Setting) -> Figures:
    """Rows without padding in passes of any size, and one at a time."""
    batch = some_rows(setting)
    runtime = opened(setting, torch.bfloat16, "varlen")
    whole = logprobs(runtime, batch)
    slopes = gradients(runtime, batch)
    runtime.tokens_per_pass = 16
    figures = {
        "log-probabilities": difference(logprobs(runtime, batch), whole),
        "gradients": difference(gradients(runtime, batch), slopes),
    }
    return require(figures, {"log-probabilities": 0.01, "gradients": 0.03})


def attention_of_rows(setting: Setting) -> Figures:
    """FlashAttention over rows of many lengths, with grouped heads, a window, a scale: outputs and gradients against
    attention row by row in float32."""
    lengths = torch.tensor([1, 17, 300, 64, 129])
    begins = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int().to(setting.device)
    draw = torch.Generator().manual_seed(0)
    figures: Figures = {}
    for name, window in (("whole", None), ("window", 50)):
        tensors = [torch.randn(1, heads, int(lengths.sum()), 64, generator=draw) for heads in (8, 2, 2)]
        results = []
        for dtype in (torch.float32, torch.bfloat16):
            q, k, v = (x.to(setting.device, dtype).requires_grad_() for x in tensors)
            mask = varlen.row_mask(begins, int(lengths.max()))
            out, _ = varlen.attention(nn.Module(), q, k, v, mask, 0.11, sliding_window=window)
            grads = torch.autograd.grad(out.float().square().sum(), (q, k, v))
            results.append({str(i): x for i, x in enumerate((out, *grads))})
        figures[name] = difference(results[1], results[0])
    figures["by FlashAttention"] = float(varlen.is_flash(q, v, {}))
    return require(figures, {"whole": 0.02, "window": 0.02})


def no_waiting(setting: Setting) -> Figures:
    """Nothing within a pass waits for the device: torch raises an exception where something does."""
    runtime = opened(setting, torch.bfloat16)
    batch = some_rows(setting)
    batch = rollout_columns(batch, logprobs(runtime, batch)["logp"])
    weight = grpo.weigh(batch, Policy())
    runtime.tokens_per_pass = 512
    runtime.forward_backward(grpo.TRAINS, batch, GRPO_LOSS, weight)  # what is measured once a model
    read = local_module.to_floats

    def read_at_the_end(metrics: Metrics) -> Metrics:
        _waiting("default", setting)
        return read(metrics)

    with mock.patch.object(local_module, "to_floats", read_at_the_end):
        _waiting("error", setting)
        try:
            metrics = runtime.forward_backward(grpo.TRAINS, batch, GRPO_LOSS, weight)
        finally:
            _waiting("default", setting)
    return {"metrics": float(len(metrics)), "checked": float(setting.is_gpu)}


def _waiting(mode: str, setting: Setting) -> None:
    if setting.is_gpu:
        torch.cuda.set_sync_debug_mode(mode)


def resume(setting: Setting) -> Figures:
    """Training that was stopped and resumed has the bits of training that was not, LoRA and full weights."""
    batch = some_rows(setting)
    figures: Figures = {}
    for name, lora in (("lora", True), ("full", False)):
        straight, stopped, resumed = (opened(setting, torch.bfloat16, lora=lora) for _ in range(3))
        for runtime, steps in ((straight, 4), (stopped, 2)):
            _train(runtime, batch, steps)
        resumed.restore({key: tensor.clone() for key, tensor in stopped.state().items()})
        _train(resumed, batch, 2)
        other = resumed.state()
        figures[name] = float(sum(not torch.equal(x, other[key]) for key, x in straight.state().items()))
    return require(figures, {"lora": 0, "full": 0})


def _train(runtime: RandomLocal, batch: Batch, steps: int) -> None:
    for _ in range(steps):
        runtime.forward_backward(sft.TRAINS, batch, SFT_LOSS, sft.weigh(batch, Sft()))
        runtime.step(1.0, 1.0)


def compilation(setting: Setting) -> Figures:
    """Compiled layers give what layers that are not compiled give."""
    return _compiled(setting, False)


def graphs(setting: Setting) -> Figures:
    """Compiled layers replayed as CUDA graphs give what layers that are not compiled give."""
    return _compiled(setting, True)


def _compiled(setting: Setting, cudagraphs: bool) -> Figures:
    if not setting.is_gpu:
        return {"compiled": 0.0}
    batch = some_rows(setting)
    plain = opened(setting, torch.bfloat16)
    fast = opened(setting, torch.bfloat16, compile=compiled(cudagraphs))
    figures = {
        "log-probabilities": difference(logprobs(fast, batch), logprobs(plain, batch)),
        "gradients": difference(gradients(fast, batch), gradients(plain, batch)),
    }
    return require(figures, {"log-probabilities": 0.01, "gradients": 0.05}) | {"compiled": 1.0}


def out_of_memory(setting: Setting) -> Figures:
    """With too little memory for a pass passes are halved, and the gradient stays the same."""
    if not setting.is_gpu:
        return {"halved": 0.0}
    vocabulary = setting.config("small").vocab_size
    batch = Batch(uneven(400, 200, 300, vocabulary))
    runtime = opened(setting, torch.bfloat16)
    slopes = gradients(runtime, batch)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(setting.device).total_memory
    room = torch.cuda.memory_reserved(setting.device) + 2**30
    torch.cuda.set_per_process_memory_fraction(room / total, setting.device)
    runtime.tokens_per_pass = 10**9
    figures = {"gradients": difference(gradients(runtime, batch), slopes), "tokens": float(runtime.tokens_per_pass)}
    return require(figures, {"gradients": 0.03, "tokens": 10**8}) | {"halved": 1.0}


def optimizer(setting: Setting) -> Figures:
    """Steps of AdamW on the device against those on the CPU: float32 weights, and weights in halves."""
    results = []
    for device in (ON_CPU, setting.device):
        draw = torch.Generator().manual_seed(0)
        weights = [nn.Parameter(torch.randn(size, generator=draw).to(device)) for size in (1000, 7, 5000)]
        adam = AdamW([(1e-2, weights)], 1e-8, 0.1, (0.9, 0.95))
        adam.split_bf16(weights[2])
        for _ in range(5):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=draw).to(device, weight.dtype)
            adam.step(1.0, min(1.0, 1.0 / adam.norm()))
        whole = split_bf16.merge_float32(weights[2].data, adam.low_bits[weights[2]])
        results.append({"0": weights[0], "1": weights[1], "2": whole})
    return require({"weights": difference(results[1], results[0])}, {"weights": 1e-6})


def head_in_chunks(setting: Setting) -> Figures:
    """Log-probabilities by the head in chunks of thousands of states against torch's own in float32."""
    from towpath.models import lm

    draw = torch.Generator().manual_seed(0)
    states = torch.randn(setting.size(10_000, 50), 64, generator=draw)
    head = torch.randn(setting.size(2048, 99), 64, generator=draw) / 8
    target = torch.randint(0, len(head), (len(states),), generator=draw)
    exact = F.log_softmax(states @ head.T / 0.7, -1).gather(1, target[:, None])[:, 0]
    there = [x.to(setting.device) for x in (states, head, target)]
    logp, _ = lm.token_logprobs(*there, 0.7, True, chunk=setting.size(4096, 16))
    return require({"log-probabilities": difference({"x": logp}, {"x": exact})}, {"log-probabilities": 1e-4})


CHECKS = (
    log_probabilities,
    gradients_of_lora,
    gradients_of_full_weights,
    packing,
    attention_of_rows,
    no_waiting,
    resume,
    optimizer,
    head_in_chunks,
    out_of_memory,
    compilation,
    graphs,
)
