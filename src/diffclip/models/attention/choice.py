"""Which form of attention is fastest where: read from a table that a benchmark wrote, by what a processor can do.

`benchmarks/attention.py --write-table` measures forward and backward of every form on a CPU and writes the rows of
its kind of processor in choice.json; another kind is timed when it is met (calibration.py). What is said here of GPUs
was measured on an H200 (docs/performance.md).
"""

import functools
import json
import math
import platform
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.resources import files
from itertools import pairwise
from typing import Any, Literal

import torch

from diffclip.models.attention import calibration, gpu
from diffclip.models.attention import native as native_attention

Kind = Literal["differential", "standard"]
Rows = Mapping[str, Mapping[str, str]]
"""Dtype → number of tokens → the form that is fastest there."""

# A name, since torch.compile of torch 2.11 cannot trace torch.amp.is_autocast_available, and breaks the graph there.
WITHOUT_AUTOCAST = "meta"
# What a processor multiplies matrices with, the best first: its name in choice.json and in torch's capabilities.
PROCESSORS = {"AMX": "amx_bf16", "AVX-512 BF16": "avx512_bf16", "AVX-512": "avx512_f", "AVX2": "avx2"}
FORMS = ("eager", "fused", "sdpa")

_taken: dict[str, Mapping[str, Rows]] = {}  # device → kind → rows, inside `taking`


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
    return nullcontext() if device == WITHOUT_AUTOCAST else torch.autocast(device, enabled=False)


def is_tracing() -> bool:
    """Whether a trace or an export is at work, which knows PyTorch's own operators alone, and no look at values."""
    return torch.compiler.is_exporting() or bool(torch.jit.is_tracing())  # type: ignore[no-untyped-call]


def autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast casts to on a device; None where it is off, or where there is none, as on "meta"."""
    if device != WITHOUT_AUTOCAST and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def processor(device: str = "cpu") -> str:
    """What this machine computes with: on a CPU AMX, AVX-512 BF16, AVX-512, AVX2, NEON or the architecture's name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    if torch.backends.cpu.get_cpu_capability() == "AVX2":  # also where ATEN_CPU_CAPABILITY holds PyTorch to it
        return "AVX2"
    capabilities = torch.cpu.get_capabilities()
    machine = platform.machine()
    other = "NEON" if machine in ("aarch64", "arm64") else machine
    return next((name for name, key in PROCESSORS.items() if capabilities.get(key)), other)


def rows(kind: str, device: str) -> Rows:
    """What is fastest on this machine, for the dtypes that were measured."""
    found = {dtype: _row(kind, device, dtype) for dtype in ("float32", "bfloat16", "float16")}
    return {dtype: row for dtype, row in found.items() if row}


@contextmanager
def taking(device: str, chosen: Mapping[str, Rows]) -> Iterator[None]:
    """Inside the `with`, `fastest` answers by these rows of each kind of attention."""
    others = any(chosen[kind] != rows(kind, device) for kind in chosen)
    if others:
        torch.compiler.reset()  # what is compiled has its choice as a constant
    _taken[device] = chosen
    try:
        yield
    finally:
        del _taken[device]
        if others:
            torch.compiler.reset()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _spans(kind: Kind, device: str, dtype: torch.dtype) -> tuple[tuple[tuple[int, str], ...], str]:
    """What is fastest up to some numbers of tokens, ascending, and what beyond."""
    if (kind, device, dtype) == ("differential", "cpu", torch.bfloat16):
        native_attention.say_refused()
    name = str(dtype).removeprefix("torch.")
    taken = _taken.get(device, {}).get(kind)
    row = _row(kind, device, name) if taken is None else taken.get(name)
    if row is None:  # on a CPU float64 and float16 are for tests here, and eager is what they are tested against
        return (), "eager" if (kind, device) == ("differential", "cpu") else "sdpa"
    measured = {int(tokens): form for tokens, form in row.items()}
    *fewer, largest = sorted(measured)
    spans = ((math.isqrt(low * high), measured[low]) for low, high in pairwise([*fewer, largest]))
    return tuple(spans), measured[largest]


def _row(kind: str, device: str, dtype: str) -> Mapping[str, str] | None:
    if device == "cuda" and kind == "differential" and getattr(torch, dtype) in gpu.DTYPES and gpu.available():
        return {"197": "fused"}
    if device != "cpu" or dtype not in ("float32", "bfloat16"):
        return None
    compiled = kind == "differential" and native_attention.available(getattr(torch, dtype))
    own, table = processor(), _measured()
    if own not in table:
        if dtype == "float32" or any("bf16" in key and able for key, able in torch.cpu.get_capabilities().items()):
            return calibration.row(kind, dtype, compiled, own)
        own = "AVX2"  # which does not multiply bfloat16 either, and timing that takes minutes
    row: Mapping[str, str] | None = table[own][kind]["compiled" if compiled else "operators"].get(dtype)
    return row


@functools.cache
def _measured() -> Mapping[str, Any]:
    """Processor → kind of attention → "compiled" or "operators", whether there is the kernel → rows."""
    text = files("diffclip.models.attention").joinpath("choice.json").read_text(encoding="utf-8")
    table: Mapping[str, Any] = json.loads(text)["fastest"]
    return table
