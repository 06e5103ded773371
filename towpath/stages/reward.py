"""The reward model: trained on labels, measured on prompts it never saw, scaled on the tuned model's own answers."""

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from towpath.algos import reward_model as algo
from towpath.algos.contract import Outputs
from towpath.data.batch import Batch, Row, make_row
from towpath.data.draws import hash_uniform
from towpath.errors import DataError
from towpath.evals import reward_accuracy as evals
from towpath.evals.winrate import fit_logistic
from towpath.health.diagnosis import diagnose
from towpath.health.history import history_from_rows
from towpath.models.heads import ScalarHead
from towpath.progress import print_note
from towpath.recipe import Rewards
from towpath.records import Comparison, Completion, Finding, Label, Prompt
from towpath.rewards import shaping
from towpath.runtime.local import Local, Role
from towpath.stages import evidence, generation
from towpath.stages import label as labelling
from towpath.stages.job import Checkpoints, Job, write_model
from towpath.stages.loop import Course, minibatches, to, train, warmup_then_linear
from towpath.store.publish import is_intact, publish

FROZEN = "frozen.npz"
FORESEEN = 384
TOKENS_FORESEEN = 16
"""Answers, and tokens of each, that a critic may start from."""


@dataclass(frozen=True)
class Pair:
    """A decided comparison, chosen first."""

    comparison: Comparison
    label: Label
    prompt: Prompt
    chosen: Completion
    rejected: Completion


@dataclass(frozen=True)
class Member:
    """One reward model of the ensemble, trained: its scores of the held-out answers, normalised, and how it was
    scaled."""

    held_B: np.ndarray
    mean: float
    std: float
    train_accuracy: float


def run(job: Job) -> dict[str, Any]:
    """Train, measure, normalise, save; with several members each from its own start and in its own order."""
    cfg = job.recipe.reward
    seed = job.recipe.seed
    pairs = decided(job)
    held = [p for p in pairs if hash_uniform(seed, "reward/validation", p.prompt.id) < cfg.validation]
    shown = [p for p in pairs if hash_uniform(seed, "reward/validation", p.prompt.id) >= cfg.validation]
    if not held or not shown:
        fix = "collect more labels, or change reward.validation"
        raise DataError(
            f"{len(shown)} pairs to train on and {len(held)} held out",
            "both must hold pairs; prompts do not cross the split",
            fix,
        )
    members = [_member(job, number, shown, held) for number in range(1, cfg.ensemble_size + 1)]
    scores_KB = np.stack([member.held_B for member in members])
    result = _measure(job, held, scores_KB.mean(0), float(np.mean([member.std for member in members])))
    result |= {
        "train_accuracy": members[0].train_accuracy,
        "mean": members[0].mean,
        "std": members[0].std,
        "pairs": len(shown),
    }
    if len(members) > 1:
        result["members"] = [float((_gaps(held, scores_B) > 0).mean()) for scores_B in scores_KB]
        result["disagreement"] = float(scores_KB.std(0).mean())
    result["length_only_accuracy"] = evals.length_only_accuracy(*_lengths(job, shown), *_lengths(job, held))
    result["train_validation_gap"] = result["train_accuracy"] - result["accuracy"]
    label_stage = next(stage for stage in reversed(job.inputs) if stage.startswith("label"))
    labels = job.result_of(label_stage)
    if result["accuracy"] < job.recipe.gates.reward.threshold:
        result["diagnosis"] = _diagnosed(job, shown, held, labels["agreement"])
    result["ceiling"] = labels["ceiling"]
    if job.recipe.health.act != "off":
        of_labels = history_from_rows((), {f"reward.result.{key}": value for key, value in result.items()})
        job.findings += diagnose(of_labels, job.recipe.health.limits)
    return result


def _diagnosed(job: Job, shown: list[Pair], held: list[Pair], agreement: dict[str, Any]) -> dict[str, Any] | None:
    """Why the labels do not take the model further; told as a finding."""
    cfg = job.recipe
    place = job.folder / FROZEN
    if not place.is_file():
        return None
    try:
        kept = np.load(place)
        features = {name: kept[name] for name in ("shown", "held")}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        print_note(f"{place}: {error}: the labels are not diagnosed")
        return None
    reads = []
    for name, pairs in (("shown", shown), ("held", held)):
        ordered = _in_rows(pairs)
        texts = [(p.chosen.text, p.rejected.text) for p in ordered]
        reads.append(
            evidence.read(
                [p.comparison.id for p in ordered], features[name], texts, [p.label.strength for p in ordered]
            )
        )
    known = (agreement["rate"], agreement["n"]) if agreement["n"] else None
    found = evidence.diagnosed(
        reads[0], reads[1], known, cfg.gates.reward.threshold, cfg.reward.fit_head or 300.0, cfg.seed
    )
    if found:
        cause = f"{found['verdict']} (of a linear reading of the frozen model)"
        job.findings.append(Finding("reward-data", "warning", "; ".join(found["evidence"]), cause, found["action"]))
    return found


def _in_rows(pairs: list[Pair]) -> list[Pair]:
    """Pairs as `_differences` has them: by the row of the chosen, then by the place of the rejected; of two on the
    same answers the last."""
    groups = _grouped(pairs)
    row = {c: i for i, c in enumerate(c for group in groups.values() for c in group)}
    return sorted(
        {(row[p.chosen.id], row[p.rejected.id]): p for p in pairs}.values(),
        key=lambda p: (row[p.chosen.id], row[p.rejected.id]),
    )


def _member(job: Job, number: int, shown: list[Pair], held: list[Pair]) -> Member:
    """Train one reward model and save it; the first one in the stage's own folder."""
    own = job
    seed = job.recipe.seed + number - 1
    if number > 1:
        own = replace(job, folder=job.folder / f"member-{number}", recipe=job.recipe.model_copy(update={"seed": seed}))
    cfg = own.recipe.reward
    runtime = _runtime(own)
    train_batch, held_batch = (runtime.grounded(_batch(own, part)) for part in (shown, held))
    if Checkpoints(own.folder).newest() is None:
        features_BD = _features(runtime, train_batch)
        if number == 1:
            np.savez(
                job.folder / FROZEN,
                shown=_differences(features_BD, train_batch),
                held=_differences(_features(runtime, held_batch), held_batch),
            )
        if cfg.fit_head:
            _fit_head(runtime, train_batch, features_BD, cfg.fit_head)
    size = max(1, round(cfg.batch * train_batch.groups / len(shown)))
    steps = minibatches(train_batch.groups, size, cfg.epochs, seed, f"{job.name}/order")

    def validate(_step: int, _knobs: dict[str, float]) -> dict[str, float]:
        gap, _ = algo.margins(runtime.score("reward", held_batch, ("score",)).score_B, held_batch)
        return {"loss": float(torch.nn.functional.softplus(-gap).mean()), "accuracy": float((gap > 0).float().mean())}

    course = Course(
        algo,
        cfg,
        len(steps),
        size,
        lambda step, _knobs: (train_batch.take(steps[step]), {}),
        warmup_then_linear(cfg.warmup),
        max_grad_norm=cfg.max_grad_norm,
        validate=validate,
        validate_every=len(steps),
        merit=lambda _numbers: 0.0,
    )
    train(
        course,
        runtime,
        own,
        f"{job.name}: training" + (f" {number} of {cfg.ensemble_size}" if cfg.ensemble_size > 1 else ""),
    )
    mean, std, foresight = _normalise(own, runtime, shown, train_batch)
    _save(job, runtime, foresight, number)
    some = train_batch.take(range(min(120, train_batch.groups)))
    gap, _ = algo.margins(runtime.score("reward", some, ("score",)).score_B, some)
    return Member(
        runtime.score("reward", held_batch, ("score",)).score_B.cpu().numpy(),
        mean,
        std,
        float((gap > 0).float().mean()),
    )


def _features(runtime: Local, batch: Batch) -> np.ndarray:
    """The last state of every answer [B,D], before anything is trained."""
    return runtime.score("reward", batch, ("last",)).last_BD.float().cpu().numpy().astype(np.float64)


def _differences(features_BD: np.ndarray, batch: Batch) -> np.ndarray:
    """Chosen less rejected of every decided pair, in the order of the rows."""
    beats, place = (batch.columns[name].cpu().numpy() for name in ("beats", "place"))
    row, k = np.nonzero(beats > 0)
    return features_BD[row] - features_BD[row - place[row] + k]


def _fit_head(runtime: Local, batch: Batch, features_BD: np.ndarray, ridge: float) -> None:
    """Start the head at the best linear reading of the frozen trunk: logistic regression on differences of features."""
    mean = features_BD.mean(0)
    spread = features_BD.std(0) + 1e-6
    difference = _differences(features_BD, batch) / spread
    sign = np.where(np.arange(len(difference)) % 2 == 0, 1.0, -1.0)
    weights = fit_logistic(difference * sign[:, None], (sign > 0).astype(float), ridge) / spread
    head = runtime.roles["reward"].head
    assert head is not None
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weights))
        head.bias.copy_(torch.tensor(-float(mean @ weights)))


def decided(job: Job) -> list[Pair]:
    """Comparisons of this recipe whose label names a winner."""
    comparisons = {c.id: c for c in job.store.comparisons()}
    completions = job.store.completions()
    prompts = job.store.prompts()
    found = []
    stage = next(name for name in reversed(job.inputs) if name.startswith("label"))
    for label in sorted(labelling.read(job.inputs[stage]), key=lambda label: label.comparison):
        c = comparisons.get(label.comparison)
        if c and label.choice in ("a", "b"):
            best, other = (c.a, c.b) if label.choice == "a" else (c.b, c.a)
            found.append(Pair(c, label, prompts[c.prompt_id], completions[best], completions[other]))
    return found


def _runtime(job: Job) -> Local:
    cfg = job.recipe.reward
    lora = job.recipe.reward.method == "lora"
    runtime = Local(job.recipe.model.tokens_per_pass, pad=job.chat.pad, dtype=job.dtype)
    model = job.trunk(job.inputs["sft"] / "weights", None if lora else torch.float32)
    runtime.add_trunk("base", model, lora)
    head = ScalarHead(model.config.hidden_size, job.recipe.seed).to(job.device)
    if lora:
        runtime.adapters["base"].add("reward", cfg.lora.rank, cfg.lora.alpha, job.recipe.seed, cfg.lora.last_n_layers)
    runtime.roles["reward"] = Role(
        adapter="reward" if lora else None, head=head, trains=("adapter" if lora else "trunk", "head")
    )
    runtime.start(
        {"reward": cfg.learning_rate, "reward/head": cfg.learning_rate * cfg.head_rate}, weight_decay=cfg.weight_decay
    )
    return runtime


def completion_row(job: Job, prompt: Prompt, completion: Completion) -> Row:
    """Prompt tokens and the very tokens that were drawn: nothing is tokenised twice."""
    return make_row(job.chat.prompt(prompt.prompt), job.tokens(completion))


def _batch(job: Job, pairs: list[Pair]) -> Batch:
    """Every answer once, grouped by prompt, with who beat whom."""
    groups = _grouped(pairs)
    prompts = {p.prompt.id: p.prompt for p in pairs}
    rows = [completion_row(job, prompts[name], c) for name, group in groups.items() for c in group.values()]
    sizes = tuple(len(group) for group in groups.values())
    place = {c: k for group in groups.values() for k, c in enumerate(group)}
    number = {c: i for i, c in enumerate(c for group in groups.values() for c in group)}
    beats = np.zeros((len(rows), max(sizes)), dtype=np.float32)
    sure = np.ones_like(beats)
    for p in pairs:
        at = number[p.chosen.id], place[p.rejected.id]
        beats[at], sure[at] = p.label.strength, certainty(p.label)
    columns = to(job.device, beats=beats, sure=sure, place=np.array(list(place.values())))
    return Batch(rows, columns, sizes, frozenset({"beats", "sure"}))


def certainty(label: Label) -> float:
    """The chance that the chosen answer is the better one; a label that names no chance is taken at its word."""
    if label.chance is None:
        return 1.0
    return label.chance if label.choice == "a" else 1 - label.chance


def _grouped(pairs: list[Pair]) -> dict[str, dict[str, Completion]]:
    """The judged answers of each prompt, in the order of the rows."""
    groups: dict[str, dict[str, Completion]] = {}
    for p in pairs:
        groups.setdefault(p.prompt.id, {}).update({p.chosen.id: p.chosen, p.rejected.id: p.rejected})
    return groups


def _normalise(job: Job, runtime: Local, pairs: list[Pair], judged: Batch) -> tuple[float, float, dict[str, Tensor]]:
    """Fold mean 0 and unit scale on the tuned model's own answers into the head; and what a critic can learn of the
    same answers: at some tokens of each its features, and the score, end and row of the answer."""
    said = [c for group in _grouped(pairs).values() for c in group.values()]
    chosen = ([i for i, c in enumerate(said) if c.source == "sft"] or list(range(len(said))))[:FORESEEN]
    out = runtime.score("reward", replace(judged, sizes=()).take(chosen), ("score", "features"))
    mean = float(out.score_B.mean())
    std = float(out.score_B.std(unbiased=False)) or 1.0
    head = runtime.roles["reward"].head
    assert head is not None
    with torch.no_grad():
        head.weight.div_(std)
        head.bias.sub_(mean).div_(std)
    every = out.mask_BT.sum(1, keepdim=True).float() / TOKENS_FORESEEN
    place_BK = (torch.arange(TOKENS_FORESEEN, device=every.device) * every.clamp(min=1.0)).long()
    row_N, k_N = (place_BK < out.mask_BT.sum(1, keepdim=True)).nonzero(as_tuple=True)
    ended_B = torch.tensor([job.chat.ended(job.tokens(said[i])) for i in chosen], device=every.device)
    features_ND = out.features_BTD[row_N, place_BK[row_N, k_N]].to(torch.bfloat16)
    return (
        mean,
        std,
        {"features": features_ND, "score": ((out.score_B - mean) / std)[row_N], "ended": ended_B[row_N], "row": row_N},
    )


def _gaps(held: list[Pair], scores_B: np.ndarray) -> np.ndarray:
    """Score of the chosen less score of the rejected of every pair; scores come in the order of the rows."""
    score_of = dict(zip([(name, c) for name, group in _grouped(held).items() for c in group], scores_B, strict=True))
    return np.array([score_of[p.prompt.id, p.chosen.id] - score_of[p.prompt.id, p.rejected.id] for p in held])


def _measure(job: Job, held: list[Pair], scores_B: np.ndarray, std: float) -> dict[str, Any]:
    """Accuracy on held-out pairs, with everything that puts it in proportion."""
    gap = _gaps(held, scores_B)
    error, curve = evals.calibration_error(gap * std)
    right = (gap > 0).astype(float)
    clean = [generation.rubric_score(p.prompt, p.chosen) - generation.rubric_score(p.prompt, p.rejected) for p in held]
    agrees = float(np.mean(np.sign(clean) == np.sign(gap)))
    rows = [(name, len(job.tokens(c))) for name, group in _grouped(held).items() for c in group.values()]
    return {
        **evals.pair_accuracy(gap, [p.prompt.id for p in held], job.recipe.seed),
        "clean_accuracy": agrees if job.recipe.preferences.raters == "simulated" else None,
        "by_strength": evals.accuracy_by_group([str(round(p.label.strength)) for p in held], right),
        "by_domain": evals.accuracy_by_group([p.prompt.domain for p in held], right),
        "calibration_error": error,
        "calibration": curve,
        "length_correlation": evals.within_prompt_correlation(
            [name for name, _ in rows], scores_B, np.array([length for _, length in rows])
        ),
    }


def _lengths(job: Job, pairs: list[Pair]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([len(job.tokens(p.chosen)) for p in pairs], float), np.array(
        [len(job.tokens(p.rejected)) for p in pairs], float
    )


def _save(job: Job, runtime: Local, foresight: dict[str, Tensor], number: int = 1) -> None:
    """Adapter or trunk, head, and for the first member what a critic may start from: one published folder a member."""

    def write(place: Path) -> None:
        if "base" not in runtime.adapters:
            with runtime.whole("base") as trunk:
                write_model(job, trunk, place)
        write_head(runtime, foresight if number == 1 else None, place)

    folder = _member_folder(job.folder, number)
    if not is_intact(folder):
        publish(folder, write)


def write_head(runtime: Local, foresight: dict[str, Tensor] | None, place: Path) -> None:
    """Head and adapter of a reward model, and what a critic may start from."""
    head = runtime.roles["reward"].head
    assert head is not None
    tensors = {f"head.{name}": tensor for name, tensor in head.named_parameters()}
    if "base" in runtime.adapters:
        tensors |= runtime.adapters["base"].parameters("reward")
    for name, content in {"reward": tensors, **({"foresight": foresight} if foresight else {})}.items():
        save_file(
            {key: tensor.detach().cpu().contiguous() for key, tensor in content.items()}, place / f"{name}.safetensors"
        )


def _member_folder(stage: Path, number: int) -> Path:
    return stage / ("weights" if number == 1 else f"weights-{number}")


def _called(number: int) -> str:
    return "reward" if number == 1 else f"reward-{number}"


def load_reward(job: Job, runtime: Local, folder: Path) -> None:
    """Put a saved reward model into a runtime as the role `reward`, further members as `reward-2` and so on; scores
    are normalised."""
    cfg = job.recipe.reward
    for number in range(1, cfg.ensemble_size + 1):
        name = _called(number)
        place = _member_folder(folder.parent, number)
        tensors = load_file(place / "reward.safetensors")
        if cfg.method == "lora":
            if "base" not in runtime.trunks:
                runtime.add_trunk("base", job.trunk(job.inputs["sft"] / "weights"), lora=True)
            runtime.adapters["base"].add(name, cfg.lora.rank, cfg.lora.alpha, 0, cfg.lora.last_n_layers)
            runtime.adapters["base"].load(name, tensors)
            trunk = "base"
            adapter = name
        else:
            runtime.add_trunk(name, job.trunk(place), lora=False)
            trunk = name
            adapter = None
        head = ScalarHead(len(tensors["head.weight"])).to(job.device)
        head.load_state_dict({part: tensors[f"head.{part}"] for part in ("weight", "bias")})
        runtime.roles[name] = Role(trunk=trunk, adapter=adapter, head=head.requires_grad_(False))


def judged(runtime: Local, batch: Batch, cfg: Rewards, more: tuple[str, ...] = ()) -> Outputs:
    """What the reward models say together of a batch; `more` is what else is wanted of the first."""
    out = runtime.score("reward", batch, ("score", *more))
    others = [runtime.score(name, batch, ("score",)).score_B for name in runtime.roles if name.startswith("reward-")]
    if others:
        scores_KB = np.stack([scores.cpu().numpy() for scores in (out.score_B, *others)])
        out.spread_B = torch.from_numpy(scores_KB.std(0)).to(out.score_B)
        out.score_B = torch.from_numpy(shaping.combine_ensemble(scores_KB, cfg)).to(out.score_B)
    return out
