"""The layers of Llama's family, forward and back, written out: one node of the graph a layer, products of what reads the same states
stacked into one, adapters added by accumulating products, no float32 copies. Held to transformers' own layers by a test.

T tokens of P lines of L, D width, H query heads and K key-value heads of width W, R rank.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from towpath.models.adapters import LoraLinear
from towpath.models.attention import NAME

FAMILIES = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")


def fits(model: Any) -> bool:
    """Whether this file knows the model's layers, grouped products are what its attention is asked to be, and it runs where they are fast."""
    config, layers = model.config, getattr(model.base_model, "layers", ())
    return (
        len(layers) > 0
        and all(type(layer).__name__ in FAMILIES for layer in layers)
        and getattr(config, "hidden_act", "silu") == "silu"
        and not (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True))
        and not getattr(config, "attention_dropout", 0.0)
        and config._attn_implementation == NAME
        and model.device.type == "cpu"
    )


Low = tuple[Tensor, Tensor] | None
"""An adapter's A [R,D] and scaled B [R,N] for a product, or none."""


class Stack:
    """Linear layers that read the same states, as one product. Their weights become views of one tensor: nothing is held twice, and
    whoever writes to a layer's weight has written to the stack."""

    def __init__(self, *linears: nn.Module) -> None:
        self.linears = linears
        self.bases: list[nn.Linear] = [layer.base if isinstance(layer, LoraLinear) else layer for layer in linears]  # pyright: ignore[reportAttributeAccessIssue]
        self.ends: list[int] = np.cumsum([base.out_features for base in self.bases]).tolist()
        self.begins = [0, *self.ends[:-1]]
        self.whole = self.bases[0].weight.detach()
        self.packed: Tensor | None = None
        """The weights as the processor reads them fastest, while nothing learns."""

    def weight(self, dtype: torch.dtype) -> Tensor:
        """[N,D] of all layers."""
        places = [self.whole[begin:end].data_ptr() for begin, end in zip(self.begins, self.ends, strict=True)]
        if places != [base.weight.data_ptr() for base in self.bases]:
            self.whole = torch.cat([base.weight.detach() for base in self.bases])
            for base, begin, end in zip(self.bases, self.begins, self.ends, strict=True):
                base.weight.data = self.whole[begin:end]
        return self.whole.to(dtype)

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        return None if self.bases[0].bias is None else torch.cat([base.bias.detach() for base in self.bases]).to(dtype)

    def adapter(self) -> str | None:
        """The adapter that is active and present here."""
        first: Any = self.linears[0]
        name = first.switch.active if isinstance(first, LoraLinear) else None
        return name if name is not None and name in first.scale else None  # pyright: ignore[reportAttributeAccessIssue]

    def low(self, dtype: torch.dtype) -> Low:
        """The adapters' A one above the other, and their B as blocks."""
        name = self.adapter()
        if name is None:
            return None
        layers: Any = self.linears
        a, row = torch.cat([layer.a[name].detach() for layer in layers]), 0
        b = a.new_zeros(len(a), self.ends[-1])
        for layer, begin, end in zip(layers, self.begins, self.ends, strict=True):
            rank = len(layer.a[name])
            torch.mul(layer.b[name].detach().T, layer.scale[name], out=b[row : row + rank, begin:end])
            row += rank
        return a.to(dtype), b.to(dtype)

    def learned(self) -> list[Tensor]:
        """Weights that may learn, in the order `back` gives their gradients in."""
        name, layers = self.adapter(), list[Any](self.linears)
        if name is not None:
            return [layer.a[name] for layer in layers] + [layer.b[name] for layer in layers]
        return [base.weight for base in self.bases] + [base.bias for base in self.bases if base.bias is not None]

    def forward(self, x_TD: Tensor, low: Low) -> Tensor:
        if self.packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x_TD, self.packed, self.bias(x_TD.dtype), "none", [], "")
        y_TN = F.linear(x_TD, self.weight(x_TD.dtype), self.bias(x_TD.dtype))
        return y_TN if low is None else y_TN.addmm_(x_TD @ low[0].T, low[1])

    def back(self, grad_TN: Tensor, x_TD: Tensor, low: Low, name: str | None, below: bool, learns: bool) -> tuple[Tensor | None, list[Tensor]]:
        """The gradient by the states, where asked, and by what learns."""
        grad_TD = grad_TN @ self.weight(x_TD.dtype) if below else None
        if low is None or name is None:
            return grad_TD, self._by_weights(grad_TN, x_TD) if learns else []
        low_TR = grad_TN @ low[1].T
        if grad_TD is not None:
            grad_TD.addmm_(low_TR, low[0])
        return grad_TD, self._by_adapter(name, low_TR.T @ x_TD, grad_TN.T @ (x_TD @ low[0].T)) if learns else []

    def _by_weights(self, grad_TN: Tensor, x_TD: Tensor) -> list[Tensor]:
        sums = [grad_TN.T @ x_TD] + ([grad_TN.sum(0)] if self.bases[0].bias is not None else [])
        return [whole.to(self.whole.dtype)[begin:end] for whole in sums for begin, end in zip(self.begins, self.ends, strict=True)]

    def _by_adapter(self, name: str, by_a: Tensor, by_b: Tensor) -> list[Tensor]:
        layers: Any = self.linears
        found_a, found_b, row = [], [], 0
        for layer, begin, end in zip(layers, self.begins, self.ends, strict=True):
            part = slice(row, row := row + len(layer.a[name]))
            found_a.append(by_a[part].to(layer.a[name].dtype))
            found_b.append(by_b[begin:end, part].to(layer.b[name].dtype) * layer.scale[name])
        return found_a + found_b


def normed(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Root-mean-square norm and the factor of each row, which is reckoned in float32."""
    scale_T1 = (
        torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True, dtype=torch.promote_types(x_TD.dtype, torch.float32))
        .square_()
        .div_(x_TD.shape[1])
        .add_(eps)
        .rsqrt_()
    )
    return weighed(x_TD * scale_T1, weight_D, x_TD.dtype), scale_T1


def weighed(unit_TD: Tensor, weight_D: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of unit length, rounded, times the norm's weight."""
    return unit_TD.to(dtype) * weight_D.to(dtype)


def norm_back(grad_TD: Tensor, unit_TD: Tensor, scale_T1: Tensor, weight_D: Tensor, learns: bool) -> tuple[Tensor, Tensor | None]:
    """The gradients of `normed` by its input, in float32, and by its weight; `unit_TD` is the input times the factor, and is not changed."""
    by_weight = (grad_TD * unit_TD).sum(0) if learns else None
    slope_TD = grad_TD * weight_D.to(scale_T1.dtype)
    mean_T1 = torch.linalg.vecdot(slope_TD, unit_TD)[:, None].div_(unit_TD.shape[1])
    return slope_TD.addcmul_(unit_TD, mean_T1, value=-1.0).mul_(scale_T1), by_weight


class Layer:
    """One decoder layer's parts."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.width: int = attention.head_dim
        self.qkv = Stack(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out, self.inner, self.down = Stack(attention.o_proj), Stack(mlp.gate_proj, mlp.up_proj), Stack(mlp.down_proj)
        self.norms = layer.input_layernorm, layer.post_attention_layernorm
        self.heads = self.qkv.bases[0].out_features // self.width
        self.key_heads = self.qkv.bases[1].out_features // self.width
        self.stacks = (self.qkv, self.out, self.inner, self.down)

    def learned(self) -> list[Tensor]:
        """Every weight that may learn under the active adapter."""
        found = [weight for stack in self.stacks for weight in stack.learned()]
        return found if self.qkv.adapter() is not None else [*found, *(norm.weight for norm in self.norms)]

    def __call__(self, x_TD: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        learned = self.learned()
        if torch.is_grad_enabled() and (x_TD.requires_grad or any(weight.requires_grad for weight in learned)):
            return _Node.apply(x_TD, turn, mask, self, *learned)  # pyright: ignore[reportReturnType]
        return self.forward(x_TD, turn, mask)[0]

    def forward(self, x_TD: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor, seen: Any = None) -> tuple[Tensor, list[Low], tuple[Tensor, ...]]:
        """The layer's output, and what the way back needs; with a layer of a cache, keys and values join those it has seen."""
        (first, second), lines, lows = self.norms, mask.shape[0], [stack.low(x_TD.dtype) for stack in self.stacks]
        n1_TD, s1_T1 = normed(x_TD, first.weight.detach(), first.variance_epsilon)
        q, k, v = self.laid(self.qkv.forward(n1_TD, lows[0]), turn, lines)
        if seen is not None:
            k, v = (x.flatten(0, 1) for x in seen.update(*(x.view(lines, self.key_heads, -1, self.width) for x in (k, v))))
        weights = self.attended(q, k, mask)
        mixed_TD = _rows(torch.bmm(weights, v), lines, self.heads)
        y_TD = self.out.forward(mixed_TD, lows[1]).add_(x_TD)
        n2_TD, s2_T1 = normed(y_TD, second.weight.detach(), second.variance_epsilon)
        inner = self.inner.forward(n2_TD, lows[2])
        gate, up = inner.chunk(2, -1)
        z_TD = self.down.forward(F.silu(gate).mul_(up), lows[3]).add_(y_TD)
        return z_TD, lows, (s1_T1, q, k, v, weights, mixed_TD, y_TD, s2_T1, inner)

    def laid(self, qkv: Tensor, turn: tuple[Tensor, Tensor], lines: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, scaled and grouped by the key head they read [P*K,G*L,W], keys and values [P*K,L,W]; queries and keys turned by position."""
        length, turned = len(qkv) // lines, self.heads + self.key_heads
        heads = qkv.view(lines, length, turned + self.key_heads, self.width).transpose(1, 2)
        q, k = _turned(heads[:, : self.heads], *turn), _turned(heads[:, self.heads : turned], *turn)
        batch = lines * self.key_heads
        return (
            q.mul_(self.width**-0.5).view(batch, -1, self.width),
            k.view(batch, length, self.width),
            heads[:, turned:].reshape(batch, length, self.width),
        )

    def attended(self, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        """Attention weights [P*K,G*L,S]."""
        lines, length, keys = mask.shape[0], mask.shape[-2], mask.shape[-1]
        scores = torch.bmm(q, k.transpose(1, 2))
        scores.view(lines, self.heads, length, keys).add_(mask)
        return torch.softmax(scores, -1)

    def laid_back(self, by_q: Tensor, by_k: Tensor, by_v: Tensor, turn: tuple[Tensor, Tensor], lines: int) -> Tensor:
        """Gradients of `laid`, as the gradient of its product."""
        length, (cos, sin) = by_k.shape[1], turn
        shape = lines, length, self.heads + 2 * self.key_heads, self.width
        grad = by_q.new_empty(shape)
        heads, turned = grad.transpose(1, 2), self.heads + self.key_heads
        by_q.mul_(self.width**-0.5)
        _turned(by_q.view(lines, self.heads, length, self.width), cos, -sin, heads[:, : self.heads])
        _turned(by_k.view(lines, self.key_heads, length, self.width), cos, -sin, heads[:, self.heads : turned])
        heads[:, turned:] = by_v.view(lines, self.key_heads, length, self.width)
        return grad.view(lines * length, -1)


class _Node(torch.autograd.Function):
    """A layer in the graph: what it saves is what its way back cannot make again by a multiplication."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor, layer: Layer, *learned: Tensor) -> Tensor:
        z_TD, ctx.lows, kept = layer.forward(x_TD.detach(), turn, mask)
        ctx.save_for_backward(x_TD, *turn, *kept)
        ctx.layer, ctx.lines, ctx.adapter = layer, mask.shape[0], layer.qkv.adapter()
        return z_TD

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, cos, sin, s1, q, k, v, weights, mixed, y, s2, inner = ctx.saved_tensors
        layer, lines, name, (low_qkv, low_out, low_inner, low_down) = ctx.layer, ctx.lines, ctx.adapter, ctx.lows
        below, learns = ctx.needs_input_grad[0], any(ctx.needs_input_grad[4:])
        whole = learns and name is None
        first, second = (norm.weight.detach() for norm in layer.norms)

        gate, up = inner.chunk(2, -1)
        opened = F.silu(gate)
        by_acted, by_down = layer.down.back(grad_TD, opened * up, low_down, name, True, learns)
        by_inner = torch.empty_like(inner)
        torch.mul(by_acted, opened, out=by_inner[:, gate.shape[1] :])
        torch.ops.aten.silu_backward.grad_input(by_acted.mul_(up), gate, grad_input=by_inner[:, : gate.shape[1]])
        unit = y * s2
        by_n2, by_in = layer.inner.back(by_inner, weighed(unit, second, y.dtype), low_inner, name, True, learns)
        step, by_second = norm_back(by_n2, unit, s2, second, whole)
        by_y = step.add_(grad_TD).to(grad_TD.dtype)

        by_mixed, by_out = layer.out.back(by_y, mixed, low_out, name, True, learns)
        by_mixed = _heads(by_mixed, lines, layer.key_heads, layer.width)
        by_v = torch.bmm(weights.transpose(1, 2), by_mixed)
        by_scores = torch.ops.aten._softmax_backward_data(torch.bmm(by_mixed, v.transpose(1, 2)), weights, -1, weights.dtype)
        by_q, by_k = torch.bmm(by_scores, k), torch.bmm(by_scores.transpose(1, 2), q)
        by_qkv = layer.laid_back(by_q, by_k, by_v, (cos, sin), lines)
        unit = x * s1
        by_n1, by_in1 = layer.qkv.back(by_qkv, weighed(unit, first, x.dtype), low_qkv, name, below or whole, learns)
        by_x, by_first = None, None
        if below or whole:
            step, by_first = norm_back(by_n1, unit, s1, first, whole)
            by_x = step.add_(by_y).to(grad_TD.dtype) if below else None
        found = [*by_in1, *by_out, *by_in, *by_down] if learns else [None] * len(ctx.needs_input_grad[4:])
        return by_x, None, None, None, *found, *((by_first, by_second) if whole else ())


def _turned(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """Heads [P,H,L,W] turned by their positions' angles [P,1,L,W/2]."""
    half = x.shape[-1] // 2
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    one, two = x[..., :half], x[..., half:]
    torch.mul(one, cos, out=out[..., :half]).addcmul_(two, sin, value=-1.0)
    torch.mul(two, cos, out=out[..., half:]).addcmul_(one, sin)
    return out


def _rows(mixed: Tensor, lines: int, heads: int) -> Tensor:
    """Heads [P*K,G*L,W] as rows [T,H*W]."""
    width = mixed.shape[-1]
    return mixed.view(lines, heads, -1, width).transpose(1, 2).reshape(-1, heads * width)


def _heads(rows: Tensor, lines: int, key_heads: int, width: int) -> Tensor:
    """Rows [T,H*W] as heads [P*K,G*L,W]."""
    return rows.view(lines, len(rows) // lines, -1, width).transpose(1, 2).reshape(lines * key_heads, -1, width)


def layers_of(model: Any) -> list[Layer]:
    """The model's layers; their stacked weights are kept with the model."""
    kept = model.__dict__.get("_decoder")
    if kept is None or kept[0].qkv.linears[0] is not model.base_model.layers[0].self_attn.q_proj:
        object.__setattr__(model, "_decoder", [Layer(layer) for layer in model.base_model.layers])
    return model._decoder


def through(model: Any, states_PLD: Tensor, position_PL: Tensor, mask: Tensor, part: slice, end: bool) -> Tensor:
    """The states after some of the layers, and after the final norm where that is the end."""
    turn, x_TD = _angles(model, states_PLD, position_PL), states_PLD.flatten(0, 1)
    for layer in layers_of(model)[part]:
        x_TD = layer(x_TD, turn, mask)
    out = x_TD.view_as(states_PLD)
    return model.base_model.norm(out).to(out.dtype) if end else out


def read(model: Any, ids_BL: Tensor, position_BL: Tensor, mask: Tensor, cache: Any) -> Tensor:
    """Last hidden states [B,D] of what is read after all that the cache has seen; the cache sees it too."""
    states_BLD = model.base_model.embed_tokens(ids_BL)
    turn, x_TD = _angles(model, states_BLD, position_BL), states_BLD.flatten(0, 1)
    for layer, seen in zip(layers_of(model), cache.layers, strict=True):
        x_TD = layer.forward(x_TD, turn, mask, seen)[0]
    return model.base_model.norm(x_TD.view_as(states_BLD)[:, -1])


def _angles(model: Any, states_PLD: Tensor, position_PL: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = (x[:, None, :, : x.shape[-1] // 2].contiguous() for x in model.base_model.rotary_emb(states_PLD, position_PL))
    return cos, sin


@contextmanager
def packed(model: Any) -> Iterator[Callable[[Tensor], Tensor]]:
    """Within the block weights lie as the processor reads them fastest, at the price of a copy; gives the head's product.
    Only where they do not change, no adapter adds to them, and in bfloat16, where it pays."""
    head = model.get_output_embeddings()
    pays = fits(model) and model.dtype == torch.bfloat16 and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    stacks = [stack for layer in layers_of(model) for stack in layer.stacks] if pays else []
    if not pays or any(stack.adapter() is not None for stack in stacks):
        yield head
        return
    whole = torch.ops.mkldnn._reorder_linear_weight(head.weight.detach())
    try:
        for stack in stacks:
            stack.packed = torch.ops.mkldnn._reorder_linear_weight(stack.weight(model.dtype))
        yield lambda x: torch.ops.mkldnn._linear_pointwise(x, whole, head.bias, "none", [], "")
    finally:
        for stack in stacks:
            stack.packed = None
