"""`diffclip eval` in several processes: all ranks encode images into the cache; rank 0 goes on from there."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from diffclip.distributed import World
from diffclip.errors import UserError
from diffclip.evaluation.datasets.dataset import DataSet
from diffclip.evaluation.features.cache import FeatureCache
from diffclip.evaluation.features.context import Settings
from diffclip.evaluation.features.encode import encode
from diffclip.evaluation.run.named_model import NamedModel
from diffclip.evaluation.run.plan import Job, list_jobs


def encode_distributed(
    models: Sequence[NamedModel],
    data: Sequence[DataSet],
    path: Path,
    settings: Settings,
    cache: FeatureCache,
    world: World,
    *,
    force: bool = False,
) -> None:
    """Put the features of all images that `suite.evaluate` will need into the cache; the processes share the batches.

    Data that cannot be read are left for the evaluation itself to tell of.
    """
    plan = list_jobs(models, data, path, settings=settings, cache=cache, force=force)
    world.barrier()
    for job in plan.jobs:
        for split, missing in job.images.items():
            if missing:
                _encode_split(job, split, settings, cache, world)
        job.data.close()
    world.barrier()


def _encode_split(job: Job, split: str, settings: Settings, cache: FeatureCache, world: World) -> None:
    model, source, entry = job.model.model, None, None
    with suppress(UserError):
        source = job.data.split(split)
        if world.is_main:  # reads the source once to identify it, and writes what all encode
            entry = cache.entry(job.weights, model.config, source)
    missing = world.broadcast([span for span in entry.spans if not entry.path(span).exists()] if entry else [])
    everywhere = all(world.all_gather_objects(source is not None))
    if source is None or not everywhere:
        return
    with suppress(UserError):
        for span, part in encode(model, source, missing, settings.batch_size, settings.num_workers, world=world):
            if entry:
                entry.write(span, part)
