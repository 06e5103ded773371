"""Comparisons out, judgements in: JSON lines or CSV, all rows or none."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from towpath.errors import DataError
from towpath.records import Judgement
from towpath.store.publish import replace_file
from towpath.store.store import Store

COLUMNS = ("comparison", "prompt", "a", "b", "choice", "strength", "rater")
CHOICES = ("a", "b", "tie", "both_bad")
SHOWN_ERRORS = 20


def export_pairs(store: Store, path: Path, all: bool = False) -> int:
    """Write the comparisons that nobody has judged (or all of them), with room for the answer."""
    judged = set() if all else {j.comparison for j in store.judgements()}
    prompts, completions = store.prompts(), store.completions()
    rows = [
        dict(zip(COLUMNS, (c.id, prompts[c.prompt_id].prompt, completions[c.a].text, completions[c.b].text, "", "", ""), strict=True))
        for c in store.comparisons()
        if c.id not in judged
    ]
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    else:
        replace_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)


def import_judgements(store: Store, path: Path, rater: str | None = None, kind: Literal["person", "judge", "rule"] = "person") -> tuple[int, int]:
    """Add the judgements of a file; (added, there already). One bad row, and nothing is added."""
    known, good, bad, skipped = {c.id: c for c in store.comparisons()}, [], [], 0
    for number, row in _rows(path):
        if isinstance(row, dict) and row.get("choice") in ("", None):
            skipped += 1
            continue
        problem = row if isinstance(row, str) else _problem(row, known, rater)
        if problem:
            bad.append(f"{path.name}:{number}: {problem}")
            continue
        assert isinstance(row, dict)
        who, c = row.get("rater") or rater, known[row["comparison"]]
        milliseconds = int(row["milliseconds"]) if row.get("milliseconds") else None
        good.append(
            Judgement(
                f"{c.id}/{who}/{c.round}", c.id, str(who), kind, row["choice"], row.get("shown") or "ab", int(row.get("strength") or 1),
                milliseconds, c.round, row.get("guideline") or "", row.get("at") or "",
            )
        )  # fmt: skip
    if bad:
        more = f"\n  … and {len(bad) - SHOWN_ERRORS} more" if len(bad) > SHOWN_ERRORS else ""
        raise DataError("\n".join(bad[:SHOWN_ERRORS]) + more, "every row must be a judgement of a known comparison", "mend the rows; none were added")
    if not good:
        raise DataError(f"{path}: no judgement in {skipped} rows", "`choice` is a, b, tie or both_bad", "fill in the column `choice`")
    added = store.add_judgements(good)
    return added, len(good) - added


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file", "judgements come from a .jsonl or .csv file", "mend the path")
    with path.open(newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            yield from enumerate(csv.DictReader(file), start=2)
            return
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                yield number, f"not JSON: {error.msg}"
                continue
            yield number, row if isinstance(row, dict) else "not an object"


def _problem(row: dict[str, Any], known: dict[str, Any], rater: str | None) -> str:
    if row.get("comparison") not in known:
        return f"comparison {row.get('comparison')!r} is not in this run"
    if row["choice"] not in CHOICES:
        return f"choice {row['choice']!r} is not one of {', '.join(CHOICES)}"
    if not (row.get("rater") or rater):
        return "no rater; name one in the row or with --rater"
    if str(row.get("strength") or 1) not in ("1", "2", "3"):
        return f"strength {row['strength']!r} is not 1, 2 or 3"
    if (row.get("shown") or "ab") not in ("ab", "ba"):
        return f"shown {row['shown']!r} is not ab or ba"
    if not str(row.get("milliseconds") or 0).isdigit():
        return f"milliseconds {row['milliseconds']!r} is not a number"
    return ""
