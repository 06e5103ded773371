"""Training of one reward model on labelled pairs: batches, head, normalisation of its scores.

B rows (answers), K answers of one prompt, N decided pairs or answer tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from towpath.algos import reward_model as algo
from towpath.data.batch import Batch
from towpath.evals.winrate import fit_logistic
from towpath.recipe.stage_configs import RewardConfig
from towpath.rollout.reward_models import WEIGHTS, initial_model, member_folder
from towpath.runtime.checkpoints import Checkpoints
from towpath.runtime.contract import OptimizerConfig, RoleSpec, Runtime
from towpath.stages.job import Job
from towpath.stages.labelled_pairs import Pair
from towpath.stages.loop import LoopConfig, columns, minibatches, schedule, train
from towpath.stages.reward_measure import answers_by_prompt
from towpath.stages.reward_scorer import reward_row
from towpath.store.publish import is_intact, publish

FROZEN_FEATURES = "frozen.npz"
VALUE_FEATURES = "value_features.safetensors"
MAX_PROBED = 4096
"""Prompts whose answers initialise the head and diagnose labels: features of all could fill the memory."""
MAX_ANSWERS = 384
TOKENS_PER_ANSWER = 16
"""Answers, and tokens of each, from which a critic is initialised."""


@dataclass(frozen=True)
class Member:
    """One reward model of the ensemble: its normalised scores of the held-out answers and of those of other pairs, and
    the mean and standard deviation that normalise them."""

    held_out_B: np.ndarray
    mean: float
    std: float
    train_accuracy: float


def train_member(
    job: Job[RewardConfig], number: int, training: list[Pair], held_out: list[Pair], others: Sequence[Pair] = ()
) -> Member:
    """Train one reward model and save it; the first one in the stage's own folder. `others` are pairs of other prompts
    that are scored, too, after the held-out ones."""
    member_job = job
    seed = job.config.seed + number - 1
    if number > 1:
        member_job = replace(job, folder=job.folder / f"member-{number}", config=replace(job.config, seed=seed))
    cfg = member_job.config.reward
    runtime = open_runtime(member_job)
    train_batch, held_out_batch = (
        runtime.cache_frozen_prefix(_batch(member_job, pairs), "reward") for pairs in (training, held_out)
    )
    if Checkpoints(member_job.folder).newest_folder() is None:
        features_BD = _last_states(runtime, train_batch)
        if number == 1:
            np.savez(
                job.folder / FROZEN_FEATURES,
                shown=_differences(features_BD, train_batch),
                held=_differences(_last_states(runtime, held_out_batch), held_out_batch),
            )
        if cfg.fit_head and not cfg.pretrained:
            _fit_head(runtime, train_batch, features_BD, cfg.fit_head)
    size = max(1, round(cfg.batch * train_batch.groups / len(training)))
    steps = minibatches(train_batch.groups, size, cfg.epochs, seed, f"{job.name}/order")

    def validate(_step: int, _knobs: dict[str, float]) -> dict[str, float]:
        gap, _ = algo.margins(runtime.score("reward", held_out_batch, ("score",)).score_B, held_out_batch)
        return {"loss": float(torch.nn.functional.softplus(-gap).mean()), "accuracy": float((gap > 0).float().mean())}

    loop = LoopConfig(
        algo,
        cfg,
        len(steps),
        size,
        lambda step, _knobs: (train_batch.take(steps[step]), {}),
        schedule(cfg.schedule, cfg.warmup),
        max_grad_norm=cfg.max_grad_norm,
        validate=validate,
        validate_every=len(steps),
        score=lambda _metrics: 0.0,
    )
    title = f"{job.name}: training" + (f" {number} of {cfg.ensemble_size}" if cfg.ensemble_size > 1 else "")
    train(loop, runtime, member_job, title)
    mean, std, value_features = _normalise(member_job, runtime, training, train_batch)
    _save(job, runtime, value_features, number)
    subset = train_batch.take(range(min(120, train_batch.groups)))
    gap, _ = algo.margins(runtime.score("reward", subset, ("score",)).score_B, subset)
    batches = [held_out_batch, *([_batch(member_job, list(others))] if others else [])]
    held_out_B = np.concatenate([runtime.score("reward", batch, ("score",)).score_B.numpy() for batch in batches])
    return Member(held_out_B, mean, std, float((gap > 0).float().mean()))


def open_runtime(job: Job[RewardConfig]) -> Runtime:
    """A runtime with the role `reward`, trainable: a language model with a random scalar head, or a pretrained reward
    model with its own."""
    cfg = job.config.reward
    role = RoleSpec(
        initial_model(cfg, job.inputs["sft"] / "weights", job.run),
        cfg.lora if cfg.method == "lora" else None,
        job.config.seed,
        head="scalar",
        random_head=not cfg.pretrained,
        pad=job.reward_chat.pad,
        learning_rate=cfg.learning_rate,
        head_learning_rate=cfg.learning_rate * cfg.head_rate,
    )
    runtime = job.launch()
    runtime.open({"reward": role}, OptimizerConfig(weight_decay=cfg.weight_decay))
    return runtime


def _last_states(runtime: Runtime, batch: Batch) -> np.ndarray:
    """The hidden state at the last token of the answers of the first MAX_PROBED prompts [B,D], before training."""
    first = batch.take(range(MAX_PROBED)) if batch.groups > MAX_PROBED else batch
    return runtime.score("reward", first, ("last",)).last_BD.float().numpy().astype(np.float64)


def _differences(features_BD: np.ndarray, batch: Batch) -> np.ndarray:
    """Features of the chosen minus those of the rejected answer of every pair [N,D], in the order of the rows."""
    # beats[b, k]: strength by which row b beat answer k of its prompt; place[b]: position of row b in its prompt
    count = len(features_BD)
    beats_BK = batch.columns["beats"].numpy()[:count]
    place_B = batch.columns["place"].numpy()[:count]
    row_N, k_N = np.nonzero(beats_BK > 0)
    return features_BD[row_N] - features_BD[row_N - place_B[row_N] + k_N]


def _fit_head(runtime: Runtime, batch: Batch, features_BD: np.ndarray, ridge: float) -> None:
    """Initialise the head by logistic regression on feature differences of the frozen model."""
    mean_D = features_BD.mean(0)
    spread_D = features_BD.std(0) + 1e-6
    difference_ND = _differences(features_BD, batch) / spread_D
    # alternating signs balance the two classes
    sign_N = np.where(np.arange(len(difference_ND)) % 2 == 0, 1.0, -1.0)
    weight_D = fit_logistic(difference_ND * sign_N[:, None], (sign_N > 0).astype(float), ridge) / spread_D
    runtime.set_head("reward", torch.as_tensor(weight_D), torch.tensor(-float(mean_D @ weight_D)))


def _batch(job: Job[RewardConfig], pairs: list[Pair]) -> Batch:
    """Every answer once, grouped by prompt, with the strength by which it beat each answer of its prompt [B,K]."""
    groups = answers_by_prompt(pairs)
    prompts = {p.prompt.id: p.prompt for p in pairs}
    rows = [reward_row(job, prompts[name], c) for name, group in groups.items() for c in group.values()]
    sizes = tuple(len(group) for group in groups.values())
    place_of = {c: k for group in groups.values() for k, c in enumerate(group)}
    number = {c: i for i, c in enumerate(c for group in groups.values() for c in group)}
    beats_BK = np.zeros((len(rows), max(sizes)), dtype=np.float32)
    sure_BK = np.ones_like(beats_BK)
    for p in pairs:
        at = number[p.chosen.id], place_of[p.rejected.id]
        beats_BK[at] = p.label.strength
        sure_BK[at] = p.certainty
    named = columns(beats=beats_BK, sure=sure_BK, place=np.array(list(place_of.values())))
    return Batch(rows, named, sizes, frozenset({"beats", "sure"}))


def _normalise(
    job: Job[RewardConfig], runtime: Runtime, pairs: list[Pair], batch: Batch
) -> tuple[float, float, dict[str, Tensor]]:
    """Change the head so that scores of SFT answers have mean 0 and deviation 1; also return the tensors that
    initialise a critic: features at some tokens, and the score, end and row of their answer."""
    answers = [c for group in answers_by_prompt(pairs).values() for c in group.values()]
    sft_answers = [i for i, c in enumerate(answers) if c.source == "sft"] or list(range(len(answers)))
    rows = sft_answers[:MAX_ANSWERS]
    out = runtime.score("reward", replace(batch, sizes=()).take(rows), ("score", "features"))
    mean = float(out.score_B.mean())
    std = float(out.score_B.std(unbiased=False)) or 1.0
    head = runtime.head("reward")
    runtime.set_head("reward", head["weight"].div_(std), head["bias"].sub_(mean).div_(std))
    # TOKENS_PER_ANSWER evenly spaced tokens of each answer, or all of a shorter one
    length_B1 = out.mask_BT.sum(1, keepdim=True)
    spacing_B1 = (length_B1.float() / TOKENS_PER_ANSWER).clamp(min=1.0)
    token_BK = (torch.arange(TOKENS_PER_ANSWER) * spacing_B1).long()
    row_N, k_N = (token_BK < length_B1).nonzero(as_tuple=True)
    ended_B = torch.tensor([job.chat.ended(job.tokens(answers[i])) for i in rows])
    features_NF = runtime.read_features(out.features, row_N, token_BK[row_N, k_N]).to(torch.bfloat16)
    score_N = ((out.score_B - mean) / std)[row_N]
    return mean, std, {"features": features_NF, "score": score_N, "ended": ended_B[row_N], "row": row_N}


def _save(job: Job[RewardConfig], runtime: Runtime, value_features: dict[str, Tensor], number: int) -> None:
    """Publish a folder with adapter or whole model, head, and for the first member the critic's initial tensors, which
    are features of the policy's own tokens."""

    def write(folder: Path) -> None:
        if job.config.reward.method == "full":
            runtime.export("reward", folder, job.reward_chat)
        runtime.save("reward", folder / WEIGHTS)
        if number == 1 and not job.config.reward.source:
            tensors = {name: tensor.contiguous() for name, tensor in value_features.items()}
            save_file(tensors, folder / VALUE_FEATURES)

    folder = member_folder(job.folder, number)
    if not is_intact(folder):
        publish(folder, write)
