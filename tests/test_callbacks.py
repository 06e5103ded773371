"""Callbacks of `towpath.train`: they see every step and validation, and may stop the training."""

from pathlib import Path
from typing import Any

import pytest

import towpath as tp

PROMPTS = [f"Question {number}?" for number in range(12)]
SETTINGS: dict[str, Any] = {
    "max_new_tokens": 4,
    "rollout": 4,
    "group": 2,
    "validate_every": 1,
    "rewards__eos_penalty": 0,
}


def brief(prompts: list[str], completions: list[str]) -> list[float]:
    return [-float(len(text)) for text in completions]


class Recorder:
    """Writes down what it is called with, and stops at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.stop_at = stop_at

    def on_train_begin(self, steps: int) -> None:
        self.calls.append(("begin", steps))

    def on_step(self, step: int, metrics: dict[str, float]) -> bool:
        self.calls.append(("step", step, "grad_norm" in metrics))
        return step == self.stop_at

    def on_validation(self, step: int, metrics: dict[str, float]) -> None:
        self.calls.append(("validation", step, "reward" in metrics))

    def on_train_end(self, result: dict[str, Any]) -> None:
        self.calls.append(("end", result["stopped"]))


@pytest.mark.filterwarnings("ignore:.*has no fingerprint")
def test_callbacks_see_steps_and_validations_and_may_stop(tmp_path: Path) -> None:
    watching = Recorder()
    stopping = Recorder(stop_at=1)
    callbacks = [watching, stopping, object()]
    trained = tp.train(
        "grpo", model={"source": "tiny", "gradient_checkpointing": True}, prompts=PROMPTS, reward=brief, steps=5,
        folder=tmp_path, callbacks=callbacks, track={"tensorboard": False}, **SETTINGS,
    )  # fmt: skip
    expected = [
        ("begin", 5),
        ("validation", -1, True),
        ("step", 0, True),
        ("validation", 0, True),
        ("step", 1, True),
        ("validation", 1, True),
        ("end", "stopped by Recorder.on_step"),
    ]
    assert watching.calls == stopping.calls == expected
    assert not list(trained.job.folder.glob("tensorboard"))
