"""What `diffclip eval` does: models and data sets by their names, every result, a comparison, what failed."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from diffclip.data.scenes import FineGrainedSource, SceneSource
from diffclip.data.sources import Source, open_source
from diffclip.errors import Stopped, UserError
from diffclip.evaluation.datasets import Entry, open_dataset, registry
from diffclip.evaluation.datasets.names import imagenet_classnames, imagenet_subset
from diffclip.evaluation.feature_cache import FeatureCache
from diffclip.evaluation.fine_grained import MMVPSource, PairImages
from diffclip.evaluation.progress import Reporter
from diffclip.evaluation.splits import DataSet, Split, Task
from diffclip.evaluation.suite import Failure, NamedModel, Outcome, Settings
from diffclip.evaluation.suite import evaluate as evaluate_suite
from diffclip.models.clip import CLIP
from diffclip.models.presets import list_models, model_config
from diffclip.models.weights import load
from diffclip.reporting import tables
from diffclip.reporting.tables import ModelName
from diffclip.training.step import default_device

SCENES_TO_LEARN_FROM = 5000
"""Training scenes of the linear probe and of few-shot classification."""
LEARNED_FROM: tuple[Split, ...] = ("train", "val")
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation", "dev"),
    "train": ("train", "training"),
}


def evaluate(
    models: Sequence[str],
    data: Sequence[DataSet],
    out: Path,
    *,
    cache: Path | None,
    force: bool,
    settings: Settings,
) -> None:
    """Evaluate models on data sets; prints the results, writes OUT/results.jsonl.

    Two models are also compared, the second with the first, with paired intervals. Raises UserError, once all else is
    done, for whatever could not be; Stopped on an interrupt.
    """
    if not models:
        raise UserError("no model to evaluate: give run directories, .safetensors files, checkpoints or hub ids")
    twice = next((name for name, count in Counter(one.name for one in data).items() if count > 1), None)
    if twice:
        raise UserError(f"--data names {twice} twice: results would replace each other, so give each its own name")
    named = [named_model(source) for source in models]
    console, path = Console(), out / "results.jsonl"
    features = FeatureCache(cache or out / "features")
    try:
        failures = run_suite(named, data, path, console, settings, cache=features, force=force)
    except KeyboardInterrupt:
        raise Stopped("stopped; the same command goes on from here") from None
    if len(named) == 2 and path.exists():
        letters = [ModelName(letter, one.name, one.pretrained) for letter, one in zip("AB", named, strict=True)]
        console.print(tables.to_rich(tables.compare(path, *letters)))
        console.print(*(f"{one.label}: {one.pretrained}" for one in letters), highlight=False, soft_wrap=True)
    if path.exists():
        console.print(f"Written to {path}", highlight=False, soft_wrap=True)
    raise_failures(failures)


def run_suite(
    models: Sequence[NamedModel],
    data: Sequence[DataSet],
    path: Path,
    console: Console,
    settings: Settings = Settings(),  # noqa: B008  it is frozen
    *,
    cache: FeatureCache | None = None,
    force: bool = False,
) -> list[Failure]:
    """Every task of every data set with every model, told on the console; returns what failed."""
    failures = []
    with Reporter(console) as reporter:
        for outcome in evaluate_suite(
            models, data, path, settings=settings, cache=cache, force=force, monitor=reporter
        ):
            if isinstance(outcome, Outcome):
                reporter.told(outcome)
            else:
                reporter.failed(outcome)
                failures.append(outcome)
    return failures


def raise_failures(failures: Sequence[Failure]) -> None:
    """Raises UserError with the list, if there is any."""
    if failures:
        listed = "".join(f"\n  {failure}" for failure in failures)
        raise UserError(f"{len(failures)} could not be done, everything else is:{listed}")


def data_set(text: str, tasks: Sequence[Task], *, all_classes: bool = False) -> DataSet:
    """NAME=PATH as a data set whose splits are found but not opened yet.

    A name of the registry has the splits and the protocol that the registry says, and PATH is the data set's folder
    or one above it. Under any other name splits go by the names of the folder's folders and files; without a test
    split, the validation split is what models are tested on. all_classes: ImageNet-A and -R among all of ImageNet's
    classes. Raises UserError for another form.
    """
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UserError(f"--data {text}: expected NAME=PATH, such as cifar10=data/cifar10 or scenes=scenes:test")
    if re.fullmatch(r"scenes([:?].*)?", path):
        return _scenes(name, path, tuple(tasks))
    folder = Path(path).expanduser()
    if (folder / "Questions.csv").is_file():
        return DataSet(name, lambda: PairImages(MMVPSource(folder)), tuple(tasks))
    if name in registry() and folder.is_dir():
        return _registered(registry()[name], folder, tasks, all_classes)
    found = _splits_in(folder)
    if "test" not in found and "val" in found:
        found["test"] = found.pop("val")
    openers: dict[Split, Callable[[], Source]] = {
        split: partial(open_source, path, split=own) for split, own in found.items()
    }
    test = openers.pop("test", partial(open_source, path))
    return DataSet(name, test, tuple(tasks), openers)


def _registered(entry: Entry, folder: Path, tasks: Sequence[Task], all_classes: bool) -> DataSet:
    name = entry.name
    whole = all_classes and imagenet_subset(name) is not None
    if whole:
        name = f"{name}@{len(imagenet_classnames())}"
    openers = {
        split: partial(open_dataset, entry.name, folder, split, own=True, all_classes=whole) for split in entry.images
    }
    others: dict[Split, Callable[[], Source]] = {s: openers[s] for s in LEARNED_FROM if s in openers}
    return DataSet(name, openers["test"], tuple(tasks), others, entry.mean_per_class)


def _scenes(name: str, path: str, tasks: tuple[Task, ...]) -> DataSet:
    test = open_source(path if ":" in path.partition("?")[0] else path.replace("scenes", "scenes:test", 1))
    assert isinstance(test, SceneSource)
    others: dict[Split, Callable[[], Source]] = {"pairs": lambda: PairImages(FineGrainedSource(size=test.size))}
    if test.split != "train":
        others["train"] = lambda: SceneSource("train", test.size, SCENES_TO_LEARN_FROM, test.seed)
    return DataSet(name, test, tasks, others)


def _splits_in(folder: Path) -> dict[Split, str]:
    """The splits that a folder holds, and what it calls them."""
    if not folder.is_dir():
        return {}
    entries = [re.split(r"[-_.]", entry.name)[0] for pattern in ("*", "*/*.*") for entry in folder.glob(pattern)]
    return {
        split: own for split, names in SPLIT_NAMES.items() if (own := next((n for n in names if n in entries), None))
    }


def named_model(source: str) -> NamedModel:
    """A model by where it lies, and its preset."""
    model = load(source, device=default_device())[0]
    return NamedModel(_preset_of(model), source, model)


def _preset_of(model: CLIP) -> str:
    """The preset that has the model's config; for a config of its own, what it is."""
    for name in list_models():
        if model_config(name) == model.config:
            return name
    kind = "diffclip" if "differential" in (model.config.vision_attention, model.config.text_attention) else "clip"
    return f"{kind}_{model.config.vision_width}x{model.config.vision_depth}_patch{model.config.patch_size}"
