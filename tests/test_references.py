"""Every loss and its gradient against an independent NumPy implementation of the papers' formulas, in float64 on ragged
rows."""

import importlib

import numpy as np
import pytest
import torch

from towpath.algos.contract import Outputs
from towpath.data.batch import Batch, Row
from towpath.recipe import Policy, Reward
from towpath.stages.comparisons import mismatch_prompts

LENGTHS = (5, 2, 7, 1, 4, 3)
GROUP = np.array([0, 0, 0, 1, 1, 1])
KL = 0.07
EPS = 1e-4


class Case:
    """Random rows as lists of arrays and as a batch."""

    def __init__(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.old, self.ref, self.new, self.value, self.new_value = (
            [-draw.random(n) * 2 - 0.1 for n in LENGTHS] for _ in range(5)
        )
        self.new = [old + draw.normal(0, 0.25, n) for old, n in zip(self.old, LENGTHS, strict=True)]
        self.new = [np.minimum(x, -0.01) for x in self.new]
        self.reward = draw.normal(0, 1, len(LENGTHS))
        self.rows = [Row(np.arange(3 + n), 3) for n in LENGTHS]

    def padded(self, rows):
        out = torch.full((len(LENGTHS), max(LENGTHS)), 9.0, dtype=torch.float64)
        for i, row in enumerate(rows):
            out[i, : len(row)] = torch.from_numpy(row)
        return out

    def batch(self, sizes=()):
        columns = {
            "old_logp": self.padded(self.old),
            "ref_logp": self.padded(self.ref),
            "value": self.padded(self.value),
        }
        columns |= {"reward": torch.from_numpy(self.reward), "group": torch.from_numpy(GROUP)}
        columns |= {"desirable": torch.tensor([True, False] * 3), "point": torch.full((6,), 0.3, dtype=torch.float64)}
        return Batch(self.rows, columns, sizes)


def clipped(ratio, advantage, low, high):
    return -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def policy_tokens(case, new, advantages, low=0.2, high=0.2):
    """Surrogate losses of the tokens of each row; an advantage is a number or an array over tokens."""
    return [
        [
            clipped(np.exp(n - o), a if np.isscalar(a) else a[t], low, high)
            for t, (n, o) in enumerate(zip(row, case.old[i], strict=True))
        ]
        for i, (row, a) in enumerate(zip(new, advantages, strict=True))
    ]


def whitened(rows):
    flat = np.concatenate(rows)
    return [(row - flat.mean()) / np.sqrt(flat.var() + 1e-8) for row in rows]


def ppo(case, new, cfg):
    advantages = []
    returns = []
    for old, ref, value, score in zip(case.old, case.ref, case.value, case.reward, strict=True):
        reward = -KL * (old - ref)
        reward[-1] += score
        gain = 0.0
        row = np.zeros(len(old))
        for t in reversed(range(len(old))):
            following = value[t + 1] if t + 1 < len(old) else 0.0
            gain = reward[t] + cfg.ppo.gamma * following - value[t] + cfg.ppo.gamma * cfg.ppo.lam * gain
            row[t] = gain
        advantages.append(row)
        returns.append(row + value)
    tokens = policy_tokens(case, new, whitened(advantages), cfg.ppo.clip, cfg.ppo.clip)
    total = sum(map(sum, tokens))
    for now, before, target in zip(case.new_value, case.value, returns, strict=True):
        held = before + np.clip(now - before, -cfg.ppo.value_clip, cfg.ppo.value_clip)
        total += cfg.ppo.value_weight * 0.5 * np.maximum((now - target) ** 2, (held - target) ** 2).sum()
    return total / sum(LENGTHS)


def group_advantage(reward, scale):
    out = np.zeros(len(LENGTHS))
    for g in (0, 1):
        own = reward[g == GROUP]
        out[g == GROUP] = (own - own.mean()) / (own.std(ddof=1) + EPS if scale == "group" else 1.0)
    return out / (out.std(ddof=1) + EPS) if scale == "batch" else out


def grpo(case, new, cfg):
    in_reward = cfg.grpo.kl == "reward"
    advantage = group_advantage(whole_rewards(case) if in_reward else case.reward, cfg.grpo.scale)
    tokens = policy_tokens(case, new, list(advantage), cfg.grpo.clip_low, cfg.grpo.clip_high)
    k3 = [np.exp(ref - row) - (ref - row) - 1 for ref, row in zip(case.ref, new, strict=True)]
    sums = [np.sum(t) + (0.0 if in_reward else KL * k.sum()) for t, k in zip(tokens, k3, strict=True)]
    if cfg.grpo.average == "answer":
        return np.mean([s / n for s, n in zip(sums, LENGTHS, strict=True)])
    return sum(sums) / (sum(LENGTHS) if cfg.grpo.average == "token" else len(LENGTHS) * cfg.max_new_tokens)


def whole_rewards(case):
    return np.array(
        [score - KL * (old - ref).sum() for score, old, ref in zip(case.reward, case.old, case.ref, strict=True)]
    )


def rloo(case, new, cfg):
    reward = whole_rewards(case)
    advantage = [
        reward[i] - np.mean([reward[j] for j in range(6) if j != i and GROUP[j] == GROUP[i]]) for i in range(6)
    ]
    return sum(map(sum, policy_tokens(case, new, advantage))) / len(LENGTHS)


def reinforce(case, new, cfg):
    reward = whole_rewards(case)
    advantage = np.array([reward[i] - np.mean(np.delete(reward, i)) for i in range(6)])
    advantage = (advantage - advantage.mean()) / np.sqrt(advantage.var() + 1e-8)
    return sum(map(sum, policy_tokens(case, new, list(advantage)))) / len(LENGTHS)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_ratio(case, new, i):
    return new[i].sum() - case.ref[i].sum()


def dpo(case, new, cfg):
    margins = [cfg.dpo.beta * (log_ratio(case, new, i) - log_ratio(case, new, i + 1)) for i in (0, 2, 4)]
    e = cfg.dpo.label_smoothing
    return np.mean([-(1 - e) * np.log(sigmoid(m)) - e * np.log(sigmoid(-m)) for m in margins])


def ipo(case, new, cfg):
    per = [log_ratio(case, new, i) / (LENGTHS[i] if cfg.ipo.per_token else 1) for i in range(6)]
    return np.mean([(per[i] - per[i + 1] - 1 / (2 * cfg.ipo.tau)) ** 2 for i in (0, 2, 4)])


def kto(case, new, cfg):
    ratios = [log_ratio(case, new, i) - 0.3 for i in range(6)]
    good = [cfg.kto.desirable * (1 - sigmoid(cfg.kto.beta * ratios[i])) for i in (0, 2, 4)]
    bad = [cfg.kto.undesirable * (1 - sigmoid(-cfg.kto.beta * ratios[i])) for i in (1, 3, 5)]
    return (sum(good) + sum(bad)) / 6


def orpo(case, new, cfg):
    chance = [np.exp(row.mean()) for row in new]
    odds = [p / (1 - p) for p in chance]
    return np.mean(
        [-np.log(chance[i]) - cfg.orpo.weight * np.log(sigmoid(np.log(odds[i] / odds[i + 1]))) for i in (0, 2, 4)]
    )


CASES = [
    (ppo, {}),
    (ppo, {"ppo": {"lam": 1.0, "gamma": 0.9, "value_clip": 0.05, "clip": 0.1}}),
    *(
        (grpo, {"grpo": {"average": average, "clip_high": 0.28}, "max_new_tokens": 11})
        for average in ("token", "answer", "constant")
    ),
    *(
        (grpo, {"grpo": {"scale": scale, "kl": kl}})
        for scale in ("group", "batch", "none")
        for kl in ("reward", "loss")
    ),
    (rloo, {}),
    (reinforce, {}),
    (dpo, {}),
    (dpo, {"dpo": {"beta": 0.5, "label_smoothing": 0.1}}),
    (ipo, {}),
    (ipo, {"ipo": {"per_token": False, "tau": 0.4}}),
    (kto, {}),
    (kto, {"kto": {"beta": 0.4, "undesirable": 1.3}}),
    (orpo, {"orpo": {"weight": 0.4}}),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("reference", "settings"),
    CASES,
    ids=lambda x: x.__name__ if callable(x) else "-".join(map(str, x.values())) or "plain",
)
def test_loss_and_gradient_match_the_paper(reference, settings, seed):
    case = Case(seed)
    cfg = Policy.model_validate(settings)
    algo = importlib.import_module(f"towpath.algos.{reference.__name__}")
    pairs = algo.DATA == "comparisons" and getattr(algo, "PAIRED", True)
    batch = algo.prepare(case.batch((2, 2, 2) if pairs else ()), cfg, {"kl_coef": KL, "policy_weight": 1.0})
    logp = case.padded(case.new).requires_grad_()
    mask = torch.from_numpy(batch.mask_BT)
    out = Outputs(mask, logp_BT=logp, entropy_BT=torch.zeros_like(logp), value_BT=case.padded(case.new_value))
    total, _ = algo.loss(out, batch, cfg, {"kl_coef": KL, "policy_weight": 1.0})
    ours = total / algo.weigh(batch, cfg)
    ours.backward()
    assert ours.item() == pytest.approx(reference(case, case.new, cfg), abs=1e-6)
    for i, n in enumerate(LENGTHS):
        for t in range(n):
            up, down = ([row.copy() for row in case.new] for _ in range(2))
            up[i][t] += 1e-5
            down[i][t] -= 1e-5
            slope = (reference(case, up, cfg) - reference(case, down, cfg)) / 2e-5
            assert logp.grad[i, t].item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("known", [False, True])
def test_reward_model_loss_matches_the_paper(known):
    algo = importlib.import_module("towpath.algos.reward_model")
    cfg = Reward(center=0.02, label_smoothing=0.1, margin=True)
    score = torch.tensor([0.3, -0.4, 1.2, 0.1, 0.7], dtype=torch.float64, requires_grad=True)
    beats = torch.tensor([[0, 2.0, 0], [0, 0, 0], [3.0, 1.0, 0], [0, 0, 0], [1.0, 0, 0]], dtype=torch.float64)
    rows = [Row(np.arange(4), 3)] * 5
    sure = torch.where(beats > 0, 0.6 + 0.1 * beats, 1.0)
    columns = {"beats": beats, "place": torch.tensor([0, 1, 2, 0, 1])} | ({"sure": sure} if known else {})
    batch = Batch(rows, columns, (3, 2), frozenset({"beats", "sure"} & set(columns)))
    total, _ = algo.loss(Outputs(torch.ones(5, 1, dtype=torch.bool), score_B=score), batch, cfg, {})
    s = score.detach().numpy()
    want = 0.0
    for winner, loser, strength in ((0, 1, 2.0), (2, 0, 3.0), (2, 1, 1.0), (4, 3, 1.0)):
        gap = s[winner] - s[loser] - (strength - 1) / 2
        pull = 0.02 * (s[winner] + s[loser]) ** 2
        right = 0.6 + 0.1 * strength if known else 1.0
        other = 0.9 * (1 - right) + 0.1 * right  # the label is wrong, or smoothing flips it
        want += pull - (1 - other) * np.log(sigmoid(gap)) - other * np.log(sigmoid(-gap))
    assert total.item() == pytest.approx(want, abs=1e-9)
    assert algo.weigh(batch, cfg) == 4


def test_sft_loss_is_cross_entropy_of_answer_tokens():
    algo = importlib.import_module("towpath.algos.sft")
    case = Case(0)
    logp = case.padded(case.new).requires_grad_()
    batch = case.batch()
    total, _ = algo.loss(Outputs(torch.from_numpy(batch.mask_BT), logp_BT=logp), batch, None, {})
    assert total.item() == pytest.approx(-sum(row.sum() for row in case.new), abs=1e-9)
    assert algo.weigh(batch, None) == sum(LENGTHS)


def test_orpo_loss_metric_is_its_objective():
    """The best checkpoint is chosen by this metric; the odds alone would prefer a policy that ruined both answers."""
    case = Case(5)
    cfg = Policy.model_validate({"orpo": {"weight": 0.3}})
    algo = importlib.import_module("towpath.algos.orpo")
    batch = case.batch((2, 2, 2))
    out = Outputs(torch.from_numpy(batch.mask_BT), logp_BT=case.padded(case.new), entropy_BT=torch.zeros(6, 7))
    total, metrics = algo.loss(out, batch, cfg, {})
    assert metrics["loss"] == pytest.approx((total.item(), 3.0))
    assert metrics["loss"][0] == pytest.approx(0.3 * metrics["odds"][0] + metrics["nll"][0])


def test_kto_reference_point_uses_mismatched_prompts():
    prompts = [np.array([3, 4]), np.array([3, 4]), np.array([5]), np.array([3, 4]), np.array([6, 7])]
    rows = [Row(np.concatenate([prompt, [10 + i, 2]]), len(prompt)) for i, prompt in enumerate(prompts)]
    for row, mixed, own in zip(rows, mismatch_prompts(rows), prompts, strict=True):
        assert mixed.ids[mixed.start :].tolist() == row.ids[row.start :].tolist()
        assert mixed.ids[: mixed.start].tolist() in [
            prompt.tolist() for prompt in prompts if prompt.tolist() != own.tolist()
        ]
    assert mismatch_prompts(rows[:2]) == mismatch_prompts(rows[:1]) == []
    for count in range(2, 6):  # the nearest previous row with another prompt, cyclically
        for i, mixed in enumerate(mismatch_prompts(rows[:count])):
            nearest = next(
                prompts[:count][i - back]
                for back in range(1, count)
                if prompts[:count][i - back].tolist() != prompts[i].tolist()
            )
            assert mixed.ids[: mixed.start].tolist() == nearest.tolist()
