"""All that a GPU is asked, in under ten minutes: is it right, how fast is it, how much memory, where does it wait?

    python benchmarks/gpu.py [--only PART …] [--cifar DIR] [--json FILE]     # on a machine with an NVIDIA GPU
    python benchmarks/gpu.py --cpu                                           # rehearsed: tiny, Triton interpreted

Each part is a process with a time limit, and what it has measured is kept as it comes. What fails, and what passes its
limit, is named at the end; the other parts go on, and the exit status is 1. Prints Markdown tables for
docs/performance.md. `make gpu` gathers what a machine without a network needs. DIR holds CIFAR-10 as
recipes/cifar10.toml has it.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from rounds import processor, write_json

# In this order, since a machine may be lent for minutes: (module, seconds).
PARTS = {
    "machine": ("gpu_operation", 15),
    "kernels": ("gpu_operation", 60),
    "steps": ("gpu_model", 200),
    "backends": ("gpu_operation", 55),
    "operation": ("gpu_operation", 60),
    "waits": ("gpu_model", 25),
    "encode": ("gpu_model", 70),
    "train": ("gpu_model", 110),
}
TITLES = {
    "machine": "What the card does",
    "kernels": "The Triton kernels against float64, the largest relative error of result and gradients",
    "backends": "Every backend against float64, the largest relative error of result and gradients",
    "operation": "The operation, milliseconds",
    "steps": "The training step of ViT-B/16 at 77 tokens, bfloat16 autocast",
    "waits": "Where a step waits for the device",
    "train": "Two trainings on CIFAR-10",
    "encode": "Images of ViT-B/16 encoded a second",
}
Row = dict[str, Any]  # who, at (a shape, a size, or nothing), and its figures, or why it failed


def measure(part: str, cifar: str | None, rows: Path) -> None:
    """In a process of its own: every measurement of a part, a line each."""
    module = importlib.import_module(PARTS[part][0])
    with rows.open("w", buffering=1) as file:
        for who, at, run in getattr(module, part)(cifar):
            row: Row = {"who": who, "at": at}
            try:
                row |= run()
            except Exception as error:
                row["failed"] = f"{type(error).__name__}: {error}"[:300]
            file.write(json.dumps(row) + "\n")


def start(part: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The part in a process of its own: its rows, how long it took, and what failed."""
    rows, log = folder / f"{part}.jsonl", folder / f"{part}.log"
    command = [sys.executable, __file__, "--only", part, "--rows", str(rows)]
    command += ["--cifar", options.cifar] if options.cifar else []
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"} if options.cpu else {})
    limit, began = options.limit or PARTS[part][1], time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:  # with the processes that it has started
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    said = log.read_text(errors="replace")
    sys.stderr.write(said)
    found = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    failed = [f"{row['who']}, {row['at']}: {row['failed']}" for row in found if "failed" in row]
    if status is None:
        failed.append(f"stopped after {limit:g} s")
    elif status:
        failed.append((said.strip().splitlines() or [f"status {status}"])[-1])
    return {"rows": found, "seconds": time.monotonic() - began, "failed": failed}


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """A line for each contestant, a column for each figure of each shape or size."""
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        figures = {key: value for key, value in row.items() if key not in ("who", "at", "failed")}
        lines.setdefault(row["who"], {}).update(
            {f"{row['at']}: {key}" if row["at"] else key: shown(value) for key, value in figures.items()}
        )
    columns = list(dict.fromkeys(column for line in lines.values() for column in line))
    head = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    return "\n".join(
        head + [f"| {who} | " + " | ".join(line.get(c, "") for c in columns) + " |" for who, line in lines.items()]
    )


def shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts alone")
    parser.add_argument("--cifar", help="a folder with CIFAR-10; without it nothing is trained on it")
    parser.add_argument("--cpu", action="store_true", help="rehearse on a CPU: tiny sizes, no figure to believe")
    parser.add_argument("--limit", type=float, help="seconds for each part in place of its own")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows:
        measure(options.only[0], options.cifar, options.rows)
        return 0
    if not options.cpu and not torch.cuda.is_available():
        parser.error("there is no NVIDIA GPU that torch can use; --cpu rehearses the script")
    parts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in options.only:
            if part == "train" and not options.cifar:
                print("\ntrain: not run, since --cifar names no data")
                continue
            parts[part] = found = start(part, options, Path(folder))
            print(f"\n**{TITLES[part]}** ({found['seconds']:.0f} s)\n\n{table(found['rows'])}", flush=True)
    card = processor() if options.cpu else torch.cuda.get_device_name()
    failed = [f"{part}: {reason}" for part, found in parts.items() for reason in found["failed"]]
    print(f"\n{card}, torch {torch.__version__}, {len(parts)} parts", *(f"FAILED {line}" for line in failed), sep="\n")
    if options.json:
        write_json(options.json, {"card": card, "rehearsal": options.cpu, "parts": parts})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
