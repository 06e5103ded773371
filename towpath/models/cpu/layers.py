"""Decoder layers of the Llama family with a hand-written backward pass: one autograd node a layer, linear layers of
one input stacked into one product, LoRA added in place, `kernels` between the products. A test compares them with the
layers of transformers.

T tokens, N outputs of a linear layer (or tokens that are read, in `rows_N`, `read_N`), D hidden size, H query heads
and K key-value heads of width W, R rank. Linear layers see tokens only; attention sees P packed sequences of L
positions, S = P * L.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from towpath.models.attention import NAME
from towpath.models.cpu import kernels
from towpath.models.cpu.plain import RotaryCache
from towpath.models.lora_layers import LoraLinear
from towpath.models.packed_batch import PackedBatch, attention_mask, length_buckets

FAMILIES = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")


def is_supported(model: Any) -> bool:
    """Whether these layers can replace the model's as it is now: a known family, grouped attention, on a CPU."""
    config = model.config
    layers = getattr(model.base_model, "layers", ())
    switch = getattr(model, "lora_switch", None)
    if switch is not None and (switch.dropping or switch.active in switch.partial):
        return False  # these layers have no dropout, and adapt all their linear layers or none
    return (
        len(layers) > 0
        and all(type(layer).__name__ in FAMILIES for layer in layers)
        and getattr(config, "hidden_act", "silu") == "silu"
        and not (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True))
        and not getattr(config, "attention_dropout", 0.0)
        and config._attn_implementation == NAME
        and model.device.type == "cpu"
        and not getattr(model, "is_sharded", False)
    )


class LoraWeights(NamedTuple):
    """A [R,D] and scaled B [R,N] of an adapter, for the product x A' B."""

    name: str
    a: Tensor
    b: Tensor


class Stack:
    """Linear layers with the same input, computed as one product. Their weights become views of one tensor: no second
    copy, and an in-place update of a layer's weight updates the stack."""

    def __init__(self, *linears: nn.Module) -> None:
        self.linears = linears
        self.bases: list[nn.Linear] = [layer.base if isinstance(layer, LoraLinear) else layer for layer in linears]  # pyright: ignore[reportAttributeAccessIssue]
        self.ends: list[int] = np.cumsum([base.out_features for base in self.bases]).tolist()
        self.begins = [0, *self.ends[:-1]]
        self.whole = self.bases[0].weight.detach()
        self.packed: Tensor | None = None
        """Weights reordered for oneDNN, while sampling."""

    def weight(self) -> Tensor:
        """The stacked weights [N,D]; stacked again if a layer's weight was replaced."""
        places = [self.whole[begin:end].data_ptr() for begin, end in zip(self.begins, self.ends, strict=True)]
        if places != [base.weight.data_ptr() for base in self.bases]:
            with torch.inference_mode(False):  # sampling may come first, training after
                self.whole = torch.cat([base.weight.detach() for base in self.bases])
            for base, begin, end in zip(self.bases, self.begins, self.ends, strict=True):
                base.weight.data = self.whole[begin:end]
        return self.whole

    def bias(self) -> Tensor | None:
        return None if self.bases[0].bias is None else torch.cat([base.bias.detach() for base in self.bases])

    def adapter(self) -> str | None:
        """The active adapter, if these layers have it."""
        first: Any = self.linears[0]
        name = first.switch.active if isinstance(first, LoraLinear) else None
        return name if name is not None and name in first.scale else None  # pyright: ignore[reportAttributeAccessIssue]

    def lora_weights(self, dtype: torch.dtype) -> LoraWeights | None:
        """The layers' A stacked [R,D], and their B as a block diagonal [R,N]."""
        name = self.adapter()
        if name is None:
            return None
        layers: Any = self.linears
        a = torch.cat([layer.a[name].detach() for layer in layers])
        row = 0
        b = a.new_zeros(len(a), self.ends[-1])
        for layer, begin, end in zip(layers, self.begins, self.ends, strict=True):
            rank = len(layer.a[name])
            torch.mul(layer.b[name].detach().T, layer.scale[name], out=b[row : row + rank, begin:end])
            row += rank
        return LoraWeights(name, a.to(dtype), b.to(dtype))

    def trained_weights(self) -> list[Tensor]:
        """Trainable weights, in the order of `weight_grads`."""
        name = self.adapter()
        layers = list[Any](self.linears)
        if name is not None:
            return [layer.a[name] for layer in layers] + [layer.b[name] for layer in layers]
        return [base.weight for base in self.bases] + [base.bias for base in self.bases if base.bias is not None]

    def forward(self, x_TD: Tensor, lora: LoraWeights | None) -> Tensor:
        if self.packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x_TD, self.packed, self.bias(), "none", [], "")
        y_TN = F.linear(x_TD, self.weight(), self.bias())
        # y += (x A') B, without a temporary [T,N]
        return y_TN if lora is None else y_TN.addmm_(x_TD @ lora.a.T, lora.b)

    def input_grad(self, grad_TN: Tensor, lora: LoraWeights | None) -> tuple[Tensor, Tensor | None]:
        """The gradient of the input [T,D], and of the adapter's hidden states [T,R]."""
        grad_TD = grad_TN @ self.weight()
        narrow_TR = self.lora_down(grad_TN, lora)
        return grad_TD if lora is None or narrow_TR is None else grad_TD.addmm_(narrow_TR, lora.a), narrow_TR

    def lora_down(self, grad_TN: Tensor, lora: LoraWeights | None) -> Tensor | None:
        """The gradient of the adapter's hidden states alone [T,R]."""
        return None if lora is None else grad_TN @ lora.b.T

    def weight_grads(
        self, grad_TN: Tensor, x_TD: Tensor, lora: LoraWeights | None, narrow_TR: Tensor | None
    ) -> list[Tensor]:
        """The gradients of `trained_weights`."""
        if lora is None or narrow_TR is None:
            return self._by_weights(grad_TN, x_TD)
        return self._by_adapter(lora.name, narrow_TR.T @ x_TD, grad_TN.T @ (x_TD @ lora.a.T))

    def _by_weights(self, grad_TN: Tensor, x_TD: Tensor) -> list[Tensor]:
        sums = [grad_TN.T @ x_TD] + ([grad_TN.sum(0)] if self.bases[0].bias is not None else [])
        return [whole[begin:end] for whole in sums for begin, end in zip(self.begins, self.ends, strict=True)]

    def _by_adapter(self, name: str, by_a: Tensor, by_b: Tensor) -> list[Tensor]:
        layers: Any = self.linears
        grads_a = []
        grads_b = []
        row = 0
        for layer, begin, end in zip(layers, self.begins, self.ends, strict=True):
            part = slice(row, row := row + len(layer.a[name]))
            grads_a.append(by_a[part].to(layer.a[name].dtype))
            grads_b.append(by_b[begin:end, part].to(layer.b[name].dtype) * layer.scale[name])
        return grads_a + grads_b


class AttentionBlock(NamedTuple):
    """Packed sequences of similar length that attention computes together, padded to the longest: rotary angles and
    mask of every position, and where each sequence begins among the tokens, with the end of the last."""

    rotary: RotaryCache
    mask: Tensor
    begin_P1: Tensor


class Layer:
    """One decoder layer's parts."""

    def __init__(self, layer: Any) -> None:
        attention = layer.self_attn
        mlp = layer.mlp
        self.width: int = attention.head_dim
        self.qkv = Stack(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = Stack(attention.o_proj)
        self.inner = Stack(mlp.gate_proj, mlp.up_proj)
        self.down = Stack(mlp.down_proj)
        self.norms = layer.input_layernorm, layer.post_attention_layernorm
        self.heads = self.qkv.bases[0].out_features // self.width
        self.key_heads = self.qkv.bases[1].out_features // self.width
        self.stacks = (self.qkv, self.out, self.inner, self.down)

    def trained_weights(self) -> list[Tensor]:
        """Every trainable weight under the active adapter."""
        weights = [weight for stack in self.stacks for weight in stack.trained_weights()]
        return weights if self.qkv.adapter() is not None else [*weights, *(norm.weight for norm in self.norms)]

    def __call__(self, x_TD: Tensor, blocks: list[AttentionBlock], rows_N: Tensor | None = None) -> Tensor:
        trained = self.trained_weights()
        if torch.is_grad_enabled() and (x_TD.requires_grad or any(weight.requires_grad for weight in trained)):
            return _Node.apply(x_TD, blocks, rows_N, self, *trained)  # pyright: ignore[reportReturnType]
        return self.forward(x_TD, blocks, rows_N)[0]

    def forward(
        self, x_TD: Tensor, blocks: list[AttentionBlock], rows_N: Tensor | None = None, cache_layer: Any = None
    ) -> tuple[Tensor, list[LoraWeights | None], tuple[Tensor, ...]]:
        """The layer's output (of `rows_N` only, if given), the LoRA weights, and the tensors the backward pass needs.
        With a layer of a KV cache, keys and values are appended to it."""
        first, second = self.norms
        ops = kernels.dispatch(x_TD)
        # attention: x + out(attend(qkv(norm(x))))
        loras = [stack.lora_weights(x_TD.dtype) for stack in self.stacks]
        n1_TD, s1_T1 = ops.rms_norm(x_TD, first.weight.detach(), first.variance_epsilon)
        qkv = self.qkv.forward(n1_TD, loras[0])
        saved: tuple[Tensor, ...] = ()
        if hasattr(cache_layer, "column"):
            mixed_TD = ops.decode_attention(qkv, blocks[0].rotary, blocks[0].mask, *cache_layer.column(), self.heads)
        else:
            mixed_TD = qkv.new_empty(len(qkv), self.heads * self.width)
            saved = tuple(part for block in blocks for part in self._attend(qkv, block, cache_layer, mixed_TD))
        if rows_N is not None:  # the last layer: from here on only the tokens that are read
            mixed_TD = mixed_TD[rows_N]
            x_TD = x_TD[rows_N]
        y_TD = self.out.forward(mixed_TD, loras[1]).add_(x_TD)
        # MLP: y + down(silu(gate) * up)
        n2_TD, s2_T1 = ops.rms_norm(y_TD, second.weight.detach(), second.variance_epsilon)
        inner = self.inner.forward(n2_TD, loras[2])
        z_TD = self.down.forward(ops.swiglu(inner), loras[3]).add_(y_TD)
        return z_TD, loras, (s1_T1, *saved, mixed_TD, y_TD, s2_T1, inner)

    def _attend(self, qkv: Tensor, block: AttentionBlock, cache_layer: Any, out_TD: Tensor) -> tuple[Tensor, ...]:
        """Attention over a block, written to its rows of `out_TD`; returns queries, keys, values and weights."""
        sequences = block.mask.shape[0]
        ops = kernels.dispatch(qkv)
        q, k, v = ops.rotate_and_split_qkv(qkv, block.rotary, block.begin_P1, self.heads, self.key_heads)
        if cache_layer is not None:
            k, v = (
                x.flatten(0, 1)
                for x in cache_layer.update(*(x.view(sequences, self.key_heads, -1, self.width) for x in (k, v)))
            )
        # [P*K, G*L, W] by [P*K, W, S]: the G query heads of a key-value head share one product
        weights = ops.masked_softmax(torch.bmm(q, k.transpose(1, 2)), block.mask, self.heads)
        ops.merge_heads(torch.bmm(weights, v), block.begin_P1, self.heads, out_TD)
        return q, k, v, weights

    def attention_backward(
        self, by_mixed_TD: Tensor, block: AttentionBlock, saved: list[Tensor], out_TN: Tensor
    ) -> None:
        """Backward pass of `_attend`: the gradient of qkv, written to the block's rows of `out_TN`."""
        q, k, v, weights = saved
        ops = kernels.dispatch(by_mixed_TD)
        by_mixed = ops.split_heads(by_mixed_TD, block.begin_P1, block.mask.shape[2], self.heads, self.key_heads)
        by_v = torch.bmm(weights.transpose(1, 2), by_mixed)
        by_scores = torch.ops.aten._softmax_backward_data(
            torch.bmm(by_mixed, v.transpose(1, 2)), weights, -1, weights.dtype
        )
        by_q = torch.bmm(by_scores, k)
        by_k = torch.bmm(by_scores.transpose(1, 2), q)
        ops.rotate_and_split_qkv_backward(
            by_q, by_k, by_v, block.rotary, block.begin_P1, self.heads, self.key_heads, out_TN
        )


class _Node(torch.autograd.Function):
    """A layer as one autograd node; norms and activations are recomputed in the backward pass, products are saved."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, blocks: list[AttentionBlock], rows_N: Tensor | None, layer: Layer, *trained: Tensor
    ) -> Tensor:
        z_TD, ctx.loras, saved = layer.forward(x_TD.detach(), blocks, rows_N)
        ctx.save_for_backward(x_TD, *saved)
        ctx.layer = layer
        ctx.blocks = blocks
        ctx.rows_N = rows_N
        return z_TD

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, s1, *attention, mixed, y, s2, inner = ctx.saved_tensors
        layer = ctx.layer
        blocks = ctx.blocks
        lora_qkv, lora_out, lora_inner, lora_mlp = ctx.loras
        ops = kernels.dispatch(x)
        grad_TD = grad_TD.contiguous()
        below = ctx.needs_input_grad[0]  # layers below need a gradient
        trains = any(ctx.needs_input_grad[4:])
        full = trains and lora_qkv is None  # all weights train, norms too
        first, second = (norm.weight.detach() for norm in layer.norms)

        # MLP; `by_x` is the gradient of x, `narrow` that of the adapter's hidden states [T,R]
        by_acted, narrow = layer.down.input_grad(grad_TD, lora_mlp)
        acted, by_inner = ops.swiglu_backward(by_acted, inner)
        by_down = layer.down.weight_grads(grad_TD, acted, lora_mlp, narrow) if trains else []
        by_n2, narrow = layer.inner.input_grad(by_inner, lora_inner)
        by_in = (
            layer.inner.weight_grads(by_inner, ops.apply_rms_norm(y, s2, second), lora_inner, narrow) if trains else []
        )
        by_y, by_second = ops.rms_norm_backward(by_n2, y, s2, second, grad_TD, full)

        # attention
        by_mixed, narrow = layer.out.input_grad(by_y, lora_out)
        by_out = layer.out.weight_grads(by_y, mixed, lora_out, narrow) if trains else []
        if ctx.rows_N is not None:
            by_mixed, by_y = (
                part.new_zeros(len(x), part.shape[1]).index_add_(0, ctx.rows_N, part) for part in (by_mixed, by_y)
            )
        by_qkv = x.new_empty(len(x), layer.qkv.ends[-1])
        for number, block in enumerate(blocks):
            layer.attention_backward(by_mixed, block, attention[4 * number : 4 * number + 4], by_qkv)
        by_x = None
        by_first = None
        if below or full:
            by_n1, narrow = layer.qkv.input_grad(by_qkv, lora_qkv)
            by_x, by_first = ops.rms_norm_backward(by_n1, x, s1, first, by_y, full)
        else:
            narrow = layer.qkv.lora_down(by_qkv, lora_qkv)
        by_heads = layer.qkv.weight_grads(by_qkv, ops.apply_rms_norm(x, s1, first), lora_qkv, narrow) if trains else []
        grads = [*by_heads, *by_out, *by_in, *by_down] if trains else [None] * len(ctx.needs_input_grad[4:])
        return by_x if below else None, None, None, None, *grads, *((by_first, by_second) if full else ())


def layers_of(model: Any) -> list[Layer]:
    """The model's layers, cached on the model with their stacked weights."""
    saved = model.__dict__.get("_decoder")
    if saved is None or saved[0].qkv.linears[0] is not model.base_model.layers[0].self_attn.q_proj:
        object.__setattr__(model, "_decoder", [Layer(layer) for layer in model.base_model.layers])
    return model._decoder


def run_layers(model: Any, x_TD: Tensor, packed: PackedBatch, part: slice, read_N: Tensor | None) -> Tensor:
    """Run some layers on the states of the tokens. Without `read_N`: the output at every position [S,D], zero at
    padding. With it: the states [N,D] at these positions after the final norm; the last layer computes no others."""
    token_S = (packed.segment_PL > 0).flatten()
    layers = layers_of(model)[part]
    blocks = _blocks(model, x_TD, packed)
    # from positions to token rows
    rows_N = None if read_N is None else token_S.cumsum(0)[read_N] - 1
    for position, layer in enumerate(layers, 1):
        rows = rows_N if position == len(layers) else None
        if torch.is_grad_enabled() and getattr(model, "checkpoints_layers", False):
            x_TD = checkpoint(layer, x_TD, blocks, rows, use_reentrant=False)
        else:
            x_TD = layer(x_TD, blocks, rows)
    if rows_N is None:
        return x_TD.new_zeros(len(token_S), x_TD.shape[1]).index_copy_(0, token_S.nonzero()[:, 0], x_TD)
    return model.base_model.norm(x_TD if layers else x_TD[rows_N])


def _blocks(model: Any, x_TD: Tensor, packed: PackedBatch) -> list[AttentionBlock]:
    """Blocks of sequences of similar length, in their order."""
    cos, sin = _angles(model, x_TD, packed.position_PL)
    tokens_P = (packed.segment_PL > 0).sum(1).tolist()
    begin_P1 = torch.tensor([0, *np.cumsum(tokens_P)])
    blocks = []
    for some in length_buckets(tokens_P):
        width = max(tokens_P[some])
        rotary = cos[some, :, :width].contiguous(), sin[some, :, :width].contiguous()
        mask = attention_mask(packed.segment_PL[some, :width], x_TD.dtype, packed.parent_PL[some, :width])
        blocks.append(AttentionBlock(rotary, mask, begin_P1[some.start : some.stop + 1]))
    return blocks


def decode_step(model: Any, ids_BL: Tensor, position_BL: Tensor, mask: Tensor, cache: Any) -> Tensor:
    """Last hidden states [B,D] of new tokens after those in the KV cache, which gets their keys and values."""
    states_BLD = model.base_model.embed_tokens(ids_BL)
    begin_B1 = torch.arange(0, ids_BL.numel() + 1, ids_BL.shape[1])
    x_TD = states_BLD.flatten(0, 1)
    blocks = [AttentionBlock(_angles(model, states_BLD, position_BL), mask, begin_B1)]
    for layer, cache_layer in zip(layers_of(model), cache.layers, strict=True):
        x_TD = layer.forward(x_TD, blocks, None, cache_layer)[0]
    return model.base_model.norm(x_TD.view_as(states_BLD)[:, -1])


def _angles(model: Any, like: Tensor, position_PL: Tensor) -> RotaryCache:
    cos, sin = (x[:, None, :, : x.shape[-1] // 2].contiguous() for x in model.base_model.rotary_emb(like, position_PL))
    return cos, sin


@contextmanager
def sampling_head(model: Any, head: Callable[[Tensor], Tensor]) -> Iterator[Callable[[Tensor], Tensor]]:
    """Within the block weights are reordered for oneDNN, at the price of a copy; yields the output head. Only for
    frozen weights without an adapter in bfloat16, where it is faster; elsewhere yields `head`."""
    pays = is_supported(model) and model.dtype == torch.bfloat16 and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    stacks = [stack for layer in layers_of(model) for stack in layer.stacks] if pays else []
    if not pays or any(stack.adapter() is not None for stack in stacks):
        yield head
        return
    linear = model.get_output_embeddings()
    whole = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
    try:
        for stack in stacks:
            stack.packed = torch.ops.mkldnn._reorder_linear_weight(stack.weight())
        yield lambda x: torch.ops.mkldnn._linear_pointwise(x, whole, linear.bias, "none", [], "")
    finally:
        for stack in stacks:
            stack.packed = None
