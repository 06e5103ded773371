"""Work and time of stages before they run: counts against a finished run, formulas against published ones."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classifiers_of_others import make_classifier, make_language_model
from command import towpath
from conftest import SETTINGS

from towpath import recipe as recipes
from towpath.errors import DataError, RecipeError
from towpath.planning.amounts import TRUST, Amount, span, spans, total
from towpath.planning.devices import TrainedSize, formula_speed, layers_of, load_devices, parse_devices, parse_size
from towpath.planning.estimate import StageTime, stage_times
from towpath.planning.memory import CACHE_STRIDE, cache_columns
from towpath.planning.sampling import TimedSampling, sampling_speed
from towpath.planning.sizes import gigabytes
from towpath.planning.speed import CHECKPOINT_SECONDS, CHECKPOINT_SHARE, Speed, saving_seconds, seconds_of
from towpath.planning.work import UNITS, Counts, Work, compared_answers, sampled_pairs, stage_work
from towpath.recipe import Recipe
from towpath.rollout.cache import STRIDE, room
from towpath.run.fingerprint import plan_stages, stage_kinds
from towpath.run.loading import load_corpus
from towpath.run.machine_speed import known_counts
from towpath.run.plan_record import PRIOR_SECONDS, SILENT_SECONDS, begin_stage, progress_line, read_progress
from towpath.run.record import write_current
from towpath.run.run_plan import waiting_seconds
from towpath.stages import speed
from towpath.stages.labelled_pairs import read_labels
from towpath.stages.sampled_texts import count_tokens, read_texts
from towpath.store import manifest
from towpath.store.location import ledger_location
from towpath.store.store import Store

STAGES = ("sft", "reward", "policy")
SPEED = Speed(
    1e-3,
    1e-4,
    0.0,
    1e-5,
    2e-3,
    dict.fromkeys(UNITS, 1e-4),
    dict.fromkeys(STAGES, 3e-4),
    dict.fromkeys(STAGES, 0.01),
    1.0,
)


def result_of(run: Path, stage: str) -> dict:
    return json.loads(next(run.glob(f"stages/{stage}/*/manifest.json")).read_text())["result"]


@pytest.mark.parametrize("completions", [2, 3, 4])
def test_answers_that_are_in_several_pairs_count_once(completions: int) -> None:
    draws = np.random.default_rng(0)
    prompts, share = 4000, 0.3
    pairs = [(i, j) for i in range(completions) for j in range(i)]
    decided = draws.random((prompts, len(pairs))) < share
    used = np.zeros((prompts, completions), dtype=bool)
    for k, pair in enumerate(pairs):
        for answer in pair:
            used[:, answer] |= decided[:, k]
    assert compared_answers(int(decided.sum()), prompts, completions, 0.0) == pytest.approx(used.sum(), rel=0.03)


@pytest.mark.parametrize(("prompt", "answer"), [(20, 10), (31, 40), (31, 160), (48, 1), (64, 300)])
def test_cache_columns_are_those_of_the_cache(prompt: int, answer: int) -> None:
    widths = [prompt + room(prompt, double=True)]
    while widths[-1] < prompt + answer:
        widths.append(widths[-1] + room(widths[-1], double=True))
    before = widths[-2] if len(widths) > 1 else prompt if widths[0] == 2 * prompt else 0
    assert cache_columns(prompt, answer, on_gpu=False) == widths[-1] + before
    assert CACHE_STRIDE == STRIDE
    assert 0 <= cache_columns(prompt, answer, on_gpu=True) - prompt - answer < STRIDE


@pytest.mark.parametrize("ends", [10**9, 9, 4])
def test_sampling_speeds_are_those_of_the_timed_samplings(ends: int) -> None:
    """Also where answers end on their own, long before the tokens that they may have."""
    draws = np.random.default_rng(0)
    step, row, context, prompt = 0.01, 6e-4, 1e-6, 5e-4

    def timed(rows: int, tokens: int) -> TimedSampling:
        lengths = [min(tokens, int(n)) for n in draws.integers(max(1, ends // 2), ends, rows, endpoint=True)]
        sampled = TimedSampling(0.0, 20.0, lengths)
        seconds = rows * 20 * prompt + sampled.steps * step + sampled.tokens * (row + context * sampled.before)
        return replace(sampled, seconds=seconds)

    few, many = ((timed(rows, 2), timed(rows, 18)) for rows in (8, 128))
    solved = sampling_speed(few, many, timed(64, 160))
    assert solved.step == pytest.approx(step, rel=0.02)
    assert solved.row + solved.context * 100 == pytest.approx(row + context * 100, rel=0.15)
    assert solved.prompt == pytest.approx(prompt, rel=0.05)


def test_answers_that_end_at_once_give_no_speed_by_division_of_nothing() -> None:
    alike = TimedSampling(0.1, 20.0, [1] * 8)
    speed = sampling_speed((alike, alike), (alike, alike), alike)
    assert (speed.step, speed.row, speed.context) == (0.0, 0.0, 0.0) and speed.prompt > 0


def test_sampling_costs_more_the_longer_its_rows_are() -> None:
    speed = replace(SPEED, context=1e-6)
    work = Work("completions", "sample", rows=100, prompt=50, answer=40, longest=40)
    alone = seconds_of("sample", [work], SPEED)["completions"]
    assert seconds_of("sample", [work], speed)["completions"] == pytest.approx(alone + 100 * 40 * 1e-6 * (50 + 20))


@pytest.mark.slow
def test_work_is_what_the_stages_did(finished) -> None:
    recipe = Recipe.model_validate(manifest.read(next(finished.glob("stages/sft/*")))["recipe"])
    corpus = load_corpus(recipe, finished)
    counts = count_tokens(recipe, corpus, read_texts(recipe, finished, corpus))
    counts = replace(counts, **known_counts(recipe, finished))
    work = {
        stage: {one.part: one for one in parts}
        for stage, parts in stage_work(recipe, counts, stage_kinds(recipe)).items()
    }
    sft, sample, reward = (result_of(finished, stage) for stage in ("sft", "sample", "reward"))
    assert work["sft"]["training"].steps == pytest.approx(sft["steps"], abs=recipe.sft.epochs)
    assert work["sft"]["validation"].rows == pytest.approx(sft["validation_rows"], abs=1)
    sampled = work["sample"]["completions"].rows + work["sample"]["completions of the other model"].rows
    assert sampled == pytest.approx(sample["completions"], rel=0.1, abs=2)
    assert counts.answer_tokens == sample["mean_tokens"]
    label = next(finished.glob("stages/label/*"))
    decided = {label.comparison for label in read_labels(label) if label.choice in ("a", "b")}
    with Store.open(ledger_location(finished, "")) as store:
        answers = {answer for c in store.comparisons() if c.id in decided for answer in (c.a, c.b)}
    assert work["reward"]["frozen layers"].rows == len(answers) > 0
    # near-identical completions and ties make no pair
    assert (
        reward["pairs"]
        <= sum(part.steps for part in work["reward"].values()) * recipe.reward.batch / recipe.reward.epochs
    )
    metrics = [
        json.loads(line) for line in next(finished.glob("stages/policy/*/metrics.jsonl")).read_text().splitlines()
    ]
    assert work["policy"]["rollouts"].rows == recipe.policy.rollout * sum(row["phase"] == "train" for row in metrics)
    validations = sum(row["phase"] == "validation" for row in metrics)
    assert work["policy"]["answers for validation"].rows == validations * recipe.policy.validation_prompts


@pytest.mark.slow
def test_labels_of_other_comparisons_say_the_share_that_is_decided(finished) -> None:
    recipe = Recipe.model_validate(manifest.read(next(finished.glob("stages/sft/*")))["recipe"])
    label = result_of(finished, "label")
    prompts = recipe.preferences.prompts
    more = recipe.model_copy(update={"preferences": recipe.preferences.model_copy(update={"prompts": 2 * prompts})})
    assert known_counts(recipe, finished)["pairs"] == label["decided"]
    known = known_counts(more, finished)
    assert "pairs" not in known and known["decided"] == label["decided"] / label["comparisons"]
    recorded = {"preferences": recipe.preferences.model_copy(update={"raters": "recorded"})}
    assert not {"pairs", "decided"} & set(known_counts(recipe.model_copy(update=recorded), finished))


COUNTS = Counts(1000, 300, 80, 40, 500, 20.0, 80.0)


def test_time_is_in_proportion_to_rows_and_divided_over_workers() -> None:
    one = Work("training", "train", 100, 20, 60, repeats=2, method="lora", steps=10)
    seconds = seconds_of("policy", [one], SPEED)["training"]
    assert seconds == pytest.approx(100 * 2 * 80 * 3e-4 + 10 * 0.01)
    assert seconds_of("policy", [replace(one, rows=200, steps=20)], SPEED)["training"] == pytest.approx(2 * seconds)
    assert seconds_of("policy", [one], SPEED, 2)["training"] == pytest.approx(100 * 80 * 3e-4 + 10 * 0.01)
    sampled = Work("rollouts", "sample", 300, 20, 50, 80)
    steps = 2 * 80 * 1e-3  # two batches of at most 256 rows
    assert seconds_of("policy", [sampled], SPEED)["rollouts"] == pytest.approx(
        steps + 300 * 50 * 1e-4 + 300 * 20 * 1e-5
    )


def test_range_of_answers_that_are_not_known_is_wider() -> None:
    recipe = recipes.Recipe()
    times = {time.stage: time for time in stage_times(recipe, COUNTS, stage_kinds(recipe), SPEED, "measured")}
    known = stage_times(recipe, replace(COUNTS, answer_tokens=60.0), stage_kinds(recipe), SPEED, "measured")
    for one in known:
        assert one.low < one.likely < one.high
        if one.stage != "sft":
            assert one.high - one.low < times[one.stage].high - times[one.stage].low
    assert sum(times["policy"].parts.values()) == pytest.approx(times["policy"].likely)


def test_range_before_labels_has_the_time_of_many_ties() -> None:
    recipe = recipes.Recipe()
    counts = replace(COUNTS, answer_tokens=60.0, pairs=None)

    def reward_time(counts: Counts) -> StageTime:
        return stage_times(recipe, counts, ["reward"], SPEED, "measured")[0]

    compared = sampled_pairs(recipe, min(COUNTS.train, recipe.preferences.prompts or COUNTS.train))
    before = reward_time(counts)
    for share in (0.3, 1.0):
        assert before.low < reward_time(replace(counts, pairs=round(share * compared))).likely < before.high
    few = reward_time(replace(counts, pairs=round(0.3 * compared)))
    assert few.high < before.high
    share = reward_time(replace(counts, decided=0.2))
    assert share.low < share.likely < share.high < before.high


PUBLISHED = [
    (1.3e9, "A100-80GB", 1, 11.7),
    (1.3e9, "A100-40GB", 1, 15.4),
    (1.3e9, "A100-80GB", 8, 1.4),
    (6.7e9, "A100-40GB", 8, 5.7),
    (13.2e9, "A100-40GB", 8, 10.8),
    (6.7e9, "A100-80GB", 8, 4.1),
    (13.2e9, "A100-80GB", 8, 9.0),
    (30e9, "A100-80GB", 8, 18.0),
]
"""Parameters of the policy, GPU, number of GPUs and hours for 131,900 prompts of 256 and answers of 256 tokens, with a
reward model and a critic of 350M, all weights trained: DeepSpeed-Chat's release blog, tables 1 and 4, and its
benchmark of one GPU. The first row is the one that LATENCY is solved from."""


@pytest.mark.parametrize(("parameters", "name", "gpus", "hours"), PUBLISHED)
def test_formula_is_within_a_quarter_of_published_runs(parameters, name, gpus, hours) -> None:
    device = load_devices().find(name)
    trained = {"policy": TrainedSize(parameters, 0), "critic": TrainedSize(350e6, 0)}
    passes = {"score": 1.0, "reward": 1.0}
    speed = formula_speed(device, parameters, layers_of(parameters), 350e6, trained, passes)
    rows = 131_900
    shape: dict[str, Any] = {"rows": rows, "prompt": 256, "answer": 256}
    work = [
        Work("rollouts", "sample", longest=256, **shape),
        Work("policy and reference", "score", repeats=2, **shape),
        Work("reward and value", "score", repeats=2, unit="reward", **shape),
        Work("training", "train", method="full", steps=rows / 1024, **shape),
    ]
    seconds = sum(seconds_of("policy", work, speed, gpus).values())
    seconds += sum(seconds_of("critic", work[-1:], speed, gpus).values())
    assert seconds / 3600 == pytest.approx(hours, rel=0.25)


def test_formula_is_within_a_quarter_of_a_published_step_with_vllm() -> None:
    """GRPO of Llama-3.1-8B, 2,048 answers of 1,019 tokens on 16 H100: 92.8 s a step (NeMo RL, performance summary of
    v0.5). The longest answer is not published; it is taken to be twice the mean."""
    device = load_devices().find("H100")
    speed = formula_speed(device, 8e9, 36, 8e9, {"policy": TrainedSize(8e9, 0)}, {"score": 1.0}, has_server=True)
    shape: dict[str, Any] = {"rows": 2048, "prompt": 100, "answer": 1019}
    work = [
        Work("rollouts", "sample", longest=2038, **shape),
        Work("policy and reference", "score", repeats=2, **shape),
        Work("training", "train", method="full", steps=1, **shape),
    ]
    assert sum(seconds_of("policy", work, speed, 16).values()) == pytest.approx(92.8, rel=0.25)


def test_an_engine_for_sampling_is_faster_by_formula(tiny_run) -> None:
    own, served = (
        times_of(plan_of(tiny_run, "--on", "8xH100", "--model-size", "7B", "--set", f"engine.type={engine}"))
        for engine in ("local", "vllm")
    )
    assert served["sample"]["parts"]["completions"] < own["sample"]["parts"]["completions"] / 2
    assert served["policy"]["parts"]["training"] == own["policy"]["parts"]["training"]


def test_devices_are_named_with_their_number(tmp_path) -> None:
    table = load_devices()
    count, device = parse_devices("8xH100", table)
    assert (count, device.name, device.memory) == (8, "H100", 80e9)
    assert parse_devices("a100-40gb", table)[1].name == "A100-40GB"
    assert parse_devices("A100", table)[1].name == "A100-80GB"
    with pytest.raises(RecipeError, match="no such device in the table"):
        parse_devices("4xP100", table)
    with pytest.raises(RecipeError, match="as in 8xH100"):
        parse_devices("0xH100", table)
    own = tmp_path / "devices.toml"
    numbers = "operations = 1e15\nmemory = 9e10\nbandwidth = 4e12\nlink = 1e11\ndollars = [1, 2, 3]\n"
    own.write_text(f'date = "2027-01"\nsource = "offer"\n[device.X1]\n{numbers}')
    assert load_devices(own).find("x1").dollars == (1.0, 2.0, 3.0)
    own.write_text('date = "2027-01"\n')
    with pytest.raises(DataError, match="a table has date, source"):
        load_devices(own)


def test_sizes_have_a_unit() -> None:
    assert parse_size("7B") == 7e9 and parse_size("350m") == 350e6 and layers_of(7e9) == 32
    for text in ("7", "B", "0B", "7T"):
        with pytest.raises(RecipeError, match="parameters as in 7B"):
            parse_size(text)


def plan_of(run: Path, *options: object) -> dict:
    done = towpath("plan", run, "--json", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["run"]


def times_of(content: dict) -> dict[str, dict]:
    """Stages that compute."""
    return {stage["stage"]: stage for stage in content["stages"] if stage["computation"]["high"]}


@pytest.fixture
def tiny_run(tmp_path) -> Path:
    run = tmp_path / "run"
    assert towpath("new", run, "--recipe", "tiny").returncode == 0
    return run


class Stopped(Exception):
    """Ends a trial as it begins."""


def test_a_trial_computes_with_the_settings_of_a_run(tiny_run, monkeypatch) -> None:
    """Products of float32 that are not set as in a run take three times as long on some processors."""
    recipe = recipes.load(tiny_run)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    thread_counts: list[int] = []

    def say(_part: str) -> None:
        thread_counts.append(torch.get_num_threads())
        raise Stopped

    with pytest.raises(Stopped):
        speed.measure(recipe, tiny_run, load_corpus(recipe, tiny_run), stage_kinds(recipe), say)
    assert thread_counts == [threads]


def test_checkpoints_that_take_long_are_rarer(monkeypatch) -> None:
    monkeypatch.delenv("TOWPATH_CHECKPOINT_SECONDS", raising=False)
    from towpath.stages.job import Job
    from towpath.stages.loop import CHECKPOINT_SHARE as SHARE

    wanted = Job.__dataclass_fields__["checkpoint_seconds"].default_factory()
    assert (wanted, SHARE) == (CHECKPOINT_SECONDS, CHECKPOINT_SHARE)
    speed = replace(SPEED, checkpoint={"sft": 4.0}, export={"sft": 3.0})
    counted = [saving_seconds("sft", training, speed) for training in (10, 30, 99, 101, 260)]
    assert counted == [4 + 3, 8 + 3, 8 + 3, 12 + 3, 20 + 3]
    assert saving_seconds("sft", 45, replace(speed, checkpoint={"sft": 0.5})) == 0.5 * 3 + 3
    assert saving_seconds("judge_model", 1000, SPEED) == 0


@pytest.mark.slow
def test_the_command_measures_once_and_plans_elsewhere(tiny_run) -> None:
    before = towpath("plan", tiny_run)
    assert (
        f"`towpath plan {tiny_run} --measure`" in before.stdout and "time of computation: assumption" in before.stdout
    )
    measured = plan_of(tiny_run, "--measure")
    times = times_of(measured)
    assert list(times) == ["sft", "baseline", "sample", "reward", "policy", "evaluate"]
    for stage in times.values():
        seconds = stage["computation"]
        assert 0 < seconds["low"] < seconds["likely"] < seconds["high"] and seconds["source"] == "measured"
        assert stage["memory"]["source"] == "measured" and stage["memory"]["measured"] > 10**8
    after = towpath("plan", tiny_run).stdout
    assert "time of computation: measured" in after and "per step" in after
    # twice the steps are twice the rollouts, at the speeds that are known
    longer = times_of(plan_of(tiny_run, "--set", "policy.steps=6"))
    assert longer["policy"]["parts"]["training"] == pytest.approx(2 * times["policy"]["parts"]["training"])
    more = times_of(plan_of(tiny_run, "--completions", 96))
    assert more["policy"]["parts"]["training"] == pytest.approx(2 * times["policy"]["parts"]["training"])
    checked = next(f for f in json.loads(towpath("check", tiny_run, "--json").stdout) if f["code"] == "memory")
    largest = max(stage["memory"]["total"] for stage in times.values())
    assert gigabytes(largest) in checked["evidence"]
    elsewhere = plan_of(tiny_run, "--on", "8xH100", "--model-size", "7B", "--pairs", 50000)
    assert elsewhere["machine"] == "8 × H100" and elsewhere["total"]["dollars"]["likely"] > 0
    refused = towpath("plan", tiny_run, "--on", "8xP100", "--model-size", "7B")
    assert refused.returncode == 1 and "no such device in the table" in refused.stderr


@pytest.mark.parametrize("option", ["--model-size=7B", "--devices=x.toml"])
def test_another_model_without_other_gpus_is_refused(option, tmp_path) -> None:
    refused = towpath("plan", tmp_path, option)
    assert refused.returncode == 1 and "without --on" in refused.stderr and "add --on" in refused.stderr


def test_a_plan_loads_no_torch_without_a_gpu(tiny_run) -> None:
    if any(Path("/dev").glob("nvidia*")):
        pytest.skip("this machine has a GPU")
    program = (
        "import sys\nfrom towpath.cli.app import app\n"
        f"app(['plan', {str(tiny_run)!r}], standalone_mode=False)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


ARTICLE = [
    *("--on", "8xA100-80GB", "--model-size", "7B", "--pairs", 50_000, "--completions", 1_500_000),
    *("--set", "preferences.raters=blend", "--set", "preferences.human_share=0.35", "--set", "preferences.overlap=0.2"),
    *("--set", "judge.base_url=http://localhost:1/v1", "--set", "judge.model=m", "--set", "judge.price_out=10"),
    *("--set", "budget.raters=8", "--set", "policy.rollout=512"),
]
"""50,000 pairs, 65 % of them by a judge alone, 1.5 million completions, 8 A100, a model of 7B."""


def amounts_in(content: object) -> Iterator[dict]:
    if isinstance(content, dict):
        if "likely" in content:
            yield content
        for value in content.values():
            yield from amounts_in(value)
    elif isinstance(content, list):
        for value in content:
            yield from amounts_in(value)


def test_the_case_of_a_team_is_planned_without_a_gpu(tiny_run, tmp_path) -> None:
    page = tmp_path / "plan.html"
    content = plan_of(tiny_run, *ARTICLE, "--html", page)
    stages = {stage["stage"]: stage for stage in content["stages"]}
    hours = 50_000 * 0.35 * 1.2 * 60 / 3600
    label = stages["label"]
    assert label["people"]["likely"] == pytest.approx(hours)
    assert label["people"]["source"] == "assumption" and label["people_dollars"]["likely"] == pytest.approx(20 * hours)
    days = hours / (8 * 4)
    assert label["waiting"]["likely"] / 86_400 == pytest.approx(days * 7 / 5, abs=7 / 5)
    assert label["judge_dollars"]["likely"] > 0 and label["judge"]["likely"] > 0
    assert stages["policy"]["gpu_dollars"]["source"] == "table" and content["fits"]
    rollouts = stages["policy"]["parts"]["rollouts"]
    assert stages["policy"]["computation"]["likely"] > rollouts > 3600
    # the critical path is one bar after another, and as long as the whole
    end = 0.0
    for bar in content["critical_path"]:
        assert bar["start"] == pytest.approx(end)
        end = bar["end"]
    assert end == pytest.approx(content["total"]["seconds"]["likely"])
    assert len(content["changes"]) == 3
    assert all(change["seconds"] < 0 or change["dollars"] < 0 for change in content["changes"])
    amounts = list(amounts_in(content))
    assert len(amounts) > 50 and all(amount["source"] in TRUST for amount in amounts)
    assert all(amount["low"] <= amount["likely"] <= amount["high"] for amount in amounts)
    html = page.read_text(encoding="utf-8")
    assert "on 8 × A100-80GB" in html and "Critical path" in html and "Cheapest changes" in html


def test_a_judge_for_most_pairs_is_the_change_that_a_team_of_people_is_told(tiny_run) -> None:
    by_people = [*ARTICLE[:8], "--set", "preferences.raters=people", "--set", "preferences.overlap=0.2"]
    lines = towpath("plan", tiny_run, *by_people, "--set", "budget.raters=8").stdout
    assert "a judge for 65% of the pairs: −" in lines and "expected label error" in lines


def test_days_of_people_count_nights_and_weekends() -> None:
    recipe = Recipe.model_validate({"budget": {"raters": 2, "hours_a_day": 4}})
    assert waiting_seconds(4, recipe) == 2 * 3600
    assert waiting_seconds(40, recipe) == pytest.approx(7 * 86_400)


def test_totals_have_the_source_of_the_least_certain_part() -> None:
    parts = [Amount(1, 2, 3, "measured", "a"), Amount(0, 0, 0, "assumption"), Amount(10, 20, 30, "table", "b")]
    assert total(parts) == Amount(11, 22, 33, "table", "b")
    assert total([]).likely == 0
    assert spans(Amount(60 * 60, 90 * 60, 100 * 60, "measured")) == "90 min (60 to 100 min)"
    assert span(3 * 86_400) == "3.0 days" and span(100 * 86_400) == "100 days" and span(4) == "4 s"


@pytest.mark.slow
def test_a_run_is_shown_beside_its_plan(finished) -> None:
    progress = read_progress(finished)
    assert progress and [stage.state for stage in progress.stages] == ["done"] * 7
    assert progress.left == 0 and progress.actual == pytest.approx(sum(s.actual or 0 for s in progress.stages))
    for stage in progress.stages:
        if stage.name != "label":
            assert stage.planned and stage.planned.likely > 0 and stage.planned_memory and stage.actual_memory
    lines = towpath("status", finished, *SETTINGS).stdout
    assert re.search(r"sft +done +took .* planned", lines) and re.search(r"time: .* in all; .* were planned", lines)
    assert "planned" in (finished / "reports" / "report.html").read_text(encoding="utf-8").partition('id="lineage"')[2]


def stage_dir(run: Path, name: str, seconds: float | None) -> None:
    folder = run / "stages" / name / "f"
    folder.mkdir(parents=True)
    if seconds is not None:
        content = {"status": "done", "seconds": seconds, "peak_memory_bytes": 10**9}
        (folder / "manifest.json").write_text(json.dumps(content))


def test_the_rest_is_estimated_by_what_was_measured(tmp_path) -> None:
    likely = {"sft": 100.0, "sample": 200.0, "policy": 300.0}
    rows = {
        name: {
            "fingerprint": "f",
            "seconds": {"low": 1, "likely": seconds, "high": 999, "source": "measured", "basis": ""},
            "expected": 2 * seconds,  # by a newer plan
            "memory": {"bytes": 5, "source": "formula"},
        }
        for name, seconds in likely.items()
    }
    (tmp_path / "plan.json").write_text(json.dumps({"stages": rows}))
    write_current(tmp_path, dict.fromkeys(likely, "f"), [])
    stage_dir(tmp_path, "sft", 160.0)
    for name in ("sample", "policy"):
        stage_dir(tmp_path, name, None)
    begin_stage(tmp_path / "stages" / "sample" / "f")
    progress = read_progress(tmp_path)
    assert progress and progress.factor == pytest.approx((160 + PRIOR_SECONDS) / (100 + PRIOR_SECONDS))
    sft, sample, policy = progress.stages
    assert (sft.state, sample.state, policy.state) == ("done", "started", "to do")
    assert sft.ratio == 1.6 and sft.left == 0
    assert policy.left == pytest.approx(progress.factor * 600)
    assert sample.left == pytest.approx(progress.factor * 400, abs=2)
    assert progress_line(progress).startswith("time: 2.7 min until now, about 25 min left; 10 min were planned")
    damaged = {"sft": rows["sft"] | {"expected": "soon"}, "policy": {"fingerprint": "f", "seconds": {}}}
    for content in ("{", json.dumps({"stages": damaged})):
        (tmp_path / "plan.json").write_text(content)
        assert read_progress(tmp_path) is None


def test_a_stage_that_was_stopped_does_not_go_on_in_the_plan(tmp_path) -> None:
    folder = tmp_path / "stages" / "policy" / "f"
    stage_dir(tmp_path, "policy", None)
    row = {
        "fingerprint": "f",
        "seconds": {"low": 1, "likely": 300.0, "high": 999, "source": "measured", "basis": ""},
        "expected": 300.0,
        "memory": None,
    }
    (tmp_path / "plan.json").write_text(json.dumps({"stages": {"policy": row}}))
    write_current(tmp_path, {"policy": "f"}, [])
    hours_ago = time.time() - 3 * 3600

    def taken() -> float:
        progress = read_progress(tmp_path)
        assert progress and progress.stages[0].actual is not None
        return progress.stages[0].actual

    (folder / "started").write_text(f"{hours_ago:.1f} {hours_ago:.1f}")
    (folder / "metrics.jsonl").write_text("")
    for path in (folder / "started", folder / "metrics.jsonl", folder):
        os.utime(path, (hours_ago + 40, hours_ago + 40))
    # killed: the last sign, and as long as a stage may be silent
    assert taken() == pytest.approx(40 + SILENT_SECONDS, abs=1)
    (folder / "seconds").write_text("44.0")
    assert taken() == 44.0
    # another attempt
    now = time.time()
    os.utime(folder / "seconds", (hours_ago + 44, hours_ago + 44))
    (folder / "started").write_text(f"{hours_ago:.1f} {now - 5:.1f}")
    assert taken() == pytest.approx(49, abs=2)


def test_gpus_are_recognised_by_what_their_driver_says() -> None:
    table = load_devices()
    for words, memory, name in (
        ("NVIDIA A100-SXM4-80GB", 85e9, "A100-80GB"),
        ("NVIDIA A100-PCIE-40GB", 42e9, "A100-40GB"),
        ("NVIDIA L40S", 48e9, "L40S"),
        ("NVIDIA L4", 24e9, "L4"),
        ("NVIDIA GeForce RTX 4090", 25e9, "RTX4090"),
        ("NVIDIA H200", 150e9, "H200"),
        ("Some other GPU", 47e9, "L40S"),
    ):
        assert table.like(words, memory).name == name, words


def test_a_judge_without_a_price_is_named(tiny_run) -> None:
    options = [*ARTICLE[:8], "--set", "preferences.raters=judge", "--set", "judge.base_url=http://localhost:1/v1"]
    notes = plan_of(tiny_run, *options, "--set", "judge.model=m")["notes"]
    assert any("price_in and price_out are 0" in note for note in notes)
    priced = plan_of(tiny_run, *options, "--set", "judge.model=m", "--set", "judge.price_out=10")["notes"]
    assert not any("price_in" in note for note in priced)


@pytest.mark.slow
def test_changes_compare_like_with_like(tiny_run) -> None:
    """LoRA was not measured here: its assumed speeds say nothing beside those that were."""
    full = ("--set", "sft.method=full", "--set", "policy.method=full")
    assert any(
        "LoRA" in change["title"]
        for change in plan_of(tiny_run, "--on", "A100", "--model-size", "7B", *full)["changes"]
    )
    changes = plan_of(tiny_run, "--measure", *full)["changes"]
    assert not any("LoRA" in change["title"] for change in changes)


def planned(run: Path, *settings: str) -> list[str]:
    recipe = recipes.load(run, list(settings))
    return list(dict.fromkeys(stage.kind for stage in plan_stages(recipe, run, load_corpus(recipe, run), None)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("policy.algo=dpo",),
        ("policy.algo=grpo", 'policy.rewards.sources=[{source="rule:words:8-35"}]'),
        ('evaluate.judges=["model"]',),
        ("rounds=2",),
        ("sft.method=none",),
    ],
)
def test_stages_that_are_planned_are_those_of_the_run(settings, tmp_path) -> None:
    run = tmp_path / "run"
    assert towpath("new", run, "--recipe", "tiny").returncode == 0
    assert stage_kinds(recipes.load(run, list(settings))) == planned(run, *settings)


CASES = {
    "workers": ("cluster.workers=2", "cluster.threads=1"),
    "all-weights": ("sft.method=full", "policy.method=full", "reward.method=full", "policy.ppo.critic=adapter"),
    "pairs": ("policy.algo=dpo",),
    "rule": ("policy.algo=grpo", 'policy.rewards.sources=[{source="rule:words:8-35"}]'),
    "held-out-judge": ('evaluate.judges=["model"]',),
    "tuned": ("sft.method=none",),
}


@pytest.mark.proof
@pytest.mark.parametrize("name", CASES)
def test_other_recipes_are_measured(name, tmp_path) -> None:
    run = tmp_path / "run"
    assert towpath("new", run, "--recipe", "tiny").returncode == 0
    settings = [word for setting in CASES[name] for word in ("--set", setting)]
    times = times_of(plan_of(run, "--measure", *settings))
    expected = [stage for stage in stage_kinds(recipes.load(run, list(CASES[name]))) if stage != "label"]
    assert list(times) == [stage for stage in expected if stage != "sft" or name != "tuned"]
    assert all(time["computation"]["likely"] > 0 for time in times.values())


@pytest.mark.proof
def test_reward_models_from_elsewhere_are_measured(tmp_path) -> None:
    """A classifier, and another base model, each with a tokenizer of its own."""
    run = tmp_path / "run"
    assert towpath("new", run, "--recipe", "tiny").returncode == 0
    classifier = make_classifier(tmp_path / "classifier", "Bert")
    other = make_language_model(tmp_path / "other", "Llama", "llama-3")
    for setting in (f"reward.pretrained={classifier}", f"reward.base={other}"):
        content = plan_of(run, "--measure", "--set", setting)
        times = {stage: row["parts"] for stage, row in times_of(content).items()}
        assert times["evaluate"]["reward model"] > 0 and times["policy"]["scores of rollouts"] > 0


def test_what_does_not_fit_is_named(tiny_run) -> None:
    full = ("--set", "policy.method=full", "--set", "sft.method=full")
    large = towpath("plan", tiny_run, "--on", "A10G", "--model-size", "13B", *full).stdout
    assert "it does not fit: policy takes" in large and "policy.method = 'lora'" in large
    small = towpath("plan", tiny_run, "--on", "8xH100", "--model-size", "1.3B").stdout
    assert "does not fit" not in small and "of 80.0 GB" in small
    divided = plan_of(tiny_run, "--on", "8xH100", "--model-size", "13B", *full)
    assert divided["parts"] == 8 and divided["fits"]
    assert "models are divided over 8 devices" in divided["notes"]


def test_numbers_of_the_stages_are_theirs() -> None:
    """The plan loads no torch, so it cannot read them there."""
    from towpath.planning import work
    from towpath.rollout import experience
    from towpath.stages import reward_training

    assert work.PROBE_TOKENS == experience.PROBE_TOKENS
    assert (work.MAX_PROBED, work.NORMALISED) == (reward_training.MAX_PROBED, reward_training.MAX_ANSWERS)
