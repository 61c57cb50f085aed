"""Several trainings at the same time, each in a process of its own with its share of the threads, on one terminal.

Threads of one training wait for each other wherever a batch is drawn, a loss read or a line logged. Processes of fewer
threads each have less to wait for.
"""

import io
import logging
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar, cast

import torch
from rich.console import Console

from diffclip.errors import Stopped, UserError
from diffclip.terminal import Terminal
from diffclip.training.logs import Display, Record, Shown, progress_bars

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
PATIENCE = 0.2
"""Seconds without a message after which a wish to stop is looked for."""


class Place(Protocol):
    """Where work is done, and how it shows what it does."""

    console: Console
    """For what it prints beside training."""

    def display(self, name: str, total: int) -> Shown:
        """That of a training of `total` steps, as `setup.train` takes it. Names of equal length stand best."""


class Team:
    """`count` processes that share the threads of this one. Use as a context manager.

    With a count of 1, and with a warning where processes cannot start, there are none: all work is done here, in turn.
    """

    def __init__(self, count: int, console: Console, *, brief: bool = False) -> None:
        """brief: on a terminal a line printed beside training stands behind a bar, until the next one."""
        self._count, self._console, self._brief = count, console, brief
        self.threads = max(torch.get_num_threads() // count, 1) if count > 1 else 0
        """Of each process; 0 where there is none."""
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []

    def __enter__(self) -> "Team":
        context = multiprocessing.get_context("spawn")  # OpenMP's threads do not outlive a fork
        level = logging.getLogger().getEffectiveLevel()
        try:
            # Ignored by what starts meanwhile: Ctrl-C reaches every process of a terminal, and this one tells them.
            with _handling(signal.SIGINT, signal.SIG_IGN):
                for _ in range(self._count if self.threads else 0):
                    pipe, there = context.Pipe()
                    self._pipes.append(pipe)
                    self._processes.append(context.Process(target=_serve, args=(there, self.threads, level)))
                    self._processes[-1].start()
                    there.close()
        except OSError as error:
            self.__exit__()
            self.threads = 0
            threads = torch.get_num_threads()
            log.warning("no process can start (%s): all is done in turn, on %d threads", error.strerror, threads)
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()  # which ends a process that waits for work, and one that trains at its next step
        for process in self._processes:
            if process.pid is not None:
                process.join()

    def run(
        self,
        work: Callable[[T, Place], R],
        items: Mapping[str, T],
        on_done: Callable[[str, R], None] = lambda name, result: None,
    ) -> dict[str, R]:
        """Name → `work` of its item; on_done gets each as it comes. The first error ends the others.

        A training that is ended saves itself first.
        work: a function of a module; what it takes and returns can be pickled.
        Raises what it raises, Stopped after Ctrl-C or SIGTERM, and UserError where a process dies.
        """
        results: dict[str, R] = {}
        if not self.threads:
            for name, item in items.items():
                results[name] = work(item, Here(self._console))
                on_done(name, results[name])
            return results
        waiting = deque(items.items())
        running: dict[str, int] = {}  # name of an item → its process
        failure: Exception | None = None
        board = _Board(self._console, brief=self._brief, stay=len(items) <= self._count)
        with board, _asked_to_stop() as asked:
            while running or waiting:
                for number in set(range(self._count)).difference(running.values()):
                    if waiting:
                        name, item = waiting.popleft()
                        running[name] = number
                        self._pipes[number].send((work, item))
                message = self._message(running)
                if asked.times > 1:
                    self._end(running, signal.SIGKILL)
                    raise KeyboardInterrupt
                if asked.times and not isinstance(failure, Stopped):
                    failure = Stopped("stopped")
                    waiting.clear()
                    self._end(running, signal.SIGTERM)
                if message is None:
                    continue
                name, kind, value = message
                if kind not in ("done", "failed"):
                    board.show(name, kind, value)
                    continue
                board.end(name)
                del running[name]
                if kind == "done":
                    results[name] = value
                    on_done(name, value)
                elif failure is None:
                    failure = value
                    waiting.clear()
                    self._end(running, signal.SIGTERM)
        if failure:
            raise failure
        return results

    def _end(self, running: Mapping[str, int], number: signal.Signals) -> None:
        for process in running.values():
            if self._processes[process].is_alive():
                os.kill(cast(int, self._processes[process].pid), number)

    def _message(self, running: Mapping[str, int]) -> tuple[str, str, Any] | None:
        """The next of those that run: name, kind, what it says; None after a while without one."""
        ready = wait([self._pipes[number] for number in running.values()], PATIENCE)
        if not ready:
            return None
        name, number = next((name, number) for name, number in running.items() if self._pipes[number] in ready)
        try:
            kind, value = self._pipes[number].recv()
        except (EOFError, OSError):
            self._processes[number].join()
            return name, "failed", _died(name, self._processes[number].exitcode)
        return name, kind, _error(*value) if kind == "failed" else value


def _died(name: str, status: int | None) -> UserError:
    how = f"by signal {-status}" if status and status < 0 else f"with status {status}"
    return UserError(
        f"the process that worked on {name} ended {how}, perhaps for lack of memory: the same command goes on, and "
        "takes one after the other with --jobs 1, a quickstart with OMP_NUM_THREADS=1"
    )


def _error(kind: str, lines: Sequence[str]) -> Exception:
    if kind == "unexpected":
        return RuntimeError("\n".join(lines))
    return Stopped(lines[0]) if kind == "stopped" else UserError(*lines)


class Here:
    """In this process."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def display(self, name: str, total: int) -> Shown:
        return Display(name, total)


class _Board:
    """The displays of all processes: bars under each other on a terminal, lines elsewhere."""

    def __init__(self, console: Console, *, brief: bool, stay: bool) -> None:
        """stay: bars of what is done stay, as those of all have room."""
        self._console, self._brief, self._stay = console, brief, stay
        # One console for bars and lines where there is a terminal: another's lines would cut the bars up.
        self._terminal = console if console.is_terminal else Terminal(stderr=True)
        self._bars = progress_bars(self._terminal)
        self._displays: dict[str, Display] = {}

    def __enter__(self) -> "_Board":
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, name: str, kind: str, value: Any) -> None:
        """What a process says: a call of its display, a line that it prints, or a record of its log."""
        if kind == "display":
            label, total = value
            if self._terminal.is_terminal:
                self._bars.start()
            self._displays[name] = Display(label, total, self._terminal, self._bars)
        elif kind == "log":
            value.msg = f"{name}: {value.msg}"
            logging.getLogger(value.name).handle(value)
        elif kind != "line":
            getattr(self._displays[name], kind)(value)
        elif not (self._brief and self._terminal.is_terminal):
            self._console.print(value, highlight=False, soft_wrap=True)
        elif name in self._displays:
            self._displays[name].state(value)

    def end(self, name: str) -> None:
        """The bar of what is done or failed shows its last numbers again, or goes."""
        if name in self._displays:
            if self._stay:
                self._displays[name].state()
            else:
                self._displays[name].hide()


class _There:
    """In a process of a team: everything is shown by the one that started it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._alone = self._sending = self._stopped = False
        self.console: Console = Terminal(file=_Lines(self), width=1000)

    def send(self, kind: str, value: object) -> None:
        """Where nobody is left to take it, this process stops, as after SIGTERM."""
        if self._alone:
            return
        self._sending = True
        try:
            self._pipe.send((kind, value))
        except OSError:
            self._alone = True
        self._sending = False
        if self._alone:
            os.kill(os.getpid(), signal.SIGTERM)
        if self._stopped:
            raise Stopped("stopped")

    def stop(self, *_: Any) -> None:
        """SIGTERM, where no training has a handler of its own: the end, but not within a message."""
        self._stopped = True
        if not self._sending:
            raise Stopped("stopped")

    def display(self, name: str, total: int) -> Shown:
        self.send("display", (name, total))
        return _Remote(self)


class _Remote:
    """A display in another process."""

    def __init__(self, there: _There) -> None:
        self._there = there

    def __enter__(self) -> "_Remote":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, step: int) -> None:
        self._there.send("start", step)

    def advance(self, step: int) -> None:
        self._there.send("advance", step)

    def record(self, record: Record) -> None:
        self._there.send("record", record)

    def note(self, text: str) -> None:
        self._there.send("note", text)


class _Lines(io.StringIO):
    """A file that sends what is written, line by line."""

    def __init__(self, there: _There) -> None:
        super().__init__()
        self._there = there

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                self._there.send("line", line)
        return len(text)


class _Log(QueueHandler):
    """Sends what is logged."""

    def __init__(self, there: _There) -> None:
        super().__init__(cast(Any, None))
        self.setFormatter(logging.Formatter())  # of the message alone: who shows it adds the level
        self._there = there

    def enqueue(self, record: logging.LogRecord) -> None:
        self._there.send("log", record)


def _serve(pipe: Connection, threads: int, level: int) -> None:
    """What a process of a team does until its pipe is closed."""
    there = _There(pipe)
    torch.set_num_threads(threads)
    logging.basicConfig(handlers=[_Log(there)], level=level, force=True)
    signal.signal(signal.SIGTERM, there.stop)
    with suppress(Stopped, EOFError, OSError):  # the end: nobody waits for more
        while True:
            work, item = pipe.recv()
            try:
                there.send("done", work(item, there))
            except Stopped as stopped:
                there.send("failed", ("stopped", [str(stopped)]))
            except UserError as error:
                there.send("failed", ("user", str(error).split("\n  ")))
            except Exception:
                there.send("failed", ("unexpected", traceback.format_exc().splitlines()))


class _Asked:
    """How often this program was asked to stop. Nothing is raised: a message may be half read."""

    times = 0

    def again(self, *_: Any) -> None:
        self.times += 1


@contextmanager
def _asked_to_stop() -> Iterator[_Asked]:
    """Inside the `with`, Ctrl-C and SIGTERM are counted."""
    asked = _Asked()
    with _handling(signal.SIGINT, asked.again), _handling(signal.SIGTERM, asked.again):
        yield asked


@contextmanager
def _handling(number: signal.Signals, handler: Any) -> Iterator[None]:
    """Inside the `with`, a signal has this handler."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
