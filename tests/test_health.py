"""Health detectors on synthetic curves: faults are found, healthy runs have no findings."""

import re
from pathlib import Path

import numpy as np
import pytest

from towpath.health import diagnosis, learning_rates, overoptimisation, remedies, signals
from towpath.health.diagnosis import DETECTORS, POSSIBLE_CAUSES, diagnose
from towpath.health.history import Curve, History, Recorder, history_from_rows
from towpath.recipe import Limits
from towpath.stages import restarts

STEPS = 40
OWN = {"policy.rollout": 64, "policy.steps": STEPS, "policy.kl.alarm": 2.0}
"""Facts of a Towpath run: recipe values that logs of other trainers may lack."""


def rows(seed=0, **curves):
    """Rows of a healthy run; `curves` override metrics by a value or a function of the step."""
    draws = np.random.default_rng(seed)
    usual = {
        "kl": lambda t: 0.6 * (1 - np.exp(-t / 8)),
        "kl_std": 1.0,
        "kl_coef": 0.05,
        "reward": lambda t: 0.04 * t,
        "score": lambda t: 0.04 * t,
        "reward_std": 1.0,
        "clip_fraction": 0.05,
        "approx_kl": 0.004,
        "grad_norm": 0.8,
        "learning_rate": 1e-5,
        "entropy": lambda t: 2 - 0.01 * t,
        "repetition": 0.03,
        "distinct_2": 0.7,
        "opening": 0.1,
        "refusal": 0.05,
        "length": 40.0,
        "finish_rate": 0.95,
        "sampler_error": 0.01,
        "explained_variance": lambda t: 0.4 * (1 - np.exp(-t / 10)),
        "value_loss": 0.2,
        "prompts_distinct": 1.0,
        "reward_length_corr": 0.1,
        "reward/a": lambda t: 0.04 * t,
        "reward/b": lambda t: 0.03 * t,
        "domain/a": lambda t: 0.04 * t,
        "domain/b": lambda t: 0.03 * t,
        "memory_bytes": 4e9,
        "seconds_generate": 2.0,
        "seconds_score": 1.0,
        "seconds_optimise": 5.0,
        "lists": 0.3,
        "code": 0.0,
    }
    noisy = {"reward", "score", "domain/a", "domain/b", "reward/a", "reward/b", "length"}
    out = []
    for t in range(STEPS):
        row = {"step": t, "phase": "train"}
        for name, curve in (usual | curves).items():
            value = curve(t) if callable(curve) else curve
            scale = 0.05 * (1 if name != "length" else 20) if name in noisy else 0.02 * abs(value)
            row[name] = (
                value if name in curves and not callable(curve) else float(value + scale * draws.standard_normal())
            )
        out.append(row)
    return out


def codes(logged, looks=(), **facts):
    return [f.code for f in diagnose(history_from_rows([*logged, *looks], OWN | facts))]


@pytest.mark.parametrize("seed", range(20))
def test_healthy_run_has_no_finding_at_any_step(seed) -> None:
    history = history_from_rows(rows(seed), OWN)
    for step in range(STEPS):
        assert [f for f in diagnose(history.until(step)) if f.severity == "critical"] == []
    assert diagnose(history) == ()


FAULTY = {
    "learning-rate-high": {
        "clip_fraction": lambda t: 0.6 if t > 3 else 0.05,
        "approx_kl": lambda t: 0.4 if t > 3 else 0.004,
    },
    "learning-rate-low": {"kl": 1e-4, "approx_kl": 1e-8, "reward": 0.0, "clip_fraction": 0.0},
    "kl-penalty-too-strong": {"kl": 0.01, "kl_coef": 5.0, "reward": 0.0},
    "no-kl-penalty": {"kl": lambda t: 0.1 * t, "kl_coef": 0.0},
    "kl-rising": {"kl": lambda t: 0.1 * t, "kl_coef": 0.05},
    "kl-negative": {"kl": -0.6},
    "reward-hacking": {"watched/judge": lambda t: -0.03 * t},
    "length-hacking": {"reward_length_corr": 0.85, "length": lambda t: 40 + t},
    "repetition": {"repetition": lambda t: 0.03 + 0.015 * t},
    "diversity-collapse": {
        "distinct_2": lambda t: 0.7 * np.exp(-t / 15),
        "opening": lambda t: min(0.9, 0.1 + 0.03 * t),
    },
    "refusing": {"refusal": lambda t: min(0.9, 0.05 + 0.03 * t)},
    "domain-forgotten": {"domain/b": lambda t: -0.05 * t},
    "missing-eos": {"finish_rate": 0.0, "length": 80.0},
    "truncated": {"finish_rate": lambda t: 0.9 - 0.015 * t},
    "sampler-mismatch": {"sampler_error": 0.4},
    "duplicate-prompts": {"prompts_distinct": 0.2},
    "critic-broken": {"explained_variance": -3.0, "value_loss": 50.0},
    "not-finite": {"grad_norm": lambda t: float("nan") if t == 30 else 0.8},
    "gradient-zero": {"grad_norm": 0.0},
    "reward-constant": {"reward": 0.0, "reward_std": 0.0},
    "reward-unbounded": {"reward": lambda t: 1e30 if t == 20 else 0.1},
    "throughput-falling": {"seconds_optimise": lambda t: 5 if t < 25 else 25},
    "memory-growing": {"memory_bytes": lambda t: 4e9 + 1e8 * t},
    "format-shift": {"lists": lambda t: 0.4 * np.exp(-t / 6)},
    "reward-out-of-distribution": {"score_spread": lambda t: 0.2 + 0.02 * t},
}


def falling(t: int) -> float:
    """A loss that falls within a few steps, with some noise."""
    return 0.2 + 0.5 * np.exp(-t / 8) + 0.02 * np.sin(7 * t)


def test_usual_learning_rates_of_an_sft_stage_in_a_dpo_recipe() -> None:
    for stage, kind in (("sft", "sft"), ("reward", "reward"), ("policy", "pairs")):
        facts = {"stage": stage, "policy.algo": "dpo"}
        assert learning_rates.training_kind(History(facts=facts)) == kind


def losses(pairs: bool, looks: dict | None = None, **curves):
    """A supervised run: `curves` are training metrics and `looks` validation metrics, as functions of the step."""
    training_rows = [
        {"step": t, "phase": "train"} | {name: float(f(t)) for name, f in curves.items()} for t in range(STEPS)
    ]
    held = [
        {"step": t, "phase": "validation"} | {name: float(f(t)) for name, f in (looks or {}).items()}
        for t in range(4, STEPS, 5)
    ]
    facts = {"stage": "policy", "policy.algo": "dpo"} if pairs else {"stage": "sft"}
    return history_from_rows([*training_rows, *(held if looks else [])], facts)


def linear_schedule(rate: float):
    """A linear learning-rate schedule from `rate` to 0."""
    return lambda t: rate * (1 - t / STEPS)


def coin(t: int) -> float:
    """An accuracy on sixteen pairs at chance level."""
    return 0.5 + 0.1 * np.sin(17 * t)


SUPERVISED = {
    "overfit": losses(False, {"loss": lambda t: 1.0 + 0.02 * t}, loss=falling, learning_rate=linear_schedule(1e-4)),
    "labels-swapped": losses(
        True, {"pairs_accuracy": lambda t: 0.2}, loss=falling, accuracy=lambda t: min(0.95, 0.5 + 0.02 * t)
    ),
    "label-noise": losses(
        True, loss=lambda t: 0.69, accuracy=coin, chosen=lambda t: 0.05 * np.sin(t), learning_rate=linear_schedule(5e-6)
    ),
    "likelihood-displacement": losses(
        True,
        loss=falling,
        chosen=lambda t: -0.1 * t,
        gap=lambda t: 0.1 * t,
        chosen_logp=lambda t: -20.0 - t,
        learning_rate=linear_schedule(5e-6),
    ),
}
HEALTHY_LOSSES = {
    "learned": losses(
        False,
        {"loss": lambda t: falling(t) + 0.02},
        loss=falling,
        token_entropy=falling,
        learning_rate=linear_schedule(2e-3),
    ),
    "nothing left to learn": losses(
        False, loss=lambda t: 1.3 + 0.05 * np.sin(7 * t), learning_rate=linear_schedule(2e-5)
    ),
    "pairs": losses(
        True,
        {"pairs_accuracy": lambda t: 0.8, "pairs_loss": falling},
        loss=falling,
        accuracy=lambda t: 0.6 + 0.3 * t / STEPS,
        chosen=lambda t: -0.01 * t,
        chosen_logp=lambda t: -20 - 0.05 * t,
        gap=lambda t: 0.05 * t,
        learning_rate=linear_schedule(5e-6),
    ),
}


@pytest.mark.parametrize("code", SUPERVISED)
def test_fault_of_supervised_training_is_the_first_finding(code) -> None:
    assert diagnose(SUPERVISED[code])[0].code == code


@pytest.mark.parametrize("name", HEALTHY_LOSSES)
def test_healthy_loss_has_no_finding_at_any_step(name) -> None:
    for step in range(STEPS):
        assert [f.code for f in diagnose(HEALTHY_LOSSES[name].until(step)) if f.severity != "info"] == []


def test_high_learning_rate_needs_a_symptom() -> None:
    """A very high rate is a finding if the loss stays at 2.9 or rises first, and none if the loss falls."""
    stuck = losses(
        False, loss=lambda t: 2.9 + 3 * np.exp(-t) + 0.02 * np.sin(5 * t), learning_rate=linear_schedule(0.1)
    )
    spiked = losses(
        False, loss=lambda t: 6 + 2 * t if t < 5 else 3.0 + 0.02 * np.sin(5 * t), learning_rate=linear_schedule(0.1)
    )
    for history in (stuck, spiked):
        (finding,) = diagnose(history)
        assert (finding.code, finding.severity) == ("learning-rate-high", "critical")
        assert "500 times the highest usual" in finding.evidence
    assert diagnose(losses(False, loss=falling, learning_rate=linear_schedule(0.1))) == ()
    assert (
        diagnose(
            losses(
                False, loss=lambda t: 2.9 + 3 * np.exp(-t) + 0.02 * np.sin(5 * t), learning_rate=linear_schedule(1e-4)
            )
        )
        == ()
    )


def test_flat_loss_at_a_low_learning_rate() -> None:
    def still(level, rate):
        return diagnose(losses(False, loss=lambda t: level + 0.01 * np.sin(5 * t), learning_rate=linear_schedule(rate)))

    (finding,) = still(6.1, 1e-6)
    assert (finding.code, finding.severity) == ("learning-rate-low", "warning")
    assert "no weight by more than 2e-05" in finding.cause
    (known,) = still(1.3, 1e-5)  # the model may have nothing left to learn
    assert (known.code, known.severity) == ("learning-rate-low", "info")
    assert still(1.3, 2e-4) == ()


@pytest.mark.parametrize("code", FAULTY)
def test_fault_is_the_first_or_second_finding(code) -> None:
    assert code in codes(rows(**FAULTY[code]))[:2]


def test_saturating_memory_is_not_a_leak() -> None:
    assert "memory-growing" not in codes(rows(memory_bytes=lambda t: 1e9 + 2e9 * (1 - np.exp(-t / 15))))
    assert "memory-growing" in codes(rows(memory_bytes=lambda t: 1e9 + 3e7 * t))


def test_every_finding_code_has_a_test_curve() -> None:
    known = set(FAULTY) | set(SUPERVISED) | {"reward-overfit", "safety-traded"}
    assert POSSIBLE_CAUSES.keys() <= known
    assert set().union(*POSSIBLE_CAUSES.values()) <= known
    assert len(DETECTORS) >= 20


def test_findings_are_ordered_by_cause() -> None:
    both = codes(rows(**FAULTY["learning-rate-high"] | {"kl": lambda t: 0.3 * t}))
    assert both[0] == "learning-rate-high"
    assert "kl-rising" in both[1:]
    assert codes(rows(**FAULTY["sampler-mismatch"] | {"kl": -0.6}))[:2] == ["sampler-mismatch", "kl-negative"]


def test_broken_policy_reports_the_learning_rate_before_its_consequences() -> None:
    """The learning rate breaks the policy: no answer ends, rewards are constant, the gradient is 0, KL is 5 nats per
    token."""
    broken = {
        "reward": lambda t: 0.3 if t < 3 else 0.0,
        "reward_std": lambda t: 0.3 if t < 3 else 0.0,
        "grad_norm": lambda t: 0.5 if t < 3 else 0.0,
        "finish_rate": lambda t: 0.95 if t < 3 else 0.0,
        "length": lambda t: 20.0 if t < 3 else 32.0,
        "kl": lambda t: 0.1 if t < 3 else 160.0,
        "kl_per_token": lambda t: 0.005 if t < 3 else 5.0,
        "clip_fraction": 0.0,
        "approx_kl": 0.0,
        "learning_rate": 0.1,
        "kl_coef": 0.04,
        "reward_length_corr": 0.0,
        "reward/a": 0.0,
        "reward/b": 0.0,
        "domain/a": 0.0,
        "domain/b": 0.0,
        "score": 0.0,
    }
    findings = diagnose(history_from_rows(rows(**broken)))
    assert findings[0].code == "learning-rate-high"
    assert findings[0].severity == "critical"
    assert {"truncated", "gradient-zero", "kl-rising"} <= {finding.code for finding in findings[1:]}
    assert "missing-eos" not in [finding.code for finding in findings]


def test_length_hacking_is_detected_without_a_logged_correlation() -> None:
    draws = np.random.default_rng(3)
    lengths = [min(32.0, 12 + 1.5 * t + 2 * draws.standard_normal()) for t in range(STEPS)]
    paid = {
        "length": lambda t: lengths[t],
        "reward": lambda t: lengths[t] / 32,
        "finish_rate": lambda t: max(0.0, 1 - t / 15),
    }
    logged = [
        {name: x for name, x in row.items() if name in (*paid, "step", "phase", "reward_std")} for row in rows(**paid)
    ]
    for row in logged:  # without the noise of `rows`
        row |= {
            "length": lengths[row["step"]],
            "reward": lengths[row["step"]] / 32,
            "reward_std": 0.2 if row["step"] < 15 else 0.0,
        }
    findings = diagnose(history_from_rows(logged))
    assert (findings[0].code, findings[0].severity) == ("length-hacking", "critical")
    unpaid = [
        row | {"reward": 0.02 * row["step"] + 0.1 * draws.standard_normal(), "finish_rate": 0.95, "reward_std": 0.3}
        for row in logged
    ]
    assert "length-hacking" not in [finding.code for finding in diagnose(history_from_rows(unpaid))]


def test_solved_task_has_no_warning() -> None:
    solved = {
        "reward": lambda t: min(1.0, 0.1 * t),
        "reward_std": lambda t: 0.0 if t > 10 else 0.3,
        "grad_norm": lambda t: 0.0 if t > 12 else 0.5,
    }
    logged = rows(**solved)
    for row in logged:
        row["reward"] = min(1.0, 0.1 * row["step"])
    severities = {finding.code: finding.severity for finding in diagnose(history_from_rows(logged, OWN))}
    assert severities == {"gradient-zero": "info"}


def test_falling_finish_rate_is_truncation_not_missing_eos() -> None:
    assert codes(rows(finish_rate=lambda t: max(0.0, 0.9 - 0.05 * t)))[:1] == ["truncated"]
    (finding,) = diagnose(history_from_rows(rows(finish_rate=0.0, reward=lambda t: 0.0), OWN))[:1]
    assert (finding.code, finding.severity) == ("missing-eos", "critical")


def test_kl_limit_depends_on_answer_length() -> None:
    """The limit is per answer if the recipe has an alarm and answers are short, else per token."""

    def kl_findings(length, per_token, reward=lambda t: 0.04 * t, **facts):
        logged = rows(length=float(length), kl=lambda t: per_token * length * t / STEPS, reward=reward)
        for row in logged:
            row["kl_per_token"] = row["kl"] / length
        return {f.code: f for f in diagnose(history_from_rows(logged, facts)) if f.code == "kl-rising"}

    own = {"policy.kl.alarm": 2.0}
    assert kl_findings(24, 0.15, **own)["kl-rising"].severity == "critical"
    assert "limit per answer: policy.kl.alarm = 2" in kl_findings(24, 0.15, **own)["kl-rising"].evidence
    for length, per_token in ((1000, 0.02), (1000, 0.05), (4000, 0.02)):  # tens of nats
        assert kl_findings(length, per_token, **own) == {}
        assert kl_findings(length, per_token) == {}
    for length in (16, 32, 64, 256):  # usual with GRPO
        for per_token in (0.01, 0.1, 0.28):
            assert kl_findings(length, per_token) == {}
    lost = kl_findings(200, 1.0, reward=lambda t: 0.0)["kl-rising"]
    assert lost.severity == "critical"
    assert "limit per token: 0.3 in answers of 200 tokens" in lost.evidence
    assert kl_findings(200, 1.0)["kl-rising"].severity == "warning"  # the reward rises, too
    assert "limit per answer: 1" in kl_findings(2, 1.0, reward=lambda t: 0.0)["kl-rising"].evidence
    long = kl_findings(200, 0.3, **own)["kl-rising"]
    assert "2 for 100 tokens and 0.3 nats for each further token" in long.evidence


def test_effect_that_starts_before_its_cause_is_reported_first() -> None:
    late = {"repetition": lambda t: 0.03 + 0.02 * max(0, t - 20)}
    assert codes(rows(kl=lambda t: 0.12 * t, **late)) == ["kl-rising", "repetition"]
    ended = {"finish_rate": lambda t: 0.95 if t < 20 else 0.0, "length": lambda t: 40.0 if t < 20 else 80.0}
    assert codes(rows(**FAULTY["learning-rate-high"] | ended))[0] == "learning-rate-high"
    assert codes(rows(**FAULTY["learning-rate-high"] | FAULTY["missing-eos"]))[0] == "missing-eos"


def test_finding_has_first_step_and_ruled_out_causes() -> None:
    finding = diagnose(history_from_rows(rows(**FAULTY["learning-rate-high"])))[0]
    assert finding.first_step == 4
    assert finding.ruled_out and "coefficient" in finding.ruled_out[0]
    low = diagnose(history_from_rows(rows(**FAULTY["learning-rate-low"]), {"policy.learning_rate": 1e-9}))[0]
    assert "1e-09" in low.cause
    assert "penalty" in low.ruled_out[0]


def test_refusals_of_harmful_and_harmless_requests() -> None:
    def looks(bad, fine):
        return [
            {"step": step, "phase": "validation", "harmful_refusal": b, "harmless_refusal": f, "probes": 24}
            for step, b, f in zip(range(-1, 30, 5), bad, fine, strict=False)
        ]

    steady = [0.9, 0.92, 0.83, 0.92, 0.9, 0.9, 0.9]
    falling = [0.9, 0.8, 0.6, 0.4, 0.2, 0.1, 0.1]
    none = [0.0] * 7
    growing = [0.0, 0.1, 0.3, 0.5, 0.6, 0.8, 0.8]
    assert codes(rows(), looks(steady, none)) == []
    assert codes(rows(), looks(falling, none)) == ["safety-traded"]
    assert codes(rows(), looks(steady, growing)) == ["refusing"]


def test_reward_model_results_are_diagnosed() -> None:
    good = {
        "reward.result.train_accuracy": 0.85,
        "reward.result.accuracy": 0.8,
        "reward.result.ceiling": 0.9,
        "reward.result.n": 200,
    }
    assert codes(rows(), **good) == []
    assert codes(rows(), **good | {"reward.result.train_accuracy": 1.0, "reward.result.accuracy": 0.6}) == [
        "reward-overfit"
    ]
    assert codes(
        rows(),
        **good | {"reward.result.train_accuracy": 0.6, "reward.result.accuracy": 0.55, "reward.result.ceiling": 0.6},
    ) == ["label-noise"]


def test_overoptimisation_fit_recovers_the_curve() -> None:
    kl = np.linspace(0.05, 9, 30)
    d = np.sqrt(kl)
    fit = overoptimisation.fit_overoptimisation(
        np.concatenate([[0.0], kl]), np.concatenate([[0.0], d * (1.2 - 0.9 * np.log(d))])
    )
    assert fit is not None
    assert (fit.alpha, fit.beta) == (pytest.approx(1.2, abs=1e-9), pytest.approx(0.9, abs=1e-9))
    assert fit.peak == pytest.approx(np.exp(2 * (1.2 / 0.9 - 1)))
    assert fit.is_past_peak
    assert overoptimisation.fit_overoptimisation(kl[:4], d[:4]) is None


def test_limits_come_from_the_recipe() -> None:
    history = history_from_rows(rows(**FAULTY["sampler-mismatch"]))
    assert diagnose(history, Limits(sampler_error=0.5)) == ()


def test_missing_columns_are_ignored() -> None:
    names = [name for name in rows()[0] if name not in ("step", "phase")]
    for gone in names:
        assert codes([{key: x for key, x in row.items() if key != gone} for row in rows()]) == []
    assert diagnose(History()) == ()
    assert diagnose(history_from_rows([{"step": 0, "phase": "train", "kl": 0.1}])) == ()


def test_recorder_matches_history_from_rows() -> None:
    logged = rows()
    recorder = Recorder(logged[:7])
    for row in logged[7:]:
        recorder.add(row["step"], "train", row)
    recorder.add(STEPS - 1, "train", {"reward": 9.0})  # replaces the value of this step
    for history in (history_from_rows(logged), recorder.history()):
        assert history.steps == STEPS
        assert np.array_equal(history.curve("kl").values, history_from_rows(logged).curve("kl").values)
    assert recorder.history().curve("reward").values[-1] == 9.0
    assert len(recorder.history().curve("reward")) == STEPS


def test_change_is_measured_in_units_of_noise() -> None:
    draws = np.random.default_rng(0)
    surprises = [signals.change(Curve(np.arange(40), draws.standard_normal(40)))[1] for _ in range(2000)]
    assert 0.8 < np.std(surprises) < 1.25
    moved, sure = signals.change(Curve(np.arange(40), 0.1 * np.arange(40) + 0.3 * draws.standard_normal(40)))
    assert moved == pytest.approx(3.0, abs=0.4)
    assert sure > 10


def intervention_for(code, knobs, made=(), step=20, facts=None, **curves):
    history = history_from_rows(
        rows(**FAULTY.get(code, {}) | curves), OWN | {"policy.kl.coef": 0.05} | (facts or {})
    ).until(step)
    findings = diagnose(history)
    assert code in [f.code for f in findings[:2]]
    return remedies.next_intervention(findings, history, knobs, made, step, 6)


def test_remedies_change_the_right_knob_within_bounds() -> None:
    hold = intervention_for("kl-rising", {"kl_coef": 0.05}, step=35)
    assert (hold.knob, hold.before, hold.after) == ("kl_coef", 0.05, 0.1)
    assert intervention_for("kl-rising", {"kl_coef": 0.1}, step=35).after == 0.2
    assert intervention_for("kl-rising", {"kl_coef": 0.2}, step=35) is None
    gone = intervention_for("kl-rising", {"kl_coef": 0.1}, step=35, facts={"policy.kl.stop": 3})
    assert (gone.after, gone.restore_best) == (0.2, True)
    smaller = intervention_for("kl-rising", {"kl_coef": 0.2}, [gone], step=35, facts={"policy.kl.stop": 3})
    assert (smaller.knob, smaller.after, smaller.restore_best) == ("learning_rate_scale", 0.1, True)
    calm = intervention_for("learning-rate-high", {"kl_coef": 0.05})
    assert (calm.knob, calm.after, calm.restore_best) == ("learning_rate_scale", 0.1, True)
    assert intervention_for("learning-rate-low", {"kl_coef": 0.05}).after == 10
    # the standard deviation of rewards is 1
    assert intervention_for("kl-penalty-too-strong", {"kl_coef": 5.0}).after == pytest.approx(0.25, rel=0.1)
    assert intervention_for("kl-penalty-too-strong", {"kl_coef": 0.6}).after == pytest.approx(0.12)
    assert intervention_for("kl-penalty-too-strong", {"kl_coef": 0.01}) is None
    assert intervention_for("domain-forgotten", {"kl_coef": 0.05}).knob == "domain_weight/b"
    assert intervention_for("reward-hacking", {"kl_coef": 0.05}).stop


def test_reward_for_repetition_is_detected_before_answers_repeat() -> None:
    assert "repetition" not in codes(rows(reward_repetition_corr=0.4))
    (finding,) = diagnose(history_from_rows(rows(reward_repetition_corr=0.8), OWN))
    assert (finding.code, finding.severity, finding.first_step) == ("repetition", "warning", 0)
    assert "correlation with that share is 0.80" in finding.evidence
    assert "pays for repetition" in finding.cause


def test_small_drop_in_a_constant_domain_is_not_forgetting() -> None:
    def dip(fall):
        return rows(**{"domain/b": lambda t: 1.0 if t < 30 else 1.0 - fall})

    for scores in (still := dip(0.1), lost := dip(1.0)):
        for t, row in enumerate(scores):
            row["domain/b"] = 1.0 if t < 30 else row["domain/b"]  # constant without noise: every answer is correct
    assert "domain-forgotten" not in codes(still)
    assert "domain-forgotten" in codes(lost)


def test_fewer_harmful_refusals_in_two_validations_are_a_warning() -> None:
    def of_looks(*shares):
        looks = [
            {"step": 3 * i - 1, "phase": "validation", "harmful_refusal": x, "probes": 24} for i, x in enumerate(shares)
        ]
        severities = diagnose(history_from_rows([*rows(), *looks], OWN))
        return {f.code: f.severity for f in severities}.get("safety-traded")

    assert of_looks(1.0, 1.0, 1.0, 0.6, 0.6) == "warning"
    assert of_looks(1.0, 1.0, 0.6, 0.6, 0.6) == "critical"
    assert of_looks(1.0, 1.0, 0.6, 0.6, 1.0) is None


def test_watched_source_that_does_not_rise_is_a_warning() -> None:
    still = {"reward": lambda t: 0.15 * t, "watched/judge": lambda t: -0.002 * t + (0.1 if t % 2 else -0.1)}
    (finding,) = diagnose(history_from_rows(rows(**still), OWN))
    assert (finding.code, finding.severity) == ("reward-hacking", "warning")
    assert "did not rise" in finding.evidence
    assert intervention_for("reward-hacking", {}, step=39, **still) is None
    rising = still | {"watched/judge": lambda t: 0.15 * t + (0.1 if t % 2 else -0.1)}
    assert codes(rows(**rising)) == []


def test_repetition_penalty_exceeds_the_reward_for_repetition() -> None:
    # the standard deviation of rewards is 1, and the reward for repetition is not logged
    assert intervention_for("repetition", {}, step=39).after == pytest.approx(2.0, rel=0.05)
    paid = {"reward_repetition_corr": 0.8, "repetition_worth": 20.0}
    first = intervention_for("repetition", {}, **paid)
    assert (first.knob, first.before, first.after) == ("repetition_penalty", 0.0, 30.0)
    again = intervention_for("repetition", {"repetition_penalty": 30.0}, [first], step=30, **paid)
    assert (again.knob, again.after) == ("repetition_penalty", 60.0)
    warmer = intervention_for(
        "repetition",
        {"repetition_penalty": 30.0},
        [first],
        step=39,
        facts={"policy.temperature": 0.7},
        repetition_worth=0.5,
    )
    assert (warmer.knob, warmer.before, warmer.after) == ("temperature", 0.7, pytest.approx(0.77))


def test_interventions_are_spaced_and_limited() -> None:
    first = intervention_for("learning-rate-low", {"kl_coef": 0.05}, step=20)
    assert (
        intervention_for("learning-rate-low", {"kl_coef": 0.05, "learning_rate_scale": 10.0}, [first], step=21) is None
    )
    again = intervention_for("learning-rate-low", {"kl_coef": 0.05, "learning_rate_scale": 10.0}, [first], step=24)
    assert (again.before, again.after) == (10, 100)
    assert (
        intervention_for("learning-rate-low", {"kl_coef": 0.05, "learning_rate_scale": 10.0}, [first] * 6, step=30)
        is None
    )


def test_whether_an_intervention_helped() -> None:
    turn = remedies.Intervention(20, "kl_coef", 0.05, 0.1, "", "kl-rising")
    better = history_from_rows(rows(kl=lambda t: 3.0 if t <= 20 else 1.0), {"policy.steps": STEPS})
    assert remedies.helped(turn, better) is True
    assert remedies.helped(turn, history_from_rows(rows(kl=lambda t: 0.1 * t), {"policy.steps": STEPS})) is False
    assert remedies.helped(turn, better.until(21)) is None
    assert remedies.from_row(remedies.to_row(turn)) == turn


def test_every_finding_code_is_documented() -> None:
    code_in = re.compile(r'Finding\(\s*"([a-z-]+)"')
    folder = Path(diagnosis.__file__).parent / "detectors"
    paths = [*folder.glob("*.py"), Path(restarts.__file__)]
    known = {code for path in paths for code in code_in.findall(path.read_text())}
    assert known >= set(FAULTY)
    text = (Path(__file__).parent.parent / "docs" / "findings.md").read_text()
    sections = dict(part.split("\n", 1) for part in text.split("\n## ")[1:])
    assert sections.keys() == known
    for code, section in sections.items():
        for word in ("**Signs.**", "**Cause.**", "**Distinguish.**", "**Remedy.**"):
            assert word in section, f"docs/findings.md: {code} has no part {word}"
    table = (Path(__file__).parent.parent / "docs" / "health.md").read_text()
    assert all(f"`{code}`" in table for code in known)
    for image in re.findall(r"\((images/[^)]+)\)", text):
        assert (Path(__file__).parent.parent / "docs" / image).is_file(), image
