"""`diffclip data pack`: any data set to tar shards, which train and stream from anywhere.

Shards are what img2dataset writes and the LAION benchmark reads: an image, its captions in `.txt` (one a line) and its
label in `.cls` side by side, class names and templates beside the shards; what a source says about an example, such as
its author, in `.json`. Each shard appears under its name when it is
whole; `pack.json` says how far the packing has come, with the SHA-256 of each shard. The same command goes on from
there, and packs again what is not as it was packed.
"""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress

from diffclip import durable
from diffclip.data.formats.stamp import Stamped
from diffclip.data.images import BadImage, decode, opened
from diffclip.data.parallel import in_order
from diffclip.data.sources import Source
from diffclip.data.transforms import shrunk
from diffclip.errors import UserError
from diffclip.reading import parse_json, read_text
from diffclip.terminal import Terminal

log = logging.getLogger(__name__)

AT_A_TIME = 32
PROGRESS, LOCK = "pack.json", ".lock"
SHARD = {"file", "examples", "until", "sha256", "bytes"}
"""What `pack.json` says of each shard; until: how many examples of the order are packed with it."""
_BLOCK = 512


@runtime_checkable
class Described(Protocol):
    """A source that says more of an example than what is learned from, such as its licence."""

    def about(self, index: int) -> dict[str, str]:
        """What goes into the example's `.json`, under other names than `caption`."""
        ...


@dataclass(frozen=True)
class ShardPlan:
    """What decides the bytes of the shards, beside the source."""

    shard_bytes: int = 1 << 28
    """Of a shard, at most; an example larger than that has a shard of its own."""
    shard_examples: int = 10_000
    resize: int | None = None
    """Pixels of the shorter edge to which larger images are shrunk; without it files stay as they are, bit by bit."""
    quality: int = 92
    """Of the JPEG files that shrunk images become."""
    shuffle: int | None = None
    """Seed of a random order; without it the source's order."""


@dataclass(frozen=True)
class Packed:
    """What became of one example: its members by suffix, or why it was left out."""

    members: tuple[tuple[str, bytes], ...] = ()
    reason: str = ""

    @property
    def size(self) -> int:
        """Bytes in the archive."""
        return sum(_BLOCK + -(-len(content) // _BLOCK) * _BLOCK for _, content in self.members)


def packed(source: Source, plan: ShardPlan, indices: Sequence[int]) -> list[Packed]:
    """Some examples as they are to lie in a shard."""
    return [_packed(source, plan, int(index)) for index in indices]


def _packed(source: Source, plan: ShardPlan, index: int) -> Packed:
    try:
        example = source[index]
        suffix, content = _image(example.image, plan)
    except BadImage as bad:
        return Packed(reason=bad.reason)
    members = [(suffix, content)]
    captions = [" ".join(caption.split()) for caption in example.captions]
    if captions:
        members.append(("txt", "\n".join(captions).encode(errors="replace")))
    if example.label is not None:
        members.append(("cls", str(example.label).encode()))
    if len(members) == 1:
        return Packed(reason="no_caption")
    if isinstance(source, Described):
        members.append(("json", json.dumps(source.about(index), ensure_ascii=False).encode()))
    return Packed(tuple(members))


def _image(image: bytes | NDArray[np.uint8], plan: ShardPlan) -> tuple[str, bytes]:
    """Suffix and content of the file. Raises BadImage."""
    if plan.resize is not None:
        pixels = decode(image)
        if min(pixels.shape[:2]) > plan.resize:
            small = np.ascontiguousarray(shrunk(pixels, plan.resize))
            return "jpg", simplejpeg.encode_jpeg(small, quality=plan.quality, colorsubsampling="420")
    if isinstance(image, bytes):
        return _suffix(image), image
    file = io.BytesIO()
    Image.fromarray(decode(image)).save(file, "PNG")
    return "png", file.getvalue()


def _suffix(image: bytes) -> str:
    with opened(image) as pillow:
        return {"JPEG": "jpg", "TIFF": "tif"}.get(pillow.format or "", (pillow.format or "").lower())


def pack(source: Source, out: Path, plan: ShardPlan, *, workers: int = 1) -> dict[str, Any]:
    """Write a source as shards into `out`; go on where a packing of the same source with the same plan was stopped.

    Returns what `pack.json` says. Raises UserError where `out` holds anything else, another process packs into it, it
    cannot be written, or nothing of the source can be used.
    """
    facts = {
        "source": source.name,
        "stamp": source.stamp() if isinstance(source, Stamped) else None,
        "examples": len(source),
        "plan": asdict(plan),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(out)
        busy = f"another process is packing into {out}: wait for it, or give another --out"
        with durable.locked(out / LOCK, busy):
            state: dict[str, Any] = _begun(out, facts) or facts | {
                "done": 0,
                "left_out": {},
                "shards": [],
                "finished": False,
            }
            durable.remove_unfinished(out)
            durable.write_text(out / PROGRESS, json.dumps(state, indent=1))  # from now on the folder is known as ours
            order = np.arange(len(source))
            if plan.shuffle is not None:
                order = np.random.default_rng(plan.shuffle).permutation(len(source))
            _write_class_files(source, out)
            _mend(source, out, plan, workers, state["shards"], order)
            if not state["finished"]:
                _pack(source, out, plan, workers, state, order)
    except OSError as error:
        raise UserError(f"cannot write to {error.filename or out}: {error.strerror}") from None
    return state


def _refuse_foreign(out: Path) -> None:
    there = sorted(entry.name for entry in out.iterdir() if not entry.name.endswith((durable.UNFINISHED, LOCK)))
    if there and PROGRESS not in there:
        raise UserError(f"{out} is not empty ({', '.join(there[:5])}): give a new folder as --out")


def _begun(out: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """How far a packing in this folder has come. Raises UserError where it is another one, or that is not known."""
    file = out / PROGRESS
    if not file.exists():
        return None
    try:
        state = parse_json(read_text(file))
        before = {key: state[key] for key in facts}
        readable = isinstance(before["plan"], dict) and all(shard.keys() >= SHARD for shard in state["shards"])
    except (ValueError, KeyError, TypeError, AttributeError):
        readable = False
    if not readable:
        raise UserError(f"{file} cannot be read: give a new folder as --out")
    if before != facts:
        raise UserError(f"{out} holds another packing ({_difference(before, facts)}): give a new folder as --out")
    return dict(state)


def _difference(before: dict[str, Any], facts: dict[str, Any]) -> str:
    if before["plan"] != facts["plan"]:
        plans = before["plan"], facts["plan"]
        key = next(key for key in facts["plan"] if plans[0].get(key) != plans[1][key])
        return f"its {key} is {plans[0].get(key)}, not {plans[1][key]}"
    changed = next(key for key in facts if before[key] != facts[key])
    return "the source's files have changed" if changed == "stamp" else f"its {changed} is {before[changed]!r}"


def _mend(
    source: Source, out: Path, plan: ShardPlan, workers: int, shards: list[dict[str, Any]], order: NDArray[np.int64]
) -> None:
    """Pack those shards again that are not as they were packed. Raises UserError where they come out otherwise."""
    first = 0
    for shard in shards:
        path = out / shard["file"]
        if not (path.is_file() and path.stat().st_size == shard["bytes"] and durable.sha256(path) == shard["sha256"]):
            log.warning("%s is not as it was packed: it is packed again", path)
            examples = _each(source, plan, order[first : shard["until"]], workers)
            _write_shard(path, [example.members for example in examples if example.members], shard["sha256"])
        first = shard["until"]


def _pack(
    source: Source, out: Path, plan: ShardPlan, workers: int, state: dict[str, Any], order: NDArray[np.int64]
) -> None:
    left_out = Counter(state["left_out"])
    console = Terminal(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("packing", total=len(source), completed=state["done"])
        for group in _groups(_each(source, plan, order[state["done"] :], workers), plan):
            members = [example.members for example in group if example.members]
            left_out.update(example.reason for example in group if example.reason)
            state["done"] += len(group)
            if members:
                path = out / f"{len(state['shards']):05d}.tar"
                shard = {"file": path.name, "examples": len(members), "until": state["done"]}
                shard["sha256"] = _write_shard(path, members)
                state["shards"].append(shard | {"bytes": path.stat().st_size})
            state["left_out"] = dict(left_out)
            durable.write_text(out / PROGRESS, json.dumps(state, indent=1))
            bar.update(task, completed=state["done"])
    if not state["shards"]:
        raise UserError(f"{source.name}: none of {len(source):,} examples can be used: {dict(left_out)}")
    state["finished"] = True
    durable.write_text(out / PROGRESS, json.dumps(state, indent=1))


def _each(source: Source, plan: ShardPlan, order: NDArray[np.int64], workers: int) -> Iterator[Packed]:
    chunks = [order[at : at + AT_A_TIME].tolist() for at in range(0, len(order), AT_A_TIME)]
    for chunk in in_order(partial(packed, source, plan), chunks, min(workers, len(chunks))):
        yield from chunk


def _groups(examples: Iterator[Packed], plan: ShardPlan) -> Iterator[list[Packed]]:
    """The examples of each shard, with those that are left out on the way."""
    group, size, count = list[Packed](), 0, 0
    for example in examples:
        used = bool(example.members)
        if (
            used
            and count
            and (size + example.size > plan.shard_bytes - tarfile.RECORDSIZE or count == plan.shard_examples)
        ):
            yield group
            group, size, count = [], 0, 0
        group.append(example)
        size, count = size + example.size, count + used
    if group:
        yield group


def _write_shard(path: Path, examples: Sequence[tuple[tuple[str, bytes], ...]], expected: str | None = None) -> str:
    """The SHA-256 of the shard. Raises UserError, and writes nothing, where another is expected."""
    with durable.writing(path) as unfinished:
        with tarfile.open(unfinished, "w", format=tarfile.USTAR_FORMAT) as archive:
            for number, members in enumerate(examples):
                for suffix, content in members:
                    info = tarfile.TarInfo(f"{path.stem}{number:05d}.{suffix}")
                    info.size = len(content)  # all else stays as it is: the same examples make the same bytes
                    archive.addfile(info, io.BytesIO(content))
        found = durable.sha256(unfinished)
        if found != (expected or found):
            raise UserError(f"{path} cannot be made again: it comes out otherwise now; give a new folder as --out")
    return found


def _write_class_files(source: Source, out: Path) -> None:
    for name, texts in (
        ("classnames.txt", source.classnames),
        ("zeroshot_classification_templates.txt", source.templates),
    ):
        if source.classnames and texts:
            path, text = out / name, "".join(f"{text}\n" for text in texts)
            if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
                log.warning("%s is not as it was packed: it is written again", path)
            durable.write_text(path, text)


def tell(state: dict[str, Any], out: Path) -> None:
    """Say what was packed."""
    examples = sum(shard["examples"] for shard in state["shards"])
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in state["left_out"].items())
    console = Terminal()
    console.print(
        f"{out}: {examples:,} of {state['examples']:,} examples in {len(state['shards']):,} shards"
        + (f"; left out: {left_out}" if left_out else ""),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
