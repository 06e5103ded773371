"""PPO in one file, without the framework.  A test compares its numbers with `towpath.train("ppo", method="full")`.

python examples/ppo_by_hand.py MODEL_FOLDER

It processes one answer at a time, without optimisations, so that every line can be checked against the papers (arXiv
1707.06347, 1909.08593, 2009.01325). The critic is fitted in closed form: after every rollout, ridge regression of
returns on features of the reference model's hidden states.

Axes: T answer tokens, N tokens of a rollout, E features.
"""

import copy
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

CLIP = 0.2
GAMMA = 1.0
LAM = 0.95
MAX_NORM = 1.0
EPS = 1e-5
DECAY = 0.95  # weight of a rollout in the critic's fit, relative to the next one
WIDE = 1024  # random features of a state
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


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


@torch.no_grad()
def features(model, prompt, answer):
    """Inputs of the critic: the running mean of the hidden states that predict the answer's tokens, and the running
    sum of random features of them."""
    states = model.model(torch.tensor([[*prompt, *answer]])).last_hidden_state[0, len(prompt) - 1 : -1]
    width = states.shape[1]
    cast = torch.randn(width, WIDE, generator=torch.Generator().manual_seed(width))
    random = (states / states.norm(dim=1, keepdim=True) @ cast).relu()
    return torch.cat([states.cumsum(0) / torch.arange(1, len(answer) + 1)[:, None], random.cumsum(0)], 1).double()


class Critic:
    """Ridge regression on all rollouts, older ones weighted less, with the ridge that best predicted each new
    rollout."""

    def __init__(self):
        self.rollouts = []
        self.errors = np.zeros(len(RIDGES))
        self.best = None

    def __call__(self, feature_TE):
        return (
            feature_TE @ self.best[:-1] + self.best[-1]
            if self.best is not None
            else torch.zeros(len(feature_TE), dtype=torch.float64)
        )

    def learn(self, feature_NE, outcome_N):
        one = torch.cat([feature_NE, torch.ones(len(feature_NE), 1)], 1)
        if self.rollouts:  # each ridge predicts the new rollout before it is learned from
            errors = [float((outcome_N - one @ self.solve(ridge)).square().sum()) for ridge in RIDGES]
            self.errors = DECAY * self.errors + np.array(errors)
        self.rollouts = [(x, y, DECAY * weight) for x, y, weight in self.rollouts] + [(feature_NE, outcome_N, 1.0)]
        self.best = self.solve(RIDGES[int(self.errors.argmin())] if self.errors.any() else 1.0)

    def solve(self, ridge):
        """Least squares on features of mean 0 and norm 1, with one extra row per feature for the ridge."""
        x, y = (torch.cat([rollout[i] for rollout in self.rollouts]) for i in (0, 1))
        weight = torch.cat([torch.full_like(y, w) for _, y, w in self.rollouts])
        mean = (weight[:, None] * x).sum(0) / weight.sum()
        middle = (weight * y).sum() / weight.sum()
        x = weight.sqrt()[:, None] * (x - mean)
        y = weight.sqrt() * (y - middle)
        size = x.norm(dim=0)
        # features that never change get weight 0
        moves = size.square() > 1e-9 * size.square().max()
        x = torch.where(moves, x / size, 0.0)
        rows = torch.cat([x, ridge**0.5 * torch.eye(x.shape[1], dtype=x.dtype)])
        weight_E = torch.linalg.lstsq(rows, torch.cat([y, torch.zeros(x.shape[1])])[:, None].to(x.dtype)).solution[:, 0]
        weight_E = torch.where(moves, weight_E / size, 0.0)
        return torch.cat([weight_E, (middle - mean @ weight_E)[None]])


def advantages(score, kl_T, value_T, kl_coef):
    """GAE over one answer, with KL at every token, the score at the last and no bootstrap; and the undiscounted return
    of each token."""
    reward_T = -kl_coef * kl_T
    reward_T[-1] += score
    gain = 0.0
    advantages = []
    for t in reversed(range(len(reward_T))):
        after = value_T[t + 1] if t + 1 < len(value_T) else 0.0
        gain = reward_T[t] + GAMMA * after - value_T[t] + GAMMA * LAM * gain
        advantages.append(gain)
    return torch.stack(advantages[::-1]), reward_T.flip(0).cumsum(0).flip(0)


def rollout(policy, reference, critic, prompts, uniforms, end, reward, kl_coef, missing_end):
    """Answers with the inputs of the update; advantages are whitened over all tokens of the rollout."""
    rows = []
    for prompt, numbers in zip(prompts, uniforms, strict=True):
        answer = sample(policy, prompt, numbers, end)
        with torch.no_grad():
            old_T = logprobs(policy, prompt, answer)
            ref_T = logprobs(reference, prompt, answer)
            feature_TE = features(reference, prompt, answer)
            rows.append(
                {
                    "prompt": prompt,
                    "answer": answer,
                    "old": old_T,
                    "kl": old_T - ref_T,
                    "features": feature_TE,
                    "value": critic(feature_TE),
                }
            )
    scores = [score - missing_end * (row["answer"][-1] != end) for score, row in zip(reward(rows), rows, strict=True)]
    for row, score in zip(rows, scores, strict=True):
        row["advantage"], row["outcome"] = advantages(score, row["kl"], row["value"], kl_coef)
    every = torch.cat([row["advantage"] for row in rows])
    mean = every.mean()
    deviation = (every.var(unbiased=False) + 1e-8).sqrt()
    for row in rows:
        row["advantage"] = (row["advantage"] - mean) / deviation
    return rows, {"reward": float(np.mean(scores)), "kl": float(np.mean([row["kl"].sum() for row in rows]))}


def loss(policy, rows):
    """The clipped surrogate loss of every token."""
    surrogate = []
    for row in rows:
        ratio = (logprobs(policy, row["prompt"], row["answer"]) - row["old"]).exp()
        surrogate.append(torch.maximum(-row["advantage"] * ratio, -row["advantage"] * ratio.clamp(1 - CLIP, 1 + CLIP)))
    return torch.cat(surrogate)


def train(policy, prompts, uniforms, orders, reward, end, *, batch, rate, kl_coef, missing_end=1.0):
    """All randomness is passed in: `prompts[step]`, `uniforms[step]` and `orders[step][epoch]`."""
    policy.eval()
    reference = copy.deepcopy(policy).requires_grad_(False)
    critic = Critic()
    optimizer = torch.optim.AdamW(policy.parameters(), eps=EPS, weight_decay=0.0)
    history = []
    steps = len(prompts)
    for step in range(steps):
        rows, metrics = rollout(
            policy, reference, critic, prompts[step], uniforms[step], end, reward, kl_coef, missing_end
        )
        surrogates = []
        for epoch, order in enumerate(orders[step]):
            for begin in range(0, len(order), batch):
                surrogate = loss(policy, [rows[i] for i in order[begin : begin + batch]])
                optimizer.zero_grad()
                surrogate.mean().backward()
                torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_NORM)
                # learning rate: linear to 0 over all updates
                done = (step + (epoch * len(order) + begin) / (len(orders[step]) * len(order))) / steps
                optimizer.param_groups[0]["lr"] = rate * (1 - done)
                optimizer.step()
                surrogates.append(surrogate.detach())
        critic.learn(*(torch.cat([row[name] for row in rows]) for name in ("features", "outcome")))
        history.append(metrics | {"policy_loss": float(torch.cat(surrogates).mean())})
    return history


def main():
    """Train for shorter answers, for a few steps."""
    if len(sys.argv) != 2 or not Path(sys.argv[1], "config.json").is_file():
        sys.exit("usage: python ppo_by_hand.py FOLDER, a model as transformers loads it")
    folder = sys.argv[1]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    draw = np.random.default_rng(0)
    questions = [f"Tell me something about the number {i}." for i in range(16)]
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
        for text in questions
    ]
    prompts = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    steps = 5
    epochs = 2
    longest = 24

    def reward(rows):
        return [-len(tokenizer.decode(row["answer"], skip_special_tokens=True).split()) / 5 for row in rows]

    history = train(
        policy,
        [prompts] * steps,
        draw.random((steps, len(prompts), longest)),
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
