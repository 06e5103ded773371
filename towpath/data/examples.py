"""Prompts and demonstrations from files of others, made into records, and records into files that a run reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from towpath.data import fields
from towpath.data.preference_pairs import content_id
from towpath.data.row_files import Cells, UnusableRow, file_type, list_files, read_rows, write_rows
from towpath.data.texts import require_text
from towpath.errors import DataError
from towpath.records import Demonstration, Prompt, as_row


@dataclass(frozen=True)
class Examples:
    """Prompts, the answers that people wrote to them, and every row that could not be used with its place and
    reason."""

    prompts: tuple[Prompt, ...] = ()
    demonstrations: tuple[Demonstration, ...] = ()
    refused: list[str] = field(default_factory=list)


def read_examples(path: Path, columns: Mapping[str, str] | None = None, harmful: bool | str | None = None) -> Examples:
    """Prompts, with answers where the rows have them, from a file or a folder.

    `columns` gives a column another name: {"theirs": "prompt"}. `harmful` says which prompts should be declined
    where the rows do not: all of them (True), none (False), or the name of a column that says so.
    """
    kept = _Kept()
    for file in list_files(path):
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        for line, cells in read_rows(file):
            place = f"{name}:{line}"
            try:
                for prompt, answer in _examples(cells, columns or {}, harmful):
                    kept.add(place, prompt, answer)
            except UnusableRow as reason:
                kept.refused.append(f"{place}: {reason}")
    if not kept.prompts and not kept.refused:
        raise DataError(f"{path}: no rows in it", "one or more rows", "name another file")
    return Examples(tuple(kept.prompts.values()), tuple(kept.shown.values()), kept.refused)


def write_examples(path: Path, records: Sequence[Prompt] | Sequence[Demonstration]) -> None:
    """Prompts or demonstrations as a file that a recipe reads.

    `harmful` is written where some prompts are: without one, the rows may not have said so, and a safety set must
    not take them for harmless.
    """
    if not records:
        raise DataError(f"nothing to write to {path}", "one or more records", "look at what was refused")
    made = [as_row(record) for record in records]
    labelled = any(row.get("harmful") for row in made)
    for row in made:
        if not labelled:
            row.pop("harmful", None)
        if "about" in row:
            row["about"] = ";".join(row["about"]) if file_type(path) == ".csv" else list(row["about"])
    write_rows(path, made)


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
            raise UnusableRow(f"id {prompt.id!r} belongs to another prompt, at {self._places[prompt.id]}")
        made = (
            None
            if answer is None
            else Demonstration(
                f"d-{content_id(prompt.prompt, answer)}", prompt.prompt, answer, prompt.id, domain=prompt.domain
            )
        )
        name = prompt.id if made is None else made.id
        if name in self._places:
            raise UnusableRow(f"the same {'prompt' if made is None else 'prompt and answer'} as {self._places[name]}")
        self.prompts.setdefault(prompt.id, prompt)
        self._places.setdefault(prompt.id, place)
        if made is not None:
            self.shown[made.id], self._places[made.id] = made, place


def _examples(
    cells: Cells | str, columns: Mapping[str, str], rule: bool | str | None
) -> Iterator[tuple[Prompt, str | None]]:
    if isinstance(cells, str):
        raise UnusableRow(cells)
    cells = fields.rename_columns(cells, columns)
    harmful = fields.harmful_flag(cells) if rule is None else fields.resolve_harmful(cells, rule, "this file")
    own = "" if fields.has_several_examples(cells) else fields.parse_name(cells, "id")
    for prompt, answer in fields.prompts_and_answers(cells, multi_turn=True):
        if answer is not None:
            require_text("response", answer)
        yield (
            Prompt(
                own or f"p-{content_id(prompt)}",
                prompt,
                fields.storable_text(cells, "domain") or "general",
                harmful=bool(harmful),
            ),
            answer,
        )
