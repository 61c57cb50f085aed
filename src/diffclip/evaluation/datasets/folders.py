"""Folders whose form shows in what lies in them, under whatever name: what `eval` reads, `diffclip data` reads too."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from diffclip.data import sources
from diffclip.data.formats.paths import data_files
from diffclip.data.options import Located
from diffclip.data.sources import Source
from diffclip.errors import UserError
from diffclip.evaluation.datasets.authors import authors_folder
from diffclip.evaluation.datasets.benchmarks import benchmark_in
from diffclip.evaluation.datasets.captions import caption_form
from diffclip.evaluation.datasets.dataset import Opener
from diffclip.evaluation.datasets.opening import default_root, how_to_get, locate, open_dataset
from diffclip.evaluation.datasets.registry import Entry, registry
from diffclip.text import listed


def splits_in(folder: Path) -> dict[str, Opener]:
    """Split → what opens it, of a folder with captions beside images or of an authors' archive; else nothing.

    Shards and parquet files come before both, and other tables before authors' archives.
    """
    tables = data_files(folder, "auto")
    if any(file.suffix.lower() in (".tar", ".parquet") for file in tables):
        return {}
    form = caption_form(folder)
    if form is not None:
        return {split: partial(form.open, split) for split in form.splits}
    found = None if tables else _authors(folder)
    if found is None:
        return {}
    return {split: partial(open_dataset, found.name, folder, split, own=True) for split in found.images}


def _authors(folder: Path) -> Entry | None:
    """The data set whose authors' archive lies in a folder or is the folder itself.

    Raises UserError where several lie in it.
    """
    places = {entry.name: authors_folder(entry, folder) for entry in registry().values()}
    found = {name: place for name, place in places.items() if place is not None}
    own = [name for name, place in found.items() if place == folder]
    names = own or sorted(found)
    if len(names) > 1:
        raise UserError(f"{folder} holds several data sets, {listed(names)}: name the folder of one")
    return registry()[names[0]] if names else None


def open_given(data: Located) -> Source:
    """What `diffclip data` names: whatever `open_source` opens, a name of the registry, and the forms of `splits_in`.

    Raises UserError where it cannot be opened, or has several splits and none is named.
    """
    stated = (data.format != "auto", data.image_key, data.caption_key, data.label_key)
    folder = Path(data.path).expanduser()
    if any(stated):
        return sources.open_source(**vars(data))
    if data.path in registry() and not folder.exists():
        entry, root = registry()[data.path], default_root()
        if locate(entry, root) is None:
            raise UserError(f"{entry.name} is not in {root} ($DIFFCLIP_DATA); get it with: {how_to_get(entry, root)}")
        return _one({split: partial(open_dataset, entry.name, root, split) for split in entry.images}, data)
    if folder.is_dir():
        benchmark = benchmark_in(folder)
        if benchmark is not None and data.split is None:
            return benchmark.open(folder)
        found = splits_in(folder)
        if found:
            return _one(found, data)
    return sources.open_source(**vars(data))


def _one(splits: dict[str, Opener], data: Located) -> Source:
    """The split that is named, or the only one."""
    if data.split is None and len(splits) == 1:
        return next(iter(splits.values()))()
    if data.split is None:
        raise UserError(f"{data.path} holds the splits {listed(splits)}: choose one with split")
    if data.split not in splits:
        known = listed(filter(None, splits)) if any(splits) else "none"
        raise UserError(f"{data.path} holds no split {data.split!r}: it has {known}")
    return splits[data.split]()
