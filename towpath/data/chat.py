"""Chat templates: text to tokens and back, in the same way in every stage. No other file uses a template.

The rendered text is tokenised once. A prompt is the result of `apply_chat_template(add_generation_prompt=True)`. An
answer is what follows the prompt's tokens in the rendered conversation, up to and including the token that ends the
turn. If a token would span the boundary, the prompt keeps its own tokens, since answers are sampled after those, and
the answer is tokenised separately.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from towpath.data.conversations import to_rows
from towpath.data.template_encoder import Part, TemplateEncoder
from towpath.data.template_renderer import TemplateFailed, TemplateRaised, get_renderer
from towpath.errors import ModelError
from towpath.reasoning import MARKERS, final_answer, markers_in
from towpath.records import Message, Role

Prompted = str | Sequence[Message]
"""A user's turn as text, or a conversation that ends with one."""

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PLAIN = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] }}"
    "{% else %}{{ 'Assistant: ' + message['content'] + eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""For base models: words of any vocabulary, and the tokenizer's own EOS after an answer."""
BUILTIN_TEMPLATES = ("model", "chatml", "plain")
"""Names of templates; any other value is a file."""
PROBES = (
    "How do I boil an egg?",
    "x",
    "3 + 4 = 7",
    "def f(x):\n    return x\n\nWhy?",
    "Grüße aus Köln, 東京 🙂",
    "(a) yes\n\n(b) no",
    'Say "hello"',
)
"""Texts on which prompts are compared with the template's own tokens."""
LONG_PROBE = " ".join(f"word{number}" for number in range(600))
"""A longer text, since a template may treat long texts differently."""
_PROMPT_PLACEHOLDER = "\u241eprompt\u241e"
_ANSWER_PLACEHOLDER = "\u241eanswer\u241e"
_ROLES: tuple[Role, ...] = ("system", "user", "assistant", "user")
"""Turns that show which markers a template writes between turns."""


class Chat:
    """Renders conversations and answers; prompt tokens are always a prefix of prompt + answer."""

    def __init__(self, tokenizer: Any, template: str = "model") -> None:
        self.tokenizer = tokenizer
        self.source = (str(tokenizer.name_or_path), template)
        """Folder of the tokenizer, and the template as the recipe names it: enough to make the same chat elsewhere."""
        self.template = read_template(tokenizer, template)
        self.template_name = (
            f"{tokenizer.name_or_path or 'the tokenizer'}: chat_template" if template == "model" else template
        )
        """What errors call the template."""
        tokenizer.chat_template = self.template
        if tokenizer.eos_token_id is None:
            fix = "set eos_token in the model's tokenizer_config.json"
            raise ModelError(
                "the tokenizer has no EOS token", "an answer must be able to end, and EOS is in the loss", fix
            )
        self._before_prompt, self._after_prompt = self._prompt_frame()
        self.lead, self.end = self._answer_frame()
        one_turn = self._before_prompt + self._after_prompt + self.end
        self._encoder = TemplateEncoder(tokenizer, one_turn + self._between_turns())
        self._frames: dict[tuple[Role, ...], list[str]] = {}
        """The template's text around each turn, by the roles of a conversation."""
        self._closing = self._encoder.closing(self.end)
        self._context = [Part(self._before_prompt, True), Part("x"), Part(self._after_prompt, True)]
        self._head, self._inner_before, self._inner_after, self._tail = self._fixed()
        self._context_ids = self._encoder.encode(self._context)
        self.eos: int = self._encoder.controls[self._closing.strip()] if self._closing else tokenizer.eos_token_id
        """The token that answers are taught to end in."""
        self.stops: tuple[int, ...] = tuple(
            sorted({self.eos, tokenizer.eos_token_id, *configured_stop_tokens(tokenizer.name_or_path)})
        )
        """Every token that ends an answer."""
        self.pad: int = pad_token(tokenizer, self.eos)
        self._opened_reasoning = next((m for m in markers_in(self._after_prompt.rstrip()[-20:])), "")
        self._reasoning_ids = reasoning_ids(tokenizer)
        self._require_template_tokens()

    def _prompt_frame(self) -> tuple[str, str]:
        """The template's text before and after the user's text, with a generation prompt."""
        text = self.render(_PROMPT_PLACEHOLDER)
        before, separator, after = text.partition(_PROMPT_PLACEHOLDER)
        if not separator:
            raise ModelError(
                "the chat template drops the user's message",
                "a template renders every message",
                "use model.template = 'chatml'",
            )
        if _PROMPT_PLACEHOLDER in after:
            raise ModelError(
                "the chat template writes the user's message twice",
                "a template renders a message once",
                "use model.template = 'chatml'",
            )
        return before, after

    def _answer_frame(self) -> tuple[str, str]:
        """The template's text between prompt and answer, and after the answer; empty if it renders the prompt
        differently then."""
        try:
            text = self.render(_PROMPT_PLACEHOLDER, _ANSWER_PLACEHOLDER)
        except TemplateRaised:
            return "", ""
        if text.count(_ANSWER_PLACEHOLDER) > 1:
            raise ModelError(
                "the chat template writes the answer twice",
                "a template renders a message once",
                "use model.template = 'chatml'",
            )
        head = self._before_prompt + _PROMPT_PLACEHOLDER + self._after_prompt
        if not text.startswith(head) or _ANSWER_PLACEHOLDER not in text:
            return "", ""
        lead, _, end = text[len(head) :].partition(_ANSWER_PLACEHOLDER)
        return lead, end

    def render(self, prompt: Prompted, answer: str | None = None) -> str:
        """The template's text of a prompt, or of a prompt and its answer."""
        return self.rendered_by(self.tokenizer, prompt, answer)

    def rendered_by(self, tokenizer: Any, prompt: Prompted, answer: str | None = None) -> str:
        """`render` with another tokenizer's special tokens, in a process with limited time and memory."""
        rows = to_rows(as_messages(prompt))
        if answer is not None:
            rows.append({"role": "assistant", "content": answer})
        variables = template_variables(tokenizer)
        return get_renderer().render(self.template, self.template_name, rows, answer is None, variables)

    def template_tokens(self, prompt: Prompted, answer: str | None = None) -> list[int]:
        """The tokens that apply_chat_template of transformers gives for a prompt, or a prompt and its answer; turns are
        stripped of white space, earlier answers of their reasoning."""
        messages = [Message(message.role, turn_text(message)) for message in as_messages(prompt)]
        text = self.render(messages, None if answer is None else answer.strip())
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _between_turns(self) -> str:
        """What the template writes around several turns, as far as it renders them."""
        for roles in (_ROLES, _ROLES[1:]):
            try:
                return self.render([Message(role, "") for role in roles])
            except TemplateRaised:
                continue
        return ""

    def _frame(self, roles: tuple[Role, ...]) -> list[str]:
        """The template's text before, between and after the turns of a conversation; ModelError if it does not write
        every turn once, in order."""
        if roles not in self._frames:
            placeholders = [f"\u241eturn{number}\u241e" for number in range(len(roles))]
            text = self.render([Message(role, text) for role, text in zip(roles, placeholders, strict=True)])
            frame = re.split("|".join(placeholders), text)
            if re.findall("\u241eturn\\d+\u241e", text) != placeholders:
                raise TemplateFailed(
                    f"the chat template does not render the turns {', '.join(roles)}",
                    "a template renders every turn once and in order",
                    "use model.template = 'chatml', or a template for conversations",
                )
            self._frames[roles] = frame
            self._require_frame_tokens(roles)
        return self._frames[roles]

    def _require_frame_tokens(self, roles: tuple[Role, ...]) -> None:
        """Raise ModelError if a conversation of probes differs from the template's own tokens."""
        for shift in range(3):
            messages = [Message(role, PROBES[(shift + i) % len(PROBES)]) for i, role in enumerate(roles)]
            if self._conversation(messages) != self.template_tokens(messages):
                del self._frames[roles]
                raise TemplateFailed(
                    f"the chat template renders the turns {', '.join(roles)} with other tokens than their parts have",
                    "a model is trained on the tokens it is later prompted with",
                    "use model.template = 'chatml', or a template that writes every turn unchanged",
                )

    def _conversation(self, messages: Sequence[Message]) -> list[int]:
        return self._encoder.encode(self._conversation_parts(messages))

    def _conversation_parts(self, messages: Sequence[Message]) -> list[Part]:
        frame = self._frame(tuple(message.role for message in messages))
        parts = [Part(frame[0], True)]
        for message, following in zip(messages, frame[1:], strict=True):
            parts += [Part(turn_text(message)), Part(following, True)]
        return parts

    def _fixed(self) -> tuple[list[int], str, str, list[int]]:
        """The tokens that every prompt begins and ends with, and the template text between them.

        Text is split at control tokens, so that what lies beyond the nearest ones is tokenised only once. If that
        would change a token, nothing is fixed.
        """
        encode = self._encoder.encode
        opening = self._encoder.markers(self._before_prompt)
        closing = self._encoder.markers(self._after_prompt)
        cut = opening[-1][0] if opening else 0
        end = closing[0][1] if closing else len(self._after_prompt)
        near_before = self._before_prompt[cut:]
        near_after = self._after_prompt[:end]
        head = encode([Part(self._before_prompt[: opening[-1][1]], True)])[:-1] if opening else []
        tail = encode([Part(self._after_prompt[closing[0][0] :], True)])[1:] if closing else []
        for text in PROBES:
            near = encode([Part(near_before, True), Part(text), Part(near_after, True)])
            if [*head, *near, *tail] != encode(
                [Part(self._before_prompt, True), Part(text), Part(self._after_prompt, True)]
            ):
                return [], self._before_prompt, self._after_prompt, []
        return head, near_before, near_after, tail

    def _require_template_tokens(self) -> None:
        """Raise ModelError if prompts differ from the template's own tokens."""
        bos = self.tokenizer.bos_token_id
        prompt = self.prompt("x")
        if bos is not None and prompt[:2] == [bos, bos]:
            raise ModelError(
                "the chat template writes BOS twice", "one BOS begins a prompt", "remove bos_token from the template"
            )
        for text in (*PROBES, LONG_PROBE):
            ids = self.prompt(text)
            expected = self.template_tokens(text)
            if ids != expected:
                excerpt = text if len(text) < 80 else f"{text[:60]}…"
                ids = ids[:400]
                expected = expected[:400]
                value = f"the prompt {excerpt!r} is {ids} here, and {expected} by apply_chat_template"
                rule = "a model is trained on the tokens it is later prompted with"
                raise ModelError(
                    value, rule, "use model.template = 'chatml', or a template that writes the user's text unchanged"
                )

    def prompt(self, prompt: Prompted) -> list[int]:
        """Tokens of a prompt or a conversation up to the point where the answer begins."""
        messages = as_messages(prompt)
        if len(messages) > 1:
            return self._conversation(messages)
        near = self._encoder.encode(self._turn_parts(messages[0].content))
        return [*self._head, *near, *self._tail]

    def _turn_parts(self, text: str) -> list[Part]:
        return [Part(self._inner_before, True), Part(text.strip()), Part(self._inner_after, True)]

    def prompt_counts(self, prompts: Sequence[Prompted]) -> list[int | None]:
        """Number of tokens of each prompt, tokenised together; None where the template does not render the turns."""
        texts: list[list[Part]] = []
        fixed: list[int | None] = []
        for prompt in prompts:
            messages = as_messages(prompt)
            try:
                single = len(messages) == 1
                texts.append(self._turn_parts(messages[0].content) if single else self._conversation_parts(messages))
                fixed.append(len(self._head) + len(self._tail) if single else 0)
            except TemplateFailed:
                texts.append([])
                fixed.append(None)
        counts = self._encoder.counts(texts)
        return [None if beside is None else count + beside for count, beside in zip(counts, fixed, strict=True)]

    def answer(self, text: str) -> list[int]:
        """Tokens of an answer after a prompt, including the token that ends the turn."""
        parts = self._answer_parts(text)
        return self._after_context(self._encoder.encode([*self._context, *parts]), parts)

    def answer_counts(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each answer, tokenised together."""
        parts = [self._answer_parts(text) for text in texts]
        wholes = self._encoder.encode_batch([[*self._context, *one] for one in parts])
        return [len(self._after_context(whole, one)) for whole, one in zip(wholes, parts, strict=True)]

    def _answer_parts(self, text: str) -> list[Part]:
        lead = "" if self.lead.strip() else self.lead
        text = text.strip()
        if self._opened_reasoning:  # the prompt ends with this marker
            text = text.removeprefix(self._opened_reasoning).lstrip()
        return [Part(lead, True), Part(text), Part(self._closing, True)]

    def _after_context(self, whole: list[int], parts: list[Part]) -> list[int]:
        """The tokens of an answer among those of the fixed prompt and the answer."""
        length = len(self._context_ids)
        ids = (
            whole[length:] if whole[:length] == self._context_ids else self._encoder.encode_after(self._context, parts)
        )
        return ids if self._closing else [*ids, self.eos]

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether an answer's tokens end with a stop token."""
        return bool(ids) and ids[-1] in self.stops

    def text(self, ids: Sequence[int]) -> str:
        """An answer's tokens as text, without stop tokens; markers of reasoning stay, also one that the template
        wrote."""
        text = self._opened_reasoning
        pending: list[int] = []
        for token in ids:
            if token in self._reasoning_ids:
                text += self.tokenizer.decode(pending, skip_special_tokens=True) + self._reasoning_ids[token]
                pending = []
            elif token not in self.stops:
                pending.append(token)
        return (text + self.tokenizer.decode(pending, skip_special_tokens=True)).strip()

    @property
    def ends_turns(self) -> bool:
        """Whether the template itself ends an answer with a special token."""
        return bool(self._closing)

    @property
    def drops_answers(self) -> bool:
        """Whether the template renders a conversation without its answer."""
        try:
            return _ANSWER_PLACEHOLDER not in self.render(_PROMPT_PLACEHOLDER, _ANSWER_PLACEHOLDER)
        except TemplateRaised:
            return False

    def holds_control(self, text: str) -> bool:
        """Whether a text contains the text of a control token."""
        return self._encoder.holds_control(text)


def as_messages(prompt: Prompted) -> Sequence[Message]:
    """A prompt as messages: a text is one turn of the user."""
    return [Message("user", prompt)] if isinstance(prompt, str) else prompt


def turn_text(message: Message) -> str:
    """The text of a turn as a template gets it: stripped, and an earlier answer without its reasoning, which models
    are not shown again."""
    text = final_answer(message.content) if message.role == "assistant" else message.content
    return text.strip()


def reasoning_ids(tokenizer: Any) -> dict[int, str]:
    """Special tokens that mark reasoning, which decoding would drop."""
    special = set(tokenizer.all_special_ids)
    ids = {tokenizer.convert_tokens_to_ids(marker): marker for pair in MARKERS for marker in pair}
    return {number: marker for number, marker in ids.items() if number in special and number != tokenizer.unk_token_id}


def template_variables(tokenizer: Any) -> dict[str, Any]:
    """Special tokens by name, as apply_chat_template passes them to a template."""
    return {
        name: [str(x) for x in token] if isinstance(token, list) else str(token)
        for name, token in tokenizer.special_tokens_map.items()
    }


def configured_stop_tokens(folder: str) -> list[int]:
    """The EOS tokens in a model's generation configuration: one, or several."""
    stops: list[int] = []
    for name in ("generation_config.json", "config.json"):
        eos = _read_config(folder, name).get("eos_token_id")
        stops += [token for token in (eos if isinstance(eos, list) else [eos]) if isinstance(token, int) and token >= 0]
    return stops


def _read_config(folder: str, name: str) -> dict[str, Any]:
    """A configuration file beside the tokenizer; empty if there is none."""
    path = Path(folder) / name
    if not folder or not path.is_file():
        return {}
    rule = "a model's configuration is a JSON object"
    fix = "copy the file again from the model's source"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not JSON ({error})", rule, fix) from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: a JSON {type(config).__name__}", rule, fix)
    return config


def pad_token(tokenizer: Any, eos: int | None = None) -> int:
    """A padding token that ends no answer and has an embedding, whatever the model's configuration says."""
    ends = (tokenizer.eos_token_id, eos)
    embeddings = _read_config(tokenizer.name_or_path, "config.json").get("vocab_size") or len(tokenizer)
    for candidate in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id):
        if candidate is not None and candidate not in ends and candidate < embeddings:
            return candidate
    return next(token for token in range(3) if token not in ends)


def read_template(tokenizer: Any, name: str) -> str:
    """The text of the template that a recipe names."""
    if name in ("chatml", "plain"):
        return CHATML if name == "chatml" else PLAIN
    if name != "model":
        path = Path(name)
        if not path.is_file():
            raise ModelError(
                f"model.template = {name!r}: no such file", "model, chatml, plain, or a Jinja file", "fix the path"
            )
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(
                f"model.template = {name!r}: {error}", "a template is a text file in UTF-8", "fix the file"
            ) from None
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        name = "chatml" if "<|im_start|>" in tokenizer.get_vocab() else "plain"
        fix = f"set model.template = {name!r}"
        fix += ", whose control tokens it has" if name == "chatml" else " (User: and Assistant:), or name a Jinja file"
        raise ModelError("the tokenizer has no chat template", "every stage renders prompts the same way", fix)
    return template
