"""Judgements into the ledger, by whoever labels: a simulated rater, files, rules, a judge, people."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from towpath.data import formats
from towpath.data import recorded_preferences as recordings
from towpath.data.refused_rows import FILE, RefusedRow, format_summary, refused_row
from towpath.errors import DataError, Waiting
from towpath.feedback import calibration, judge_runner, judging, routing, simulated_rater
from towpath.feedback.rater_quality import PEOPLE
from towpath.feedback.routing import Route, RoutingConfig, Signals
from towpath.hashing import hash_uniform
from towpath.recipe.stage_configs import LabelConfig
from towpath.records import Choice, Comparison, Finding, Judgement
from towpath.stages.job import Job
from towpath.stages.reward_margins import reward_margins
from towpath.store import rater_stats, rating_settings
from towpath.store.task_queue import Task


def simulate(job: Job[LabelConfig], comparisons: Sequence[Comparison]) -> list[Judgement]:
    """Judgements of the simulated raters on every comparison; no others count."""
    cfg = job.config.preferences
    seed = job.config.seed
    names = _simulated_raters(job)
    completions = job.store.completions()
    prompts = job.store.prompts()
    known = {j.key for j in job.store.judgements()}
    made = []
    for c in comparisons:
        for rater in names[: 1 + (hash_uniform(seed, "overlap", c.id) < cfg.overlap)]:
            a, b = ((completions[x].text, completions[x].finish == "stop") for x in (c.a, c.b))
            judgement = simulated_rater.judge_comparison(c, prompts[c.prompt_id], a, b, rater, seed, cfg)
            if judgement.key not in known:
                made.append(judgement)
    job.store.add_judgements(made)
    ours = {c.id for c in comparisons}
    return [j for j in job.store.judgements() if j.comparison in ours and j.rater in names]


def _simulated_raters(job: Job[LabelConfig]) -> list[str]:
    """Two names; with other settings or another seed they differ, so that earlier judgements are not reused."""
    cfg = job.config.preferences
    character = f"{job.config.seed}/{cfg.noise}/{cfg.tie_margin}/{cfg.both_bad}/{simulated_rater.GUIDELINE}"
    suffix = hashlib.blake2b(character.encode(), digest_size=3).hexdigest()
    return [f"simulated-{number}-{suffix}" for number in (1, 2)]


def recorded(job: Job[LabelConfig]) -> tuple[list[Comparison], list[Judgement]]:
    """The preferences in the recipe's files that may be used: not those of held-out or too long prompts, nor answers
    that are equal once cut."""
    comparisons = []
    judgements = []
    refused = []
    long = []
    cut = 0
    read = 0
    held = recordings.held_out_prompts(job.corpus)
    limit = job.config.data.max_prompt_tokens
    left_out: Counter[str] = Counter()
    for rows, unusable in recordings.read_recorded(job.run, job.config.data.preferences, job.corpus):
        formats.add_to_store(job.store, rows)
        refused += unusable
        tokens = {c.id: job.tokens(c) for c in rows.completions}
        cut = cut + sum(not job.chat.ended(answer) for answer in tokens.values())
        read = read + len(tokens)
        unfit = {
            p.id: recordings.exclusion_reason(p.prompt, held, limit, lambda text: len(job.chat.prompt(text)))
            for p in rows.prompts
        }
        why = {c.id: unfit[c.prompt_id] or _alike(job, tokens[c.a], tokens[c.b]) for c in rows.comparisons}
        usable = [c for c in rows.comparisons if not why[c.id]]
        left_out.update(reason for reason in why.values() if reason)
        long += [
            refused_row("preferences", rows.locations[name], reason)
            for name, reason in why.items()
            if reason == recordings.too_long_reason(limit)
        ]
        names = {c.id for c in usable}
        comparisons += usable
        judgements += [j for j in rows.judgements if j.comparison in names]
    _report_left_out(job, refused, left_out, cut, read)
    job.corpus = replace(job.corpus, refused=(*job.corpus.refused, *refused, *long))
    return comparisons, judgements


def _report_left_out(
    job: Job[LabelConfig], refused: Sequence[RefusedRow], left_out: Counter[str], cut: int, read: int
) -> None:
    """Findings on rows that cannot be used, comparisons that may not be, and answers that are cut."""
    if refused:
        evidence = (
            f"{len(refused)} rows of preferences are left out: {format_summary(refused)}; all are listed in {FILE}"
        )
        job.findings.append(
            Finding(
                "preferences",
                "warning",
                evidence,
                "rows that cannot be used are never corrected by guess",
                "fix or remove them",
            )
        )
    if cut:
        evidence = (
            f"{cut} of {read} answers are read to preferences.max_new_tokens = "
            f"{job.config.preferences.max_new_tokens} and no further"
        )
        remedy = "raise it, to where policy.max_new_tokens allows answers to go"
        job.findings.append(
            Finding("preferences", "warning", evidence, "what tells answers apart may lie beyond", remedy)
        )
    for reason, count in left_out.items():
        job.findings.append(Finding("preferences", "warning", f"{count} comparisons left out: {reason}"))


def _alike(job: Job[LabelConfig], one: Sequence[int], other: Sequence[int]) -> str:
    return (
        f"answers that are one in their first {job.config.preferences.max_new_tokens} tokens"
        if list(one) == list(other)
        else ""
    )


def people(job: Job[LabelConfig], comparisons: Sequence[Comparison]) -> list[Judgement]:
    """Judgements of people; all comparisons are put in their queue."""
    seed = job.config.seed
    overlap = job.config.preferences.overlap
    _enqueue(
        job,
        [Task(c.id, _domain(job, c), seats=1 + (hash_uniform(seed, "overlap", c.id) < overlap)) for c in comparisons],
    )
    return [j for j in _judgements_of(job, comparisons) if j.kind in PEOPLE]


def machines(job: Job[LabelConfig], comparisons: Sequence[Comparison]) -> list[Judgement]:
    """What the judge and the rules of the recipe say, and what people have said besides."""
    rules = job.config.preferences.rules
    judge_runner.run_rules(job.store, rules, job.run, comparisons)
    settings = judge_runner.judge_settings(job.config.judge, job.run)
    pairs = judge_runner.pair_texts(job.store, comparisons)
    title = f"{job.name}: {settings.model}"
    abstained = judge_runner.run_judge(job.store, settings, pairs, job.store.judgements(), title)
    if abstained:
        job.findings.append(_abstentions(job, judging.rater_name(settings), abstained))
    names = {judging.rater_name(settings), *(f"rule:{name}" for name in rules)}
    return [j for j in _judgements_of(job, comparisons) if j.kind in PEOPLE or j.rater in names]


REMEDIES: dict[str, str] = {
    "unreachable": "look at the judge's server and judge.base_url, then run again",
    "rejected": "look at what the server says of the request: judge.model, judge.max_tokens, the length of prompts",
    "refused": "take a judge that reads such text, or let people judge it: preferences.raters = 'blend'",
    "unreadable": "take a judge that writes the JSON it is asked for, or raise judge.max_tokens",
    "inconsistent": "let people judge them: preferences.raters = 'blend'",
    "ceiling": "raise judge.ceiling, or ask for fewer pairs",
}
"""What to do about pairs without a judgement, by the reason."""


def _abstentions(job: Job[LabelConfig], rater: str, abstained: Sequence[judging.Abstention]) -> Finding:
    """How many comparisons a judge gave no judgement on, why, and what to do about the commonest reason."""
    counted = Counter(a.reason for a in abstained)
    evidence = (
        f"{rater} gave no judgement on {len(abstained)} comparisons: "
        f"{', '.join(f'{reason} {n}' for reason, n in counted.most_common())}"
    )
    worst = counted.most_common(1)[0][0]
    note = next(a.note for a in abstained if a.reason == worst)
    remedy = REMEDIES[worst] if job.config.preferences.raters == "judge" else f"people judge them; or {REMEDIES[worst]}"
    return Finding("judge", "warning", evidence, note, remedy)


def blended(job: Job[LabelConfig], comparisons: Sequence[Comparison]) -> tuple[list[Judgement], dict[str, float]]:
    """Machines' and people's judgements, and how likely each comparison was to be seen by people; waits until those
    sent to them are judged."""
    judgements = machines(job, comparisons)
    routes = _routes(job, comparisons, judgements)
    sent = [r for r in routes if r.seats]
    domains = {c.id: _domain(job, c) for c in comparisons}
    _enqueue(
        job,
        [
            Task(r.comparison, domains[r.comparison], ", ".join(r.reasons), r.propensity, r.seats, round(100 * r.doubt))
            for r in sent
        ],
    )
    labelled = {j.comparison for j in judgements if j.kind in PEOPLE}
    flagged = {row["comparison"] for row in job.store.read(rater_stats.flagged_pairs)}
    waiting = [r for r in sent if r.comparison not in labelled | flagged]
    if waiting:
        why = Counter(reason for r in waiting for reason in r.reasons)
        value = (
            f"people: {len(sent) - len(waiting)} of {len(sent)} comparisons judged, of {len(comparisons)} that the "
            "judge has seen"
        )
        raise Waiting(
            value,
            "sent to people: " + ", ".join(f"{reason} {n}" for reason, n in why.most_common()),
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
    # labels of earlier rounds cover these domains; in the first round nothing is known of any
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
    """Everything that was said of these comparisons, but by a simulation."""
    ours = {c.id for c in comparisons}
    return [j for j in job.store.judgements() if j.comparison in ours and j.kind != "simulated"]


def _domain(job: Job[LabelConfig], comparison: Comparison) -> str:
    prompt = job.corpus.by_id.get(comparison.prompt_id)
    return prompt.domain if prompt else "general"


def _enqueue(job: Job[LabelConfig], tasks: Sequence[Task]) -> None:
    """Into the people's queue, with the recipe's ceiling of hours."""
    job.store.add_tasks(tasks)
    hours = job.config.budget.hours
    house = job.store.read(rating_settings.read)
    if hours and house.hours is None:
        job.store.submit_write(rating_settings.save, replace(house, hours=hours)).result()


def require_some(comparisons: Sequence[Comparison]) -> None:
    """Raise where there is nothing to label."""
    if not comparisons:
        raise DataError(
            "no comparisons to label",
            "labels come from comparisons",
            "fix the files of data.preferences, or add prompts",
        )
