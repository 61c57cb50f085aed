"""Writes that are whole or not there: under another name first, on the disk before the name is changed.

What a killed process leaves is hidden and ends in `.unfinished`: readers pass such names over, `remove_unfinished`
deletes them.
"""

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from diffclip.errors import UserError

UNFINISHED = ".unfinished"


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A new path beside `path`, whose folder is made if need be, for a file that takes the name of `path` at the end.

    The file is on the disk before it is renamed, and the new name once the block is left. An error in the block
    deletes the file, and `path` stays as it was. No two writers share a new path, on one machine or several: the last
    to end wins. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}{UNFINISHED}")
    try:
        yield unfinished
        sync(unfinished)
        replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            remove(unfinished)
        raise


def write_text(path: Path, text: str) -> None:
    """`text` in UTF-8 as the whole content of `path`. Raises OSError."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """`content` as the whole content of `path`. Raises OSError."""
    with writing(path) as unfinished:
        unfinished.write_bytes(content)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file of tensors on the CPU. Raises OSError."""
    with writing(path) as unfinished:
        try:
            save_file(dict(tensors), unfinished, metadata)
        except SafetensorError as error:  # which keeps the system's error in its text alone
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise OSError(str(error)) from error
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


@contextmanager
def user_errors(path: Path) -> Iterator[None]:
    """Raises UserError, which says that `path` cannot be written and why, for an OSError in the block."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def remove_unfinished(folder: Path, *, older_than: float = 0.0) -> None:
    """Delete what killed processes left in `folder`. Other processes that write there need `older_than`, seconds."""
    for path in folder.glob(f".*{UNFINISHED}"):
        with suppress(FileNotFoundError):  # another process was quicker
            if not older_than or time.time() - path.stat().st_mtime > older_than:
                remove(path)


def replace(unfinished: Path, path: Path) -> None:
    """Give a file or folder that is complete and synced its name, in the same folder; lasting once this returns."""
    os.replace(unfinished, path)
    sync(path.parent)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with all that is in it, if it is there. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Return once the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
