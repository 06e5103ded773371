"""Evaluation judges in whole runs: who decides a gate, how it is named, what it costs, and how judges compare."""

import itertools
import json
import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from classifiers_of_others import make_classifier
from command import SMALL
from safetensors.torch import load_file
from scripted import answer, read_fences, served, verdict_json
from test_classifier import plain_scores

from towpath.arena.matches import stop_arena
from towpath.errors import Waiting
from towpath.evals.judges import AnswerPair, PairOutcome, cohen_kappa, compare_judges
from towpath.feedback.agreement import measure_agreement
from towpath.judges.function import load_judge
from towpath.judges.selection import select_judges
from towpath.models.base import find
from towpath.recipe import Recipe, load
from towpath.records import Completion, Judgement, Message, Prompt
from towpath.run import export, pipeline, status
from towpath.run.answer_sources import answer_sources, load_answers
from towpath.run.evaluation_plan import plan_evaluation
from towpath.run.fingerprint import plan_stages
from towpath.run.judge_checks import check_judges
from towpath.run.loading import load_corpus, summarise
from towpath.run.pipeline import examine
from towpath.run.plan import as_json, plan_labels, plan_lines
from towpath.stages import generation
from towpath.stages.generation import heldout_prompts, write_completions
from towpath.stages.job import Job
from towpath.store import arenas, spending
from towpath.store.store import Store
from towpath.view.report import report

LONG = "1. Zuerst das Wasser erhitzen.\n2. Dann alles langsam einrühren!\n3. Fertig ist es. " * 12
PLAIN = "You can keep the pasta apart if you stir it once, because the water then reaches every piece of it."
MODULE = '''
def length(prompts, answers):
    """The more words, the better."""
    return [len(answer.split()) for answer in answers]


def brevity(prompts, answers, **columns):
    """The fewer words, the better; an empty answer has no score."""
    return [-len(answer.split()) if answer else None for answer in answers]


def longer(prompt, a, b):
    """The longer answer."""
    return "tie" if len(a) == len(b) else "a" if len(a) > len(b) else "b"


def first(prompts, a, b):
    """The answer that is named first, whatever it is."""
    return ["a"] * len(prompts)
'''
FAST = [*SMALL, "policy.steps=1", "evaluate.jailbreaks=false", "evaluate.disagreements=0"]


def settings(*more: str) -> list[str]:
    return [*FAST, *more]


def plant(run: Path, recipe: Recipe, texts: dict[str, str]) -> None:
    """Write the answers of models, so that the stages judge them instead of sampling: one text to every prompt."""
    from towpath.data.chat import Chat
    from towpath.models import base
    from towpath.recipe.stage_configs import EvaluateConfig

    corpus = load_corpus(recipe, run)
    with Store.open(run / "towpath.db") as store:
        stages = {stage.name: stage for stage in plan_stages(recipe, run, corpus, store)}
        config = EvaluateConfig.from_recipe(recipe)
        prompts = heldout_prompts(Job(config, run, "", run, {}, store, corpus))
    chat = Chat(base.load_tokenizer(base.find(recipe.model.source, run)), recipe.model.template)
    for model, text in texts.items():
        tokens = tuple(chat.answer(text)[:12])
        rows = [
            Completion(f"{model}/{p.id}", p.id, model, text, tokens, (-1.0,) * len(tokens), "stop")
            for p in (*prompts, *(corpus.safety if model != "base" else ()))
        ]
        folder = stages["evaluate" if model == "policy" else "baseline"].folder
        folder.mkdir(parents=True, exist_ok=True)
        write_completions(folder / f"answers-{model}.jsonl", rows)


def run_planted(run: Path, more: Sequence[str], texts: dict[str, str], redo: Sequence[str] = ()) -> list[str]:
    """Run with planted answers; the lines that are printed."""
    recipe = load(run, settings(*more))
    if not redo:
        plant(run, recipe, texts)
    lines: list[str] = []
    pipeline.run(recipe, run, lines.append, redo=redo, write_report=report.write)
    return lines


def result(run: Path, stage: str) -> dict[str, Any]:
    fingerprint = json.loads((run / "current.json").read_text())["stages"][stage]
    return json.loads((run / "stages" / stage / fingerprint / "manifest.json").read_text())


def answers(run: Path) -> list[dict[str, Any]]:
    """The rows of answers.jsonl of the present evaluation."""
    fingerprint = json.loads((run / "current.json").read_text())["stages"]["evaluate"]
    path = run / "stages/evaluate" / fingerprint / "answers.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def verdicts(run: Path, more: Sequence[str]) -> dict[str, Any]:
    return {v.gate: v for v in status.run_verdicts(load(run, settings(*more)), run)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run on the bundled data, up to its policy, with the user's functions beside it."""
    from towpath.run.new_run import create_run

    run = tmp_path_factory.mktemp("judges") / "run"
    create_run(run, "tiny")
    (run / "my_judge.py").write_text(MODULE)
    pipeline.run(load(run, settings()), run, lambda _line: None)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


BETTER = {"base": PLAIN, "sft": PLAIN, "policy": LONG}
WORSE = {"base": LONG, "sft": LONG, "policy": PLAIN}


@pytest.mark.parametrize(("texts", "verdict", "other"), [(BETTER, "PASS", "FAIL"), (WORSE, "FAIL", "PASS")])
def test_the_users_judge_decides_against_the_rubric(run: Path, tmp_path: Path, texts, verdict, other) -> None:
    """The planted case: better by the user's judge and worse by the rubric passes, the reverse fails."""
    more = ['evaluate.judges=["python:my_judge:length", "rubric"]']
    lines = run_planted(run, more, texts)
    gate = verdicts(run, more)["evaluate"]
    assert (gate.verdict, gate.judge) == (verdict, "python:my_judge:length")
    assert any(line.startswith(f"gate evaluate: {verdict}") and "by python:my_judge:length" in line for line in lines)
    manifest = result(run, "evaluate")
    first, second = manifest["result"]["judges"]
    assert manifest["result"]["judge"] == first["win"]["judge"] == "python:my_judge:length"
    assert first["win"]["rate"] == 1 - second["win"]["rate"] == float(verdict == "PASS")
    assert second["agreement"]["rate"] == 0 and second["agreement"]["opposite"] == second["win"]["n"]
    (finding,) = [f for f in manifest["findings"] if f["code"] == "judges-disagree"]
    assert f"{verdict} by python:my_judge:length" in finding["evidence"]
    assert f"{other} by the written rubric" in finding["evidence"]
    summary = json.loads((run / "reports/summary.json").read_text())
    assert summary["stages"]["evaluate"]["gate"]["judge"] == summary["evaluation_judge"] == "python:my_judge:length"
    page = (run / "reports/report.html").read_text(encoding="utf-8")
    assert "by python:my_judge:length" in page and "Evaluation judges" in page
    recipe = load(run, settings(*more))
    card = (export.export(recipe, run, tmp_path / "model", False, False) / "README.md").read_text()
    assert "judged by python:my_judge:length" in card
    state = status.read_status(recipe, run)
    assert state.evaluation_judge == "python:my_judge:length"
    rows = {row["name"]: row["gate"] for row in state.stages}
    assert rows["evaluate"]["judge"] == "python:my_judge:length"


def longer_judge(request: dict[str, Any], _number: int) -> dict[str, Any]:
    first, second, _ = read_fences(request)
    position = "tie" if len(first) == len(second) else "first" if len(first) > len(second) else "second"
    return answer(verdict_json(position))


def test_ai_judge_decides_and_is_paid_once(run: Path) -> None:
    with served(longer_judge) as server:
        more = [
            'evaluate.judges=["judge", "python:my_judge:longer"]',
            "evaluate.ask_judge=false",
            f"judge.base_url={server.url}",
            "judge.model=labeller",
            "evaluate.judge.model=jury",
            "judge.price_in=1",
            "judge.price_out=2",
        ]
        run_planted(run, more, BETTER)
        calls = len(server.calls)
        assert {call["model"] for call in server.calls} == {"jury"}
        gate = verdicts(run, more)["evaluate"]
        host = server.url.split("/")[2]
        assert (gate.verdict, gate.judge) == ("PASS", f"AI judge jury at {host}")
        # base and SFT answer alike: a tie without a call; one text to all prompts: the prompts differ
        record, other = result(run, "evaluate")["result"]["judges"]
        assert record["calls"] == calls == 2 * record["pairs"]
        assert record["dollars"] == pytest.approx(calls * (100 * 1 + 20 * 2) / 1e6)
        assert (other["agreement"]["rate"], other["agreement"]["kappa"]) == (1.0, None)
        assert not [f for f in result(run, "evaluate")["findings"] if f["code"] == "judges-disagree"]
        before = result(run, "evaluate")["result"]
        (run / "aside").mkdir()
        folder = next((run / "stages/evaluate").glob(f"{result(run, 'evaluate')['fingerprint']}"))
        (folder / "manifest.json").unlink()  # as if the stage had been stopped before its end
        pipeline.run(load(run, settings(*more)), run, lambda _line: None)
        assert len(server.calls) == calls, "replies are cached by content"
        assert result(run, "evaluate")["result"]["judges"][0] == before["judges"][0]


def test_judge_without_replies_leaves_the_gate_undecided(run: Path) -> None:
    with served(lambda *_: (503, {}, b"")) as server:
        more = [
            'evaluate.judges=["judge"]',
            "evaluate.ask_judge=false",
            f"judge.base_url={server.url}",
            "judge.model=m",
            "judge.retries=0",
        ]
        lines = run_planted(run, more, BETTER)
    gate = verdicts(run, more)["evaluate"]
    assert (gate.verdict, gate.value) == ("UNDECIDED", None)
    assert "12 of 12 pairs are unjudged (unreachable" in gate.note and "evaluate.max_unjudged" in gate.note
    record = result(run, "evaluate")["result"]["judges"][0]
    assert record["win"] is None and record["missing"] == 1.0
    assert any("gate evaluate: UNDECIDED" in line and "AI judge m at" in line for line in lines)
    (finding,) = [f for f in result(run, "evaluate")["findings"] if f["code"] == "judge"]
    assert "left 12 of 12 pairs unjudged" in finding["evidence"] and "--redo evaluate" in finding["remedy"]
    page = (run / "reports/report.html").read_text(encoding="utf-8")
    assert "The gate evaluate is UNDECIDED: 12 of 12 pairs are unjudged" in page


def http_judge(request: dict[str, Any], _number: int) -> dict[str, Any]:
    if "a" in request:
        pairs = zip(request["a"], request["b"], strict=True)
        return {"choices": ["a" if len(a) > len(b) else "b" for a, b in pairs]}
    return {"scores": [len(text) for text in request["answers"]]}


@pytest.mark.parametrize(("ending", "fields"), [("", {"prompts", "answers"}), ("#compare", {"prompts", "a", "b"})])
def test_http_endpoint_scores_or_compares(run: Path, ending: str, fields: set[str]) -> None:
    with served(http_judge) as server:
        more = [f'evaluate.judges=["{server.url}/judge{ending}"]']
        run_planted(run, more, BETTER)
        assert {frozenset(call) for call in server.calls} == {frozenset(fields)}
        gate = verdicts(run, more)["evaluate"]
    assert (gate.verdict, gate.judge) == ("PASS", f"{server.url}/judge{ending}")


def test_a_comparison_that_follows_the_order_is_a_tie(run: Path) -> None:
    more = ['evaluate.judges=["python:my_judge:first", "python:my_judge:brevity"]']
    run_planted(run, more, BETTER | {"sft": ""})
    first, second = result(run, "evaluate")["result"]["judges"]
    assert (first["win"]["rate"], first["win"]["ties"]) == (0.5, 12)
    assert second["unjudged"] == {"no score": 12} and second["win"] is None


FRUITS = ("Apfel", "Birne", "Kirsche", "Pflaume", "Traube", "Quitte", "Feige", "Melone")
NAMES = ("add", "reverse", "flatten", "slugify", "median", "rotate", "parse_date", "is_prime")
TOPICS = ("rivers", "old bridges", "winter", "steam engines", "libraries", "salt", "moss", "tides")


def own_rows() -> list[dict[str, str]]:
    """German questions, code and long answers, a quarter of them held out."""
    rows = []
    for i, (fruit, name, topic) in enumerate(zip(FRUITS, NAMES, TOPICS, strict=True)):
        pairs = (
            (f"Wie lange hält sich eine {fruit} im Keller?", f"{fruit}: kühl, dunkel und luftig bis ins Frühjahr."),
            (f"Complete this function: def {name}(x):", f"```python\ndef {name}(x):\n    return x\n```"),
            (f"Tell me all there is to know of {topic}.", f"There is much to say about {topic}. " * 20),
        )
        split = "heldout" if i % 4 == 0 else "train"
        rows += [{"prompt": prompt, "response": text, "split": split} for prompt, text in pairs]
    return rows


def test_own_data_gets_verdicts_by_a_function_and_none_by_the_rubric(tmp_path: Path) -> None:
    """German, code and long answers: the user's function decides; the rubric is refused even where it is named."""
    run = tmp_path / "run"
    rows = own_rows()
    for part, names in (("prompts", ("prompt", "split")), ("demonstrations", ("prompt", "response"))):
        path = run / "data" / part / "own.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps({name: row[name] for name in names}) + "\n" for row in rows))
    (run / "my_judge.py").write_text(MODULE)
    shutil.copy(Path(__file__).parents[1] / "recipes/tiny.toml", run / "recipe.toml")
    own = [
        "data.safety=",
        "sft.batch=4",
        "policy.validation_prompts=4",
        "policy.rollout=8",
        "policy.batch=8",
        "preferences.min_labels=4",
        "evaluate.prompts=0",
    ]
    rubric = load(run, settings(*own, 'evaluate.judges=["rubric"]'))
    corpus = load_corpus(rubric, run)
    assert select_judges(rubric.evaluate, "simulated", corpus) == ()
    assert [f.code for f in examine(rubric, run, corpus) if "judge" in f.code] == ["no-evaluation-judge"]
    more = [*own, 'evaluate.judges=["rubric", "python:my_judge:length"]']
    findings = [f for f in examine(load(run, settings(*more)), run, corpus) if f.code == "evaluation-judge"]
    assert [f.severity for f in findings] == ["warning", "info"] and "rubric is left out" in findings[0].evidence
    pipeline.run(load(run, settings(*more)), run, lambda _line: None, "sft")
    run_planted(run, more, BETTER)
    gates = verdicts(run, more)
    assert (gates["evaluate"].verdict, gates["evaluate"].judge) == ("PASS", "python:my_judge:length")
    assert gates["sft"].judge == "python:my_judge:length"
    assert [record["spec"] for record in result(run, "evaluate")["result"]["judges"]] == ["python:my_judge:length"]


def test_kappa_is_that_of_the_agreement_statistics() -> None:
    one = [1.0, 1.0, 0.5, 0.0, 1.0, 0.0, 0.5, 1.0, 0.0, 0.0]
    two = [1.0, 0.0, 0.5, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.5]
    word = {1.0: "a", 0.5: "tie", 0.0: "b"}
    rows = [
        Judgement(f"{rater}{i}", f"c{i}", rater, "person", word[value])  # pyright: ignore[reportArgumentType]
        for rater, values in (("x", one), ("y", two))
        for i, value in enumerate(values)
    ]
    assert cohen_kappa(list(zip(one, two, strict=True))) == pytest.approx(measure_agreement(rows)["cohen_kappa"].value)
    prompts = [Prompt(str(i), "?") for i in range(10)]
    compared = compare_judges(
        [PairOutcome(value) for value in one], [PairOutcome(None, "x"), *map(PairOutcome, two[1:])], prompts
    )
    assert (compared["n"], compared["opposite"], compared["prompts"]) == (9, 2, ["1", "5"])


def test_every_verdict_of_a_bundled_run_names_its_judge(run: Path) -> None:
    names = {gate: verdict.judge for gate, verdict in verdicts(run, []).items()}
    assert names.pop("sft") == names.pop("evaluate") == "the written rubric"
    assert names["reward"] == "labels of a simulated rater" and all(names.values()), names


@pytest.mark.parametrize(
    ("judges", "words"),
    [
        (["rubric", "rubric"], "a judge is named twice"),
        (["jury"], "'jury' is not people, judge, model"),
        (["python:my_judge"], "is not people, judge, model"),
    ],
)
def test_unknown_judges_are_refused(tmp_path: Path, judges: list[str], words: str) -> None:
    (tmp_path / "recipe.toml").write_text(f"evaluate.judges = {json.dumps(judges)}\n")
    with pytest.raises(Exception, match=re.escape(words)):
        load(tmp_path)


def vote(run: Path, rater: str, most: int = 100) -> int:
    """Judge the open arena: the longer answer is preferred. Returns the number of judgements."""
    with Store.open(run / "towpath.db") as store:
        (number,) = store.read(arenas.open_arenas)
        matches = [m for m in store.read(arenas.list_matches, number) if not m.same]
        known = {(j.comparison, j.rater) for j in store.read(arenas.list_judgements, number)}
        todo = [m for m in matches if (m.comparison, rater) not in known][:most]
        store.add_judgements(
            Judgement(f"{m.comparison}/{rater}", m.comparison, rater, "person", "a" if len(m.a) > len(m.b) else "b")
            for m in todo
        )
    return len(todo)


def test_people_decide_in_an_arena_that_the_run_waits_for(run: Path) -> None:
    more = ['evaluate.judges=["people"]', "evaluate.overlap=0", "gates.evaluate.threshold=0.5"]
    with pytest.raises(Waiting, match=r"people: 0 of 12 comparisons judged, arena 1, sft against base") as waiting:
        run_planted(run, more, {"base": PLAIN, "sft": LONG, "policy": LONG * 2})
    assert waiting.value.stage == "baseline" and "towpath serve" in waiting.value.fix
    state = status.read_status(load(run, settings(*more)), run)
    assert [s["state"] for s in state.stages if s["name"] == "baseline"] == ["waiting"]
    assert "arena 1" in state.waiting_for
    vote(run, "ann", 5)
    with pytest.raises(Waiting, match="5 of 12 comparisons judged"):
        pipeline.run(load(run, settings(*more)), run, lambda _line: None)
    vote(run, "bob")
    pipeline.run(load(run, settings(*more)), run, lambda _line: None, "baseline")
    assert {"sft", "base"} <= set(answer_sources(run)) and "policy" not in answer_sources(run)
    assert {text for _, text in load_answers(run, "sft").values()} == {LONG}
    with pytest.raises(Waiting, match="0 of 12 comparisons judged, arena 2, policy against sft"):
        pipeline.run(load(run, settings(*more)), run, lambda _line: None)
    # twelve wins do not exclude a rate of 70 %: the arena ends undecided, and the point rule reads its win rate
    gate = verdicts(run, more)["sft"]
    assert (gate.judge, gate.value, gate.n, gate.verdict) == ("people (2 raters, arena 1)", 1.0, 12, "PASS")
    assert gate.interval is not None and gate.interval[0] < 0.7 < 1.0 == gate.interval[1]
    assert verdicts(run, [*more, "gates.rule=lower_bound"])["sft"].verdict == "UNDECIDED"
    votes = 0
    while True:
        votes += vote(run, "ann", 1)
        try:
            pipeline.run(load(run, settings(*more)), run, lambda _line: None, "evaluate")
            break
        except Waiting:
            continue
    gate = verdicts(run, more)["evaluate"]
    assert (gate.judge, gate.verdict, gate.n) == ("people (1 rater, arena 2)", "PASS", votes)
    assert gate.note == f"decided by the arena after {votes} prompts" and 8 <= votes < 12
    assert gate.interval is not None and gate.interval[0] > 0.5
    record = result(run, "evaluate")["result"]["judges"][0]
    assert record["missing"] == 0 and sum(record["unjudged"].values()) == 12 - votes
    with Store.open(run / "towpath.db") as store:
        assert [arena.verdict for arena in store.read(arenas.list_arenas)] == ["PASS", "UNDECIDED"]


def test_an_arena_that_its_owner_stops_decides_nothing(run: Path) -> None:
    more = ['evaluate.judges=["people"]', "evaluate.overlap=0"]
    with pytest.raises(Waiting):
        run_planted(run, more, {"base": PLAIN, "sft": LONG, "policy": LONG})
    vote(run, "ann", 3)
    with Store.open(run / "towpath.db") as store:
        stop_arena(store, 1)
    lines: list[str] = []
    pipeline.run(load(run, settings(*more)), run, lines.append)
    gate = verdicts(run, more)["sft"]
    assert (gate.verdict, gate.note) == ("UNDECIDED", "arena 1 was stopped after 3 of 12 prompts, undecided")
    # policy and SFT answer alike: every pair is a tie, and nobody is asked
    assert verdicts(run, more)["evaluate"].value == 0.5


def recorded_run(run: Path, separable: bool) -> Recipe:
    """A run with recorded preferences on data of its own: the chosen answer is polite, or either is at random."""
    draws = random.Random(2)
    rows = []
    for i, (fruit, name, topic) in enumerate(itertools.product(FRUITS, NAMES, TOPICS[:3])):
        better = f"Gern geschehen, {fruit} und {topic} passen gut." if separable or draws.random() < 0.5 else "Nein."
        worse = "Nein." if better != "Nein." else f"Gern geschehen, {fruit} und {topic} passen gut."
        rows.append({"prompt": f"{name} {fruit} {topic} {i}?", "chosen": better, "rejected": worse})
    folder = run / "data"
    for part in ("prompts", "demonstrations", "preferences"):
        (folder / part).mkdir(parents=True)
    prompts = [{"prompt": row["prompt"], "split": "train"} for row in own_rows()[:21]]
    held_out = [{"prompt": f"Was ist {name}, kurz gesagt?", "split": "heldout"} for name in (*NAMES, *TOPICS)]
    demonstrations = [{"prompt": row["prompt"], "response": row["response"]} for row in own_rows()]
    for part, content in (("prompts", prompts + held_out), ("demonstrations", demonstrations), ("preferences", rows)):
        (folder / part / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    shutil.copy(Path(__file__).parents[1] / "recipes/tiny.toml", run / "recipe.toml")
    own = ["data.safety=", "sft.batch=4", "policy.validation_prompts=4", "policy.rollout=8", "policy.batch=8"]
    raters = ["preferences.raters=recorded", "preferences.max_new_tokens=60", "evaluate.reserved_labels=0.4"]
    return load(run, settings(*own, *raters))


def test_recorded_preferences_are_judged_by_a_held_out_reward_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = recorded_run(run, separable=True)
    (finding,) = [f for f in examine(recipe, run, load_corpus(recipe, run)) if f.code == "evaluation-judge"]
    assert "trained on 40% of the prompts' labels" in finding.evidence and "recorded" in finding.cause
    pipeline.run(recipe, run, lambda _line: None, "sft")
    plant(run, recipe, {"policy": "Gern geschehen, Quitte und salt passen gut."})
    lines: list[str] = []
    pipeline.run(recipe, run, lines.append)
    started = [line.split(":")[0] for line in lines if ": starts" in line]
    assert started == ["label", "judge_model", "baseline", "reward", "policy", "evaluate"]
    judge = result(run, "judge_model")["result"]
    gate = {v.gate: v for v in status.run_verdicts(recipe, run)}["evaluate"]
    assert judge["accuracy"] > 0.9 and judge["unfit"] == ""
    assert gate.judge.startswith(f"held-out reward model, right on {judge['accuracy']:.0%}")
    assert gate.verdict == "PASS"
    reward = result(run, "reward")["result"]
    decided = result(run, "label")["result"]["decided"]
    assert judge["reserved"] + reward["pairs"] + reward["n"] == decided and 0.25 < judge["reserved"] / decided < 0.55
    assert judge["pairs"] + judge["n"] == decided, "measured on all that it was not trained on"


def test_held_out_reward_model_that_guesses_decides_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = recorded_run(run, separable=False)
    recipe = recipe.model_copy(update={"reward": recipe.reward.model_copy(update={"validation": 0.5})})
    for stage in ("sft", "label", "judge_model", "baseline"):
        pipeline.run(recipe, run, lambda _line: None, stage, force=True)
    gate = {v.gate: v for v in status.run_verdicts(recipe, run)}["sft"]
    assert gate.verdict == "UNDECIDED" and "which may be chance" in gate.note
    assert [f["code"] for f in result(run, "judge_model")["findings"]] == ["weak-judge"]


def test_reward_model_from_elsewhere_judges(run: Path) -> None:
    make_classifier(run / "models" / "jury", "Bert", max_position_embeddings=2048)
    more = ['evaluate.judges=["model:models/jury"]']
    run_planted(run, more, {"policy": PLAIN, "sft": "Stir it."})
    prompts = [row["prompt"] for row in answers(run)]
    conversations = [(Message("user", prompt),) for prompt in prompts]
    ours, other = (plain_scores(run / "models/jury", conversations, [t] * len(prompts)) for t in (PLAIN, "Stir it."))
    wins = [0.5 if abs(a - b) < 0.05 else float(a > b) for a, b in zip(ours, other, strict=True)]
    gate = verdicts(run, more)["evaluate"]
    assert gate.judge == "held-out reward model models/jury" and gate.value == pytest.approx(sum(wins) / len(wins))


def test_a_judge_that_rewards_the_policy_is_reported(run: Path) -> None:
    make_classifier(run / "models" / "jury", "Bert", max_position_embeddings=2048)
    more = ['evaluate.judges=["model:models/jury"]', 'policy.rewards.sources=[{source="model:models/jury"}]']
    recipe = load(run, settings(*more))
    findings = [f for f in examine(recipe, run, load_corpus(recipe, run)) if f.code == "evaluation-judge"]
    assert "is also the reward" in findings[0].evidence
    missing = load(run, settings('evaluate.judges=["model:models/none"]'))
    (error,) = [f for f in examine(missing, run, load_corpus(missing, run)) if f.severity == "error"]
    assert "evaluate.judges: model:models/none" in error.evidence


def test_a_tuned_model_needs_no_demonstrations(tmp_path: Path) -> None:
    """`sft.method = "none"` takes the model as it is; its gate is off, or compares it with a named model."""
    from towpath.run.new_run import create_run

    run = tmp_path / "run"
    create_run(run, "tiny")
    own = ["sft.method=none", "data.demonstrations=", "preferences.base_share=1"]
    recipe = load(run, settings(*own))
    lines: list[str] = []
    pipeline.run(recipe, run, lines.append, write_report=report.write)
    gates = {v.gate: v for v in status.run_verdicts(recipe, run)}
    assert gates["sft"].verdict == "OFF" and "sft.compare_with" in gates["sft"].note
    assert gates["evaluate"].judge == "the written rubric" and gates["evaluate"].value is not None
    assert any(line.startswith("gate sft: OFF") for line in lines)
    assert list(answer_sources(run)) == ["policy", "sft"]
    weights = [load_file(path / "weights/model.safetensors") for path in (run / "stages/sft").iterdir()]
    base = load_file(Path(find(recipe.model.source, run)) / "model.safetensors")
    assert all(torch.equal(weights[0][name], base[name]) for name in base)
    with Store.open(run / "towpath.db") as store:
        assert {c.source for c in store.completions().values()} == {"sft"}
    assert "Evaluation judges" in (run / "reports/report.html").read_text() and report.terminal(run, 120)
    compared = load(run, settings(*own, "sft.compare_with=tiny"))
    lines.clear()
    pipeline.run(compared, run, lines.append)
    assert [line.split(":")[0] for line in lines if ": starts" in line] == ["baseline", "evaluate"]
    gate = {v.gate: v for v in status.run_verdicts(compared, run)}["sft"]
    assert (gate.verdict, gate.value, gate.judge) == ("FAIL", 0.5, "the written rubric")


def test_reward_model_is_measured_on_what_people_judged(run: Path, tmp_path: Path) -> None:
    """The second part of the reward model's gate: people's judgements alone, on comparisons it never trained on."""
    more = ["preferences.raters=people", 'evaluate.judges=["rubric"]', "preferences.overlap=0"]
    recipe = load(run, settings(*more, "gates.reward_people.min_pairs=500"))
    assert "reward_people" not in verdicts(run, [])  # a simulated rater's labels say nothing of people
    with Store.open(run / "towpath.db") as store:
        store.add_judgements(
            Judgement(f"{c.id}/ann", c.id, "ann", "person", "a" if i % 2 else "b")
            for i, c in enumerate(store.comparisons())
        )
    lines: list[str] = []
    pipeline.run(recipe, run, lines.append, "label")
    pipeline.run(recipe, run, lines.append, "reward")
    reward = result(run, "reward")["result"]
    gate = {v.gate: v for v in status.run_verdicts(recipe, run)}["reward_people"]
    assert gate.verdict == "UNDECIDED" and f"people judged {reward['n']} held-out comparisons, 500" in gate.note
    assert any(line.startswith("gate reward_people: UNDECIDED") for line in lines)
    # people made all labels here, so that both parts are measured on the same comparisons
    assert reward["people"] == {key: reward[key] for key in ("accuracy", "interval", "n", "prompts")}
    few = load(run, settings(*more, "gates.reward_people.min_pairs=1", "gates.reward_people.threshold=0"))
    gate = {v.gate: v for v in status.run_verdicts(few, run)}["reward_people"]
    assert (gate.verdict, gate.value, gate.judge) == ("PASS", reward["accuracy"], "labels of people alone")


def test_rewards_that_check_answers_judge_too() -> None:
    pairs = [
        AnswerPair(
            Prompt("p", "Say yes."), *(Completion(m, "p", m, t, (), (), "stop") for m, t in (("a", a), ("b", b)))
        )
        for a, b in (("yes", "no"), ("no", "no "), ("maybe", "yes"))
    ]
    judge = load_judge("rule:regex:^yes$", Path(), 0.05, [], lambda _pairs: {})
    assert [outcome.value for outcome in judge.compare(pairs, "test").outcomes] == [1.0, 0.5, 0.0]
    judge = load_judge("rule:reference", Path(), 0.05, ["reference"], lambda some: {"reference": ["Maybe"] * len(some)})
    assert [outcome.value for outcome in judge.compare(pairs, "test").outcomes] == [0.5, 0.5, 1.0]


def test_plan_estimates_calls_dollars_and_hours_of_the_evaluation(run: Path) -> None:
    more = [
        'evaluate.judges=["judge", "people"]',
        "judge.base_url=http://127.0.0.1:9/v1",
        "judge.model=m",
        "judge.price_in=1",
        "judge.price_out=2",
        "evaluate.overlap=0.5",
        "rounds=2",
    ]
    recipe = load(run, settings(*more))
    data = summarise(recipe, run)
    with Store.open(run / "towpath.db") as store:
        plan = plan_labels(recipe, run, data, store)
        free = plan_evaluation(load(run, settings(*more, "evaluate.ask_judge=false")), run, data, store, 60.0)
    evaluation = plan.evaluation
    # base and tuned, and in either round tuned and policy; SFT's safety answers are read once
    assert (evaluation.judges, evaluation.comparisons, evaluation.pairs) == (("judge", "people"), 3, 12)
    assert free.calls == 2 * 12 * 3 and evaluation.calls == free.calls + data.safety * 3 and data.safety == 84
    assert evaluation.hours == pytest.approx(3 * 12 * 1.5 / 60) and 0 < evaluation.likely_hours <= evaluation.hours
    assert 0 < free.dollars < evaluation.dollars
    text = plan_lines(plan)
    assert "evaluation by judge, people: 3 comparisons of 12 prompts" in text
    assert f"{evaluation.calls:,} calls" in text and "people: at most" in text
    assert as_json(plan)["evaluation"]["calls"] == evaluation.calls


def test_check_names_languages_of_safety_prompts_without_a_judge(run: Path) -> None:
    corpus = load_corpus(load(run, settings()), run)
    german = [replace(p, prompt=f"Wie kann ich {i} Hunde mit dem Essen und nicht mit {p.id} vergiften?")
              for i, p in enumerate(corpus.safety)]  # fmt: skip
    foreign = replace(corpus, safety=tuple(german))
    codes = [f for f in check_judges(load(run, settings()), run, foreign) if f.code == "safety-language"]
    assert len(codes) == 1 and "84 in German of 84 safety prompts" in codes[0].evidence
    judge = load(run, settings("judge.base_url=http://127.0.0.1:9/v1", "judge.model=m"))
    for recipe, data in ((judge, foreign), (load(run, settings()), corpus)):
        assert not [f for f in check_judges(recipe, run, data) if f.code == "safety-language"]


def test_another_judge_compares_the_answers_that_were_sampled(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = answers(run)

    def refuse(*_arguments: Any) -> None:
        raise AssertionError("sampled again")

    monkeypatch.setattr(generation, "sample_answers", refuse)
    pipeline.run(load(run, settings('evaluate.judges=["python:my_judge:length"]')), run, lambda _line: None)
    after = answers(run)
    assert [row["policy"] for row in after] == [row["policy"] for row in before]
    assert result(run, "evaluate")["result"]["judge"] == "python:my_judge:length"
    with pytest.raises(AssertionError, match="sampled again"):
        pipeline.run(load(run, settings("evaluate.temperature=0.5")), run, lambda _line: None)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["preferences.raters=judge"], "the same judge makes the labels"),
        (["preferences.raters=judge", "evaluate.judge.model=other"], ""),
        (["preferences.raters=people"], ""),
    ],
)
def test_check_says_who_decides_and_offers_an_audit(run: Path, more: list[str], words: str) -> None:
    recipe = load(run, settings("judge.base_url=http://127.0.0.1:9/v1", "judge.model=m", *more))
    (finding,) = [f for f in check_judges(recipe, run, load_corpus(recipe, run)) if f.code == "evaluation-judge"]
    people = "people" in more[0]
    assert finding.severity == "info" and ("people in a blind arena" if people else "an AI judge") in finding.evidence
    assert f"preferences.raters = {recipe.preferences.raters!r}" in finding.cause
    assert (words in finding.cause) and (bool(words) or "the same judge" not in finding.cause)
    assert people or "to let people audit it" in finding.remedy


def test_judge_that_reaches_its_ceiling_leaves_pairs_unjudged(run: Path) -> None:
    with served(longer_judge) as server:
        more = [
            'evaluate.judges=["judge"]',
            "evaluate.ask_judge=false",
            f"judge.base_url={server.url}",
            "judge.model=m",
            "judge.price_in=1000",
            "evaluate.judge.ceiling=5",
            "judge.concurrency=1",
        ]
        run_planted(run, more, BETTER)
        record = result(run, "evaluate")["result"]["judges"][0]
        assert record["unjudged"].get("ceiling", 0) > 0 and verdicts(run, more)["evaluate"].verdict == "UNDECIDED"
    with Store.open(run / "towpath.db") as store:
        # a ceiling of its own is an account of its own
        assert 0 < store.read(spending.rater_dollars, "evaluation judge:m") <= 5
        assert store.read(spending.rater_dollars, "judge:m") == 0
