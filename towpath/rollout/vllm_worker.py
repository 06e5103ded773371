"""vLLM in a Python of its own: JSON lines in, JSON lines out. Started by `towpath.rollout.vllm`, by its path: here
is no Towpath.

In:   {"model", "dtype", "tokens", "rows", "cache", "stops"} to begin, then {"load": folder} or {"generate": [...],
"greedy": bool}
Out:  {"ready": version}, {"loaded": folder}, {"i", "ids", "logprobs", "finish"} as each answer ends, {"failed": text}

"""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

# one process, so that `Draw` is in it
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_NO_USAGE_STATS": "1"}
TELL = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # whatever else is printed goes to the log

import torch  # noqa: E402
import vllm  # noqa: E402
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality  # noqa: E402

_spec = importlib.util.spec_from_file_location("sampling", Path(__file__).with_name("sampling.py"))
assert _spec and _spec.loader
sampling = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sampling)


class Draw(LogitsProcessor):
    """Draws the tokens as the engine of the training process does, each by its request's uniform number, and leaves
    vLLM no other choice."""

    columns: dict[str, torch.Tensor]
    """Of the requests [N]: how to draw, uniforms [N,T], and the log-probabilities drawn [N,T]."""
    greedy = False

    def __init__(self, _config: Any, device: torch.device, _pinned: bool) -> None:
        self.device = device
        self.rows: dict[int, tuple[int, list[int]]] = {}
        """By place in the batch: the request's number, and its answer, which vLLM extends."""

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for slot in batch_update.removed:
            self.rows.pop(slot, None)
        for slot, how, _prompt, answer in batch_update.added:
            self.rows[slot] = (how.extra_args["request"], answer)
        for a, b, way in batch_update.moved:
            first = self.rows.pop(a, None)
            second = self.rows.pop(b, None)
            if first:
                self.rows[b] = first
            if second and way == MoveDirectionality.SWAP:
                self.rows[a] = second

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        rows = [self.rows[slot] for slot in range(len(logits))]
        request = torch.tensor([number for number, _ in rows], device=logits.device)
        step = torch.tensor([len(answer) for _, answer in rows], device=logits.device)
        c = {name: column[request] for name, column in Draw.columns.items() if column.ndim == 1}
        p_BV = sampling.scaled(logits.clone(), c["temperature"])
        if Draw.greedy:
            token_B = logits.argmax(-1)
        else:
            token_B = sampling.inverse_cdf(
                sampling.filtered(p_BV, c["top_k"], c["top_p"], c["min_p"]), Draw.columns["uniforms"][request, step]
            )
        Draw.columns["logprobs"][request, step] = p_BV.gather(1, token_B[:, None])[:, 0].log()
        return logits.fill_(-torch.inf).scatter_(1, token_B[:, None], 0.0)


def started(settings: dict[str, Any]) -> vllm.LLM:
    """The engine, over a folder of weights and configuration."""
    return vllm.LLM(
        settings["model"],
        dtype=settings["dtype"],
        max_model_len=settings["tokens"],
        max_num_seqs=settings["rows"],
        kv_cache_memory_bytes=settings["cache"],
        skip_tokenizer_init=True,
        logits_processors=[Draw],
        async_scheduling=False,
        enforce_eager=not torch.cuda.is_available(),
    )


def generate(llm: vllm.LLM, rows: list[dict[str, Any]], greedy: bool, stops: list[int]) -> None:
    """Answers in the order in which they end."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    longest = max(len(one["uniforms"]) for one in rows)
    uniforms = torch.tensor(
        [one["uniforms"] + [0.0] * (longest - len(one["uniforms"])) for one in rows], dtype=torch.float64
    )
    Draw.greedy = greedy
    Draw.columns = {"uniforms": uniforms.to(device), "logprobs": torch.zeros(uniforms.shape, device=device)}
    for name, dtype in (
        ("temperature", torch.float32),
        ("top_k", torch.int64),
        ("top_p", torch.float32),
        ("min_p", torch.float32),
    ):
        Draw.columns[name] = torch.tensor([one[name] for one in rows], dtype=dtype, device=device)
    for i, one in enumerate(rows):
        how = vllm.SamplingParams(
            temperature=0.0,
            max_tokens=len(one["uniforms"]),
            stop_token_ids=stops,
            ignore_eos=True,
            detokenize=False,
            extra_args={"request": i},
        )
        llm.llm_engine.add_request(str(i), {"prompt_token_ids": one["prompt"]}, how)
    while llm.llm_engine.has_unfinished_requests():
        for reply in llm.llm_engine.step():
            if reply.finished:
                i = int(reply.request_id)
                answer = reply.outputs[0]
                ids = list(answer.token_ids)
                logprobs = Draw.columns["logprobs"][i, : len(ids)].tolist()
                tell({"i": i, "ids": ids, "logprobs": logprobs, "finish": "stop" if ids[-1] in stops else "length"})


def tell(message: dict[str, Any]) -> None:
    TELL.write(json.dumps(message) + "\n")


def main() -> None:
    """Serve until the pipe closes."""
    begin = json.loads(sys.stdin.readline())
    llm = started(begin)
    tell({"ready": vllm.__version__})
    for line in sys.stdin:
        message = json.loads(line)
        if "load" in message:
            llm.collective_rpc("reload_weights", kwargs={"weights_path": message["load"]})
            llm.reset_prefix_cache()
            tell({"loaded": message["load"]})
        else:
            generate(llm, message["generate"], message["greedy"], begin["stops"])


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        tell({"failed": f"{type(error).__name__}: {error}"})
        raise
