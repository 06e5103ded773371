"""Fingerprint of a stage: a hash of the settings that it uses, its data and its input stages. A stage is run again when
its fingerprint changes."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from towpath import algos
from towpath.algos import data_of
from towpath.data import corpus_reader, data_summary
from towpath.data.corpus import Corpus, digest
from towpath.data.data_summary import DataSummary
from towpath.evals.evaluator import find_evaluator
from towpath.feedback import simulated_rater
from towpath.models import content
from towpath.recipe import Recipe
from towpath.records import Finding, finding_of
from towpath.run.record import stage_kind
from towpath.store import manifest
from towpath.store.store import Store

FORMAT = 5
"""Version of what a stage leaves; stages of another version are run again."""
ALGORITHM_SECTIONS = ("ppo", "grpo", "rloo", "reinforce", "dpo", "ipo", "kto", "orpo")
SAMPLE_KEYS = ("prompts", "completions", "base_share", "max_new_tokens", "decodings")
EVALUATE_ONLY = ("jailbreaks", "jailbreak_prompts", "ask_judge", "disagreements")
"""Keys of [evaluate] that the baseline stage does not use."""
JUDGE_KEYS = ("model", "rubric", "samples", "temperature", "on_position_flip")


@dataclass(frozen=True)
class PlannedStage:
    """A stage of the recipe with its fingerprint and what the fingerprint is made of."""

    name: str
    config: dict[str, Any]
    inputs: tuple[str, ...]
    fingerprint: str
    folder: Path
    round: int = 1

    @property
    def kind(self) -> str:
        return stage_kind(self.name)

    @property
    def done(self) -> bool:
        return (self.folder / manifest.NAME).is_file()

    def result(self) -> dict[str, Any]:
        return manifest.read(self.folder)["result"]

    def findings(self) -> list[Finding]:
        return [finding_of(row) for row in manifest.read(self.folder)["findings"]]


def plan_stages(recipe: Recipe, run: Path, corpus: Corpus | DataSummary, store: Store | None) -> list[PlannedStage]:
    """All stages of a recipe in their order, with fingerprints."""
    import_from_run_folder(run)
    return _Planner(recipe, run, corpus, store).plan()


class _Planner:
    def __init__(self, recipe: Recipe, run: Path, corpus: Corpus | DataSummary, store: Store | None) -> None:
        self.recipe = recipe
        self.run = run
        self.corpus = corpus
        self.store = store
        self.values = recipe.model_dump(mode="json")
        self.engine = _engine_config(recipe)
        # Another rubric is another evaluation judge.
        self.judge = {"rubric": simulated_rater.GUIDELINE if find_evaluator(corpus) else None}
        self.stages: dict[str, PlannedStage] = {}

    def plan(self) -> list[PlannedStage]:
        digests = self.corpus.digests
        self._add(
            "sft", 1, {"model": self._model(), "sft": self.values["sft"], "demonstrations": digests.demonstrations}
        )
        evaluate = {key: value for key, value in self.values["evaluate"].items() if key not in EVALUATE_ONLY}
        self._add("baseline", 1, {"evaluate": evaluate, "prompts": digests.evaluated} | self.judge | self.engine, "sft")
        for number in range(1, self.recipe.rounds + 1):
            self._add_round(number)
        return list(self.stages.values())

    def _add_round(self, number: int) -> None:
        recipe = self.recipe
        needs_reward_model, needs_labels = _needs(recipe)
        previous_policy = [_stage_name("policy", number - 1)] if number > 1 else []
        samples = []
        if recipe.preferences.raters != "recorded":
            samples = [_stage_name("sample", earlier) for earlier in range(1, number + 1)]
        learns_from: list[str] = []
        if needs_labels:
            if samples:
                settings = {key: self.values["preferences"][key] for key in SAMPLE_KEYS}
                config = {"drawing": settings, "prompts": self.corpus.digests.train} | self.engine
                self._add("sample", number, config, "sft", *previous_policy)
            # routing asks the reward model of the previous round
            routed_by = []
            if number > 1 and needs_reward_model and recipe.preferences.raters == "blend":
                routed_by = ["sft", _stage_name("reward", number - 1)]
            self._add("label", number, self._label_config(samples), *samples, *routed_by)
            learns_from = [*samples, _stage_name("label", number)]
        reward = []
        if needs_reward_model:
            settings = {key: value for key, value in self.values["reward"].items() if key != "use"}
            self._add("reward", number, {"reward": settings}, "sft", *learns_from)
            reward = [_stage_name("reward", number)]
        if data_of(recipe.policy.algo) == "rollouts":
            learns_from = reward or learns_from
        else:
            learns_from = [*samples, _stage_name("label", number), *reward]
        self._add("policy", number, self._policy_config(), "sft", *learns_from, *previous_policy)
        config = {"evaluate": self.values["evaluate"]} | self.judge | self.engine
        self._add("evaluate", number, config, "sft", "baseline", *reward, _stage_name("policy", number))

    def _add(self, kind: str, number: int, config: dict[str, Any], *inputs: str) -> None:
        name = _stage_name(kind, number)
        hashed = {
            "format": FORMAT,
            "stage": name,
            "seed": self.recipe.seed,
            "config": config,
            "inputs": {stage: self.stages[stage].fingerprint for stage in inputs},
        }
        fingerprint = digest(hashed)[:12]
        folder = self.run / "stages" / name / fingerprint
        self.stages[name] = PlannedStage(name, config, inputs, fingerprint, folder, number)

    def _model(self) -> dict[str, Any]:
        model = self.recipe.model
        return {
            "source": model.source,
            "dtype": model.dtype,
            "template": content.template(model.template),
            "content": content.known(model.source, self.run),
        }

    def _policy_config(self) -> dict[str, Any]:
        """The settings that the weights depend on: no sections of other algorithms, nothing that is only logged."""
        recipe = self.recipe
        unused = _unused_sections(recipe.policy.algo)
        policy = {key: value for key, value in self.values["policy"].items() if key not in unused}
        policy["rewards"] = {key: value for key, value in policy["rewards"].items() if key != "watch"}
        config = {"policy": policy, "prompts": self.corpus.digests.train} | _user_code(recipe) | self.engine
        if recipe.health.act == "auto":
            config["health"] = self.values["health"]
        if self.engine:
            config["correction"] = recipe.engine.correction
        if data_of(recipe.policy.algo) == "comparisons":
            config["validation"] = recipe.reward.validation
        return config

    def _label_config(self, samples: Sequence[str]) -> dict[str, Any]:
        """How labels are made, and the judgements on this recipe's comparisons."""
        cfg = self.recipe.preferences
        config: dict[str, Any] = {"raters": cfg.raters, "aggregate": cfg.aggregate, "overlap": cfg.overlap}
        if cfg.raters == "simulated":
            noise = {"noise": cfg.noise, "tie_margin": cfg.tie_margin, "both_bad": cfg.both_bad}
            return config | noise | {"rubric": simulated_rater.GUIDELINE}
        if cfg.raters == "recorded":
            return config | self._recorded_config()
        own = tuple(self.stages[name].fingerprint[:6] for name in samples)
        judgements = self.store.judgements() if self.store else []
        choices = sorted(j.key + j.choice for j in judgements if j.comparison.startswith(own))
        config |= {"judgements": digest(choices), "rules": cfg.rules}
        if cfg.raters == "blend":
            config |= {"audit_share": cfg.audit_share, "human_share": cfg.human_share}
        if cfg.raters in ("judge", "blend"):
            config["judge"] = {key: getattr(self.recipe.judge, key) for key in JUDGE_KEYS}
        return config

    def _recorded_config(self) -> dict[str, Any]:
        recipe = self.recipe
        files = corpus_reader.match_files(self.run, "data.preferences", recipe.data.preferences)
        return {
            "files": data_summary.file_hashes(self.run, files, trust=isinstance(self.corpus, DataSummary)),
            "prompts": self.corpus.digests.preferences,
            # Rows are truncated by the model's tokens.
            "prompt_tokens": recipe.data.max_prompt_tokens,
            "answer_tokens": recipe.preferences.max_new_tokens,
            "template": content.template(recipe.model.template),
            "model": content.known(recipe.model.source, self.run),
        }


def _stage_name(kind: str, number: int) -> str:
    return kind if number == 1 else f"{kind}@{number}"


def _unused_sections(algo: str) -> set[str]:
    """Sections of [policy] for other algorithms; an algorithm of the user's own may read any."""
    return set() if "." in algo else {name for name in ALGORITHM_SECTIONS if name != algo}


def _engine_config(recipe: Recipe) -> dict[str, Any]:
    """What completions depend on of an engine other than the local one; of the user's own engine its code too."""
    engine = recipe.engine
    if engine.type == "local":
        return {}
    config: dict[str, Any] = {"engine": engine.type}
    if "." in engine.type:
        config |= {"engine_settings": engine.settings, "engine_code": _code_hashes([engine.type])}
    return config


def _user_code(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Hashes of the user's modules that the policy stage uses."""
    rewards = [
        source.source.split(":")[1] for source in recipe.policy.rewards.sources if source.source.startswith("python:")
    ]
    modules = [*rewards, *([recipe.policy.algo] if "." in recipe.policy.algo else [])]
    hashes = _code_hashes(modules)
    return {"code": hashes} if hashes else {}


def _code_hashes(modules: Sequence[str]) -> dict[str, str]:
    """Hashes of the files of modules, which are not run."""
    files = {name: algos.source_of(name) for name in modules}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for name, path in files.items() if path}


def import_from_run_folder(run: Path) -> None:
    """Let modules of the user be imported from the run folder and the working directory."""
    for folder in (str(run.resolve()), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.append(folder)


def _needs(recipe: Recipe) -> tuple[bool, bool]:
    """Whether this recipe needs a reward model, and whether it needs labels."""
    on_pairs = data_of(recipe.policy.algo) == "comparisons"
    rewards_by_model = not on_pairs and any(source.source == "model" for source in recipe.policy.rewards.sources)
    reward_model = recipe.reward.use == "always" or rewards_by_model
    return reward_model, reward_model or on_pairs
