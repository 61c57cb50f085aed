"""From a recipe to a training run. The recipe is unpacked here: every part gets its own options."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch

from diffclip.config import Model, Recipe, to_toml
from diffclip.data.formats.stream import Stream, is_stream, open_stream, runs_a_command
from diffclip.data.loading.loader import PIECE, Loader
from diffclip.data.loading.stream_loader import StreamLoader
from diffclip.data.loading.workers import worker_count
from diffclip.data.sources import Source, open_source
from diffclip.data.tokenizer import get_tokenizer
from diffclip.data.transforms import ByEpoch, TrainTransform
from diffclip.distributed import default_device, get_world, processes_here
from diffclip.errors import UserError
from diffclip.models.library import Trainable, build
from diffclip.models.library_config import LibraryConfig
from diffclip.models.presets import ModelConfig
from diffclip.models.start import started
from diffclip.training import data_record
from diffclip.training.ahead import Ahead
from diffclip.training.logs import Display, Shown
from diffclip.training.loop import Batches, Evaluator, Loop
from diffclip.training.run_directory import claim_directory
from diffclip.training.step import Schedule, TrainState

log = logging.getLogger(__name__)

# Where SigLIP's bias starts (Zhai et al. 2023): at first almost no pair is taken for a right one.
SIGMOID_BIAS = -10.0


def train(
    recipe: Recipe,
    run: Path,
    *,
    resume: bool = False,
    accept_changed_data: bool = False,
    allow_pipe: bool = False,
    evaluators: Mapping[str, Evaluator] | None = None,
    show: Callable[[str, int], Shown] = Display,
) -> Path:
    """Train to the end of the recipe; returns the run directory, which `diffclip.load` takes.

    evaluators: name → function of the model whose numbers go to metrics.jsonl as `name/metric`. With `resume`, or
    restarted by torchrun, the run goes on from its newest good checkpoint, or begins where it has none. Raises
    UserError where the directory holds another run or is in use, the data cannot be read, or have changed since the
    run began, which `accept_changed_data` lets pass, where a checkpoint cannot be
    written, or the loss stops being finite; Stopped after Ctrl-C or SIGTERM, once a checkpoint is written.

    All ranks of a world that `distributed.joined` has made call this; rank 0 prints and writes.
    """
    world, record = get_world(), to_toml(recipe)
    source = training_source(recipe, allow_pipe=allow_pipe)
    schedule = Schedule.of(recipe, len(source))
    loader: Batches = training_loader(recipe, source)
    if default_device().type == "cuda":
        loader = Ahead(loader, default_device())
    claim: AbstractContextManager[bool] = nullcontext(False)
    if world.is_main:
        facts = data_record.facts_of(recipe, source)
        claim = claim_directory(run, record, resume, facts, accept_changed_data=accept_changed_data)
    with claim as resume:
        resume = world.broadcast(resume)
        Loop(new_state(recipe, schedule), loader, run, recipe.training, evaluators or {}, show).train(resume=resume)
    return run


def check_data(recipe: Recipe, run: Path) -> None:
    """Raise UserError where the data of a finished run have changed since it began; not where they are gone.

    Of a stream nothing can be seen, and none is opened to find that out.
    """
    if is_stream(recipe.data.train.path):
        return
    try:
        source = training_source(recipe)
    except UserError:
        return
    data_record.check(run, data_record.facts_of(recipe, source))


def training_source(recipe: Recipe, *, allow_pipe: bool = False) -> Source:
    """The training data of a recipe. Raises UserError where it names none or they cannot be opened.

    allow_pipe: whether its path may be `pipe:COMMAND`. Without it a recipe, whoever wrote it, runs no command.
    """
    if not recipe.data.train.path:
        raise UserError("the recipe names no training data: set data.train.path, or give --data.train.path PATH")
    if runs_a_command(recipe.data.train.path) and not allow_pipe:
        raise UserError(
            f"the recipe trains on the output of a command, {recipe.data.train.path}, and a recipe runs none by "
            "itself: read it, then type the path after --data.train.path, or give --allow-pipe"
        )
    if is_stream(recipe.data.train.path):
        return open_stream(examples=recipe.data.examples, **vars(recipe.data.train))
    source = open_source(**vars(recipe.data.train))
    compare_count(recipe, len(source))
    return source


def compare_count(recipe: Recipe, count: int) -> None:
    """Warn where the training data have another number of examples than the recipe states."""
    if recipe.data.examples not in (0, count):
        _warn_of_count(recipe.data.train.path, count, recipe.data.examples)


@cache  # a sweep, a quickstart or a table of plans opens the same data again and again: it is said once
def _warn_of_count(path: str, count: int, expected: int) -> None:
    log.warning(f"{path} has {count:,} examples, the recipe expects {expected:,}")


def training_loader(recipe: Recipe, source: Source) -> Loader:
    """Its batches, augmented as the recipe says; of each, the rows of this rank."""
    model, world = recipe.model.resolve(), get_world()
    rows = world.rows_per_rank(recipe.training.batch_size)
    workers = recipe.data.workers
    if workers == "auto":
        workers = worker_count(default_device(), processes_here(), min(rows, PIECE) * 3 * model.image_size**2)
    stages = tuple(
        (epoch, TrainTransform(size, recipe.data.scale, recipe.data.ratio, recipe.data.flip))
        for epoch, size in recipe.training.image_sizes or ((0, model.image_size),)
    )
    loader = StreamLoader if isinstance(source, Stream) else Loader
    return loader(
        source,
        ByEpoch(stages),
        get_tokenizer(model.context_length),
        recipe.training.batch_size,
        part=(world.rank, world.size),
        seed=recipe.seed,
        num_workers=workers,
        max_skipped=recipe.data.max_skipped,
        total=partial(world.total, device=default_device()),
    )


def new_model(settings: ModelConfig | LibraryConfig, seed: int, model: Model) -> Trainable:
    """A model as it is before the first step: with fresh weights, or those of `model.start`, converted if it says so.

    A bias of the logits that the start lacks is fresh.
    """
    torch.manual_seed(seed)
    fresh = build(settings)
    if model.start:
        weights = started(model.start, model.overrides, vars(model.convert)).state_dict()
        fresh.load_state_dict(fresh.state_dict() | weights if "logit_bias" not in weights else weights)
    return fresh


def new_state(recipe: Recipe, schedule: Schedule) -> TrainState:
    """What training starts from: the model, and its optimizer."""
    settings = recipe.model.resolve()
    if recipe.loss.kind == "sigmoid" and settings.logit_bias is None:
        settings = replace(settings, logit_bias=SIGMOID_BIAS)
    return TrainState(
        new_model(settings, recipe.seed, recipe.model),
        schedule,
        optimizer=recipe.optimizer,
        loss=recipe.loss,
        training=recipe.training,
        tuning=recipe.tuning,
        seed=recipe.seed,
    )


def seconds_per_step(recipe: Recipe, source: Source, steps: int) -> float:
    """How long a step of a recipe takes here: the mean of `steps`, after one that also allocates."""
    state = new_state(recipe, Schedule.of(recipe, len(source)))
    batches = training_loader(recipe, source).epoch(0)
    state.step(0, next(batches))
    began = time.monotonic()
    for step in range(1, steps + 1):
        state.step(step, next(batches))
    return (time.monotonic() - began) / steps
