"""Where a run's numbers go: metrics.jsonl, TensorBoard, and the progress that a person watches."""

import json
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from diffclip import durable
from diffclip.errors import UserError
from diffclip.reading import opened, parse_json
from diffclip.terminal import Pace, Terminal

log = logging.getLogger(__name__)

Record = Mapping[str, Any]

METRICS = "metrics.jsonl"
LONGEST_NAME, BAR = 18, 12
"""Characters of a run's name and of its bar on a terminal."""
WALL_CLOCK = frozenset({"images_per_s", "data_wait", "seconds"})
"""What a record says of the machine's time; all else in it is the same on every run of a recipe on a machine."""


class RunLog:
    """Appends records to `metrics.jsonl` and their numbers to `tensorboard/`.

    On resuming from `step`, lines of later steps are dropped: they belong to work that is done again. TensorBoard's
    events are a copy of the lines, so they are written anew from those; `seconds` is the training time at `step`, by
    which events are dated. Raises UserError where a line cannot be written.
    """

    def __init__(self, run: Path, step: int = 0, seconds: float = 0.0) -> None:
        self._path = run / METRICS
        with _write_errors(run):
            with durable.writing(self._path) as unfinished, unfinished.open("wb") as file:
                file.writelines(_lines(self._path, step))
            self._events = Events(run / "tensorboard", self.kept(), time.time() - seconds)
            self._file = self._path.open("ab")

    def kept(self) -> Iterator[Record]:
        """The records that the file holds."""
        with self._path.open("rb") as file:
            yield from map(json.loads, file)

    def write(self, record: Record) -> None:
        """record: `step`, `seconds`, numbers, lists of them (one a layer), and text, which TensorBoard does not get."""
        with _write_errors(self._path.parent):
            self._file.write(durable.json_line(record))
            self._file.flush()
            self._events.write(record)
            self._events.flush()

    def close(self) -> None:
        with suppress(OSError):  # what could not be written was said when it was tried
            self._file.close()
        self._events.close()


@contextmanager
def _write_errors(run: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write the metrics of {run}: {error.strerror}; make room or give write permission, then go on with "
            "the same command and --resume"
        ) from error


def _lines(path: Path, step: int) -> Iterator[bytes]:
    """The lines of metrics.jsonl up to `step`; one that is no record, as a crash leaves, is left out and told."""
    if not path.exists():
        return
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                record = parse_json(line)
                float(record["seconds"])  # by which events are dated
                if int(record["step"]) <= step:
                    yield line.rstrip(b"\n") + b"\n"
            except (ValueError, KeyError, TypeError, OverflowError):
                log.warning("%s line %d is no record of a step, and is left out: %.60r", path, number, line)


class Events:
    """One file of TensorBoard's events: `records` anew, then what is written; other files in `folder` are deleted.

    One event a record, written at once by this thread: `SummaryWriter` writes one a number, up to two minutes later.
    began: when the training began, on the clock (s since 1970), had it never been interrupted.
    """

    def __init__(self, folder: Path, records: Iterable[Record], began: float) -> None:
        folder.mkdir(exist_ok=True)
        before = [path for path in folder.iterdir() if "tfevents" in path.name and path.is_file()]
        name = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}.{os.getpid()}"
        unfinished = durable.beside(folder / "events")  # TensorBoard looks for tfevents in a name
        self._began = began
        self._file = unfinished.open("wb")
        self._writer = RecordWriter(self._file)
        self._event(began, 0, file_version="brain.Event:2")
        self._event(began, 0, session_log=SessionLog(status=SessionLog.START))
        for record in records:
            self.write(record)
        self.flush()
        durable.sync(unfinished)
        durable.replace(unfinished, folder / name)
        for path in before:
            if path.name != name:
                path.unlink()

    def write(self, record: Record) -> None:
        numbers: dict[str, float] = {}
        for name, value in record.items():
            if isinstance(value, list):
                numbers |= {f"{name}/{layer:02d}": item for layer, item in enumerate(value, start=1)}  # as figures
            elif isinstance(value, int | float) and name != "step":
                numbers[name] = value
        values = [
            Summary.Value(tag=tag.encode(errors="backslashreplace"), simple_value=number)
            for tag, number in numbers.items()
        ]
        self._event(self._began + record["seconds"], record["step"], summary=Summary(value=values))

    def flush(self) -> None:
        self._file.flush()

    def _event(self, at: float, step: int, **content: Any) -> None:
        self._writer.write(Event(wall_time=at, step=step, **content).SerializeToString())

    def close(self) -> None:
        with suppress(OSError):  # as above
            self._file.close()


class Shown(Protocol):
    """What shows how a training goes on, a context manager: a `Display`, or what stands for one elsewhere."""

    def __enter__(self) -> "Shown": ...

    def __exit__(self, *_: object) -> None: ...

    def start(self, step: int) -> None:
        """Steps begin, or go on after something else, when `step` are done."""

    def advance(self, step: int) -> None:
        """`step` steps are done."""

    def record(self, record: Record) -> None:
        """Show the latest numbers of the run."""

    def note(self, text: str) -> None:
        """One line."""


def progress_bars(console: Console) -> Progress:
    """For displays: name, bar, both counts, the time left, and what there is room for."""
    return Progress(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=BAR),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}", style="progress.remaining"),
        TextColumn("{task.fields[state]}", markup=False),
        console=console,
    )


class Display:
    """A progress bar on a terminal, plain lines elsewhere. Use as a context manager.

    The time left is that of the steps that are left, at the speed of the last minute of steps.
    """

    def __init__(self, name: str, total: int, console: Console | None = None, bars: Progress | None = None) -> None:
        """bars: those of others too, started and stopped by whoever made them."""
        self.console = console or Terminal(file=sys.stderr)
        self._name, self._total = name, total
        shown = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        # What stands beside the numbers of a record: name, bar, both counts, the time left, and the spaces between.
        self._room = self.console.width - (len(shown) + BAR + 2 * len(f"{total:,}") + 1 + len("00:00:00") + 5)
        self._latest = ""
        self._progress: Progress | None = None
        self._own = bars is None
        if self.console.is_terminal:
            self._progress = bars or progress_bars(self.console)
            self._task = self._progress.add_task(shown, total=total, left="--:--", state="")
        self._pace = Pace()

    def __enter__(self) -> "Display":
        if self._progress and self._own:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress and self._own:
            self._progress.stop()

    def start(self, step: int) -> None:
        """Steps begin, or go on after something else, when `step` are done."""
        self._pace.start(step)
        if self._progress:
            self._progress.update(self._task, completed=step)

    def advance(self, step: int) -> None:
        """`step` steps are done."""
        self._pace.at(step)
        if self._progress:
            self._progress.update(self._task, completed=step, left=self._left())

    def record(self, record: Record) -> None:
        """Show the latest numbers of the run."""
        if self._progress:
            self._latest = describe(record, self._room)
            self.state()
        else:
            self.note(f"{self._name} step {record['step']}/{self._total}  {describe(record)}  {self._left()} left")

    def _left(self) -> str:
        seconds = self._pace.remaining(self._total)
        return "--:--" if seconds is None else _clock(seconds)

    def state(self, text: str | None = None) -> None:
        """What stands behind a bar, as far as there is room; without a text the latest numbers again."""
        if self._progress:
            shown = self._latest if text is None else text[: max(self._room, 0)]
            self._progress.update(self._task, state=shown)

    def hide(self) -> None:
        """Take the bar away."""
        if self._progress:
            self._progress.update(self._task, visible=False)

    def note(self, text: str) -> None:
        """One line above the bar."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def describe(record: Record, room: float = math.inf) -> str:
    """A record as the line that a person watches: loss, speed, temperature, λ of each tower; what there is room for."""
    parts = [
        f"loss {record['loss']:.3f}",
        f"{record['images_per_s']:.0f} img/s",
        *([f"τ⁻¹ {record['logit_scale']:.1f}"] if "logit_scale" in record else []),
    ]
    for tower in ("visual", "text"):
        values = record.get(f"lambda_{tower}")
        if values:
            parts.append(f"λ {tower} {sum(values) / len(values):.2f}")
    while len(parts) > 1 and len("  ".join(parts)) > room:
        parts.pop()
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
