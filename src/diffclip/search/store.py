"""The index on disk or in an object store: two tables of LanceDB, and what the index is of."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from diffclip.errors import UserError
from diffclip.search.exif import Facts
from diffclip.search.files import File

if TYPE_CHECKING:
    from lancedb.table import Table

FORMAT = 1
"""Counts up when the tables come to be made in another way."""
REMOTE = ("s3://", "gs://", "az://")
PICTURES, ABOUT, PROBLEMS = "pictures", "about", "problems"
EXACT = 50_000
"""Pictures up to which every query looks at all: exact, and fast enough. From there on there is a vector index."""
ITERATIONS = 15
"""Of the clustering behind the vector index: LanceDB's 50 take three times as long and find no more."""
KEPT = timedelta(minutes=15)
"""How long a version of the tables stays that a reader may still have open."""
CHUNK = 1000
"""Values of a list in a condition."""


@dataclass(frozen=True)
class About:
    """What an index is of."""

    model: str
    fingerprint: str
    precision: str
    width: int
    folders: tuple[str, ...]
    """Real paths."""
    exclude: tuple[str, ...] = ()
    format: int = FORMAT


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


class Index:
    """An index that exists. Readers see each commit of a writer as soon as it is made, whole."""

    def __init__(self, uri: str, database: Any, about: About) -> None:
        self.uri, self.about, self._database = uri, about, database
        self.pictures: Table = database.open_table(PICTURES)
        self._problems: Table = database.open_table(PROBLEMS)

    @classmethod
    def create(cls, uri: str, about: About) -> Index:
        """A new one, in a folder that is not there or empty. Raises UserError, OSError."""
        if not is_remote(uri):
            folder = Path(uri)
            if folder.exists() and (not folder.is_dir() or any(e for e in folder.iterdir() if e.name != LOCK)):
                raise UserError(f"{uri} is no index and no empty folder: give a new one as --to")
        database = _connect(uri)
        database.create_table(PICTURES, schema=schema(about.width))
        database.create_table(PROBLEMS, schema=pa.schema([(n, pa.string()) for n in ("path", "reason")] + _STAT))
        database.create_table(ABOUT, data=_about_table(about))  # last: what has none was never finished
        return cls(uri, database, about)

    @classmethod
    def open(cls, uri: str) -> Index:
        """Raises UserError where there is none, or one that is half written or of another version."""
        _check_place(uri)
        if not is_remote(uri) and not Path(uri).is_dir():
            raise UserError(f"there is no index {uri}: diffclip index MODEL FOLDER --to {uri} makes one")
        database = _connect(uri)
        names = _tables(database)
        if ABOUT not in names:
            half = "a half written index: delete it, and index anew" if names else "no index"
            raise UserError(f"{uri} is {half}: diffclip index MODEL FOLDER --to {uri} makes one")
        try:
            stated = json.loads(database.open_table(ABOUT).to_arrow()["json"][0].as_py())
            if stated["format"] != FORMAT:
                raise UserError(f"{uri} was written by another version of diffclip: delete it, and index anew")
            about = About(**{**stated, "folders": tuple(stated["folders"]), "exclude": tuple(stated["exclude"])})
            return cls(uri, database, about)
        except UserError:
            raise
        except Exception as error:  # of LanceDB's dozen kinds, and of JSON
            raise UserError(f"{uri} is a damaged index ({_line(error)}): delete it, and index anew") from None

    @staticmethod
    def exists(uri: str) -> bool:
        """Whether a finished index lies there."""
        return (is_remote(uri) or Path(uri).is_dir()) and ABOUT in _tables(_connect(uri))

    def restate(self, **changes: Any) -> None:
        """Change what is said about the index, such as its folders."""
        about = replace(self.about, **changes)
        if about != self.about:
            self._database.create_table(ABOUT, data=_about_table(about), mode="overwrite")
            self.about = about

    def __len__(self) -> int:
        return int(self.pictures.count_rows())

    def known(self) -> dict[str, tuple[int, int, str]]:
        """Path → size, time of change, digest of the content."""
        found: dict[str, tuple[int, int, str]] = {}
        for batch in self._batches(["path", "raw", "size", "changed", "content"]):
            for row in batch.to_pylist():
                found[path_of(row)] = (row["size"], row["changed"], row["content"])
        return found

    def problems(self) -> dict[str, tuple[int, int, str]]:
        """Path → size, time of change, and why it could not be read. Its path is as a terminal shows it."""
        rows = self._problems.search().limit(None).to_arrow().to_pylist()
        return {row["path"]: (row["size"], row["changed"], row["reason"]) for row in rows}

    def note_problems(self, problems: Mapping[str, tuple[int, int, str]]) -> None:
        """Instead of those that are noted."""
        rows = [
            {"path": shown(path), "reason": reason, "size": size, "changed": changed}
            for path, (size, changed, reason) in problems.items()
        ]
        table = pa.Table.from_pylist(rows, schema=self._problems.schema)
        self._problems = self._database.create_table(PROBLEMS, data=table, mode="overwrite")

    def add(self, rows: Sequence[Row]) -> None:
        """Add pictures whose paths are new: one commit."""
        if rows:
            self.pictures.add(self._table(rows))

    def replace(self, rows: Sequence[Row]) -> None:
        """Put pictures in place of those with the same paths: one commit."""
        if rows:
            merge = self.pictures.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(self._table(rows))

    def remove(self, paths: Iterable[str]) -> None:
        """Take pictures out by their paths."""
        names = [identity(path) for path in paths]
        for start in range(0, len(names), CHUNK):
            self.pictures.delete(f"id IN ({', '.join(map(quoted, names[start : start + CHUNK]))})")

    def vectors_of(self, contents: Iterable[str]) -> dict[str, NDArray[np.floating[Any]]]:
        """The vector of each content that is known."""
        wanted, found = sorted(set(contents)), dict[str, NDArray[np.floating[Any]]]()
        for start in range(0, len(wanted), CHUNK):
            condition = f"content IN ({', '.join(map(quoted, wanted[start : start + CHUNK]))})"
            table = self.pictures.search().where(condition).select(["content", "vector"]).limit(None).to_arrow()
            for content, vector in zip(table["content"].to_pylist(), matrix(table["vector"]), strict=True):
                found[content] = vector
        return found

    def rows(self, ids: Sequence[str], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Rows by their id."""
        if not ids:
            return {}
        condition = f"id IN ({', '.join(map(quoted, ids))})"
        found = self.pictures.search().where(condition).select(["id", *columns]).limit(len(ids) + 1).to_arrow()
        return {row["id"]: row for row in found.to_pylist()}

    def tidy(self) -> None:
        """Join small files, forget old versions, and make the vector index, where there is to be one, or add to it."""
        from lancedb.index import BTree, IvfSq

        self.pictures.checkout_latest()
        indexed = {column for index in self.pictures.list_indices() for column in index.columns}
        count = len(self)
        if count >= EXACT and "vector" not in indexed:
            partitions = int(np.clip(round(count**0.5), 64, 1024))
            config = IvfSq(distance_type="cosine", num_partitions=partitions, max_iterations=ITERATIONS)
            self.pictures.create_index("vector", config=config)
        if count >= EXACT and "id" not in indexed:
            self.pictures.create_index("id", config=BTree())
        self.pictures.optimize(cleanup_older_than=KEPT)

    def _batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        yield from self.pictures.search().select(list(columns)).limit(None).to_arrow().to_batches()

    def _table(self, rows: Sequence[Row]) -> pa.Table:
        width = self.about.width
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


LOCK = ".lock"
_STAT = [("size", pa.int64()), ("changed", pa.int64())]


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


def is_remote(uri: str) -> bool:
    """Whether an index lies in an object store."""
    return uri.startswith(REMOTE)


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_place(uri: str) -> None:
    if "://" in uri and not is_remote(uri):
        raise UserError(f"{uri}: an index lies in a folder, or at {', '.join(f'{scheme}…' for scheme in REMOTE)}")


def _connect(uri: str) -> Any:
    _check_place(uri)
    try:
        import lancedb
    except ModuleNotFoundError:
        raise UserError("an index needs lancedb: pip install 'diffclip[search]'") from None
    try:
        return lancedb.connect(uri, read_consistency_interval=timedelta(0))
    except Exception as error:  # of LanceDB's dozen kinds
        raise UserError(f"cannot open {uri}: {_line(error)}") from None


def _tables(database: Any) -> set[str]:
    return set(database.list_tables().tables)


def _about_table(about: About) -> pa.Table:
    return pa.table({"json": [json.dumps(asdict(about), ensure_ascii=True)]})


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
