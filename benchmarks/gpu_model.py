"""The parts of gpu.py about whole models: training steps, where they wait, encoding, two trainings."""

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from encode import ours, theirs
from gpu_operation import CUDA, DEVICE, Measurement, milliseconds
from train_step import END, Step, diffclip_step, open_clip_step

from diffclip.data.loading.loader import Batch
from diffclip.models.presets import PRESETS
from diffclip.plan.flops import training

TOKENS = 77
PEAK = 989e12  # of an H100 or H200 in bfloat16, as NVIDIA states it


def pairs(count: int) -> Batch:
    """Images and captions of 77 tokens, in pinned memory where there is a GPU."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, END - 1, (count, TOKENS), generator=generator)
    tokens[:, -1] = END
    pixels = torch.randint(0, 256, (count, 3, 224, 224), dtype=torch.uint8, generator=generator)
    pixels, tokens = (x.pin_memory() if CUDA else x for x in (pixels, tokens))
    return Batch(pixels=pixels, tokens=tokens, groups=-1 - torch.arange(count), indices=torch.arange(count))


def steps(_: str | None) -> Iterator[Measurement]:
    """Of two sizes, compiled of one. What compiles longest comes last."""
    makers: dict[str, Callable[[bool], Step]] = {
        name: lambda compiled, name=name: diffclip_step(name, "bf16", compiled)
        for name in ("clip_vit_b16", "diffclip_vit_b16")
    } | {"open_clip": lambda compiled: open_clip_step("bf16", compiled)}
    for name, make in makers.items():
        for count in (256, 768) if CUDA else (2,):
            yield name, f"{count} pairs", lambda m=make, c=count: timed(m, False, c)
    for name, make in makers.items() if CUDA else ():
        yield f"{name}, compiled", "768 pairs", lambda m=make: timed(m, True, 768)


def timed(make: Callable[[bool], Step], compiled: bool, count: int) -> dict[str, float]:
    gc.collect()  # of the one before
    torch.compiler.reset()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step, batch, seconds = make(compiled), pairs(count), []
    began = time.perf_counter()
    for number in range(9 if CUDA else 2):
        step(batch)  # which ends with the loss on the CPU
        if number == 2:
            first = time.perf_counter() - began
        seconds.append(time.perf_counter() - began - sum(seconds))
    taken = statistics.median(seconds[3:] or seconds)
    figures = {"pairs/s": count / taken}
    if CUDA:
        flops = sum(training(PRESETS["clip_vit_b16"], count, TOKENS).values())
        figures |= {
            "share of 989 TFLOP/s": flops * count / taken / PEAK,
            "peak GiB": torch.cuda.max_memory_allocated() / 2**30,
            "first three, s": first,
        }
    return figures


def waits(_: str | None) -> Iterator[Measurement]:
    for name in ("clip_vit_b16", "diffclip_vit_b16"):
        yield name, "", lambda n=name: counted(n)


def counted(name: str) -> dict[str, Any]:
    """Where PyTorch's own warnings see a step wait for the device: file:line."""
    step, batch = diffclip_step(name, "bf16"), pairs(64 if CUDA else 2)
    for _ in range(3 if CUDA else 1):
        step(batch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if CUDA:
            torch.cuda.set_sync_debug_mode("warn")
        step(batch)
        if CUDA:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
    return {"waits": len(places), "where": ", ".join(sorted(set(places)))}


def encode(_: str | None) -> Iterator[Measurement]:
    makers = {"open_clip": theirs} | {
        name: lambda precision, name=name: ours(name, precision) for name in ("clip_vit_b16", "diffclip_vit_b16")
    }
    for name, make in makers.items():
        for precision in ("float32", "TF32", "bf16"):
            yield name, "", lambda m=make, p=precision: encoded(m, p)


def encoded(make: Callable[[str], torch.nn.Module], precision: str) -> dict[str, float]:
    """bf16: weights and pixels of it."""
    torch.set_float32_matmul_precision("high" if precision == "TF32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "TF32"
    model = make("bf16" if precision == "bf16" else "float32").to(DEVICE)
    count = 512 if CUDA else 2
    pixels = torch.randn(count, 3, 224, 224, device=DEVICE).to(next(model.parameters()).dtype)
    with torch.inference_mode():
        return {precision: count / milliseconds(lambda: model.encode_image(pixels), 4) * 1e3}


def train(cifar: str | None) -> Iterator[Measurement]:
    for preset in ("clip_vit_quickstart", "diffclip_vit_quickstart"):
        yield preset, "", lambda p=preset: trained(p, cifar)


def trained(preset: str, cifar: str | None) -> dict[str, float]:
    """recipes/cifar10.toml by the command, from files. Raises RuntimeError where it fails."""
    epochs, workers = ("5", min(14, (os.cpu_count() or 2) - 2)) if CUDA else ("0.01", 0)
    with tempfile.TemporaryDirectory() as folder:
        run, began = Path(folder) / "run", time.perf_counter()
        command = [sys.executable, "-m", "diffclip", "train", "cifar10", "--model.preset", preset, "--out", str(run)]
        command += ["--data.train.path", str(cifar), "--data.examples", "0", "--data.workers", str(workers)]
        command += ["--training.epochs", epochs, "--training.evaluate-every", "0"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1])
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures = {"s in all": time.perf_counter() - began, "loss": lines[-1]["loss"], "waiting": lines[-1]["data_wait"]}
    figures["images/s"] = statistics.median(line["images_per_s"] for line in lines[1:-1] or lines)
    return figures | {name: value for name, value in lines[-1].items() if name.endswith("/acc1")}
