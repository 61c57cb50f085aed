"""Read files that come from anywhere: regular ones alone, so that none is waited for, and no more than is bearable."""

import errno
import io
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from diffclip.errors import UserError

MOST = 1 << 30
"""Bytes of a file that is read as a whole; COCO's largest file of annotations has half of them."""


def opened(path: str | Path) -> BinaryIO:
    """A regular file, or a link to one, to read. Raises OSError, whose `strerror` says why, for anything else.

    A pipe would be waited for, a device might never end, and to open one can have effects of its own.
    """
    check_regular(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # it may have become a pipe since
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, NOT_REGULAR, str(path))
    return os.fdopen(descriptor, "rb")


@contextmanager
def named(path: str | Path) -> Iterator[str]:
    """A name of a regular file while the block lasts, for a library that takes a name, and only one in UTF-8.

    Raises OSError as `opened` does.
    """
    with opened(path) as file:
        try:
            str(path).encode()
            yield str(path)
        except UnicodeEncodeError:
            yield f"/dev/fd/{file.fileno()}"


NOT_REGULAR = "Not a regular file"


def check_regular(path: str | Path) -> None:
    """Raises OSError where `path` is no regular file: for what a library opens by its name."""
    try:
        mode = os.stat(path).st_mode
    except ValueError:
        raise OSError(errno.EINVAL, "its name holds a null byte", str(path)) from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, NOT_REGULAR, str(path))


def read_bytes(path: str | Path, most: int = MOST) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises OSError."""
    with opened(path) as file:
        content = file.read(most + 1) if os.fstat(file.fileno()).st_size <= most else None
    if content is None or len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {most:,} bytes", str(path))
    return content


def read_text(path: str | Path, encoding: str = "utf-8", errors: str = "strict", most: int = MOST) -> str:
    """The text of a regular file, its line ends as newlines. Raises OSError, UnicodeDecodeError."""
    return io.TextIOWrapper(io.BytesIO(read_bytes(path, most)), encoding, errors).read()


def lines(path: str | Path, most: int = MOST) -> list[str]:
    """The lines of a file, without what is blank around each. Raises UserError where it cannot be read as UTF-8."""
    try:  # splitlines would cut at a form feed too
        return [line.strip() for line in read_text(path, most=most).rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None


def parse_json(text: str | bytes) -> Any:
    """The value of JSON. Raises ValueError for anything else, nesting too deep for the parser included."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
