"""Whole sweeps of the tiny recipe: trials, confirmation, resume, pruning, several processes, errors."""

import errno
import json
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from command import start, towpath
from conftest import serious
from sweep_runs import OPTIONS, OVERRIDES, SHORT, copy_run, essence, first_trials, sweep
from watched_run import serving_run

from benchmarks.postgres import new_database
from towpath import recipe
from towpath.errors import GateClosed, RecipeError, ResourceError, TrainingError
from towpath.evals.judges import JudgeOutcomes, PairOutcome
from towpath.records import Finding
from towpath.rollout.stored_outputs import StartCache
from towpath.runtime import process
from towpath.store.store import Store
from towpath.store.study_storage import translate_storage_errors
from towpath.sweep import preparation, processes, search, trial
from towpath.sweep.apply import recipe_change
from towpath.sweep.objective import TrialValue
from towpath.sweep.record import SweepRecord, as_json, read_sweep
from towpath.sweep.study import TrialStudy
from towpath.sweep.trial_record import TrialRecord, empty_curve
from towpath.view.report import report
from towpath.view.report.sweep import sweep_section
from towpath.view.sweep_table import sweep_lines

VALUE = (0.6, (0.5, 0.7), 0.5, True, 0.6, 0.0)


def silent(_line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def swept(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a finished sweep, made once; tests change copies."""
    run = copy_run(finished, tmp_path_factory.mktemp("swept") / "run")
    sweep(run)
    return run


@pytest.fixture
def record(swept: Path) -> SweepRecord:
    record = read_sweep(swept)
    assert record is not None
    return record


def test_sweep_uses_the_stages_of_the_run(finished: Path, swept: Path):
    def stages(run: Path) -> set[Path]:
        return {path.relative_to(run) for path in (run / "stages").glob("*/*")}

    assert stages(swept) == stages(finished)


def test_trials_have_curves_values_and_intervals(record: SweepRecord):
    assert [t.number for t in record.trials] == [0, 1, 2]
    assert record.trials[0].settings == {"policy.learning_rate": 2e-5, "policy.epochs": 2}
    for t in record.trials:
        assert t.status == "complete" and t.steps == 3
        assert t.curve.win_VP.shape == (3, 8) and t.curve.kl_VP.shape == (3, 8)
        assert t.value.interval[0] <= t.value.value <= t.value.interval[1]
    assert record.trials[1].curve.kl_V[-1] > 100 * record.trials[0].curve.kl_V[-1]
    assert record.judge == "rubric"


def test_trials_keep_no_weights_and_share_the_start(swept: Path, record: SweepRecord):
    folders = list((record.folder / "trials").glob("*/"))
    assert not [path for folder in folders for path in folder.glob("*/*.safetensors")]
    # the validation before training and the first rollout, for each seed and for the recipe's own settings
    assert len(list((record.folder / "start_cache").iterdir())) == 4
    starts = [json.loads((folder / "start.json").read_text()) for folder in folders]
    assert all(row == starts[0] for row in starts)


def test_start_cache_has_the_same_bits(swept: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(StartCache, "outputs", lambda self, requests, stops, make: make())
    result, _ = sweep(copy_run(finished, tmp_path / "run"), *SHORT)
    assert not list((result.folder).glob("start_cache/*"))
    assert first_trials(result) == first_trials(read_sweep(swept))


def test_selection_prompts_are_training_prompts(swept: Path, record: SweepRecord):
    heldout = {row["prompt_id"] for path in swept.glob("stages/evaluate/*/answers.jsonl")
               for row in map(json.loads, path.read_text().splitlines())}  # fmt: skip
    start_rows = json.loads((record.folder / "trials" / "0" / "start.json").read_text())["answers"]
    validated = {row["prompt_id"] for row in start_rows}
    assert len(validated) == 8 and heldout and not validated & heldout


def test_confirmation_has_new_seeds_and_the_own_settings(record: SweepRecord):
    assert [t.seed for t in record.confirmations] == [1, 1]
    assert record.confirmations[0].settings == record.trials[0].settings
    verdict = record.verdict
    assert verdict is not None
    assert verdict.trials[0].number == 0
    assert verdict.outcome in ("no difference shown", "better", "own settings")
    assert verdict.seeds == 1 and verdict.text


def test_table_and_json_show_all_trials(record: SweepRecord):
    lines = "\n".join(sweep_lines(record, recipe.Sweep()))
    assert "0 (recipe)" in lines and "learning_rate" in lines and record.verdict is not None
    assert record.verdict.text in lines and "3 of 3 trials" in lines
    content = json.loads(json.dumps(as_json(record)))
    assert len(content["trials"]) == 3 and content["verdict"]["text"] == record.verdict.text
    assert content["trials"][1]["curve"][0]["step"] == 1


def test_report_and_monitor_show_the_sweep(swept: Path, record: SweepRecord):
    section = sweep_section(swept)
    assert len(section["trials"]) == 3 and section["trials"][0]["name"]
    assert record.verdict is not None and section["verdict"] == record.verdict.text
    assert "data-chart" in section["chart"] and not section["running"]
    page = report.write(swept, [], "swept").read_text()
    assert 'id="sweep"' in page and record.verdict.outcome.partition(" ")[0] in page
    with (
        Store.open(swept / "towpath.db") as store,
        serving_run(swept, store) as (url, auth),
        httpx.Client(base_url=url, headers={"origin": url}) as owner,
    ):
        owner.get(f"/enter?token={auth.link_token()}")
        response = owner.get("/monitor/sweep")
    assert response.status_code == 200 and "0 (recipe)" in response.text


def test_page_of_the_sweep_is_accessible_and_fits_a_phone(swept: Path, browser, axe):
    with Store.open(swept / "towpath.db") as store, serving_run(swept, store) as (url, auth):
        for scheme, width in (("light", 1280), ("dark", 375)):
            context = browser.new_context(base_url=url, color_scheme=scheme, viewport={"width": width, "height": 800})
            page = context.new_page()
            page.goto(f"/enter?token={auth.link_token()}")
            page.goto("/monitor/sweep")
            assert page.get_by_role("heading", name="Trials").is_visible()
            assert not serious(page, axe)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            context.close()


def test_finished_sweep_trains_nothing(swept: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search, "run_trial", lambda *_: pytest.fail("trained again"))
    before = read_sweep(swept)
    after, lines = sweep(swept)
    assert before is not None and essence(after) == essence(before)
    assert not [line for line in lines if "begins study" in line]


def test_show_runs_nothing_and_needs_a_sweep(swept: Path, finished: Path):
    done = towpath("sweep", swept, "--show", "--json")
    assert done.returncode == 0 and len(json.loads(done.stdout)["trials"]) == 3
    missing = towpath("sweep", finished, "--show")
    assert missing.returncode == 1 and "no sweep" in missing.stderr


def test_apply_on_the_command_line(swept: Path, tmp_path: Path):
    run = copy_run(swept, tmp_path / "run")
    path = next(run.glob("sweep/*/verdict.json"))
    before = (run / "recipe.toml").read_text()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"winner": None, "text": "no difference shown"}))
    refused = towpath("sweep", run, "--apply")
    assert refused.returncode == 1 and "no difference shown" in refused.stderr
    assert (run / "recipe.toml").read_text() == before
    path.write_text(json.dumps(json.loads(path.read_text()) | {"winner": 1}))
    done = towpath("sweep", run, "--apply")
    rate = json.loads(next(run.glob("sweep/*/trials/1/result.json")).read_text())["settings"]["policy.learning_rate"]
    assert done.returncode == 0 and f"+learning_rate = {rate:g}" in done.stdout
    result = read_sweep(run)
    assert result is not None
    assert recipe.load(run).policy.learning_rate == result.trials[1].settings["policy.learning_rate"]
    again = towpath("sweep", run, "--apply")
    assert again.returncode == 0 and "already" in again.stderr


def test_changed_inputs_begin_a_new_study_and_say_so(swept: Path, tmp_path: Path):
    run = copy_run(swept, tmp_path / "run")
    plan_lines: list[str] = []
    changed = [*OVERRIDES, "sweep.target_kl=0.03"]
    settings = recipe.load(run, changed)
    preparation.announce(preparation.prepare(settings, run, silent), lambda line: plan_lines.append(str(line)))
    assert "begins study" in plan_lines[0] and "target_kl changed" in plan_lines[0]
    now = read_sweep(run)
    assert now is not None and not now.trials
    same = preparation.prepare(
        recipe.load(run, [*OVERRIDES, "policy.epochs=1", "sweep.trials=9"]), run, lambda line: None
    )
    before = read_sweep(swept)
    assert before is not None and same.study == before.study


def test_killed_sweep_ends_with_the_same_trials(swept: Path, finished: Path, tmp_path: Path):
    """kill -9 in the middle of a trial; the next sweep adopts it, and resumes it from its last checkpoint."""
    run = copy_run(finished, tmp_path / "run")
    options = [*OPTIONS, *(part for value in SHORT for part in ("--set", value))]
    killed = towpath("sweep", run, *options, TOWPATH_FAULT="sweep-curve:5", TOWPATH_CHECKPOINT_SECONDS="0")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = read_sweep(run)
    assert before is not None and [t.number for t in before.open_trials] == [1]
    assert list(before.folder.glob("trials/1/checkpoints/step_*"))
    done, _ = sweep(run, *SHORT)
    assert first_trials(done) == first_trials(read_sweep(swept))


KILLS = (
    *("sweep-settings:2", "sweep-curve:1", "sweep-curve:8", "sweep-result:1", "sweep-result:4", "sweep-finish:2"),
    *("step-policy:4", "step-policy:8", "rename:9", "rollout:5"),
)


@pytest.mark.proof
@pytest.mark.parametrize("fault", KILLS)
def test_sweep_killed_at_any_moment_ends_with_the_same_verdict(swept: Path, finished: Path, tmp_path: Path, fault: str):
    run = copy_run(finished, tmp_path / "run")
    killed = towpath("sweep", run, *OPTIONS, TOWPATH_FAULT=fault, TOWPATH_CHECKPOINT_SECONDS="0")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done, _ = sweep(run)
    before = read_sweep(swept)
    assert before is not None and essence(done) == essence(before)


def test_critical_finding_ends_a_trial_with_its_reason(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def diagnose(history, _limits):
        if history.steps == 2 and history.facts["policy.learning_rate"] > 1e-3:
            return (Finding("kl-rising", "critical", "KL is far", "no penalty", "raise it", 1),)
        return ()

    monkeypatch.setattr(trial, "diagnose", diagnose)
    run = copy_run(finished, tmp_path / "run")
    result, lines = sweep(run, *SHORT)
    assert [t.status for t in result.trials] == ["complete", "pruned"]
    assert result.trials[1].reason == "kl-rising: KL is far" and result.trials[1].steps == 2
    # one more validation, so that its value is that of the weights it came to
    assert result.trials[1].curve.steps == (0, 1)
    assert any("ended after step 2: kl-rising" in line for line in lines)
    assert result.verdict is not None and result.verdict.outcome == "not confirmed"
    with pytest.raises(RecipeError, match="not confirmed"):
        recipe_change(run, result)


def test_failed_trial_is_recorded_and_the_sweep_continues(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train = trial._train

    def fail(shared, settings, folder, watcher):
        if folder.name == "1":
            raise TrainingError("the gradient is nan", "a loss must be finite", "lower the rate")
        return train(shared, settings, folder, watcher)

    monkeypatch.setattr(trial, "_train", fail)
    result, _ = sweep(copy_run(finished, tmp_path / "run"), *SHORT)
    assert [t.status for t in result.trials] == ["complete", "failed"]
    assert result.trials[1].value.value == 0.0 and "nan" in result.trials[1].reason


def test_full_disk_loses_nothing(swept: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = copy_run(finished, tmp_path / "run")
    written = 0
    real = trial.replace_file

    def full(path, text):
        nonlocal written
        written += path.name == trial.CURVE
        if written == 5:
            raise ResourceError(f"{path}: no space left on the disk", "a rule", "free space")
        real(path, text)

    monkeypatch.setattr(trial, "replace_file", full)
    with pytest.raises(ResourceError, match="no space left"):
        sweep(run, *SHORT)
    monkeypatch.setattr(trial, "replace_file", real)
    assert first_trials(sweep(run, *SHORT)[0]) == first_trials(read_sweep(swept))


def test_full_database_is_a_clear_error(tmp_path: Path):
    with TrialStudy(tmp_path / "study.db", "s", tmp_path / "trials", 2, 60) as study:
        claim = study.claim()
        assert not isinstance(claim, str)
        claim.release()
    error = study.optuna.exceptions.StorageInternalError("x")
    error.__cause__ = OSError(errno.ENOSPC, "database or disk is full")
    with pytest.raises(ResourceError, match="disk is full"), translate_storage_errors(study.optuna):
        raise error


def test_two_machines_share_a_study_in_postgresql(finished: Path, swept: Path, tmp_path: Path, postgres_server: str):
    url = new_database(postgres_server)
    runs = [copy_run(finished, tmp_path / name) for name in ("one", "two")]
    options = [*OPTIONS, "--set", "sweep.storage=env:STUDY_URL", "--set", "sweep.trials=4", "--set", "sweep.confirm=0"]
    logs = [tmp_path / f"{i}.log" for i in range(4)]
    started = [
        start("sweep", run, *options, "--json", out=logs[i], err=logs[i + 2], STUDY_URL=url)
        for i, run in enumerate(runs)
    ]
    for command in started:
        command.join(120)
        assert command.exitcode == 0, logs[2].read_text() + logs[3].read_text()
    trials = [json.loads(log.read_text())["trials"] for log in logs[:2]]
    assert [t["number"] for t in trials[0]] == [0, 1, 2, 3]
    assert [(t["settings"], t["value"]) for t in trials[0]] == [(t["settings"], t["value"]) for t in trials[1]]
    trained = [{p.parent.name for p in run.glob("sweep/*/trials/*/start.json")} for run in runs]
    assert trained[0] and trained[1] and not trained[0] & trained[1]
    before = read_sweep(swept)
    assert before is not None
    assert trials[0][0]["value"] == before.trials[0].value.value


def test_dead_machine_is_replaced(tmp_path: Path, postgres_server: str):
    """A trial of another host is taken over once its counter stands still for `sweep.patience`."""
    url = new_database(postgres_server)
    with (
        TrialStudy(url, "s", tmp_path / "one", 1, 0.4) as study,
        TrialStudy(url, "s", tmp_path / "two", 1, 0.4) as other,
    ):
        claim = study.claim()
        assert not isinstance(claim, str)
        study.set_attribute(0, "owner", json.dumps({"host": "elsewhere", "lock": "/there"}))
        assert other.claim() == "wait"
        time.sleep(0.5)
        assert other.claim() == "wait"  # its counter has moved
        claim.release()
        assert other.claim() == "wait"
        time.sleep(0.5)
        taken = other.claim()
        assert not isinstance(taken, str) and taken.number == 0
        taken.release()


def test_lock_shows_whether_the_owner_lives(tmp_path: Path):
    def study() -> TrialStudy:
        return TrialStudy(tmp_path / "study.db", "s", tmp_path / "trials", 1, 60)

    with study() as one, study() as other:
        claim = one.claim()
        assert not isinstance(claim, str)
        assert other.claim() == "wait"
        claim.release()
        again = other.claim()
        assert not isinstance(again, str) and again.number == 0
        again.release()


def test_trial_that_another_machine_has_ended_stays(tmp_path: Path):
    with TrialStudy(tmp_path / "study.db", "s", tmp_path / "trials", 1, 60) as study:
        claim = study.claim()
        assert not isinstance(claim, str)
        ended = TrialRecord(0, {"policy.kl.coef": 0.1}, 0, "complete", "", 3, empty_curve(), TrialValue(*VALUE))
        study.finish(ended)
        study.finish(replace(ended, steps=5))
        claim.release()
        assert [record.steps for record in study.records()] == [3] and study.claim() == "done"


def test_processes_share_cores_and_have_a_gpu_each(swept: Path, monkeypatch: pytest.MonkeyPatch):
    plan = preparation.prepare(
        recipe.load(swept, [*OVERRIDES, "sweep.processes=2", "model.device=auto"]), swept, lambda line: None
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setattr(process, "gpu_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    environment = processes.worker_environment(plan, 1)
    assert environment["OMP_NUM_THREADS"] == "4" and environment["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert processes.worker_environment(plan, 1)["CUDA_VISIBLE_DEVICES"] == "6"
    monkeypatch.setattr(process, "gpu_count", lambda: 1)
    with pytest.raises(RecipeError, match="a GPU of its own"):
        processes.worker_environment(plan, 0)


@pytest.mark.proof
def test_trials_side_by_side(swept: Path, finished: Path, tmp_path: Path):
    run = copy_run(finished, tmp_path / "run")
    result, _ = sweep(run, "sweep.processes=2", "sweep.pruning=off", "sweep.sampler=random")
    assert [t.number for t in result.trials] == [0, 1, 2] and result.verdict is not None
    before = read_sweep(swept)
    assert before is not None and result.trials[0].value == before.trials[0].value


# Errors


def refuse(run: Path, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        sweep(run, *overrides)
    assert caught.value.rule and caught.value.fix
    return caught.value


def test_people_cannot_judge_a_sweep(finished: Path):
    error = refuse(finished, "evaluate.judges=['people']")
    assert "people" in error.value and "python:MODULE:FUNCTION" in error.fix


def test_no_judge_is_an_error(finished: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preparation, "select_judges", lambda *_: ())
    assert "no evaluation judge" in refuse(finished).value


def test_no_judge_is_refused_before_what_trials_read_is_run(tmp_path: Path):
    run = tmp_path / "run"
    assert towpath("new", run, "--recipe", "tiny").returncode == 0
    for file in run.glob("data/**/*"):
        if file.is_file():
            file.unlink()
    rows = [{"id": f"q{i}", "prompt": f"What is {i}?", "response": str(i)} for i in range(60)]
    for part in ("prompts", "demonstrations"):
        (run / "data" / part).mkdir(parents=True, exist_ok=True)
        (run / "data" / part / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = towpath("sweep", run, "--force", "--set", "data.safety=")
    assert refused.returncode == 1 and "no evaluation judge fits" in refused.stderr
    assert not list(run.glob("stages/*"))


def test_optuna_is_named_where_it_is_missing(finished: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert refuse(finished).fix == "pip install 'towpath[sweep]'"


def test_password_in_the_recipe_is_refused(finished: Path):
    error = refuse(finished, "sweep.storage=postgresql+psycopg://me:secret@host/db")
    assert "secret" not in str(error) and "env:NAME" in error.fix


def test_storage_that_is_no_database(finished: Path, tmp_path: Path):
    run = copy_run(finished, tmp_path / "run")
    assert "sweep.storage" in refuse(run, "sweep.storage=nonsense").value
    with pytest.raises(ResourceError, match="the study's database"):
        sweep(run, "sweep.storage=postgresql+psycopg://nobody@127.0.0.1:1/none")


def test_closed_gate_stops_a_sweep(finished: Path, tmp_path: Path):
    run = copy_run(finished, tmp_path / "run")
    with pytest.raises(GateClosed, match="gate sft"):
        sweep(run, "gates.sft.action=stop", "gates.sft.threshold=0.99")
    assert not (run / "sweep").exists()


def test_bad_space_is_refused_before_anything_runs(finished: Path):
    assert "did you mean policy.learning_rate" in str(
        refuse(finished, 'sweep.space={ "policy.learning_rat" = { low = 1, high = 2 } }')
    )
    done = towpath("check", finished, "--set", 'sweep.space={ "sft.epochs" = { low = 1, high = 2 } }')
    assert done.returncode == 1 and "not a key of [policy]" in done.stderr


def test_settings_that_do_not_fit_together_fail_one_trial(finished: Path, tmp_path: Path):
    space = 'sweep.space={ "policy.group" = { choices = [1, 3] } }'
    result, _ = sweep(
        copy_run(finished, tmp_path / "run"), space, "sweep.sampler=random", "sweep.confirm=0", "sweep.trials=4"
    )
    failed = [t for t in result.trials if t.status == "failed"]
    assert failed and all(t.settings == {"policy.group": 3} and "group" in t.reason for t in failed)


def test_unjudged_answers_never_become_a_value(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Broken:
        def compare(self, pairs, title):
            return JudgeOutcomes("broken", tuple(PairOutcome(None, "budget") for _ in pairs))

    monkeypatch.setattr(trial, "open_judge", lambda *_: Broken())
    with pytest.raises(ResourceError, match="8 of 8 pairs unjudged: budget 8"):
        sweep(copy_run(finished, tmp_path / "run"))


def test_dollars_of_a_judge_are_counted(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Paid:
        def compare(self, pairs, title):
            return JudgeOutcomes("paid", tuple(PairOutcome(1.0) for _ in pairs), 16, 0.25)

    monkeypatch.setattr(trial, "open_judge", lambda *_: Paid())
    result, _ = sweep(copy_run(finished, tmp_path / "run"), *SHORT)
    assert [t.dollars for t in result.trials] == [0.75, 0.75] and result.dollars == 1.5
    assert np.all(result.trials[0].curve.win_V == 1.0)


def test_fault_points_are_at_every_write():
    names = {"sweep-settings", "sweep-curve", "sweep-result", "sweep-finish"}
    text = "".join(Path(module.__file__).read_text() for module in (search, trial))
    assert all(f'fault_point("{name}")' in text for name in names)
