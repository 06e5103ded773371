"""A reward model of SmolLM2 on human preferences, compared with a length-only baseline. Restartable: a finished stage
is not run again.

python -m benchmarks.human_pairs [--data DIR] [--sets harmless,oasst] [--json OUT]

DIR holds `hh_harmless_open.jsonl`, `oasst1_en_validation_open.jsonl` and `dolly_short_4k.jsonl`. The model is
fine-tuned briefly on Dolly's short answers; labels come from the file unchanged.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "shared" / "data"
RUNS = Path("runs")
FILES = {"harmless": "hh_harmless_open.jsonl", "oasst": "oasst1_en_validation_open.jsonl"}
DEMONSTRATIONS = 400
RECIPE = """name = "{name}"
[data]
demonstrations = "data/demonstrations/*.jsonl"
safety = ""
preferences = "{file}"
max_prompt_tokens = 192
[sft]
epochs = 0.5
[preferences]
raters = "recorded"
max_new_tokens = 80
min_labels = 100
[reward]
validation = 0.3
lora = {{ last_n_layers = 10 }}
[gates]
sft = {{ action = "off" }}
reward = {{ threshold = 0.5, action = "warn" }}
"""


def make_run(name: str, data: Path) -> Path:
    """A run folder with a recipe and some rows of Dolly."""
    folder = RUNS / f"human-{name}"
    rows = [
        json.loads(line)
        for line in (data / "dolly_short_4k.jsonl").read_text(encoding="utf-8").splitlines()[:DEMONSTRATIONS]
    ]
    for part, keys in (("prompts", ("prompt",)), ("demonstrations", ("prompt", "response"))):
        path = folder / "data" / part / "dolly.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({key: row[key] for key in keys}) + "\n" for row in rows), encoding="utf-8")
    (folder / "recipe.toml").write_text(RECIPE.format(name=name, file=(data / FILES[name]).resolve()), encoding="utf-8")
    return folder


def measure(name: str, data: Path) -> dict[str, Any]:
    """Accuracy on held-out prompts with its interval, the length-only accuracy, and counts of the label stage."""
    folder = make_run(name, data)
    for stage in ("sft", "label", "reward"):
        subprocess.run([sys.executable, "-m", "towpath", "stage", stage, folder], check=True)
    current = json.loads((folder / "current.json").read_text())["stages"]

    def read_manifest(stage: str) -> dict[str, Any]:
        return json.loads((folder / "stages" / stage / current[stage] / "manifest.json").read_text())

    reward = read_manifest("reward")
    label = read_manifest("label")
    keys = (
        "accuracy",
        "interval",
        "n",
        "length_only_accuracy",
        "train_accuracy",
        "pairs",
        "calibration_error",
        "length_correlation",
        "diagnosis",
    )
    figures = {key: reward["result"][key] for key in keys if key in reward["result"]}
    return figures | {"seconds": reward["seconds"], "label": label["result"], "versions": reward["versions"]}


def main() -> None:
    """Measure every set, print and store the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--sets", default=",".join(FILES))
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    results = {name: measure(name, options.data) for name in options.sets.split(",")}
    for name, figures in results.items():
        low, high = figures["interval"]
        print(
            f"{name}: accuracy {figures['accuracy']:.3f} [{low:.3f}, {high:.3f}] of {figures['n']} held-out pairs",
            end="; ",
        )
        print(
            f"by length alone: {figures['length_only_accuracy']:.3f}; trained on {figures['pairs']} pairs in "
            f"{figures['seconds']:.0f} s"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
