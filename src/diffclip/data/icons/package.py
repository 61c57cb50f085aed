"""The npm package @iconify/json: fetched by npm, read from its archive without unpacking"""

from __future__ import annotations

import logging
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffclip import durable
from diffclip.errors import UserError
from diffclip.reading import opened, parse_json

log = logging.getLogger(__name__)

VERSION = "2.2.535"
"""Of the package, where none is asked for: the same command then gives everyone the same icons."""
FOLDER, SETS = "package/", "package/json/"
MOST = 1 << 27  # bytes of one file of the archive; the largest has a tenth


@dataclass(frozen=True)
class IconSet:
    """One set: what its author says of it, and its icons."""

    prefix: str
    title: str
    author: str
    author_url: str
    licence: str
    licence_url: str
    category: str
    multicoloured: bool
    strokes: bool
    listed: bool
    """Whether the package still shows it; others are withdrawn."""
    icons: Mapping[str, Mapping[str, Any]]
    aliases: Mapping[str, str]
    """Further names that draw the same, with the icon's name."""
    categories: Mapping[str, tuple[str, ...]]
    """Of each icon."""
    sizes: frozenset[str]
    """The numbers at the end of names that mean a size."""
    box: tuple[float, float, float, float]
    """Left, top, width and height of icons that state none."""


@dataclass(frozen=True)
class Package:
    """All sets in the order of their prefixes, and which bytes they came from."""

    version: str
    sha256: str
    sets: tuple[IconSet, ...]


def fetch(version: str, folder: Path) -> Path:
    """The archive of a version in `folder`, by npm where it is not there yet. Raises UserError."""
    path = folder / f"iconify-json-{version}.tgz"
    if path.is_file():
        return path
    instead = f"or fetch https://registry.npmjs.org/@iconify/json/-/json-{version}.tgz yourself: --package FILE"
    command = ["npm", "pack", f"@iconify/json@{version}", "--ignore-scripts", "--silent", "--pack-destination"]
    with durable.cannot_write(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run([*command, str(folder.resolve())], capture_output=True, timeout=1800, check=False)
    except FileNotFoundError:
        raise UserError(f"npm is not installed, which fetches the icons: install Node.js, {instead}") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"npm took more than half an hour: try again, {instead}") from None
    if done.returncode or not path.is_file():
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines() or ["it says nothing"]
        raise UserError(f"npm cannot fetch @iconify/json {version}: {said[0][:200]}; is there a network? {instead}")
    return path


def read(path: Path) -> Package:
    """The sets of an archive. Raises UserError where it is no archive of this package."""
    sets, version, listed = list[tuple[str, dict[str, Any]]](), "", dict[str, Any]()
    try:
        with opened(path) as file, tarfile.open(fileobj=file, mode="r:gz") as archive:
            for member in archive:
                name = member.name
                wanted = name in (f"{FOLDER}package.json", f"{FOLDER}collections.json")
                if not (wanted or (name.startswith(SETS) and name.endswith(".json"))) or not member.isreg():
                    continue
                content = archive.extractfile(member)
                if content is None or member.size > MOST:
                    raise UserError(f"{path}: {name} is larger than {MOST:,} bytes")
                table = parse_json(content.read())
                if name.startswith(SETS):
                    sets.append((name, table))
                elif name.endswith("collections.json"):
                    listed = table
                else:
                    version = table["version"]
        if not (sets and version and listed):
            raise UserError(
                f"{path} is no archive of @iconify/json: package.json, collections.json or sets are missing"
            )
        return Package(
            version, durable.sha256(path), tuple(_set(table, listed) for _, table in sorted(sets, key=lambda s: s[0]))
        )
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no archive of @iconify/json: {type(error).__name__} {error}") from None


def _set(table: Mapping[str, Any], listed: Mapping[str, Any]) -> IconSet:
    info, prefix = table["info"], table["prefix"]
    categories: dict[str, tuple[str, ...]] = {}
    for category, names in table.get("categories", {}).items():
        for name in names:
            categories[name] = (*categories.get(name, ()), category)
    icons = table["icons"]
    known = {key for key, alias in table.get("aliases", {}).items() if alias.keys() == {"parent"}}
    box = tuple(float(table.get(key, default)) for key, default in _BOX)
    return IconSet(
        prefix,
        info["name"],
        info["author"]["name"],
        info["author"].get("url", ""),
        info["license"].get("spdx", ""),
        info["license"].get("url", ""),
        listed.get(prefix, {}).get("category", ""),
        bool(info.get("palette")),
        "Uses Stroke" in listed.get(prefix, {}).get("tags", ()),
        prefix in listed and not listed[prefix].get("hidden"),
        icons,
        {key: table["aliases"][key]["parent"] for key in known if table["aliases"][key]["parent"] in icons},
        categories,
        frozenset(
            word for end in table.get("suffixes") or () for word in end.split("-") if word.removesuffix("px").isdigit()
        ),
        (box[0], box[1], box[2], box[3]),
    )


_BOX = (("left", 0), ("top", 0), ("width", 16), ("height", 16))


def box_of(icon: Mapping[str, Any], icons: IconSet) -> tuple[float, float, float, float]:
    """Left, top, width and height of an icon's drawing."""
    left, top, width, height = (
        float(icon.get(key, default)) for (key, _), default in zip(_BOX, icons.box, strict=True)
    )
    return left, top, width, height
