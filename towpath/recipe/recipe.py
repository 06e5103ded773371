"""The whole recipe: its tables, how it is read, and `towpath explain`."""

from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic import model_validator

from towpath.errors import RecipeError
from towpath.recipe import aliases
from towpath.recipe.cluster import Cluster
from towpath.recipe.data import Data
from towpath.recipe.engine import EngineConfig
from towpath.recipe.evaluate import Evaluate, Gates
from towpath.recipe.health import Health, Track
from towpath.recipe.model import Model
from towpath.recipe.policy import ALGORITHM_DEFAULTS, Policy
from towpath.recipe.preferences import Judge, LabelBudget, Preferences
from towpath.recipe.reader import Section, check, keys, override, read_toml, value
from towpath.recipe.reward import Reward
from towpath.recipe.sft import Sft
from towpath.recipe.sweep import Sweep


class Ledger(Section):
    """Where labels are stored."""

    url: str = value(
        "",
        "postgresql+psycopg://… for a team, also as env:NAME or file:PATH; empty for SQLite in the run folder",
        why="one database for each run",
    )


class Recipe(Section):
    """All tables."""

    name: str = value("run", "title of the report")
    seed: int = value(0, "seed of all random draws", ge=0)
    rounds: int = value(1, "rounds of sampling, labelling, reward modelling and policy optimization", "1-3", ge=1)
    model: Model = value(Model(), "the base model")
    cluster: Cluster = value(Cluster(), "processes and devices")
    engine: EngineConfig = value(EngineConfig(), "sampling engine")
    store: Ledger = value(Ledger(), "where labels are stored")
    data: Data = value(Data(), "prompts and demonstrations")
    sft: Sft = value(Sft(), "supervised fine-tuning")
    preferences: Preferences = value(Preferences(), "completions and labels")
    judge: Judge = value(Judge(), "AI judge")
    budget: LabelBudget = value(LabelBudget(), "what labels may cost")
    reward: Reward = value(Reward(), "reward model")
    policy: Policy = value(Policy(), "policy optimization")
    evaluate: Evaluate = value(Evaluate(), "evaluation")
    gates: Gates = value(Gates(), "gates between stages")
    health: Health = value(Health(), "health monitor")
    track: Track = value(Track(), "experiment trackers")
    sweep: Sweep = value(Sweep(), "search for hyper-parameters of the policy stage")

    @model_validator(mode="before")
    @classmethod
    def _inherit_judge(cls, tables: Any) -> Any:
        """`[evaluate.judge]` has the values of `[judge]` that it does not set itself."""
        judge = tables.get("judge") if isinstance(tables, Mapping) else None
        evaluate = tables.get("evaluate", {}) if isinstance(tables, Mapping) else None
        if not isinstance(judge, Mapping) or not isinstance(evaluate, Mapping):
            return tables
        own = evaluate.get("judge", {})
        if not isinstance(own, Mapping):
            return tables
        inherited = {key: item for key, item in judge.items() if key in Judge.model_fields}
        return {**tables, "evaluate": {**evaluate, "judge": {**inherited, **own}}}

    @classmethod
    def defaults(cls, tables: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults, some of which depend on the algorithm; those of `[evaluate.judge]` are the values of `[judge]`."""
        defaults = super().defaults(tables)
        del defaults["evaluate"]["judge"]
        policy = tables.get("policy")
        algo = policy.get("algo") if isinstance(policy, Mapping) else None
        return defaults | {"policy": defaults["policy"] | ALGORITHM_DEFAULTS.get(str(algo), {})}


def load(run: Path, assignments: list[str] | None = None) -> Recipe:
    """The recipe of a run folder (or of a TOML file), with `key=value` overrides."""
    path = run / "recipe.toml" if run.is_dir() else run
    tables = override(read_toml(path), assignments or [])
    return check(Recipe, tables, str(path))


def explain(part: str = "") -> list[dict[str, Any]]:
    """Meaning, default, usual range and reason of every key that equals, begins with, or contains this text."""
    fields = keys(Recipe)
    names = [name for name, field in fields.items() if not _is_table(field)]
    chosen = [name for name in names if name == part or name.startswith(part + ".")]
    chosen = chosen or [name for name in names if part in name]
    chosen = chosen or [name for name in names if name in aliases.meant(part, fields)]
    if not chosen:
        near = aliases.suggestion(part, fields)
        raise RecipeError(f"{part!r}: no such key", "a key of the recipe", near or "`towpath explain` lists all")
    defaults = Recipe()
    rows = []
    for name in chosen:
        field = fields[name]
        extra = field.json_schema_extra or {}
        row = {"key": name, "meaning": field.description, "default": attrgetter(name)(defaults)}
        rows.append(row | {"usual": extra.get("usual", ""), "why": extra.get("why", "")})
    return rows


def _is_table(field: Any) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Section)
