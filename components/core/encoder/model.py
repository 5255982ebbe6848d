"""Text to vectors: the encoder that mining, training, evaluation and export share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.core.encoder.config import EncoderConfig, Kind
from components.core.encoder.packed.encoder import PackedEncoder, is_faster_packed
from components.core.encoder.pooling import Pooling
from components.core.progress import Progress

_PLURAL: dict[Kind, str] = {"query": "queries", "passage": "passages"}
# BERT and its like: compiling takes some seconds, in which a GPU encodes as many texts. Llama compiles nothing.
_MIN_TEXTS_TO_COMPILE = 20_000


class Encoder(nn.Module):
    """A transformer with pooling and normalisation, and the tokenizer that feeds it.

    ``source``: the directory that it was loaded from, if any.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: EncoderConfig,
        source: Path | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.config = config

    @property
    def dimension(self) -> int:
        """Return the length of a vector."""
        return int(self.backbone.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.backbone.parameters()).device

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the vectors of padded texts: int64 [batch, length] twice -> float32 [batch, dimension]."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        vectors = pool_padded(hidden, attention_mask, self.config.pooling)
        return nn.functional.normalize(vectors, dim=-1) if self.config.l2_normalize else vectors

    def tokenize(self, texts: Sequence[str], kind: Kind) -> list[list[int]]:
        """Return the token ids of each text with its prefix, cut to the configured length; with special tokens."""
        prefix = self.config.prefix(kind)
        if not texts:
            return []
        encoded = self.tokenizer(
            [prefix + text for text in texts],
            truncation=True,
            max_length=self.config.max_length(kind),
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def batch(self, ids: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``ids`` padded to the longest, and their attention mask: int64 [len(ids), longest], on the device."""
        longest = max(len(row) for row in ids)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        padded = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        return padded.to(self.device), mask.to(self.device)

    @torch.inference_mode()
    def encode(
        self, texts: Sequence[str], kind: Kind, *, batch_tokens: int = 16384, label: str | None = None
    ) -> np.ndarray:
        """Return the vectors of ``texts``, float32 [len(texts), dimension].

        Equal texts are encoded once; a batch holds about ``batch_tokens`` tokens (one text at least). Texts are packed
        where the model and the device allow it, else those of like length are padded to the longest. Progress is shown
        under the name ``label``.
        """
        self.eval()
        unique = list(dict.fromkeys(texts))
        vectors = np.empty((len(unique), self.dimension), dtype=np.float32)
        with Progress(label or f"encoding {_PLURAL[kind]}", total=len(unique), unit="texts") as progress:
            for rows, batch in self._stream(unique, kind, batch_tokens):
                vectors[rows] = batch
                progress.add(len(rows))
        position = {text: row for row, text in enumerate(unique)}
        return vectors[[position[text] for text in texts]] if len(unique) < len(texts) else vectors

    def _stream(self, texts: Sequence[str], kind: Kind, batch_tokens: int) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield rows of ``texts`` and their vectors, float32 [rows, dimension], batch by batch."""
        if is_faster_packed(self.backbone):
            model = PackedEncoder(
                self.backbone,
                self.config.pooling,
                self.config.l2_normalize,
                compiled=len(texts) >= _MIN_TEXTS_TO_COMPILE,
            )
            yield from model.stream(texts, lambda piece: self.tokenize(piece, kind), batch_tokens)
            return
        ids = self.tokenize(texts, kind)
        for rows in batches_by_length([len(row) for row in ids], batch_tokens):
            yield rows, self(*self.batch([ids[row] for row in rows])).float().cpu().numpy()


def pool_padded(hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Return one vector per text; padding is on the right.

    Args:
        hidden: [batch, length, dimension], any floating-point dtype.
        attention_mask: int64 [batch, length], 0 for padding.
        pooling: ``avg``: the mean of a text's tokens; ``cls``: the first; ``last``: the last.

    Returns:
        float32 [batch, dimension].
    """
    hidden = hidden.float()
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        last = attention_mask.sum(dim=1) - 1
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Return the positions of ``lengths`` in batches that, padded to the longest, hold at most ``batch_tokens`` tokens.

    Longest first, so that memory runs out at the start if at all.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
