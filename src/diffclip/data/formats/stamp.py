"""Whether a data set has changed, without reading its images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable
class Stamped(Protocol):
    """A source that has a stamp. Every source of this package has; another's may."""

    def stamp(self) -> str:
        """Changes whenever what the source gives may have changed; cheap, at most a look at each file."""
        ...


def stamp_of(files: Iterable[Path | str], *facts: object) -> str:
    """A digest of the files' places, sizes and times of change, and of what else decides what is read from them.

    A file that has gone counts as such. Times are compared, never trusted to mean that the content is new: a copy
    has another stamp, but the same content.
    """
    digest = hashlib.sha256(repr(facts).encode())
    for file in files:
        path = os.path.abspath(file)
        try:
            status = os.stat(path)
            digest.update(f"\n{path}\0{status.st_size}\0{status.st_mtime_ns}".encode(errors="surrogateescape"))
        except (OSError, ValueError):  # a path in a table may hold a null byte
            digest.update(f"\n{path}\0missing".encode(errors="surrogateescape"))
    return digest.hexdigest()
