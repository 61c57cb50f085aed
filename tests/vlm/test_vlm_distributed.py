"""Two processes train a vision-language model as one does: the loss is the mean over all answer tokens."""

import json

import pytest
from safetensors.torch import load_file
from test_vlm import recipe

import diffclip
from diffclip.vlm import training
from processes import together
from small_language import save_language
from small_models import small_model


def train(folder, name):
    stages = [{"name": "ask", "data": "scenes:questions", "length": 24, "train": ["connector", "language"], "lr": 0.01}]
    made = recipe(folder, stages=[stage | {"precision": "float32"} for stage in stages])
    training.train(made, folder / name)


def lines(run):
    return [json.loads(line) for line in (run / "ask" / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_train_as_one(tmp_path):
    diffclip.save(small_model("diffclip", vision_depth=3, image_size=32), tmp_path / "encoder")
    save_language(tmp_path / "language")
    train(tmp_path, "alone")
    together(2, train, tmp_path, "both")
    alone, both = (lines(tmp_path / name) for name in ("alone", "both"))
    assert [line["step"] for line in both] == [line["step"] for line in alone]
    for one, other in zip(alone, both, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "both"))
    assert all((first[name] - second[name]).abs().max() < 1e-3 for name in first)
