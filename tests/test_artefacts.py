"""Integrity of a run's results: checksums, fingerprints of models and templates, damaged files."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from command import SETTINGS, SMALL, towpath
from safetensors.torch import load_file, save_file

import towpath as tp
from towpath import recipe
from towpath.data.corpus_reader import Corpus
from towpath.errors import DataError
from towpath.models import content
from towpath.recipe import Recipe
from towpath.recipe.reader import check
from towpath.records import Prompt
from towpath.run import export, pipeline, status
from towpath.run.fingerprint import plan_stages
from towpath.run.new_run import create_run
from towpath.runtime.checkpoints import Checkpoints
from towpath.store import manifest


def run(folder: Path, redo: Sequence[str] = (), only: str = "") -> list[str]:
    """Run as a new process would and return the output lines."""
    manifest._verified.clear()
    output: list[str] = []
    pipeline.run(recipe.load(folder, SMALL), folder, output.append, only, redo=redo)
    return output


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def flip(path: Path, seed: int = 0) -> None:
    """Flip one bit of a file without changing its times."""
    stat = path.stat()
    content = bytearray(path.read_bytes())
    draw = random.Random(seed)
    content = content or bytearray(1)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def results(folder: Path) -> list[Path]:
    """Return every result file of a finished run, including manifests."""
    stages = sorted(path.parent for path in folder.glob("stages/*/*/manifest.json"))
    return [stage / name for stage in stages for name in (manifest.NAME, *manifest.read(stage)["files"])]


def test_flipped_bit_in_any_result_file_is_detected(copied: Path) -> None:
    paths = results(copied)
    folders = {str(path.parent.relative_to(copied / "stages")).replace(path.parts[-3], "") for path in paths}
    published = {
        str(path.relative_to(copied)) for path in copied.rglob("manifest.sha256.json") if "checkpoints" not in str(path)
    }
    assert len(published) == 4 <= len(folders), "weights of sft, reward and policy, and the adapter"
    assert published <= {str(path.relative_to(copied)) for path in paths}
    for seed, path in enumerate(paths):
        whole = path.read_bytes()
        stage = next(parent for parent in path.parents if (parent / manifest.NAME).is_file())
        flip(path, seed)
        manifest._verified.clear()
        with pytest.raises(DataError, match="damaged") as message:
            manifest.verify(stage)
        assert str(path) in message.value.value and f"--redo {stage.parent.name}`" in message.value.fix
        path.write_bytes(whole)
        manifest.verify(stage)


@pytest.mark.parametrize(
    "name", ["sft/*/weights/model.safetensors", "reward/*/weights/reward.safetensors", "sample/*/completions-sft.jsonl"]
)
def test_run_refuses_damaged_results(copied: Path, name: str) -> None:
    (path,) = copied.glob(f"stages/{name}")
    shutil.rmtree(copied / "stages" / "policy")
    flip(path)
    with pytest.raises(DataError, match="damaged: its SHA-256 differs"):
        run(copied)
    assert not list(copied.glob("stages/policy/*/manifest.json"))


def test_damaged_policy_is_not_exported(copied: Path, tmp_path: Path) -> None:
    (path,) = copied.glob("stages/policy/*/weights/model.safetensors")
    flip(path)
    manifest._verified.clear()
    with pytest.raises(DataError, match="damaged: its SHA-256 differs"):
        export.export(recipe.load(copied, SMALL), copied, tmp_path / "to", False, False)


def weights(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("stages/*/*/weights/*.safetensors"))}


def test_redo_moves_a_damaged_stage_aside(copied: Path, finished: Path) -> None:
    (path,) = copied.glob("stages/sft/*/weights/model.safetensors")
    flip(path)
    output = run(copied, redo=["sft"])
    assert any(line.startswith("sft: moved aside to") for line in output)
    assert [line.partition(":")[0] for line in output if "done in" in line] == ["sft"]
    assert weights(copied) == weights(finished)
    assert len(list((copied / "aside").glob("sft-*-1/manifest.json"))) == 1


def test_stage_with_other_inputs_is_not_done(copied: Path) -> None:
    (folder,) = copied.glob("stages/sft/*")
    tensors = load_file(folder / "weights" / "model.safetensors")
    shutil.rmtree(folder / "weights")
    from towpath.store.publish import publish

    publish(
        folder / "weights", lambda path: save_file({k: v + 1 for k, v in tensors.items()}, path / "model.safetensors")
    )
    manifest.write(folder, {k: v for k, v in manifest.read(folder).items() if k not in ("files", "checksum")})
    with pytest.raises(DataError, match="baseline was made of other results of sft than there are now"):
        run(copied)


def fingerprint(folder: Path, **model: str) -> str:
    output = {"model": model, "preferences": {"raters": "people"}}
    corpus = Corpus((Prompt("a", "Why?"), Prompt("b", "How?", split="heldout")))
    return plan_stages(check(Recipe, output, "test"), folder, corpus, None)[0].fingerprint


def test_changed_model_or_template_changes_the_fingerprint(tmp_path: Path, tiny_folder: str) -> None:
    model = tmp_path / "model"
    template = tmp_path / "chat.jinja"
    now = []
    shutil.copytree(tiny_folder, model)
    assert content.known(str(model), tmp_path) == "", "before the first run no weights are read"
    (tmp_path / "stages").mkdir()
    template.write_text("{{ messages }}")

    def load_count() -> int:
        now.append(fingerprint(tmp_path, source=str(model), template=str(template)))
        return len(set(now))

    assert (load_count(), load_count()) == (1, 1)
    stat = (model / "model.safetensors").stat()
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    os.utime(model / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load_count() == 2, "another weight, of the same size and time"
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"transformers_version": "0.0.0"}))
    assert load_count() == 2, "who wrote a configuration is no part of the model"
    (model / "config.json").write_text(json.dumps(config | {"rope_theta": 500.0}))
    assert load_count() == 3
    (model / "tokenizer_config.json").write_text((model / "tokenizer_config.json").read_text() + " ")
    assert load_count() == 4
    template.write_text("{{ messages }}.")
    assert load_count() == 5
    shutil.rmtree(model)
    assert load_count() == 5, "a model that is gone is the one that was last there"


def test_status_reads_no_weights_and_imports_no_torch(finished: Path) -> None:
    code = (
        "import sys; from towpath.cli.app import main\ntry: main()\nfinally: assert not {'torch', 'transformers'} & "
        "set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "status", str(finished), *SETTINGS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.count(" done") == 7, done.stderr


def test_missing_ledger_is_not_replaced(copied: Path) -> None:
    (copied / "towpath.db").unlink()
    for command in (lambda: run(copied), lambda: status.read_status(recipe.load(copied, SMALL), copied)):
        with pytest.raises(DataError, match=r"towpath\.db: no such file, though (sample|label) is finished"):
            command()
    assert not (copied / "towpath.db").exists()


def test_damaged_reproducible_files_are_rebuilt(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (labels,) = copied.glob("stages/label/*/labels.json")
    whole = labels.read_bytes()
    labels.write_bytes(b"\xff\x00{")
    (copied / "current.json").write_bytes(b"\xff{")
    (policy,) = copied.glob("stages/policy/*")
    (policy / "manifest.json").unlink()
    (policy / "seconds").write_text("twelve")
    for name in ("findings.json", "interventions.jsonl", "metrics.jsonl", "samples.jsonl"):
        (policy / name).write_bytes(b'\xff\xfe[1]\n{"a": 1}\n')
    output = run(copied)
    assert any("labels.json: damaged" in line and "restored from the ledger" in line for line in output)
    assert labels.read_bytes() == whole and json.loads((copied / "current.json").read_text())["stages"]
    warned = capsys.readouterr().err
    for name in ("current.json", "seconds", "metrics.jsonl"):
        assert f"{name}" in warned, warned


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"{}", b"\xff\xfe", b'{"checksum": "0", "result": {}}'])
def test_damaged_manifest_error_names_the_file(copied: Path, content: bytes) -> None:
    (path,) = copied.glob("stages/reward/*/manifest.json")
    path.write_bytes(content)
    if content == b"{":
        done = towpath("status", copied, *SETTINGS)
        assert done.returncode == 1 and "manifest.json: damaged" in done.stderr and "--redo reward" in done.stderr, (
            done.stderr
        )
        with pytest.raises(DataError, match=r"manifest\.json: damaged"):
            run(copied)
    with pytest.raises(DataError, match=r"manifest\.json: damaged"):
        status.read_status(recipe.load(copied, SMALL), copied)


def test_damaged_checkpoints_are_reported_and_moved_aside(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    create_run(folder, "tiny")
    fault = {"TOWPATH_FAULT": "step-sft:4", "TOWPATH_CHECKPOINT_SECONDS": "0"}
    assert towpath("stage", "sft", folder, *SETTINGS, **fault).returncode == -9
    (folder_,) = folder.glob("stages/sft/*/checkpoints")
    assert sorted(path.name for path in folder_.iterdir()) == ["step_2", "step_3"]
    (folder_ / "step_3" / "manifest.sha256.json").unlink()
    flip(folder_ / "step_2" / "tensors.safetensors")
    run(folder, only="sft")
    assert weights(folder).items() <= weights(finished).items()
    (findings,) = (f for f in manifest.read(folder_.parent)["findings"] if f["code"] == "checkpoint-damaged")
    assert (
        "step_3: it has no manifest" in findings["evidence"]
        and "step_2: its files do not match" in findings["evidence"]
    )
    assert "from the beginning" in findings["remedy"]
    assert sum(path.name.startswith("damaged-step_") for path in folder_.iterdir()) == 2
    assert "moved aside" in capsys.readouterr().err


def test_checkpoint_without_manifest_is_skipped(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, {"x": torch.ones(1)}, {})
    (checkpoints.folder / "step_3" / "manifest.sha256.json").unlink()
    assert checkpoints.newest() is None
    checkpoints.save(3, {"x": torch.ones(1)}, {})
    newest = checkpoints.newest()
    assert newest is not None and newest[0] == 3


def test_python_training_verifies_model_and_results(tmp_path: Path, tiny_folder: str) -> None:
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))

    def vowels(_prompts: object, answers: list[str]) -> list[float]:
        return [float(answer.count("a")) for answer in answers]

    def train() -> Path:
        manifest._verified.clear()
        settings = {
            "steps": 1,
            "dtype": "float32",
            "max_new_tokens": 4,
            "rollout": 4,
            "batch": 4,
            "epochs": 1,
            "learning_rate": 1e-5,
        }
        prompts = [f"Say {i}." for i in range(12)]
        return tp.train(
            "ppo", model=model, prompts=prompts, reward=vowels, folder=tmp_path / "trained", **settings
        ).job.folder

    first = train()
    assert train() == first
    flip(first / "weights" / "model.safetensors")
    with pytest.raises(DataError, match="damaged: its SHA-256 differs"):
        train()
    tensors = load_file(model / "model.safetensors")
    save_file(
        {name: tensor * 1.01 for name, tensor in tensors.items()},
        model / "model.safetensors",
        metadata={"format": "pt"},
    )
    assert train() != first
