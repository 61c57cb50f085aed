"""What a terminal and a log show: names and captions from anywhere, none of which commands it or ends a line."""

import logging
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from diffclip.text import printable, printable_lines


class Terminal(Console):
    """rich's console for text as it is: no markup, no emoji codes, every text `printable`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A text that is printed, or is a cell of a table, is one line."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Whatever else is printed, such as a bar's description, keeps its lines."""
        for segment in super().render(renderable, options):
            shown = segment.text if segment.control else printable_lines(segment.text)
            yield segment if shown == segment.text else Segment(shown, segment.style)


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return printable_lines(super().formatException(ei))


def log_to_stderr(level: int) -> None:
    """Log lines of this level and above, each one line whatever it quotes; once in a process."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=level)
