"""The numbers that a training run wrote down, as curves."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffclip.errors import UserError
from diffclip.reading import parse_json, read_text

log = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A number over training: steps (T,) int64, values (T,) or, for one number a layer, (T, layers)."""

    steps: NDArray[np.int64]
    values: FloatArray


def read_warnings(run: Path) -> list[str]:
    """What a run warned of while it trained, in its order; nothing where its log cannot be read."""
    try:
        lines = read_text(run / "metrics.jsonl").split("\n")
        texts = [parse_json(line).get("warning") for line in lines if '"warning"' in line]
    except (OSError, ValueError, AttributeError):
        return []
    return list(dict.fromkeys(part for text in texts if isinstance(text, str) for part in text.split(" | ")))


def read_curves(run: Path) -> dict[str, Curve]:
    """Every number of a run directory's metrics.jsonl, by name.

    Of two lines of one step, which a resumed run may have, the later wins. A last line that a crash cut short
    is left out with a warning. Raises UserError where there is no such file, no line in it, or another line that is
    not a JSON object.
    """
    path = run / "metrics.jsonl"
    try:
        lines = read_text(path).rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"cannot read {path}: {reason}; is {run} the directory of a training run?") from None
    records: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line)
            records[int(record["step"])] = record
        except (ValueError, KeyError, TypeError, OverflowError):
            if number < len(lines):
                raise UserError(f"{path} line {number}: not a record with a step: {line[:60]!r}") from None
            if line:
                log.warning("%s: its last line was cut short and is left out", path)
    if not records:
        raise UserError(f"{path} has no records: the run has not logged a step yet")
    ordered = [records[step] for step in sorted(records)]
    curves = {}
    for name in dict.fromkeys(name for record in ordered for name in record):
        with_it = [record for record in ordered if isinstance(record.get(name), int | float | list)]
        if name != "step" and with_it:
            try:
                values = np.array([record[name] for record in with_it], dtype=np.float64)
            except (ValueError, TypeError, OverflowError):
                raise UserError(f"{path}: {name!r} is not a number, or as many numbers, in every record") from None
            curves[name] = Curve(np.array([int(record["step"]) for record in with_it], dtype=np.int64), values)
    return curves


def ends(curves: Mapping[str, Sequence[Curve]]) -> str:
    """How curves of one number begin and end, by name, in words: "CLIP from 5.07 to 3.2", the mean over seeds."""
    means = {
        name: [float(np.mean([curve.values[place] for curve in of_name])) for place in (0, -1)]
        for name, of_name in curves.items()
    }
    return ", ".join(f"{name} from {first:.3g} to {last:.3g}" for name, (first, last) in means.items())
