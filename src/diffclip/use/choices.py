"""What several commands take and say: texts from arguments and files, thresholds, pictures that cannot be read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from diffclip.errors import UserError
from diffclip.reading import lines
from diffclip.text import counted

SHOWN = 10


def lines_with(texts: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """Texts, and those of a file, one a line, blank lines apart. Raises UserError for a file that cannot be read."""
    return (*texts, *(line for line in (lines(file) if file else ()) if line))


def checked_threshold(threshold: float) -> None:
    """Raises UserError for what is no probability."""
    if not (math.isfinite(threshold) and 0 <= threshold <= 1):
        raise UserError(f"--threshold {threshold:g}: give a probability from 0 to 1")


def check_all_read(problems: Mapping[str, str], read: int) -> None:
    """Raises UserError, with some by name, for pictures that could not be read: what was made is partial then."""
    if not problems:
        return
    told = [f"{name}: {reason.replace('_', ' ')}" for name, reason in list(problems.items())[:SHOWN]]
    if len(problems) > SHOWN:
        told.append(f"and {len(problems) - SHOWN:,} more")
    if not read:
        raise UserError("no picture could be read", *told)
    raise UserError(f"{counted(len(problems), 'picture')} could not be read, everything else is done", *told)


class Told(Protocol):
    """Takes how many are done, and of how many."""

    def __call__(self, done: int, total: int | None = None) -> None: ...


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Told]:
    """A bar on standard error while the block lasts, where that is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from diffclip.terminal import Terminal

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Terminal(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task, stated = bar.add_task(what, total=total), total

        def told(done: int, total: int | None = None) -> None:
            bar.update(task, completed=done, total=stated if total is None else total)

        yield told
