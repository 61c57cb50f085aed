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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn, Protocol, TypeVar, cast

import torch
from rich.console import Console

from diffclip.distributed import default_device
from diffclip.errors import Stopped, UserError
from diffclip.terminal import Terminal
from diffclip.training.logs import Display, Record, Shown, progress_bars

T = TypeVar("T")
R = TypeVar("R")


class Place(Protocol):
    """Where work is done, and how it shows what it does."""

    console: Console
    """For what it prints beside training."""

    def display(self, name: str, total: int) -> Shown:
        """That of a training of `total` steps, as `setup.train` takes it."""


class Team:
    """A process for each of `names`. Use as a context manager.

    There is none, and all work is done here, one piece after the other, where this process has fewer threads than
    there are names (`OMP_NUM_THREADS`), on a GPU, which one training fills, and where processes cannot start.
    """

    def __init__(self, names: Sequence[str], console: Console) -> None:
        self._names, self._console = names, console
        self.threads = 0 if default_device().type == "cuda" else torch.get_num_threads() // len(names)
        """Of each process; 0 where there is none."""
        self._processes: dict[str, BaseProcess] = {}
        self._pipes: dict[str, Connection] = {}

    def __enter__(self) -> "Team":
        context = multiprocessing.get_context("spawn")  # OpenMP's threads do not outlive a fork
        level = logging.getLogger().getEffectiveLevel()
        try:
            # Ignored by what starts meanwhile: Ctrl-C reaches every process of a terminal, and this one tells them.
            with _handling(signal.SIGINT, signal.SIG_IGN):
                for name in self._names if self.threads else ():
                    self._pipes[name], there = context.Pipe()
                    self._processes[name] = context.Process(target=_serve, args=(there, self.threads, level))
                    self._processes[name].start()
                    there.close()
        except OSError:
            self.__exit__()
            self.threads = 0
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes.values():
            pipe.close()  # which ends a process that waits for work, and one that trains at its next step
        for process in self._processes.values():
            if process.pid is not None:
                process.join()

    def run(self, work: Callable[[T, Place], R], items: Mapping[str, T]) -> dict[str, R]:
        """Name → `work` of its item. The first that fails ends the others, which save themselves where they train.

        work: a function of a module; what it takes and returns can be pickled.
        Raises what it raises, Stopped after Ctrl-C or SIGTERM, and UserError where a process dies.
        """
        if not self.threads:
            return {name: work(item, _Here(self._console)) for name, item in items.items()}
        for name, item in items.items():
            self._pipes[name].send((work, item))
        running, results = {name: self._processes[name] for name in items}, dict[str, R]()
        failure: Exception | None = None
        with _Board(self._names, self._console) as board, _handling(signal.SIGTERM, _interrupt):
            while running:
                try:
                    name, kind, value = self._message(running)
                    if kind == "done":
                        results[name] = value
                    elif kind != "failed":
                        board.show(name, kind, value)
                        continue
                    board.end(name)
                    del running[name]
                    if kind == "failed" and failure is None:
                        failure = value
                        for process in running.values():
                            process.terminate()
                except KeyboardInterrupt:
                    for process in running.values():
                        process.kill() if isinstance(failure, Stopped) else process.terminate()
                    failure = Stopped("stopped")
        if failure:
            raise failure
        return results

    def _message(self, running: Mapping[str, BaseProcess]) -> tuple[str, str, Any]:
        """The next of those that run: name, kind, what it says."""
        ready = wait([self._pipes[name] for name in running])
        name = next(name for name in running if self._pipes[name] in ready)
        try:
            kind, value = self._pipes[name].recv()
        except (EOFError, OSError):
            running[name].join()
            return name, "failed", _died(name, running[name].exitcode)
        return name, kind, _error(*value) if kind == "failed" else value


def _died(name: str, status: int | None) -> UserError:
    how = f"by signal {-status}" if status and status < 0 else f"with status {status}"
    return UserError(
        f"the process that worked on {name} ended {how}, perhaps for lack of memory: the same command goes on, and "
        "with OMP_NUM_THREADS=1 it takes one after the other"
    )


def _error(kind: str, lines: Sequence[str]) -> Exception:
    if kind == "unexpected":
        return RuntimeError("\n".join(lines))
    return Stopped(lines[0]) if kind == "stopped" else UserError(*lines)


class _Here:
    """In this process."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def display(self, name: str, total: int) -> Shown:
        return Display(name, total)


class _Board:
    """The displays of all processes: bars under each other on a terminal, lines elsewhere."""

    def __init__(self, names: Sequence[str], console: Console) -> None:
        self._console = console
        self._terminal = Terminal(stderr=True)
        self._bars = progress_bars(self._terminal)
        self._width = max(map(len, names))
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
            self._displays[name] = Display(label.ljust(self._width), total, self._terminal, self._bars)
        elif kind == "log":
            logging.getLogger(value.name).handle(value)
        elif kind != "line":
            getattr(self._displays[name], kind)(value)
        elif not self._terminal.is_terminal:
            self._console.print(value, highlight=False, soft_wrap=True)
        elif name in self._displays:
            self._displays[name].state(value)

    def end(self, name: str) -> None:
        """Of what was printed beside training nothing stays on a terminal."""
        if name in self._displays:
            self._displays[name].state()


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


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def _handling(number: signal.Signals, handler: Any) -> Iterator[None]:
    """Inside the `with`, a signal has this handler."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
