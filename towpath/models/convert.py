"""Make a plain model folder, safetensors and a tokenizer, of a GGUF file or of nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from towpath.data.chat import CHATML, pad_token
from towpath.errors import ModelError, ResourceError
from towpath.models import files

GGUF_SIZES = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "vocab_size": "vocab_size",
    "attention.head_count": "num_attention_heads",
    "attention.key_length": "head_dim",
    "expert_count": "num_experts",
}


@contextmanager
def naming_files(
    folder: Path, require: Callable[[Path], None], rule: str, fix: str = "check model.source"
) -> Iterator[None]:
    """Within the block a library reads a model's files: what it raises, which may be anything, becomes an error that
    names the file."""
    try:
        yield
    except ModelError:
        raise
    except (Exception, SafetensorError) as error:
        require(folder)
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
            raise ResourceError(
                f"{folder}: not enough memory to load it", "the weights must fit", "use a smaller model, or free memory"
            ) from None
        message = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{folder}: {message}", rule, fix) from None


def convert_gguf(path: Path, folder: Path) -> None:
    """Read a GGUF through transformers and keep it as plain float32 safetensors."""
    target: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
    rule = "a GGUF file must be whole, and of a kind that transformers reads"
    fix = "fetch it again, or name a folder with safetensors"
    with naming_files(path, lambda _path: None, rule, fix):
        _require_plausible(path)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **target)
        loaded = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **target)
    config = loaded.config
    config.__dict__.pop("quantization_config", None)
    config.pad_token_id = pad_token(tokenizer)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _require_plausible(path: Path) -> None:
    """Refuse sizes in a GGUF file's keys that its tensors do not bear out, before anything of that size is made."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    kind = reader.fields["general.architecture"].contents()
    config: dict[str, Any] = {}
    for theirs, ours in GGUF_SIZES.items():
        field = reader.fields.get(f"{kind}.{theirs}")
        value = field.contents() if field else None
        config |= {ours: value} if isinstance(value, int) else {}
    files.require_plausible(
        str(path), config, {tensor.name: [int(side) for side in tensor.shape] for tensor in reader.tensors}
    )


def make_tiny(folder: Path) -> None:
    """A random two-layer Llama with a byte-level tokenizer: small enough for a whole run in a minute."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*special, *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=special[1], eos_token=special[2], pad_token=special[0]
    )
    tokenizer.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=len(special) + len(alphabet),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
