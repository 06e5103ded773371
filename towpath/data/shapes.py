"""Rows that hold two answers: chosen and rejected, plain, as messages or as HH transcripts; or a, b and a choice."""

import math
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, get_args

from towpath.data.pairs import Kind, Pair, opinion, remembered
from towpath.data.preference_record import Standing
from towpath.data.tables import Cells, Rows, Unusable, kind_of
from towpath.data.transcripts import Turn, asked, conversation, heard, listed, messages, parted, written
from towpath.records import Choice, Judgement

QUESTIONS = ("prompt", "instruction", "question", "query", "prompts_final")
SIDES = (
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


def each(rows: Rows, read: Callable[[Cells], Iterator[Pair | str]]) -> Iterator[tuple[int, Pair | str]]:
    """The pairs of every row with the row's line, and in place of a pair why there is none."""
    for line, cells in rows:
        if isinstance(cells, str):
            yield line, cells
            continue
        try:
            for found in read(cells):
                yield line, found
        except Unusable as reason:
            yield line, str(reason)


def chosen_rejected(cells: Cells) -> Iterator[Pair]:
    """A row with `chosen` and `rejected`, with a prompt or with the one that both begin with."""
    prompt, better, worse = _prompted(cells)
    yield _whole(cells, prompt, better, worse, _verdict(cells, "a"))


def compared(cells: Cells) -> Iterator[Pair]:
    """A row with two answers and who won; one that nobody judged is a pair without a verdict."""
    left, right = sides(cells)
    one = cells[left]
    two = cells[right]
    if isinstance(one, list) or isinstance(two, list):
        prompt, first, second = _common(listed(one, left), listed(two, right), (left, right))
    else:
        prompt = question(cells)
        first = text(cells, left)
        second = text(cells, right)
    won = str(cells.get("choice", cells.get("winner")) or "").strip()
    found = choice_of(won, (left, right))
    if won and not found:
        raise Unusable(f"choice {won!r} is not one of a, b, tie, both_bad")
    yield _whole(cells, prompt, first, second, _verdict(cells, found) if found else None)


def sides(cells: Cells) -> tuple[str, str]:
    """The names under which a row keeps its two answers."""
    found = next((pair for pair in SIDES if all(name in cells for name in pair)), None)
    if found is None:
        raise Unusable(f"no two answers (keys: {keys(cells)})")
    return found


def question(cells: Cells) -> str:
    """What a row asks, as text; messages become a transcript where there is more than one."""
    key = next((key for key in QUESTIONS if key in cells), None)
    if key is None:
        raise Unusable(f"no prompt (keys: {keys(cells)})")
    if isinstance(cells[key], list):
        return asked(_question_turns(listed(cells[key], key)))
    if text(cells, key).startswith("\n\nHuman:") and text(cells, key).rstrip().endswith("\n\nAssistant:"):
        return asked(parted(heard(text(cells, key)), key)[0])
    more = text(cells, "input") if key == "instruction" and cells.get("input") else ""
    return text(cells, key) + (f"\n\n{more}" if more.strip() else "")


def text(cells: Cells, key: str) -> str:
    """A cell that must be text; an absent one is empty."""
    found = cells.get(key)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise Unusable(f"{key} is not text but {kind_of(found)}")
    return found


def keys(cells: Cells) -> str:
    """The names of a row's columns, the first few."""
    return ", ".join(map(str, list(cells)[:8])) or "none"


def choice_of(value: Any, names: tuple[str, str] | None = None) -> Choice | None:
    """The choice that a word of another tool stands for, if it stands for one; the names of the two answers stand
    for themselves."""
    told = str(value).strip()
    if names and told in names:
        return "a" if told == names[0] else "b"
    return _CHOICES.get(told.lower())


def _prompted(cells: Cells) -> tuple[str, str, str]:
    if "chosen" not in cells or "rejected" not in cells:
        raise Unusable(f"no chosen and rejected (keys: {keys(cells)})")
    better = cells["chosen"]
    worse = cells["rejected"]
    if isinstance(better, list) and isinstance(worse, list):
        turns = listed(better, "chosen"), listed(worse, "rejected")
        if all(len(one) == 1 for one in turns):
            return question(cells), _alone(turns[0], "chosen"), _alone(turns[1], "rejected")
        return _common(*turns, ("chosen", "rejected"))
    one = text(cells, "chosen")
    two = text(cells, "rejected")
    if any(cells.get(key) for key in QUESTIONS):
        return question(cells), one, two
    for what, told in (("chosen", one), ("rejected", two)):
        if not told.strip():
            raise Unusable(f"{what} is empty")
    return _common(heard(one), heard(two), ("chosen", "rejected"))


def _common(one: list[Turn], two: list[Turn], names: tuple[str, str]) -> tuple[str, str, str]:
    """The prompt that two conversations share, and their last answers."""
    (before, first), (other, second) = parted(one, names[0]), parted(two, names[1])
    if before != other:
        raise Unusable("the prompt is not shared: the conversations part before the last answer")
    return asked(before), first, second


def _alone(turns: list[Turn], what: str) -> str:
    if turns[0][0] != "assistant":
        raise Unusable(f"{what}: roles out of order: {turns[0][0]} where the assistant should answer")
    return turns[0][1]


def _question_turns(turns: list[Turn]) -> list[Turn]:
    return parted([*turns, ("assistant", "")], "prompt")[0]


def _whole(cells: Cells, prompt: str, a: str, b: str, verdict: Judgement | None) -> Pair:
    group = cells.get("group")
    return Pair(
        prompt,
        a,
        b,
        verdict,
        (),
        text(cells, "domain"),
        "" if group is None else str(group),
        remembered(cells.get("provenance")),
    )


def _verdict(cells: Cells, choice: Choice) -> Judgement:
    """The row's own word on its pair, with what it tells of who said so."""
    rater = next((str(cells[key]) for key in _RATERS if cells.get(key) not in (None, "")), "")
    shown, kind, at = (text(cells, key) for key in ("shown", "kind", "at"))
    strength = _whole_number(cells, "strength")
    spent = _whole_number(cells, "milliseconds")
    if kind and kind not in get_args(Kind):
        raise Unusable(f"kind {kind!r} is not one of {', '.join(get_args(Kind))}")
    if shown not in ("", "ab", "ba"):
        raise Unusable(f"shown {shown!r} is not ab or ba")
    if strength not in (None, 1, 2, 3):
        raise Unusable(f"strength {cells['strength']!r} is not 1, 2 or 3")
    if at and not is_time(at):
        raise Unusable(f"at {at!r} is not an ISO 8601 time")
    details: dict[str, Any] = {key: _number(cells, key) for key in _NUMBERS if cells.get(key) not in (None, "")}
    details |= {} if shown else {"shown": "unknown"}
    return opinion(
        choice,
        rater,
        kind=kind or "person",
        shown=shown or "ab",
        strength=strength or 1,
        milliseconds=spent,
        at=at,
        guideline=text(cells, "guideline"),
        comment=text(cells, "comment"),
        details=details,
    )


def is_time(told: str) -> bool:
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
        raise Unusable(f"{key} {cells[key]!r} is not a number")
    return found


def _whole_number(cells: Cells, key: str) -> int | None:
    if cells.get(key) in (None, ""):
        return None
    found = _number(cells, key)
    if not found.is_integer():
        raise Unusable(f"{key} {cells[key]!r} is not a whole number")
    return int(found)


def plain_row(s: Standing) -> Cells:
    """prompt, chosen, rejected as text."""
    better, worse = s.ordered
    return {"prompt": s.prompt.prompt, "chosen": better.text, "rejected": worse.text} | _extras(s)


def conversational_row(s: Standing) -> Cells:
    """prompt, chosen, rejected as lists of {role, content}."""
    better, worse = (messages([("assistant", c.text)]) for c in s.ordered)
    return {"prompt": messages(conversation(s.prompt.prompt)), "chosen": better, "rejected": worse} | _extras(s)


def transcript_row(s: Standing) -> Cells:
    """chosen and rejected as whole transcripts, as in HH."""
    turns = [[*conversation(s.prompt.prompt), ("assistant", c.text)] for c in s.ordered]
    if any(role == "system" for role, _ in turns[0]):
        raise Unusable("a system message has no place in a transcript")
    better, worse = (written(one) for one in turns)
    if any(
        heard(told) != [(role, said.strip()) for role, said in one]
        for told, one in zip((better, worse), turns, strict=True)
    ):
        raise Unusable("a text holds the mark of another turn (a blank line, then Human: or Assistant:)")
    return {"chosen": better, "rejected": worse} | _extras(s)


def compared_row(s: Standing) -> Cells:
    """prompt, a, b and the choice, ties and unjudged pairs too."""
    return {"prompt": s.prompt.prompt, "a": s.known.a.text, "b": s.known.b.text, "choice": s.choice or ""} | _extras(s)


def _extras(s: Standing) -> Cells:
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
