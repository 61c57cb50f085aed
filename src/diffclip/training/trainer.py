"""The training loop. There is one: what differs between runs is the recipe, and evaluators are passed in."""

import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from diffclip.config import Recipe, to_toml
from diffclip.data.loader import Batch, Loader
from diffclip.data.sources import Source, open_source
from diffclip.data.tokenizer import get_tokenizer
from diffclip.data.transforms import TrainTransform, normalise
from diffclip.errors import Stopped, UserError
from diffclip.models import weights
from diffclip.models.clip import CLIP, create_model
from diffclip.models.maps import forward_with_maps
from diffclip.training import checkpoint
from diffclip.training.logs import Display, RunLog
from diffclip.training.loss import contrastive_loss
from diffclip.training.monitor import Monitor, attention_entropy
from diffclip.training.optimizer import adamw, learning_rate

log = logging.getLogger(__name__)

Evaluator = Callable[[CLIP], Mapping[str, float]]

# The entropy of the attention is measured on this many images and captions of the current batch.
MONITORED = 8


@dataclass(frozen=True)
class Schedule:
    """How a recipe's epochs become steps."""

    steps_per_epoch: int
    steps: int
    warmup_steps: int

    @classmethod
    def of(cls, recipe: Recipe, examples: int) -> "Schedule":
        """Raises UserError where the data do not fill one batch."""
        per_epoch = examples // recipe.training.batch_size
        if per_epoch == 0:
            raise UserError(
                f"{recipe.data.train.path} has {examples} examples, fewer than one batch of "
                f"{recipe.training.batch_size}; lower training.batch_size"
            )
        steps = max(1, round(recipe.training.epochs * per_epoch))
        return cls(per_epoch, steps, min(steps, round(recipe.optimizer.warmup_epochs * per_epoch)))


def training_source(recipe: Recipe) -> Source:
    """The training data of a recipe. Raises UserError where it names none or they cannot be opened."""
    if not recipe.data.train.path:
        raise UserError("the recipe names no training data: set data.train.path, or give --data.train.path PATH")
    source = open_source(**vars(recipe.data.train))
    if recipe.data.examples not in (0, len(source)):
        log.warning(
            "%s has %d examples, the recipe expects %d",
            recipe.data.train.path,
            len(source),
            recipe.data.examples,
        )
    return source


def training_loader(recipe: Recipe, source: Source) -> Loader:
    """Its batches, augmented as the recipe says."""
    config = recipe.model.resolve()
    return Loader(
        source,
        TrainTransform(config.image_size, recipe.data.scale, recipe.data.ratio, recipe.data.flip),
        get_tokenizer(config.context_length),
        recipe.training.batch_size,
        seed=recipe.seed,
        num_workers=recipe.data.workers,
        max_skipped=recipe.data.max_skipped,
    )


def new_model(recipe: Recipe) -> CLIP:
    """The model of a recipe as it is before the first step."""
    torch.manual_seed(recipe.seed)
    return create_model(recipe.model.preset, **recipe.model.overrides)


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What matrices are multiplied in: bfloat16, or None for float32. `auto` is bfloat16 where the processor has it."""
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
        capabilities = torch.cpu.get_capabilities()
        return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else None
    return torch.bfloat16 if precision == "bf16" else None


class Trainer:
    """Model, optimizer and the step. `train` drives it; the quickstart times its step to fit its budget."""

    def __init__(self, recipe: Recipe, schedule: Schedule) -> None:
        self.recipe, self.schedule = recipe, schedule
        self.device = default_device()
        self.dtype = autocast_dtype(recipe.training.precision, self.device)
        self.model = new_model(recipe).to(self.device).train()
        self.optimizer = adamw(self.model, recipe.optimizer)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Normalised pixels (B, 3, S, S) float and tokens (B, L) int64, on the device."""
        config = self.model.config
        pixels = batch.pixels.to(self.device, non_blocking=True)
        return normalise(pixels, config.image_mean, config.image_std), batch.tokens.to(self.device, non_blocking=True)

    def step(self, step: int, batch: Batch) -> tuple[float, float]:
        """One optimizer step. Returns (loss, learning rate); a loss that is not finite changes no weight."""
        lr = learning_rate(
            step,
            steps=self.schedule.steps,
            warmup_steps=self.schedule.warmup_steps,
            config=self.recipe.optimizer,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # Patch dropout draws from here, so a resumed run draws what the uninterrupted one would have.
        torch.manual_seed(self.recipe.seed * 1_000_003 + step)
        pixels, tokens = self.inputs(batch)
        groups = None
        with self.autocast():
            if self.recipe.loss.shared_captions:
                # Labelled data repeat few captions: each is encoded once, with the same gradients as encoding all.
                groups = batch.groups.to(self.device)
                distinct, place = torch.unique(tokens, dim=0, return_inverse=True)
                output = self.model(image=pixels, text=distinct)
                text_features = output["text_features"][place]  # (B, embed_dim)
            else:
                output = self.model(image=pixels, text=tokens)
                text_features = output["text_features"]
        loss = contrastive_loss(output["image_features"], text_features, output["logit_scale"], groups)
        value = loss.item()
        if math.isfinite(value):
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.model.clamp_logit_scale()
        return value, lr

    @torch.no_grad()
    def entropies(self, batch: Batch) -> dict[str, list[float]]:
        """Entropy of A1 by tower and layer, on a few examples of the batch."""
        pixels, tokens = (x[:MONITORED] for x in self.inputs(batch))
        with self.autocast():
            _, visual = forward_with_maps(self.model.visual, pixels)
            _, text = forward_with_maps(self.model.text, tokens)
        return {
            "visual": [attention_entropy(maps.a1, causal=False) for maps in visual],
            "text": [attention_entropy(maps.a1, causal=True) for maps in text],
        }


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
        record: dict[str, Any] = {"step": step, "epoch": epoch, "loss": loss, "lr": lr}
        record["logit_scale"] = trainer.model.logit_scale.exp().item()
        last = step == steps
        if step % options.monitor_every == 0 or last:
            entropies = trainer.entropies(batch)
            record |= {f"entropy_{tower}": values for tower, values in entropies.items()}
            monitor.entropies(step, entropies)
        if evaluators and (last or (evaluate_every and step % evaluate_every == 0)):
            record |= _evaluate(trainer.model, evaluators)
            shown = "  ".join(f"{key} {value:.1%}" for key, value in record.items() if "/" in key)
            display.note(f"step {step}, {(time.monotonic() - began) / 60:.1f} min: {shown}")
        if step % options.log_every == 0 or last or len(record) > 5:
            lambdas = {tower: values.tolist() for tower, values in trainer.model.lambdas().items()}
            monitor.lambdas(step, lambdas)
            record |= {f"lambda_{tower}": values for tower, values in lambdas.items()}
            record |= mark.rates() | {"seconds": time.monotonic() - began}
            records.write(record)
            display.record(record)
            mark = mark.restart()
        if step % options.checkpoint_every == 0 or last or stop.requested:
            state = {"step": step, "seconds": time.monotonic() - began}
            checkpoint.save(run, trainer.model, trainer.optimizer, state, options.keep_checkpoints)
        if stop.requested and not last:
            raise Stopped(f"stopped at step {step} of {steps} and saved; go on with the same command and --resume")


class _Stretch:
    """Images and seconds since the last record, and how much of the time was spent waiting for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> "_Stretch":
        self.images, self.waited, self._began = 0, 0.0, time.monotonic()
        return self

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
