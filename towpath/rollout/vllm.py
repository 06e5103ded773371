"""vLLM as the engine: a process in a Python of its own, to which weights go by a folder and requests by a pipe.

It draws by the same uniform numbers as the engine in this process: tokens differ only where vLLM's rounding does.
"""

import copy
import json
import os
import shutil
import subprocess
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from towpath.data.chat import Chat
from towpath.errors import RecipeError, ResourceError
from towpath.recipe import EngineConfig
from towpath.rollout.engine import SampleOutput, SampleRequest, Tick

WORKER = Path(__file__).with_name("vllm_worker.py")


def open_engine(section: EngineConfig, chat: Chat, folder: Path, max_tokens: int) -> "VllmEngine":
    """vLLM in the Python that the recipe names; `refresh` gives it a model."""
    return VllmEngine(None, chat.stops, folder / "vllm", section.python, max_tokens, section.cache)


class VllmEngine:
    """Answers of a model by vLLM; `refresh` after the model's weights have changed."""

    def __init__(
        self,
        model: Any,
        eos: int | Sequence[int],
        folder: Path,
        python: str,
        tokens: int,
        cache: float,
        rows: int = 256,
    ) -> None:
        self.weights = folder / "weights"
        self.log = folder / "vllm.log"
        stops = [eos] if isinstance(eos, int) else sorted(eos)
        self._settings = {"tokens": tokens, "rows": rows, "cache": int(cache * 2**30), "stops": stops}
        folder.mkdir(parents=True, exist_ok=True)
        self.process = _process(python, self.log)
        weakref.finalize(self, _end, self.process, self.weights)
        self.version = ""
        """Of vLLM, once it has loaded a model."""
        if model is not None:
            self.refresh(model)

    def refresh(self, model: Any, version: int = 0) -> None:
        """Sample from this model, with the weights that it has now."""
        self.model = model
        self._write()
        if self.version:
            self._send({"load": str(self.weights)})
            self._receive()
            return
        dtype = str(model.dtype).removeprefix("torch.")
        self._send({"model": str(self.weights), "dtype": dtype, **self._settings})
        self.version = self._receive()["ready"]

    def generate(
        self, requests: Sequence[SampleRequest], greedy: bool = False, tick: Tick | None = None
    ) -> list[SampleOutput]:
        """Answers in the order of the requests."""
        rows = [{"prompt": r.prompt, "uniforms": r.uniforms.tolist(), **r.decoding.model_dump()} for r in requests]
        self._send({"generate": rows, "greedy": greedy})
        outputs: dict[int, SampleOutput] = {}
        while len(outputs) < len(requests):
            reply = self._receive()
            outputs[reply["i"]] = SampleOutput(reply["ids"], reply["logprobs"], reply["finish"])
            if tick:
                tick(requests[reply["i"]].cost, 1)
        return [outputs[i] for i in range(len(requests))]

    def _write(self) -> None:
        """Head and embedding apart even where the model ties them: vLLM reloads a tied head without its new values."""
        config = copy.deepcopy(self.model.config)
        config.update({"tie_word_embeddings": False, "architectures": [type(self.model).__name__]})
        config.save_pretrained(self.weights)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(
            tensors | {"lm_head.weight": tensors["lm_head.weight"].clone()},
            self.weights / "model.safetensors",
            metadata={"format": "pt"},
        )

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._receive()

    def _receive(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        reply = json.loads(line) if line else {"failed": _last(self.log)}
        if "failed" in reply:
            raise ResourceError(
                f"vLLM ended: {reply['failed']}",
                "engine.type = 'vllm' draws answers in a process of its own",
                f"see {self.log}",
            )
        return reply


def _process(python: str, log: Path) -> "subprocess.Popen[str]":
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    try:
        with log.open("w") as stderr:
            return subprocess.Popen(
                [python, "-P", str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
                start_new_session=True,
            )
    except OSError as error:
        fix = "name the Python of an environment with vLLM: python -m venv ENV; ENV/bin/pip install vllm"
        raise RecipeError(
            f"engine.python = {python!r}: {error.strerror}", "vLLM runs in an environment of its own", fix
        ) from error


def _last(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


def _end(process: "subprocess.Popen[str]", weights: Path) -> None:
    """The worker ends when its pipe does, and is not waited for long; the weights it drew from are left nowhere."""
    assert process.stdin and process.stdout
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    shutil.rmtree(weights, ignore_errors=True)
