"""A picture as a row of the index: columns, names, and values in conditions of SQL."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from diffclip.search.exif import Facts
from diffclip.search.files import File


@dataclass(frozen=True)
class Row:
    """A picture of the index."""

    file: File
    content: str
    """A digest of the file's bytes."""
    facts: Facts
    vector: NDArray[np.floating[Any]]


def identity(path: str) -> str:
    """The name of a path: 16 hexadecimal digits, which a URL can have."""
    return hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()


def digest(content: bytes) -> str:
    """Of a file's bytes: 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def schema(width: int) -> pa.Schema:
    """Of the table of pictures. `path` is text; `raw` has the bytes of a path that is no UTF-8."""
    return pa.schema(
        [
            ("id", pa.string()),
            ("path", pa.string()),
            ("raw", pa.binary()),
            ("size", pa.int64()),
            ("changed", pa.int64()),
            ("content", pa.string()),
            ("taken", pa.timestamp("s")),
            ("camera", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("vector", pa.list_(pa.float16(), width)),
        ]
    )


def path_of(row: Mapping[str, Any]) -> str:
    """The path of a row, with whatever bytes it has."""
    return os.fsdecode(row["raw"]) if row.get("raw") else str(row["path"])


def table_of(rows: Sequence[Row], width: int) -> pa.Table:
    """Rows as the table of pictures has them; `width` numbers a vector."""
    vectors = np.stack([row.vector for row in rows]).astype(np.float16)
    columns: dict[str, Any] = {
        "id": [identity(row.file.path) for row in rows],
        "path": [shown(row.file.path) for row in rows],
        "raw": pa.array([None if _is_text(p.file.path) else os.fsencode(p.file.path) for p in rows], pa.binary()),
        "size": [row.file.size for row in rows],
        "changed": [row.file.changed for row in rows],
        "content": [row.content for row in rows],
        "taken": pa.array([row.facts.taken for row in rows], pa.timestamp("s")),
        "camera": pa.array([row.facts.camera for row in rows], pa.string()),
        "width": pa.array([row.facts.width for row in rows], pa.int32()),
        "height": pa.array([row.facts.height for row in rows], pa.int32()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width),
    }
    return pa.table(columns, schema=schema(width))


def matrix(column: pa.ChunkedArray) -> NDArray[np.floating[Any]]:
    """A column of lists of one size as an array (rows, width)."""
    joined = column.combine_chunks()
    if isinstance(joined, pa.ChunkedArray):
        joined = joined.chunk(0) if joined.num_chunks else pa.array([], column.type)
    values: NDArray[np.floating[Any]] = joined.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(joined), column.type.list_size)


def shown(path: str) -> str:
    """A path as text: bytes that are no UTF-8 are written out."""
    return path if _is_text(path) else os.fsencode(path).decode("utf-8", "backslashreplace")


def quoted(text: str) -> str:
    """A text for a condition of SQL."""
    return "'" + text.replace("'", "''") + "'"


def instant(moment: datetime) -> str:
    """A time for a condition of SQL."""
    return f"timestamp '{moment:%Y-%m-%d %H:%M:%S}'"


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
