"""What a caller of Python gives, made what a recipe and a ledger hold; what cannot be is refused by its name before
anything starts."""

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
SIDES = ("prompt", "chosen", "rejected")


def prompts(texts: Iterable[Any], name: str = "prompts") -> list[str]:
    """The texts, each one a text that says something."""
    fix = "give a list of texts, or of rows {'prompt': text, 'COLUMN': value}"
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        raise RecipeError(f"{name} = {texts!r:.80}", "a list of texts is asked for", fix)
    found: list[Any] = [row.get("prompt") if isinstance(row, Mapping) else row for row in texts]
    for number, text in enumerate(found):
        if not isinstance(text, str) or not text.strip() or not _encodes(text):
            raise RecipeError(f"{name}[{number}] = {text!r:.80}", "a prompt is a text that says something", fix)
    return found


def columns(rows: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """The further columns of rows, by the text of their prompt."""
    by_prompt: dict[str, dict[str, Any]] = {}
    names: set[str] | None = None
    for number, row in enumerate(rows):
        columns_of_row = row if isinstance(row, Mapping) else {"prompt": row}
        more = {str(key): item for key, item in columns_of_row.items() if key != "prompt"}
        names = set(more) if names is None else names
        if differing := sorted(names ^ set(more)):
            rule = "every row has the same columns, so that a reward function gets a value for each prompt"
            raise RecipeError(
                f"prompts[{number}] and prompts[0] differ in the column {differing[0]!r}",
                rule,
                "give every row the column, None where unknown",
            )
        if reserved := sorted(more.keys() & set(RESERVED_NAMES)):
            rule = "reward functions get prompts and completions under these names"
            raise RecipeError(f"prompts[{number}] has a column {reserved[0]!r}", rule, "give the column another name")
        before = by_prompt.setdefault(columns_of_row["prompt"], more)
        if repr(before) != repr(more):
            rule = "a prompt is trained on once, with one value in each column"
            value = f"prompts[{number}] = {columns_of_row['prompt']!r:.60} is there twice, with other columns"
            raise RecipeError(value, rule, "keep one of the two rows")
    return {prompt: more for prompt, more in by_prompt.items() if more}


def pairs(rows: Iterable[Any]) -> list[Pair]:
    """Three texts each, or a mapping of `prompt`, `chosen` and `rejected`."""
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
        raise RecipeError(
            f"pairs = {rows!r:.80}",
            "a list of pairs is asked for",
            "give a list of (prompt, better answer, worse answer)",
        )
    found = []
    fix = "give (prompt, better answer, worse answer), or a mapping of prompt, chosen and rejected"
    for number, row in enumerate(rows):
        sides: Any = [row.get(side) for side in SIDES] if isinstance(row, Mapping) else row
        texts: list[Any] = [] if isinstance(sides, str) or not isinstance(sides, Iterable) else list(sides)
        if len(texts) != 3 or not all(isinstance(text, str) and text.strip() and _encodes(text) for text in texts):
            raise RecipeError(f"pairs[{number}] = {row!r:.80}", "a pair is three texts", fix)
        if texts[1].strip() == texts[2].strip():
            raise RecipeError(
                f"pairs[{number}] = {row!r:.80}",
                "one answer is better than the other",
                "leave out pairs of equal answers",
            )
        found.append((texts[0], texts[1], texts[2]))
    return found


def rewards(reward: Rewards, columns: Collection[str] = ()) -> list[dict[str, Any]]:
    """Sources as a recipe has them: functions get names, and a mapping may give a weight, and a name of the caller's
    own."""
    found = []
    for one in reward if isinstance(reward, list | tuple) else [reward]:
        entry: dict[str, Any] = dict(one) if isinstance(one, Mapping) else {"source": one}
        source = entry.get("source")
        name = str(entry.pop("name", ""))
        if source == "model":
            rule = "there is no reward model here"
            fix = "give a function, rule:NAME, python:MODULE:FUNCTION or an address; or run the pipeline"
            raise RecipeError("reward = 'model'", rule, fix)
        if not isinstance(source, str):
            source = sources.register_function(source, name, columns)  # pyright: ignore[reportArgumentType]
        found.append(entry | {"source": source})
    return found


def setting(key: str, item: Any) -> Any:
    """A value as TOML has it: numbers of NumPy and torch, paths and types of torch are taken for what they say."""
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


def _encodes(text: str) -> bool:
    """Half a character that stands for two has no bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
