"""The compiled kernel of kernel.cpp: built on first use, once a machine, and used where it can be.

It needs a C++ compiler, and for bfloat16 a processor that multiplies it (AVX512_BF16 or AMX). Where one is missing, or
where the environment has DIFFCLIP_NATIVE=0, fused.py does the same with PyTorch's own operators, more slowly.
The library is kept in $XDG_CACHE_HOME/diffclip/kernel, by default below ~/.cache. Loading it runs what it holds: so
nobody else may write to it, and it ends in the SHA-256 of what is before.
"""

import ctypes
import functools
import hashlib
import logging
import os
import shlex
import shutil
import stat
import subprocess
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from diffclip import durable

log = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16)
MAP_BYTES = 2**20
"""What the maps of one step may take, some 22 bytes an entry: the second-level cache of a core."""
MIN_ROWS, MIN_ROWS_FOR_BLAS = 48, 128
"""Queries of a step, at least: fewer make the matrix products slow. BLAS packs the keys anew for each step."""
DIGEST = hashlib.sha256().digest_size
FLAGS = (
    "-std=c++17",
    "-ffp-contract=fast",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-shared",
    "-fPIC",
)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def available(dtype: torch.dtype) -> bool:
    """Whether tensors of this dtype on the CPU can use the kernel; builds it the first time it is asked."""
    library = _library() if dtype in DTYPES else None
    return library is not None and bool(library.usable(dtype is torch.bfloat16))


@functools.cache
def say_refused() -> None:
    """Where bfloat16 is computed in, and the kernel is there but for that: a warning, once."""
    if not available(torch.float32) or available(torch.bfloat16):
        return
    log.warning(
        "this processor does not multiply bfloat16: differential attention in it runs on PyTorch's operators, and "
        "takes about twice as long as in float32"
    )


def attention(tensors: Sequence[Tensor], lam: float, is_causal: bool) -> float:
    """Fill in the result of q, k, v, out, or dq, dk and dv of dO, q, k, v, dq, dk, dv; returns dλ, else 0.

    Every tensor is (B, heads, N, width) with a contiguous last dimension.
    """
    library = _library()
    assert library is not None
    gradients = len(tensors) == 7
    batch, heads, length, width = tensors[1].shape  # k, or with gradients q
    strides = [stride for tensor in tensors for stride in tensor.stride()[:3]]
    fewest = MIN_ROWS if "AVX512" in torch.backends.cpu.get_cpu_capability() else MIN_ROWS_FOR_BLAS
    rows = min(length, max(fewest, MAP_BYTES // (22 * length)))
    found: float = library.attention(
        tensors[0].dtype is torch.bfloat16,
        gradients,
        (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors)),
        (ctypes.c_int64 * len(strides))(*strides),
        *(batch, heads, length, width, rows, lam, is_causal),
    )
    return found


def head_norm(tensors: Sequence[Tensor], weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of rows: fill in y of x, y, or dx of dO, x, dx, all contiguous (…, width). Returns weight's gradient.

    weight: (width,), float32 and contiguous. What is returned for x, y is zeros.
    """
    library = _library()
    assert library is not None
    width = weight.numel()
    dw = weight.new_zeros(64, width)
    library.head_norm(
        tensors[0].dtype is torch.bfloat16,
        len(tensors) == 3,
        (ctypes.c_void_p * 3)(*(tensor.data_ptr() for tensor in tensors)),
        *(weight.data_ptr(), dw.data_ptr(), tensors[0].numel() // width, width, eps),
    )
    return dw.sum(0)


@functools.cache
def _library() -> ctypes.CDLL | None:
    if os.environ.get("DIFFCLIP_NATIVE") == "0":
        return None
    try:
        library = ctypes.CDLL(str(_built()))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning(
            "differential attention runs on PyTorch's operators and takes some 1.4 times as long: its compiled kernel "
            "cannot be had (%s); with DIFFCLIP_NATIVE=0 this is not said",
            " ".join(str(error).split()),
        )
        return None
    library.usable.argtypes, library.usable.restype = [ctypes.c_bool], ctypes.c_bool
    library.attention.restype = ctypes.c_double
    library.attention.argtypes = [
        *(ctypes.c_bool, ctypes.c_bool, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int64)),
        *([ctypes.c_int] * 5),
        *(ctypes.c_float, ctypes.c_bool),
    ]
    library.head_norm.restype = None
    library.head_norm.argtypes = [
        *(ctypes.c_bool, ctypes.c_bool, ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_int, ctypes.c_float),
    ]
    return library


def _built() -> Path:
    """The shared library, compiled unless the cache has it. Raises OSError or SubprocessError where it cannot be."""
    try:
        command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    except ValueError as error:
        raise OSError(f"CXX is no command: {error}") from None
    compiler = shutil.which(command[0])
    if compiler is None:
        raise OSError("there is no C++ compiler")
    command[0] = compiler
    source = files("diffclip.models.attention").joinpath("kernel.cpp").read_bytes()
    # -march=native: a home directory may be shared by machines with other processors.
    target = _target()
    facts = repr((FLAGS, target, command, torch.__version__, sorted(torch.cpu.get_capabilities().items())))
    name = f"fused_attention-{hashlib.sha256(source + facts.encode()).hexdigest()[:16]}.so"
    path = durable.cache_folder() / "kernel" / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(path.parent)
    if path.is_file():
        _check_private(path)
        content = path.read_bytes()
        if content[-DIGEST:] == hashlib.sha256(content[:-DIGEST]).digest():
            return path
        log.warning("%s is damaged: it is compiled again, which takes some seconds", path)
    libraries = Path(torch.__file__).parent / "lib"
    with durable.writing(path) as built:  # several processes may start together
        code = ["-x", "c++", "-", "-x", "none"]  # from the standard input
        command += [*FLAGS, target, *code, "-o", str(built), f"-L{libraries}", "-ltorch_cpu", "-Wl,--no-undefined"]
        done = subprocess.run(command, input=source, capture_output=True, timeout=300)
        if done.returncode:
            message = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise subprocess.SubprocessError(f"{compiler} failed: {message[-1]}")
        built.chmod(0o700)  # whatever the umask
        with built.open("ab") as file:  # the loader passes over what comes after the library
            file.write(hashlib.sha256(built.read_bytes()).digest())
    return path


def _target() -> str:
    """The instructions to compile for: this processor's, or where ATEN_CPU_CAPABILITY holds PyTorch to AVX2, those."""
    return "-march=x86-64-v3" if torch.backends.cpu.get_cpu_capability() == "AVX2" else "-march=native"


def _check_private(path: Path) -> None:
    """Raises OSError where others may write to a file or folder, or put another in the place of one above it."""
    real = Path(os.path.realpath(path))
    for place in (real, *real.parents):
        status = place.stat()
        open_to_all = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
        shared = status.st_mode & (stat.S_IWOTH | stat.S_IWGRP) if place == real else open_to_all
        if status.st_uid not in (0, os.geteuid()) or shared:
            raise OSError(f"others may write to {place}: delete it, or give a folder of your own as XDG_CACHE_HOME")
