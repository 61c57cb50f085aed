"""Bring an index up to date with its folders: what is new, changed, moved or deleted costs only itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from diffclip import durable
from diffclip.data.images import BadImage, read_image
from diffclip.errors import UserError
from diffclip.search.exif import Facts, facts_of
from diffclip.search.files import File, Scan, inside, scan
from diffclip.search.rows import Row, digest, shown
from diffclip.search.store import LOCK, About, Index, is_remote
from diffclip.use.encoder import Encoder

COMMIT, SECONDS = 1024, 20.0
"""Pictures of a commit, or the time after which there is one: what a killed run loses at most."""


@dataclass
class Report:
    """What an update did, in pictures."""

    encoded: int = 0
    reused: int = 0
    """Moved, copied or merely touched: content that the index had already."""
    deleted: int = 0
    unchanged: int = 0
    problems: dict[str, str] = field(default_factory=dict)
    """Files that could not be read this time, with the reason."""
    known_problems: int = 0
    """Files that could not be read before and have not changed since."""
    links: int = 0
    missing: list[str] = field(default_factory=list)
    """Folders of the index that are not there, or empty, or may not be read: their pictures stay in the index."""


@dataclass
class _Read:
    """A file as a thread read it."""

    file: File
    content: str = ""
    facts: Facts = field(default_factory=Facts)
    reason: str | None = None


def real_folders(folders: Sequence[str]) -> list[str]:
    """Their real paths. Raises UserError for what is no folder."""
    for folder in folders:
        if not os.path.isdir(os.path.expanduser(folder)):
            raise UserError(f"{folder} is {'a file, not a folder' if os.path.exists(folder) else 'not there'}")
    return [os.path.realpath(os.path.expanduser(folder)) for folder in folders]


@contextmanager
def open_index(uri: str, encoder: Encoder, folders: Sequence[str], exclude: Sequence[str]) -> Iterator[Index]:
    """The index at `uri`, made where there is none, for one writer at a time.

    Its folders are those it had and these. Patterns to exclude replace those it had, where any are given. Raises
    UserError where the index is another model's, or being written; OSError.
    """
    roots = real_folders(folders)
    with _locked(uri):
        if Index.exists(uri):
            index = Index.open(uri)
            check_model(index, encoder)
            if encoder.precision != index.about.precision:
                raise UserError(
                    f"{uri} was encoded in {index.about.precision}, not {encoder.precision}: give --dtype "
                    f"{index.about.precision}, or another --to"
                )
            every = tuple(dict.fromkeys((*index.about.folders, *roots)))
            index.restate(folders=every, exclude=tuple(exclude) or index.about.exclude, model=encoder.source)
        else:
            if not roots:
                raise UserError("no folders: give those that are to be indexed")
            if not scan(roots, exclude).files:
                raise UserError(f"no images in {', '.join(folders)}, nor in folders below")
            about = About(
                encoder.source, encoder.fingerprint, encoder.precision, encoder.width, tuple(roots), tuple(exclude)
            )
            index = Index.create(uri, about)
        yield index


def check_model(index: Index, encoder: Encoder) -> None:
    """Raises UserError where an index was made by another model."""
    if encoder.fingerprint != index.about.fingerprint:
        raise UserError(
            f"{index.uri} was made by {index.about.model} with weights {index.about.fingerprint[:12]}…, and "
            f"{encoder.source} has others, {encoder.fingerprint[:12]}…: features of two models do not compare; give "
            "another --to, or the index's own model"
        )


@contextmanager
def _locked(uri: str) -> Iterator[None]:
    if is_remote(uri):  # where there is nothing to lock: docs/use.md
        yield
        return
    folder = Path(uri)
    with durable.cannot_write(folder):
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with durable.locked(folder / LOCK, f"{uri} is being written by another process"):
                yield
        except BaseException:
            if made and [entry.name for entry in folder.iterdir()] == [LOCK]:  # nothing came of it
                durable.remove(folder)
            raise


def update(
    index: Index, encoder: Encoder, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Report:
    """Encode what the index lacks, and take out what is gone.

    A file whose size and time of change are as noted is not opened. Of others a digest of the bytes is compared: what
    the index has under another path is not encoded again. Files that could not be read are tried again once they have
    changed. on_progress is given how many files of how many are looked at. Raises UserError, and OSError where the
    index cannot be written; what is committed until then stays.
    """
    there = scan([folder for folder in index.about.folders if os.path.isdir(folder)], index.about.exclude)
    known, noted = index.known(), index.problems()
    report = Report(links=there.links)
    todo: list[File] = []
    still: dict[str, tuple[int, int, str]] = {}
    for file in there.files.values():
        stat = (file.size, file.changed)
        if known.get(file.path, ())[:2] == stat:
            report.unchanged += 1
        elif noted.get(shown(file.path), ())[:2] == stat and file.path not in known:
            still[file.path] = noted[shown(file.path)]
        else:
            todo.append(file)
    report.known_problems = len(still)
    _Writer(index, encoder, known, report, still).write(todo, on_progress)
    gone = _gone(index, there, known, report)
    index.remove(gone)
    report.deleted = len(gone)
    if still != noted:
        index.note_problems(still)
    index.tidy()
    return report


def _gone(index: Index, there: Scan, known: dict[str, tuple[int, int, str]], report: Report) -> list[str]:
    """Paths of the index that are no longer there: not those in folders of which nothing is known now."""
    away = [folder for folder in index.about.folders if not os.path.isdir(folder)]
    emptied = [root for root in there.empty if any(inside(path, root) for path in known)]
    report.missing = sorted({*away, *emptied, *there.unreadable})
    return [p for p in known if p not in there.files and not any(inside(p, folder) for folder in report.missing)]


class _Writer:
    """Files on their way into the index."""

    def __init__(
        self,
        index: Index,
        encoder: Encoder,
        known: dict[str, tuple[int, int, str]],
        report: Report,
        problems: dict[str, tuple[int, int, str]],
    ) -> None:
        self._index, self._encoder, self._known, self._report = index, encoder, known, report
        self._problems = problems
        self._contents = {content for _, _, content in known.values()}
        self._rows: list[Row] = []
        self._same: list[_Read] = []
        self._committed = time.monotonic()

    def write(self, files: Sequence[File], on_progress: Callable[[int, int], None]) -> None:
        reads = [_Read(file) for file in files]
        done = 0
        try:
            for batch in self._encoder.stream(reads, self._pixels):
                for read, vector in batch.pairs():
                    if read.reason is not None:
                        self._report.problems[read.file.path] = read.reason
                        self._problems[read.file.path] = (read.file.size, read.file.changed, read.reason)
                    elif vector is None:
                        self._same.append(read)
                    else:
                        self._rows.append(Row(read.file, read.content, read.facts, vector))
                done += len(batch.items)
                on_progress(done, len(files))
                waiting = len(self._rows) + len(self._same)
                if waiting >= COMMIT or (waiting and time.monotonic() - self._committed > SECONDS):
                    self._commit()
        finally:
            self._commit()  # what is encoded is kept, also when Ctrl-C ends it

    def _pixels(self, read: _Read) -> torch.Tensor | None:
        """In a thread: a file's pixels, or None where they are not needed or cannot be had."""
        try:
            image = read_image(read.file.path)
            read.content = digest(image)
            read.facts = facts_of(image)
            return None if read.content in self._contents else self._encoder.pixels(image)
        except BadImage as error:
            read.reason = error.reason
            return None

    def _commit(self) -> None:
        vectors = self._index.vectors_of(read.content for read in self._same)
        rows = [*self._rows, *(Row(read.file, read.content, read.facts, vectors[read.content]) for read in self._same)]
        fresh = [row for row in rows if row.file.path not in self._known]
        changed = [row for row in rows if row.file.path in self._known]
        try:
            self._index.add(fresh)
            self._index.replace(changed)
        except (OSError, RuntimeError) as error:
            line = " ".join(str(error).split())
            reason = "No space left on device" if "No space left" in line else line[:200]
            raise UserError(f"cannot write {self._index.uri}: {reason}; what was committed before stays") from None
        self._report.encoded += len(self._rows)
        self._report.reused += len(self._same)
        self._contents |= {row.content for row in self._rows}
        self._rows, self._same, self._committed = [], [], time.monotonic()


def forget(index: Index, folders: Sequence[str]) -> int:
    """Take folders, and the pictures in them, out of the index; returns how many pictures. Raises UserError."""
    paths = [os.path.realpath(os.path.expanduser(folder)) for folder in folders]
    for folder, path in zip(folders, paths, strict=True):
        if path not in index.about.folders:
            raise UserError(f"{folder} is no folder of {index.uri}: it has {', '.join(index.about.folders)}")
    kept = tuple(folder for folder in index.about.folders if folder not in paths)
    index.restate(folders=kept)
    gone = [p for p in index.known() if not any(inside(p, folder) for folder in kept)]
    index.remove(gone)
    return len(gone)
