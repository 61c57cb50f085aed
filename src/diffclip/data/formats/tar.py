"""The headers of a tar archive: which files lie where, and which belong to one example.

Headers are read once, from front to back; nothing is extracted and no name in the archive is ever used as a
path. An archive comes from anywhere, so every header is checked before it is believed. Formats: POSIX (ustar,
pax) and GNU. (The standard library's `tarfile` takes several times as long, and on hostile headers raises
errors of many types.)
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffclip.errors import UserError
from diffclip.reading import opened

logger = logging.getLogger(__name__)

BLOCK = 512
IMAGE_SUFFIXES = ("jpg", "jpeg", "jfif", "jpe", "png", "webp", "gif", "bmp", "tif", "tiff")
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, directories, pipes
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"
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
        file = opened(path)
    except OSError as error:
        raise UserError(f"cannot read shard {path}: {error.strerror}") from None
    with file:
        return _walk(path, file.fileno())


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

    WebDataset and img2dataset write the members of an example next to each other. Where others lie between them, as tar
    packs a folder, they are joined all the same; a member that the key has already begins another example.
    The suffix is in lower case; an example's image is found under "image".
    """
    last, groups, latest = None, list[dict[str, Member]](), dict[tuple[str, str], dict[str, Member]]()
    for member in found:
        folder, _, file = member.name.rpartition("/")
        stem, dot, suffix = file.partition(".")
        if not dot or not stem:  # no suffix, or a hidden file such as macOS leaves
            continue
        key = (folder, stem)
        suffix = suffix.lower()
        suffix = "image" if suffix in IMAGE_SUFFIXES else suffix
        if key not in latest or (key != last and suffix in latest[key]):
            latest[key] = {}
            groups.append(latest[key])
        latest[key][suffix] = member
        last = key
    yield from groups


def ending(suffixes: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """Those of several parts, such as "input.jpg", of which the last is wanted."""
    return [suffix for suffix in suffixes if "." in suffix and suffix.rpartition(".")[2] in wanted]


def read(path: Path, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes of a file at each (offset, size); fewer if it has become shorter. Keeps no file open."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return [os.pread(descriptor, size, offset) for offset, size in spans]
    finally:
        os.close(descriptor)
