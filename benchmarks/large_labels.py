"""Memory of the steps between sampling and reward training by number of completions: comparing and storing them,
export and import of a sheet of all pairs, labelling by simulated raters, and reading the decided pairs.

Completions of 64 tokens are written as the sample stage does; two for each prompt. Each step runs in a process of its
own; given are processor seconds, and peak memory beyond what the process had when the step began.

python -m benchmarks.large_labels [--completions 10000,100000] [--json OUT]

"""

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.large_data import chain, text
from towpath.data.corpus import Corpus
from towpath.feedback import aggregation
from towpath.recipe import Recipe
from towpath.recipe.stage_configs import LabelConfig, RewardConfig, SampleConfig
from towpath.records import Completion, Prompt
from towpath.stages import annotate, sample
from towpath.stages.job import Job
from towpath.stages.label import labels_json
from towpath.stages.labelled_pairs import LABELS, decided_pairs
from towpath.store.exchange import export_pairs, import_judgements
from towpath.store.publish import replace_file
from towpath.store.store import Store

TOKENS = 64
VOCABULARY = 49_152


def write_completions(path: Path, prompts: list[Prompt]) -> None:
    """Two completions for each prompt."""
    draw = random.Random(1)
    follows = chain()
    starts = list(follows)
    with path.open("w", encoding="utf-8") as file:
        for prompt in prompts:
            for number in range(2):
                ids = tuple(draw.choices(range(VOCABULARY), k=TOKENS))
                logprobs = tuple(-draw.random() for _ in ids)
                answer = text(draw, follows, starts)
                completion = Completion(f"sft/{number}/{prompt.id}", prompt.id, "sft", answer, ids, logprobs, "stop")
                file.write(json.dumps(asdict(completion)) + "\n")


def prompts_of(count: int) -> list[Prompt]:
    """Prompts for so many completions."""
    return [Prompt(f"p{number}", f"What is {number}?") for number in range(count // 2)]


def job_of(config: Any, folder: Path, name: str, count: int, inputs: dict[str, Path]) -> Job[Any]:
    """A stage of a run in this folder."""
    stage = folder / name
    stage.mkdir(exist_ok=True)
    recipe = Recipe.model_validate({"model": {"source": "tiny"}})
    store = Store.open(folder / "towpath.db")
    return Job(config.from_recipe(recipe), folder, name, stage, inputs, store, Corpus(tuple(prompts_of(count))))


def compare(folder: Path, count: int) -> int:
    """Compare and store the completions."""
    job = job_of(SampleConfig, folder, "sample", count, {})
    own, others = (folder / f"completions-{source}.jsonl" for source in ("sft", "base"))
    return sample._store_comparisons(job, job.corpus.prompts, set(), own, others, "sft")["comparisons"]


def export_sheet(folder: Path, _count: int) -> int:
    """Export all comparisons as a sheet."""
    with Store.open(folder / "towpath.db") as store:
        return export_pairs(store, folder / "sheet.jsonl")


def import_sheet(folder: Path, _count: int) -> int:
    """Import a filled-in sheet of all comparisons; its writing is not much."""
    with (folder / "sheet.jsonl").open(encoding="utf-8") as empty, (folder / "filled.jsonl").open("w") as filled:
        filled.writelines(json.dumps(json.loads(line) | {"choice": "a", "rater": "ann"}) + "\n" for line in empty)
    with Store.open(folder / "towpath.db") as store:
        return import_judgements(store, folder / "filled.jsonl")[0]


def label(folder: Path, count: int) -> int:
    """Label all comparisons."""
    job = job_of(LabelConfig, folder, "label", count, {"sample": folder / "sample"})
    judgements = annotate.simulated_judgements(job, job.store.comparisons())
    labels = aggregation.majority_labels(judgements)
    replace_file(job.folder / LABELS, labels_json(labels))
    return len(judgements)


def pairs(folder: Path, count: int) -> int:
    """Read the pairs that a reward model is trained on."""
    inputs = {"sample": folder / "sample", "label": folder / "label"}
    return len(decided_pairs(job_of(RewardConfig, folder, "reward", count, inputs)))


def resident() -> float:
    """MiB of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def measured(step: Callable[[Path, int], int], folder: Path, count: int, out: Any) -> None:
    """Run a step; send its time and memory."""
    before = resident()
    began = time.process_time()
    rows = step(folder, count)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = round(time.process_time() - began, 1)
    out.send({"completions": count, "step": step.__name__, "rows": rows, "cpu": seconds, "mib": round(peak - before)})


def main() -> None:
    """Measure each step at each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--completions", default="10000,100000", help="numbers of completions, with commas between them"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    processes = multiprocessing.get_context("spawn")
    for count in map(int, options.completions.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_completions(folder / "completions-sft.jsonl", prompts_of(count))
            (folder / "completions-base.jsonl").touch()
            for step in (compare, export_sheet, import_sheet, label, pairs):
                receive, send = processes.Pipe(duplex=False)
                process = processes.Process(target=measured, args=(step, folder, count, send))
                process.start()
                results.append(receive.recv())
                process.join()
                print(json.dumps(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
