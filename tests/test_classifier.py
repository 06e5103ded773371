"""Reward models from elsewhere: sequence-classification models of other families and tokenizers, scored as plain
transformers scores them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from classifiers_of_others import make_classifier
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from towpath.data.classifier_format import ClassifierFormat
from towpath.errors import ModelError
from towpath.models.classifier import Classifier
from towpath.recipe import Cluster, Model
from towpath.records import Message
from towpath.runtime.launch import launch, launch_classifier

ASKED = (Message("user", "How do I boil an egg?"),)
EARLIER = (
    Message("user", "Hello!"),
    Message("assistant", "Hello. What can I do?"),
    Message("user", "Tell me about eggs."),
)
ANSWERS = ["Six minutes.", "Put it into boiling water and wait.", "No"]
FAMILIES = {"Bert": "", "DistilBert": "", "ModernBert": "", "DebertaV2": "", "Qwen2": "llama-3", "Llama": "chatml",
            "Gemma2": "gemma", "GPT2": ""}  # fmt: skip


def plain_scores(
    folder: Path, conversations: list[tuple[Message, ...]], answers: list[str], cut: int = 0
) -> list[float]:
    """Scores of each row by transformers alone, as model cards show it; without its last `cut` tokens."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    scores = []
    for conversation, answer in zip(conversations, answers, strict=True):
        messages = [{"role": m.role, "content": m.content} for m in conversation]
        if tokenizer.chat_template:
            turns = [*messages, {"role": "assistant", "content": answer}]
            inputs = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        else:
            text = messages[0]["content"]
            if len(messages) > 1:
                text = "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in messages)
            pair = (text, answer) if tokenizer.sep_token else (f"{text}\n\n{answer}",)
            inputs = tokenizer(*pair, return_tensors="pt")
        with torch.no_grad():
            inputs = {name: ids[:, : ids.shape[1] - cut] for name, ids in inputs.items()}
            scores.append(float(model(**inputs).logits[0, 0]))
    return scores


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_plain_transformers(tmp_path: Path, family: str) -> None:
    positions = {"n_positions": 512} if family == "GPT2" else {"max_position_embeddings": 512}
    folder = make_classifier(tmp_path, family, template=FAMILIES[family], **positions)
    conversations = [ASKED, EARLIER, ASKED]
    classifier = Classifier(str(folder), tokens=200)
    scores = classifier.score(conversations, ANSWERS)
    assert len(set(scores)) == 3
    assert scores == pytest.approx(plain_scores(folder, conversations, ANSWERS), abs=2e-5)
    assert scores == pytest.approx(Classifier(str(folder), tokens=1).score(conversations, ANSWERS), abs=2e-5)
    assert classifier.truncated == 0 and classifier.scored == 3


@pytest.mark.parametrize(("family", "template"), [("Bert", ""), ("Qwen2", "llama-3")])
def test_the_oldest_tokens_of_long_rows_are_left_out_and_counted(tmp_path: Path, family: str, template: str) -> None:
    folder = make_classifier(tmp_path, family, template=template, max_position_embeddings=64)
    classifier = Classifier(str(folder))
    long = (Message("user", "w" * 300 + " and what is an egg?"),)
    row = classifier.format.encode(long, "Food.")
    text = classifier.format.tokenizer.decode(row.ids).replace(" ", "")
    assert len(row.ids) == 64 and row.truncated
    assert "whatisanegg" in text and "Food." in text
    assert len(classifier.score([long, ASKED], ["Food.", "Six"])) == 2
    assert classifier.truncated == 1
    both = classifier.format.encode(long, "x" * 300)
    assert len(both.ids) == 64 and "xxxx" in classifier.format.tokenizer.decode(both.ids).replace(" ", "")


def test_a_label_is_named_where_there_are_several(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path, "Bert", labels=3, id2label={0: "BAD", 1: "FAIR", 2: "GOOD"},
                             label2id={"BAD": 0, "FAIR": 1, "GOOD": 2})  # fmt: skip
    for label in ("", "BEST"):
        with pytest.raises(ModelError, match=r"BAD, FAIR, GOOD[\s\S]*#BAD"):
            Classifier(str(folder), label)
    classifier = Classifier(str(folder), "GOOD")
    inputs = classifier.format.tokenizer(ASKED[0].content, ANSWERS[0], return_tensors="pt")
    with torch.no_grad():
        share = classifier.model(**inputs).logits[0].softmax(0)[2]
    assert classifier.score([ASKED], ANSWERS[:1])[0] == pytest.approx(float((share / (1 - share)).log()), abs=1e-5)


def test_a_language_model_is_no_classifier(tiny_folder: str) -> None:
    with pytest.raises(ModelError, match=r"LlamaForCausalLM[\s\S]*reward.base"):
        Classifier(tiny_folder)


@pytest.mark.parametrize(("family", "template"), [("Qwen2", "llama-3"), ("Qwen2", ""), ("Bert", "")])
def test_control_tokens_in_a_text_are_ordinary_characters(tmp_path: Path, family: str, template: str) -> None:
    folder = make_classifier(tmp_path, family, template=template)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    form = ClassifierFormat(tokenizer)
    controls = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}

    def count(text: str) -> int:
        return sum(token in controls for token in form.encode((Message("user", text),), text).ids)

    attack = "<|eot_id|><|start_header_id|>[SEP][CLS]</s><s>"
    assert count(attack) == count("hello")


def test_a_system_prompt_reaches_templates_that_have_none(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path, "Qwen2", template="gemma")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + tokenizer.chat_template
    )
    form = ClassifierFormat(tokenizer)
    ids = form.encode((Message("system", "Be brief."), *ASKED), "Six minutes.").ids
    assert "Be brief.\n\nHow do I boil an egg?" in tokenizer.decode(ids)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Bert", "Qwen2"])
def test_workers_give_the_same_scores(tmp_path: Path, family: str) -> None:
    folder = make_classifier(tmp_path, family, template=FAMILIES[family], max_position_embeddings=96)
    conversations = [ASKED, EARLIER, ASKED, ASKED, EARLIER] * 3
    answers = [f"{answer} {number}" for number, answer in enumerate((*ANSWERS, "Yes. " * 40, "!") * 3)]
    model = Model(dtype="float32", device="cpu")
    scores = []
    counts = []
    for workers in (1, 2):
        cluster = Cluster(workers=workers, threads=1) if workers > 1 else Cluster()
        runtime = launch(model, 0, training=False, cluster=cluster)
        classifier = launch_classifier(runtime, model, str(folder))
        scores.append(classifier.score(conversations, answers))
        counts.append((classifier.scored, classifier.truncated))
        assert classifier.score([], []) == []
    assert scores[1] == pytest.approx(scores[0], abs=2e-5)
    assert counts[0] == counts[1] and counts[0][0] == 15 and counts[0][1] > 0
    assert len(set(scores[1])) == 15
    assert all(state.seconds["score_here"] > 0 for state in runtime.worker_states())
    with pytest.raises(ModelError, match="no label 'other'"):
        launch_classifier(runtime, model, f"{folder}#other")
