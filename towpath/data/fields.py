"""Parse one row of prompts, demonstrations or the safety set, in any supported format. The only reader of such rows."""

import re
from collections.abc import Mapping
from typing import Any

from towpath.data.conversations import parse_messages, role_error, split_last_answer
from towpath.data.preference_rows import (
    PROMPT_COLUMNS,
    SYSTEM_COLUMNS,
    column_names,
    prompt_and_answers,
    prompt_messages,
    text_cell,
    with_history,
)
from towpath.data.row_files import Cells, UnusableRow, json_type
from towpath.data.texts import require_characters, require_text
from towpath.records import Conversation, Message

ANSWERS = ("response", "output", "completion", "answer")
_TRUTH = {
    **dict.fromkeys(("true", "yes", "1", "1.0", "unsafe", "harmful"), True),
    **dict.fromkeys(("false", "no", "0", "0.0", "safe", "harmless"), False),
}
_LABELS = ("safe", "unsafe", "harmful", "harmless")
"""Values of a column `label` that say whether a prompt is harmful; other labels mean something else."""
UNSTATED = "nothing says whether it is harmful"

CONVERSATIONS = ("messages", "conversations", "conversation")
"""Columns that hold a whole conversation."""
_OWN = frozenset(
    (
        *("id", "domain", "difficulty", "about", "harmful", "label", "split", "twin", "prompt_id", "style"),
        *("history", "instances", "input", "chosen", "rejected"),
        *CONVERSATIONS,
        *PROMPT_COLUMNS,
        *SYSTEM_COLUMNS,
    )
)
"""Columns of a prompt's row that have a meaning here; others are passed to reward functions."""

Example = tuple[Conversation, str | None]
"""A prompt, and its answer if the row has one."""


def prompts_and_answers(cells: Cells) -> list[Example]:
    """The prompts of a row with their answers; of a preference the better one."""
    rows = _examples(cells)
    for prompt, _ in rows:
        for message in prompt:
            require_text("prompt", message.content)
    return rows


def is_conversational(cells: Cells) -> bool:
    """Whether the row gives its prompt as messages."""
    return any(key in cells for key in CONVERSATIONS) or any(isinstance(cells.get(key), list) for key in PROMPT_COLUMNS)


def extra_columns(cells: Cells) -> Cells:
    """The columns of a prompt's row for reward functions: `reference`, and others without a meaning of their own."""
    return {name: value for name, value in cells.items() if name not in _OWN}


def harmful_flag(cells: Cells) -> bool | None:
    """Whether the prompt should be declined, from `harmful` or `label`; None if the row does not say."""
    by_column = parse_bool(cells, "harmful")
    label = str(cells.get("label")).strip().lower()
    by_label = _TRUTH[label] if label in _LABELS else None
    if None not in (by_column, by_label) and by_column != by_label:
        raise UnusableRow(f"harmful is {str(by_column).lower()} but label is {cells['label']!r}")
    return by_label if by_column is None else by_column


def resolve_harmful(cells: Cells, rule: bool | str | None, file: str) -> bool:
    """Whether a row of the safety set is harmful; `rule` gives a value for all rows of its file, or names a column."""
    stated = harmful_flag(cells)
    value = parse_bool(cells, rule) if isinstance(rule, str) else rule
    if isinstance(rule, str) and value is None:
        raise UnusableRow(f"no {rule!r}, which data.safety_harmful names for {file} (keys: {column_names(cells)})")
    if stated is not None and value is not None and stated != value:
        raise UnusableRow(
            f"the row says harmful = {str(stated).lower()}, data.safety_harmful says {str(value).lower()} of it"
        )
    known = stated if value is None else value
    if known is None:
        raise UnusableRow(UNSTATED)
    return known


def parse_bool(cells: Cells, key: str) -> bool | None:
    """A boolean cell; None if absent or empty."""
    value = cells.get(key)
    if value is None or value == "":
        return None
    known = value if isinstance(value, bool) else _TRUTH.get(str(value).strip().lower())
    if known is None:
        raise UnusableRow(f"{key} is not true or false but {value!r}")
    return known


def parse_name(cells: Cells, key: str) -> str:
    """A cell that is a name: text or an integer."""
    value = cells.get(key)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else storable_text(cells, key).strip()


def storable_text(cells: Cells, key: str) -> str:
    """A text cell without characters that a database cannot store; empty if absent."""
    if cells.get(key) is None:
        return ""
    value = text_cell(cells, key)
    require_characters(key, value)
    return value


def parse_words(cells: Cells, key: str) -> tuple[str, ...]:
    """A cell that lists words: a list, or text with commas or semicolons."""
    value = cells.get(key)
    if isinstance(value, str):
        return tuple(word.strip() for word in re.split("[;,]", value) if word.strip())
    if value is not None and not (isinstance(value, list) and all(isinstance(word, str) for word in value)):
        raise UnusableRow(f"{key} is not a list of words but {json_type(value)}")
    return tuple(value or ())


def rename_columns(cells: Cells, columns: Mapping[str, str]) -> Cells:
    """The row with renamed columns: {"question": "prompt"}."""
    return {columns.get(key, key): value for key, value in cells.items()}


def has_several_examples(cells: Cells) -> bool:
    """Whether the row has more than one example, so that its id names none of them."""
    instances = cells.get("instances")
    return isinstance(instances, list) and len(instances) > 1


def _examples(cells: Cells) -> list[Example]:
    key = next((key for key in CONVERSATIONS if key in cells), None)
    if key is not None:
        return [_conversation(cells, parse_messages(cells[key], key), key)]
    instances = cells.get("instances")
    if isinstance(instances, list) and "instruction" in cells:
        return [_instance(cells, instance) for instance in instances]
    if "chosen" in cells and "rejected" in cells:
        prompt, better, _ = prompt_and_answers(cells)
        return [(prompt, better)]
    if isinstance(cells.get("prompt"), list):
        return [_listed_prompt(cells)]
    return [(prompt_messages(cells), _answer(cells))]


def _conversation(cells: Cells, messages: list[Message], what: str) -> Example:
    if role_error(messages) == "":
        return with_history(cells, messages, what), None
    before, answer = split_last_answer(messages, what)
    return with_history(cells, list(before), what), answer


def _listed_prompt(cells: Cells) -> Example:
    """A prompt as a list of messages; its answer is another list, or text."""
    messages = parse_messages(cells["prompt"], "prompt")
    answer = cells.get("completion")
    if isinstance(answer, list):
        return _conversation(cells, [*messages, *parse_messages(answer, "completion")], "prompt and completion")
    prompt, answered = _conversation(cells, messages, "prompt")
    return prompt, _answer(cells) if answered is None else answered


def _answer(cells: Cells) -> str | None:
    key = next((key for key in ANSWERS if cells.get(key) is not None), None)
    if key is None:
        return None
    if not isinstance(cells[key], list):
        return text_cell(cells, key)
    messages = parse_messages(cells[key], key)
    if len(messages) != 1 or messages[0].role != "assistant":
        raise UnusableRow(f"{key} is not one answer of the assistant")
    return messages[0].content


def _instance(cells: Cells, instance: Any) -> Example:
    """One of several inputs and outputs under an instruction, as in Self-Instruct."""
    if not isinstance(instance, dict):
        raise UnusableRow("instances is not a list of {input, output}")
    prompt = prompt_messages({"instruction": cells["instruction"], "input": instance.get("input")})
    return prompt, text_cell(instance, "output")
