"""`diffclip search`: find pictures of an index by text and picture, or those that are nearly the same."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from diffclip.errors import UserError
from diffclip.text import counted, printable, say_loading

if TYPE_CHECKING:
    from diffclip.search.duplicates import Group
    from diffclip.search.query import Hit, Part
    from diffclip.search.store import Index
    from diffclip.use.encoder import Encoder, Features

ALIKE, TOP = 0.97, 10
"""The threshold of duplicates, and the number of pictures, where none is given."""


def search(
    index: Positional[str],
    query: Positional[tuple[str, ...]] = (),
    /,
    *,
    image: tuple[str, ...] = (),
    minus: tuple[str, ...] = (),
    minus_image: tuple[str, ...] = (),
    weights: tuple[float, ...] = (),
    duplicates: bool = False,
    threshold: float | None = None,
    top: int | None = None,
    folder: str | None = None,
    since: str | None = None,
    until: str | None = None,
    camera: str | None = None,
    min_width: int | None = None,
    min_height: int | None = None,
    format: Literal["table", "paths", "json"] = "table",
    model: str | None = None,
) -> None:
    """Find pictures of an index.

    Args:
        index: What `diffclip index` wrote.
        query: Texts to look for, together.
        image: Image files to look for, together with the texts.
        minus: Texts that lead away: "beach" --minus people.
        minus_image: Image files that lead away.
        weights: One number for each part of the query: texts, images, minus, minus images; by default 1 each.
        duplicates: Instead of a query: groups of pictures that are nearly the same.
        threshold: With --duplicates: the cosine from which pictures count as nearly the same; by default 0.97.
        top: How many pictures; by default 10.
        folder: Only pictures in this folder and below.
        since: Only pictures taken on this day or later: 2024-06-01, or 2024.
        until: Only pictures taken on this day or before.
        camera: Only pictures of cameras with this in their name.
        min_width: Only pictures with at least so many pixels across.
        min_height: Only pictures with at least so many pixels down.
        format: A table; paths alone, one a line as the file system has them; or JSON.
        model: Where the index's model lies now, if it has moved.
    """
    from diffclip.search.query import Filters
    from diffclip.search.store import Index

    if top is not None and top < 1:
        raise UserError(f"--top {top}: give at least 1")
    asked = bool(query or image or minus or minus_image)
    if duplicates and asked:
        raise UserError("--duplicates compares all pictures: leave the query out")
    if duplicates and (top is not None or weights or model is not None):
        raise UserError("--duplicates shows every group, by the features of the index: leave --top, --weights, --model")
    if threshold is not None and not duplicates:
        raise UserError("--threshold is of --duplicates: give both, or --top for fewer pictures")
    if not duplicates and not (query or image):
        raise UserError(f"nothing to look for: diffclip search {index} TEXT, --image FILE or --duplicates")
    filters = Filters(folder, _day(since, "--since"), _day(until, "--until", end=True), camera, min_width, min_height)
    if duplicates and filters != Filters():
        raise UserError("--duplicates compares all pictures: leave the conditions out")
    opened = Index.open(index)
    if duplicates:
        _show_groups(_groups(opened, ALIKE if threshold is None else threshold), format)
        return
    say_loading()
    from diffclip.search.query import find, vector_of
    from diffclip.search.session import encoder_for

    encoder = encoder_for(opened, model)
    vector = vector_of(encoder, _parts(encoder, query, image, minus, minus_image, weights))
    _show(find(opened, vector, top or TOP, filters=filters), format)


def _parts(
    encoder: Encoder,
    query: Sequence[str],
    image: Sequence[str],
    minus: Sequence[str],
    minus_image: Sequence[str],
    weights: Sequence[float],
) -> list[Part]:
    from diffclip.search.query import Part, check_text, picture_feature

    for text in (*query, *minus):
        check_text(text)
    count = len(query) + len(image) + len(minus) + len(minus_image)
    if weights and len(weights) != count:
        raise UserError(
            f"--weights has {counted(len(weights), 'number')} for {counted(count, 'part')} of the query: give one each"
        )
    if any(weight < 0 for weight in weights):
        raise UserError("--weights has a number below 0: give what leads away by --minus or --minus-image")
    whats: list[str | Features] = [*query, *(picture_feature(encoder, path) for path in image)]
    away: list[str | Features] = [*minus, *(picture_feature(encoder, path) for path in minus_image)]
    signed = [(what, 1.0) for what in whats] + [(what, -1.0) for what in away]
    sizes = weights or [1.0] * count
    return [Part(what, sign * size) for (what, sign), size in zip(signed, sizes, strict=True)]


def _day(text: str | None, option: str, *, end: bool = False) -> datetime | None:
    """The beginning of a day or year, or its end."""
    if text is None:
        return None
    for pattern in ("%Y-%m-%d", "%Y-%m", "%Y"):
        try:
            first = datetime.strptime(text, pattern)
        except ValueError:
            continue
        if not end:
            return first
        if pattern == "%Y-%m-%d":
            return first + timedelta(days=1)
        month = 1 if pattern == "%Y" or first.month == 12 else first.month + 1
        return first.replace(year=first.year + (month == 1), month=month)
    raise UserError(f"{option} {text}: give a day, a month or a year: 2024-06-01, 2024-06, 2024")


def _groups(index: Index, threshold: float) -> list[Group]:
    from diffclip.search.duplicates import duplicates
    from diffclip.use.choices import progress

    with progress("comparing", None) as told:
        return duplicates(index, threshold, told)


def _show_groups(groups: Sequence[Group], format: str) -> None:
    if format == "json":
        rows = [{"paths": g.paths, "least_cosine": round(g.least, 4), "identical": g.identical} for g in groups]
        print(json.dumps(rows, ensure_ascii=True, indent=1))
        return
    for number, group in enumerate(groups, start=1):
        if format == "table":
            how = "identical" if group.identical else f"cosine {group.least:.3f} or more"
            print(f"{'' if number == 1 else chr(10)}{len(group.paths)} pictures, {how}:")
        elif number > 1:
            print(flush=True)
        for path in group.paths:
            _print_path(path) if format == "paths" else print(f"  {printable(path)}")
    if format == "table":
        print(f"{'' if not groups else chr(10)}{counted(len(groups), 'group')}")


def _show(hits: Sequence[Hit], format: str) -> None:
    if format == "paths":
        for hit in hits:
            _print_path(hit.path)
    elif format == "json":
        print(json.dumps([as_json(hit) for hit in hits], ensure_ascii=True, indent=1))
    elif not hits:
        print("nothing found: the conditions leave no picture")
    else:
        from diffclip.terminal import Terminal

        console = Terminal()
        for hit in hits:
            taken = f"{hit.taken:%Y-%m-%d}" if hit.taken else " " * 10
            console.print(f"{hit.score:6.3f}  {taken}  {hit.path}", highlight=False, soft_wrap=True)


def as_json(hit: Hit) -> dict[str, Any]:
    """A hit for a program: a path that is no UTF-8 has its bytes as lone surrogates, as Python has."""
    return {
        "path": hit.path,
        "score": round(hit.score, 5),
        "taken": hit.taken.isoformat() if hit.taken else None,
        "camera": hit.camera,
        "width": hit.width,
        "height": hit.height,
    }


def _print_path(path: str) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(path) + b"\n")
    sys.stdout.buffer.flush()
