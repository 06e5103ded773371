"""Tokenizers and chat templates of the kinds used by public models, small enough to train in a test."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CONTROLS = [
    "<unk>",
    "<s>",
    "</s>",
    "<|pad|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|User|>",
    "<|Assistant|>",
    "<|end_of_sentence|>",
]
"""The id of a control token is its index."""


def _turns(user: str, assistant: str, ask: str, begin: str = "") -> str:
    """A template of user and assistant turns; `ask` is the generation prompt."""
    return (
        f"{{{{ {begin!r} }}}}{{% for m in messages %}}{{% if m['role'] == 'user' %}}{user}{{% else %}}{assistant}{{% "
        f"endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {ask!r} }}}}{{% endif %}}"
    )


TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama-2": _turns("[INST] {{ m['content'] | trim }} [/INST]", " {{ m['content'] | trim }} </s>", "", "<s>"),
    "llama-3": _turns(
        "<|start_header_id|>user<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|begin_of_text|>",
    ),
    "mistral": _turns("[INST] {{ m['content'] }}[/INST]", " {{ m['content'] }}</s>", "", "<s>"),
    "vicuna": _turns(
        "USER: {{ m['content'] }}",
        " ASSISTANT: {{ m['content'] }}</s>",
        " ASSISTANT:",
        "<s>A chat between a user and an assistant. ",
    ),
    "zephyr": _turns(
        "<|user|>\n{{ m['content'] }}</s>\n", "<|assistant|>\n{{ m['content'] }}</s>\n", "<|assistant|>\n"
    ),
    "gemma": _turns(
        "<start_of_turn>user\n{{ m['content'] | trim }}<end_of_turn>\n",
        "<start_of_turn>model\n{{ m['content'] | trim }}<end_of_turn>\n",
        "<start_of_turn>model\n",
        "<s>",
    ),
    "phi-3": _turns(
        "<|user|>\n{{ m['content'] }}<|end|>\n", "<|assistant|>\n{{ m['content'] }}<|end|>\n", "<|assistant|>\n"
    ),
    "deepseek": _turns(
        "<|User|>{{ m['content'] }}", "<|Assistant|>{{ m['content'] }}<|end_of_sentence|>", "<|Assistant|>", "<s>"
    ),
    "alpaca": _turns(
        "### Instruction:\n{{ m['content'] }}\n\n",
        "### Response:\n{{ m['content'] }}</s>\n\n",
        "### Response:\n",
        "Below is an instruction.\n\n",
    ),
}
ENDS = {
    "chatml": "<|im_end|>",
    "llama-3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "phi-3": "<|end|>",
    "deepseek": "<|end_of_sentence|>",
}
"""The token that ends a turn of a template if it is not </s>."""
KINDS = (
    "metaspace-always",
    "metaspace-first",
    "metaspace-legacy",
    "metaspace-unsplit",
    "unigram",
    "byte-level",
    "byte-level-digits",
)


@cache
def _texts() -> list[str]:
    folder = Path(__file__).parent.parent / "recipes" / "quickstart" / "prompts"
    return [
        line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()[:60]
    ]


@cache
def trained(kind: str) -> str:
    """A trained tokenizer of a kind, as JSON."""
    unigram = kind == "unigram"
    byte_level = kind.startswith("byte-level")
    model = (
        models.Unigram()
        if unigram
        else models.BPE(unk_token=None if byte_level else "<unk>", byte_fallback=not byte_level)
    )
    backend = Tokenizer(model)
    if byte_level:
        digits = [pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")] if kind == "byte-level-digits" else []
        backend.pre_tokenizer = pre_tokenizers.Sequence([*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        alphabet = [chr(code) for code in range(32, 127)] + ["▁"]
        if kind == "metaspace-legacy":
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            backend.decoder = decoders.Sequence(steps)
        else:
            scheme = "always" if kind in ("metaspace-always", "unigram") else "first"
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=kind != "metaspace-unsplit")
            backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    fallback = [] if byte_level else [f"<0x{byte:02X}>" for byte in range(256)]
    options = {"vocab_size": 700, "show_progress": False, "initial_alphabet": alphabet}
    special = [*CONTROLS, *fallback]
    if unigram:
        trainer: Any = trainers.UnigramTrainer(special_tokens=special, unk_token="<unk>", **options)
    else:
        trainer = trainers.BpeTrainer(special_tokens=special, **options)
    backend.train_from_iterator(_texts(), trainer)
    return _without_byte_tokens(backend)


def _without_byte_tokens(backend: Tokenizer) -> str:
    """As in public models: byte tokens are entries of the vocabulary, but not added tokens that match in text."""
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if not token["content"].startswith("<0x")]
    return json.dumps(spec)


def tokenizer_of(kind: str, template: str = "", eos: str = "</s>") -> PreTrainedTokenizerFast:
    """A tokenizer of a kind with a template."""
    backend = Tokenizer.from_str(trained(kind))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token=eos,
        pad_token="<|pad|>",
        unk_token=None if kind.startswith("byte") else "<unk>",
        additional_special_tokens=[AddedToken(token, special=True, normalized=False) for token in CONTROLS[4:]],
    )
    tokenizer.chat_template = TEMPLATES.get(template)
    return tokenizer
