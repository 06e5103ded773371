"""Whether models are divided over workers: pure arithmetic on what they must hold."""

import math
from collections.abc import Mapping
from pathlib import Path

from towpath.models import files
from towpath.runtime.contract import RoleSpec

FROZEN_BYTES = 2
TRAINED_BYTES = 18
"""Of a number: in 16 bits; with its low bits, gradient, sum of gradients and two moments."""


def bytes_on_a_gpu(roles: Mapping[str, RoleSpec]) -> int:
    """Weights, gradients and optimizer state of roles where nothing is divided; adapters and heads are not counted."""
    frozen = {spec.model for spec in roles.values() if spec.model and (spec.lora or spec.learning_rate is None)}
    total = FROZEN_BYTES * sum(map(_parameters, frozen))
    for spec in roles.values():
        model = spec.model or roles[spec.copies].model if spec.model or spec.copies else ""
        if model and spec.learning_rate is not None and spec.lora is None:
            total += TRAINED_BYTES * _parameters(model)
    return total


def _parameters(folder: str) -> int:
    headers = [files.header(path) for path in files.weight_files(Path(folder))]
    return sum(math.prod(entry["shape"]) for header in headers for entry in header.values() if "shape" in entry)
