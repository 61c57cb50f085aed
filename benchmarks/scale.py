"""What do ten million images and a run of a week take, in memory, open files and logs? By simulation.

    python benchmarks/scale.py [--images 10_000_000] [--shards 100_000] [--workers 4] [--days 7] [--json FILE]

Nothing of that size lies on the disk: names and indices are made up, and what diffclip keeps of them is measured.
A worker reads its share of all examples in random order, as a DataLoader's does; what it then holds for itself is the
memory that it does not share with the process it was forked from.
"""

import argparse
import gc
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest.mock import patch

import numpy as np
from rounds import write_json

from diffclip.data.example import Options
from diffclip.data.formats import shards
from diffclip.data.formats.packed_paths import PackedPaths
from diffclip.data.formats.shard_index import ShardIndex
from diffclip.training.logs import RunLog

CLASS = 1000  # images of a class folder
SECONDS = 0.5  # of a step
LOG_EVERY = 20  # steps, the default

Figures = dict[str, float]


def mib(what: str) -> float:
    """Of this process, by the name that /proc/self/smaps_rollup has for it."""
    lines = Path("/proc/self/smaps_rollup").read_text().split("\n")
    return sum(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def classes(images: int) -> Iterator[list[str]]:
    """The paths of the images of each class folder, as ImageNet-22k has them."""
    for first in range(0, images, CLASS):
        name = f"n{first // CLASS:08d}"
        yield [f"/data/imagenet22k/train/{name}/{name}_{number:07d}.JPEG" for number in range(first, first + CLASS)]


def read_by_workers(read: Callable[[int], object], length: int, workers: int) -> float:
    """MiB that the largest of the workers holds for itself after reading its share."""
    gc.collect()
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def work(rank: int) -> None:
        before = mib("Private_Dirty")
        for index in np.random.default_rng(0).permutation(length)[rank::workers]:
            read(int(index))
        answers.put(mib("Private_Dirty") - before)

    running = [context.Process(target=work, args=(rank,)) for rank in range(workers)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    if any(process.exitcode for process in running):
        raise RuntimeError("a worker died")
    return max(answers.get() for _ in running)


def a_list(given: argparse.Namespace) -> Figures:
    before = mib("Rss")
    paths = [path for some in classes(given.images) for path in some]
    held = mib("Rss") - before
    return {"MiB": held, "MiB a worker": read_by_workers(paths.__getitem__, given.images, given.workers)}


def packed(given: argparse.Namespace) -> Figures:
    before, began = mib("Rss"), time.monotonic()
    paths = PackedPaths()
    for some in classes(given.images):
        paths.extend(some)
    seconds, held = time.monotonic() - began, mib("Rss") - before
    worker = read_by_workers(paths.__getitem__, given.images, given.workers)
    return {"MiB": held, "MiB a worker": worker, "s to make": seconds}


def shards_of(given: argparse.Namespace) -> Figures:
    each = given.images // given.shards
    columns = np.repeat(np.arange(each, dtype=np.int32), 2), np.tile(np.array([0, 1], dtype=np.int32), each)
    offset = np.arange(2 * each, dtype=np.int64) * 1024 + 512
    before, began = mib("Rss"), time.monotonic()
    made = (
        ShardIndex(("image", "txt"), *(c.copy() for c in columns), offset.copy(), offset.copy())
        for _ in range(given.shards)
    )
    files = [Path(f"/data/laion/{number:06d}.tar") for number in range(given.shards)]
    with patch.object(shards, "indices", lambda files: list(made)):
        source = shards.TarSource(files, Options("made"))
    seconds, held = time.monotonic() - began, mib("Rss") - before
    with patch.object(shards, "read", lambda path, spans: [b""] * len(spans)):
        worker = read_by_workers(source.__getitem__, given.images, given.workers)
    return {"MiB": held, "MiB a worker": worker, "s to make": seconds}


def open_files(given: argparse.Namespace) -> Figures:
    """Of real shards, few enough to write here."""
    count = 2000
    with tempfile.TemporaryDirectory() as folder:
        block = b"0.jpg".ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"00000000003\0" + b"00000000000\0"
        header = (block + b" " * 8 + b"0").ljust(512, b"\0")
        header = header[:148] + f"{sum(header):06o}\0 ".encode() + header[156:]
        text = header.replace(b"jpg", b"txt")
        text = text[:148] + b" " * 8 + text[156:]
        text = text[:148] + f"{sum(text):06o}\0 ".encode() + text[156:]
        for number in range(count):
            path = Path(folder, f"{number:06d}.tar")
            path.write_bytes(header + b"abc".ljust(512, b"\0") + text + b"abc".ljust(512, b"\0") + bytes(1024))
            os.utime(path, (1e9, 1e9))
        files = sorted(Path(folder).glob("*.tar"))
        seconds = []
        for _ in range(2):  # the first makes the index
            began = time.monotonic()
            source = shards.TarSource(files, Options("made"))
            seconds.append(time.monotonic() - began)
        for index in range(count):
            source[index]
        opened = len(os.listdir("/proc/self/fd"))
    return {
        f"files open after reading {count} shards": opened,
        "s to index 1000 shards": seconds[0] / count * 1000,
        "s to open 1000 that have an index": seconds[1] / count * 1000,
    }


def logs(given: argparse.Namespace) -> Figures:
    lines = int(given.days * 86400 / SECONDS / LOG_EVERY)
    layers = [0.8123456789012345] * 12
    names = ("lambda_visual", "lambda_text", "entropy_visual", "entropy_text", "left_visual", "left_text")
    record = dict.fromkeys(names, layers) | {"loss": 1.234567890123, "lr": 1e-4, "seconds": 1.0, "grad_norm": 0.5}
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(Path(folder))
        for line in range(lines):
            log.write(record | {"step": (line + 1) * LOG_EVERY})
        log.close()
        before, began = mib("Rss"), time.monotonic()
        resumed = RunLog(Path(folder), step=lines * LOG_EVERY)
        seconds, held = time.monotonic() - began, mib("Rss") - before
        resumed.close()
        size = {p.name: p.stat().st_size / 2**20 for p in Path(folder).rglob("*") if p.is_file()}
    events = sum(value for name, value in size.items() if "tfevents" in name)
    return {
        "lines": lines,
        "MiB metrics.jsonl": size["metrics.jsonl"],
        "MiB tensorboard": events,
        "s to resume": seconds,
        "MiB while resumed": held,
    }


PARTS = {"a list of paths": a_list, "class folders": packed, "tar shards": shards_of, "files": open_files, "logs": logs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--days", type=float, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, Figures] = {}
    for name, part in PARTS.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # memory of its own
            found[name] = pool.submit(part, given).result()
        print(f"{name}: {', '.join(f'{value:.4g} {what}' for what, value in found[name].items())}", flush=True)
    write_json(given.json, found)


if __name__ == "__main__":
    main()
