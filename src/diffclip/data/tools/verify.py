"""`diffclip data verify`: look at every image and caption of a data set, and count what is wrong."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from diffclip import durable
from diffclip.data.images import BadImage, decode
from diffclip.data.parallel import in_order
from diffclip.data.sources import Source, place_of
from diffclip.data.tokenizer import get_tokenizer
from diffclip.errors import UserError
from diffclip.terminal import Terminal
from diffclip.text import listed

AT_A_TIME = 64
SHOWN = 5  # places named for each thing that is wrong
SMALL = 224  # pixels of the shorter edge below which an image is enlarged by the paper's models


@dataclass(frozen=True)
class Findings:
    """What was found in some examples: N of them usable, with C captions."""

    bad: tuple[tuple[int, str], ...]
    """Index and reason of those that are not usable."""
    usable: NDArray[np.int64]
    """(N,): their indices."""
    shapes: NDArray[np.int32]
    """(N, 2): height and width."""
    bytes: NDArray[np.int64]
    """(N,): of the file; of the pixels where there is no file."""
    images: NDArray[np.uint64]
    """(N,): hashes of the bytes."""
    pairs: NDArray[np.uint64]
    """(N,): hashes of bytes, captions and label."""
    captions: NDArray[np.uint64]
    """(C,): hashes."""
    tokens: NDArray[np.int32]
    """(C,): how many, start and end included, uncut."""
    labels: NDArray[np.int64]
    """Of the labelled ones."""


def examine(source: Source, indices: Sequence[int]) -> Findings:
    """Decode and tokenise some examples."""
    tokenizer = get_tokenizer()
    bad: list[tuple[int, str]] = []
    usable, shapes, sizes, images, pairs, captions, tokens, labels = ([] for _ in range(8))  # type: ignore[var-annotated]
    for index in indices:
        try:
            example = source[index]
            pixels = decode(example.image)
            if not example.captions and example.label is None:
                raise BadImage("no_caption")
            if example.label is not None and source.classnames and example.label >= len(source.classnames):
                raise BadImage("label_without_name")
            _check_masks(source, index, pixels.shape[:2])
        except BadImage as error:
            bad.append((index, error.reason))
            continue
        content = example.image if isinstance(example.image, bytes) else pixels.tobytes()
        usable.append(index)
        shapes.append(pixels.shape[:2])
        sizes.append(len(content))
        images.append(_hash(content))
        pairs.append(_hash(repr((images[-1], example.captions, example.label)).encode(errors="surrogatepass")))
        for caption in example.captions:
            captions.append(_hash(caption.encode(errors="surrogatepass")))
            tokens.append(len(tokenizer.encode(caption)) + 2)
        if example.label is not None:
            labels.append(example.label)
    return Findings(
        tuple(bad),
        np.array(usable, np.int64),
        np.array(shapes, np.int32).reshape(-1, 2),
        np.array(sizes, np.int64),
        np.array(images, np.uint64),
        np.array(pairs, np.uint64),
        np.array(captions, np.uint64),
        np.array(tokens, np.int32),
        np.array(labels, np.int64),
    )


@runtime_checkable
class Masked(Protocol):
    """A source with masks of what the captions of an example name."""

    def masks(self, index: int) -> list[tuple[str, NDArray[np.bool_]]]: ...


def _check_masks(source: Source, index: int, shape: tuple[int, ...]) -> None:
    """Raise BadImage where an example's masks cannot be read, show nothing, or have not the size of the image."""
    if not isinstance(source, Masked):
        return
    try:
        masks = source.masks(index)
    except UserError:
        raise BadImage("unreadable_mask") from None
    for _, mask in masks:
        if mask.shape != shape:
            raise BadImage("mask_of_another_size")
        if not mask.any():
            raise BadImage("empty_mask")


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def examine_all(source: Source, workers: int, console: Console) -> Findings:
    """Every example, by several processes, with a bar on a terminal."""
    chunks = [range(at, min(at + AT_A_TIME, len(source))) for at in range(0, len(source), AT_A_TIME)]
    parts = list(
        track(
            in_order(partial(examine, source), chunks, min(workers, len(chunks))),
            description=f"looking at {len(source):,} examples",
            total=len(chunks),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
    )
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in Findings.__dataclass_fields__
        if name != "bad"
    }
    return Findings(tuple(bad for part in parts for bad in part.bad), **joined)


def summary(source: Source, found: Findings) -> dict[str, Any]:
    """The findings as numbers: what `--json` writes."""
    height, width = found.shapes.T
    shorter = np.minimum(height, width)
    longer = np.maximum(height, width)
    context = get_tokenizer().context_length
    twice = _repeated(found.pairs)
    present = set(np.unique(found.labels).tolist())
    wrong = Counter(reason for _, reason in found.bad)
    if len(twice):
        wrong["repeated_example"] = len(twice)
    return {
        "data": source.name,
        "examples": len(source),
        "usable": len(found.usable),
        "wrong": dict(wrong.most_common()),
        "where": {
            reason: [{"index": i, "place": place_of(source, i)} for i, r in found.bad if r == reason]
            for reason in dict.fromkeys(r for _, r in found.bad)
        }
        | ({"repeated_example": _places(source, found.usable[twice])} if len(twice) else {}),
        "shorter_edge": _spread(shorter),
        "aspect_ratio": _spread(longer / np.maximum(shorter, 1)),
        "shorter_than_224": int((shorter < SMALL).sum()),
        "bytes": _spread(found.bytes) | {"total": int(found.bytes.sum())},
        "captions": len(found.captions),
        "tokens": _spread(found.tokens),
        "longer_than_the_context": int((found.tokens > context).sum()),
        "images_with_the_same_bytes": len(_repeated(found.images)),
        "repeated_captions": len(_repeated(found.captions)),
        "classes": len(np.unique(found.labels)),
        "class_names": len(source.classnames or ()),
        "classes_without_an_image": [
            name for label, name in enumerate(source.classnames or ()) if label not in present
        ],
        "labelled": len(found.labels),
        "per_class": _spread(np.unique(found.labels, return_counts=True)[1]),
    }


def _places(source: Source, indices: NDArray[np.int64]) -> list[dict[str, Any]]:
    return [{"index": i, "place": place_of(source, i)} for i in indices.tolist()]


def _repeated(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The rows whose hash was there before."""
    first = np.unique(hashes, return_index=True)[1]
    later = np.ones(len(hashes), bool)
    later[first] = False
    return np.flatnonzero(later)


def _spread(values: NDArray[Any]) -> dict[str, float]:
    if not len(values):
        return {}
    least, middle, most = np.percentile(values, [0, 50, 100])
    return {"min": round(float(least), 3), "median": round(float(middle), 3), "max": round(float(most), 3)}


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report for a person."""
    sizes, ratio, edge = report["bytes"], report["aspect_ratio"], report["shorter_edge"]
    said = [f"{report['data']}: {report['examples']:,} examples, {report['usable']:,} usable"]
    if report["usable"]:
        said += [
            f"  images      shorter edge {_range(edge)} pixels, {report['shorter_than_224']:,} below {SMALL}; "
            f"aspect ratio up to {ratio['max']:.1f}",
            f"  size        {_bytes(sizes['total'])}; an image {_bytes(sizes['min'])} to {_bytes(sizes['max'])}, "
            f"median {_bytes(sizes['median'])}",
        ]
    if report["captions"]:
        said.append(
            f"  captions    {report['captions']:,}, {_range(report['tokens'])} tokens; "
            f"longer than 77, which are cut: {report['longer_than_the_context']:,}"
        )
    if report["labelled"]:
        said.append(f"  labels      {report['classes']:,} classes with {_range(report['per_class'])} images")
    if report["labelled"] and report["classes_without_an_image"]:
        absent = report["classes_without_an_image"]
        said.append(
            f"  names       {len(absent):,} of {report['class_names']:,} have no image: {listed(absent[:SHOWN])}"
        )
    said.append(
        f"  repeated    {report['images_with_the_same_bytes']:,} images have the bytes of an earlier one, "
        f"{report['repeated_captions']:,} captions its words"
    )
    if not report["wrong"]:
        said.append("  wrong       nothing")
    for reason, count in report["wrong"].items():
        said.append(f"  wrong       {reason}: {count:,}")
        where = report["where"][reason]
        said += [f"                {one['place']}" for one in where[:SHOWN]]
        if len(where) > SHOWN:
            said.append(f"                and {len(where) - SHOWN:,} more (--json lists all)")
    return said


def _range(spread: Mapping[str, float]) -> str:
    least, middle, most = (f"{spread[key]:,.0f}" for key in ("min", "median", "max"))
    return least if least == most else f"{least} to {most} (median {middle})"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def verify(source: Source, *, workers: int, json_file: Path | None = None) -> None:
    """Print the report and write it as JSON.

    Raises UserError where anything is wrong: an example that cannot be used, or one that is there twice.
    """
    console = Terminal(stderr=True)
    report = summary(source, examine_all(source, workers, console))
    printed = Terminal()
    for line in lines(report):
        printed.print(line, highlight=False, soft_wrap=True)
    if json_file is not None:
        durable.write_text(json_file, json.dumps(report, indent=1) + "\n")
    if report["wrong"]:
        counts = ", ".join(f"{reason} {count:,}" for reason, count in report["wrong"].items())
        raise UserError(f"{report['data']}: {sum(report['wrong'].values()):,} of {len(source):,} are wrong: {counts}")
