"""Recorded preferences of a run: the files of `data.preferences`, and which of their comparisons may be used."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from towpath.data import formats
from towpath.data.context_budget import HistoryCutter
from towpath.data.corpus import Corpus
from towpath.data.corpus_reader import match_files, relative_name
from towpath.data.preference_pairs import Imported
from towpath.data.refused_rows import RefusedRow, refused_row
from towpath.data.texts import normalise
from towpath.data.token_lengths import TEMPLATE_REASON, UNRENDERABLE
from towpath.records import Conversation, Prompt, opening

HELD_OUT = "their prompts are held out for evaluation"

Length = Callable[[Conversation], int | None]


@dataclass
class RecordedCounts:
    """Counts of the recorded preferences."""

    comparisons: int = 0
    decided: int = 0
    """Usable comparisons with a decided judgement."""
    left_out: Counter[str] = field(default_factory=Counter)
    cut: dict[int, int] = field(default_factory=dict)
    """Conversations that are cut, by the number of turns left out."""
    refused: list[RefusedRow] = field(default_factory=list)
    long: list[RefusedRow] = field(default_factory=list)


def read_recorded(
    run: Path, pattern: str, corpus: Corpus, cut: HistoryCutter
) -> Iterator[tuple[Imported, list[RefusedRow]]]:
    """The preferences of each file with their locations in the run, and its unusable rows; long conversations are
    cut."""
    for path in match_files(run, "data.preferences", pattern):
        name = relative_name(run, path)
        imported = formats.read_preferences(path, prompts=corpus.prompts, cut=cut)
        locations = {key: location.replace(path.name, name, 1) for key, location in imported.locations.items()}
        rows = [row.replace(path.name, name, 1).partition(": ") for row in imported.refused]
        yield (
            replace(imported, locations=locations),
            [refused_row("preferences", location, reason) for location, _, reason in rows],
        )


def held_out_prompts(corpus: Corpus) -> set[str]:
    """Openings of the held-out and safety sets, with which no training comparison may begin."""
    return {normalise(opening(p.messages)) for p in (*corpus.heldout, *corpus.safety)}


def too_long_reason(limit: int) -> str:
    """The reason for comparisons with prompts longer than the recipe allows."""
    return f"prompts of more than data.max_prompt_tokens = {limit}"


def exclusion_reason(prompt: Prompt, held: set[str], limit: int, length: Length) -> str:
    """Why a comparison of this prompt may not be used; empty if it may."""
    if normalise(opening(prompt.messages)) in held:
        return HELD_OUT
    tokens = length(prompt.messages) or 0
    if tokens == UNRENDERABLE:
        return TEMPLATE_REASON
    return too_long_reason(limit) if tokens > limit else ""


def count_recorded(run: Path, pattern: str, corpus: Corpus, limit: int, length: Length) -> RecordedCounts:
    """Count all and usable comparisons in the files."""
    total = RecordedCounts()
    held = held_out_prompts(corpus)
    cut = HistoryCutter(lambda messages: length(messages) or 0, limit)
    for imported, refused in read_recorded(run, pattern, corpus, cut):
        total.refused += refused
        prompts = {p.id: exclusion_reason(p, held, limit, length) for p in imported.prompts}
        decided = {j.comparison for j in imported.judgements if j.choice in ("a", "b")}
        for comparison in imported.comparisons:
            reason = prompts[comparison.prompt_id]
            total.comparisons += 1
            total.decided += not reason and comparison.id in decided
            if reason == too_long_reason(limit):
                total.long.append(refused_row("preferences", imported.locations[comparison.id], reason))
            elif reason:
                total.left_out[reason] += 1
    total.cut = dict(Counter(cut.turns.values()))
    return total
