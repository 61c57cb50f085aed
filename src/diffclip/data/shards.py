"""Tar shards: an index of where the bytes of each example lie, so that they can be read in any order.

Headers are read once, from front to back, and the index is kept (shard_index.py). Nothing is extracted and no
name in the archive is ever used as a path. A shard comes from anywhere, so every header is checked before it
is believed. Formats: POSIX (ustar, pax) and GNU. (The standard library's `tarfile` takes several times as
long, and on hostile headers raises errors of many types.)
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffclip.data import columns
from diffclip.data.example import Example, Options
from diffclip.data.images import MAX_BYTES, BadImage
from diffclip.data.shard_index import ShardIndex, indices
from diffclip.data.stamp import stamp_of
from diffclip.errors import UserError

logger = logging.getLogger(__name__)

BLOCK = 512
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, directories, pipes
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"
LONGEST_TEXT = 1 << 20  # bytes of captions, of a label or of JSON
_LONGEST_EXTENSION = 1 << 20  # bytes of a pax header or long name; what is longer is no name


@dataclass(frozen=True)
class Member:
    """One regular file in the archive: `size` bytes from `offset`."""

    name: str
    offset: int
    size: int


def _checksum_holds(header: bytes) -> bool:
    """The sum of the header's bytes with the checksum's own eight counted as spaces."""
    try:
        stored = int(header[148:156].split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return False
    return sum(header) - sum(header[148:156]) + 8 * 32 == stored


def _number(field: bytes) -> int:
    """Octal digits, or big-endian after a first byte of 0x80 (GNU, from 8 GiB on); else ValueError."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return _whole(_text(field).strip() or "0", 8)


def _whole(text: str, base: int) -> int:
    if not re.fullmatch("-?[0-9]+", text):  # int() takes underscores, prefixes and other scripts' digits too
        raise ValueError("no plain digits")
    return int(text, base)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", errors="replace")


def _pax_records(data: bytes) -> dict[str, str]:
    """Lines of "length key=value"; ValueError where a length does not fit."""
    records = {}
    at = 0
    while at < len(data) and data[at] != 0:
        space = data.index(b" ", at)
        length = int(data[at:space])
        if length <= space - at + 1 or at + length > len(data):
            raise ValueError("length of a pax record")
        key, separator, value = data[space + 1 : at + length - 1].partition(b"=")
        if not separator:
            raise ValueError("pax record without =")
        records[key.decode("utf-8", errors="replace")] = value.decode("utf-8", errors="replace")
        at += length
    return records


def members(path: Path) -> tuple[list[Member], bool]:
    """The regular files of an uncompressed tar archive, in their order, and whether it ends with an end mark.

    Raises:
        UserError: the file cannot be read, is no tar archive, or ends in the middle of a member.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot read shard {path}: {error.strerror}") from None
    try:
        return _walk(path, descriptor)
    finally:
        os.close(descriptor)


def _walk(path: Path, descriptor: int) -> tuple[list[Member], bool]:
    length = os.fstat(descriptor).st_size
    at = 0
    found: list[Member] = []
    long_name, pax = "", dict[str, str]()
    while True:
        header = os.pread(descriptor, BLOCK, at)
        if not header:
            logger.warning("shard %s ends without an end mark: perhaps it was cut short between two members", path)
            return found, False
        if not header.strip(b"\0"):
            return found, True
        if len(header) < BLOCK or not _checksum_holds(header):
            raise UserError(f"shard {path} is not a whole, uncompressed tar archive: no valid header at byte {at}")
        kind = header[156:157]
        try:
            size = (
                0 if kind in _WITHOUT_DATA else _whole(pax["size"], 10) if "size" in pax else _number(header[124:136])
            )
        except ValueError:
            raise UserError(f"shard {path}: the header at byte {at} states no readable size") from None
        data = at + BLOCK
        if size < 0 or data + size > length:
            raise UserError(
                f"shard {path} is damaged or cut short: the member at byte {at} says it has {size} bytes, "
                f"but the file has {length - data} left"
            )
        at = data + -(-size // BLOCK) * BLOCK
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
            if size > _LONGEST_EXTENSION:
                raise UserError(f"shard {path}: the extended header at byte {data - BLOCK} has {size} bytes")
            content = os.pread(descriptor, size, data)
            if kind == _LONG_NAME:
                long_name = _text(content)
            elif kind == _PAX:
                try:
                    pax = _pax_records(content)
                except ValueError:
                    raise UserError(f"shard {path}: the pax header at byte {data - BLOCK} is damaged") from None
            continue
        if kind in _REGULAR:
            prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
            name = _text(header[:100])
            name = pax.get("path") or long_name or (f"{prefix}/{name}" if prefix else name)
            found.append(Member(name, data, size))
        long_name, pax = "", {}


def examples(found: Iterable[Member]) -> Iterator[dict[str, Member]]:
    """The members that share a key, the path up to the file name's first dot, by what follows that dot.

    As WebDataset and img2dataset write them, the members of an example lie next to each other.
    The suffix is in lower case; an example's image is found under "image".
    """
    key, group = None, dict[str, Member]()
    for member in found:
        folder, _, file = member.name.rpartition("/")
        stem, dot, suffix = file.partition(".")
        if not dot or not stem:  # no suffix, or a hidden file such as macOS leaves
            continue
        if (folder, stem) != key:
            if group:
                yield group
            key, group = (folder, stem), {}
        suffix = suffix.lower()
        group["image" if suffix in IMAGE_SUFFIXES else suffix] = member
    if group:
        yield group


def _indexed(path: Path) -> tuple[ShardIndex, bool]:
    """The index of a shard, and whether it may be kept: of one that seems cut short it is made, and told, each time."""
    found, whole = members(path)
    return ShardIndex.of(examples(found)), whole


def read(path: Path, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes of a file at each (offset, size); fewer if it has become shorter. Keeps no file open."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return [os.pread(descriptor, size, offset) for offset, size in spans]
    finally:
        os.close(descriptor)


class TarSource:
    """Examples from WebDataset shards, as img2dataset and the LAION benchmark write them.

    Captions come from `.txt` (one a line) or else from "caption" in `.json`, labels from `.cls`; any other
    `caption_key` or `label_key` names an entry of `.json`. Class names and templates that are not given are
    read from `classnames.txt` and `zeroshot_classification_templates.txt`, beside the shards or one folder
    up.
    """

    def __init__(self, files: Sequence[Path], options: Options) -> None:
        self.name = options.name
        self._files, self._options = list(files), options
        shards = indices(self._files, _indexed)
        self._caption, self._label = _texts_of(self._files[0], shards[0], options)
        self._suffixes = list(dict.fromkeys(["image", *filter(None, (self._caption[0], self._label[0]))]))
        index, without_image = [], 0
        for shard, file in zip(shards, self._files, strict=True):
            has_image = shard.spans(["image"])[:, 0, 0] > 0
            missing = len(has_image) - int(has_image.sum())
            if missing == len(has_image):
                raise UserError(f"shard {file} holds no images ({missing} entries without one)")
            index.append(shard.spans(self._suffixes)[has_image])
            without_image += missing
        if without_image:
            logger.warning("%s: %d entries without an image are left out", self.name, without_image)
        self._spans = np.concatenate(index)  # (examples, suffixes, 2): offset and size, size 0 where it is missing
        self._starts = np.cumsum([0, *map(len, index)])
        self.classnames, self.templates = options.classnames, options.templates
        if self._label[0]:
            folder = files[0].parent
            self.classnames = self.classnames or _lines_near(folder, "classnames.txt")
            self.templates = self.templates or _lines_near(folder, "zeroshot_classification_templates.txt")

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Example:
        """Raises BadImage: "missing" if the shard has gone, "too_many_bytes", "bad_label" for what is no number."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        spans = [(int(offset), int(size)) for offset, size in self._spans[index]]
        if spans[0][1] > MAX_BYTES or any(size > LONGEST_TEXT for _, size in spans[1:]):
            raise BadImage("too_many_bytes")
        try:
            contents = dict(zip(self._suffixes, read(self._files[shard], spans), strict=True))
        except OSError:
            raise BadImage("missing") from None
        return example_of(contents, self._caption, self._label)

    def place(self, index: int) -> str:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return f"{self._files[shard]}, image at byte {int(self._spans[index, 0, 0])}"

    def stamp(self) -> str:
        return stamp_of(self._files, self._options)


Text = tuple[str | None, str]  # the member's suffix (None: there is no such text) and the entry, if it is JSON


def example_of(contents: dict[str, bytes], caption: Text, label: Text) -> Example:
    """An example from its members' bytes by suffix. Raises BadImage("bad_label")."""
    return Example(contents["image"], _captions(contents, caption), _number_of_class(contents, label))


def _texts_of(file: Path, index: ShardIndex, options: Options) -> tuple[Text, Text]:
    """Where captions and labels are, decided by the entries of the first shard."""
    if "image" not in index.suffixes:
        raise UserError(f"shard {file} holds no images; its members end in {columns.listed(index.suffixes)}")
    content = None
    if "json" in index.suffixes:
        spans = index.spans(["json"])[:, 0]
        offset, size = spans[spans[:, 0] > 0][0].tolist()
        content = read(file, [(offset, min(size, LONGEST_TEXT))])[0]
    return texts_among(f"shard {file}", index.suffixes, content, options)


def texts_among(where: str, suffixes: Sequence[str], content: bytes | None, options: Options) -> tuple[Text, Text]:
    """Where captions and labels are among members with these suffixes, of which one .json has this content."""
    keys = list(_json(content)) if content is not None else []

    def locate(key: str | None, suffix: str, entry: str | None) -> Text:
        if key is None:
            return (suffix, "") if suffix in suffixes else ("json", entry) if entry in keys else (None, "")
        if key == suffix and suffix in suffixes:
            return suffix, ""
        if key not in keys:
            raise UserError(
                f"{where} has no {key!r}: its members end in {columns.listed(suffixes)}, "
                f"its .json has {columns.listed(keys)}"
            )
        return "json", key

    caption = locate(options.caption_key, "txt", "caption")
    label = locate(options.label_key, "cls", None)
    if caption[0] is None and label[0] is None:
        raise columns.nothing_to_learn(where, "members", suffixes)
    return caption, label


def _json(content: bytes) -> dict[str, object]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _captions(contents: dict[str, bytes], where: Text) -> tuple[str, ...]:
    suffix, key = where
    if suffix is None:
        return ()
    if suffix == "json":
        value = _json(contents[suffix]).get(key)
        return columns.captions([v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)])
    return columns.captions([line.strip() for line in contents[suffix].decode("utf-8", errors="replace").splitlines()])


def _number_of_class(contents: dict[str, bytes], where: Text) -> int | None:
    suffix, key = where
    if suffix is None:
        return None
    value = _json(contents[suffix]).get(key) if suffix == "json" else contents[suffix]
    try:
        number = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):  # not a number, or JSON's Infinity
        raise BadImage("bad_label") from None
    if number >= 1 << 63:
        raise BadImage("bad_label")
    return number if number >= 0 else None


def _lines_near(folder: Path, name: str) -> tuple[str, ...] | None:
    for file in (folder / name, folder.parent / name):
        if file.is_file():
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"cannot read {file}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
            return tuple(line.strip() for line in text.splitlines() if line.strip())
    return None
