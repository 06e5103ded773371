"""Stages from the recipe, in order, gates between, resumable; each stage is named by what went into it."""

import hashlib
import importlib
import json
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from towpath import algos, interrupt
from towpath.algos import data_of
from towpath.data import corpus_reader, data_summary
from towpath.data.corpus import Corpus, digest
from towpath.data.data_summary import DataSummary
from towpath.data.refused_rows import FILE
from towpath.errors import GateClosed, RecipeError, TowpathError, Waiting
from towpath.evals.evaluator import NO_JUDGE_CODE, find_evaluator
from towpath.feedback import simulated_rater
from towpath.models import content
from towpath.progress import print_note, progress
from towpath.recipe import Recipe
from towpath.records import Finding, Verdict, finding_of
from towpath.run import gates, results
from towpath.run.loading import load_corpus, summarise
from towpath.store import location as place
from towpath.store import manifest
from towpath.store.publish import fault_point, lock_folder, remove_temporary, replace_file
from towpath.store.store import Store

FORMAT = 4
"""Raised where stages of an earlier version must not be taken for done: 4, since manifests hold the checksums of a
stage's results."""
GATE_AFTER = {"baseline": ("sft",), "reward": ("reward",), "policy": ("policy",), "evaluate": ("evaluate", "safety")}
Say = Callable[[str], None]
Reporter = Callable[[Path, list[Verdict], str], Any]
"""Writes the report of a run: (folder, verdicts, name)."""


@dataclass(frozen=True)
class Planned:
    """A stage of this recipe: its place, and what its fingerprint is made of."""

    name: str
    config: dict[str, Any]
    inputs: tuple[str, ...]
    fingerprint: str
    folder: Path
    round: int = 1

    @property
    def manifest(self) -> Path:
        return self.folder / manifest.NAME

    @property
    def done(self) -> bool:
        return self.manifest.is_file()

    def result(self) -> dict[str, Any]:
        return manifest.read(self.folder)["result"]

    def findings(self) -> list[Finding]:
        return [finding_of(row) for row in manifest.read(self.folder)["findings"]]


@dataclass
class State:
    """What `status` tells."""

    stages: list[dict[str, Any]]
    waiting_for: str = ""
    findings: list[dict[str, Any]] = field(default_factory=list)
    evaluation_judge: str | None = None
    """Who judges the win rates of the gates `sft` and `evaluate`; None where no judge fits the data."""


def plan(recipe: Recipe, run: Path, corpus: Corpus | DataSummary, store: Store | None) -> list[Planned]:
    """Every stage with its fingerprint: a hash of its configuration, its data, and its inputs' fingerprints."""
    planned: dict[str, Planned] = {}
    _see_own_code(run)

    def stage(name: str, round_: int, config: dict[str, Any], *inputs: str) -> None:
        full = name if round_ == 1 else f"{name}@{round_}"
        made_of = {
            "format": FORMAT,
            "stage": full,
            "seed": recipe.seed,
            "config": config,
            "inputs": {i: planned[i].fingerprint for i in inputs},
        }
        fingerprint = digest(made_of)[:12]
        planned[full] = Planned(full, config, inputs, fingerprint, run / "stages" / full / fingerprint, round_)

    model = {
        "source": recipe.model.source,
        "dtype": recipe.model.dtype,
        "template": content.template(recipe.model.template),
    }
    model["content"] = content.known(recipe.model.source, run)
    dump = recipe.model_dump(mode="json")
    drawing = {
        key: dump["preferences"][key] for key in ("prompts", "completions", "base_share", "max_new_tokens", "decodings")
    }
    dump["reward"].pop("use")
    needs_reward, needs_labels = _needs(recipe)
    stage("sft", 1, {"model": model, "sft": dump["sft"], "demonstrations": corpus.digests.demonstrations})
    engine = {} if recipe.engine.type == "local" else {"engine": recipe.engine.type}
    judge = {
        "rubric": simulated_rater.GUIDELINE if find_evaluator(corpus) else None
    }  # a changed rubric is a changed judge
    later = ("jailbreaks", "jailbreak_prompts", "ask_judge", "disagreements")  # read by `evaluate` alone
    answering = {key: value for key, value in dump["evaluate"].items() if key not in later}
    stage("baseline", 1, {"evaluate": answering, "prompts": corpus.digests.evaluated} | judge | engine, "sft")
    for n in range(1, recipe.rounds + 1):
        at = "" if n == 1 else f"@{n}"
        before = "" if n == 2 else f"@{n - 1}"
        samples = (
            ["sample" if k == 1 else f"sample@{k}" for k in range(1, n + 1)]
            if recipe.preferences.raters != "recorded"
            else []
        )
        again = [f"policy{before}"] if n > 1 else []
        learned = []
        if needs_labels:
            if samples:
                stage("sample", n, {"drawing": drawing, "prompts": corpus.digests.train} | engine, "sft", *again)
            stage("label", n, _labelling(recipe, run, corpus, planned, samples, store), *samples)
            learned = [*samples, f"label{at}"]
        if needs_reward:
            stage("reward", n, {"reward": dump["reward"]}, "sft", *learned)
            learned = [f"reward{at}"]
        said = {"policy": _what_decides(dump["policy"]), "prompts": corpus.digests.train} | _own_code(recipe)
        said |= {"health": dump["health"]} if recipe.health.act == "auto" else {}  # else it looks on
        said |= engine and engine | {"correction": recipe.engine.correction}
        if data_of(recipe.policy.algo) == "comparisons":
            learned = [*dict.fromkeys([*samples, f"label{at}", *learned])]
            said["validation"] = recipe.reward.validation
        stage("policy", n, said, "sft", *learned, *again)
        judged = [f"reward{at}"] if needs_reward else []
        stage("evaluate", n, {"evaluate": dump["evaluate"]} | judge | engine, "sft", "baseline", *judged, f"policy{at}")
    return list(planned.values())


def _what_decides(policy: dict[str, Any]) -> dict[str, Any]:
    """The policy's values without those that only look on: the same weights come of any of them."""
    rewards = {key: value for key, value in policy["rewards"].items() if key != "watch"}
    return policy | {"rewards": rewards}


def _own_code(recipe: Recipe) -> dict[str, dict[str, str]]:
    """The content of modules of the user's own that a recipe names: changed code is a changed value."""
    rewards = [
        source.source.split(":")[1] for source in recipe.policy.rewards.sources if source.source.startswith("python:")
    ]
    modules = [*rewards, *([recipe.policy.algo] if "." in recipe.policy.algo else [])]
    found = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for name in modules if (path := algos.source_of(name))
    }
    return {"code": found} if found else {}


def _see_own_code(run: Path) -> None:
    """Modules of the user's own lie in the run folder, or where the command was typed."""
    sys.path += [place for place in (str(run.resolve()), str(Path.cwd())) if place not in sys.path]


def _needs(recipe: Recipe) -> tuple[bool, bool]:
    """Whether this recipe needs a reward model, and whether it needs labels."""
    on_pairs = data_of(recipe.policy.algo) == "comparisons"
    reward = recipe.reward.use == "always" or (
        not on_pairs and any(source.source == "model" for source in recipe.policy.rewards.sources)
    )
    return reward, reward or on_pairs


def _labelling(
    recipe: Recipe,
    run: Path,
    corpus: Corpus | DataSummary,
    planned: dict[str, Planned],
    samples: Sequence[str],
    store: Store | None,
) -> dict[str, Any]:
    """What labels depend on: how they are made, and what has been said so far of this recipe's comparisons."""
    cfg = recipe.preferences
    raters = recipe.preferences.raters
    said: dict[str, Any] = {"raters": raters, "aggregate": cfg.aggregate, "overlap": cfg.overlap}
    if raters == "simulated":
        return (
            said
            | {key: getattr(cfg, key) for key in ("noise", "tie_margin", "both_bad")}
            | {"rubric": simulated_rater.GUIDELINE}
        )
    if raters == "recorded":
        cut = {
            "prompt_tokens": recipe.data.max_prompt_tokens,
            "answer_tokens": cfg.max_new_tokens,
            "template": content.template(recipe.model.template),
        }
        cut["model"] = content.known(recipe.model.source, run)  # rows are cut by its tokens
        files = corpus_reader.match_files(run, "data.preferences", recipe.data.preferences)
        hashes = data_summary.file_hashes(run, files, trust=isinstance(corpus, DataSummary))
        return said | {"files": hashes, "prompts": corpus.digests.preferences} | cut
    ours = tuple(planned[name].fingerprint[:6] for name in samples)
    told = sorted(j.key + j.choice for j in store.judgements() if j.comparison.startswith(ours)) if store else []
    said |= {"judgements": digest(told), "rules": cfg.rules}
    if raters == "blend":
        said |= {"audit_share": cfg.audit_share, "human_share": cfg.human_share}
    if raters in ("judge", "blend"):
        said["judge"] = {
            key: getattr(recipe.judge, key) for key in ("model", "rubric", "samples", "temperature", "on_position_flip")
        }
    return said


def run(
    recipe: Recipe,
    folder: Path,
    say: Say,
    only: str = "",
    force: bool = False,
    redo: Sequence[str] = (),
    write_report: Reporter | None = None,
) -> list[Verdict]:
    """Every stage to the end (or only one of them); stops at a closed gate, waits where people must act. Stages in
    `redo` are run again."""
    with (
        interrupt.handle_signals(),
        lock_folder(folder),
        Store.open(place.ledger_location(folder, recipe.store.url)) as store,
    ):
        corpus = load_corpus(recipe, folder)
        (folder / "stages").mkdir(exist_ok=True)
        content.fetch(recipe.model.source, folder)
        planned = plan(recipe, folder, corpus, store)
        for name in (only, *redo):
            _require_stage(name, planned)
        results.move_aside(
            folder, [(p.name, p.folder) for p in planned if {p.name, p.name.split("@")[0]} & set(redo)], say
        )
        findings = _preflight(recipe, folder, corpus, force, say)
        _explain_reruns(folder, planned, say)
        _remember(folder, planned, findings)
        from towpath.runtime.local import prepare_process

        prepare_process()
        try:
            for number, name in enumerate([step.name for step in planned]):
                if only and name.split("@")[0] != only:
                    continue
                fresh = _run_stage(recipe, folder, planned, planned[number], store, corpus, say, findings)
                # what was judged in it is part of its fingerprint, and of all that follow
                if fresh and name.startswith("label"):
                    planned = _replanned(recipe, folder, corpus, store, planned[number])
                findings += planned[number].findings()
                _remember(folder, planned, findings)
                judged = _judge(recipe, planned[: number + 1], planned[number], force, say, write_report)
                if write_report:
                    write_report(folder, judged, recipe.name)
        except Waiting as waiting:
            _remember(folder, planned, findings, str(waiting.value))
            raise
        except TowpathError:
            _remember(folder, planned, findings)
            raise
        return gates.verdicts(recipe, _results(planned))


def _replanned(recipe: Recipe, folder: Path, corpus: Corpus, store: Store, label: Planned) -> list[Planned]:
    """The plan with the judgements that the label stage has collected; the stage's folder moves to its new
    fingerprint."""
    planned = plan(recipe, folder, corpus, store)
    after = next(step for step in planned if step.name == label.name)
    if after.fingerprint != label.fingerprint and not after.done:
        manifest.update(label.folder, fingerprint=after.fingerprint, config=after.config)
        shutil.rmtree(after.folder, ignore_errors=True)
        label.folder.rename(after.folder)
    return planned


def _run_stage(
    recipe: Recipe,
    folder: Path,
    planned: list[Planned],
    step: Planned,
    store: Store,
    corpus: Corpus,
    say: Say,
    findings: list[Finding],
) -> bool:
    """Run a stage that is not done; what it found is kept where it fails, too."""
    places = {p.name: p for p in planned}
    missing = [name for name in step.inputs if not places[name].done]
    if missing:
        raise RecipeError(
            f"{step.name}: {', '.join(missing)} not done",
            "a stage needs what comes before it",
            f"`towpath run {folder}`",
        )
    if step.done and step.name.startswith("label"):
        results.restore_labels(step.folder, store, say)
    inputs = {name: places[name].folder for name in step.inputs}
    results.verify(step.name, step.folder, inputs, say)
    if step.done:
        say(f"{step.name}: done before ({step.fingerprint})")
        return False
    from towpath.runtime.local import give_back_memory
    from towpath.stages.job import Job

    module = importlib.import_module(f"towpath.stages.{step.name.split('@')[0]}")
    step.folder.mkdir(parents=True, exist_ok=True)
    job = Job(recipe, folder, step.name, step.folder, inputs, store, corpus, step.round)
    say(f"{step.name}: {'goes on' if (step.folder / 'checkpoints').exists() else 'begins'} ({step.fingerprint})")
    remove_temporary(step.folder)
    begun = time.monotonic()
    before = _spent(step.folder)
    try:
        with progress(step.name):
            result = module.run(job)
        fault_point(f"end-{step.name}")
    except TowpathError:
        _say_findings(job.findings, say)
        findings += job.findings
        raise
    finally:
        (step.folder / "seconds").write_text(f"{before + time.monotonic() - begun:.1f}")
    give_back_memory()
    _finish(step, recipe, result, job.findings, before + time.monotonic() - begun, planned, job.corpus)
    _say_findings(job.findings, say)
    say(f"{step.name}: done in {before + time.monotonic() - begun:.0f} s")
    return True


def _spent(folder: Path) -> float:
    """Seconds that interrupted attempts of a stage have taken."""
    try:
        return float((folder / "seconds").read_text() or 0)
    except FileNotFoundError:
        return 0.0
    except (OSError, ValueError):
        print_note(f"{folder / 'seconds'}: damaged; the time of earlier attempts is not counted")
        return 0.0


def _finish(
    step: Planned,
    recipe: Recipe,
    result: dict[str, Any],
    findings: list[Finding],
    seconds: float,
    planned: list[Planned],
    corpus: Corpus,
) -> None:
    fingerprints = {p.name: p.fingerprint for p in planned}
    packages = ("torch", "transformers", "numpy", "towpath")
    told = {
        "stage": step.name,
        "fingerprint": step.fingerprint,
        "status": "done",
        "config": step.config,
        "seed": recipe.seed,
        "inputs": {name: fingerprints[name] for name in step.inputs},
        "results": {p.name: manifest.results_digest(p.folder) for p in planned if p.name in step.inputs},
        "recipe": recipe.model_dump(mode="json"),
        "versions": {name: _version(name) for name in packages}
        | {"python": platform.python_version(), "machine": platform.machine()},
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        "findings": [asdict(f) for f in findings],
        "data": corpus.counts | {"skipped_rows_file": FILE if corpus.refused else ""},
        "result": result,
    }
    manifest.write(step.folder, told)


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "not installed"


def _judge(
    recipe: Recipe, planned: list[Planned], step: Planned, force: bool, say: Say, write_report: Reporter | None
) -> list[Verdict]:
    """Judge the gates behind a stage; a FAIL of a gate that stops closes the run."""
    found = gates.verdicts(recipe, _results(planned))
    after = GATE_AFTER.get(step.name.split("@")[0], ())
    for verdict in (v for v in found if v.gate in after):
        say(_gate_line(verdict))
        if verdict.verdict == "FAIL" and verdict.action == "stop" and not force:
            if write_report:
                write_report(step.folder.parents[2], found, recipe.name)
            fix = f"see `towpath report`; improve the stage, or set gates.{verdict.gate}.action = 'warn'"
            raise GateClosed(
                f"gate {verdict.gate} is closed: {verdict.value or 0.0:.3f}",
                f"more than {verdict.threshold} is needed",
                fix,
            )
    return found


def _gate_line(verdict: Verdict) -> str:
    """A verdict with its value and interval, or with the reason why there are none."""
    if verdict.value is None or verdict.interval is None:
        return f"gate {verdict.gate}: {verdict.verdict}  {verdict.note}"
    low, high = verdict.interval
    measured = f"{verdict.value:.3f} [{low:.3f}, {high:.3f}]"
    decision = f"gate {verdict.gate}: {verdict.verdict}  {measured}  threshold {verdict.threshold}  n {verdict.n}"
    return f"{decision}  {verdict.note}".rstrip()


def _results(planned: list[Planned]) -> dict[str, dict[str, Any]]:
    return {p.name: p.result() for p in planned if p.done}


def _require_stage(only: str, planned: list[Planned]) -> None:
    names = list(dict.fromkeys(p.name.split("@")[0] for p in planned))
    if only and only not in names:
        raise RecipeError(f"{only!r}: no such stage", "one of " + ", ".join(names), "mend the name")


def _preflight(recipe: Recipe, folder: Path, corpus: Corpus, force: bool, say: Say) -> list[Finding]:
    from towpath.run import preflight

    findings = examine(recipe, folder, corpus, force)
    _say_findings(findings, say)
    preflight.require(findings, force)
    return findings


def _say_findings(findings: list[Finding], say: Say) -> None:
    from towpath.run import preflight

    shown = [f for f in findings if f.severity != "info"]
    if shown:
        say(preflight.lines(shown))


def examine(recipe: Recipe, folder: Path, corpus: Corpus, force: bool = False) -> list[Finding]:
    """The preflight of a run, with the model's own tokenizer."""
    place.configured_location(folder, recipe.store.url)  # refuses a password before anything is written
    _see_own_code(folder)
    from towpath.data.chat import Chat
    from towpath.models import base
    from towpath.run import preflight

    model = base.find(recipe.model.source, folder)
    chat = Chat(base.load_tokenizer(model), recipe.model.template)
    return preflight.check(recipe, folder, corpus, chat, force=force)


def _explain_reruns(folder: Path, planned: list[Planned], say: Say) -> None:
    """Which finished stages will run again, and which of their values changed."""
    before = _stages(folder)
    for step in planned:
        old = folder / "stages" / step.name / before.get(step.name, "none")
        if step.done or not (old / manifest.NAME).is_file():
            continue
        told = manifest.read_object(old / manifest.NAME)
        if not told or not {"config", "inputs"} <= set(told):
            say(f"{step.name} will run again: {old / manifest.NAME} is damaged")
            continue
        changed = _changes(told["config"], step.config)
        reason = "; ".join(changed) or "what comes before it changed: " + ", ".join(
            p.name for p in planned if p.name in step.inputs and told["inputs"].get(p.name) != p.fingerprint
        )
        say(f"{step.name} will run again: {reason}")


def _changes(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for name in sorted({*old, *new})
            for line in _changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if old == new else [f"{key} {old} → {new}"]


def _current(folder: Path) -> dict[str, Any]:
    found = manifest.read_object(folder / "current.json")
    if found is None:
        print_note(f"{folder / 'current.json'}: damaged; it is written again from the recipe and the stages")
    return found or {}


def _stages(folder: Path) -> dict[str, str]:
    """The stages of the last run with their fingerprints."""
    found = _current(folder).get("stages")
    return {name: str(fingerprint) for name, fingerprint in found.items()} if isinstance(found, dict) else {}


def samples(folder: Path) -> set[str]:
    """The marks that comparisons of the run as it stands begin with."""
    stages = _stages(folder)
    return {fingerprint[:6] for name, fingerprint in stages.items() if name.startswith("sample")}


def _remember(folder: Path, planned: list[Planned], findings: list[Finding], waiting_for: str = "") -> None:
    content = {
        "stages": {p.name: p.fingerprint for p in planned},
        "waiting_for": waiting_for,
        "findings": [asdict(f) for f in findings],
    }
    replace_file(folder / "current.json", json.dumps(content, indent=1))


def busy(folder: Path) -> bool:
    """Whether a process works on this run now."""
    if not (folder / ".lock").is_file():
        return False
    try:
        with lock_folder(folder):
            return False
    except TowpathError:
        return True


def status(recipe: Recipe, folder: Path) -> State:
    """Stages, gates, findings, and what the run waits for."""
    with Store.open(place.ledger_location(folder, recipe.store.url)) as store:
        data = summarise(recipe, folder)
        planned = plan(recipe, folder, data, store)
    judged = {v.gate: v for v in gates.verdicts(recipe, _results(planned))}
    current = _current(folder)
    running = busy(folder)
    stages = []
    blocked = False
    for step in planned:
        base_name = step.name.split("@")[0]
        told = [asdict(judged[gate]) for gate in GATE_AFTER.get(base_name, ()) if step.done and gate in judged]
        state = "done" if step.done else "to do"
        if state == "to do" and not blocked:
            blocked = True
            state = (
                "running"
                if running
                else "waiting"
                if base_name == "label" and current.get("waiting_for")
                else "interrupted"
                if step.folder.exists()
                else "to do"
            )
        stages.append(
            {
                "name": step.name,
                "state": state,
                "fingerprint": step.fingerprint,
                "gate": told[0] if told else None,
                "gates": told,
            }
        )
    waiting = current.get("waiting_for", "") if any(s["state"] == "waiting" for s in stages) else ""
    return State(stages, waiting, current.get("findings", []), find_evaluator(data))


def status_lines(state: State) -> list[str]:
    """The status for a terminal: what must be known first, a line a stage, what it waits for, and findings."""
    lines = (
        []
        if state.evaluation_judge
        else ["No evaluation judge fits this data: the gates sft and evaluate are UNDECIDED."]
    )
    for row in state.stages:
        verdicts = "; ".join(_gate_brief(gate) for gate in row["gates"])
        lines.append(f"{row['name']:<12} {row['state']:<12} {verdicts}".rstrip())
    lines += [f"waits for: {state.waiting_for}"] if state.waiting_for else []
    findings = [finding for finding in state.findings if finding["code"] != NO_JUDGE_CODE]  # the first line says it
    return lines + [f"{finding['severity']}: {finding['code']}: {finding['evidence']}" for finding in findings]


def _gate_brief(gate: dict[str, Any]) -> str:
    """A gate's verdict in a few words."""
    measured = (
        f"{gate['value']:.3f} (threshold {gate['threshold']})" if gate["value"] is not None else f"({gate['note']})"
    )
    return f"gate {gate['gate']}: {gate['verdict']} {measured}"


def judged(recipe: Recipe, folder: Path) -> list[Verdict]:
    """The verdicts on what has been run of this recipe."""
    with Store.open(place.ledger_location(folder, recipe.store.url)) as store:
        return gates.verdicts(recipe, _results(plan(recipe, folder, summarise(recipe, folder), store)))
