"""A client of any server that speaks OpenAI's chat completions: patient, within a price, and never making up an
answer."""

import json
import random
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event, Lock
from typing import Any, Literal

import httpx

from towpath import network
from towpath.errors import RecipeError, ResourceError
from towpath.feedback.judge_budget import Price, Purse, Spent, at_most, estimated
from towpath.recipe.reader import secret

Message = dict[str, str]
Trouble = Literal["unreachable", "rejected", "refused"]

FIRST_PAUSE = 0.5
"""Seconds before the second try; every further pause is twice as long."""
LONGEST_PAUSE = 60.0
LONGEST_WAIT = 300.0
"""Seconds a server may ask for; a call that should wait longer is given up."""
TEMPLATE = 64
"""Tokens that a chat template may add to a message."""
FORBIDDEN_RULE = (
    "a judge is a server for models; link-local addresses and those that serve a cloud's credentials are never asked"
)
FORMS = ("json_schema", "json_object", "text")
"""Ways to ask for JSON, the strictest first; a server that knows none is asked in words."""


@dataclass(frozen=True)
class JudgeSettings:
    """Which server and model judges, how, and what that may cost; prices are dollars a million tokens, a ceiling of
    0 is none."""

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
    def price(self) -> Price:
        """What a token costs."""
        return Price(self.price_in, self.price_out)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server wrote, whether it came to an end, and what it cost. `counted` is false where tokens had to be
    estimated."""

    text: str
    whole: bool
    read: int
    written: int
    dollars: float
    counted: bool


class Unanswered(Exception):
    """A call that brought no answer in the end, and what it may have cost all the same."""

    def __init__(self, trouble: Trouble, why: str, dollars: float = 0.0) -> None:
        self.trouble: Trouble = trouble
        self.why = why
        self.dollars = dollars
        super().__init__(f"{trouble}: {why}")


class _Later(Exception):
    """A failure that may pass; `wait` is what the server asked for."""

    def __init__(self, why: str, wait: float = 0.0, billed: bool = False) -> None:
        self.why = why
        self.wait = wait
        self.billed = billed
        self.dollars = 0.0
        super().__init__(why)


def checked(settings: JudgeSettings) -> JudgeSettings:
    """The settings, or an error that names what cannot work."""
    if not settings.base_url.startswith(("http://", "https://")):
        rule = "the address of a server, with http:// or https://"
        raise RecipeError(f"judge.base_url = {settings.base_url!r}", rule, "such as http://localhost:8000/v1")
    try:
        network.require_allowed_literal(settings.base_url)
    except network.ForbiddenAddress as error:
        raise RecipeError(
            f"judge.base_url = {settings.base_url!r}: {error}", FORBIDDEN_RULE, "correct judge.base_url"
        ) from None
    if not settings.model:
        raise RecipeError("judge.model is empty", "a server may have several models", "name one as the server does")
    if settings.api_key and settings.api_key.partition(":")[0] not in ("env", "file"):
        fix = "judge.api_key = 'env:NAME' or 'file:PATH'"
        raise RecipeError("judge.api_key holds the key itself", "a key is named, never written down", fix)
    if settings.samples > 1 and settings.temperature <= 0:
        fix = "judge.temperature = 0.7, or one sample"
        raise RecipeError(f"judge.samples = {settings.samples} at temperature 0", "votes must be able to differ", fix)
    if settings.ceiling and not (settings.price_in or settings.price_out):
        fix = "set judge.price_in and judge.price_out, or judge.ceiling = 0"
        raise RecipeError(
            f"judge.ceiling = {settings.ceiling:g} without a price", "dollars are counted by the price of tokens", fix
        )
    return settings


class Endpoint:
    """One server, for many threads: `ask` returns its reply, or raises Unanswered when patience is at its end."""

    def __init__(self, settings: JudgeSettings, purse: Purse) -> None:
        self.settings = checked(settings)
        self.purse = purse
        self._key = _key(settings.api_key)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = network.HttpClient(settings.timeout, settings.concurrency, headers)
        self._address = settings.base_url.rstrip("/") + "/chat/completions"
        self._form = 0
        self._length = "max_tokens"
        self._lock = Lock()
        self._closing = Event()
        self._quiet_until = 0.0

    def stop(self) -> None:
        """Wake whoever waits for another try; calls under way go on to their end."""
        self._closing.set()

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def ask(self, messages: list[Message], schema: dict[str, Any], seed: int = 0) -> Reply:
        """The model's reply to messages, as JSON of a schema where the server can; Spent when the ceiling allows no
        call."""
        lost = 0.0
        why = ""
        for attempt in range(self.settings.retries + 1):
            self._rest(attempt)
            try:
                reply = self._costed(messages, schema, seed)
                return replace(reply, dollars=reply.dollars + lost)
            except (Unanswered, Spent) as ended:
                ended.dollars += lost
                raise
            except _Later as later:
                why = later.why
                lost = lost + later.dollars
                if later.wait > LONGEST_WAIT:
                    raise Unanswered("unreachable", f"{why}; it asks to wait {later.wait:.0f} s", lost) from None
                self._pause(later.wait)
        raise Unanswered("unreachable", f"{why} ({self.settings.retries + 1} tries)", lost)

    def _costed(self, messages: list[Message], schema: dict[str, Any], seed: int) -> Reply:
        """One try, for which its worst price is set aside before it begins; a try that broke off may be billed, and
        counts in full."""
        worst = self._worst(messages, schema)
        cost = 0.0
        number = self.purse.open_call(worst)
        try:
            reply = self._read(self._sent(messages, schema, seed), messages)
            cost = reply.dollars
            return reply
        except _Later as later:
            cost = later.dollars = worst if later.billed else 0.0
            raise
        except Unanswered as unanswered:
            cost = unanswered.dollars
            raise
        finally:
            self.purse.close_call(number, worst, cost)

    def _worst(self, messages: list[Message], schema: dict[str, Any]) -> float:
        read = sum(at_most(m["content"]) + TEMPLATE for m in messages) + at_most(json.dumps(schema))
        return self.settings.price.of(read, self.settings.max_tokens)

    def _sent(self, messages: list[Message], schema: dict[str, Any], seed: int) -> dict[str, Any]:
        """The server's answer; what it does not understand is asked again in simpler words."""
        form = self._form
        length = self._length
        while True:
            status, headers, body = self._posted(self._request(messages, schema, seed, form, length))
            if status == 200:
                with self._lock:
                    self._form = max(self._form, form)
                    self._length = length
                return _object(body)
            said = network.redact(self._key, _complaint(body))
            # llama-cpp-python says 500 to what it does not know
            misread = status in (400, 422, 501) or "response_format" in said
            if misread and length == "max_tokens" and "max_completion_tokens" in said:
                length = "max_completion_tokens"
            elif misread and form < len(FORMS) - 1:
                form += 1
            elif status in (408, 409, 425, 429) or status >= 500:
                raise _Later(f"{status} {said}".strip(), _retry_after(headers.get("retry-after", "")))
            elif status in (401, 403, 404):
                fix = "look at judge.base_url, judge.model and judge.api_key"
                raise ResourceError(
                    f"{self._address}: {status} {said}",
                    "the judge's server must know the address, the model and the key",
                    fix,
                )
            else:
                raise Unanswered("rejected", f"{status} {said}")

    def _posted(self, request: dict[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body, all within the time that one call may take."""
        try:
            reply = self._client.post(self._address, json.dumps(request).encode())
        except network.ConnectFailed as error:
            raise _Later(f"no connection to {self._address} ({error})") from None
        except network.ResponseFailed as error:
            raise _Later(str(error), billed=True) from None
        except network.ForbiddenAddress as error:
            raise ResourceError(f"{self._address}: {error}", FORBIDDEN_RULE, "correct judge.base_url") from None
        return (
            reply.status,
            reply.headers,
            reply.body.replace(self._key.encode(), b"[key]") if self._key else reply.body,
        )

    def _request(
        self, messages: list[Message], schema: dict[str, Any], seed: int, form: int, length: str
    ) -> dict[str, Any]:
        s = self.settings
        request: dict[str, Any] = {
            "model": s.model,
            "messages": messages,
            "temperature": s.temperature,
            length: s.max_tokens,
            "seed": seed,
        }
        if FORMS[form] == "json_schema":
            request["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "verdict", "strict": True, "schema": schema},
            }
        elif FORMS[form] == "json_object":
            request["response_format"] = {"type": "json_object", "schema": schema}
        return request

    def _read(self, answer: dict[str, Any], messages: list[Message]) -> Reply:
        """The first choice of an answer; what does not look like one is a failure of the server."""
        try:
            choice = answer["choices"][0]
            message = choice["message"]
            content = message.get("content")
            refusal = message.get("refusal")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise _Later(
                f"an answer without a choice: {network.redact(self._key, str(answer))[:120]}", billed=True
            ) from None
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        text = network.redact(self._key, content if isinstance(content, str) else "")
        read, written, counted = _usage(answer.get("usage"))
        if not counted:
            read = sum(estimated(m["content"]) for m in messages)
            written = estimated(text)
        dollars = self.settings.price.of(read, written)
        if refusal or choice.get("finish_reason") == "content_filter":
            raise Unanswered(
                "refused", network.redact(self._key, str(refusal or "the server's content filter"))[:200], dollars
            )
        return Reply(text, choice.get("finish_reason") != "length", read, written, dollars, counted)

    def _rest(self, attempt: int) -> None:
        """Wait as long as the server asked all to, and longer with each attempt; jitter keeps threads from coming
        back together."""
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0) if attempt else 0.0
        with self._lock:
            asked = self._quiet_until - time.monotonic()
        pause = max(pause, asked * random.uniform(1.0, 1.1))
        if pause > 0 and self._closing.wait(pause):
            raise Unanswered("unreachable", "stopped while waiting to try again")

    def _pause(self, seconds: float) -> None:
        """Nobody asks before the server wants to be asked again."""
        with self._lock:
            self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)


def _key(reference: str) -> str:
    key = secret(reference, "judge.api_key") if reference else ""
    if not (key.isascii() and key.isprintable()):
        rule = "a key is one line of plain characters"
        raise RecipeError(f"judge.api_key = {reference!r} refers to more than a key", rule, "look at what is there")
    return key


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _Later(f"an answer that is not JSON: {body[:80]!r}", billed=True)
    return found


def _complaint(body: bytes) -> str:
    """What a server says is wrong, wherever in its answer it says so."""
    try:
        found = json.loads(body)
        found = found.get("error", found.get("detail", found))
        found = found.get("message", found) if isinstance(found, dict) else found
    except (ValueError, RecursionError, AttributeError):
        found = body.decode(errors="replace")
    return " ".join(str(found).split())[:300]


def _retry_after(told: str) -> float:
    """Seconds that a server asks for, as a number or as a date."""
    try:
        return max(0.0, float(told))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(told)
    except ValueError:
        return 0.0
    return max(0.0, (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp())


def _usage(told: Any) -> tuple[int, int, bool]:
    if not isinstance(told, dict):
        return 0, 0, False
    read = told.get("prompt_tokens")
    written = told.get("completion_tokens")
    if not isinstance(read, int) or not isinstance(written, int) or read <= 0 or written < 0:
        return 0, 0, False
    return read, written, True
