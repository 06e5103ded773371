"""Run the judge and the rules over comparisons of the ledger; every judgement is stored as it arrives."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from towpath.feedback import endpoint, judge_prompt, judging, rules
from towpath.feedback.endpoint import JudgeSettings
from towpath.feedback.judging import Abstention
from towpath.feedback.pair_text import PairText
from towpath.progress import progress
from towpath.reasoning import final_answer
from towpath.recipe import Judge
from towpath.records import Comparison, Judgement
from towpath.store.store import Store

BLOCK = 20
"""Judgements stored in one transaction; after a kill at most so many are repeated, from the reply cache."""


def judge_settings(cfg: Judge, run: Path) -> JudgeSettings:
    """The validated settings of the recipe's judge; a rubric file is relative to the run folder."""
    values = {field.name: getattr(cfg, field.name) for field in fields(JudgeSettings)}
    return endpoint.check_settings(replace(JudgeSettings(**values), rubric=str(run / cfg.rubric) if cfg.rubric else ""))


def pair_texts(store: Store, comparisons: Iterable[Comparison]) -> Iterator[PairText]:
    """The texts of comparisons, read in blocks."""
    for c, prompt, a, b in store.answers_of(comparisons):
        yield PairText(c.id, prompt.text, final_answer(a.text), final_answer(b.text), c.round)


def pending_pairs(
    pairs: Iterable[PairText], judgements: Iterable[Judgement], rater: str, version: str
) -> list[PairText]:
    """The pairs that a rater has not judged with this version of its guideline; after another version the pair is
    judged in the next round."""
    last: dict[str, Judgement] = {}
    for j in judgements:
        if j.rater == rater and (j.comparison not in last or j.round > last[j.comparison].round):
            last[j.comparison] = j
    pending = []
    for pair in pairs:
        before = last.get(pair.comparison)
        if before is None:
            pending.append(pair)
        elif before.guideline != version:
            pending.append(replace(pair, round=before.round + 1))
    return pending


def pending_for_judge(
    settings: JudgeSettings, pairs: Iterable[PairText], judgements: Iterable[Judgement]
) -> list[PairText]:
    """The pairs that the judge has not judged with its rubric."""
    version = judge_prompt.read_rubric(settings.rubric).version
    return pending_pairs(pairs, judgements, judging.rater_name(settings), version)


def run_judge(
    store: Store, settings: JudgeSettings, pairs: Iterable[PairText], judgements: Iterable[Judgement], title: str
) -> list[Abstention]:
    """Judge and store every pair that is not yet in `judgements`; returns the pairs without a judgement."""
    pending = pending_for_judge(settings, pairs, judgements)
    abstentions: list[Abstention] = []
    block: list[Judgement] = []
    if not pending:
        return abstentions
    with progress(title, len(pending)) as bar:
        try:
            ledger = store.judge_account(judging.rater_name(settings))
            for result in judging.judge_pairs(settings, pending, store, bar, ledger):
                if isinstance(result, Abstention):
                    abstentions.append(result)
                    continue
                block.append(result)
                if len(block) >= BLOCK:
                    store.add_judgements(block)
                    block = []
        finally:
            store.add_judgements(block)
    return abstentions


def run_rules(store: Store, named_rules: Mapping[str, str], run: Path, comparisons: Sequence[Comparison]) -> int:
    """Apply every rule to every comparison; returns the number of new judgements."""
    added = 0
    for name, text in named_rules.items():
        rule = rules.load_rule(text, name, run)
        judgements = store.judgements([f"rule:{rule.name}"])
        pending = pending_pairs(pair_texts(store, comparisons), judgements, f"rule:{rule.name}", rule.version)
        added += store.add_judgements(rules.apply_rule(rule, pending))
    return added
