"""Batches for training from a stream: the same on any number of workers, and after a resume that reads again."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from queue import Full, Queue

from torch.utils.data import Dataset, Sampler

from diffclip.data.example import Example
from diffclip.data.formats.stream import Stream
from diffclip.data.images import BadImage
from diffclip.data.loading.loader import Batch, Loader, collate, generator_of, joined, prepare
from diffclip.data.loading.workers import batches_of
from diffclip.data.sources import Source
from diffclip.data.tokenizer import Tokenizer
from diffclip.data.transforms import ByEpoch, Transform, in_epoch
from diffclip.errors import UserError

logger = logging.getLogger(__name__)

AT_A_TIME = 64  # examples that a worker gets
PATIENCE = 2.0  # seconds that ending an epoch waits for the reading thread
AHEAD = 4  # such chunks read before they are asked for

# The epoch, the number of the first in it, the examples. An error raised in a sampler would keep the workers alive.
_Chunk = tuple[int, int, list[Example | BadImage]] | UserError
_Made = tuple[Batch | None, Counter[str]] | UserError


class StreamLoader(Loader):
    """As `Loader`, of a `Stream`.

    This process alone reads the stream, ahead of need; workers decode and augment. A bad example is counted and left
    out, and the next one moves up. `epoch(e, start=k)` reads the epoch from its beginning and leaves out the first k
    batches: the batches and counts of an uninterrupted epoch, if the shards still give the same bytes. With a `part`
    each rank reads its own shards, so batches depend on the world size, and the share of skipped examples is each
    rank's own.
    """

    def epoch(self, epoch: int, start: int = 0, skipped: Mapping[str, int] | None = None) -> Iterator[Batch]:
        assert isinstance(self._source, Stream)
        self.skipped = Counter()  # whatever was skipped before is found again
        rows = self._batch_size // self._part[1]
        if start:
            logger.warning("%s is a stream: %d batches are read again to go on behind them", self._source.name, start)
        reader = _Reader(self._source, self._seed, epoch, self._part, min(AT_A_TIME, rows))
        try:
            iterator = batches_of(
                _ChunkMaker(self._source, self._transform, self._tokenizer, self._seed, self._part),
                sampler=reader,
                num_workers=self._num_workers,
                collate=_as_it_is,
            )
            yield from self._batches(iterator, rows, start)
        finally:
            reader.stop()

    def _batches(self, chunks: Iterator[_Made], rows: int, start: int) -> Iterator[Batch]:
        waiting: list[Batch] = []
        good = 0
        for number in range(len(self)):
            while sum(len(batch.indices) for batch in waiting) < rows:
                made = next(chunks)
                if isinstance(made, UserError):
                    raise UserError(*made.args)  # a new one, as in Loader.epoch
                batch, skipped = made
                self.skipped.update(skipped)
                if batch is not None:
                    waiting.append(batch)
                    good += len(batch.indices)
                self._judge(good, self.skipped.total())
            whole = joined([batch for batch in waiting if len(batch.indices)])
            waiting = [_rows(whole, slice(rows, None))]
            if number >= start:
                yield _rows(whole, slice(rows))


def _as_it_is(made: _Made) -> _Made:
    return made


def _rows(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.pixels[rows], batch.tokens[rows], batch.groups[rows], batch.indices[rows])


class _Reader(Sampler[_Chunk]):
    """Chunks of the stream, read by a thread that keeps `AHEAD` of them ready.

    The thread starts with the first chunk: workers have been forked then, and none inherits its locks.
    """

    def __init__(self, stream: Stream, seed: int, epoch: int, part: tuple[int, int], size: int) -> None:
        self._stream, self._seed, self._epoch, self._part, self._size = stream, seed, epoch, part, size
        self._ready: Queue[_Chunk | Exception] = Queue(AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="stream", daemon=True)

    def __iter__(self) -> Iterator[_Chunk]:
        self._thread.start()
        while True:
            chunk = self._ready.get()
            while isinstance(chunk, UserError):  # to all that is asked for ahead
                yield chunk
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(PATIENCE)  # if it waits for the network, it ends when that answers

    def _read(self) -> None:
        examples = self._stream.examples(self._seed, self._epoch, self._part)
        number = 0
        try:
            while not self._stopped.is_set():
                chunk: list[Example | BadImage] = []
                for example in examples:
                    chunk.append(example)
                    if len(chunk) == self._size or self._stopped.is_set():
                        break
                self._put((self._epoch, number, chunk))
                number += len(chunk)
        except UserError as error:  # without its frames, which would stay as long as it does
            self._put(UserError(*error.args))
        except Exception as error:  # raised where the chunk is asked for
            self._put(error)
        finally:
            examples.close()  # type: ignore[attr-defined]  # a generator: closes the pipe it reads

    def _put(self, chunk: _Chunk | Exception) -> None:
        while not self._stopped.is_set():
            try:
                return self._ready.put(chunk, timeout=0.1)
            except Full:
                continue


class _ChunkMaker(Dataset[_Made]):
    def __init__(
        self, source: Source, transform: Transform | ByEpoch, tokenizer: Tokenizer, seed: int, part: tuple[int, int]
    ) -> None:
        self._source, self._transform, self._tokenizer = source, transform, tokenizer
        self._seed, self._part = seed, part

    def __getitem__(self, chunk: _Chunk) -> _Made:
        if isinstance(chunk, UserError):
            return chunk
        epoch, first, examples = chunk
        skipped: Counter[str] = Counter()
        made = []
        try:
            which, parts = self._part
            for number, example in enumerate(examples, first):
                index = number * parts + which  # no other part has it
                rng = generator_of(self._seed, epoch, index)
                try:
                    if isinstance(example, BadImage):
                        raise BadImage(example.reason)
                    made.append(prepare(self._source, example, in_epoch(self._transform, epoch), rng, index))
                except BadImage as bad:
                    skipped[bad.reason] += 1
            return (collate(made, self._tokenizer) if made else None), skipped
        except UserError as error:
            return error
