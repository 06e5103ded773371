"""Export of comparisons and import of judgements as JSON lines or CSV; an import adds all rows or none."""

import csv
import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

from towpath.errors import DataError
from towpath.records import Choice, Comparison, Judgement
from towpath.store.publish import replace_file

if TYPE_CHECKING:
    from towpath.store.store import Store

COLUMNS: tuple[str, ...] = ("comparison", "prompt", "a", "b", "choice", "strength", "rater")
CHOICES = ("a", "b", "tie", "both_bad")
MAX_LISTED_ERRORS = 20
MAX_CELL = 2**31 - 1
FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")
"""First characters of cells that a spreadsheet would run as a formula or swallow (OWASP, CSV injection)."""
ESCAPED_COLUMN = "quoted_cells"
"""The column that lists the cells of its row that were escaped with an apostrophe, so that a reader can undo it."""

RaterKind = Literal["person", "judge", "rule"]


def export_pairs(store: "Store", path: Path, include_judged: bool = False, samples: Collection[str] = ()) -> int:
    """Write unjudged comparisons (or all) with empty columns for the judgement, only those of `samples` stages if
    given; return their number. Rows are read and written in blocks."""
    as_csv = _is_csv(path)
    count = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal count
        count = 0
        wanted = store.stream_comparisons(unjudged=not include_judged)
        for c, prompt, a, b in store.answers_of(
            c for c in wanted if not samples or c.id.split(".", maxsplit=1)[0] in samples
        ):
            count += 1
            yield dict(zip(COLUMNS, (c.id, prompt.text, a.text, b.text, "", "", ""), strict=True))

    if as_csv:
        quoted = any(ESCAPED_COLUMN in _escape_formulas(row) for row in rows())
        replace_file(path, _csv_lines(rows(), (*COLUMNS, ESCAPED_COLUMN) if quoted else COLUMNS))
    else:
        replace_file(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows()))
    return count


def import_judgements(
    store: "Store", path: Path, rater: str | None = None, kind: RaterKind = "person"
) -> tuple[int, int]:
    """Import the judgements of a file and return (added, already present); one invalid row rejects the file, and the
    first of them are listed. Rows are read and added in blocks, in one transaction."""
    from towpath.store.statements import read_blocks  # readers of files need no database

    added = 0
    count = 0
    skipped = 0
    bad = 0
    listed: list[str] = []
    with store.transaction():
        for block in read_blocks(_rows(path)):
            filled = [(number, row) for number, row in block if not _is_empty(row)]
            skipped += len(block) - len(filled)
            judgements, refused = _judgements(store, filled, rater, kind)
            new, conflicts = store.add_consistent_judgements([judgement for _, judgement in judgements])
            refused |= {judgements[i][0]: conflict for i, conflict in conflicts.items()}
            bad += len(refused)
            first = sorted(refused)[: MAX_LISTED_ERRORS - len(listed)]
            listed += [f"{path.name}:{number}: {refused[number]}" for number in first]
            added += new
            count += len(judgements)
        if bad:
            more = f"\n  … and {bad - len(listed)} more" if bad > len(listed) else ""
            rule = "every row is a judgement of a known comparison that does not contradict an earlier one of its rater"
            raise DataError("\n".join(listed) + more, rule, "correct the rows; none were added")
    if not count:
        raise DataError(
            f"{path}: no judgement in {skipped} rows",
            "`choice` is a, b, tie or both_bad",
            "fill in the column `choice`",
        )
    return added, count - added


def _is_empty(row: dict[str, Any] | str) -> bool:
    return isinstance(row, dict) and "choice" in row and _cell(row, "choice") == ""


def _judgements(
    store: "Store", rows: Sequence[tuple[int, dict[str, Any] | str]], rater: str | None, kind: RaterKind
) -> tuple[list[tuple[int, Judgement]], dict[int, str]]:
    """The judgements of rows by line, and why the others have none."""
    known = store.comparisons_of({_cell(row, "comparison") for _, row in rows if isinstance(row, dict)})
    judgements = []
    refused = {}
    for number, row in rows:
        try:
            judgements.append((number, _judgement(row, known, rater, kind)))
        except ValueError as problem:
            refused[number] = str(problem)
    return judgements, refused


def _judgement(
    row: dict[str, Any] | str, known: dict[str, Comparison], rater: str | None, kind: RaterKind
) -> Judgement:
    """Return the judgement in a row, or raise ValueError with the reason."""
    if isinstance(row, str):
        raise ValueError(row)
    comparison = known.get(_cell(row, "comparison"))
    if comparison is None:
        raise ValueError(f"comparison {row.get('comparison')!r} is not in this run")
    choice = _cell(row, "choice")
    rater_name = _cell(row, "rater") or rater
    milliseconds = _cell(row, "milliseconds")
    at = _cell(row, "at")
    strength = _cell(row, "strength") or "1"
    order = _cell(row, "shown") or "ab"
    if choice not in CHOICES:
        raise ValueError(f"choice {row.get('choice')!r} is not one of {', '.join(CHOICES)}")
    if not rater_name:
        raise ValueError("no rater; set it in the row or with --rater")
    if strength not in ("1", "2", "3"):
        raise ValueError(f"strength {row['strength']!r} is not 1, 2 or 3")
    if order not in ("ab", "ba"):
        raise ValueError(f"shown {row['shown']!r} is not ab or ba")
    if milliseconds and not (milliseconds.isascii() and milliseconds.isdecimal()):
        raise ValueError(f"milliseconds {row['milliseconds']!r} is not a whole number")
    if at and not _is_time(at):
        raise ValueError(f"at {row['at']!r} is not an ISO 8601 time")
    return Judgement(
        f"{comparison.id}/{rater_name}/{comparison.round}",
        comparison.id,
        rater_name,
        kind,
        cast(Choice, choice),
        cast(Literal["ab", "ba"], order),
        int(strength),
        int(milliseconds) if milliseconds else None,
        comparison.round,
        _cell(row, "guideline"),
        at,
        _cell(row, "comment"),
    )


def _cell(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    return "" if value is None else str(value).strip()


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _is_csv(path: Path) -> bool:
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise DataError(f"{path}: unknown kind of file", "pairs and judgements are .jsonl or .csv", "rename the file")
    return path.suffix.lower() == ".csv"


def _csv_lines(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> Iterator[str]:
    """The lines of a safe CSV table of these columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow(_escape_formulas(row))
        yield text.getvalue()
        text.seek(0)
        text.truncate()
    yield text.getvalue()


def write_csv(file: TextIO, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows as CSV that is safe in a spreadsheet: text that looks like a formula is prefixed with an apostrophe.

    A column `quoted_cells` lists the escaped cells of a row, and `csv_rows` restores the original text.
    """
    safe = [_escape_formulas(row) for row in rows]
    any_quoted = any(ESCAPED_COLUMN in row for row in safe)
    writer = csv.DictWriter(file, [*columns, ESCAPED_COLUMN] if any_quoted else list(columns), restval="")
    writer.writeheader()
    writer.writerows(safe)


def _escape_formulas(row: Mapping[str, Any]) -> dict[str, Any]:
    names = [name for name, value in row.items() if isinstance(value, str) and value.startswith(FORMULA_PREFIXES)]
    return dict(row) | {name: f"'{row[name]}" for name in names} | ({ESCAPED_COLUMN: " ".join(names)} if names else {})


def _unescape_formulas(row: dict[str, str]) -> dict[str, Any]:
    """Undo `write_csv`'s escaping; a cell edited since may have lost its apostrophe."""
    names = row.pop(ESCAPED_COLUMN, "").split()
    return row | {name: row[name].removeprefix("'") for name in names if name in row}


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield each row with its first line; a string instead of a row is the reason why it is invalid."""
    is_csv = _is_csv(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file", "judgements come from a .jsonl or .csv file", "correct the path")
    if not is_csv:
        with path.open("rb") as file:
            yield from json_rows(file)
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets write a byte-order mark
            yield from csv_rows(file)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {error}", "the file is UTF-8 text", "save it as UTF-8") from None


def json_rows(lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield the objects of JSON lines with their line numbers; a string reports an invalid line."""
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            yield number, "not UTF-8"
        except (ValueError, RecursionError) as error:
            yield number, f"not JSON: {error}"
        else:
            yield number, row if isinstance(row, dict) else f"not an object but {_json_kind(row)}"


def _json_kind(value: Any) -> str:
    names = {list: "a list", bool: "true or false", str: "text", type(None): "null"}
    return names.get(type(value), "a number")


def csv_rows(lines: Iterable[str], short_rows: bool = True) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield the rows of a CSV table with their first lines; spreadsheets omit empty cells at the end of a row."""
    csv.field_size_limit(MAX_CELL)
    # without strict, an unclosed quote silently swallows the rest
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    begins = 1
    try:
        for cells in reader:
            if cells and header is None:
                header = [cell.strip() for cell in cells]
                if twice := next((name for name in header if header.count(name) > 1), None):
                    yield begins, f"two columns are named {twice!r}; no row of this file was read"
                    return
            elif cells and header is not None:
                wrong = len(cells) > len(header) or (len(cells) < len(header) and not short_rows)
                uneven = (
                    f"{len(cells)} cells under {len(header)} headings; text with a comma or a line break needs quotes"
                )
                yield begins, uneven if wrong else _unescape_formulas(dict(zip(header, cells, strict=False)))
            begins = reader.line_num + 1
    except csv.Error as error:
        yield begins, f"not CSV: {error}; the remaining rows were not read"
