"""One training step: what a recipe makes of data, model and optimizer."""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffclip.config import Recipe
from diffclip.data.loader import Batch, Loader
from diffclip.data.sources import Source, open_source
from diffclip.data.tokenizer import get_tokenizer
from diffclip.data.transforms import TrainTransform, normalise
from diffclip.errors import UserError
from diffclip.models.clip import CLIP, create_model
from diffclip.models.maps import forward_with_maps
from diffclip.training.loss import contrastive_loss
from diffclip.training.monitor import attention_entropy
from diffclip.training.optimizer import adamw, learning_rate

log = logging.getLogger(__name__)

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
    """Model, optimizer and the step. `train` drives it; the quickstart times it to fit its budget."""

    def __init__(self, recipe: Recipe, schedule: Schedule) -> None:
        self.recipe, self.schedule = recipe, schedule
        self.device = default_device()
        self.dtype = autocast_dtype(recipe.training.precision, self.device)
        self.model = new_model(recipe).to(self.device).train()
        self.model.set_grad_checkpointing(recipe.training.checkpoint_activations)
        if recipe.training.compile:
            self.model.compile()
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
        # Before the forward pass, so that these gradients are gone when its activations come.
        self.optimizer.zero_grad(set_to_none=True)
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
