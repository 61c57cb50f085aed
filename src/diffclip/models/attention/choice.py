"""Which form of attention is fastest where: read from a table that a benchmark wrote.

`benchmarks/attention.py --write-table` measures forward and backward of every form on a CPU and writes
choice.json. What is said here of GPUs was measured on an H200 (docs/performance.md).
"""

import functools
import json
import math
from contextlib import AbstractContextManager, nullcontext
from importlib.resources import files
from itertools import pairwise
from typing import Literal

import torch

from diffclip.models.attention import gpu
from diffclip.models.attention import native as native_attention

Kind = Literal["differential", "standard"]


def fastest(kind: Kind, device: str, dtype: torch.dtype, tokens: int) -> str:
    """The backend of differential_attention, or for standard attention "eager" or "sdpa".

    Measured at some numbers of tokens; the nearest one, as a ratio, decides.
    """
    if is_tracing():
        return "sdpa"
    spans: tuple[tuple[int, str], ...]
    beyond: str
    spans, beyond = _spans(kind, device, dtype)
    for most, name in spans:  # under torch.compile the number of tokens may be a symbol, which can be compared
        if tokens <= most:
            return name
    return beyond


def no_autocast(device: str) -> AbstractContextManager[None]:
    """Autocast off on a device, where it has one."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def is_tracing() -> bool:
    """Whether a trace or an export is at work, which knows PyTorch's own operators alone, and no look at values."""
    return torch.compiler.is_exporting() or bool(torch.jit.is_tracing())  # type: ignore[no-untyped-call]


def autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast casts to on a device; None where it is off, or where there is none, as on "meta"."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _spans(kind: Kind, device: str, dtype: torch.dtype) -> tuple[tuple[tuple[int, str], ...], str]:
    """What is fastest up to some numbers of tokens, ascending, and what beyond."""
    if device == "cuda" and kind == "differential" and dtype in gpu.DTYPES and gpu.available():
        return (), "fused"
    if device != "cpu":
        return (), "sdpa"
    if kind == "differential" and dtype not in (torch.float32, torch.bfloat16):
        return (), "eager"  # float64 and float16 are for tests here, and eager is what they are tested against
    kernel = "operators"
    if kind == "differential" and native_attention.available(dtype):
        kernel = "compiled"
    measured = _table()[kind].get(kernel, {}).get(str(dtype).removeprefix("torch."))
    if measured is None:
        return (), "sdpa"
    *fewer, largest = sorted(measured)
    spans = ((math.isqrt(low * high), measured[low]) for low, high in pairwise([*fewer, largest]))
    return tuple(spans), measured[largest]


@functools.cache
def _table() -> dict[str, dict[str, dict[str, dict[int, str]]]]:
    text = files("diffclip.models.attention").joinpath("choice.json").read_text(encoding="utf-8")
    return {
        kind: {
            kernel: {dtype: {int(tokens): name for tokens, name in row.items()} for dtype, row in rows.items()}
            for kernel, rows in kernels.items()
        }
        for kind, kernels in json.loads(text)["fastest"].items()
    }
