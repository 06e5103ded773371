"""Evaluation: the policy against the tuned model on held-out prompts: win rate by the evaluation judge, KL, reward,
text, and safety."""

import json
from typing import Any

from towpath.data.batch import Batch
from towpath.data.draws import generator
from towpath.data.intervals import wilson
from towpath.evals import safety, text_statistics
from towpath.evals.evaluator import find_evaluator
from towpath.evals.winrate import best_of_n
from towpath.feedback import rubric
from towpath.recipe import Decoding
from towpath.recipe.stage_configs import EvaluateConfig
from towpath.records import Completion, Finding, Prompt
from towpath.rollout.reward_models import RewardModels, reward_roles
from towpath.runtime.contract import RoleSpec
from towpath.runtime.process import release_memory
from towpath.stages import generation, jailbreak_eval, label_disagreements
from towpath.stages.demonstrations import demonstration_batch, perplexity, split_demonstrations
from towpath.stages.job import Job
from towpath.stages.labelled_pairs import completion_row
from towpath.store.publish import replace_file

Answers = dict[str, list[Completion]]


def run(job: Job[EvaluateConfig]) -> dict[str, Any]:
    """Answer, judge, measure."""
    prompts = generation.heldout(job)
    guarded = list(job.corpus.safety)
    policy = job.inputs[_last(job, "policy")]
    completions = _load_completions(job, policy, prompts, guarded)
    count = len(prompts)
    answers = {source: part[:count] for source, part in completions.items()}
    kl, interval, perplexities = _kl(job, policy, prompts, answers["policy"])
    win = generation.win(job, prompts, answers["policy"], answers["sft"])
    rewards, disagreements = (
        _rewards(job, prompts, answers) if any(name.startswith("reward") for name in job.inputs) else ({}, {})
    )
    rows = _rows(job, prompts, answers, rewards)
    replace_file(job.folder / "answers.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    harmful = [p.harmful for p in guarded]
    declined = {
        source: [rubric.is_refusal(c.text) for c in completions[source][count:]] for source in ("sft", "policy")
    }
    judge = find_evaluator(job.corpus)
    result = {
        "judge": judge,
        "win": win,
        "kl_per_prompt": kl,
        "kl_interval": interval,
        "best_of_n": best_of_n(max(kl, 0.0)),
        "reward": {source: sum(scores) / count for source, scores in rewards.items()},
        "by_domain": _by_domain(rows),
        "safety": {source: safety.refusal_rates(harmful, part) for source, part in declined.items()},
        "text": {
            source: text_statistics.text_statistics(part) | (_rubric_mean(prompts, part) if judge else {})
            for source, part in answers.items()
        },
        "samples": _showcase(job, policy, prompts),
        "perplexity": perplexities,
        "disagreements": disagreements,
    }
    if guarded:
        result |= jailbreak_eval.run(job, policy, {source: completions[source][count:] for source in ("sft", "policy")})
        job.findings.extend(jailbreak_eval.concerns(job, result))
    job.findings.extend(_lost_domains(result["by_domain"]))
    return result


def _rubric_mean(prompts: list[Prompt], completions: list[Completion]) -> dict[str, float]:
    return {"rubric": sum(map(generation.rubric_score, prompts, completions)) / len(prompts)}


def _lost_domains(by_domain: dict[str, dict[str, Any]]) -> list[Finding]:
    """Domains in which the policy is worse than SFT beyond chance."""
    findings = []
    for domain, row in by_domain.items():
        low, high = row["interval"]
        if high < 0.5:
            evidence = (
                f"{domain}: the policy wins over SFT on {row['rate']:.0%} of {row['n']} prompts [{low:.0%}, {high:.0%}]"
            )
            remedy = f"more prompts of {domain}, a higher policy.rewards.domains.{domain}, or a higher policy.kl.coef"
            findings.append(
                Finding("domain-lost", "warning", evidence, "what it gained elsewhere cost it here", remedy)
            )
    return findings


def _last(job: Job[EvaluateConfig], stage: str) -> str:
    return next(name for name in reversed(job.inputs) if name.startswith(stage))


def _load_completions(job: Job[EvaluateConfig], policy: Any, prompts: list[Prompt], guarded: list[Prompt]) -> Answers:
    completions = {
        source: generation.read(job.inputs["baseline"] / f"answers-{source}.jsonl") for source in ("base", "sft")
    }
    path = job.folder / "answers-policy.jsonl"
    completions["policy"] = generation.read(path)
    if len(completions["policy"]) != len(prompts) + len(guarded):
        completions["policy"] = generation.evaluation(
            job, policy / "weights", [*prompts, *guarded], "policy", f"{job.name}: answers of policy"
        )
        generation.write(path, completions["policy"])
        release_memory()
    return completions


def _kl(
    job: Job[EvaluateConfig], policy: Any, prompts: list[Prompt], completions: list[Completion]
) -> tuple[float, list[float], dict[str, float]]:
    """Nats per prompt on the held-out answers, at the temperature they were drawn with; and both models' perplexity
    on held-out demonstrations."""
    cfg = job.config
    runtime = job.launch(training=False)
    batch = Batch([completion_row(job, p, c) for p, c in zip(prompts, completions, strict=True)])
    sums = []
    perplexities = {}
    _, held_out = split_demonstrations(job.corpus.demonstrations, cfg.seed, cfg.sft.validation)
    demonstrations = demonstration_batch(job.chat, held_out)
    for name, folder in (("policy", policy / "weights"), ("reference", job.inputs["sft"] / "weights")):
        runtime.open({name: RoleSpec(str(folder))})
        sums.append(runtime.score(name, batch, ("logp",), cfg.evaluate.temperature).logp_BT.sum(1))
        if held_out:
            perplexities["sft" if name == "reference" else name] = perplexity(runtime, name, demonstrations)
        runtime.close(name)  # one model at a time
    kl_B = (sums[0] - sums[1]).numpy()
    draws = generator(cfg.seed, "bootstrap/kl")
    means = [kl_B[draws.integers(0, len(kl_B), len(kl_B))].mean() for _ in range(cfg.evaluate.bootstrap)]
    return float(kl_B.mean()), [float(sorted(means)[int(q * len(means))]) for q in (0.025, 0.975)], perplexities


def _rewards(
    job: Job[EvaluateConfig], prompts: list[Prompt], answers: Answers
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """The reward model's scores of both models' answers; and how often it contradicts the labels it was trained for."""
    reward = job.inputs[_last(job, "reward")]
    roles = reward_roles(job.config.reward, job.inputs["sft"] / "weights", reward)
    runtime = job.launch(training=False)
    runtime.open(roles)
    models = RewardModels(runtime, tuple(roles))
    rewards = {}
    for source in ("sft", "policy"):
        batch = Batch([completion_row(job, p, c) for p, c in zip(prompts, answers[source], strict=True)])
        rewards[source] = models.score(batch, job.config.policy.rewards).score_B.tolist()
    return rewards, label_disagreements.write(job, models, reward)


def _rows(
    job: Job[EvaluateConfig], prompts: list[Prompt], answers: Answers, rewards: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """The answers of all models to each prompt with their scores, and `choice` where an evaluation judge fits the
    data."""
    judge = find_evaluator(job.corpus)
    rows = []
    for i, p in enumerate(prompts):
        row = {"prompt_id": p.id, "prompt": p.prompt, "domain": p.domain, "difficulty": p.difficulty}
        row |= {source: completions[i].text for source, completions in answers.items()}
        row |= {f"reward_{source}": scores[i] for source, scores in rewards.items()}
        rows.append(
            row
            | (
                _rubric_verdict(
                    p,
                    {source: completions[i] for source, completions in answers.items()},
                    job.config.evaluate.tie_margin,
                )
                if judge
                else {}
            )
        )
    return rows


def _rubric_verdict(prompt: Prompt, completions: dict[str, Completion], margin: float) -> dict[str, Any]:
    """Every model's rubric score of one prompt, and who wins by them."""
    scores = {source: generation.rubric_score(prompt, completion) for source, completion in completions.items()}
    gap = scores["policy"] - scores["sft"]
    choice = "tie" if abs(gap) < margin else "policy" if gap > 0 else "sft"
    return {f"rubric_{source}": score for source, score in scores.items()} | {"choice": choice}


def _by_domain(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    worth = {"policy": 1.0, "tie": 0.5, "sft": 0.0}
    outcomes: dict[str, list[float]] = {}
    for row in (row for row in rows if "choice" in row):
        outcomes.setdefault(row["domain"], []).append(worth[row["choice"]])
    return {
        domain: {
            "rate": sum(values) / len(values),
            "interval": list(wilson(sum(values), len(values))),
            "n": len(values),
        }
        for domain, values in sorted(outcomes.items())
    }


def _showcase(job: Job[EvaluateConfig], policy: Any, prompts: list[Prompt]) -> list[dict[str, str]]:
    """Three prompts answered greedily in float32 by all three models: what an export reproduces token for token."""
    domains = sorted({p.domain for p in prompts})
    firsts = [next(p for p in prompts if p.domain == domain) for domain in domains[:: max(1, len(domains) // 3)]][:3]
    rows = [{"prompt": p.prompt, "domain": p.domain} for p in firsts]
    for source, folder in (("base", None), ("sft", job.inputs["sft"] / "weights"), ("policy", policy / "weights")):
        wanted = [(p, "showcase", Decoding()) for p in firsts]
        completions = generation.sample(
            job,
            folder or job.base_model,
            wanted,
            source,
            job.config.evaluate.max_new_tokens,
            f"{job.name}: samples of {source}",
            greedy=True,
            dtype="float32",
        )
        for row, completion in zip(rows, completions, strict=True):
            row[source] = completion.text
            row[f"{source}_tokens"] = list(completion.token_ids)  # pyright: ignore[reportArgumentType]
    return rows
