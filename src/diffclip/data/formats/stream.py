"""Tar shards that come over http, from S3 or out of a command, read from front to back with the webdataset library.

A stream has no index: it cannot be read at a place, only trained on. What order it comes in is said at
`Stream.examples`.
"""

from __future__ import annotations

import logging
import lzma
import os
import re
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
BUFFER_BYTES = 1 << 30  # of these, beyond which it has fewer: some megabytes may unpack to any size
PAUSES = (1.0, 5.0, 25.0)  # seconds before a shard that broke off is read again from its beginning
LOOKED_AT = 20  # examples of the first shard that decide where captions and labels are
_STREAM = re.compile(r"(https?|s3|gs|pipe):")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):(//)?", re.IGNORECASE)
_ELSEWHERE = (
    "ais",
    "file",
    "ftp",
    "ftps",
    "hf",
    "htgs",
    "pipe",
    "scp",
    "sftp",
)  # webdataset's, not ours
# What programs could take for an option, for the end of an argument or for several URLs is in no URL.
_URL = re.compile(
    r"(https?|s3|gs)://([\w.~%:-]+@)?(\[[0-9a-f:.]+\]|\w[\w.-]*)(:\d+)?([/?#][^\s'\"`\\<>|^{}\[\]]*)?", re.IGNORECASE
)
_TOOLS = {"http": "curl", "https": "curl", "s3": "aws", "gs": "gsutil"}
_BROKEN = (OSError, EOFError, ValueError, OverflowError, LookupError, tarfile.TarError, zlib.error, lzma.LZMAError)
_LONGEST_HEADER = 1 << 20  # bytes of a pax header or long name, which tarfile reads whole
_SHARDS, _MIXING = 3, 4  # the last number of a seed: what is drawn from it; the loader has 1 and 2


def is_stream(path: str) -> bool:
    return _STREAM.match(path) is not None


def check_scheme(path: str) -> None:
    """Raises UserError for what looks like a URL, is no file here, and has a scheme that is not read."""
    match = _SCHEME.match(path)
    if match and (match[2] or match[1].lower() in _ELSEWHERE) and not os.path.exists(path):
        raise UserError(
            f"{path}: {match[1]}: is not read: give files, or for training a stream by http, https, s3, gs or pipe, "
            "in lower case"
        )


def runs_a_command(path: str) -> bool:
    return path.startswith("pipe:")


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
    allow_outside: bool = False,
) -> Stream:
    """The stream of the shards that `path` names; `examples` says how many they hold.

    `{00000..00331}` and `{a,b}` in `path` are expanded. `pipe:COMMAND` is what a shell command writes. The keys are
    those of `open_source`.

    Raises:
        UserError: `examples` is not stated, a setting makes no sense for a stream, a program is missing, a URL has
            characters that no URL has, or the first shard cannot be read.
    """
    if format not in ("auto", "tar"):
        raise UserError(f"{path}: a stream is made of tar shards, not of {format}")
    if split is not None or holdout or part != "all" or allow_outside:
        raise UserError(f"{path}: a stream has no split, holdout, part or allow_outside: name the wanted shards")
    if examples <= 0:
        raise UserError(f"{path}: how many examples a stream holds has to be stated: set data.examples")
    options = Options(
        path,
        image_key,
        caption_key,
        label_key,
        tuple(classnames) if classnames else None,
        tuple(templates) if templates else None,
    )
    scheme = path.partition(":")[0]
    shards = expand_braces(path)
    for url in shards:
        if not (runs_a_command(url) or (_URL.fullmatch(url) and url.isprintable())):
            raise UserError(
                f"{url} is no URL of a shard: expected {scheme}://HOST/PATH without spaces, quotes, brackets, "
                "backslashes and control characters; write them as %20 and so on"
            )
    tool = _TOOLS.get(scheme)
    if tool and shutil.which(tool) is None:
        raise UserError(f"{path} is read by the program {tool}, which is not there")
    return Stream(shards, examples, options)


class Stream:
    """A `Source` as far as it goes: its length is what was stated, and no example of it can be asked for."""

    def __init__(self, shards: Sequence[str], examples: int, options: Options) -> None:
        self.name, self.classnames, self.templates = options.name, options.classnames, options.templates
        self._shards, self._length = list(shards), examples
        first = list(islice(_read(self._shards[0], 0, ()), LOOKED_AT))
        where = f"shard {self._shards[0]}"
        suffixes = list(dict.fromkeys(suffix for contents in first for suffix in contents))
        self._image = image_suffix(where, suffixes, options)
        json = next((contents["json"] for contents in first if contents.get("json")), None)
        self._caption, self._label = texts_among(where, suffixes, json, options)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        raise UserError(
            f"{self.name} is a stream, of which no single example can be had: train on it; for all else fetch it"
        )

    def examples(self, seed: int, epoch: int, part: tuple[int, int]) -> Iterator[Example | BadImage]:
        """Without end: the examples of the `which`-th of every `of how many` shards, or why one cannot be used.

        Shards come in an order drawn from (seed, epoch), examples through a buffer of `BUFFER`, or of as many as
        `BUFFER_BYTES` hold, from which each is drawn at random. After the last shard all come again in another order.
        As long as the shards give the same bytes this depends on seed, epoch and part alone. A shard that breaks off
        is read again, and what came of it is passed over.

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
        held = 0
        for time_around in count():
            found = 0
            order = np.random.default_rng([seed, epoch, time_around, _SHARDS]).permutation(len(self._shards))
            for shard in order[which::parts]:
                for contents in _read(self._shards[shard], 0, PAUSES):
                    found += 1
                    buffer.append(self._example(contents))
                    held += _bytes(buffer[-1])
                    while len(buffer) > BUFFER or held > BUFFER_BYTES:
                        at = int(mixing.integers(len(buffer)))
                        buffer[at], buffer[-1] = buffer[-1], buffer[at]
                        held -= _bytes(buffer[-1])
                        yield buffer.pop()
            if not found:
                raise UserError(f"{self.name} holds no examples")
            for at in mixing.permutation(len(buffer)):
                yield buffer[at]
            buffer.clear()
            held = 0
            if time_around == 0:
                logger.info("%s: %d examples in part %d of %d", self.name, found, which, parts)

    def _example(self, contents: Contents) -> Example | BadImage:
        try:
            if self._image not in contents:
                raise BadImage("missing")
            wanted = {suffix: contents.get(suffix, b"") for suffix, _ in (self._caption, self._label) if suffix}
            if "json" in contents:  # says whether a caption of several lines is one
                wanted["json"] = contents["json"]
            wanted[self._image] = contents[self._image]
            known = {suffix: content for suffix, content in wanted.items() if content is not None}
            if len(known) < len(wanted):
                raise BadImage("too_many_bytes")
            return example_of(known, self._caption, self._label, self._image)
        except BadImage as bad:
            return BadImage(bad.reason)  # without the frames that a raised one holds on to


def _bytes(example: Example | BadImage) -> int:
    return 0 if isinstance(example, BadImage) else len(example.image)


Contents = dict[str, "bytes | None"]
"""The members of an example by suffix, that of its image being "image"; None for one that is too long."""


def _read(url: str, passed: int, pauses: Sequence[float]) -> Iterator[Contents]:
    """The examples of a shard after the first `passed`. Tries again after pauses."""
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


def _tar(url: str) -> Iterator[Contents]:
    try:
        from webdataset.gopen import Pipe, gopen
        from webdataset.tariterators import group_by_keys
    except ImportError:
        raise UserError(f"{url}: streams need the webdataset library: pip install 'diffclip[stream]'") from None
    opened = Pipe(["aws", "s3", "cp", url, "-"], mode="rb") if url.startswith("s3:") else gopen(url)
    whole = False
    try:
        sample: dict[str, Any]
        for sample in group_by_keys(_members(url, opened)):
            members = {suffix: content for suffix, content in sample.items() if not suffix.startswith("__")}
            image = next((suffix for suffix in IMAGE_SUFFIXES if suffix in members), None)
            if image is not None:
                members["image"] = members.pop(image)
            yield members
        while opened.read(1 << 20):  # to its end, where the program says whether all went well
            pass
        whole = True
    finally:
        if whole:
            opened.close()
        else:
            with suppress(*_BROKEN):  # a program that is stopped half way complains
                opened.close()


class _Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        """Raises ReadError for an extended header that is longer than any name."""
        header = super().frombuf(buf, encoding, errors)
        if header.size > _LONGEST_HEADER and not (header.isfile() or header.type in tarfile.REGULAR_TYPES):
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


def _members(url: str, opened: Any) -> Iterator[dict[str, Any]]:
    """The regular files of an archive as webdataset groups them; what is too long is passed over in pieces."""
    with tarfile.open(fileobj=opened, mode="r|*", tarinfo=_Header) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None:
                fits = member.size <= (MAX_BYTES if member.name.lower().endswith(IMAGE_SUFFIXES) else LONGEST_TEXT)
                yield {"fname": member.name, "data": content.read() if fits else None, "__url__": url}
            archive.members = []  # type: ignore[attr-defined]  # which it would keep for ever
    yield {}
