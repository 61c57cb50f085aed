"""The training loop: when to log, evaluate, save and stop. There is one, and evaluators are passed in."""

import json
import logging
import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from diffclip import durable
from diffclip.config import Training
from diffclip.distributed import World
from diffclip.errors import Stopped, UserError
from diffclip.models.library_config import LibraryConfig
from diffclip.models.presets import ModelConfig
from diffclip.terminal import Terminal
from diffclip.training import backends
from diffclip.training.background import BackgroundCheckpoints
from diffclip.training.checkpoint import Keep, Tensors
from diffclip.training.logs import Display, RunLog, Shown
from diffclip.training.monitor import Monitor
from diffclip.training.statistics import gradient_norms, not_finite
from diffclip.training.step import Schedule

log = logging.getLogger(__name__)

Evaluator = Callable[[Any], Mapping[str, float]]


class Indexed(Protocol):
    """A batch: this rank's examples by their places in the data."""

    indices: Tensor


class Batches(Protocol):
    """Batches of a rank, epoch by epoch; `skipped` counts by reason what could not be used in the epoch so far."""

    skipped: Counter[str]

    def epoch(self, epoch: int, start: int = 0, skipped: Mapping[str, int] | None = None) -> Iterator[Any]: ...


class State(Protocol):
    """What a loop drives: a model with all that a step changes. `step.TrainState` is a CLIP's."""

    schedule: Schedule
    world: World
    device: torch.device

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    @property
    def config(self) -> ModelConfig | LibraryConfig | None:
        """Of a CLIP, whose checkpoints `diffclip.load` takes."""

    def step(self, number: int, batch: Any) -> tuple[float, float]:
        """One optimizer step, number from 0, on this rank's rows of a batch → (loss of all rows, learning rate)."""

    def figures(self) -> dict[str, Any]:
        """What each line of metrics.jsonl says of the model beside its loss."""

    def statistics(self, batch: Any) -> dict[str, Any]:
        """What is measured less often, on a batch."""

    def monitor(self, batch_size: int) -> Monitor:
        """What watches the lines of the run."""

    def evaluated(self) -> AbstractContextManager[Any]:
        """Inside the `with`, the model as it is evaluated."""

    def tensors(self) -> Tensors:
        """All tensors of a checkpoint, the living ones."""

    def restore(self, run: Path) -> dict[str, Any] | None:
        """Load the newest good checkpoint and return its record; None where there is none."""

    def save(self, run: Path) -> None:
        """Write the trained model. All ranks call it. Raises OSError."""


@dataclass
class Loop:
    """A run from its newest good checkpoint, or from the first step, to the last."""

    state: State
    loader: Batches
    run: Path
    options: Training
    evaluators: Mapping[str, Evaluator]
    show: Callable[[str, int], Shown] = Display
    """Run's name, steps → where the process that prints shows how it goes on."""

    def train(self, *, resume: bool) -> None:
        """Make all steps that are left, and write the model for `diffclip.load`.

        Raises UserError and Stopped as `setup.train` does.
        """
        state, world = self.state, self.state.world
        progress = (state.restore(self.run) if resume else None) or {"step": 0, "seconds": 0.0}
        keep = Keep(self.options.keep_last, self.options.keep_best, self.options.best_by)
        with (
            closing(RunLog(self.run, progress["step"], progress["seconds"]))
            if world.is_main
            else nullcontext() as records,
            BackgroundCheckpoints(self.run, state.config, keep) as self.checkpoints,
            (self.show if world.is_main else _hidden)(self.run.name, state.schedule.steps) as self.display,
            _stop_signal() as self.stop,
            backends.kept(self.run, state.model, state.device.type, world, resume=resume),
        ):
            self.records: RunLog | None = records  # of the rank that writes
            self.monitor = state.monitor(self.options.batch_size)
            for line in records.kept() if records else ():
                self.monitor.watch(line)
            self._steps(progress)
        self._save_model()

    def _save_model(self) -> None:
        try:
            self.state.save(self.run)
        except OSError as error:
            raise UserError(f"cannot write the model to {self.run}: {error.strerror or error}") from None
        self.state.world.barrier()

    def _steps(self, progress: Mapping[str, Any]) -> None:
        """From the step after that of `progress` to the last."""
        options, steps = self.options, self.state.schedule.steps
        world, self.mark = self.state.world, _Stretch()
        self.began = time.monotonic() - progress["seconds"]
        self.display.start(progress["step"])
        for step, epoch, batch in self._batches(progress["step"], progress.get("skipped")):
            self.checkpoints.check()
            loss, lr = self.state.step(step - 1, batch)
            if not math.isfinite(loss):
                self._give_up(step, batch, loss)
            stopped = world.any(self.stop.requested, self.state.device)
            self.mark.images += len(batch.indices) * world.size
            self.display.advance(step)
            last = step == steps
            monitored = last or step % options.monitor_every == 0
            evaluated = self._evaluates(step)
            logged = monitored or evaluated or step == 1 or step % options.log_every == 0
            saved = last or step % options.checkpoint_every == 0 or (evaluated and options.keep_best > 0)
            saved = saved or stopped
            metrics: dict[str, float] = {}
            if logged or saved:
                norms = gradient_norms(self.state.model)
                if not norms.finite:  # the weights are spoilt by it: this must not become a checkpoint
                    self._give_up(step, batch, loss)
                measured: dict[str, Any] = {"grad_norm": norms.total}
                if monitored:
                    measured |= norms.record() | self.state.statistics(batch)
                if evaluated:
                    metrics = self._evaluate(step)
                if logged:
                    self._record({"step": step, "epoch": epoch, "loss": loss, "lr": lr}, measured | metrics)
            if saved:
                seconds = time.monotonic() - self.began
                record = {"step": step, "seconds": seconds, "metrics": metrics, "skipped": self._skipped()}
                self.checkpoints.save(self.state.tensors(), record)
            if stopped and not last:
                self.checkpoints.wait()
                world.barrier()
                raise Stopped(f"stopped at step {step} of {steps} and saved; go on with the same command and --resume")

    def _evaluates(self, step: int) -> bool:
        every = round(self.options.evaluate_every * self.state.schedule.steps_per_epoch)
        return bool(self.evaluators) and (step == self.state.schedule.steps or (every > 0 and step % every == 0))

    def _evaluate(self, step: int) -> dict[str, float]:
        with self.state.evaluated() as model:
            metrics = {
                f"{name}/{key}": value for name, run in self.evaluators.items() for key, value in run(model).items()
            }
        wanted = self.options.best_by
        if self.options.keep_best and wanted not in metrics:
            raise UserError(f"training.best_by = {wanted!r} is not measured; give one of {', '.join(metrics)}")
        shown = "  ".join(f"{name} {value:.1%}" for name, value in metrics.items())
        self.display.start(step)  # the time left is that of steps
        self.display.note(f"step {step}, {(time.monotonic() - self.began) / 60:.1f} min: {shown}")
        return metrics

    def _record(self, first: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
        record: dict[str, Any] = {**first, **self.state.figures(), **measured}
        warnings = self.monitor.watch(record)
        for warning in warnings if self.records else ():
            log.warning(warning)
        if warnings:
            record["warning"] = " | ".join(warnings)
        record |= {**self.mark.rates(), "seconds": time.monotonic() - self.began}
        if self.records:
            self.records.write(record)
        self.display.record(record)
        self.mark.restart()

    def _batches(self, done: int, skipped: Mapping[str, int] | None) -> Iterator[tuple[int, float, Any]]:
        """(step counted from 1, epochs done after it, batch) of the steps that are left.

        skipped: images skipped in the epoch of step `done` up to it, by reason, of all processes; None: not known.
        """
        step, schedule = done, self.state.schedule
        if skipped is not None and not self.state.world.is_main:
            skipped = {}  # the first process counts them for all
        while step < schedule.steps:
            epoch, start = divmod(step, schedule.steps_per_epoch)
            batches = self.loader.epoch(epoch, start, skipped if start else None)
            while step < min(schedule.steps, (epoch + 1) * schedule.steps_per_epoch):
                asked = time.monotonic()
                batch = next(batches)
                self.mark.waited += time.monotonic() - asked
                step += 1
                yield step, step / schedule.steps_per_epoch, batch
            if found := self._skipped():
                reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(found.items()))
                self.display.note(f"epoch {epoch + 1}: skipped images: {reasons}")

    def _skipped(self) -> Counter[str]:
        """Images skipped in this epoch so far, by reason, of all processes."""
        return sum(self.state.world.all_gather_objects(self.loader.skipped), Counter[str]())

    def _give_up(self, step: int, batch: Indexed, loss: float) -> NoReturn:
        """Say what is not finite, and where; keep the batch's indices."""
        model = self.state.model
        spoilt = not_finite(model, gradients=math.isfinite(loss))
        path = self.run / f"not_finite_step_{step:08d}.json"
        indices = [index for own in self.state.world.all_gather_objects(batch.indices.tolist()) for index in own]
        if self.state.world.is_main:
            durable.write_text(path, json.dumps({"step": step, "loss": str(loss), "in": spoilt, "indices": indices}))
        where = f"first in {spoilt[0]} of {len(spoilt)} parameters" if spoilt else "all weights are finite"
        what = "the gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
        raise UserError(
            f"{what} at step {step} ({where}); nothing of this step was saved, the batch's indices are in {path}; "
            'lower optimizer.lr or set training.precision = "float32", then --resume from the last checkpoint'
        )


def _hidden(name: str, total: int) -> Display:
    return Display(name, total, Terminal(quiet=True))


class _Stretch:
    """Images and seconds since the last record, and how much of the time was spent waiting for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.images, self.waited, self._began = 0, 0.0, time.monotonic()

    def rates(self) -> dict[str, float]:
        seconds = time.monotonic() - self._began
        return {"images_per_s": self.images / seconds, "data_wait": self.waited / seconds}


class StopSignal:
    """Becomes `requested` at the first Ctrl-C or SIGTERM; the second one ends the program at once."""

    requested = False


@contextmanager
def _stop_signal() -> Iterator[StopSignal]:
    stop = StopSignal()

    def request(number: int, frame: FrameType | None) -> None:
        stop.requested = True
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
