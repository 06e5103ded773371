"""Records that all packages share: small, frozen, free of torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Choice = Literal["a", "b", "tie", "both_bad"]
Split = Literal["train", "heldout"]
Severity = Literal["info", "warning", "critical", "error"]
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


Conversation = tuple[Message, ...]


def transcript(messages: Sequence[Message]) -> str:
    """A conversation as one text, for hashing, search and display; one user turn is its content alone."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in messages)


def opening(messages: Sequence[Message]) -> str:
    """The first turn of the user: prompts of one conversation tree share it, and must not be split."""
    return next((message.content for message in messages if message.role == "user"), "")


class OpenConversation:
    """A conversation that ends with the user: `history` and the last turn, `prompt`."""

    __slots__ = ()
    prompt: str
    history: Conversation

    @property
    def messages(self) -> Conversation:
        """The whole conversation."""
        return (*self.history, Message("user", self.prompt))

    @property
    def text(self) -> str:
        """The whole conversation as one text."""
        return transcript(self.messages) if self.history else self.prompt


@dataclass(frozen=True, slots=True)
class Prompt(OpenConversation):
    """A conversation that waits for an answer: system prompt and earlier turns, and the last turn of the user."""

    id: str
    prompt: str
    """The last turn of the user."""
    domain: str = "general"
    difficulty: str = "medium"
    about: tuple[str, ...] = ()
    harmful: bool = False
    split: Split = "train"
    twin: str = ""
    history: Conversation = ()
    """System prompt and earlier turns."""


@dataclass(frozen=True, slots=True)
class Demonstration(OpenConversation):
    """An answer that a person wrote to a prompt."""

    id: str
    prompt: str
    """The last turn of the user."""
    response: str
    prompt_id: str = ""
    style: str = ""
    domain: str = "general"
    history: Conversation = ()
    """System prompt and earlier turns."""


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer a model drew: tokens, their log-probabilities and how they were drawn."""

    id: str
    prompt_id: str
    source: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]
    decoding: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion of the model in training, to learn from: its prompt, its tokens, and log p of each."""

    prompt: Prompt
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]
    text: str


@dataclass(frozen=True, slots=True)
class Score:
    """What a rollout is worth: the combined score of all reward sources, and the reward shaped from it."""

    score: float
    reward: float
    sources: dict[str, float] = field(default_factory=dict)
    """The score of each source, where there are several."""
    watched: dict[str, float] = field(default_factory=dict)
    """Scores of sources that are not rewarded."""
    spread: float | None = None
    """Standard deviation over an ensemble of reward models."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two completions of one prompt, to be judged against each other."""

    id: str
    prompt_id: str
    a: str
    b: str
    round: int = 1


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one rater said of one comparison. Never changed, only added to."""

    key: str
    comparison: str
    rater: str
    kind: Literal["person", "judge", "rule", "simulated"]
    choice: Choice
    shown: Literal["ab", "ba"] = "ab"
    strength: int = 1
    milliseconds: int | None = None
    round: int = 1
    guideline: str = ""
    at: str = ""
    comment: str = ""
    cost: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Label:
    """What the judgements of one comparison amount to: derived, recomputed at will. `chance` is P(a is better)."""

    comparison: str
    choice: Choice
    strength: float
    judgements: int
    chance: float | None = None
    by: str = "majority"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate says, with the evidence it says it on."""

    gate: str
    verdict: Literal["PASS", "FAIL", "UNDECIDED", "OFF"]
    value: float | None
    """None where nothing was measured."""
    interval: tuple[float, float] | None
    threshold: float
    n: int
    action: Literal["stop", "warn", "off"] = "stop"
    note: str = ""
    judge: str = ""
    """Who judged: an evaluation judge, or where the labels come from."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something worth knowing: what was seen, why it may be so, what to do."""

    code: str
    severity: Severity
    """Of a run under way critical is the worst; error is a value that is refused before anything runs."""
    evidence: str
    cause: str = ""
    remedy: str = ""
    first_step: int | None = None
    """The step from which it shows, where it is seen on a curve."""
    ruled_out: tuple[str, ...] = ()
    """Other causes of the same sight, each with the number that speaks against it."""


def prompt_of(name: str, messages: Sequence[Message]) -> Prompt:
    """A conversation that ends with the user as a prompt."""
    *history, last = messages
    return Prompt(name, last.content, history=tuple(history))


def messages_of(rows: Sequence[dict[str, str]]) -> Conversation:
    """A conversation from rows with role and content, as it is stored."""
    return tuple(Message(row["role"], row["content"]) for row in rows)  # pyright: ignore[reportArgumentType]


def finding_of(row: dict[str, Any]) -> Finding:
    """A finding as it was written down."""
    whole: dict[str, Any] = row | {"ruled_out": tuple(row.get("ruled_out", ()))}
    return Finding(**whole)


def as_row(record: Any) -> dict[str, Any]:
    """Any record as a plain dictionary."""
    return asdict(record)
