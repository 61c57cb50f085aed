"""benchmarks/study.py: what each stage decides, and that the next one's sweep is valid and stays as it was decided."""

import csv
import importlib.util
import subprocess
import sys

import pytest

from diffclip.sweep_config import load_sweep, recipe_of
from pages import ROOT

SCRIPT = ROOT / "benchmarks" / "study.py"
_SPEC = importlib.util.spec_from_file_location("study", SCRIPT)
study = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(study)


def test_the_rules():
    scores = {2e-3: {"CLIP": 0.5, "DINT": 0.6}, 5e-4: {"CLIP": 0.5, "DINT": 0.4}, 1e-3: {"CLIP": 0.4, "DINT": 0.5}}
    assert study.best_rates(scores) == {"CLIP": 5e-4, "DINT": 2e-3}
    means = {"CLIP": 0.9, "M-DGSA": 0.3, "DiffCLIP": 0.1, "DINT": 0.7, "gated": 0.5}
    assert study.chosen(means) == ["CLIP", "DiffCLIP", "DINT", "gated"]
    assert study.equal_time({"CLIP": 100.0, "DINT": 80.0}) == {"CLIP": 8.0, "DINT": 6.4}


def test_each_stage_decides_the_next(tmp_path, monkeypatch):
    calls = []

    def run(path, out, data, extra):
        sweep = load_sweep(path)
        recipes = {v.name: recipe_of(sweep, v, 10) for v in sweep.variant}
        calls.append((out.name, sweep, recipes))
        out.mkdir(exist_ok=True)
        rate = next(iter(recipes.values())).optimizer.lr
        with (out / "table.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["role", "variant", "seeds", "mean"])
            for number, name in enumerate(recipes):
                table.writerow(["primary", name, len(sweep.seeds), number + (rate == 2e-3)])
            table.writerow(["secondary", "CLIP", 0, 99])
        for variant in sweep.variant if out.name == "choose" else ():
            for seed in sweep.seeds:
                folder = out / variant.folder / f"seed_{seed}"
                folder.mkdir(parents=True)
                speed = 50 if variant.name == "DINT" else 100
                (folder / "metrics.jsonl").write_text(f'{{"step": 1, "loss": 1, "images_per_s": {speed}}}\n')

    monkeypatch.setattr(study, "run", run)
    for _ in range(2):  # the second time nothing is decided again
        study.rates(tmp_path, tmp_path, [])
        study.choose(tmp_path, tmp_path, [])
        study.confirm(tmp_path, tmp_path, [], "confirm-steps")
        study.confirm(tmp_path, tmp_path, [], "confirm-time")
        monkeypatch.setattr(study, "run", lambda *_: None)
    assert [name for name, _, _ in calls] == [
        *("rates-0.0005", "rates-0.001", "rates-0.002", "choose", "confirm-steps", "confirm-time")
    ]
    _, rates, recipes = calls[0]
    assert rates.seeds == (100, 101)
    assert {(r.data.train.holdout, r.data.train.part, r.training.epochs) for r in recipes.values()} == {
        (5000, "train", 1)
    }
    assert [(g.task, g.data) for g in rates.group] == [("zero_shot", ("held-out",))]
    assert {r.optimizer.lr for r in calls[3][2].values()} == {2e-3}
    assert calls[3][2]["DiffCLIP, slow λ"].tuning.lambda_rate == 0.1
    for _, sweep, recipes in calls[4:]:
        assert sweep.seeds == tuple(range(10, 20))
        assert list(recipes) == ["CLIP", "DiffCLIP", "DINT", "M-DGSA"]
        assert sweep.design == load_sweep("study").design
    assert {r.training.epochs for r in calls[4][2].values()} == {8}
    assert {name: r.training.epochs for name, r in calls[5][2].items()} == {
        **{"CLIP": 8, "DiffCLIP": 8, "DINT": 4, "M-DGSA": 8}
    }


def test_a_stage_with_runs_left_decides_nothing(tmp_path):
    (tmp_path / "table.csv").write_text("role,variant,seeds,mean\nprimary,CLIP,2,0.5\nprimary,DINT,1,0.9\n")
    with pytest.raises(study.Unfinished, match="lacks seeds of DINT"):
        study.means_of(tmp_path / "table.csv", (100, 101))


def test_a_stage_out_of_turn_and_no_data_are_one_line(tmp_path):
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "out"), "--data"]
    done = subprocess.run([*command, str(tmp_path), "--stage", "choose"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "stage choose is decided by an earlier one" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["study", "study_openclipart", "study_icons"])
def test_the_sweeps_are_judged_by_a_design(name):
    sweep = load_sweep(name)
    assert sweep.design is not None
    assert sweep.design.margin == 1.0
