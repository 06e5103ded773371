"""Mutation tests: one-line breakages over all packages, each with the tests that must fail.

`python tests/strength.py` (`make strength`) applies every breakage to a copy of the tree, runs its tests there and
prints which survived. It is slow and run by hand; `--only WORD` selects breakages by name or file.
tests/test_strength.py tests that every breakage still applies.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Breakage:
    """A change that tests must detect: text that occurs once in a file, its replacement, and the tests that must
    fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


A = "towpath/algos/"
D = "towpath/data/"
M = "towpath/models/"
F = "towpath/feedback/"
S = "towpath/store/"
W = "towpath/web/"

BREAKAGES = [
    # sweep
    Breakage(
        "validation nearest to the target KL counts alone",
        "towpath/sweep/objective.py",
        "np.exp((distance_V.min() - distance_V) / 2)",
        "np.exp((distance_V.min() - distance_V) * 1e6)",
        "tests/test_sweep_objective.py",
    ),
    Breakage(
        "largest KL of a trial that does not reach the target",
        "towpath/sweep/objective.py",
        "float(kl[-1]) if len(kl)",
        "float(kl.max()) if len(kl)",
        "tests/test_sweep_objective.py",
    ),
    Breakage(
        "difference of settings on different prompts",
        "towpath/sweep/objective.py",
        "total -= _value(_take(others[s], index)",
        "total -= _value(_take(others[s], draws.integers(0, prompts, prompts))",
        "tests/test_sweep_objective.py",
    ),
    Breakage(
        "findings on the inputs end a trial",
        "towpath/sweep/pruning.py",
        " and (f.first_step is None or f.first_step > 0)",
        "",
        "tests/test_sweep_objective.py",
    ),
    Breakage(
        "halving compares at the target KL",
        "towpath/sweep/pruning.py",
        "level = min(float(curve.kl_V.max()), target)",
        "level = max(float(curve.kl_V.max()), target)",
        "tests/test_sweep_objective.py",
    ),
    Breakage(
        "one seed for all draws of TPE",
        "towpath/sweep/sampler.py",
        'generator(seed, "sweep/tpe", number)',
        'generator(seed, "sweep/tpe")',
        "tests/test_sweep_sampler.py",
    ),
    Breakage(
        "winner without a shown difference",
        "towpath/sweep/verdict.py",
        "    if low > 0:",
        "    if high > 0:",
        "tests/test_sweep_apply.py",
    ),
    Breakage(
        "confirmation with a seed of the trials",
        "towpath/sweep/preparation.py",
        "plan.recipe.seed + 1 + round_number",
        "plan.recipe.seed + round_number",
        "tests/test_sweep.py -k confirmation",
    ),
    Breakage(
        "owner elsewhere is never dead",
        "towpath/sweep/study.py",
        "if time.monotonic() - since < self.patience:",
        "if True:",
        "tests/test_sweep.py -k dead_machine",
    ),
    Breakage(
        "comments of a recipe are lost",
        "towpath/sweep/apply.py",
        "assignment[4], count=1)",
        "assignment[4].partition('#')[0], count=1)",
        "tests/test_sweep_apply.py",
    ),
    # workers
    Breakage(
        "gradients of other workers are left out",
        "towpath/runtime/replica.py",
        "        dist.all_reduce(flat)\n",
        "",
        "tests/test_group.py",
    ),
    Breakage(
        "rows of a worker in reverse",
        "towpath/runtime/group.py",
        "row_index_B[part[0]] = np.arange(len(part[0]))",
        "row_index_B[part[0]] = np.arange(len(part[0]))[::-1]",
        "tests/test_group.py",
    ),
    Breakage(
        "past of a critic counted by each worker",
        "towpath/runtime/replica.py",
        "decay if self.rank == 0 else 0.0",
        "decay",
        "tests/test_group.py",
    ),
    Breakage(
        "slice of a checkpoint from the beginning",
        "towpath/runtime/state_files.py",
        "file.get_slice(key)[low - begin : high - begin]",
        "file.get_slice(key)[0 : high - low]",
        "tests/test_group.py",
    ),
    Breakage(
        "divided gradients are halved",
        "towpath/runtime/sharded.py",
        "module.set_gradient_divide_factor(1.0)",
        "module.set_gradient_divide_factor(2.0)",
        "tests/test_group.py",
    ),
    Breakage(
        "silence of a worker is not noticed",
        "towpath/runtime/workers.py",
        "self.states[rank].last_heard > self.timeout]",
        "self.states[rank].last_heard > 100 * self.timeout]",
        "tests/test_worker_faults.py",
    ),
    Breakage(
        "messages without a checksum",
        "towpath/runtime/channel.py",
        "if zlib.crc32(header) != checksum:",
        "if False:",
        "tests/test_wire.py",
    ),
    Breakage(
        "a rollout ahead is not in the checkpoint",
        "towpath/rollout/experience.py",
        "        if outputs is not None:\n            save_file",
        "        if outputs is None:\n            save_file",
        "tests/test_apart.py",
    ),
    Breakage(
        "workers that sample keep the first weights",
        "towpath/runtime/weight_bridge.py",
        "runtime.bridge.broadcast([tensor], options).wait()",
        "pass",
        "tests/test_apart.py",
    ),
    Breakage(
        "stale tokens have no importance weights",
        "towpath/stages/policy.py",
        "0.0 if is_local and not cfg.staleness else",
        "0.0 if is_local else",
        "tests/test_apart.py -k weighted",
    ),
    # plan
    Breakage(
        "people work on all days",
        "towpath/run/run_plan.py",
        "WEEK = 7 / 5",
        "WEEK = 1.0",
        "tests/test_planning.py -k weekends",
    ),
    Breakage(
        "a sum has the source of its most certain part",
        "towpath/planning/amounts.py",
        "least = min(known",
        "least = max(known",
        "tests/test_planning.py -k least_certain",
    ),
    Breakage(
        "what is left of a run does not follow from what it took",
        "towpath/run/plan_record.py",
        "expected = factor * row.expected",
        "expected = row.expected",
        "tests/test_planning.py -k estimated_by",
    ),
    Breakage(
        "the memory of a trial is not used",
        "towpath/planning/memory.py",
        "measured[stage] = replace(memory, measured=max(parts)) if parts else memory",
        "measured[stage] = memory",
        "tests/test_planning.py -k measures_once",
    ),
    # hosts
    Breakage(
        "a worker's proof of the token is not compared",
        "towpath/runtime/handshake.py",
        "if not hmac.compare_digest(_exactly",
        "if not max(_exactly",
        "tests/test_hosts.py",
    ),
    Breakage(
        "both ends prove the token in one role",
        "towpath/runtime/handshake.py",
        "role + first + second",
        "first + second",
        "tests/test_hosts.py",
    ),
    Breakage(
        "hosts with other versions are taken",
        "towpath/runtime/versions.py",
        "        elif unlike:\n",
        "        elif not unlike:\n",
        "tests/test_hosts.py",
    ),
    Breakage(
        "a lost host counts as there",
        "towpath/runtime/remote.py",
        '        if key != "ended":\n            self.drop()\n',
        '        if key != "ended":\n',
        "tests/test_hosts.py",
    ),
    # algos
    Breakage(
        "prompts of another length aligned at the left",
        "towpath/rollout/cache.py",
        "pad(part, (0, 0, columns - part.shape[2], 0))",
        "pad(part, (0, 0, 0, columns - part.shape[2]))",
        "tests/test_rollout.py",
    ),
    Breakage(
        "sheet shows the last turn alone",
        S + "exchange.py",
        "(c.id, prompt.text, a.text, b.text,",
        "(c.id, prompt.prompt, a.text, b.text,",
        "tests/test_store.py",
    ),
    Breakage(
        "import goes on after a contradiction",
        S + "exchange.py",
        "        if bad:\n            more",
        "        if bad > 10**9:\n            more",
        "tests/test_store.py",
    ),
    Breakage(
        "held-out judge measured on its own labels",
        "towpath/stages/judge_model.py",
        "(pairs if is_reserved(job.config, pair.prompt) else others).append(pair)",
        "pairs.append(pair)",
        "tests/test_evaluation_judges.py",
    ),
    Breakage(
        "training prompted with the last turn alone",
        "towpath/rollout/experience.py",
        "make_row(self.chat.prompt(r.prompt.messages)",
        "make_row(self.chat.prompt(r.prompt.prompt)",
        "tests/test_conversations.py -k whole_conversations",
    ),
    Breakage(
        "pairs prompted with the last turn alone",
        "towpath/stages/labelled_pairs.py",
        "job.chat.prompt(prompt.messages)",
        "job.chat.prompt(prompt.prompt)",
        "tests/test_conversations.py -k whole_conversations",
    ),
    Breakage(
        "judges read the last turn alone",
        F + "judge_runner.py",
        "PairText(c.id, prompt.text,",
        "PairText(c.id, prompt.prompt,",
        "tests/test_conversations.py -k whole_conversations",
    ),
    Breakage(
        "answers without a score trained on",
        "towpath/rollout/experience.py",
        'if "reward" not in batch.columns or not batch.columns["reward"].isnan().any():',
        "if True:",
        "tests/test_verifiable_rewards.py -k unscored_answers",
    ),
    Breakage(
        "an unevaluated expression counts as the answer",
        "towpath/rewards/verifiable.py",
        "if is_value(reference) and not (result and is_value(str(result[-1]))):",
        "if False:",
        "tests/test_verifiable_rewards.py -k question",
    ),
    Breakage(
        "a failed program scores zero",
        "towpath/rewards/command.py",
        "FAILED = math.nan",
        "FAILED = 0.0",
        "tests/test_verifiable_rewards.py -k failures",
    ),
    Breakage(
        "turns of a conversation in both splits",
        D + "corpus_reader.py",
        "normalise(opening(messages))",
        "normalise(transcript(messages))",
        "tests/test_data.py -k one_split",
    ),
    Breakage(
        "whitening includes padding",
        A + "functional.py",
        "torch.where(mask, x, 0.0).sum() / mask.sum()",
        "x.mean()",
        "tests/test_functional.py",
    ),
    Breakage(
        "score added to the first token",
        A + "functional.py",
        "last_B = mask_BT.sum(1) - 1",
        "last_B = 0 * mask_BT.sum(1)",
        "tests/test_functional.py",
    ),
    Breakage(
        "GAE without lambda",
        A + "functional.py",
        "delta + gamma * lam * following",
        "delta + gamma * following",
        "tests/test_functional.py",
    ),
    Breakage(
        "policy loss takes the smaller of clipped and unclipped",
        A + "functional.py",
        "torch.maximum(plain, clipped)",
        "torch.minimum(plain, clipped)",
        "tests/test_functional.py",
    ),
    Breakage(
        "value loss takes the smaller of clipped and unclipped",
        A + "functional.py",
        "torch.maximum((value - target) ** 2, (held",
        "torch.minimum((value - target) ** 2, (held",
        "tests/test_functional.py",
    ),
    Breakage(
        "Bradley-Terry margin negated",
        A + "functional.py",
        "F.logsigmoid(margin) - smoothing",
        "F.logsigmoid(-margin) - smoothing",
        "tests/test_functional.py",
    ),
    Breakage("IPO target doubled", A + "functional.py", "1 / (2 * tau)", "1 / tau", "tests/test_references.py"),
    Breakage(
        "KTO sign flipped", A + "functional.py", "torch.sigmoid(-sign", "torch.sigmoid(sign", "tests/test_references.py"
    ),
    Breakage(
        "leave-one-out baseline includes the own reward",
        A + "functional.py",
        "(total_B - x_B) / (size_B - 1).clamp(min=1)",
        "total_B / size_B",
        "tests/test_references.py",
    ),
    Breakage(
        "KL penalty added instead of subtracted",
        A + "functional.py",
        "score_B - coef * torch.where",
        "score_B + coef * torch.where",
        "tests/test_references.py",
    ),
    Breakage(
        "chosen and rejected swapped",
        A + "pairwise.py",
        "x_B[0::2], x_B[1::2]",
        "x_B[1::2], x_B[0::2]",
        "tests/test_references.py",
    ),
    Breakage(
        "GRPO answer average ignored",
        A + "grpo.py",
        'if cfg.grpo.average == "answer" else None',
        'if cfg.grpo.average == "never" else None',
        "tests/test_algos.py",
    ),
    Breakage(
        "on-policy old log-probabilities ignored",
        A + "surrogate.py",
        'if "on_policy" in c else c["old_logp"]',
        'if False else c["old_logp"]',
        "tests/test_algos.py",
    ),
    Breakage(
        "SFT row weights ignored",
        A + "sft.py",
        "out.logp_BT * weight_BT",
        "out.logp_BT",
        "tests/test_models.py -k weight",
    ),
    Breakage(
        "reward centring ignored",
        A + "reward_model.py",
        "cfg.center * ((chosen",
        "0.0 * ((chosen",
        "tests/test_references.py",
    ),
    # data
    Breakage(
        "micro-batches exceed the token limit",
        D + "batch.py",
        "if total > tokens and index > begin:",
        "if total > tokens + 8 and index > begin:",
        "tests/test_models.py -k passes",
    ),
    Breakage(
        "packed segments share a number",
        D + "batch.py",
        "segment_PL[line, begin:end] = count[line]",
        "segment_PL[line, begin:end] = 1",
        "tests/test_models.py -k weight",
    ),
    Breakage(
        "positions continue over packed rows",
        D + "batch.py",
        "np.arange(first, first + len(ids))",
        "np.arange(begin, begin + len(ids))",
        "tests/test_models.py -k packing",
    ),
    Breakage(
        "random draws ignore the stream",
        D + "draws.py",
        "[str(seed), stream, *map(str, counters)]",
        "[str(seed), *map(str, counters)]",
        "tests/test_data.py -k draws",
    ),
    Breakage(
        "Wilson interval too wide",
        D + "intervals.py",
        "Z**2 / (4 * n**2)",
        "Z**2 / (2 * n**2)",
        "tests/test_feedback.py tests/test_sequential.py",
    ),
    Breakage(
        "missing harmful label read as harmless",
        D + "fields.py",
        "        raise UnusableRow(UNSTATED)",
        "        return False",
        "tests/test_unusable.py -k harmful_label",
    ),
    Breakage(
        "near-duplicate search with one band", D + "near_duplicates.py", "BANDS = 16", "BANDS = 1", "tests/test_near.py"
    ),
    Breakage(
        "NUL in prompts accepted",
        D + "texts.py",
        'if "\\x00" in text:',
        "if False:",
        "tests/test_unusable.py tests/test_data.py",
    ),
    Breakage(
        "demonstrations of held-out prompts are used",
        D + "corpus_reader.py",
        'if any(p.split == "heldout" for p in (*owners, *by_text[text])):',
        "if False:",
        "tests/test_data.py -k heldout",
    ),
    Breakage(
        "duplicate columns accepted",
        S + "exchange.py",
        "if header.count(name) > 1",
        "if header.count(name) > 2",
        "tests/test_unusable.py -k columns",
    ),
    # models and rollout
    Breakage(
        "adapter scale ignored",
        M + "lora_layers.py",
        "F.linear(x, a) * self.scale[name]",
        "F.linear(x, a)",
        "tests/test_models.py -k adapter",
    ),
    Breakage(
        "adapter scale ignored in merging",
        M + "lora_layers.py",
        "change = self.scale[name] * (self",
        "change = 1.0 * (self",
        "tests/test_models.py -k adapter",
    ),
    Breakage(
        "reward head initialized too wide",
        M + "heads.py",
        "1 / math.sqrt(width + 1)",
        "1.0",
        "tests/test_models.py -k drawn",
    ),
    Breakage(
        "closed-form head without bias",
        M + "heads.py",
        "self.head.bias.copy_(solved_E[-1])",
        "self.head.bias.zero_()",
        "tests/test_models.py -k solved",
    ),
    Breakage(
        "pickle weights accepted",
        M + "files.py",
        'sorted(folder.glob("*.safetensors"))',
        'sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])',
        "tests/test_model_sources.py tests/test_model_files.py",
    ),
    Breakage(
        "top-p drops one token",
        "towpath/rollout/sampling.py",
        "(mass < goal_B[:, None]).sum(-1)",
        "((mass < goal_B[:, None]).sum(-1) - 1)",
        "tests/test_rollout.py -k draws",
    ),
    Breakage(
        "top-k limited below the vocabulary",
        "towpath/rollout/sampling.py",
        "(top_k_B.clamp(1, most) - 1)[:, None]",
        "top_k_B.clamp(1, most - 1)[:, None]",
        "tests/test_rollout.py",
    ),
    Breakage(
        "temperature ignored",
        "towpath/rollout/sampling.py",
        ".div_(temperature_B[:, None])",
        "",
        "tests/test_rollout.py -k draws",
    ),
    # runtime
    Breakage(
        "non-finite gradient updates weights",
        "towpath/runtime/weights.py",
        "if np.isfinite(norm):",
        "if True:",
        "tests/test_models.py -k nan",
    ),
    Breakage(
        "loss not divided by the weight of the step",
        "towpath/runtime/local.py",
        "(total / weight).backward()",
        "total.backward()",
        "tests/test_by_hand.py",
    ),
    Breakage(
        "AdamW without bias correction",
        "towpath/models/cpu/optimizer.py",
        "rate / (1 - beta1**count)",
        "rate",
        "tests/test_adam.py -k torch",
    ),
    Breakage(
        "metrics summed in the precision of their tensors",
        A + "contract.py",
        "x.detach().double() if",
        "x.detach() if",
        "tests/test_gpu_paths.py -k float64",
    ),
    Breakage(
        "a loss takes a number from its device",
        A + "pairwise.py",
        "(x.sum(), count)",
        "(float(x.sum()), count)",
        "tests/test_gpu_paths.py -k reads_nothing",
    ),
    Breakage(
        "AdamW over lists without weight decay",
        "towpath/models/foreach.py",
        "torch._foreach_mul_(wholes, step.decay)",
        "pass",
        "tests/test_gpu_paths.py -k list",
    ),
    Breakage(
        "FlashAttention's window one token too wide",
        "towpath/models/varlen.py",
        "else window - 1",
        "else window",
        "tests/test_gpu_paths.py -k version",
    ),
    Breakage(
        "FlashAttention sums in any order",
        "towpath/models/varlen.py",
        'torch.set_deterministic_debug_mode("error")',
        "pass",
        "tests/test_gpu_paths.py -k version",
    ),
    Breakage(
        "repeated prompts not counted",
        "towpath/data/batch.py",
        "if repeated_prompts:",
        "if False:",
        "tests/test_gpu_paths.py -k prompts",
    ),
    Breakage(
        "optimizer not counted in the memory of a pass",
        "towpath/runtime/memory_plan.py",
        "room_on(device, share) - pending",
        "room_on(device, share)",
        "tests/test_gpu_paths.py -k plan",
    ),
    Breakage(
        "AdamW without weight decay",
        "towpath/models/cpu/optimizer.py",
        "1 - rate * self.weight_decay",
        "1.0",
        "tests/test_adam.py -k torch",
    ),
    # feedback, evals, gates
    Breakage(
        "later rounds of a rater ignored",
        F + "aggregation.py",
        ">= by_rater[judgement.rater].round",
        "< by_rater[judgement.rater].round",
        "tests/test_feedback.py",
    ),
    Breakage(
        "even split decided for the first choice",
        F + "aggregation.py",
        'choice = "tie" if tied else ranked[0][0]',
        "choice = ranked[0][0]",
        "tests/test_feedback.py",
    ),
    Breakage(
        "earlier judge calls not counted",
        F + "judge_budget.py",
        "self.dollars = ledger.total() if ledger else 0.0",
        "self.dollars = 0.0",
        "tests/test_judge.py -k reruns",
    ),
    Breakage(
        "cost ceiling exceeded",
        F + "judge_budget.py",
        "self.dollars + self._reserved + maximum > self.limit",
        "self.dollars > self.limit",
        "tests/test_judge.py -k ceiling",
    ),
    Breakage(
        "API key not redacted",
        F + "endpoint.py",
        'text = network.redact(self._key, content if isinstance(content, str) else "")',
        'text = content if isinstance(content, str) else ""',
        "tests/test_outside.py -k echoed",
    ),
    Breakage(
        "best-of-n win rate wrong",
        "towpath/evals/winrate.py",
        '"rate": n / (n + 1)',
        '"rate": n / (n + 2)',
        "tests/test_evals.py",
    ),
    Breakage(
        "length control ignored",
        "towpath/evals/winrate.py",
        "np.tanh(gaps / spread)",
        "0 * gaps",
        "tests/test_evals.py",
    ),
    Breakage(
        "sequential test without correction",
        "towpath/evals/sequential.py",
        "total_N - log(len(STAKES))",
        "total_N + 1.0",
        "tests/test_sequential.py",
    ),
    Breakage(
        "rubric judges all data",
        "towpath/judges/selection.py",
        "return specs if is_bundled(corpus) else",
        "return specs if specs else",
        "tests/test_own_data.py",
    ),
    Breakage(
        "reserved labels train the reward model",
        "towpath/stages/labelled_pairs.py",
        "if not is_reserved(job.config, pair.prompt)]",
        "]",
        "tests/test_evaluation_judges.py",
    ),
    Breakage(
        "failed judge counts as a tie",
        "towpath/judges/ai.py",
        "return PairOutcome(None, result.reason)",
        "return PairOutcome(0.5)",
        "tests/test_evaluation_judges.py",
    ),
    Breakage(
        "gate ignores unjudged pairs",
        "towpath/evals/gate_rule.py",
        'record["missing"] > max_unjudged or',
        "False or",
        "tests/test_gates.py",
    ),
    Breakage(
        "refusals in any language by English patterns",
        "towpath/feedback/refusal_patterns.py",
        "if code in PATTERN_LANGUAGES else None",
        "if True else None",
        "tests/test_safety.py",
    ),
    Breakage(
        "gate passes below its threshold",
        "towpath/evals/gate_rule.py",
        '"PASS" if value > threshold else "FAIL"',
        '"PASS" if value >= threshold - 0.5 else "FAIL"',
        "tests/test_gates.py",
    ),
    Breakage(
        "over-refusal ignored by the safety gate",
        "towpath/run/gates.py",
        'after["over_refusal"] - before["over_refusal"])',
        "-1.0)",
        "tests/test_gates.py",
    ),
    Breakage(
        "KL limit per token ignored",
        "towpath/health/kl_limit.py",
        "    per_token = limits.kl_high_per_token * length",
        '    per_token = float("nan")',
        "tests/test_health.py tests/test_foreign_logs.py",
    ),
    Breakage(
        "reward arguments passed by position",
        "towpath/rewards/call_adapter.py",
        "    missing = [",
        "    return lambda prompts, answers, _more: function(list(prompts), list(answers))\n    missing = [",
        "tests/test_call_adapter.py",
    ),
    # store
    Breakage(
        "write acknowledged before the commit",
        S + "writer.py",
        '                fault_point("commit")',
        "                [f.set_result(None) for _, f in jobs]",
        "tests/test_rating.py -k killed",
    ),
    Breakage(
        "batch lost with its connection",
        S + "writer.py",
        "        if connection.invalidated:",
        "        if False:",
        "tests/test_store.py -k connection",
    ),
    Breakage(
        "NUL reaches the database",
        S + "ledger.py",
        'event.listen(engine, "before_cursor_execute", _clean_parameters, retval=True)',
        "pass",
        "tests/test_edge.py -k unstorable",
    ),
    Breakage(
        "ledger readable by others",
        S + "ledger.py",
        "        _require_private(path)",
        "        pass",
        "tests/test_accounts.py -k ledger",
    ),
    Breakage(
        "SQLite without synchronous writes",
        S + "ledger.py",
        '"synchronous=FULL"',
        '"synchronous=OFF"',
        "tests/test_store.py -k synchronous",
    ),
    Breakage(
        "stored choice ignores the shown order",
        S + "verdicts.py",
        "choice = sides.choice_of(submission.verdict.side, lease.shown)",
        'choice = sides.choice_of(submission.verdict.side, "ab")',
        "tests/test_rating.py",
    ),
    Breakage(
        "time worked without limit",
        S + "verdicts.py",
        "min(milliseconds, max(0, int((at - lease.at) * 1000)))",
        "milliseconds",
        "tests/test_rating_pages.py",
    ),
    Breakage(
        "import stored partly",
        S + "store.py",
        "        if shared is not None:",
        "        if False:",
        "tests/test_store.py -k imports",
    ),
    Breakage(
        "file digests not verified",
        S + "manifest.py",
        "        if actual != expected:",
        "        if False:",
        "tests/test_artefacts.py",
    ),
    Breakage(
        "password in a store URL accepted",
        S + "location.py",
        "return bool(parts.password) or",
        "return",
        "tests/test_outside.py -k password",
    ),
    # web
    Breakage(
        "transfer-encoding accepted",
        W + "guard.py",
        'if "transfer-encoding" in headers or',
        "if",
        "tests/test_edge.py -k stated",
    ),
    Breakage(
        "anonymous request bodies read",
        W + "guard.py",
        "            if account is None:",
        "            if False:",
        "tests/test_edge.py -k anonymous",
    ),
    Breakage(
        "foreign origins accepted",
        W + "guard.py",
        "if origin is not None and origin_host(origin) != host.lower():",
        "if False:",
        "tests/test_web.py -k origins",
    ),
    Breakage(
        "links send a referrer",
        W + "safe_html.py",
        'link_rel="noopener noreferrer nofollow"',
        "link_rel=None",
        "tests/test_web.py -k markdown",
    ),
    Breakage(
        "owner pages open to raters",
        W + "auth.py",
        '    if account.role != "owner":',
        "    if False:",
        "tests/test_routes.py tests/test_web.py -k roles",
    ),
    Breakage(
        "unavailable storage reported as a refusal",
        W + "error_responses.py",
        "    if isinstance(error, ResourceError):",
        "    if False:",
        "tests/test_edge.py -k locked",
    ),
    # outside, run, command line, monitor
    Breakage(
        "endless response read",
        "towpath/network.py",
        "        if len(body) > MAX_RESPONSE_BYTES:",
        "        if False:",
        "tests/test_outside.py -k endless",
    ),
    Breakage(
        "metadata addresses allowed",
        "towpath/network.py",
        "        if is_forbidden(str(address_info[0])):",
        "        if False:",
        "tests/test_outside.py -k metadata",
    ),
    Breakage(
        "control characters printed",
        "towpath/terminal.py",
        '    return _CONTROL.sub("", str(text))',
        "    return str(text)",
        "tests/test_terminal.py",
    ),
    Breakage(
        "progress lines too rare",
        "towpath/progress.py",
        "LINE_INTERVAL = 8.0",
        "LINE_INTERVAL = 100.0",
        "tests/test_progress.py",
    ),
    Breakage(
        "aliases of unknown keys ignored",
        "towpath/recipe/aliases.py",
        "    if aliased:",
        "    if False:",
        "tests/test_recipe_words.py",
    ),
    Breakage(
        "label stage not planned again",
        "towpath/run/pipeline.py",
        'if is_new and self.stages[number].kind == "label":',
        "if False:",
        "tests/test_labelling.py -k first_run",
    ),
    Breakage(
        "maxima lost in downsampling",
        "towpath/view/downsample.py",
        "for extreme in (np.minimum, np.maximum)",
        "for extreme in (np.minimum,)",
        "tests/test_monitor.py -k spike",
    ),
    Breakage(
        "weights that came with other values are accepted",
        "towpath/rollout/weight_sync.py",
        "if wrong is not None:",
        "if False:",
        "tests/test_engine_process.py",
    ),
    Breakage(
        "weights that serve are not compared",
        "towpath/rollout/weight_sync.py",
        "        if wrong:\n",
        "        if wrong and False:\n",
        "tests/test_engine_process.py",
    ),
    Breakage(
        "bit-equal answers of other weights are accepted",
        "towpath/rollout/weight_sync.py",
        "if changed and (tokens, logprobs) == self._last:",
        "if False:",
        "tests/test_engine_process.py",
    ),
    Breakage(
        "a lost engine samples all requests again",
        "towpath/rollout/vllm.py",
        "if i not in outputs]",
        "]",
        "tests/test_engine_process.py",
    ),
    Breakage(
        "untested versions of vLLM are accepted",
        "towpath/rollout/vllm_environment.py",
        "return _minor(FIRST_TESTED) <= _minor(version) <= _minor(LAST_TESTED)",
        "return True",
        "tests/test_engine_install.py tests/test_preflight.py",
    ),
]


def applied(root: Path, breakage: Breakage) -> str:
    """The text of the file with the breakage applied; it must apply exactly once."""
    text = (root / breakage.file).read_text(encoding="utf-8")
    if text.count(breakage.old) != 1:
        raise ValueError(f"{breakage.name}: {breakage.file} has the text {text.count(breakage.old)} times")
    return text.replace(breakage.old, breakage.new)


def survived(root: Path, breakage: Breakage) -> str:
    """Why a breakage survived in the copy at `root`; empty if its tests failed."""
    path = root / breakage.file
    original = path.read_text(encoding="utf-8")
    broken = applied(root, breakage)
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "--no-header",
        "-p",
        "no:cacheprovider",
        *breakage.tests.split(),
    ]
    path.write_text(broken, encoding="utf-8")
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
    except subprocess.TimeoutExpired:
        return "" if breakage.name in HANG else "its tests timed out"
    finally:
        path.write_text(original, encoding="utf-8")
    return "" if done.returncode == 1 else f"pytest ended with {done.returncode}: {done.stdout.strip()[-200:]}"


def copy_tree(root: Path) -> Path:
    """A copy of the working tree at `root`."""
    skipped = shutil.ignore_patterns(".venv", ".bench", ".git", "runs", "*.pyc", "__pycache__")
    shutil.copytree(ROOT, root, ignore=skipped)
    return root


HANG = ("endless response read",)
"""Breakages that may be detected by a test that never ends."""


def main() -> int:
    """Apply every breakage and print which survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="select breakages whose name or file contains this word")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="breakages tried at a time")
    options = parser.parse_args()
    chosen = [one for one in BREAKAGES if options.only in one.name or options.only in one.file]
    survivors = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.jobs):
            copies.put(copy_tree(Path(folder) / str(number)))

        def check(one: Breakage) -> str:
            root = copies.get()
            try:
                return survived(root, one)
            finally:
                copies.put(root)

        for one, why in zip(chosen, pool.map(check, chosen), strict=True):
            print(f"{'SURVIVED' if why else 'detected'} {one.name}{f': {why}' if why else ''}", flush=True)
            survivors += [one.name] if why else []
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} detected")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
