"""The only file that knows chat templates: text to tokens and back, the same way in every stage."""

import copy
from functools import cached_property
from pathlib import Path
from typing import Any

from towpath.errors import ModelError

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SLOT = "\u241esaid\u241e"


class Chat:
    """Renders one user turn and one answer; prompt tokens are always a prefix of prompt + answer."""

    def __init__(self, tokenizer: Any, template: str = "model") -> None:
        self.tokenizer = tokenizer
        self.template = _template(tokenizer, template)
        tokenizer.chat_template = self.template
        if tokenizer.eos_token_id is None:
            fix = "set eos_token in the model's tokenizer_config.json"
            raise ModelError("the tokenizer has no EOS token", "an answer must be able to end, and EOS is in the loss", fix)
        self.eos: int = tokenizer.eos_token_id
        self.pad: int = pad_token(tokenizer)
        self._before, self._after = self._scaffold()

    @cached_property
    def _plain(self) -> Any:
        """The tokenizer that reads special tokens in a user's text as ordinary characters."""
        plain = copy.deepcopy(self.tokenizer._tokenizer)
        plain.encode_special_tokens = True
        return plain

    def _scaffold(self) -> tuple[list[int], list[int]]:
        message = [{"role": "user", "content": _SLOT}]
        text = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        before, found, after = text.partition(_SLOT)
        if not found:
            raise ModelError("the chat template drops the user's message", "a template renders every message", "use model.template = 'chatml'")
        encode = self.tokenizer._tokenizer.encode
        head, tail = (list(encode(part, add_special_tokens=False).ids) for part in (before, after))
        bos = self.tokenizer.bos_token_id
        if bos is not None and head.count(bos) > 1 and head[:2] == [bos, bos]:
            raise ModelError("the chat template writes BOS twice", "one BOS begins a prompt", "remove bos_token from the template")
        return head, tail

    def prompt(self, text: str) -> list[int]:
        """Tokens up to the point where the answer begins."""
        return [*self._before, *self._encode(text.strip()), *self._after]

    def answer(self, text: str) -> list[int]:
        """Tokens of an answer, its EOS included."""
        return [*self._encode(text.strip()), self.eos]

    def text(self, ids: list[int] | tuple[int, ...]) -> str:
        """An answer's tokens as text, the end left out."""
        kept = [token for token in ids if token != self.eos]
        return self.tokenizer.decode(kept, skip_special_tokens=True).strip()

    def _encode(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids)


def pad_token(tokenizer: Any) -> int:
    """A padding token that is not EOS, whatever the model's own configuration says."""
    for candidate in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id):
        if candidate is not None and candidate != tokenizer.eos_token_id:
            return candidate
    return next(token for token in range(2) if token != tokenizer.eos_token_id)


def _template(tokenizer: Any, name: str) -> str:
    if name == "chatml":
        return CHATML
    if name != "model":
        path = Path(name)
        if not path.is_file():
            raise ModelError(f"model.template = {name!r}: no such file", "model, chatml, or a Jinja file", "mend the path")
        return path.read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template", "every stage renders prompts the same way", "use model.template = 'chatml'")
    return tokenizer.chat_template
