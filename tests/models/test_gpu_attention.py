"""The kernels for GPUs without one: interpreted against float64, and compiled for the chips that they are for."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from diffclip.errors import UserError
from diffclip.models.attention import choice, forms, gpu

with_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not for this system")

# Batch, heads, tokens, head width, causal; of one case in half precision too.
INTERPRETED = """
import json
import torch
from diffclip.models.attention import gpu

def inputs(batch, heads, tokens, width, dtype):
    # q, k and v as the joint projection lays them, one beside the other for each token
    joint = torch.randn(batch, tokens, 3 * heads * width, generator=torch.Generator().manual_seed(0)).to(dtype)
    q, k, v = joint.chunk(3, -1)
    q, k = (x.unflatten(-1, (heads, width)).transpose(1, 2).detach() for x in (q, k))
    v = v.unflatten(-1, (heads // 2, 2 * width)).transpose(1, 2).detach()
    return [x.requires_grad_() for x in (q, k, v, torch.tensor(0.83))]

def expected(q, k, v, lam, causal):
    # a head at a time, both maps written out
    later = torch.ones(q.shape[2], q.shape[2]).triu(1).bool() & causal
    maps = [
        ((q[:, h] @ k[:, h].mT) / q.shape[-1] ** 0.5).masked_fill(later, -torch.inf).softmax(-1)
        for h in range(q.shape[1])
    ]
    return torch.stack([(maps[2 * p] - lam * maps[2 * p + 1]) @ v[:, p] for p in range(v.shape[1])], 1)

def error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()

single, half = torch.float32, torch.float16
for *shape, causal, dtype in [
    (2, 2, 5, 16, True, single), (1, 4, 65, 16, False, single), (2, 2, 77, 32, True, single),
    (1, 2, 130, 32, False, single), (1, 2, 96, 64, True, single), (1, 4, 77, 32, True, half),
]:
    own = inputs(*shape, dtype)
    exact = [x.detach().double().requires_grad_() for x in own]
    out, _ = gpu.gpu_attention(*own, causal)
    reference = expected(*exact, causal)
    grad = torch.randn(reference.shape, generator=torch.Generator().manual_seed(9)).double()
    found = torch.autograd.grad(out, own, grad.to(dtype))
    references = torch.autograd.grad(reference, exact, grad)
    print(json.dumps({
        "case": [*shape, causal, str(dtype)],
        "errors": [error(out, reference), *map(error, found[:3], references[:3])],
        # λ's gradient is a sum of terms that nearly cancel
        "lambda": abs(found[3].item() - references[3].item()) / grad.norm().item(),
        "by_token": out.transpose(1, 2).is_contiguous(),
        "dtypes": [str(x.dtype) for x in (out, *found)],
    }))
arguments = (*inputs(1, 2, 5, 16, single), True)
torch.library.opcheck(gpu.gpu_attention, arguments, test_utils=("test_schema", "test_faketensor"))
"""


@with_triton
def test_the_kernels_are_the_equation():
    """Result and gradients, in a process of its own: whether Triton interprets is settled when it is imported."""
    interpreted = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], capture_output=True, text=True, timeout=300, env=interpreted
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 6
    for row in rows:
        dtype = row["case"][-1]
        bound = {"torch.float32": 2e-6, "torch.float16": 1e-3}[dtype]
        assert max(row["errors"]) < bound, row
        assert row["lambda"] < bound, row
        assert row["by_token"], "joining the heads copies nothing"
        assert row["dtypes"] == [dtype] * 4 + ["torch.float32"]


def test_who_gets_it(monkeypatch):
    monkeypatch.setattr(gpu, "available", lambda: True)
    for dtype in gpu.DTYPES:
        assert choice.fastest("differential", "cuda", dtype, 197) == "fused"
        assert choice.fastest("standard", "cuda", dtype, 197) == "sdpa"
        assert gpu.supports("cuda", dtype, 64)
        assert not gpu.supports("cuda", dtype, 80)
        assert not gpu.supports("cpu", dtype, 64)
    assert choice.fastest("differential", "cuda", torch.float32, 197) == "sdpa"
    monkeypatch.setattr(gpu, "available", lambda: False)
    assert choice.fastest("differential", "cuda", torch.bfloat16, 197) == "sdpa"


def test_where_it_cannot_run_that_is_said():
    call = forms.AttentionCall(*(torch.empty(1, 2, 4, 8, device="meta"),) * 3, 0.5, False, None, 0.0)
    with pytest.raises(UserError, match=r"of 16, 32, 64; this is torch.float32, 8 wide, on meta: use sdpa"):
        forms.BACKENDS["fused"](call)


COMPILE = """
import sys
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from diffclip.models.attention import gpu, triton_kernels as kernels

for arch in map(int, sys.argv[1:]):
    for kernel, blocks in ((kernels.forward, gpu.FORWARD), (kernels.backward_q, gpu.BACKWARD_Q),
                           (kernels.backward_kv, gpu.BACKWARD_KV)):
        options = gpu._options(blocks, torch.empty(1, 2, 4, 64, dtype=torch.bfloat16), False)
        launch = {name: options.pop(name) for name in ("num_warps", "num_stages")}
        pointers = {"LSE": "*fp32", "DELTA": "*fp32", "DLAM": "*fp32", "LAM": "*fp32"}
        names = [name for name in kernel.arg_names if name not in options]
        signature = {n: pointers.get(n, "*bf16") if n.isupper() and n not in ("P", "N", "BLOCKS") else
                     "fp32" if n.startswith("scale") else "i32" for n in names}
        signature |= dict.fromkeys(options, "constexpr")
        sixteen = {(kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n in names
                   if signature[n].startswith("*") or n.startswith("s") and n != "scale" and n != "scale2"}
        source = ASTSource(kernel, signature, options, sixteen)
        built = compile(source, target=GPUTarget("cuda", arch, 32), options=launch)
        print(arch, kernel.__name__, built.metadata.shared, "wgmma" in built.asm["ptx"])
"""


@with_triton
def test_they_compile_for_chips_that_are_not_here(tmp_path):
    """In the shared memory that an A100 (163 KiB) and an H100 (227 KiB) have; on the latter with its own products."""
    compiled = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, "90", "80"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**compiled, "TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == 6
    for arch, _, shared, wgmma in rows:
        assert int(shared) <= {"80": 163, "90": 227}[arch] * 1024
        assert wgmma == str(arch == "90")
