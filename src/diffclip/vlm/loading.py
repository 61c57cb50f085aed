"""Batches of conversations: batch k of epoch e is the same on any number of workers, and after any resume."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from diffclip.data.images import BadImage, decode
from diffclip.data.loading.workers import batches_of
from diffclip.data.transforms import EvalTransform
from diffclip.errors import UserError
from diffclip.text import listed
from diffclip.vlm.conversation import UNLEARNED, Tokens, caption, conversation
from diffclip.vlm.samples import BadSample, LlavaJson, Sample, Samples, Symbol, in_words
from diffclip.vlm.scene_questions import Kind, SceneConversations

REPLACEMENTS = 100  # samples tried in place of one that cannot be used
LOOKED_AT = 1000  # samples that are looked at before the first step
SHOWN = 3  # of those that cannot be used, by their ids
_ORDER, _SAMPLE = 5, 6  # the last number of a seed: what is drawn from it; the other loaders have 1 to 4


@dataclass
class Batch:
    """B conversations, padded at their right, and the images of those that have one."""

    ids: Tensor  # (B, L) int64
    mask: Tensor  # (B, L) int64: 1 for a token, 0 for padding
    labels: Tensor  # (B, L) int64
    pixels: Tensor | None  # (images, 3, S, S) uint8, in the order of the conversations
    symbols: Tensor | None  # (B, image tokens, words) int64: the words that stand at each
    amounts: Tensor | None  # (B, image tokens, words) float32: how much of each; 0: none
    with_image: Tensor  # (B,) bool
    indices: Tensor  # (B,) int64

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return int((self.labels[:, 1:] != UNLEARNED).sum())

    def split(self, size: int) -> Iterator[Batch]:
        """The batch in parts of at most so many conversations."""
        images = self.with_image.cumsum(0)
        for start in range(0, len(self.ids), size):
            rows = slice(start, start + size)
            first = int(images[start - 1]) if start else 0
            pixels = self.pixels[first : int(images[rows][-1])] if self.pixels is not None else None
            yield Batch(
                self.ids[rows],
                self.mask[rows],
                self.labels[rows],
                pixels if pixels is not None and len(pixels) else None,
                None if self.symbols is None else self.symbols[rows],
                None if self.amounts is None else self.amounts[rows],
                self.with_image[rows],
                self.indices[rows],
            )


Laid = list[list[tuple[int, float]]]
"""The words at each of an image's tokens, and how much of each."""
Read = tuple[Tokens, Tensor | None, Laid | None, int]
"""A conversation, its pixels, the words in their place, and its own place."""


@dataclass(frozen=True)
class Reader:
    """How a sample becomes tokens and pixels."""

    samples: Samples
    tokenizer: PreTrainedTokenizerBase
    transform: EvalTransform
    image_tokens: int
    max_length: int
    form: Literal["conversation", "caption", "words"]

    def tokens(self, index: int) -> tuple[Tokens, Sample, bool]:
        """The tokens of a sample, the sample, and whether it was cut. Raises BadSample, BadImage."""
        sample = self.samples[index]
        image_tokens = self.image_tokens if sample.image is not None or sample.symbols else 0
        if self.form == "words" and sample.image is None:
            raise BadSample("no_image")
        if self.form != "conversation":
            text = sample.turns[0].answer
            if self.form == "words":  # as each stands within a sentence
                text = f" {text[:1].lower()}{text[1:]}"
            made = caption(self.tokenizer, text, image_tokens=image_tokens)
        else:
            made = conversation(self.tokenizer, sample.turns, image_tokens=image_tokens)
        cut = len(made.ids) > self.max_length
        made = Tokens(made.ids[: self.max_length], made.labels[: self.max_length])
        if image_tokens > self.max_length or not made.learned:
            raise BadSample("nothing_to_learn")
        return made, sample, cut

    def read(self, index: int) -> Read:
        made, sample, _ = self.tokens(index)
        pixels = None if sample.image is None else self.transform(decode(sample.image))
        return made, pixels, self._laid_out(sample.symbols) if sample.symbols else None, index

    def _laid_out(self, symbols: tuple[Symbol, ...]) -> Laid:
        """The words' tokens, each at the image's token in whose square it stands."""
        side = math.isqrt(self.image_tokens)
        found: Laid = [[] for _ in range(side * side)]
        for symbol in symbols:
            row, column = (min(max(int(place * side), 0), side - 1) for place in (symbol.y, symbol.x))
            words = self.tokenizer(symbol.words, add_special_tokens=False)["input_ids"]
            found[row * side + column] += [(word, symbol.amount) for word in words]
        return found


def check_samples(reader: Reader, most_unusable: float) -> str:
    """Look at samples all over the data before anything is trained; returns what was found, in words.

    Raises UserError where more than this share of them cannot be learned from, with their reasons and ids.
    """
    count = len(reader.samples)
    places = np.unique(np.linspace(0, count - 1, min(count, LOOKED_AT)).astype(int)).tolist()
    bad, named, cut, texts, learned = Counter[str](), list[str](), 0, 0, 0
    for place in places:
        try:
            made, sample, was_cut = reader.tokens(place)
        except (BadSample, BadImage) as error:
            bad[error.reason] += 1
            if len(named) < SHOWN:
                named.append(f"{reader.samples.id_of(place)} {error.reason}")
            continue
        cut, texts, learned = cut + was_cut, texts + (sample.image is None), learned + made.learned
    if bad.total() > most_unusable * len(places):
        raise UserError(
            f"{reader.samples.name}: {bad.total()} of {len(places)} conversations looked at cannot be learned from, "
            f"more than {most_unusable:.0%} (max_unusable): {in_words(bad)}; the first: {'; '.join(named)}"
        )
    found = [f"{learned / max(1, len(places) - bad.total()):.1f} tokens to learn in each"]
    found += [f"{cut} longer than {reader.max_length} tokens, which are cut"] if cut else []
    found += [f"{texts} without an image"] if texts else []
    found += [f"left out: {in_words(bad)} ({'; '.join(named)})"] if bad else []
    return f"of {len(places):,} of {count:,} conversations: {', '.join(found)}"


def open_samples(path: str, images: str, *, size: int, length: int, seed: int) -> Samples:
    """The samples of a stage: `scenes:` and a kind of conversation about them, or a file of LLaVA's JSON.

    size, length, seed: of drawn scenes: pixels a side, how many, which. Raises UserError where they cannot be read.
    """
    scheme, _, kind = path.partition(":")
    kinds: tuple[Kind, ...] = get_args(Kind)
    if scheme == "scenes":
        for known in kinds:
            if kind == known:
                return SceneConversations(known, length, size, seed)
    if not path or scheme == "scenes":
        named = listed(f"scenes:{known}" for known in kinds)
        raise UserError(f"data = {path!r}: give a file of LLaVA's JSON, or one of {named}")
    return LlavaJson(Path(path).expanduser(), Path(images).expanduser() if images else None)


class ConversationLoader:
    """Random batches of conversations, epoch by epoch, in the manner of `data.loading.loader.Loader`."""

    def __init__(
        self,
        reader: Reader,
        batch_size: int,
        *,
        seed: int,
        part: tuple[int, int] = (0, 1),
        num_workers: int = 0,
    ) -> None:
        if not 0 < batch_size <= len(reader.samples):
            raise UserError(
                f"{reader.samples.name} has {len(reader.samples)} conversations: a batch takes 1 to all of them, not "
                f"{batch_size}"
            )
        self.skipped: Counter[str] = Counter()
        self._reader, self._batch_size, self._seed = reader, batch_size, seed
        self._part, self._num_workers = part, num_workers

    def epoch(self, epoch: int, start: int = 0, skipped: Mapping[str, int] | None = None) -> Iterator[Batch]:
        """Batches `start`, `start` + 1, … of an epoch: this rank's rows of each."""
        self.skipped = Counter(skipped or {})
        count = len(self._reader.samples)
        order = np.random.default_rng([self._seed, epoch, 0, _ORDER]).permutation(count)
        which, ranks = self._part
        rows = self._batch_size // ranks
        requests = [
            (epoch, order[first : first + rows].tolist())
            for first in range(
                start * self._batch_size + which * rows, count - self._batch_size + which * rows + 1, self._batch_size
            )
        ]
        made = batches_of(
            _Maker(self._reader, self._seed), sampler=requests, num_workers=self._num_workers, collate=_as_it_is
        )
        for item in made:
            if isinstance(item, UserError):
                raise UserError(*item.args)
            batch, bad = item
            self.skipped.update(bad)
            yield batch


_Made = tuple[Batch, Counter[str]] | UserError


def _as_it_is(made: _Made) -> _Made:
    return made


class _Maker(Dataset[_Made]):
    def __init__(self, reader: Reader, seed: int) -> None:
        self._reader, self._seed = reader, seed

    def __getitem__(self, request: tuple[int, list[int]]) -> _Made:
        epoch, indices = request
        bad = Counter[str]()
        try:
            return collate([self._sample(epoch, index, bad) for index in indices]), bad
        except UserError as error:
            return error

    def _sample(self, epoch: int, index: int, bad: Counter[str]) -> Read:
        """The sample, or the first usable one of those drawn in its place."""
        random = np.random.default_rng([self._seed, epoch, index, _SAMPLE])
        for _ in range(REPLACEMENTS):
            try:
                return self._reader.read(index)
            except (BadSample, BadImage) as error:
                bad[error.reason] += 1
                index = int(random.integers(len(self._reader.samples)))
        raise UserError(f"{REPLACEMENTS} conversations in a row could not be used: {in_words(bad)}")


def collate(samples: Sequence[Read]) -> Batch:
    """Conversations of different lengths, padded at their right; what is padding the mask says, not the token."""
    longest = max(len(tokens.ids) for tokens, *_ in samples)

    def padded(of: Callable[[Tokens], list[int]], filling: int) -> Tensor:
        return torch.tensor([(own := of(tokens)) + [filling] * (longest - len(own)) for tokens, *_ in samples])

    images = [pixels for _, pixels, _, _ in samples if pixels is not None]
    laid = [words for _, _, words, _ in samples if words is not None]
    most = max((len(words) for row in laid for words in row), default=0)
    full = [[words + [(0, 0.0)] * (most - len(words)) for words in row] for row in laid]
    return Batch(
        padded(lambda tokens: tokens.ids, 0),
        padded(lambda tokens: [1] * len(tokens.ids), 0),
        padded(lambda tokens: tokens.labels, UNLEARNED),
        torch.stack(images) if images else None,
        torch.tensor([[[word for word, _ in words] for words in row] for row in full]) if full else None,
        torch.tensor([[[amount for _, amount in words] for words in row] for row in full]) if full else None,
        torch.tensor([pixels is not None for _, pixels, _, _ in samples]),
        torch.tensor([index for *_, index in samples]),
    )
