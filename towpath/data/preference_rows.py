"""Rows with two answers: chosen and rejected (text, messages or HH transcripts), or a, b and a choice."""

import math
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, get_args

from towpath.data.preference_pairs import Kind, PreferencePair, draft_judgement, parse_provenance
from towpath.data.preference_record import PreferenceRecord
from towpath.data.row_files import Cells, Rows, UnusableRow, json_type
from towpath.data.transcripts import (
    Turn,
    format_transcript,
    join_turns,
    parse_messages,
    parse_transcript,
    split_last_answer,
    split_turns,
    to_messages,
)
from towpath.records import Choice, Judgement

PROMPT_COLUMNS = ("prompt", "instruction", "question", "query", "prompts_final")
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
    prompt, better, worse = _prompt_and_answers(cells)
    yield _build_pair(cells, prompt, better, worse, _verdict(cells, "a"))


def read_comparison(cells: Cells) -> Iterator[PreferencePair]:
    """A row with two answers and a winner; without a winner the pair has no verdict."""
    left, right = answer_columns(cells)
    one = cells[left]
    two = cells[right]
    if isinstance(one, list) or isinstance(two, list):
        prompt, first, second = _shared_prompt(parse_messages(one, left), parse_messages(two, right), (left, right))
    else:
        prompt = prompt_text(cells)
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


def prompt_text(cells: Cells) -> str:
    """The prompt of a row as text; several messages become a transcript."""
    key = next((key for key in PROMPT_COLUMNS if key in cells), None)
    if key is None:
        raise UnusableRow(f"no prompt (keys: {column_names(cells)})")
    if isinstance(cells[key], list):
        return join_turns(_question_turns(parse_messages(cells[key], key)))
    if text_cell(cells, key).startswith("\n\nHuman:") and text_cell(cells, key).rstrip().endswith("\n\nAssistant:"):
        return join_turns(split_last_answer(parse_transcript(text_cell(cells, key)), key)[0])
    more = text_cell(cells, "input") if key == "instruction" and cells.get("input") else ""
    return text_cell(cells, key) + (f"\n\n{more}" if more.strip() else "")


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


def _prompt_and_answers(cells: Cells) -> tuple[str, str, str]:
    if "chosen" not in cells or "rejected" not in cells:
        raise UnusableRow(f"no chosen and rejected (keys: {column_names(cells)})")
    better = cells["chosen"]
    worse = cells["rejected"]
    if isinstance(better, list) and isinstance(worse, list):
        turns = parse_messages(better, "chosen"), parse_messages(worse, "rejected")
        if all(len(one) == 1 for one in turns):
            return prompt_text(cells), _single_answer(turns[0], "chosen"), _single_answer(turns[1], "rejected")
        return _shared_prompt(*turns, ("chosen", "rejected"))
    one = text_cell(cells, "chosen")
    two = text_cell(cells, "rejected")
    if any(cells.get(key) for key in PROMPT_COLUMNS):
        return prompt_text(cells), one, two
    for what, answer in (("chosen", one), ("rejected", two)):
        if not answer.strip():
            raise UnusableRow(f"{what} is empty")
    return _shared_prompt(parse_transcript(one), parse_transcript(two), ("chosen", "rejected"))


def _shared_prompt(one: list[Turn], two: list[Turn], names: tuple[str, str]) -> tuple[str, str, str]:
    """The prompt that two conversations share, and their last answers."""
    (before, first), (other, second) = split_last_answer(one, names[0]), split_last_answer(two, names[1])
    if before != other:
        raise UnusableRow("the prompt is not shared: the conversations part before the last answer")
    return join_turns(before), first, second


def _single_answer(turns: list[Turn], what: str) -> str:
    if turns[0][0] != "assistant":
        raise UnusableRow(f"{what}: roles out of order: {turns[0][0]} where the assistant should answer")
    return turns[0][1]


def _question_turns(turns: list[Turn]) -> list[Turn]:
    return split_last_answer([*turns, ("assistant", "")], "prompt")[0]


def _build_pair(cells: Cells, prompt: str, a: str, b: str, verdict: Judgement | None) -> PreferencePair:
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
    """prompt, chosen, rejected as text."""
    better, worse = record.ordered
    return {"prompt": record.prompt.prompt, "chosen": better.text, "rejected": worse.text} | _extras(record)


def conversational_row(record: PreferenceRecord) -> Cells:
    """prompt, chosen, rejected as lists of {role, content}."""
    better, worse = (to_messages([("assistant", c.text)]) for c in record.ordered)
    return {"prompt": to_messages(split_turns(record.prompt.prompt)), "chosen": better, "rejected": worse} | _extras(
        record
    )


def transcript_row(record: PreferenceRecord) -> Cells:
    """chosen and rejected as whole transcripts, as in HH."""
    turns = [[*split_turns(record.prompt.prompt), ("assistant", c.text)] for c in record.ordered]
    if any(role == "system" for role, _ in turns[0]):
        raise UnusableRow("a system message has no place in a transcript")
    better, worse = (format_transcript(one) for one in turns)
    if any(
        parse_transcript(transcript) != [(role, content.strip()) for role, content in one]
        for transcript, one in zip((better, worse), turns, strict=True)
    ):
        raise UnusableRow("a text holds the mark of another turn (a blank line, then Human: or Assistant:)")
    return {"chosen": better, "rejected": worse} | _extras(record)


def comparison_row(record: PreferenceRecord) -> Cells:
    """prompt, a, b and the choice, including ties and pairs without judgements."""
    return {
        "prompt": record.prompt.prompt,
        "a": record.known.a.text,
        "b": record.known.b.text,
        "choice": record.choice or "",
    } | _extras(record)


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
