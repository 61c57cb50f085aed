"""The recipe of a run: dataclasses, read from TOML, validated, written back to TOML.

Every number of a training run is a field here, with the paper's value as its default. A recipe file states only what
differs. `docs/recipes.md` is the reference; `diffclip train RECIPE.toml --help` prints the same from these docstrings.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tomli_w
from pydantic import Field, TypeAdapter, ValidationError

from diffclip.data.options import Located
from diffclip.errors import UserError, describe
from diffclip.model_settings import STRICT, Count, Model
from diffclip.models.library_config import LibraryConfig
from diffclip.models.presets import ModelConfig
from diffclip.recipe_files import find_recipe, parse_toml, read_toml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PositiveInt = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Located):
    """One data set: where it lies and how it is read. The fields are those of `diffclip.data.sources.open_source`."""

    __pydantic_config__ = STRICT

    path: str = ""
    """A folder, a file, a pattern of shards, or `scenes:SPLIT`."""
    classnames: tuple[str, ...] | None = None
    """Names of the classes of labelled data, in label order; by default the data set's own."""
    templates: tuple[str, ...] | None = None
    """Prompts that turn a class name into a caption, `{c}` being the name."""
    holdout: Count = 0
    """How many examples, a fixed random choice, `part = "train"` leaves out and `part = "holdout"` is made of."""
    part: Literal["all", "train", "holdout"] = "all"


@dataclass(frozen=True, kw_only=True)
class Data:
    """Training data, the order they come in, and their augmentation."""

    __pydantic_config__ = STRICT

    train: SourceConfig = field(default_factory=SourceConfig)
    examples: Count = 0
    """How many training examples there should be; another count is warned of, and a dry run without the data uses this.
    0: not known."""
    workers: Count | Literal["auto"] = "auto"
    """Processes that decode and augment. The batches are the same for any number. `auto`: 2 without a GPU; with one as
    many as a process has cores, 16 at most, and no more than shared memory holds batches for."""
    scale: tuple[Fraction, Fraction] = (0.5, 1.0)
    """Share of the image's area that a random crop keeps."""
    ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    """Aspect ratio of a random crop."""
    flip: Fraction = 0.0
    """Probability of a horizontal flip. The paper's recipe has none."""
    max_skipped: Fraction = 0.1
    """Share of unreadable images above which the run stops; in an evaluation after it, the command then ends badly."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What is learned from a batch of pairs."""

    __pydantic_config__ = STRICT

    kind: Literal["contrastive", "sigmoid"] = "contrastive"
    """`contrastive`: CLIP's, each image against all captions and the reverse. `sigmoid`: SigLIP's, every pair alone,
    with a bias that is learned; the model then starts at the temperature and the bias of Zhai et al. 2023."""
    shared_captions: bool = False
    """Equal captions in a batch share their images: none is a negative of the others. Labelled data need it."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW or Muon and its schedule: linear warm-up, then a cosine, both updated every step."""

    __pydantic_config__ = STRICT

    kind: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    """`adamw_8bit`: both moments of matrices in 8 bits (bitsandbytes), 2 bytes a parameter for 8. `muon`: the matrices
    of blocks step by Muon, as far as AdamW would step, and keep 4 bytes a parameter; the rest by AdamW."""
    lr: Positive = 5e-4
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.5
    """On matrices only: biases, norms, λ, positions of one dimension and the temperature are left alone."""
    warmup_epochs: NonNegative = 1.0
    warmup_lr: NonNegative = 1e-6
    """Where the warm-up starts."""
    final_lr: NonNegative = 1e-5
    """Where the cosine ends."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long, in what precision, and what is written down meanwhile."""

    __pydantic_config__ = STRICT

    epochs: Positive = 40.0
    """Passes over the training data; a fraction is allowed."""
    batch_size: PositiveInt = 4096
    """Of all processes together."""
    micro_batch: Count = 0
    """Images whose activations are kept at a time, a process; 0: the whole batch. Fewer give the same gradients in the
    memory of a small batch, for a third more work (gradient caching)."""
    layout: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: the whole model on each (DDP), or weights, gradients and moments in shards (FSDP2)."""
    precision: Literal["auto", "bf16", "fp16", "float32"] = "auto"
    """`auto`: bfloat16 autocast where the device computes in it, float16 on NVIDIA GPUs that have tensor cores and no
    bfloat16, else float32. `fp16`: float16 autocast; gradients are scaled on their way back, and a step in which they
    overflow changes nothing."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the blocks of both towers with torch.compile. `auto`: on GPUs for which Triton writes kernels."""
    checkpoint_activations: bool = False
    """Keep only the input of every block, and run the block again in the backward pass: less memory, a third more work.
    """
    image_sizes: tuple[tuple[Count, PositiveInt], ...] = ()
    """[[0, 112], [30, 224]]: from which epoch on images have how many pixels on an edge, the last being the model's
    size; by default that all the time. The position embedding is resampled."""
    undropped_epochs: NonNegative = 0.0
    """Epochs at the end in which no patch is dropped, where the model has `patch_dropout`: as it will be used."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of an exponential moving average of the weights, such as 0.999, which is then what is evaluated and saved;
    0: none."""
    log_every: PositiveInt = 20
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: PositiveInt = 1000
    """Steps between two checkpoints; the last step is always saved."""
    keep_last: PositiveInt = 2
    """How many of the newest checkpoints stay."""
    keep_best: Count = 0
    """How many of the best ones stay too; a checkpoint is then written at every evaluation."""
    best_by: str = ""
    """Which are best: DATASET/METRIC of an evaluation during training, such as "cifar10/acc1"; higher is better."""
    monitor_every: PositiveInt = 200
    """Steps between two measurements by layer: attention, residual stream, gradients (docs/monitoring.md)."""
    evaluate_every: NonNegative = 0.0
    """Epochs between two evaluations during training; 0: only at the end."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What of the model is trained, and how fast: for fine-tuning. By default all of it, alike (docs/tuning.md)."""

    __pydantic_config__ = STRICT

    vision_rate: NonNegative = 1.0
    """Learning rate of the image tower and its projection, as a multiple of optimizer.lr; 0: they stay as they are
    (LiT, Zhai et al. 2022)."""
    text_rate: NonNegative = 1.0
    """Of the text tower and its projection."""
    lambda_rate: NonNegative = 1.0
    """Of what makes λ and gates, times that of the tower."""
    lambda_warmup_epochs: NonNegative = 0.0
    """Epochs in which λ rises from nothing to what it is, linearly. A checkpoint from within has the whole λ."""
    last_blocks: Count = 0
    """Train so many blocks at the end of each tower, and what comes after them; 0: all. Earlier ones stay."""
    lora_rank: Count = 0
    """Train adapters of this rank (LoRA, Hu et al. 2021; peft) beside the matrices of the blocks, with the joint
    projections, λ and the temperature; the rest stays. What is saved has the adapters merged. 0: none."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One data set that the model is judged on while and after it trains."""

    __pydantic_config__ = STRICT

    name: str
    """The data set's name in results and curves."""
    data: SourceConfig = field(default_factory=SourceConfig)
    """Without a path: another split or part of the training data."""
    tasks: tuple[str, ...] = ("zero_shot",)
    """Of zero_shot and retrieval."""

    def source(self, train: SourceConfig) -> SourceConfig:
        """Its data; without a path of its own it is of another part of the training data."""
        return self.data if self.data.path else dataclasses.replace(self.data, path=train.path, format=train.format)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run."""

    __pydantic_config__ = STRICT

    seed: Count = 0
    """Of the initial weights, the data's order and the augmentation."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    training: Training = field(default_factory=Training)
    tuning: Tuning = field(default_factory=Tuning)
    evaluation: tuple[Evaluation, ...] = ()


_RECIPE: TypeAdapter[Recipe] = TypeAdapter(Recipe)


def load_recipe(path: str | Path, *, typed: bool = True) -> Recipe:
    """Read a recipe: a file of any name, or the name of one that the package ships.

    typed: whether a person named it, who may name a pipe too.

    Raises UserError where it is missing, is not TOML, or holds a wrong key or value.
    """
    return validate(read_toml(find_recipe(path), "recipe", typed=typed), where=str(path))


def parse_recipe(text: str, where: str) -> Recipe:
    """A recipe from TOML; `where` names its origin in the error. Raises UserError as `load_recipe` does."""
    return validate(parse_toml(text, where), where)


def validate(table: Mapping[str, Any], where: str) -> Recipe:
    """A Recipe from plain tables; `where` names their origin in the error."""
    try:
        recipe = _RECIPE.validate_python(table)
    except ValidationError as error:
        raise UserError(f"{where}: {describe(error)}") from None
    config = recipe.model.resolve()
    _check_tuning(recipe, config, where)
    if isinstance(config, LibraryConfig):
        _check_library(recipe, where)
        _check_best(recipe.training, where)
        return recipe
    if recipe.training.undropped_epochs and not config.patch_dropout:
        raise UserError(
            f"{where}: training.undropped_epochs: set model.overrides.patch_dropout, of which it is the end"
        )
    _check_sizes(recipe.training.image_sizes, config, where)
    _check_best(recipe.training, where)
    if recipe.training.precision == "fp16" and recipe.training.layout == "fsdp":
        raise UserError(
            f'{where}: training.precision = "fp16" does not go with training.layout = "fsdp": take "ddp", or "float32"'
        )
    if recipe.optimizer.kind != "adamw" and recipe.training.layout == "fsdp":
        raise UserError(
            f'{where}: optimizer.kind = "{recipe.optimizer.kind}" does not go with training.layout = "fsdp": '
            'take "ddp", or "adamw"'
        )
    return recipe


def _check_tuning(recipe: Recipe, config: ModelConfig | LibraryConfig, where: str) -> None:
    tuning, training = recipe.tuning, recipe.training
    if tuning.vision_rate == tuning.text_rate == 0:
        raise UserError(f"{where}: tuning.vision_rate and tuning.text_rate are both 0: nothing would be trained")
    if tuning.lora_rank and (training.ema or training.layout == "fsdp"):
        other = "training.ema" if training.ema else 'training.layout = "fsdp"'
        raise UserError(f"{where}: tuning.lora_rank does not go with {other}: leave one of them out")
    if isinstance(config, ModelConfig):
        kinds, depth = {config.vision_attention, config.text_attention}, min(config.vision_depth, config.text_depth)
        if tuning.last_blocks > depth:
            raise UserError(f"{where}: tuning.last_blocks = {tuning.last_blocks}: a tower has {depth} blocks")
    else:
        kinds = {config.attention}
        for name in ("last_blocks", "lora_rank"):
            if getattr(tuning, name):
                raise UserError(f"{where}: tuning.{name} is for models of ours: leave it out")
    if tuning.lambda_rate != 1 and kinds <= {"standard", "standard_normed", "standard_wide"}:
        raise UserError(f"{where}: tuning.lambda_rate: {recipe.model.name} has neither λ nor gates")
    if not tuning.lambda_warmup_epochs:
        return
    if kinds <= {"standard", "standard_normed", "standard_wide", "gated", "mdgsa"}:
        raise UserError(f"{where}: tuning.lambda_warmup_epochs: {recipe.model.name} has no λ that could rise from 0")
    if tuning.lambda_warmup_epochs > training.epochs:
        raise UserError(
            f"{where}: tuning.lambda_warmup_epochs = {tuning.lambda_warmup_epochs:g} is longer than training"
        )
    if training.compile is True:
        raise UserError(
            f"{where}: tuning.lambda_warmup_epochs does not go with training.compile: every step would compile"
        )
    if recipe.model.start and "differential_v2" in kinds:
        raise UserError(
            f"{where}: tuning.lambda_warmup_epochs: a model that starts from {recipe.model.start} with "
            "differential_v2 gives what it gave with its own λ alone: leave it out, or take differential_gated"
        )


def _check_library(recipe: Recipe, where: str) -> None:
    """What the loop does to models of ours alone."""
    training, default = recipe.training, Training()
    for name in ("image_sizes", "undropped_epochs", "compile", "layout"):
        if getattr(training, name) not in (getattr(default, name), False):
            raise UserError(
                f"{where}: training.{name} is for models of ours, and {recipe.model.name} is made of transformers' "
                "classes: leave it out"
            )
    if recipe.optimizer.kind == "adamw_8bit":
        raise UserError(f'{where}: optimizer.kind = "adamw_8bit" is for models of ours: take "adamw"')


def _check_sizes(stages: Sequence[tuple[int, int]], config: ModelConfig, where: str) -> None:
    epochs = [epoch for epoch, _ in stages]
    if not stages:
        return
    if epochs[0] != 0 or any(a >= b for a, b in pairwise(epochs)) or stages[-1][1] != config.image_size:
        raise UserError(
            f"{where}: training.image_sizes: expected [epoch, size] from epoch 0 on, later epochs after earlier ones, "
            f"and last the model's {config.image_size}, found {[list(stage) for stage in stages]}"
        )
    for _, size in stages:
        if size % config.patch_size or size > config.image_size:
            raise UserError(
                f"{where}: training.image_sizes: {size} is no multiple of the patch size {config.patch_size} "
                f"up to the model's {config.image_size}"
            )


def _check_best(options: Training, where: str) -> None:
    """What best_by may name depends on the tasks: `evaluation.run.hooks.check_evaluations` sees to that."""
    if options.keep_best and not (options.best_by and options.evaluate_every):
        raise UserError(
            f"{where}: training.keep_best = {options.keep_best} needs training.best_by, the metric that decides, and "
            "training.evaluate_every above 0"
        )


def same_run(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes compute the same: they may differ in what is kept, in who prepares the data, and in how the
    work is cut to fit the machines, which changes roundings alone."""
    default = Recipe()
    return _computed(one, default) == _computed(other, default)


def _computed(recipe: Recipe, default: Recipe) -> Recipe:
    names = ("checkpoint_every", "keep_last", "keep_best", "best_by", "micro_batch", "layout", "compile")
    free = {name: getattr(default.training, name) for name in names}
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, workers=default.data.workers),
        training=dataclasses.replace(recipe.training, **free),
    )


def revalidate(recipe: Recipe) -> Recipe:
    """Check a recipe whose fields were replaced on the command line."""
    return validate(dataclasses.asdict(recipe), where="command line")


def to_toml(recipe: "DataclassInstance") -> str:
    """The whole recipe, defaults included, as TOML that reads back to an equal one."""
    return tomli_w.dumps(_plain(dataclasses.asdict(recipe)))


def _plain(value: Any) -> Any:
    """TOML has no null and no tuple: a field that is None is left out, which means its default, None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
