"""The training loop. There is one: what differs between runs is the recipe, and evaluators are passed in."""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from diffclip.config import Recipe, to_toml
from diffclip.data.loader import Batch, Loader
from diffclip.errors import Stopped, UserError
from diffclip.models import weights
from diffclip.models.clip import CLIP
from diffclip.training import checkpoint
from diffclip.training.logs import Display, RunLog
from diffclip.training.monitor import Monitor
from diffclip.training.step import Schedule, Trainer, training_loader, training_source

Evaluator = Callable[[CLIP], Mapping[str, float]]


def train(
    recipe: Recipe, run: Path, *, resume: bool = False, evaluators: Mapping[str, Evaluator] | None = None
) -> Path:
    """Train to the end of the recipe; returns the run directory, which `diffclip.load` takes.

    evaluators: name → function of the model whose numbers go to metrics.jsonl as `name/metric`. With `resume` the run
    goes on from its newest good checkpoint. Raises UserError where the directory holds another run, the data cannot
    be read, or the loss stops being finite; Stopped after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    source = training_source(recipe)
    schedule = Schedule.of(recipe, len(source))
    loader = training_loader(recipe, source)
    _claim(run, recipe, resume)
    trainer = Trainer(recipe, schedule)
    state = (checkpoint.restore(run, trainer.model, trainer.optimizer) if resume else None) or {
        "step": 0,
        "seconds": 0.0,
    }
    records = RunLog(run, state["step"])
    try:
        with Display(run.name, schedule.steps) as display, _stop_signal() as stop:
            _loop(trainer, loader, run, state, records, display, evaluators or {}, stop)
    finally:
        records.close()
    weights.save(trainer.model, run, step=schedule.steps)
    return run


def _loop(
    trainer: Trainer,
    loader: Loader,
    run: Path,
    state: dict[str, Any],
    records: RunLog,
    display: Display,
    evaluators: Mapping[str, Evaluator],
    stop: "StopSignal",
) -> None:
    recipe, schedule = trainer.recipe, trainer.schedule
    options, steps = recipe.training, schedule.steps
    monitor = Monitor()
    evaluate_every = round(options.evaluate_every * schedule.steps_per_epoch)
    began = time.monotonic() - state["seconds"]
    mark = _Stretch()
    display.advance(state["step"])
    for step, epoch, batch in _batches(loader, schedule, state["step"], display, mark):
        loss, lr = trainer.step(step - 1, batch)
        if not math.isfinite(loss):
            _report_not_finite(run, step, loss, batch)
        mark.images += len(batch.indices)
        display.advance(step)
        last = step == steps
        measured: dict[str, Any] = {}
        if last or step % options.monitor_every == 0:
            entropies = trainer.entropies(batch)
            monitor.entropies(step, entropies)
            measured |= {f"entropy_{tower}": values for tower, values in entropies.items()}
        if evaluators and (last or (evaluate_every and step % evaluate_every == 0)):
            metrics = _evaluate(trainer.model, evaluators)
            shown = "  ".join(f"{name} {value:.1%}" for name, value in metrics.items())
            display.note(f"step {step}, {(time.monotonic() - began) / 60:.1f} min: {shown}")
            measured |= metrics
        if measured or last or step == 1 or step % options.log_every == 0:
            lambdas = {tower: values.tolist() for tower, values in trainer.model.lambdas().items()}
            monitor.lambdas(step, lambdas)
            record = {
                "step": step,
                "epoch": epoch,
                "loss": loss,
                "lr": lr,
                "logit_scale": trainer.model.logit_scale.exp().item(),
                **{f"lambda_{tower}": values for tower, values in lambdas.items()},
                **measured,
                **mark.rates(),
                "seconds": time.monotonic() - began,
            }
            records.write(record)
            display.record(record)
            mark.restart()
        if step % options.checkpoint_every == 0 or last or stop.requested:
            state = {"step": step, "seconds": time.monotonic() - began}
            checkpoint.save(run, trainer.model, trainer.optimizer, state, options.keep_checkpoints)
        if stop.requested and not last:
            raise Stopped(f"stopped at step {step} of {steps} and saved; go on with the same command and --resume")


class _Stretch:
    """Images and seconds since the last record, and how much of the time was spent waiting for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.images, self.waited, self._began = 0, 0.0, time.monotonic()

    def rates(self) -> dict[str, float]:
        seconds = time.monotonic() - self._began
        return {"images_per_s": self.images / seconds, "data_wait": self.waited / seconds}


def _batches(
    loader: Loader, schedule: Schedule, done: int, display: Display, mark: _Stretch
) -> Iterator[tuple[int, float, Batch]]:
    """(step counted from 1, epochs done after it, batch) of the steps that are left."""
    step = done
    while step < schedule.steps:
        epoch, start = divmod(step, schedule.steps_per_epoch)
        batches = loader.epoch(epoch, start)
        while step < min(schedule.steps, (epoch + 1) * schedule.steps_per_epoch):
            asked = time.monotonic()
            batch = next(batches)
            mark.waited += time.monotonic() - asked
            step += 1
            yield step, step / schedule.steps_per_epoch, batch
        if loader.skipped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(loader.skipped.items()))
            display.note(f"epoch {epoch + 1}: skipped images: {reasons}")


def _evaluate(model: CLIP, evaluators: Mapping[str, Evaluator]) -> dict[str, float]:
    model.eval()
    numbers = {f"{name}/{key}": value for name, run in evaluators.items() for key, value in run(model).items()}
    model.train()
    return numbers


def _report_not_finite(run: Path, step: int, loss: float, batch: Batch) -> None:
    path = run / f"not_finite_step_{step:08d}.json"
    path.write_text(json.dumps({"step": step, "loss": str(loss), "indices": batch.indices.tolist()}))
    raise UserError(
        f"the loss is {loss} at step {step}; no weight was changed by it, the batch's indices are in {path}; "
        'lower optimizer.lr or set training.precision = "float32", then --resume from the last checkpoint'
    )


def _claim(run: Path, recipe: Recipe, resume: bool) -> None:
    """Make the run directory, or refuse one that holds a run which is not to be resumed."""
    text = to_toml(recipe)
    path = run / "recipe.toml"
    if path.exists():
        if not resume:
            raise UserError(f"{run} holds a run already: give --resume to go on with it, or another --out")
        if path.read_text() != text:
            raise UserError(f"{run} holds a run of another recipe: resume with the settings of {path}")
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(".recipe.toml.unfinished")
        unfinished.write_text(text)
        os.replace(unfinished, path)
    except OSError as error:
        raise UserError(f"cannot write to the run directory {run}: {error.strerror}") from None


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
