"""Commands on bad days: killed at random moments, and on a disk that fills up. Not part of the tests: it takes an hour.

    python tests/long/bad_days.py kills --kills 100
    sudo python tests/long/bad_days.py full --sizes 12      # mounts small file systems of its own

Each command (train, eval, pack, the index of shards, report) is run once in peace. Then it is run again and again into
other folders, killed by SIGKILL at a moment that is drawn uniformly, or stopped by a full disk. After every stop every
visible file has to be whole, and no checkpoint, shard or result that was there may be lost. The same command goes on,
without repair by hand, until it ends; then all that it leaves has to equal what the run in peace left.
"""

import argparse
import contextlib
import csv
import ctypes
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tomli
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

from diffclip import cli
from diffclip.training.logs import WALL_CLOCK

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["diffclip.cli", "diffclip.training.setup", "diffclip.evaluation.run.suite", "diffclip.reporting.report", "timm"]
)
RECIPE = """
[model]
preset = "diffclip_vit_quickstart"
[model.overrides]
image_size = 16
patch_size = 8
vision_width = 16
vision_depth = 2
vision_heads = 2
text_width = 16
text_depth = 1
text_heads = 2
embed_dim = 8
[data]
workers = 0
train = { path = "scenes:train?size=16&length=64" }
[optimizer]
lr = 1e-3
warmup_epochs = 0.5
[training]
epochs = 3
batch_size = 4
log_every = 1
checkpoint_every = 4
evaluate_every = 0.5
keep_best = 1
best_by = "scenes/acc1"
precision = "float32"
[[evaluation]]
name = "scenes"
data = { path = "scenes:test?size=16&length=32" }
tasks = ["zero_shot"]
"""


@dataclass(frozen=True)
class Command:
    name: str
    arguments: Callable[[Path], list[str]]
    """Of the command that writes into a folder."""
    left: Callable[[Path], dict[str, object]]
    """What counts of what it leaves."""
    kept: Callable[[Path], set[str]]
    """What no stop may lose."""
    begin: Callable[[Path], None] = lambda out: None


def commands(ground: Path) -> list[Command]:
    """The commands, with what they read in `ground`."""
    (ground / "recipe.toml").write_text(RECIPE)
    rng = np.random.default_rng(0)
    with (ground / "data.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filepath", "caption"])
        for number in range(400):
            Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(ground / f"{number}.png")
            rows.writerow([f"{number}.png", f"picture {number}"])
    for arguments in (
        ["train", str(ground / "recipe.toml"), "--out", str(ground / "run")],
        ["data", "pack", str(ground / "data.csv"), "--out", str(ground / "shards"), "--shard-examples", "4"],
        [
            "eval",
            str(ground / "run"),
            "--data",
            "scenes=scenes:test?size=16&length=64",
            "--out",
            str(ground / "results"),
        ],
    ):
        if status := _started(arguments, ground / "log"):
            raise SystemExit(f"{arguments} ended with {status}:\n{(ground / 'log').read_text()}")
    for shard in (ground / "shards").glob("*.tar"):
        os.utime(shard, (1e9, 1e9))  # a younger one is not trusted to stay, and its index not kept

    def index(out: Path) -> None:
        if not (out / "shards").exists():
            shutil.copytree(ground / "shards", out / "shards", ignore=shutil.ignore_patterns(".*", "*-index", "*.json"))

    evaluated = ["--data", "scenes=scenes:test?size=16&length=2100", "--tasks", "zero_shot", "retrieval"]
    evaluated += ["--workers", "0"]
    return [
        Command(
            "train",
            lambda out: ["train", str(ground / "recipe.toml"), "--out", str(out / "run"), "--resume"],
            lambda out: _tensors(out) | {"metrics": _metrics(out / "run" / "metrics.jsonl")},
            # A newer checkpoint may take an older one's place, so what counts is the newest.
            lambda out: {
                f"step {step}" for step in range(max(map(_step, out.glob("run/checkpoints/step_*")), default=0))
            },
        ),
        Command(
            "eval",
            lambda out: ["eval", str(ground / "run"), *evaluated, "--out", str(out / "results")],
            lambda out: _tensors(out) | {"results": _lines(out / "results" / "results.jsonl")},
            lambda out: _lines(out / "results" / "results.jsonl") | _named(out, "*.safetensors"),
        ),
        Command(
            "pack",
            lambda out: ["data", "pack", str(ground / "data.csv"), "--out", str(out / "s"), "--shard-examples", "4"],
            lambda out: {path.name: path.read_bytes() for path in out.glob("s/*")},
            lambda out: _named(out, "*.tar"),
        ),
        Command(
            "index",
            lambda out: ["data", "verify", str(out / "shards"), "--workers", "1"],
            lambda out: {path.name: _arrays(path) for path in out.rglob("*-index")},
            lambda out: _named(out, "*-index"),
            begin=index,
        ),
        Command(
            "report",
            lambda out: ["report", str(ground / "run"), str(ground / "results"), "--out", str(out / "report")],
            lambda out: {str(p.relative_to(out)): p.stat().st_size for p in out.rglob("*.*") if p.suffix != ".html"},
            lambda out: _named(out, "*"),
        ),
    ]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def _named(out: Path, pattern: str) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob(pattern) if not _hidden(path, out)}


def _lines(path: Path) -> set[str]:
    return set(path.read_text().split("\n")[:-1]) if path.exists() else set()


def _metrics(path: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    return [{key: value for key, value in line.items() if key not in WALL_CLOCK} for line in lines]


def _arrays(path: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in load_file(path).items()}


def _tensors(out: Path) -> dict[str, object]:
    files = {path.relative_to(out): _arrays(path) for path in out.rglob("*.safetensors")}
    # The name of an example's file ends in a digest of its model's path, which is another one each time.
    return {re.sub(r"-[0-9a-f]{10}\.", ".", str(name)): arrays for name, arrays in files.items()}


def _hidden(path: Path, out: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(out).parts)


def half_written(out: Path) -> list[str]:
    """The visible files that are not whole."""
    found = []
    for path in out.rglob("*"):
        if path.is_file() and not _hidden(path, out) and "tfevents" not in path.name:
            try:
                _read(path)
            except Exception as error:
                found.append(f"{path}: {type(error).__name__} {error}")
    return found


def _read(path: Path) -> None:
    content = path.read_bytes()
    match path.suffix:
        case ".safetensors" | ".diffclip-index":
            with safe_open(path, "np") as file:
                [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
        case ".json":
            json.loads(content)
        case ".jsonl":
            for line in content.split(b"\n")[:-1]:  # the last may be cut short, and is told and made again
                json.loads(line)
        case ".toml":
            tomli.loads(content.decode())
        case ".tar":
            with tarfile.open(path) as archive:
                [archive.extractfile(member).read() for member in archive]
            assert content.endswith(bytes(1024))
        case ".png":
            Image.open(io.BytesIO(content)).load()
        case ".pdf":
            assert content.rstrip().endswith(b"%%EOF")
        case ".html":
            assert content.rstrip().endswith(b"</html>")
        case ".svg":
            ElementTree.fromstring(content)
        case ".md" | ".tex" | ".csv":
            assert content.endswith(b"\n")


def _started(arguments: list[str], log: Path, kill_after: float | None = None, cache: Path | None = None) -> int:
    """The exit status of a command in a process group of its own; −9 where it was killed."""
    process = PROCESSES.Process(target=_run, args=(arguments, str(log), str(cache or log.parent)))
    process.start()
    process.join(kill_after)
    if process.is_alive():
        for kill in (os.killpg, os.kill):  # the group is there once the process has begun
            with contextlib.suppress(ProcessLookupError):
                kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode


def _run(arguments: list[str], log: str, cache: str) -> None:
    os.environ["XDG_CACHE_HOME"] = cache
    os.setpgid(0, 0)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        cli.main(arguments)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def kills(command: Command, ground: Path, wanted: int, draw: random.Random) -> Counter[str]:
    """Kill a command `wanted` times; what went wrong is printed, and counted."""
    counts: Counter[str] = Counter()
    peace, log = ground / f"{command.name}-in-peace", ground / "log"
    peace.mkdir()
    command.begin(peace)
    began = time.monotonic()
    assert _started(command.arguments(peace), log) == 0, log.read_text()
    seconds = time.monotonic() - began
    expected = command.left(peace)
    while counts["killed"] < wanted:
        out = ground / f"{command.name}-{counts['ended']}"
        out.mkdir()
        command.begin(out)
        kept, killed = set[str](), 0
        while True:
            ready, began = counts["killed"] == wanted, time.monotonic()
            status = _started(command.arguments(out), log, None if ready else draw.uniform(0, seconds))
            wrong = [f"half-written: {text}" for text in half_written(out)]
            now = command.kept(out)
            wrong += [f"lost: {name}" for name in kept - now]
            kept = now
            if status != -signal.SIGKILL:
                counts["ended"] += 1
                if not killed:
                    seconds = min(seconds, time.monotonic() - began)
                text = log.read_text()
                wrong += [f"status {status}: {text}"] if status or "Traceback" in text else []
                left = command.left(out)
                wrong += [
                    f"differs: {key}" for key in left.keys() | expected.keys() if left.get(key) != expected.get(key)
                ]
                counts["left over"] += sum(1 for _ in out.rglob("*.unfinished"))
            else:
                killed += 1
                counts["killed"] += 1
            counts["wrong"] += len(wrong)
            for text in wrong:
                print(f"{command.name} after {counts['killed']} kills: {text}", flush=True)
            if status != -signal.SIGKILL:
                break
        if not wrong:
            shutil.rmtree(out)
    return counts


def full(command: Command, ground: Path, sizes: int) -> Counter[str]:
    """Run a command on file systems of growing size until it ends; then, from each stop, with room."""
    counts: Counter[str] = Counter()
    log, out = ground / "log", ground / "disk"
    out.mkdir(exist_ok=True)
    with _disk(out, 1 << 20):
        command.begin(out)
        assert _started(command.arguments(out), log, cache=out / ".cache") == 0, log.read_text()
        expected, used = command.left(out), shutil.disk_usage(out).used // 1024
    for number in range(sizes):
        with _disk(out, 1 << 20):
            command.begin(out)
            room = shutil.disk_usage(out).used // 1024
            size = room + 4 + (used - room) * number // sizes
            subprocess.run(["mount", "-o", f"remount,size={size}k", out], check=True)
            status = _started(command.arguments(out), log, cache=out / ".cache")
            text = log.read_text()
            last = [line for line in text.split("\n") if re.match("diffclip: ", line)]
            wrong = [f"half-written: {name}" for name in half_written(out)]
            wrong += (
                [f"status {status}, no one clear line: {text}"]
                if "Traceback" in text or (status and len(last) != 1)
                else []
            )
            counts["stopped" if status else "ended all the same"] += 1
            print(f"{command.name}, {size} KiB of {used}: status {status}: {last[-1] if last else ''}", flush=True)
            subprocess.run(["mount", "-o", "remount,size=1g", out], check=True)
            status = _started(command.arguments(out), log, cache=out / ".cache")
            left = command.left(out)
            wrong += [f"status {status}: {log.read_text()}"] if status else []
            wrong += [f"differs: {key}" for key in left.keys() | expected.keys() if left.get(key) != expected.get(key)]
            counts["wrong"] += len(wrong)
            for name in wrong:
                print(f"{command.name}, {size} KiB: {name}", flush=True)
    return counts


@contextlib.contextmanager
def _disk(folder: Path, kib: int):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("day", choices=["kills", "full"])
    parser.add_argument("--kills", type=int, default=100, help="of all commands together")
    parser.add_argument("--sizes", type=int, default=12, help="of file systems, for each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one command")
    given = parser.parse_args()
    if given.day == "full":  # mounts that nobody else sees, and that end with this process
        if ctypes.CDLL(None, use_errno=True).unshare(0x00020000):
            raise SystemExit("full needs root")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "DIFFCLIP_NATIVE": "0"}
    with tempfile.TemporaryDirectory() as ground:
        chosen = [c for c in commands(Path(ground)) if given.only in (None, c.name)]
        total: Counter[str] = Counter()
        for number, command in enumerate(chosen):
            share = given.kills * (number + 1) // len(chosen) - given.kills * number // len(chosen)
            draw = random.Random(f"{given.seed} {command.name}")
            if given.day == "kills":
                counts = kills(command, Path(ground), share, draw)
            else:
                counts = full(command, Path(ground), given.sizes)
            print(command.name, dict(counts), flush=True)
            total += counts
    print("all", dict(total), f"seed {given.seed}", flush=True)
    sys.exit(total["wrong"] > 0)


if __name__ == "__main__":
    main()
