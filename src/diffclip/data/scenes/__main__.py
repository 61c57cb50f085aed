"""Draw a contact sheet of every split: `python -m diffclip.data.scenes --out docs/images/scenes.png`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from diffclip import durable
from diffclip.data.scenes import SPLITS, SceneSource


def contact_sheet(splits: list[str], rows: int, columns: int, size: int, seed: int) -> Image.Image:
    """`rows` rows of `columns` scenes for each split, 2 pixels apart."""
    gap = 2
    step = size + gap
    sheet = np.full((rows * len(splits) * step + gap, columns * step + gap, 3), 255, np.uint8)
    for block, split in enumerate(splits):
        source = SceneSource(split, size=size, seed=seed)
        for index in range(rows * columns):
            top = gap + (block * rows + index // columns) * step
            left = gap + index % columns * step
            sheet[top : top + size, left : left + size] = source[index].image
    return Image.fromarray(sheet)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m diffclip.data.scenes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--split", choices=list(SPLITS), action="append", help="default: every split")
    parser.add_argument("--rows", type=int, default=1, help="rows for each split")
    parser.add_argument("--columns", type=int, default=9)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sheet = contact_sheet(given.split or list(SPLITS), given.rows, given.columns, given.size, given.seed)
    with durable.writing(given.out) as unfinished:
        sheet.save(unfinished, "PNG", optimize=True)


if __name__ == "__main__":
    main()
