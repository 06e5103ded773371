"""A run folder as it is now; whoever watches shares the reading."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import RLock
from time import monotonic, time
from typing import Any

from towpath.errors import ResourceError, TowpathError
from towpath.recipe import Recipe, load
from towpath.recipe.reader import flat
from towpath.store.jsonl import Following, is_number, rows
from towpath.view.live.headline import Number, headline
from towpath.view.live.samples import Samples
from towpath.view.live.series import Metrics

TRAINED = ("sft", "reward", "policy")
PAUSE = 0.2
"""Seconds within which what was read is taken to be all there is."""
FRESH = 60.0
"""Seconds since the last row for which a stage is taken to be at work, where locks cannot be seen."""


class Training:
    """One stage that trains: its numbers, turns of knobs, findings, samples."""

    def __init__(self, name: str, folder: Path, evaluation: Path | None) -> None:
        self.name = name
        self.folder = folder
        self.metrics = Metrics(folder / "metrics.jsonl")
        self.samples = Samples(folder / "samples.jsonl", evaluation / "answers.jsonl" if evaluation else None)
        self.turns: list[dict[str, Any]] = []
        self.findings: list[dict[str, Any]] = []
        self.manifest: dict[str, Any] = {}
        self.course: dict[str, Any] = {}
        self._turns = Following(folder / "interventions.jsonl")
        self._read: dict[str, tuple[float, int]] = {}

    @property
    def kind(self) -> str:
        """The stage without its round."""
        return self.name.partition("@")[0]

    @property
    def done(self) -> bool:
        """Whether its manifest says so."""
        return self.manifest.get("status") == "done"

    def refresh(self) -> None:
        """Read what was added to its files."""
        self.metrics.refresh()
        self.samples.refresh()
        told, again = self._turns.read()
        self.turns = ([] if again else self.turns) + [
            _counted(row, "step") for row in rows(told) if is_number(row.get("step"))
        ]
        if self._changed("manifest.json"):
            self.manifest = _object(self.folder / "manifest.json")
        if self._changed("run_info.json"):
            self.course = _object(self.folder / "run_info.json")
        if self._changed("findings.json") or (self.done and not self.findings):
            found = _json(self.folder / "findings.json") or self.manifest.get("findings") or []
            self.findings = _findings(found)

    def _changed(self, name: str) -> bool:
        """Whether a file that is written whole is another than when this was last asked."""
        try:
            told = (self.folder / name).stat()
        except OSError:
            return self._read.pop(name, None) is not None
        before, self._read[name] = self._read.get(name), (told.st_mtime, told.st_ino)
        return before != self._read[name]

    def facts(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Recipe keys with the values this stage had; while it is at work, those of the recipe as it is now."""
        said = self.manifest.get("recipe")
        return flat(said) if isinstance(said, dict) else dict(settings)

    @property
    def steps(self) -> int | None:
        """How many steps it takes, where that is known."""
        said = (self.manifest.get("result") or {}).get("steps", self.course.get("steps"))
        return int(said) if is_number(said) else None

    def marks(self) -> list[dict[str, Any]]:
        """What is marked on the axis: knobs that turned, findings from their first step on, the checkpoint that was
        kept."""
        found = [
            {
                "step": int(row["step"]),
                "kind": "knob",
                "label": turned(row),
                "reason": str(row.get("reason") or ""),
                "finding": str(row.get("finding") or ""),
            }
            for row in self.turns
        ]
        for row in self.findings:
            if is_number(row.get("first_step")):
                reason = " ".join(_sentence(str(row[key])) for key in ("evidence", "cause") if row.get(key))
                severity = str(row.get("severity") or "info")
                found.append(
                    {
                        "step": int(row["first_step"]),
                        "kind": severity,
                        "label": str(row.get("code")),
                        "reason": reason,
                        "finding": "",
                    }
                )
        best = (self.manifest.get("result") or {}).get("best_step")
        if is_number(best) and best > 0:
            found.append(
                {
                    "step": int(best),
                    "kind": "kept",
                    "label": "kept",
                    "reason": "The weights after this step were kept.",
                    "finding": "",
                }
            )
        return sorted(found, key=lambda mark: mark["step"])


class Watched:
    """A run: its stages that train, read again whenever someone looks."""

    def __init__(self, run: Path, assignments: Sequence[str] = ()) -> None:
        if not run.is_dir() or not (run / "recipe.toml").is_file():
            raise ResourceError(f"{run}: no run", "a run is a folder that `towpath new` made", "mend the path")
        self.run = run
        self._assignments = list(assignments)
        self.trainings: dict[str, Training] = {}
        self.settings: dict[str, Any] = {}
        self.findings: list[dict[str, Any]] = []
        self.waiting_for = ""
        self.lock = RLock()
        self._read_at = -PAUSE
        self._known: tuple[float, ...] = ()
        self._evaluation: Path | None = None
        self._see_stages()

    def refresh(self, wait: bool = True) -> None:
        """Bring everything up to date; several who ask at once read once. Who does not wait takes what is known
        while another reads."""
        if not self.lock.acquire(blocking=wait):
            return
        try:
            if monotonic() - self._read_at < PAUSE:
                return
            self._see_stages()
            for training in self.trainings.values():
                training.refresh()
            self._read_at = monotonic()
        finally:
            self.lock.release()

    def _see_stages(self) -> None:
        known = tuple(_modified(self.run / name) for name in ("recipe.toml", "current.json"))
        if known == self._known and known[1]:
            return
        self._known = known
        try:
            self.settings = flat(load(self.run, self._assignments).model_dump(mode="json"))
        except TowpathError:
            self.settings = self.settings or flat(Recipe().model_dump(mode="json"))  # being edited: as it was last
        current = _object(self.run / "current.json")
        self.waiting_for = str(current.get("waiting_for") or "")
        self.findings = _findings(current.get("findings"))
        folders = {
            name: self.run / "stages" / name / str(mark)
            for name, mark in (current.get("stages") or _newest(self.run)).items()
        }
        kept = {}
        for name, folder in folders.items():
            kind, _, round_ = name.partition("@")
            if kind in TRAINED:
                evaluation = folders.get(f"evaluate@{round_}" if round_ else "evaluate") if kind == "policy" else None
                before = self.trainings.get(name)
                kept[name] = before if before and before.folder == folder else Training(name, folder, evaluation)
        self.trainings = kept
        evaluations = [folder for name, folder in folders.items() if name.startswith("evaluate")]
        done = [folder for folder in evaluations if (folder / "manifest.json").is_file()]
        self._evaluation = (done or [None])[-1]

    @property
    def evaluation(self) -> dict[str, Any]:
        """The numbers of the newest evaluation that is done; empty before."""
        return _object(self._evaluation / "manifest.json").get("result") or {} if self._evaluation else {}

    def current(self) -> str:
        """The stage to look at first: the last that has told anything, or else the first."""
        begun = [name for name, training in self.trainings.items() if (training.folder / "metrics.jsonl").is_file()]
        return begun[-1] if begun else next(iter(self.trainings), "")

    def state(self, name: str) -> str:
        """done, running, stopped, or not begun."""
        training = self.trainings[name]
        if training.done:
            return "done"
        if not training.folder.is_dir():
            return "not begun"
        path = training.folder / "metrics.jsonl"
        held = at_work(self.run)
        running = held if held is not None else time() - _modified(path) < FRESH
        later = list(self.trainings)[list(self.trainings).index(name) + 1 :]
        return (
            "running"
            if running and not any(self.trainings[other].metrics.train.count for other in later)
            else "stopped"
        )

    def headline(self, name: str) -> list[Number]:
        """The numbers at the top of a stage."""
        training = self.trainings[name]
        return headline(training.metrics, training.facts(self.settings), training.steps, self.state(name))


def at_work(run: Path) -> bool | None:
    """Whether a process holds the run's lock; None where locks cannot be seen. To try the lock would be in the way
    of a run that begins."""
    try:
        inode = (run / ".lock").stat().st_ino
        held = Path("/proc/locks").read_text()
    except OSError:
        return None
    return any(
        line.split()[1:2] == ["FLOCK"] and line.split()[5].endswith(f":{inode}")
        for line in held.splitlines()
        if len(line.split()) > 5
    )


def _newest(run: Path) -> dict[str, str]:
    """The newest folder of every stage, where no list says which belongs to the recipe."""
    found = {}
    for stage in sorted((run / "stages").glob("*/")):
        folders = [folder for folder in stage.iterdir() if folder.is_dir()]
        if folders:
            found[stage.name] = max(folders, key=_modified).name
    order = {kind: place for place, kind in enumerate((*TRAINED, "evaluate"))}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0].partition("@")[0], 9)))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _object(path: Path) -> dict[str, Any]:
    found = _json(path)
    return found if isinstance(found, dict) else {}


def _findings(told: Any) -> list[dict[str, Any]]:
    return [_counted(row, "first_step") for row in told if isinstance(row, dict)] if isinstance(told, list) else []


def _counted(row: dict[str, Any], key: str) -> dict[str, Any]:
    """A row of a file whose step becomes the number of steps done."""
    return row | {key: row[key] + 1} if is_number(row.get(key)) else row


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def turned(row: Mapping[str, Any]) -> str:
    """What a remedy did, in a few words."""
    return (
        "training ended" if row.get("stop") else f"{row.get('knob')}: {_told(row.get('from'))} → {_told(row.get('to'))}"
    )


def _told(value: Any) -> str:
    return f"{value:.4g}" if is_number(value) else str(value)
