"""Judge and rules asked about the comparisons of a ledger; what they say is kept as it comes, and nobody is asked
twice."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from towpath.feedback import endpoint, judging, protocol, rules
from towpath.feedback.endpoint import JudgeSettings
from towpath.feedback.judging import Abstention
from towpath.feedback.pair_text import Case
from towpath.progress import progress
from towpath.recipe import Judge
from towpath.records import Comparison, Judgement
from towpath.store.store import Store

TOGETHER = 20
"""Judgements kept in one go: at most so many are asked for again when the process is killed, and those stand in the
cache."""


def settings_of(cfg: Judge, run: Path) -> JudgeSettings:
    """The recipe's judge, checked; its rubric is looked for in the run's folder."""
    said = {field.name: getattr(cfg, field.name) for field in fields(JudgeSettings)}
    return endpoint.checked(replace(JudgeSettings(**said), rubric=str(run / cfg.rubric) if cfg.rubric else ""))


def version_of(settings: JudgeSettings) -> str:
    """The version of the rubric that the judge goes by."""
    return protocol.read_rubric(settings.rubric).version


def ask_judge(store: Store, settings: JudgeSettings, comparisons: Sequence[Comparison], title: str) -> list[Abstention]:
    """The judge's word on every comparison that it has not judged by this rubric; what it abstained from, and why."""
    name = judging.rater(settings)
    before = store.judgements()
    cases = unasked(store, comparisons, before, name, version_of(settings))
    abstained: list[Abstention] = []
    waiting: list[Judgement] = []
    if not cases:
        return abstained
    with progress(title, len(cases)) as bar:
        try:
            for result in judging.judge_pairs(settings, cases, store, bar, store.judge_account(name)):
                if isinstance(result, Abstention):
                    abstained.append(result)
                    continue
                waiting.append(result)
                if len(waiting) >= TOGETHER:
                    store.add_judgements(waiting)
                    waiting = []
        finally:
            store.add_judgements(waiting)
    return abstained


def ask_rules(store: Store, named: Mapping[str, str], run: Path, comparisons: Sequence[Comparison]) -> int:
    """What each rule has to say of every comparison; how many judgements were new."""
    added = 0
    before = store.judgements()
    for name, text in named.items():
        rule = rules.load(text, name, run)
        added += store.add_judgements(
            rules.judge(rule, unasked(store, comparisons, before, f"rule:{rule.name}", rule.version))
        )
    return added


def unasked(
    store: Store, comparisons: Iterable[Comparison], before: Iterable[Judgement], rater: str, version: str
) -> list[Case]:
    """The comparisons that a rater has not judged by this version, with their texts; another version's word is
    answered in the next round."""
    last: dict[str, Judgement] = {}
    for j in before:
        if j.rater == rater and (j.comparison not in last or j.round > last[j.comparison].round):
            last[j.comparison] = j
    todo = [c for c in comparisons if c.id not in last or last[c.id].guideline != version]
    if not todo:
        return []
    prompts = store.prompts()
    completions = store.completions()
    return [
        Case(
            c.id,
            prompts[c.prompt_id].prompt,
            completions[c.a].text,
            completions[c.b].text,
            last[c.id].round + 1 if c.id in last else c.round,
        )
        for c in todo
    ]
