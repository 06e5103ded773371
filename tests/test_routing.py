"""Routing of comparisons to people, and labelling cost: by construction, by simulation, and by hand."""

import json
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scripted import answer, read_fences, served, verdict_json
from sqlalchemy import select

from towpath.data.corpus import Corpus
from towpath.data.draws import generator
from towpath.errors import DataError, Waiting
from towpath.feedback import calibration, label_budget
from towpath.feedback.label_budget import LabelRequest, Prices, RaterAccuracy, SpendingLimit
from towpath.feedback.routing import RoutingConfig, Signals, label_doubt, route_comparisons
from towpath.recipe import Recipe
from towpath.recipe.stage_configs import LabelConfig, RewardConfig
from towpath.records import Comparison, Completion, Judgement, Label, Prompt, as_row
from towpath.run.fingerprint import plan_stages
from towpath.stages import annotate, label, reward, reward_margins
from towpath.stages.job import Job
from towpath.store import manifest, schema
from towpath.store.store import Store
from towpath.store.task_queue import Gold


def random_signals(seed=0, count=2000, **more):
    draws = generator(seed, "test/routing")
    return [
        Signals(f"k{i}", judge=str(draws.choice(["a", "b"])), certainty=float(draws.uniform(0.5, 1)), **more)
        for i in range(count)
    ]


def hajek(values, propensity):
    return calibration.hajek_estimate(np.array(values), 1 / np.array(propensity))


def share(routes):
    return sum(r.seats > 0 for r in routes) / len(routes)


def test_routed_shares_match_the_settings():
    routes = route_comparisons(random_signals(count=6000))
    audited = [r for r in routes if "audit" in r.reasons]
    assert share(routes) == pytest.approx(0.35, abs=0.02)
    assert len(audited) / len(routes) == pytest.approx(0.12, abs=0.015)
    observed = [r for r in routes if r.seats]
    assert sum(r.seats == 2 for r in observed) / len(observed) == pytest.approx(0.15, abs=0.03)
    assert all(bool(r.reasons) == (r.seats > 0) for r in routes)
    assert share(
        route_comparisons(random_signals(count=6000), RoutingConfig(human_share=0.2, audit_share=0.1))
    ) == pytest.approx(0.2, abs=0.02)


def test_audit_sample_depends_on_the_comparison_id_only():
    everyone = route_comparisons(random_signals())
    few = route_comparisons(random_signals()[:300])
    assert [("audit" in r.reasons) for r in everyone[:300]] == [("audit" in r.reasons) for r in few]
    assert route_comparisons(random_signals()) == everyone
    assert [r.reasons for r in route_comparisons(random_signals(), seed=1)] != [r.reasons for r in everyone]
    sure = [
        s.certainty
        for s, r in zip(random_signals(count=20000), route_comparisons(random_signals(count=20000)), strict=True)
        if "audit" in r.reasons
    ]
    assert np.mean(sure) == pytest.approx(0.75, abs=0.01)  # independent of the judge's certainty


def test_most_uncertain_comparisons_are_routed_first():
    signals = random_signals()
    routes = {r.comparison: r for r in route_comparisons(signals)}
    sent = [s.certainty for s in signals if routes[s.comparison].seats and routes[s.comparison].reasons != ("audit",)]
    stayed = [s.certainty for s in signals if not routes[s.comparison].seats]
    assert max(sent) <= min(stayed)


def test_propensity_matches_the_observed_frequency():
    """Over seeds, with many pairs of equal doubt at the edge of the share, so that the choice is random."""
    signals = [Signals(f"k{i}", judge="a", certainty=0.6 if i < 100 else 0.9, gold=i == 0) for i in range(400)]
    observed = np.zeros(400)
    report = np.zeros(400)
    for seed in range(400):
        routes = route_comparisons(signals, RoutingConfig(human_share=0.25, audit_share=0.12), seed=seed)
        observed += [r.seats > 0 for r in routes]
        report += [r.propensity for r in routes]
    np.testing.assert_allclose(observed[1:100].mean() / 400, report[1:100].mean() / 400, atol=0.01)
    np.testing.assert_allclose(observed[100:].mean() / 400, report[100:].mean() / 400, atol=0.01)
    assert 0.12 < report[50] / 400 < 1 and report[0] == 400 == observed[0]
    assert report[300] / 400 == pytest.approx(0.12)


def test_hajek_estimate_from_routed_pairs_is_unbiased():
    estimates = []
    for seed in range(30):
        signals = random_signals(seed)
        right = generator(seed, "test/right").random(len(signals)) < [s.certainty for s in signals]
        observed = [
            (float(hit), r.propensity)
            for hit, r in zip(right, route_comparisons(signals, seed=seed), strict=True)
            if r.seats
        ]
        estimates.append(hajek(*zip(*observed, strict=True)).value - right.mean())
    assert abs(np.mean(estimates)) < 0.01


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"gold": True}, "gold"),
        ({"safety": True}, "safety"),
        ({"judge": None, "certainty": None}, "no verdict"),
        ({"consistent": False}, "verdict depends on order"),
        ({"rule": "b", "certainty": 0.75}, "judge and rule differ"),
        ({"margin": -4.0}, "reward model differs"),
        ({"domain": "law"}, "new domain"),
        ({"judge": "tie"}, "judge is unsure"),
        ({"certainty": 0.55}, "judge is unsure"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_routing_reason(changed, reason):
    clear = [Signals(f"k{i}", judge="a", certainty=0.97, rule="a", margin=1.0, domain="home") for i in range(199)]
    odd = replace(Signals("odd", judge="a", certainty=0.97, rule="a", margin=1.0, domain="home"), **changed)
    if reason == "judge and rule differ":
        odd = replace(odd, margin=None)
    result = {r.comparison: r for r in route_comparisons([*clear, odd], known_domains={"home"})}["odd"]
    assert reason in result.reasons and result.propensity == 1.0
    assert result.seats >= (3 if reason == "gold" else 1)


def test_safety_comparisons_are_routed_beyond_the_share():
    signals = random_signals(count=200, safety=True)
    assert share(route_comparisons(signals)) == 1.0
    assert all(r.propensity == 1.0 for r in route_comparisons(signals))


def test_label_doubt_combines_the_odds_of_judge_rule_and_reward_model():
    cfg = RoutingConfig()
    assert label_doubt(Signals("k", judge="a", certainty=0.9), cfg) == pytest.approx(0.1)
    odds = 9 * 0.7 / 0.3 * np.exp(-2.0)
    assert label_doubt(Signals("k", judge="a", certainty=0.9, rule="a", margin=-2.0), cfg) == pytest.approx(
        1 / (1 + odds)
    )
    assert label_doubt(Signals("k", judge="b", certainty=0.9, rule="b", margin=2.0), cfg) == pytest.approx(
        1 / (1 + odds)
    )
    assert label_doubt(Signals("k", judge="tie", certainty=0.9), cfg) == label_doubt(Signals("k"), cfg) == 0.5
    assert label_doubt(Signals("k", judge="a", certainty=1.0), cfg) == pytest.approx(0.01)


@pytest.mark.parametrize(("people", "audit"), [(0.35, 0.05), (0.1, 0.2), (1.2, 0.2)])
def test_invalid_shares_are_refused(people, audit):
    with pytest.raises(DataError, match="random slice"):
        RoutingConfig(human_share=people, audit_share=audit)
    assert route_comparisons([]) == []


def judgement(item=0, rater="ann", kind="person", **more):
    return Judgement(f"{item}/{rater}", str(item), rater, kind, "a", **more)


def test_label_plan_by_hand():
    result = label_budget.plan_labels(LabelRequest(50_000), Prices(seconds=60, wage=20))
    assert result.hours == pytest.approx(833.33, abs=0.01) and result.dollars == pytest.approx(16666.67, abs=0.01)
    assert result.days == 209 and "833 hours" in result.describe()
    assert label_budget.plan_labels(LabelRequest(50_000, raters=5, hours_a_day=6)).days == 28


def test_cost_of_a_blend():
    result = label_budget.plan_labels(
        LabelRequest(1000, people=0.35, overlap=0.2, judge_share=1.0),
        Prices(seconds=90, wage=24, judge=0.02),
        SpendingLimit(dollars=100),
    )
    assert (
        result.judgements == 420 and result.hours == pytest.approx(10.5) and result.judge_dollars == pytest.approx(20.0)
    )
    assert result.dollars == pytest.approx(10.5 * 24 + 20) and not result.within
    assert result.pairs_within == 367 and "367 pairs" in result.describe()
    assert label_budget.plan_labels(
        LabelRequest(367, people=0.35, overlap=0.2, judge_share=1.0), Prices(90, 24, 0.02), SpendingLimit(100)
    ).within
    assert (
        not label_budget.plan_labels(LabelRequest(1000), Prices(), SpendingLimit(hours=16)).within
        and label_budget.plan_labels(LabelRequest(0), Prices(), SpendingLimit(0, 0)).within
    )
    with pytest.raises(DataError, match="one rater"):
        label_budget.plan_labels(LabelRequest(10, raters=0))


def test_seconds_per_pair_ignore_long_breaks():
    draws = generator(0, "test/seconds")
    times = draws.lognormal(3.0, 0.5, 2000)
    paced = [judgement(i, milliseconds=int(t * 1000)) for i, t in enumerate(times)]
    honest = label_budget.seconds_per_pair(paced)
    assert honest == pytest.approx(times.mean(), rel=0.02)
    lunch = [*paced, *(judgement(f"l{i}", milliseconds=3_600_000) for i in range(20))]
    assert label_budget.seconds_per_pair(lunch) == pytest.approx(honest, rel=0.06)
    assert label_budget.seconds_per_pair([]) == 60.0 and label_budget.seconds_per_pair([], 90.0) == 90.0
    assert label_budget.seconds_per_pair([judgement(milliseconds=5000)]) == pytest.approx((5 + 10 * 60) / 11)
    assert label_budget.seconds_per_pair([judgement(kind="judge", milliseconds=5000)]) == 60.0


def test_labelling_stops_before_the_spending_limit():
    prices = Prices(seconds=36, wage=100)
    all_judgements = [judgement(i, milliseconds=36_000) for i in range(10)] + [
        judgement(11, "judge:m", "judge", cost=0.5, milliseconds=99),
        judgement(12),
    ]
    result = label_budget.label_cost(all_judgements, prices)
    assert (result.judgements, result.judge_dollars) == (11, 0.5)
    assert result.hours == pytest.approx(0.11) and result.dollars == pytest.approx(11.5)
    assert label_budget.stop_reason(result, SpendingLimit(), prices) is None
    assert label_budget.stop_reason(result, SpendingLimit(dollars=12.5, hours=0.12), prices) is None
    assert "dollar" not in (label_budget.stop_reason(result, SpendingLimit(hours=0.119), prices) or "dollar")
    assert "$11.50 of $12.49" in (label_budget.stop_reason(result, SpendingLimit(dollars=12.49), prices) or "")


def test_burn_down_by_day():
    all_judgements = [
        judgement(i, milliseconds=36_000, at=f"2026-03-0{1 + i // 4}T10:00:00+00:00") for i in range(8)
    ] + [judgement(9, milliseconds=36_000)]
    days = label_budget.burn_down(all_judgements, label_budget.plan_labels(LabelRequest(100), Prices(seconds=36)))
    assert [(d.day.isoformat(), d.judgements) for d in days] == [("2026-03-01", 4), ("2026-03-02", 4)]
    assert [d.left for d in days] == pytest.approx([0.96, 0.92])


def simulated_error(split, trust, draws, pairs=60000):
    """The share of wrong labels in a simulation that takes the answer with the higher odds."""
    sure = draws.choice(np.asarray(trust.judge), pairs) if split.use_judge else np.full(pairs, 0.5)
    judge = draws.random(pairs) < sure
    person = draws.random((3, pairs)) < trust.person
    order = np.argsort(np.argsort(sure + 1e-9 * draws.random(pairs)))
    doubtful = (split.people - 0.12) / 0.88 if split.use_judge else split.people
    observed = (order < doubtful * pairs) | ((draws.random(pairs) < 0.12) & split.use_judge)
    doubled = draws.random(pairs) < split.overlap
    weight = np.log(trust.person / (1 - trust.person))
    all_judgements = np.log(np.clip(sure, 0.5, 0.999) / (1 - np.clip(sure, 0.5, 0.999)))
    votes = np.where(person[0], 1, -1) + doubled * (
        np.where(person[1], 1, -1) + (person[0] != person[1]) * np.where(person[2], 1, -1)
    )
    odds = observed * votes * weight + all_judgements * np.where(judge, 1, -1) + 1e-9 * draws.normal(size=pairs)
    return (odds < 0).mean()


@pytest.mark.parametrize("dollars", [150, 400, 900])
def test_best_split_is_optimal_in_simulation(dollars):
    trust = RaterAccuracy(0.8, [0.55, 0.7, 0.8, 0.9, 0.97])
    prices = Prices(seconds=60, wage=20, judge=0.02)
    best = label_budget.best_split(1000, dollars, trust, prices)
    assert best.dollars <= dollars
    # a third judgement if two differ
    assert best.hours == pytest.approx(1000 * best.people * (1 + best.overlap * (1 + 2 * 0.8 * 0.2)) / 60)
    assert best.dollars == pytest.approx(best.hours * 20 + 1000 * best.use_judge * 0.02)
    assert simulated_error(best, trust, generator(0, "test/split")) == pytest.approx(best.error, abs=0.008)
    for all_judgements, people, overlap in product((False, True), (0.2, 0.4, 0.6, 0.8, 1.0), (0.1, 0.5, 1.0)):
        cost = 1000 * (people * (1 + overlap * 1.32) / 3 + 0.02 * all_judgements)
        if cost <= dollars:
            other = simulated_error(
                replace(best, use_judge=all_judgements, people=people, overlap=overlap),
                trust,
                generator(1, "test/split"),
            )
            assert other > best.error - 0.008


def test_human_chance_by_certainty():
    observed = label_budget._human_chance(np.linspace(0.5, 1, 50), 0.35, 0.12)
    assert observed.mean() == pytest.approx(0.35) and observed[0] == 1.0 and observed[-1] == pytest.approx(0.12)


def test_best_split_by_accuracy_and_budget():
    cheap_and_good = label_budget.best_split(1000, 150, RaterAccuracy(0.75, 0.85), Prices(judge=0.01))
    assert cheap_and_good.use_judge and cheap_and_good.people < 0.5
    useless = label_budget.best_split(1000, 300, RaterAccuracy(0.9, 0.5), Prices(judge=0.2))
    assert not useless.use_judge and useless.people > 0.7
    poor, rich = (label_budget.best_split(1000, money, RaterAccuracy(0.8, 0.8)) for money in (120, 1200))
    assert rich.error < poor.error < 0.25
    assert label_budget.best_split(1000, 0, RaterAccuracy(0.8, 0.9)).error == 0.5
    with pytest.raises(DataError, match="right"):
        label_budget.best_split(10, 10, RaterAccuracy(1.0, 0.8))


def blend_job(tmp_path, monkeypatch, comparisons, *, domains=(), gold=(), margins=(), round_=1):
    """Routes of a label stage whose judge is certain of a on every comparison."""
    store = Store.open(tmp_path / "ledger.db")
    prompts = [Prompt(f"p-{c.id}", f"What about {c.id}?", dict(domains).get(c.id, "home")) for c in comparisons]
    store.add_prompts(prompts)
    for side in "ab":
        store.add_completions([Completion(f"{side}-{p.id}", p.id, "sft", side, (), (), "stop") for p in prompts])
    store.add_comparisons(comparisons)
    store.set_gold([Gold(name, "a") for name in gold])
    monkeypatch.setattr(annotate, "reward_margins", lambda _job, _comparisons: dict(margins))
    recipe = Recipe.model_validate({"preferences": {"human_share": 0.12, "audit_share": 0.1, "overlap": 0.0}})
    job: Any = SimpleNamespace(config=LabelConfig.from_recipe(recipe), store=store, round=round_)
    judgements = [
        Judgement(f"{c.id}/judge", c.id, "judge:m", "judge", "a", strength=3, details={"confidence": 1.0})
        for c in comparisons
    ]
    return {route.comparison: route for route in annotate._routes(job, comparisons, judgements)}


def pairs(count, round_=1):
    names = [f"r{round_}k{i}" for i in range(count)]
    return [Comparison(name, f"p-{name}", f"a-p-{name}", f"b-p-{name}", round_) for name in names]


def test_label_stage_routes_gold_comparisons_to_people(tmp_path, monkeypatch):
    routes = blend_job(tmp_path, monkeypatch, pairs(60), gold=["r1k7"])
    assert routes["r1k7"].reasons[0] == "gold" and routes["r1k7"].seats == 3 and routes["r1k7"].propensity == 1.0
    assert not any("gold" in route.reasons for name, route in routes.items() if name != "r1k7")


def test_label_stage_routes_reward_model_disagreements(tmp_path, monkeypatch):
    margins = {f"r1k{i}": -4.0 if i == 7 else 2.0 for i in range(60)}
    routes = blend_job(tmp_path, monkeypatch, pairs(60), margins=margins)
    assert "reward model differs" in routes["r1k7"].reasons and routes["r1k7"].propensity == 1.0
    assert sum("reward model differs" in route.reasons for route in routes.values()) == 1


def test_label_stage_routes_new_domains(tmp_path, monkeypatch):
    comparisons = [*pairs(30, 1), *pairs(30, 2)]
    routes = blend_job(tmp_path, monkeypatch, comparisons, domains={"r2k3": "law"}, round_=2)
    assert "new domain" in routes["r2k3"].reasons and routes["r2k3"].propensity == 1.0
    assert sum("new domain" in route.reasons for route in routes.values()) == 1


def test_first_round_has_no_new_domain(tmp_path, monkeypatch):
    routes = blend_job(tmp_path, monkeypatch, pairs(60), domains={"r1k3": "law"})
    assert not any("new domain" in route.reasons for route in routes.values())


def test_later_label_stage_depends_on_the_previous_reward_model(tmp_path):
    recipe = Recipe.model_validate({"rounds": 2, "preferences": {"raters": "blend"}})
    inputs = {stage.name: stage.inputs for stage in plan_stages(recipe, tmp_path, Corpus(()), None)}
    assert "reward" not in inputs["label"] and {"sft", "reward"} <= set(inputs["label@2"])


def test_reward_margins_are_computed_once(tmp_path, monkeypatch):
    store = Store.open(tmp_path / "ledger.db")
    comparisons = pairs(3)
    store.add_prompts([Prompt(c.prompt_id, f"What about {c.id}?") for c in comparisons])
    texts = {name: "x" * (5 if name.startswith("a") else 2) for c in comparisons for name in (c.a, c.b)}
    store.add_completions(
        [Completion(name, name[2:], "sft", text, (1,) * len(text), (), "stop") for name, text in texts.items()]
    )
    scored = []

    def score(_role, batch, _wants):
        scored.append(len(batch))
        return SimpleNamespace(score_B=torch.tensor([float(row.answer_length) for row in batch.rows]))

    job: Any = SimpleNamespace(
        run=tmp_path,
        inputs={"sft": tmp_path / "sft", "reward": tmp_path / "abc123"},
        config=LabelConfig.from_recipe(Recipe()),
        store=store,
        chat=SimpleNamespace(prompt=lambda _text: [1, 2]),
        reward_chat=SimpleNamespace(pad=0),
        tokens=lambda completion: completion.token_ids,
        launch=lambda training: SimpleNamespace(open=lambda _roles: None, score=score),
    )
    monkeypatch.setattr(reward_margins.manifest, "read", lambda _folder: {"result": {"std": 2.0}})
    margins = reward_margins.reward_margins(job, comparisons[:2])
    assert margins == {"r1k0": 6.0, "r1k1": 6.0}
    assert reward_margins.reward_margins(job, comparisons) == margins | {"r1k2": 6.0}
    assert scored == [4, 2], "only the new comparison is scored again"
    del job.inputs["reward"]
    assert reward_margins.reward_margins(job, comparisons) == {}


FOLDERS = {
    "sft": "sft",
    "sample": "aaaaaa000000",
    "sample@2": "bbbbbb000000",
    "label": "label",
    "reward": "reward",
    "label@2": "label-2",
}


def two_answers(prefix, count, round_):
    """Comparisons of a sample stage whose fingerprint begins with the prefix."""
    names = [f"{prefix}.{i}" for i in range(count)]
    return [Comparison(name, f"p-{name}", f"{name}a", f"{name}b", round_) for name in names]


def test_label_stage_of_a_second_round_routes_with_the_trained_reward_model(tmp_path, tiny_folder):
    """Nothing is replaced: reward stage of round 1, judge over HTTP, SQLite, label stage of round 2."""
    first = two_answers("aaaaaa", 24, round_=1)
    second = two_answers("bbbbbb", 16, round_=2)
    contradicted = {second[0].id, second[1].id}
    domains = {second[2].prompt_id: "law"}
    prompts = tuple(
        Prompt(c.prompt_id, f"{'Wrong' if c.id in contradicted else 'Right'} {c.id}?", domains.get(c.prompt_id, "home"))
        for c in (*first, *second)
    )
    folders = {name: tmp_path / folder for name, folder in FOLDERS.items()}
    for folder in folders.values():
        folder.mkdir()
    (folders["sft"] / "weights").symlink_to(tiny_folder)

    def judge(request, _number):
        """Prefers the answer `yes`, and `no` where the prompt says so."""
        first_answer, _, _ = read_fences(request)
        prefers_no = "Wrong" in request["messages"][1]["content"]
        return answer(verdict_json("first" if first_answer.startswith("yes") != prefers_no else "second"))

    with Store.open(tmp_path / "ledger.db") as store, served(judge) as server:
        store.add_prompts(prompts)
        for c in (*first, *second):
            texts = ((c.a, "yes yes yes"), (c.b, "no no no"))
            store.add_completions([Completion(name, c.prompt_id, "sft", text, (), (), "stop") for name, text in texts])
        store.add_comparisons([*first, *second])
        store.set_gold([Gold(second[3].id, "a")])
        recipe = Recipe.model_validate(
            {
                "model": {"source": "tiny", "dtype": "float32"},
                "preferences": {"raters": "blend", "human_share": 0.3, "audit_share": 0.1, "overlap": 0.0},
                "judge": {"base_url": server.url, "model": "m"},
            }
        )
        labels = [as_row(Label(c.id, "a", 1.0, 1)) for c in first]
        (folders["label"] / "labels.json").write_text(json.dumps(labels))
        manifest.write(folders["label"], {"result": {"agreement": {"rate": 1.0, "n": 0}, "ceiling": None}})
        inputs = {name: folders[name] for name in ("sft", "sample", "label")}
        config = RewardConfig.from_recipe(recipe)
        trained = reward.run(Job(config, tmp_path, "reward", folders["reward"], inputs, store, Corpus(prompts)))
        manifest.write(folders["reward"], {"result": trained, "inputs": {}})
        assert trained["accuracy"] == 1.0
        inputs = {name: folders[name] for name in ("sample", "sample@2", "sft", "reward")}
        job = Job(
            LabelConfig.from_recipe(recipe), tmp_path, "label@2", folders["label@2"], inputs, store, Corpus(prompts), 2
        )
        with pytest.raises(Waiting, match="reward model differs"):
            label.run(job)
        tasks = store.read(lambda connection: connection.execute(select(schema.tasks)).all())
    routed = {task.comparison: task.reason.split(", ") for task in tasks}
    assert {name for name, reasons in routed.items() if "reward model differs" in reasons} == contradicted
    assert {name for name, reasons in routed.items() if "new domain" in reasons} == {second[2].id}
    assert {name for name, reasons in routed.items() if "gold" in reasons} == {second[3].id}
