"""Ranked answers, in one row or as a message tree: every two answers form a pair, and the pairs share a group."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from towpath.data.conversations import role_error, to_rows
from towpath.data.preference_pairs import PreferencePair, content_id, draft_judgement
from towpath.data.preference_rows import column_names, prompt_messages, text_cell
from towpath.data.row_files import Cells, Rows, UnusableRow
from towpath.records import Choice, Conversation, Message, transcript

ANSWERS = ("answers", "responses", "completions", "candidates", "ranking")
_TEXTS = ("answer", "response", "text", "content", "output", "completion")
_RANKS = ("rank", "ranking")
_SCORES = ("score", "overall_score", "rating")


def read_ranking(cells: Cells) -> Iterator[PreferencePair]:
    """The K (K - 1) / 2 pairs of a row with K answers: best first, or with ranks or scores."""
    prompt = prompt_messages(cells)
    key = next((key for key in ANSWERS if isinstance(cells.get(key), list)), None)
    if key is None:
        raise UnusableRow(f"no list of answers (keys: {column_names(cells)})")
    answers = [_answer(answer) for answer in cells[key]]
    if len(answers) < 2:
        raise UnusableRow(f"{len(answers)} answers: a ranking has two or more")
    ranks = _ranks(cells, cells[key])
    group = str(cells.get("group") or content_id("ranking", transcript(prompt), *answers))
    for i, j in combinations(range(len(answers)), 2):
        yield _pair(prompt, (answers[i], answers[j]), (ranks[i], ranks[j]), group, text_cell(cells, "domain"))


def _pair(
    prompt: Conversation, answers: tuple[str, str], ranks: tuple[float, float], group: str, domain: str = ""
) -> PreferencePair:
    choice: Choice = "a" if ranks[0] < ranks[1] else "b" if ranks[0] > ranks[1] else "tie"
    judgement = draft_judgement(choice, details={"gap": abs(ranks[0] - ranks[1]), "shown": "unknown"})
    return PreferencePair(prompt, *answers, judgement, domain=domain, group=group)


def _answer(value: Any) -> str:
    if isinstance(value, dict):
        value = next((value[key] for key in _TEXTS if key in value), None)
    if not isinstance(value, str):
        raise UnusableRow("an answer is not text")
    return value


def _ranks(cells: Cells, answers: list[Any]) -> list[float]:
    """The rank of each answer; lower is better."""
    for names, sign in ((_RANKS, 1), (_SCORES, -1)):
        inner = [
            next((answer[name] for name in names if name in answer), None) if isinstance(answer, dict) else None
            for answer in answers
        ]
        outer = next((cells[f"{name}s"] for name in names if isinstance(cells.get(f"{name}s"), list)), None)
        values = inner if any(value is not None for value in inner) else outer
        if values is not None:
            numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
            if not len(numbers) == len(values) == len(answers):
                raise UnusableRow(f"not every answer has a number as its {names[0]}")
            return [sign * number for number in numbers]
    return [float(number) for number in range(len(answers))]


@dataclass(frozen=True, slots=True)
class _Message:
    line: int
    id: str
    parent: str
    role: str
    text: str
    rank: int | None


def read_trees(rows: Rows) -> Iterator[tuple[int, PreferencePair | str]]:
    """Pairs of ranked replies in message trees as in OASST, flat with `parent_id` or nested with `replies`."""
    messages, problems = _collect(rows)
    yield from problems
    replies: dict[str, list[_Message]] = {}
    for message in messages.values():
        if message.parent and message.parent not in messages:
            yield message.line, _orphan_reason(message)
        elif message.parent and message.role == "assistant":
            replies.setdefault(message.parent, []).append(message)
    for parent, siblings in replies.items():
        if len(siblings) > 1:
            yield from _siblings(messages, parent, siblings)


def is_tree(cells: Cells) -> bool:
    """Whether a row belongs to message trees."""
    return "message_id" in cells or "message_tree_id" in cells


def tree_examples(rows: Rows, answered: bool) -> Rows:
    """Message trees as rows: each message of a user with the conversation before it, and the best reply to it; with
    `answered` only messages that have one."""
    messages, problems = _collect(rows)
    yield from problems
    replies: dict[str, list[_Message]] = {}
    for message in messages.values():
        if message.role == "assistant":
            replies.setdefault(message.parent, []).append(message)
            if answered and message.parent not in messages:
                yield message.line, _orphan_reason(message)
    for message in messages.values():
        if message.role != "prompter":
            continue
        conversation = _conversation(messages, message.id)
        if isinstance(conversation, UnusableRow):
            yield message.line, str(conversation)
            continue
        cells: Cells = {"id": message.id, "prompt": to_rows(conversation), "prompt_id": message.id}
        best = min(replies.get(message.id, ()), key=_rank_order, default=None)
        if best:
            cells["response"] = best.text
        if best or not answered:
            yield message.line, cells


def _orphan_reason(message: _Message) -> str:
    return f"its parent {message.parent!r} is not in the file, or cannot be used"


def _rank_order(message: _Message) -> tuple[bool, int]:
    """Lower is better; messages without a rank come last."""
    return message.rank is None, message.rank or 0


def _siblings(
    messages: dict[str, _Message], parent: str, siblings: list[_Message]
) -> Iterator[tuple[int, PreferencePair | str]]:
    prompt = _conversation(messages, parent)
    if isinstance(prompt, UnusableRow):
        yield from ((message.line, str(prompt)) for message in siblings)
        return
    ranked = [(message, message.rank) for message in siblings if message.rank is not None]
    yield from ((message.line, "no rank, beside other replies") for message in siblings if message.rank is None)
    for (one, first), (two, second) in combinations(ranked, 2):
        yield max(one.line, two.line), _pair(prompt, (one.text, two.text), (first, second), parent)


def _collect(rows: Rows) -> tuple[dict[str, _Message], list[tuple[int, str]]]:
    """The messages of all rows by id, and what cannot be read."""
    messages: dict[str, _Message] = {}
    problems = []
    for line, cells in rows:
        for message in [cells] if isinstance(cells, str) else _messages(line, cells):
            if isinstance(message, str):
                problems.append((line, message))
            elif message.id in messages:
                text = f"message_id {message.id!r} is there already, in line {messages[message.id].line}"
                problems.append((line, text))
            else:
                messages[message.id] = message
    return messages, problems


def _messages(line: int, cells: Cells) -> Iterator[_Message | str]:
    """The messages of a row, including nested ones."""
    stack: list[tuple[Any, Any]] = [(cells.get("prompt") if isinstance(cells.get("prompt"), dict) else cells, "")]
    while stack:
        node, parent_id = stack.pop()
        if not isinstance(node, dict):
            yield "a reply is not an object"
            continue
        name, role, text = (node.get(key) for key in ("message_id", "role", "text"))
        rank = node.get("rank")
        parent = node.get("parent_id") or parent_id
        if not isinstance(name, str) or not name:
            yield f"no message_id (keys: {column_names(node)})"
        elif role not in ("prompter", "assistant"):
            yield f"message {name}: role {role!r} is not prompter or assistant"
        elif not isinstance(text, str) or not text.strip():
            yield f"message {name}: empty text"
        elif rank is not None and not (isinstance(rank, int | float) and float(rank).is_integer()):
            yield f"message {name}: rank {rank!r} is not a whole number"
        else:
            yield _Message(line, name, str(parent), role, text, None if rank is None else int(rank))
        nested = node.get("replies")
        stack += [(reply, name) for reply in reversed(nested if isinstance(nested, list) else [])]


def _conversation(messages: dict[str, _Message], last: str) -> Conversation | UnusableRow:
    """The prompt that ends with a message: the conversation up to it."""
    turns: list[Message] = []
    while last and len(turns) <= len(messages):
        message = messages.get(last)
        if message is None:
            return UnusableRow(f"the conversation before it is not whole: {last!r} is not there")
        turns.append(Message("user" if message.role == "prompter" else "assistant", message.text))
        last = message.parent
    turns.reverse()
    wrong = "the messages run in a circle" if last else role_error(turns)
    return UnusableRow(wrong) if wrong else tuple(turns)
