"""The doctor on recorded logs of TRL and transformers trainers: tiny models with and without faults."""

import json
from typing import Any

import pytest

from benchmarks.foreign import recorded
from benchmarks.foreign.__main__ import diagnose_half, summary
from benchmarks.foreign.runs import FAULTS, HEALTHY
from towpath.health.diagnosis import diagnose
from towpath.view import doctor
from towpath.view.foreign.log import Log, RawLog, translate


@pytest.fixture(scope="module")
def results() -> dict[str, list[dict[str, Any]]]:
    return {half: diagnose_half(half) for half in recorded.HALVES}


def log(run: str, variant: int) -> Log:
    """The recorded log of a run."""
    states = (
        state
        for half in recorded.HALVES
        for named, number, state in recorded.logs(half)
        if (named.name, number) == (run, variant)
    )
    state = next(states)
    return translate(RawLog(run, state["log_history"], {"max_steps": state["max_steps"]}))


@pytest.mark.parametrize("half", recorded.HALVES)
def test_recorded_faults_are_in_the_first_two_findings_and_healthy_runs_have_no_critical_finding(
    results, half: str
) -> None:
    scores = summary(results[half])
    assert scores["faults"] >= 20
    assert scores["share"] >= 0.9, [r for r in results[half] if r["expects"] and not r["named"]]
    assert scores["healthy"] >= 8
    assert scores["healthy_with_critical"] == 0, [r for r in results[half] if not r["expects"] and r["critical"]]


def test_every_run_is_recorded_twice_and_split_by_the_manifest() -> None:
    for half in recorded.HALVES:
        for run, variant, _ in recorded.logs(half):
            assert recorded.half_of(run, variant) == half
    counted = [run.name for half in recorded.HALVES for run, variant, _ in recorded.logs(half) if variant < 2]
    assert sorted(counted) == sorted(2 * [run.name for run in (*FAULTS, *HEALTHY)])


def test_healthy_runs_have_no_critical_finding_at_any_step() -> None:
    """Diagnoses after each log, as in the callback."""
    healthy = [log for half in recorded.HALVES for log in recorded.logs(half) if not log[0].codes]
    assert len(healthy) >= 16
    for run, variant, state in healthy:
        history = translate(RawLog(run.name, state["log_history"], {"max_steps": state["max_steps"]})).history
        for step in range(2, history.steps, 3):
            critical = [finding.code for finding in diagnose(history.until(step)) if finding.severity == "critical"]
            assert critical == [], f"{run.name} {variant} after step {step}"


@pytest.mark.parametrize(
    ("run", "cause", "consequences"),
    [
        ("grpo rate x100", "learning-rate-high", {"truncated", "kl-rising"}),
        ("grpo length paid", "length-hacking", {"truncated"}),
        ("grpo constant reward", "reward-constant", {"gradient-zero"}),
        ("reward swapped labels", "labels-swapped", {"reward-overfit", "overfit"}),
    ],
)
def test_consequences_come_after_their_cause(run: str, cause: str, consequences: set[str]) -> None:
    findings = [[finding.code for finding in doctor.diagnose_log(log(run, variant)).findings] for variant in (0, 1)]
    assert all(codes[0] == cause for codes in findings)
    assert consequences & {code for codes in findings for code in codes[1:]}


def test_packed_log_round_trip() -> None:
    rows = [{"loss": 1.0, "step": 1, "epoch": 0.1}, {"eval_loss": 2.0, "eval_runtime": 0.3, "step": 1}]
    state = {"run": "sft", "variant": 0, "max_steps": 1, "ended": "", "log_history": rows}
    unpacked = recorded.unpacked(json.loads(json.dumps(recorded.packed(state))))
    assert unpacked == {"max_steps": 1, "log_history": [{"loss": 1.0, "step": 1}, {"eval_loss": 2.0, "step": 1}]}
