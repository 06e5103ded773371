"""Files of prompts, demonstrations and the safety set, read into one corpus; every bad row is named."""

import csv
import glob
import hashlib
import io
import json
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from towpath.data.draws import share
from towpath.errors import DataError
from towpath.recipe import Data
from towpath.records import Demonstration, Finding, Prompt, Split

NAMED = 20
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_ANSWERS = ("response", "output", "completion")

R = TypeVar("R", Prompt, Demonstration)
Cells = dict[str, Any]


@dataclass(frozen=True)
class Corpus:
    """All that a run was given to learn from and to be judged on."""

    prompts: tuple[Prompt, ...]
    demonstrations: tuple[Demonstration, ...] = ()
    safety: tuple[Prompt, ...] = ()
    findings: tuple[Finding, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Further columns of the prompts' rows, by prompt id, for reward functions."""

    @cached_property
    def column_names(self) -> frozenset[str]:
        """The names of all further columns."""
        return frozenset(name for row in self.columns.values() for name in row)

    def columns_of(self, prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
        """The further columns of these prompts, None where a row has no such column."""
        rows = [self.columns.get(p.id, {}) for p in prompts]
        return {name: [row.get(name) for row in rows] for name in sorted(self.column_names)}

    @cached_property
    def train(self) -> tuple[Prompt, ...]:
        """Prompts that may be trained on."""
        return tuple(p for p in self.prompts if p.split == "train")

    @cached_property
    def heldout(self) -> tuple[Prompt, ...]:
        """Prompts that only evaluation sees."""
        return tuple(p for p in self.prompts if p.split == "heldout")

    @cached_property
    def by_id(self) -> dict[str, Prompt]:
        """Prompts and the safety set by id."""
        return {p.id: p for p in (*self.prompts, *self.safety)}


class _RowError(Exception):
    """Why a row cannot be used."""


def read(run: Path, data: Data, seed: int) -> Corpus:
    """The files a recipe names as one corpus, or one error that names every bad row."""
    reader = _Reader(run)

    def prompt(cells: Cells) -> Prompt:
        return _prompt(cells, lambda text: "heldout" if share(seed, "heldout", normalised(text)) < data.heldout else "train")

    def demonstration(cells: Cells) -> Demonstration:
        made = _demonstration(cells)
        if _split(cells) == "heldout":
            reader.withheld.add(normalised(made.prompt))
        return made

    places: dict[str, str] = {}
    prompts = reader.identified(reader.records("data.prompts", data.prompts, prompt), "p", places)
    guarded, renamed = _apart(reader.records("data.safety", data.safety, lambda cells: _prompt(cells, lambda _: "heldout")), places)
    safety = [replace(p, split="heldout") for p in reader.identified(guarded, "s", places)]
    shown = reader.identified(reader.records("data.demonstrations", data.demonstrations, demonstration), "d", {}, keep_place=True)
    demonstrations, added, findings = reader.linked(shown, prompts, {p.id for p in safety})
    reader.require()
    if not prompts and not added:
        raise DataError("no prompts at all", "a run needs prompts", "name files in data.prompts or data.demonstrations")
    return Corpus((*prompts, *added), tuple(demonstrations), tuple(safety), (*renamed, *findings), reader.files)


def matched(run: Path, key: str, pattern: str) -> list[Path]:
    """The files that a pattern of the recipe names; none where it is empty."""
    if not pattern:
        return []
    names = sorted(glob.glob(str(Path(pattern).expanduser()), root_dir=run, recursive=True))  # noqa: PTH207 - takes absolute patterns too
    paths = [path for path in (run / name for name in names) if path.is_file()]
    if not paths:
        fix = f"mend {key}, or put files there" + ("; an empty string means none" if key == "data.safety" else "")
        raise DataError(f"{key} = {pattern!r}: no file of that name", f"patterns are relative to {run}", fix)
    return paths


def normalised(text: str) -> str:
    """Text without what does not change a question: case, spacing, forms of a letter, the mark at its end."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.rstrip(" .?!") or plain


@dataclass
class _Reader:
    """Reads rows, remembering the files read and every row that could not be used."""

    run: Path
    bad: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    withheld: set[str] = field(default_factory=set)
    _place: dict[str, str] = field(default_factory=dict)

    def records(self, key: str, pattern: str, make: Callable[[Cells], R]) -> list[tuple[str, R]]:
        """One record for each usable row of the files of a pattern, with its place."""
        made = []
        for path in matched(self.run, key, pattern):
            for place, cells in self._rows(path):
                try:
                    if isinstance(cells, _RowError):
                        raise cells
                    made.append((place, make(cells)))
                except _RowError as reason:
                    self.bad.append(f"{place}: {reason}")
        return made

    def _rows(self, path: Path) -> Iterator[tuple[str, Cells | _RowError]]:
        name = path.relative_to(self.run).as_posix() if path.is_relative_to(self.run) else str(path)
        read = _READERS.get(path.suffix.lower())
        if read is None:
            kind = path.suffix or "(none)"
            raise DataError(f"{name}: files of type {kind} are not read", "one of " + ", ".join(_READERS), "convert it, or narrow the pattern")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{name}: {error.strerror}", "the files of a run must be readable", "mend its permissions") from None
        self.files[name] = hashlib.sha256(content).hexdigest()
        count = 0
        for count, cells in read(content):
            yield f"{name}:{count}", cells
        if not count:
            self.bad.append(f"{name}:0: the file has no rows")

    def identified(self, made: list[tuple[str, R]], prefix: str, places: dict[str, str], keep_place: bool = False) -> list[R]:
        """Records under ids used once: their own, or made from their content."""
        for place, record in made:
            if record.id and record.id in places:
                self.bad.append(f"{place}: id {record.id!r} is used already at {places[record.id]}")
            elif record.id:
                places[record.id] = place
        named = []
        for place, record in made:
            if not record.id:
                record = replace(record, id=_free(prefix, record, places))
                places[record.id] = place
            named.append(record)
            if keep_place:
                self._place[record.id] = place
        return named

    def linked(self, shown: list[Demonstration], prompts: list[Prompt], guarded: set[str]) -> tuple[list[Demonstration], list[Prompt], list[Finding]]:
        """Demonstrations with their prompts; those of held-out prompts are left out, and that is said."""
        by_id, same, added, kept, dropped = {p.id: p for p in prompts}, _by_text(prompts), [], [], []
        taken = dict.fromkeys([*by_id, *guarded], "")
        for demonstration in shown:
            text, name = normalised(demonstration.prompt), demonstration.prompt_id
            if name in guarded:
                self.bad.append(f"{self._place[demonstration.id]}: prompt_id {name!r} belongs to the safety set")
                continue
            if name in by_id and normalised(by_id[name].prompt) != text:
                self.bad.append(f"{self._place[demonstration.id]}: prompt_id {name!r} has another prompt")
                continue
            owners = [by_id[name]] if name in by_id else same.get(text, [])
            if not owners:
                split = "heldout" if text in self.withheld else "train"
                prompt = Prompt(name, demonstration.prompt, demonstration.domain or "general", split=split)
                prompt = prompt if name else replace(prompt, id=_free("p", prompt, taken))
                by_id[prompt.id], same[text], taken[prompt.id] = prompt, [prompt], ""
                added.append(prompt)
                owners = [prompt]
            if any(p.split == "heldout" for p in (*owners, *same[text])):
                dropped.append(demonstration.id)
                continue
            kept.append(replace(demonstration, prompt_id=owners[0].id, domain=demonstration.domain or owners[0].domain))
        return kept, added, [_left_out(dropped, len(shown))] if dropped else []

    def require(self) -> None:
        """Raise when a row could not be used."""
        if self.bad:
            more = [f"… and {len(self.bad) - NAMED} more"] if len(self.bad) > NAMED else []
            listed = "\n  ".join([f"{len(self.bad)} bad row{'s' * (len(self.bad) > 1)}:", *self.bad[:NAMED], *more])
            raise DataError(listed, "every row must be usable; none is dropped in silence", "mend or remove the rows named")


def _apart(safety: list[tuple[str, Prompt]], taken: dict[str, str]) -> tuple[list[tuple[str, Prompt]], list[Finding]]:
    """The safety set under ids that no prompt has: public sets often count from 1."""
    clashing = {p.id for _, p in safety if p.id in taken}
    if not clashing:
        return safety, []

    def renamed(name: str) -> str:
        return f"safety-{name}" if name in clashing else name

    evidence = f"{len(clashing)} ids of the safety set belong to prompts too, such as {min(clashing)!r}; there they are read as 'safety-…'"
    finding = Finding("safety-ids", "info", evidence, "an id names one prompt", "give the safety set ids of its own")
    return [(place, replace(p, id=renamed(p.id), twin=renamed(p.twin))) for place, p in safety], [finding]


def _by_text(prompts: list[Prompt]) -> dict[str, list[Prompt]]:
    same: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        same.setdefault(normalised(prompt.prompt), []).append(prompt)
    return same


def _left_out(dropped: list[str], count: int) -> Finding:
    listed = ", ".join(dropped[:10]) + (", …" if len(dropped) > 10 else "")
    evidence = f"{len(dropped)} of {count} demonstrations answer held-out prompts and are left out: {listed}"
    remedy = "remove them, or make their prompts train prompts"
    return Finding("demonstrations-heldout", "warning", evidence, "a held-out prompt must not be trained on", remedy)


def _free(prefix: str, record: Any, taken: dict[str, str]) -> str:
    """An id made from content; equal rows are told apart by a number."""
    content = json.dumps([record.prompt, getattr(record, "response", "")])
    stem = f"{prefix}-{hashlib.blake2b(content.encode(), digest_size=6).hexdigest()}"
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    return name


def _jsonl(content: bytes) -> Iterator[tuple[int, Cells | _RowError]]:
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            yield number, _RowError("not UTF-8")
        except (ValueError, RecursionError) as error:
            yield number, _RowError(f"not JSON ({getattr(error, 'msg', 'too deep or too long')})")
        else:
            yield number, row if isinstance(row, dict) else _RowError(f"not an object but {_kind(row)}")


def _csv(content: bytes) -> Iterator[tuple[int, Cells | _RowError]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        yield 1, _RowError("not UTF-8")
        return
    number = 0
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(text, newline=""), strict=True), 1):
            if None in row or None in row.values():
                yield number, _RowError(f"{'more' if None in row else 'fewer'} cells than columns")
            else:
                yield number, row
    except csv.Error as error:
        yield number + 1, _RowError(f"not CSV ({error}); the rows after it were not read")


def _parquet(content: bytes) -> Iterator[tuple[int, Cells | _RowError]]:
    import pyarrow  # slow to import, and few runs need it
    from pyarrow import parquet

    try:
        table = parquet.read_table(pyarrow.BufferReader(content))
    except (pyarrow.ArrowException, OSError) as error:
        yield 1, _RowError(f"not Parquet ({str(error).splitlines()[0]})")
        return
    yield from enumerate(table.to_pylist(), 1)


_READERS: dict[str, Callable[[bytes], Iterator[tuple[int, Cells | _RowError]]]] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}


def _prompt(cells: Cells, draw: Callable[[str], Split]) -> Prompt:
    text, _ = _said(cells)
    split = _split(cells) or draw(text)
    domain, difficulty = _text(cells, "domain") or "general", _text(cells, "difficulty") or "medium"
    return Prompt(_name(cells, "id"), text, domain, difficulty, _words(cells, "about"), _truth(cells, "harmful"), split, _name(cells, "twin"))


def _split(cells: Cells) -> Split | None:
    named = _text(cells, "split")
    if named not in ("", "train", "heldout"):
        raise _RowError(f"unknown split {named!r}: train or heldout")
    return named or None


def _demonstration(cells: Cells) -> Demonstration:
    text, response = _said(cells)
    if response is None:
        raise _RowError(f"no response (keys: {_keys(cells)})")
    if not response.strip():
        raise _RowError("empty response")
    return Demonstration(_name(cells, "id"), text, response, _name(cells, "prompt_id"), _text(cells, "style"), _text(cells, "domain"))


def _said(cells: Cells) -> tuple[str, str | None]:
    """What the user asks and, where the row has it, the answer; the shapes of other tools included."""
    if "messages" in cells:
        asked, answered = _turns(cells["messages"])
    elif isinstance(cells.get("prompt"), list):
        rest = cells.get("completion")
        asked, answered = _turns([*cells["prompt"], *(rest if isinstance(rest, list) else [])])
        answered = answered if isinstance(rest, list) or answered is not None else _answer(cells)
    elif "prompt" in cells:
        asked, answered = _text(cells, "prompt"), _answer(cells)
    elif "instruction" in cells and not cells.get("instances"):
        more = _text(cells, "input")
        asked, answered = _text(cells, "instruction") + (f"\n\n{more}" if more.strip() else ""), _answer(cells)
    else:
        raise _RowError(f"no prompt (keys: {_keys(cells)})")
    if not asked.strip():
        raise _RowError("empty prompt")
    return asked, answered


def _answer(cells: Cells) -> str | None:
    key = next((key for key in _ANSWERS if key in cells), None)
    return None if key is None else _text(cells, key)


def _turns(messages: Any) -> tuple[str, str | None]:
    """The user's turn and the assistant's, of a conversation that has no others."""
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise _RowError("messages is not a list of {role, content}")
    roles = [turn.get("role") for turn in messages]
    if roles not in (["user"], ["user", "assistant"]):
        raise _RowError(f"messages with roles {', '.join(map(str, roles)) or '(none)'}: one user turn and at most one answer")
    texts = [_text(turn, "content") for turn in messages]
    return texts[0], texts[1] if len(texts) > 1 else None


def _text(cells: Cells, key: str) -> str:
    found = cells.get(key)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise _RowError(f"{key} is not text but {_kind(found)}")
    if any("\ud800" <= letter <= "\udfff" for letter in found):
        raise _RowError(f"{key} holds half a character (a lone surrogate)")
    return found


def _name(cells: Cells, key: str) -> str:
    found = cells.get(key)
    return str(found) if isinstance(found, int) and not isinstance(found, bool) else _text(cells, key).strip()


def _truth(cells: Cells, key: str) -> bool:
    found = cells.get(key)
    if found is None or found == "":
        return False
    known = found if isinstance(found, bool) else _TRUTH.get(str(found).strip().lower())
    if known is None:
        raise _RowError(f"{key} is not true or false but {found!r}")
    return known


def _words(cells: Cells, key: str) -> tuple[str, ...]:
    found = cells.get(key)
    if isinstance(found, str):
        return tuple(word.strip() for word in found.replace(";", ",").split(",") if word.strip())
    if found is not None and not (isinstance(found, list) and all(isinstance(word, str) for word in found)):
        raise _RowError(f"{key} is not a list of words but {_kind(found)}")
    return tuple(found or ())


def _kind(found: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true/false", str: "text", type(None): "null"}
    return names.get(type(found), "a number" if isinstance(found, int | float) else type(found).__name__)


def _keys(cells: Cells) -> str:
    return ", ".join(map(str, list(cells)[:8])) or "none"
