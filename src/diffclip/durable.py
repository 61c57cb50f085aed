"""Writes that are whole or not there: under another name first, on the disk before the name is changed."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


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


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file of tensors on the CPU, on the disk once this returns. Not whole until then. Raises OSError."""
    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:  # which keeps the system's error in its text alone
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise OSError(str(error)) from error
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    sync(path)


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
