"""Tar shards, read in any order: an index says where each example's bytes lie (shard_index.py)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffclip.data.example import Example, Options
from diffclip.data.formats import columns
from diffclip.data.formats.shard_index import ShardIndex, indices
from diffclip.data.formats.stamp import stamp_of
from diffclip.data.formats.tar import IMAGE_SUFFIXES, ending, read
from diffclip.data.images import MAX_BYTES, BadImage
from diffclip.errors import UserError
from diffclip.reading import lines, parse_json
from diffclip.text import closest, listed

logger = logging.getLogger(__name__)

LONGEST_TEXT = 1 << 20  # bytes of captions, of a label or of JSON


class TarSource:
    """Examples from WebDataset shards, as img2dataset and the LAION benchmark write them.

    Captions come from `.txt` (one a line) or else from "caption" in `.json`, labels from `.cls`; any other
    `caption_key` or `label_key` names an entry of `.json`. Class names and templates that are not given are
    read from `classnames.txt` and `zeroshot_classification_templates.txt`, beside the shards or one folder
    up.
    """

    def __init__(self, files: Sequence[Path], options: Options) -> None:
        self.name = options.name
        self._files, self._options = list(files), options
        shards = indices(self._files)
        self._image = image_suffix(f"shard {self._files[0]}", _all_suffixes(shards), options)
        has_image = [shard.spans([self._image])[:, 0, 0] > 0 for shard in shards]
        first = next((number for number, has in enumerate(has_image) if has.any()), None)
        if first is None:
            raise UserError(f"shard {files[0]} holds no images, nor does any other of {self.name}")
        self._caption, self._label = _texts_of(self._files[first], shards[first], options)
        self._suffixes = list(dict.fromkeys([self._image, *filter(None, (self._caption[0], self._label[0]))]))
        self._beside = self._caption[0] not in (None, "json") and "json" not in self._suffixes
        index = [shard.spans([*self._suffixes, "json"])[has] for shard, has in zip(shards, has_image, strict=True)]
        empty = [file for file, has in zip(self._files, has_image, strict=True) if not has.any()]
        if empty:
            logger.warning(
                "%s: %d of %d shards hold no images; %s is the first", self.name, len(empty), len(files), empty[0]
            )
        without_image = sum(len(has) - int(has.sum()) for has in has_image)
        if without_image:
            logger.warning("%s: %d entries without an image are left out", self.name, without_image)
        self._spans = np.concatenate(index)  # (examples, suffixes and json, 2): offset and size, 0 where it is missing
        self._starts = np.cumsum([0, *map(len, index)])
        self.classnames, self.templates = options.classnames, options.templates
        self.own_names: tuple[str, ...] = ()
        if self._label[0]:
            folder = files[0].parent
            self.own_names = _lines_near(folder, "classnames.txt") or ()
            self.classnames = self.classnames or self.own_names or None
            self.templates = self.templates or _lines_near(folder, "zeroshot_classification_templates.txt")

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Example:
        """Raises BadImage: "missing" if the shard has gone, "too_many_bytes", "bad_label" for what is no number."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        *spans, json_span = [(int(offset), int(size)) for offset, size in self._spans[index]]
        if spans[0][1] > MAX_BYTES or any(size > LONGEST_TEXT for _, size in spans[1:]):
            raise BadImage("too_many_bytes")
        try:
            contents = dict(zip(self._suffixes, read(self._files[shard], spans), strict=True))
            if self._beside and b"\n" in contents[self._caption[0] or ""].strip() and 0 < json_span[1] <= LONGEST_TEXT:
                contents["json"] = read(self._files[shard], [json_span])[0]
        except OSError:
            raise BadImage("missing") from None
        return example_of(contents, self._caption, self._label, self._image)

    def place(self, index: int) -> str:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return f"{self._files[shard]}, image at byte {int(self._spans[index, 0, 0])}"

    def stamp(self) -> str:
        return stamp_of(self._files, self._options)


Text = tuple[str | None, str]  # the member's suffix (None: there is no such text) and the entry, if it is JSON


def _all_suffixes(shards: Sequence[ShardIndex]) -> list[str]:
    return list(dict.fromkeys(suffix for shard in shards for suffix in shard.suffixes))


def image_suffix(where: str, suffixes: Sequence[str], options: Options) -> str:
    """Which members are the images: what ends in .jpg, .png and so on, or else the only one like .input.jpg.

    Raises UserError for none, for a choice of several, and for a stated one that is not there.
    """
    stated = options.image_key and options.image_key.lower().removeprefix(".")
    if stated in IMAGE_SUFFIXES:
        stated = "image"
    found = [suffix for suffix in suffixes if suffix == "image"] or ending(suffixes, IMAGE_SUFFIXES)
    if stated:
        if stated not in suffixes:
            raise UserError(f"{where} has no {options.image_key!r}: its members end in {listed(suffixes)}")
        return stated
    if len(found) > 1:
        raise UserError(
            f"{where} has several images an example ({listed(found)}): choose one with "
            f"{columns.how_to_state('image_key')}"
        )
    if not found:
        its = f"; its members end in {listed(suffixes)}" if suffixes else ""
        raise UserError(f"{where} holds no images{its}")
    return found[0]


def example_of(contents: dict[str, bytes], caption: Text, label: Text, image: str = "image") -> Example:
    """An example from its members' bytes by suffix. Raises BadImage("bad_label")."""
    return Example(contents[image], _captions(contents, caption), _number_of_class(contents, label))


def _texts_of(file: Path, index: ShardIndex, options: Options) -> tuple[Text, Text]:
    """Where captions and labels are, decided by the entries of the first shard with images."""
    content = None
    if "json" in index.suffixes:
        spans = index.spans(["json"])[:, 0]
        offset, size = spans[spans[:, 0] > 0][0].tolist()
        content = read(file, [(offset, min(size, LONGEST_TEXT))])[0]
    return texts_among(f"shard {file}", index.suffixes, content, options)


def texts_among(where: str, suffixes: Sequence[str], content: bytes | None, options: Options) -> tuple[Text, Text]:
    """Where captions and labels are among members with these suffixes, of which one .json has this content."""
    keys = list(_json(content)) if content is not None else []

    def locate(key: str | None, suffix: str, entry: str | None) -> Text:
        if key is None:
            own = suffix if suffix in suffixes else next(iter(ending(suffixes, [suffix])), None)
            return (own, "") if own else ("json", entry) if entry in keys else (None, "")
        if key in suffixes and (key == suffix or key in ending(suffixes, [suffix])):
            return key, ""
        if key not in keys:
            known = listed(suffixes) + (f", and its .json has {listed(keys)}" if keys else "")
            meant = closest(key, [*suffixes, *keys])
            raise UserError(f"{where} has no {key!r}: its examples have {known}{meant}")
        return "json", key

    caption = locate(options.caption_key, "txt", "caption")
    label = locate(options.label_key, "cls", None)
    if caption[0] is None and label[0] is None:
        raise columns.nothing_to_learn(where, "members", suffixes)
    return caption, label


def _json(content: bytes) -> dict[str, object]:
    try:
        value = parse_json(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _captions(contents: dict[str, bytes], where: Text) -> tuple[str, ...]:
    suffix, key = where
    if suffix is None:
        return ()
    if suffix == "json":
        value = _json(contents[suffix]).get(key)
        return columns.captions([v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)])
    written = contents[suffix].decode("utf-8", errors="replace").split("\n")
    texts = [line.strip() for line in written if line.strip()]
    if len(texts) > 1 and contents.get("json"):  # img2dataset writes a caption of several lines as it is
        whole = _json(contents["json"]).get("caption")
        if isinstance(whole, str) and [line.strip() for line in whole.split("\n") if line.strip()] == texts:
            return (" ".join(texts),)
    return columns.captions(texts)


def _number_of_class(contents: dict[str, bytes], where: Text) -> int | None:
    suffix, key = where
    if suffix is None:
        return None
    value = _json(contents[suffix]).get(key) if suffix == "json" else contents[suffix]
    try:
        number = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):  # not a number, or JSON's Infinity
        raise BadImage("bad_label") from None
    if number >= 1 << 63:
        raise BadImage("bad_label")
    return number if number >= 0 else None


def _lines_near(folder: Path, name: str) -> tuple[str, ...] | None:
    for file in (folder / name, folder.parent / name):
        if file.exists():
            found = lines(file, LONGEST_TEXT)
            if any(found) and not all(found):  # leaving it out would shift all names after it
                raise UserError(f"{file} line {found.index('') + 1} is empty: each line names a class or a template")
            return tuple(filter(None, found))
    return None
