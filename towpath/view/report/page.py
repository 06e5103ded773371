"""Content of the report page, in the order of its sections."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from towpath import __version__
from towpath.evals.gate_rule import judge_of, undecided_reason
from towpath.evals.no_judge import NO_JUDGE, NO_JUDGE_CODE, NO_JUDGE_FIX, NO_JUDGE_REASON, RUBRIC_CAVEAT
from towpath.judges import rubric
from towpath.planning.amounts import spans
from towpath.records import Verdict
from towpath.run.plan_record import StageProgress, read_progress
from towpath.run.record import STAGES, RunRecord, StageRecord
from towpath.store.jsonl import is_interval, is_number
from towpath.view.format import MINUS, duration, moment, number, percent, percents, size
from towpath.view.report import extra_evals, frontier, tables
from towpath.view.report.sweep import sweep_section
from towpath.view.report.training_charts import policy_charts, reward_charts, sft_charts

Page = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tile:
    """A key number with its name and its confidence interval."""

    value: str
    name: str
    note: str = ""


def page(run: RunRecord, verdicts: list[Verdict], summary: dict[str, Any], name: str) -> Page:
    """The values that the template shows."""
    evaluation = run.result("evaluate")
    reward = run.result("reward")
    gate = {kind: run.setting(kind, "gates", kind, "threshold") for kind in ("reward", "evaluate")}
    return {
        "title": name or run.recipe.name,
        "version": __version__,
        "outcome": outcome(run, summary),
        "notices": list(notices(run, verdicts)),
        "warnings": warnings(run),
        "tiles": tiles(summary),
        "gates": tables.gates(run, verdicts),
        "frontier": frontier.draw(evaluation, gate["evaluate"]),
        "sweep": sweep_section(run.folder),
        "policy": policy_charts(run),
        "sft": sft_charts(run),
        "reward": reward_charts(run),
        "labels": tables.labels(run.result("label")) if run.result("label") else [],
        "reward_model": tables.reward_model(reward, gate["reward"]),
        "strengths": tables.shares(reward.get("by_strength"), "accuracy", gate["reward"]),
        "reward_domains": tables.shares(reward.get("by_domain"), "accuracy", gate["reward"]),
        "reward_result": reward,
        "calibration": tables.calibration(reward),
        "evaluation": evaluation,
        "judges": tables.judges(run),
        "domains": tables.shares(evaluation.get("by_domain"), "rate", gate["evaluate"]),
        "text": tables.text(evaluation),
        "safety": tables.safety(evaluation),
        "samples": evaluation.get("samples") or [],
        "extra": extra_evals.extra_evals(run),
        "answers": answers(run),
        "lineage": list(lineage(run)),
        "versions": versions(run),
        "states": {kind: state(run.latest(kind)) for kind in STAGES},
        "words": WORDS,
    }


def outcome(run: RunRecord, summary: dict[str, Any]) -> str:
    """The outcome of the run in one sentence."""
    evaluation = run.result("evaluate")
    if accuracy := _accuracy(evaluation):
        return f"{accuracy}; KL {number(summary['kl_per_prompt'], 2)} nats per prompt."
    if run.lacks_judge():
        return _without_judge(summary)
    reason = undecided_reason(judge_of(evaluation), run.recipe.evaluate.max_unjudged) if evaluation else ""
    if reason:
        return f"The gate evaluate is UNDECIDED: {reason}."
    win = summary["win_rate_policy_over_sft"]
    if not win or not is_number(win["rate"]):
        done = [tables.title(stage.name) for stage in run.stages.values() if stage.done]
        return f"The policy has not been evaluated yet; finished: {', '.join(done).lower() or 'nothing'}."
    share = f"{percent(win['rate'])} of {win['n']} held-out prompts (95\u00a0% interval {percents(win['interval'])})"
    judge = run.evaluation_judge()
    rest = f", by {judge}" if judge else ""
    rest += f"; KL {number(summary['kl_per_prompt'], 2)} nats per prompt" if is_number(summary["kl_per_prompt"]) else ""
    clear = not _may_be_chance(win)
    share += _at_equal_length(summary["length_controlled_win_rate"] or {}, clear) + rest
    if not clear:
        return f"No clear preference: the policy wins over SFT on {share}."
    verdict = "wins over SFT on" if win["rate"] > 0.5 else "is worse than SFT: it wins on only"
    return f"The policy {verdict} {share}."


def _at_equal_length(win: Mapping[str, Any], clear: bool) -> str:
    """The win rate at equal length, and whether length may explain a clear win rate."""
    if not is_number(win.get("rate")):
        return ""
    if clear and _may_be_chance(win):
        return f", but {percent(win['rate'])} ({percents(win['interval'])}) at equal length, which may be chance"
    return f", {percent(win['rate'])} at equal length"


def _may_be_chance(win: Mapping[str, Any]) -> bool:
    interval = win.get("interval")
    return is_interval(interval) and interval[0] <= 0.5 <= interval[1]


def _accuracy(evaluation: dict[str, Any]) -> str:
    """The change of the accuracy, where answers are checked; empty elsewhere."""
    accuracy = evaluation.get("accuracy") or {}
    rise = accuracy.get("rise") or {}
    if not rise.get("n"):
        return ""
    low, high = rise["interval"]
    change = "rose" if rise["rate"] > 0 else "fell"
    if low <= 0 <= high:
        change = "has not clearly changed"
    before, after = percent(accuracy["sft"]["rate"], 1), percent(accuracy["policy"]["rate"], 1)
    interval = f"{100 * low:+.1f} to {100 * high:+.1f}"
    points = f"{100 * rise['rate']:+.1f} points, 95\u00a0% interval {interval}".replace("-", MINUS)
    text = f"Accuracy by {accuracy['source']} on {rise['n']} held-out prompts {change}: {before} before, {after} after"
    return f"{text} ({points})"


def _without_judge(summary: dict[str, Any]) -> str:
    """The outcome without an evaluation judge: that there is none, and what was measured."""
    measured = (
        [f"KL {number(summary['kl_per_prompt'], 2)} nats per prompt"] if is_number(summary["kl_per_prompt"]) else []
    )
    if is_number(summary["reward_accuracy"]):
        measured.append(f"reward model right on {percent(summary['reward_accuracy'])} of held-out comparisons")
    also = f" Also measured: {', '.join(measured)}." if measured else ""
    return f"No evaluation judge fits this data: the gates sft and evaluate are UNDECIDED.{also}"


def _interventions(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A sentence for each intervention, in their order."""
    for row in rows:
        step = f"After step {row['step'] + 1} a remedy"
        if row.get("stop"):
            yield f"{step} stopped training ({row['finding']}): {row['reason']}."
            continue
        knob = f"{row['knob']} from {number(row['from'])} to {number(row['to'])}"
        effect = {None: "", True: " It helped.", False: " It did not help."}[row.get("helped")]
        yield f"{step} changed {knob} ({row['finding']}): {row['reason']}.{effect}"


def notices(run: RunRecord, verdicts: list[Verdict]) -> Iterator[tuple[str, str]]:
    """(tone, text) of notices that come before the numbers."""
    if run.lacks_judge():
        yield "undecided", f"{NO_JUDGE.capitalize()}: {NO_JUDGE_REASON}. Instead, {NO_JUDGE_FIX}."
    labels = simulation(run)
    if labels:
        yield "caution", labels
    if run.evaluation_judge() == rubric.NAME:
        yield "caution", RUBRIC_CAVEAT
    for verdict in verdicts:
        if verdict.verdict in ("FAIL", "UNDECIDED"):
            tone, word = ("fail", "failed") if verdict.verdict == "FAIL" else ("undecided", "is undecided")
            gate = (verdict.gate if verdict.gate != "sft" else "SFT") + (
                " gate (it only warns)" if verdict.action == "warn" else " gate"
            )
            note = f" {verdict.note[0].upper()}{verdict.note[1:].rstrip('.')}." if verdict.note else ""
            measured = (
                f"{percent(verdict.value, 1)} (threshold {percent(verdict.threshold)})."
                if is_number(verdict.value)
                else "nothing was measured."
            )
            yield tone, f"The {gate} {word}: {measured}{note}"
    stopped = run.result("policy").get("stopped")
    if stopped:
        yield "undecided", f"Policy optimization ended early: {stopped}."
    for sentence in _interventions(run.result("policy").get("interventions") or []):
        yield "caution", sentence
    if run.waiting_for:
        yield "caution", f"The run is waiting for: {run.waiting_for}."
    for finding in run.findings:
        if finding.get("severity") in ("critical", "error"):
            yield "fail", _sentences(finding)


def warnings(run: RunRecord) -> list[str]:
    """Warnings as sentences; the page folds long lists."""
    findings = [
        finding
        for finding in run.findings
        if finding.get("severity") == "warning" and finding.get("code") != NO_JUDGE_CODE
    ]
    return list(dict.fromkeys(map(_sentences, findings)))


def _sentences(finding: dict[str, Any]) -> str:
    """Evidence, cause and remedy as sentences."""
    parts = [str(finding[key]).rstrip(".") for key in ("evidence", "cause", "remedy") if finding.get(key)]
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in parts)


def simulation(run: RunRecord) -> str:
    """A notice on simulated labels; empty if people or judges labelled, or no stage needs labels."""
    if run.stages and not run.latest("label"):
        return ""
    result = run.result("label")
    if not result.get("simulated", run.recipe.preferences.raters == "simulated"):
        return ""
    noise = run.setting("label", "preferences", "noise")
    kinds = set((result.get("raters") or {}).values())
    who = "Labels by a simulated rater" if kinds <= {"simulated"} else "Labels partly by a simulated rater"
    unfit = any(finding.get("code") == "simulated-labels" for finding in run.findings)
    made_for = " It was made for the bundled recipes and does not fit this data." if unfit else ""
    return f"{who}: the written rubric with {percent(noise)} noise.{made_for}"


def tiles(summary: dict[str, Any]) -> list[Tile]:
    """The key numbers that have been measured."""
    numbers = []
    for key, name in (("win_rate_policy_over_sft", "policy over SFT"), ("win_rate_sft_over_base", "SFT over base")):
        win = summary[key]
        if win and is_number(win["rate"]):
            numbers.append(Tile(percent(win["rate"]), name, f"{percents(win['interval'])}, n\u00a0=\u00a0{win['n']}"))
    equal = summary["length_controlled_win_rate"]
    if equal and is_number(equal["rate"]):
        numbers.insert(1, Tile(percent(equal["rate"]), "at equal length", percents(equal["interval"])))
    if is_number(summary["reward_accuracy"]):
        numbers.append(
            Tile(
                percent(summary["reward_accuracy"]),
                "reward model",
                f"length alone {percent(summary['length_only_accuracy'])}",
            )
        )
    if is_number(summary["kl_per_prompt"]):
        wide = summary["kl_interval"]
        ends = f"{wide[0]:.2f} to {wide[1]:.2f} nats".replace("-", MINUS) if is_interval(wide) else "nats"
        numbers.append(Tile(number(summary["kl_per_prompt"], 2), "KL per prompt", ends))
    if summary["seconds"]:
        numbers.append(
            Tile(duration(summary["seconds"], brief=True), "all stages", f"peak {size(summary['peak_memory_bytes'])}")
        )
    return numbers


def answers(run: RunRecord) -> list[dict[str, Any]]:
    """The held-out answers, each with the winner."""
    winners = {"policy": "policy wins", "sft": "SFT wins", "tie": "tie"}
    return [row | {"won": winners.get(str(row.get("choice")), "not judged")} for row in run.answers()]


def state(stage: StageRecord | None) -> str:
    """The state of a stage, in words."""
    if stage is None or not stage.started:
        return "has not run yet"
    if stage.done:
        return "done"
    return "is not finished; the charts show the metrics logged to date" if stage.metrics else "is not finished yet"


def lineage(run: RunRecord) -> Iterator[dict[str, Any]]:
    """Inputs, time and memory of each stage, with what was planned before it began."""
    progress = read_progress(run.folder)
    planned = {row.name: row for row in progress.stages} if progress else {}
    for stage in run.stages.values():
        if stage.done:
            m = stage.manifest
            inputs = ", ".join(
                f"{name} {str(fingerprint)[:12]}" for name, fingerprint in (m.get("inputs") or {}).items()
            )
            yield {
                "title": tables.title(stage.name),
                "fingerprint": stage.fingerprint if len(stage.fingerprint) <= 16 else stage.fingerprint[:16] + "…",
                "whole": stage.fingerprint,
                "inputs": inputs or "recipe and data",
                "seed": m.get("seed"),
                "finished": moment(m.get("finished_at")),
                "seconds": duration(m.get("seconds")),
                "memory": size(m.get("peak_memory_bytes")),
                **_planned(planned.get(stage.name)),
                "workers": workers(m),
            }


def _planned(row: StageProgress | None) -> dict[str, str]:
    """Planned time with its range, and planned memory, of a stage that computes."""
    if row is None or row.planned is None or not row.planned.high:
        return {"planned": "", "planned_memory": ""}
    return {"planned": spans(row.planned), "planned_memory": size(row.planned_memory)}


def workers(manifest: Mapping[str, Any]) -> str:
    """How many workers a stage had on which devices and hosts, and how often it was restarted."""
    rows = manifest.get("workers") or []
    restarts = len(manifest.get("restarts") or [])
    text = "1 process"
    if rows:
        kinds = sorted({str(row.get("device")).partition(":")[0] for row in rows})
        hosts = len({row.get("host") for row in rows})
        text = f"{len(rows)} on {'GPUs' if kinds == ['cuda'] else ' and '.join(kinds)}"
        text += f" of {hosts} hosts" if hosts > 1 else ""
    return text + (f"; {restarts} restart{'s' * (restarts > 1)}" if restarts else "")


def versions(run: RunRecord) -> list[tuple[str, str]]:
    """Versions of packages and Python; more than one if stages differ."""
    by_package: dict[str, dict[str, None]] = {}
    for stage in run.stages.values():
        for package, version in (stage.manifest.get("versions") or {}).items():
            by_package.setdefault(package, {})[str(version)] = None
    return [(package, ", ".join(several)) for package, several in sorted(by_package.items())]


WORDS = (
    (
        "SFT",
        "supervised fine-tuning: the base model trained on demonstrations. The policy starts from it and is compared "
        "with it.",
    ),
    ("Policy", "the model that policy optimization trained, at the chosen checkpoint."),
    (
        "Win rate",
        "the share of held-out prompts on which the evaluation judge prefers one model's answer; a tie counts half.",
    ),
    (
        "Evaluation judge",
        "who judges win rates: people, an AI judge, a held-out reward model or a function; for the bundled recipes' "
        "data a written rubric.",
    ),
    ("At equal length", "the win rate of answers of equal length (a logistic fit in the length difference)."),
    (
        "95 % interval",
        "contains the true value in 95 of 100 repetitions with other prompts (Wilson interval or bootstrap).",
    ),
    (
        "Gate",
        "a threshold between stages: PASS it is exceeded, FAIL it is not, UNDECIDED there is not enough evidence.",
    ),
    (
        "KL, nats per prompt",
        "distance of the policy from SFT: the log-probability ratio of its own answers, summed over tokens, "
        "averaged over prompts.",
    ),
    (
        "k1, k3",
        "two estimators of KL: k1 the log ratio; k3 (ratio − 1 − log ratio), never negative and of lower variance.",
    ),
    (
        "Best of n",
        "sample n answers from SFT, take the one that a perfect judge prefers: wins n/(n+1) at ln n − (n−1)/n "
        "nats, close to the maximum.",
    ),
    ("Reward model", "a model trained on the labels to score an answer; the policy is trained against its score."),
    ("Agreement ceiling", "the highest accuracy that is possible given the disagreement between raters."),
    ("Calibration", "whether a confidence of 80 % is right 80 % of the time."),
    ("Entropy", "the uncertainty of the policy about its next token; at zero it always gives the same answer."),
    (
        "Explained variance",
        "the share of the variance of returns that the critic predicts; 0 is no better than the mean.",
    ),
    (
        "Distinct words, pairs, triples",
        "distinct n-grams of tokens over all n-grams of the answers: lower is less diverse.",
    ),
)
