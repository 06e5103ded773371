"""Cost of the health monitor in a finished run, as a share of its policy stage: the diagnosis after every step, as
logged by the run, and the safety probes of every validation, timed here by generation with and without them.

python -m benchmarks.watching RUN [--turns 7] [--json OUT]
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from towpath.data import corpus_reader
from towpath.data.draws import uniforms
from towpath.recipe import Decoding, Recipe
from towpath.recipe.reader import check
from towpath.recipe.stage_configs import PolicyConfig
from towpath.records import Prompt
from towpath.rollout.engine import SampleRequest
from towpath.rollout.experience import PROBE_TOKENS
from towpath.rollout.generate import load_engine
from towpath.rollout.sample_log import select_probes
from towpath.runtime.contract import RoleSpec
from towpath.runtime.process import prepare_process
from towpath.stages.job import Job
from towpath.store import jsonl
from towpath.store.store import Store


def measure_cost(run: Path, turns: int) -> dict[str, Any]:
    """Seconds of the policy stage, of its diagnoses, and of the probes of one validation."""
    stages = json.loads((run / "current.json").read_text())["stages"]
    folders = {name: run / "stages" / name / fingerprint for name, fingerprint in stages.items()}
    manifest = json.loads((folders["policy"] / "manifest.json").read_text())
    rows = jsonl.read(folders["policy"] / "metrics.jsonl")
    validations = sum(row["phase"] == "validation" for row in rows)
    recipe = check(Recipe, manifest["recipe"], "manifest.json")
    corpus = corpus_reader.read_corpus(run, recipe.data, recipe.seed)
    with Store.open(run / "towpath.db") as store:
        job = Job(PolicyConfig.from_recipe(recipe), run, "policy", folders["policy"], {}, store, corpus)
        runtime = job.launch(training=False)
        runtime.open({"tuned": RoleSpec(str(folders["sft"] / "weights"))})
        most = recipe.data.max_prompt_tokens + recipe.policy.max_new_tokens
        engine = load_engine(recipe.engine, job.chat, job.folder, most)
        runtime.publish("tuned", engine)

        def sample_requests(prompts: list[Prompt], longest: int) -> list[SampleRequest]:
            how = Decoding(temperature=recipe.policy.temperature)
            return [
                SampleRequest(job.chat.prompt(p.prompt), how, uniforms(longest, recipe.seed, "watching", p.id))
                for p in prompts
            ]

        held = sample_requests(list(corpus.train[: recipe.policy.validation_prompts]), recipe.policy.max_new_tokens)
        both = held + sample_requests(
            select_probes(corpus.safety, recipe.health.probes, recipe.seed),
            min(PROBE_TOKENS, recipe.policy.max_new_tokens),
        )
        seconds: dict[str, list[float]] = {"without": [], "with": []}
        engine.generate(both)
        for _ in range(turns):
            for name, requests in (("without", held), ("with", both)):
                start = time.perf_counter()
                engine.generate(requests)
                seconds[name].append(time.perf_counter() - start)
    openings = statistics.median(b - a for a, b in zip(seconds["without"], seconds["with"], strict=True))
    checks = sum(row.get("seconds_watch", 0.0) for row in rows)
    whole = manifest["seconds"]
    return {
        "stage_seconds": whole,
        "steps": manifest["result"]["steps"],
        "looks": validations,
        "checks_seconds": checks,
        "openings_seconds_a_look": openings,
        "probes": len(both) - len(held),
        "share_of_checks": checks / whole,
        "share_of_openings": openings * validations / whole,
        "turns": seconds,
    }


def main() -> None:
    """Measure the cost, print and store the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    prepare_process()
    result = measure_cost(options.run, options.turns)
    print(
        f"policy stage {result['stage_seconds']:.0f} s; checks {result['checks_seconds']:.2f} s, "
        f"{result['share_of_checks']:.2%}; "
        f"openings {result['openings_seconds_a_look']:.2f} s in each of {result['looks']} looks, "
        f"{result['share_of_openings']:.2%}"
    )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
