"""How fast, how exact and how large is the search in an index, beside FAISS and comparing everything?

    python benchmarks/search.py [--counts 10000 100000 1000000] [--queries 100] [--folder DIR] [--json FILE]
    python benchmarks/search.py --counts 1000000 --folder DIR --keep --tune     # recall and time of other settings

The vectors are made: 512 numbers, normalised, around 5,000 topics, each with 48 directions of its own spread, so that
they are as uneven as features of photographs are. Of vectors without any structure no index finds the nearest without
comparing nearly all. Queries are drawn as the vectors are, and are not among them. Each contestant has a process of its
own, so that its memory is its own: it builds, then is started anew, opens what it has built, and answers the queries
one at a time. Recall is the share of the true ten nearest among the ten that were found.

`--tune` asks other queries than those that judge: 50 for each setting of the index, in one process, and the same within
one folder of 1,000 pictures, which is a condition that a user may state.

index: `diffclip.search`, with paths, dates and cameras, as `diffclip search` asks it. FAISS: IVF with 8 bits a number,
with √n lists, at most 1024, of which 40 are searched. brute force: NumPy's product with all vectors in float32.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rounds import peak_mib, write_json

WIDTH, TOPICS, SPREAD, BLOCK = 512, 5000, 48, 20_000
CONTESTANTS = ("index", "faiss", "brute force")
JUDGING, TUNING = 1 << 40, 1 << 41
"""Seeds of queries; blocks of vectors have small ones."""
SETTINGS = [(probes, refine) for refine in (4, 2) for probes in (20, 40, 80, 120, 160, 200, 240)]
FOLDER = 1000
"""Pictures of a folder."""
Search = Callable[[NDArray[np.float32]], list[int]]


def made(count: int, seed: int) -> NDArray[np.float32]:
    """(count, 512) float32, normalised. The topics are the same for every seed."""
    fixed, drawn = np.random.default_rng(0), np.random.default_rng(seed)
    topics = fixed.standard_normal((TOPICS, WIDTH), np.float32)
    directions = fixed.standard_normal((SPREAD, WIDTH), np.float32) / np.float32(np.sqrt(SPREAD))
    x = 0.6 * topics[drawn.integers(0, TOPICS, count)]
    x += drawn.standard_normal((count, SPREAD), np.float32) @ directions
    x += 0.35 * drawn.standard_normal((count, WIDTH), np.float32)
    normalised: NDArray[np.float32] = x / np.linalg.norm(x, axis=1, keepdims=True)
    return normalised


def write_vectors(folder: Path, count: int) -> None:
    unfinished = folder / "vectors.part"
    file = np.lib.format.open_memmap(unfinished, "w+", np.float16, (count, WIDTH))

    def write(start: int) -> None:
        file[start : start + BLOCK] = made(min(BLOCK, count - start), start + 1)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(0, count, BLOCK)))
    file.flush()
    unfinished.rename(folder / "vectors.npy")


def nearest(vectors: NDArray[np.float16], queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """(queries, 10): the true nearest, by blocks in float32."""
    best = np.full((len(queries), 10), -2.0, np.float32)
    rows = np.zeros((len(queries), 10), np.int64)
    for start in range(0, len(vectors), BLOCK):
        scores = queries @ unit(vectors[start : start + BLOCK]).T
        every = np.concatenate([best, scores], 1)
        names = np.concatenate([rows, np.broadcast_to(np.arange(start, start + scores.shape[1]), scores.shape)], 1)
        order = np.argsort(-every, 1)[:, :10]
        best, rows = np.take_along_axis(every, order, 1), np.take_along_axis(names, order, 1)
    return rows


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    exact = vectors.astype(np.float32)
    normalised: NDArray[np.float32] = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    return normalised


def build_index(folder: Path) -> None:
    from diffclip.search.rows import schema
    from diffclip.search.store import About, Index

    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    index = Index.create(str(folder / "index"), About("made", "made", "float32", WIDTH, ("/made",)))
    for start in range(0, len(vectors), BLOCK):
        rows = range(start, min(start + BLOCK, len(vectors)))
        values = pa.array(np.ascontiguousarray(vectors[rows.start : rows.stop]).reshape(-1))
        columns = {
            "id": [f"{row:016x}" for row in rows],
            "path": [f"/made/{row // FOLDER:04d}/{row}.jpg" for row in rows],
            "raw": pa.nulls(len(rows), pa.binary()),
            "size": pa.array([1] * len(rows), pa.int64()),
            "changed": pa.array([1] * len(rows), pa.int64()),
            "content": [f"{row:032x}" for row in rows],
            "taken": pa.nulls(len(rows), pa.timestamp("s")),
            "camera": ["Made Camera"] * len(rows),
            "width": pa.array([4000] * len(rows), pa.int32()),
            "height": pa.array([3000] * len(rows), pa.int32()),
            "vector": pa.FixedSizeListArray.from_arrays(values, WIDTH),
        }
        index.pictures.add(pa.table(columns, schema=schema(WIDTH)))
    began = time.perf_counter()
    index.tidy()
    print(f"tidied in {time.perf_counter() - began:.1f} s", file=sys.stderr)


def open_index(folder: Path) -> Search:
    from diffclip.search.query import find
    from diffclip.search.store import Index

    index = Index.open(str(folder / "index"))
    return lambda query: [int(hit.id, 16) for hit in find(index, query, 10)]


def build_faiss(folder: Path) -> None:
    import faiss

    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    lists = int(np.clip(round(len(vectors) ** 0.5), 64, 1024))
    index = faiss.index_factory(WIDTH, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    chosen = np.sort(np.random.default_rng(0).permutation(len(vectors))[: 64 * lists])
    index.train(unit(vectors[chosen]))
    for start in range(0, len(vectors), BLOCK):
        index.add(unit(vectors[start : start + BLOCK]))
    faiss.write_index(index, str(folder / "faiss"))


def open_faiss(folder: Path) -> Search:
    import faiss

    index = faiss.read_index(str(folder / "faiss"))
    index.nprobe = 40
    return lambda query: index.search(query[None], 10)[1][0].tolist()


def open_brute_force(folder: Path) -> Search:
    stored = np.load(folder / "vectors.npy", mmap_mode="r")
    vectors = np.empty(stored.shape, np.float32)
    for start in range(0, len(stored), BLOCK):
        vectors[start : start + BLOCK] = unit(stored[start : start + BLOCK])

    def search(query: NDArray[np.float32]) -> list[int]:
        scores = vectors @ query
        ten = np.argpartition(-scores, 10)[:10]
        found: list[int] = ten[np.argsort(-scores[ten])].tolist()
        return found

    return search


BUILD = {"index": build_index, "faiss": build_faiss, "brute force": lambda folder: None}
OPEN = {"index": open_index, "faiss": open_faiss, "brute force": open_brute_force}


def in_this_process(contestant: str, folder: Path, what: str) -> dict[str, Any]:
    began = time.perf_counter()
    if what == "build":
        BUILD[contestant](folder)
        return {"build_s": time.perf_counter() - began, "build_mib": peak_mib()}
    if what == "tune":
        return {"settings": tuned(folder)}
    queries, truth = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
    search = OPEN[contestant](folder)
    opened = time.perf_counter() - began
    return {"open_s": opened, **asked(search, queries, truth), "query_mib": peak_mib()}


def asked(search: Search, queries: NDArray[np.float32], truth: NDArray[np.int64]) -> dict[str, float]:
    search(queries[0])
    seconds, right = [], 0
    for query, ten in zip(queries, truth, strict=True):
        began = time.perf_counter()
        found = search(query)
        seconds.append(time.perf_counter() - began)
        right += len(set(found) & set(ten.tolist()))
    median, p95 = 1e3 * np.median(seconds), 1e3 * np.percentile(seconds, 95)
    return {"median_ms": float(median), "p95_ms": float(p95), "recall": right / truth.size}


def tuned(folder: Path) -> list[dict[str, float]]:
    """Recall and milliseconds of each setting, of all pictures and of those in one folder."""
    from diffclip.search import query as asking
    from diffclip.search.store import Index

    vectors, queries = np.load(folder / "vectors.npy", mmap_mode="r"), made(50, TUNING)
    start = len(vectors) // 2 // FOLDER * FOLDER
    truth, within = nearest(vectors, queries), start + nearest(vectors[start : start + FOLDER], queries)
    index = Index.open(str(folder / "index"))
    filters = asking.Filters(folder=f"/made/{start // FOLDER:04d}")
    found = []
    for asking.PROBES, asking.REFINE in SETTINGS:  # type: ignore[misc]
        row: dict[str, float] = {"probes": asking.PROBES, "refine": asking.REFINE}
        row |= asked(lambda q: [int(hit.id, 16) for hit in asking.find(index, q, 10)], queries, truth)
        few = asked(lambda q: [int(h.id, 16) for h in asking.find(index, q, 10, filters=filters)], queries, within)
        found.append(row | {f"{name}_within": value for name, value in few.items()})
    return found


def run_apart(contestant: str, folder: Path, what: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", contestant, str(folder), what]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def tune(folder: Path, count: int) -> None:
    """Print a table of settings."""
    if not (folder / "index").exists():
        run_apart("index", folder, "build")
    print(f"{count:,} vectors\n{'probes':>8}{'refine':>8}{'recall@10':>11}{'median ms':>11}{'in a folder':>20}")
    for row in run_apart("index", folder, "tune")["settings"]:
        print(
            f"{row['probes']:8}{row['refine']:8}{row['recall']:11.3f}{row['median_ms']:11.1f}"
            f"{row['recall_within']:11.3f}{row['median_ms_within']:9.1f}"
        )


def compare(folder: Path, count: int, contestants: list[str]) -> list[dict[str, Any]]:
    """Print a row of each contestant."""
    results = []
    for contestant in contestants:
        kept = folder / contestant.replace(" ", "_")
        found = {"vectors": count, "contestant": contestant, "build_s": math.nan, "build_mib": math.nan}
        if not kept.exists():
            found |= run_apart(contestant, folder, "build")
        found |= run_apart(contestant, folder, "query")
        print(
            f"{count:>9,}  {contestant:12}{found['build_s']:9.1f}{found['build_mib']:7.0f}{found['open_s']:8.2f}"
            f"{found['median_ms']:11.1f}{found['p95_ms']:8.1f}{found['query_mib']:7.0f}{found['recall']:11.3f}",
            flush=True,
        )
        results.append(found)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", nargs="+", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where 4 GB may be written for a while; by default a temporary one")
    parser.add_argument("--keep", action="store_true", help="leave in --folder what is made, and use what is there")
    parser.add_argument("--tune", action="store_true", help="the index alone, by its settings")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--one", nargs=3, metavar=("CONTESTANT", "FOLDER", "WHAT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        contestant, folder, what = arguments.one
        print(json.dumps(in_this_process(contestant, Path(folder), what)))
        return
    if arguments.keep and arguments.folder is None:
        parser.error("--keep needs --folder")
    results: list[dict[str, Any]] = []
    if not arguments.tune:
        print(f"{'':23}{'build s':>9}{'MiB':>7}{'open s':>8}{'median ms':>11}{'p95 ms':>8}{'MiB':>7}{'recall@10':>11}")
    for count in arguments.counts:
        if arguments.keep:
            folder = arguments.folder / f"search_{count}"
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = Path(tempfile.mkdtemp(dir=arguments.folder))
        try:
            if not (folder / "vectors.npy").exists():
                write_vectors(folder, count)
            if arguments.tune:
                tune(folder, count)
                continue
            queries = made(arguments.queries, JUDGING)
            np.save(folder / "queries.npy", queries)
            np.save(folder / "truth.npy", nearest(np.load(folder / "vectors.npy", mmap_mode="r"), queries))
            results += compare(folder, count, arguments.contestants)
        finally:
            if not arguments.keep:
                shutil.rmtree(folder)
    write_json(arguments.json, {"results": results})


if __name__ == "__main__":
    main()
