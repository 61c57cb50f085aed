"""Many paths in little memory, which the processes that read them share."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator


class PackedPaths:
    """Paths one behind the other, as bytes.

    Reading a list's item counts its references, so that each forked process comes to hold a copy of every page.
    """

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("q")

    def extend(self, paths: Iterable[str]) -> int:
        """Add paths at the end. Returns how many."""
        before = len(self)
        for path in paths:
            self._bytes += os.fsencode(path)
            self._ends.append(len(self._bytes))
        return len(self) - before

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        """Raises IndexError where there is none."""
        end = self._ends[index]
        return os.fsdecode(bytes(self._bytes[self._ends[index - 1] if index else 0 : end]))

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))
