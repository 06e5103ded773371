"""Arguments of `towpath.train`, validated and converted to what a recipe and a ledger hold."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from towpath.errors import RecipeError
from towpath.rewards import sources
from towpath.rewards.call_adapter import RESERVED_NAMES

Reward = Callable[..., Sequence[float]]
Rewards = Reward | str | Mapping[str, Any] | Sequence[Reward | str | Mapping[str, Any]]
Pair = tuple[str, str, str]
"""A prompt, the better answer, the worse one."""
PAIR_COLUMNS = ("prompt", "chosen", "rejected")


def prompts(rows: Iterable[Any], name: str = "prompts") -> list[str]:
    """The texts of prompts, given as texts or as rows."""
    fix = "give a list of texts, or of rows {'prompt': text, 'COLUMN': value}"
    if _is_no_list(rows):
        raise RecipeError(f"{name} = {rows!r:.80}", "a list of texts", fix)
    texts: list[Any] = [row.get("prompt") if isinstance(row, Mapping) else row for row in rows]
    for number, text in enumerate(texts):
        if not _is_text(text):
            raise RecipeError(f"{name}[{number}] = {text!r:.80}", "a prompt is a text that is not blank", fix)
    return texts


def columns(rows: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """The other columns of rows, by the text of their prompt."""
    by_prompt: dict[str, dict[str, Any]] = {}
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
        first = by_prompt.setdefault(cells["prompt"], others)
        if repr(first) != repr(others):
            rule = "a prompt is trained on once, with one value in each column"
            value = f"prompts[{number}] = {cells['prompt']!r:.60} is there twice, with other columns"
            raise RecipeError(value, rule, "keep one of the two rows")
    return {prompt: others for prompt, others in by_prompt.items() if others}


def pairs(rows: Iterable[Any]) -> list[Pair]:
    """Pairs of answers, given as three texts or as a mapping of `prompt`, `chosen` and `rejected`."""
    if _is_no_list(rows):
        fix = "give a list of (prompt, better answer, worse answer)"
        raise RecipeError(f"pairs = {rows!r:.80}", "a list of pairs", fix)
    valid = []
    for number, row in enumerate(rows):
        cells: Any = [row.get(column) for column in PAIR_COLUMNS] if isinstance(row, Mapping) else row
        texts: list[Any] = [] if isinstance(cells, str) or not isinstance(cells, Iterable) else list(cells)
        value = f"pairs[{number}] = {row!r:.80}"
        if len(texts) != 3 or not all(map(_is_text, texts)):
            fix = "give (prompt, better answer, worse answer), or a mapping of prompt, chosen and rejected"
            raise RecipeError(value, "a pair is three texts", fix)
        if texts[1].strip() == texts[2].strip():
            raise RecipeError(value, "one answer is better than the other", "leave out pairs of equal answers")
        valid.append((texts[0], texts[1], texts[2]))
    return valid


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
