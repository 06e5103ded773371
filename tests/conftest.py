"""What tests share: a real tiny model, made on the spot."""

import os

import pytest
import torch

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")


@pytest.fixture(scope="session")
def tiny_folder() -> str:
    from towpath.models import base

    return base.find("tiny")


@pytest.fixture
def tiny(tiny_folder: str):
    from towpath.models import base

    return base.load(tiny_folder, torch.float32, "grouped")


@pytest.fixture(scope="session")
def chat(tiny_folder: str):
    from towpath.data.chat import Chat
    from towpath.models import base

    return Chat(base.load_tokenizer(tiny_folder))
