"""Writes that are whole or not there: under another name first, on the disk before the name is changed.

What a killed process leaves is hidden and ends in `.unfinished`: readers pass such names over, `remove_unfinished`
deletes them. A file system that cannot sync, lock or link ends nothing: what it lacks is said once.
"""

import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from diffclip.errors import CannotWrite, UserError

log = logging.getLogger(__name__)

UNFINISHED = ".unfinished"
# What file systems answer that cannot do a thing at all, as network shares, FUSE and vfat do.
LACKING = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ENOLCK, errno.ENOTTY}


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A new path beside `path`, whose folder is made if need be, for what takes the name of `path` at the end.

    What the block makes there, a file or a folder, is on the disk before it is renamed, and the new name once the
    block is left. An error in the block deletes it, and `path` stays as it was. No two writers share a new path, on
    one machine or several: the last to end wins. A file that `path` links to is replaced, not the link. Raises OSError.
    """
    with cannot_write(path):
        path = Path(os.path.realpath(path))
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError(errno.EINVAL, "it is a device or a pipe, not a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished, replaced = beside(path), beside(path)
        try:
            yield unfinished
            for part in (*unfinished.rglob("*"), unfinished):
                sync(part)
            if unfinished.is_dir() and path.exists():  # only an empty folder is replaced by renaming
                os.replace(path, replaced)
            replace(unfinished, path)
            remove(replaced)
        except BaseException:
            with suppress(OSError):
                remove(unfinished)
            raise


@contextmanager
def cannot_write(path: Path) -> Iterator[None]:
    """Raises CannotWrite, which the command line prints as it is, for an OSError in the block."""
    try:
        yield
    except OSError as error:
        # The arguments of OSError, which comes first.
        raise CannotWrite(error.errno, error.strerror or str(error), str(path)) from error  # type: ignore[arg-type]


def beside(path: Path) -> Path:
    """A hidden path in the same folder that no other writer has, on this machine or another."""
    host = re.sub(r"[^\w.-]", "", socket.gethostname(), flags=re.ASCII)[:32]
    return path.with_name(f".{path.name[:40]}.{host}-{os.getpid()}-{secrets.token_hex(4)}{UNFINISHED}")


def write_text(path: Path, text: str) -> None:
    """`text` in UTF-8 as all of `path`; what UTF-8 has not, as some file names have, is escaped. Raises OSError."""
    write_bytes(path, text.encode(errors="backslashreplace"))


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


def json_line(table: Mapping[str, Any]) -> bytes:
    """A table as one line of JSON, its "\\n" included, from which `json.loads` makes the same table."""
    # In JSON a lone surrogate, which UTF-8 has not, is written as Python escapes it.
    return (json.dumps(table, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def append(path: Path, line: bytes) -> None:
    """Add a line, lasting once this returns, to a file that several processes may write. Raises OSError.

    A last line that a crash cut short is ended first. What a full disk cuts short is taken back.
    """
    with cannot_write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            with tolerated("lock files: do not write one from two processes"):
                fcntl.lockf(descriptor, fcntl.LOCK_EX)
            end = os.lseek(descriptor, 0, os.SEEK_END)
            left = line if not end or os.pread(descriptor, 1, end - 1) == b"\n" else b"\n" + line
            try:
                while left:
                    left = left[os.write(descriptor, left) :]
            except OSError:
                os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)
        sync(path)
        if not end:
            sync(path.parent)


def sha256(path: Path) -> str:
    """The digest of a file's content, in hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def locked(path: Path, busy: str) -> Iterator[int]:
    """Keep others that lock `path` out of the block; yields its descriptor. Raises UserError(busy), and OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            # Not flock: data workers inherit that, and outlive a killed trainer by some seconds.
            with tolerated("lock files: start no second process on the same folder"):
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(busy) from None
        yield descriptor
    finally:
        os.close(descriptor)


def link(path: Path, target: str) -> None:
    """Let `path` be a symbolic link to `target`, instead of a link that is there. Raises OSError."""
    with tolerated(f"make symbolic links: {path.name} is missing"):
        unfinished = beside(path)
        os.symlink(target, unfinished)
        replace(unfinished, path)


@contextmanager
def tolerated(ability: str) -> Iterator[None]:
    """Go on after the block where the file system is not able to do what it does, and say so once."""
    try:
        yield
    except OSError as error:
        if error.errno not in LACKING:
            raise
        _say_lacking(ability, error.strerror)


@functools.cache
def _say_lacking(ability: str, reason: str) -> None:
    log.warning("this file system cannot %s (%s)", ability, reason)


def cache_folder() -> Path:
    """Where what can be made again is kept: $XDG_CACHE_HOME/diffclip, by default ~/.cache/diffclip.

    Of a user without a home folder, as containers have, it is in the folder of temporary files.
    """
    home = os.path.expanduser("~")
    fallback = os.path.join(home, ".cache") if os.path.isabs(home) else f"{tempfile.gettempdir()}/cache-{os.getuid()}"
    return Path(os.environ.get("XDG_CACHE_HOME") or fallback) / "diffclip"


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
    with tolerated("put what is written on the disk at once: after a power cut the newest files may be damaged"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
