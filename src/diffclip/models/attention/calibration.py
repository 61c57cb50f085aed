"""Which form of attention is fastest on a kind of processor that no table knows: timed once a machine, and kept."""

import functools
import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from diffclip import durable
from diffclip.models.attention.forms import BACKENDS, AttentionCall, attention_map

log = logging.getLogger(__name__)

SHARE = 1.05
"""A form without maps that is slower by no more than this is taken, for what it saves in memory."""
SHAPES = {32: 8, 65: 8, 197: 2, 577: 1}
"""Tokens → images, of 4 heads of 64: about a second for all forms."""
HEADS, WIDTH, ROUNDS, HOPELESS = 4, 64, 4, 3


def choose(seconds: Mapping[str, float]) -> str:
    """Of forms with their times: fused where it costs at most `SHARE` of the fastest other one; else that one."""
    best = min((form for form in seconds if form != "fused"), key=seconds.__getitem__)
    return "fused" if "fused" in seconds and seconds["fused"] <= SHARE * seconds[best] else best


@functools.cache
def row(kind: str, dtype: str, compiled: bool, processor: str) -> Mapping[str, str]:
    """Number of tokens → the fastest form, as a row of choice.json.

    kind: "differential" or "standard". compiled: whether the kernel is there. What was timed is kept in diffclip's
    cache folder, since another time on the same machine may choose otherwise, and with it the bits of a result.
    """
    path = _place(kind, dtype, compiled, processor)
    kept = _kept(path)
    if kept is not None:
        return kept
    began = time.perf_counter()
    found = {
        str(tokens): choose(_times(kind, getattr(torch, dtype), tokens, images)) for tokens, images in SHAPES.items()
    }
    taken = time.perf_counter() - began
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_text(path, json.dumps(found) + "\n")
        where = f"kept in {path}"
    except OSError as error:
        where = f"it cannot be kept in {path} ({error.strerror})"
    log.warning(
        "which form of %s attention is fastest in %s was not known of a processor with %s: it was timed in %.1f s, %s",
        kind, dtype, processor, taken, where,
    )  # fmt: skip
    return found


def _place(kind: str, dtype: str, compiled: bool, processor: str) -> Path:
    facts = repr((kind, dtype, compiled, processor, torch.__version__, sorted(torch.cpu.get_capabilities().items())))
    return durable.cache_folder() / "attention" / f"{kind}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.json"


def _kept(path: Path) -> dict[str, str] | None:
    """What was timed before; None where it is missing, or is not what is written here."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    known = isinstance(found, dict) and found.keys() == {str(tokens) for tokens in SHAPES}
    return found if known and set(found.values()) <= {"eager", "fused", "sdpa"} else None


def _times(kind: str, dtype: torch.dtype, tokens: int, images: int) -> dict[str, float]:
    """Form → median seconds of a forward and a backward pass, in turns."""
    generator = torch.Generator().manual_seed(0)  # the global one is the user's
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        x = torch.rand(images, tokens, 3 * HEADS * WIDTH, generator=generator).to(dtype).requires_grad_()
        forms = _forms(kind)
        seconds: dict[str, list[float]] = {form: [] for form in forms}
        for turn in range(ROUNDS + 1):  # the first one is not counted
            for form, run in forms.items():
                began = time.perf_counter()
                out = run(x)
                torch.autograd.grad(out, x, torch.ones_like(out))
                if turn:
                    seconds[form].append(time.perf_counter() - began)
            if turn == 1:  # one that takes several times as long need not be timed again
                best = min(times[0] for times in seconds.values())
                forms = {form: run for form, run in forms.items() if seconds[form][0] <= HOPELESS * best}
    return {form: statistics.median(times) for form, times in seconds.items()}


def _forms(kind: str) -> dict[str, Callable[[Tensor], Tensor]]:
    def split(x: Tensor, v_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = x.chunk(3, -1)
        return _heads(q, HEADS), _heads(k, HEADS), _heads(v, v_heads)

    def differential(form: str) -> Callable[[Tensor], Tensor]:
        return lambda x: BACKENDS[form](AttentionCall(*split(x, HEADS // 2), torch.tensor(0.5), False, None, 0.0))

    def eager(x: Tensor) -> Tensor:
        q, k, v = split(x, HEADS)
        return attention_map(q, k, False, None) @ v

    if kind == "standard":
        return {"sdpa": lambda x: F.scaled_dot_product_attention(*split(x, HEADS)), "eager": eager}
    return {form: differential(form) for form in ("eager", "fused", "sdpa")}


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) → (B, heads, N, C/heads)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)
