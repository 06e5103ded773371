"""Answers of a model to the prompts of the evaluation: sampled once, whichever judges compare them."""

from collections.abc import Sequence
from pathlib import Path

from towpath.data.corpus import digest
from towpath.models import content
from towpath.recipe.stage_configs import BaselineConfig
from towpath.records import Completion, Prompt
from towpath.stages import generation
from towpath.stages.job import Job
from towpath.store import manifest
from towpath.store.publish import replace_file


def sampled_answers(
    job: Job[BaselineConfig], name: str, model: str | Path, prompts: Sequence[Prompt], source: str, title: str
) -> list[Completion]:
    """The answers in the file `name` of the stage's folder, those of the same stage with other judges, or new ones."""
    path = job.folder / name
    key_file = path.with_suffix(".key")
    key = _key(job, model, prompts)
    if not path.is_file():
        others = (other for other in path.parent.parent.glob(f"*/{key_file.name}") if other.read_text() == key)
        same = next((other.with_suffix(path.suffix) for other in others), None)
        if same is not None and same.is_file():
            replace_file(path, same.read_text(encoding="utf-8"))
    answers = generation.load_or_sample(
        path, len(prompts), lambda: generation.sample_answers(job, model, prompts, source, title)
    )
    replace_file(key_file, key)
    return answers


def _key(job: Job[BaselineConfig], model: str | Path, prompts: Sequence[Prompt]) -> str:
    """A hash of all that the answers depend on: model, prompts, sampling, engine."""
    cfg = job.config
    stage = Path(model).parent
    is_stage = (stage / manifest.NAME).is_file()
    weights = manifest.results_digest(stage) if is_stage else content.known(cfg.model.source, job.run)
    sampling = [cfg.seed, cfg.evaluate.temperature, cfg.evaluate.max_new_tokens, cfg.model.dtype]
    engine = cfg.engine.model_dump(mode="json")
    return digest([weights, content.template(cfg.model.template), sampling, engine, list(prompts)])
