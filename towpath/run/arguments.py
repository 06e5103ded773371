"""Arguments of `towpath.train`, validated and converted to what a recipe and a ledger hold."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from towpath.data.conversations import parse_messages, require_prompt
from towpath.data.preference_rows import prompt_and_answers
from towpath.data.row_files import UnusableRow
from towpath.errors import RecipeError
from towpath.records import Conversation, Message
from towpath.rewards import sources
from towpath.rewards.call_adapter import RESERVED_NAMES

Reward = Callable[..., Sequence[float | None]]
Rewards = Reward | str | Mapping[str, Any] | Sequence[Reward | str | Mapping[str, Any]]
Pair = tuple[Conversation, str, str]
"""A prompt, the better answer, the worse one."""
PAIR_COLUMNS = ("prompt", "chosen", "rejected")


def prompts(rows: Iterable[Any], name: str = "prompts") -> list[Conversation]:
    """Prompts as conversations, given as texts, as lists of messages, or as rows."""
    fix = "give a list of texts, of conversations [{'role': ..., 'content': ...}], or of rows {'prompt': ..., ...}"
    if _is_no_list(rows):
        raise RecipeError(f"{name} = {rows!r:.80}", "a list of texts", fix)
    return [_conversation(row, f"{name}[{number}]", fix) for number, row in enumerate(rows)]


def is_conversational(rows: Sequence[Any]) -> bool:
    """Whether rows give their prompts as messages, so that reward functions get messages, too."""
    prompts = [row.get("prompt") if isinstance(row, Mapping) else row for row in rows]
    return any(isinstance(prompt, list | tuple) for prompt in prompts)


def _conversation(row: Any, what: str, fix: str) -> Conversation:
    cells = dict(row) if isinstance(row, Mapping) else {"prompt": row}
    prompt = cells.get("prompt")
    if not _is_text(prompt) and not isinstance(prompt, list | tuple):
        raise RecipeError(f"{what} = {prompt!r:.80}", "a prompt is a text that is not blank, or a conversation", fix)
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    try:
        messages = require_prompt(parse_messages(list(prompt or ()), "prompt"), "prompt")
    except UnusableRow as reason:
        raise RecipeError(f"{what}: {reason}", "a conversation alternates and ends with the user", fix) from None
    if not all(_is_text(message.content) for message in messages):
        raise RecipeError(f"{what} = {prompt!r:.80}", "a turn is a text that is not blank", fix)
    return messages


def columns(rows: Sequence[Any]) -> dict[Conversation, dict[str, Any]]:
    """The other columns of rows, by their prompt."""
    by_prompt: dict[Conversation, dict[str, Any]] = {}
    names: set[str] | None = None
    for number, row in enumerate(rows):
        cells = row if isinstance(row, Mapping) else {"prompt": row}
        others = {str(key): item for key, item in cells.items() if key != "prompt"}
        names = set(others) if names is None else names
        differing = sorted(names ^ set(others))
        if differing:
            raise RecipeError(
                f"prompts[{number}] and prompts[0] differ in the column {differing[0]!r}",
                "every row has the same columns, so that a reward function gets a value for each prompt",
                "give every row the column, None where unknown",
            )
        reserved = sorted(others.keys() & set(RESERVED_NAMES))
        if reserved:
            rule = "reward functions get prompts and completions under these names"
            raise RecipeError(f"prompts[{number}] has a column {reserved[0]!r}", rule, "give the column another name")
        first = by_prompt.setdefault(_conversation(row, f"prompts[{number}]", ""), others)
        if repr(first) != repr(others):
            rule = "a prompt is trained on once, with one value in each column"
            value = f"prompts[{number}] = {cells['prompt']!r:.60} is there twice, with other columns"
            raise RecipeError(value, rule, "keep one of the two rows")
    return {prompt: others for prompt, others in by_prompt.items() if others}


def pairs(rows: Iterable[Any]) -> list[Pair]:
    """Pairs of answers, given as (prompt, better, worse), or as a mapping of `prompt`, `chosen` and `rejected`: texts,
    or messages."""
    if _is_no_list(rows):
        fix = "give a list of (prompt, better answer, worse answer)"
        raise RecipeError(f"pairs = {rows!r:.80}", "a list of pairs", fix)
    valid = []
    for number, row in enumerate(rows):
        value = f"pairs[{number}] = {row!r:.80}"
        prompt, better, worse = _pair(row, value)
        if better.strip() == worse.strip():
            raise RecipeError(value, "one answer is better than the other", "leave out pairs of equal answers")
        valid.append((prompt, better, worse))
    return valid


def _pair(row: Any, value: str) -> Pair:
    fix = "give (prompt, better answer, worse answer), or a mapping of prompt, chosen and rejected"
    cells: Any = row
    if not isinstance(row, Mapping):
        parts = [] if isinstance(row, str) or not isinstance(row, Iterable) else list(row)
        cells = dict(zip(PAIR_COLUMNS, parts, strict=False)) if len(parts) == len(PAIR_COLUMNS) else {}
    named = {name: cells[name] for name in (*PAIR_COLUMNS, "system", "history") if cells.get(name) is not None}
    try:
        prompt, better, worse = prompt_and_answers(named)
    except UnusableRow as reason:
        raise RecipeError(value, f"a pair is three texts, or messages: {reason}", fix) from None
    if not all(map(_is_text, (*(message.content for message in prompt), better, worse))):
        raise RecipeError(value, "a pair is three texts", fix)
    return prompt, better, worse


def rewards(reward: Rewards, columns: Collection[str] = ()) -> list[dict[str, Any]]:
    """Reward sources as a recipe has them: functions are registered under a name; a mapping may give a weight and a
    name."""
    rows = []
    for one in reward if isinstance(reward, list | tuple) else [reward]:
        row: dict[str, Any] = dict(one) if isinstance(one, Mapping) else {"source": one}
        source: Any = row.get("source")
        name = str(row.pop("name", ""))
        if source == "model":
            rule = "there is no reward model here"
            fix = "give a function, rule:NAME, python:MODULE:FUNCTION or an address; or run the pipeline"
            raise RecipeError("reward = 'model'", rule, fix)
        if not isinstance(source, str):
            source = sources.register_function(source, name, columns)
        rows.append(row | {"source": source})
    return rows


def setting(key: str, item: Any) -> Any:
    """A value as TOML has it; scalars of NumPy and torch, paths and torch types are converted."""
    if isinstance(item, Mapping):
        return {str(name): setting(f"{key}.{name}", inner) for name, inner in item.items()}
    if isinstance(item, list | tuple):
        return [setting(key, inner) for inner in item]
    if item is None or type(item) in (bool, int, float, str):
        return item
    if isinstance(item, np.generic | np.ndarray) and item.size == 1:
        return item.item()
    if isinstance(item, Path):
        return str(item)
    if type(item).__module__ == "torch" and str(item).startswith("torch."):
        return str(item).removeprefix("torch.")
    if type(item).__module__ == "torch" and getattr(item, "ndim", None) == 0:
        return item.item()
    if isinstance(item, bool | int | float | str):
        return item
    raise RecipeError(
        f"{key} = {item!r:.80}", "a setting is a number, a text, a list or a table", f"see `towpath explain {key}`"
    )


def _is_no_list(rows: Any) -> bool:
    return isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable)


def _is_text(text: Any) -> bool:
    """Whether it is a text that is not blank, and has an encoding: half a surrogate pair has none."""
    if not isinstance(text, str) or not text.strip():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
