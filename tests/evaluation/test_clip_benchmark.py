"""LAION's clip_benchmark, by the type that is registered, gives the numbers of `diffclip eval` on the same files."""

import io
import json
import sys
import tarfile

import pytest
import torch
from PIL import Image

import diffclip
from diffclip import cli
from diffclip.data.scenes import SceneSource
from diffclip.evaluation import results
from diffclip.reporting.collect import collect
from small_models import small_model

pytest.importorskip("clip_benchmark")
COUNT = 48


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A model, and drawn scenes of six classes as LAION lays a data set out."""
    monkeypatch.chdir(tmp_path)
    diffclip.save(small_model("diffclip"), "model")
    scenes = SceneSource("test", 32, COUNT)
    (tmp_path / "six/test").mkdir(parents=True)
    (tmp_path / "six/test/nshards.txt").write_text("1")
    (tmp_path / "six/classnames.txt").write_text("\n".join(scenes.classnames[:6]))
    (tmp_path / "six/zeroshot_classification_templates.txt").write_text("\n".join(scenes.templates))
    with tarfile.open("six/test/0.tar", "w") as tar:
        for i in range(COUNT):
            image = io.BytesIO()
            Image.fromarray(scenes[i].image).save(image, "png")
            for ending, content in (("png", image.getvalue()), ("cls", str(scenes[i].label % 6).encode())):
                entry = tarfile.TarInfo(f"s{i:04}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return tmp_path


def run(monkeypatch, *options):
    pytest.importorskip("requests")
    pytest.importorskip("pycocoevalcap")
    from diffclip.models.export.clip_benchmark import main

    monkeypatch.setattr(sys, "argv", ["clip_benchmark", "eval", "--model_type", "diffclip", *options])
    main()


def test_the_same_numbers_as_ours(here, monkeypatch):
    options = ["--model", "small", "--pretrained", "model", "--dataset", "wds/six", "--dataset_root", "six"]
    quiet = ["--task", "zeroshot_classification", "--no_amp", "--num_workers", "0", "--quiet"]
    run(monkeypatch, *options, *quiet, "--output", "laion.json")
    theirs = json.loads((here / "laion.json").read_text())["metrics"]
    cli.main(["eval", "model", "--data", "six=six", "--tasks", "zero_shot", "--out", "ours", "--workers", "0"])
    (ours,) = results.read(here / "ours/results.jsonl")
    assert ours.metrics == pytest.approx(theirs)
    assert 0 < ours.metrics["acc1"] < ours.metrics["acc5"] < 1
    (read,) = collect([here / "laion.json"]).results  # a report takes its file too
    assert read.metrics == pytest.approx(ours.metrics)
    assert read.task == ours.task


def test_what_is_wrong_is_one_line(here, monkeypatch):
    for options, said in (
        (["--pretrained", "absent"], "absent is neither a file"),
        (["--pretrained", "model", "--model_cache_dir", "x"], "--model_cache_dir x: models of the hub"),
    ):
        with pytest.raises(SystemExit, match=said):
            run(monkeypatch, "--dataset", "wds/six", "--dataset_root", "six", *options)


def test_accuracy_is_the_share_of_right_answers():
    from diffclip.models.export.clip_benchmark import accuracy

    logits = torch.tensor([[1.0, 2, 3, 0], [9, 8, 7, 6], [0, 1, 2, 3]])
    assert accuracy(logits, torch.tensor([2, 1, 0]), (1, 2, 4)) == pytest.approx([1 / 3, 2 / 3, 1])
