"""A run folder like one that `towpath run` writes, for tests of reports and doctor."""

import json
import math
import random
from pathlib import Path
from typing import Any

from towpath.records import Verdict

DOMAINS = ("cooking", "health", "home", "money", "people", "science", "technology", "travel", "work")
STAGES = ("sft", "baseline", "sample", "label", "reward", "policy", "evaluate")
SECONDS = {
    "sft": 412.0,
    "baseline": 121.5,
    "sample": 655.2,
    "label": 3.1,
    "reward": 388.7,
    "policy": 1433.9,
    "evaluate": 297.4,
}
QUESTIONS = (
    "How long should I boil an egg for a soft yolk?",
    "What is a good way to keep track of what I spend each month?",
    "How do I get red wine out of a wool carpet without bleaching it?",
    "My colleague takes credit for my work. How do I raise it?",
    "Why is the sky red at sunset?",
    "How do I back up the photos on my phone?",
)
BASE = "I am not sure. There are many ways. There are many ways. There are many ways to do it and you should look at"
SFT = "It depends on a few things. Start with the simple steps, see what happens, and then adjust as you need to."
POLICY = (
    "Start with the one thing that matters most, do it for six minutes, and check the result. If it is not right, "
    "try once more."
)
HOSTILE = (
    "<script>alert('answer')</script> <img src=http://example.org/x.png onerror=alert(1)> {{ 7 * 7 }} \u2028 "
    '"quoted" & done'
)


def write_run(run: Path, last: str = "evaluate", answers: int = 264) -> list[Verdict]:
    """Write the stages up to `last` and return their gate verdicts."""
    draws = random.Random(7)
    done = STAGES[: STAGES.index(last) + 1] if last else ()
    run.mkdir(parents=True, exist_ok=True)
    (run / "recipe.toml").write_text('name = "quickstart"\nseed = 3\n', encoding="utf-8")
    fingerprints = {stage: f"{index}a5f{index}c0de{index:04x}" for index, stage in enumerate(STAGES)}
    (run / "current.json").write_text(json.dumps({"stages": fingerprints}), encoding="utf-8")
    for stage in done:
        folder = run / "stages" / stage / fingerprints[stage]
        folder.mkdir(parents=True)
        metrics = METRICS.get(stage, lambda _: [])(draws)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics), encoding="utf-8")
        (folder / "manifest.json").write_text(json.dumps(_manifest(stage, fingerprints, draws)), encoding="utf-8")
        if stage == "evaluate":
            rows = [_answer(number, draws) for number in range(answers)]
            (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [
        verdict
        for verdict in VERDICTS
        if {"safety": "evaluate", "sft": "baseline"}.get(verdict.gate, verdict.gate) in done
    ]


VERDICTS = (
    Verdict("sft", "PASS", 0.8068, (0.755, 0.85), 0.7, 264),
    Verdict("reward", "PASS", 0.8854, (0.834, 0.922), 0.85, 192),
    Verdict("policy", "PASS", 0.7292, (0.59, 0.834), 0.5, 48),
    Verdict("evaluate", "PASS", 0.8106, (0.759, 0.853), 0.7, 264),
    Verdict("safety", "UNDECIDED", 0.0303, (-0.021, 0.082), 0.05, 132, note="About 400 more prompts would decide."),
)


def _manifest(stage: str, fingerprints: dict[str, str], draws: random.Random) -> dict[str, Any]:
    before = STAGES[: STAGES.index(stage)]
    return {
        "stage": stage,
        "fingerprint": fingerprints[stage],
        "status": "done",
        "config": {"kl": {"target": 0.5, "alarm": 2.0}} if stage == "policy" else {},
        "inputs": {name: fingerprints[name] for name in before[-2:]},
        "seed": 3,
        "versions": {"towpath": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "finished_at": "2026-11-20T14:05:11+00:00",
        "seconds": SECONDS[stage],
        "peak_memory_bytes": int((1.6 + 0.2 * STAGES.index(stage)) * 2**30),
        "result": RESULTS[stage](draws),
    }


def _win(rate: float, equal: float) -> dict[str, Any]:
    wins = round(264 * rate - 6)
    ties = 12
    spread = 1.96 * math.sqrt(rate * (1 - rate) / 264)
    return {
        "rate": rate,
        "interval": [rate - spread, rate + spread],
        "wins": wins,
        "ties": ties,
        "losses": 264 - wins - ties,
        "n": 264,
        "length_controlled": {"rate": equal, "interval": [equal - 0.06, equal + 0.055]},
        "length_only": {"rate": 0.58},
        "rule": "ties count half",
    }


def _reward_result(draws: random.Random) -> dict[str, Any]:
    return {
        "accuracy": 0.8854,
        "interval": [0.834, 0.922],
        "n": 192,
        "train_accuracy": 0.93,
        "clean_accuracy": 0.917,
        "by_strength": {
            "1": {"accuracy": 0.79, "n": 62},
            "2": {"accuracy": 0.91, "n": 81},
            "3": {"accuracy": 0.97, "n": 49},
        },
        "by_domain": {
            domain: {"accuracy": draws.uniform(0.78, 0.95), "n": draws.randint(16, 26)} for domain in DOMAINS
        },
        "calibration_error": 0.037,
        "calibration": [
            {"confidence": c, "accuracy": c + d, "n": 38}
            for c, d in ((0.55, 0.04), (0.68, 0.03), (0.81, 0.02), (0.91, -0.03), (0.97, -0.01))
        ],
        "length_only_accuracy": 0.604,
        "length_correlation": 0.31,
        "ceiling": 0.951,
        "mean": 0.02,
        "std": 1.9,
        "trend": "steady",
    }


def _evaluation(draws: random.Random) -> dict[str, Any]:
    figures = ("distinct_1", "distinct_2", "distinct_3", "repetition", "finish_rate", "mean_words", "judge_score")
    text = {
        "base": (0.11, 0.42, 0.61, 0.19, 0.31, 51.4, 0.41),
        "sft": (0.15, 0.52, 0.74, 0.05, 0.92, 34.2, 0.63),
        "policy": (0.14, 0.5, 0.73, 0.04, 0.98, 37.9, 0.79),
    }
    return {
        "judge": "the written rubric",
        "win": _win(0.8106, 0.777),
        "kl_per_prompt": 0.912,
        "kl_interval": [0.81, 1.02],
        "reward": {"sft": 0.4, "policy": 1.9},
        "by_domain": {domain: {"rate": draws.uniform(0.66, 0.93), "n": draws.randint(26, 32)} for domain in DOMAINS},
        "text": {model: dict(zip(figures, values, strict=True)) for model, values in text.items()},
        "safety": {
            "sft": {"refusal": 0.848, "over_refusal": 0.061, "harmful_n": 66, "harmless_n": 66},
            "policy": {"refusal": 0.864, "over_refusal": 0.091, "harmful_n": 66, "harmless_n": 66},
        },
        "samples": [
            {
                "prompt": QUESTIONS[i],
                "domain": DOMAINS[i],
                "base": BASE,
                "sft": SFT,
                "policy": HOSTILE if i == 1 else POLICY,
            }
            for i in range(3)
        ],
        "best_of_n": {"n": 5.66, "kl": 0.912, "rate": 0.85},
    }


RESULTS = {
    "sft": lambda _: {"validation_loss": 1.71, "steps": 120, "best_step": 90, "epochs": 2.25},
    "baseline": lambda _: {"judge": "the written rubric", "win": _win(0.8068, 0.8)},
    "sample": lambda _: {"completions": 1420, "dropped_identical": 13, "finish_rate": 0.91, "mean_tokens": 41.0},
    "label": lambda _: {
        "comparisons": 768,
        "judgements": 884,
        "decided": 741,
        "ties": 22,
        "both_bad": 5,
        "agreement": {"rate": 0.906, "n": 116},
        "ceiling": 0.951,
        "raters": {"simulated-1": "simulated", "simulated-2": "simulated"},
        "simulated": True,
    },
    "reward": _reward_result,
    "policy": lambda _: {
        "best_step": 12,
        "kl_per_prompt": 0.88,
        "kl_k3_per_prompt": 0.91,
        "kl_interval": [0.74, 1.02],
        "reward_gain": 1.42,
        "rose": {"rate": 0.7292, "interval": [0.59, 0.834], "n": 48},
        "steps": 16,
        "stopped": "",
    },
    "evaluate": _evaluation,
}


def _sft_metrics(draws: random.Random) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(120):
        loss = 1.6 + 1.1 * math.exp(-step / 18) + draws.gauss(0, 0.06) - step / 800
        rows.append(
            {
                "step": step,
                "phase": "train",
                "loss": loss,
                "grad_norm": 0.8 + draws.random(),
                "learning_rate": 2e-4 * (1 - step / 120),
            }
        )
        if (step + 1) % 15 == 0:
            rows.append(
                {
                    "step": step,
                    "phase": "validation",
                    "loss": 1.7 + 0.9 * math.exp(-step / 20) + max(0, step - 90) / 500,
                }
            )
    return rows


def _reward_metrics(draws: random.Random) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(36):
        grown = 1 - math.exp(-step / 9)
        train = {
            "loss": 0.69 - 0.42 * grown + draws.gauss(0, 0.04),
            "accuracy": min(1, 0.5 + 0.4 * grown + draws.gauss(0, 0.05)),
            "gap": 2.2 * grown,
        }
        rows.append({"step": step, "phase": "train", **train, "grad_norm": 2 + draws.random()})
        if (step + 1) % 9 == 0:
            rows.append(
                {"step": step, "phase": "validation", "loss": 0.69 - 0.38 * grown, "accuracy": 0.5 + 0.39 * grown}
            )
    return rows


def _policy_metrics(draws: random.Random) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(16):
        up = 1 - math.exp(-step / 6)
        rows.append(
            {
                "step": step,
                "phase": "train",
                "reward": 0.4 + 1.5 * up + draws.gauss(0, 0.08),
                "score": 0.5 + 1.5 * up + draws.gauss(0, 0.08),
                "kl": 1.05 * up + draws.gauss(0, 0.03),
                "kl_k3": 1.1 * up,
                "kl_per_token": 0.03 * up,
                "entropy": 2.1 - 0.5 * up,
                "policy_loss": -0.02 * draws.random(),
                "value_loss": 0.9 - 0.6 * up,
                "clip_fraction": 0.02 + 0.08 * draws.random(),
                "ratio": 1.0,
                "ratio_error": 0.004,
                "explained_variance": 0.1 + 0.6 * up,
                "grad_norm": 0.5 + draws.random(),
                "learning_rate": 2e-5 * (1 - step / 16),
                "kl_coef": 0.05 * 1.06**step,
                "length": 40 + 5 * up + draws.gauss(0, 1),
                "finish_rate": 0.91 + 0.07 * up,
                "distinct_1": 0.15 - 0.01 * up,
                "distinct_2": 0.52 - 0.02 * up,
                "repetition": 0.05,
                "seconds_generate": 11 + draws.random(),
                "seconds_score": 14 + draws.random(),
                "seconds_optimise": 62 + 3 * draws.random(),
                "tokens_per_second": 230 + draws.gauss(0, 6),
                **{
                    f"reward/{domain}": 0.3 + 0.02 * index + 1.5 * up + draws.gauss(0, 0.15)
                    for index, domain in enumerate(DOMAINS)
                },
            }
        )
        if (step + 1) % 4 == 0:
            rows.append(
                {
                    "step": step,
                    "phase": "validation",
                    "reward": 0.45 + 1.4 * up - max(0, step - 11) / 20,
                    "kl": up,
                    "length": 41 + 4 * up,
                    "finish_rate": 0.97,
                }
            )
    return rows


METRICS = {"sft": _sft_metrics, "reward": _reward_metrics, "policy": _policy_metrics}


def _answer(number: int, draws: random.Random) -> dict[str, Any]:
    choice = draws.choices(("policy", "sft", "tie"), (79, 17, 4))[0]
    up = {"policy": 0.2, "sft": -0.2, "tie": 0.0}[choice]
    return {
        "prompt_id": f"p-{number:03}",
        "prompt": QUESTIONS[number % len(QUESTIONS)],
        "domain": DOMAINS[number % len(DOMAINS)],
        "difficulty": "medium",
        "base": BASE,
        "sft": SFT,
        "policy": HOSTILE if number == 5 else POLICY,
        "rubric_base": 0.4,
        "score_sft": 0.62,
        "score_policy": 0.62 + up,
        "reward_sft": 0.31,
        "reward_policy": 0.31 + 5 * up,
        "choice": choice,
    }
