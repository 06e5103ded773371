"""Read the labels of a label stage, and the decided pairs that models train on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from towpath.data.batch import Row, make_row
from towpath.errors import DataError
from towpath.hashing import hash_uniform
from towpath.judges.selection import reserved_share
from towpath.recipe.stage_configs import PairsConfig
from towpath.records import Comparison, Completion, Label, Prompt, opening
from towpath.stages.job import Job
from towpath.store import manifest

LABELS = "labels.json"


@dataclass(frozen=True)
class Pair:
    """A decided comparison."""

    comparison: Comparison
    label: Label
    prompt: Prompt
    chosen: Completion
    rejected: Completion

    @property
    def certainty(self) -> float:
        """The probability that the chosen completion is better; 1 if the label has none."""
        if self.label.chance is None:
            return 1.0
        return self.label.chance if self.label.choice == "a" else 1 - self.label.chance


def read_labels(folder: Path) -> list[Label]:
    """The labels that a label stage wrote."""
    path = folder / LABELS
    try:
        return [Label(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise manifest.damaged_error(path, f"not a list of labels ({type(error).__name__})") from None


def decided_pairs(job: Job[PairsConfig]) -> list[Pair]:
    """Comparisons whose label names a winner, without those reserved for the evaluation."""
    return [pair for pair in labelled_pairs(job) if not is_reserved(job.config, pair.prompt)]


def is_reserved(config: PairsConfig, prompt: Prompt) -> bool:
    """Whether labels of this prompt are reserved for the held-out reward model; all turns of a conversation are."""
    share = reserved_share(config.evaluate, config.preferences.raters)
    return hash_uniform(config.seed, "evaluate/reserved", opening(prompt.messages)) < share


def labelled_pairs(job: Job[PairsConfig]) -> list[Pair]:
    """All comparisons whose label names a winner."""
    stage = next(name for name in reversed(job.inputs) if name.startswith("label"))
    return pairs_of(job, read_labels(job.inputs[stage]))


def pairs_of(job: Job[PairsConfig], labels: Sequence[Label]) -> list[Pair]:
    """The comparisons of labels that name a winner; completions come without log-probabilities."""
    by_id = {label.comparison: label for label in labels if label.choice in ("a", "b")}
    comparisons = sorted((c for c in job.store.comparisons() if c.id in by_id), key=lambda c: c.id)
    # a completion or prompt of several comparisons is one object
    prompts: dict[str, Prompt] = {}
    completions: dict[str, Completion] = {}
    pairs = []
    for c, prompt, a, b in job.store.answers_of(comparisons, tokens=True):
        prompt = prompts.setdefault(prompt.id, prompt)
        sides = [completions.setdefault(side.id, side) for side in (a, b)]
        chosen, rejected = sides if by_id[c.id].choice == "a" else sides[::-1]
        pairs.append(Pair(c, by_id[c.id], prompt, chosen, rejected))
    return pairs


def is_held_out(config: PairsConfig, prompt: Prompt) -> bool:
    """Whether comparisons of this prompt are held out from reward model training."""
    return _validation_draw(config, prompt) < config.reward.validation


def _validation_draw(config: PairsConfig, prompt: Prompt) -> float:
    """A draw by the first turn of the user, so that all turns of a conversation are on one side."""
    return hash_uniform(config.seed, "reward/validation", opening(prompt.messages))


def split_pairs(
    job: Job[PairsConfig], pairs: Sequence[Pair], at_least_one_prompt: bool = False
) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and held-out pairs; no prompt is in both."""
    draw = {p.prompt.id: _validation_draw(job.config, p.prompt) for p in pairs}
    share = job.config.reward.validation
    if at_least_one_prompt:
        share = max(share, min(draw.values(), default=0.0) + 1e-12)
    held_out = [p for p in pairs if draw[p.prompt.id] < share]
    training = [p for p in pairs if draw[p.prompt.id] >= share]
    if not held_out or not training:
        raise DataError(
            f"{len(training)} pairs to train on and {len(held_out)} held out",
            "both must hold pairs; prompts do not cross the split",
            "collect more labels, or change reward.validation",
        )
    return training, held_out


def completion_row(job: Job[PairsConfig], prompt: Prompt, completion: Completion) -> Row:
    """A row of prompt tokens and sampled tokens; sampled tokens are never re-tokenised."""
    return make_row(job.chat.prompt(prompt.messages), job.tokens(completion))
