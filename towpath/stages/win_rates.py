"""Win rates of a stage: the answers of two models, judged by the recipe's evaluation judges."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from towpath.data.conversations import prompt_cells
from towpath.evals.gate_rule import win_outcome
from towpath.evals.judges import JudgeOutcomes, PairOutcome, compare_judges, judge_record
from towpath.judges.selection import select_judges
from towpath.reasoning import split_reasoning
from towpath.recipe.stage_configs import BaselineConfig
from towpath.records import Completion, Finding, Prompt
from towpath.stages.evaluation_judges import Contest, open_judge
from towpath.stages.job import Job
from towpath.store.publish import replace_file

ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class WinRates:
    """Results of the judges of a stage on two models; the first one decides the gate."""

    one: str = ""
    other: str = ""
    records: Sequence[dict[str, Any]] = ()
    reports: Sequence[JudgeOutcomes] = ()

    @property
    def result(self) -> dict[str, Any]:
        """The part of a stage's result that gates and reports read."""
        first = self.records[0] if self.records else {"name": None, "win": None}
        return {"judge": first["name"], "win": first["win"], "judges": list(self.records)}

    def columns(self, i: int) -> dict[str, Any]:
        """For one prompt: the winner by the first judge and its scores, and by every judge if there are several."""
        if not self.reports:
            return {}
        choices = {report.name: self._winner(report.outcomes[i]) for report in self.reports}
        columns: dict[str, Any] = {"choice": next(iter(choices.values()))}
        if len(choices) > 1:
            columns["choices"] = choices
        scores = self.reports[0].outcomes[i].scores
        if scores:
            columns |= {f"score_{self.one}": scores[0], f"score_{self.other}": scores[1]}
        return columns

    def _winner(self, outcome: PairOutcome) -> str | None:
        if outcome.value is None:
            return None
        return {1.0: self.one, 0.0: self.other}.get(outcome.value, "tie")

    def mean_scores(self) -> dict[str, float]:
        """The mean score of either model by the first judge, if it scores answers."""
        scores = [outcome.scores for outcome in (self.reports[0].outcomes if self.reports else ()) if outcome.scores]
        if not scores:
            return {}
        ours, others = zip(*scores, strict=True)
        return {self.one: sum(ours) / len(scores), self.other: sum(others) / len(scores)}


def judge_answers(job: Job[BaselineConfig], contest: Contest) -> WinRates:
    """Let every judge of the recipe compare the answers, and compare the judges with the first one."""
    cfg = job.config.evaluate
    specs = select_judges(cfg, job.config.preferences.raters, job.corpus)
    # a judge made of people comes first: the run waits for them before others cost anything
    reports: dict[str, JudgeOutcomes] = {}
    for spec in sorted(specs, key=lambda spec: spec != "people"):
        title = f"{job.name}: {contest.one} against {contest.other} by {spec}"
        reports[spec] = open_judge(job, spec, contest).compare(contest.pairs, title)
    lengths = [[_answer_length(job, c) for c in part] for part in (contest.ours, contest.others)]
    length_gaps = [ours - other for ours, other in zip(*lengths, strict=True)]
    records = []
    for spec in specs:
        record = judge_record(spec, reports[spec], length_gaps, cfg.bootstrap, job.config.seed)
        if records:
            record["agreement"] = compare_judges(reports[specs[0]].outcomes, reports[spec].outcomes, contest.prompts)
        records.append(record)
    job.findings.extend(_findings(job, contest, records))
    return WinRates(contest.one, contest.other, records, [reports[spec] for spec in specs])


def write_answers(
    folder: Path,
    prompts: Sequence[Prompt],
    answers: Mapping[str, Sequence[Completion]],
    rewards: Mapping[str, Sequence[float]],
    wins: WinRates,
) -> list[dict[str, Any]]:
    """Write answers.jsonl, which reports and arenas read: for each prompt the answers with their scores, and the winner
    by each evaluation judge."""
    rows = []
    for i, p in enumerate(prompts):
        row = {"prompt_id": p.id, **prompt_cells(p), "domain": p.domain, "difficulty": p.difficulty}
        row |= {source: completions[i].text for source, completions in answers.items()}
        row |= {f"reward_{source}": scores[i] for source, scores in rewards.items()}
        rows.append(row | wins.columns(i))
    replace_file(folder / ANSWERS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return rows


def _findings(job: Job[BaselineConfig], contest: Contest, records: Sequence[dict[str, Any]]) -> list[Finding]:
    """Unjudged pairs, and judges by whom the gate would have another verdict."""
    findings = []
    for record in records:
        missing = record["unjudged"] if record["missing"] else {}
        if missing:
            reasons = ", ".join(f"{reason} {n}" for reason, n in missing.items())
            evidence = f"{record['name']} left {sum(missing.values())} of {record['pairs']} pairs unjudged: {reasons}"
            cause = "a failure of a judge never becomes a number"
            remedy = f"correct it, then `towpath run {job.run} --redo {job.name}`; replies that were paid for are kept"
            findings.append(Finding("judge", "warning", evidence, cause, remedy))
    gates = job.config.gates
    gate = getattr(gates, contest.gate)
    verdicts = [
        win_outcome(record, gate.threshold, gates.rule, job.config.evaluate.max_unjudged)[0] for record in records
    ]
    for record, verdict in zip(records[1:], verdicts[1:], strict=True):
        if {verdict, verdicts[0]} == {"PASS", "FAIL"}:
            findings.append(_disagreement(contest.gate, records[0], verdicts[0], record, verdict))
    return findings


def _disagreement(gate: str, first: dict[str, Any], first_verdict: str, other: dict[str, Any], verdict: str) -> Finding:
    agreement = other["agreement"]
    kappa = "unknown" if agreement["kappa"] is None else f"{agreement['kappa']:.2f}"
    evidence = (
        f"gate {gate}: {first_verdict} by {first['name']} ({first['win']['rate']:.1%}), {verdict} by {other['name']} "
        f"({other['win']['rate']:.1%}); they agree on {agreement['rate']:.0%} of {agreement['n']} pairs, kappa "
        f"{kappa}, and name opposite winners on {agreement['opposite']}"
    )
    examples = ", ".join(agreement["prompts"][:5])
    cause = (
        "the judges value different things; they disagree on " + examples if examples else "the judges differ in ties"
    )
    remedy = "read these answers in the report; put the judge that you trust first in evaluate.judges"
    return Finding("judges-disagree", "warning", evidence, cause, remedy)


def _answer_length(job: Job[BaselineConfig], completion: Completion) -> int:
    """Tokens of an answer without its reasoning."""
    reasoning, answer = split_reasoning(completion.text)
    return len(job.chat.answer(answer)) if reasoning else len(completion.token_ids)
