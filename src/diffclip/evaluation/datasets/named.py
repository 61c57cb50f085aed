"""The data sets that a command names: those of the paper by their names alone, any other as NAME=PATH."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from diffclip.data.classes import class_difference
from diffclip.data.formats.class_folders import FolderSource
from diffclip.data.formats.paths import FORMAT_OF
from diffclip.data.scenes import FineGrainedSource, SceneSource
from diffclip.data.scenes.compositional import NegativeSource, SwapSource
from diffclip.data.sources import Source, open_source
from diffclip.errors import UserError
from diffclip.evaluation.datasets import Entry, open_dataset, registry
from diffclip.evaluation.datasets.benchmarks import benchmark_in
from diffclip.evaluation.datasets.dataset import DataSet, Opener
from diffclip.evaluation.datasets.folders import splits_in
from diffclip.evaluation.datasets.names import imagenet_classnames, imagenet_subset
from diffclip.evaluation.datasets.opening import default_root, how_to_get, locate
from diffclip.evaluation.datasets.pairs import PairImages
from diffclip.evaluation.datasets.registry import SPLIT_NAMES
from diffclip.evaluation.results import Failure

ALL = "paper"
"""Stands for every data set of the paper that a CLIP by itself is evaluated on: all but POPE."""
SCENES_TO_LEARN_FROM = 5000
"""Training scenes of the linear probe and of few-shot classification."""
LEARNED_FROM: tuple[str, ...] = ("train", "val")


def data_sets(
    texts: Sequence[str],
    tasks: Sequence[str] | None,
    root: str | Path | None,
    *,
    all_classes: bool = False,
    allow_outside: bool = False,
) -> tuple[list[DataSet], list[Failure]]:
    """What `--data` names, and what of it is not there.

    Each text is NAME=PATH (see `data_set`), a name of the registry, which is looked for below root, or `paper`. root:
    as for `opening.default_root`. Without tasks, data sets that are given by name alone have those of the registry,
    others have none: the plan of an evaluation then takes what they can serve. Raises UserError for a name that nothing
    knows, and for a path that holds no data set.
    """
    present, missing = [], []
    for text in texts:
        if "=" in text:
            present.append(data_set(text, tasks or (), all_classes=all_classes, allow_outside=allow_outside))
            continue
        for name in papers() if text == ALL else (text,):
            if name not in by_name():
                raise UserError(
                    f"--data {name}: expected NAME=PATH, such as scenes=scenes:test, or {ALL}, or one of the data "
                    f"sets known by name: {', '.join(by_name())}"
                )
            wanted, folder = registry()[name], default_root(root)
            if locate(wanted, folder) is None:
                missing.append(Failure(name, f"not in {folder} (--root); get it with: {how_to_get(wanted, folder)}"))
            else:
                present.append(_from_registry(wanted, folder, tasks or wanted.tasks, all_classes))
    return present, missing


def by_name() -> list[str]:
    """The data sets that can be given by their names alone."""
    return [entry.name for entry in registry().values() if "pope" not in entry.tasks]


def papers() -> list[str]:
    """Those that `paper` stands for."""
    return [name for name in by_name() if registry()[name].paper]


def data_set(text: str, tasks: Sequence[str], *, all_classes: bool = False, allow_outside: bool = False) -> DataSet:
    """NAME=PATH as a data set whose splits are found but not opened yet.

    A name of the registry has the splits and the protocol that the registry says; PATH is then the data set's folder
    or the folder above. Under any other name splits go by the names of the folder's folders and files. Without a test
    split, models are tested on the validation split. all_classes: ImageNet-A and -R among all of ImageNet's
    classes. allow_outside: as of `open_source`; so is PATH?allow_outside=true. Columns or files of a data set that has
    several are chosen as in PATH?label_key=NAME&caption_key=NAME.
    Raises UserError for another form.
    """
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UserError(f"--data {text}: expected NAME=PATH, such as cifar10=data/cifar10 or scenes=scenes:test")
    if re.fullmatch(r"scenes([:?].*)?", path):
        return _scenes(name, path, tuple(tasks))
    path, keys = _keys_in(path)
    folder = Path(path).expanduser()
    benchmark = benchmark_in(folder)
    if keys and (benchmark or (name in registry() and folder.is_dir())):
        raise UserError(f"--data {text}: {name} is read as its authors publish it: leave {', '.join(keys)} out")
    if benchmark:
        return DataSet(name, partial(benchmark.open, folder), tuple(tasks))
    if name in registry() and folder.is_dir():
        return _named_so(_from_registry(registry()[name], folder, tasks, all_classes), name, path)
    known = splits_in(folder) if folder.is_dir() and not keys else {}
    if known:
        test_split = next((split for split in ("test", "val") if split in known), next(iter(known)))
        return DataSet(name, known.pop(test_split), tuple(tasks), {s: known[s] for s in LEARNED_FROM if s in known})
    keys["allow_outside"] = allow_outside or "allow_outside" in keys
    splits = _splits_in(folder)
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")
    openers: dict[str, Opener] = {split: partial(open_source, path, split=own, **keys) for split, own in splits.items()}
    test = openers.pop("test", partial(open_source, path, **keys))
    if "train" in openers:
        test = partial(_compared, test, openers["train"], path)
    return DataSet(name, test, tuple(tasks), openers)


def _keys_in(path: str) -> tuple[str, dict[str, Any]]:
    """PATH?label_key=NAME as PATH and the keys; a `?` that no key follows is a part of the path."""
    match = re.fullmatch(r"(.+?)\?((?:(?:(?:image|caption|label)_key=[^&?=]+|allow_outside=true)(?:&|$))+)", path)
    return (match[1], dict(parse_qsl(match[2]))) if match else (path, {})


def _named_so(data: DataSet, name: str, path: str) -> DataSet:
    """A data set of the registry in a folder that a person names; where it cannot be opened, the name may be why."""

    def said(opener: Opener) -> Opener:
        def opened() -> Source:
            try:
                return opener()
            except UserError as error:
                raise UserError(
                    f"{error}; {name} names a data set that `diffclip data list` shows, so {path} is read as that: "
                    f"give images of your own another name, such as my-{name}={path}"
                ) from error

        return opened

    assert callable(data.source)
    return replace(
        data, source=said(data.source), others={split: said(opener) for split, opener in data.others.items()}
    )


def _compared(test: Opener, train: Opener, path: str) -> Source:
    """The test split of tables or shards. Class folders are compared where they are opened.

    Raises UserError where the training split names other classes: models would choose among too few or too many.
    """
    source = test()
    if not source.classnames or isinstance(source, FolderSource):
        return source
    try:
        names = train().classnames
    except UserError:
        return source  # whoever needs it will say so
    difference = class_difference("test", source.classnames, "train", names) if names else ""
    if difference:
        raise UserError(f"{path}: {difference}: state the class names of both splits alike")
    return source


def _from_registry(entry: Entry, folder: Path, tasks: Sequence[str], all_classes: bool) -> DataSet:
    name = entry.name
    whole = all_classes and imagenet_subset(name) is not None
    if whole:
        name = f"{name}@{len(imagenet_classnames())}"
    openers = {
        split: partial(open_dataset, entry.name, folder, split, own=True, all_classes=whole) for split in entry.images
    }
    others: dict[str, Opener] = {s: openers[s] for s in LEARNED_FROM if s in openers}
    return DataSet(name, openers["test"], tuple(tasks), others, entry.mean_per_class)


def _scenes(name: str, path: str, tasks: tuple[str, ...]) -> DataSet:
    test = open_source(path if ":" in path.partition("?")[0] else path.replace("scenes", "scenes:test", 1))
    assert isinstance(test, SceneSource)
    others: dict[str, Opener] = {
        "pairs": lambda: PairImages(FineGrainedSource(size=test.size)),
        "negatives": lambda: NegativeSource(size=test.size),
        "swaps": lambda: PairImages(SwapSource(size=test.size), "swaps"),
    }
    if test.split != "train":
        others["train"] = lambda: SceneSource("train", test.size, SCENES_TO_LEARN_FROM, test.seed)
    return DataSet(name, test, tasks, others)


def _splits_in(folder: Path) -> dict[str, str]:
    """The splits that a folder holds, and what it calls them."""
    if not folder.is_dir():
        return {}
    # Tables and shards, and folders: images in class folders may have any name.
    found = [*folder.glob("*"), *(entry for entry in folder.glob("*/*.*") if not entry.is_dir())]
    found = [entry for entry in found if entry.is_dir() or entry.suffix.lower() in FORMAT_OF]
    entries = {name.lower(): name for entry in found for name in re.split(r"[-_.]", entry.name)[:1]}  # TEST is test
    return {
        split: entries[own]
        for split, names in SPLIT_NAMES.items()
        if (own := next((name for name in names if name in entries), None))
    }
