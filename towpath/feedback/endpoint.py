"""Client of servers with an OpenAI-compatible chat completions API: retries, a budget, and JSON output."""

import json
import random
import time
from dataclasses import dataclass, replace
from threading import Event, Lock
from typing import Any, Literal

import httpx

from towpath import network
from towpath.errors import RecipeError, ResourceError
from towpath.feedback.judge_budget import Budget, BudgetExceeded, TokenPrice, estimate_tokens, token_upper_bound
from towpath.recipe.reader import secret

Message = dict[str, str]
FailureReason = Literal["unreachable", "rejected", "refused"]

FIRST_PAUSE = 0.5
"""Seconds before the second attempt; every further pause is twice as long."""
TEMPLATE_TOKENS = 64
"""Tokens that a chat template may add to a message."""
FORBIDDEN_RULE = "a judge is a model server; link-local addresses and cloud metadata addresses are never called"
FORMATS = ("json_schema", "json_object", "text")
"""Values of `response_format`, the strictest first; with `text` only the prompt asks for JSON."""


@dataclass(frozen=True)
class JudgeSettings:
    """Server, model and budget of a judge; prices are dollars per million tokens, a ceiling of 0 means none."""

    base_url: str
    model: str
    api_key: str = ""
    rubric: str = ""
    samples: int = 1
    temperature: float = 0.0
    max_tokens: int = 400
    concurrency: int = 4
    timeout: float = 60.0
    retries: int = 5
    price_in: float = 0.0
    price_out: float = 0.0
    ceiling: float = 0.0
    on_position_flip: Literal["tie", "people"] = "tie"

    @property
    def price(self) -> TokenPrice:
        """The price of tokens."""
        return TokenPrice(self.price_in, self.price_out)


@dataclass(frozen=True, slots=True)
class ChatReply:
    """Text and cost of a reply; `complete` is false if it was cut off, `usage_reported` if tokens were estimated."""

    text: str
    complete: bool
    prompt_tokens: int
    completion_tokens: int
    dollars: float
    usage_reported: bool


class NoReply(Exception):
    """A call without a reply after all attempts: the reason, and what it may have cost."""

    def __init__(self, reason: FailureReason, message: str, dollars: float = 0.0) -> None:
        self.reason: FailureReason = reason
        self.message = message
        self.dollars = dollars
        super().__init__(f"{reason}: {message}")


class _Retryable(Exception):
    """A failure that another attempt may avoid; `wait` is the server's Retry-After, `billed` if it may cost."""

    def __init__(self, message: str, wait: float = 0.0, billed: bool = False) -> None:
        self.message = message
        self.wait = wait
        self.billed = billed
        self.dollars = 0.0
        super().__init__(message)


def check_settings(settings: JudgeSettings) -> JudgeSettings:
    """The settings; RecipeError for values that cannot work."""
    if not settings.base_url.startswith(("http://", "https://")):
        rule = "the address of a server, with http:// or https://"
        raise RecipeError(f"judge.base_url = {settings.base_url!r}", rule, "such as http://localhost:8000/v1")
    try:
        network.require_allowed_literal(settings.base_url)
    except network.ForbiddenAddress as error:
        value = f"judge.base_url = {settings.base_url!r}: {error}"
        raise RecipeError(value, FORBIDDEN_RULE, "correct judge.base_url") from None
    if not settings.model:
        raise RecipeError("judge.model is empty", "a server may serve several models", "set the name of one")
    if settings.api_key and settings.api_key.partition(":")[0] not in ("env", "file"):
        rule = "a recipe refers to a key and never contains it"
        raise RecipeError("judge.api_key holds the key itself", rule, "judge.api_key = 'env:NAME' or 'file:PATH'")
    if settings.samples > 1 and settings.temperature <= 0:
        value = f"judge.samples = {settings.samples} at temperature 0"
        raise RecipeError(value, "all samples would be the same", "judge.temperature = 0.7, or one sample")
    if settings.ceiling and not (settings.price_in or settings.price_out):
        value = f"judge.ceiling = {settings.ceiling:g} without a price"
        fix = "set judge.price_in and judge.price_out, or judge.ceiling = 0"
        raise RecipeError(value, "dollars are computed from the price of tokens", fix)
    return settings


class Endpoint:
    """Thread-safe client of one server: `ask` returns a reply, or raises NoReply after the last attempt."""

    def __init__(self, settings: JudgeSettings, budget: Budget) -> None:
        self.settings = check_settings(settings)
        self.budget = budget
        self._key = _read_key(settings.api_key)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = network.HttpClient(settings.timeout, settings.concurrency, headers)
        self._address = settings.base_url.rstrip("/") + "/chat/completions"
        self._format = 0
        self._length_key = "max_tokens"
        self._lock = Lock()
        self._closing = Event()
        self._retry_at = 0.0
        self.replies = 0
        """Replies of the server until now."""

    def stop(self) -> None:
        """Cancel all waits for another attempt; calls in flight continue."""
        self._closing.set()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, messages: list[Message], schema: dict[str, Any], seed: int = 0) -> ChatReply:
        """Send messages and return the reply, as JSON of the schema where the server supports it.

        Raises BudgetExceeded when the budget allows no call.
        """
        dollars = 0.0
        message = ""
        for attempt in range(self.settings.retries + 1):
            self._wait_before(attempt)
            try:
                reply = self._ask_within_budget(messages, schema, seed)
                return replace(reply, dollars=reply.dollars + dollars)
            except (NoReply, BudgetExceeded) as error:
                error.dollars += dollars
                raise
            except _Retryable as error:
                message = error.message
                dollars += error.dollars
                if error.wait > network.MAX_RETRY_AFTER:
                    message = f"{message}; it asks to wait {error.wait:.0f} s"
                    raise NoReply("unreachable", message, dollars) from None
                self._defer_calls(error.wait)
        raise NoReply("unreachable", f"{message} ({self.settings.retries + 1} tries)", dollars)

    def _ask_within_budget(self, messages: list[Message], schema: dict[str, Any], seed: int) -> ChatReply:
        """One attempt, whose maximum cost is reserved first; a broken connection may be billed and counts in full."""
        maximum = self._max_cost(messages, schema)
        cost = 0.0
        number = self.budget.reserve(maximum)
        try:
            reply = self._parse_reply(self._negotiate(messages, schema, seed), messages)
            cost = reply.dollars
            return reply
        except _Retryable as error:
            cost = error.dollars = maximum if error.billed else 0.0
            raise
        except NoReply as error:
            cost = error.dollars
            raise
        finally:
            self.budget.commit(number, maximum, cost)

    def _max_cost(self, messages: list[Message], schema: dict[str, Any]) -> float:
        prompt_tokens = sum(token_upper_bound(m["content"]) + TEMPLATE_TOKENS for m in messages)
        prompt_tokens += token_upper_bound(json.dumps(schema))
        return self.settings.price.dollars(prompt_tokens, self.settings.max_tokens)

    def _negotiate(self, messages: list[Message], schema: dict[str, Any], seed: int) -> dict[str, Any]:
        """The server's answer; a request that it does not understand is repeated in a simpler form."""
        response_format = self._format
        length_key = self._length_key
        while True:
            request = self._request(messages, schema, seed, response_format, length_key)
            status, headers, body = self._post(request)
            if status == 200:
                with self._lock:
                    self.replies += 1
                    self._format = max(self._format, response_format)
                    self._length_key = length_key
                return _parse_object(body)
            problem = network.redact(self._key, _error_message(body))
            # llama-cpp-python answers 500 to a response_format that it does not know
            not_understood = status in (400, 422, 501) or "response_format" in problem
            if not_understood and length_key == "max_tokens" and "max_completion_tokens" in problem:
                length_key = "max_completion_tokens"
            elif not_understood and response_format < len(FORMATS) - 1:
                response_format += 1
            elif network.is_transient(status):
                raise _Retryable(f"{status} {problem}".strip(), network.retry_after(headers))
            elif status in (401, 403, 404):
                rule = "the judge's server must know the address, the model and the key"
                fix = "check judge.base_url, judge.model and judge.api_key"
                raise ResourceError(f"{self._address}: {status} {problem}", rule, fix)
            else:
                raise NoReply("rejected", f"{status} {problem}")

    def _post(self, request: dict[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body."""
        try:
            reply = self._client.post(self._address, json.dumps(request).encode())
        except network.ConnectFailed as error:
            raise _Retryable(f"no connection to {self._address} ({error})") from None
        except network.ResponseFailed as error:
            raise _Retryable(str(error), billed=True) from None
        except network.ForbiddenAddress as error:
            raise ResourceError(f"{self._address}: {error}", FORBIDDEN_RULE, "correct judge.base_url") from None
        return reply.status, reply.headers, reply.body

    def _request(
        self, messages: list[Message], schema: dict[str, Any], seed: int, response_format: int, length_key: str
    ) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.settings.model,
            "messages": messages,
            "temperature": self.settings.temperature,
            length_key: self.settings.max_tokens,
            "seed": seed,
        }
        if FORMATS[response_format] == "json_schema":
            json_schema = {"name": "verdict", "strict": True, "schema": schema}
            request["response_format"] = {"type": "json_schema", "json_schema": json_schema}
        elif FORMATS[response_format] == "json_object":
            request["response_format"] = {"type": "json_object", "schema": schema}
        return request

    def _parse_reply(self, answer: dict[str, Any], messages: list[Message]) -> ChatReply:
        """The first choice of an answer."""
        try:
            choice = answer["choices"][0]
            message = choice["message"]
            content = message.get("content")
            refusal = message.get("refusal")
        except (KeyError, IndexError, TypeError, AttributeError):
            excerpt = network.redact(self._key, str(answer))[:120]
            raise _Retryable(f"an answer without a choice: {excerpt}", billed=True) from None
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        text = network.redact(self._key, content if isinstance(content, str) else "")
        usage = _parse_usage(answer.get("usage"))
        prompt_tokens, completion_tokens = usage or (
            sum(estimate_tokens(m["content"]) for m in messages),
            estimate_tokens(text),
        )
        dollars = self.settings.price.dollars(prompt_tokens, completion_tokens)
        if refusal or choice.get("finish_reason") == "content_filter":
            reason = network.redact(self._key, str(refusal or "the server's content filter"))[:200]
            raise NoReply("refused", reason, dollars)
        complete = choice.get("finish_reason") != "length"
        return ChatReply(text, complete, prompt_tokens, completion_tokens, dollars, usage is not None)

    def _wait_before(self, attempt: int) -> None:
        """Exponential backoff with jitter, and not before the server's Retry-After."""
        with self._lock:
            remaining = self._retry_at - time.monotonic()
        pause = max(network.backoff(attempt, FIRST_PAUSE), remaining * random.uniform(1.0, 1.1))
        if pause > 0 and self._closing.wait(pause):
            raise NoReply("unreachable", "stopped while waiting to try again")

    def _defer_calls(self, seconds: float) -> None:
        """Delay the calls of all threads."""
        with self._lock:
            self._retry_at = max(self._retry_at, time.monotonic() + seconds)


def _read_key(reference: str) -> str:
    key = secret(reference, "judge.api_key") if reference else ""
    if not (key.isascii() and key.isprintable()):
        rule = "a key is one line of printable ASCII"
        raise RecipeError(f"judge.api_key = {reference!r} refers to more than a key", rule, "check its content")
    return key


def _parse_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _Retryable(f"an answer that is not JSON: {body[:80]!r}", billed=True)
    return value


def _error_message(body: bytes) -> str:
    """The error message in a server's answer, wherever the server puts it."""
    try:
        value = json.loads(body)
        value = value.get("error", value.get("detail", value))
        value = value.get("message", value) if isinstance(value, dict) else value
    except (ValueError, RecursionError, AttributeError):
        value = body.decode(errors="replace")
    return " ".join(str(value).split())[:300]


def _parse_usage(usage: Any) -> tuple[int, int] | None:
    """Prompt and completion tokens; None if the server does not report them."""
    if not isinstance(usage, dict):
        return None
    prompt_tokens = usage.get("prompt_tokens")
    completion_tokens = usage.get("completion_tokens")
    if not isinstance(prompt_tokens, int) or not isinstance(completion_tokens, int):
        return None
    return (prompt_tokens, completion_tokens) if prompt_tokens > 0 and completion_tokens >= 0 else None
