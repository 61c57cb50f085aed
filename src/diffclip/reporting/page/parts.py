"""What a report is made of: drawings and parts."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from diffclip.reporting.rows import Row
from diffclip.reporting.tables.fill import Table


@dataclass(frozen=True)
class Drawing:
    """A figure that is drawn when it is asked for, in the style that is set then."""

    name: str
    """Of its files."""
    title: str
    caption: str
    alternative: str
    """What it shows, for readers who do not see it."""
    draw: Callable[[], Figure]
    table: Table | None = None
    """The numbers that it shows."""


@dataclass(frozen=True)
class Part:
    """One section of the report."""

    title: str
    introduction: str = ""
    tables: tuple[Table, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    differences: tuple[Row, ...] = ()
    name: str = ""
    """Of the files that have the differences."""
    seeds: tuple[str, ...] = ()
    """Every seed, a line each."""
    outcome: tuple[str, ...] = ()
    """What came out, in sentences for the head of the page."""


@dataclass(frozen=True)
class Report:
    """Everything but how it is written down. notes: which results were kept apart. warnings: of training."""

    parts: tuple[Part, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
