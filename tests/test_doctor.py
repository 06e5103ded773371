"""The doctor: metric names and units of other trainers' logs, and findings as terminal output, JSON and HTML."""

import csv
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from foreign import put
from report_run import write_run
from test_report import Page

from benchmarks.models import prepare_model
from benchmarks.run import python_of
from towpath.errors import DataError, RecipeError, TowpathError
from towpath.health import history
from towpath.metrics import METRICS
from towpath.records import Finding
from towpath.view import doctor, doctor_report
from towpath.view.doctor_report import Diagnosis
from towpath.view.foreign import names, table_files
from towpath.view.foreign.log import Log, MappedColumn, RawLog, to_number, translate
from towpath.view.foreign.open_log import open_logs

ROOT = Path(__file__).parent.parent
SHAPE = {"layers": 1, "width": 32, "heads": 2, "inner": 64, "vocabulary": 512}

VERL = {
    "actor/ppo_kl": 0.001,
    "actor/kl_loss": 0.02,
    "actor/pg_clipfrac": 0.03,
    "actor/entropy": 0.8,
    "actor/grad_norm": 0.4,
    "actor/lr": 1e-6,
    "critic/score/mean": 0.5,
    "critic/score/max": 1.0,
    "critic/rewards/mean": 0.4,
    "critic/vf_explained_var": 0.6,
    "critic/vf_loss": 0.1,
    "response_length/mean": 200.0,
    "response_length/clip_ratio": 0.1,
    "rollout_corr/kl": 0.5,
    "perf/throughput": 900.0,
    "timing_s/gen": 4.0,
    "training/global_step": 1,
    "val-core/gsm8k/acc/mean@1": 0.3,
    "my/own": 1.0,
}
OPENRLHF = {
    "train/policy_loss": 0.1,
    "train/critic_loss": 0.2,
    "train/kl": 0.01,
    "train/reward": 0.5,
    "train/return": 0.4,
    "train/response_length": 100.0,
    "train/ppo_kl": 0.002,
    "train/ppo_clip_ratio": 0.05,
    "train/truncated": 0.25,
    "train/actor_lr": 5e-7,
    "train/actor_grad_norm": 1.5,
    "train/global_step": 1,
    "train/vllm_kl": 0.3,
    "train/ptx_loss": 2.0,
    "train/group_reward_std": 0.3,
}
GRPO = {
    "loss": 0.0,
    "reward": 0.5,
    "reward_std": 0.2,
    "kl": 0.01,
    "entropy": 1.2,
    "completions/mean_length": 50.0,
    "completions/clipped_ratio": 0.2,
    "clip_ratio/region_mean": 0.01,
    "clip_ratio/low_min": 0.0,
    "sampling/sampling_logp_difference/mean": 0.03,
    "rewards/maths/mean": 0.4,
    "rewards/maths/std": 0.1,
    "grad_norm": 0.3,
    "learning_rate": 1e-6,
    "epoch": 0.1,
    "step": 1,
}
PPO = {
    "objective/kl": 2.0,
    "objective/scores": 1.5,
    "objective/rlhf_reward": 1.4,
    "objective/non_score_reward": -0.1,
    "objective/entropy": 60.0,
    "policy/entropy_avg": 1.1,
    "policy/approxkl_avg": 0.004,
    "policy/clipfrac_avg": 0.06,
    "loss/policy_avg": -0.01,
    "loss/value_avg": 0.3,
    "val/ratio": 1.01,
    "val/clipfrac_avg": 0.2,
    "val/num_eos_tokens": 7,
    "lr": 3e-6,
    "episode": 8,
    "eps": 2,
    "epoch": 0.1,
    "step": 1,
}


def read(*rows: dict[str, Any], maps: dict[str, str] | None = None, settings: dict[str, Any] | None = None) -> Log:
    return translate(RawLog("log", rows, settings or {}), maps)


def value(log: Log, name: str) -> float:
    return float(log.history.curve(name).values[-1])


UNITS = [
    (
        PPO,
        "TRL's PPO",
        {
            "kl": 2.0,
            "reward": 1.5,
            "entropy": 1.1,
            "approx_kl": 0.004,
            "ratio": 1.01,
            "learning_rate": 3e-6,
            "kl_coef": 0.05,
        },
    ),
    (
        GRPO,
        "TRL's GRPO",
        {
            "kl_per_token": 0.01,
            "kl": 0.5,
            "finish_rate": 0.8,
            "sampler_error": 0.03,
            "score/maths": 0.4,
            "clip_fraction": 0.01,
        },
    ),
    (
        VERL,
        "verl",
        {
            "approx_kl": 0.001,
            "kl_per_token": 0.02,
            "kl": 4.0,
            "reward": 0.5,
            "finish_rate": 0.9,
            "explained_variance": 0.6,
        },
    ),
    (
        OPENRLHF,
        "OpenRLHF",
        {
            "kl_per_token": 0.01,
            "kl": 1.0,
            "approx_kl": 0.002,
            "finish_rate": 0.75,
            "value_loss": 0.2,
            "reward_std": 0.3,
        },
    ),
    (
        {
            "objective/kl": 3.0,
            "ppo/mean_scores": 0.7,
            "ppo/policy/entropy": 2.0,
            "objective/entropy": 90.0,
            "ppo/val/var_explained": 0.2,
            "step": 1,
        },
        "TRL's PPO before 0.12",
        {"kl": 3.0, "reward": 0.7, "entropy": 2.0, "explained_variance": 0.2},
    ),
    (
        {
            "loss": 0.6,
            "rewards/chosen": 0.1,
            "rewards/rejected": -0.1,
            "rewards/margins": 0.2,
            "rewards/accuracies": 0.7,
            "step": 1,
        },
        "TRL's DPO",
        {"loss": 0.6, "accuracy": 0.7, "gap": 0.2, "chosen": 0.1},
    ),
]


@pytest.mark.parametrize(("row", "dialect", "expected"), UNITS, ids=[dialect for _, dialect, _ in UNITS])
def test_metric_names_of_trainers_are_mapped(row, dialect, expected):
    log = read(row, row | {"step": 2, "training/global_step": 2, "train/global_step": 2})
    assert log.dialect == dialect
    for name, wanted in expected.items():
        assert value(log, name) == pytest.approx(wanted), name


def test_other_kl_metrics_are_not_mapped_to_kl():
    """KL of sampler and trainer, the reference point of KTO, sums over an answer."""
    assert "rollout_corr/kl" in read(VERL).unused
    assert "train/vllm_kl" in read(OPENRLHF).unused
    kto = read({"loss": 0.5, "kl": 3.0, "rewards/chosen": 0.1, "rewards/rejected": -0.2, "step": 1})
    assert kto.dialect == "TRL's KTO"
    assert "kl" in kto.unused
    assert not kto.has("kl", "kl_per_token")
    assert "objective/entropy" in read(PPO).unused


def test_reward_without_kl_is_preferred():
    assert read(VERL).unused["critic/rewards/mean"] == "critic/score/mean is used as reward"
    less = {name: x for name, x in PPO.items() if name != "objective/scores"}
    assert value(read(less), "reward") == 1.4


def test_unknown_columns_are_listed_without_bookkeeping():
    log = read(VERL)
    assert log.unknown == ("my/own",)
    assert not {"perf/throughput", "timing_s/gen", "training/global_step"} & {*log.unused, *log.mapped_columns}
    assert log.history.validation["watched/gsm8k/acc"].values == [0.3]


def test_tensorboard_tags_are_split_by_phase():
    tags = {f"train/{name}": x for name, x in PPO.items() if name != "step"}
    assert value(read({"step": 1, **tags}), "ratio") == 1.01
    log = read({"step": 1, "train/loss": 2.0, "eval/loss": 3.0, "train/mean_token_accuracy": 0.5})
    assert (log.kind, value(log, "loss"), log.history.validation_curve("loss").values[0]) == ("sft", 2.0, 3.0)


def test_eval_columns_of_pairs_are_held_out_metrics():
    log = read(
        {
            "step": 1,
            "loss": 0.6,
            "rewards/accuracies": 0.6,
            "rewards/chosen": 0.1,
            "eval_loss": 0.7,
            "eval_rewards/accuracies": 0.5,
        }
    )
    assert log.history.validation_curve("pairs_loss").values[0] == 0.7
    assert log.history.validation_curve("pairs_accuracy").values[0] == 0.5
    assert not len(log.history.validation_curve("loss"))


def test_rows_of_the_same_step_are_merged():
    """The last row of a trainer repeats its step and must not hide the row before; a resumed run logs steps twice."""
    log = read(
        {"step": 1, "loss": 3.0, "grad_norm": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 1, "loss": 2.5},
        {"step": 2, "train_loss": 9.0},
    )
    assert log.history.curve("loss").values.tolist() == [2.5, 2.0]
    assert log.history.curve("grad_norm").values.tolist() == [1.0]


def test_length_is_carried_forward_within_a_rollout():
    later = {name: x for name, x in GRPO.items() if not name.startswith("completions/")}
    log = read(GRPO, later | {"step": 2, "kl": 0.02}, GRPO | {"step": 3, "completions/mean_length": 10.0})
    assert log.history.curve("kl").values.tolist() == pytest.approx([0.5, 1.0, 0.1])


def test_steps_start_where_the_log_starts():
    log = read({"step": 5, "loss": 1.0}, {"step": 10, "loss": 0.9}, {"step": 0, "eval_loss": 1.5})
    assert log.history.curve("loss").steps.tolist() == [4, 9]
    assert log.history.validation_curve("loss").steps.tolist() == [-1]
    diagnosis = Diagnosis(log, (Finding("x", "warning", "", first_step=4),), ())
    assert doctor_report.as_json("log", [diagnosis])["findings"][0]["first_step"] == 5
    assert "from step 5" in doctor_report.lines([diagnosis], 100)
    zero = read({"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.9})
    assert zero.history.curve("loss").steps.tolist() == [0, 1]
    assert doctor_report.as_json("log", [Diagnosis(zero, diagnosis.findings, ())])["findings"][0]["first_step"] == 4
    assert "counts steps from 0" in zero.notes[0]


def test_global_step_is_preferred_to_logger_calls():
    rows = [
        {"_step": 0, "train/global_step": 10, "train/loss": 2.0},
        {"_step": 1, "train/loss": 1.9, "train/global_step": 20},
        {"_step": 2, "eval/loss": 2.5},
    ]
    log = read(*rows)
    assert log.history.curve("loss").steps.tolist() == [9, 19]
    assert log.history.validation_curve("loss").steps.tolist() == [19]
    assert read({"_step": 4, "loss": 1.0}).history.curve("loss").steps.tolist() == [3]


def test_rows_are_counted_without_a_step_column():
    log = read({"loss": 3.0}, {"loss": 2.0})
    assert log.history.curve("loss").steps.tolist() == [0, 1]
    assert any("no column counts steps" in note for note in log.notes)


CELLS = [
    ("NaN", math.nan),
    ("nan", math.nan),
    ("Infinity", math.inf),
    ("-inf", -math.inf),
    ("1e-5", 1e-5),
    (3, 3.0),
    ("", None),
    (None, None),
    (True, None),
    ("x", None),
]


@pytest.mark.parametrize(("cell", "read_as"), CELLS)
def test_numbers_in_text_are_parsed(cell, read_as):
    number = to_number(cell)
    assert number is None if read_as is None else number == pytest.approx(read_as, nan_ok=True)


def test_nan_is_kept_and_missing_values_are_dropped():
    log = read({"step": 1, "loss": "NaN", "grad_norm": None}, {"step": 2, "loss": 1.0, "grad_norm": "Infinity"})
    assert math.isnan(log.history.curve("loss").values[0])
    assert log.history.curve("grad_norm").steps.tolist() == [1]


def test_map_option_overrides_column_names():
    maps = {
        "iteration": "step",
        "ret": "reward",
        "cut": "1-finish_rate",
        "held": "validation/reward",
        "drift": "kl_per_token",
        "len": "length",
    }
    log = read({"iteration": 7, "ret": 2.0, "cut": 0.25, "held": 1.5, "drift": 0.1, "len": 20}, maps=maps)
    assert (value(log, "reward"), value(log, "finish_rate"), value(log, "kl")) == (2.0, 0.75, 2.0)
    assert log.history.validation_curve("reward").values[0] == 1.5
    assert log.history.curve("reward").steps.tolist() == [6]
    assert value(read({"step": 1, "kl": 0.3, "length": 10.0}, maps={"kl": "kl_per_token"}), "kl") == 3.0
    # A user's mapping takes precedence over the built-in table.
    assert value(read(GRPO, maps={"rewards/maths/mean": "reward"}), "reward") == 0.4


@pytest.mark.parametrize(
    ("maps", "says"),
    [
        ({"los": "loss"}, "did you mean loss?"),
        ({"loss": "rewrd"}, "did you mean reward?"),
        ({"loss": "zzz"}, "docs/doctor.md"),
    ],
)
def test_wrong_map_is_refused_with_the_nearest_name(maps, says):
    with pytest.raises(DataError) as refused:
        read({"step": 1, "loss": 1.0}, maps=maps)
    assert says in refused.value.fix


def test_ambiguous_kl_unit_is_noted():
    assert any("--map kl=kl_per_token" in note for note in read({"step": 1, "kl": 1.0, "reward": 0.0}).notes)
    assert not any("--map" in note for note in read({"step": 1, "kl": 1.0, "reward": 0.0}, maps={"kl": "kl"}).notes)


def test_settings_come_from_the_log_and_its_files():
    facts = read(PPO, PPO | {"step": 2, "lr": 1e-6}).history.facts
    assert facts["policy.learning_rate"] == 3e-6
    assert facts["policy.kl.coef"] == pytest.approx(0.05)
    assert (facts["stage"], facts["policy.algo"]) == ("policy", "ppo")
    beside = read(
        GRPO, settings={"beta": 0.04, "num_generations": 8, "epsilon": 0.2, "max_steps": 300, "output_dir": "x"}
    ).history.facts
    assert (beside["policy.kl.coef"], beside["policy.group"], beside["policy.grpo.clip_low"], beside["steps"]) == (
        0.04,
        8,
        0.2,
        300,
    )
    dpo = read(
        {"step": 1, "loss": 0.6, "rewards/accuracies": 0.6, "rewards/chosen": 0.1}, settings={"beta": 0.3}
    ).history.facts
    assert dpo["policy.dpo.beta"] == 0.3
    assert "policy.kl.coef" not in dpo


def test_facts_and_limits_can_be_set(tmp_path: Path):
    path = put(tmp_path / "log.jsonl", GRPO)
    diagnoses = doctor.examine(path, facts=["policy.kl.coef=0.07", "policy.algo=rloo", "health.limits.kl_high=3"])
    facts = diagnoses[0].log.history.facts
    assert (facts["policy.kl.coef"], facts["policy.algo"]) == (0.07, "rloo")
    with pytest.raises(RecipeError, match="no such key") as refused:
        doctor.examine(path, facts=["policy.kl.coeff=0.07"])
    assert "policy.kl.coef?" in refused.value.fix
    for wrong in ({"facts": ["policy.kl.coef"]}, {"maps": ["kl"]}, {"facts": ["health.limits.kl_high=word"]}):
        with pytest.raises(RecipeError):
            doctor.examine(path, **wrong)


def test_missing_signals_are_listed():
    diagnosis = doctor.diagnose_log(
        read({"step": 1, "reward": 0.5, "reward_std": 0.2, "completions/mean_length": 20.0})
    )
    assert "no KL: distance to the reference not checked" in diagnosis.missing_signals
    assert any(text.startswith("no validation") for text in diagnosis.missing_signals)
    assert not any("answer length" in text for text in diagnosis.missing_signals)
    assert "no explained variance: critic not checked" in doctor.diagnose_log(read(PPO)).missing_signals
    grpo = doctor.diagnose_log(read(GRPO)).missing_signals
    assert not any(text.startswith("no KL:") for text in grpo)
    assert any(text.startswith("no KL coefficient") for text in grpo)
    assert not any(
        text.startswith("no KL coefficient")
        for text in doctor.diagnose_log(read(GRPO), {"policy.kl.coef": 0.04}).missing_signals
    )


# Findings on logs of other trainers.


def run(row: dict[str, Any], steps: int = 30, **curves: Any) -> list[dict[str, Any]]:
    """A log of `steps` rows in which the named metrics are functions of the step."""
    return [
        row | {"step": k, "training/global_step": k} | {name.replace("__", "/"): f(k) for name, f in curves.items()}
        for k in range(1, steps + 1)
    ]


def codes(log: Log, **facts: Any) -> list[str]:
    return [
        finding.code
        for finding in doctor.diagnose_log(log, {key.replace("__", "."): x for key, x in facts.items()}).findings
        if finding.severity != "info"
    ]


def wobble(k: int) -> float:
    return 0.01 * math.sin(7 * k)


def test_rising_grpo_surrogate_is_not_a_rising_loss():
    """The `loss` of GRPO starts at 0 and grows with the KL; as a supervised loss it would be a finding in every run."""
    log = read(*run(GRPO, loss=lambda k: k / 1000, reward=lambda k: k / 10 + wobble(k)))
    assert not log.has("loss")
    assert log.has("policy_loss")
    assert codes(log) == []


def test_approx_kl_of_single_updates_is_ignored():
    """With one update per rollout the approximate KL is 0 by construction and no evidence of a low learning rate."""
    still = {"actor/ppo_kl": 0.0, "actor/kl_loss": 0.0001, "response_length/mean": 10.0}
    log = read(*run(VERL | still))
    assert "used for one update" in log.unused["actor/ppo_kl"]
    assert "learning-rate-low" not in codes(log, policy__kl__coef=2.0)


def test_rising_kl_is_detected_in_every_unit():
    per_answer = read(*run(PPO, objective__kl=lambda k: 1.0 * k, objective__non_score_reward=lambda k: -0.05 * k))
    assert codes(per_answer)[0] == "kl-rising"
    per_token = read(*run(GRPO, kl=lambda k: 0.03 * k))
    assert "kl-rising" in codes(per_token)
    # Up to 0.3 nats per token are usual with GRPO.
    assert "kl-rising" not in codes(read(*run(GRPO, kl=lambda k: 0.009 * k)))
    # The same KL per token in answers of half a token is no drift.
    short = read(*run(GRPO | {"completions/mean_length": 0.5}, kl=lambda k: 0.03 * k))
    assert "kl-rising" not in codes(short)
    # A stated alarm is per answer.
    assert "kl-rising" in codes(read(*run(GRPO, kl=lambda k: 0.009 * k)), policy__kl__alarm=2.0)


def test_stated_kl_coefficient_applies_to_every_step():
    log = read(*run(GRPO, kl=lambda k: 0.009 * k))
    assert "no-kl-penalty" in codes(log, policy__kl__coef=0.0)
    assert "no-kl-penalty" not in codes(log, policy__kl__coef=0.05)


def test_grpo_kl_coefficient_is_estimated_from_loss_and_kl():
    log = read(*run(GRPO, kl=lambda k: 0.01 * k, loss=lambda k: 0.04 * 0.01 * k + wobble(k) / 1000))
    assert log.history.curve("kl_coef").values[0] == pytest.approx(0.04, rel=0.05)
    assert "kl_coef is the slope of the loss on the KL" in log.notes
    assert not read(*run(GRPO, kl=lambda k: 0.01 * k, loss=wobble)).has("kl_coef")


def test_missing_ppo_lengths_are_estimated():
    log = read(*run(PPO, objective__kl=lambda k: 0.2 * k))
    assert log.history.curve("length_estimate").values[0] == pytest.approx(60 / 1.1)
    assert log.history.curve("kl_per_token").values[-1] == pytest.approx(6 / (60 / 1.1))
    assert "kl-rising" not in codes(log)


def test_sft_logs_of_openrlhf_and_verl():
    openrlhf = read(
        *({"train/gpt_loss": 3 - k / 20, "train/lr": 1e-5, "train/global_step": k} for k in range(1, 20)),
        {"eval/eval gpt_loss": 2.5},
    )
    assert (openrlhf.dialect, openrlhf.kind) == ("OpenRLHF's SFT", "sft")
    assert openrlhf.history.validation_curve("loss").values.tolist() == [2.5]
    verl = read(*({"train/loss": 3 - k / 20, "train/lr(1e-3)": 0.01, "step": k} for k in range(1, 20)))
    assert (verl.dialect, verl.kind) == ("verl's SFT", "sft")
    assert verl.history.curve("learning_rate").values[0] == pytest.approx(1e-5)


def test_remedy_uses_the_setting_names_of_the_trainer():
    (finding,) = (
        f
        for f in doctor.diagnose_log(read(*run(GRPO, kl=lambda k: 0.009 * k)), {"policy.kl.coef": 0.0}).findings
        if f.code == "no-kl-penalty"
    )
    assert finding.remedy.endswith("in TRL's GRPO policy.kl.coef is beta")


def test_reward_hacking_is_detected_from_held_out_scores():
    rows = run(VERL, critic__score__mean=lambda k: k / 10 + wobble(k))
    for row in rows:
        accuracy = 0.6 - row["step"] / 60 + wobble(row["step"]) / 10
        row.pop("val-core/gsm8k/acc/mean@1")
        row |= {"val-core/gsm8k/acc/mean@1": accuracy} if row["step"] % 2 == 0 else {}
    assert "reward-hacking" in codes(read(*rows))


def test_overfit_reward_model_is_detected():
    row = {"loss": 0.3, "accuracy": 0.98, "margin": 2.0, "min_reward": -1.0, "max_reward": 1.0, "eval_accuracy": 0.62}
    assert "reward-overfit" in codes(read(*run(row)))
    assert "reward-overfit" not in codes(read(*run(row | {"eval_accuracy": 0.9})))


def test_healthy_runs_have_no_findings():
    reward = {
        "reward": lambda k: math.log(k) + 5 * wobble(k),
        "kl": lambda k: 0.5 * k / 30 / 50,
        "entropy": lambda k: 1.2 - k / 100,
    }
    assert codes(read(*run(GRPO, **reward)), policy__kl__coef=0.04) == []
    dpo = {
        "loss": 0.69,
        "rewards/accuracies": 0.5,
        "rewards/chosen": 0.0,
        "rewards/rejected": 0.0,
        "rewards/margins": 0.0,
        "grad_norm": 1.0,
        "entropy": 1.0,
    }
    assert codes(read(*run(dpo, loss=lambda k: 0.69 - k / 100 + wobble(k), entropy=lambda k: 1 / k))) == []
    sft = {"loss": 3.0, "mean_token_accuracy": 0.4, "grad_norm": 1.0, "entropy": 3.0}
    assert codes(read(*run(sft, loss=lambda k: 3 / k**0.3 + wobble(k), entropy=lambda k: 3 / k))) == []


# Files.


def table(path: Path, header: list[str], *rows: list[Any]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])
    return path


def curve(path: Path, name: str = "loss", maps: dict[str, str] | None = None) -> tuple[list[int], list[float]]:
    (log,) = open_logs(path, maps)
    logged = log.history.curve(name)
    return logged.steps.tolist(), logged.values.tolist()


def test_wandb_exports(tmp_path: Path):
    export = table(
        tmp_path / "history.csv",
        ["", "_step", "_runtime", "loss", "eval/loss"],
        [0, 0, 1.5, 3.0, ""],
        [1, 1, 2.5, "NaN", 3.2],
    )
    steps, values = curve(export)
    assert (steps, values[0]) == ([0, 1], 3.0)
    assert math.isnan(values[1])
    panel = table(
        tmp_path / "panel.csv",
        ["Step", "run 7 - train/loss", "run 7 - train/loss__MIN", "run 7 - train/loss__MAX"],
        [10, 2.0, 1.0, 9.0],
    )
    assert curve(panel) == ([9], [2.0])
    (tmp_path / "by-column.json").write_text(
        json.dumps({"_step": {"0": 5, "1": 6}, "loss": {"0": 3.0, "1": "Infinity"}})
    )
    assert curve(tmp_path / "by-column.json") == ([4, 5], [3.0, math.inf])
    (tmp_path / "lists.json").write_text(json.dumps({"step": [1, 2], "loss": [3.0, 2.0]}))
    assert curve(tmp_path / "lists.json") == ([0, 1], [3.0, 2.0])
    assert curve(put(tmp_path / "rows.json", {"_step": 1, "loss": 1.0})) == ([0], [1.0])
    gaps = table(
        tmp_path / "gaps.csv", ["step", "loss", "kl"], *[[k, 2.0, "NaN" if k % 2 else 0.1] for k in range(1, 9)]
    )
    (log,) = open_logs(gaps)
    assert log.history.curve("kl").values.tolist() == [0.1] * 4
    assert "empty cell: kl" in log.notes[0]
    two = table(tmp_path / "two.csv", ["Step", "a - loss", "b - loss"], [1, 2.0, 3.0])
    with pytest.raises(DataError, match="2 runs in one table"):
        open_logs(two)


def test_custom_tables(tmp_path: Path):
    assert curve(table(tmp_path / "a.tsv", ["step", "loss"], [1, 2.0])) == ([0], [2.0])
    (tmp_path / "b.csv").write_text("\ufeffstep;loss\n1;2.0\n2;1.5\n", encoding="utf-8")
    assert curve(tmp_path / "b.csv") == ([0, 1], [2.0, 1.5])
    assert curve(table(tmp_path / "c.csv", ["it", "cost"], [1, 2.0]), maps={"it": "step", "cost": "loss"}) == (
        [0],
        [2.0],
    )


def test_verl_file_logger(tmp_path: Path):
    (log,) = open_logs(
        put(tmp_path / "verl.jsonl", {"step": 1, "data": VERL}, {"step": 2, "data": VERL | {"training/global_step": 2}})
    )
    assert (log.dialect, log.steps) == ("verl", 2)
    assert log.history.facts["policy.algo"] == "ppo"


def test_truncated_last_line_is_ignored(tmp_path: Path):
    path = put(tmp_path / "log.jsonl", {"step": 1, "loss": 2.0}, '{"step": 2, "lo')
    path.write_text(path.read_text().rstrip("\n"))
    assert curve(path) == ([0], [2.0])
    (tmp_path / "log.csv").write_text("step,loss,grad_norm\n1,2.0,1.0\n2,1.")
    assert curve(tmp_path / "log.csv", "grad_norm") == ([0], [1.0])


def state(folder: Path, *rows: dict[str, Any], name: str = "trainer_state.json", **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"log_history": rows, "max_steps": 40, **more}))
    return folder / name


def test_trainer_state_and_last_checkpoint(tmp_path: Path):
    for step in (9, 100, 20):
        state(tmp_path / f"checkpoint-{step}", {"step": step, "loss": 1.0, "mean_token_accuracy": 0.5})
    assert curve(tmp_path)[0] == [99]
    state(tmp_path, {"step": 7, "loss": math.nan, "mean_token_accuracy": 0.5})
    (log,) = open_logs(tmp_path)
    assert math.isnan(value(log, "loss"))
    assert log.history.facts["steps"] == 40


BAD = {
    "empty.jsonl": ("", "empty"),
    "empty.csv": ("", "empty"),
    "head.csv": ("step,loss\n", "a header and no rows"),
    "torn.jsonl": ('{"step": 1, "lo\n{"step": 2, "loss": 1}\n', "line 1"),
    "trainer_state.json": ('{"log_history": [{"loss": 1.0, "st', "char"),
    "none.json": ('{"log_history": []}', "log_history is empty"),
    "odd.json": ('{"log_history": 3}', "log_history is int"),
    "word.json": ('"hello"', "str without rows"),
    "text.jsonl": ('{"step": 1, "said": "hello"}\n', "no numbers"),
    "foreign.jsonl": ('{"step": 1, "mystery": 1.0}\n', "no known metric among its columns: mystery"),
    "run.wandb": ("x", "no reader for .wandb"),
    "log.xlsx": ("x", "no reader for .xlsx"),
    "log": ("x", "a name without suffix"),
}


@pytest.mark.parametrize(
    ("name", "content", "says"), [(name, *content) for name, content in BAD.items()], ids=list(BAD)
)
def test_unreadable_logs_are_errors_with_value_rule_and_fix(tmp_path: Path, name: str, content: str, says: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as refused:
        open_logs(tmp_path / name)
    assert says in refused.value.value
    assert refused.value.rule
    assert refused.value.fix


def test_folders_without_an_unambiguous_log_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no log in it"):
        open_logs(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        open_logs(tmp_path / "nowhere")
    put(tmp_path / "a.jsonl", {"step": 1, "loss": 1.0})
    assert curve(tmp_path) == ([0], [1.0])
    put(tmp_path / "b.jsonl", {"step": 1, "loss": 1.0})
    with pytest.raises(DataError, match="2 tables"):
        open_logs(tmp_path)


def write_events(folder: Path, settings: dict[str, Any] | None = None) -> Path:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        if settings:
            writer.add_text("args", json.dumps(settings))
        for step in range(1, 6):
            for name, x in GRPO.items():
                writer.add_scalar(f"train/{name}", x, step)
        writer.add_scalar("train/loss", math.nan, 6)
        writer.add_scalar("eval/reward", 0.3, 5)
    return next(folder.glob("*tfevents*"))


def test_tensorboard_event_files(tmp_path: Path):
    file = write_events(tmp_path / "runs" / "one", {"beta": 0.04, "learning_rate": 5e-6, "temperature": 0.9})
    for source in (file, file.parent, tmp_path):
        (log,) = open_logs(source)
        assert (log.dialect, log.steps) == ("TRL's GRPO", 6)
        assert value(log, "kl") == pytest.approx(0.5, rel=1e-6)
        assert math.isnan(value(log, "policy_loss"))
        assert log.history.validation_curve("reward").steps.tolist() == [4]
        assert log.history.facts["policy.kl.coef"] == 0.04
        assert log.history.facts["policy.temperature"] == 0.9
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3 + 5])
    (torn,) = open_logs(file)
    assert 3 <= torn.steps <= 5
    write_events(tmp_path / "runs" / "two")
    with pytest.raises(DataError, match="event files of 2 runs") as refused:
        open_logs(tmp_path)
    assert "runs/one" in refused.value.fix
    empty = tmp_path / "events.out.tfevents.0.empty"
    empty.write_bytes(b"")
    with pytest.raises(DataError, match="no scalars"):
        open_logs(empty)


def test_towpath_run_has_one_log_per_stage(tmp_path: Path):
    write_run(tmp_path)
    logs = open_logs(tmp_path)
    assert [log.kind for log in logs] == ["policy", "reward", "sft"]
    policy = logs[0]
    assert policy.history.facts["stage"] == "policy"
    assert policy.history.facts["policy.kl.alarm"] == 2.0
    assert any(key.startswith("reward.result.") for key in policy.history.facts)
    assert len(policy.history.curve("kl"))
    assert len(policy.history.validation_curve("reward"))
    (alone,) = open_logs(next((tmp_path / "stages" / "policy").iterdir()))
    assert alone.history.curve("kl").values.tolist() == policy.history.curve("kl").values.tolist()
    with pytest.raises(DataError, match="--map"):
        open_logs(tmp_path, {"kl": "kl"})


def test_unfinished_towpath_run(tmp_path: Path):
    write_run(tmp_path, last="")
    with pytest.raises(DataError, match="no stage has written metrics yet"):
        open_logs(tmp_path)
    fingerprint = json.loads((tmp_path / "current.json").read_text())["stages"]["policy"]
    folder = tmp_path / "stages" / "policy" / fingerprint
    folder.mkdir(parents=True)
    put(
        folder / "metrics.jsonl",
        {"step": -1, "phase": "validation", "reward": 0.1},
        {"step": 0, "phase": "train", "reward": 0.0, "kl": 0.1},
        '{"step": 1',
    )
    put(
        folder / "interventions.jsonl",
        {"step": 0, "knob": "kl_coef", "from": 0.05, "to": 0.1, "reason": "held", "finding": "kl-rising"},
    )
    (log,) = open_logs(tmp_path)
    assert log.history.curve("kl").values.tolist() == [0.1]
    assert log.history.validation_curve("reward").steps.tolist() == [-1]
    assert "kl_coef from 0.05 to 0.1 after step 1" in log.notes[0]


# Output.


HOSTILE = "<script>alert(1)</script>\x1b[31m\ud800"


def sample() -> Diagnosis:
    rows = [
        {
            "step": k,
            "phase": "train",
            "reward": k / 10,
            "kl": math.nan if k == 3 else k / 5,
            "kl_coef": 0.05,
            "grad_norm": 1.0,
        }
        for k in range(30)
    ]
    rows += [{"step": k, "phase": "validation", "reward": k / 20, "kl": k / 4} for k in range(0, 30, 5)]
    findings = (
        Finding(
            "kl-rising",
            "critical",
            "kl rose from 0.2 to 6",
            "the penalty is weak",
            "policy.kl.coef = 0.1",
            12,
            ("a high rate: clip_fraction 0.02",),
        ),
        Finding("else", "warning", HOSTILE, "", "look", None),
        Finding("note", "info", "reward rises"),
    )
    mapped_columns = {HOSTILE: MappedColumn("kl", ""), "objective/scores": MappedColumn("reward", "", "the score")}
    log = Log(
        "run/<i>",
        "TRL's PPO",
        "policy",
        history.history_from_rows(rows, {"policy.kl.alarm": 2.0}),
        mapped_columns,
        {"a<b": "why"},
        (HOSTILE,),
        ("a note",),
        1,
    )
    return Diagnosis(log, findings, ("no answer length: length hacking not checked",))


def test_terminal_output_of_findings():
    text = doctor_report.lines([sample()], 100)
    parts = [
        "1. CRITICAL kl-rising, from step 13",
        "evidence    kl rose",
        "cause       the penalty",
        "ruled out   a high rate",
        "remedy      policy.kl.coef = 0.1",
    ]
    parts += ["2. WARNING else", "3. INFO note", "not checked no answer length", "note        a note", "unknown"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "1 critical, 1 warning, 1 info" in text
    assert "\x1b" not in text
    text.encode("utf-8")
    assert max(map(len, doctor_report.lines([sample()], 70).splitlines())) <= 90


def test_json_output_keys():
    report = json.loads(json.dumps(doctor_report.as_json("run", [sample()]), allow_nan=False))
    assert set(report) == {"findings", "source", "steps", "metrics"}
    assert all(
        set(row) == {"code", "severity", "first_step", "evidence", "cause", "remedy", "ruled_out"}
        for row in report["findings"]
    )
    assert [row["first_step"] for row in report["findings"]] == [13, None, None]
    assert report["metrics"][0]["not_judged"] == ["no answer length: length hacking not checked"]


def test_exit_status_is_the_worst_severity():
    diagnosis = sample()
    by = {f.severity: Diagnosis(diagnosis.log, (f,), ()) for f in diagnosis.findings}
    assert [doctor.exit_code([by[s]]) for s in ("info", "warning", "critical")] == [0, 1, 2]
    assert doctor.exit_code([Diagnosis(diagnosis.log, (), ())]) == 0
    assert doctor.exit_code([by["info"], by["critical"], by["warning"]]) == 2


def test_html_page_is_safe_and_shows_the_curves(tmp_path: Path):
    file = tmp_path / "page.html"
    doctor.write_page(file, Path("run"), [sample()])
    html = file.read_text(encoding="utf-8")
    page = Page(html)
    assert "<script>alert" not in html
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", html)
    charts = page.all("figure")
    assert len(charts) >= 3
    assert "KL, nats per prompt: nats per answer" in page.text
    assert "from step 13" in page.text
    assert "ruled out" in page.text.lower()
    assert "Not finite at 1 steps." in page.text
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    for kind in ("script", "style"):
        (body,) = re.findall(rf"<{kind}>(.*?)</{kind}>", html, re.DOTALL)
        assert b64encode(hashlib.sha256(body.encode()).digest()).decode() in policy
    with pytest.raises(TowpathError):
        doctor.write_page(tmp_path / "page.html" / "in-a-file.html", Path("run"), [sample()])


def towpath(*words: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "towpath", *map(str, words)], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_doctor_command(tmp_path: Path):
    bad = put(
        tmp_path / "bad.jsonl",
        *({"step": k, "loss": math.nan if k > 10 else 2 - k / 20, "grad_norm": 1.0} for k in range(1, 21)),
    )
    done = towpath("doctor", bad, "--json", "--html", tmp_path / "out.html")
    report = json.loads(done.stdout)
    assert done.returncode == 2, done.stderr
    assert report["findings"][0]["code"] == "not-finite"
    assert report["findings"][0]["first_step"] == 11
    assert (tmp_path / "out.html").is_file()
    missing = towpath("doctor", tmp_path / "none.jsonl", "--json")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "rule:" in missing.stderr


def test_every_metric_is_documented():
    page = (ROOT / "docs" / "doctor.md").read_text()
    missing = [
        name
        for name, metric in METRICS.items()
        if f"| `{name}{'…' if name.endswith(('/', '_')) else ''}` | {metric.description} |" not in page
    ]
    assert not missing
    assert all(
        meaning.ours == "" or names.is_ours(meaning.ours)
        for dialect in names.DIALECTS
        for meaning in dialect.names.values()
    )


# Inside a trainer.


def trainer(folder: str, out: Path, *callbacks: Any, steps: int = 6, broken: bool = False) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if broken:
        with torch.no_grad():
            next(model.parameters())[0, 0] = math.nan
    rows = [{"input_ids": [k % 7 + 3] * 12, "labels": [k % 7 + 3] * 12} for k in range(64)]
    args = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=4,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        learning_rate=1e-3,
        dataloader_pin_memory=False,
    )
    return Trainer(model, args, train_dataset=rows, callbacks=list(callbacks))  # pyright: ignore[reportArgumentType]


def test_callback_reads_logs_and_counts_diagnoses(tiny_folder: str, tmp_path: Path):
    from towpath.view.callback import DoctorCallback

    lines: list[str] = []
    callback = DoctorCallback(say=lines.append, share=1.0, every=2)
    trainer(tiny_folder, tmp_path, callback).train()
    assert callback.log is not None
    assert callback.log.history.curve("loss").steps.tolist() == list(range(6))
    assert callback.log.history.facts["sft.learning_rate"] == 1e-3
    # 7 logs including the summary, a diagnosis after every second one, and one at the end.
    assert callback.diagnoses == 4
    assert callback.seconds > 0
    assert not [line for line in lines if line.startswith("critical")]


def test_callback_reports_a_finding_once_and_can_stop_training(tiny_folder: str, tmp_path: Path):
    from towpath.view.callback import DoctorCallback

    lines: list[str] = []
    advises = DoctorCallback(say=lines.append, share=1.0)
    stops = DoctorCallback(say=lambda _: None, share=1.0, stop_on_critical=True)
    patient = trainer(tiny_folder, tmp_path, advises, broken=True)
    patient.train()
    assert patient.state.global_step == 6
    assert len([line for line in lines if "not-finite" in line]) == 1
    assert advises.findings[0].code == "not-finite"
    stopped = trainer(tiny_folder, tmp_path, stops, broken=True)
    stopped.train()
    assert stopped.state.global_step < 6


def test_callback_limits_its_share_of_time(tiny_folder: str, tmp_path: Path):
    from towpath.view.callback import DoctorCallback

    greedy = DoctorCallback(share=1.0)
    modest = DoctorCallback(share=1e-9)
    off = DoctorCallback(act="off")
    trainer(tiny_folder, tmp_path, greedy, modest, off, steps=20).train()
    assert greedy.diagnoses == 22
    assert modest.diagnoses == 2
    assert (off.diagnoses, off.findings) == (0, ())
    for wrong in ({"act": "auto"}, {"every": 0}):
        with pytest.raises(RecipeError):
            DoctorCallback(**wrong)


def test_callback_errors_do_not_stop_training(tiny_folder: str, tmp_path: Path):
    from towpath.view.callback import DoctorCallback

    lines: list[str] = []
    wrong = DoctorCallback(say=lines.append, share=1.0, maps={"never/logged": "reward"})
    broken = DoctorCallback(
        say=lines.append, share=1.0, facts={"policy.kl.coef": 0.05, "health.limits.kl_high": "word"}
    )
    done = trainer(tiny_folder, tmp_path, wrong, broken)
    done.train()
    assert done.state.global_step == 6
    assert len(lines) == 2
    assert "training continues without it" in lines[0]
    assert "no column 'never/logged'" in lines[1]


# Real runs of TRL.


def trl_run(task: str, folder: Path) -> Path:
    peer = "trl110" if task == "ppo" else "trl"
    if python_of(peer) == sys.executable:
        pytest.skip(f"no environment with TRL ({peer}): `make bench` makes it")
    model = prepare_model(SHAPE, folder / "models")
    out = folder / task
    packages = Path(pytest.__file__).parent.parent
    command = [python_of(peer), "-m", "tests.trl_runs", task, model, out, packages]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


REAL = {
    "ppo": (
        "TRL's PPO",
        4,
        (
            "kl",
            "reward",
            "entropy",
            "approx_kl",
            "clip_fraction",
            "policy_loss",
            "value_loss",
            "ratio",
            "learning_rate",
            "kl_coef",
        ),
    ),
    "grpo": (
        "TRL's GRPO",
        4,
        (
            "kl",
            "kl_per_token",
            "reward",
            "reward_std",
            "entropy",
            "length",
            "finish_rate",
            "clip_fraction",
            "score/variety",
        ),
    ),
    "dpo": ("TRL's DPO", 4, ("loss", "accuracy", "gap", "chosen", "rejected", "pairs_loss", "pairs_accuracy")),
    "sft": ("TRL's SFT", 4, ("loss", "grad_norm", "learning_rate")),
    "reward": ("TRL's reward model", 4, ("loss", "accuracy", "gap", "grad_norm")),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", list(REAL))
def test_trl_runs_are_read_from_state_events_and_callback(task: str, tmp_path: Path):
    out = trl_run(task, tmp_path)
    dialect, steps, expected = REAL[task]
    (from_state,), (from_events,) = open_logs(out), open_logs(out / "tensorboard")
    for log in (from_state, from_events):
        assert (log.dialect, log.steps) == (dialect, steps)
        assert [name for name in expected if not log.has(name)] == []
        assert log.unknown == ()
    for name, curve_of in from_state.history.train.items():
        other = from_events.history.curve(name)
        assert other.steps.tolist() == curve_of.steps.tolist(), name
        assert other.values.tolist() == pytest.approx(curve_of.values.tolist(), rel=1e-5, abs=1e-6, nan_ok=True), name
    within = json.loads((out / "report.json").read_text())
    assert within["diagnoses"] >= steps
    assert within["facts"]["stage"] == from_state.history.facts["stage"]
    if task == "ppo":
        # The KL is a sum over an answer of twelve tokens.
        assert value(from_state, "kl_coef") == pytest.approx(0.07, rel=1e-3)
        assert within["facts"]["policy.kl.coef"] == 0.07
        assert from_events.history.facts["policy.ppo.clip"] == 0.2
    if task == "grpo":
        assert value(from_state, "kl") == pytest.approx(value(from_state, "kl_per_token") * value(from_state, "length"))
        assert from_events.history.facts["policy.kl.coef"] == 0.05
        assert within["facts"]["policy.algo"] == "grpo"
    if task == "dpo":
        assert from_events.history.facts["policy.dpo.beta"] == 0.2
        assert from_state.history.validation_curve("pairs_loss").steps.tolist() == [1, 3]
    diagnoses = doctor.examine(out)
    severities = {finding.severity for diagnosis in diagnoses for finding in diagnosis.findings}
    expected_code = 2 if "critical" in severities else 1 if "warning" in severities else 0
    assert doctor.exit_code(diagnoses) == expected_code
    assert not any(finding.code == "not-finite" for finding in diagnoses[0].findings)


def test_tables_above_the_size_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(table_files, "MAX_BYTES", 10)
    with pytest.raises(DataError, match="GiB"):
        open_logs(put(tmp_path / "log.jsonl", {"step": 1, "loss": 2.0}))
