"""The bundled recipes, and whether a corpus consists of the data of the written rubric."""

import json
from functools import cache
from pathlib import Path

from towpath.data.corpus import Corpus
from towpath.data.data_summary import DataSummary
from towpath.data.texts import normalise

RUBRIC_DATA = "quickstart"
"""The data of the recipes quickstart and tiny; other bundled recipes have judges of their own."""


def recipes_folder() -> Path:
    """The folder of recipes: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def is_bundled(corpus: Corpus | DataSummary) -> bool:
    """Whether every prompt and demonstration of a corpus is of the data that the written rubric was made for."""
    if isinstance(corpus, DataSummary):
        return corpus.bundled
    prompts, answers = _bundled()
    if not all(normalise(p.text) in prompts for p in corpus.prompts):
        return False
    return all((normalise(d.text), d.response.strip()) in answers for d in corpus.demonstrations)


@cache
def _bundled() -> tuple[frozenset[str], frozenset[tuple[str, str]]]:
    """Prompts, and (prompt, response) of the demonstrations, of the recipes quickstart and tiny."""
    prompts: set[str] = set()
    answers: set[tuple[str, str]] = set()
    for path in recipes_folder().glob(f"{RUBRIC_DATA}/*/*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            prompts.add(normalise(row["prompt"]))
            if "response" in row:
                answers.add((normalise(row["prompt"]), row["response"].strip()))
    return frozenset(prompts), frozenset(answers)
