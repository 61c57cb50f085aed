"""Images that lie in files of their own, listed in a CSV or TSV file, maybe with masks."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections import deque
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from diffclip.data import images
from diffclip.data.example import Example, Options
from diffclip.data.formats import columns
from diffclip.data.formats.paths import inside_of
from diffclip.data.formats.stamp import stamp_of
from diffclip.data.images import BadImage, read_image
from diffclip.errors import UserError
from diffclip.reading import opened
from diffclip.text import listed

log = logging.getLogger(__name__)

CHECKED = 100_000  # lines of a table that are cut by a strict reader too
LONGEST_HEADING = 1 << 22  # characters of the first line of a table
LOOKED_FOR = 100  # rows of a table whose image files are looked for when it is opened


class TableSource:
    """Examples from CSV or TSV files with a heading: a column of image paths, and captions or labels.

    Paths are relative to the table's folder and stay in it, unless the options allow others. Rows with the same path
    are one example with several captions. A `.csv` file whose heading has tabs and no commas is read as TSV.
    """

    def __init__(self, files: Sequence[Path], options: Options) -> None:
        self.name, self.templates, self._tables, self._options = options.name, options.templates, files, options
        where = str(files[0])
        names = _heading(files[0])[0]
        image = columns.find(options.image_key, columns.PATHS, names, where)
        if image is None:
            raise UserError(
                f"{where}: no column of image paths among {listed(names)}; name it with "
                f"{columns.how_to_state('image_key')}"
            )
        tables = [_table(file, image) for file in files]
        for file, table in zip(files, tables, strict=True):
            _compare_lines(file, table.num_rows)
        caption = columns.find(options.caption_key, columns.CAPTIONS, names, where)
        label = columns.find(options.label_key, columns.LABELS, names, where)
        if caption is None and label is None:
            raise columns.nothing_to_learn(where, "columns", names)
        for file, table in zip(files, tables, strict=True):
            for column in filter(None, (image, caption, label)):
                columns.find(column, (), table.column_names, str(file))

        outside = options.allow_outside
        paths = pa.chunked_array([_full_paths(*pair, image, outside) for pair in zip(files, tables, strict=True)])
        if not len(paths):
            raise UserError(f"{where} holds a heading and no rows")
        # Example i is the i-th distinct path; its rows are self._rows[self._starts[i] : self._starts[i + 1]].
        encoded = paths.combine_chunks().dictionary_encode()
        self._paths, numbers = encoded.dictionary, encoded.indices.to_numpy()
        self._rows = np.argsort(numbers, kind="stable")
        self._starts = np.searchsorted(numbers[self._rows], np.arange(len(self._paths) + 1))
        self._captions = pa.concat_tables([t.select([caption]) for t in tables])[caption] if caption else None
        self.classnames, self._labels = options.classnames, None
        if label:
            values = pa.concat_tables([table.select([label]) for table in tables])[label]
            self._labels = columns.Labels(values, options.classnames, where)
            self.classnames = self._labels.classnames
        if not any(os.path.isfile(path) for path in self._paths[:LOOKED_FOR].to_pylist()):
            raise UserError(f"{where}: its first images do not exist; {self.place(0)} was looked for first")

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Example:
        """Raises BadImage("missing") if there is no such file."""
        rows = self._rows[self._starts[index] : self._starts[index + 1]]
        return Example(
            read_image(self.place(index)),
            columns.captions([self._captions[int(row)].as_py() for row in rows]) if self._captions else (),
            self._labels[int(rows[0])] if self._labels else None,
        )

    def place(self, index: int) -> str:
        return os.fsdecode(self._paths[index].as_py())

    def stamp(self) -> str:
        paths = (os.fsdecode(path.as_py()) for path in self._paths)
        return stamp_of(chain(self._tables, paths), self._options)


class MaskedTable(TableSource):
    """A table with a column of mask files too: the pixels that show what the row's caption names.

    A pixel of a mask that is not 0 (index 0 of a palette, black, transparent) is in it, whatever its value. A mask has
    the size of its image; a row without a mask or without a caption names nothing.
    """

    def __init__(self, files: Sequence[Path], options: Options) -> None:
        super().__init__(files, options)
        if self._captions is None:
            raise UserError(
                f"{files[0]}: masks without captions: name the column of phrases with "
                f"{columns.how_to_state('caption_key')}"
            )
        column = columns.find(None, columns.MASKS, _heading(files[0])[0], str(files[0]))
        assert column is not None
        tables = [_table(file, column) for file in files]
        for file, table in zip(files, tables, strict=True):
            columns.find(column, (), table.column_names, str(file))
        named = pa.concat_tables([table.select([column]) for table in tables])[column]
        outside = options.allow_outside
        paths = pa.chunked_array([_full_paths(*pair, column, outside) for pair in zip(files, tables, strict=True)])
        self._masks = pc.if_else(pc.equal(named, b""), None, paths).combine_chunks()

    def masks(self, index: int) -> list[tuple[str, NDArray[np.bool_]]]:
        """Phrases and masks (H, W) bool of example `index`. Raises UserError for a mask that cannot be read."""
        assert self._captions is not None
        rows = self._rows[self._starts[index] : self._starts[index + 1]].tolist()
        found = [(self._captions[row].as_py(), self._masks[row].as_py()) for row in rows]
        return [(phrase, _mask(os.fsdecode(path))) for phrase, path in found if phrase.strip() and path is not None]

    def stamp(self) -> str:
        paths = (os.fsdecode(path.as_py()) for path in chain(self._paths, self._masks.drop_null()))
        return stamp_of(chain(self._tables, paths), self._options)


def table_source(files: Sequence[Path], options: Options) -> TableSource:
    """The examples of CSV or TSV files, with masks where the first has a column of them."""
    names = _heading(files[0])[0]
    masked = columns.find(None, columns.MASKS, names, str(files[0])) is not None
    return MaskedTable(files, options) if masked else TableSource(files, options)


def _mask(file: str) -> NDArray[np.bool_]:
    try:
        with images.opened(read_image(file)) as pillow:
            pixels = np.asarray(pillow)
            alpha = pillow.mode in ("LA", "PA", "RGBA")
    except BadImage as bad:
        raise UserError(f"cannot read the mask {file}: {bad.reason.replace('_', ' ')}") from None
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    shown = np.asarray((pixels[..., :-1] if alpha else pixels).any(axis=2), dtype=np.bool_)
    if alpha:
        shown &= pixels[..., -1] > 0
    return shown


def _heading(file: Path) -> tuple[list[str], str]:
    """The names of the columns, and what stands between them."""
    try:
        with _text(file, "surrogateescape") as lines:
            heading = lines.readline(LONGEST_HEADING)
        tabs = file.suffix.lower() == ".tsv" or ("\t" in heading and "," not in heading)
        delimiter = "\t" if tabs else ","
        names = next(csv.reader([heading], delimiter=delimiter), [])
        heading.encode()
    except (OSError, UnicodeError, csv.Error) as error:
        raise _unreadable(file, error) from None
    if len(set(names)) < len(names) or not names:
        raise UserError(f"{file}: the first line must name the columns, each once; it is {heading.strip()[:80]!r}")
    return names, delimiter


def _text(file: Path, errors: str, newline: str | None = "") -> io.TextIOWrapper:
    return io.TextIOWrapper(opened(file), "utf-8-sig", errors, newline)


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} cannot be read as a table: {' '.join(str(error).split())[:200]}")


def _table(file: Path, paths: str) -> pa.Table:
    """All columns as strings, but that of paths as bytes: a file's name may be any."""
    names, delimiter = _heading(file)
    try:
        with opened(file) as content:
            return pyarrow.csv.read_csv(
                content,
                parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types={name: pa.string() for name in names} | {paths: pa.binary()}, strings_can_be_null=False
                ),
            )
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(file, error) from None


def _compare_lines(file: Path, rows: int) -> None:
    """Warn where another reader could cut a table otherwise: lines that quotes join, quotes that are not doubled."""
    try:
        with _text(file, "replace", newline=None) as content:
            lines = sum(not line.isspace() for line in content) - 1
        if lines != rows:
            log.warning(
                "%s: read as %s rows, but it has %s lines below its heading: text of several lines, or a stray quote",
                *(file, f"{rows:,}", f"{lines:,}"),
            )
        with _text(file, "replace") as content:
            reader = csv.reader(islice(content, CHECKED), delimiter=_heading(file)[1], strict=True)
            deque(reader, maxlen=0)
    except csv.Error as error:
        if "field limit" in str(error) or ("unexpected end" in str(error) and lines > CHECKED):
            return  # a long text; a quote that closes after the lines that were looked at
        log.warning(
            "%s: read as %s rows, but a strict reader stops near line %s (%s): write a quote in quoted text twice",
            *(file, f"{rows:,}", f"{reader.line_num:,}", error),
        )
    except OSError as error:
        raise _unreadable(file, error) from None


def _full_paths(file: Path, table: pa.Table, column: str, allow_outside: bool) -> pa.Array:
    """Where the files of a column lie. Raises UserError for one outside the table's folder, unless that is allowed."""
    names = table[column].cast(pa.large_binary()).combine_chunks()
    folder, nothing = (pa.scalar(part, pa.large_binary()) for part in (os.fsencode(file.parent) + b"/", b""))
    joined = pc.binary_join_element_wise(folder, names, nothing)
    paths = pc.if_else(pc.starts_with(names, b"/"), names, joined)
    odd = pc.and_(pc.match_substring_regex(names, r"^/|(^|/)\.\.(/|$)"), not allow_outside)
    if not pc.any(odd).as_py():
        return paths
    inside = [inside_of(file.parent, os.fsdecode(name), str(file)) for name in names.filter(odd).to_pylist()]
    return pc.replace_with_mask(paths, odd, pa.array([os.fsencode(path) for path in inside], pa.large_binary()))
