"""What the report page says, in the order it says it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from towpath import __version__
from towpath.evals.evaluator import NO_JUDGE, NO_JUDGE_CODE, NO_JUDGE_FIX, NO_JUDGE_REASON, RUBRIC_CAVEAT
from towpath.records import Verdict
from towpath.run.record import STAGES, RunRecord, StageRecord
from towpath.store.jsonl import is_interval, is_number
from towpath.view.format import MINUS, duration, moment, number, percent, percents, size
from towpath.view.report import extra_evals, frontier, tables, training_charts

Page = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tile:
    """One key number with what it is and how sure it is."""

    value: str
    name: str
    more: str = ""


def page(run: RunRecord, verdicts: list[Verdict], summary: dict[str, Any], name: str) -> Page:
    """Everything the template shows."""
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
        "policy": training_charts.policy(run),
        "sft": training_charts.sft(run),
        "reward": training_charts.reward(run),
        "labels": tables.labels(run.result("label")) if run.result("label") else [],
        "reward_model": tables.reward_model(reward, gate["reward"]),
        "strengths": tables.shares(reward.get("by_strength"), "accuracy", gate["reward"]),
        "reward_domains": tables.shares(reward.get("by_domain"), "accuracy", gate["reward"]),
        "reward_result": reward,
        "calibration": tables.calibration(reward),
        "evaluation": evaluation,
        "domains": tables.shares(evaluation.get("by_domain"), "rate", gate["evaluate"]),
        "text": tables.text(evaluation),
        "safety": tables.safety(evaluation),
        "samples": evaluation.get("samples") or [],
        "beyond": extra_evals.told(run),
        "answers": answers(run),
        "lineage": list(lineage(run)),
        "versions": versions(run),
        "states": {kind: state(run.latest(kind)) for kind in STAGES},
        "words": WORDS,
    }


def outcome(run: RunRecord, summary: dict[str, Any]) -> str:
    """What came of the run, in one sentence."""
    if run.lacks_judge():
        return _without_judge(summary)
    win = summary["win_rate_policy_over_sft"]
    if not win or not is_number(win["rate"]):
        done = [tables.title(stage.name) for stage in run.stages.values() if stage.done]
        return f"The policy has not been evaluated yet; finished so far: {', '.join(done).lower() or 'nothing'}."
    of = f"{percent(win['rate'])} of {win['n']} held-out prompts (95\u00a0% interval {percents(win['interval'])})"
    equal = (summary["length_controlled_win_rate"] or {}).get("rate")
    rest = f", {percent(equal)} at equal length" if is_number(equal) else ""
    rest += f"; KL {number(summary['kl_per_prompt'], 2)} nats per prompt" if is_number(summary["kl_per_prompt"]) else ""
    if is_interval(win["interval"]) and win["interval"][0] <= 0.5 <= win["interval"][1]:
        return f"No clear preference: the policy wins over SFT on {of}{rest}."
    by = " by the written rubric" if run.evaluation_judge() == "rubric" else ""
    return f"The policy {'wins over' if win['rate'] > 0.5 else 'is worse than'} SFT{by}{_on(win['rate'], of)}{rest}."


def _without_judge(summary: dict[str, Any]) -> str:
    """The outcome where no win rate could be judged: that comes first, then what was measured all the same."""
    measured = (
        [f"KL {number(summary['kl_per_prompt'], 2)} nats per prompt"] if is_number(summary["kl_per_prompt"]) else []
    )
    if is_number(summary["reward_accuracy"]):
        measured.append(f"reward model right on {percent(summary['reward_accuracy'])} of held-out comparisons")
    more = f" Measured all the same: {', '.join(measured)}." if measured else ""
    return f"No evaluation judge fits this data: the gates sft and evaluate are UNDECIDED.{more}"


def _on(rate: float, of: str) -> str:
    return f" on {of}" if rate > 0.5 else f": it wins on only {of}"


def _turns(turns: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """What remedies did, in the order they did it."""
    for turn in turns:
        if turn.get("stop"):
            yield (
                "caution",
                f"After step {turn['step'] + 1} a remedy ended training ({turn['finding']}): {turn['reason']}.",
            )
            continue
        helped = turn.get("helped")
        came = "" if helped is None else " It helped." if helped else " It did not help."
        knob = f"{turn['knob']} from {number(turn['from'])} to {number(turn['to'])}"
        yield (
            "caution",
            f"After step {turn['step'] + 1} a remedy turned {knob} ({turn['finding']}): {turn['reason']}.{came}",
        )


def notices(run: RunRecord, verdicts: list[Verdict]) -> Iterator[tuple[str, str]]:
    """(tone, text) of what a reader must know before the numbers."""
    if run.lacks_judge():
        yield "undecided", f"{NO_JUDGE.capitalize()}: {NO_JUDGE_REASON}. Instead, {NO_JUDGE_FIX}."
    labels = simulation(run)
    if labels:
        yield "caution", labels
    if run.evaluation_judge() == "rubric":
        yield "caution", RUBRIC_CAVEAT
    for verdict in verdicts:
        if verdict.verdict in ("FAIL", "UNDECIDED"):
            tone, word = ("fail", "did not open") if verdict.verdict == "FAIL" else ("undecided", "is undecided")
            gate = (verdict.gate if verdict.gate != "sft" else "SFT") + (
                " gate (it only warns)" if verdict.action == "warn" else " gate"
            )
            note = f" {verdict.note[0].upper()}{verdict.note[1:].rstrip('.')}." if verdict.note else ""
            measured = (
                f"{percent(verdict.value, 1)} against {percent(verdict.threshold)}."
                if is_number(verdict.value)
                else "no win rate was measured."
            )
            yield tone, f"The {gate} {word}: {measured}{note}"
    stopped = run.result("policy").get("stopped")
    if stopped:
        yield "undecided", f"Policy optimization ended early: {stopped}."
    yield from _turns(run.result("policy").get("interventions") or [])
    if run.waiting_for:
        yield "caution", f"The run waits: {run.waiting_for}."
    for finding in run.findings:
        if finding.get("severity") in ("critical", "error"):
            yield "fail", _sentences(finding)


def warnings(run: RunRecord) -> list[str]:
    """Findings that are worth knowing and endanger nothing; the page folds them where they are many."""
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
    """What to say where labels are simulated; empty where people or judges gave them."""
    result = run.result("label")
    if not result.get("simulated", run.recipe.preferences.raters == "simulated"):
        return ""
    noise = run.setting("label", "preferences", "noise")
    kinds = set((result.get("raters") or {}).values())
    who = "Labels by a simulated rater" if kinds <= {"simulated"} else "Labels partly by a simulated rater"
    made_for = " It was made for the bundled recipes and knows nothing of this data." if run.lacks_judge() else ""
    return f"{who}: the written rubric with {percent(noise)} noise.{made_for}"


def tiles(summary: dict[str, Any]) -> list[Tile]:
    """The key numbers that are known."""
    found = []
    for key, name in (("win_rate_policy_over_sft", "policy over SFT"), ("win_rate_sft_over_base", "SFT over base")):
        win = summary[key]
        if win and is_number(win["rate"]):
            found.append(Tile(percent(win["rate"]), name, f"{percents(win['interval'])}, n\u00a0=\u00a0{win['n']}"))
    equal = summary["length_controlled_win_rate"]
    if equal and is_number(equal["rate"]):
        found.insert(1, Tile(percent(equal["rate"]), "at equal length", percents(equal["interval"])))
    if is_number(summary["reward_accuracy"]):
        found.append(
            Tile(
                percent(summary["reward_accuracy"]),
                "reward model",
                f"length alone {percent(summary['length_only_accuracy'])}",
            )
        )
    if is_number(summary["kl_per_prompt"]):
        wide = summary["kl_interval"]
        ends = f"{wide[0]:.2f} to {wide[1]:.2f} nats".replace("-", MINUS) if is_interval(wide) else "nats"
        found.append(Tile(number(summary["kl_per_prompt"], 2), "KL per prompt", ends))
    if summary["seconds"]:
        found.append(
            Tile(duration(summary["seconds"], brief=True), "all stages", f"peak {size(summary['peak_memory_bytes'])}")
        )
    return found


def answers(run: RunRecord) -> list[dict[str, Any]]:
    """The held-out answers with who won each, in words."""
    said = {"policy": "policy wins", "sft": "SFT wins", "tie": "tie"}
    return [row | {"won": said.get(str(row.get("choice")), "not judged")} for row in run.answers()]


def state(stage: StageRecord | None) -> str:
    """Where a stage stands, in words."""
    if stage is None or not stage.started:
        return "has not run yet"
    return (
        "done"
        if stage.done
        else "is not finished; these are its numbers so far"
        if stage.metrics
        else "is not finished yet"
    )


def lineage(run: RunRecord) -> Iterator[dict[str, Any]]:
    """Where each stage came from and what it cost."""
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
            }


def versions(run: RunRecord) -> list[tuple[str, str]]:
    """Versions of everything that had a part; more than one where stages differ."""
    found: dict[str, dict[str, None]] = {}
    for stage in run.stages.values():
        for package, version in (stage.manifest.get("versions") or {}).items():
            found.setdefault(package, {})[str(version)] = None
    return [(package, ", ".join(several)) for package, several in sorted(found.items())]


WORDS = (
    (
        "SFT",
        "supervised fine-tuning: the base model trained on demonstrations. The policy starts from it and is compared "
        "with it.",
    ),
    ("Policy", "the model that policy optimization made, at the checkpoint that was kept."),
    (
        "Win rate",
        "the share of held-out prompts on which the evaluation judge finds one model's answer better; a tie counts "
        "half.",
    ),
    (
        "Evaluation judge",
        "who decides win rates: the written rubric for the bundled recipes' data; for other data there is none yet.",
    ),
    (
        "At equal length",
        "the win rate two answers of the same length would have, so that being longer earns nothing (a logistic fit "
        "in the length gap).",
    ),
    (
        "95 % interval",
        "drawn so that it holds the true value in 95 of 100 repetitions with other prompts (Wilson's, or prompts "
        "drawn again).",
    ),
    (
        "Gate",
        "a threshold between stages: PASS it is exceeded, FAIL it is not, UNDECIDED the evidence is too thin to say.",
    ),
    (
        "KL, nats per prompt",
        "how far the policy has moved from SFT: the log-probability ratio of its own answers, summed over tokens, "
        "averaged over prompts.",
    ),
    (
        "k1, k3",
        "two estimators of KL: k1 the plain log ratio; k3 (ratio − 1 − log ratio), never negative and steadier.",
    ),
    (
        "Best of n",
        "draw n answers from SFT, keep the one a perfect judge likes best: wins n/(n+1) at ln n − (n−1)/n nats, "
        "close to the most there is.",
    ),
    ("Reward model", "a model trained on the labels to score an answer; the policy is trained against its score."),
    ("Agreement ceiling", "the accuracy that the raters' disagreement with each other leaves within reach."),
    ("Calibration", "whether a confidence of 80 % is right 80 % of the time."),
    ("Entropy", "how undecided the policy is about its next token; a fall to zero means it says one thing only."),
    (
        "Explained variance",
        "the share of the variation in returns that the critic foresees; 0 is no better than the mean.",
    ),
    (
        "Different words, pairs, triples",
        "different n-grams of tokens over all n-grams of the answers: lower is more alike.",
    ),
)
