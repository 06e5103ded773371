"""The recipe of a run: one file for each table."""

from towpath.recipe.cluster import Cluster
from towpath.recipe.data import Data
from towpath.recipe.engine import EngineConfig
from towpath.recipe.evaluate import Evaluate, Gate, Gates
from towpath.recipe.health import Health, Limits, Track
from towpath.recipe.model import Compile, Lora, Method, Model
from towpath.recipe.policy import ALGORITHM_DEFAULTS, Kl, Policy
from towpath.recipe.preferences import Decoding, Judge, LabelBudget, Preferences
from towpath.recipe.recipe import Ledger, Recipe, explain, load
from towpath.recipe.reward import Reward
from towpath.recipe.rewards import Rewards, Source
from towpath.recipe.sft import Sft
from towpath.recipe.sweep import Sweep

__all__ = [
    "ALGORITHM_DEFAULTS",
    "Cluster",
    "Compile",
    "Data",
    "Decoding",
    "EngineConfig",
    "Evaluate",
    "Gate",
    "Gates",
    "Health",
    "Judge",
    "Kl",
    "LabelBudget",
    "Ledger",
    "Limits",
    "Lora",
    "Method",
    "Model",
    "Policy",
    "Preferences",
    "Recipe",
    "Reward",
    "Rewards",
    "Sft",
    "Source",
    "Sweep",
    "Track",
    "explain",
    "load",
]
