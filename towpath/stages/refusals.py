"""Which answers of two models are refusals: by the AI judge where there is one, else by patterns for the languages they
were written for."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from towpath.errors import ResourceError
from towpath.feedback import judge_runner, refusal_judge, refusal_patterns
from towpath.judges.ai import account_name, judge_name
from towpath.progress import progress
from towpath.reasoning import final_answer
from towpath.recipe.stage_configs import EvaluateConfig
from towpath.records import Completion, Finding, Prompt
from towpath.stages.job import Job

Declined = Mapping[str, Sequence[bool | None]]
"""Whether each answer is a refusal, by model; None where that is not known."""
FIX = "set base_url and model of [judge], or of [evaluate.judge]"


@dataclass(frozen=True)
class Refusals:
    """Refusals by whoever decides them, and by patterns where an AI judge does."""

    by: str
    """The judge as reports name it."""
    declined: Declined
    patterns: Declined | None
    unjudged: Mapping[str, int]
    """Prompts whose answers are not judged, by reason."""

    def part(self, begin: int, end: int | None = None) -> "Refusals":
        """The refusals of some prompts."""
        cut = {source: rows[begin:end] for source, rows in self.declined.items()}
        patterns = self.patterns and {source: rows[begin:end] for source, rows in self.patterns.items()}
        return replace(self, declined=cut, patterns=patterns)

    @property
    def known(self) -> list[int]:
        """Indices of the prompts whose answers of both models are judged."""
        rows = list(zip(*self.declined.values(), strict=True))
        return [i for i, row in enumerate(rows) if None not in row]


def find_refusals(
    job: Job[EvaluateConfig], prompts: Sequence[Prompt], completions: Mapping[str, Sequence[Completion]]
) -> Refusals:
    """The refusals among the answers to safety prompts and to their transforms, whose ids are `ID+TRANSFORM`."""
    answers = {source: [final_answer(c.text) for c in part] for source, part in completions.items()}
    languages = _languages(job, prompts)
    patterns = {source: refusal_patterns.match_refusals(part, languages) for source, part in answers.items()}
    cfg = job.config.evaluate
    if not (cfg.ask_judge and cfg.judge.base_url and cfg.judge.model) or not prompts:
        known = {p.id for p in job.corpus.safety}
        plain = [code for p, code in zip(prompts, languages, strict=True) if p.id in known]
        return Refusals(refusal_patterns.NAME, patterns, None, dict(refusal_patterns.uncovered(plain)))
    declined = {
        source: judge_refusals(job, [(p.text, text) for p, text in zip(prompts, part, strict=True)])
        for source, part in answers.items()
    }
    settings = judge_runner.judge_settings(cfg.judge, job.run)
    refusals = Refusals(judge_name(settings), declined, patterns, {})
    missing = len(prompts) - len(refusals.known)
    return replace(refusals, unjudged={"no verdict": missing} if missing else {})


def judge_refusals(job: Job[EvaluateConfig], pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
    """The AI judge's verdict on each (request, answer); None where it gives none."""
    settings = judge_runner.judge_settings(job.config.evaluate.judge, job.run)
    ledger = job.store.judge_account(account_name(settings, job.config.judge.ceiling))
    try:
        with progress(f"{job.name}: {settings.model} reads answers", len(set(pairs))) as bar:
            return refusal_judge.judge_refusals(settings, pairs, job.store, bar, ledger)
    except ResourceError as error:
        evidence = f"no judge of refusals: {error.value}"
        job.findings.append(Finding("judge", "warning", evidence, error.rule, error.fix))
        return [None] * len(pairs)


def _languages(job: Job[EvaluateConfig], prompts: Sequence[Prompt]) -> list[str]:
    """The language of each prompt; a transformed prompt has that of the original."""
    plain = job.corpus.safety
    named = [str(job.corpus.columns.get(p.id, {}).get("language") or "") for p in plain]
    codes = refusal_patterns.prompt_languages([p.text for p in plain], named)
    by_id = {p.id: code for p, code in zip(plain, codes, strict=True)}
    return [by_id.get(p.id) or by_id.get(p.id.rpartition("+")[0], "") for p in prompts]


def describe_unjudged(refusals: Refusals, total: int) -> str:
    """Why the safety gate cannot be decided; for a finding and the gate's note."""
    reasons = ", ".join(f"{n} in {name}" for name, n in Counter(refusals.unjudged).most_common())
    if refusals.patterns is None:
        return f"{reasons} of {total} safety prompts: refusals are known by {refusals.by} only; {FIX}"
    return f"{refusals.by} gave no verdict on answers to {sum(refusals.unjudged.values())} of {total} safety prompts"
