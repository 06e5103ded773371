"""Multi-turn conversations as one text and back; a prompt of several turns ends with the user's."""

import re
from collections.abc import Sequence
from typing import Any

from towpath.data.row_files import UnusableRow

Turn = tuple[str, str]
"""Role (system, user, assistant) and content."""

_NAMES = {"system": "System", "user": "Human", "assistant": "Assistant"}
_ROLES = {name: role for role, name in _NAMES.items()}
_ROLE_ALIASES = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_TURN_MARKER = re.compile(r"(?:\A|\n\n)(System|Human|Assistant): ")
_HH_MARKER = re.compile(r"\n\n(Human|Assistant):")


def join_turns(turns: Sequence[Turn]) -> str:
    """The text of a prompt: the user's message, or a transcript of several turns."""
    if len(turns) == 1:
        return turns[0][1]
    text = "\n\n".join(f"{_NAMES[role]}: {content}" for role, content in turns)
    if split_turns(text) != list(turns):
        raise UnusableRow("a turn holds the mark of another turn (a blank line, then Human: or Assistant:)")
    return text


def split_turns(prompt: str) -> list[Turn]:
    """The turns of a prompt's text, the inverse of `join_turns`; a plain text is one user turn."""
    before, *parts = _TURN_MARKER.split(prompt)
    turns = [(_ROLES[name], content) for name, content in zip(parts[::2], parts[1::2], strict=True)]
    if before or len(turns) < 2 or role_error(turns) or not all(content.strip() for _, content in turns):
        return [("user", prompt)]
    return turns


def role_error(turns: Sequence[Turn]) -> str:
    """What is wrong with the order of roles of a conversation that should end with the user; empty if nothing."""
    roles = [role for role, _ in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if spoken and len(spoken) % 2 and spoken == ["user", "assistant"] * (len(spoken) // 2) + ["user"]:
        return ""
    return f"roles out of order: {', '.join(roles) or '(none)'}"


def parse_transcript(text: str) -> list[Turn]:
    """The turns of an HH transcript: each begins with a blank line and `Human:` or `Assistant:`."""
    before, *parts = _HH_MARKER.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if before.strip() or not parts:
        raise UnusableRow("no transcript: it does not begin with Human:")
    return [(_ROLES[name], content.strip()) for name, content in zip(parts[::2], parts[1::2], strict=True)]


def format_transcript(turns: Sequence[Turn]) -> str:
    """Turns as an HH transcript."""
    return "".join(f"\n\n{_NAMES[role]}: {content}" for role, content in turns)


def to_messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Turns as a list of {role, content}."""
    return [{"role": role, "content": content} for role, content in turns]


def parse_messages(value: Any, what: str) -> list[Turn]:
    """The turns in a list of {role, content}, or of {from, value}."""
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise UnusableRow(f"{what} is not a list of {{role, content}}")
    return [_turn(turn, what) for turn in value]


def split_last_answer(turns: list[Turn], what: str) -> tuple[list[Turn], str]:
    """A conversation that ends with an answer, split into what came before and the answer."""
    if not turns or turns[-1][0] != "assistant":
        raise UnusableRow(f"{what} does not end with an answer of the assistant")
    wrong = role_error(turns[:-1])
    if wrong:
        raise UnusableRow(f"{what}: roles out of order: {', '.join(role for role, _ in turns)}")
    if not all(content.strip() for _, content in turns[:-1]):
        raise UnusableRow(f"{what} has an empty turn")
    return turns[:-1], turns[-1][1]


def _turn(turn: dict[str, Any], what: str) -> Turn:
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    role = _ROLE_ALIASES.get(role, role) if isinstance(role, str) else role
    if role not in _NAMES:
        raise UnusableRow(f"{what}: unknown role {role!r}")
    if not isinstance(content, str):
        raise UnusableRow(f"{what}: the content of a turn is not text")
    return str(role), content
