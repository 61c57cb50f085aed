"""`diffclip eval`: arguments, every result, a comparison of two models, what failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from diffclip.errors import Stopped, UserError
from diffclip.evaluation.task import TASKS, get_task
from diffclip.text import model_labels, say_loading

if TYPE_CHECKING:
    from diffclip.evaluation.datasets.dataset import DataSet
    from diffclip.evaluation.features.context import Settings
    from diffclip.evaluation.results import Failure

    TaskName = str
else:
    TaskName = Literal[tuple(TASKS)]


def evaluate(
    models: Positional[tuple[str, ...]],
    /,
    *,
    data: tuple[str, ...],
    out: Path,
    tasks: tuple[TaskName, ...] = (),
    root: Path | None = None,
    cache: Path | None = None,
    force: bool = False,
    features: Literal["tower", "joint"] = "tower",
    all_classes: bool = False,
    allow_outside: bool = False,
    sample: int = 500,
    seed: int = 0,
    repeats: int = 1,
    batch_size: int = 256,
    workers: int = 2,
    dtype: Literal["float32", "tf32", "bfloat16"] = "float32",
    max_skipped: float = 0.01,
    verbose: bool = False,
) -> None:
    """Evaluate models on data sets; results go to OUT/results.jsonl, a line each.

    What is done already is not done again. Status 1: something could not be done.

    Args:
        models: Run directories, files of weights, folders of open_clip or transformers, or hf:OWNER/NAME of the hub.
        data: NAME=PATH of each data set, PATH being a folder, a file, shards, or scenes:SPLIT; the bare NAME of one
            that `diffclip data list` shows; or `paper`, for all that the paper evaluates on.
        out: Where results.jsonl is written.
        tasks: What is measured, on each data set that can serve it; by default what the paper, or its authors,
            measure on data sets that are given by name alone, and on others what they can serve without learning.
        root: The folder of the data sets that are given by name alone; by default $DIFFCLIP_DATA, or data.
        cache: Where image features are kept; by default OUT/features.
        force: Compute again what results.jsonl has already. Features are not: theirs cannot be out of date.
        features: What linear_probe and few_shot learn from: the image tower's features before the joint projection, or
            those after it.
        all_classes: Score ImageNet-A and -R among ImageNet's 1,000 classes instead of their own 200; results call them
            imagenet-a@1000 and imagenet-r@1000.
        allow_outside: Let tables that --data names name images outside of their own folders.
        sample: How many images robustness, corruptions, grounding and noise look at; 0: all.
        seed: Of that sample, of few-shot episodes, attacks, corruptions and noise.
        repeats: How often few_shot draws its episodes, with this seed and those after it; results have the mean, and
            the standard deviation between the repeats as acc1_sd.
        batch_size: Images encoded at a time.
        workers: Processes that decode images.
        dtype: What models compute in. tf32 is faster on NVIDIA GPUs from Ampere on, bfloat16 on GPUs and where a
            processor multiplies it; results name the model with it, and attacks are made in float32 all the same.
        max_skipped: Share of a split's images that may be missing or unreadable; above it the exit status is 1.
        verbose: Compare two models by every metric, rather than by one a task.
    """
    if repeats < 1:
        raise UserError(f"--repeats {repeats}: give a number of at least 1")
    if not 0 <= max_skipped <= 1:
        raise UserError(f"--max-skipped {max_skipped:g}: give a share from 0 to 1")
    if not models:
        raise UserError("no model to evaluate: give run directories, files of weights, folders or hf:OWNER/NAME")
    say_loading()

    from diffclip.evaluation.datasets.named import data_sets
    from diffclip.evaluation.features.context import Settings

    settings = Settings(
        batch_size=batch_size,
        num_workers=workers,
        features=features,
        sample=sample or None,
        seed=seed,
        repeats=repeats,
    )
    sets, missing = data_sets(data, tasks, root, all_classes=all_classes, allow_outside=allow_outside)
    run(
        models,
        sets,
        out,
        missing=missing,
        cache=cache,
        force=force,
        settings=settings,
        dtype=dtype,
        max_skipped=max_skipped,
        verbose=verbose,
    )


def run(
    models: Sequence[str],
    data: Sequence[DataSet],
    out: Path,
    *,
    missing: Sequence[Failure] = (),
    cache: Path | None,
    force: bool,
    settings: Settings,
    dtype: str = "float32",
    max_skipped: float = 0.01,
    verbose: bool = False,
) -> None:
    """Evaluate models on data sets; prints the results, writes OUT/results.jsonl.

    Under torchrun all processes encode images, into a cache that all of them reach; the first does the rest.

    missing: data sets that are not there, told at the beginning and at the end. Two models are also compared, the
    second with the first, with paired intervals: a metric a task, or all of them where it is to be verbose. Raises
    UserError, once all else is done, for whatever could not be; Stopped on an interrupt.
    """
    from collections import Counter

    from diffclip.distributed import joined
    from diffclip.evaluation.features.cache import FeatureCache
    from diffclip.evaluation.run.distributed import encode_distributed
    from diffclip.evaluation.run.named_model import named_model
    from diffclip.evaluation.run.progress import raise_failures, run_suite
    from diffclip.reporting.compare import ModelName, compare_two
    from diffclip.reporting.tables.comparison import two_models
    from diffclip.terminal import Terminal

    if not models:
        raise UserError("no model to evaluate: give run directories, files of weights, folders or hf:OWNER/NAME")
    twice = next((name for name, count in Counter(dataset.name for dataset in data).items() if count > 1), None)
    if twice:
        raise UserError(f"--data names {twice} twice: results would replace each other, so give each its own name")
    path, features = out / "results.jsonl", FeatureCache(cache or out / "features")
    with joined() as world:
        named = [named_model(source, dtype) for source in models]
        if world.size > 1:
            encode_distributed(named, data, path, settings, features, world, force=force)
    if not world.is_main:
        return
    console = Terminal()
    for failure in missing:
        console.print(f"Missing: {failure}", highlight=False, soft_wrap=True)
    try:
        failures = run_suite(named, data, path, console, settings, cache=features, force=force, max_skipped=max_skipped)
    except KeyboardInterrupt:
        raise Stopped("stopped; the same command goes on from here") from None
    asked = {(each.name, get_task(task).result) for each in data for task in each.tasks}
    if len(named) == 2 and path.exists():
        labels = model_labels([model.pretrained for model in named])
        first, second = (ModelName(label, m.name, m.pretrained) for label, m in zip(labels, named, strict=True))
        rows = compare_two(path, first, second, asked)
        for name in (first, second):
            if name.label != name.pretrained:
                console.print(f"{name.label}: {name.pretrained}", highlight=False, soft_wrap=True)
        if rows:
            console.print(two_models(rows, width=console.width, every=verbose))
        if rows and not verbose:
            console.print("A row a task; --verbose shows every metric.", highlight=False)
    if path.exists():
        console.print(f"Written to {path}", highlight=False, soft_wrap=True)
    raise_failures([*missing, *failures])
