"""The index on disk or in an object store: two tables of LanceDB, and what the index is of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from diffclip.errors import UserError
from diffclip.search.rows import Row, identity, matrix, path_of, quoted, schema, shown, table_of

if TYPE_CHECKING:
    from lancedb.table import Table

FORMAT = 1
"""Counts up when the tables come to be made in another way."""
REMOTE = ("s3://", "gs://", "az://")
PICTURES, ABOUT, PROBLEMS = "pictures", "about", "problems"
EXACT = 50_000
"""Pictures up to which every query looks at all: exact, and fast enough. From there on there is a vector index."""
PARTITION = 4096
"""Pictures of a partition of the vector index. It is LanceDB's target, as `optimize` joins what is far below that."""
ITERATIONS, SAMPLES = 15, 64
"""Of the clustering behind the vector index: LanceDB's 50 rounds and 256 pictures a partition take longer."""
PIECES = 8
"""Of the vector index, at most: each `optimize` adds what is new as one more, which every query has to open."""
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
            self.pictures.add(table_of(rows, self.about.width))

    def replace(self, rows: Sequence[Row]) -> None:
        """Put pictures in place of those with the same paths: one commit."""
        if rows:
            merge = self.pictures.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(table_of(rows, self.about.width))

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
        """Join small files, forget old versions, and see to the vector index: make it, add to it, or make it anew.

        There is one from EXACT pictures on. It is made anew where it is in too many pieces, or where most pictures are
        not in it: its partitions were fitted to others.
        """
        from lancedb.index import BTree, IvfSq

        self.pictures.checkout_latest()
        names = {column: index.name for index in self.pictures.list_indices() for column in index.columns}
        large = len(self) >= EXACT
        if "vector" in names and not (large and self._fits(names["vector"])):  # until it is made, all are compared
            self.pictures.drop_index(names.pop("vector"))
        self.pictures.optimize(cleanup_older_than=KEPT)
        if large and "vector" not in names:  # after the files are joined, which would write it once more
            config = IvfSq(
                distance_type="cosine",
                target_partition_size=PARTITION,
                max_iterations=ITERATIONS,
                sample_rate=SAMPLES,
            )
            self.pictures.create_index("vector", config=config)
        if large and "id" not in names:
            self.pictures.create_index("id", config=BTree())

    def _fits(self, name: str) -> bool:
        """Whether a vector index can be added to."""
        found = self.pictures.index_stats(name)
        return (
            found is not None
            and (found.num_indices or 1) < PIECES
            and found.num_unindexed_rows <= found.num_indexed_rows
        )

    def _batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        yield from self.pictures.search().select(list(columns)).limit(None).to_arrow().to_batches()


LOCK = ".lock"
_STAT = [("size", pa.int64()), ("changed", pa.int64())]


def is_remote(uri: str) -> bool:
    """Whether an index lies in an object store."""
    return uri.startswith(REMOTE)


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
