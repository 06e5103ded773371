"""Parse conversations: lists of messages, pairs of turns, and HH transcripts."""

import json
import re
from collections.abc import Sequence
from typing import Any

from towpath.data.row_files import UnusableRow, json_type
from towpath.records import Conversation, Message, Prompt, Role

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""Names of roles in other tools."""
_HH_NAMES: dict[Role, str] = {"user": "Human", "assistant": "Assistant"}
_HH_MARKER = re.compile(r"\n\n(Human|Assistant):")


def parse_messages(value: Any, what: str) -> list[Message]:
    """The messages in a list of {role, content}, or of {from, value}; also as JSON text, as CSV has it."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise UnusableRow(f"{what} is not a list of {{role, content}}") from None
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise UnusableRow(f"{what} is not a list of {{role, content}}")
    return [_message(message, what) for message in value]


def parse_history(value: Any) -> list[Message]:
    """Earlier turns: messages, or pairs of (user, assistant) texts."""
    if isinstance(value, list) and value and all(isinstance(pair, list) for pair in value):
        if not all(len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in value):
            raise UnusableRow("history is not a list of (user, assistant) texts")
        return [Message(role, text) for pair in value for role, text in zip(("user", "assistant"), pair, strict=True)]
    return parse_messages(value or [], "history")


def is_transcript(text: str) -> bool:
    """Whether a text is an HH transcript."""
    return text.startswith("\n\nHuman:")


def parse_transcript(text: str) -> list[Message]:
    """The messages of an HH transcript: each begins with a blank line and `Human:` or `Assistant:`."""
    before, *parts = _HH_MARKER.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if before.strip() or not parts:
        raise UnusableRow("no transcript: it does not begin with Human:")
    return [Message(_ROLES[name.lower()], text.strip()) for name, text in zip(parts[::2], parts[1::2], strict=True)]


def format_transcript(messages: Sequence[Message]) -> str:
    """Messages as an HH transcript; UnusableRow if it would not be read back as the same messages."""
    if any(message.role == "system" for message in messages):
        raise UnusableRow("a system message has no place in a transcript")
    text = "".join(f"\n\n{_HH_NAMES[message.role]}: {message.content}" for message in messages)
    if parse_transcript(text) != [Message(message.role, message.content.strip()) for message in messages]:
        raise UnusableRow("a text holds the mark of another turn (a blank line, then Human: or Assistant:)")
    return text


def to_rows(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as a list of {role, content}."""
    return [{"role": message.role, "content": message.content} for message in messages]


def prompt_cells(prompt: Prompt) -> dict[str, Any]:
    """The columns `prompt` and, if there are earlier turns, `history` of a row about a prompt."""
    return {"prompt": prompt.prompt} | ({"history": to_rows(prompt.history)} if prompt.history else {})


def role_error(messages: Sequence[Message]) -> str:
    """What is wrong with the order of roles of a conversation that should end with the user; empty if nothing."""
    roles = [message.role for message in messages]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if len(spoken) % 2 and spoken == ["user", "assistant"] * (len(spoken) // 2) + ["user"]:
        return ""
    return f"roles out of order: {_listed(roles)}"


def require_prompt(messages: Sequence[Message], what: str) -> Conversation:
    """The messages as a prompt; UnusableRow unless roles alternate, the user's turn is last, and no turn is empty."""
    wrong = role_error(messages)
    if wrong:
        raise UnusableRow(f"{what}: {wrong}")
    if not all(message.content.strip() for message in messages):
        raise UnusableRow(f"{what} has an empty turn")
    return tuple(messages)


def split_last_answer(messages: Sequence[Message], what: str) -> tuple[Conversation, str]:
    """A conversation that ends with an answer, split into the prompt and the answer."""
    if not messages or messages[-1].role != "assistant":
        raise UnusableRow(f"{what} does not end with an answer of the assistant")
    if role_error(messages[:-1]):
        raise UnusableRow(f"{what}: roles out of order: {_listed([message.role for message in messages])}")
    return require_prompt(messages[:-1], what), messages[-1].content


def _listed(roles: Sequence[str]) -> str:
    return ", ".join(roles) or "(none)"


def _message(row: dict[str, Any], what: str) -> Message:
    name = row.get("role", row.get("from"))
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise UnusableRow(f"{what}: unknown role {name!r}")
    return Message(role, _content(row.get("content", row.get("value")), what))


def _content(content: Any, what: str) -> str:
    """The text of a turn; a list of parts is joined if all of them are text."""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        kinds = sorted({str(part.get("type", "text")) for part in content} - {"text"})
        if kinds:
            raise UnusableRow(f"{what}: a turn holds {', '.join(kinds)}; only text is supported")
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise UnusableRow(f"{what}: the content of a turn is not text but {json_type(content)}")
    return content
