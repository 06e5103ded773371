"""A reward model from elsewhere, used as it is: a sequence-classification model of any transformers family, with its
own tokenizer and its own format of a conversation.

B rows, S tokens of the longest row of a pass, K labels.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from towpath.data.classifier_format import ClassifierFormat, Encoded
from towpath.errors import ModelError
from towpath.models import base, files
from towpath.models.attention_choice import register
from towpath.models.convert import naming_files
from towpath.progress import progress
from towpath.records import Message

TOKENS = 4096
"""Tokens of a pass, padding included."""
UNLIMITED = 10**7
"""Lengths from which a tokenizer means that it knows no limit."""
Conversations = Sequence[Sequence[Message]]


def split_label(source: str) -> tuple[str, str]:
    """The model of MODEL#LABEL and the label, which may be empty."""
    name, _, label = source.partition("#")
    return name, label


class Classifier:
    """Scores of conversations with an answer, batched by length, in a fixed precision on one device.

    A model with one output gives it as the score. Of several labels one is named (MODEL#LABEL), and the score is its
    log odds.
    """

    def __init__(
        self, folder: str, label: str = "", template: str = "model", dtype: torch.dtype = torch.float32,
        device: torch.device = base.CPU, tokens: int = TOKENS,
    ) -> None:  # fmt: skip
        self.tokens = tokens
        self.scored = 0
        """Answers that were scored."""
        self.truncated = 0
        """Those of them that were longer than the model's context and lost their oldest tokens."""
        config = _config(folder)
        self._label = _label_index(folder, config, label)
        tokenizer = base.load_tokenizer(folder)
        self.format = ClassifierFormat(tokenizer, template, _limit(config, tokenizer))
        self.load(folder, dtype, device)

    def load(self, folder: str, dtype: torch.dtype, device: torch.device) -> None:
        """Load the weights."""
        self.model = load_classifier(folder, dtype, None, device, self.format.pad)

    def score(self, conversations: Conversations, answers: Sequence[str], what: str = "reward model") -> list[float]:
        """One score for each answer to a conversation, in their order."""
        rows = [self.format.encode(messages, answer) for messages, answer in zip(conversations, answers, strict=True)]
        self.scored += len(rows)
        self.truncated += sum(row.truncated for row in rows)
        with progress(f"scoring by {what}", sum(len(row.ids) for row in rows), "tokens") as work:
            return self.score_rows(rows, work.advance)

    @torch.inference_mode()
    def score_rows(self, rows: Sequence[Encoded], count: Callable[[int], None]) -> list[float]:
        """One score for each row, in their order; `count` is told tokens as they are done."""
        scores = [0.0] * len(rows)
        lengths = [len(row.ids) for row in rows]
        for part in _by_length(lengths, self.tokens):
            ids_BS, mask_BS = self._padded([rows[i].ids for i in part])
            more = {"token_type_ids": self._padded([rows[i].types for i in part], 0)[0]} if rows[0].types else {}
            logits_BK = self.model(input_ids=ids_BS, attention_mask=mask_BS, **more).logits.float()
            for index, score in zip(part, self._scores(logits_BK).tolist(), strict=True):
                scores[index] = score
            count(sum(lengths[i] for i in part))
        return scores

    def _padded(self, rows: Sequence[Sequence[int]], fill: int | None = None) -> tuple[Tensor, Tensor]:
        """Rows as a tensor padded on the right [B,S], and their attention mask."""
        pad = self.model.config.get_text_config().pad_token_id if fill is None else fill
        longest = max(map(len, rows))
        ids_BS = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
        mask_BS = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return ids_BS.to(self.model.device), mask_BS.to(self.model.device)

    def _scores(self, logits_BK: Tensor) -> Tensor:
        """Scores [B] of the outputs."""
        if logits_BK.shape[1] == 1:
            return logits_BK[:, 0]
        others_BK = torch.cat([logits_BK[:, : self._label], logits_BK[:, self._label + 1 :]], 1)
        return logits_BK[:, self._label] - others_BK.logsumexp(1)


def load_classifier(folder: str, dtype: torch.dtype, attention: str | None, device: torch.device, pad: int) -> Any:
    """The sequence-classification model, in evaluation mode; `pad` is set where its configuration names none."""
    register()
    files.require(Path(folder))
    files.require_memory(Path(folder), dtype.itemsize)
    config = _config(folder)
    known = config.get_text_config().pad_token_id
    settings = {"pad_token_id": pad if known is None else known}
    if attention:
        settings["attn_implementation"] = attention
    model = base.read_weights(folder, AutoModelForSequenceClassification, dtype, settings)
    return base.move_to(model.eval(), device)


def _config(folder: str) -> Any:
    files.require_classifier(folder)
    with naming_files(Path(folder), files.require_texts, "transformers must know the model of config.json"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def _label_index(folder: str, config: Any, label: str) -> int:
    """The output that is the score: the only one, or the one of the named label."""
    names = {str(name): int(index) for index, name in config.id2label.items()}
    if config.num_labels == 1 and not label:
        return 0
    if label in names:
        return names[label]
    value = f"{folder}: {'no label ' + repr(label) if label else str(len(names)) + ' labels'} ({', '.join(names)})"
    fix = f"name the label of good answers: {folder}#{next(iter(names))}" if len(names) > 1 else "leave out #LABEL"
    raise ModelError(value, "a reward model has one output, or the label of good answers is named", fix)


def _limit(config: Any, tokenizer: Any) -> int:
    """The longest row in tokens, by tokenizer and configuration; 0 where neither says."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or UNLIMITED
    if getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
        positions -= config.pad_token_id + 1  # positions are counted from the pad token's number
    limit = min(positions, tokenizer.model_max_length)
    return int(limit) if 0 < limit < UNLIMITED else 0


def _by_length(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices of rows of similar length, longest first, in passes of at most about `tokens` with padding."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        count = max(1, tokens // max(1, lengths[order[0]]))
        yield order[:count]
        order = order[count:]
