"""Training in stages, each by the project's own loop: exact resume, checkpoints of what is trained alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from diffclip import durable
from diffclip.config import Training, to_toml
from diffclip.distributed import get_world
from diffclip.errors import UserError
from diffclip.training.loop import Loop
from diffclip.training.run_directory import claim_directory
from diffclip.training.step import Schedule
from diffclip.vlm import model as models
from diffclip.vlm.loading import ConversationLoader, Reader, check_samples, open_samples
from diffclip.vlm.recipe import Stage, VlmRecipe, parse_vlm_recipe
from diffclip.vlm.samples import Samples
from diffclip.vlm.state import TRAINED, VlmState
from diffclip.vlm.words import words_of

log = logging.getLogger(__name__)


def reader_of(
    recipe: VlmRecipe, stage: Stage, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> Reader:
    """How a stage reads its data. Raises UserError where they cannot be read."""
    settings = models.image_settings(model)
    samples = open_samples(stage.data, stage.images, size=settings.image_size, length=stage.length, seed=recipe.seed)
    transform = settings.transform
    return Reader(samples, tokenizer, transform, models.image_tokens(model), stage.max_length, stage.form)


def schedule_of(stage: Stage, samples: Samples) -> Schedule:
    """A stage's epochs as steps. Raises UserError where the data do not fill one batch."""
    per_epoch = len(samples) // stage.batch_size
    if per_epoch == 0:
        raise UserError(
            f"stage {stage.name}: {samples.name} has {len(samples)} conversations, fewer than one batch of "
            f"{stage.batch_size}: lower its batch_size"
        )
    steps = max(1, round(stage.epochs * per_epoch))
    return Schedule(per_epoch, steps, round(stage.warmup * steps))


def train(recipe: VlmRecipe, run: Path, *, resume: bool = False, accept_changed_data: bool = False) -> Path:
    """Train all stages; returns the run's folder, which `diffclip.vlm.load` and transformers open.

    With `resume` the run goes on in the stage, and from the newest good checkpoint, where it was stopped. Raises
    UserError where the folder holds another run or is in use, or something is wrong with encoder, language model or
    data; Stopped after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    world = get_world()
    model, tokenizer = models.build(recipe)
    readers = {stage.name: reader_of(recipe, stage, model, tokenizer) for stage in recipe.stage}
    facts = {f"stage {name}": _facts(reader.samples) for name, reader in readers.items()}
    schedules = {stage.name: schedule_of(stage, readers[stage.name].samples) for stage in recipe.stage}
    for stage in recipe.stage:
        world.rows_per_rank(stage.batch_size)
        found = check_samples(readers[stage.name], recipe.max_unusable)
        if world.is_main:
            log.info("stage %s: %s", stage.name, found)
    with (
        claim_directory(run, to_toml(recipe), resume, facts, accept_changed_data=accept_changed_data, same=_same_run)
        if world.is_main
        else _others(resume) as resume
    ):
        resume = world.broadcast(resume)
        for stage in recipe.stage:
            folder, reader = run / stage.name, readers[stage.name]
            width = model.get_input_embeddings().embedding_dim
            words = words_of(reader, width) if stage.form == "words" else None
            state = VlmState(model, tokenizer, recipe, stage, schedules[stage.name], words)
            if world.broadcast(resume and (folder / TRAINED).is_file()):
                state.load_finished(folder)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                part = (world.rank, world.size)
                loader = ConversationLoader(
                    reader, stage.batch_size, seed=recipe.seed, part=part, num_workers=recipe.workers
                )
                Loop(state, loader, folder, _options(stage), {}).train(resume=resume)
            state.end()
        if world.is_main:
            with durable.cannot_write(run):
                models.save_folder(model.float().cpu(), tokenizer, run, recipe=to_toml(recipe))
        world.barrier()
    return run


@contextmanager
def _others(resume: bool) -> Iterator[bool]:
    """In a process that does not write."""
    yield resume


def _options(stage: Stage) -> Training:
    return Training(
        epochs=stage.epochs,
        batch_size=stage.batch_size,
        log_every=stage.log_every,
        monitor_every=stage.measure_every,
        checkpoint_every=stage.checkpoint_every,
        keep_last=stage.keep_last,
    )


def _facts(samples: Samples) -> dict[str, Any]:
    return {
        "examples": len(samples),
        "classes": 0,
        "texts": "",
        "stamp": samples.stamp(),
    }


def _same_run(before: str, now: str, where: str) -> bool:
    """Whether two recipes compute the same: they may differ in what is kept and in who prepares the data."""
    return _computed(parse_vlm_recipe(before, where)) == _computed(parse_vlm_recipe(now, where))


def _computed(recipe: VlmRecipe) -> VlmRecipe:
    stages = (replace(stage, checkpoint_every=1, keep_last=1, micro_batch=0) for stage in recipe.stage)
    return replace(recipe, workers=0, stage=tuple(stages))
