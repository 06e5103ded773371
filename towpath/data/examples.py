"""Import prompts and demonstrations from files of other tools, and export them to files that a run reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from towpath.data import fields
from towpath.data.preference_pairs import content_id, prompt_id
from towpath.data.row_files import Cells, UnusableRow, file_type, list_files, read_rows, write_rows
from towpath.data.texts import require_text
from towpath.errors import DataError
from towpath.records import Demonstration, Prompt, as_row


@dataclass(frozen=True)
class Examples:
    """Prompts, demonstrations, and every unusable row with its location and reason."""

    prompts: tuple[Prompt, ...] = ()
    demonstrations: tuple[Demonstration, ...] = ()
    refused: list[str] = field(default_factory=list)


def read_examples(path: Path, columns: Mapping[str, str] | None = None, harmful: bool | str | None = None) -> Examples:
    """Prompts, with answers where the rows have them, from a file or a folder.

    `columns` renames columns: {"question": "prompt"}. `harmful` says which prompts should be declined where the rows
    do not: all (True), none (False), or the name of a column.
    """
    collected = _Collected()
    for file in list_files(path):
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        for line, cells in read_rows(file):
            location = f"{name}:{line}"
            try:
                for prompt, answer in _examples(cells, columns or {}, harmful):
                    collected.add(location, prompt, answer)
            except UnusableRow as reason:
                collected.refused.append(f"{location}: {reason}")
    if not collected.prompts and not collected.refused:
        raise DataError(f"{path}: no rows in it", "one or more rows", "name another file")
    return Examples(tuple(collected.prompts.values()), tuple(collected.demonstrations.values()), collected.refused)


def write_examples(path: Path, records: Sequence[Prompt] | Sequence[Demonstration]) -> None:
    """Write prompts or demonstrations to a file that a recipe reads.

    `harmful` is written only if some prompts are: otherwise the rows may not have said so, and a safety set must not
    treat them as harmless.
    """
    if not records:
        raise DataError(f"nothing to write to {path}", "one or more records", "look at what was refused")
    made = [as_row(record) for record in records]
    multi_turn = any(record.history for record in records)
    labelled = any(row.get("harmful") for row in made)
    for row in made:
        if not labelled:
            row.pop("harmful", None)
        row["history"] = list(row["history"])
        if not multi_turn:
            del row["history"]
        if "about" in row:
            row["about"] = ";".join(row["about"]) if file_type(path) == ".csv" else list(row["about"])
    write_rows(path, made)


@dataclass
class _Collected:
    """The records that were read, and their locations."""

    prompts: dict[str, Prompt] = field(default_factory=dict)
    demonstrations: dict[str, Demonstration] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    _locations: dict[str, str] = field(default_factory=dict)

    def add(self, location: str, prompt: Prompt, answer: str | None) -> None:
        """Add a prompt, with or without an answer."""
        if self.prompts.get(prompt.id, prompt).messages != prompt.messages:
            raise UnusableRow(f"id {prompt.id!r} belongs to another prompt, at {self._locations[prompt.id]}")
        demonstration = (
            None
            if answer is None
            else Demonstration(
                f"d-{content_id(prompt.text, answer)}",
                prompt.prompt,
                answer,
                prompt.id,
                domain=prompt.domain,
                history=prompt.history,
            )
        )
        name = prompt.id if demonstration is None else demonstration.id
        if name in self._locations:
            raise UnusableRow(
                f"the same {'prompt' if demonstration is None else 'prompt and answer'} as {self._locations[name]}"
            )
        self.prompts.setdefault(prompt.id, prompt)
        self._locations.setdefault(prompt.id, location)
        if demonstration is not None:
            self.demonstrations[demonstration.id], self._locations[demonstration.id] = demonstration, location


def _examples(
    cells: Cells | str, columns: Mapping[str, str], rule: bool | str | None
) -> Iterator[tuple[Prompt, str | None]]:
    if isinstance(cells, str):
        raise UnusableRow(cells)
    cells = fields.rename_columns(cells, columns)
    harmful = fields.harmful_flag(cells) if rule is None else fields.resolve_harmful(cells, rule, "this file")
    own = "" if fields.has_several_examples(cells) else fields.parse_name(cells, "id")
    domain = fields.storable_text(cells, "domain") or "general"
    for messages, answer in fields.prompts_and_answers(cells):
        if answer is not None:
            require_text("response", answer)
        *history, last = messages
        name = own or prompt_id(messages)
        yield Prompt(name, last.content, domain, harmful=bool(harmful), history=tuple(history)), answer
