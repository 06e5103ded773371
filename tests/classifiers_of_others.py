"""Random sequence-classification models of several families, with tokenizers of their own, made in a second."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers_of_others import tokenizer_of
from transformers import PreTrainedTokenizerFast

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
}
ENCODER_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(chr, range(32, 127)), "\u00e9"]


def encoder_tokenizer() -> Any:
    """A tokenizer of characters with BERT's pairs: [CLS] a [SEP] b [SEP]."""
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(ENCODER_WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=512, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def make_classifier(folder: Path, family: str, labels: int = 1, template: str = "", **settings: Any) -> Path:
    """A random classifier; an encoder without a template, a decoder with one of its own or none."""
    is_encoder = family in ("Bert", "DistilBert", "ModernBert", "DebertaV2")
    tokenizer = encoder_tokenizer() if is_encoder else tokenizer_of("byte-level", template or "llama-3")
    if not is_encoder and not template:
        tokenizer.chat_template = None
    known = {"vocab_size": len(tokenizer), "num_labels": labels, "pad_token_id": tokenizer.pad_token_id}
    known |= {"bos_token_id": None, "eos_token_id": None, "cls_token_id": None, "sep_token_id": None}
    if family == "DistilBert":
        known |= {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
    if not is_encoder:
        known |= {"num_key_value_heads": 2}
    if family == "GPT2":
        known |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}
    config = getattr(transformers, f"{family}Config")(**(SIZES | known | settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model: Any = getattr(transformers, f"{family}ForSequenceClassification")(config)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim >= 2:
                    weight.normal_(0, 0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_language_model(folder: Path, family: str, template: str, **settings: Any) -> Path:
    """A random language model with a tokenizer of its own."""
    tokenizer = tokenizer_of("byte-level", template)
    known = {"vocab_size": len(tokenizer), "num_key_value_heads": 2, "max_position_embeddings": 1024}
    known |= {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id}
    config = getattr(transformers, f"{family}Config")(**(SIZES | known | settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
