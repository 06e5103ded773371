"""The data of a run: loaded for a stage, or summarised for what only looks at the run."""

from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

from towpath.data import corpus_reader, count_cache, data_summary, signature_cache
from towpath.data.bundled import is_bundled
from towpath.data.corpus import Corpus
from towpath.data.data_summary import DataSummary
from towpath.data.overview import DataOverview, describe
from towpath.data.refused_rows import Part, skipped_findings, write_refused_rows
from towpath.data.selection import select
from towpath.data.token_lengths import TokenLengths, cut_to_budget, drop_too_long, find_too_long, limits_of, model_key
from towpath.errors import RecipeError
from towpath.planning.sizes import model_size
from towpath.progress import progress
from towpath.recipe import Recipe


def load_corpus(recipe: Recipe, folder: Path) -> Corpus:
    """The data of a run without the rows that the recipe skips; its summary is cached."""
    name = data_summary.summary_key(folder, recipe)
    corpus = _read(recipe, folder)
    if recipe.data.unusable == "skip" or _has_history(corpus):
        from towpath.data.chat import Chat
        from towpath.models import base

        model_folder = base.find(recipe.model.source, folder)
        chat = Chat(base.load_tokenizer(model_folder), recipe.model.template)
        context = model_size(Path(model_folder)).context
        lengths = TokenLengths(chat, count_cache.path_of(folder, "token_lengths"), model_key(recipe), context)
        corpus = _fit(recipe, corpus, lengths)
    data_summary.save_summary(folder, recipe, name, _summary(corpus))
    return corpus


def summarise(recipe: Recipe, folder: Path) -> DataSummary:
    """What fingerprints and gates need of the data, from the cache if no file has changed; nothing is tokenised."""
    recorded = data_summary.load_summary(folder, recipe)
    if recorded is not None:
        return recorded
    if recipe.data.unusable == "stop":
        return _summary(load_corpus(recipe, folder))
    lengths = TokenLengths(None, count_cache.path_of(folder, "token_lengths"), model_key(recipe))
    return _summary(_fit(recipe, _read(recipe, folder), lengths))


def recorded_summary(recipe: Recipe, folder: Path) -> DataSummary:
    """The same for commands that only look at the run: large files that changed, or were never read, are not read, and
    the summary's note says so."""
    recorded = data_summary.load_summary(folder, recipe)
    if recorded is None and data_summary.is_small(folder, recipe):
        return summarise(recipe, folder)
    return recorded or data_summary.last_summary(folder, recipe)


def _read(recipe: Recipe, folder: Path) -> Corpus:
    corpus = corpus_reader.read_corpus(folder, recipe.data, recipe.seed)
    return select(corpus, recipe.data, recipe.seed, signature_cache.path_of(folder))


def describe_data(recipe: Recipe, folder: Path, part: str = "", file: str = "") -> DataOverview:
    """An overview of the data after filters and balance; unusable rows are among those left out, and stop nothing."""
    if part not in ("", *get_args(Part)[:3]):
        raise RecipeError(f"--part {part}: no such part", "prompts, demonstrations or safety", "fix the name")
    data = recipe.data.model_copy(update={"unusable": "skip"})
    with progress("data"):
        corpus = _read(recipe.model_copy(update={"data": data}), folder)
        write_refused_rows(folder, [*corpus.refused, *corpus.filtered])
        return describe(corpus, cast(Part, part) or None, file, signature_cache.path_of(folder))


def _summary(corpus: Corpus) -> DataSummary:
    return DataSummary(
        corpus.digests,
        is_bundled(corpus),
        len(corpus.train),
        data_summary.prompt_lengths(corpus),
        len(corpus.heldout),
        len(corpus.safety),
        sum(p.harmful for p in corpus.safety),
        len(corpus.demonstrations),
        data_summary.demonstration_lengths(corpus),
    )


def _has_history(corpus: Corpus) -> bool:
    return any(record.history for part in (corpus.prompts, corpus.demonstrations, corpus.safety) for record in part)


def _fit(recipe: Recipe, corpus: Corpus, lengths: TokenLengths) -> Corpus:
    """The corpus with conversations cut to the limits; where the recipe skips unusable rows, without rows that are
    still too long, and with a finding on all rows that were skipped."""
    limits = limits_of(recipe, lengths.context)
    corpus = cut_to_budget(corpus, lengths, limits)
    if recipe.data.unusable == "stop":
        lengths.save()
        return corpus
    shorter = drop_too_long(corpus, find_too_long(corpus, lengths, limits))
    lengths.save()
    return replace(shorter, findings=(*shorter.findings, *skipped_findings(shorter.refused)))
