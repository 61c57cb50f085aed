"""The exceptions that a person is meant to read: one line each, never a traceback."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffclip.text import printable

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(ValueError):
    """Something a user gave cannot be used.

    The message is one line: what is wrong, where, what was expected or found, what to do.
    The command line prints it without a traceback and exits with status 1. Further messages, such as a list of what
    failed, are lines below it.
    """

    def __init__(self, message: str, *further: str) -> None:
        # Messages quote names and values that come from anywhere: none may end the line or command the terminal.
        super().__init__("\n  ".join(_shown(text) for text in (message, *further)))


LONGEST = 2000  # characters of a line


def _shown(text: str) -> str:
    text = printable(text[: LONGEST + 1])
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


class CannotWrite(OSError, UserError):
    """A file that cannot be written, with the system's number and reason, and the path."""

    def __str__(self) -> str:
        return printable(f"cannot write {self.filename}: {self.strerror}")


class Stopped(Exception):
    """A run was asked to stop and has saved itself. The message says how to go on; the command line exits with 130."""

    def __init__(self, message: str) -> None:
        super().__init__(_shown(message))


def describe(error: "ValidationError") -> str:
    """pydantic's errors in words: where, what was expected, what was found."""
    errors = error.errors()
    more = [f"and {len(errors) - DESCRIBED} more"] if len(errors) > DESCRIBED else []
    return "; ".join([*map(_described, errors[:DESCRIBED]), *more])


DESCRIBED = 20  # errors
# What pydantic adds to the place of a value that may be of several kinds, such as a number or "auto".
ALTERNATIVE = re.compile(r"constrained-int|bool|literal\[.*\]")


def _described(error: Mapping[str, Any]) -> str:
    place = ".".join(part for part in map(str, error["loc"]) if not ALTERNATIVE.fullmatch(part))
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{place}: no such key"
    message = str(error["msg"])
    return f"{place}: {message[0].lower()}{message[1:]}, found {error['input']!r:.100}"
