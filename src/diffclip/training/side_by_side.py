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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
        """That of a training of `total` steps, as `setup.train` takes it. Names of equal length stand best."""


class Team:
    """`count` processes that share the threads of this one. Use as a context manager.

    With a count of 1, and where processes cannot start, there are none: all work is done here, in turn.
    """

    def __init__(self, count: int, console: Console) -> None:
        self._count, self._console = count, console
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
        except OSError:
            self.__exit__()
            self.threads = 0
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
        with _Board(items, self._count, self._console) as board, _handling(signal.SIGTERM, _interrupt):
            while running or waiting:
                try:
                    for number in set(range(self._count)).difference(running.values()):
                        if waiting:
                            name, item = waiting.popleft()
                            running[name] = number
                            self._pipes[number].send((work, item))
                    name, kind, value = self._message(running)
                    if kind == "done":
                        results[name] = value
                        on_done(name, value)
                    elif kind != "failed":
                        board.show(name, kind, value)
                        continue
                    board.end(name)
                    number = running.pop(name)
                    if kind == "failed" and failure is None:
                        failure = value
                        waiting.clear()
                        self._end(running, signal.SIGTERM)
                except KeyboardInterrupt:
                    waiting.clear()
                    self._end(running, signal.SIGKILL if isinstance(failure, Stopped) else signal.SIGTERM)
                    failure = Stopped("stopped")
        if failure:
            raise failure
        return results

    def _end(self, running: Mapping[str, int], number: signal.Signals) -> None:
        for process in running.values():
            if self._processes[process].is_alive():
                os.kill(cast(int, self._processes[process].pid), number)

    def _message(self, running: Mapping[str, int]) -> tuple[str, str, Any]:
        """The next of those that run: name, kind, what it says."""
        ready = wait([self._pipes[number] for number in running.values()])
        name, number = next((name, number) for name, number in running.items() if self._pipes[number] in ready)
        try:
            kind, value = self._pipes[number].recv()
        except (EOFError, OSError):
            self._processes[number].join()
            return name, "failed", _died(name, self._processes[number].exitcode)
        return name, kind, _error(*value) if kind == "failed" else value


def check_jobs(jobs: int) -> None:
    """Raises UserError for a number of processes that cannot be, or has not a thread for each where none has a GPU."""
    threads = torch.get_num_threads()
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: give 1 or more")
    if jobs > threads and default_device().type == "cpu":
        raise UserError(f"--jobs {jobs}: there are {threads} threads here (OMP_NUM_THREADS), and each takes one")


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

    def __init__(self, names: Collection[str], count: int, console: Console) -> None:
        self._console = console
        # One console for bars and lines where there is a terminal: another's lines would cut the bars up.
        self._terminal = console if console.is_terminal else Terminal(stderr=True)
        self._bars = progress_bars(self._terminal)
        self._all_fit = len(names) <= count
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
        elif not self._terminal.is_terminal:
            self._console.print(value, highlight=False, soft_wrap=True)
        elif name in self._displays:
            self._displays[name].state(value)

    def end(self, name: str) -> None:
        """A bar stays with its last numbers where those of all have room, or else goes."""
        if name in self._displays:
            self._displays[name].state()
            if not self._all_fit:
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
