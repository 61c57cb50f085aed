"""Which forms of attention a run began with: kept in its directory and taken when it goes on, so that bits stay."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from torch import nn

from diffclip import durable, reading
from diffclip.distributed import World
from diffclip.errors import UserError
from diffclip.models.attention import choice
from diffclip.models.attention.layer import DifferentialAttention

log = logging.getLogger(__name__)

ATTENTION_FORMS = "attention.json"
KINDS: tuple[str, ...] = get_args(choice.Kind)


@contextmanager
def kept(run: Path, model: nn.Module, device: str, world: World, *, resume: bool) -> Iterator[None]:
    """Inside the `with`, attention takes the forms that the run began with on such a device, on every rank.

    A run that begins, or one of an earlier version, takes and writes down what is fastest on the machine of rank 0.
    Raises UserError where the directory's record cannot be read or written.
    """
    chosen = world.broadcast(_chosen(run, model, device, resume) if world.is_main else None)
    assert chosen is not None  # rank 0 has sent its own
    with choice.taking(device, chosen):
        yield


def _chosen(run: Path, model: nn.Module, device: str, resume: bool) -> dict[str, Any]:
    path = run / ATTENTION_FORMS
    # Asking for the differential forms builds the compiled kernel, which a CLIP has no use for.
    differential = any(isinstance(module, DifferentialAttention) for module in model.modules())
    kinds = KINDS if differential else ("standard",)
    here = {"processor": choice.processor(device), "fastest": {kind: choice.rows(kind, device) for kind in kinds}}
    record = _read(path) if resume and path.exists() else {}
    began = record.setdefault(device, here)
    if began["processor"] != here["processor"]:
        log.warning(
            "%s began on %s and goes on on %s: with the forms of attention that it began with, but not to the bit",
            run, began["processor"], here["processor"],
        )  # fmt: skip
    try:
        durable.write_text(path, json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    chosen: dict[str, Any] = began["fastest"]
    return chosen


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = reading.parse_json(reading.read_text(path))
        good = all(isinstance(device["processor"], str) and _good(device["fastest"]) for device in record.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise UserError(f"{path} cannot be read: restore it, or delete it and resume with what is fastest here")
    return record


def _good(fastest: dict[str, choice.Rows]) -> bool:
    rows = [row for kind in fastest.values() for row in kind.values()]
    known = all(row and all(n.isdecimal() and form in choice.FORMS for n, form in row.items()) for row in rows)
    return known and fastest.keys() <= set(KINDS)
