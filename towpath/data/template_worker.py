"""Worker process that renders chat templates with limited time and memory, since templates are untrusted code.

Requests and replies are JSON lines: {"template", "messages", "add_generation_prompt", "variables"} in; {"text"} or
{"error", "line"} out. It uses the function of `apply_chat_template` in the sandbox of transformers, loaded without
torch.
"""

import json
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

SECONDS = 2.0
"""CPU time per rendering."""
MEMORY = 512 * 2**20
"""Bytes that rendering may use beyond the process's initial memory."""
EXTRA_CHARACTERS = 2**20
"""Characters that a rendering may have beyond sixteen times its messages."""


def main() -> None:
    """Answer requests until standard input ends."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # not needed here and slow to import
    from transformers.utils.chat_template_utils import render_jinja_template

    replies = sys.stdout
    sys.stdout = sys.stderr  # keeps prints of libraries out of the replies
    _limit_memory()
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # the signal kills the process by default
        reply = _render(render_jinja_template, request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _limit_memory() -> None:
    """Limit memory beyond what is mapped now; if that is impossible, only the caller's limits apply."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (OSError, ValueError):
        return


def _render(render: Any, request: dict[str, Any]) -> dict[str, Any]:
    messages = request["messages"]
    template = request["template"]
    try:
        texts, _ = render(
            [messages],
            chat_template=template,
            add_generation_prompt=request["add_generation_prompt"],
            **request["variables"],
        )
    except MemoryError:
        return {"error": f"it takes more than {MEMORY // 2**20} MiB", "line": None}
    except RecursionError:
        return {"error": "it calls itself without end", "line": None}
    except Exception as error:  # a template may raise anything
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename in ("<template>", "<unknown>")
        ]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", "line": line, "raised": True}
    longest = EXTRA_CHARACTERS + 16 * sum(len(message["content"]) for message in messages)
    if len(texts[0]) > longest:
        return {
            "error": f"it writes {len(texts[0]):,} characters for messages of {(longest - EXTRA_CHARACTERS) // 16:,}",
            "line": None,
        }
    return {"text": texts[0]}


if __name__ == "__main__":
    main()
