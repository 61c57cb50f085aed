"""Where a run's numbers go: metrics.jsonl, TensorBoard, and the progress that a person watches."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

Record = Mapping[str, Any]


class RunLog:
    """Appends records to `metrics.jsonl` and their numbers to `tensorboard/`.

    On resuming from `step`, lines of later steps are dropped: they belong to work that is done again.
    """

    def __init__(self, run: Path, step: int = 0) -> None:
        path = run / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            unfinished = path.with_name(".metrics.jsonl.unfinished")
            unfinished.write_text("".join(line + "\n" for line in kept))
            os.replace(unfinished, path)
        self._file = path.open("a")
        self._tensorboard = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()
        for name, value in record.items():
            if isinstance(value, list):
                for layer, item in enumerate(value):
                    self._tensorboard.add_scalar(f"{name}/{layer:02d}", item, record["step"])
            elif isinstance(value, int | float) and name != "step":
                self._tensorboard.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()


def _step_of(line: str) -> float:
    """The step of a metrics line; infinite for one that a crash cut short, so that it is dropped."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class Display:
    """A progress bar on a terminal, plain lines elsewhere. Use as a context manager."""

    def __init__(self, name: str, total: int, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr)
        self._name, self._total = name, total
        self._progress: Progress | None = None
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[state]}"),
                console=self.console,
            )
            self._task = self._progress.add_task(name, total=total, state="")
        self._began = time.monotonic()
        self._first: int | None = None

    def __enter__(self) -> "Display":
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def advance(self, step: int) -> None:
        """`step` steps are done."""
        if self._first is None:
            self._first, self._began = step, time.monotonic()
        if self._progress:
            self._progress.update(self._task, completed=step)

    def record(self, record: Record) -> None:
        """Show the latest numbers of the run."""
        state = describe(record)
        if self._progress:
            self._progress.update(self._task, state=state)
        else:
            step = record["step"]
            done = step - (self._first or 0)
            left = (time.monotonic() - self._began) / done * (self._total - step) if done else 0.0
            ending = f"  {_clock(left)} left" if done else ""
            self.note(f"{self._name} step {step}/{self._total}  {state}{ending}")

    def note(self, text: str) -> None:
        """One line above the bar."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def describe(record: Record) -> str:
    """A record as the line that a person watches: loss, speed, temperature, λ of each tower."""
    parts = [
        f"loss {record['loss']:.3f}",
        f"{record['images_per_s']:.0f} img/s",
        f"τ⁻¹ {record['logit_scale']:.1f}",
    ]
    for tower in ("visual", "text"):
        values = record.get(f"lambda_{tower}")
        if values:
            parts.append(f"λ {tower} {sum(values) / len(values):.2f}")
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
