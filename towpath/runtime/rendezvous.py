"""How an agent finds the run's controller and is known there: variables of its environment."""

import json
import os
from pathlib import Path

ADDRESS = "TOWPATH_CLUSTER_ADDRESS"
TOKEN = "TOWPATH_CLUSTER_TOKEN"
FILE = "TOWPATH_CLUSTER_FILE"
"""A file with address and token, which the first task of a run writes."""
SLOT = "TOWPATH_CLUSTER_SLOT"
WAIT = "TOWPATH_CLUSTER_WAIT"
LOCAL_RANK = "TOWPATH_CLUSTER_LOCAL_RANK"
CHILD = "TOWPATH_CLUSTER_CHILD"
"""Set where the agent must end with the process that has started it."""


def read() -> tuple[str, str]:
    """Address and token of the controller; OSError or ValueError where they are not there yet."""
    if os.environ.get(FILE):
        content = json.loads(Path(os.environ[FILE]).read_text(encoding="utf-8"))
        return str(content["address"]), str(content["token"])
    return os.environ[ADDRESS], os.environ[TOKEN]
