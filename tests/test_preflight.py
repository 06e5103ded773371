"""Preflight checks on the quickstart data with a real tokenizer."""

import json
import shutil
import struct
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from towpath import recipe
from towpath.data import corpus_reader
from towpath.data.chat import Chat
from towpath.data.corpus import Corpus
from towpath.errors import DataError, ModelError, RecipeError, ResourceError
from towpath.models import base, memory
from towpath.planning import sizes
from towpath.planning.memory import DeviceLimits, stage_memories
from towpath.recipe import Cluster, Data, Model, Recipe, load
from towpath.recipe.reader import check, override
from towpath.records import Demonstration, Finding, Prompt
from towpath.rollout import weight_transport
from towpath.run import cluster_checks, engine_checks, model_checks, preflight, run_plan, worker_plan
from towpath.runtime import host_devices, launchers, process
from towpath.runtime.host_devices import worker_devices

RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(RECIPES / "quickstart", folder / "data")
    return folder


@pytest.fixture(scope="module")
def corpus(run: Path) -> Corpus:
    return corpus_reader.read_corpus(run, Data(), 0)


@pytest.fixture
def chat() -> Chat:
    return Chat(base.load_tokenizer(base.find("tiny")))


def recipe_with(**values: Any) -> Recipe:
    """The default recipe with overrides such as policy__batch=8."""
    return check(
        Recipe, override({}, [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in values.items()]), "test"
    )


def nested(key: str, value: Any) -> dict[str, Any]:
    """Nested tables with one value; the parts of the key are separated by __."""
    for part in reversed(key.split("__")):
        value = {part: value}
    return value


def find_one(findings: Sequence[Finding], code: str, severity: str) -> Finding:
    """The one finding of that code and severity."""
    some = [f for f in findings if (f.code, f.severity) == (code, severity)]
    assert len(some) == 1, preflight.lines(findings)
    return some[0]


def assert_none(findings: Sequence[Finding], code: str) -> None:
    assert [f for f in findings if f.code == code] == []


def test_watched_sources_are_validated(run: Path, corpus: Corpus, chat: Chat) -> None:
    assert_none(preflight.check(recipe_with(policy__rewards__watch=["rule:words:8-35"]), run, corpus, chat), "rewards")
    findings = preflight.check(recipe_with(policy__rewards__watch=["model"]), run, corpus, chat)
    assert find_one(findings, "rewards", "error").evidence == "policy.rewards.watch: 'model': no such source"


@pytest.mark.parametrize("name", ["quickstart", "tiny"])
def test_bundled_recipes_have_no_errors(run: Path, corpus: Corpus, name: str) -> None:
    settings = recipe.load(RECIPES / f"{name}.toml")
    chat = Chat(base.load_tokenizer(base.find("tiny")), settings.model.template)
    findings = preflight.check(settings, run, corpus, chat)
    assert [f for f in findings if f.severity == "error"] == []
    for code in ("duplicates", "leak", "template", "learning-rate", "learning-rate-ratio", "decoding", "safety-set"):
        assert_none(findings, code)
    preflight.require(findings)


@pytest.mark.parametrize(
    ("values", "severity", "words"),
    [
        ({"sft__learning_rate": 3e-4}, "warning", "sft.learning_rate = 0.0003 is above"),
        ({"sft__learning_rate": 4e-6}, "error", "sft.learning_rate = 4e-06 is below"),
        ({"policy__learning_rate": 6e-4}, "warning", "scaled for LoRA from 1e-06–5e-05 for full weights"),
        ({"policy__learning_rate": 6e-3}, "error", "policy.learning_rate = 0.006 is above"),
        ({"policy__learning_rate": 1e-4, "policy__method": "full"}, "warning", "method 'full' (1e-06–5e-05)"),
        ({"policy__learning_rate": 6e-4, "policy__method": "full"}, "error", "method 'full'"),
        ({"reward__learning_rate": 1e-2}, "error", "reward.learning_rate"),
    ],
)
def test_learning_rate_ranges_depend_on_the_method(values: dict[str, Any], severity: str, words: str) -> None:
    assert (
        words
        in find_one(list(preflight._check_rates(recipe_with(**values), False)), "learning-rate", severity).evidence
    )


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"sft__learning_rate": 5e-5},
        {"policy__learning_rate": 5e-4},
        {"policy__learning_rate": 5e-6},
        {"policy__learning_rate": 1e-6, "policy__method": "full"},
        {"policy__learning_rate": 5e-5, "policy__method": "full"},
    ],
)
def test_learning_rates_at_the_range_limits_are_accepted(values: dict[str, Any]) -> None:
    assert_none(preflight._check_rates(recipe_with(**values), False), "learning-rate")


def test_force_turns_a_learning_rate_error_into_a_warning(run: Path, corpus: Corpus, chat: Chat) -> None:
    settings = recipe_with(policy__learning_rate=1e-2)
    with pytest.raises(RecipeError, match=r"policy\.learning_rate = 0\.01"):
        preflight.require(preflight.check(settings, run, corpus, chat))
    forced = preflight.check(settings, run, corpus, chat, force=True)
    find_one(forced, "learning-rate", "warning")
    preflight.require(forced)


@pytest.mark.parametrize("key", ["sft__domains", "policy__rewards__domains"])
def test_weight_of_an_unknown_domain_is_a_warning(run: Path, corpus: Corpus, chat: Chat, key: str) -> None:
    recipe = Recipe.model_validate(nested(key, {"harmful": 2.0, "harmfull": 2.0}))
    warned = find_one(preflight.check(recipe, run, corpus, chat), "domains", "warning")
    assert "harmfull" in warned.evidence and "cooking" in warned.remedy
    assert_none(preflight.check(Recipe.model_validate(nested(key, {"harmful": 2.0})), run, corpus, chat), "domains")


@pytest.mark.parametrize(("rate", "words"), [(2.1e-5, "feed back"), (4.9e-6, "hardly move")])
def test_learning_rate_ratio_of_sft_and_policy(rate: float, words: str) -> None:
    assert (
        words
        in find_one(
            preflight._check_rates(recipe_with(policy__learning_rate=rate), False), "learning-rate-ratio", "warning"
        ).cause
    )
    for usual in (2e-5, 5e-6):
        assert_none(preflight._check_rates(recipe_with(policy__learning_rate=usual), False), "learning-rate-ratio")


def test_learning_rates_of_different_methods_are_not_compared() -> None:
    findings = preflight._check_rates(
        recipe_with(sft__method="full", sft__learning_rate=5e-5, policy__learning_rate=2e-5), False
    )
    find_one(findings, "learning-rate-ratio", "info")


@pytest.mark.parametrize(
    ("values", "code", "words"),
    [
        ({"policy__batch": 65}, "batch", "policy.batch = 65 is more than policy.rollout = 64"),
        ({"policy__rollout": 859}, "rollout", "858 of 906 training prompts are left"),
        ({"policy__validation_prompts": 950}, "rollout", "0 of 906"),
        ({"sft__batch": 333}, "demonstrations", "332 demonstrations to train on, sft.batch = 333"),
        ({"preferences__min_labels": 1088}, "labels", "906 prompts give at most 1087 comparisons"),
        ({"preferences__prompts": 100}, "labels", "100 prompts give at most 120 comparisons"),
    ],
)
def test_impossible_sizes_are_refused(
    run: Path, corpus: Corpus, chat: Chat, values: dict[str, Any], code: str, words: str
) -> None:
    findings = preflight.check(recipe_with(**values), run, corpus, chat)
    assert words in find_one(findings, code, "error").evidence
    with pytest.raises((RecipeError, DataError), match="--force"):
        preflight.require(findings)
    preflight.require(findings, force=True)


@pytest.mark.parametrize(
    "values",
    [
        {"policy__batch": 64},
        {"policy__rollout": 810},
        {"sft__batch": 300},
        {"preferences__min_labels": 1030},
        {"preferences__prompts": 167},
    ],
)
def test_sizes_at_the_limit_are_accepted(run: Path, corpus: Corpus, chat: Chat, values: dict[str, Any]) -> None:
    assert [f for f in preflight.check(recipe_with(**values), run, corpus, chat) if f.severity == "error"] == []


@pytest.mark.parametrize(
    ("algo", "epochs", "warns"),
    [("grpo", 3, True), ("rloo", 4, True), ("reinforce", 9, True), ("grpo", 2, False), ("ppo", 4, False)],
)
def test_many_epochs_without_a_critic_are_a_warning(algo: str, epochs: int, warns: bool) -> None:
    findings = list(
        preflight._check_groups(recipe_with(policy__algo=algo, policy__epochs=epochs, policy__group=4).policy)
    )
    assert [(f.code, f.severity) for f in findings] == [("epochs", "warning")] * warns


@pytest.mark.parametrize(
    ("algo", "group", "epochs"), [("ppo", 1, 4), ("grpo", 4, 1), ("rloo", 4, 1), ("reinforce", 1, 1), ("dpo", 1, 4)]
)
def test_algorithm_defaults(run: Path, corpus: Corpus, chat: Chat, algo: str, group: int, epochs: int) -> None:
    recipe = recipe_with(policy__algo=algo)
    assert (recipe.policy.group, recipe.policy.epochs) == (group, epochs)
    assert not {"group", "epochs"} & {f.code for f in preflight.check(recipe, run, corpus, chat)}
    mine = recipe_with(policy__algo=algo, policy__group=8, policy__epochs=2).policy
    assert (mine.group, mine.epochs) == (8, 2), "explicit values override the defaults of the algorithm"


def test_few_heldout_prompts_are_a_warning_with_an_interval(run: Path, corpus: Corpus, chat: Chat) -> None:
    few = find_one(preflight.check(recipe_with(evaluate__prompts=81), run, corpus, chat), "heldout-few", "warning")
    assert "81 held-out prompts" in few.evidence and "70 ± 10 %" in few.evidence
    assert_none(preflight.check(recipe_with(evaluate__prompts=200), run, corpus, chat), "heldout-few")
    nothing = replace(corpus, prompts=corpus.train)
    with pytest.raises(DataError, match="no held-out prompts"):
        preflight.require(preflight.check(recipe_with(), run, nothing, chat))


def test_few_heldout_pairs_are_a_warning(run: Path, corpus: Corpus, chat: Chat) -> None:
    few = find_one(
        preflight.check(recipe_with(preferences__prompts=100, preferences__min_labels=50), run, corpus, chat),
        "pairs-few",
        "warning",
    )
    assert "30 of 120 pairs" in few.evidence
    people = preflight.check(recipe_with(preferences__raters="people", preferences__min_labels=100), run, corpus, chat)
    assert "25 of 100" in find_one(people, "pairs-few", "warning").evidence


def test_long_prompts_are_refused(run: Path, corpus: Corpus, chat: Chat) -> None:
    long = tuple(Prompt(f"long-{i}", f"{i} " * 150) for i in range(12))
    more = replace(corpus, prompts=(*corpus.prompts, *long))
    evidence = find_one(preflight.check(recipe_with(), run, more, chat), "prompt-length", "error").evidence
    assert (
        evidence.startswith("12 prompts")
        and "long-0 (" in evidence
        and "long-9 (" in evidence
        and "long-10" not in evidence
    )
    length = max(len(chat.prompt(p.prompt)) for p in long)
    assert_none(preflight.check(recipe_with(data__max_prompt_tokens=length), run, more, chat), "prompt-length")
    find_one(
        preflight.check(
            recipe_with(data__max_prompt_tokens=length - 1), run, replace(corpus, safety=(long[-1],)), chat
        ),
        "prompt-length",
        "error",
    )


def test_prompt_and_answer_must_fit_into_the_context(run: Path, corpus: Corpus, chat: Chat) -> None:
    room = 1024 - max(len(chat.prompt(p.prompt)) for p in (*corpus.prompts, *corpus.safety))
    fits = recipe_with(policy__max_new_tokens=room, evaluate__max_new_tokens=room)
    assert_none(preflight.check(fits, run, corpus, chat), "prompt-length")
    tight = recipe_with(preferences__max_new_tokens=room + 1)
    assert "context of 1024" in find_one(preflight.check(tight, run, corpus, chat), "prompt-length", "error").evidence


def test_demonstration_longer_than_the_context_is_refused(run: Path, corpus: Corpus, chat: Chat) -> None:
    long = Demonstration("d-long", corpus.train[0].prompt, "word " * 250, corpus.train[0].id)
    findings = preflight.check(recipe_with(), run, replace(corpus, demonstrations=(*corpus.demonstrations, long)), chat)
    assert "d-long" in find_one(findings, "row-length", "error").evidence


def test_demonstrations_longer_than_max_new_tokens_are_counted(run: Path, corpus: Corpus, chat: Chat) -> None:
    lengths = [len(chat.answer(d.response)) for d in corpus.demonstrations]
    limit = sorted(lengths)[-4]
    finding = find_one(
        preflight.check(recipe_with(policy__max_new_tokens=limit), run, corpus, chat), "answer-length", "warning"
    )
    assert finding.evidence.startswith(f"{sum(n > limit for n in lengths)} of {len(lengths)}")
    assert_none(preflight.check(recipe_with(policy__max_new_tokens=max(lengths)), run, corpus, chat), "answer-length")


def test_pad_must_not_be_eos(corpus: Corpus, chat: Chat) -> None:
    assert model_checks.check_template(chat, corpus) == []
    chat.pad = chat.eos
    assert "pad and EOS" in find_one(model_checks.check_template(chat, corpus), "template", "error").evidence


def test_double_bos_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{{ bos_token }}{{ bos_token }}{{ messages[0]['content'] }}")
    with pytest.raises(ModelError, match="BOS twice"):
        Chat(base.load_tokenizer(base.find("tiny")), str(path))


def test_changed_template_is_an_error(corpus: Corpus, chat: Chat) -> None:
    chat.tokenizer.chat_template = chat.template.replace("user", "human") + " "
    assert any(
        "changed after" in f.evidence and f.severity == "error" for f in model_checks.check_template(chat, corpus)
    )


def test_encoding_special_tokens_of_user_text_is_an_error(corpus: Corpus, chat: Chat) -> None:
    chat._encoder._backend.encode_special_tokens = False
    chat._encoder.controls.clear()
    assert (
        "special tokens in a user's text"
        in find_one(model_checks.check_template(chat, corpus), "template", "error").evidence
    )


def test_rows_with_special_tokens_are_a_warning(corpus: Corpus, chat: Chat) -> None:
    marked = replace(corpus, prompts=(*corpus.prompts, Prompt("odd", "<|im_start|>user\nHi<|im_end|>")))
    assert "odd" in find_one(model_checks.check_template(chat, marked), "template", "warning").evidence


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}A:{% endif %}",
            "writes a prompt otherwise",
        ),
        (
            "{% for m in messages %}A:{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}A:{% endif %}",
            "ends an answer with '</s>'",
        ),
        (
            "{% for m in messages %}{% if m['role'] != 'user' %}{{ raise_exception('no') }}{% endif %}{{ "
            "m['content'] }}{% endfor %}",
            "cannot write an answer",
        ),
    ],
)
def test_unusual_templates_are_a_warning(tmp_path: Path, corpus: Corpus, template: str, words: str) -> None:
    path = tmp_path / "template.jinja"
    path.write_text(template)
    chat = Chat(base.load_tokenizer(base.find("tiny")), str(path))
    assert words in find_one(model_checks.check_template(chat, corpus), "template", "warning").evidence


def test_leak_into_heldout_prompts_is_refused(run: Path, corpus: Corpus, chat: Chat) -> None:
    again = replace(corpus.heldout[0], id="again", split="train")
    findings = preflight.check(recipe_with(), run, replace(corpus, prompts=(*corpus.prompts, again)), chat)
    assert f"again = {corpus.heldout[0].id}" in find_one(findings, "leak", "error").evidence
    find_one(findings, "duplicates", "warning")
    with pytest.raises(DataError):
        preflight.require(findings)


def test_safety_prompt_in_training_is_a_warning(run: Path, corpus: Corpus, chat: Chat) -> None:
    again = replace(corpus.safety[0], id="again", split="train")
    findings = preflight.check(recipe_with(), run, replace(corpus, prompts=(*corpus.prompts, again)), chat)
    assert "safety to train" in find_one(findings, "leak", "warning").evidence
    preflight.require(findings)


def test_safety_set_without_harmless_prompts_or_twins_is_a_warning(run: Path, corpus: Corpus, chat: Chat) -> None:
    harmful = replace(corpus, safety=tuple(p for p in corpus.safety if p.harmful))
    evidence = [f.evidence for f in preflight.check(recipe_with(), run, harmful, chat) if f.code == "safety-set"]
    assert len(evidence) == 2 and "no harmless" in evidence[0] and "42 prompts" in evidence[1]
    assert (
        "no safety set"
        in find_one(
            preflight.check(recipe_with(), run, replace(corpus, safety=()), chat), "safety-set", "warning"
        ).evidence
    )


def test_different_decoding_in_evaluation_is_a_warning(run: Path, corpus: Corpus, chat: Chat) -> None:
    finding = find_one(
        preflight.check(recipe_with(evaluate__temperature=0.7), run, corpus, chat), "decoding", "warning"
    )
    assert finding.evidence == "policy.temperature = 1, evaluate.temperature = 0.7"


def test_corpus_findings_are_repeated(run: Path, corpus: Corpus, chat: Chat) -> None:
    finding = Finding("demonstrations-heldout", "warning", "1 of 2")
    assert finding in preflight.check(recipe_with(), run, replace(corpus, findings=(finding,)), chat)


def test_skipped_checks_without_a_tokenizer_are_listed(run: Path, corpus: Corpus) -> None:
    findings = preflight.check(recipe_with(), run, corpus, None)
    find_one(findings, "template", "info")
    find_one(findings, "resources", "info")
    preflight.require(findings)


def test_model_size_from_files() -> None:
    model = base.load(base.find("tiny"), torch.float32, "eager")
    linear = [m for m in model.modules() if type(m).__name__ == "Linear" and m is not model.get_output_embeddings()]
    size = sizes.model_size(Path(base.find("tiny")))
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert size.lora_sides == sum(m.in_features + m.out_features for m in linear)
    assert (size.context, size.vocabulary) == (1024, 259)


def test_model_size_of_several_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 5}')
    for number, shape in enumerate(([3, 4], [7])):
        header = json.dumps(
            {"__metadata__": {"format": "pt"}, f"w{number}": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}
        ).encode()
        (tmp_path / f"model-{number}.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert sizes.model_size(tmp_path) == sizes.Size(19, 7, None, 5)
    assert sizes.model_size(tmp_path / "none") == sizes.Size()


def test_sliding_window_is_not_the_context_length(tmp_path: Path) -> None:
    for settings in (
        {"sliding_window": 96},
        {"sliding_window": None},
        {"text_config": {"max_position_embeddings": 512}, "max_position_embeddings": 9},
    ):
        (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 512, "vocab_size": 5} | settings))
        assert sizes.model_size(tmp_path).context == 512


def test_insufficient_disk_and_memory_are_refused(run: Path, corpus: Corpus, chat: Chat) -> None:
    findings = preflight.check(recipe_with(model__device="cpu"), run, corpus, chat, parameters=10**14)
    assert "100,000,000.0 M parameters" in find_one(findings, "disk", "error").cause
    if memory.memory_available() is not None:
        find_one(findings, "memory", "error")
        find_one(preflight.check(recipe_with(), run, corpus, chat, parameters=10**14), "memory", "warning")
        assert_none(preflight.check(recipe_with(model__device="cuda"), run, corpus, chat, parameters=10**14), "memory")
    small = preflight.check(recipe_with(), run, corpus, chat)
    find_one(small, "disk", "info")


def largest_memory(recipe: Recipe, size: sizes.Size, reward: sizes.Size | None = None, others: int = 0) -> int:
    """Bytes of models, gradients and optimizer on a CPU, in the largest stage that trains."""
    stages = stage_memories(recipe, DeviceLimits(False), None, (size, reward, others), ("sft", "reward", "policy"))
    return max(stage.total - stage.process for stage in stages.values())


def test_disk_and_memory_estimates_depend_on_method_and_rounds() -> None:
    size = sizes.Size(1000, 100, 64, 10)
    full = dict.fromkeys(("sft__method", "reward__method", "policy__method"), "full")
    assert sizes.disk_needed(recipe_with(), size) == 4 * 2000 + 48 * 3 * 1600
    assert sizes.disk_needed(recipe_with(rounds=2, **full), size) == 4 * 5000 + 48 * 5000
    # two copies of the model, with an adapter; or a reference beside what is trained whole
    assert largest_memory(recipe_with(), size) == 4 * (2 * 1000 + 5 * 1600)
    assert largest_memory(recipe_with(**full), size) == 4 * (2 * 1000 + 5 * 1000)


def test_estimates_count_reward_models_from_elsewhere() -> None:
    size = sizes.Size(1000, 100, 64, 10)
    reward = sizes.Size(7000, 300, 64, 10)
    plain = recipe_with(reward__base="other")
    # the policy's own copies, the reward model, an adapter of each
    assert largest_memory(plain, size, reward, 500) == 4 * (7000 + 5 * 16 * 300)
    used_as_it_is = recipe_with(reward__pretrained="other")
    assert largest_memory(used_as_it_is, size, reward, 500) == 4 * (2 * 1000 + 7000 + 500 + 5 * 1600)
    assert sizes.disk_needed(used_as_it_is, size, reward) == 4 * 2000 + 48 * 2 * 1600
    assert sizes.disk_needed(recipe_with(reward__base="other", reward__method="full"), size, reward) == (
        4 * (2000 + 7000) + 48 * (2 * 1600 + 7000)
    )


def test_the_memory_of_a_named_reward_model_is_checked(tmp_path: Path) -> None:
    recipe = recipe_with(reward__base=base.find("tiny"))
    finding = find_one(preflight.check(recipe, tmp_path, Corpus(()), None, parameters=10**6), "memory", "info")
    assert "M of other reward models" in finding.cause


def test_workers_must_fit_the_machine_together(run: Path, corpus: Corpus, chat: Chat, monkeypatch) -> None:
    recipe = recipe_with(model__device="cpu", cluster__workers=3, cluster__timeout=30)
    models = run_plan.RunModels(
        sizes.model_size(Path(chat.tokenizer.name_or_path)), None, 0, run_plan.shape_of_model(recipe, run)
    )
    placement = worker_plan.place_workers(recipe, models.model)
    needed = max(one.total for one in run_plan.memories_here(recipe, run, placement, models).values())
    monkeypatch.setattr(cluster_checks, "check_cluster", lambda *_: [])
    severities = []
    for available in (3 * needed, 3 * needed - 1):
        monkeypatch.setattr(preflight, "memory_available", lambda available=available: available)
        (finding,) = [one for one in preflight.check(recipe, run, corpus, chat) if one.code == "memory"]
        severities.append(finding.severity)
    assert severities == ["info", "error"]
    assert "for each of 3 workers" in finding.evidence and "set cluster.workers to 2" in finding.remedy
    assert "weights" in finding.cause and "process" in finding.cause


def test_memory_of_a_worker_adds_up_and_is_divided(monkeypatch) -> None:
    folder = Path(base.find("tiny"))
    size = sizes.model_size(folder)
    shape = worker_plan.model_shape(folder)
    full = dict.fromkeys(("sft__method", "reward__method", "policy__method"), "full")
    kinds = ("sft", "sample", "reward", "policy")
    for values in ({}, full):
        recipe = recipe_with(model__device="cpu", cluster__workers=2, **values)
        placement = worker_plan.place_workers(recipe, size)
        assert placement.devices == ("cpu", "cpu") and placement.shard == "replicate"
        whole = stage_memories(recipe, worker_plan.limits_of(placement), shape, (size, None, 0), kinds)
        for stage in whole.values():
            parts = stage.weights + stage.gradients + stage.optimizer + stage.head + stage.process
            assert stage.total == parts + max(stage.activations or 0, stage.cache)
        assert whole["sample"].cache > 0 and whole["sample"].gradients == 0 and whole["reward"].cache == 0
        fsdp = recipe_with(model__device="cpu", cluster__workers=2, cluster__shard="fsdp", **values)
        placement = worker_plan.place_workers(fsdp, size)
        parts_of = stage_memories(fsdp, worker_plan.limits_of(placement), shape, (size, None, 0), kinds)
        for name, stage in parts_of.items():
            before = whole[name]
            assert stage.activations == before.activations
            assert stage.weights < before.weights
            # adapters are whole on each worker
            assert stage.optimizer == (-(-before.optimizer // 2) if values else before.optimizer)
    assert "shard fsdp" in worker_plan.workers_line(placement)
    monkeypatch.setattr(host_devices, "visible_gpus", lambda: 2)
    size = sizes.Size(parameters=10**9, lora_sides=10**6, vocabulary=1000)
    resolved = {}
    for capacity in (36 * 10**9, 37 * 10**9):
        monkeypatch.setattr(process, "gpu_capacity", lambda capacity=capacity: capacity)
        recipe = recipe_with(model__device="cuda", cluster__workers=4, **full)
        resolved[capacity] = worker_plan.place_workers(recipe, size)
    # 22 GB of weights and optimizer are more than 60 % of the one and less than 60 % of the other
    assert [one.shard for one in resolved.values()] == ["fsdp", "replicate"]
    assert resolved[36 * 10**9].devices == ("cuda:0", "cuda:1", "cuda:0", "cuda:1")
    assert resolved[36 * 10**9].device_share == 2 and resolved[36 * 10**9].parts == 4


def test_several_errors_are_raised_as_one() -> None:
    errors = [Finding("batch", "error", "first", "why", "fix it"), Finding("leak", "error", "second", "why", "fix it")]
    with pytest.raises(RecipeError, match=r"(?s)2 findings.*first.*second"):
        preflight.require(errors)
    with pytest.raises(DataError, match="second"):
        preflight.require(errors[1:])


def test_lines_are_sorted_by_severity() -> None:
    text = preflight.lines(
        [
            Finding("a", "info", "one"),
            Finding("b", "error", "two", "why", "fix it"),
            Finding("c", "warning", "three", "so"),
        ]
    )
    assert text == "ERROR b: two\n  cause: why\n  fix:   fix it\nWARNING c: three\n  cause: so\nINFO a: one"


def test_setting_one_gate_key_keeps_the_other_defaults():
    settings = check(Recipe, {"gates": {"reward": {"action": "warn"}, "safety": {"action": "warn"}}}, "test")
    assert (settings.gates.reward.threshold, settings.gates.safety.threshold, settings.gates.evaluate.threshold) == (
        0.85,
        0.05,
        0.7,
    )
    assert settings.gates.reward.action == "warn"


@pytest.mark.parametrize("python", ["", "/nowhere/python", sys.executable])
def test_python_without_vllm_is_an_error(
    run: Path, corpus: Corpus, chat: Chat, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOWPATH_DATA", str(run / "data of nobody"))
    finding = find_one(
        preflight.check(recipe_with(engine__type="vllm", engine__python=python), run, corpus, chat), "engine", "error"
    )
    assert repr(python) in finding.evidence
    assert "towpath engine install vllm" in finding.remedy
    assert_none(preflight.check(recipe_with(), run, corpus, chat), "engine")


@pytest.mark.parametrize(
    ("version", "is_tested"), [("0.30.0", False), ("0.31.0", True), ("0.32.3", True), ("0.33.0", False)]
)
def test_untested_vllm_is_an_error(
    run: Path, corpus: Corpus, chat: Chat, version: str, is_tested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_checks, "installed_version", lambda python: version)
    findings = preflight.check(recipe_with(engine__type="vllm", engine__python=sys.executable), run, corpus, chat)
    if is_tested:
        assert_none(findings, "engine")
        return
    finding = find_one(findings, "engine", "error")
    assert f"vLLM {version}" in finding.evidence
    assert "0.31 to 0.32" in finding.cause


def test_filters_with_the_own_sampler_of_vllm_are_an_error(
    run: Path, corpus: Corpus, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_checks, "installed_version", lambda python: "0.32.0")
    values: dict[str, Any] = {"engine__type": "vllm", "engine__python": sys.executable}
    findings = preflight.check(recipe_with(**values, engine__exact=False), run, corpus, chat)
    finding = find_one(findings, "engine", "error")
    assert "preferences.decodings[1].top_p" in finding.evidence
    values["engine__exact"] = False
    recorded = recipe_with(**values, preferences__raters="recorded")
    assert_none(preflight.check(recorded, run, corpus, chat), "engine")
    values["engine__exact"] = "auto"
    assert_none(preflight.check(recipe_with(**values), run, corpus, chat), "engine")


def test_shared_memory_to_vllm_is_tried_before_anything_loads(
    run: Path, corpus: Corpus, chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_checks, "installed_version", lambda python: "0.32.0")
    before = set(weight_transport.SHARED_MEMORY.iterdir())
    deaf = tmp_path / "python"  # a Python that cannot read it
    deaf.write_text("#!/bin/sh\necho 'cannot open the file' >&2; exit 1\n")
    deaf.chmod(0o755)
    settings = recipe_with(engine__type="vllm", engine__python=str(deaf))
    finding = find_one(preflight.check(settings, run, corpus, chat), "engine", "error")
    assert "64 KiB in /dev/shm: cannot open the file" in finding.evidence
    # 64 MiB is what a container has by default, of which something is used
    usage = type("usage", (), {"free": 60 * 2**20})
    monkeypatch.setattr(engine_checks.shutil, "disk_usage", lambda folder: usage)
    findings = list(engine_checks._check_shared_memory(sys.executable))
    assert "60 MiB free" in findings[0].evidence and "--shm-size" in findings[0].remedy
    assert set(weight_transport.SHARED_MEMORY.iterdir()) <= before


JUDGE = {"judge__base_url": "http://localhost:1/v1", "judge__model": "m"}


@pytest.mark.parametrize(
    ("values", "evidence"),
    [
        ({"preferences__raters": "judge"}, "judge.base_url = ''"),
        ({"preferences__raters": "judge", **JUDGE, "judge__api_key": "sk-1234"}, "judge.api_key holds the key itself"),
        ({"preferences__raters": "blend", **JUDGE, "preferences__audit_share": 0.05}, "preferences.audit_share = 0.05"),
        (
            {"preferences__raters": "blend", **JUDGE, "preferences__human_share": 0.1, "preferences__audit_share": 0.2},
            "preferences.human_share = 0.1",
        ),
        ({"preferences__raters": "recorded"}, "data.preferences = "),
        ({"preferences__raters": "recorded", "data__preferences": "", "rounds": 2}, "rounds = 2"),
    ],
)
def test_invalid_rater_settings_are_errors(
    run: Path, corpus: Corpus, chat: Chat, values: dict[str, Any], evidence: str
) -> None:
    assert evidence in find_one(preflight.check(recipe_with(**values), run, corpus, chat), "raters", "error").evidence


def test_judge_and_rule_settings(run: Path, corpus: Corpus, chat: Chat) -> None:
    recipe_ = recipe_with(preferences__raters="blend", **JUDGE)
    assert_none(preflight.check(recipe_, run, corpus, chat), "raters")
    bad = recipe_.model_copy(
        update={"preferences": recipe_.preferences.model_copy(update={"rules": {"r": "open('x')"}})}
    )
    assert "open" in find_one(preflight.check(bad, run, corpus, chat), "raters", "error").evidence


QUESTIONS = tuple(
    Prompt(f"p{i}", f"What is {i} and {i + 1}?", split="heldout" if i % 4 == 0 else "train") for i in range(80)
)


@pytest.mark.parametrize(
    ("source", "error"),
    [("mth", "'mth': no such source"), ("math:other", "'math:other'"), ("python:nowhere:f", "nowhere"), ("math", "")],
)
def test_source_of_the_accuracy_is_checked_before_the_run(tmp_path: Path, source: str, error: str) -> None:
    corpus = Corpus(QUESTIONS, columns={p.id: {"reference": "1"} for p in QUESTIONS})
    findings = preflight.check(recipe_with(evaluate__accuracy=source), tmp_path, corpus, None)
    errors = [f.evidence for f in findings if f.evidence.startswith("evaluate.accuracy: ")]
    assert [error in evidence for evidence in errors] == ([True] if error else [])


@pytest.mark.parametrize(("source", "reads_labels"), [("rule:prose", False), ("model", True)])
def test_labels_are_checked_only_where_a_stage_reads_them(tmp_path: Path, source: str, reads_labels: bool) -> None:
    settings = check(Recipe, {"policy": {"rewards": {"sources": [{"source": source}]}}}, "test")
    codes = {f.code for f in preflight.check(settings, tmp_path, Corpus(QUESTIONS), None)}
    assert ({"labels", "simulated-labels", "pairs-few"} & codes != set()) == reads_labels


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("cluster.workers=two", "cluster.workers = 'two': input should be 'auto' or a valid integer"),
        ("cluster.workers=0", "cluster.workers = 0: must be auto or at least 1"),
        ("model.tokens_per_pass=many", "model.tokens_per_pass = 'many'"),
        ("policy.kl.coef=x", "policy.kl.coef = 'x': input should be a valid number"),
        ("cluster.wrokers=2", "unknown key cluster.wrokers, did you mean cluster.workers?"),
    ],
)
def test_a_wrong_value_is_named_once_with_its_key(setting: str, message: str, tmp_path: Path) -> None:
    """A key with a choice of types has one error, not one for each type."""
    (tmp_path / "recipe.toml").write_text("")
    with pytest.raises(RecipeError) as raised:
        load(tmp_path, [setting])
    assert message in raised.value.value and "literal[" not in raised.value.value and ";" not in raised.value.value


def test_more_workers_or_gpus_than_there_are_is_refused() -> None:
    """400 workers of 110 MB each filled a machine's memory before anything was loaded."""
    with pytest.raises(ResourceError, match="cores") as raised:
        worker_devices(Model(device="cpu"), Cluster(workers=10_000))
    assert raised.value.value == "cluster.workers = 10000" and "set cluster.workers to" in raised.value.fix
    with pytest.raises(ResourceError, match=r"cluster.gpus = 99"):
        worker_devices(Model(), Cluster(gpus=99))
    assert worker_devices(Model(device="cpu"), Cluster(gpus=99)) == []


def test_workers_are_not_started_where_they_do_not_fit(run: Path, corpus: Corpus, chat: Chat, monkeypatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise AssertionError("workers were started")

    monkeypatch.setattr(launchers, "open_workers", refuse)
    monkeypatch.setattr(preflight, "memory_available", lambda: 2**20)
    findings = preflight.check(recipe_with(model__device="cpu", cluster__workers=2), run, corpus, chat)
    assert any(finding.code == "memory" and finding.severity == "error" for finding in findings)
