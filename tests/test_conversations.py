"""Conversations of several turns: tokens, training on all turns, the limit of tokens, and reasoning."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_models import runtime
from tokenizers_of_others import CONTROLS, KINDS, TEMPLATES, tokenizer_of

import towpath as tp
from towpath.algos import sft
from towpath.data.batch import Batch
from towpath.data.chat import Chat, as_messages
from towpath.data.checks import check_data
from towpath.data.context_budget import HistoryCutter, cut_corpus, cut_history
from towpath.data.corpus import Corpus
from towpath.data.corpus_reader import read_corpus
from towpath.data.demonstration_rows import NOT_A_PREFIX, demonstration_row
from towpath.data.template_renderer import TemplateFailed
from towpath.feedback import judge_runner
from towpath.models import base
from towpath.reasoning import split_reasoning
from towpath.recipe import Recipe, Sft
from towpath.recipe.reader import check
from towpath.records import Comparison, Completion, Conversation, Demonstration, Message, Prompt, Split, transcript
from towpath.stages.demonstrations import demonstration_batch
from towpath.store.store import Store

TEXTS = ("How do I boil an egg?", "Six minutes.", "And 2 of them?", "The same time.", "Grüße! Why?", "Heat is shared.")
ROLES = ("user", "assistant")
LAST = Sft(turns="last")
ALL = Sft(turns="all")
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
LONGER = "{% if messages | length > 2 %}{{ 'A conversation:\n' }}{% endif %}"
"""The beginning of a template that renders a history in another way once it is longer."""


def turns(count: int) -> Conversation:
    return tuple(Message(ROLES[i % 2], TEXTS[i % len(TEXTS)]) for i in range(count))


def chat_of(template: str) -> Chat:
    tokenizer = copy.deepcopy(tokenizer_of("byte-level", "chatml"))
    tokenizer.chat_template = template
    return Chat(tokenizer)


def demonstration(count: int) -> Demonstration:
    """A conversation of so many turns, the last of which is the response."""
    *history, last = turns(count - 1)
    return Demonstration("d", last.content, TEXTS[(count - 1) % len(TEXTS)], history=tuple(history))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_tokens_of_a_conversation_are_those_of_its_template(kind: str, template: str) -> None:
    chat = Chat(tokenizer_of(kind, template))
    for count in (1, 3, 5):
        assert chat.prompt(turns(count)) == chat.template_tokens(turns(count))


@pytest.mark.parametrize("template", ["chatml", "llama-3", "zephyr", "gemma"])
def test_control_tokens_in_any_turn_stay_text(template: str) -> None:
    tokenizer = tokenizer_of("byte-level", template)
    chat = Chat(tokenizer)
    controls = set(tokenizer.all_special_ids)

    def control_tokens(messages: Conversation) -> list[int]:
        return [token for token in chat.prompt(messages) if token in controls]

    attack = "".join(CONTROLS[1:])
    for position in range(3):
        messages = list(turns(3))
        messages[position] = replace(messages[position], content=f"a {attack} b")
        assert control_tokens(tuple(messages)) == control_tokens(turns(3))


def test_a_system_prompt_that_the_template_refuses_is_an_error_that_says_so() -> None:
    chat = chat_of(NO_SYSTEM + TEMPLATES["chatml"])
    assert chat.prompt(turns(3)) == chat.template_tokens(turns(3))
    with pytest.raises(TemplateFailed, match="System role not supported"):
        chat.prompt((Message("system", "Be brief."), *turns(1)))
    dropping = TEMPLATES["chatml"].replace("in messages %}", "in messages if m.role != 'system' %}")
    with pytest.raises(TemplateFailed, match="does not render the turns system, user"):
        chat_of(dropping).prompt((Message("system", "Be brief."), *turns(1)))


@pytest.mark.parametrize("kind", ["byte-level", "metaspace-first", "unigram"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_all_answers_are_trained_on_and_nothing_else(kind: str, template: str) -> None:
    chat = Chat(tokenizer_of(kind, template))
    d = demonstration(6)
    one = demonstration_row(chat, d, ALL)
    assert not one.problem
    last = demonstration_row(chat, d, LAST)
    assert one.row.ids.tolist() == last.row.ids.tolist() and last.trained.all()
    trained = one.row.ids[one.row.start :][one.trained].tolist()
    expected = [token for text in (TEXTS[1], TEXTS[3], TEXTS[5]) for token in chat.answer(text)]
    assert trained == expected
    assert one.row.ids[: one.row.start].tolist() == chat.prompt(turns(1))


def test_a_template_that_changes_earlier_turns_trains_on_the_last_and_says_why() -> None:
    chat = chat_of(LONGER + TEMPLATES["chatml"])
    assert not demonstration_row(chat, demonstration(2), ALL).problem
    one = demonstration_row(chat, demonstration(4), ALL)
    assert one.problem == NOT_A_PREFIX and one.trained.all()
    assert one.row.ids[one.row.start :].tolist() == chat.answer(TEXTS[3])


def test_gradient_of_all_turns_is_the_sum_over_the_turns(tiny) -> None:
    chat = Chat(tokenizer_of("byte-level", "chatml"))
    d = demonstration(6)
    single = [
        Demonstration(str(n), TEXTS[n - 1], TEXTS[n], history=turns(n - 1)) for n in (1, 3, 5)
    ]  # one row for each answer

    def gradient(batch: Batch) -> dict[str, torch.Tensor]:
        local = runtime(copy.deepcopy(tiny).double())
        local.start({"policy": 1e-3})
        weight = sft.weigh(batch, ALL)
        local.forward_backward(sft.TRAINS, batch, lambda out, part: sft.loss(out, part, ALL, {}), weight)
        return {key: p.grad.clone() for key, p in local.trained().items() if p.grad is not None}

    whole = gradient(_small_ids(batch_of(chat, [d], ALL)))
    parts = gradient(_small_ids(batch_of(chat, single, LAST)))
    assert sft.weigh(batch_of(chat, [d], ALL), ALL) == sft.weigh(batch_of(chat, single, LAST), LAST)
    for key, grad in whole.items():
        torch.testing.assert_close(grad, parts[key], atol=1e-8, rtol=1e-6)


def batch_of(chat: Chat, rows: list[Demonstration], cfg: Sft) -> Batch:
    return demonstration_batch(chat, rows, cfg).batch


def _small_ids(batch: Batch) -> Batch:
    """The batch with ids of the tiny model's vocabulary."""
    return replace(batch, rows=[replace(row, ids=row.ids % 250) for row in batch.rows])


def test_oldest_turns_are_cut_first_and_never_the_system_prompt() -> None:
    system = Message("system", "Be brief.")
    prompt = Prompt("p", "last", history=(system, *turns(4)))

    def words(p: Prompt) -> int:
        return sum(len(message.content.split()) for message in p.messages)

    assert cut_history(prompt, words, 100) == prompt
    shorter = cut_history(prompt, words, 11)
    assert shorter.history == (system, *turns(4)[2:]) and words(shorter) <= 11
    assert cut_history(prompt, words, 3).history == (system,)
    assert cut_history(prompt, words, 1) == prompt, "the last turn does not fit: it is not cut"
    cutter = HistoryCutter(lambda messages: len(messages), 3)
    assert cutter(turns(7)) == turns(7)[4:] and cutter(turns(3)) == turns(3)
    assert list(cutter.turns.values()) == [4]


def test_prompts_that_are_equal_once_cut_are_in_one_split_only() -> None:
    def prompt(name: str, first: str, split: Split) -> Prompt:
        history = (Message("user", first), Message("assistant", "Yes."))
        return Prompt(name, "Tell me more", split=split, history=history)

    prompts = (
        prompt("t1", "a", "train"),
        prompt("h1", "b", "heldout"),
        Prompt("t2", "Why?"),
        prompt("t3", "c", "train"),
    )
    cut = cut_corpus(Corpus(prompts), lambda p: len(p.messages), 1, lambda d: 0, None)
    assert {p.id: p.text for p in cut.prompts} == {"h1": "Tell me more", "t2": "Why?"}
    assert any("2 prompts are left out: once cut" in f.evidence for f in cut.findings)
    other = (Prompt("t4", "Tell me more"), prompt("h1", "b", "heldout"))
    assert [p.id for p in cut_corpus(Corpus(other), lambda p: len(p.messages), 1, lambda d: 0, None).prompts] == ["t4"]


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("Four.", "", "Four."),
        ("<think>\n2 + 2\n</think>\n\nFour.", "2 + 2", "Four."),
        ("2 + 2\n</think>\nFour.", "2 + 2", "Four."),
        ("<think>2 + 2", "2 + 2", ""),
        ("[THINK]so[/THINK]Four.", "so", "Four."),
        ("Use <think> and </think> as marks.", "", "Use <think> and </think> as marks."),
    ],
)
def test_reasoning_is_split_from_the_answer(text: str, reasoning: str, answer: str) -> None:
    assert split_reasoning(text) == (reasoning, answer)


def test_reasoning_is_masked_by_choice_and_left_out_of_earlier_turns() -> None:
    chat = Chat(tokenizer_of("byte-level", "chatml"))
    response = "<think>\nfirst this\n</think>\n\nSix minutes."
    d = Demonstration("d", "Egg?", response)
    whole = demonstration_row(chat, d, Sft(reasoning="train"))
    masked = demonstration_row(chat, d, Sft(reasoning="mask"))
    assert whole.trained.all() and whole.row.ids.tolist() == masked.row.ids.tolist()
    assert chat.text(masked.row.ids[masked.row.start :][masked.trained].tolist()) == "Six minutes."
    history = (Message("user", "Egg?"), Message("assistant", response))
    assert "first" not in chat.tokenizer.decode(chat.prompt((*history, Message("user", "Why?"))))


def test_special_tokens_that_mark_reasoning_stay_in_the_text() -> None:
    tokenizer = copy.deepcopy(tokenizer_of("byte-level", "chatml"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|START_THINKING|>", "<|END_THINKING|>"]})
    chat = Chat(tokenizer)
    ids = tokenizer("<|START_THINKING|>hm<|END_THINKING|>Six.", add_special_tokens=False)["input_ids"]
    assert split_reasoning(chat.text([*ids, chat.eos])) == ("hm", "Six.")


def test_conversations_that_the_template_refuses_are_listed_by_the_check(tmp_path: Path, tiny_folder: str) -> None:
    template = tmp_path / "no_system.jinja"
    template.write_text(NO_SYSTEM + TEMPLATES["chatml"])
    rows = [
        {"id": f"p{i}", "prompt": f"Question {i}?"} | ({"system": "Be brief."} if i == 7 else {}) for i in range(20)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = check(Recipe, {"data": {"prompts": "p.jsonl", "demonstrations": "", "safety": ""}}, "test")
    chat = Chat(base.load_tokenizer(tiny_folder), str(template))
    findings = check_data(recipe, tmp_path, read_corpus(tmp_path, recipe.data, 0), chat, 1024)
    finding = next(f for f in findings if f.code == "prompt-template")
    assert finding.severity == "error" and "p7" in finding.evidence and "p8" not in finding.evidence
    listed = (tmp_path / "reports" / "refused_rows.jsonl").read_text()
    assert '"line": 8' in listed and "does not render a conversation with these roles" in listed


TALKS = [
    [
        {"role": "user", "content": f"Talk {i}"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": f"And {i}?"},
    ]
    for i in range(12)
]


@pytest.mark.parametrize("algo", ["grpo", "dpo"])
def test_training_prompts_the_model_with_whole_conversations(
    tmp_path: Path, tiny_folder: str, monkeypatch: pytest.MonkeyPatch, algo: str
) -> None:
    prompted: set[str] = set()
    tokens = Chat.prompt
    monkeypatch.setattr(Chat, "prompt", lambda chat, p: prompted.add(transcript(as_messages(p))) or tokens(chat, p))
    settings = {"model": tiny_folder, "folder": tmp_path, "max_new_tokens": 4, "dtype": "float32"}
    if algo == "dpo":
        pairs = [(talk, f"yes {i}", f"no {i}") for i, talk in enumerate(TALKS)]
        trained = tp.train(algo, pairs=pairs, batch=4, epochs=1, **settings)
    else:
        reward = "rule:words:1-3"
        trained = tp.train(algo, prompts=TALKS, reward=reward, steps=1, rollout=8, **settings)
    trained.generate(TALKS[:1])
    talks = {text for text in prompted if "And " in text}
    assert talks == {f"User: Talk {i}\n\nAssistant: Yes.\n\nUser: And {i}?" for i in range(12)}


def test_judges_and_rules_read_whole_conversations_without_reasoning(tmp_path: Path) -> None:
    prompt = Prompt("p", "Why?", history=(Message("system", "Be brief."), *turns(2)))
    with Store.open(tmp_path / "a.db") as store:
        store.add_prompts([prompt])
        texts = {"a": "<think>hm</think>Because.", "b": "No."}
        store.add_completions(Completion(name, "p", "sft", text, (), (), "stop") for name, text in texts.items())
        store.add_comparisons([Comparison("c", "p", "a", "b")])
        (pair,) = judge_runner.pair_texts(store, store.comparisons())
        assert store.prompts() == {"p": prompt}
    assert (pair.prompt, pair.a, pair.b) == (prompt.text, "Because.", "No.")
    assert pair.prompt.startswith("System: Be brief.\n\nUser: ") and pair.prompt.endswith("User: Why?")
