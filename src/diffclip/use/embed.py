"""Features of any pictures or texts, in one file: written part by part, so that a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from diffclip import durable
from diffclip.data.images import BadImage
from diffclip.data.sources import place_of
from diffclip.errors import UserError
from diffclip.use.encoder import Encoder
from diffclip.use.pictures import Pictures, read

log = logging.getLogger(__name__)

ENDINGS = (".npz", ".parquet", ".safetensors")
PART = 1024
"""Pictures of a part: what a killed run loses at most."""


@dataclass
class Embedded:
    """What came of it."""

    count: int
    """Features in the file."""
    problems: dict[str, str] = field(default_factory=dict)
    """Pictures that could not be read, with the reason; they have no row."""


def embed_pictures(
    encoder: Encoder,
    pictures: Pictures,
    out: Path,
    *,
    half: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Embedded:
    """Write `ids` (N,) and `features` (N, embed_dim), normalised, in the pictures' order.

    half: as float16. Parts lie beside `out`, hidden, until all are there; the same call goes on with them. Others,
    of another model or of pictures that have changed since, are made anew. on_progress is given the number of pictures
    that are done. Raises UserError where no picture could be read or another process writes the same file; OSError.
    """
    folder = out.with_name(f".{out.name}.parts")
    with durable.cannot_write(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with durable.locked(folder / "lock", f"{out} is being written by another process"):
            _keep_what_fits(folder, _key(encoder, pictures))
            parts, problems = [], dict[str, str]()
            for start in range(0, len(pictures), PART):
                span = range(start, min(start + PART, len(pictures)))
                path = folder / f"{start:012d}.safetensors"
                found = _read_part(path)
                if found is None:
                    found = _encode(encoder, pictures, span, partial(_from, start, on_progress))
                    durable.write_bytes(path, _as_bytes(*found))
                on_progress(span.stop)
                rows, features, of_part = found
                parts.append((rows, features))
                problems |= {place_of(pictures, int(row)): why for row, why in of_part.items()}
            rows = np.concatenate([rows for rows, _ in parts])
            if not len(rows):
                raise UserError("no picture could be read", *(f"{n}: {w}" for n, w in list(problems.items())[:10]))
            features = np.concatenate([features for _, features in parts])
            write(out, [place_of(pictures, int(row)) for row in rows], features, encoder, half=half)
        durable.remove(folder)
    return Embedded(len(rows), problems)


def embed_texts(encoder: Encoder, texts: Sequence[str], out: Path, *, half: bool = False) -> Embedded:
    """The same of texts, whose ids are the texts themselves. Raises UserError for none; OSError."""
    if not texts:
        raise UserError("no texts: give --texts or --texts-file")
    write(out, texts, encoder.texts(texts), encoder, half=half)
    return Embedded(len(texts))


def write(
    out: Path, ids: Sequence[str], features: NDArray[np.float32], encoder: Encoder, *, half: bool = False
) -> None:
    """One file of ids and features, by its ending; which model made them is in its metadata. Raises OSError.

    Parquet: columns id and feature, a list of fixed size. safetensors has no strings: `ids` are UTF-8 JSON as uint8.
    """
    stored = features.astype(np.float16 if half else np.float32)
    readable = [name.encode(errors="backslashreplace").decode() for name in ids]
    facts = {"model": encoder.source, "fingerprint": encoder.fingerprint, "precision": encoder.precision}
    facts = {name: value.encode(errors="backslashreplace").decode() for name, value in facts.items()}
    with durable.writing(out) as unfinished:
        if out.suffix.lower() == ".npz":
            with unfinished.open("wb") as file:
                np.savez(file, allow_pickle=False, ids=np.array(readable), features=stored, about=json.dumps(facts))
        elif out.suffix.lower() == ".parquet":
            column = pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1)), stored.shape[1])
            table = pa.table({"id": pa.array(readable, pa.string()), "feature": column})
            pq.write_table(table.replace_schema_metadata({"diffclip": json.dumps(facts)}), unfinished)
        else:
            encoded = np.frombuffer(json.dumps(readable).encode(), np.uint8)
            unfinished.write_bytes(safetensors.numpy.save({"ids": encoded, "features": stored}, facts))


def _from(start: int, on_progress: Callable[[int], None], done: int) -> None:
    on_progress(start + done)


def _key(encoder: Encoder, pictures: Pictures) -> str:
    facts = (encoder.fingerprint, encoder.precision, len(pictures), pictures.stamp(), torch.__version__)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _keep_what_fits(folder: Path, key: str) -> None:
    """Delete parts that were made of something else."""
    about = folder / "made_of"
    before = about.read_text() if about.exists() else ""
    if before != key:
        parts = sorted(folder.glob("*.safetensors"))
        if parts:
            log.warning("%s: the model or the pictures have changed since: all are encoded anew", folder)
        for part in parts:
            durable.remove(part)
        durable.write_text(about, key)
    durable.remove_unfinished(folder)


Found = tuple[NDArray[np.int64], NDArray[np.float32], dict[str, str]]
"""The places in the source of pictures that were read, their features, and why others were not, by their place."""


def _encode(encoder: Encoder, pictures: Pictures, span: range, on_progress: Callable[[int], None]) -> Found:
    problems: dict[str, str] = {}

    def pixels(index: int) -> torch.Tensor | None:
        try:
            return encoder.pixels(read(pictures, index).image)
        except BadImage as error:
            problems[str(index)] = error.reason
            return None

    rows: list[int] = []
    features: list[Any] = []
    done = 0
    for batch in encoder.stream(span, pixels):
        rows += [index for index, row in zip(batch.items, batch.rows, strict=True) if row is not None]
        features.append(batch.features)
        done += len(batch.items)
        on_progress(done)
    return np.array(rows, np.int64), np.concatenate(features), problems


def _as_bytes(rows: NDArray[np.int64], features: NDArray[np.float32], problems: dict[str, str]) -> bytes:
    tensors: dict[str, NDArray[Any]] = {"rows": rows, "features": np.ascontiguousarray(features)}
    digest = hashlib.sha256(rows.tobytes() + tensors["features"].tobytes()).hexdigest()
    return safetensors.numpy.save(tensors, {"problems": json.dumps(problems), "digest": digest})


def _read_part(path: Path) -> Found | None:
    """A part; None where there is none, or, with a warning, where it is damaged."""
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata()
            rows, features = file.get_tensor("rows"), file.get_tensor("features")
        if hashlib.sha256(rows.tobytes() + features.tobytes()).hexdigest() != metadata["digest"]:
            raise ValueError("its content does not have the digest that was noted")
        return rows, features, json.loads(metadata["problems"])
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        log.warning("%s is damaged (%s): its pictures are encoded again", path, " ".join(str(error).split()))
        return None
