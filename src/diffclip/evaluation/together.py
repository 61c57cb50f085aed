"""`diffclip eval` in several processes: they share the encoding of images; the first goes on with what is cached."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from diffclip.errors import UserError
from diffclip.evaluation.feature_cache import FeatureCache
from diffclip.evaluation.features import encode
from diffclip.evaluation.plan import Job, NamedModel, make_plan
from diffclip.evaluation.splits import DataSet, Split
from diffclip.evaluation.subject import Settings
from diffclip.training.distributed import World


def encode_together(
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
    plan = make_plan(models, data, path, settings=settings, cache=cache, force=force)
    world.wait()
    for job in plan.jobs:
        for split, missing in job.images.items():
            if missing:
                _share(job, split, settings, cache, world)
        job.data.close()
    world.wait()


def _share(job: Job, split: Split, settings: Settings, cache: FeatureCache, world: World) -> None:
    model, source, entry = job.model.model, None, None
    with suppress(UserError):
        source = job.data.split(split)
        if world.main:  # reads the source once to identify it, and writes what all encode
            entry = cache.entry(job.weights, model.config, source)
    missing = world.from_main([span for span in entry.spans if not entry.path(span).exists()] if entry else [])
    everywhere = all(world.gather_objects(source is not None))
    if source is None or not everywhere:
        return
    with suppress(UserError):
        for span, part in encode(model, source, missing, settings.batch_size, settings.num_workers, together=world):
            if entry:
                entry.write(span, part)
