"""Read TOML and key=value overrides into a validated model; errors name file, key, rule and nearest key."""

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from towpath.errors import RecipeError
from towpath.recipe import aliases


class Section(BaseModel):
    """A table of the recipe: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def defaults(cls, tables: Mapping[str, Any]) -> dict[str, Any]:
        """Values of keys that the tables do not set."""
        return cls().model_dump()


M = TypeVar("M", bound=Section)


def value(default: Any, meaning: str, usual: str = "", why: str = "", **limits: Any) -> Any:
    """A recipe field: its default, one line of meaning, its usual range and where that comes from."""
    extra: Any = {"usual": usual, "why": why}
    if isinstance(default, (list, dict, BaseModel)):
        return Field(default_factory=lambda: default, description=meaning, json_schema_extra=extra, **limits)
    return Field(default, description=meaning, json_schema_extra=extra, **limits)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fix = "name a run folder made by `towpath new`, or a recipe file"
        raise RecipeError(f"{path}: no such file", "a run needs a recipe", fix) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: {error}", "a recipe is a TOML file", "fix the line named above") from None


def override(tables: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Tables with `a.b.c=value` overrides; values are TOML, bare words are strings."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise RecipeError(f"--set {assignment}", "an override is key=value", "for example --set policy.steps=20")
        values[key.strip()] = _toml_value(text.strip())
    return merge(tables, values)


def merge(tables: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Tables with the values of dotted keys set."""
    merged = json.loads(json.dumps(tables))
    for key, item in values.items():
        table = merged
        *parents, last = key.split(".")
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise RecipeError(
                    f"{key}: {parent} is a value", "a key's last part alone has a value", "see `towpath explain KEY`"
                )
        table[last] = item
    return merged


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def check(model: type[M], tables: dict[str, Any], origin: str) -> M:
    """The tables merged with the model's defaults, or one error that names every invalid key."""
    try:
        return model.model_validate(deep_merge(model.defaults(tables), tables))
    except ValidationError as error:
        problems = [_problem(model, item) for item in _by_key(error.errors(), keys(model))]
        raise RecipeError(
            f"{origin}: " + "; ".join(problems), "see `towpath explain KEY`", "correct or remove the keys named"
        ) from None


def _by_key(items: Sequence[Any], fields: Mapping[str, Any]) -> Iterator[Any]:
    """Errors of a validation, one for each key: a key with a choice of types has an error for each of them."""
    choices: dict[str, list[Any]] = {}
    for item in items:
        *parents, last = (str(part) for part in item["loc"])
        key = ".".join(parents)
        if key in fields and f"{key}.{last}" not in fields and not last.isdigit() and item["type"] != "extra_forbidden":
            choices.setdefault(key, []).append(item)
        else:
            yield item
    for same in choices.values():
        wanted = [item["msg"].partition(",")[0].removeprefix("Input should be ") for item in same]
        yield {**same[0], "loc": same[0]["loc"][:-1], "msg": f"Input should be {' or '.join(dict.fromkeys(wanted))}"}


def deep_merge(defaults: dict[str, Any], tables: dict[str, Any]) -> dict[str, Any]:
    """Defaults overridden by tables, key by key: setting one key of a gate keeps its other keys."""
    both = {
        key: deep_merge(defaults[key], value)
        for key, value in tables.items()
        if isinstance(value, dict) and isinstance(defaults.get(key), dict)
    }
    return defaults | tables | both


def _problem(model: type[BaseModel], item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        message = item["msg"].removeprefix("Value error, ")
        return f"{key} = {item['input']!r}: {message[:1].lower()}{message[1:]}"
    near = aliases.suggestion(re.sub(r"\.\d+\.", "[].", key), [*keys(model), *_item_keys(model)])
    return f"unknown key {key}" + (f", {near}" if near else "")


def flatten(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys; an empty table is a value."""
    flat: dict[str, Any] = {}
    for key, item in tables.items():
        inner = item.model_dump(mode="json") if isinstance(item, BaseModel) else item
        flat |= flatten(inner, f"{prefix}{key}.") if isinstance(inner, dict) and inner else {f"{prefix}{key}": inner}
    return flat


def secret(reference: str, key: str) -> str:
    """The text that `env:NAME` or `file:PATH` refers to; other text is returned as it is."""
    kind, _, name = reference.partition(":")
    if kind == "env":
        if not os.environ.get(name):
            raise RecipeError(
                f"{key} = {reference!r}: the variable is not set",
                "env:NAME names an environment variable",
                f"export {name}=…",
            )
        return os.environ[name]
    if kind != "file":
        return reference
    try:
        return Path(name).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise RecipeError(
            f"{key} = {reference!r}: {error.strerror}", "file:PATH names a file of one line", "fix the path"
        ) from None


def keys(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Every key of a model with its field, dotted."""
    fields: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        fields[prefix + name] = info
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            fields |= keys(info.annotation, f"{prefix}{name}.")
    return fields


def _item_keys(model: type[BaseModel]) -> list[str]:
    """Keys of tables in a list: `policy.rewards.sources[].weight`."""
    names = []
    for key, info in keys(model).items():
        for item in get_args(info.annotation):
            if isinstance(item, type) and issubclass(item, BaseModel):
                names += [f"{key}[].{name}" for name in item.model_fields]
    return names
