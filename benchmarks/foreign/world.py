"""A tiny language that models of 100,000 weights learn in seconds: requests, answers, pairs and rewards."""

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

WORDS = {
    "nouns": "cat dog bird horse fish tree river house road garden ship tower bridge market king farmer baker child "
    "teacher doctor",
    "kinds": "red blue green old young small large quiet loud bright dark warm cold quick slow kind brave clever "
    "proud calm",
    "verbs": "runs sleeps sings waits grows shines falls moves rests turns stands dreams",
    "ways": "quickly slowly quietly often never always today again alone together",
    "likes": "milk bread water songs stories gold apples rain light sleep",
}
NOUNS, KINDS, VERBS, WAYS, LIKES = (text.split() for text in WORDS.values())
POLITE = (" Thank you.", " Thank you for asking.", " Please ask again.", "")
RUDE = (" I will not say more.", " Do not ask me.", " That is all.", "")
SIZES = {"small": (2, 64), "medium": (3, 96), "large": (4, 128)}


def request(draws: random.Random) -> tuple[str, str, str]:
    """A prompt, its noun and its adjective."""
    noun = draws.choice(NOUNS)
    kind = draws.choice(KINDS)
    return f"Tell me about the {kind} {noun}.", noun, kind


def answer(noun: str, kind: str, draws: random.Random, sentences: int = 0) -> str:
    """Sentences about a noun."""
    count = sentences or draws.choice((1, 1, 2, 2, 3))
    text = [f" The {kind} {noun} {draws.choice(VERBS)} {draws.choice(WAYS)}."]
    for _ in range(count - 1):
        text.append(f" It {draws.choice(VERBS)} {draws.choice(WAYS)} and likes {draws.choice(LIKES)}.")
    return "".join(text)


def letters(draws: random.Random) -> str:
    """An unpredictable answer of random letters."""
    return " " + " ".join(draws.choice("abcdefghijklmnop") for _ in range(draws.randint(10, 20)))


def demonstrations(
    rows: int, seed: int, data: str = "answers", known: float = 1.0, sentences: int = 0
) -> list[dict[str, str]]:
    """Prompts with answers; a share `known` of the answers is on topic, the others also have random endings."""
    draws = random.Random(f"demonstrations/{seed}")
    made = []
    for _ in range(rows):
        prompt, noun, kind = request(draws)
        if draws.random() >= known:
            noun = draws.choice(NOUNS)
            kind = draws.choice(KINDS)
        text = letters(draws) if data == "letters" else answer(noun, kind, draws, sentences)
        if known < 1.0 and draws.random() < 0.5:
            text += draws.choice(POLITE + RUDE)
        made.append({"prompt": prompt, "completion": text})
    return made


def pairs(rows: int, seed: int, swap: float = 0.0) -> list[dict[str, str]]:
    """Pairs whose better answer is on topic and mostly polite; a share of them is flipped."""
    draws = random.Random(f"pairs/{seed}")
    made = []
    for _ in range(rows):
        prompt, noun, kind = request(draws)
        other = draws.choice([word for word in NOUNS if word != noun])
        chosen = answer(noun, kind, draws) + draws.choice(POLITE)
        rejected = answer(other, draws.choice(KINDS), draws) + draws.choice(RUDE)
        if draws.random() < swap:
            chosen, rejected = rejected, chosen
        made.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return made


def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE of this language, trained once."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        words = Tokenizer(models.BPE(unk_token=None))
        words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        words.decoder = decoders.ByteLevel()
        text = [row["prompt"] + row["completion"] for row in demonstrations(4000, 99, known=0.5)]
        words.train_from_iterator(
            text,
            trainers.BpeTrainer(
                vocab_size=480, special_tokens=["<pad>", "<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
            ),
        )
        words.save(str(file))
    return PreTrainedTokenizerFast(tokenizer_file=str(file), pad_token="<pad>", eos_token="<eos>")


def fresh(words: PreTrainedTokenizerFast, size: str, seed: int) -> Any:
    """A model with random weights: Llama, or Qwen for the medium size."""
    torch.manual_seed(seed)
    layers, width = SIZES[size]
    shape = {
        "vocab_size": len(words),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "pad_token_id": words.pad_token_id,
        "eos_token_id": words.eos_token_id,
        "bos_token_id": None,
        "tie_word_embeddings": True,
    }
    return Qwen2ForCausalLM(Qwen2Config(**shape)) if size == "medium" else LlamaForCausalLM(LlamaConfig(**shape))


def taught(words: PreTrainedTokenizerFast, size: str, kind: str, cache: Path, steps: int = 300) -> Path:
    """A model trained to answer, half of the time off topic; `endless`: without EOS, `long`: with long answers."""
    folder = cache / f"{kind}-{size}"
    if (folder / "config.json").is_file():
        return folder
    model = fresh(words, size, 7)
    rows = demonstrations(2000, 5, known=0.5, sentences=6 if kind == "long" else 0)
    end = "" if kind == "endless" else "<eos>"
    tail = " ".join(answer("cat", "red", random.Random(3)) for _ in range(8)) if kind == "endless" else ""
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    draws = random.Random(11)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (steps - step) / (0.5 * steps))
        batch = words(
            [r["prompt"] + r["completion"] + tail + end for r in draws.sample(rows, 24)],
            padding=True,
            return_tensors="pt",
            padding_side="right",
        )
        ids = batch["input_ids"][:, :140]
        labels = ids.masked_fill(batch["attention_mask"][:, :140] == 0, -100)
        loss = model(input_ids=ids, attention_mask=batch["attention_mask"][:, :140], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{folder.name}: loss {loss.item():.2f}", flush=True)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
