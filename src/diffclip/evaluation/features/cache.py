"""Image features on disk: one folder for each (weights, data, transform), written part by part.

A folder's name is a digest of what its features were made from, so nothing in it can be out of date: other weights,
other images, captions or labels, another resizing have another folder. Parts hold `PART` examples each, so a run
that is killed loses at most one, or one for each of its processes; each carries a digest of its content, so a
damaged one is found and made anew. `index.json` comes last and says that all parts are there, and of what.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffclip import durable
from diffclip.data.content import content_digest
from diffclip.data.formats.stamp import Stamped
from diffclip.data.sources import Source
from diffclip.models.image_settings import ImageSettings
from diffclip.reading import named, parse_json, read_text

log = logging.getLogger(__name__)

PART = 1024
"""Examples of a part: 3 MB at ViT-B's width, seconds on a GPU, a few minutes of ViT-B on a CPU."""
FORMAT = 1
"""Counts up when the pixels that a model sees, or the content of a part, come to be made in another way."""
ABANDONED = 3600.0
"""Seconds after which an unfinished file is taken for that of a killed process."""


@dataclass(frozen=True)
class Part:
    """Some consecutive examples of a source: those whose image could be read, and how many could not."""

    features: Tensor
    """(n, width) float32, as the image tower gives them, before the projection."""
    indices: Tensor
    """(n,) int64, each image's place in the source."""
    labels: Tensor
    """(n,) int64; -1 where the example has none."""
    captions: tuple[tuple[str, ...], ...]
    """The captions of each image, possibly none."""
    skipped: Counter[str]
    """How many images could not be read, by reason."""


def spans_of(count: int) -> list[range]:
    """The examples of each part of a source."""
    return [range(start, min(start + PART, count)) for start in range(0, count, PART)]


class FeatureCache:
    """The features of any number of models and sources, in one folder, which several processes may share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entry(self, weights: str, config: ImageSettings, source: Source) -> "Entry":
        """Where the features of a source by a model belong.

        weights: the model's `results.fingerprint`. Reads all of the source once to identify it, and from then on only
        when its stamp has changed.
        """
        data = self._digest(source)
        return Entry(self.folder / _key(weights, config, data), len(source), {"weights": weights, "data": data})

    def missing(self, weights: str, config: ImageSettings, source: Source) -> int:
        """How many images are not encoded yet, as far as file names tell; all of a source that is not known yet."""
        data = _read_note(self._note(source))
        if data is None:
            return len(source)
        entry = Entry(self.folder / _key(weights, config, data), len(source), {})
        return sum(len(span) for span in entry.spans if not entry.path(span).exists())

    def _note(self, source: Source) -> Path | None:
        """The file that remembers a source's digest as long as its stamp stays."""
        if not isinstance(source, Stamped):
            return None
        name = hashlib.sha256(f"{FORMAT} {len(source)} {source.stamp()}".encode()).hexdigest()
        return self.folder / "sources" / f"{name}.json"

    def _digest(self, source: Source) -> str:
        note = self._note(source)  # before the reading: what changes meanwhile has another stamp
        digest = _read_note(note)
        if digest is None:
            digest = content_digest(source)
            if note:
                _write_json(note, {"source": source.name, "examples": len(source), "content": digest})
        return digest


class Entry:
    """The features of one source by one model: the parts that are there, and those that are not."""

    def __init__(self, folder: Path, count: int, facts: Mapping[str, str]) -> None:
        self.folder = folder
        self.spans = spans_of(count)
        self._facts = facts

    def path(self, span: range) -> Path:
        """The file of a part."""
        return self.folder / f"part-{span.start:09d}.safetensors"

    def read(self, span: range) -> Part | None:
        """A part; None where there is none, or, with a warning, where it is damaged."""
        path = self.path(span)
        if not path.exists():
            return None
        try:
            with named(path) as name, safe_open(name, "pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in ("features", "indices", "labels", "captions")}
            if _content(tensors) != metadata["digest"]:
                raise ValueError("its content does not have the digest that was noted")
            return Part(
                tensors["features"],
                tensors["indices"],
                tensors["labels"],
                tuple(map(tuple, parse_json(tensors["captions"].numpy().tobytes()))),
                Counter(parse_json(metadata["skipped"])),
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged (%s): its images are encoded again", path, " ".join(str(error).split()))
            return None

    def write(self, span: range, part: Part) -> None:
        """Add a part, whole or not at all."""
        captions = json.dumps(part.captions).encode()
        tensors = {
            "features": part.features.contiguous(),
            "indices": part.indices,
            "labels": part.labels,
            "captions": torch.from_numpy(np.frombuffer(captions, dtype=np.uint8).copy()),
        }
        metadata = {"skipped": json.dumps(part.skipped), "digest": _content(tensors)}
        durable.write_tensors(self.path(span), tensors, metadata)

    def finish(self, **facts: Any) -> None:
        """Write the index, which says that every part is there; facts are for people."""
        path = self.folder / "index.json"
        if not path.exists():
            parts = [self.path(span).name for span in self.spans]
            count = self.spans[-1].stop if self.spans else 0
            _write_json(path, {**facts, "examples": count, **self._facts, "format": FORMAT, "parts": parts})
        durable.remove_unfinished(self.folder, older_than=ABANDONED)


def _read_note(note: Path | None) -> str | None:
    try:
        return str(parse_json(read_text(note))["content"]) if note else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _key(weights: str, config: ImageSettings, data: str) -> str:
    seen = (FORMAT, weights, data, config.transform, config.image_mean, config.image_std)
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:32]


def _content(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    durable.write_text(path, json.dumps(content, indent=1) + "\n")
