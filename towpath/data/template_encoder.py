"""Tokenise text that a chat template and a user wrote together, in one pass: control tokens come from the template
alone."""

import copy
import re
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from towpath.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import AddedToken

ATTEMPTS = 20


class Part(NamedTuple):
    """A stretch of rendered text, and whether the template wrote it."""

    text: str
    trusted: bool = False


class TemplateEncoder:
    """A copy of a tokenizer in which the template's control tokens go by random aliases.

    The text is tokenised whole, as `apply_chat_template(tokenize=True)` does it, so prefix spaces and merges fall
    where they fall there. A user cannot write an alias, so `<|im_end|>` in a user's text is read as ordinary
    characters.
    """

    def __init__(self, tokenizer: Any, template_text: str = "") -> None:
        backend = tokenizer._tokenizer
        added: dict[int, Any] = backend.get_added_tokens_decoder()
        self.controls = {
            token.content: number
            for number, token in added.items()
            if token.special or _is_marker(token.content, template_text)
        }
        self._backend = copy.deepcopy(backend)
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        unknown = backend.token_to_id(getattr(backend.model, "unk_token", None) or "")
        self._harmless = {tokenizer.unk_token_id, unknown} - {tokenizer.eos_token_id, tokenizer.bos_token_id}
        nonce = secrets.token_hex(12)
        self._alias = {content: f"zq{nonce}n{number}qz" for content, number in self.controls.items()}
        self._split = f"zq{nonce}splitqz"
        self._backend.add_tokens(
            [_renamed(added[number], self._alias[content]) for content, number in self.controls.items()]
        )
        self._backend.add_tokens([_added(self._split, normalized=False)])
        self._number: dict[int, int] = {
            self._id(alias): self.controls[content] for content, alias in self._alias.items()
        }
        self._dropped = self._id(self._split)
        longest_first = sorted(self.controls, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def encode(self, parts: Sequence[Part]) -> list[int]:
        """Token ids of the parts as one text."""
        return self._encode(self._joined(parts))

    def encode_after(self, parts: Sequence[Part], following: Sequence[Part]) -> list[int]:
        """Token ids of what follows the parts, where no token may reach across the seam."""
        head = self._joined(parts)
        return self._encode(head + self._split + self._joined(following))[len(self._encode(head)) :]

    def closing(self, text: str) -> str:
        """Template text up to and with the control token that it begins with, after white space at most; empty where
        it begins with none."""
        match = re.match(rf"\s*(?:{self._pattern.pattern})", text) if self._pattern else None
        return match.group() if match else ""

    def markers(self, text: str) -> list[tuple[int, int]]:
        """Where control tokens stand in template text: begin and end of each."""
        return [match.span() for match in self._pattern.finditer(text)] if self._pattern else []

    def holds_control(self, text: str) -> bool:
        """Whether a control token stands in a text."""
        return bool(self._pattern and self._pattern.search(text))

    def _id(self, added: str) -> int:
        number = self._backend.token_to_id(added)
        assert number is not None, added
        return number

    def _joined(self, parts: Sequence[Part]) -> str:
        return "".join(self._aliased(part.text) if part.trusted else part.text for part in parts)

    def _aliased(self, text: str) -> str:
        return self._pattern.sub(lambda match: self._alias[match.group()], text) if self._pattern else text

    def _encode(self, text: str) -> list[int]:
        """Where the vocabulary itself holds a control token's text, the text is split inside it."""
        forbidden = set(self.controls.values()) - self._harmless
        read = ""
        for _attempt in range(ATTEMPTS):
            encoding: Any = self._backend.encode(text, add_special_tokens=False)
            leaks = [
                begin + 1
                for number, (begin, _end) in zip(encoding.ids, encoding.offsets, strict=True)
                if number in forbidden
            ]
            if not leaks:
                ids: list[int] = encoding.ids
                return [self._number.get(number, number) for number in ids if number != self._dropped]
            read = text[leaks[0] - 1 : leaks[0] + 20]
            for place in sorted(set(leaks), reverse=True):
                text = text[:place] + self._split + text[place:]
        rule = "special tokens in a user's text are read as ordinary characters"
        raise ModelError(
            f"the tokenizer reads a special token in {read!r}", rule, "remove that text, or use another tokenizer"
        )


def _is_marker(content: str, template_text: str) -> bool:
    """A token such as <|user|> or [INST] that the template writes and the tokenizer does not mark as special."""
    return bool(re.fullmatch(r"<\S+>|\[\S+\]", content)) and content in template_text


def _renamed(token: Any, content: str) -> "AddedToken":
    flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return _added(content, special=False, **flags)


def _added(content: str, **flags: bool) -> "AddedToken":
    from tokenizers import AddedToken  # slow to import, and `towpath status` tokenises nothing

    return AddedToken(content, **flags)
