"""The index of a tar shard, kept on disk: where the bytes of each example lie.

It lies beside its shard as `NAME.tar.diffclip-index` or, where that folder may not be written, in
$XDG_CACHE_HOME/diffclip/shards (by default ~/.cache). It is valid while the shard has the size and time of
change that it had then. Whoever may write there could forge one. So it is read without pickle, every number in it is
checked against the shard's size, and an invalid one is made again: at worst it mixes up what lies inside the shard.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from rich.progress import track
from safetensors import SafetensorError

from diffclip import durable
from diffclip.data.formats.tar import BLOCK, Member, examples, members
from diffclip.data.parallel import in_order, processors
from diffclip.reading import read_bytes
from diffclip.terminal import Terminal

SUFFIX = ".diffclip-index"
VERSION = 2  # counts up when members are put together in another way
SETTLED = 2_000_000_000  # ns since the last change; what is younger may change again within one tick of its clock
IN_PARALLEL = 1 << 26  # bytes of shards without an index from which on processes share the work


@dataclass(frozen=True)
class ShardIndex:
    """M members of E examples. What example i calls its part of suffix s lies at that member's offset."""

    suffixes: tuple[str, ...]
    """In the order in which they first appear."""
    example: NDArray[np.int32]
    """(M,), from 0 to E − 1, never falling."""
    suffix: NDArray[np.int32]
    """(M,), places in `suffixes`."""
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    """(M,), bytes."""

    @classmethod
    def of(cls, groups: Iterable[Mapping[str, Member]]) -> ShardIndex:
        """The index of a shard's examples, each a mapping from suffixes to members."""
        numbers: dict[str, int] = {}
        rows = [
            (example, numbers.setdefault(suffix, len(numbers)), member.offset, member.size)
            for example, group in enumerate(groups)
            for suffix, member in group.items()
        ]
        table = np.array(rows, dtype=np.int64).reshape(-1, 4)
        narrow = table[:, :2].astype(np.int32)
        return cls(tuple(numbers), narrow[:, 0], narrow[:, 1], table[:, 2], table[:, 3])

    def __len__(self) -> int:
        """Examples."""
        return int(self.example[-1]) + 1 if len(self.example) else 0

    def spans(self, suffixes: Sequence[str]) -> NDArray[np.int64]:
        """Offset and size (E, len(suffixes), 2) of the members with these suffixes, 0 and 0 where there is none."""
        found = np.zeros((len(self), len(suffixes), 2), dtype=np.int64)
        for column, suffix in enumerate(suffixes):
            if suffix in self.suffixes:
                here = self.suffix == self.suffixes.index(suffix)
                found[self.example[here], column] = np.stack([self.offset[here], self.size[here]], axis=1)
        return found


def indices(files: Sequence[Path]) -> list[ShardIndex]:
    """The index of each shard: what is kept where it holds, else made of the shard and kept for next time.

    Shards are shared among processes where that takes less time. Raises UserError for one that cannot be read.
    """
    found = [load(file) for file in files]
    made = _made([file for file, index in zip(files, found, strict=True) if index is None])
    return [index if index is not None else next(made) for index in found]


def _made(files: list[Path]) -> Iterator[ShardIndex]:
    workers = min(len(files), processors()) if sum(map(_size, files)) >= IN_PARALLEL else 1
    console = Terminal(stderr=True)
    yield from track(
        in_order(_make, files, workers),
        description="indexing shards, once",
        total=len(files),
        console=console,
        disable=workers < 2 or not console.is_terminal,
        transient=True,
    )


def _make(file: Path) -> ShardIndex:
    before = _state(file)
    found, whole = members(file)  # a shard that seems cut short is reported each time, so its index is not kept
    index = ShardIndex.of(examples(found))
    if whole and before is not None and before == _state(file) and before[1] + SETTLED < time.time_ns():
        _store(index, file, before)
    return index


def _size(file: Path) -> int:
    state = _state(file)
    return state[0] if state else 0


def _state(file: Path) -> tuple[int, int] | None:
    """Size and time of change of a shard; None where it cannot be looked at."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def places(file: Path) -> tuple[Path, Path]:
    """Where the index of a shard may lie: beside it, and in the cache."""
    folder = durable.cache_folder() / "shards"
    key = hashlib.sha256(os.fsencode(os.path.realpath(file))).hexdigest()[:32]
    return file.with_name(file.name + SUFFIX), folder / (key + SUFFIX)


def load(file: Path) -> ShardIndex | None:
    """The index that is kept of a shard as it is now; None where there is none that holds."""
    state = _state(file)
    if state is None:
        return None
    for place in places(file):
        with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
            # Every member of an index has a header of 512 bytes in the shard, and 24 bytes in the index.
            if place.stat().st_size <= state[0] + (1 << 16):
                return _checked(safetensors.numpy.load(read_bytes(place)), state)
    return None


def _checked(tensors: dict[str, NDArray[np.generic]], state: tuple[int, int]) -> ShardIndex:
    """The index in a file's tensors. Raises ValueError, KeyError or TypeError where it is not one of this shard."""
    about = json.loads(tensors["about"].tobytes())
    if (about["version"], about["size"], about["changed"]) != (VERSION, *state):
        raise ValueError("of another version of the shard")
    suffixes = about["suffixes"]
    if not isinstance(suffixes, list) or not all(isinstance(suffix, str) for suffix in suffixes):
        raise ValueError("suffixes")
    example, suffix, offset, size = (tensors[name] for name in ("example", "suffix", "offset", "size"))
    for column, kind in ((example, np.int32), (suffix, np.int32), (offset, np.int64), (size, np.int64)):
        if column.dtype != kind or column.shape != (len(example),):
            raise ValueError("columns")
    index = ShardIndex(
        tuple(suffixes),
        example.astype(np.int32, copy=False),
        suffix.astype(np.int32, copy=False),
        offset.astype(np.int64, copy=False),
        size.astype(np.int64, copy=False),
    )
    steps = np.diff(index.example, prepend=np.int32(-1))  # a difference that overflows is neither 0 nor 1
    inside = (index.offset >= BLOCK) & (index.offset <= state[0]) & (index.size >= 0)
    inside &= (index.offset % BLOCK == 0) & (index.size <= state[0] - index.offset)
    known = (index.suffix >= 0) & (index.suffix < len(suffixes))
    if not (inside.all() and known.all() and ((steps == 0) | (steps == 1)).all() and (steps[:1] == 1).all()):
        raise ValueError("numbers")
    return index


def _store(index: ShardIndex, file: Path, state: tuple[int, int]) -> None:
    """Keep an index beside its shard or in the cache; where neither can be written, not at all."""
    facts = {"version": VERSION, "size": state[0], "changed": state[1], "suffixes": index.suffixes}
    about = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    columns = {name: np.ascontiguousarray(getattr(index, name)) for name in ("example", "suffix", "offset", "size")}
    data = safetensors.numpy.save({"about": about, **columns})
    beside, cached = places(file)
    # A folder that nobody may write to is meant to stay as it is, also by root.
    writable = bool(beside.parent.stat().st_mode & 0o222)
    for place in (beside, cached) if writable else (cached,):
        with suppress(OSError):
            with durable.writing(place) as unfinished:
                unfinished.write_bytes(data)
                unfinished.chmod(file.stat().st_mode & 0o666)  # who may read the shard may read its index
            return
