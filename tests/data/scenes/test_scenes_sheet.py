"""The contact sheet of docs/scenes.md."""

import sys

import numpy as np
from PIL import Image

from diffclip.data.scenes import SPLITS, SceneSource
from diffclip.data.scenes.__main__ import main


def test_the_sheet_has_a_row_of_scenes_for_each_split(tmp_path, monkeypatch):
    out = tmp_path / "scenes.png"
    monkeypatch.setattr(sys, "argv", ["scenes", "--out", str(out), "--columns", "3", "--size", "16"])
    main()
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (6 * 18 + 2, 3 * 18 + 2, 3)
    for row, split in enumerate(SPLITS):
        np.testing.assert_array_equal(sheet[row * 18 + 2 : row * 18 + 18, 20:36], SceneSource(split, size=16)[1].image)
