"""Random access to parquet files as the Hugging Face hub stores image data sets."""

from __future__ import annotations

import json
import logging
import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diffclip.data.example import Example, Options
from diffclip.data.formats import columns
from diffclip.data.formats.paths import inside_of
from diffclip.data.formats.stamp import stamp_of
from diffclip.data.images import BadImage, read_image
from diffclip.errors import UserError
from diffclip.reading import opened
from diffclip.text import listed

logger = logging.getLogger(__name__)

KEPT_IN_MEMORY = 1 << 30  # bytes, decompressed
LARGEST_GROUP = 1 << 30  # bytes, decompressed, of a row group


class ParquetSource:
    """Examples from the rows of one or more files with the same columns.

    The image column holds encoded bytes, alone or in a struct {bytes, path}; captions are a string or a list
    of them, or columns caption_0, caption_1, …; class names come from the schema's "huggingface" metadata. Data
    of up to 1 GiB are read when the source is opened and shared by forked workers; of larger data each process
    keeps the row groups that it used last.
    """

    def __init__(self, files: Sequence[Path], options: Options) -> None:
        self.name, self.templates = options.name, options.templates
        metadata = [_metadata(file) for file in files]
        schema = metadata[0].schema.to_arrow_schema()
        where = str(files[0])
        features = _hub_features(schema)
        self._image = _image_column(schema, features, options.image_key, where)
        self._captions = _caption_columns(schema, options.caption_key, where)
        label = _label_column(schema, features, options.label_key, where)
        if not self._captions and label is None:
            raise columns.nothing_to_learn(where, "columns", schema.names)
        for file, data in zip(files, metadata, strict=True):
            for column in filter(None, (self._image, *self._captions, label)):
                columns.find(column, (), data.schema.to_arrow_schema().names, str(file))

        groups = [
            (file, g, data.row_group(g))
            for file, data in zip(files, metadata, strict=True)
            for g in range(data.num_row_groups)
        ]
        self._groups = [(file, g) for file, g, _ in groups]
        self._files, self._options = files, options
        self._starts = np.cumsum([0, *(group.num_rows for _, _, group in groups)])
        if not len(self):
            raise UserError(f"{where} holds no rows")
        self.classnames, self._labels = options.classnames, None
        self.own_names: tuple[str, ...] = (_names(features.get(label, {})) if label else None) or ()
        if label:
            names = options.classnames or self.own_names or None
            chunks = [chunk for file, g in self._groups for chunk in _read(file, g, [label])[label].chunks]
            self._labels = columns.Labels(pa.chunked_array(chunks), names, where)
            self.classnames = self._labels.classnames

        self._kept: OrderedDict[int, tuple[pa.ChunkedArray, ...]] = OrderedDict()
        self._kept_bytes = 0
        self._linked: list[str] = []  # images that lie in files of their own
        size = sum(group.total_byte_size for _, _, group in groups)
        if size <= KEPT_IN_MEMORY:
            for number, (file, _) in enumerate(self._groups):
                self._linked += _links(self._columns_of(number)[0], file, options)
        else:
            logger.warning(
                "%s: %.1f GiB in %d row groups. In random order most examples cost the reading of a whole "
                "group: to train on so much, convert it to tar shards.",
                self.name,
                size / 2**30,
                len(groups),
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": OrderedDict(), "_kept_bytes": 0}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Example:
        """Raises BadImage("bad_caption") for a caption that is no UTF-8."""
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        row = index - int(self._starts[group])
        image, *captions = self._columns_of(group)
        try:
            texts = tuple(text for column in captions for text in columns.captions(column[row].as_py()))
        except UnicodeDecodeError:  # pyarrow checks nobody's UTF-8
            raise BadImage("bad_caption") from None
        return Example(
            self._encoded(image[row], self._groups[group][0]),
            texts,
            self._labels[index] if self._labels else None,
        )

    def _encoded(self, cell: pa.Scalar, file: Path) -> bytes:
        """The image in a cell, or in the file that it names. Raises BadImage("missing")."""
        if not pa.types.is_struct(cell.type):
            return cell.as_py() or b""
        embedded: bytes | None = cell["bytes"].as_py() if cell.is_valid else None
        if embedded or not self._linked or not cell.is_valid:
            return embedded or b""
        path = _path(cell["path"])
        return read_image(_place(file, path, self._options)) if path else b""

    def place(self, index: int) -> str:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        file, number = self._groups[group]
        return f"{file}, row {index - int(self._starts[group])} of row group {number}"

    def stamp(self) -> str:
        return stamp_of([*self._files, *self._linked], self._options)

    def _columns_of(self, group: int) -> tuple[pa.ChunkedArray, ...]:
        """The images, and the captions if there are any, of a row group."""
        if group in self._kept:
            self._kept.move_to_end(group)
            return self._kept[group]
        table = _read(*self._groups[group], [self._image, *self._captions])
        self._kept[group] = (table[self._image], *(table[column] for column in self._captions))
        self._kept_bytes += sum(column.nbytes for column in self._kept[group])
        while self._kept_bytes > KEPT_IN_MEMORY and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= sum(column.nbytes for column in dropped)
        return self._kept[group]


def _place(file: Path, name: str, options: Options) -> str:
    return str(file.parent / name) if options.allow_outside else inside_of(file.parent, name, str(file))


def _links(images: pa.ChunkedArray, file: Path, options: Options) -> list[str]:
    """The files of the images that a column names instead of having them. Raises UserError as `inside_of` does."""
    if not pa.types.is_struct(images.type) or "path" not in [field.name for field in images.type]:
        return []
    embedded, paths = pc.struct_field(images, "bytes"), pc.struct_field(images, "path")
    if not embedded.null_count or not _is_text(paths.type):
        return []
    named = paths.filter(pc.and_(pc.is_null(embedded), pc.is_valid(paths)))
    return [_place(file, path, options) for cell in named if (path := _path(cell))]


def _path(cell: pa.Scalar) -> str:
    """A path in a table, or "" for none and for what is no UTF-8, which pyarrow does not check."""
    try:
        return cell.as_py() or ""
    except UnicodeDecodeError:
        return ""


def _read(file: Path, group: int, wanted: list[str]) -> pa.Table:
    """Columns of a row group. Opened anew each time, so that no file is shared by forked processes."""
    try:
        with opened(file) as content:
            return _within_bounds(pq.ParquetFile(content), file, group, wanted)
    except (OSError, pa.ArrowException, MemoryError) as error:
        raise UserError(f"{file}: row group {group} cannot be read: {_one_line(error)}") from None


def _within_bounds(parquet: pq.ParquetFile, file: Path, group: int, wanted: list[str]) -> pa.Table:
    # A dictionary may hold a large value once and the column have it many times: no value is larger than its group.
    stated = max(1, parquet.metadata.row_group(group).total_byte_size)
    limit = min(LARGEST_GROUP, max(LARGEST_GROUP // 8, 8 * stated))
    rows = max(1, min(1024, LARGEST_GROUP // 8 // stated))
    batches, size = [], 0
    for batch in parquet.iter_batches(rows, [group], wanted, use_threads=False):
        batches.append(batch)
        size += batch.nbytes
        if size > limit:
            raise UserError(f"{file}: row group {group} unpacks to more than {limit >> 20} MiB: write smaller ones")
    return pa.Table.from_batches(batches, None if batches else parquet.schema_arrow.empty_table().select(wanted).schema)


def column_names(file: Path) -> list[str]:
    """Raises UserError for what is no parquet file."""
    names: list[str] = _metadata(file).schema.to_arrow_schema().names
    return names


def _metadata(file: Path) -> pq.FileMetaData:
    try:
        with opened(file) as content:
            metadata = pq.read_metadata(content)
        names = metadata.schema.to_arrow_schema().names
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file} cannot be read as parquet: {_one_line(error)}") from None
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise UserError(f"{file} has two columns called {twice!r}")
    return metadata


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _hub_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Column → feature, from the metadata that the `datasets` library writes; {} where there is none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):  # somebody else's, or no JSON
        return {}


def _names(feature: dict[str, Any]) -> tuple[str, ...] | None:
    """The class names of a ClassLabel, if they are that."""
    names = feature.get("names")
    return tuple(names) if isinstance(names, list) and names and all(isinstance(n, str) for n in names) else None


def _is_bytes(kind: pa.DataType) -> bool:
    kind = _of_values(kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _of_values(kind: pa.DataType) -> pa.DataType:
    """What a column is of, where each different value is stored once."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
    return _is_bytes(kind)


def _is_text(kind: pa.DataType) -> bool:
    if any(is_list(kind) for is_list in _LISTS):
        kind = kind.value_type
    kind = _of_values(kind)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


def _with_types(schema: pa.Schema) -> str:
    return listed(f"{field.name} ({field.type})" for field in schema)


def _image_column(schema: pa.Schema, features: dict[str, dict[str, Any]], key: str | None, where: str) -> str:
    possible = [field.name for field in schema if _is_image(field.type)]
    if key is not None:
        columns.find(key, (), schema.names, where)
        if key not in possible:
            raise UserError(f"{where}: column {key!r} holds {schema.field(key).type}, not encoded images")
        return key
    declared = [name for name in possible if features.get(name, {}).get("_type") == "Image"]
    found = columns.find(None, columns.IMAGES, declared or possible, where) or next(iter(declared or possible), None)
    if found is None:
        raise UserError(f"{where}: no column holds encoded images; it has {_with_types(schema)}")
    return found


def _caption_columns(schema: pa.Schema, key: str | None, where: str) -> list[str]:
    """The column of captions; or the columns caption_0, caption_1, …, as some tables with several have; or none."""
    possible = [field.name for field in schema if _is_text(field.type)]
    if key is not None:
        columns.find(key, (), schema.names, where)
        if key not in possible:
            raise UserError(f"{where}: column {key!r} holds {schema.field(key).type}, not captions")
    found = columns.find(key, columns.CAPTIONS, possible, where)
    return [found] if found else [name for name in possible if re.fullmatch(r"caption_\d+", name)]


def _label_column(schema: pa.Schema, features: dict[str, dict[str, Any]], key: str | None, where: str) -> str | None:
    declared = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    if key is None and len(declared) > 1 and "label" not in declared:
        raise UserError(
            f"{where} has several label columns ({listed(declared)}): choose one with "
            f"{columns.how_to_state('label_key')}"
        )
    return columns.find(key, columns.LABELS, schema.names, where) or next(iter(declared), None)
