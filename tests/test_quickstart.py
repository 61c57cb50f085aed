"""The quickstart from end to end, made small: runs, results, report, and going on with what is there."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import torch

from diffclip import cli, quickstart
from diffclip.config import load_recipe
from diffclip.errors import UserError
from diffclip.evaluation import results
from diffclip.reporting.report import ReportFiles
from diffclip.terminal import Terminal


def shrunk(path):
    recipe = load_recipe(path)
    train = dataclasses.replace(recipe.data.train, path="scenes:train?size=64&length=128")
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, train=train),
        training=dataclasses.replace(recipe.training, batch_size=16),
    )


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(
        quickstart, "load_recipe", lambda path: shrunk(path) if "quickstart.toml" in str(path) else load_recipe(path)
    )


SIZES = quickstart.Sizes(timed_steps=1, test_images=24, shifted_images=8, fine_grained=2, grounded_images=2, panels=1)


def test_both_are_trained_alike_compared_and_reported(tmp_path, capsys, monkeypatch):
    """Side by side; started again with one thread, all that is left is done in turn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    out = Path("quick")
    report = quickstart.run(out, minutes=60, seed=3, sizes=SIZES)
    clip, diffclip = (load_recipe(out / name / "recipe.toml") for name in ("clip", "diffclip"))
    assert (clip.model.preset, diffclip.model.preset) == ("clip_vit_quickstart", "diffclip_vit_quickstart")
    assert dataclasses.replace(clip, model=diffclip.model) == diffclip
    assert clip.seed == 3
    found = results.read(out / "results.jsonl")
    assert {r.task for r in found if r.model == "diffclip_vit_quickstart"} == {
        "zeroshot_classification",
        "zeroshot_retrieval",
        "fine_grained",
        "grounding",
    }
    page = report.read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#|https://arxiv)', page)
    assert all(word in page for word in ("DiffCLIP", "scenes/test_sketch", "λ by layer", "Where the models look"))
    assert "side by side on 1 thread each" in page
    shown, progress = capsys.readouterr()
    assert "top-1 accuracy" in shown
    assert "Training CLIP and DiffCLIP side by side for 8 steps each: about" in shown
    for name in ("clip    ", "diffclip"):
        assert re.search(rf"^{name} step 8/8  loss", progress, re.MULTILINE)
        assert f"quick/{name.strip()}  scenes/test  zeroshot_classification:  acc1" in shown
    command = next(line for line in shown.splitlines() if "diffclip classify" in line and "scenes:test" in line)
    cli.main(shlex.split(command)[1:])
    assert capsys.readouterr().out.count("%") == 5

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    weights = (out / "clip" / "model.safetensors").stat().st_mtime_ns
    again = []
    monkeypatch.setattr(
        quickstart, "report", lambda _, to, *__, **___: again.append(to) or ReportFiles(report, 0, 0, ())
    )
    monkeypatch.setattr(quickstart, "Terminal", lambda: Terminal(force_terminal=True, width=80, color_system=None))
    capsys.readouterr()
    assert quickstart.run(out, minutes=60, seed=3, sizes=SIZES) == report
    assert again == [out]
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[^\n]*\r(?=[^\n])", "", capsys.readouterr().out).rstrip().splitlines()
    erased, more = 2, len(("clip's bar", "diffclip's"))  # a real terminal erases evaluation's bars
    assert len(lines) - erased + more <= 25, lines
    assert [line for line in lines if len(line) > 80 and "diffclip classify" not in line] == []
    assert (out / "clip" / "model.safetensors").stat().st_mtime_ns == weights
    with pytest.raises(UserError, match="holds runs of seed 3, not 4"):
        quickstart.run(out, minutes=60, seed=4, sizes=SIZES)


def test_a_budget_that_is_too_small(tmp_path):
    for minutes in (1, -3):
        with pytest.raises(UserError, match=rf"--minutes {minutes} is too short.* give at least --minutes [\d.]+$"):
            quickstart.run(tmp_path / "quick", minutes=minutes, seed=0, sizes=SIZES)
    for never in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="give a number of minutes"):
            quickstart.run(tmp_path / "quick", minutes=never, seed=0, sizes=SIZES)
    assert not (tmp_path / "quick").exists()
