"""The tokenizer that a folder of transformers brings, as a model here is read by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class FolderTokenizer:
    """A folder's own tokenizer: texts → ids (B, L), filled up to `longest`, or as far as the longest text goes."""

    tokenizer: Any
    longest: int
    fill: bool

    def __call__(self, texts: Sequence[str]) -> Tensor:
        padding = "max_length" if self.fill else "longest"
        made = self.tokenizer(
            list(texts), padding=padding, truncation=True, max_length=self.longest, return_tensors="pt"
        )
        ids: Tensor = made["input_ids"]
        return ids

    def mask(self, tokens: Tensor) -> Tensor | None:
        """What is no padding (B, L) int64; None where the tokenizer tells a model nothing of it."""
        pad = self.tokenizer.pad_token_id
        if "attention_mask" not in self.tokenizer.model_input_names:
            return None
        places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        lengths = (tokens.ne(pad) * places).amax(1, keepdim=True)
        ends = int(pad == self.tokenizer.eos_token_id)  # the first of what looks like padding ends the text
        return places.le(lengths + ends).long()
