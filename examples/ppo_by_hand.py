"""PPO by hand: one file, no framework.  A test holds it to the numbers of `towpath.train("ppo", method="full")`.

    python examples/ppo_by_hand.py MODEL_FOLDER

One answer at a time and nothing clever, so that every line can be checked against the papers (arXiv 1707.06347, 1909.08593, 2009.01325).
The critic is a linear head on the mean of the reference's hidden states so far, begun at zero.
"""

import copy
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

CLIP, VALUE_CLIP, VALUE_WEIGHT, GAMMA, LAM, MAX_NORM, EPS = 0.2, 0.2, 0.1, 1.0, 0.95, 1.0, 1e-5


def sample(model, prompt, uniforms, end):
    """One answer, a token at a time: where the running probability passes the uniform number."""
    answer = []
    for uniform in uniforms:
        with torch.no_grad():
            running = model(torch.tensor([[*prompt, *answer]])).logits[0, -1].softmax(-1).double().cumsum(0)
        answer.append(int((running <= uniform * running[-1]).sum()))
        if answer[-1] == end:
            break
    return answer


def logprobs(model, prompt, answer):
    """log p of every answer token: position t is foretold at t - 1."""
    logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]


@torch.no_grad()
def features(model, prompt, answer):
    """What the critic reads: the mean of the hidden states before the answer's tokens, up to each."""
    states = model.model(torch.tensor([[*prompt, *answer]])).last_hidden_state[0, len(prompt) - 1 : -1]
    return states.cumsum(0) / torch.arange(1, len(answer) + 1)[:, None]


def advantages(score, kl_T, value_T, kl_coef):
    """GAE over one answer: KL at every token, the score at the last, nothing beyond the end; and the returns."""
    reward_T = -kl_coef * kl_T
    reward_T[-1] += score
    gain, found = 0.0, []
    for t in reversed(range(len(reward_T))):
        after = value_T[t + 1] if t + 1 < len(value_T) else 0.0
        gain = reward_T[t] + GAMMA * after - value_T[t] + GAMMA * LAM * gain
        found.append(gain)
    advantage_T = torch.stack(found[::-1])
    return advantage_T, advantage_T + value_T


def rollout(policy, reference, head, prompts, uniforms, end, reward, kl_coef, missing_end):
    """Answers with all that the update needs; advantages are whitened over the tokens of the whole rollout."""
    rows = []
    for prompt, numbers in zip(prompts, uniforms, strict=True):
        answer = sample(policy, prompt, numbers, end)
        with torch.no_grad():
            old_T, ref_T = logprobs(policy, prompt, answer), logprobs(reference, prompt, answer)
            feature_TD = features(reference, prompt, answer)
            rows.append(
                {"prompt": prompt, "answer": answer, "old": old_T, "kl": old_T - ref_T, "features": feature_TD, "value": head(feature_TD)[:, 0]}
            )
    scores = [score - missing_end * (row["answer"][-1] != end) for score, row in zip(reward(rows), rows, strict=True)]
    for row, score in zip(rows, scores, strict=True):
        row["advantage"], row["return"] = advantages(score, row["kl"], row["value"], kl_coef)
    every = torch.cat([row["advantage"] for row in rows])
    mean, deviation = every.mean(), (every.var(unbiased=False) + 1e-8).sqrt()
    for row in rows:
        row["advantage"] = (row["advantage"] - mean) / deviation
    return rows, {"reward": float(np.mean(scores)), "kl": float(np.mean([row["kl"].sum() for row in rows]))}


def loss(policy, head, rows):
    """Mean over answer tokens of the clipped surrogate and the weighted, clipped value error."""
    surrogate, error = [], []
    for row in rows:
        ratio = (logprobs(policy, row["prompt"], row["answer"]) - row["old"]).exp()
        surrogate.append(torch.maximum(-row["advantage"] * ratio, -row["advantage"] * ratio.clamp(1 - CLIP, 1 + CLIP)))
        value = head(row["features"])[:, 0]
        held = row["value"] + (value - row["value"]).clamp(-VALUE_CLIP, VALUE_CLIP)
        error.append(0.5 * torch.maximum((value - row["return"]) ** 2, (held - row["return"]) ** 2))
    surrogate, error = torch.cat(surrogate), torch.cat(error)
    return surrogate.mean() + VALUE_WEIGHT * error.mean(), surrogate, error


def train(policy, prompts, uniforms, orders, reward, end, *, batch, rate, critic_rate, kl_coef, missing_end=1.0):
    """`prompts[step]`, `uniforms[step]` and `orders[step][epoch]` decide everything that is random."""
    policy.eval()
    reference = copy.deepcopy(policy).requires_grad_(False)
    head = torch.nn.Linear(policy.config.hidden_size, 1)
    torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
    learning = [*policy.parameters(), *head.parameters()]
    groups = [{"params": policy.parameters(), "peak": rate}, {"params": head.parameters(), "peak": critic_rate}]
    optimizer = torch.optim.AdamW(groups, eps=EPS, weight_decay=0.0)
    history, steps = [], len(prompts)
    for step in range(steps):
        rows, told = rollout(policy, reference, head, prompts[step], uniforms[step], end, reward, kl_coef, missing_end)
        surrogates, errors = [], []
        for epoch, order in enumerate(orders[step]):
            for begin in range(0, len(order), batch):
                total, surrogate, error = loss(policy, head, [rows[i] for i in order[begin : begin + batch]])
                optimizer.zero_grad()
                total.backward()
                torch.nn.utils.clip_grad_norm_(learning, MAX_NORM)
                done = (step + (epoch * len(order) + begin) / (len(orders[step]) * len(order))) / steps
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * (1 - done)
                optimizer.step()
                surrogates.append(surrogate.detach())
                errors.append(error.detach())
        history.append(told | {"policy_loss": float(torch.cat(surrogates).mean()), "value_loss": float(torch.cat(errors).mean())})
    return history


def main():
    """Shorter answers, in a few steps: enough to watch it work."""
    folder = sys.argv[1]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    draw = np.random.default_rng(0)
    asked = [f"Tell me something about the number {i}." for i in range(16)]
    texts = [tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False) for text in asked]
    prompts = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    steps, epochs, longest = 5, 2, 24

    def reward(rows):
        return [-len(tokenizer.decode(row["answer"], skip_special_tokens=True).split()) / 5 for row in rows]

    history = train(
        policy, [prompts] * steps, draw.random((steps, len(prompts), longest)), [[draw.permutation(16) for _ in range(epochs)] for _ in range(steps)],
        reward, tokenizer.eos_token_id, batch=8, rate=1e-5, critic_rate=1e-3, kl_coef=0.05,
    )  # fmt: skip
    for step, told in enumerate(history):
        print(step, {name: round(value, 4) for name, value in told.items()})


if __name__ == "__main__":
    main()
