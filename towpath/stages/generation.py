"""Answers of a model to prompts, and the win rate of one model's answers over another's."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from towpath.data.draws import uniforms
from towpath.evals import winrate
from towpath.evals.evaluator import find_evaluator
from towpath.feedback import rubric
from towpath.progress import print_note
from towpath.recipe import Decoding
from towpath.recipe.stage_configs import BaselineConfig, SamplingConfig
from towpath.records import Completion, Prompt, as_row
from towpath.rollout.engine import SampleRequest
from towpath.rollout.generate import generate, open_engine
from towpath.runtime.contract import RoleSpec
from towpath.stages.job import Job
from towpath.store import jsonl
from towpath.store.publish import replace_file


def sample(
    job: Job[SamplingConfig],
    model: str | Path,
    wanted: Sequence[tuple[Prompt, str, Decoding]],
    source: str,
    max_new_tokens: int,
    title: str,
    greedy: bool = False,
    dtype: Literal["auto", "float32"] = "auto",
) -> list[Completion]:
    """One completion of the model in a folder for each (prompt, name of the draw, decoding); the name decides the
    random numbers."""
    seed = job.config.seed
    requests = [
        SampleRequest(job.chat.prompt(p.prompt), how, uniforms(max_new_tokens, seed, "draw", name, p.id))
        for p, name, how in wanted
    ]
    runtime = job.launch(training=False)
    runtime.open({"model": RoleSpec(str(model), dtype=dtype)})
    engine = open_engine(job.config.engine, job.chat, job.folder, job.config.data.max_prompt_tokens + max_new_tokens)
    runtime.publish("model", engine)
    outputs = generate(engine, requests, title, greedy)
    return [
        Completion(
            f"{source}/{name}/{p.id}",
            p.id,
            source,
            job.chat.text(o.token_ids),
            tuple(o.token_ids),
            tuple(o.logprobs),
            o.finish,
            how.model_dump(),
        )
        for (p, name, how), o in zip(wanted, outputs, strict=True)
    ]


def heldout(job: Job[BaselineConfig]) -> list[Prompt]:
    """The held-out prompts that evaluation uses, spread over domains when there is a limit."""
    prompts = sorted(job.corpus.heldout, key=lambda p: p.id)
    limit = job.config.evaluate.prompts
    if not limit or limit >= len(prompts):
        return prompts
    return [prompts[i * len(prompts) // limit] for i in range(limit)]


def evaluation(
    job: Job[BaselineConfig], model: str | Path, prompts: Sequence[Prompt], source: str, title: str
) -> list[Completion]:
    """One answer to each prompt as evaluation draws them."""
    cfg = job.config.evaluate
    how = Decoding(temperature=cfg.temperature)
    return sample(job, model, [(p, "evaluate", how) for p in prompts], source, cfg.max_new_tokens, title)


def rubric_score(prompt: Prompt, completion: Completion) -> float:
    """The total of the written rubric, without noise."""
    return rubric.score_answer(prompt, completion.text, completion.finish == "stop").total


def win(
    job: Job[BaselineConfig], prompts: Sequence[Prompt], ours: Sequence[Completion], theirs: Sequence[Completion]
) -> dict[str, Any] | None:
    """Win rate of our answers by the evaluation judge; None where no judge fits the run's data."""
    if find_evaluator(job.corpus) is None:
        return None
    margin = job.config.evaluate.tie_margin
    gaps = [rubric_score(p, a) - rubric_score(p, b) for p, a, b in zip(prompts, ours, theirs, strict=True)]
    outcomes = [0.5 if abs(gap) < margin else float(gap > 0) for gap in gaps]
    lengths = [len(a.token_ids) - len(b.token_ids) for a, b in zip(ours, theirs, strict=True)]
    return winrate.win_rate_record(outcomes, lengths, job.config.evaluate.bootstrap, job.config.seed)


def write(path: Path, completions: Sequence[Completion]) -> None:
    """Completions as JSON lines, all or nothing."""
    replace_file(path, "".join(json.dumps(as_row(c), ensure_ascii=False) + "\n" for c in completions))


def read(path: Path) -> list[Completion]:
    """Completions written by `write`; none where the file is damaged, so that they are drawn again."""
    try:
        return [
            Completion(**{**row, "token_ids": tuple(row["token_ids"]), "logprobs": tuple(row["logprobs"])})
            for row in jsonl.read(path)
        ]
    except (KeyError, TypeError):
        print_note(f"{path}: damaged; its answers are drawn again")
        return []
