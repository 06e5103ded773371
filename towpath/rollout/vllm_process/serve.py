"""vLLM behind a socket: one request frame, then its replies. Started by `towpath.rollout.vllm_client`, by its path.

Requests: start, connect, attempt, begin, update, finish, verify, generate, sleep. A reply with `failed` is the last.
Usage: python -P serve.py DESCRIPTOR PARENT DIE_WITH_THREAD
"""

import ctypes
import os
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import frames
import numpy as np

BEAT = 1.0
"""Seconds of sampling after which a reply says that it continues."""
PR_SET_PDEATHSIG = 1


def fault(name: str) -> bool:
    """Whether a test asks for this to go wrong, once: TOWPATH_ENGINE_FAULT is a file with the fault's name."""
    path = os.environ.get("TOWPATH_ENGINE_FAULT")
    if path is None or not Path(path).exists() or Path(path).read_text() != name:
        return False
    Path(path).unlink()
    return True


class Server:
    """One engine, and the version of its weights."""

    def __init__(self, channel: frames.FrameSocket) -> None:
        self.channel = channel
        self.llm: Any = None
        self.settings: dict[str, Any] = {}
        self.version = 0
        self.count = 0
        """Tensors of the last weight update."""
        self.asleep = False

    def serve(self) -> None:
        """Until the other side closes."""
        while True:
            try:
                message, arrays = self.channel.receive(None)
            except EOFError:
                return
            getattr(self, message.pop("do"))(arrays, **message)

    def start(self, _arrays: frames.Arrays, **settings: Any) -> None:
        """Load vLLM over a folder with a model's configuration; weights come later."""
        import torch
        import vllm
        from vllm.platforms import current_platform

        on_cpu = current_platform.is_cpu()
        exact = on_cpu if settings["exact"] is None else settings["exact"]
        sleeps = not on_cpu and settings["sleep"]
        parallel = settings["tensor_parallel"] or _fewest_gpus(settings["bytes"], settings["cache"], on_cpu)
        self.settings = settings | {"exact": exact, "sleep": sleeps}
        self.llm = vllm.LLM(
            settings["model"],
            dtype=settings["dtype"],
            load_format="dummy",
            max_model_len=settings["tokens"],
            max_num_seqs=settings["rows"],
            kv_cache_memory_bytes=settings["cache"],
            tensor_parallel_size=parallel,
            skip_tokenizer_init=True,
            logits_processors=["draw:Draw"] if exact else None,
            # the first model runner lists output tokens only once they are on the host
            async_scheduling=False if exact else None,
            logprobs_mode="processed_logits" if exact else "processed_logprobs",
            enforce_eager=not torch.cuda.is_available(),
            enable_sleep_mode=sleeps,
            weight_transfer_config={"backend": "towpath"},
            worker_extension_cls="receive.Extension",
        )
        devices = self.llm.collective_rpc("towpath_device")
        runner = "V2" if self.llm.llm_engine.vllm_config.use_v2_model_runner else "V1"
        facts = {"ready": vllm.__version__, "exact": exact, "sleep": sleeps, "devices": devices, "runner": runner}
        self.channel.send(facts)

    def connect(self, _arrays: frames.Arrays, transport: str, connect: dict[str, Any]) -> None:
        """First phase: how weights will come. A refusal is no failure: another transport is tried."""
        info = {"transport": transport, "connect": connect}
        self._attempt("init_weight_transfer_engine", {"init_info": info})

    def attempt(self, _arrays: frames.Arrays, size: int, source: dict[str, Any]) -> None:
        """The checksum of a few bytes that came by the transport, from each worker."""
        self._attempt("towpath_try", {"size": size, "source": source})

    def _attempt(self, method: str, settings: dict[str, Any]) -> None:
        try:
            answer = self.llm.collective_rpc(method, kwargs=settings)
        except Exception as error:
            traceback.print_exc()
            self.channel.send({"refused": f"{type(error).__name__}: {error}"})
        else:
            self.channel.send({"answer": answer})

    def begin(self, _arrays: frames.Arrays) -> None:
        """Start a weight update."""
        if self.asleep:
            self.llm.wake_up(tags=["weights"])
        self.count = 0
        self.llm.collective_rpc("start_weight_update")
        self.channel.send({"begun": True})

    def update(self, _arrays: frames.Arrays, size: int, source: dict[str, Any], tensors: list[dict[str, Any]]) -> None:
        """Load one chunk, and say what came: the sender may use its buffer again."""
        faults = [name for name in ("corrupt", "skip", "stale") if fault(name)]
        info = {"size": size, "source": source, "tensors": tensors, "faults": faults}
        self.llm.collective_rpc("update_weights", kwargs={"update_info": info})
        received = self.llm.collective_rpc("towpath_received")
        self.count += len(received[0])
        self.channel.send({"ranks": len(received)}, {"checksums": np.array(received, dtype=np.int64)})

    def finish(self, _arrays: frames.Arrays, version: int) -> None:
        """Finish the weight update; cached keys and values were those of other weights."""
        self.llm.collective_rpc("finish_weight_update")
        if fault("damage"):
            self.llm.apply_model(_damage)
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.asleep = False
        self.llm.reset_prefix_cache()
        if not fault("version"):
            self.version = version
        self.channel.send({"finished": self.version})

    def verify(self, _arrays: frames.Arrays, names: list[str] | None) -> None:
        """The weights as they serve now."""
        ranks = self.llm.collective_rpc("towpath_fingerprints", kwargs={"names": names})
        self.channel.send({"version": self.version, "count": self.count, "ranks": ranks})

    def sleep(self, _arrays: frames.Arrays) -> None:
        """Free keys and values, and move the weights to host memory. Level 2 would lose buffers that no update
        brings."""
        if self.settings["sleep"] and not self.asleep:
            self.llm.sleep(level=1)
            self.asleep = True
        self.channel.send({"asleep": self.asleep})

    def generate(self, arrays: frames.Arrays, greedy: bool) -> None:
        """Completions in the order in which they end."""
        if self.asleep:
            self.llm.wake_up()
            self.asleep = False
        limits = [self._add(i, arrays, start, greedy) for i, start in enumerate(_starts(arrays))]
        last_sent = time.monotonic()
        while self.llm.llm_engine.has_unfinished_requests():
            ended = [reply for reply in self.llm.llm_engine.step() if reply.finished]
            if ended:
                self._tell(ended)
            elif time.monotonic() - last_sent > BEAT:
                self.channel.send({"busy": True})
            else:
                continue
            last_sent = time.monotonic()
        self.channel.send({"done": len(limits)})

    def _add(self, i: int, arrays: frames.Arrays, start: tuple[int, int], greedy: bool) -> int:
        import vllm

        uniform_T = arrays["uniforms"][start[1] : start[1] + arrays["limit"][i]]
        one = {name: arrays[name][i].item() for name in ("temperature", "top_k", "top_p", "min_p")}
        common = {
            "max_tokens": len(uniform_T),
            "stop_token_ids": self.settings["stops"],
            "ignore_eos": True,
            "detokenize": False,
            "logprobs": 0,
        }
        if self.settings["exact"]:
            extra = one | {"uniforms": uniform_T.tobytes(), "greedy": greedy}
            how = vllm.SamplingParams(temperature=0.0, extra_args=extra, **common)
        else:
            # the request's own uniform number is its seed, whatever else is in the batch
            seed = int(uniform_T[0] * 2**62)
            temperature = 0.0 if greedy else one["temperature"]
            how = vllm.SamplingParams(temperature=temperature, seed=seed, **common)
        prompt = arrays["ids"][start[0] : start[0] + arrays["length"][i]].tolist()
        self.llm.llm_engine.add_request(str(i), {"prompt_token_ids": prompt}, how)
        return len(uniform_T)

    def _tell(self, ended: list[Any]) -> None:
        rows = [int(reply.request_id) for reply in ended]
        outputs = [reply.outputs[0] for reply in ended]
        ids = [list(output.token_ids) for output in outputs]
        logprobs = [
            [step[token].logprob for step, token in zip(output.logprobs, tokens, strict=True)]
            for output, tokens in zip(outputs, ids, strict=True)
        ]
        self.channel.send(
            {"ended": len(rows)},
            {
                "row": np.array(rows, dtype=np.int64),
                "length": np.array([len(tokens) for tokens in ids], dtype=np.int64),
                "ids": np.array([token for tokens in ids for token in tokens], dtype=np.int64),
                "logprobs": np.array([value for values in logprobs for value in values], dtype=np.float64),
                "stopped": np.array([tokens[-1] in self.settings["stops"] for tokens in ids], dtype=np.int64),
            },
        )
        self._break()

    def _break(self) -> None:
        if fault("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault("hang"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if fault("garbage"):
            self.channel.socket.sendall(b"WARNING: something was printed here\n")
        if fault("half"):
            self.channel.socket.sendall(frames.HEAD.pack(frames.MAGIC, 1000, 0) + b'{"ended"')
            os._exit(1)


def _starts(arrays: frames.Arrays) -> list[tuple[int, int]]:
    """Where each request's prompt and uniform numbers start."""
    ids = np.concatenate([[0], np.cumsum(arrays["length"])])
    uniforms = np.concatenate([[0], np.cumsum(arrays["limit"])])
    return list(zip(ids[:-1].tolist(), uniforms[:-1].tolist(), strict=True))


def _fewest_gpus(weights: int, cache: int, on_cpu: bool) -> int:
    """GPUs that hold the weights and the cache, with a tenth for activations."""
    if on_cpu:
        return 1
    import torch
    from vllm.platforms import current_platform

    room = 0.85 * current_platform.get_device_total_memory() - cache
    count = 1
    while weights * 1.1 > room * count and count < torch.cuda.device_count():
        count *= 2
    return count


def _damage(model: Any) -> None:
    """Half of one weight is lost after it was loaded."""
    weight = next(weight for name, weight in model.named_parameters() if "embed" in name)
    weight.data[: len(weight) // 2] = 0


def _end_with(parent: int, with_thread: bool) -> None:
    """End when the parent does, however busy this process is."""
    if with_thread:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def main() -> None:
    descriptor, parent, with_thread = (int(word) for word in sys.argv[1:4])
    _end_with(parent, bool(with_thread))
    channel = frames.FrameSocket(socket.socket(fileno=descriptor))
    try:
        Server(channel).serve()
    except Exception as error:
        channel.send({"failed": f"{type(error).__name__}: {error}"})
        raise


if __name__ == "__main__":
    main()
