"""What a recipe would do, without doing it: shapes, parameters, steps, schedule, memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from diffclip.config import Recipe
from diffclip.data.formats.stream import is_stream
from diffclip.data.sources import open_source
from diffclip.distributed import default_device
from diffclip.errors import UserError
from diffclip.models.clip import CLIP, count_parameters
from diffclip.training.loss import LOGITS, contrastive_loss
from diffclip.training.optimizer import learning_rate, moment_bytes
from diffclip.training.setup import compare_count
from diffclip.training.step import Schedule, training_dtype

GIB = 2**30
PRECISIONS = {
    None: "float32",
    torch.bfloat16: "bfloat16 autocast",
    torch.float16: "float16 autocast, gradients scaled",
}


@dataclass
class SavedBytes:
    """Bytes that a forward pass keeps for its backward pass; a storage that is kept twice counts once."""

    storages: dict[int, int] = field(default_factory=dict)
    _alive: list[Tensor] = field(default_factory=list)

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.storages[storage._cdata] = storage.nbytes()
        self._alive.append(tensor)  # a freed storage's address could be given to another
        return tensor

    @property
    def total(self) -> int:
        return sum(self.storages.values())


@contextmanager
def saved_bytes() -> Iterator[SavedBytes]:
    counter = SavedBytes()
    with torch.autograd.graph.saved_tensors_hooks(counter.keep, lambda tensor: tensor):
        yield counter


def activation_bytes(recipe: Recipe, batch_size: int) -> int:
    """Bytes of activations kept for the backward pass of one step, found by running it on shapes alone.

    Captions are taken at their full length, so this is an upper bound for the text tower. With checkpointed
    activations: what lies outside the blocks, every block's input, and the largest block, which is run again alone.
    """
    config = recipe.model.resolve_clip("--dry-run")
    dtype = training_dtype(recipe.training, default_device())
    with torch.device("meta"):
        model = CLIP(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        owned = {p.untyped_storage()._cdata for p in model.parameters()}
        pixels = torch.empty(batch_size, 3, config.image_size, config.image_size)
        tokens = torch.zeros(batch_size, config.context_length, dtype=torch.long)
        sizes: list[int] = []  # of each block's input
        marks: list[int] = []  # bytes kept before and after each block

        def kept() -> int:
            return sum(size for address, size in saved.storages.items() if address not in owned)

        def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sizes.append(inputs[0].nbytes)
            marks.append(kept())

        for block in (*model.visual.blocks, *model.text.blocks):
            block.register_forward_pre_hook(before)
            block.register_forward_hook(lambda *_: marks.append(kept()))
        with saved_bytes() as saved, torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            image = model.encode_image(pixels, normalize=True)
            text = model.encode_full_text(tokens, normalize=True)
            contrastive_loss(image, text, model.logit_scale.exp())
    if not recipe.training.checkpoint_activations:
        return kept()
    blocks = [after - first for first, after in zip(marks[::2], marks[1::2], strict=True)]
    return kept() - sum(blocks) + sum(sizes) + max(blocks)


def activation_growth(recipe: Recipe) -> tuple[int, int]:
    """Bytes of activations that each image of a batch adds, and those that exist once: of a step in one process."""
    config, batch = recipe.model.resolve_clip("--dry-run"), recipe.training.batch_size
    # Two small batches give the part that grows with the images; the features of a whole batch, their gradients and
    # the logits that exist at a time come to it.
    small, large = (activation_bytes(recipe, size) for size in (2, 4))
    return (large - small) // 2, 4 * 4 * batch * config.embed_dim + 3 * 4 * min(batch * batch, LOGITS)


def state_bytes(recipe: Recipe, model: CLIP) -> int:
    """Bytes of weights, gradients, the average and the optimizer's moments; `model` may be on the meta device."""
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return (12 if recipe.training.ema else 8) * numbers + moment_bytes(model, recipe.optimizer)


def describe(recipe: Recipe) -> list[tuple[str, str]]:
    """(what, value) rows for a person to read. Raises UserError as training itself would, but for absent data when
    the recipe states `data.examples`."""
    config = recipe.model.resolve_clip("--dry-run")
    with torch.device("meta"):
        model = CLIP(config)
    counts = count_parameters(model)
    examples, where = training_examples(recipe)
    schedule = Schedule.of(recipe, examples)
    batch = recipe.training.batch_size
    at_a_time = min(batch, recipe.training.micro_batch or batch)
    growth, fixed = activation_growth(recipe)
    activations = growth * at_a_time + fixed
    parameters = counts["total"]
    parts = "" if at_a_time == batch else f", {at_a_time} at a time"
    rows = [
        ("model", recipe.model.name),
        ("images", f"({batch}, 3, {config.image_size}, {config.image_size}), patches of {config.patch_size}{parts}"),
        ("captions", f"({batch}, at most {config.context_length})"),
        ("features", f"({batch}, {config.embed_dim}) each; logits ({batch}, {batch})"),
        ("parameters", f"{parameters:,}"),
    ]
    added = [counts[name] for name in ("lambda", "head_norm", "second_query", "gate")]
    if any(added):
        numbers = " + ".join(f"{count:,}" for count in added)
        rows.append(
            ("of them λ, head norms, second queries, gates", f"{numbers} ({sum(added) / parameters:.4%} of all)")
        )
    rows += [
        ("examples", f"{examples:,} {where}"),
        ("steps", f"{schedule.steps:,} = {recipe.training.epochs:g} epochs × {schedule.steps_per_epoch:,}"),
        ("learning rate", "; ".join(_rates(recipe, schedule))),
        (
            "precision",
            PRECISIONS[training_dtype(recipe.training, default_device())],
        ),
        ("memory, weights and optimizer", f"{state_bytes(recipe, model) / GIB:.2f} GiB"),
        ("memory, activations", f"{activations / GIB:.2f} GiB at most, in one process"),
    ]
    return rows


def training_examples(recipe: Recipe) -> tuple[int, str]:
    """How many there are, and where that is known from. Raises UserError without data and without a number."""
    if is_stream(recipe.data.train.path) and recipe.data.examples:
        return recipe.data.examples, "as the recipe states; a stream is not counted"
    if recipe.data.train.path:
        try:
            count = len(open_source(**vars(recipe.data.train)))
        except UserError as error:
            if not recipe.data.examples:
                raise
            return recipe.data.examples, f"as the recipe states; the data cannot be counted: {error}"
        compare_count(recipe, count)
        return count, f"in {recipe.data.train.path}"
    if not recipe.data.examples:
        raise UserError("the recipe names no training data: set data.train.path, or data.examples for a dry run")
    return recipe.data.examples, "as the recipe states, which names no data"


def _rates(recipe: Recipe, schedule: Schedule) -> Iterator[str]:
    for step in sorted({0, schedule.warmup_steps, schedule.steps // 2, schedule.steps - 1}):
        rate = learning_rate(
            min(step, schedule.steps - 1),
            steps=schedule.steps,
            warmup_steps=schedule.warmup_steps,
            config=recipe.optimizer,
        )
        yield f"{rate:.2e} at step {step:,}"
