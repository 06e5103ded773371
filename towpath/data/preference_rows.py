"""Rows that hold two answers: chosen and rejected, plain, as messages or as HH transcripts; or a, b and a choice."""

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
"""Names under which other tools keep the two answers."""
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
    """The pairs of every row with the row's line, and in place of a pair why there is none."""
    for line, cells in rows:
        if isinstance(cells, str):
            yield line, cells
            continue
        try:
            for found in read(cells):
                yield line, found
        except UnusableRow as reason:
            yield line, str(reason)


def read_chosen_rejected(cells: Cells) -> Iterator[PreferencePair]:
    """A row with `chosen` and `rejected`, with a prompt or with the one that both begin with."""
    prompt, better, worse = _prompted(cells)
    yield _whole(cells, prompt, better, worse, _verdict(cells, "a"))


def read_comparison(cells: Cells) -> Iterator[PreferencePair]:
    """A row with two answers and who won; one that nobody judged is a pair without a verdict."""
    left, right = answer_columns(cells)
    one = cells[left]
    two = cells[right]
    if isinstance(one, list) or isinstance(two, list):
        prompt, first, second = _common(parse_messages(one, left), parse_messages(two, right), (left, right))
    else:
        prompt = prompt_text(cells)
        first = text_cell(cells, left)
        second = text_cell(cells, right)
    won = str(cells.get("choice", cells.get("winner")) or "").strip()
    found = parse_choice(won, (left, right))
    if won and not found:
        raise UnusableRow(f"choice {won!r} is not one of a, b, tie, both_bad")
    yield _whole(cells, prompt, first, second, _verdict(cells, found) if found else None)


def answer_columns(cells: Cells) -> tuple[str, str]:
    """The names under which a row keeps its two answers."""
    found = next((pair for pair in ANSWER_COLUMNS if all(name in cells for name in pair)), None)
    if found is None:
        raise UnusableRow(f"no two answers (keys: {column_names(cells)})")
    return found


def prompt_text(cells: Cells) -> str:
    """What a row asks, as text; messages become a transcript where there is more than one."""
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
    """A cell that must be text; an absent one is empty."""
    found = cells.get(key)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise UnusableRow(f"{key} is not text but {json_type(found)}")
    return found


def column_names(cells: Cells) -> str:
    """The names of a row's columns, the first few."""
    return ", ".join(map(str, list(cells)[:8])) or "none"


def parse_choice(value: Any, names: tuple[str, str] | None = None) -> Choice | None:
    """The choice that a word of another tool stands for, if it stands for one; the names of the two answers stand
    for themselves."""
    told = str(value).strip()
    if names and told in names:
        return "a" if told == names[0] else "b"
    return _CHOICES.get(told.lower())


def _prompted(cells: Cells) -> tuple[str, str, str]:
    if "chosen" not in cells or "rejected" not in cells:
        raise UnusableRow(f"no chosen and rejected (keys: {column_names(cells)})")
    better = cells["chosen"]
    worse = cells["rejected"]
    if isinstance(better, list) and isinstance(worse, list):
        turns = parse_messages(better, "chosen"), parse_messages(worse, "rejected")
        if all(len(one) == 1 for one in turns):
            return prompt_text(cells), _alone(turns[0], "chosen"), _alone(turns[1], "rejected")
        return _common(*turns, ("chosen", "rejected"))
    one = text_cell(cells, "chosen")
    two = text_cell(cells, "rejected")
    if any(cells.get(key) for key in PROMPT_COLUMNS):
        return prompt_text(cells), one, two
    for what, told in (("chosen", one), ("rejected", two)):
        if not told.strip():
            raise UnusableRow(f"{what} is empty")
    return _common(parse_transcript(one), parse_transcript(two), ("chosen", "rejected"))


def _common(one: list[Turn], two: list[Turn], names: tuple[str, str]) -> tuple[str, str, str]:
    """The prompt that two conversations share, and their last answers."""
    (before, first), (other, second) = split_last_answer(one, names[0]), split_last_answer(two, names[1])
    if before != other:
        raise UnusableRow("the prompt is not shared: the conversations part before the last answer")
    return join_turns(before), first, second


def _alone(turns: list[Turn], what: str) -> str:
    if turns[0][0] != "assistant":
        raise UnusableRow(f"{what}: roles out of order: {turns[0][0]} where the assistant should answer")
    return turns[0][1]


def _question_turns(turns: list[Turn]) -> list[Turn]:
    return split_last_answer([*turns, ("assistant", "")], "prompt")[0]


def _whole(cells: Cells, prompt: str, a: str, b: str, verdict: Judgement | None) -> PreferencePair:
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
    """The row's own word on its pair, with what it tells of who said so."""
    rater = next((str(cells[key]) for key in _RATERS if cells.get(key) not in (None, "")), "")
    shown, kind, at = (text_cell(cells, key) for key in ("shown", "kind", "at"))
    strength = _whole_number(cells, "strength")
    spent = _whole_number(cells, "milliseconds")
    if kind and kind not in get_args(Kind):
        raise UnusableRow(f"kind {kind!r} is not one of {', '.join(get_args(Kind))}")
    if shown not in ("", "ab", "ba"):
        raise UnusableRow(f"shown {shown!r} is not ab or ba")
    if strength not in (None, 1, 2, 3):
        raise UnusableRow(f"strength {cells['strength']!r} is not 1, 2 or 3")
    if at and not is_iso_time(at):
        raise UnusableRow(f"at {at!r} is not an ISO 8601 time")
    details: dict[str, Any] = {key: _number(cells, key) for key in _NUMBERS if cells.get(key) not in (None, "")}
    details |= {} if shown else {"shown": "unknown"}
    return draft_judgement(
        choice,
        rater,
        kind=kind or "person",
        shown=shown or "ab",
        strength=strength or 1,
        milliseconds=spent,
        at=at,
        guideline=text_cell(cells, "guideline"),
        comment=text_cell(cells, "comment"),
        details=details,
    )


def is_iso_time(told: str) -> bool:
    """Whether a text is an ISO 8601 time."""
    try:
        datetime.fromisoformat(told)
    except ValueError:
        return False
    return True


def _number(cells: Cells, key: str) -> float:
    try:
        found = float(cells[key])
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise UnusableRow(f"{key} {cells[key]!r} is not a number")
    return found


def _whole_number(cells: Cells, key: str) -> int | None:
    if cells.get(key) in (None, ""):
        return None
    found = _number(cells, key)
    if not found.is_integer():
        raise UnusableRow(f"{key} {cells[key]!r} is not a whole number")
    return int(found)


def plain_row(s: PreferenceRecord) -> Cells:
    """prompt, chosen, rejected as text."""
    better, worse = s.ordered
    return {"prompt": s.prompt.prompt, "chosen": better.text, "rejected": worse.text} | _extras(s)


def conversational_row(s: PreferenceRecord) -> Cells:
    """prompt, chosen, rejected as lists of {role, content}."""
    better, worse = (to_messages([("assistant", c.text)]) for c in s.ordered)
    return {"prompt": to_messages(split_turns(s.prompt.prompt)), "chosen": better, "rejected": worse} | _extras(s)


def transcript_row(s: PreferenceRecord) -> Cells:
    """chosen and rejected as whole transcripts, as in HH."""
    turns = [[*split_turns(s.prompt.prompt), ("assistant", c.text)] for c in s.ordered]
    if any(role == "system" for role, _ in turns[0]):
        raise UnusableRow("a system message has no place in a transcript")
    better, worse = (format_transcript(one) for one in turns)
    if any(
        parse_transcript(told) != [(role, said.strip()) for role, said in one]
        for told, one in zip((better, worse), turns, strict=True)
    ):
        raise UnusableRow("a text holds the mark of another turn (a blank line, then Human: or Assistant:)")
    return {"chosen": better, "rejected": worse} | _extras(s)


def comparison_row(s: PreferenceRecord) -> Cells:
    """prompt, a, b and the choice, ties and unjudged pairs too."""
    return {"prompt": s.prompt.prompt, "a": s.known.a.text, "b": s.known.b.text, "choice": s.choice or ""} | _extras(s)


def _extras(s: PreferenceRecord) -> Cells:
    chance = 1 - s.chance if s.choice == "b" else s.chance
    return {
        "weight": round(s.weight, 6),
        "margin": round(s.margin, 6),
        "chance": round(chance, 6),
        "source": s.source,
        "group": s.group,
        "domain": s.prompt.domain,
        "split": s.prompt.split,
        "comparison": s.known.comparison.id,
        "provenance": s.provenance(),
    }
