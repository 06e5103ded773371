"""Unusable rows with file, line and reason: counted by reason, and all of them written to a file of the run."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from towpath.records import Finding
from towpath.store.publish import replace_file

FILE = "reports/refused_rows.jsonl"
IMPORT_FILE = "reports/refused_import.jsonl"
"""Unusable rows of the last `towpath label import`."""
SHOWN = 20
SHOWN_OF_A_REASON = 5
SHOWN_REASONS = 8

Part = Literal["prompts", "demonstrations", "safety", "preferences"]


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """An unusable row and the reason; line 0 means the whole file."""

    part: Part
    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


def refused_row(part: Part, position: str, reason: str) -> RefusedRow:
    """A refused row at a position `file:line`."""
    file, _, line = position.rpartition(":")
    # interned, since most of a million rows share file and reason
    return RefusedRow(part, sys.intern(file), int(line), sys.intern(reason))


def count_by_reason(rows: Iterable[RefusedRow]) -> Counter[str]:
    """Number of rows per kind of reason, ignoring what differs between rows."""
    return Counter(reason_kind(row.reason) for row in rows)


def count_by_part(rows: Iterable[RefusedRow]) -> dict[str, int]:
    """Number of rows per part: prompts, demonstrations, safety, preferences."""
    return dict(Counter(row.part for row in rows))


def format_listing(rows: Sequence[RefusedRow]) -> str:
    """Counts by reason, the first rows of each, and the number of further rows."""
    reasons = count_by_reason(rows).most_common()
    counts = [f"{count} × {reason}" for reason, count in reasons[:SHOWN_REASONS]]
    counts += [f"… and {len(reasons) - SHOWN_REASONS} more reasons"] if len(reasons) > SHOWN_REASONS else []
    per_reason: Counter[str] = Counter()
    first_rows = []
    for row in rows:
        per_reason[reason_kind(row.reason)] += 1
        if per_reason[reason_kind(row.reason)] <= SHOWN_OF_A_REASON and len(first_rows) < SHOWN:
            first_rows.append(str(row))
    more = [f"… and {len(rows) - len(first_rows)} more"] if len(rows) > len(first_rows) else []
    return "\n  ".join(["; ".join(counts), *first_rows, *more])


def format_summary(rows: Sequence[RefusedRow], places_shown: int = 3) -> str:
    """The same in one line: counts by reason, each with its first locations."""
    parts = []
    for reason, count in count_by_reason(rows).most_common(SHOWN_REASONS):
        places = [f"{row.file}:{row.line}" for row in rows if reason_kind(row.reason) == reason][:places_shown]
        parts.append(f"{count} × {reason} ({', '.join(places)}{', …' if count > places_shown else ''})")
    return "; ".join(parts)


def skipped_findings(rows: Sequence[RefusedRow]) -> list[Finding]:
    """A warning if rows were left out."""
    if not rows:
        return []
    count = f"{len(rows)} row{'s are' if len(rows) > 1 else ' is'} left out"
    evidence = f"{count}: {format_summary(rows)}; all are listed in {FILE}"
    return [Finding("rows-skipped", "warning", evidence, "data.unusable = 'skip'", "fix these rows to use them")]


def write_refused_rows(run: Path, rows: Sequence[RefusedRow], name: str = FILE) -> str:
    """Write all rows to a file of the run and return where they are; without rows the old file is removed."""
    path = run / name
    try:
        if rows:
            replace_file(path, (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))
            return f"all are listed in {path}"
        path.unlink(missing_ok=True)
    except OSError as error:
        return f"{path} could not be written: {error.strerror}"
    return ""


@lru_cache(maxsize=4096)
def reason_kind(reason: str) -> str:
    """A reason without values, names and notes that differ between rows; limits of the recipe are kept."""
    plain = re.sub(r" \([^)]*\)", "", reason)
    plain = re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", plain)
    column, _, rest = plain.partition(": ")
    kind = column if " " in column or not rest else f"{column}: {rest.partition(': ')[0]}"
    return re.sub(r"(?<!= )(?<!\d\.)\b\d+\b", "N", kind)
