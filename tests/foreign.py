"""Files in the formats of other tools, and readable rows of what was imported."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from towpath.data.formats import read_preferences
from towpath.data.preference_pairs import Imported

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
real_rows = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the public sets are not at {SHARED}")


def put(path: Path, *rows: Any) -> Path:
    """Write rows in the format of the file suffix; strings are written unchanged."""
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        path.write_text(
            "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
        )
    return path


def lines(path: Path) -> list[Any]:
    """The objects of a JSON lines file; only a line feed ends a line."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]


def read(path: Path, *rows: Any, **more: Any) -> Imported:
    return read_preferences(put(path, *rows), **more)


def imported_rows(imported: Imported) -> list[tuple[str, str, str]]:
    """(prompt, better answer, worse answer) of every judgement; (prompt, choice, "") for ties and bad pairs."""
    texts = {c.id: c.text for c in imported.completions}
    prompts = {p.id: p.text for p in imported.prompts}
    comparisons = {c.id: c for c in imported.comparisons}
    keys = []
    for j in imported.judgements:
        c = comparisons[j.comparison]
        better, worse = (c.b, c.a) if j.choice == "b" else (c.a, c.b)
        keys.append(
            (prompts[c.prompt_id], texts[better], texts[worse])
            if j.choice in ("a", "b")
            else (prompts[c.prompt_id], j.choice, "")
        )
    return keys


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


PLAIN = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
CONVERSATION = [turn("user", "Hi"), turn("assistant", "Hello"), turn("user", "Why?")]
TRANSCRIPT = "User: Hi\n\nAssistant: Hello\n\nUser: Why?"
