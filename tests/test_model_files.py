"""Damaged models: check and run report an error that names the file and the fix."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from towpath.data.chat import Chat
from towpath.errors import ModelError
from towpath.models import base
from towpath.recipe import Recipe
from towpath.recipe.reader import check
from towpath.run import model_checks


@pytest.fixture
def folder(tmp_path: Path, tiny_folder: str) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def changed(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def fewer_tensors(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: x for name, x in tensors.items() if "layers.1." not in name},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def lost_shard(folder: Path) -> None:
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def damaged_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("[1]")


def destroyed_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8:40] = b"\x00" * 32
    path.write_bytes(content)


DAMAGE = {
    "a header cut short": (cut("model.safetensors", 100), "model.safetensors: 100 bytes, no whole header"),
    "weights cut short": (cut("model.safetensors", 200_000), "model.safetensors: cut short, 200000 of"),
    "a header destroyed": (destroyed_header, "model.safetensors: .* no whole header"),
    "an empty file": (cut("model.safetensors", 0), "model.safetensors: 0 bytes, no whole header"),
    "a Git LFS pointer": (
        write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "a Git LFS pointer",
    ),
    "no weights": (without("model.safetensors"), "no weights"),
    "a lost shard": (lost_shard, "1 of 2 files are not there: model-00002-of-00002.safetensors"),
    "an index that is no object": (damaged_index, "index.json: a JSON list"),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), "tokenizer"),
    "a damaged tokenizer": (cut("tokenizer.json", 300), "tokenizer.json: not JSON"),
    "another JSON as tokenizer": (write("tokenizer.json", "[]"), "tokenizer.json: a JSON list"),
    "a damaged configuration": (write("config.json", "{"), "config.json: not JSON"),
    "a configuration of nothing": (write("config.json", "{}"), "config.json"),
    "a damaged generation_config": (write("generation_config.json", "{]"), "generation_config.json: not JSON"),
    "a folder for a file": (
        lambda f: (without("model.safetensors")(f), (f / "model.safetensors").mkdir()),
        "model.safetensors: is a directory",
    ),
    "a kind that transformers lacks": (changed(model_type="nonesuch"), "nonesuch"),
    "values that do not go together": (changed(num_attention_heads=7), "config.json"),
    "an encoder": (changed(model_type="t5"), "t5|no causal language model|tokenizer|config"),
}
WEIGHTS = {
    "tensors that are not there": (
        fewer_tensors,
        "no weights for 9 tensors of a LlamaForCausalLM, such as model.layers.1.",
    ),
    "other shapes": (changed(intermediate_size=192), "size|shape|mismatch"),
    "more layers": (changed(num_hidden_layers=3), "no weights for 9 tensors"),
}


def loaded(folder: Path) -> None:
    """Load tokenizer and weights, as a run does."""
    Chat(base.load_tokenizer(str(folder)))
    base.load(str(folder), torch.float32, "grouped")


@pytest.mark.parametrize(("damage", "words"), [*DAMAGE.values(), *WEIGHTS.values()], ids=[*DAMAGE, *WEIGHTS])
def test_damaged_model_error_names_the_file(folder: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=words) as error:
        loaded(folder)
    assert str(folder) in str(error.value) and error.value.rule and error.value.fix


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_check_reports_a_damaged_model(folder: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(folder)
    try:
        base.load_tokenizer(str(folder))
    except ModelError as error:
        assert str(folder) in error.value  # `check` loads the tokenizer first
        return
    _size, findings = model_checks.check_model(check(Recipe, {}, "test"), folder)
    assert [(f.code, f.severity) for f in findings] == [("model", "error")]
    assert str(folder) in findings[0].evidence


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_unreadable_model_file_is_named(folder: Path, name: str) -> None:
    above = [
        parent
        for parent in folder.parents
        if parent.is_relative_to(tempfile.gettempdir()) and parent != Path(tempfile.gettempdir())
    ]
    for parent in (*above, folder):
        parent.chmod(0o755)
    (folder / name).chmod(0)
    root = os.getuid() == 0
    if root:
        os.seteuid(65534)  # root may read everything
    try:
        with pytest.raises(ModelError, match=f"{name}: permission denied"):
            loaded(folder)
    finally:
        if root:
            os.seteuid(0)


def test_truncated_gguf_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWPATH_CACHE", str(tmp_path))
    for content in (
        b"",
        b"GGUF",
        b"GGUF" + bytes(60),
        b"GGUF\x03\x00\x00\x00" + b"\x05" + bytes(7) + b"\x03" + bytes(20),
    ):
        path = tmp_path / "cut.gguf"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"cut\.gguf"):
            base.find(f"gguf:{path}")
    assert not list((tmp_path / "models").glob("gguf-*"))


def test_model_lookup_order(tmp_path: Path, tiny_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    here = tmp_path / "here"
    run.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError) as error:
        base.find("models/llama", run)
    for location in (run / "models" / "llama", here / "models" / "llama", "Hugging Face hub"):
        assert str(location) in str(error.value)
    shutil.copytree(tiny_folder, here / "models" / "llama")
    assert base.find("models/llama", run) == str(here / "models" / "llama") == base.find("models/llama")
    shutil.copytree(tiny_folder, run / "models" / "llama")
    assert base.find("models/llama", run) == str(run / "models" / "llama")
    assert base.find("./models/llama", run) == str(run / "models" / "llama")
    (run / "empty" / "one").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"no config.json in the folder \(looked at "):
        base.find("empty/one", run)
    with pytest.raises(ModelError, match="a file, not a folder"):
        base.find("models/llama/model.safetensors", run)
    shutil.copy(Path(tiny_folder) / "config.json", run / "x.gguf")
    with pytest.raises(ModelError, match=r"x\.gguf"):  # exists in the run folder and is not a GGUF file
        base.find("gguf:x.gguf", run)
    with pytest.raises(ModelError, match=re.escape(f"looked at {run}/y.gguf, {here}/y.gguf")):
        base.find("gguf:y.gguf", run)
