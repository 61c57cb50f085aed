"""benchmarks/study.py: what each stage decides, and that the next one's sweep is valid and stays as it was decided."""

import csv
import importlib.util
import sys

import pytest

from diffclip.sweep_config import load_sweep, recipe_of
from diffclip.sweep_sizes import HOLDOUT, stated
from pages import ROOT

SCRIPT = ROOT / "benchmarks" / "study.py"
sys.path.insert(0, str(SCRIPT.parent))  # as Python does for a script
_SPEC = importlib.util.spec_from_file_location("study", SCRIPT)
study = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(study)


def test_the_rules():
    scores = {2e-3: {"CLIP": 0.5, "DINT": 0.6}, 5e-4: {"CLIP": 0.5, "DINT": 0.4}, 1e-3: {"CLIP": 0.4, "DINT": 0.5}}
    assert study.best_rates(scores) == {"CLIP": 5e-4, "DINT": 2e-3}
    means = {"CLIP": 0.9, "M-DGSA": 0.3, "DiffCLIP": 0.1, "DINT": 0.7, "gated": 0.5}
    assert study.chosen(means) == ["CLIP", "DiffCLIP", "DINT", "gated"]
    assert study.equal_time({"CLIP": 1.0, "DINT": 1.25}) == {"CLIP": 4.0, "DINT": 3.2}


def test_each_stage_decides_the_next(tmp_path, monkeypatch):
    calls = []

    def run(path, out, data, jobs, extra):
        sweep = load_sweep(path)
        recipes = {v.name: recipe_of(sweep, v, 10) for v in sweep.variant}
        calls.append((out.name, sweep, recipes))
        assert not any(recipe.evaluation for recipe in recipes.values())  # none looks at test images as it trains
        assert stated(sweep.set, "training", "batch_size") == 128 or HOLDOUT not in sweep.data.values()
        out.mkdir(exist_ok=True)
        rate = next(iter(recipes.values())).optimizer.lr
        with (out / "table.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["group", "variant", "seeds", "mean"])
            for number, name in enumerate(recipes):
                table.writerow(["zero-shot", name, len(sweep.seeds), number + (rate == 4e-3)])
            table.writerow(["few-shot", "CLIP", 0, 99])

    monkeypatch.setattr(study, "run", run)
    monkeypatch.setattr(study, "times", lambda _, names, data: {name: 1 + (name == "DINT") for name in names})
    for _ in range(2):  # the second time nothing is decided again
        study.rates(tmp_path, tmp_path, 1, [])
        study.choose(tmp_path, tmp_path, 1, [])
        study.confirm(tmp_path, tmp_path, 1, [])
        monkeypatch.setattr(study, "run", lambda *_: None)
    assert [name for name, _, _ in calls] == ["rates-0.002", "rates-0.004", "rates-0.008", "choose", "confirm"]
    assert '= "/' not in "".join(path.read_text() for path in tmp_path.glob("*.toml"))  # they are committed
    _, rates, recipes = calls[0]
    assert rates.design is None
    assert rates.seeds == (100,)
    assert {(r.data.train.holdout, r.data.train.part, r.training.epochs) for r in recipes.values()} == {
        (5000, "train", 1)
    }
    assert [(g.task, g.data) for g in rates.group] == [("zero_shot", ("held-out",))]
    kinds = [(r.model.resolve().vision_attention, r.model.resolve().text_attention) for r in recipes.values()]
    assert len(set(kinds)) == len(kinds) == 13  # one variant of each kind
    _, sweep, every = calls[3]
    assert [g.task for g in sweep.group] == ["zero_shot"]
    assert (sweep.seeds, sweep.design.secondary) == ((0, 1, 2), ())
    assert len(every) == 21
    assert {r.optimizer.lr for r in every.values()} == {4e-3}
    assert every["DiffCLIP, slow λ"].tuning.lambda_rate == 0.1
    _, sweep, recipes = calls[4]
    assert sweep.seeds == tuple(range(10, 18))
    assert (sweep.design, sweep.group) == (load_sweep("study").design, load_sweep("study").group)
    epochs = {name: r.training.epochs for name, r in recipes.items()}
    whole = study.EPOCHS
    assert epochs == {
        **{"CLIP": whole, "DiffCLIP": whole, "M-DGSA": whole, "DINT": whole},
        **{"DiffCLIP, equal time": whole, "M-DGSA, equal time": whole, "DINT, equal time": whole / 2},
    }
    attention = {name: r.model.resolve().vision_attention for name, r in recipes.items()}
    assert attention["DINT, equal time"] == attention["DINT"] == "dint"


def test_steps_are_timed_beside_the_baselines(tmp_path, monkeypatch):
    path = study.write_sweep(
        tmp_path / "s.toml", "extends", {}, [study.with_rate(v) for v in load_sweep("study").variant]
    )
    small = {
        "model": {"overrides": {"vision_width": 32, "text_width": 32, "embed_dim": 16}},
        "data": {"examples": 64, "train": {"split": "", "templates": []}},
        "training": {"batch_size": 4},
    }
    sweep = load_sweep(path, settings=small)
    monkeypatch.setattr(study.torch, "set_num_threads", lambda count: None)
    found = study.times(sweep, ["CLIP", "DINT"], "scenes:train?size=32&length=64", rounds=2)
    assert found["CLIP"] == 1
    assert 0.1 < found["DINT"] < 10


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_has_one_thread_whatever_the_number_of_jobs(tmp_path, monkeypatch, jobs):
    calls = []
    monkeypatch.setattr(study.subprocess, "run", lambda command, check, env: calls.append((command, check, env)))
    study.run(tmp_path / "s.toml", tmp_path / "s", tmp_path, jobs, ["--dry-run"])
    ((command, check, environment),) = calls
    assert check
    assert command[command.index("--jobs") + 1] == environment["OMP_NUM_THREADS"] == str(jobs)
    assert "--dry-run" in command


def test_a_stage_with_runs_left_decides_nothing(tmp_path):
    (tmp_path / "table.csv").write_text("group,variant,seeds,mean\nzero-shot,CLIP,2,0.5\nzero-shot,DINT,1,0.9\n")
    with pytest.raises(study.Unfinished, match="lacks seeds of DINT"):
        study.means_of(tmp_path / "table.csv", (100, 101))


def test_a_stage_out_of_turn_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "check_data", lambda data: None)
    monkeypatch.setattr(sys, "argv", ["study.py", *("--out", str(tmp_path), "--data", "there", "--stage", "choose")])
    with pytest.raises(SystemExit, match="2"):
        study.main()
    assert "stage choose is decided by an earlier one" in capsys.readouterr().err


def test_other_data_are_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"train-00000-of-00001.parquet: No such file.*recipes/cifar10.toml"):
        study.check_data(tmp_path)
    for name in study.FILES:
        (tmp_path / name).write_bytes(b"other")
    with pytest.raises(SystemExit, match=r"another file than that of the study \(SHA-256 d9298a10d1b0"):
        study.check_data(tmp_path)


@pytest.mark.parametrize("name", ["study", "study_openclipart", "study_icons"])
def test_the_sweeps_are_judged_by_a_design(name):
    sweep = load_sweep(name)
    assert sweep.design is not None
    assert sweep.design.margin == 1.0
