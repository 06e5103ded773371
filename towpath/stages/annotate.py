"""Collect judgements for the label stage: from simulated raters, files, rules, a judge and people."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from towpath.data import formats
from towpath.data import recorded_preferences as recordings
from towpath.data.context_budget import HistoryCutter, cut_findings
from towpath.data.refused_rows import FILE, RefusedRow, format_summary, refused_row
from towpath.data.token_lengths import prompt_tokens
from towpath.errors import Waiting
from towpath.feedback import calibration, judge_runner, judging, routing, simulated_rater
from towpath.feedback.rater_quality import PEOPLE
from towpath.feedback.routing import Route, RoutingConfig, Signals
from towpath.hashing import hash_uniform
from towpath.progress import progress
from towpath.recipe.stage_configs import LabelConfig
from towpath.records import Choice, Comparison, Conversation, Finding, Judgement
from towpath.stages.job import Job
from towpath.stages.reward_margins import reward_margins
from towpath.store import rater_stats, rating_settings
from towpath.store.task_queue import Task

BLOCK = 1000
"""Simulated judgements stored in one transaction."""


def simulated_judgements(job: Job[LabelConfig], comparisons: Sequence[Comparison]) -> list[Judgement]:
    """Judgements of the simulated raters on every comparison, without those of other settings."""
    cfg = job.config.preferences
    seed = job.config.seed
    raters = _simulated_raters(job)
    new: list[Judgement] = []
    with progress(f"{job.name}: simulated raters", len(comparisons)) as work:
        for c, prompt, one, other in job.store.answers_of(comparisons):
            a, b = ((answer.text, answer.finish == "stop") for answer in (one, other))
            for rater in raters[: _seats(job, c)]:
                new.append(simulated_rater.judge_comparison(c, prompt, a, b, rater, seed, cfg))
            if len(new) >= BLOCK:
                job.store.add_judgements(new)
                new = []
            work.advance()
        job.store.add_judgements(new)
    ids = {c.id for c in comparisons}
    return [j for j in job.store.judgements(raters) if j.comparison in ids]


def _simulated_raters(job: Job[LabelConfig]) -> list[str]:
    """Names of two raters. They depend on the settings and the seed, so that judgements of others are not reused."""
    cfg = job.config.preferences
    settings = f"{job.config.seed}/{cfg.noise}/{cfg.tie_margin}/{cfg.both_bad}/{simulated_rater.GUIDELINE}"
    suffix = hashlib.blake2b(settings.encode(), digest_size=3).hexdigest()
    return [f"simulated-{number}-{suffix}" for number in (1, 2)]


def _seats(job: Job[LabelConfig], comparison: Comparison) -> int:
    """Raters of a comparison: two for a share `preferences.overlap`, else one."""
    return 1 + (hash_uniform(job.config.seed, "overlap", comparison.id) < job.config.preferences.overlap)


def recorded_judgements(job: Job[LabelConfig]) -> tuple[list[Comparison], list[Judgement]]:
    """Usable comparisons in the files of `data.preferences`: prompts are not held out and not too long, and answers
    differ in their first `preferences.max_new_tokens` tokens."""
    comparisons = []
    judgements = []
    refused = []
    too_long = []
    answers = 0
    truncated = 0
    held_out = recordings.held_out_prompts(job.corpus)
    limit = job.config.data.max_prompt_tokens
    left_out: Counter[str] = Counter()

    def length(messages: Conversation) -> int:
        return prompt_tokens(job.chat, messages)

    cut = HistoryCutter(length, limit)
    for rows, unusable in recordings.read_recorded(job.run, job.config.data.preferences, job.corpus, cut):
        formats.add_to_store(job.store, rows)
        refused += unusable
        tokens = {c.id: job.tokens(c) for c in rows.completions}
        truncated += sum(not job.chat.ended(answer) for answer in tokens.values())
        answers += len(tokens)
        prompt_reasons = {p.id: recordings.exclusion_reason(p, held_out, limit, length) for p in rows.prompts}
        usable = set()
        for c in rows.comparisons:
            reason = prompt_reasons[c.prompt_id] or _equal_answers(job, tokens[c.a], tokens[c.b])
            if not reason:
                usable.add(c.id)
                comparisons.append(c)
                continue
            left_out[reason] += 1
            if reason == recordings.too_long_reason(limit):
                too_long.append(refused_row("preferences", rows.locations[c.id], reason))
        judgements += [j for j in rows.judgements if j.comparison in usable]
    job.findings += cut_findings("recorded conversations", cut.turns.values(), f"data.max_prompt_tokens = {limit}")
    _report_left_out(job, refused, left_out, truncated, answers)
    job.corpus = replace(job.corpus, refused=(*job.corpus.refused, *refused, *too_long))
    return comparisons, judgements


def _report_left_out(
    job: Job[LabelConfig], refused: Sequence[RefusedRow], left_out: Counter[str], truncated: int, answers: int
) -> None:
    """Findings on unusable rows, truncated answers and comparisons that are left out."""

    def warn(evidence: str, cause: str = "", remedy: str = "") -> None:
        job.findings.append(Finding("preferences", "warning", evidence, cause, remedy))

    if refused:
        warn(
            f"{len(refused)} rows of preferences are left out: {format_summary(refused)}; all are listed in {FILE}",
            "unusable rows are not repaired",
            "fix or remove them",
        )
    if truncated:
        warn(
            f"{truncated} of {answers} answers are truncated to preferences.max_new_tokens = "
            f"{job.config.preferences.max_new_tokens}",
            "what distinguishes the answers may come later",
            "raise it, up to policy.max_new_tokens",
        )
    for reason, count in left_out.items():
        warn(f"{count} comparisons left out: {reason}")


def _equal_answers(job: Job[LabelConfig], one: Sequence[int], other: Sequence[int]) -> str:
    """The reason to leave out a comparison of equal answers; empty if they differ."""
    if list(one) != list(other):
        return ""
    return f"answers equal in their first {job.config.preferences.max_new_tokens} tokens"


def human_judgements(job: Job[LabelConfig], comparisons: Sequence[Comparison]) -> list[Judgement]:
    """Judgements of people; all comparisons are put in their queue."""
    _enqueue(job, [Task(c.id, _domain(job, c), seats=_seats(job, c)) for c in comparisons])
    return [j for j in _judgements_of(job, comparisons) if j.kind in PEOPLE]


def machine_judgements(job: Job[LabelConfig], comparisons: Sequence[Comparison]) -> list[Judgement]:
    """Judgements of the recipe's judge and rules, which are run where they are missing, and those of people."""
    rules = job.config.preferences.rules
    judge_runner.run_rules(job.store, rules, job.run, comparisons)
    settings = judge_runner.judge_settings(job.config.judge, job.run)
    pairs = judge_runner.pair_texts(job.store, comparisons)
    title = f"{job.name}: {settings.model}"
    earlier = job.store.judgements([judging.rater_name(settings)])
    abstentions = judge_runner.run_judge(job.store, settings, pairs, earlier, title)
    if abstentions:
        job.findings.append(_abstention_finding(job, judging.rater_name(settings), abstentions))
    raters = {judging.rater_name(settings), *(f"rule:{name}" for name in rules)}
    return [j for j in _judgements_of(job, comparisons) if j.kind in PEOPLE or j.rater in raters]


REMEDIES: dict[str, str] = {
    "unreachable": "check the judge's server and judge.base_url, then run again",
    "rejected": "check the server's message: judge.model, judge.max_tokens, the length of prompts",
    "refused": "use a judge that accepts such text, or let people judge it: preferences.raters = 'blend'",
    "unreadable": "use a judge that writes valid JSON, or raise judge.max_tokens",
    "inconsistent": "let people judge them: preferences.raters = 'blend'",
    "ceiling": "raise judge.ceiling, or judge fewer pairs",
}
"""The remedy for comparisons without a judgement, by the reason of the abstention."""


def _abstention_finding(job: Job[LabelConfig], rater: str, abstentions: Sequence[judging.Abstention]) -> Finding:
    """Comparisons without a judgement by reason, with the remedy for the most frequent one."""
    counts = Counter(a.reason for a in abstentions)
    evidence = (
        f"{rater} gave no judgement on {len(abstentions)} comparisons: "
        f"{', '.join(f'{reason} {n}' for reason, n in counts.most_common())}"
    )
    most_frequent = counts.most_common(1)[0][0]
    note = next(a.note for a in abstentions if a.reason == most_frequent)
    remedy = REMEDIES[most_frequent]
    if job.config.preferences.raters != "judge":
        remedy = f"people judge them; or {remedy}"
    return Finding("judge", "warning", evidence, note, remedy)


def blended_judgements(
    job: Job[LabelConfig], comparisons: Sequence[Comparison]
) -> tuple[list[Judgement], dict[str, float]]:
    """Judgements of judge, rules and people, and each comparison's probability of being routed to people; raises
    Waiting until people have judged all that are."""
    judgements = machine_judgements(job, comparisons)
    routes = _routes(job, comparisons, judgements)
    routed = [r for r in routes if r.seats]
    domains = {c.id: _domain(job, c) for c in comparisons}
    tasks = [
        Task(r.comparison, domains[r.comparison], ", ".join(r.reasons), r.propensity, r.seats, round(100 * r.doubt))
        for r in routed
    ]
    _enqueue(job, tasks)
    labelled = {j.comparison for j in judgements if j.kind in PEOPLE}
    flagged = {row["comparison"] for row in job.store.read(rater_stats.flagged_pairs)}
    waiting = [r for r in routed if r.comparison not in labelled | flagged]
    if waiting:
        reasons = Counter(reason for r in waiting for reason in r.reasons)
        raise Waiting(
            f"people: {len(routed) - len(waiting)} of {len(routed)} comparisons judged, of {len(comparisons)} in all",
            "routed to people: " + ", ".join(f"{reason} {n}" for reason, n in reasons.most_common()),
            f"`towpath serve {job.run}`",
        )
    return judgements, {r.comparison: r.propensity for r in routes}


def _routes(job: Job[LabelConfig], comparisons: Sequence[Comparison], judgements: Sequence[Judgement]) -> list[Route]:
    """Routes from all signals: judge, rules, the previous round's reward model, domains, safety and gold."""
    cfg = job.config.preferences
    prompts = job.store.prompts()
    verdicts = {j.comparison: j for j in judgements if j.kind == "judge"}
    rules: dict[str, Choice] = {j.comparison: j.choice for j in judgements if j.kind == "rule"}
    gold = {row["comparison"] for row in job.store.read(rater_stats.list_gold)}
    margins = reward_margins(job, comparisons)
    # labels of earlier rounds cover these domains; in the first round no domain counts as new
    known_domains = {prompts[c.prompt_id].domain for c in comparisons if c.round < job.round} or None
    signals = []
    for c in comparisons:
        verdict = verdicts.get(c.id)
        signals.append(
            Signals(
                c.id,
                prompts[c.prompt_id].domain,
                verdict.choice if verdict else None,
                calibration.certainty(verdict) if verdict else None,
                bool(verdict.details.get("consistent", True)) if verdict else True,
                rules.get(c.id),
                margins.get(c.id),
                safety=prompts[c.prompt_id].harmful,
                gold=c.id in gold,
            )
        )
    config = RoutingConfig(cfg.human_share, cfg.audit_share, cfg.overlap)
    return routing.route_comparisons(signals, config, known_domains, job.config.seed)


def _judgements_of(job: Job[LabelConfig], comparisons: Sequence[Comparison]) -> list[Judgement]:
    """All judgements on these comparisons but simulated ones."""
    ids = {c.id for c in comparisons}
    return [j for j in job.store.judgements() if j.comparison in ids and j.kind != "simulated"]


def _domain(job: Job[LabelConfig], comparison: Comparison) -> str:
    prompt = job.corpus.by_id.get(comparison.prompt_id)
    return prompt.domain if prompt else "general"


def _enqueue(job: Job[LabelConfig], tasks: Sequence[Task]) -> None:
    """Add tasks to people's queue, and set its limit of hours from the recipe unless it has one."""
    job.store.add_tasks(tasks)
    hours = job.config.budget.hours
    settings = job.store.read(rating_settings.read)
    if hours and settings.hours is None:
        job.store.submit_write(rating_settings.save, replace(settings, hours=hours)).result()
