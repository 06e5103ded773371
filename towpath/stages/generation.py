"""Sample completions of a model in a stage."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from towpath.data.draws import uniforms
from towpath.progress import print_note, progress
from towpath.recipe import Decoding
from towpath.recipe.stage_configs import BaselineConfig, SamplingConfig
from towpath.records import Completion, Prompt, as_row
from towpath.rollout.engine import Engine, SampleRequest
from towpath.rollout.generate import generate, load_engine
from towpath.runtime.contract import RoleSpec
from towpath.runtime.process import release_memory
from towpath.stages.job import Job
from towpath.store import jsonl, manifest
from towpath.store.publish import fault_point, replace_file

Draw = tuple[Prompt, str, Decoding]
"""A prompt, the stream of its random numbers, and the decoding."""
DRAWS_AT_ONCE = 1024
"""Completions that are sampled together and written to the disk at once."""


def sample(
    job: Job[SamplingConfig],
    model: str | Path,
    draws: Sequence[Draw],
    source: str,
    max_new_tokens: int,
    title: str,
    greedy: bool = False,
    dtype: Literal["auto", "float32"] = "auto",
) -> list[Completion]:
    """One completion of the model in a folder for each (prompt, stream, decoding); the random numbers depend on the
    seed, the stream and the prompt's id."""
    engine = _open(job, model, max_new_tokens, dtype)
    return _complete(job, engine, draws, source, max_new_tokens, title, greedy)


def sample_to_file(
    job: Job[SamplingConfig],
    path: Path,
    model: str | Path,
    draws: Sequence[Draw],
    source: str,
    max_new_tokens: int,
    title: str,
) -> None:
    """Sample completions and append them to a file, a block at a time; a file of an interrupted run is continued."""
    done = _whole_blocks(path, len(draws))
    if done == len(draws):
        return
    engine = _open(job, model, max_new_tokens, "auto")
    with progress(title, len(draws), start=done) as work, path.open("ab") as file:
        for begin in range(done, len(draws), DRAWS_AT_ONCE):
            block = draws[begin : begin + DRAWS_AT_ONCE]
            completions = _complete(job, engine, block, source, max_new_tokens, f"{title}: tokens", False)
            file.write("".join(_line(c) for c in completions).encode())
            file.flush()
            os.fsync(file.fileno())
            fault_point(f"sampled-{job.name}")
            work.advance(len(block))
    release_memory()


def _whole_blocks(path: Path, count: int) -> int:
    """The number of completions in a file, which is cut to whole blocks, so that each block is sampled together."""
    rows = 0
    whole = 0
    offset = 0
    end = 0
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n") or _completion(line) is None:
                break
            rows += 1
            offset += len(line)
            if rows % DRAWS_AT_ONCE == 0 or rows == count:
                whole = rows
                end = offset
    if whole > count:  # of other settings
        whole = end = 0
    if end != path.stat().st_size:
        os.truncate(path, end)
    return whole


def iterate_completions(path: Path) -> Iterator[Completion]:
    """The completions in a file, one at a time."""
    with path.open("rb") as file:
        for line in file:
            completion = _completion(line)
            if completion is None:
                raise manifest.damaged_error(path, "a line is no completion")
            yield completion


def _completion(line: bytes) -> Completion | None:
    """The completion in a line, or None if the line is damaged."""
    try:
        row = json.loads(line)
        return Completion(**{**row, "token_ids": tuple(row["token_ids"]), "logprobs": tuple(row["logprobs"])})
    except (ValueError, KeyError, TypeError):
        return None


def _open(
    job: Job[SamplingConfig], model: str | Path, max_new_tokens: int, dtype: Literal["auto", "float32"]
) -> Engine:
    """An engine with the model in a folder."""
    runtime = job.launch(training=False)
    runtime.open({"model": RoleSpec(str(model), dtype=dtype)})
    engine = load_engine(
        runtime, job.config.engine, job.chat, job.folder, job.config.data.max_prompt_tokens + max_new_tokens
    )
    runtime.publish("model", engine)
    return engine


def _complete(
    job: Job[SamplingConfig],
    engine: Engine,
    draws: Sequence[Draw],
    source: str,
    max_new_tokens: int,
    title: str,
    greedy: bool,
) -> list[Completion]:
    seed = job.config.seed
    requests = [
        SampleRequest(job.chat.prompt(p.messages), decoding, uniforms(max_new_tokens, seed, "draw", stream, p.id))
        for p, stream, decoding in draws
    ]
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
    replace_file(path, map(_line, completions))


def _line(completion: Completion) -> str:
    return json.dumps(as_row(completion), ensure_ascii=False) + "\n"


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
