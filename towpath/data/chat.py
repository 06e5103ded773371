"""The only file that knows chat templates: text to tokens and back, the same way in every stage.

The rendered text is tokenised once. A prompt is what `apply_chat_template(add_generation_prompt=True)` gives. An
answer is what follows the prompt's tokens in the rendered conversation, up to and with the token that ends the
template's turn. Where a token of the whole conversation reaches across the seam, the prompt keeps its own tokens,
since answers are drawn after those, and the answer is tokenised apart.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from towpath.data.template_encoder import Part, TemplateEncoder
from towpath.data.template_renderer import TemplateRaised, get_renderer
from towpath.errors import ModelError

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
BUILTIN_TEMPLATES = ("model", "chatml")
"""Names of templates; any other is a file."""
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
"""A longer text, on which a template may do what it does not do to short ones."""
_PROMPT_MARK = "\u241eprompt\u241e"
_ANSWER_MARK = "\u241eanswer\u241e"


class Chat:
    """Renders one user turn and one answer; prompt tokens are always a prefix of prompt + answer."""

    def __init__(self, tokenizer: Any, template: str = "model") -> None:
        self.tokenizer = tokenizer
        self.template = _template(tokenizer, template)
        self.place = f"{tokenizer.name_or_path or 'the tokenizer'}: chat_template" if template == "model" else template
        """What errors call the template."""
        tokenizer.chat_template = self.template
        if tokenizer.eos_token_id is None:
            fix = "set eos_token in the model's tokenizer_config.json"
            raise ModelError(
                "the tokenizer has no EOS token", "an answer must be able to end, and EOS is in the loss", fix
            )
        self._before, self._after = self._prompt_frame()
        self.lead, self.end = self._answer_frame()
        self._encoder = TemplateEncoder(tokenizer, self._before + self._after + self.end)
        self._closing = self._encoder.closing(self.end)
        self._context = [Part(self._before, True), Part("x"), Part(self._after, True)]
        self._head, self._near_before, self._near_after, self._tail = self._fixed()
        self._context_ids = self._encoder.encode(self._context)
        self.eos: int = self._encoder.controls[self._closing.strip()] if self._closing else tokenizer.eos_token_id
        """The token that answers are taught to end in."""
        self.stops: tuple[int, ...] = tuple(
            sorted({self.eos, tokenizer.eos_token_id, *configured_stop_tokens(tokenizer.name_or_path)})
        )
        """Every token that ends an answer."""
        self.pad: int = pad_token(tokenizer, self.eos)
        self._require_template_tokens()

    def _prompt_frame(self) -> tuple[str, str]:
        """What the template writes before and after the user's text where it awaits an answer."""
        text = self.render(_PROMPT_MARK)
        before, mark, after = text.partition(_PROMPT_MARK)
        if not mark:
            raise ModelError(
                "the chat template drops the user's message",
                "a template renders every message",
                "use model.template = 'chatml'",
            )
        if _PROMPT_MARK in after:
            raise ModelError(
                "the chat template writes the user's message twice",
                "a template renders a message once",
                "use model.template = 'chatml'",
            )
        return before, after

    def _answer_frame(self) -> tuple[str, str]:
        """What the template writes between a prompt and its answer, and after the answer; nothing where it writes
        the prompt otherwise then."""
        try:
            text = self.render(_PROMPT_MARK, _ANSWER_MARK)
        except TemplateRaised:
            return "", ""
        if text.count(_ANSWER_MARK) > 1:
            raise ModelError(
                "the chat template writes the answer twice",
                "a template renders a message once",
                "use model.template = 'chatml'",
            )
        head = self._before + _PROMPT_MARK + self._after
        if not text.startswith(head) or _ANSWER_MARK not in text:
            return "", ""
        lead, _, end = text[len(head) :].partition(_ANSWER_MARK)
        return lead, end

    def render(self, prompt_text: str, answer_text: str | None = None) -> str:
        """The template's own text of a prompt, or of a prompt and its answer."""
        return self.rendered_by(self.tokenizer, prompt_text, answer_text)

    def rendered_by(self, tokenizer: Any, prompt_text: str, answer_text: str | None = None) -> str:
        """`render` with another tokenizer's special tokens, in a process that is limited in time and memory."""
        messages = _messages(prompt_text, answer_text)
        variables = _variables(tokenizer)
        return get_renderer().render(self.template, self.place, messages, answer_text is None, variables)

    def template_tokens(self, prompt_text: str, answer_text: str | None = None) -> list[int]:
        """The tokens that apply_chat_template of transformers makes of a prompt, or of a prompt and its answer."""
        text = self.render(prompt_text.strip(), None if answer_text is None else answer_text.strip())
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _fixed(self) -> tuple[list[int], str, str, list[int]]:
        """The tokens that every prompt begins and ends with, and the template text between them.

        Text is split at control tokens, so what lies beyond the nearest ones need not be read again for each prompt;
        where that would change a token, nothing is fixed.
        """
        encode = self._encoder.encode
        opening = self._encoder.markers(self._before)
        closing = self._encoder.markers(self._after)
        cut = opening[-1][0] if opening else 0
        end = closing[0][1] if closing else len(self._after)
        near_before = self._before[cut:]
        near_after = self._after[:end]
        head = encode([Part(self._before[: opening[-1][1]], True)])[:-1] if opening else []
        tail = encode([Part(self._after[closing[0][0] :], True)])[1:] if closing else []
        for text in PROBES:
            near = encode([Part(near_before, True), Part(text), Part(near_after, True)])
            if [*head, *near, *tail] != encode([Part(self._before, True), Part(text), Part(self._after, True)]):
                return [], self._before, self._after, []
        return head, near_before, near_after, tail

    def _require_template_tokens(self) -> None:
        """Stop before anything trains where prompts are not what every other program makes of them."""
        bos = self.tokenizer.bos_token_id
        prompt = self.prompt("x")
        if bos is not None and prompt[:2] == [bos, bos]:
            raise ModelError(
                "the chat template writes BOS twice", "one BOS begins a prompt", "remove bos_token from the template"
            )
        for text in (*PROBES, LONG_PROBE):
            ours = self.prompt(text)
            theirs = self.template_tokens(text)
            if ours != theirs:
                shown = text if len(text) < 80 else f"{text[:60]}…"
                ours = ours[:400]
                theirs = theirs[:400]
                value = f"the prompt {shown!r} is {ours} here, and {theirs} by apply_chat_template"
                rule = "a model is trained on the tokens it is later prompted with"
                raise ModelError(
                    value, rule, "use model.template = 'chatml', or a template that writes the user's text unchanged"
                )

    def prompt(self, text: str) -> list[int]:
        """Tokens up to the point where the answer begins."""
        near = self._encoder.encode([Part(self._near_before, True), Part(text.strip()), Part(self._near_after, True)])
        return [*self._head, *near, *self._tail]

    def answer(self, text: str) -> list[int]:
        """Tokens of an answer, as they follow a prompt, with the token that ends the turn."""
        lead = "" if self.lead.strip() else self.lead
        parts = [Part(lead, True), Part(text.strip()), Part(self._closing, True)]
        whole = self._encoder.encode([*self._context, *parts])
        length = len(self._context_ids)
        ids = (
            whole[length:] if whole[:length] == self._context_ids else self._encoder.encode_after(self._context, parts)
        )
        return ids if self._closing else [*ids, self.eos]

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether an answer's tokens end in one that stops it."""
        return bool(ids) and ids[-1] in self.stops

    def text(self, ids: Sequence[int]) -> str:
        """An answer's tokens as text, the end left out."""
        text_ids = [token for token in ids if token not in self.stops]
        return self.tokenizer.decode(text_ids, skip_special_tokens=True).strip()

    @property
    def ends_turns(self) -> bool:
        """Whether the template itself ends an answer with a special token."""
        return bool(self._closing)

    @property
    def drops_answers(self) -> bool:
        """Whether the template renders a conversation without its answer."""
        try:
            return _ANSWER_MARK not in self.render(_PROMPT_MARK, _ANSWER_MARK)
        except TemplateRaised:
            return False

    def holds_control(self, text: str) -> bool:
        """Whether a text holds what would be a control token if the template had written it."""
        return self._encoder.holds_control(text)


def _messages(prompt_text: str, answer_text: str | None) -> list[dict[str, str]]:
    messages = [{"role": "user", "content": prompt_text}]
    return messages if answer_text is None else [*messages, {"role": "assistant", "content": answer_text}]


def _variables(tokenizer: Any) -> dict[str, Any]:
    """Special tokens by name, as apply_chat_template gives them to a template."""
    return {
        name: [str(x) for x in token] if isinstance(token, list) else str(token)
        for name, token in tokenizer.special_tokens_map.items()
    }


def configured_stop_tokens(folder: str) -> list[int]:
    """The EOS tokens that a model's folder names for generation: one, or several."""
    stops: list[int] = []
    for name in ("generation_config.json", "config.json"):
        eos = _configuration(folder, name).get("eos_token_id")
        stops += [token for token in (eos if isinstance(eos, list) else [eos]) if isinstance(token, int) and token >= 0]
    return stops


def _configuration(folder: str, name: str) -> dict[str, Any]:
    """A configuration beside the tokenizer; empty where there is none."""
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
    """A padding token that ends no answer and has an embedding, whatever the model's own configuration says."""
    ends = (tokenizer.eos_token_id, eos)
    embeddings = _configuration(tokenizer.name_or_path, "config.json").get("vocab_size") or len(tokenizer)
    for candidate in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id):
        if candidate is not None and candidate not in ends and candidate < embeddings:
            return candidate
    return next(token for token in range(3) if token not in ends)


def _template(tokenizer: Any, name: str) -> str:
    if name == "chatml":
        return CHATML
    if name != "model":
        path = Path(name)
        if not path.is_file():
            raise ModelError(
                f"model.template = {name!r}: no such file", "model, chatml, or a Jinja file", "fix the path"
            )
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(
                f"model.template = {name!r}: {error}", "a template is a text file in UTF-8", "fix the file"
            ) from None
    found = tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get("default")
    if not found:
        raise ModelError(
            "the tokenizer has no chat template",
            "every stage renders prompts the same way",
            "use model.template = 'chatml'",
        )
    return found
