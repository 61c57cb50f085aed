"""A recipe on some accelerators: work, memory, time and cost, and which of them limits it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

import tomli
import torch

from diffclip.config import Recipe
from diffclip.errors import UserError
from diffclip.models.clip import CLIP, count_parameters
from diffclip.models.presets import ModelConfig, model_config
from diffclip.plan import flops
from diffclip.plan.hardware import Machines, accelerators
from diffclip.training import dry_run
from diffclip.training.step import Schedule

IMAGES_PER_CORE = 454.0
"""Images a second that one core decodes, crops and resizes to 224: docs/performance.md, "Loading images"."""
UTILISATION = 0.14
"""Share of the peak that published runs of CLIP reach: see `published`."""
USABLE = 0.92
"""Of an accelerator's memory: the rest goes to the driver, to fragments and to what operators need for a moment."""
DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What a recipe does not say."""

    utilisation: float = UTILISATION
    price: float | None = None
    """Dollars for an hour of one accelerator; None: the table's."""
    cores: int | None = None
    """Processor cores for each accelerator; None: the table's."""
    images_per_core: float = IMAGES_PER_CORE
    caption_tokens: int | None = None
    """Tokens that a batch's captions are cut at; None: the context length."""

    def __post_init__(self) -> None:
        for name, low, high in (("utilisation", 0, 1), ("images_per_core", 0, 1e9), ("price", 0, 1e9)):
            value = getattr(self, name)
            if value is not None and not low < value <= high:
                raise UserError(f"--{name.replace('_', '-')} {value}: give a number above {low} and at most {high:g}")
        for name in ("cores", "caption_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value}: give a number of at least 1")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on each accelerator, as DDP has them."""

    state: int
    """Weights, gradients, AdamW's moments, and the average of the weights where there is one."""
    activations: float
    """Kept for the backward pass, with as many images at a time as `micro_batch`."""
    capacity: float
    micro_batch: int
    """Images whose activations are kept at a time on each."""
    fitting: int
    """The largest power of two, or all of them, of which the activations fit; 0: not even one image's do."""

    @property
    def fits(self) -> bool:
        return self.state + self.activations <= USABLE * self.capacity


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one run would take."""

    parameters: int
    examples: int
    steps: int
    batch_size: int
    work: Mapping[str, float]
    """Part → operations of a step, forward and backward; the mean, where steps differ."""
    again: float
    """Operations of a step that recomputing adds."""
    memory: Memory
    seconds: Mapping[str, float]
    """Of a step, for each of what may limit it: compute, loading, network, memory bandwidth."""
    machines: Machines
    utilisation: float
    dollars_an_hour: float | None
    """Of one accelerator."""

    @property
    def operations(self) -> float:
        """Of a step, without what is computed again."""
        return sum(self.work.values())

    @property
    def limit(self) -> str:
        return max(self.seconds, key=lambda what: self.seconds[what])

    @property
    def step_seconds(self) -> float:
        """The slowest of what goes on at the same time."""
        return max(self.seconds.values())

    @property
    def days(self) -> float:
        return self.steps * self.step_seconds / DAY

    @property
    def accelerator_days(self) -> float:
        return self.days * self.machines.count

    @property
    def dollars(self) -> float | None:
        return None if self.dollars_an_hour is None else self.accelerator_days * 24 * self.dollars_an_hour


def plan(recipe: Recipe, machines: Machines, assumptions: Assumptions = Assumptions()) -> Plan:
    """Raises UserError where the recipe's data are not here and it states no `data.examples`."""
    config = recipe.model.resolve_clip("diffclip plan")
    examples, _ = dry_run.training_examples(recipe)
    schedule = Schedule.of(recipe, examples)
    batch, kind = recipe.training.batch_size, machines.kind
    if batch % machines.count:
        raise UserError(f"a batch of {batch} cannot be divided among {machines.count} accelerators")
    model = _on_shapes(config)
    parameters = count_parameters(model)["total"]
    work = {part: batch * n for part, n in operations(recipe, assumptions.caption_tokens).items()}
    memory = _memory(recipe, machines, dry_run.state_bytes(recipe, model))
    cached = recipe.training.micro_batch and recipe.training.micro_batch < batch // machines.count
    blocks = sum(n for part, n in work.items() if ": attention" in part or ": MLP" in part)
    towers = sum(n for part, n in work.items() if part != "loss")
    again = (towers / 3 if cached else 0) + (blocks / 3 if recipe.training.checkpoint_activations else 0)
    cores = assumptions.cores or kind.cores
    shared = (machines.count - 1) / machines.count
    # A ring: each sends its part of the gradients twice round; and the features of its pairs to all others.
    sent = 2 * shared * 4 * parameters + shared * 2 * 4 * batch * config.embed_dim
    # AdamW reads weight, gradient and two moments and writes three of them; activations are written and read once.
    moved = 7 * 4 * parameters + 2 * memory.activations * (batch / machines.count / memory.micro_batch)
    seconds = {
        "compute": (sum(work.values()) + again) / (machines.count * kind.peak * assumptions.utilisation),
        "loading": batch / (machines.count * cores * assumptions.images_per_core),
        "network": sent / machines.slowest_link if machines.count > 1 else 0.0,
        "memory bandwidth": moved / kind.bandwidth,
    }
    return Plan(
        parameters=parameters,
        examples=examples,
        steps=schedule.steps,
        batch_size=batch,
        work=work,
        again=again,
        memory=memory,
        seconds=seconds,
        machines=machines,
        utilisation=assumptions.utilisation,
        dollars_an_hour=kind.dollars if assumptions.price is None else assumptions.price,
    )


def operations(recipe: Recipe, caption_tokens: int | None = None) -> dict[str, float]:
    """Part → operations of one pair, forward and backward, averaged over what a recipe changes while it trains."""
    config, options = recipe.model.resolve_clip("diffclip plan"), recipe.training
    undropped = max(0.0, options.epochs - options.undropped_epochs)
    stages = [stage for stage in options.image_sizes or ((0, config.image_size),) if stage[0] < options.epochs]
    changes = sorted({0.0, undropped, options.epochs, *(float(epoch) for epoch, _ in stages)})
    found: dict[str, float] = {}
    for start, end in pairwise(changes):
        size = [size for epoch, size in stages if epoch <= start][-1]
        stage = dataclasses.replace(config, image_size=size)
        parts = flops.training(stage, options.batch_size, caption_tokens, dropping=start < undropped)
        for part, count in parts.items():
            found[part] = found.get(part, 0.0) + count * (end - start) / options.epochs
    return found


@cache
def _on_shapes(config: ModelConfig) -> CLIP:
    with torch.device("meta"):
        return CLIP(config)


def _memory(recipe: Recipe, machines: Machines, state: int) -> Memory:
    """Accelerators compute in bfloat16 where the recipe leaves it open, whatever this machine's processor does."""
    if recipe.training.undropped_epochs:
        overrides = {**recipe.model.overrides, "patch_dropout": 0.0}
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, overrides=overrides))
    if recipe.training.precision == "auto":
        recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, precision="bf16"))
    batch = recipe.training.batch_size
    images = batch // machines.count
    micro = min(images, recipe.training.micro_batch or images)
    growth, fixed = dry_run.activation_growth(recipe)
    room = USABLE * machines.kind.memory - state - fixed
    most = int(max(0.0, room) // growth)
    fitting = images if most >= images else 1 << (most.bit_length() - 1) if most else 0
    return Memory(
        state=state,
        activations=growth * micro + fixed,
        capacity=machines.kind.memory,
        micro_batch=micro,
        fitting=fitting,
    )


@dataclass(frozen=True, kw_only=True)
class Published:
    """Somebody's run, and what it says about utilisation."""

    name: str
    days: float
    """Of one accelerator."""
    on: str
    utilisation: float
    """Operations of the run by the peak over those days."""
    source: str


def published() -> list[Published]:
    """Runs whose hours are known: the paper's and open_clip's."""
    tables: list[dict[str, Any]] = tomli.loads(files(__package__).joinpath("published.toml").read_text("utf-8"))["run"]
    return [
        Published(
            name=run["name"],
            days=run["days"],
            on=run["on"],
            utilisation=run["samples"]
            * sum(flops.training(model_config(run["preset"]), 4096).values())
            / (run["days"] * DAY * accelerators()[run["on"]].peak),
            source=run["source"],
        )
        for run in tables
    ]


SCALES = {"CC3M": (2_300_000, 40), "CC12M": (7_900_000, 40), "LAION-400M": (413_000_000, 32)}
"""Pairs and epochs: the paper's for the first two, open_clip's for the third."""
SIZES = ("s16", "b32", "b16", "l14", "h14")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One size of model on every data set."""

    preset: str
    parameters: int
    operations: float
    """Of one pair, forward and backward."""
    days: Mapping[str, float]
    """Data set → days of one accelerator."""
    dollars: Mapping[str, float | None]


def scales(prefix: str, machines: Machines, assumptions: Assumptions = Assumptions()) -> list[Scale]:
    """ViT-S to ViT-H over CC3M to LAION-400M, at the batch of 4,096 and where compute is the limit.

    prefix: "clip_vit_" or "diffclip_vit_".
    """
    kind = machines.kind
    price = kind.dollars if assumptions.price is None else assumptions.price
    rows = []
    for size in SIZES:
        config = model_config(prefix + size)
        operations = sum(flops.training(config, 4096, assumptions.caption_tokens).values())
        days = {
            name: pairs * epochs * operations / (kind.peak * assumptions.utilisation) / DAY
            for name, (pairs, epochs) in SCALES.items()
        }
        rows.append(
            Scale(
                preset=prefix + size,
                parameters=count_parameters(_on_shapes(config))["total"],
                operations=operations,
                days=days,
                dollars={name: None if price is None else 24 * price * n for name, n in days.items()},
            )
        )
    return rows
