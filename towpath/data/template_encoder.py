"""Tokenise text from a chat template and a user in one pass; only the template can produce control tokens."""

import copy
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from towpath.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import AddedToken

ATTEMPTS = 20
GROUP = 256
"""Texts that a thread tokenises at once."""


class Part(NamedTuple):
    """A piece of rendered text, and whether the template wrote it."""

    text: str
    trusted: bool = False


class TemplateEncoder:
    """A copy of a tokenizer in which the template's control tokens have random aliases.

    The text is tokenised as a whole, like `apply_chat_template(tokenize=True)`, so prefix spaces and merges are the
    same. A user cannot guess an alias, so `<|im_end|>` in a user's text is read as ordinary characters.
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
        return self._encode(self._join(parts))

    def encode_batch(self, texts: Sequence[Sequence[Part]]) -> list[list[int]]:
        """`encode` of each text, tokenised together."""
        return [self._translated(ids) for ids in self._batch_ids(texts)]

    def counts(self, texts: Sequence[Sequence[Part]]) -> list[int]:
        """Number of tokens of each text, tokenised together."""
        return [len(ids) - ids.count(self._dropped) for ids in self._batch_ids(texts)]

    def _batch_ids(self, texts: Sequence[Sequence[Part]]) -> Iterator[list[int]]:
        """The ids of each text before aliases are translated, as `_encode` finds them."""
        contents = [self._join(parts) for parts in texts]
        groups = [contents[begin : begin + GROUP] for begin in range(0, len(contents), GROUP)]
        forbidden = set(self.controls.values()) - self._harmless

        def encode(group: list[str]) -> list[Any]:
            return self._backend.encode_batch_fast(group, add_special_tokens=False)

        # the tokenizer's own threads gain nothing here; it releases the interpreter's lock
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for group, encodings in zip(groups, pool.map(encode, groups), strict=True):
                for text, encoding in zip(group, encodings, strict=True):
                    ids: list[int] = encoding.ids
                    yield ids if forbidden.isdisjoint(ids) else self._safe_ids(text)

    def encode_after(self, parts: Sequence[Part], following: Sequence[Part]) -> list[int]:
        """Token ids of `following` after the parts, with no token across the boundary."""
        head = self._join(parts)
        return self._encode(head + self._split + self._join(following))[len(self._encode(head)) :]

    def closing(self, text: str) -> str:
        """The text up to and including its leading control token, after white space at most; empty if there is none."""
        match = re.match(rf"\s*(?:{self._pattern.pattern})", text) if self._pattern else None
        return match.group() if match else ""

    def markers(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each control token in template text."""
        return [match.span() for match in self._pattern.finditer(text)] if self._pattern else []

    def holds_control(self, text: str) -> bool:
        """Whether a text contains the text of a control token."""
        return bool(self._pattern and self._pattern.search(text))

    def _id(self, added: str) -> int:
        number = self._backend.token_to_id(added)
        assert number is not None, added
        return number

    def _join(self, parts: Sequence[Part]) -> str:
        return "".join(self._aliased(part.text) if part.trusted else part.text for part in parts)

    def _aliased(self, text: str) -> str:
        return self._pattern.sub(lambda match: self._alias[match.group()], text) if self._pattern else text

    def _encode(self, text: str) -> list[int]:
        return self._translated(self._safe_ids(text))

    def _translated(self, ids: list[int]) -> list[int]:
        return [self._number.get(number, number) for number in ids if number != self._dropped]

    def _safe_ids(self, text: str) -> list[int]:
        """Tokenise; if the vocabulary itself contains a control token's text, split the text inside it."""
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
                return encoding.ids
            read = text[leaks[0] - 1 : leaks[0] + 20]
            for position in sorted(set(leaks), reverse=True):
                text = text[:position] + self._split + text[position:]
        rule = "special tokens in a user's text are read as ordinary characters"
        raise ModelError(
            f"the tokenizer reads a special token in {read!r}", rule, "remove that text, or use another tokenizer"
        )


def _is_marker(content: str, template_text: str) -> bool:
    """Whether a token such as <|user|> or [INST] is used by the template but not marked as special."""
    return bool(re.fullmatch(r"<\S+>|\[\S+\]", content)) and content in template_text


def _renamed(token: Any, content: str) -> "AddedToken":
    flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return _added(content, special=False, **flags)


def _added(content: str, **flags: bool) -> "AddedToken":
    from tokenizers import AddedToken  # slow to import, and `towpath status` tokenises nothing

    return AddedToken(content, **flags)
