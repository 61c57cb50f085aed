"""Tar shards that come over http, from S3 or out of a command, read from front to back with the webdataset library.

A stream has no index: it cannot be read at a place, only trained on. What order it comes in is said at
`Stream.examples`.
"""

from __future__ import annotations

import logging
import re
import shlex
import shutil
import tarfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count, islice
from typing import Any

import numpy as np

from diffclip.data.example import Example, Options
from diffclip.data.formats.paths import expand_braces
from diffclip.data.formats.shards import LONGEST_TEXT, example_of, image_suffix, texts_among
from diffclip.data.formats.tar import IMAGE_SUFFIXES
from diffclip.data.images import MAX_BYTES, BadImage
from diffclip.errors import UserError

logger = logging.getLogger(__name__)

BUFFER = 5000  # examples that are mixed with each other
PAUSES = (1.0, 5.0, 25.0)  # seconds before a shard that broke off is read again from its beginning
LOOKED_AT = 20  # examples of the first shard that decide where captions and labels are
_STREAM = re.compile(r"(https?|s3|gs|pipe):")
_TOOLS = {"http": "curl", "https": "curl", "s3": "aws", "gs": "gsutil"}
_BROKEN = (OSError, EOFError, ValueError, tarfile.TarError, zlib.error)
_SHARDS, _MIXING = 3, 4  # the last number of a seed: what is drawn from it; the loader has 1 and 2


def is_stream(path: str) -> bool:
    return _STREAM.match(path) is not None


def open_stream(
    path: str,
    examples: int,
    *,
    format: str = "auto",
    split: str | None = None,
    image_key: str | None = None,
    caption_key: str | None = None,
    label_key: str | None = None,
    classnames: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    holdout: int = 0,
    part: str = "all",
) -> Stream:
    """The stream of the shards that `path` names; `examples` says how many they hold.

    `{00000..00331}` and `{a,b}` in `path` are expanded. `pipe:COMMAND` is what a shell command writes. The keys are
    those of `open_source`.

    Raises:
        UserError: `examples` is not stated, a setting makes no sense for a stream, a program is missing, or the first
            shard cannot be read.
    """
    if format not in ("auto", "tar"):
        raise UserError(f"{path}: a stream is made of tar shards, not of {format}")
    if split is not None or holdout or part != "all":
        raise UserError(f"{path}: a stream has no split, holdout or part: name the shards that are wanted")
    if examples <= 0:
        raise UserError(f"{path}: how many examples a stream holds has to be stated: set data.examples")
    scheme = path.partition(":")[0]
    tool = _TOOLS.get(scheme)
    if tool and shutil.which(tool) is None:
        raise UserError(f"{path} is read by the program {tool}, which is not there")
    options = Options(
        path,
        image_key,
        caption_key,
        label_key,
        tuple(classnames) if classnames else None,
        tuple(templates) if templates else None,
    )
    return Stream(expand_braces(path), examples, options)


class Stream:
    """A `Source` as far as it goes: its length is what was stated, and no example of it can be asked for."""

    def __init__(self, shards: Sequence[str], examples: int, options: Options) -> None:
        self.name, self.classnames, self.templates = options.name, options.classnames, options.templates
        self._shards, self._length = list(shards), examples
        first = list(islice(_read(self._shards[0], 0, ()), LOOKED_AT))
        where = f"shard {self._shards[0]}"
        suffixes = list(dict.fromkeys(suffix for contents in first for suffix in contents))
        self._image = image_suffix(where, suffixes, options)
        json = next((contents["json"] for contents in first if "json" in contents), None)
        self._caption, self._label = texts_among(where, suffixes, json, options)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        raise UserError(
            f"{self.name} is a stream, of which no single example can be had: train on it; for all else fetch it"
        )

    def examples(self, seed: int, epoch: int, part: tuple[int, int]) -> Iterator[Example | BadImage]:
        """Without end: the examples of the `which`-th of every `of how many` shards, or why one cannot be used.

        Shards come in an order drawn from (seed, epoch), examples through a buffer of `BUFFER`, from which each is
        drawn at random. After the last shard all come again in another order. As long as the shards give the same
        bytes this depends on seed, epoch and part alone. A shard that breaks off is read again, and what came of it
        is passed over.

        Raises:
            UserError: there are fewer shards than parts, or one cannot be read after all.
        """
        which, parts = part
        if len(self._shards) < parts:
            raise UserError(
                f"{self.name} has {len(self._shards)} shards for {parts} processes: each needs one of its own"
            )
        mixing = np.random.default_rng([seed, epoch, which, _MIXING])
        buffer: list[Example | BadImage] = []
        for time_around in count():
            found = 0
            order = np.random.default_rng([seed, epoch, time_around, _SHARDS]).permutation(len(self._shards))
            for shard in order[which::parts]:
                for contents in _read(self._shards[shard], 0, PAUSES):
                    found += 1
                    buffer.append(self._example(contents))
                    if len(buffer) > BUFFER:
                        at = int(mixing.integers(len(buffer)))
                        buffer[at], buffer[-1] = buffer[-1], buffer[at]
                        yield buffer.pop()
            if not found:
                raise UserError(f"{self.name} holds no examples")
            for at in mixing.permutation(len(buffer)):
                yield buffer[at]
            buffer.clear()
            if time_around == 0:
                logger.info("%s: %d examples in part %d of %d", self.name, found, which, parts)

    def _example(self, contents: dict[str, bytes]) -> Example | BadImage:
        try:
            if self._image not in contents:
                raise BadImage("missing")
            texts = {suffix: contents.get(suffix, b"") for suffix, _ in (self._caption, self._label) if suffix}
            if "json" in contents:  # says whether a caption of several lines is one
                texts["json"] = contents["json"]
            image = contents[self._image]
            if len(image) > MAX_BYTES or any(len(content) > LONGEST_TEXT for content in texts.values()):
                raise BadImage("too_many_bytes")
            return example_of({self._image: image} | texts, self._caption, self._label, self._image)
        except BadImage as bad:
            return BadImage(bad.reason)  # without the frames that a raised one holds on to


def _read(url: str, passed: int, pauses: Sequence[float]) -> Iterator[dict[str, bytes]]:
    """The examples of a shard after the first `passed`, by suffix; the image's is "image". Tries again after pauses."""
    try:
        for contents in islice(_tar(url), passed, None):
            passed += 1
            yield contents
    except UserError:
        raise
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:200]
        if not pauses:
            raise UserError(f"shard {url} cannot be read: {reason}") from None
        logger.warning("shard %s broke off after %d examples: %s; trying again", url, passed, reason)
        time.sleep(pauses[0])
        yield from _read(url, passed, pauses[1:])


def _tar(url: str) -> Iterator[dict[str, bytes]]:
    try:
        from webdataset.gopen import gopen
        from webdataset.tariterators import group_by_keys, tar_file_expander
    except ImportError:
        raise UserError(f"{url}: streams need the webdataset library: pip install 'diffclip[stream]'") from None
    opened = gopen(f"pipe:aws s3 cp {shlex.quote(url)} -" if url.startswith("s3:") else url)
    whole = False
    try:
        sample: dict[str, Any]
        for sample in group_by_keys(tar_file_expander(iter([{"url": url, "stream": opened}]))):
            members = {suffix: content for suffix, content in sample.items() if not suffix.startswith("__")}
            image = next((members.pop(suffix) for suffix in IMAGE_SUFFIXES if suffix in members), None)
            yield members if image is None else members | {"image": image}
        while opened.read(1 << 20):  # to its end, where the program says whether all went well
            pass
        whole = True
    finally:
        if whole:
            opened.close()
        else:
            with suppress(*_BROKEN):  # a program that is stopped half way complains
                opened.close()
