"""Whole runs with models of other people: a tokenizer that prepends a space, several EOS, a sliding window, a folder
in the run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers_of_others import CONTROLS, TEMPLATES, tokenizer_of

from towpath import recipe
from towpath.errors import DataError, ModelError
from towpath.recipe import Recipe
from towpath.run import export, pipeline
from towpath.run.new_run import create_run
from towpath.stages import generation

SMALL = [
    "sft.epochs=0.2",
    "evaluate.prompts=6",
    "preferences.prompts=20",
    "preferences.min_labels=4",
    "policy.steps=2",
    "policy.validate_every=1",
    "evaluate.bootstrap=100",
    "policy.max_new_tokens=12",
    "evaluate.max_new_tokens=12",
    "preferences.max_new_tokens=12",
    "model.template=model",
    "model.source=models/llama",
    "policy.rollout=8",
    "policy.batch=8",
    "evaluate.jailbreak_prompts=1",
    "track.tensorboard=false",
]
OTHER_END = CONTROLS.index("<|im_end|>")


def model_in(run: Path, settings: dict[str, Any]) -> None:
    """A random model with a window and two EOS, whose tokenizer is of Llama 2's kind, in the run's own folder."""
    folder = run / "models" / "llama"
    tokenizer = tokenizer_of("metaspace-legacy", "llama-2")
    tokenizer.save_pretrained(folder)
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text()) | {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        **settings,
    )
    model: Any = transformers.MistralForCausalLM(config)
    with torch.no_grad():
        model.get_output_embeddings().weight[OTHER_END] += 0.12  # drawn now and then
    model.generation_config.eos_token_id = [2, OTHER_END]
    model.save_pretrained(folder)


def new_run(folder: Path, *settings: str) -> Recipe:
    create_run(folder, "tiny")
    return recipe.load(folder, [*SMALL, *settings])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    run = tmp_path_factory.mktemp("other") / "run"
    made = new_run(run)
    model_in(run, {"sliding_window": 24})
    pipeline.run(made, run, lambda _line: None)
    return run, made


def test_a_run_is_exported_token_for_token_and_keeps_every_eos(finished: tuple[Path, Recipe], tmp_path: Path) -> None:
    run, made = finished
    export.export(made, run, tmp_path / "out", adapter=False, verify=True)
    for name in (tmp_path / "out", *run.glob("stages/sft/*/weights")):
        assert json.loads((name / "generation_config.json").read_text())["eos_token_id"] == [2, OTHER_END]
        assert transformers.GenerationConfig.from_pretrained(name).eos_token_id == [2, OTHER_END]
    (manifest,) = run.glob("stages/sft/*/manifest.json")
    assert "down_proj" in json.loads(manifest.read_text())["result"]["adapted"]["modules"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    original = transformers.AutoTokenizer.from_pretrained(run / "models" / "llama")
    for text in ("How do I boil an egg?", " two  spaces", "<s>[INST] a [/INST]"):
        assert tokenizer(text)["input_ids"] == original(text)["input_ids"]


def test_an_answer_that_ends_in_any_eos_has_stopped(finished: tuple[Path, Recipe]) -> None:
    run, _made = finished
    sampled = [c for path in run.glob("stages/baseline/*/answers-*.jsonl") for c in generation.read_completions(path)]
    ended = {c.token_ids[-1] for c in sampled if c.finish == "stop"}
    assert OTHER_END in ended and ended <= {2, OTHER_END}
    for c in sampled:
        assert (c.token_ids[-1] in (2, OTHER_END)) == (c.finish == "stop")
        assert not {2, OTHER_END} & set(c.token_ids[:-1])


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_demonstrations_are_said_whatever_is_forced(tmp_path: Path, count: int) -> None:
    run = tmp_path / "run"
    made = new_run(run, "model.source=tiny", f"data.demonstrations={'data/one.jsonl' if count else ''}")
    (run / "data" / "one.jsonl").write_text(
        json.dumps({"prompt": "How do I fold a shirt?", "response": "Sleeves first."}) + "\n"
    )
    with pytest.raises(DataError, match=f"{count} demonstrations"):
        pipeline.run(made, run, lambda _line: None, force=True)


def test_a_template_whose_tokens_are_not_transformers_own_stops_check_and_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    made = new_run(run, f"model.template={tmp_path}/template.jinja")
    model_in(run, {})
    (tmp_path / "template.jinja").write_text(TEMPLATES["llama-2"].replace("| trim", "| trim | replace('?', '')"))
    for begin in (
        lambda: pipeline.run(made, run, lambda _line: None, force=True),
        lambda: pipeline.examine(made, run, sources_of(made, run)),
    ):
        with pytest.raises(ModelError, match="apply_chat_template"):
            begin()
    assert not list(run.glob("stages/*"))


def sources_of(made: Recipe, run: Path) -> Any:
    from towpath.data import corpus_reader

    return corpus_reader.read_corpus(run, made.data, made.seed)
