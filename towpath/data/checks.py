"""Findings on the data of a run: overlaps, lengths, the safety set, preferences, and unread files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from towpath.data import corpus_reader, count_cache, curate, recorded_preferences, row_files, signature_cache
from towpath.data import refused_rows as refused
from towpath.data.chat import Chat
from towpath.data.context_budget import cut_findings
from towpath.data.corpus import Corpus
from towpath.data.token_lengths import TokenLengths, TooLong, find_too_long, limits_of, model_key, refused_rows
from towpath.errors import DataError, TowpathError
from towpath.recipe import Recipe
from towpath.records import Finding, Prompt

MAX_NAMES = 10


def check_data(recipe: Recipe, run: Path, corpus: Corpus, chat: Chat | None, context: int | None) -> list[Finding]:
    """Findings on the data; unusable rows are written to a file of the run. Lengths need a chat."""
    lengths = TokenLengths(chat, count_cache.path_of(run, "token_lengths"), model_key(recipe), context)
    long = find_too_long(corpus, lengths, limits_of(recipe, context)) if chat else []
    survey, findings = _count_preferences(recipe, run, corpus, lengths)
    listed = refused.write_refused_rows(
        run, [*corpus.refused, *corpus.filtered, *refused_rows(corpus, long), *survey.refused, *survey.long]
    )
    findings = findings or list(_preferences(recipe, survey, listed))
    findings += [
        *_overlaps(curate.overlaps(corpus, signature_cache.path_of(run))),
        *_safety(corpus.safety),
        *_unread_files(recipe, run),
    ]
    findings += _lengths(recipe, corpus, lengths, long, listed) if chat else []
    lengths.save()
    return findings


def first_names(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:MAX_NAMES]) + (", …" if len(names) > MAX_NAMES else "")


def _overlaps(overlaps: curate.Overlaps) -> list[Finding]:
    findings = []
    least = "" if overlaps.complete else "at least "
    for kind, pairs in (("prompts", overlaps.duplicates), ("prompts of the safety set", overlaps.safety_duplicates)):
        if pairs:
            evidence = (
                f"{least}{len(pairs)} pairs of {kind} are the same or nearly so: "
                f"{first_names([f'{a} = {b}' for a, b in pairs])}"
            )
            findings.append(
                Finding(
                    "duplicates",
                    "warning",
                    evidence,
                    "repeated prompts weigh more than others",
                    "remove one of each pair",
                )
            )
    for between in dict.fromkeys(leak.between for leak in overlaps.leaks):
        some = [leak for leak in overlaps.leaks if leak.between == between]
        exact = sum(leak.exact for leak in some)
        pairs = first_names([f"{x.trained} = {x.evaluated}" for x in some])
        evidence = f"{least}{len(some)} leaks {between.replace('-', ' to ')} ({exact} exact): {pairs}"
        remedy = "remove one of each pair, or put both into one split"
        severity = "error" if between == "train-heldout" else "warning"
        findings.append(Finding("leak", severity, evidence, "what is trained on cannot be judged by", remedy))
    return findings


def _count_preferences(
    recipe: Recipe, run: Path, corpus: Corpus, lengths: TokenLengths
) -> tuple[recorded_preferences.RecordedCounts, list[Finding]]:
    """Counts of the recorded preferences, or the finding why they cannot be read."""
    if recipe.preferences.raters != "recorded":
        return recorded_preferences.RecordedCounts(), []
    try:
        return recorded_preferences.count_recorded(
            run, recipe.data.preferences, corpus, recipe.data.max_prompt_tokens, lengths.prompt
        ), []
    except TowpathError as error:
        return recorded_preferences.RecordedCounts(), [Finding("raters", "error", error.value, error.rule, error.fix)]


def _preferences(recipe: Recipe, survey: recorded_preferences.RecordedCounts, listed: str) -> Iterator[Finding]:
    """Findings on unusable preference rows, and on too few usable ones."""
    if recipe.preferences.raters != "recorded":
        return
    severity = "warning" if recipe.data.unusable == "skip" else "error"
    for rows, what, remedy in (
        (survey.refused, "rows of preferences cannot be used", "fix them, or leave them out"),
        (survey.long, "comparisons have prompts that are too long", "raise data.max_prompt_tokens, or leave them out"),
    ):
        if rows:
            evidence = f"{len(rows)} {what}: {refused.format_summary(rows)}; {listed}"
            cause = (
                "data.unusable = 'stop' leaves none out"
                if severity == "error"
                else "data.unusable = 'skip' leaves them out"
            )
            yield Finding(
                "preferences",
                severity,
                evidence,
                cause,
                f"{remedy} with data.unusable = 'skip'" if severity == "error" else remedy,
            )
    turns = [turns for turns, count in survey.cut.items() for _ in range(count)]
    limit = f"data.max_prompt_tokens = {recipe.data.max_prompt_tokens}"
    yield from cut_findings("recorded conversations", turns, limit)
    for reason, count in survey.left_out.items():
        evidence = f"{count} of {survey.comparisons} recorded comparisons are left out: {reason}"
        yield Finding("preferences", "warning", evidence, "what is trained on cannot be judged by", "")
    if survey.decided < recipe.preferences.min_labels:
        evidence = (
            f"preferences.min_labels = {recipe.preferences.min_labels}, but the files hold {survey.decided} decided "
            "comparisons that may be used"
        )
        cause = "the run would wait for labels that cannot come"
        yield Finding("labels", "error", evidence, cause, "lower preferences.min_labels, or add preferences")


RUN_FILES = {"current.json", "plan.json"}
"""That a run writes into its folder, beside data that lie there."""


def _unread_files(recipe: Recipe, run: Path) -> Iterator[Finding]:
    """Findings on files beside the data that no setting reads."""
    cfg = recipe.data
    use = recipe.preferences.raters == "recorded"
    patterns = {part: getattr(cfg, part) for part in ("prompts", "demonstrations", "safety", "preferences")}
    files = {part: set(_matching(run, pattern)) for part, pattern in patterns.items()}
    unused = sorted(corpus_reader.relative_name(run, path) for path in files["preferences"])
    if unused and not use:
        evidence = f"{len(unused)} file{'s' * (len(unused) > 1)} of preferences not read: {first_names(unused)}"
        cause = f"preferences.raters = {recipe.preferences.raters!r}; files are read where it is 'recorded'"
        yield Finding(
            "preferences-unread",
            "warning",
            evidence,
            cause,
            "set preferences.raters = 'recorded', or data.preferences = ''",
        )
    # folders outside the run may contain unrelated files
    folders = {
        folder for pattern in patterns.values() if pattern and (folder := (run / pattern).parent).is_relative_to(run)
    }
    there = {
        path
        for folder in folders
        if folder.is_dir()
        for path in folder.iterdir()
        if path.is_file() and row_files.is_supported(path) and path.name not in RUN_FILES
    }
    if unread := sorted(corpus_reader.relative_name(run, path) for path in there.difference(*files.values())):
        evidence = f"{len(unread)} file{'s' * (len(unread) > 1)} beside the data not read: {first_names(unread)}"
        cause = "no pattern of [data] matches: " + ", ".join(
            f"data.{part} = {pattern!r}" for part, pattern in patterns.items() if pattern
        )
        yield Finding("data-unread", "warning", evidence, cause, "change the pattern to read them, or move them away")


def _matching(run: Path, pattern: str) -> list[Path]:
    try:
        return corpus_reader.match_files(run, "data", pattern)
    except DataError:
        return []


def _safety(safety: Sequence[Prompt]) -> list[Finding]:
    harmful = sum(p.harmful for p in safety)
    known = {p.id for p in safety}
    lost = [p.id for p in safety if p.twin and p.twin not in known]
    findings = []
    if not safety:
        evidence = "no safety set: refusals and over-refusals are not measured"
        findings.append(
            Finding("safety-set", "warning", evidence, "data.safety is empty", "name a safety set in data.safety")
        )
    elif harmful in (0, len(safety)):
        missing = "harmless" if harmful else "harmful"
        evidence = f"the safety set of {len(safety)} has no {missing} prompts"
        findings.append(
            Finding(
                "safety-set",
                "warning",
                evidence,
                "both kinds are needed: refusals and over-refusals",
                "set harmful = true or false in its rows",
            )
        )
    if lost:
        evidence = f"{len(lost)} prompts of the safety set name a twin that is not there: {first_names(lost)}"
        findings.append(Finding("safety-set", "warning", evidence, "twins are compared with each other", "fix `twin`"))
    return findings


def _lengths(
    recipe: Recipe, corpus: Corpus, lengths: TokenLengths, long: Sequence[TooLong], listed: str
) -> list[Finding]:
    """Findings on prompts and demonstrations that are too long, and on answers longer than the policy may sample."""
    cfg = recipe.data
    limits = limits_of(recipe, lengths.context)
    skip = "or leave them out with data.unusable = 'skip'"
    texts = {
        "template": (
            "prompt-template",
            "conversations cannot be rendered by the chat template",
            "it raises an error, or does not write every turn, such as a system prompt",
            f"use model.template = 'chatml' or another template, {skip}",
        ),
        "prompt": (
            "prompt-length",
            f"prompts are longer than data.max_prompt_tokens = {cfg.max_prompt_tokens}",
            "a turn is never cut",
            f"raise data.max_prompt_tokens, shorten them, {skip}",
        ),
        "context": (
            "prompt-length",
            f"prompts and {limits.new_tokens} new tokens do not fit the model's context of {limits.context}",
            "an answer needs room after its prompt",
            f"shorten them, lower max_new_tokens, {skip}",
        ),
        "row": (
            "row-length",
            f"demonstrations do not fit the model's context of {limits.context}",
            "no answer is cut",
            f"shorten them, {skip}",
        ),
    }
    findings = []
    for limit, (code, what, cause, remedy) in texts.items():
        if over := [f"{one.id} ({one.tokens})" for one in long if one.limit == limit]:
            findings.append(Finding(code, "error", f"{len(over)} {what}: {first_names(over)}; {listed}", cause, remedy))
    most = recipe.policy.max_new_tokens
    answer_R = lengths.answers(corpus.demonstrations)
    over = [corpus.demonstrations[position].id for position in np.flatnonzero(answer_R > most).tolist()]
    if over:
        evidence = (
            f"{len(over)} of {len(answer_R)} demonstrations are longer than policy.max_new_tokens = {most}: "
            f"{first_names(over)}"
        )
        remedy = f"raise max_new_tokens (the longest has {answer_R.max()} tokens), or shorten them"
        findings.append(
            Finding(
                "answer-length",
                "warning",
                evidence,
                "the model learns answers that are cut off when it draws them",
                remedy,
            )
        )
    return findings
