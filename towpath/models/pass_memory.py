"""Memory of a pass, by the shape of a model: how many tokens fit a device.

Counted for layers as transformers computes them in 16 bits; a test compares the count with what autograd saves.
"""

from dataclasses import dataclass
from typing import Any

LEAST = 1024
MOST = 32_768
"""Tokens of a pass: more than this makes no product faster."""
USED = 0.85
"""Share of the free memory that a pass may take; the rest is for what is not counted, and for fragments."""
LOGITS_BYTES = 14
"""Of one logit while log-probabilities are computed: 16 bits, and float32 scaled, as it is and as a probability."""
HEAD_ROWS = 256
"""States whose logits are computed at a time on a CPU, whose cache they fit."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes that decide about memory."""

    layers: int
    width: int
    inner: int
    queries: int
    """Width of all query heads together."""
    keys: int
    """And of all key-value heads."""
    vocabulary: int

    @classmethod
    def of_config(cls, config: Any) -> "ModelShape":
        """The shape of a model of transformers."""
        text = config.get_text_config()
        heads = text.num_attention_heads
        head = getattr(text, "head_dim", None) or text.hidden_size // heads
        inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        experts = getattr(text, "num_experts_per_tok", None)
        if experts:
            inner = max(inner, experts * (getattr(text, "moe_intermediate_size", None) or inner))
        keys = head * (getattr(text, "num_key_value_heads", None) or heads)
        return cls(text.num_hidden_layers, text.hidden_size, inner, head * heads, keys, text.vocab_size)


def head_rows(is_cpu: bool, vocabulary: int) -> int:
    """States whose logits are computed at a time: few for a CPU's cache, many for a GPU's launches."""
    if is_cpu:
        return HEAD_ROWS
    return 8192 if vocabulary <= 2**16 else 4096


def layer_bytes(shape: ModelShape) -> int:
    """What a layer keeps of a token for the backward pass."""
    # two norms: their input in float32, and what they give; queries and keys before and after norm and rotation
    attention = 16 * shape.width + 14 * shape.queries + 14 * shape.keys
    # gate, its activation, up, and their product
    return attention + 8 * shape.inner


def token_bytes(shape: ModelShape, trains: bool, head_trains: bool, checkpointing: bool) -> int:
    """What a pass keeps of a token, all layers and the head."""
    saved = shape.layers * layer_bytes(shape) if trains else layer_bytes(shape)
    if trains and checkpointing:
        saved = shape.layers * 2 * shape.width + layer_bytes(shape)
    # the final norm, and states in float32 for value heads; the gradient of the logits where the head trains
    return saved + 28 * shape.width + (2 * shape.vocabulary if head_trains and trains else 2 * shape.width)


def tokens_that_fit(
    free: int, shape: ModelShape, trains: bool = True, head_trains: bool = False, checkpointing: bool = False
) -> int:
    """Tokens of a pass for which `free` bytes are enough."""
    logits = head_rows(False, shape.vocabulary) * shape.vocabulary * LOGITS_BYTES
    tokens = (int(USED * free) - logits) // token_bytes(shape, trains, head_trains, checkpointing)
    return round_down(max(LEAST, min(MOST, tokens)))


def round_down(tokens: int) -> int:
    """The power of two below: other passes sum in another order, and a resumed run must not differ because a little
    more or less memory was free."""
    return 2 ** (tokens.bit_length() - 1)
