"""Recorded preferences of a run: the files of `data.preferences`, and which of their comparisons may be used."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from towpath.data import formats
from towpath.data.corpus import Corpus
from towpath.data.corpus_reader import match_files, relative_name
from towpath.data.preference_pairs import Imported
from towpath.data.refused_rows import RefusedRow, refused_row
from towpath.data.texts import normalise

HELD_OUT = "their prompts are held out for evaluation"

Length = Callable[[str], int | None]


@dataclass
class RecordedCounts:
    """Counts of the recorded preferences."""

    comparisons: int = 0
    decided: int = 0
    """Usable comparisons with a decided judgement."""
    left_out: Counter[str] = field(default_factory=Counter)
    refused: list[RefusedRow] = field(default_factory=list)
    long: list[RefusedRow] = field(default_factory=list)


def read_recorded(run: Path, pattern: str, corpus: Corpus) -> Iterator[tuple[Imported, list[RefusedRow]]]:
    """The preferences of each file with their locations in the run, and its unusable rows."""
    for path in match_files(run, "data.preferences", pattern):
        name = relative_name(run, path)
        imported = formats.read_preferences(path, prompts=corpus.prompts)
        locations = {key: location.replace(path.name, name, 1) for key, location in imported.locations.items()}
        rows = [row.replace(path.name, name, 1).partition(": ") for row in imported.refused]
        yield (
            replace(imported, locations=locations),
            [refused_row("preferences", location, reason) for location, _, reason in rows],
        )


def held_out_prompts(corpus: Corpus) -> set[str]:
    """Normalised prompts of the held-out and safety sets, which no training comparison may use."""
    return {normalise(p.prompt) for p in (*corpus.heldout, *corpus.safety)}


def too_long_reason(limit: int) -> str:
    """The reason for comparisons with prompts longer than the recipe allows."""
    return f"prompts of more than data.max_prompt_tokens = {limit}"


def exclusion_reason(prompt: str, held: set[str], limit: int, length: Length) -> str:
    """Why a comparison of this prompt may not be used; empty if it may."""
    if normalise(prompt) in held:
        return HELD_OUT
    return too_long_reason(limit) if (length(prompt) or 0) > limit else ""


def count_recorded(run: Path, pattern: str, corpus: Corpus, limit: int, length: Length) -> RecordedCounts:
    """Count all and usable comparisons in the files."""
    total = RecordedCounts()
    held = held_out_prompts(corpus)
    for imported, refused in read_recorded(run, pattern, corpus):
        total.refused += refused
        prompts = {p.id: exclusion_reason(p.prompt, held, limit, length) for p in imported.prompts}
        decided = {j.comparison for j in imported.judgements if j.choice in ("a", "b")}
        for comparison in imported.comparisons:
            reason = prompts[comparison.prompt_id]
            total.comparisons += 1
            total.decided += not reason and comparison.id in decided
            if reason == too_long_reason(limit):
                total.long.append(refused_row("preferences", imported.locations[comparison.id], reason))
            elif reason:
                total.left_out[reason] += 1
    return total
