"""How many scenes a second does one core draw, captions included?

    OMP_NUM_THREADS=1 python benchmarks/scenes.py [--scenes 1000] [--rounds 7] [--json FILE]

Each round draws the same scenes: whole examples (description, picture, captions), and of these the picture alone.
The peer, in the same rounds, is Pillow at four times the size, reduced: it draws only the scenes' grounds and things,
all as stars without texture, clutter or ink, so it does less. Medians over the rounds, in scenes a second.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from diffclip.data.scenes import SceneSource
from diffclip.data.scenes.draw import draw
from diffclip.data.scenes.scene import Scene

STAR = [((1.0, 0.46)[k % 2], k * math.pi / 5) for k in range(10)]


def pillow(scene: Scene, size: int) -> Image.Image:
    """Every thing of the scene as a plain star, anti-aliased by drawing at four times the size."""
    large = Image.new("RGB", (4 * size, 4 * size), scene.background.rgb)
    canvas = ImageDraw.Draw(large)
    for group in reversed(scene.groups):
        for thing in group.things:
            turn = math.radians(thing.angle)
            corners = [
                (
                    4 * size * (thing.x + thing.radius * reach * math.sin(turn + angle)),
                    4 * size * (thing.y - thing.radius * reach * math.cos(turn + angle)),
                )
                for reach, angle in STAR
            ]
            canvas.polygon(corners, fill=thing.rgb)
    return large.reduce(4)


def rate(work: Callable[[int], object], count: int) -> float:
    start = time.perf_counter()
    for index in range(count):
        work(index)
    return count / (time.perf_counter() - start)


def measure(size: int, count: int, rounds: int) -> dict[str, float]:
    """Scenes a second: of whole examples, of pictures alone, and of Pillow's simpler pictures."""
    source = SceneSource("train", size=size, length=count)
    scenes: Sequence[Scene] = [source.scene(index) for index in range(count)]
    ways: dict[str, Callable[[int], object]] = {
        "example": source.__getitem__,
        "picture": lambda index: draw(scenes[index], size),
        "pillow": lambda index: pillow(scenes[index], size),
    }
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, work in ways.items():
            found[way].append(rate(work, count))
    return {way: statistics.median(rates) for way, rates in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=1000, help="scenes of 64 × 64 a round; a fifth of it at 224")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    results = []
    print(f"{'scenes/s':10}{'whole example':>15}{'picture alone':>15}{'Pillow, plain stars':>21}")
    for size, count in ((64, arguments.scenes), (224, max(arguments.scenes // 5, 1))):
        found = measure(size, count, arguments.rounds)
        print(f"{f'{size} × {size}':10}{found['example']:15.0f}{found['picture']:15.0f}{found['pillow']:21.0f}")
        results.append({"size": size, "count": count, "scenes_per_second": found})
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
