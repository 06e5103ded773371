"""vLLM as the engine: a process in a Python of its own, to which weights are streamed and requests sent.

With `engine.exact` it draws by the same uniform numbers as the engine in this process: tokens differ only where vLLM's
rounding does. Else vLLM's own sampler draws, seeded by each request's first uniform number.
"""

import copy
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from towpath.data.chat import Chat
from towpath.errors import RecipeError, ResourceError
from towpath.progress import print_note, progress
from towpath.recipe import Decoding, EngineConfig
from towpath.rollout.engine import SampleOutput, SampleRequest, Tick
from towpath.rollout.vllm_client import START_FACTOR, EngineLost, VllmClient
from towpath.rollout.vllm_environment import engine_python
from towpath.rollout.vllm_process.frames import Arrays
from towpath.rollout.weight_sync import Probe, SyncReport, WeightSync
from towpath.runtime.contract import WeightSource
from towpath.runtime.weight_source import plain_source

ROWS = 256
"""Completions that vLLM samples at a time."""


@dataclass(frozen=True)
class VllmSettings:
    """What an engine needs besides weights."""

    python: str
    stops: tuple[int, ...]
    tokens: int
    """Longest row, prompt and answer."""
    cache: float = 2.0
    """GiB for keys and values."""
    rows: int = ROWS
    exact: bool | None = None
    """None: on CPUs."""
    tensor_parallel: int = 0
    """0: the fewest GPUs that hold the model."""
    sleep: bool = True
    transport: str = "auto"
    timeout: float = 300.0
    restarts: int = 3


def open_engine(section: EngineConfig, chat: Chat, folder: Path, max_tokens: int) -> "VllmEngine":
    """vLLM in the Python that the recipe names, or in the one that `towpath engine install` made; weights come by
    `Runtime.publish`."""
    settings = VllmSettings(
        python=engine_python(section.python),
        stops=tuple(sorted(chat.stops)),
        tokens=max_tokens,
        cache=section.cache,
        exact=None if section.exact == "auto" else section.exact,
        tensor_parallel=0 if section.tensor_parallel == "auto" else section.tensor_parallel,
        sleep=section.sleep,
        transport=section.transport,
        timeout=section.timeout,
        restarts=section.restarts,
    )
    return VllmEngine(settings, folder / "vllm")


class VllmEngine:
    """Completions of the weights that it received last; restarts its process where that is lost in a rollout."""

    def __init__(self, settings: VllmSettings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.client: VllmClient | None = VllmClient(settings.python, folder / "vllm.log", settings.timeout)
        self.facts: dict[str, Any] = {}
        """Of the running process: vLLM's version, devices, whether draws are exact."""
        self.last_sync: SyncReport | None = None
        self._sync: WeightSync | None = None
        self._probe: Probe | None = None
        self._source: WeightSource | None = None
        self._version = 0
        self._sent: dict[str, int] = {}
        """Checksums of what the process served that was lost last."""
        self._restarts_left = 0

    @property
    def process(self) -> Any:
        """The process of vLLM."""
        assert self.client
        return self.client.process

    def refresh(self, model: Any, version: int = 0) -> None:
        """Sample from this model, with the weights that it has now."""
        self.receive(plain_source(model), version or self._version + 1)

    def receive(self, source: WeightSource, version: int) -> None:
        """Sample from these weights, once they have been read back."""
        self._restarts_left = self.settings.restarts
        while True:
            try:
                self._synchronise(source, version)
            except EngineLost as error:
                self._count_loss(error, "the weights are sent again")
                self._end()
            except ResourceError:
                self._end()  # nothing is sampled from weights that were not verified
                raise
            else:
                return

    def generate(
        self, requests: Sequence[SampleRequest], greedy: bool = False, tick: Tick | None = None
    ) -> list[SampleOutput]:
        """Completions in the order of the requests. Where the process is lost only those that are missing are
        sampled again."""
        outputs: dict[int, SampleOutput] = {}
        if not greedy and any(_is_filtered(request.decoding) for request in requests):
            self._require_exact()
        while len(outputs) < len(requests):
            missing = [i for i in range(len(requests)) if i not in outputs]
            try:
                if self._sync is None:
                    self._restart()
                self._sample(requests, missing, greedy, tick, outputs)
            except EngineLost as error:
                self._count_loss(error, f"{len(requests) - len(outputs):,} of {len(requests):,} answers are left")
                self._end()
        assert self.client
        if self.facts["sleep"]:
            self.client.ask({"do": "sleep"})
        return [outputs[i] for i in range(len(requests))]

    def _start(self, source: WeightSource) -> None:
        first = not self._version
        if self.client is None:
            self.client = VllmClient(self.settings.python, self.folder / "vllm.log", self.settings.timeout, first)
        model = _write_config(source, self.folder / "config")
        cache = int(self.settings.cache * 2**30)
        message = {"do": "start", "model": str(model), "dtype": source.dtype, "bytes": source.size, "cache": cache}
        names = ("tokens", "rows", "exact", "tensor_parallel", "sleep", "stops")
        message |= {name: getattr(self.settings, name) for name in names}
        with progress("start of vLLM"):
            try:
                self.facts, _ = self.client.ask(message, factor=START_FACTOR)
            finally:
                shutil.rmtree(model, ignore_errors=True)
        self._sync = WeightSync(self.client, self.facts["devices"], self.folder, self.settings.transport)
        if self._probe is None:
            self._probe = Probe(source.config.get_text_config().vocab_size)

    def _synchronise(self, source: WeightSource, version: int) -> None:
        """Send weights and compare what serves then with the trainer's."""
        before = self._sync.checksums if self._sync else {}
        if self._sync is None:
            self._start(source)
        assert self._sync and self._probe
        with progress("weights to vLLM"):
            self.last_sync = self._sync.update(source, version)
        requests = [SampleRequest(prompt, Decoding(), np.array([0.5])) for prompt in self._probe.prompts]
        outputs = self._sample(requests, range(len(requests)), True, None, {})
        answers = [outputs[i] for i in range(len(requests))]
        changed = bool(before) and self._sync.checksums != before
        self._probe.verify(source, answers, changed, (self._version, version))
        self._source = source
        self._version = version

    def _restart(self) -> None:
        """A new process with the same weights; the trainer must not have changed them."""
        assert self._source
        sent = self._sent
        self._synchronise(self._source, self._version)
        assert self._sync
        if self._sync.checksums != sent:
            raise ResourceError(
                f"vLLM was lost, and the trainer's weights are no longer version {self._version}",
                "a rollout is sampled from one version of the weights",
                "run it again: the rollout is sampled from the start",
            )

    def _end(self) -> None:
        """End the process, and remember what it served."""
        if self._sync is not None:
            self._sent = self._sync.checksums
            self._sync = None
        if self.client is not None:
            self.client.end()
            self.client = None

    def _count_loss(self, error: EngineLost, left: str) -> None:
        """Say that the process is started again, unless that was done often enough or it never worked."""
        if not self._version or not self._restarts_left:
            raise error
        self._restarts_left -= 1
        print_note(f"{error.value.split(';')[0]}; it is started again: {left}")

    def _require_exact(self) -> None:
        """vLLM's own sampler gives log-probabilities after top-k, top-p and min-p; exact draws give them before."""
        if self.facts["exact"]:
            return
        if self.settings.exact is False:
            raise RecipeError(
                "engine.exact = false with top_k, top_p or min_p",
                "vLLM's sampler gives log-probabilities after these filters, training needs them before",
                "set engine.exact = true or remove the filters",
            )
        print_note("top_k, top_p or min_p: vLLM starts again with exact draws (engine.exact)")
        self.settings = replace(self.settings, exact=True)
        self._end()
        self._restart()

    def _sample(
        self,
        requests: Sequence[SampleRequest],
        numbers: Sequence[int],
        greedy: bool,
        tick: Tick | None,
        outputs: dict[int, SampleOutput],
    ) -> dict[int, SampleOutput]:
        """Add the completions of some requests to `outputs` as they end."""
        assert self.client
        self.client.send({"do": "generate", "greedy": greedy}, _pack([requests[i] for i in numbers]))
        while True:
            reply, arrays = self.client.receive("sampling")
            if "done" in reply:
                return outputs
            if "ended" not in reply:
                continue
            for row, output in _unpack(arrays):
                outputs[numbers[row]] = output
                if tick:
                    tick(requests[numbers[row]].cost, 1)


def _is_filtered(decoding: Decoding) -> bool:
    return bool(decoding.top_k) or decoding.top_p < 1 or decoding.min_p > 0


def _write_config(source: WeightSource, folder: Path) -> Path:
    """A model's configuration alone. Head and embedding are apart even where the model ties them: vLLM updates a tied
    head without its new values."""
    config = copy.deepcopy(source.config)
    config.update({"tie_word_embeddings": False, "architectures": [source.architecture]})
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # weights are sent as they multiply
    config.save_pretrained(folder)
    return folder


def _pack(requests: Sequence[SampleRequest]) -> Arrays:
    """Requests as arrays: tokens and uniform numbers end to end, and a column for each setting."""
    arrays = {
        "length": np.array([len(request.prompt) for request in requests], dtype=np.int64),
        "limit": np.array([len(request.uniforms) for request in requests], dtype=np.int64),
        "ids": np.array([token for request in requests for token in request.prompt], dtype=np.int64),
        "uniforms": np.concatenate([np.asarray(request.uniforms, dtype=np.float64) for request in requests]),
    }
    for name, dtype in (("temperature", np.float64), ("top_k", np.int64), ("top_p", np.float64), ("min_p", np.float64)):
        arrays[name] = np.array([getattr(request.decoding, name) for request in requests], dtype=dtype)
    return arrays


def _unpack(arrays: Arrays) -> list[tuple[int, SampleOutput]]:
    """(row, completion) of those that ended."""
    ends = np.cumsum(arrays["length"])[:-1]
    ids = np.split(arrays["ids"], ends)
    logprobs = np.split(arrays["logprobs"], ends)
    return [
        (row, SampleOutput(tokens.tolist(), values.tolist(), "stop" if stopped else "length"))
        for row, tokens, values, stopped in zip(
            arrays["row"].tolist(), ids, logprobs, arrays["stopped"].tolist(), strict=True
        )
    ]
