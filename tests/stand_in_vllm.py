"""The engine's process without vLLM: the real server, over a transformers model that the local engine samples."""

import json
import sys
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from towpath.recipe import Decoding
from towpath.rollout.engine import SampleRequest
from towpath.rollout.local import LocalEngine
from towpath.rollout.vllm_process import network, serve, tensors
from towpath.rollout.weight_transport import SharedMemory


class SamplingParams:
    def __init__(self, **settings: Any) -> None:
        self.settings = settings


class Output(types.SimpleNamespace):
    finished = True


class StandIn:
    """What `serve.Server` uses of `vllm.LLM`: one worker, its weights, and requests that end three a step."""

    def __init__(self, folder: str, dtype: str, stops: list[int]) -> None:
        self.model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder), dtype=getattr(torch, dtype), attn_implementation="eager"
        ).eval()
        self.stops = stops
        self.llm_engine = self
        self.requests: dict[str, tuple[list[int], dict[str, Any]]] = {}
        self.received: list[int] = []
        self.loaded: set[str] = set()
        self.weights = dict(self.model.named_parameters())

    def collective_rpc(self, method: str, kwargs: dict[str, Any] | None = None) -> list[Any]:
        return [getattr(self, method)(**(kwargs or {}))]

    def towpath_device(self) -> dict[str, Any]:
        return {"type": "cpu", "uuid": "", "host": serve.os.uname().nodename}

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.transport = init_info["transport"]
        if self.transport == "nccl":
            self.group = network.open_group(**init_info["connect"], rank=1, device=torch.device("cpu"))

    def open(self, size: int, source: dict[str, Any]) -> torch.Tensor:
        if self.transport == "nccl":
            buffer = torch.empty(size, dtype=torch.uint8)
            network.broadcast(self.group, buffer)
            return buffer
        if Path(source["file"]).parent != SharedMemory(Path()).folder:
            raise OSError("the file is not in shared memory")
        return torch.frombuffer(bytearray(Path(source["file"]).read_bytes()[:size]), dtype=torch.uint8)

    def towpath_try(self, size: int, source: dict[str, Any]) -> int:
        return tensors.checksum(self.open(size, source))

    def start_weight_update(self) -> None:
        self.loaded = set()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        buffer = self.open(update_info["size"], update_info["source"])
        named = [(o["name"], tensors.view(buffer, o["dtype"], o["shape"], o["offset"])) for o in update_info["tensors"]]
        faults = update_info["faults"]
        if "corrupt" in faults:
            named[len(named) // 2][1].view(-1)[0] += 1
        if "skip" in faults:
            named.pop(len(named) // 2)
        self.received = [tensors.checksum(tensor) for _, tensor in named]
        for name, tensor in named:
            self.loaded.add(name)
            if "stale" not in faults:
                self.weights[name].data.copy_(tensor)

    def towpath_received(self) -> list[int]:
        return self.received

    def finish_weight_update(self) -> None:
        pass

    def towpath_fingerprints(self, names: list[str] | None) -> dict[str, Any]:
        chosen = [name for name in names or self.weights if "proj" not in name]  # as vLLM does on CPUs
        return {
            "parts": {name: [name] for name in self.weights},
            "readable": [name for name in self.weights if "proj" not in name],
            "prints": {name: tensors.fingerprint(self.weights[name]) for name in chosen},
            "missing": sorted(set(self.weights) - self.loaded),
        }

    def apply_model(self, function: Any) -> None:
        function(self.model)

    def reset_prefix_cache(self) -> None:
        pass

    def add_request(self, number: str, prompt: dict[str, Any], how: SamplingParams) -> None:
        self.requests[number] = (prompt["prompt_token_ids"], how.settings)

    def has_unfinished_requests(self) -> bool:
        return bool(self.requests)

    def step(self) -> list[Output]:
        numbers = list(self.requests)[-3:]
        greedy = False
        requests = []
        for number in numbers:
            prompt, settings = self.requests.pop(number)
            extra = settings["extra_args"]
            greedy = extra.pop("greedy")
            uniforms = np.frombuffer(extra.pop("uniforms"), np.float64)
            requests.append(SampleRequest(prompt, Decoding(**extra), uniforms))
        outputs = LocalEngine(self.model, eos=self.stops, pad=0).generate(requests, greedy)
        return [
            Output(
                request_id=number,
                outputs=[
                    types.SimpleNamespace(
                        token_ids=one.token_ids,
                        logprobs=[
                            {token: types.SimpleNamespace(logprob=logp)}
                            for token, logp in zip(one.token_ids, one.logprobs, strict=True)
                        ],
                    )
                ],
            )
            for number, one in zip(numbers, outputs, strict=True)
        ]


class StandInServer(serve.Server):
    def start(self, _arrays: Any, **settings: Any) -> None:
        sys.modules["vllm"] = types.SimpleNamespace(SamplingParams=SamplingParams)  # type: ignore[assignment]
        print("settings", json.dumps(settings), flush=True)
        self.settings = settings | {"exact": True, "sleep": False}
        self.llm = StandIn(settings["model"], settings["dtype"], settings["stops"])
        devices = self.llm.collective_rpc("towpath_device")
        self.channel.send({"ready": "0.0", "exact": True, "sleep": False, "devices": devices, "runner": "none"})


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve.Server = StandInServer
    serve.main()
