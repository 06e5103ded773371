"""`[data]`: prompts, demonstrations, preferences and the safety set."""

from typing import Literal

from towpath.recipe.reader import Section, value


class Data(Section):
    """Files of the run."""

    prompts: str = value("data/prompts/*.jsonl", "prompt files (jsonl, csv, parquet), relative to the run folder")
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
