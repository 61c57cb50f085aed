"""One training step: what a recipe makes of data, model and optimizer."""

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from diffclip.config import Recipe
from diffclip.data.formats.stream import Stream, is_stream, open_stream
from diffclip.data.loading.loader import Batch, Loader
from diffclip.data.loading.stream_loader import StreamLoader
from diffclip.data.sources import Source, open_source
from diffclip.data.tokenizer import get_tokenizer
from diffclip.data.transforms import ByEpoch, TrainTransform, normalise
from diffclip.distributed import default_device, get_world
from diffclip.errors import UserError
from diffclip.models.clip import CLIP, create_model
from diffclip.models.patch_dropout import PatchDropout, patch_noise
from diffclip.training.ema import WeightAverage
from diffclip.training.gradients import Pairing, backward
from diffclip.training.loss import LOSSES
from diffclip.training.optimizer import adamw, learning_rate
from diffclip.training.parallel import parallelize
from diffclip.training.statistics import layer_statistics

log = logging.getLogger(__name__)

# What is measured by layer is measured on this many images and captions of the current batch.
MONITORED = 8
# Where SigLIP's bias starts (Zhai et al. 2023): at first almost no pair is taken for a right one.
SIGMOID_BIAS = -10.0
# The last number of a seed: what is drawn from it. The loader's are 1 and 2.
_PATCHES = 3


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
    if is_stream(recipe.data.train.path):
        return open_stream(examples=recipe.data.examples, **vars(recipe.data.train))
    source = open_source(**vars(recipe.data.train))
    compare_count(recipe, len(source))
    return source


def compare_count(recipe: Recipe, found: int) -> None:
    """Warn where the training data have another number of examples than the recipe states."""
    if recipe.data.examples not in (0, found):
        _warn_of_count(recipe.data.train.path, found, recipe.data.examples)


@cache  # a sweep, a quickstart or a table of plans opens the same data again and again: it is said once
def _warn_of_count(path: str, found: int, expected: int) -> None:
    log.warning(f"{path} has {found:,} examples, the recipe expects {expected:,}")


def training_loader(recipe: Recipe, source: Source) -> Loader:
    """Its batches, augmented as the recipe says; of each, the rows of this process."""
    config = recipe.model.resolve()
    world = get_world()
    world.rows_per_rank(recipe.training.batch_size)
    stages = tuple(
        (epoch, TrainTransform(size, recipe.data.scale, recipe.data.ratio, recipe.data.flip))
        for epoch, size in recipe.training.image_sizes or ((0, config.image_size),)
    )
    loader = StreamLoader if isinstance(source, Stream) else Loader
    return loader(
        source,
        ByEpoch(stages),
        get_tokenizer(config.context_length),
        recipe.training.batch_size,
        part=(world.rank, world.size),
        seed=recipe.seed,
        num_workers=recipe.data.workers,
        max_skipped=recipe.data.max_skipped,
        total=partial(world.total, device=default_device()),
    )


def new_model(recipe: Recipe) -> CLIP:
    """The model of a recipe as it is before the first step."""
    torch.manual_seed(recipe.seed)
    bias = {"logit_bias": SIGMOID_BIAS} if recipe.loss.kind == "sigmoid" else {}
    return create_model(recipe.model.preset, **bias | recipe.model.overrides)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What matrices are multiplied in: bfloat16, or None for float32. `auto` is bfloat16 where the processor has it."""
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
        capabilities = torch.cpu.get_capabilities()
        return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else None
    return torch.bfloat16 if precision == "bf16" else None


@dataclass(frozen=True)
class _Part:
    """What is encoded at a time of a batch."""

    pixels: Tensor  # (b, 3, S, S) uint8
    tokens: Tensor  # (c, L) int64
    noise: Tensor | None  # (b, patches) int64


class TrainState:
    """Model, optimizer and the step. `train` drives it; the quickstart times it to fit its budget."""

    def __init__(self, recipe: Recipe, schedule: Schedule) -> None:
        self.recipe, self.schedule = recipe, schedule
        self.device = default_device()
        self.dtype = autocast_dtype(recipe.training.precision, self.device)
        self.model = new_model(recipe).to(self.device).train()
        self.model.set_grad_checkpointing(recipe.training.checkpoint_activations)
        if recipe.training.compile:
            self.model.compile()
        self.world = get_world()
        self.world.rows_per_rank(recipe.training.batch_size)
        self.layout = parallelize(self.model, recipe.training.layout, self.world, self.device)
        self.optimizer = adamw(self.model, recipe.optimizer)
        self.average = WeightAverage(self.model, recipe.training.ema) if recipe.training.ema else None

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def pixels(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 → normalised floats on the device."""
        config = self.model.config
        return normalise(pixels.to(self.device, non_blocking=True), config.image_mean, config.image_std)

    def step(self, step: int, batch: Batch) -> tuple[float, float]:
        """One optimizer step on this process's rows of the batch. Returns (loss of the whole batch, learning rate).

        A loss that is not finite changes no weight.
        """
        lr = learning_rate(
            step,
            steps=self.schedule.steps,
            warmup_steps=self.schedule.warmup_steps,
            config=self.recipe.optimizer,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # Before the forward pass, so that these gradients are gone when its activations come.
        self.optimizer.zero_grad(set_to_none=True)
        self._set_patch_dropout(step)
        parts, pairing = self._parts(step, batch)
        value = backward(
            self._encode,
            parts,
            pairing,
            LOSSES[self.recipe.loss.kind],
            world=self.world,
            accumulating=self.layout.accumulating,
        )
        if math.isfinite(value):
            self.layout.finish()
            self.optimizer.step()
            self.model.clamp_logit_scale()
            if self.average is not None:
                self.average.update(self.model, step + 1)
        return value, lr

    def evaluation_weights(self) -> AbstractContextManager[None]:
        """Inside the `with` the model has the weights that are evaluated and kept: their average where there is one."""
        return nullcontext() if self.average is None else self.average.in_place(self.model)

    def _parts(self, step: int, batch: Batch) -> tuple[list[_Part], Pairing]:
        """This process's rows of the batch in micro-batches, and which caption is whose."""
        size = len(batch.pixels)
        count = -(-size // (self.recipe.training.micro_batch or size))
        texts, pairing = batch.tokens, Pairing()
        if self.recipe.loss.shared_captions:
            # Labelled data repeat few captions: each is encoded once, with the same gradients as encoding all.
            texts, place = torch.unique(texts, dim=0, return_inverse=True)
            pairing = Pairing(place.to(self.device), batch.groups.to(self.device))
            # Every part has some, so that all processes run the same towers at the same time; these are nobody's.
            texts = torch.cat([texts, texts[:1].expand(max(0, count - len(texts)), -1)])
        noise = self._patch_noise(step, batch.pixels)
        noises = [None] * count if noise is None else noise.tensor_split(count)
        parts = zip(batch.pixels.tensor_split(count), texts.tensor_split(count), noises, strict=True)
        return [_Part(*part) for part in parts], pairing

    def _set_patch_dropout(self, step: int) -> None:
        """The config's share of patches, but none in the last epochs that the recipe sets apart."""
        if isinstance(self.model.visual.patch_drop, PatchDropout):
            undropped = round(self.recipe.training.undropped_epochs * self.schedule.steps_per_epoch)
            dropping = step < self.schedule.steps - undropped
            self.model.visual.patch_drop.prob = self.model.config.patch_dropout if dropping else 0.0

    def _patch_noise(self, step: int, pixels: Tensor) -> Tensor | None:
        """(B, patches) for patch dropout, a function of seed, step and row; None for a model without it."""
        if not isinstance(self.model.visual.patch_drop, PatchDropout):
            return None
        size, patches = len(pixels), (pixels.shape[-1] // self.model.config.patch_size) ** 2
        return patch_noise((self.recipe.seed, step, 0, _PATCHES), self.world.rank * size, size, patches)

    @contextmanager
    def _dropping(self, noise: Tensor | None) -> Iterator[None]:
        """Patch dropout as `noise` says."""
        if noise is None:
            yield
            return
        self.model.visual.patch_drop.noise = noise.to(self.device, non_blocking=True)
        try:
            yield
        finally:
            self.model.visual.patch_drop.noise = None

    def _encode(self, part: _Part) -> dict[str, Tensor]:
        """The model's outputs for a part."""
        tokens = part.tokens.to(self.device, non_blocking=True)
        # Each part has an autocast of its own: weights that one has cast without gradients are of no use to another.
        with self.autocast(), self._dropping(part.noise):
            outputs: dict[str, Tensor] = self.layout.forward(image=self.pixels(part.pixels), text=tokens)
        return outputs

    def statistics(self, batch: Batch) -> dict[str, list[float]]:
        """layer_statistics of a few images and different captions of the batch."""
        pixels = self.pixels(batch.pixels[:MONITORED])
        tokens = torch.unique(batch.tokens, dim=0)[:MONITORED].to(self.device)
        with self.autocast(), self._dropping(self._patch_noise(0, pixels)):
            return layer_statistics(self.model, pixels, tokens)
