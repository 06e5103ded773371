"""`[data]`: prompts, demonstrations, preferences and the safety set."""

import re
from typing import Literal

from pydantic import field_validator

from towpath.recipe.reader import Section, value

OFF = "`towpath data RUN` shows the distribution"


class Filters(Section):
    """`[data.filters]`: rows that are left out for their quality; each is listed with its reason."""

    min_characters: int = value(0, "shortest prompt in characters", "10-20", OFF, ge=0)
    max_characters: int = value(0, "longest prompt in characters; 0 is no limit", "2000-8000", OFF, ge=0)
    min_response_characters: int = value(0, "shortest response of a demonstration in characters", "1-40", OFF, ge=0)
    max_response_characters: int = value(
        0, "longest response of a demonstration in characters; 0 is no limit", "2000-8000", OFF, ge=0
    )
    max_repetition: float = value(
        1.0,
        "largest share of words in sequences of four words that occur more than once in the text; 1 is no limit",
        "0.2-0.4",
        "text in a loop; prose has less than 0.1",
        ge=0,
        le=1,
    )
    max_symbols: float = value(
        1.0,
        "largest share of characters that are neither letters, digits, spaces nor usual punctuation; 1 is no limit",
        "0.1-0.3",
        "markup and broken text; prose has less than 0.02, code 0.1 to 0.2",
        ge=0,
        le=1,
    )
    banned: list[str] = value(
        [], "regular expressions; a row whose prompt or response matches one is left out, such as 'as an AI'"
    )
    duplicates: Literal["keep", "exact", "near"] = value(
        "keep",
        "of equal (exact) or also nearly equal (near) questions keep the first: of training prompts, of held-out "
        "prompts, of the safety set, and of demonstrations with the same answer",
    )
    leaks: Literal["keep", "drop"] = value(
        "keep",
        "leave out training prompts and demonstrations whose question is also held out, and training prompts that are "
        "in the safety set",
        why="`towpath check` refuses leaks that are kept",
    )

    @field_validator("banned")
    @classmethod
    def _compiles(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return patterns


class Balance(Section):
    """`[data.balance]`: training prompts of large groups that are left out, chosen by their id."""

    by: Literal["domain", "difficulty", "domain/difficulty"] = value("domain", "what a group is")
    cap: int = value(
        0, "most training prompts of a group; 0 is no limit", why="a domain of most rows decides most", ge=0
    )
    weights: dict[str, float] = value(
        {},
        "relative number of training prompts by group, such as { cooking = 2, travel = 1 }; groups not named weigh 1, "
        "weight 0 leaves a group out; empty is no balance",
    )

    @field_validator("weights")
    @classmethod
    def _not_negative(cls, weights: dict[str, float]) -> dict[str, float]:
        if min(weights.values(), default=0.0) < 0:
            raise ValueError("weights are 0 or more")
        return weights


class Data(Section):
    """Files of the run."""

    prompts: str = value(
        "data/prompts/*.jsonl",
        "prompt files (jsonl, csv, parquet), relative to the run folder; or a folder that datasets wrote, or "
        "hub:NAME[:CONFIG]:SPLIT",
    )
    demonstrations: str = value("data/demonstrations/*.jsonl", "demonstration files")
    safety: str = value("data/safety/*.jsonl", "files of the safety set; empty for none")
    safety_harmful: dict[str, bool | str] = value(
        {},
        "for safety files whose rows do not say whether a prompt is harmful: true, false, or the name of a column, by "
        "file name",
    )
    unusable: Literal["stop", "skip"] = value(
        "stop",
        "what to do with rows that cannot be used, such as prompts that are too long: stop, or skip and list them",
    )
    preferences: str = value("data/preferences/*.jsonl", "preference files, read if `preferences.raters` is recorded")
    heldout: float = value(
        0.2, "share of prompts held out for evaluation, if the rows name no split", "0.1-0.3", ge=0, lt=1
    )
    max_prompt_tokens: int = value(
        256, "longest prompt in tokens, chat template included", why="`towpath check` lists longer ones", ge=8
    )
    filters: Filters = value(Filters(), "rows left out for their quality")
    balance: Balance = value(Balance(), "training prompts left out for balance")
