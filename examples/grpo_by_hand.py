"""GRPO in one file, without the framework.  A test compares its numbers with `towpath.train("grpo", method="full")`.

python examples/grpo_by_hand.py MODEL_FOLDER

Several answers to each prompt, with the group's mean reward as baseline (arXiv 2402.03300); no critic; the
KL penalty to the reference is part of the reward.
"""

import copy
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

CLIP = 0.2
MAX_NORM = 1.0
EPS = 1e-5


def sample(model, prompt, uniforms, end):
    """Sample one answer: each token is the one at which the cumulative probability exceeds a uniform number."""
    answer = []
    for uniform in uniforms:
        with torch.no_grad():
            running = model(torch.tensor([[*prompt, *answer]])).logits[0, -1].softmax(-1).double().cumsum(0)
        answer.append(int((running <= uniform * running[-1]).sum()))
        if answer[-1] == end:
            break
    return answer


def logprobs(model, prompt, answer):
    """Log-probability of every answer token; position t is predicted at t - 1."""
    logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]


def rollout(policy, reference, prompts, group, uniforms, end, reward, kl_coef, missing_end):
    """`group` answers to each prompt; an advantage is the reward minus the group's mean, divided by the standard
    deviation over the rollout."""
    rows = []
    for number, numbers in enumerate(uniforms):
        prompt = prompts[number // group]
        answer = sample(policy, prompt, numbers, end)
        with torch.no_grad():
            rows.append(
                {
                    "prompt": prompt,
                    "answer": answer,
                    "old": logprobs(policy, prompt, answer),
                    "ref": logprobs(reference, prompt, answer),
                }
            )
    scores = torch.tensor(
        [score - missing_end * (row["answer"][-1] != end) for score, row in zip(reward(rows), rows, strict=True)]
    )
    kl = torch.stack([(row["old"] - row["ref"]).sum() for row in rows])
    groups = (scores - kl_coef * kl).view(-1, group)
    advantage = (groups - groups.mean(1, keepdim=True)).flatten()
    for row, value in zip(rows, advantage / (advantage.std() + 1e-4), strict=True):
        row["advantage"] = value
    return rows, {"reward": float(scores.mean()), "kl": float(kl.mean())}


def loss(policy, rows):
    """The clipped surrogate loss of every token."""
    surrogate = []
    for row in rows:
        logp = logprobs(policy, row["prompt"], row["answer"])
        ratio = (logp - row["old"]).exp()
        surrogate.append(torch.maximum(-row["advantage"] * ratio, -row["advantage"] * ratio.clamp(1 - CLIP, 1 + CLIP)))
    return torch.cat(surrogate)


def train(policy, prompts, group, uniforms, orders, reward, end, *, batch, rate, kl_coef, missing_end=1.0):
    """All randomness is passed in: `prompts[step]`, `uniforms[step]` and `orders[step][epoch]`."""
    policy.eval()
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), eps=EPS, weight_decay=0.0)
    history = []
    steps = len(prompts)
    for step in range(steps):
        rows, metrics = rollout(
            policy, reference, prompts[step], group, uniforms[step], end, reward, kl_coef, missing_end
        )
        surrogates = []
        for epoch, order in enumerate(orders[step]):
            for begin in range(0, len(order), batch):
                surrogate = loss(policy, [rows[i] for i in order[begin : begin + batch]])
                optimizer.zero_grad()
                surrogate.mean().backward()
                torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_NORM)
                done = (step + (epoch * len(order) + begin) / (len(orders[step]) * len(order))) / steps
                optimizer.param_groups[0]["lr"] = rate * (1 - done)
                optimizer.step()
                surrogates.append(surrogate.detach())
        history.append(metrics | {"policy_loss": float(torch.cat(surrogates).mean())})
    return history


def main():
    """Train for shorter answers, for a few steps."""
    if len(sys.argv) != 2 or not Path(sys.argv[1], "config.json").is_file():
        sys.exit("usage: python grpo_by_hand.py FOLDER, a model as transformers loads it")
    folder = sys.argv[1]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    draw = np.random.default_rng(0)
    questions = [f"Tell me something about the number {i}." for i in range(4)]
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
        for text in questions
    ]
    prompts = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    steps = 5
    epochs = 1
    group = 4
    longest = 24

    def reward(rows):
        return [-len(tokenizer.decode(row["answer"], skip_special_tokens=True).split()) / 5 for row in rows]

    history = train(
        policy,
        [prompts] * steps,
        group,
        draw.random((steps, 16, longest)),
        [[draw.permutation(16) for _ in range(epochs)] for _ in range(steps)],
        reward,
        tokenizer.eos_token_id,
        batch=8,
        rate=1e-5,
        kl_coef=0.05,
    )
    for step, metrics in enumerate(history):
        print(step, {name: round(value, 4) for name, value in metrics.items()})


if __name__ == "__main__":
    main()
