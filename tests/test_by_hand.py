"""The framework-free examples against the library: the same random draws give the same metrics and weights."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import towpath as tp
from towpath.data.chat import Chat
from towpath.data.draws import permutation, uniforms
from towpath.hashing import hash_uniform
from towpath.models import base

pytestmark = pytest.mark.slow
PROMPTS = [f"Name something number {i} is good for." for i in range(20)]
STEPS = 3
EPOCHS = 2
ROLLOUT = 8
BATCH = 4
MAX_NEW_TOKENS = 9
VALIDATION_PROMPTS = 4
EXAMPLES = Path(__file__).parent.parent / "examples"


def load_example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def vowels(prompts, answers):
    return [sum(letter in "aeiou" for letter in answer) / 4 - len(answer) / 20 for answer in answers]


@pytest.mark.parametrize(("algo", "group"), [("ppo", 1), ("grpo", 4)])
def test_examples_by_hand_match_the_library(algo, group, tiny_folder, tmp_path):
    more = {
        "group": group,
        "rollout": ROLLOUT,
        "batch": BATCH,
        "epochs": EPOCHS,
        "max_new_tokens": MAX_NEW_TOKENS,
        "validation_prompts": VALIDATION_PROMPTS,
    }
    trained = tp.train(
        algo,
        model="tiny",
        prompts=PROMPTS,
        reward=vowels,
        kl=0.1,
        steps=STEPS,
        folder=tmp_path,
        method="full",
        dtype="float32",
        learning_rate=1e-3,
        validate_every=STEPS,
        kl__alarm=1e3,
        kl__stop=1e3,
        **more,
    )
    chat = Chat(base.load_tokenizer(tiny_folder))
    names = {f"p{i}": text for i, text in enumerate(PROMPTS)}
    left = sorted(names, key=lambda name: hash_uniform(0, "policy/validation", name))[VALIDATION_PROMPTS:]
    prompt_ids = []
    numbers = []
    orders = []
    for step in range(STEPS):
        visits = [divmod(visit, len(left)) for visit in range(step * ROLLOUT // group, (step + 1) * ROLLOUT // group)]
        ids = [(str(epoch), left[permutation(len(left), 0, "policy/prompts", epoch)[i]]) for epoch, i in visits]
        prompt_ids.append([chat.prompt(names[name]) for _, name in ids])
        draws = [(epoch if copy == 0 else f"{epoch}.{copy}", name) for epoch, name in ids for copy in range(group)]
        numbers.append([uniforms(MAX_NEW_TOKENS, 0, f"policy/{step}", epoch, name) for epoch, name in draws])
        orders.append([permutation(ROLLOUT, 0, "policy/minibatch", step, epoch) for epoch in range(EPOCHS)])
    policy = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)

    def reward(rows):
        return vowels(None, [chat.text(row["answer"]) for row in rows])

    module = load_example(f"{algo}_by_hand")
    group_size = (group,) if algo == "grpo" else ()
    history = module.train(
        policy, prompt_ids, *group_size, numbers, orders, reward, chat.eos, batch=BATCH, rate=1e-3, kl_coef=0.1
    )
    ours = [row for row in trained.metrics if row["phase"] == "train"]
    for expected, row in zip(history, ours, strict=True):
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, abs=2e-5), name
    saved = load_file(trained.folder / "model.safetensors")
    for name, weight in policy.state_dict().items():
        if name in saved:
            np.testing.assert_allclose(saved[name].numpy(), weight.numpy(), atol=2e-5)
