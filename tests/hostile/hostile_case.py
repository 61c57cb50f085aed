"""One file, or a few, that somebody broke on purpose, and what the program is to make of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

Entry = Literal["data", "model", "recipe", "sweep", "command"]


@dataclass(frozen=True)
class Case:
    """`build(folder)` writes the files and returns what the entry is given.

    entry: data: a path, or keyword arguments of open_source; model, recipe, sweep: a path; command: arguments.
    expect: a pattern that the outcome begins with: "error: …", "skipped: REASON COUNT, …", or "read" for what is
    no harm to anybody. DIR stands for the case's folder.
    """

    name: str
    entry: Entry
    expect: str
    build: Callable[[Path], Any]


def written(folder: Path, name: str, content: bytes | str) -> Path:
    """The file, with this content."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def file(name: str, content: bytes | str | Callable[[], bytes]) -> Callable[[Path], Path]:
    """What writes one file and gives its path."""
    return lambda folder: written(folder, name, content() if callable(content) else content)


def encoded(format: str = "JPEG", size: tuple[int, int] = (16, 16), mode: str = "RGB", **options: Any) -> bytes:
    """A good image."""
    stream = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(stream, format, **options)
    return stream.getvalue()
