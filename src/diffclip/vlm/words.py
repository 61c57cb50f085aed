"""Image tokens that stand for words, before a language model reads them: the stage form "words".

Through a frozen language model of a hundred million weights a connector learns from a few images a second. Here it
learns from the language model's embeddings alone, as word detectors do from captions (Fang et al. 2015, arXiv
1411.4952, section 3): each word of the answer is to be found at one of the image's tokens, every other word at none.
Words that follow each other are to be at one token, or "red" and "star" would be learned but no red star. A token is to
hold nothing but words, so that it looks as `word_tokens` would have made it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffclip.data.images import BadImage
from diffclip.errors import UserError
from diffclip.vlm.loading import Reader
from diffclip.vlm.samples import BadSample

LOOKED_AT, LEAST, MOST = 2000, 5, 0.5
"""A word is learned if at least `LEAST` of the first `LOOKED_AT` answers have it, and at most this share of them: what
more have is an article or a comma. So are pairs of such words, one after the other."""
SHARPNESS = 10.0
"""Logits for each whole embedding of a word that is at a token; half of one is a probability of 1/2."""


@dataclass(frozen=True)
class Words:
    """What is to be found at an image's tokens: N words, and P pairs of them at one token."""

    ids: Tensor
    """(N,) int64, ordered."""
    pairs: Tensor
    """(P, 2) int64: places in `ids`, of words that follow each other in answers."""

    def to(self, device: torch.device) -> Words:
        return Words(self.ids.to(device), self.pairs.to(device))


def words_of(reader: Reader, width: int) -> Words:
    """The tokens that answers are made of, the most frequent width / 2 of them and as many pairs.

    width: of the embeddings. Amounts of more words could not be told apart. Raises UserError where fewer than two are
    frequent.
    """
    alone, together = Counter[int](), Counter[tuple[int, int]]()
    for index in itertools.islice(range(len(reader.samples)), LOOKED_AT):
        try:
            made, _, _ = reader.tokens(index)
        except (BadSample, BadImage):
            continue
        labels = [label for label in made.labels if label >= 0]
        alone.update(set(labels))
        together.update(set(itertools.pairwise(labels)))
    seen = min(LOOKED_AT, len(reader.samples))
    most = max(2, width // 2)
    words = sorted([word for word, count in alone.most_common() if LEAST <= count <= MOST * seen][:most])
    if len(words) < 2:
        raise UserError(
            f'{reader.samples.name}: a stage with form = "words" needs answers that share words; fewer than two are in '
            f"{LEAST} of the first {seen:,}, but not in more than {MOST:.0%}"
        )
    place = {word: number for number, word in enumerate(words)}
    frequent = [
        (place[one], place[other])
        for (one, other), count in together.most_common()
        if count >= LEAST and one in place and other in place
    ]
    pairs = sorted(frequent[:most])
    return Words(torch.tensor(words), torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2))


def answers_have(labels: Tensor, words: Words) -> tuple[Tensor, Tensor]:
    """Which words and pairs each answer has: labels (B, L) → (B, N), (B, P) bool."""
    said = labels.unsqueeze(-1) == words.ids  # (B, L, N)
    one, other = said[..., words.pairs[:, 0]], said[..., words.pairs[:, 1]]
    return said.any(1), (one[:, :-1] & other[:, 1:]).any(1)


def word_tokens(embeddings: Tensor, words: Tensor, amounts: Tensor) -> Tensor:
    """Image tokens at which words stand: embeddings (V, W), words (B, T, K) int64, amounts (B, T, K) → (B, T, W).

    The mean of all embeddings, and so much of each of a token's words added to it.
    """
    return embeddings.mean(0) + (embeddings[words] * amounts.unsqueeze(-1)).sum(2)


def word_losses(
    tokens: Tensor, embeddings: Tensor, words: Words, have: Tensor, have_pairs: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Is each word where it should be, is each pair of words at one token, and does a token hold anything else?

    tokens (B, T, W), embeddings (V, W), have (B, N), have_pairs (B, P) bool → (B, N), (B, P), (B, T) float32. With e
    the embeddings of the words and m the mean of all, least squares give a token as m + Σ a_v e_v. Word v is at it with
    probability p_v = σ(s (a_v − 1/2)), a pair with p_u p_v, and either is in the image unless it is at no token:
    1 − Π (1 − p) over the tokens, the noisy-or of Fang et al., equation 1. The first two are cross-entropies of that,
    the third squared distances of the tokens from m + Σ p_v e_v, in units of the words' mean square. They vanish for
    what `word_tokens` makes of these words.
    """
    with torch.autocast(tokens.device.type, enabled=False):  # nothing solves equations in bfloat16
        own = embeddings[words.ids].float()
        held = tokens.float() - embeddings.mean(0).float()
        amounts = torch.linalg.solve(own @ own.T, own @ held.transpose(1, 2)).transpose(1, 2)  # (B, T, N)
        logits = SHARPNESS * (amounts - 0.5)
        absent, present = F.logsigmoid(-logits), F.logsigmoid(logits)  # log (1 − p), log p
        both = present[..., words.pairs[:, 0]] + present[..., words.pairs[:, 1]]
        apart = torch.log1p(-both.exp().clamp(max=1 - 1e-6))
        distances = (held - logits.detach().sigmoid() @ own).square().sum(-1) / own.square().sum(1).mean()
    return _somewhere(absent, have), _somewhere(apart, have_pairs), distances


def _somewhere(absent: Tensor, have: Tensor) -> Tensor:
    """Cross-entropies of 1 − Π (1 − p) over the tokens: log (1 − p) (B, T, N), have (B, N) bool → (B, N)."""
    nowhere = absent.sum(1).clamp(max=-1e-6)  # below 0, so that its complement has a logarithm
    return torch.where(have, -torch.log(-torch.expm1(nowhere)), -nowhere)
