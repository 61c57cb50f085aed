"""What does differential attention cost beside standard attention?

    python benchmarks/attention.py [--rounds 9] [--only SHAPE…] [--dtype DTYPE…] [--json FILE] [--write-table]

Contestants, interleaved in one process: standard attention, as torch's fused scaled_dot_product_attention and with its
map materialised; differential attention with as many heads, by every backend of this library that runs here
("operators" is the fused one without its compiled kernel); and timm's DiffAttention, which computes two attentions.
All start from a tensor (B, N, 3C) as a joint projection makes it, and the backward pass ends there. Medians over the
rounds; memory is what both passes need beyond their input: by how much they raise the peak of a process of their own.

--write-table also writes this kind of processor's rows in src/diffclip/models/attention/choice.json, which
`backend="auto"` reads. Rows of what was not measured stay.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from rounds import processor, split
from timm.layers.diff_attention import DiffAttention
from torch import Tensor, nn

from diffclip.models.attention import choice as attention_choice
from diffclip.models.attention import native as native_attention
from diffclip.models.attention.calibration import choose
from diffclip.models.attention.forms import attention_map
from diffclip.models.attention.ops import differential_attention

SHAPES = {  # (batch, heads, tokens, head width), and whether causal
    "b16 image": (16, 12, 197, 64, False),
    "b16 text": (16, 8, 32, 64, True),
    "quickstart": (128, 4, 65, 32, False),
    "image of 384 pixels": (2, 12, 577, 64, False),
    "image of 768 pixels": (1, 12, 2305, 64, False),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TABLE = Path(attention_choice.__file__).with_name("choice.json")


def standard_fused(x: Tensor, lam: Tensor, heads: int, causal: bool) -> Tensor:
    return F.scaled_dot_product_attention(*split(x, heads, heads), is_causal=causal)


def standard_eager(x: Tensor, lam: Tensor, heads: int, causal: bool) -> Tensor:
    q, k, v = split(x, heads, heads)
    return attention_map(q, k, causal, None) @ v


def differential(backend: str) -> Callable[..., Tensor]:
    def run(x: Tensor, lam: Tensor, heads: int, causal: bool) -> Tensor:
        return differential_attention(*split(x, heads, heads // 2), lam, is_causal=causal, backend=backend)

    return run


def without_kernel(x: Tensor, lam: Tensor, heads: int, causal: bool) -> Tensor:
    with no_kernel():
        return differential("fused")(x, lam, heads, causal)


@contextmanager
def no_kernel():
    with mock.patch.object(native_attention, "available", return_value=False):
        yield


class Given(nn.Module):
    """In place of a layer's joint projection: gives what it was given before."""

    def forward(self, x: Tensor) -> Tensor:
        return self.value


def timms(x: Tensor, lam: Tensor, heads: int, causal: bool) -> Tensor:
    """timm's layer itself, without its projections and its norm; λ is its own."""
    dim = x.shape[-1] // 3
    layer = DiffAttention(dim, num_heads=heads // 2)
    layer.qkv, layer.sub_norm, layer.proj = Given(), nn.Identity(), nn.Identity()
    layer.qkv.value = x
    return layer(x[..., :dim], is_causal=causal)


CONTESTANTS: dict[str, Callable[..., Tensor]] = {
    "standard, fused": standard_fused,
    "standard, eager": standard_eager,
    "eager": differential("eager"),
    "fused": differential("fused"),
    "operators": without_kernel,
    "sdpa": differential("sdpa"),
    "timm": timms,
    "auto": differential("auto"),
}


def prepared(shape: str, dtype: str) -> tuple[Tensor, Tensor, int, bool]:
    batch, heads, tokens, width, causal = SHAPES[shape]
    torch.manual_seed(0)
    x = torch.randn(batch, tokens, 3 * heads * width).to(DTYPES[dtype]).requires_grad_()
    return x, torch.tensor(0.7, requires_grad=True), heads, causal


def once(name: str, x: Tensor, lam: Tensor, heads: int, causal: bool, grads: dict[str, Tensor]) -> tuple[float, float]:
    """Seconds of a forward pass, and of a forward and a backward pass."""
    x.grad = lam.grad = None
    began = time.perf_counter()
    out = CONTESTANTS[name](x, lam, heads, causal)
    middle = time.perf_counter()
    if name not in grads:
        grads[name] = torch.randn_like(out)
        began = middle = time.perf_counter()
    with no_kernel() if name == "operators" else nullcontext():
        out.backward(grads[name])
    return middle - began, time.perf_counter() - began


def measure(shape: str, dtype: str, rounds: int) -> dict[str, tuple[float, float]]:
    """Contestant → median milliseconds of the forward pass and of both passes."""
    arguments, grads = prepared(shape, dtype), {}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTESTANTS}
    for turn in range(rounds + 2):
        for name in CONTESTANTS:
            taken = once(name, *arguments, grads)
            if turn > 1:  # the first ones compile, allocate and warm up
                times[name].append(taken)
    return {
        name: tuple(1e3 * statistics.median(part) for part in zip(*taken, strict=True)) for name, taken in times.items()
    }


def memory_of(shape: str, dtype: str, name: str) -> float:
    """MiB by which a forward and a backward pass raise the peak of this process."""
    x, lam, heads, causal = prepared(shape, dtype)
    once(name, x[:, :8].detach().requires_grad_(), lam, heads, causal, {})  # loads what is loaded on first use
    with torch.no_grad():
        shape_of_out = CONTESTANTS[name](x[:, :8], lam, heads, causal).shape
    tokens = x.shape[1]
    grads = {name: torch.ones([tokens if size == 8 else size for size in shape_of_out], dtype=x.dtype)}
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is in use now
    before = peak_of_now()
    once(name, x, lam, heads, causal, grads)
    return peak_of_now() - before


def peak_of_now() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def memory(shape: str, dtype: str) -> dict[str, float]:
    found = {}
    for name in CONTESTANTS:
        command = [sys.executable, __file__, "--only", shape, "--memory-of", name, "--dtype", dtype]
        found[name] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def table(results: list[dict], before: dict) -> dict:
    """choice.json with the rows of this kind of processor, those that it had before included."""
    own, command = attention_choice.processor(), "python benchmarks/attention.py --write-table"
    rows: dict = {"differential": {"compiled": {}, "operators": {}}, "standard": {"operators": {}}}
    rows = copy.deepcopy(before["fastest"].get(own, rows))
    for result in results:
        times, dtype, tokens = result["milliseconds"], result["dtype"], str(SHAPES[result["shape"]][2])
        for kernel, name in (("compiled", "fused"), ("operators", "operators")):
            forms = {"eager": times["eager"][1], "sdpa": times["sdpa"][1], "fused": times[name][1]}
            rows["differential"][kernel].setdefault(dtype, {})[tokens] = choose(forms)
        standard = {"sdpa": times["standard, fused"][1], "eager": times["standard, eager"][1]}
        rows["standard"]["operators"].setdefault(dtype, {})[tokens] = choose(standard)
    for kinds in rows.values():
        for kernel in kinds.values():
            for dtype, row in kernel.items():
                kernel[dtype] = dict(sorted(row.items(), key=lambda item: int(item[0])))
    measured = f"{command}; {processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return {"measured": before["measured"] | {own: measured}, "fastest": before["fastest"] | {own: rows}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=SHAPES, nargs="+", default=[*SHAPES], help="these shapes alone")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=[*DTYPES], help="these alone")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--write-table", action="store_true", help="write what backend='auto' reads")
    parser.add_argument("--memory-of", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(memory_of(arguments.only[0], arguments.dtype[0], arguments.memory_of))
        return 0
    results = []
    for shape in arguments.only:
        for dtype in arguments.dtype:
            times = measure(shape, dtype, arguments.rounds)
            extra = memory(shape, dtype) if SHAPES[shape][2] > 2000 else {}
            baseline = min(times["standard, fused"][1], times["standard, eager"][1])
            print(f"\n{shape} {SHAPES[shape][:4]} {dtype}: milliseconds; ratio to the faster standard attention")
            for name, (forward, both) in times.items():
                used = f"{extra[name]:9.0f} MiB" if extra else ""
                print(f"  {name:18}{forward:9.1f}{both:9.1f}{both / baseline:8.2f}{used}")
            results.append({"shape": shape, "dtype": dtype, "milliseconds": times, "extra_mebibytes": extra})
    if arguments.write_table:
        TABLE.write_text(json.dumps(table(results, json.loads(TABLE.read_text())), indent=1) + "\n")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"rounds": arguments.rounds, "results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
