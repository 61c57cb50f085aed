"""Writes that are whole or not there: under another name first, on the disk before the name is changed."""

import os
import shutil
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """`text` as the whole content of `path`, which a crash leaves as it was or as it is to be. Raises OSError."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        sync(unfinished)
        replace(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


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
