"""Evaluation of the policy against SFT on held-out prompts: win rate, KL, reward, text, perplexity, safety."""

from pathlib import Path
from typing import Any

from towpath.data.batch import Batch
from towpath.data.conversations import prompt_cells
from towpath.data.draws import generator
from towpath.data.intervals import wilson
from towpath.evals import safety, text_statistics
from towpath.evals.winrate import best_of_n
from towpath.recipe import Decoding
from towpath.recipe.stage_configs import EvaluateConfig
from towpath.records import Completion, Finding, Prompt
from towpath.runtime.contract import RoleSpec
from towpath.stages import generation, jailbreak_eval, label_disagreements, task_scores
from towpath.stages.answer_accuracy import answer_accuracy
from towpath.stages.answers import sampled_answers
from towpath.stages.demonstrations import demonstration_batch, perplexity, split_demonstrations
from towpath.stages.evaluation_judges import Contest
from towpath.stages.job import Job
from towpath.stages.labelled_pairs import completion_row
from towpath.stages.reward_scorer import answer_of, open_reward_model
from towpath.stages.win_rates import WinRates, judge_answers, write_answers

Answers = dict[str, list[Completion]]
"""One completion of each prompt, by model: `base`, `sft`, `policy`."""
WIN = {"policy": 1.0, "tie": 0.5, "sft": 0.0}


def run(job: Job[EvaluateConfig]) -> dict[str, Any]:
    """Sample the policy's answers, compare them with those of the baseline stage, and measure safety."""
    prompts = generation.heldout_prompts(job)
    count = len(prompts)
    policy = _last_input(job, "policy")
    completions = _load_completions(job, policy, [*prompts, *job.corpus.safety])
    answers = {source: part[:count] for source, part in completions.items()}
    safety_answers = {source: completions[source][count:] for source in ("sft", "policy")}
    contest = Contest("evaluate", "policy", "sft", prompts, answers["policy"], answers["sft"])
    wins = judge_answers(job, contest)
    kl, interval, perplexities = _kl_and_perplexity(job, policy, prompts, answers["policy"])
    rewards: dict[str, list[float]] = {}
    disagreements: dict[str, int] = {}
    if any(name.startswith("reward") for name in job.inputs):
        rewards, disagreements = _rewards(job, prompts, answers)
    rows = write_answers(job.folder, prompts, answers, rewards, wins)
    result = wins.result | {
        "kl_per_prompt": kl,
        "kl_interval": interval,
        "best_of_n": best_of_n(max(kl, 0.0)),
        "reward": {source: sum(scores) / count for source, scores in rewards.items()},
        "by_domain": win_rates_by_domain(rows),
        "safety": {source: safety.refusal_rates((), ()) for source in safety_answers},
        "text": _text_statistics(answers, wins),
        "samples": _greedy_samples(job, policy, prompts),
        "perplexity": perplexities,
        "disagreements": disagreements,
    }
    result |= answer_accuracy(job, prompts, answers)
    if job.config.evaluate.tasks:
        tuned = job.inputs["sft"] / "weights"
        models = {"base": Path(job.base_model), "sft": tuned, "policy": policy / "weights"}
        result["tasks"] = task_scores.run(job, models)
    if job.corpus.safety:
        result |= jailbreak_eval.run(job, policy, safety_answers)
        job.findings.extend(jailbreak_eval.safety_findings(job, result))
    job.findings.extend(domain_findings(result["by_domain"]))
    return result


def _last_input(job: Job[EvaluateConfig], kind: str) -> Path:
    """The folder of the last input stage of a kind."""
    return next(folder for name, folder in reversed(job.inputs.items()) if name.startswith(kind))


def _load_completions(job: Job[EvaluateConfig], policy: Path, prompts: list[Prompt]) -> Answers:
    """The answers that the baseline stage sampled, and the policy's."""
    files = {source: job.inputs["baseline"] / f"answers-{source}.jsonl" for source in ("base", "sft")}
    # a model that is compared with no other has no base
    completions = {source: generation.read_completions(path) for source, path in files.items() if path.is_file()}
    title = f"{job.name}: answers of policy"
    completions["policy"] = sampled_answers(job, "answers-policy.jsonl", policy / "weights", prompts, "policy", title)
    return completions


def _kl_and_perplexity(
    job: Job[EvaluateConfig], policy: Path, prompts: list[Prompt], completions: list[Completion]
) -> tuple[float, list[float], dict[str, float]]:
    """KL in nats per prompt with its interval, at the sampling temperature; perplexities of held-out demonstrations."""
    cfg = job.config
    runtime = job.launch(training=False)
    batch = Batch([completion_row(job, p, c) for p, c in zip(prompts, completions, strict=True)])
    _, held_out = split_demonstrations(job.corpus.demonstrations, cfg.seed, cfg.sft.validation)
    demonstrations = demonstration_batch(job.chat, held_out, cfg.sft).batch
    logp_sums = []
    perplexities = {}
    for name, folder in (("policy", policy / "weights"), ("reference", job.inputs["sft"] / "weights")):
        runtime.open({name: RoleSpec(str(folder))})
        logp_sums.append(runtime.score(name, batch, ("logp",), cfg.evaluate.temperature).logp_BT.sum(1))
        if held_out:
            perplexities["sft" if name == "reference" else name] = perplexity(runtime, name, demonstrations)
        runtime.close(name)  # one model in memory at a time
    # k1 estimate: the completions are samples of the policy
    kl_B = (logp_sums[0] - logp_sums[1]).numpy()
    draws = generator(cfg.seed, "bootstrap/kl")
    means = [kl_B[draws.integers(0, len(kl_B), len(kl_B))].mean() for _ in range(cfg.evaluate.bootstrap)]
    return float(kl_B.mean()), [float(sorted(means)[int(q * len(means))]) for q in (0.025, 0.975)], perplexities


def _rewards(
    job: Job[EvaluateConfig], prompts: list[Prompt], answers: Answers
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """The reward model's scores of SFT's and the policy's answers, and how often it contradicts its labels."""
    reward = _last_input(job, "reward")
    models = open_reward_model(job, job.launch(training=False), reward)
    rewards = {}
    for source in ("sft", "policy"):
        batch = Batch([completion_row(job, p, c) for p, c in zip(prompts, answers[source], strict=True)])
        texts = [answer_of(p, c) for p, c in zip(prompts, answers[source], strict=True)]
        rewards[source] = models.score(batch, texts, job.config.policy.rewards).score_B.tolist()
    return rewards, label_disagreements.write(job, models, reward)


def win_rates_by_domain(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The policy's win rate over SFT in each domain, with Wilson's interval."""
    outcomes: dict[str, list[float]] = {}
    for row in rows:
        if row.get("choice"):
            outcomes.setdefault(row["domain"], []).append(WIN[row["choice"]])
    return {
        domain: {
            "rate": sum(values) / len(values),
            "interval": list(wilson(sum(values), len(values))),
            "n": len(values),
        }
        for domain, values in sorted(outcomes.items())
    }


def domain_findings(by_domain: dict[str, dict[str, Any]]) -> list[Finding]:
    """Domains in which the policy is significantly worse than SFT."""
    findings = []
    for domain, row in by_domain.items():
        low, high = row["interval"]
        if high < 0.5:
            evidence = (
                f"{domain}: the policy wins over SFT on {row['rate']:.0%} of {row['n']} prompts [{low:.0%}, {high:.0%}]"
            )
            remedy = f"more prompts of {domain}, a higher policy.rewards.domains.{domain}, or a higher policy.kl.coef"
            cause = "gains in other domains cost it here"
            findings.append(Finding("domain-lost", "warning", evidence, cause, remedy))
    return findings


def _text_statistics(answers: Answers, wins: WinRates) -> dict[str, Any]:
    """Text statistics of each model's answers, with the mean score by a judge that scores."""
    scores = wins.mean_scores()
    return {
        source: text_statistics.text_statistics(completions)
        | ({"judge_score": scores[source]} if source in scores else {})
        for source, completions in answers.items()
    }


def _greedy_samples(job: Job[EvaluateConfig], policy: Path, prompts: list[Prompt]) -> list[dict[str, Any]]:
    """Greedy float32 answers of all models to three prompts; an export must reproduce their tokens."""
    domains = sorted({p.domain for p in prompts})
    step = max(1, len(domains) // 3)
    chosen = [next(p for p in prompts if p.domain == domain) for domain in domains[::step]][:3]
    rows: list[dict[str, Any]] = [prompt_cells(p) | {"domain": p.domain} for p in chosen]
    folders = {"sft": job.inputs["sft"] / "weights", "policy": policy / "weights"}
    if job.config.sft.method != "none":
        folders = {"base": job.base_model, **folders}
    for source, folder in folders.items():
        completions = generation.sample(
            job,
            folder,
            [(p, "showcase", Decoding()) for p in chosen],
            source,
            job.config.evaluate.max_new_tokens,
            f"{job.name}: samples of {source}",
            greedy=True,
            dtype="float32",
        )
        for row, completion in zip(rows, completions, strict=True):
            row[source] = completion.text
            row[f"{source}_tokens"] = list(completion.token_ids)
    return rows
