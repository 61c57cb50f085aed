"""How fast are pictures encoded, decoding included, beside open_clip? Does an index keep that pace? How does a server?

    python benchmarks/use.py PICTURES [--what encode index load] [--count 32] [--rounds 3]
        [--precisions float32 bfloat16 int8] [--cpu] [--json FILE]

encode: ViT-B/16 with random weights on files of a folder or shard: open_clip's way (Pillow, its transform, its model
in float32, batches of 16), and ours by `Encoder.stream` for CLIP and DiffCLIP in each precision; and the lowest cosine
of a picture's feature with that of float32. index: what `diffclip embed` takes to encode files, against `diffclip
index` with hashes, EXIF and commits. load: 50 clients ask a server of that index, every text new to it.
Contestants run in turn in one process; medians, and ratios within a round. --cpu counts seconds of the processor
instead of those of the clock: for a machine that others use too.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from json import dumps, load
from pathlib import Path
from typing import Any, cast
from urllib.request import Request, urlopen

import numpy as np
import open_clip
import torch
from PIL import Image
from rounds import in_turn, medians, ratio, write_json

import diffclip
from diffclip.search.store import Index
from diffclip.search.update import open_index, update
from diffclip.use.embed import embed_pictures
from diffclip.use.encoder import Encoder, Precision, open_encoder
from diffclip.use.pictures import Pictures, open_pictures

CLIENTS, QUERIES = 50, 500


def saved(preset: str, folder: Path) -> str:
    """Random weights, as a user's model lies on the disk."""
    torch.manual_seed(0)
    diffclip.save(diffclip.create_model(preset), folder / preset)
    return str(folder / preset)


def bytes_of(pictures: Pictures, count: int) -> list[bytes]:
    return [cast(bytes, pictures[index].image) for index in range(min(count, len(pictures)))]


def encode(
    images: list[bytes], folder: Path, rounds: int, clock: Callable[[], float], precisions: list[str]
) -> dict[str, Any]:
    """Print images/s and the ratio to open_clip of each contestant."""
    peer, _, transform = open_clip.create_model_and_transforms("ViT-B-16")
    peer.eval()

    def theirs(_: int) -> None:
        with torch.inference_mode():
            for start in range(0, len(images), 16):
                batch = [transform(Image.open(io.BytesIO(image))) for image in images[start : start + 16]]
                peer.encode_image(torch.stack(batch), normalize=True)

    def ours(encoder: Encoder) -> Callable[[int], np.ndarray]:
        return lambda _: np.concatenate([batch.features for batch in encoder.stream(images, encoder.pixels)])

    contestants: dict[str, Callable[[int], object]] = {"open_clip ViT-B-16 float32": theirs}
    exact: dict[str, np.ndarray] = {}
    cosines: dict[str, float] = {}
    for preset in ("clip_vit_b16", "diffclip_vit_b16"):
        source = saved(preset, folder)
        for precision in precisions:
            run = ours(open_encoder(source, cast(Precision, precision)))
            contestants[f"{preset} {precision}"] = run
            found = run(0)
            exact.setdefault(preset, found)
            cosines[f"{preset} {precision}"] = float((exact[preset] * found).sum(1).min())
    seconds = in_turn(contestants, rounds, clock=clock)
    print(f"{'':30}{'images/s':>10}{'× open_clip':>13}{'lowest cosine':>15}")
    for name, value in medians(seconds).items():
        faster = 1 / ratio(seconds, name, "open_clip ViT-B-16 float32")
        print(f"{name:30}{len(images) / value:10.2f}{faster:13.2f}{cosines.get(name, 1):15.4f}")
    return {"seconds": seconds, "cosines": cosines}


def index(images: list[bytes], folder: Path, rounds: int, clock: Callable[[], float], preset: str) -> dict[str, Any]:
    """Print what share of the rate of `embed` the rate of `index` is."""
    album = folder / "album"
    album.mkdir()
    for number, image in enumerate(images):
        (album / f"{number:05d}.jpg").write_bytes(image)
    encoder, pictures = open_encoder(saved(preset, folder)), open_pictures([str(album)])

    def indexed(_: int) -> None:
        shutil.rmtree(folder / "index", ignore_errors=True)
        with open_index(str(folder / "index"), encoder, [str(album)], []) as opened:
            update(opened, encoder)

    contestants: dict[str, Callable[[int], object]] = {
        "embed": lambda _: embed_pictures(encoder, pictures, folder / "features.npz"),
        "index": indexed,
    }
    seconds = in_turn(contestants, rounds, clock=clock)
    share = ratio(seconds, "embed", "index")
    print(f"{preset}: {len(images)} files, index at {share:.3f} of the rate of embed")
    return {"seconds": seconds, "index_to_embed": share}


def ask_all(folder: Path) -> dict[str, Any]:
    """Print how long a server takes for 500 texts that it has not seen, asked by 50 clients at once."""
    command = [sys.executable, "-m", "diffclip", "serve", str(folder / "index"), "--port", "0"]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[0]

        def ask(number: int) -> float:
            parts = [{"kind": "text", "what": f"a picture of thing {number}"}]
            body = dumps({"desk": 0, "parts": parts, "count": 30, "offset": 0}).encode()
            began = time.perf_counter()
            answer = load(urlopen(Request(f"{url}search", body, {"content-type": "application/json"}), timeout=300))
            assert answer["hits"]
            return time.perf_counter() - began

        ask(-1)
        began = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            seconds = list(pool.map(ask, range(QUERIES)))
        whole = time.perf_counter() - began
        server.terminate()
    p95 = float(np.percentile(seconds, 95))
    print(
        f"{CLIENTS} clients, {QUERIES} texts, index of {len(Index.open(str(folder / 'index')))}: no error, "
        f"{QUERIES / whole:.0f}/s, median {1e3 * np.median(seconds):.0f} ms, 95 % within {1e3 * p95:.0f} ms"
    )
    return {"seconds": seconds, "p95": p95}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", help="a folder or shards of JPEG photographs")
    parser.add_argument("--what", nargs="+", choices=("encode", "index", "load"), default=["encode", "index", "load"])
    parser.add_argument("--count", type=int, default=32, help="pictures that are encoded")
    every = ["float32", "bfloat16", "int8"]
    parser.add_argument("--precisions", nargs="+", choices=every, default=every, help="the first is compared with")
    parser.add_argument("--preset", default="diffclip_vit_b16", help="the model of index and load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu", action="store_true", help="count seconds of the processor")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu else time.perf_counter
    images = bytes_of(open_pictures([arguments.pictures]), arguments.count)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        if "encode" in arguments.what:
            results["encode"] = encode(images, folder, arguments.rounds, clock, arguments.precisions)
        if {"index", "load"} & set(arguments.what):
            results["index"] = index(images, folder, arguments.rounds, clock, arguments.preset)
        if "load" in arguments.what:
            results["load"] = ask_all(folder)
    write_json(arguments.json, results)


if __name__ == "__main__":
    main()
