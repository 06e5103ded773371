"""How a reward model from elsewhere reads a conversation and its answer: by its own chat template, as a pair of texts,
or as plain text."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from towpath.data.chat import pad_token, read_template, template_variables
from towpath.data.template_encoder import Part, TemplateEncoder
from towpath.data.template_renderer import TemplateRaised, get_renderer
from towpath.errors import ModelError
from towpath.records import Message, transcript

Kind = Literal["template", "pair", "plain"]
_PLACEHOLDER = "\u241eturn{}\u241e"


class Encoded(NamedTuple):
    """Tokens of a conversation with its answer."""

    ids: list[int]
    types: list[int]
    """Token types, where the tokenizer gives them (0 for the conversation, 1 for the answer)."""
    truncated: bool


class ClassifierFormat:
    """Turns a conversation and its answer into tokens; no more than `limit`, of which the oldest are left out.

    `template` is model, chatml, a Jinja file, pair or plain. With model and no chat template it is pair where the
    tokenizer puts a token between two texts, as encoders' do, else plain: conversation, blank line, answer.
    """

    def __init__(self, tokenizer: Any, template: str = "model", limit: int = 0) -> None:
        self.tokenizer = tokenizer
        self.limit = limit
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else pad_token(tokenizer)
        self.kind: Kind
        if template in ("pair", "plain"):
            self.kind = template
        elif template == "model" and not tokenizer.chat_template:
            self.kind = "pair" if _separates_pairs(tokenizer) else "plain"
        else:
            self.kind = "template"
            self.template = read_template(tokenizer, template)
            self._encoder = TemplateEncoder(tokenizer, self.template)
            self._frame = lru_cache(64)(self._frame_of)

    def encode(self, conversation: Sequence[Message], answer: str) -> Encoded:
        """The tokens of a conversation with its answer."""
        if self.kind == "template":
            return self._cut(self._encoder.encode(self._parts([*conversation, Message("assistant", answer)])))
        # special tokens in a text are read as ordinary characters
        settings: dict[str, Any] = {"split_special_tokens": True}
        text = transcript(conversation)
        if self.kind == "plain":
            return self._cut(list(self.tokenizer(f"{text}\n\n{answer}", **settings)["input_ids"]))
        whole = self.tokenizer(text, answer, **settings)
        truncated = bool(self.limit) and len(whole["input_ids"]) > self.limit
        if truncated:
            whole = self._cut_pair(text, answer, settings)
        return Encoded(list(whole["input_ids"]), list(whole.get("token_type_ids", ())), truncated)

    def _cut_pair(self, text: str, answer: str, settings: dict[str, Any]) -> Any:
        """A pair without the oldest tokens of the conversation, or of both texts where the answer alone is too long."""
        alone = len(self.tokenizer("", answer, **settings)["input_ids"])
        side = self.tokenizer.truncation_side
        self.tokenizer.truncation_side = "left"
        try:
            strategy = "only_first" if alone < self.limit else "longest_first"
            return self.tokenizer(text, answer, truncation=strategy, max_length=self.limit, **settings)
        finally:
            self.tokenizer.truncation_side = side

    def _cut(self, ids: list[int]) -> Encoded:
        """The newest `limit` tokens, after BOS or CLS where there is one."""
        if not self.limit or len(ids) <= self.limit:
            return Encoded(ids, [], False)
        first = ids[:1] if ids[0] in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id) else []
        return Encoded([*first, *ids[len(ids) - self.limit + len(first) :]], [], True)

    def _parts(self, messages: Sequence[Message]) -> list[Part]:
        """The rendered conversation, in which only the template's own text may be control tokens."""
        contents = [message.content.strip() for message in messages]
        frame = self._frame(tuple(message.role for message in messages))
        parts = [Part(frame[0], True)]
        for content, after in zip(contents, frame[1:], strict=True):
            parts += [Part(content), Part(after, True)]
        whole = self._render([message.role for message in messages], contents)
        if whole == "".join(part.text for part in parts) or any(map(self._encoder.holds_control, contents)):
            return parts
        return [Part(whole, True)]  # the template changes what it is given, and there is no control token in it

    def _frame_of(self, roles: tuple[str, ...]) -> list[str]:
        """The template's text before, between and after the contents of turns with these roles."""
        placeholders = [_PLACEHOLDER.format(number) for number in range(len(roles))]
        rest = self._render(roles, placeholders)
        frame = []
        for placeholder in placeholders:
            before, separator, rest = rest.partition(placeholder)
            if not separator:
                value = f"the chat template of {self.tokenizer.name_or_path} leaves out a {roles[len(frame)]} turn"
                fix = "name another format of the reward model: pair, plain, chatml or a Jinja file"
                raise ModelError(value, "a template renders every turn in order", fix)
            frame.append(before)
        return [*frame, rest]

    def _render(self, roles: Sequence[str], contents: Sequence[str]) -> str:
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        name = f"{self.tokenizer.name_or_path}: chat_template"
        try:
            return get_renderer().render(self.template, name, messages, False, template_variables(self.tokenizer))
        except TemplateRaised:
            if messages[0]["role"] != "system":
                raise
        # templates without a system role get it before the first user turn
        first = f"{contents[0]}\n\n{contents[1]}"
        return get_renderer().render(
            self.template, name, [{"role": roles[1], "content": first}, *messages[2:]], False,
            template_variables(self.tokenizer),
        )  # fmt: skip


def _separates_pairs(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a separator between two texts."""
    return tokenizer.sep_token_id is not None and tokenizer.sep_token_id in tokenizer("a", "a")["input_ids"][:-1]
