"""Run folders with the metrics of a policy run, steps from 0, for tests of the monitor."""

import json
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from time import sleep, time
from typing import Any

from towpath.store.store import Store
from towpath.web.server import create_server, open_socket

FINGERPRINT = {"sft": "aaaaaaaaaaaa", "reward": "bbbbbbbbbbbb", "policy": "cccccccccccc", "evaluate": "dddddddddddd"}
DOMAINS = ("cooking", "travel", "money")
PROMPTS = (
    "How long do I boil an egg?",
    "Where do I see tides?",
    "How do I save for a boat?",
    "What is a lock in a canal for?",
)
WORDS = [
    "the",
    "water",
    "in",
    "the",
    "lock",
    "is",
    "level",
    "when",
    "both",
    "gates",
    "are",
    "shut",
    "and",
    "the",
    "boat",
    "may",
    "go",
    "on",
    "its",
    "way",
    "slowly",
]


def policy_row(step: int, steps: int, draw: random.Random) -> dict[str, Any]:
    """One training row with every metric of a policy run."""
    done = step / max(steps, 1)
    reward = 1.6 * (1 - math.exp(-3 * done)) + draw.gauss(0, 0.12)
    row = {
        "step": step,
        "phase": "train",
        "policy_loss": -0.02 - 0.01 * done + draw.gauss(0, 0.004),
        "value_loss": 0.5 * math.exp(-2 * done) + 0.05,
        "clip_fraction": 0.08 + draw.random() * 0.06,
        "ratio": 1.0 + draw.gauss(0, 0.002),
        "ratio_error": 1e-5 * (1 + draw.random()),
        "first_ratio_error": 1e-6,
        "approx_kl": 0.004 + 0.004 * draw.random(),
        "entropy": 2.4 - 0.7 * done + draw.gauss(0, 0.03),
        "kl": 0.9 * done + 0.05 * draw.random(),
        "kl_k3": 0.85 * done + 0.05 * draw.random(),
        "kl_per_token": 0.02 * done,
        "reward": reward,
        "score": reward + 0.1,
        "score/model": reward + 0.2,
        "score/rule:ends": 0.6 + 0.3 * done,
        "watched/second": 0.9 * reward,
        "length": 36 + 14 * done + draw.gauss(0, 2),
        "finish_rate": min(1.0, 0.82 + 0.15 * done + draw.gauss(0, 0.02)),
        "distinct_1": 0.3 - 0.04 * done,
        "distinct_2": 0.72 - 0.06 * done,
        "distinct_3": 0.9 - 0.05 * done,
        "repetition": 0.03 + 0.02 * done,
        "opening": 0.1 + 0.1 * done,
        "refusal": 0.02,
        "reward_length_corr": 0.1 + 0.2 * done,
        "reward_repetition_corr": -0.1,
        "reward_std": 0.8 - 0.2 * done,
        "prompts_distinct": 64,
        "sampler_error": 2e-6,
        "explained_variance": 0.3 + 0.4 * done,
        "grad_norm": 0.6 + 0.3 * draw.random(),
        "learning_rate": 2e-5 * (1 - done),
        "update": 1e-4,
        "kl_coef": 0.05 * (1 + 0.5 * done),
        "temperature": 1.0,
        "learning_rate_scale": 1.0,
        "seconds_generate": 3.1 + draw.random(),
        "seconds_score": 0.8,
        "seconds_optimise": 2.2,
        "tokens_per_second": 820 + draw.gauss(0, 30),
        "memory_bytes": 2.1e9,
    }
    return row | {
        f"reward/{name}": reward + 0.3 * index - 0.3 + draw.gauss(0, 0.1) for index, name in enumerate(DOMAINS)
    }


def policy_rows(steps: int, planned: int | None = None, every: int = 4) -> Iterator[dict[str, Any]]:
    """Training rows with validation rows between them."""
    draw = random.Random(3)
    planned = planned or steps
    for step in range(steps):
        row = policy_row(step, planned, draw)
        yield row
        if (step + 1) % every == 0:
            yield {"step": step, "phase": "validation"} | {
                key: row[key] for key in ("reward", "score", "kl", "kl_k3", "length", "finish_rate", "reward/cooking")
            }


def append(path: Path, rows: Any) -> None:
    """Append rows to a JSON lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def folder_of(run: Path, stage: str = "policy") -> Path:
    """The folder of a stage of these runs."""
    return run / "stages" / stage / FINGERPRINT[stage.partition("@")[0]]


def answer(prompt: int, step: int) -> str:
    """An answer that changes a little every eight steps."""
    draw = random.Random(f"{prompt}/{step // 8}")
    words = [*WORDS]
    for _ in range(3):
        words[draw.randrange(len(words))] = draw.choice(["calmly", "water", "harbour", "deep", "<b>bold</b>"])
    return f"{PROMPTS[prompt % len(PROMPTS)][:-1]}: " + " ".join(words) + "."


def samples(steps: int, every: int = 4, prompts: int = 8) -> Iterator[dict[str, Any]]:
    """Answers to the validation prompts at every validation, starting with the tuned model."""
    for step in [-1, *range(every - 1, steps, every)]:
        for number in range(prompts):
            reward = 0.2 * number + (step + 1) / steps * (1.5 - 0.4 * number)
            yield {
                "step": step,
                "prompt_id": f"p{number}",
                "prompt": f"{PROMPTS[number % len(PROMPTS)]} ({number})",
                "domain": DOMAINS[number % 3],
                "text": answer(number, step),
                "score": reward + 0.1,
                "reward": reward,
            }


INTERVENTIONS = [
    {
        "step": 11,
        "knob": "kl_coef",
        "from": 0.05,
        "to": 0.1,
        "reason": "KL rose past the alarm in three steps.",
        "finding": "kl-runaway",
    },
    {
        "step": 26,
        "knob": "temperature",
        "from": 1.0,
        "to": 0.9,
        "reason": "Entropy fell by a third.",
        "finding": "entropy-collapse",
    },
]
FINDINGS = [
    {
        "code": "kl-runaway",
        "severity": "critical",
        "evidence": "kl 0.31 → 2.40 in steps 9 to 12",
        "cause": "the penalty is too weak for this learning rate",
        "remedy": "double policy.kl.coef",
        "first_step": 8,
        "ruled_out": ["length: steady at 38 tokens", "a broken sampler: sampler_error 2e-06"],
    },
    {
        "code": "diversity-falls",
        "severity": "warning",
        "evidence": "distinct_2 0.72 → 0.66",
        "cause": "answers grow alike",
        "remedy": "raise the temperature",
        "first_step": 20,
        "ruled_out": [],
    },
]


def write_run(
    run: Path,
    steps: int = 40,
    planned: int = 60,
    recipe: str = "",
    evaluated: bool = False,
    stages: tuple[str, ...] = ("sft", "reward", "policy"),
) -> Path:
    """A run whose policy stage is at `steps` of `planned`."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "recipe.toml").write_text(f'name = "{run.name}"\n[policy]\nsteps = {planned}\n{recipe}')
    (run / "current.json").write_text(json.dumps({"stages": FINGERPRINT, "waiting_for": "", "findings": []}))
    draw = random.Random(5)
    for name in ("sft", "reward"):
        if name in stages:
            rows = [
                {
                    "step": s,
                    "phase": "train",
                    "loss": 2.5 * math.exp(-s / 20) + 1 + draw.gauss(0, 0.05),
                    "grad_norm": 1.0,
                    "learning_rate": 2e-4,
                }
                for s in range(50)
            ]
            rows += [
                {"step": s, "phase": "validation", "loss": 2.5 * math.exp(-s / 20) + 1.1} for s in range(9, 50, 10)
            ]
            append(folder_of(run, name) / "metrics.jsonl", rows)
            (folder_of(run, name) / "run_info.json").write_text(json.dumps({"steps": 50, "arithmetic": "float32"}))
            (folder_of(run, name) / "manifest.json").write_text(
                json.dumps({"status": "done", "result": {"steps": 50, "best_step": 50}, "seconds": 61.0})
            )
    if "policy" in stages:
        folder = folder_of(run)
        append(folder / "metrics.jsonl", policy_rows(steps, planned))
        (folder / "run_info.json").write_text(json.dumps({"steps": planned, "arithmetic": "float32"}))
        append(folder / "samples.jsonl", samples(steps))
        append(folder / "interventions.jsonl", INTERVENTIONS)
        (folder / "findings.json").write_text(json.dumps(FINDINGS))
    if evaluated:
        finish(run, steps)
    return run


def write_workers(folder: Path, count: int = 4, late: int | None = None) -> None:
    """What a group of workers does now; the heartbeat of the one with rank `late` is old."""
    rows = [
        {
            "rank": rank,
            "host": "lock-keeper",
            "device": f"cuda:{rank}",
            "pid": 4000 + rank,
            "verb": "" if rank == 2 else "forward_backward",
            "heartbeat_age": 31.0 if rank == late else 0.2,
            "memory_bytes": 61.5e9,
            "seconds": {"sample": 41.0, "score": 12.0 + rank, "train": 66.0, "sync": 1.4, "other": 6.0, "waiting": 9.0},
            "tokens_per_second": {"sample": 5200.0 + 40 * rank, "train": 14800.0 - 90 * rank},
            "collective_bytes": 3e9,
            "sync_bytes": 5e10,
        }
        for rank in range(count)
    ]
    content = {"written_at": time(), "timeout": 60.0, "lost": "", "workers": rows}
    (folder / "workers.json").write_text(json.dumps(content))


def finish(run: Path, steps: int, win: float = 0.78, kl: float = 0.7) -> None:
    """Finish the policy and the evaluate stage."""
    result = {
        "steps": steps,
        "best_step": steps,
        "kl_per_prompt": kl,
        "rose": {"rate": 0.8, "interval": [0.7, 0.88], "n": 8},
    }
    (folder_of(run) / "manifest.json").write_text(
        json.dumps({"status": "done", "result": result, "seconds": 312.0, "findings": []})
    )
    folder = folder_of(run, "evaluate")
    rows = [
        {
            "prompt_id": f"h{n}",
            "prompt": f"{PROMPTS[n]} (held out)",
            "domain": DOMAINS[n % 3],
            "base": "I do not know.",
            "sft": answer(n, 0),
            "policy": answer(n, 40),
            "rubric_base": 0.1,
            "score_sft": 0.5,
            "score_policy": 0.8,
            "reward_sft": 0.4,
            "reward_policy": 1.1 - 0.3 * n,
            "choice": "policy",
        }
        for n in range(4)
    ]
    append(folder / "answers.jsonl", rows)
    manifest = {
        "status": "done",
        "result": {"win": {"rate": win, "interval": [win - 0.05, win + 0.05], "n": 200}, "kl_per_prompt": kl},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def short_run(run: Path) -> Path:
    """A finished policy stage of three steps with eleven domains and a validation before training."""
    draw = random.Random(7)
    folder = folder_of(write_run(run, planned=3, stages=("sft",)))
    rows = [
        policy_row(step, 3, draw) | {f"reward/domain-{n}": draw.random() for n in range(11)} for step in (-1, 0, 1, 2)
    ]
    held_out = [name for name in rows[0] if name.startswith(("step", "reward", "kl"))]
    before, after = ({name: row[name] for name in held_out} | {"phase": "validation"} for row in (rows[0], rows[3]))
    append(folder / "metrics.jsonl", [before, *rows[1:], after])
    append(folder / "samples.jsonl", samples(3, 3))
    append(folder_of(run, "evaluate") / "answers.jsonl", [{"prompt_id": "p0", "base": "I do not know."}])
    findings = [
        {"code": code, "severity": "warning", "first_step": step}
        for code, step in (("kl-rising", 2), ("spread-low", -1))
    ]
    (folder / "findings.json").write_text(json.dumps(findings))
    (folder / "manifest.json").write_text(json.dumps({"status": "done", "result": {"steps": 3, "best_step": 2}}))
    (run / "current.json").write_text(
        json.dumps({"stages": FINGERPRINT, "findings": [{"code": "of-sft", "first_step": 1}]})
    )
    return run


@contextmanager
def serving_run(run: Path, store: Store, team: bool = False, port: int = 0) -> Iterator[tuple[str, Any]]:
    """The real server of a run in a thread: its URL and its auth."""
    server, auth = create_server(store, team, run=run)
    with open_socket("127.0.0.1", port) as listening:
        thread = Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", auth
        server.should_exit = True
        thread.join()
