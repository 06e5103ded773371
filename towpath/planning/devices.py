"""GPUs that are not here: what their data sheets say, what an hour of them costs, and how fast they work by formula.

Four constants stand for all that a data sheet does not say. LATENCY is solved from one published run (OPT-1.3B on one
A100-80GB by DeepSpeed-Chat: 131,900 prompts in 11.7 h); the others are what such systems commonly reach.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from towpath.errors import DataError, RecipeError
from towpath.models.pass_memory import ModelShape
from towpath.planning.speed import Speed

TABLE = Path(__file__).with_name("devices.toml")
USEFUL = 0.25
"""Share of the peak operations that passes reach."""
STREAMED = 0.6
"""Share of the peak bandwidth at which weights are read while tokens are sampled."""
LATENCY = 0.43e-3
"""Seconds of a layer in a token step besides."""
ROWS_AT_ONCE = 16
"""Rows that a GPU samples together, in the process that trains."""
SERVER_LATENCY = 0.05e-3
SERVER_ROWS = 256
"""The same of an engine made for it, such as vLLM, whose steps are recorded once and replayed."""
FORWARD, TRAIN_FULL, TRAIN_LORA = 2, 6, 4
"""Operations of a parameter for each token: a pass, with the gradient of all weights, with that of adapters alone."""
OPTIMIZER_BYTES = 30
"""Read and written by an optimizer step for each trained parameter."""
LOADED = 1e9
"""Bytes of weights that are read from a disk in a second."""


@dataclass(frozen=True)
class Device:
    """One kind of GPU."""

    name: str
    operations: float
    memory: float
    bandwidth: float
    link: float
    """Bytes a second to another GPU of the host."""
    dollars: tuple[float, float, float] | None
    """Of an hour: low, likely, high."""


@dataclass(frozen=True)
class Devices:
    """A table of GPUs, with the date of its prices and where they are from."""

    date: str
    source: str
    known: dict[str, Device]

    def find(self, name: str) -> Device:
        """The device of a name, in any case; H100 also stands for H100-80GB."""
        plain = name.lower().replace("_", "-")
        near = [key for key in self.known if key.lower() == plain or key.lower().startswith(f"{plain}-")]
        if not near:
            rule = f"one of {', '.join(self.known)}"
            raise RecipeError(
                f"{name}: no such device in the table",
                rule,
                "fix the name (a number comes before it, as in 8xH100), or give a table with it",
            )
        return self.known[near[-1]]

    def like(self, description: str, memory: float) -> Device:
        """The device that a driver describes, such as `NVIDIA A100-SXM4-80GB`: the longest name in it, then the nearest
        memory; of a device that is not in the table the one with the nearest memory."""
        plain = _letters(description)
        stems = {name: name.partition("-")[0] for name in self.known}
        named = [name for name, stem in stems.items() if _letters(stem) in plain]
        longest = max((len(stems[name]) for name in named), default=0)
        near = [self.known[name] for name in named if len(stems[name]) == longest] or list(self.known.values())
        return min(near, key=lambda device: abs(device.memory - memory))


def _letters(name: str) -> str:
    """Letters and digits alone."""
    return "".join(sign for sign in name.upper() if sign.isalnum())


def load_devices(path: Path | None = None) -> Devices:
    """The table that comes with Towpath, or one in its place."""
    path = path or TABLE
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        known = {name: _device(name, own) for name, own in content["device"].items()}
        return Devices(str(content["date"]), str(content["source"]), known)
    except (OSError, ValueError, KeyError, TypeError) as error:
        rule = "a table has date, source and [device.NAME] with operations, memory, bandwidth and link"
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
        raise DataError(f"{path}: {reason}", rule, f"see {TABLE}") from error


def _device(name: str, own: dict[str, Any]) -> Device:
    dollars = tuple(map(float, own["dollars"])) if "dollars" in own else None
    if dollars is not None and (len(dollars) != 3 or sorted(dollars) != list(dollars)):
        raise ValueError(f"{name}: dollars are low, likely and high")
    operations, memory, bandwidth, link = (float(own[key]) for key in ("operations", "memory", "bandwidth", "link"))
    return Device(name, operations, memory, bandwidth, link, dollars)


def parse_devices(text: str, table: Devices) -> tuple[int, Device]:
    """`8xH100` as number and device; a name alone is one."""
    parts = re.fullmatch(r"\s*(?:(\d+)\s*[x×*]\s*)?([\w.-]+)\s*", text)
    if not parts or parts[1] == "0":
        raise RecipeError(
            f"--on {text!r}", "a number of GPUs and their name, as in 8xH100", "give both, or a name alone"
        )
    return int(parts[1] or 1), table.find(parts[2])


SHAPES = (
    (135e6, 30),
    (360e6, 32),
    (0.6e9, 28),
    (1.3e9, 24),
    (1.7e9, 28),
    (3e9, 28),
    (6.7e9, 32),
    (8e9, 36),
    (13e9, 40),
    (30e9, 48),
    (66e9, 64),
    (72e9, 80),
    (175e9, 96),
)
"""Parameters and layers of known models."""


USUAL_VOCABULARY = 50_000


def parse_size(text: str) -> float:
    """`7B` or `350M` as a number of parameters."""
    parts = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MBmb])\s*", text)
    if not parts or float(parts[1]) == 0:
        raise RecipeError(
            f"--model-size {text!r}", "parameters as in 7B or 350M", "add B for billions or M for millions"
        )
    return float(parts[1]) * {"M": 1e6, "B": 1e9}[parts[2].upper()]


def layers_of(parameters: float) -> int:
    """Layers of the known model that is nearest in size."""
    return min(SHAPES, key=lambda shape: abs(shape[0] / parameters - 1) + abs(parameters / shape[0] - 1))[1]


@dataclass(frozen=True)
class TrainedSize:
    """Parameters of a model that a stage trains, and of its adapters where it has some."""

    parameters: float
    adapters: float
    """0: all weights are trained."""


def adapter_parameters(parameters: float, layers: int, rank: int) -> float:
    """Of LoRA on all linear layers of a model of usual proportions."""
    width = (parameters / (12 * layers)) ** 0.5
    return rank * layers * 18 * width


def formula_speed(
    device: Device,
    parameters: float,
    layers: int,
    reward: float,
    trained: Mapping[str, TrainedSize],
    roles: Mapping[str, float],
    has_server: bool = False,
) -> Speed:
    """Speeds of one GPU that holds models of these sizes in 16 bits; `roles` are the passes of each unit of scoring, of
    the policy's model or, where the unit is one of the reward model, of that. `has_server`: answers are sampled by an
    engine made for it."""
    operations = USEFUL * device.operations
    forward = FORWARD * parameters / operations
    of_reward = FORWARD * reward / operations
    train = {
        stage: (TRAIN_LORA if own.adapters else TRAIN_FULL) * own.parameters / operations
        for stage, own in trained.items()
    }
    optimizer = {
        stage: OPTIMIZER_BYTES * (own.adapters or own.parameters) / device.bandwidth for stage, own in trained.items()
    }
    score = {unit: passes * (of_reward if unit.startswith("reward") else forward) for unit, passes in roles.items()}
    weights = parameters / (STREAMED * device.bandwidth)
    load = 2 * parameters / LOADED
    return Speed(
        step=layers * (SERVER_LATENCY if has_server else LATENCY) + 2 * weights,
        row=forward,
        context=0.0,
        prompt=forward,
        greedy=layers * LATENCY + 4 * weights,
        score=score,
        train=train,
        optimizer=optimizer,
        load=load,
        export=dict.fromkeys(trained, load),
        rows_at_once=SERVER_ROWS if has_server else ROWS_AT_ONCE,
    )


PROCESSOR_OPERATIONS = 5e11
PROCESSOR_BANDWIDTH = 20e9
"""Of a core in a second: the order of magnitude of processors of recent years."""


def processor() -> Device:
    """A stand-in for this machine's processor, until it is measured."""
    cores = os.cpu_count() or 1
    name = f"{cores} cores of a usual processor"
    return Device(name, cores * PROCESSOR_OPERATIONS, 0.0, cores * PROCESSOR_BANDWIDTH, 0.0, None)


def usual_shape(parameters: float) -> ModelShape:
    """The shape of a model of usual proportions."""
    layers = layers_of(parameters)
    width = round((parameters / (12 * layers)) ** 0.5)
    return ModelShape(layers, width, 4 * width, width, width, USUAL_VOCABULARY)
