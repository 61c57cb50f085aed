"""Every command takes folders and files of any name, and every path comes out as it went in."""

import json
import os

import numpy as np
from PIL import Image

from diffclip import cli
from diffclip.config import load_recipe
from small_models import PICTURES

NAME = os.fsdecode(b"=[/b] %s {c} \\ '\" \xce\xbb\xe2\x80\xae|<b>&;\xff\xfe\x1b[2J\n$x_{")
RECIPE = """
[model]
preset = "diffclip_vit_quickstart"
[training]
batch_size = 4
epochs = 1
[data]
workers = 0
[[evaluation]]
name = "v"
[evaluation.data]
split = "test"
[model.overrides]
"""


def test_commands_on_paths_of_any_bytes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    odd, part = os.path.join(".", NAME), NAME.replace("/", "")
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            folder = f"{odd}/data/{split}/{label} {part}"
            os.makedirs(folder)
            for i in range(4):
                pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(f"{folder}/{i}{part}.png")
    overrides = "".join(f"{key} = {json.dumps(value)}\n" for key, value in PICTURES.items())
    os.makedirs(odd, exist_ok=True)
    with open(f"{odd}/recipe.toml", "w") as file:
        file.write(RECIPE + overrides)
    data = ["--data.train.path", f"{odd}/data", "--data.train.split", "train"]
    image = f"{folder}/0{part}.png"

    for command in (
        ["train", f"{odd}/recipe.toml", *data, "--dry-run"],
        ["train", f"{odd}/recipe.toml", *data, "--out", f"{odd}/run"],
        ["train", f"{odd}/recipe.toml", *data, "--out", f"{odd}/run", "--resume"],
        ["train", f"{odd}/run/recipe.toml", "--out", f"{odd}/run", "--resume"],
        ["eval", f"{odd}/run", "--data", f"m={odd}/data", "--out", f"{odd}/eval", "--workers", "0"],
        ["data", "verify", f"{odd}/data", "--split", "test", "--json", f"{odd}/v.json", "--workers", "1"],
        ["data", "pack", f"{odd}/data", "--split", "test", "--out", f"{odd}/packed", "--workers", "1"],
        ["data", "verify", f"{odd}/packed", "--workers", "1"],
        ["data", "show", f"{odd}/data", "--split", "test", "--out", f"{odd}/s.png"],
        ["attend", f"{odd}/run", image, "--text", "a $x_{", "--out", f"{odd}/a.svg"],
        ["report", f"{odd}/eval", "--out", f"{odd}/report"],
    ):
        cli.main(command)
    shown = capsys.readouterr()
    assert all(character.isprintable() or character == "\n" for character in shown.out + shown.err)
    assert load_recipe(f"{odd}/run/recipe.toml").data.train.path == f"{odd}/data"
    with open(f"{odd}/eval/results.jsonl", "rb") as lines:
        (line,) = lines
    assert json.loads(line)["pretrained"] == f"{odd}/run"
    assert {"results.jsonl", "report.html"} <= {file for _, _, files in os.walk(odd) for file in files}
