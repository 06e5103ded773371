"""Prompts and demonstrations from files of others, made into records, and records into files that a run reads."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from towpath.data.pairs import digest, require_text
from towpath.data.shapes import question, text
from towpath.data.tables import Cells, Unusable, files, kind, rows, write
from towpath.data.transcripts import asked, disorder, listed, parted
from towpath.errors import DataError
from towpath.records import Demonstration, Prompt, as_row

ANSWERS = ("response", "output", "completion", "answer")
_WORDS = {"true": True, "yes": True, "1": True, "unsafe": True, "false": False, "no": False, "0": False, "safe": False}


@dataclass(frozen=True)
class Examples:
    """Prompts, the answers that people wrote to them, and every row that could not be used with its place and reason."""

    prompts: tuple[Prompt, ...] = ()
    demonstrations: tuple[Demonstration, ...] = ()
    refused: list[str] = field(default_factory=list)


def read_examples(path: Path, columns: Mapping[str, str] | None = None) -> Examples:
    """Prompts, with answers where the rows have them, from a file or a folder; `columns` gives a column another name: {"theirs": "prompt"}."""
    kept = _Kept()
    for file in files(path):
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        for line, cells in rows(file):
            place = f"{name}:{line}"
            try:
                for prompt, answer in _examples(cells, columns or {}):
                    kept.add(place, prompt, answer)
            except Unusable as reason:
                kept.refused.append(f"{place}: {reason}")
    if not kept.prompts and not kept.refused:
        raise DataError(f"{path}: no rows in it", "one or more rows", "name another file")
    return Examples(tuple(kept.prompts.values()), tuple(kept.shown.values()), kept.refused)


def write_examples(path: Path, records: Sequence[Prompt] | Sequence[Demonstration]) -> None:
    """Prompts or demonstrations as a file that `data.prompts` or `data.demonstrations` of a recipe reads."""
    if not records:
        raise DataError(f"nothing to write to {path}", "one or more records", "look at what was refused")
    made = [as_row(record) for record in records]
    for row in made:
        if "about" in row:
            row["about"] = ";".join(row["about"]) if kind(path) == ".csv" else list(row["about"])
    write(path, made)


@dataclass
class _Kept:
    """What was read so far, and where."""

    prompts: dict[str, Prompt] = field(default_factory=dict)
    shown: dict[str, Demonstration] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    _places: dict[str, str] = field(default_factory=dict)

    def add(self, place: str, prompt: Prompt, answer: str | None) -> None:
        """One more prompt, with or without an answer."""
        if self.prompts.get(prompt.id, prompt).prompt != prompt.prompt:
            raise Unusable(f"id {prompt.id!r} belongs to another prompt, at {self._places[prompt.id]}")
        made = None if answer is None else Demonstration(f"d-{digest(prompt.prompt, answer)}", prompt.prompt, answer, prompt.id, domain=prompt.domain)
        name = prompt.id if made is None else made.id
        if name in self._places:
            raise Unusable(f"the same {'prompt' if made is None else 'prompt and answer'} as {self._places[name]}")
        self.prompts.setdefault(prompt.id, prompt)
        self._places.setdefault(prompt.id, place)
        if made is not None:
            self.shown[made.id], self._places[made.id] = made, place


def _examples(cells: Cells | str, columns: Mapping[str, str]) -> Iterator[tuple[Prompt, str | None]]:
    if isinstance(cells, str):
        raise Unusable(cells)
    cells = {columns.get(key, key): value for key, value in cells.items()}
    for asked_, answer in _said(cells):
        require_text("prompt", asked_)
        if answer is not None:
            require_text("answer", answer)
        name = _named(cells) or f"p-{digest(asked_)}"
        yield Prompt(name, asked_, text(cells, "domain") or "general", harmful=_harmful(cells)), answer


def _said(cells: Cells) -> Iterable[tuple[str, str | None]]:
    """What was asked and, where it stands there, what was answered."""
    if "messages" in cells or "conversations" in cells:
        key = "messages" if "messages" in cells else "conversations"
        turns = listed(cells[key], key)
        if disorder(turns) == "":
            return [(asked(turns), None)]
        before, answer = parted(turns, key)
        return [(asked(before), answer)]
    instances = cells.get("instances")
    if isinstance(instances, list) and "instruction" in cells:
        return [_instance(cells, instance) for instance in instances]
    key = next((key for key in ANSWERS if cells.get(key) is not None), None)
    if key is not None and isinstance(cells[key], list):
        turns = listed(cells[key], key)
        if len(turns) != 1 or turns[0][0] != "assistant":
            raise Unusable(f"{key} is not one answer of the assistant")
        return [(question(cells), turns[0][1])]
    return [(question(cells), None if key is None else text(cells, key))]


def _instance(cells: Cells, instance: Any) -> tuple[str, str]:
    """One of several inputs and outputs under an instruction, as in Self-Instruct."""
    if not isinstance(instance, dict):
        raise Unusable("instances is not a list of {input, output}")
    return question({"instruction": cells["instruction"], "input": instance.get("input")}), text(instance, "output")


def _named(cells: Cells) -> str:
    """The row's own id, unless the row holds several examples."""
    found = cells.get("id")
    several = isinstance(cells.get("instances"), list) and len(cells["instances"]) > 1
    return "" if several or not isinstance(found, str | int) or isinstance(found, bool) else str(found).strip()


def _harmful(cells: Cells) -> bool:
    """Whether the row says that its prompt should be declined: `harmful`, or `label` safe or unsafe."""
    for key in ("harmful", "label"):
        found = cells.get(key)
        known = found if isinstance(found, bool) else _WORDS.get(str(found).strip().lower())
        if known is not None and (key == "harmful" or str(found).lower() in ("safe", "unsafe")):
            return known
    return False
