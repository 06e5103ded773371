"""Import and export of preferences in the formats of other tools."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

from towpath.data.annotation_tools import argilla_row, label_studio_row, read_argilla, read_label_studio
from towpath.data.preference_pairs import Imported, Kind, PairImporter, PreferencePair
from towpath.data.preference_record import PreferenceRecord, preference_records
from towpath.data.preference_rows import (
    ANSWER_COLUMNS,
    column_names,
    comparison_row,
    conversational_row,
    plain_row,
    read_chosen_rejected,
    read_comparison,
    read_each,
    transcript_row,
)
from towpath.data.rankings import ANSWERS, is_tree, read_ranking, read_trees
from towpath.data.row_files import Cells, CountedDigest, Rows, UnusableRow, file_type, list_files, read_rows, write_rows
from towpath.errors import DataError
from towpath.progress import Progress, progress
from towpath.records import Conversation, Prompt
from towpath.store.store import Store

ImportFormat = Literal["pairs", "comparisons", "rankings", "trees", "argilla", "label-studio"]
ExportFormat = Literal["pairs", "conversational", "transcripts", "comparisons", "argilla", "label-studio"]

_READERS: dict[str, Callable[[Rows], Iterator[tuple[int, PreferencePair | str]]]] = {
    "pairs": lambda rows: read_each(rows, read_chosen_rejected),
    "comparisons": lambda rows: read_each(rows, read_comparison),
    "rankings": lambda rows: read_each(rows, read_ranking),
    "trees": read_trees,
    "argilla": lambda rows: read_each(rows, read_argilla),
    "label-studio": lambda rows: read_each(rows, read_label_studio),
}
_WRITERS: dict[str, Callable[[PreferenceRecord], Cells]] = {
    "pairs": plain_row,
    "conversational": conversational_row,
    "transcripts": transcript_row,
    "comparisons": comparison_row,
    "argilla": argilla_row,
    "label-studio": label_studio_row,
}
CHECKED_AT_ONCE = 2000
"""Imported records that are compared with those of the ledger at once."""
_DECIDED = ("pairs", "conversational", "transcripts")
_NESTED = {
    "conversational": (".jsonl", ".json", ".parquet"),
    "argilla": (".json", ".jsonl"),
    "label-studio": (".json", ".jsonl"),
}


@dataclass(frozen=True)
class ExportResult:
    """Number of exported comparisons, and those left out with the reason."""

    rows: int
    left_out: list[str] = field(default_factory=list)


def read_preferences(
    path: Path,
    format: ImportFormat | Literal["auto"] = "auto",
    name: str = "",
    kind: Kind = "person",
    rater: str = "",
    prompts: Iterable[Prompt] = (),
    cut: Callable[[Conversation], Conversation] = lambda messages: messages,
) -> Imported:
    """Read preferences from a file or a folder; every unusable row is listed with its reason.

    `name` is the name of the source (default: the file's), `rater` the rater where rows name none. `prompts` are the
    run's prompts: a question among them keeps its id and its split. `cut` shortens conversations that are too long.
    """
    if format != "auto" and format not in _READERS:
        raise DataError(f"format {format!r}", "auto, " + ", ".join(get_args(ImportFormat)), "name one of these")
    importer = PairImporter(f"import:{name or _stem(path)}", kind, rater, prompts, cut)
    row_count = 0
    for file in list_files(path):
        name_of_file = file.relative_to(path).as_posix() if path.is_dir() else file.name
        with progress(f"reading {name_of_file}", file.stat().st_size, "bytes") as work:
            for line, pair in _read(file, format, work):
                row_count += 1
                importer.add(f"{name_of_file}:{line}", pair)
    if not row_count:
        raise DataError(f"{path}: no preferences in it", "one or more rows", "name another file")
    return importer.imported()


def write_preferences(store: Store, path: Path, format: ExportFormat = "pairs") -> ExportResult:
    """Export the comparisons of a Store, with weight, margin, source and the records behind each row."""
    if format not in _WRITERS:
        raise DataError(f"format {format!r}", ", ".join(get_args(ExportFormat)), "name one of these")
    allowed = _NESTED.get(format, (".jsonl", ".json", ".csv", ".parquet"))
    if path.suffix.lower() not in allowed:
        raise DataError(
            f"{path}: {format} has no place in {path.suffix or 'a file of no type'}",
            "one of " + ", ".join(allowed),
            "name it so",
        )
    made: list[Cells] = []
    left_out: list[str] = []
    for record in preference_records(store):
        try:
            made.append(_row(record, format))
        except UnusableRow as reason:
            left_out.append(f"{record.known.comparison.id}: {reason}")
    if not made:
        raise DataError(
            f"nothing to write: {len(left_out)} comparisons, none decided",
            f"{format} holds decided pairs",
            "judge some first",
        )
    write_rows(path, made)
    return ExportResult(len(made), left_out)


def add_to_store(store: Store, imported: Imported) -> dict[str, int]:
    """Add imported records to a Store in one transaction; returns new records per kind. A conflicting id raises
    DataError."""
    before = store.counts()
    _require_same(store, imported)
    with store.transaction():
        store.add_prompts(imported.prompts)
        store.add_completions(imported.completions)
        store.add_comparisons(imported.comparisons)
        store.add_judgements(imported.judgements)
    after = store.counts()
    return {part: after[part] - before[part] for part in ("prompts", "completions", "comparisons", "judgements")}


def _read(file: Path, format: str, work: Progress) -> Iterator[tuple[int, PreferencePair | str]]:
    rows = read_rows(file, CountedDigest(work))
    early: list[tuple[int, Cells | str]] = []
    while format == "auto":
        first = next(rows, None)
        if first is None:
            return iter([(line, str(problem)) for line, problem in early])
        early.append(first)
        if not isinstance(first[1], str):
            format = _detect_format(file, first[1])
    return _READERS[format](chain(early, rows))


def _detect_format(file: Path, cells: Cells) -> ImportFormat:
    """The format of a file, from the columns of its first row."""
    if is_tree(cells):
        return "trees"
    if isinstance(cells.get("fields"), dict):
        return "argilla"
    if isinstance(cells.get("data"), dict):
        return "label-studio"
    if "chosen" in cells and "rejected" in cells:
        return "pairs"
    if any(isinstance(cells.get(key), list) for key in ANSWERS):
        return "rankings"
    if any(all(key in cells for key in pair) for pair in ANSWER_COLUMNS):
        return "comparisons"
    rule = "chosen and rejected, a and b, a list of answers, a tree of messages, or records of Argilla or Label Studio"
    raise DataError(f"{file}: no preferences under {column_names(cells)}", rule, "rename the columns")


def _row(record: PreferenceRecord, format: str) -> Cells:
    if format in _DECIDED and record.choice not in ("a", "b"):
        raise UnusableRow(
            "it has no judgement" if record.choice is None else f"neither answer is better ({record.choice})"
        )
    return _WRITERS[format](record)


def _require_same(store: Store, imported: Imported) -> None:
    checks: list[tuple[Callable[[list[str]], dict[str, Any]], Sequence[Any], tuple[str, ...]]] = [
        (store.prompts_of, imported.prompts, ("prompt",)),
        (store.completions_of, imported.completions, ("prompt_id", "text")),
        (store.comparisons_of, imported.comparisons, ("prompt_id", "a", "b")),
    ]
    for find, records, names in checks:
        known: dict[str, Any] = {}
        for position, record in enumerate(records):
            if position % CHECKED_AT_ONCE == 0:
                known = find([other.id for other in records[position : position + CHECKED_AT_ONCE]])
            other = known.get(record.id, record)
            if any(getattr(other, name) != getattr(record, name) for name in names):
                raise DataError(
                    f"id {record.id!r} means something else in this ledger",
                    "an id names one text",
                    "import into another ledger",
                )


def _stem(path: Path) -> str:
    return path.name if path.is_dir() else path.name.removesuffix(".gz").removesuffix(file_type(path))
