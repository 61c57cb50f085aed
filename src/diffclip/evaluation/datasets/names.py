"""Class names and templates, from the libraries that ship them: none is typed in here.

ImageNet's come from open_clip, which classes ImageNet-A and -R have from timm, the rest from the JSON files of
clip-benchmark. Of that package only the files are read: it is never imported, so it can be installed without
its dependencies.
"""

from __future__ import annotations

import json
import logging
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from diffclip.data.sources import TEMPLATES

logger = logging.getLogger(__name__)

INSTALL = "pip install --no-deps clip-benchmark"


@cache
def imagenet_classnames() -> tuple[str, ...]:
    """The 1,000 names of Radford et al. 2021, in the order of the sorted WordNet ids."""
    from open_clip import IMAGENET_CLASSNAMES

    return tuple(IMAGENET_CLASSNAMES)


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """The 1,000 WordNet ids, sorted: the place of each is its class number."""
    return _lines("imagenet_synsets.txt")


def imagenet_subset(name: str) -> tuple[int, ...] | None:
    """The class numbers of the 200 classes of imagenet-a or imagenet-r; None for any other data set."""
    file = {"imagenet-a": "imagenet_a_synsets.txt", "imagenet-r": "imagenet_r_synsets.txt"}.get(name)
    return tuple(imagenet_wnids().index(wnid) for wnid in _lines(file)) if file else None


def _lines(name: str) -> tuple[str, ...]:
    return tuple((files("timm") / "data" / "_info" / name).read_text(encoding="utf-8").split())


def templates(prompts: str | None, name: str) -> tuple[str, ...]:
    """The data set's templates; without clip-benchmark, "a photo of a {c}." and a warning."""
    if prompts == "imagenet":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{c}") for template in OPENAI_IMAGENET_TEMPLATES)
    table = _clip_benchmark("en_zeroshot_classification_templates.json")
    if prompts and table is None:
        logger.warning('%s: the only template is "%s"; for the usual ones: %s', name, TEMPLATES[0], INSTALL)
    return tuple((table or {}).get(prompts or "", TEMPLATES))


def classnames(curated: str, name: str) -> tuple[str, ...] | None:
    """Names of clip-benchmark, in the order of the sorted class folders; without it None and a warning."""
    table = _clip_benchmark("en_classnames.json")
    if table is None:
        logger.warning("%s: the class names are those of its folders; for the usual ones: %s", name, INSTALL)
        return None
    return tuple(table[curated])


def _clip_benchmark(file: str) -> dict[str, list[str]] | None:
    spec = find_spec("clip_benchmark")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "datasets" / file
    loaded: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return loaded
