"""The data of a run: loaded for a stage, or summarised for what only looks at the run."""

from dataclasses import replace
from pathlib import Path

from towpath.data import corpus_reader, data_summary
from towpath.data.bundled import is_bundled
from towpath.data.corpus import Corpus
from towpath.data.data_summary import DataSummary
from towpath.data.file_cache import cache_file
from towpath.data.refused_rows import skipped_findings
from towpath.data.token_lengths import TokenLengths, cut_to_budget, drop_too_long, find_too_long, limits_of, model_key
from towpath.recipe import Recipe
from towpath.run.sizes import model_size


def load_corpus(recipe: Recipe, folder: Path) -> Corpus:
    """The data of a run without the rows that the recipe skips; its summary is cached."""
    name = data_summary.summary_key(folder, recipe)
    corpus = corpus_reader.read_corpus(folder, recipe.data, recipe.seed)
    if recipe.data.unusable == "skip" or _has_history(corpus):
        from towpath.data.chat import Chat
        from towpath.models import base

        model_folder = base.find(recipe.model.source, folder)
        chat = Chat(base.load_tokenizer(model_folder), recipe.model.template)
        context = model_size(Path(model_folder)).context
        lengths = TokenLengths(chat, cache_file(folder, "token_lengths"), model_key(recipe), context)
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
    lengths = TokenLengths(None, cache_file(folder, "token_lengths"), model_key(recipe))
    return _summary(_fit(recipe, corpus_reader.read_corpus(folder, recipe.data, recipe.seed), lengths))


def recorded_summary(recipe: Recipe, folder: Path) -> DataSummary:
    """The same for commands that only look at the run: large files that changed, or were never read, are not read, and
    the summary's note says so."""
    recorded = data_summary.load_summary(folder, recipe)
    if recorded is None and data_summary.is_small(folder, recipe):
        return summarise(recipe, folder)
    return recorded or data_summary.last_summary(folder, recipe)


def _summary(corpus: Corpus) -> DataSummary:
    return DataSummary(corpus.digests, is_bundled(corpus), len(corpus.train), data_summary.prompt_lengths(corpus))


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
