"""Fingerprint of a stage: a hash of the settings that it uses, its data and its input stages. A stage is run again when
its fingerprint changes."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from towpath import algos
from towpath.algos import data_of
from towpath.data import corpus_reader, data_summary
from towpath.data.corpus import Corpus, digest
from towpath.data.data_summary import DataSummary
from towpath.data.file_cache import cache_file, read_cache, write_cache
from towpath.data.user_code import find_file
from towpath.feedback import simulated_rater
from towpath.judges.selection import reserved_share, select_judges
from towpath.models import content
from towpath.recipe import EngineConfig, Judge, Policy, Recipe
from towpath.recipe.stage_configs import (
    BaselineConfig,
    EvaluateConfig,
    LabelConfig,
    PairsConfig,
    PolicyConfig,
    RewardConfig,
    SampleConfig,
    SftConfig,
)
from towpath.records import Finding, finding_of
from towpath.rewards import sources
from towpath.rewards.command import program_words
from towpath.run.record import stage_kind
from towpath.store import manifest
from towpath.store.judgement_reads import ChoicesDigest, choices_digest
from towpath.store.store import Store

FORMAT = 6
"""Version of what a stage leaves; stages of another version are run again."""
ALGORITHM_SECTIONS = ("ppo", "grpo", "rloo", "reinforce", "dpo", "ipo", "kto", "orpo")
SAMPLE_KEYS = {"prompts", "completions", "base_share", "max_new_tokens", "decodings"}
JUDGED_BY = {"judges", "judge", "max_unjudged", "reserved_labels"}
"""Keys of [evaluate] that count by what they name, or in gates alone."""
EVALUATE_ONLY = {
    "accuracy",
    "jailbreaks",
    "jailbreak_prompts",
    "ask_judge",
    "disagreements",
    "tasks",
    "task_limit",
    "task_folder",
}
"""Keys of [evaluate] that the baseline stage does not use."""
TASK_SUFFIXES = (".yaml", ".yml", ".py")
MAX_DIGESTS = 8
"""Digests of judgements that are cached, one for each set of sample stages."""
JUDGE_KEYS = {"model", "rubric", "samples", "temperature", "on_position_flip"}


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
    """Plans the stages of one recipe. What a fingerprint is made of comes from the stage's own configuration."""

    def __init__(self, recipe: Recipe, run: Path, corpus: Corpus | DataSummary, store: Store | None) -> None:
        self.recipe = recipe
        self.run = run
        self.corpus = corpus
        self.store = store
        self.stages: dict[str, PlannedStage] = {}

    def plan(self) -> list[PlannedStage]:
        recipe = self.recipe
        self._add("sft", 1, self._sft_settings(SftConfig.from_recipe(recipe)))
        judge_model = self._add_judge_model()
        self._add("baseline", 1, self._baseline_settings(BaselineConfig.from_recipe(recipe)), "sft", *judge_model)
        for number in range(1, recipe.rounds + 1):
            self._add_round(number, judge_model)
        return list(self.stages.values())

    def _add_judge_model(self) -> list[str]:
        """Add the held-out reward model that judges, if the recipe has one, and the labels of the first round."""
        if not reserved_share(self.recipe.evaluate, self.recipe.preferences.raters):
            return []
        labels = self._add_labels(1, [], False)
        self._add("judge_model", 1, self._judge_model_settings(RewardConfig.from_recipe(self.recipe)), "sft", *labels)
        return ["judge_model"]

    def _add_round(self, number: int, judge_model: Sequence[str]) -> None:
        recipe = self.recipe
        needs_reward_model, needs_labels = _needs(recipe)
        previous_policy = [_stage_name("policy", number - 1)] if number > 1 else []
        labels = self._add_labels(number, previous_policy, needs_reward_model) if needs_labels else []
        reward = []
        if needs_reward_model:
            # answers of the tuned model, which normalise a pretrained reward model
            baseline = [] if labels else ["baseline"]
            settings = self._reward_settings(RewardConfig.from_recipe(recipe))
            self._add("reward", number, settings, "sft", *baseline, *labels)
            reward = [_stage_name("reward", number)]
        learns_from = reward or labels
        if data_of(recipe.policy.algo) != "rollouts":
            learns_from = [*labels, *reward]
        settings = self._policy_settings(PolicyConfig.from_recipe(recipe))
        self._add("policy", number, settings, "sft", *learns_from, *previous_policy)
        settings = self._evaluate_settings(EvaluateConfig.from_recipe(recipe))
        inputs = ["sft", "baseline", *judge_model, *reward, _stage_name("policy", number)]
        self._add("evaluate", number, settings, *inputs)

    def _add_labels(self, number: int, previous_policy: Sequence[str], needs_reward_model: bool) -> list[str]:
        """Add the sample and label stages of a round, unless they are there; the names of all that its labels come
        from."""
        recipe = self.recipe
        samples = []
        if recipe.preferences.raters != "recorded":
            samples = [_stage_name("sample", earlier) for earlier in range(1, number + 1)]
            settings = self._sample_settings(SampleConfig.from_recipe(recipe))
            if samples[-1] not in self.stages:
                self._add("sample", number, settings, "sft", *previous_policy)
        # routing asks the reward model of the previous round
        routed_by = []
        if number > 1 and needs_reward_model and recipe.preferences.raters == "blend":
            routed_by = ["sft", _stage_name("reward", number - 1)]
        if _stage_name("label", number) not in self.stages:
            settings = self._label_settings(LabelConfig.from_recipe(recipe), samples)
            self._add("label", number, settings, *samples, *routed_by)
        return [*samples, _stage_name("label", number)]

    def _add(self, kind: str, number: int, settings: dict[str, Any], *inputs: str) -> None:
        name = _stage_name(kind, number)
        hashed = {
            "format": FORMAT,
            "stage": name,
            "seed": self.recipe.seed,
            "config": settings,
            "inputs": {stage: self.stages[stage].fingerprint for stage in inputs},
        }
        fingerprint = digest(hashed)[:12]
        folder = self.run / "stages" / name / fingerprint
        self.stages[name] = PlannedStage(name, settings, inputs, fingerprint, folder, number)

    def _sft_settings(self, cfg: SftConfig) -> dict[str, Any]:
        model = {
            "source": cfg.model.source,
            "dtype": cfg.model.dtype,
            "template": content.template(cfg.model.template),
            "content": content.known(cfg.model.source, self.run),
        }
        if cfg.sft.method == "none":
            return {"model": model, "sft": {"method": "none"}}
        demonstrations = self.corpus.digests.demonstrations
        return {
            "model": model,
            "sft": cfg.sft.model_dump(mode="json", exclude={"compare_with"}),
            "demonstrations": demonstrations,
        }

    def _baseline_settings(self, cfg: BaselineConfig) -> dict[str, Any]:
        evaluate = cfg.evaluate.model_dump(mode="json", exclude=EVALUATE_ONLY | JUDGED_BY)
        settings = {"evaluate": evaluate, "prompts": self.corpus.digests.evaluated}
        if cfg.sft.method == "none" and cfg.sft.compare_with:
            settings["compare_with"] = content.known(cfg.sft.compare_with, self.run)
        return settings | self._judge_settings(cfg) | _engine_settings(cfg.engine)

    def _judge_settings(self, cfg: BaselineConfig) -> dict[str, Any]:
        """What the verdicts of each evaluation judge depend on."""
        specs = select_judges(cfg.evaluate, cfg.preferences.raters, self.corpus)
        return {"judges": {spec: self._judge_content(spec, cfg.evaluate.judge) for spec in specs}}

    def _judge_content(self, spec: str, judge: Judge) -> Any:
        if spec == "rubric":
            return simulated_rater.GUIDELINE
        if spec == "judge":
            return self._ai_judge(judge)
        if spec.startswith("model:"):
            return content.known(sources.model_of(spec), self.run)
        return _source_hashes(spec)

    def _ai_judge(self, judge: Judge) -> dict[str, Any]:
        """Keys of an AI judge, and the content of its rubric."""
        rubric = self.run / judge.rubric
        text = rubric.read_bytes() if judge.rubric and rubric.is_file() else b""
        return judge.model_dump(include=JUDGE_KEYS) | {"rubric_text": hashlib.sha256(text).hexdigest()[:12]}

    def _sample_settings(self, cfg: SampleConfig) -> dict[str, Any]:
        drawing = cfg.preferences.model_dump(mode="json", include=SAMPLE_KEYS)
        return {"drawing": drawing, "prompts": self.corpus.digests.train} | _engine_settings(cfg.engine)

    def _label_settings(self, cfg: LabelConfig, samples: Sequence[str]) -> dict[str, Any]:
        """How labels are made, and the judgements on this recipe's comparisons."""
        preferences = cfg.preferences
        settings: dict[str, Any] = preferences.model_dump(include={"raters", "aggregate", "overlap"})
        if preferences.raters == "simulated":
            noise = preferences.model_dump(include={"noise", "tie_margin", "both_bad"})
            return settings | noise | {"rubric": simulated_rater.GUIDELINE}
        if preferences.raters == "recorded":
            return settings | self._recorded_settings(cfg)
        own = tuple(self.stages[name].fingerprint[:6] for name in samples)
        settings |= {"judgements": self._choices(own), "rules": preferences.rules}
        if preferences.raters == "blend":
            settings |= preferences.model_dump(include={"audit_share", "human_share"})
        if preferences.raters in ("judge", "blend"):
            settings["judge"] = cfg.judge.model_dump(include=JUDGE_KEYS)
        return settings

    def _choices(self, prefixes: Sequence[str]) -> str:
        """The digest of all judgements on the comparisons of these stages; only new judgements are read."""
        if self.store is None:
            return ChoicesDigest().hex
        path = cache_file(self.run, "judgements")
        cached = read_cache(path)
        name = " ".join([str(self.store.folder), *prefixes])
        try:
            earlier = ChoicesDigest(**cached[name]) if name in cached else ChoicesDigest()
        except TypeError:
            earlier = ChoicesDigest()
        choices = self.store.read(choices_digest, prefixes, earlier)
        if choices != earlier:
            recent = list(cached.items())[-MAX_DIGESTS:]
            write_cache(path, dict(recent) | {name: asdict(choices)})
        return choices.hex

    def _recorded_settings(self, cfg: LabelConfig) -> dict[str, Any]:
        files = corpus_reader.match_files(self.run, "data.preferences", cfg.data.preferences)
        return {
            "files": data_summary.file_hashes(self.run, files, trust=isinstance(self.corpus, DataSummary)),
            "prompts": self.corpus.digests.preferences,
            # Rows are truncated by the model's tokens.
            "prompt_tokens": cfg.data.max_prompt_tokens,
            "answer_tokens": cfg.preferences.max_new_tokens,
            "template": content.template(cfg.model.template),
            "model": content.known(cfg.model.source, self.run),
        }

    def _policy_settings(self, cfg: PolicyConfig) -> dict[str, Any]:
        """The settings that the weights depend on: no sections of other algorithms, nothing that is only logged."""
        policy = cfg.policy.model_dump(mode="json", exclude=_unused_sections(cfg.policy.algo))
        del policy["rewards"]["watch"]
        del policy["rewards"]["command"]["parallel"]
        settings = {"policy": policy, "prompts": self.corpus.digests.train}
        settings |= _user_code(cfg.policy) | _engine_settings(cfg.engine)
        names = [s.source for s in cfg.policy.rewards.sources if s.source.startswith("model:")]
        if names:
            settings["reward_models"] = {name: content.known(sources.model_of(name), self.run) for name in names}
        if cfg.health.act == "auto":
            settings["health"] = cfg.health.model_dump(mode="json")
        if not cfg.policy.staleness:
            del policy["staleness"]  # runs of versions without it stay as they are
        if cfg.engine.type != "local" or cfg.policy.staleness:
            settings["correction"] = cfg.engine.correction
        if data_of(cfg.policy.algo) == "comparisons":
            settings |= {"validation": cfg.reward.validation} | _reserved_settings(cfg)
        return settings

    def _reward_settings(self, cfg: RewardConfig) -> dict[str, Any]:
        settings: dict[str, Any] = {"reward": cfg.reward.model_dump(mode="json", exclude={"use"})}
        settings |= _reserved_settings(cfg)
        if cfg.reward.source:
            model = {"content": content.known(sources.model_of(cfg.reward.source), self.run)}
            settings["model"] = model | {"template": content.template(cfg.reward.template)}
        return settings

    def _judge_model_settings(self, cfg: RewardConfig) -> dict[str, Any]:
        """The held-out reward model is one model, trained from the same base as the reward model."""
        ensemble = {"ensemble_size", "pretrained", "train"}
        settings = {"reward": cfg.reward.model_dump(mode="json", exclude={"use", *ensemble})} | _reserved_settings(cfg)
        if cfg.reward.base:
            settings["model"] = content.known(sources.model_of(cfg.reward.base), self.run)
            settings["template"] = content.template(cfg.reward.template)
        return settings

    def _evaluate_settings(self, cfg: EvaluateConfig) -> dict[str, Any]:
        evaluate = cfg.evaluate.model_dump(mode="json", exclude=JUDGED_BY)
        settings = {"evaluate": evaluate} | self._judge_settings(cfg) | _engine_settings(cfg.engine)
        settings |= {"accuracy": _source_hashes(cfg.evaluate.accuracy)}
        if cfg.evaluate.task_folder:
            settings["task_files"] = _task_hashes(self.run / cfg.evaluate.task_folder)
        judge = cfg.evaluate.judge
        if cfg.evaluate.ask_judge and judge.base_url and judge.model:
            settings["refusals"] = self._ai_judge(judge)
        return settings


def _reserved_settings(cfg: PairsConfig) -> dict[str, Any]:
    """The share of labels that are reserved for the held-out reward model, where there is one."""
    share = reserved_share(cfg.evaluate, cfg.preferences.raters)
    return {"reserved_labels": share} if share else {}


def _stage_name(kind: str, number: int) -> str:
    return kind if number == 1 else f"{kind}@{number}"


def _unused_sections(algo: str) -> set[str]:
    """Sections of [policy] for other algorithms; an algorithm of the user's own may read any."""
    return set() if "." in algo else {name for name in ALGORITHM_SECTIONS if name != algo}


def _engine_settings(engine: EngineConfig) -> dict[str, Any]:
    """What completions depend on of an engine other than the local one; of the user's own engine its code too."""
    if engine.type == "local":
        return {}
    settings: dict[str, Any] = {"engine": engine.type}
    if engine.exact != "auto":
        settings["exact"] = engine.exact
    if "." in engine.type:
        settings |= {"engine_settings": engine.settings, "engine_code": _code_hashes([engine.type])}
    return settings


def _user_code(policy: Policy) -> dict[str, dict[str, str]]:
    """Hashes of the user's files that the policy stage uses."""
    hashes = _code_hashes([policy.algo]) if "." in policy.algo else {}
    for source in policy.rewards.sources:
        hashes |= _source_hashes(source.source)
    return {"code": hashes} if hashes else {}


def _source_hashes(source: str) -> dict[str, str]:
    """Hashes of the files that a reward source or a judge names: a module, a JSON schema, a program and its
    arguments."""
    kind, _, rest = source.partition(":")
    if kind == "python":
        return _code_hashes([rest.partition(":")[0]])
    names = [rest] if kind == "json" else []
    if kind == "command":
        names = program_words(source)
    files = {name: find_file(name) for name in names}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for name, path in files.items() if path.is_file()}


def _task_hashes(folder: Path) -> dict[str, str]:
    """Hashes of the YAML and Python files that define tasks; data that those name are not read."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in TASK_SUFFIXES)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in files}


def _code_hashes(modules: Sequence[str]) -> dict[str, str]:
    """Hashes of the files of modules, which are not run."""
    files = {name: algos.source_of(name) for name in modules}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for name, path in files.items() if path}


def import_from_run_folder(run: Path) -> None:
    """Let modules of the user be imported from the run folder and the working directory."""
    for folder in (str(run.resolve()), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.append(folder)


def needs_labels(recipe: Recipe) -> bool:
    """Whether any stage of a recipe reads labels."""
    return _needs(recipe)[1] or reserved_share(recipe.evaluate, recipe.preferences.raters) > 0


def stage_kinds(recipe: Recipe) -> list[str]:
    """The kinds of stage that a recipe has, in their order."""
    needs_reward_model, needs_labels = _needs(recipe)
    labels = ["label"] if recipe.preferences.raters == "recorded" else ["sample", "label"]
    kinds = ["sft"]
    if reserved_share(recipe.evaluate, recipe.preferences.raters):
        kinds += [*labels, "judge_model"]
        labels = []
    kinds += ["baseline", *(labels if needs_labels else [])]
    return [*kinds, *(["reward"] if needs_reward_model else []), "policy", "evaluate"]


def _needs(recipe: Recipe) -> tuple[bool, bool]:
    """Whether this recipe needs a reward model, and whether it needs labels: a pretrained reward model is measured on
    labels that are there, or where `reward.use` asks for it."""
    on_pairs = data_of(recipe.policy.algo) == "comparisons"
    rewards_by_model = not on_pairs and any(source.source == "model" for source in recipe.policy.rewards.sources)
    reward_model = recipe.reward.use == "always" or rewards_by_model
    measured = recipe.reward.is_trained or recipe.reward.use == "always" or recipe.preferences.raters == "recorded"
    return reward_model, (reward_model and measured) or on_pairs
