"""What a terminal and a log show: names and captions from anywhere, none of which commands it; the time left."""

import logging
import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, TextIO

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


class _Stderr(logging.StreamHandler[TextIO]):
    """To standard error as it is when a line is written: while a bar moves, rich puts what comes there above it."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    @property  # type: ignore[override]
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        pass


def log_to_stderr(level: int) -> None:
    """Log lines of this level and above, each one line whatever it quotes; once in a process."""
    handler = _Stderr()
    handler.setFormatter(_Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=level)


class Pace:
    """How fast work is done: in the last minute of doing it. Pauses do not count."""

    WINDOW = 60.0

    def __init__(self) -> None:
        self.seconds = 0.0  # of work so far
        self._done, self._last = 0.0, time.monotonic()
        self._marks = deque([(0.0, 0.0)])  # seconds of work, and what was done in them: those of the window

    def start(self, done: float) -> None:
        """Work goes on, after so much is done in all; what was not needed has taken no time."""
        self._done, self._last = done, time.monotonic()

    def at(self, done: float) -> None:
        """So much is done in all."""
        now = time.monotonic()
        if done > self._done:
            self.seconds += now - self._last
            self._marks.append((self.seconds, self._marks[-1][1] + done - self._done))
            while self._marks[1][0] <= self.seconds - self.WINDOW:
                self._marks.popleft()
        self._done, self._last = done, now

    def remaining(self, total: float) -> float | None:
        """Seconds for what is left of `total`; None before anything is done."""
        (began, before), (now, work) = self._marks[0], self._marks[-1]
        return (total - self._done) * (now - began) / (work - before) if work > before else None
