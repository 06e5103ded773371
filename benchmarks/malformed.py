"""A million malformed rows of 35 kinds: every row is counted, in bounded time and memory.

python -m benchmarks.malformed --json benchmarks/results/malformed.json
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROWS = 1_000_000
SECONDS = 90.0
MEBIBYTES = 300.0

KINDS: list[bytes] = [
    b"{",
    b"}",
    b"nonsense",
    b'{"prompt": "a"',
    b'{"prompt": "a"}}',
    b"[1, 2]",
    b'"text"',
    b"17",
    b"null",
    b"true",
    b"NaN",
    b'{"prompt": ""}',
    b'{"prompt": "   "}',
    b'{"prompt": null}',
    b'{"prompt": 3}',
    b'{"prompt": ["a"]}',
    b'{"prompt": {"a": 1}}',
    b'{"promt": "a"}',
    b"{}",
    b'{"prompt": "a\\u0000b"}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "\xff\xfe"}',
    b'{"prompt": "a", "split": "test"}',
    b'{"prompt": "a", "id": 5.5}',
    b'{"prompt": "a", "id": ["x"]}',
    b'{"prompt": "a", "domain": 3}',
    b'{"prompt": "a", "domain": "\\u0000"}',
    b'{"prompt": "a", "about": 4}',
    b'{"prompt": "a", "about": [1, 2]}',
    b'{"prompt": "a", "harmful": "perhaps"}',
    b'{"messages": []}',
    b'{"messages": [{"role": "assistant", "content": "x"}]}',
    b'{"messages": [{"role": "user"}]}',
    b'{"messages": "hello"}',
    b"[" * 2000,
]


def write(path: Path, rows: int) -> None:
    """Write rows of all kinds in turn; prompts differ from row to row."""
    with path.open("wb") as file:
        for number in range(rows):
            kind = KINDS[number % len(KINDS)]
            file.write(kind.replace(b'"a"', b'"question %d"' % number) + b"\n")


def read(folder: Path) -> dict[str, Any]:
    """Read the file as prompts with `data.unusable = "skip"`; return counts, seconds and memory without imports."""
    from towpath.data import corpus_reader, refused_rows
    from towpath.recipe import Data

    before = _peak()
    start = time.monotonic()
    corpus = corpus_reader.read_corpus(
        folder,
        Data.model_validate({"prompts": "*.jsonl", "demonstrations": "", "safety": "", "unusable": "skip"}),
        seed=1,
    )
    listed = refused_rows.write_refused_rows(folder, corpus.refused)
    counted = refused_rows.count_by_reason(corpus.refused)
    with (folder / refused_rows.FILE).open("rb") as file:
        lines = sum(1 for _ in file)
    return {
        "counted": len(corpus.refused),
        "usable": len(corpus.prompts),
        "reasons": len(counted),
        "seconds": time.monotonic() - start,
        "mebibytes": (_peak() - before) / 1024,
        "listed": listed,
        "lines": lines,
        "most": dict(Counter(counted).most_common(5)),
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(read(arguments.read)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "rows.jsonl", arguments.rows)
        (Path(folder) / "one.jsonl").write_text('{"prompt": "A usable question?"}\n')
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.malformed", "--read", folder], check=True, capture_output=True, text=True
        )
    report = json.loads(done.stdout) | {
        "rows": arguments.rows,
        "kinds": len(KINDS),
        "marks": {"seconds": SECONDS, "mebibytes": MEBIBYTES},
    }
    print(json.dumps(report, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if report["counted"] != arguments.rows or report["seconds"] > SECONDS or report["mebibytes"] > MEBIBYTES:
        sys.exit("a limit was exceeded or rows were not counted")


if __name__ == "__main__":
    main()
