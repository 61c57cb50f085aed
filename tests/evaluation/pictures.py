"""Small labelled images on disk, by split and class."""

import numpy as np
from PIL import Image


def pictures(folder, splits=("train", "test"), count=6):
    for split in splits:
        for number, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng((number, i)).integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder
