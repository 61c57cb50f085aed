"""Which image files lie in some folders now: hidden ones, leftovers, what is excluded, and links apart."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch

from diffclip.data.formats.paths import LEFTOVERS, SUFFIXES
from diffclip.use.heic import SUFFIXES as HEIC_SUFFIXES

LEFT_FOLDERS = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found")
"""What systems and storage devices leave: thumbnails and what was thrown away."""


@dataclass(frozen=True)
class File:
    """An image file as the file system tells of it."""

    path: str
    size: int
    """Bytes."""
    changed: int
    """Nanoseconds since 1970."""


@dataclass
class Scan:
    """What some folders hold."""

    files: dict[str, File] = field(default_factory=dict)
    """By path, in the order of the walk."""
    unreadable: list[str] = field(default_factory=list)
    """Folders that may not be read: nothing is known of what is in them."""
    links: int = 0
    """Links, which are not followed: what they lead to may lie outside."""
    empty: list[str] = field(default_factory=list)
    """Folders among those given in which no image lies."""


def scan(folders: Iterable[str], exclude: Sequence[str] = ()) -> Scan:
    """Look through folders, given as real paths, and all below them.

    exclude: patterns (`*`, `?`, `[…]`) of names, or of paths below the folder, of files and folders to leave out.
    """
    found = Scan()
    for root in folders:
        before = len(found.files)
        for place, names, files in os.walk(root, onerror=lambda error: found.unreadable.append(str(error.filename))):
            found.links += sum(os.path.islink(os.path.join(place, name)) for name in names)
            names[:] = sorted(
                name
                for name in names
                if name[0] != "."
                and name.lower() not in LEFT_FOLDERS
                and not _is_excluded(root, place, name, exclude)
                and not os.path.islink(os.path.join(place, name))
            )
            for name in sorted(files):
                if not _is_image(name) or _is_excluded(root, place, name, exclude):
                    continue
                path = os.path.join(place, name)
                try:
                    status = os.lstat(path)
                except OSError:  # gone since
                    continue
                if os.path.islink(path):
                    found.links += 1
                elif os.path.isfile(path):
                    found.files[path] = File(path, status.st_size, status.st_mtime_ns)
        if len(found.files) == before and not any(inside(path, root) for path in found.files):
            found.empty.append(root)
    return found


def inside(path: str, folder: str) -> bool:
    """Whether a path lies in a folder, as the names say."""
    return path.startswith(os.path.join(folder, ""))


def _is_image(name: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    return suffix in (*SUFFIXES, *HEIC_SUFFIXES) and name[0] not in ".~" and name.lower() not in LEFTOVERS


def _is_excluded(root: str, place: str, name: str, exclude: Sequence[str]) -> bool:
    if not exclude:
        return False
    below = os.path.relpath(os.path.join(place, name), root)
    return any(fnmatch(name, pattern) or fnmatch(below, pattern.rstrip("/")) for pattern in exclude)
