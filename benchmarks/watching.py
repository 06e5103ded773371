"""What watching cost a run that has ended, as a share of its policy stage: the checks after every step, which it
timed itself, and the openings that every look draws for the safety set, timed again here: looks with them and
without, in turn.

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
from towpath.rollout.generate import open_engine
from towpath.rollout.sample_log import select_probes
from towpath.runtime.contract import RoleSpec
from towpath.runtime.process import prepare_process
from towpath.stages.job import Job
from towpath.store import jsonl
from towpath.store.store import Store


def cost(run: Path, turns: int) -> dict[str, Any]:
    """Seconds of the stage, of its checks, and of a look's openings."""
    stages = json.loads((run / "current.json").read_text())["stages"]
    places = {name: run / "stages" / name / fingerprint for name, fingerprint in stages.items()}
    manifest = json.loads((places["policy"] / "manifest.json").read_text())
    rows = jsonl.read(places["policy"] / "metrics.jsonl")
    looks = sum(row["phase"] == "validation" for row in rows)
    recipe = check(Recipe, manifest["recipe"], "manifest.json")
    corpus = corpus_reader.read_corpus(run, recipe.data, recipe.seed)
    with Store.open(run / "towpath.db") as store:
        job = Job(PolicyConfig.from_recipe(recipe), run, "policy", places["policy"], {}, store, corpus)
        runtime = job.launch(training=False)
        runtime.open({"tuned": RoleSpec(str(places["sft"] / "weights"))})
        most = recipe.data.max_prompt_tokens + recipe.policy.max_new_tokens
        drawing = open_engine(recipe.engine, job.chat, job.folder, most)
        runtime.publish("tuned", drawing)

        def asked(prompts: list[Prompt], longest: int) -> list[SampleRequest]:
            how = Decoding(temperature=recipe.policy.temperature)
            return [
                SampleRequest(job.chat.prompt(p.prompt), how, uniforms(longest, recipe.seed, "watching", p.id))
                for p in prompts
            ]

        held = asked(list(corpus.train[: recipe.policy.validation_prompts]), recipe.policy.max_new_tokens)
        both = held + asked(
            select_probes(corpus.safety, recipe.health.probes, recipe.seed),
            min(PROBE_TOKENS, recipe.policy.max_new_tokens),
        )
        seconds: dict[str, list[float]] = {"without": [], "with": []}
        drawing.generate(both)
        for _ in range(turns):
            for name, requests in (("without", held), ("with", both)):
                begun = time.perf_counter()
                drawing.generate(requests)
                seconds[name].append(time.perf_counter() - begun)
    openings = statistics.median(b - a for a, b in zip(seconds["without"], seconds["with"], strict=True))
    checks = sum(row.get("seconds_watch", 0.0) for row in rows)
    whole = manifest["seconds"]
    return {
        "stage_seconds": whole,
        "steps": manifest["result"]["steps"],
        "looks": looks,
        "checks_seconds": checks,
        "openings_seconds_a_look": openings,
        "probes": len(both) - len(held),
        "share_of_checks": checks / whole,
        "share_of_openings": openings * looks / whole,
        "turns": seconds,
    }


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    prepare_process()
    found = cost(told.run, told.turns)
    print(
        f"policy stage {found['stage_seconds']:.0f} s; checks {found['checks_seconds']:.2f} s, "
        f"{found['share_of_checks']:.2%}; "
        f"openings {found['openings_seconds_a_look']:.2f} s in each of {found['looks']} looks, "
        f"{found['share_of_openings']:.2%}"
    )
    if told.json:
        told.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
