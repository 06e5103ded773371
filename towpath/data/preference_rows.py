"""Rows with two answers: chosen and rejected (text, messages or HH transcripts), or a, b and a choice."""

import math
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, get_args

from towpath.data.conversations import (
    format_transcript,
    is_transcript,
    parse_history,
    parse_messages,
    parse_transcript,
    prompt_cells,
    require_prompt,
    split_last_answer,
    to_rows,
)
from towpath.data.preference_pairs import Kind, PreferencePair, draft_judgement, parse_provenance
from towpath.data.preference_record import PreferenceRecord
from towpath.data.row_files import Cells, Rows, UnusableRow, json_type
from towpath.records import Choice, Conversation, Judgement, Message

PROMPT_COLUMNS = ("prompt", "instruction", "question", "query", "prompts_final")
SYSTEM_COLUMNS = ("system", "system_prompt")
ANSWER_COLUMNS = (
    ("a", "b"),
    ("answer_a", "answer_b"),
    ("response_a", "response_b"),
    ("conversation_a", "conversation_b"),
    ("response-1", "response-2"),
    ("response_1", "response_2"),
    ("response1", "response2"),
    ("answer1", "answer2"),
    ("text1", "text2"),
)
"""Column names of the two answers in other tools."""
_CHOICES: dict[str, Choice] = {
    "a": "a",
    "b": "b",
    "tie": "tie",
    "both_bad": "both_bad",
    "model_a": "a",
    "model_b": "b",
    "tie (bothbad)": "both_bad",
    "bothbad": "both_bad",
    "left": "a",
    "right": "b",
    "1": "a",
    "2": "b",
}
_RATERS = ("rater", "annotator", "annotator_id", "worker", "worker_id", "labeler", "judge")
_NUMBERS = ("margin", "weight", "chance", "score_chosen", "score_rejected")


def read_each(
    rows: Rows, read: Callable[[Cells], Iterator[PreferencePair | str]]
) -> Iterator[tuple[int, PreferencePair | str]]:
    """The pairs of every row with the row's line; a string instead of a pair is the reason why there is none."""
    for line, cells in rows:
        if isinstance(cells, str):
            yield line, cells
            continue
        try:
            for item in read(cells):
                yield line, item
        except UnusableRow as reason:
            yield line, str(reason)


def read_chosen_rejected(cells: Cells) -> Iterator[PreferencePair]:
    """A row with `chosen` and `rejected`, with a prompt or with a shared beginning."""
    prompt, better, worse = prompt_and_answers(cells)
    yield _build_pair(cells, prompt, better, worse, _verdict(cells, "a"))


def read_comparison(cells: Cells) -> Iterator[PreferencePair]:
    """A row with two answers and a winner; without a winner the pair has no verdict."""
    left, right = answer_columns(cells)
    one = cells[left]
    two = cells[right]
    if isinstance(one, list) or isinstance(two, list):
        answers = parse_messages(one, left), parse_messages(two, right)
        prompt, first, second = _prompt_and_last_answers(cells, answers, (left, right))
    else:
        prompt = prompt_messages(cells)
        first = text_cell(cells, left)
        second = text_cell(cells, right)
    winner = str(cells.get("choice", cells.get("winner")) or "").strip()
    choice = parse_choice(winner, (left, right))
    if winner and not choice:
        raise UnusableRow(f"choice {winner!r} is not one of a, b, tie, both_bad")
    yield _build_pair(cells, prompt, first, second, _verdict(cells, choice) if choice else None)


def answer_columns(cells: Cells) -> tuple[str, str]:
    """The names of the row's two answer columns."""
    columns = next((pair for pair in ANSWER_COLUMNS if all(name in cells for name in pair)), None)
    if columns is None:
        raise UnusableRow(f"no two answers (keys: {column_names(cells)})")
    return columns


def prompt_messages(cells: Cells) -> Conversation:
    """The prompt of a row: a text, messages or an HH transcript, after `history` and a system prompt if there are
    any."""
    key = next((key for key in PROMPT_COLUMNS if key in cells), None)
    if key is None:
        raise UnusableRow(f"no prompt (keys: {column_names(cells)})")
    if isinstance(cells[key], list):
        return with_history(cells, parse_messages(cells[key], key), key)
    text = text_cell(cells, key)
    if is_transcript(text):
        messages = parse_transcript(text)
        if messages[-1] == Message("assistant", ""):
            messages.pop()
        return with_history(cells, messages, key)
    more = text_cell(cells, "input") if key == "instruction" and cells.get("input") else ""
    text += f"\n\n{more}" if more.strip() else ""
    return with_history(cells, [Message("user", text)], key)


def with_history(cells: Cells, messages: list[Message], what: str) -> Conversation:
    """Messages after the row's system prompt and `history`, as a prompt."""
    history = parse_history(cells["history"]) if cells.get("history") else []
    conversation = [*history, *messages]
    if len(conversation) == 1 and conversation[0].role == "user":
        conversation = [*_system_message(cells), *conversation]
        return tuple(conversation)  # an empty prompt has a message of its own
    if not any(message.role == "system" for message in conversation):
        conversation = [*_system_message(cells), *conversation]
    return require_prompt(conversation, what)


def _system_message(cells: Cells) -> list[Message]:
    """The row's system prompt in a column of its own."""
    texts = [text_cell(cells, key) for key in SYSTEM_COLUMNS if cells.get(key)]
    return [Message("system", text) for text in texts[:1] if text.strip()]


def text_cell(cells: Cells, key: str) -> str:
    """A text cell; empty if absent."""
    value = cells.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UnusableRow(f"{key} is not text but {json_type(value)}")
    return value


def column_names(cells: Cells) -> str:
    """The row's first few column names."""
    return ", ".join(map(str, list(cells)[:8])) or "none"


def parse_choice(value: Any, names: tuple[str, str] | None = None) -> Choice | None:
    """The choice that a word stands for in other tools, or None; the column names of the answers stand for
    themselves."""
    word = str(value).strip()
    if names and word in names:
        return "a" if word == names[0] else "b"
    return _CHOICES.get(word.lower())


def prompt_and_answers(cells: Cells) -> tuple[Conversation, str, str]:
    """The prompt of a row with `chosen` and `rejected`, and both answers."""
    if "chosen" not in cells or "rejected" not in cells:
        raise UnusableRow(f"no chosen and rejected (keys: {column_names(cells)})")
    better = cells["chosen"]
    worse = cells["rejected"]
    names = ("chosen", "rejected")
    if isinstance(better, list) and isinstance(worse, list):
        answers = parse_messages(better, names[0]), parse_messages(worse, names[1])
        return _prompt_and_last_answers(cells, answers, names)
    one = text_cell(cells, "chosen")
    two = text_cell(cells, "rejected")
    if any(cells.get(key) for key in PROMPT_COLUMNS):
        return prompt_messages(cells), one, two
    for what, answer in (("chosen", one), ("rejected", two)):
        if not answer.strip():
            raise UnusableRow(f"{what} is empty")
    return _shared_prompt(cells, (parse_transcript(one), parse_transcript(two)), names)


def _prompt_and_last_answers(
    cells: Cells, answers: tuple[list[Message], list[Message]], names: tuple[str, str]
) -> tuple[Conversation, str, str]:
    """The prompt and the last messages of two lists, which hold the answer alone or the whole conversation."""
    if all(len(messages) == 1 for messages in answers):
        return prompt_messages(cells), _single_answer(answers[0], names[0]), _single_answer(answers[1], names[1])
    return _shared_prompt(cells, answers, names)


def _shared_prompt(
    cells: Cells, conversations: tuple[list[Message], list[Message]], names: tuple[str, str]
) -> tuple[Conversation, str, str]:
    """The prompt that two conversations share, and their last answers."""
    (before, first), (other, second) = (
        split_last_answer(messages, name) for messages, name in zip(conversations, names, strict=True)
    )
    if before != other:
        raise UnusableRow("the prompt is not shared: the conversations part before the last answer")
    return with_history(cells, list(before), names[0]), first, second


def _single_answer(messages: list[Message], what: str) -> str:
    if messages[0].role != "assistant":
        raise UnusableRow(f"{what}: roles out of order: {messages[0].role} where the assistant should answer")
    return messages[0].content


def _build_pair(cells: Cells, prompt: Conversation, a: str, b: str, verdict: Judgement | None) -> PreferencePair:
    group = cells.get("group")
    return PreferencePair(
        prompt,
        a,
        b,
        verdict,
        (),
        text_cell(cells, "domain"),
        "" if group is None else str(group),
        parse_provenance(cells.get("provenance")),
    )


def _verdict(cells: Cells, choice: Choice) -> Judgement:
    """The row's own judgement of its pair."""
    rater = next((str(cells[key]) for key in _RATERS if cells.get(key) not in (None, "")), "")
    order, kind, at = (text_cell(cells, key) for key in ("shown", "kind", "at"))
    strength = _whole_number(cells, "strength")
    milliseconds = _whole_number(cells, "milliseconds")
    if kind and kind not in get_args(Kind):
        raise UnusableRow(f"kind {kind!r} is not one of {', '.join(get_args(Kind))}")
    if order not in ("", "ab", "ba"):
        raise UnusableRow(f"shown {order!r} is not ab or ba")
    if strength not in (None, 1, 2, 3):
        raise UnusableRow(f"strength {cells['strength']!r} is not 1, 2 or 3")
    if at and not is_iso_time(at):
        raise UnusableRow(f"at {at!r} is not an ISO 8601 time")
    details: dict[str, Any] = {key: _number(cells, key) for key in _NUMBERS if cells.get(key) not in (None, "")}
    details |= {} if order else {"shown": "unknown"}
    return draft_judgement(
        choice,
        rater,
        kind=kind or "person",
        shown=order or "ab",
        strength=strength or 1,
        milliseconds=milliseconds,
        at=at,
        guideline=text_cell(cells, "guideline"),
        comment=text_cell(cells, "comment"),
        details=details,
    )


def is_iso_time(text: str) -> bool:
    """Whether a text is an ISO 8601 time."""
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _number(cells: Cells, key: str) -> float:
    try:
        number = float(cells[key])
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UnusableRow(f"{key} {cells[key]!r} is not a number")
    return number


def _whole_number(cells: Cells, key: str) -> int | None:
    if cells.get(key) in (None, ""):
        return None
    number = _number(cells, key)
    if not number.is_integer():
        raise UnusableRow(f"{key} {cells[key]!r} is not a whole number")
    return int(number)


def plain_row(record: PreferenceRecord) -> Cells:
    """prompt, chosen, rejected as text; earlier turns in `history`."""
    better, worse = record.ordered
    return prompt_cells(record.prompt) | {"chosen": better.text, "rejected": worse.text} | _extras(record)


def conversational_row(record: PreferenceRecord) -> Cells:
    """prompt, chosen, rejected as lists of {role, content}."""
    better, worse = (to_rows([Message("assistant", c.text)]) for c in record.ordered)
    return {"prompt": to_rows(record.prompt.messages), "chosen": better, "rejected": worse} | _extras(record)


def transcript_row(record: PreferenceRecord) -> Cells:
    """chosen and rejected as whole transcripts, as in HH."""
    better, worse = (format_transcript([*record.prompt.messages, Message("assistant", c.text)]) for c in record.ordered)
    return {"chosen": better, "rejected": worse} | _extras(record)


def comparison_row(record: PreferenceRecord) -> Cells:
    """prompt, a, b and the choice, including ties and pairs without judgements."""
    return (
        prompt_cells(record.prompt)
        | {"a": record.known.a.text, "b": record.known.b.text, "choice": record.choice or ""}
        | _extras(record)
    )


def _extras(record: PreferenceRecord) -> Cells:
    chance = 1 - record.chance if record.choice == "b" else record.chance
    return {
        "weight": round(record.weight, 6),
        "margin": round(record.margin, 6),
        "chance": round(chance, 6),
        "source": record.source,
        "group": record.group,
        "domain": record.prompt.domain,
        "split": record.prompt.split,
        "comparison": record.known.comparison.id,
        "provenance": record.provenance(),
    }
