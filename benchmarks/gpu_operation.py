"""The parts of gpu.py about the operation alone; they need torch and Triton, and neither timm nor open_clip.

A part gives (who, at which shape, what measures it): `gpu.py` calls the last and keeps its figures.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from rounds import processor, split
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffclip.models.attention.gpu import gpu_attention
from diffclip.models.attention.ops import differential_attention

CUDA = torch.cuda.is_available()  # else all is tiny
DEVICE = "cuda" if CUDA else "cpu"
Shape = tuple[int, int, int, int, bool]  # batch, heads, tokens, head width, causal
Measurement = tuple[str, str, Callable[[], dict[str, Any]]]
Attention = Callable[[Tensor, Tensor, int, bool], Tensor]  # of (B, N, 3C), λ, the number of heads and whether causal

RIGHT: list[Shape] = [
    *((8, 8, 77, 64, True), (8, 12, 197, 64, False), (4, 12, 197, 64, True), (4, 16, 257, 64, False)),
    *((2, 12, 577, 64, False), (16, 4, 65, 32, False), (2, 4, 33, 16, True)),
]
TIMED: list[Shape] = [(256, 12, 197, 64, False), (256, 8, 77, 64, True), (64, 12, 577, 64, False)]
TINY: list[Shape] = [(1, 2, 5, 16, True), (1, 4, 17, 16, False)]
BOUNDS = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def milliseconds(run: Callable[[], object], rounds: int = 20) -> float:
    """The median, by device events with the cache flushed between rounds; on a CPU one round by the clock."""
    run()
    if not CUDA:
        began = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - began)
    for _ in range(3):
        run()
    cache, events = torch.empty(2**28, dtype=torch.int8, device=DEVICE), []
    for _ in range(rounds):
        cache.zero_()
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        run()
        pair[1].record()
        events.append(pair)
    torch.cuda.synchronize()
    return statistics.median(first.elapsed_time(last) for first, last in events)


def machine(_: str | None) -> Iterator[Measurement]:
    def software() -> dict[str, Any]:
        if not CUDA:
            return {"torch": torch.__version__}
        import triton

        versions = {"torch": torch.__version__, "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
        return versions | {"Triton": triton.__version__}

    def copies() -> dict[str, float]:
        one = torch.ones(2**31 if CUDA else 2**20, dtype=torch.int8, device=DEVICE)
        other = torch.empty_like(one)
        return {"copied, TB/s": 2 * len(one) / milliseconds(lambda: other.copy_(one)) / 1e9}

    def product(dtype: torch.dtype, precision: str) -> dict[str, float]:
        torch.set_float32_matmul_precision(precision)
        size = 8192 if CUDA else 64
        matrix = torch.randn(size, size, device=DEVICE).to(dtype)
        return {f"{dtype}, TFLOP/s".removeprefix("torch."): 2 * size**3 / milliseconds(lambda: matrix @ matrix) / 1e9}

    card = torch.cuda.get_device_name() if CUDA else processor()
    yield card, "", software
    yield card, "", copies
    yield card, "", lambda: product(torch.bfloat16, "highest")
    yield card, "", lambda: product(torch.float32, "highest")
    yield card, "in TF32", lambda: product(torch.float32, "high")


def exact(x: Tensor, lam: Tensor, heads: int, causal: bool) -> Tensor:
    """The equation, a head at a time, both maps written out."""
    q, k, v = split(x, heads, heads // 2)
    later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=x.device).triu(1) & causal
    maps = [
        (q[:, head] @ k[:, head].mT / q.shape[-1] ** 0.5).masked_fill(later, float("-inf")).softmax(-1)
        for head in range(heads)
    ]
    return torch.stack([(maps[2 * p] - lam * maps[2 * p + 1]) @ v[:, p] for p in range(heads // 2)], 1)


def joint(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(B, N, 3C) as a joint projection makes it, and λ; both want gradients."""
    batch, heads, tokens, width, _ = shape
    torch.manual_seed(tokens)
    x = torch.randn(batch, tokens, 3 * heads * width, device=DEVICE).to(dtype)
    return x.requires_grad_(), torch.tensor(0.83, device=DEVICE, requires_grad=True)


def against_float64(run: Attention, shapes: Sequence[Shape], dtype: torch.dtype) -> dict[str, float]:
    """The largest relative error of result and gradients. Raises ArithmeticError where it is too large."""
    return {str(dtype).removeprefix("torch."): max(relative_error(run, shape, dtype) for shape in shapes)}


def relative_error(run: Attention, shape: Shape, dtype: torch.dtype) -> float:
    """λ's gradient is a sum of terms that nearly cancel: it is held against the size of what is summed."""
    _, heads, _, _, causal = shape
    own = joint(shape, dtype)
    wide = [x.detach().double().requires_grad_() for x in own]
    reference = exact(*wide, heads, causal)
    grad = torch.randn_like(reference)
    expected = torch.autograd.grad(reference, wide, grad)
    result = run(*own, heads, causal)
    found = torch.autograd.grad(result, own, grad.to(result.dtype))
    pairs = [(result, reference), *zip(found[0].chunk(3, -1), expected[0].chunk(3, -1), strict=True)]
    errors = [((ours.double() - theirs).norm() / theirs.norm()).item() for ours, theirs in pairs]
    errors.append((found[1] - expected[1]).abs().item() / grad.norm().item())
    if not all(error < BOUNDS[dtype] for error in errors):
        shown = ", ".join(f"{name} {e:.1e}" for name, e in zip(("result", "dq", "dk", "dv", "dλ"), errors, strict=True))
        raise ArithmeticError(f"{dtype}, {at(shape)}: relative errors {shown}, where {BOUNDS[dtype]:g} is the most")
    return max(errors)


def triton_kernels(x: Tensor, lam: Tensor, heads: int, causal: bool) -> Tensor:
    out, _ = gpu_attention(*split(x, heads, heads // 2), lam, causal)
    return out


def backend(name: str) -> Attention:
    return lambda x, lam, heads, causal: differential_attention(
        *split(x, heads, heads // 2), lam, is_causal=causal, backend=name
    )


def at(shape: Shape) -> str:
    return f"{shape[:4]}{' causal' if shape[4] else ''}"


def kernels(_: str | None) -> Iterator[Measurement]:
    def repeated() -> dict[str, str]:
        shape = RIGHT[1] if CUDA else TINY[0]
        x, lam = joint(shape, torch.float16)
        first, second = (torch.autograd.grad(triton_kernels(x, lam, shape[1], shape[4]).sum(), (x, lam)) for _ in "ab")
        if not all(map(torch.equal, first, second)):
            raise ArithmeticError("two runs on the same numbers differ")
        return {"twice": "the same bits"}

    # What the interpreter does with bfloat16 is wrong by itself.
    dtypes = (torch.bfloat16, torch.float16) if CUDA else (torch.float16, torch.float32)
    for shape in RIGHT if CUDA else TINY:
        for dtype in dtypes:
            yield at(shape), "", lambda s=shape, d=dtype: against_float64(triton_kernels, [s], d)
    yield at(RIGHT[1] if CUDA else TINY[0]), "", repeated


def backends(_: str | None) -> Iterator[Measurement]:
    for name in ("eager", "sdpa", "fused", "auto", *(["flex"] if CUDA else [])):
        shapes = (RIGHT[:2] if name == "flex" else RIGHT) if CUDA else TINY  # flex takes seconds to compile for each
        for dtype in BOUNDS:
            if not CUDA or name not in ("fused", "flex") or dtype is torch.bfloat16:
                yield name, "", lambda n=name, s=shapes, d=dtype: against_float64(backend(n), s, d)


def operation(_: str | None) -> Iterator[Measurement]:
    """Beside standard attention by PyTorch's own kernels, and two calls of it."""

    def standard(kernel: SDPBackend | None) -> Attention:
        def run(x: Tensor, lam: Tensor, heads: int, causal: bool) -> Tensor:
            with sdpa_kernel(kernel) if kernel is not None else contextlib.nullcontext():
                return F.scaled_dot_product_attention(*split(x, heads, heads), is_causal=causal)

        return run

    contestants: dict[str, Attention] = {"standard, PyTorch's choice": standard(None)}
    if CUDA:
        contestants["standard, cuDNN"] = standard(SDPBackend.CUDNN_ATTENTION)
        contestants["standard, flash"] = standard(SDPBackend.FLASH_ATTENTION)
        contestants["two SDPA calls, compiled"] = torch.compile(backend("sdpa"), dynamic=False)
    contestants |= {"two SDPA calls": backend("sdpa"), "eager": backend("eager"), "Triton kernels": triton_kernels}
    contestants["auto"] = backend("auto")
    for shape in TIMED if CUDA else TINY[:1]:
        for name, run in contestants.items():
            yield name, at(shape), lambda r=run, s=shape: timed(r, s)


def timed(run: Attention, shape: Shape) -> dict[str, float]:
    x, lam = joint(shape, torch.bfloat16 if CUDA else torch.float32)
    grad = torch.randn_like(run(x, lam, shape[1], shape[4]))

    def both() -> None:
        x.grad = lam.grad = None
        run(x, lam, shape[1], shape[4]).backward(grad)

    with torch.no_grad():
        forward = milliseconds(lambda: run(x, lam, shape[1], shape[4]))
    figures = {"forward": forward, "both": milliseconds(both)}
    if CUDA:
        x.grad = lam.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both()
        figures["MiB"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return figures
