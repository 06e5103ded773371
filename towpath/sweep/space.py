"""Search space of a sweep: ranges of keys of `[policy]`, from the recipe or from the usual ranges of its fields."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from towpath.algos import data_of
from towpath.errors import RecipeError
from towpath.recipe import Recipe, aliases
from towpath.recipe.policy import Policy
from towpath.recipe.reader import check, keys, merge

Settings = dict[str, Any]
"""Values by dotted recipe key."""
ALGORITHM_KEYS = {
    "ppo": ("policy.learning_rate", "policy.kl.coef", "policy.epochs", "policy.ppo.clip"),
    "grpo": ("policy.learning_rate", "policy.kl.coef", "policy.group", "policy.grpo.clip_high"),
    "rloo": ("policy.learning_rate", "policy.kl.coef", "policy.group", "policy.rloo.clip"),
    "reinforce": ("policy.learning_rate", "policy.kl.coef", "policy.reinforce.clip"),
    "dpo": ("policy.learning_rate", "policy.dpo.beta"),
    "ipo": ("policy.learning_rate", "policy.ipo.tau"),
    "kto": ("policy.learning_rate", "policy.kto.beta"),
    "orpo": ("policy.learning_rate", "policy.orpo.weight"),
}
"""Keys of the default space; their ranges are the usual ones of the recipe."""
OWN_ALGORITHM_KEYS = {"rollouts": ("policy.learning_rate", "policy.kl.coef"), "comparisons": ("policy.learning_rate",)}
"""Those of an algorithm of the user's own, by what it learns from."""
FIXED = {
    "policy.algo": "it changes which stages are needed",
    "policy.settings": "it is a table",
    "policy.method": "it changes the models that a trial needs",
    "policy.validation_prompts": "trials are compared on the same validation prompts",
    "policy.validate_every": "trials are compared at the same validations",
}
"""Keys of [policy] that a sweep cannot change, and why."""
RANGE_KEYS = {"low", "high", "log", "step", "choices"}
FORM = "'KEY' = { low = 1e-6, high = 1e-4, log = true } or { choices = [4, 8] }"
_NUMBER = r"\d+(?:\.\d+)?(?:e-?\d+)?"
_USUAL = re.compile(rf"({_NUMBER})-({_NUMBER})")


@dataclass(frozen=True)
class SearchRange:
    """The values that one key may have: an interval or choices."""

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float = 0.0
    """Distance of neighbouring values; 0 for a continuous interval."""
    choices: tuple[Any, ...] = ()
    whole: bool = False
    """Whether values are whole numbers."""

    def contains(self, item: Any) -> bool:
        """Whether a value is in the range."""
        if self.choices:
            return item in self.choices
        return not isinstance(item, bool) and isinstance(item, int | float) and self.low <= item <= self.high

    def clip(self, item: Any) -> Any:
        """The nearest value of the range; of choices the nearest number, or the first choice."""
        if self.choices:
            numbers = [x for x in self.choices if isinstance(x, int | float) and not isinstance(x, bool)]
            if item in self.choices or not numbers or not isinstance(item, int | float):
                return item if item in self.choices else self.choices[0]
            return min(numbers, key=lambda x: abs(_scale(x) - _scale(item)))
        near = min(max(item, self.low), self.high)
        if self.step:
            near = min(self.low + round((near - self.low) / self.step) * self.step, self.high)
        return round(near) if self.whole else near

    def at(self, share: float) -> Any:
        """The value at a share of the way from the low end to the high end; of choices in their order."""
        if self.choices:
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        if self.log:
            return self.clip(self.low * (self.high / self.low) ** share)
        return self.clip(self.low + share * (self.high - self.low))

    def row(self) -> dict[str, Any]:
        """The range as a recipe has it."""
        if self.choices:
            return {"choices": list(self.choices)}
        row: dict[str, Any] = {"low": self.low, "high": self.high}
        return row | ({"log": True} if self.log else {}) | ({"step": self.step} if self.step else {})


Space = dict[str, SearchRange]


def parse_space(recipe: Recipe) -> Space:
    """The ranges of `[sweep.space]`, or the default ones; RecipeError names the first range that cannot be searched."""
    rows = _flat_ranges(recipe.sweep.space)
    if not rows and recipe.sweep.space:
        raise RecipeError("sweep.space holds no range", "a range has low and high, or choices", FORM)
    if not rows:
        return default_space(recipe)
    space = {key: _range(recipe, key, row) for key, row in rows.items()}
    for search_range in space.values():
        _check_limits(recipe, search_range)
    return space


def default_space(recipe: Recipe) -> Space:
    """The usual ranges of the keys that matter most to the recipe's algorithm."""
    algo = recipe.policy.algo
    names = ALGORITHM_KEYS.get(algo) or OWN_ALGORITHM_KEYS[data_of(algo)]
    space = {}
    for key in names:
        search_range = _usual_range(recipe, key)
        if search_range is not None:
            space[key] = search_range
    return space


def recipe_settings(recipe: Recipe, space: Mapping[str, SearchRange]) -> Settings:
    """The recipe's own values of the keys that are searched."""
    return {key: attrgetter(key)(recipe) for key in space}


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with the settings of a trial."""
    return check(Recipe, merge(recipe.model_dump(mode="json"), settings), "settings of a trial")


def _flat_ranges(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Ranges by dotted key; a key without quotes makes nested tables in TOML."""
    rows: dict[str, Any] = {}
    for key, item in tables.items():
        name = f"{prefix}{key}"
        if (
            isinstance(item, Mapping)
            and not RANGE_KEYS & set(item)
            and any(isinstance(x, Mapping) for x in item.values())
        ):
            rows |= _flat_ranges(item, f"{name}.")
        else:
            rows[name] = item
    return rows


def _range(recipe: Recipe, key: str, row: Any) -> SearchRange:
    _require_searchable(recipe, key)
    value = f"sweep.space: {key} = {row!r}"
    if not isinstance(row, Mapping) or not row:
        raise RecipeError(value, "a range has low and high, or choices", FORM)
    unknown = sorted(set(row) - RANGE_KEYS)
    if unknown:
        near = aliases.suggestion(unknown[0], RANGE_KEYS)
        raise RecipeError(value, f"a range has no key {unknown[0]!r}{', ' + near if near else ''}", FORM)
    if "choices" in row:
        return _choices(key, row, value)
    low, high, step = (row.get(name, default) for name, default in (("low", None), ("high", None), ("step", 0)))
    if not all(_is_number(x) for x in (low, high, step)):
        raise RecipeError(value, "low, high and step are numbers", FORM)
    is_log = row.get("log", False)
    if not isinstance(is_log, bool):
        raise RecipeError(value, "log is true or false", FORM)
    if not low < high:
        raise RecipeError(
            value, "low must be below high", "correct the two ends, or name one value in the recipe itself"
        )
    if is_log and low <= 0:
        raise RecipeError(value, "a range with log = true begins above 0", "raise low, or remove log")
    if step < 0 or (step and is_log):
        raise RecipeError(value, "step is above 0, and only for ranges without log", "remove step or log")
    whole = _is_whole(key)
    if whole and any(float(x) != int(x) for x in (low, high, step)):
        raise RecipeError(value, f"{key} is a whole number", "give whole numbers for low, high and step")
    if whole:
        return SearchRange(key, int(low), int(high), is_log, int(step) or (0 if is_log else 1), whole=True)
    return SearchRange(key, float(low), float(high), is_log, float(step))


def _choices(key: str, row: Mapping[str, Any], value: str) -> SearchRange:
    if set(row) != {"choices"}:
        raise RecipeError(value, "a range has low and high, or choices, not both", FORM)
    choices = row["choices"]
    if not isinstance(choices, list | tuple) or len(choices) < 2:
        raise RecipeError(value, "choices is a list of two values or more", FORM)
    if any(not isinstance(item, bool | int | float | str) for item in choices) or len(set(choices)) < len(choices):
        raise RecipeError(value, "choices are different numbers, texts or truth values", FORM)
    return SearchRange(key, choices=tuple(choices), whole=_is_whole(key))


def _require_searchable(recipe: Recipe, key: str) -> None:
    """Raise unless the key is one of the policy stage that a trial may change."""
    fields = keys(Recipe)
    value = f"sweep.space: {key}"
    if key not in fields:
        fix = aliases.suggestion(key, [name for name in fields if name.startswith("policy.")])
        raise RecipeError(f"{value}: unknown key", "a range names a key of [policy]", fix or "`towpath explain policy`")
    if not key.startswith("policy."):
        section = key.partition(".")[0]
        rule = "a sweep changes the policy stage alone: all trials share the inputs, which other keys would change"
        fix = f"set {key} in the recipe and start a sweep for each value" if "." in key else f"remove {section}"
        raise RecipeError(f"{value}: not a key of [policy]", rule, fix)
    why = FIXED.get(key) or ("it is a table" if hasattr(fields[key].annotation, "model_fields") else "")
    if why:
        raise RecipeError(f"{value}: cannot be searched", why, "set it in the recipe")
    section = key.split(".")[1]
    algo = recipe.policy.algo
    if section in ALGORITHM_KEYS and section != algo and "." not in algo:
        raise RecipeError(
            f"{value}: not used by {algo}",
            "a range names a key that the algorithm reads",
            f"remove it, or set policy.algo = {section!r}",
        )
    if key.startswith("policy.lora.") and recipe.policy.method == "full":
        raise RecipeError(
            f"{value}: not used with policy.method = 'full'",
            "a range names a key that training reads",
            "remove it, or set policy.method = 'lora'",
        )
    if data_of(algo) == "comparisons" and key in (
        "policy.kl.coef",
        "policy.kl.target",
        "policy.kl.step",
        "policy.steps",
        "policy.rollout",
        "policy.group",
    ):
        raise RecipeError(
            f"{value}: not used by {algo}",
            "algorithms on comparisons have no rollouts and no KL penalty",
            f"search policy.{algo.rpartition('.')[2]}.* or policy.learning_rate",
        )


def _check_limits(recipe: Recipe, search_range: SearchRange) -> None:
    """Raise if the field does not allow a value at an end of the range, or a choice."""
    ends = search_range.choices or (search_range.low, search_range.high)
    for item in ends:
        try:
            with_settings(recipe, {search_range.key: item})
        except RecipeError as error:
            problem = error.value.removeprefix("settings of a trial: ")
            raise RecipeError(
                f"sweep.space: {problem}", f"`towpath explain {search_range.key}`", "correct the range"
            ) from None


def _usual_range(recipe: Recipe, key: str) -> SearchRange | None:
    """The usual range of a field, in the part of its text that is for the recipe's algorithm and method."""
    usual = str((keys(Recipe)[key].json_schema_extra or {}).get("usual", ""))
    ends = usual_ends(usual, recipe.policy.algo, recipe.policy.method)
    if ends is None:
        return None
    low, high = ends
    if key == "policy.group":
        choices = tuple(n for n in (4, 8, 16) if low <= n <= high and recipe.policy.rollout % n == 0)
        return SearchRange(key, choices=choices, whole=True) if len(choices) > 1 else None
    whole = _is_whole(key)
    is_log = low > 0 and high / low > 3
    if whole:
        return SearchRange(key, int(low), int(high), is_log, 0 if is_log else 1, whole=True) if high > low else None
    return SearchRange(key, low, high, is_log)


def usual_ends(usual: str, algo: str, method: str) -> tuple[float, float] | None:
    """The ends of the usual range that a field states for an algorithm and a method: `1e-6-5e-6 full, 5e-6-1e-4 with
    LoRA`, `4-16 for PPO, 1-2 for grpo, rloo and reinforce`."""
    matches = list(_USUAL.finditer(usual))
    chosen = None
    ends = [*(match.start() for match in matches[1:]), len(usual)]
    for match, end in zip(matches, ends, strict=False):
        condition = usual[match.end() : end].lower()
        named = [name for name in ALGORITHM_KEYS if re.search(rf"\b{name}\b", condition)]
        if named and algo not in named:
            continue
        if ("lora" in condition and method != "lora") or ("full" in condition and method != "full"):
            continue
        chosen = chosen or (float(match[1]), float(match[2]))
    return chosen


def policy_field(key: str) -> Any:
    """The field of a key of [policy]."""
    return keys(Policy, "policy.")[key]


def _is_whole(key: str) -> bool:
    return policy_field(key).annotation is int


def _is_number(item: Any) -> bool:
    return isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item)


def _scale(item: float) -> float:
    return math.log(item) if item > 0 else float(item)
