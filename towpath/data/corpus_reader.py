"""Read the files of prompts, demonstrations and the safety set into a corpus; every unusable row is listed."""

import glob
import hashlib
import json
import sys
from collections import ChainMap
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from towpath.data import fields, row_files
from towpath.data import refused_rows as refused
from towpath.data.corpus import Corpus
from towpath.data.count_cache import text_key
from towpath.data.hub_data import dataset_files
from towpath.data.locations import Locations
from towpath.data.preference_rows import column_names
from towpath.data.rankings import is_tree, tree_examples
from towpath.data.refused_rows import Part, RefusedRow, refused_row
from towpath.data.row_files import Cells, Rows, UnusableRow
from towpath.data.texts import normalise, require_text
from towpath.errors import DataError, RecipeError
from towpath.hashing import hash_uniform
from towpath.progress import Progress, progress
from towpath.recipe import Data
from towpath.records import Conversation, Demonstration, Finding, Prompt, Split, opening, transcript

R = TypeVar("R", Prompt, Demonstration)


def read_corpus(run: Path, data: Data, seed: int) -> Corpus:
    """Read the files of a recipe. An unusable row raises DataError, or is left out if `data.unusable` is "skip"."""
    reader = _Reader(run, data, seed)
    locations: dict[str, int] = {}
    prompts = reader.assign_ids("prompts", reader.records("prompts", data.prompts, reader.prompt), locations)
    safety_rows, renamed = _separate_ids(reader.records("safety", data.safety, reader.safety_prompt), locations)
    safety = reader.assign_ids("safety", safety_rows, locations)
    demonstration_rows = reader.assign_ids(
        "demonstrations", reader.records("demonstrations", data.demonstrations, reader.demonstration), {}
    )
    demonstrations, added, findings = reader.link_demonstrations(demonstration_rows, prompts, {p.id for p in safety})
    if reader.refused and data.unusable == "stop":
        raise _unusable(run, reader.refused)
    if not prompts and not added:
        raise _no_prompts(reader.refused)
    all_findings = (*renamed, *findings)
    return Corpus(
        (*prompts, *added),
        tuple(demonstrations),
        tuple(safety),
        all_findings,
        reader.files,
        tuple(reader.refused),
        reader.locations,
        reader.random_splits,
        reader.columns(prompts),
        reader.conversational,
    )


def match_files(run: Path, key: str, pattern: str) -> list[Path]:
    """The files that match a pattern of the recipe, or of the data set that it names; none if it is empty."""
    if not pattern:
        return []
    if (data_set := dataset_files(run, key, pattern)) is not None:
        return data_set
    names = sorted(glob.glob(str(Path(pattern).expanduser()), root_dir=run, recursive=True))  # noqa: PTH207 - takes absolute patterns too
    paths = [path for path in (run / name for name in names) if path.is_file()]
    if not paths:
        fix = f"fix {key}, or put files there; an empty string means none"
        raise DataError(f"{key} = {pattern!r}: no file of that name", f"patterns are relative to {run}", fix)
    return paths


def relative_name(run: Path, path: Path) -> str:
    """The name of a file in messages: relative to the run folder if it is inside."""
    return path.relative_to(run).as_posix() if path.is_relative_to(run) else str(path)


@dataclass
class _Reader:
    """Reads rows and records the files read and every unusable row."""

    run: Path
    data: Data
    seed: int
    refused: list[RefusedRow] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    locations: Locations = field(default_factory=Locations)
    random_splits: int = 0
    """Number of prompts without a named split."""
    conversational: bool = False
    """Whether rows of prompts give messages."""
    _columns: dict[int, Cells] = field(default_factory=dict)
    """Extra columns by location."""
    _named_splits: dict[int, Split] = field(default_factory=dict)
    """Splits that demonstrations name for their prompts."""

    def records(self, part: Part, pattern: str, make: Callable[[Cells, str], Iterator[R]]) -> list[tuple[int, R]]:
        """The records in the usable rows of the files of a pattern, each with its location."""
        records: list[tuple[int, R]] = []
        paths = match_files(self.run, f"data.{part}", pattern)
        if part == "safety":
            self._require_known(paths)
        for path in paths:
            name = relative_name(self.run, path)
            with progress(f"reading {name}", path.stat().st_size, "bytes") as work:
                for line, cells in self._rows(part, path, name, work):
                    location = self.locations.code(name, line)
                    try:
                        if isinstance(cells, str):
                            raise UnusableRow(cells)
                        records += [(location, record) for record in make(cells, name)]
                        if part == "prompts":
                            self._note_columns(location, cells)
                    except UnusableRow as reason:
                        self.refused.append(refused_row(part, f"{name}:{line}", str(reason)))
        return records

    def _note_columns(self, location: int, cells: Cells) -> None:
        self.conversational = self.conversational or fields.is_conversational(cells)
        extra = fields.extra_columns(cells)
        if extra:
            self._columns[location] = extra

    def columns(self, prompts: Sequence[Prompt]) -> dict[str, dict[str, Any]]:
        """The extra columns of prompts, by id."""
        if not self._columns:
            return {}
        by_id = ((p.id, self.locations.code_of("prompts", p.id)) for p in prompts)
        return {name: self._columns[code] for name, code in by_id if code is not None and code in self._columns}

    def _rows(self, part: Part, path: Path, name: str, work: Progress) -> Rows:
        digest = row_files.CountedDigest(work)
        rows = 0
        for line, cells in _examples(row_files.read_rows(path, digest), part):
            rows += 1
            yield line, cells
        self.files[name] = digest.sha256.hexdigest()
        if not rows:
            self.refused.append(RefusedRow(part, name, 0, "the file has no rows"))

    def _require_known(self, paths: Sequence[Path]) -> None:
        """RecipeError if `data.safety_harmful` names a file that is not in the safety set."""
        names = [relative_name(self.run, path) for path in paths]
        unknown = [key for key in self.data.safety_harmful if not any(_matches_name(name, key) for name in names)]
        if unknown:
            value = f"data.safety_harmful names {unknown[0]!r}, which is no file of the safety set"
            raise RecipeError(
                value, "its keys are names or patterns of files of data.safety", f"one of {', '.join(names) or 'none'}"
            )

    def prompt(self, cells: Cells, _file: str) -> Iterator[Prompt]:
        """The prompts of a row."""
        for messages, _ in fields.prompts_and_answers(cells):
            split = _split(cells) or self.random_split(messages)
            yield _prompt(cells, messages, bool(fields.harmful_flag(cells)), split)

    def safety_prompt(self, cells: Cells, file: str) -> Iterator[Prompt]:
        """The prompts of a row of the safety set, which must say whether they are harmful."""
        rule = next((value for key, value in self.data.safety_harmful.items() if _matches_name(file, key)), None)
        harmful = fields.resolve_harmful(cells, rule, file)
        for messages, _ in fields.prompts_and_answers(cells):
            _split(cells)
            yield _prompt(cells, messages, harmful, "heldout")

    def demonstration(self, cells: Cells, _file: str) -> Iterator[Demonstration]:
        """The demonstrations of a row."""
        split = _split(cells)
        for messages, response in fields.prompts_and_answers(cells):
            if response is None:
                raise UnusableRow(f"no response (keys: {column_names(cells)})")
            require_text("response", response)
            key = text_key("", normalise(transcript(messages)))
            if split and self._named_splits.get(key) != "heldout":  # heldout wins over train
                self._named_splits[key] = split
            named = fields.parse_name(cells, "prompt_id")
            style = fields.storable_text(cells, "style")
            domain = fields.storable_text(cells, "domain")
            *history, last = messages
            yield Demonstration(_id(cells), last.content, response, named, style, domain, tuple(history))

    def random_split(self, messages: Conversation) -> Split:
        """The split of a prompt without a named one: by the first turn of the user alone, so that it is stable when
        rows are added, and all turns of a conversation are on one side."""
        self.random_splits += 1
        draw = hash_uniform(self.seed, "heldout", normalise(opening(messages)))
        return "heldout" if draw < self.data.heldout else "train"

    def assign_ids(self, part: Part, records: list[tuple[int, R]], locations: dict[str, int]) -> list[R]:
        """Give every record a unique id: its own, or one derived from its content."""
        position = self.locations.text
        accepted = []
        for location, record in records:
            if record.id and record.id in locations:
                reason = f"id {record.id!r} is used already at {position(locations[record.id])}"
                self.refused.append(refused_row(part, position(location), reason))
                continue
            if record.id:
                locations[record.id] = location
            accepted.append((location, record))
        named = []
        for location, record in accepted:
            if not record.id:
                record = replace(record, id=_unused_id(part[0], record, locations))
                locations[record.id] = location
            named.append(record)
            self.locations.add(part, record.id, location)
        return named

    def link_demonstrations(
        self, demonstrations: list[Demonstration], prompts: list[Prompt], safety_ids: set[str]
    ) -> tuple[list[Demonstration], list[Prompt], list[Finding]]:
        """Link demonstrations to prompts, and leave out those of held-out prompts, with a finding."""
        by_id = {p.id: p for p in prompts} if demonstrations else {}
        by_text = _by_text(prompts, {_text_key(d) for d in demonstrations})
        added = []
        linked = []
        dropped = []
        taken = ChainMap[str, Any](by_id, dict.fromkeys(safety_ids))
        for demonstration in demonstrations:
            text = _text_key(demonstration)
            name = demonstration.prompt_id
            location = self.locations.get("demonstrations", demonstration.id)
            if name in safety_ids:
                self.refused.append(
                    refused_row("demonstrations", location, f"prompt_id {name!r} belongs to the safety set")
                )
                continue
            if name in by_id and _text_key(by_id[name]) != text:
                self.refused.append(refused_row("demonstrations", location, f"prompt_id {name!r} has another prompt"))
                continue
            owners = [by_id[name]] if name in by_id else by_text.get(text, [])
            if not owners:
                split = self._named_splits.get(text) or self.random_split(demonstration.messages)
                domain = demonstration.domain or "general"
                prompt = Prompt(name, demonstration.prompt, domain, split=split, history=demonstration.history)
                prompt = prompt if name else replace(prompt, id=_unused_id("p", prompt, taken))
                by_id[prompt.id] = prompt
                by_text[text] = [prompt]
                code = self.locations.code_of("demonstrations", demonstration.id)
                self.locations.add("prompts", prompt.id, code or 0)
                added.append(prompt)
                owners = [prompt]
            if any(p.split == "heldout" for p in (*owners, *by_text[text])):
                dropped.append(demonstration.id)
                continue
            linked.append(
                replace(demonstration, prompt_id=owners[0].id, domain=demonstration.domain or owners[0].domain)
            )
        return linked, added, [_heldout_finding(dropped, len(demonstrations))] if dropped else []


def _examples(rows: Rows, part: Part) -> Rows:
    """The rows of a file; of message trees one row for each message of a user."""
    first = list(islice(rows, 1))
    if first and not isinstance(first[0][1], str) and is_tree(first[0][1]):
        return tree_examples(chain(first, rows), answered=part == "demonstrations")
    return chain(first, rows)


def _unusable(run: Path, rows: list[RefusedRow]) -> DataError:
    """The error for unusable rows, after writing all of them to the run's file."""
    where = refused.write_refused_rows(run, rows)
    value = f"{len(rows)} unusable row{'s' * (len(rows) > 1)}: {refused.format_listing(rows)}\n  {where}"
    fix = "fix these rows, or leave them out with data.unusable = 'skip'"
    unstated = dict.fromkeys(Path(row.file).name for row in rows if row.reason == fields.UNSTATED)
    if unstated:
        entries = ", ".join(f'"{file}" = true' for file in unstated)
        fix = "give the rows of the safety set `harmful` (true or false) or `label` (safe or unsafe), or set "
        fix += f"data.safety_harmful = {{ {entries} }} where all are harmful, false where none is, "
        fix += "or the name of the column that says so"
    return DataError(value, "every row must be usable, and rows of the safety set say whether they are harmful", fix)


def _no_prompts(rows: list[RefusedRow]) -> DataError:
    if rows:
        return DataError(
            f"no prompts are left: {len(rows)} rows cannot be used: {refused.format_listing(rows)}",
            "a run needs prompts",
            "fix the rows",
        )
    return DataError("no prompts at all", "a run needs prompts", "name files in data.prompts or data.demonstrations")


def _separate_ids(
    safety: list[tuple[int, Prompt]], taken: Container[str]
) -> tuple[list[tuple[int, Prompt]], list[Finding]]:
    """The safety set with ids that no prompt has, since public data sets often count from 1."""
    clashing = {p.id for _, p in safety if p.id in taken}
    if not clashing:
        return safety, []

    def renamed(name: str) -> str:
        return f"safety-{name}" if name in clashing else name

    evidence = (
        f"{len(clashing)} ids of the safety set belong to prompts too, such as {min(clashing)!r}; there they are "
        "read as 'safety-…'"
    )
    finding = Finding("safety-ids", "info", evidence, "an id names one prompt", "give the safety set ids of its own")
    return [(location, replace(p, id=renamed(p.id), twin=renamed(p.twin))) for location, p in safety], [finding]


def _by_text(prompts: list[Prompt], wanted: set[int]) -> dict[int, list[Prompt]]:
    """Prompts by their question, of the wanted questions."""
    same: dict[int, list[Prompt]] = {}
    if wanted:
        for prompt in prompts:
            key = _text_key(prompt)
            if key in wanted:
                same.setdefault(key, []).append(prompt)
    return same


def _text_key(record: Prompt | Demonstration) -> int:
    """A hash of the normalised text: a million texts are not held twice."""
    return text_key("", normalise(record.text))


def _heldout_finding(dropped: list[str], count: int) -> Finding:
    listed = ", ".join(dropped[:10]) + (", …" if len(dropped) > 10 else "")
    evidence = f"{len(dropped)} of {count} demonstrations answer held-out prompts and are left out: {listed}"
    remedy = "remove them, give their rows split = 'train', or lower data.heldout"
    return Finding("demonstrations-heldout", "warning", evidence, "a held-out prompt must not be trained on", remedy)


def _unused_id(prefix: str, record: Any, taken: Container[str]) -> str:
    """An id derived from content, with a number if it is taken."""
    content = json.dumps([record.text, getattr(record, "response", "")])
    stem = f"{prefix}-{hashlib.blake2b(content.encode(), digest_size=6).hexdigest()}"
    name = stem
    number = 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    return name


def _prompt(cells: Cells, messages: Conversation, harmful: bool, split: Split) -> Prompt:
    *history, last = messages
    # interned, since a million rows share a few
    domain = sys.intern(fields.storable_text(cells, "domain") or "general")
    difficulty = sys.intern(fields.storable_text(cells, "difficulty") or "medium")
    return Prompt(
        _id(cells),
        last.content,
        domain,
        difficulty,
        fields.parse_words(cells, "about"),
        harmful,
        split,
        fields.parse_name(cells, "twin"),
        tuple(history),
    )


def _id(cells: Cells) -> str:
    return "" if fields.has_several_examples(cells) else fields.parse_name(cells, "id")


def _split(cells: Cells) -> Split | None:
    named = fields.storable_text(cells, "split")
    if named not in ("", "train", "heldout"):
        raise UnusableRow(f"unknown split {named!r}: train or heldout")
    return named or None


def _matches_name(file: str, pattern: str) -> bool:
    return fnmatch(file, pattern) or fnmatch(Path(file).name, pattern)
