"""Image tokens that stand for words, before a language model reads them: the stage form "words".

Through a frozen language model of a hundred million weights a connector learns from a few images a second. Here it
learns from the language model's embeddings alone, as word detectors do from captions (Fang et al. 2015, arXiv
1411.4952, section 3): each word of the answer is to be found at one of the image's tokens, every other word at none.
"""

from __future__ import annotations

import itertools
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor

from diffclip.data.images import BadImage
from diffclip.errors import UserError
from diffclip.vlm.loading import Reader
from diffclip.vlm.samples import BadSample

LOOKED_AT, LEAST = 2000, 5
"""A word is learned if at least `LEAST` of the first `LOOKED_AT` answers have it."""
SHARPNESS = 2.0
"""Logits per unit of the product of a token and a word's embedding."""


def words_of(reader: Reader) -> Tensor:
    """The tokens that answers are made of, (V,) int64, ordered. Raises UserError where fewer than two are frequent."""
    counts = Counter[int]()
    for index in itertools.islice(range(len(reader.samples)), LOOKED_AT):
        try:
            made, _, _ = reader.tokens(index)
        except (BadSample, BadImage):
            continue
        counts.update({label for label in made.labels if label >= 0})
    words = sorted(word for word, count in counts.items() if count >= LEAST)
    if len(words) < 2:
        raise UserError(
            f'{reader.samples.name}: a stage with form = "words" needs answers that share words; fewer than two are in '
            f"{LEAST} of the first {min(LOOKED_AT, len(reader.samples)):,}"
        )
    return torch.tensor(words)


def answers_have(labels: Tensor, words: Tensor) -> Tensor:
    """Which words each answer has: labels (B, L), words (V,) → (B, V) bool."""
    return (labels.unsqueeze(-1) == words).any(1)


def word_tokens(embeddings: Tensor, words: Tensor) -> Tensor:
    """Image tokens at which words stand: embeddings (V, W), words (B, T, K) int64, -1 for none → (B, T, W).

    The sum of a token's words, and the mean embedding where there is none.
    """
    there = (words >= 0).unsqueeze(-1)
    summed = (embeddings[words.clamp(min=0)] * there).sum(2)
    return torch.where(there.any(2), summed, embeddings.mean(0))


def word_losses(tokens: Tensor, embeddings: Tensor, have: Tensor) -> Tensor:
    """Cross-entropies of each image and word: tokens (B, T, W), embeddings (V, W), have (B, V) bool → (B, V) float32.

    With e_v less the mean embedding, word v is at token t with probability p = σ(s (t · e_v − |e|²/2)), |e|² the mean
    over words, and in the image unless it is at no token: 1 − Π_t (1 − p), the noisy-or of Fang et al., equation 1.
    """
    centred = (embeddings - embeddings.mean(0)).float()
    half = centred.square().sum(1).mean() / 2
    at = SHARPNESS * (tokens.float() @ centred.T - half)  # (B, T, V)
    nowhere = F.logsigmoid(-at).sum(1).clamp(max=-1e-6)  # log Π (1 − p), below 0 so that its complement has a logarithm
    somewhere = torch.log(-torch.expm1(nowhere))
    return torch.where(have, -somewhere, -nowhere)
