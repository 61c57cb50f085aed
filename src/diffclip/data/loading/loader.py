"""Batches for training: batch k of epoch e is the same on any number of workers, and after any resume."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from diffclip.data.example import Example
from diffclip.data.images import BadImage, decode
from diffclip.data.loading.workers import Pixels, as_sent, batches_of, stacked
from diffclip.data.sources import Source, captions_of
from diffclip.data.tokenizer import Tokenizer
from diffclip.data.transforms import ByEpoch, Transform, in_epoch
from diffclip.errors import UserError

REPLACEMENTS = 100  # indices tried in place of one bad example before giving up
JUDGED_FROM = 100  # examples, good and bad, after which the share of skipped ones is looked at
PIECE = 256  # examples of a message from a worker: two batches of 4,096 for each of 16 would be 20 GB of /dev/shm


@dataclass
class Batch:
    """B examples. `tokens` is as long as the longest caption; equal `groups` mean equal captions."""

    pixels: torch.Tensor  # (B, 3, S, S) uint8
    tokens: torch.Tensor  # (B, L) int64
    groups: torch.Tensor  # (B,) int64: the label where the caption was made from it, else a negative hash of the tokens
    indices: torch.Tensor  # (B,) int64

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[Pixels, ...]]:
        """From a worker: pixels as `stacked` made them, the few other bytes with the message."""
        small = (self.tokens.numpy(), self.groups.numpy(), self.indices.numpy())
        return _received, (as_sent(self.pixels), *small)

    def pin_memory(self) -> Batch:
        """The same in memory from which a GPU fetches by itself."""
        return Batch(*(getattr(self, field.name).pin_memory() for field in fields(self)))


def _received(*columns: Pixels) -> Batch:
    return Batch(*map(torch.as_tensor, columns))


class Loader:
    """Random batches of a source, epoch by epoch.

    The order of epoch e is a permutation drawn from (seed, e). What happens to example i in it (its crop, its
    caption, what replaces it if it is bad) is drawn from (seed, e, i). Nothing else matters, so
    `epoch(e, start=k)` goes on exactly where a run stopped. The last, incomplete batch is dropped.
    part: (rank, world size): this loader gives the rank's rows of every batch. The rows of all ranks, one after the
    other, are the batch.
    total: the sum of a number over all ranks, which their loaders ask for at every batch, so that the share of skipped
    examples is that of the whole batch.

    During and after an epoch, `skipped` counts by reason this rank's bad examples in the batches given so far.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform | ByEpoch,
        tokenizer: Tokenizer,
        batch_size: int,
        *,
        seed: int,
        part: tuple[int, int] = (0, 1),
        num_workers: int = 0,
        max_skipped: float = 0.1,
        total: Callable[[int], int] = lambda own: own,
    ) -> None:
        if not 0 < batch_size <= len(source):
            raise UserError(
                f"{source.name} has {len(source)} examples: a batch takes 1 to all of them, not {batch_size}"
            )
        self.skipped: Counter[str] = Counter()
        self._source, self._batch_size, self._part, self._seed = source, batch_size, part, seed
        self._num_workers, self._max_skipped, self._total = num_workers, max_skipped, total
        self._transform, self._tokenizer = transform, tokenizer

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._source) // self._batch_size

    def epoch(self, epoch: int, start: int = 0, skipped: Mapping[str, int] | None = None) -> Iterator[Batch]:
        """Batches `start`, `start` + 1, … of an epoch.

        skipped: the sum of `skipped` over all ranks before batch `start`, given to one of them, so that the share of
        skipped examples is that of an uninterrupted epoch. Without it the count starts anew.

        Raises:
            UserError: more than `max_skipped` of the examples so far (at least 100, or all of the epoch) had to be
                skipped, or the source cannot be read.
        """
        self.skipped = Counter(skipped or {})
        judged_from = start if skipped is None else 0
        rows = self._batch_size // self._part[1]
        size = min(rows, PIECE) if self._num_workers else rows
        pieces = range(0, rows, size)
        iterator = batches_of(
            _BatchMaker(self._source, self._transform, self._tokenizer, self._seed),
            sampler=_Order(len(self._source), self._batch_size, self._part, self._seed, epoch, start, size),
            num_workers=self._num_workers,
            collate=_as_it_is,
            pin=len(pieces) == 1,  # more are pinned as they are joined
        )
        for number, made in enumerate(_whole(iterator, len(pieces)), start + 1):
            self.skipped.update(made.skipped)
            self._judge(
                (number - judged_from) * self._batch_size, self._total(self.skipped.total()), number == len(self)
            )
            yield made.batch

    def _judge(self, good: int, bad: int, ended: bool = False) -> None:
        if (ended or good + bad >= JUDGED_FROM) and bad > self._max_skipped * (good + bad):
            own = "" if self._part[1] == 1 else " in this process"
            raise UserError(
                f"{self._source.name}: {bad} of {good + bad} examples could not be used, more than "
                f"{self._max_skipped:.0%}: {_counts(self.skipped)}{own}"
            )


def _counts(skipped: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in skipped.most_common())


def _as_it_is(made: _Made) -> _Made:
    # The default one rebuilds every container with update(), which adds a Counter to itself.
    return made


_Request = tuple[int, NDArray[np.int64]]  # the epoch, and the indices of examples: a batch or a piece of one


class _Order(Sampler[_Request]):
    def __init__(
        self, length: int, batch_size: int, part: tuple[int, int], seed: int, epoch: int, start: int, size: int
    ) -> None:
        self._length, self._batch_size, self._part = length, batch_size, part
        self._seed, self._epoch, self._start, self._size = seed, epoch, start, size

    def __iter__(self) -> Iterator[_Request]:
        order = np.random.default_rng([self._seed, self._epoch, 0, _ORDER]).permutation(self._length)
        which, parts = self._part
        rows = self._batch_size // parts
        for k in range(self._start, self._length // self._batch_size):
            first = k * self._batch_size + which * rows
            for begin in range(0, rows, self._size):
                yield self._epoch, order[first + begin : first + min(begin + self._size, rows)]


# The last number of a seed: what is drawn from it. (numpy takes [a, b] and [a, b, 0] for the same seed.)
_ORDER, _EXAMPLE = 1, 2


@dataclass
class _Good:
    """A batch, and what was skipped for it by reason. (In a tuple torch would pin the Counter, which doubles it.)"""

    batch: Batch
    skipped: Counter[str]

    def pin_memory(self) -> _Good:
        return _Good(self.batch.pin_memory(), self.skipped)


_Made = _Good | UserError  # an error raised in a worker would reach the user as a traceback


def _whole(items: Iterator[_Made], pieces: int) -> Iterator[_Good]:
    """Batches of so many items each. Raises UserError where one of them is that."""
    for first in items:
        made = []
        for item in (first, *islice(items, pieces - 1)):
            if isinstance(item, UserError):
                # A new one: an exception that its own frame refers to would keep the workers alive with the frame.
                raise UserError(*item.args)
            made.append(item)
        yield (
            made[0]
            if pieces == 1
            else _Good(joined([good.batch for good in made]), sum((good.skipped for good in made), Counter[str]()))
        )


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of all; where there is a GPU, pixels in memory from which it fetches by itself."""
    pinned = torch.cuda.is_available()
    if len(batches) == 1:
        return batches[0].pin_memory() if pinned else batches[0]
    longest = max(batch.tokens.shape[1] for batch in batches)
    shape = (sum(len(batch.pixels) for batch in batches), *batches[0].pixels.shape[1:])
    pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
    return Batch(
        torch.cat([batch.pixels for batch in batches], out=pixels),
        torch.cat([torch.nn.functional.pad(b.tokens, (0, longest - b.tokens.shape[1])) for b in batches]),
        torch.cat([batch.groups for batch in batches]),
        torch.cat([batch.indices for batch in batches]),
    )


class _BatchMaker(Dataset[_Made]):
    def __init__(self, source: Source, transform: Transform | ByEpoch, tokenizer: Tokenizer, seed: int) -> None:
        self._source, self._transform, self._tokenizer, self._seed = source, transform, tokenizer, seed

    def __getitem__(self, request: _Request) -> _Made:
        try:
            return self._make(*request)
        except UserError as error:
            return error

    def _make(self, epoch: int, indices: NDArray[np.int64]) -> _Good:
        skipped: Counter[str] = Counter()
        examples = [self._example(epoch, int(index), skipped) for index in indices]
        return _Good(collate(examples, self._tokenizer), skipped)

    def _example(self, epoch: int, index: int, skipped: Counter[str]) -> Prepared:
        """The example, or the first usable one of those drawn in its place."""
        rng = generator_of(self._seed, epoch, index)
        for _ in range(REPLACEMENTS):
            try:
                return prepare(self._source, self._source[index], in_epoch(self._transform, epoch), rng, index)
            except BadImage as bad:
                skipped[bad.reason] += 1
                index = int(rng.integers(len(self._source)))
        raise UserError(f"{self._source.name}: {REPLACEMENTS} examples in a row could not be used: {_counts(skipped)}")


@dataclass
class Prepared:
    pixels: torch.Tensor
    caption: str
    label: int | None  # where the caption was made of it
    index: int


def generator_of(seed: int, epoch: int, index: int) -> np.random.Generator:
    """What is drawn for example `index` in an epoch."""
    return np.random.Generator(np.random.PCG64([seed, epoch, index, _EXAMPLE]))


def prepare(source: Source, example: Example, transform: Transform, rng: np.random.Generator, index: int) -> Prepared:
    """An example decoded and augmented, with one of its captions.

    Raises BadImage, and UserError for a class without a name.
    """
    image = decode(example.image)
    captions = captions_of(source, example)
    if not captions:
        raise BadImage("no_caption")
    caption = captions[int(rng.integers(len(captions)))]
    label = None if example.captions else example.label
    return Prepared(transform(image, rng), caption, label, index)


def collate(examples: Sequence[Prepared], tokenizer: Tokenizer) -> Batch:
    """A batch of at least one example."""
    captions = [example.caption for example in examples]
    distinct = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}  # labelled data have few
    tokens = tokenizer(list(distinct))
    tokens = tokens[:, : int((tokens != 0).any(dim=0).sum())]
    hashes = [_negative_hash(row) for row in tokens]
    rows = [distinct[caption] for caption in captions]
    groups = [hashes[row] if e.label is None else e.label for row, e in zip(rows, examples, strict=True)]
    return Batch(
        torch.as_tensor(stacked([example.pixels for example in examples])),
        tokens[rows],
        torch.tensor(groups),
        torch.tensor([example.index for example in examples]),
    )


def _negative_hash(tokens: torch.Tensor) -> int:
    """From −2^63 to −1, so that it is never a label; zeros at the end of the tokens make no difference."""
    content = np.trim_zeros(tokens.numpy(), "b").tobytes()
    return -1 - int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") // 2
