"""Text for people: what may reach a terminal, names that were meant, lists, durations, numbers in percent."""

import difflib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

LISTED = 20
"""Names that a message lists at most."""
LONGEST = 60
"""Characters of a name that a message shows."""
JOINERS = "\u200c\u200d"
"""Formatting characters that stay: Persian words and families of emoji are written with them."""


def printable(text: str) -> str:
    """Text from anywhere in one line that commands no terminal and reads as it is stored.

    White space is a space; other characters that are not printable are written as Python escapes them: controls (C0,
    C1, DEL), marks that turn the direction of reading, and bytes that are no UTF-8, as `\\xff`.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in JOINERS else " " if c.isspace() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    stands_for_a_byte = "\udc80" <= character <= "\udcff"
    return rf"\x{ord(character) - 0xDC00:02x}" if stands_for_a_byte else character.encode("unicode_escape").decode()


def printable_lines(text: str) -> str:
    """`printable` of each line."""
    return "\n".join(map(printable, text.split("\n")))


def closest(name: str, names: Iterable[str]) -> str:
    """For the end of a message about an unknown name: "; is it NAME?", or nothing."""
    near = difflib.get_close_matches(name, list(names), 1)
    return f"; is it {near[0]}?" if near else ""


def slug(name: str) -> str:
    """A name for files: small letters, digits and hyphens."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """For a message about an unknown name: "; did you mean NAME or NAME?", of at most three, or nothing."""
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def listed(names: Iterable[str]) -> str:
    """Names for a message: "a, b, c", at most `LISTED` of them, or "none"."""
    every = [name if len(name) <= LONGEST else f"{name[:LONGEST]}…" for name in names]
    more = [f"{len(every) - LISTED:,} more"] if len(every) > LISTED else []
    return ", ".join(every[:LISTED] + more) or "none"


def counted(count: int, thing: str) -> str:
    """A number of things: "no pictures", "1 picture", "1,234 pictures"."""
    return f"{count:,} {thing}" if count == 1 else f"{f'{count:,}' if count else 'no'} {thing}s"


def duration(seconds: float) -> str:
    """Seconds as a person would say them: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def percent(value: float | None, *, signed: bool = False, sd: float | None = None) -> str:
    """A fraction in percent: 0.1234 is "12.3"; signed, "+12.3", with a real minus; with sd, "12.3 ± 0.4".

    None is empty.
    """
    if value is None:
        return ""
    text = f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
    if float(text) == 0:
        text = "0.0"
    return text.replace("-", "−") + (f" ± {percent(sd)}" if sd is not None else "")


def model_labels(models: Sequence[str]) -> list[str]:
    """The last part of each name, or the whole where two models share it; the same model twice is counted."""
    last = [Path(model).name or model for model in models]
    labels = last if len(set(last)) == len(last) else list(models)
    return [label if labels.count(label) == 1 else f"{label} ({i + 1})" for i, label in enumerate(labels)]


def say_loading() -> None:
    """On a terminal, say why nothing happens for some seconds: torch and the models are read."""
    if sys.stderr.isatty() and "torch" not in sys.modules:
        print("loading …", file=sys.stderr, flush=True)
