"""Parse one row of prompts, demonstrations or the safety set, in any supported format. The only reader of such rows."""

import re
from collections.abc import Mapping
from typing import Any

from towpath.data.preference_rows import column_names, prompt_text, text_cell
from towpath.data.row_files import Cells, UnusableRow, json_type
from towpath.data.texts import require_characters, require_text
from towpath.data.transcripts import Turn, join_turns, parse_messages, role_error, split_last_answer

ANSWERS = ("response", "output", "completion", "answer")
_TRUTH = {
    **dict.fromkeys(("true", "yes", "1", "1.0", "unsafe", "harmful"), True),
    **dict.fromkeys(("false", "no", "0", "0.0", "safe", "harmless"), False),
}
_LABELS = ("safe", "unsafe", "harmful", "harmless")
"""Values of a column `label` that say whether a prompt is harmful; other labels mean something else."""
ONE_TURN = "one user turn and at most one answer"
UNSTATED = "nothing says whether it is harmful"

Example = tuple[str, str | None]
"""A prompt, and its answer if the row has one."""


def prompts_and_answers(cells: Cells, multi_turn: bool) -> list[Example]:
    """The prompts of a row with their answers; multi-turn conversations become transcripts if `multi_turn`, else
    UnusableRow."""
    rows = _examples(cells, multi_turn)
    for prompt, _ in rows:
        require_text("prompt", prompt)
    return rows


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


def _examples(cells: Cells, multi_turn: bool) -> list[Example]:
    key = next((key for key in ("messages", "conversations") if key in cells), None)
    if key is not None:
        return [_conversation(parse_messages(cells[key], key), key, multi_turn)]
    instances = cells.get("instances")
    if isinstance(instances, list) and "instruction" in cells:
        return [_instance(cells, instance) for instance in instances]
    if isinstance(cells.get("prompt"), list):
        return [_listed_prompt(cells, multi_turn)]
    return [(prompt_text(cells), _answer(cells))]


def _conversation(turns: list[Turn], what: str, multi_turn: bool) -> Example:
    roles = [role for role, _ in turns]
    if not multi_turn and roles not in (["user"], ["user", "assistant"]):
        raise UnusableRow(f"{what} with roles {', '.join(roles) or '(none)'}: {ONE_TURN}")
    if role_error(turns) == "":
        return join_turns(turns), None
    before, answer = split_last_answer(turns, what)
    return join_turns(before), answer


def _listed_prompt(cells: Cells, multi_turn: bool) -> Example:
    """A prompt as a list of messages; its answer is another list, or text."""
    turns = parse_messages(cells["prompt"], "prompt")
    answer = cells.get("completion")
    if isinstance(answer, list):
        return _conversation([*turns, *parse_messages(answer, "completion")], "prompt and completion", multi_turn)
    prompt, answered = _conversation(turns, "prompt", multi_turn)
    return prompt, _answer(cells) if answered is None else answered


def _answer(cells: Cells) -> str | None:
    key = next((key for key in ANSWERS if cells.get(key) is not None), None)
    if key is None:
        return None
    if not isinstance(cells[key], list):
        return text_cell(cells, key)
    turns = parse_messages(cells[key], key)
    if len(turns) != 1 or turns[0][0] != "assistant":
        raise UnusableRow(f"{key} is not one answer of the assistant")
    return turns[0][1]


def _instance(cells: Cells, instance: Any) -> Example:
    """One of several inputs and outputs under an instruction, as in Self-Instruct."""
    if not isinstance(instance, dict):
        raise UnusableRow("instances is not a list of {input, output}")
    return prompt_text({"instruction": cells["instruction"], "input": instance.get("input")}), text_cell(
        instance, "output"
    )
