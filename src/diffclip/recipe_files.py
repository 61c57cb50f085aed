"""Where a recipe lies: a file of any name, a pipe, or one that the package ships, by its name; and its tables."""

import logging
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import tomli

from diffclip.errors import UserError
from diffclip.reading import read_bytes
from diffclip.text import closest, listed

log = logging.getLogger(__name__)

Kind = Literal["recipe", "sweep", "vision-language recipe"]
FOLDERS: Mapping[Kind, str] = {"sweep": "sweeps/", "vision-language recipe": "vlm/"}
"""Where in the package's recipes those of a kind lie."""
LONGEST = 1 << 24
"""Bytes of a recipe, which needs some thousands."""
FLAGS = frozenset({"--resume", "--no-resume", "--dry-run", "--no-dry-run", "--help", "-h"}) | {
    "--accept-changed-data",
    "--no-accept-changed-data",
}
"""Options of `diffclip train` that take no value."""
PAIRS = frozenset({"scale", "ratio", "betas"})
LISTS = frozenset({"classnames", "templates", "tasks", "overrides", "image_sizes"})
"""Settings of a recipe that take two values, and any number; every other one takes one."""


def shipped(kind: Kind = "recipe") -> dict[str, Path]:
    """Name → file of what the package has of a kind: of a CLIP's recipes all that are in no folder of another kind."""
    folder = Path(str(files("diffclip") / "recipes"))
    every = {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.rglob("*.toml"))}
    own = FOLDERS.get(kind)
    if own is not None:
        return {name.removeprefix(own): file for name, file in every.items() if name.startswith(own)}
    return {name: file for name, file in every.items() if not name.startswith(tuple(FOLDERS.values()))}


def find_recipe(given: str | Path, kind: Kind = "recipe") -> Path:
    """The file that a command names: what lies there, whatever its name, or else a shipped recipe of this name.

    A shipped one may also be named as it lies here, recipes/NAME.toml. Raises UserError where there is neither.
    """
    path, known = Path(given).expanduser(), shipped(kind)
    short = Path(given).as_posix().removeprefix("recipes/").removeprefix(FOLDERS.get(kind, ""))
    if short.endswith(".toml") and Path(given).parts[0] == "recipes":
        short = short.removesuffix(".toml")
    try:
        if path.exists() and not (path.is_dir() and short in known):
            return path
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot read the {kind} {str(given)[:200]}: {reason}") from None
    if short in known:
        return known[short]
    near = closest(short.removesuffix(".toml"), known) or f"; it has {listed(known)}"
    raise UserError(
        f"cannot read the {kind} {str(given)[:200]}: No such file or directory, nor has the package a {kind} of this "
        f"name{near}"
    )


def read_toml(path: str | Path, what: str, *, typed: bool = False) -> dict[str, Any]:
    """The tables of a TOML file; `what` it is supposed to be, for the error. Raises UserError.

    typed: whether the command line names it, which may name a pipe too. What another file names could be waited for.
    """
    try:
        if typed:
            with open(path, "rb") as file:
                content = file.read(LONGEST)
        else:
            content = read_bytes(path, LONGEST)
        text = content.decode("utf-8-sig", "surrogateescape")
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot read the {what} {str(path)[:200]}: {reason}") from None
    if len(content) == LONGEST:
        raise UserError(f"cannot read the {what} {str(path)[:200]}: longer than {LONGEST:,} bytes")
    if not text.strip():
        raise UserError(f"the {what} {str(path)[:200]} is empty: it would be every default, so state at least one key")
    if not _is_unicode(text) and not _only_paths_are_not(text):
        raise UserError(f"cannot read the {what} {str(path)[:200]}: not a UTF-8 text file")
    return parse_toml(text, str(path))


def _is_unicode(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)


def _only_paths_are_not(text: str) -> bool:
    """Whether it is TOML whose only texts that are not Unicode are paths: a file's name may be any bytes."""

    def usual(value: Any) -> bool:
        if isinstance(value, dict):
            return all(key == "path" or (_is_unicode(key) and usual(item)) for key, item in value.items())
        return all(map(usual, value)) if isinstance(value, list) else not isinstance(value, str) or _is_unicode(value)

    try:
        return usual(tomli.loads(text))
    except (ValueError, RecursionError):
        return False


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The tables of TOML; `where` names its origin in the error. Raises UserError for another text."""
    try:
        return tomli.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: TOML's, or of a number of thousands of digits
        raise UserError(f"{where} is not valid TOML: {error}") from None


def run_name(*recipes: Path) -> Path:
    """The directory of runs where none is given. Raises UserError for a pipe, whose name means nothing."""
    for recipe in recipes:
        if recipe.exists() and not recipe.is_file() and not recipe.is_dir():
            raise UserError(f"{recipe} is a pipe, after which no run directory can be called: give --out")
    return Path("runs") / "_".join(recipe.stem for recipe in recipes)


def recipe_argument(arguments: Sequence[str]) -> int | None:
    """Which of the arguments of `diffclip train` is the recipe: the first that is no option and no option's value.

    What follows a setting with any number of values is taken for its values, as the parser of options takes it.
    """
    place = 0
    while place < len(arguments):
        if arguments[place] == "--":
            return place + 1 if place + 1 < len(arguments) else None
        if not arguments[place].startswith("-"):
            return place
        option = arguments[place]
        field = option.rpartition(".")[2].replace("-", "_")
        place += 1
        if option in FLAGS or "=" in option:
            continue
        place += 2 if field in PAIRS else 1
        while field in LISTS and place < len(arguments) and not arguments[place].startswith("-"):
            place += 1
    return None


def merge_tables(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`table` with `changes` in it, table by table; anything but a table is replaced."""
    result = dict(table)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merge_tables(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """`section.key=value` as nested tables; the value in TOML, or a plain word. Raises UserError for another form."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
            raise UserError(f"--set {text}: expected SECTION.KEY=VALUE, such as training.epochs=1")
        try:
            parsed = tomli.loads(f"value = {value}")["value"]
        except (ValueError, RecursionError):
            parsed = value
        for part in reversed(key.split(".")):
            parsed = {part: parsed}
        found = merge_tables(found, parsed)
    return found
