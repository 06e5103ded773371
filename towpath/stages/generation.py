"""Sample completions of a model in a stage."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from towpath.data.draws import uniforms
from towpath.progress import print_note
from towpath.recipe import Decoding
from towpath.recipe.stage_configs import BaselineConfig, SamplingConfig
from towpath.records import Completion, Prompt, as_row
from towpath.rollout.engine import SampleRequest
from towpath.rollout.generate import generate, load_engine
from towpath.runtime.contract import RoleSpec
from towpath.runtime.process import release_memory
from towpath.stages.job import Job
from towpath.store import jsonl
from towpath.store.publish import replace_file


def sample(
    job: Job[SamplingConfig],
    model: str | Path,
    draws: Sequence[tuple[Prompt, str, Decoding]],
    source: str,
    max_new_tokens: int,
    title: str,
    greedy: bool = False,
    dtype: Literal["auto", "float32"] = "auto",
) -> list[Completion]:
    """One completion of the model in a folder for each (prompt, stream, decoding); the random numbers depend on the
    seed, the stream and the prompt's id."""
    seed = job.config.seed
    requests = [
        SampleRequest(job.chat.prompt(p.messages), decoding, uniforms(max_new_tokens, seed, "draw", stream, p.id))
        for p, stream, decoding in draws
    ]
    runtime = job.launch(training=False)
    runtime.open({"model": RoleSpec(str(model), dtype=dtype)})
    engine = load_engine(job.config.engine, job.chat, job.folder, job.config.data.max_prompt_tokens + max_new_tokens)
    runtime.publish("model", engine)
    outputs = generate(engine, requests, title, greedy)
    return [
        Completion(
            f"{source}/{stream}/{p.id}",
            p.id,
            source,
            job.chat.text(output.token_ids),
            tuple(output.token_ids),
            tuple(output.logprobs),
            output.finish,
            decoding.model_dump(),
        )
        for (p, stream, decoding), output in zip(draws, outputs, strict=True)
    ]


def heldout_prompts(job: Job[BaselineConfig]) -> list[Prompt]:
    """The held-out prompts of the evaluation; evenly spaced by id where `evaluate.prompts` limits them."""
    prompts = sorted(job.corpus.heldout, key=lambda p: p.id)
    limit = job.config.evaluate.prompts
    if not limit or limit >= len(prompts):
        return prompts
    return [prompts[i * len(prompts) // limit] for i in range(limit)]


def sample_answers(
    job: Job[BaselineConfig], model: str | Path, prompts: Sequence[Prompt], source: str, title: str
) -> list[Completion]:
    """One answer to each prompt with the settings of `[evaluate]`."""
    cfg = job.config.evaluate
    decoding = Decoding(temperature=cfg.temperature)
    draws = [(p, "evaluate", decoding) for p in prompts]
    return sample(job, model, draws, source, cfg.max_new_tokens, title)


def load_or_sample(path: Path, count: int, sample_all: Callable[[], list[Completion]]) -> list[Completion]:
    """The completions in a file of an interrupted run; where it does not have them all, sample and write them."""
    completions = read_completions(path)
    if len(completions) != count:
        completions = sample_all()
        write_completions(path, completions)
        release_memory()
    return completions


def write_completions(path: Path, completions: Sequence[Completion]) -> None:
    """Write completions as JSON lines, atomically."""
    replace_file(path, "".join(json.dumps(as_row(c), ensure_ascii=False) + "\n" for c in completions))


def read_completions(path: Path) -> list[Completion]:
    """The completions in a file; none if it is missing or damaged, so that they are sampled again."""
    try:
        return [
            Completion(**{**row, "token_ids": tuple(row["token_ids"]), "logprobs": tuple(row["logprobs"])})
            for row in jsonl.read(path)
        ]
    except (KeyError, TypeError):
        print_note(f"{path}: damaged; its completions are sampled again")
        return []
