"""One training step: encode, gather, loss, backward, optimizer.

`TrainState.step` shows all of it for a batch that fits into memory. For a larger one `gradients.py` does the middle,
from encode to backward, in micro-batches; the gradients are the same.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffclip import config
from diffclip.data.loading.loader import Batch
from diffclip.data.transforms import normalise
from diffclip.distributed import default_device, get_world
from diffclip.errors import UserError
from diffclip.models.clip import CLIP
from diffclip.models.library import Trainable
from diffclip.models.library_config import LibraryConfig
from diffclip.models.patch_dropout import PatchDropout, patch_noise
from diffclip.models.presets import ModelConfig
from diffclip.models.weights import store as weights
from diffclip.training import checkpoint
from diffclip.training.ema import WeightAverage
from diffclip.training.gradients import backward, cached_backward
from diffclip.training.loss import LOSSES, Pairing, backward_by_rows, gather, scatter_gradients
from diffclip.training.monitor import Monitor
from diffclip.training.optimizer import learning_rate, make_optimizer
from diffclip.training.parallel import full_tensor, parallelize
from diffclip.training.statistics import layer_statistics
from diffclip.training.tuning import has_adapters, merged, prepare, scale_lambda

# Statistics by layer are of this many images and captions of the current batch.
MONITORED = 8
# The compute capability of the first GPUs with tensor cores, which multiply float16; Triton knows none before them.
TENSOR_CORES = (7, 0)
# A scale at which gradients still overflow is no matter of float16's range: they are left as they are, for the loop to
# find.
SMALLEST_SCALE = 1.0
# The last number of a seed says what is drawn from it. The loader's are 1 and 2.
_PATCHES = 3


@dataclass(frozen=True)
class Schedule:
    """A recipe's epochs as steps."""

    steps_per_epoch: int
    steps: int
    warmup_steps: int

    @classmethod
    def of(cls, recipe: config.Recipe, examples: int) -> "Schedule":
        """Raises UserError where the data do not fill one batch."""
        per_epoch = examples // recipe.training.batch_size
        if per_epoch == 0:
            raise UserError(
                f"{recipe.data.train.path} has {examples} examples, fewer than one batch of "
                f"{recipe.training.batch_size}; lower training.batch_size"
            )
        steps = max(1, round(recipe.training.epochs * per_epoch))
        return cls(per_epoch, steps, min(steps, round(recipe.optimizer.warmup_epochs * per_epoch)))


def autocast_dtype(precision: str, device: torch.device, *, scaling: bool = False) -> torch.dtype | None:
    """What matrices are multiplied in: bfloat16, float16, or None for float32.

    `auto` is bfloat16 where the device has it; with `scaling`, of gradients, without which small ones are 0 in float16,
    that on GPUs which have tensor cores for it alone.
    """
    if precision == "auto":
        if device.type == "cuda":  # a T4 or V100 emulates bfloat16, slowly
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return torch.bfloat16
            return torch.float16 if scaling and torch.cuda.get_device_capability(device) >= TENSOR_CORES else None
        capabilities = torch.cpu.get_capabilities()
        return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else None
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def training_dtype(training: config.Training, device: torch.device) -> torch.dtype | None:
    """autocast_dtype of a recipe. Of shards each process sees the overflow of its own: they are not scaled."""
    return autocast_dtype(training.precision, device, scaling=training.layout == "ddp")


def worth_compiling(model: Trainable, tuning: config.Tuning, device: torch.device) -> bool:
    """Whether `compile = "auto"` compiles: where Triton can, blocks of ours, none of which changes by the step."""
    return (
        device.type == "cuda"
        and isinstance(model, CLIP)
        and not tuning.lambda_warmup_epochs
        and torch.cuda.get_device_capability(device) >= TENSOR_CORES
        and find_spec("triton") is not None
    )


@dataclass(frozen=True)
class MicroBatch:
    """What is encoded at a time: some images of a batch, and some captions."""

    pixels: Tensor  # (b, 3, S, S) uint8
    tokens: Tensor  # (c, L) int64
    noise: Tensor | None  # (b, patches) int64


class TrainState:
    """What a step changes: the model, its optimizer and the average of its weights. `loop.train` drives it.

    Each option is a part of a recipe, see `setup.new_state`. With several processes each rank has its own rows of a
    batch.
    """

    def __init__(
        self,
        model: Trainable,
        schedule: Schedule,
        *,
        optimizer: config.Optimizer,
        loss: config.Loss,
        training: config.Training,
        tuning: config.Tuning = config.Tuning(),  # noqa: B008  it is frozen
        seed: int,
    ) -> None:
        self.schedule, self.world, self.device = schedule, get_world(), default_device()
        self.dtype = training_dtype(training, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type) if self.dtype == torch.float16 else None
        self.model = model.to(self.device).train()
        self.model.set_grad_checkpointing(training.checkpoint_activations)
        dropout = model.visual.patch_drop if isinstance(model, CLIP) else None
        self._patch_drop = dropout if isinstance(dropout, PatchDropout) else None
        self._patch_share = model.config.patch_dropout if isinstance(model, CLIP) else 0.0
        if training.compile is True or (training.compile == "auto" and worth_compiling(model, tuning, self.device)):
            self.model.compile()
        prepare(self.model, tuning)
        self._lambda_steps = round(tuning.lambda_warmup_epochs * schedule.steps_per_epoch)
        self.layout = parallelize(self.model, training.layout, self.world, self.device)
        self.optimizer = make_optimizer(self.model, optimizer, tuning, self.dtype)
        self.average = WeightAverage(self.model, training.ema) if training.ema else None
        self.loss_kind, self.shared_captions = loss.kind, loss.shared_captions
        self._rates, self._micro_batch, self._seed = optimizer, training.micro_batch, seed
        self._last_dropping = schedule.steps - round(training.undropped_epochs * schedule.steps_per_epoch)

    def step(self, number: int, batch: Batch) -> tuple[float, float]:
        """One optimizer step on this rank's rows of the batch → (loss of the whole batch, learning rate).

        number: of the step, from 0. A loss that is not finite changes no weight, nor do gradients that float16 cannot
        hold: of these the scale is halved.
        """
        rate = self._begin(number)
        micro_batches, pairing = self._split(number, batch)
        loss_of = LOSSES[self.loss_kind]
        if len(micro_batches) > 1:
            loss = cached_backward(
                self.encode, micro_batches, pairing, loss_of, self.world, self.layout.accumulating, self._scaled
            )
        else:
            features = self.encode(micro_batches[0])  # (b, embed_dim) of this rank's images and captions
            gathered = gather(features, pairing, self.world)  # (B, embed_dim) of all ranks
            loss = backward_by_rows(loss_of, gathered, self.world)  # of the loss in the gathered features
            gradients = scatter_gradients(gathered, features, pairing, self.world)  # in this rank's features
            if math.isfinite(loss):
                backward(features.values(), self._scaled(gradients))  # in the weights
        if math.isfinite(loss):
            self.layout.finish()
            if self._update():
                self.model.clamp_logit_scale()
                if self.average is not None:
                    self.average.update(self.model, number + 1)
        return loss, rate

    def encode(self, part: MicroBatch) -> dict[str, Tensor]:
        """The model's outputs: normalised features of images and captions (·, embed_dim), and scalars."""
        # Each part has an autocast of its own: weights that one has cast without gradients are of no use to another.
        with self.autocast(), self._dropping(part.noise):
            outputs: dict[str, Tensor] = self.layout.forward(image=self._normalised(part.pixels), text=part.tokens)
        return outputs

    def autocast(self) -> torch.autocast:
        """Matrix products in the run's precision."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    @property
    def config(self) -> ModelConfig | LibraryConfig:
        return self.model.config

    def figures(self) -> dict[str, Any]:
        """The inverse temperature, λ of each layer by tower, and by what gradients are multiplied in float16."""
        lambdas = {f"lambda_{tower}": full_tensor(values).tolist() for tower, values in self.model.lambdas().items()}
        scale = {} if self.scaler is None else {"gradient_scale": self.scaler.get_scale()}
        return {"logit_scale": self.model.logit_scale.exp().item(), **lambdas, **scale}

    def monitor(self, batch_size: int) -> Monitor:
        return Monitor(batch_size=batch_size, warmup_steps=self.schedule.warmup_steps)

    def evaluation_weights(self) -> AbstractContextManager[None]:
        """Inside the `with` the model has the weights that are evaluated and kept: their average where there is one."""
        return nullcontext() if self.average is None else self.average.in_place(self.model)

    @contextmanager
    def evaluated(self) -> Iterator[Trainable]:
        """Inside the `with`, the whole model in evaluation mode, with `evaluation_weights`."""
        with self.evaluation_weights():
            model = self.layout.plain()
            model.eval()
            yield model
            model.train()

    def tensors(self) -> checkpoint.Tensors:
        return checkpoint.state_tensors(self.model, self.optimizer, self.average, self.scaler)

    def restore(self, run: Path) -> dict[str, Any] | None:
        return checkpoint.restore(run, self.model, self.optimizer, self.average, self.scaler)

    def save(self, run: Path) -> None:
        """Write the model for `diffclip.load`."""
        with self.evaluation_weights():
            model = self.layout.plain()
            if self.world.is_main and has_adapters(model):
                weights.write(
                    {name: tensor.cpu().contiguous() for name, tensor in merged(model).items()},
                    model.config,
                    run,
                    step=self.schedule.steps,
                )
            elif self.world.is_main:
                weights.save(model, run, step=self.schedule.steps)

    def statistics(self, batch: Batch) -> dict[str, list[float]]:
        """layer_statistics of a few images and different captions of the batch; none of another library's layers."""
        if not isinstance(self.model, CLIP):
            return {}
        pixels = self._normalised(batch.pixels[:MONITORED])
        tokens = torch.unique(batch.tokens, dim=0)[:MONITORED].to(self.device)
        with self.autocast(), self._dropping(self._patch_noise(0, pixels)):
            return layer_statistics(self.model, pixels, tokens)

    def _begin(self, number: int) -> float:
        """Set the step's learning rate, which is returned, and its patch dropout; drop the gradients of the last."""
        schedule = self.schedule
        rate = learning_rate(number, steps=schedule.steps, warmup_steps=schedule.warmup_steps, config=self._rates)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("rate", 1.0)
        if self._lambda_steps:
            scale_lambda(self.model, min(1.0, (number + 1) / self._lambda_steps))
        # Before the forward pass, so that these gradients are gone when its activations come.
        self.optimizer.zero_grad(set_to_none=True)
        if self._patch_drop is not None:
            dropping = number < self._last_dropping
            self._patch_drop.prob = self._patch_share if dropping else 0.0
        return rate

    def _scaled(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Gradients in the features, large enough to pass back through float16."""
        return gradients if self.scaler is None else [self.scaler.scale(gradient) for gradient in gradients]

    def _update(self) -> bool:
        """The optimizer's step. False where gradients have overflowed, of which none is left, and no weight changes."""
        if self.scaler is None:
            self.optimizer.step()
            return True
        before = self.scaler.get_scale()
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= before:
            return True
        if before > SMALLEST_SCALE:
            self.optimizer.zero_grad(set_to_none=True)
        return False

    def _split(self, number: int, batch: Batch) -> tuple[list[MicroBatch], Pairing]:
        """This rank's rows of the batch in micro-batches, and which caption is whose."""
        size = len(batch.pixels)
        count = -(-size // (self._micro_batch or size))
        texts, pairing = batch.tokens, Pairing()
        if self.shared_captions:
            # Labelled data repeat few captions: each is encoded once, with the same gradients as encoding all.
            texts, place = torch.unique(texts, dim=0, return_inverse=True)
            pairing = Pairing(place.to(self.device), batch.groups.to(self.device))
            # Every part has some, so that all ranks run the same towers at the same time; these are nobody's.
            texts = torch.cat([texts, texts[:1].expand(max(0, count - len(texts)), -1)])
        noise = self._patch_noise(number, batch.pixels)
        noises = [None] * count if noise is None else noise.tensor_split(count)
        parts = zip(batch.pixels.tensor_split(count), texts.tensor_split(count), noises, strict=True)
        return [MicroBatch(*part) for part in parts], pairing

    def _normalised(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 → normalised floats on the device."""
        settings = self.model.config
        return normalise(pixels.to(self.device, non_blocking=True), settings.image_mean, settings.image_std)

    def _patch_noise(self, number: int, pixels: Tensor) -> Tensor | None:
        """(B, patches) for patch dropout, a function of seed, step and row; None for a model without it."""
        if self._patch_drop is None:
            return None
        assert isinstance(self.model, CLIP)
        size, patches = len(pixels), (pixels.shape[-1] // self.model.config.patch_size) ** 2
        return patch_noise((self._seed, number, 0, _PATCHES), self.world.rank * size, size, patches)

    @contextmanager
    def _dropping(self, noise: Tensor | None) -> Iterator[None]:
        """Patch dropout as `noise` says."""
        if noise is None or self._patch_drop is None:
            yield
            return
        self._patch_drop.noise = noise.to(self.device, non_blocking=True)
        try:
            yield
        finally:
            self._patch_drop.noise = None
