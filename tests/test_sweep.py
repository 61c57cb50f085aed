"""Sweeps, made small: read, run, gone on with, put into a table."""

import csv
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from diffclip import sweep as sweeps
from diffclip.cli import main
from diffclip.commands.sweep import run as run_sweep
from diffclip.config import load_recipe, read_toml, to_toml
from diffclip.errors import Stopped, UserError
from diffclip.evaluation import results
from diffclip.evaluation.stats import seeds
from diffclip.models.weights.store import save
from diffclip.recipe_files import merge_tables, parse_settings
from diffclip.reporting.design import Design, Outcome, read_study
from diffclip.reporting.tables import comparison
from diffclip.sweep import write_table
from diffclip.sweep_config import Sweep, Variant, load_sweep, recipe_of
from diffclip.sweep_sizes import fit_sizes, held_out
from diffclip.training import checkpoint, side_by_side, step
from diffclip.training import setup as trainer
from diffclip.training.side_by_side import Team
from small_models import RUN, small_model

FOLDER = Path(__file__).parents[1] / "recipes" / "sweeps"
COMPLETE = sorted(p for p in FOLDER.glob("*.toml") if not p.name.startswith(("on_", "carry_tuned")))
ELSEWHERE = sorted(FOLDER.glob("on_*.toml"))

BASE = """
[model]
preset = "clip_vit_quickstart"
[model.overrides]
image_size = 16
patch_size = 8
vision_width = 32
vision_depth = 2
text_width = 32
embed_dim = 16
[data]
workers = 0
[data.train]
path = "scenes:train?size=16&length=64"
[optimizer]
lr = 1e-3
warmup_epochs = 0.5
[training]
epochs = 1
batch_size = 8
checkpoint_every = 3
precision = "float32"
"""
SWEEP = """
base = "base.toml"
seeds = [0, 1]
[[variant]]
name = "CLIP"
[[variant]]
name = "DiffCLIP*"
set.model.overrides = { vision_attention = "differential", lambda_schedule = "depth" }
[data]
small = "scenes:test?size=16&length=24"
[[group]]
name = "zero-shot"
task = "zero_shot"
data = ["small"]
[[group]]
name = "image retrieval"
task = "retrieval"
metric = "image_retrieval_recall@5"
data = ["small"]
"""


def write(folder, sweep=SWEEP, base=BASE):
    (folder / "base.toml").write_text(base)
    path = folder / "sweep.toml"
    path.write_text(sweep)
    return path


def run(path, out, **options):
    defaults = {"base": None, "seeds": (), "variants": (), "root": None, "settings": (), "dry_run": False}
    run_sweep([path], out, **(defaults | options))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep that nothing interrupted: its file and its folder."""
    folder = tmp_path_factory.mktemp("sweep")
    path = write(folder)
    run(path, folder / "out")
    return path, folder / "out"


@pytest.mark.parametrize(
    ("pairs", "set_itself", "held", "batch"),
    [
        (20, {}, 2, 2),
        (300, {}, 30, 32),
        (5000, {}, 500, 256),
        (90_000, {}, 1000, 256),
        (300, {"data": {"train": {"holdout": 7}}, "training": {"batch_size": 5}}, 7, 5),
    ],
)
def test_a_sweep_on_ones_own_pairs_has_the_sizes_that_they_allow(pairs, set_itself, held, batch):
    settings = merge_tables({"data": {"train": {"path": f"scenes:train?size=16&length={pairs}"}}}, set_itself)
    sweep, said = fit_sizes(load_sweep(FOLDER / "own.toml", settings=settings))
    recipes = [recipe_of(sweep, variant, 0) for variant in sweep.variant]
    assert [(r.data.train.holdout, r.data.train.part, r.training.batch_size) for r in recipes] == [
        (held, "train", batch)
    ] * 2
    assert len(held_out(sweep)) == held
    assert (pairs - held) // batch >= 8
    assert said.startswith(f"{pairs:,} pairs: {held:,} held out")


def test_without_fit_the_sizes_of_the_base_recipe_stand(tmp_path):
    """So the study's sweep on OpenClipart holds out 500 pairs, as declared."""
    path = tmp_path / "sweep.toml"
    own = (FOLDER / "own.toml").read_text().replace('base = "../own.toml"', f'base = "{FOLDER.parent / "own.toml"}"')
    path.write_text(own.replace("fit = true", "fit = false"))
    settings = {"data": {"train": {"path": "scenes:train?size=16&length=5000"}}}
    sweep, said = fit_sizes(load_sweep(path, settings=settings))
    recipe = recipe_of(sweep, sweep.variant[0], 0)
    assert (recipe.data.train.holdout, recipe.training.batch_size, said) == (30, 32, "")
    assert len(held_out(sweep)) == 30
    clipart = load_sweep("study_openclipart", settings={"data": {"train": {"path": "scenes:train?length=4000"}}})
    assert recipe_of(fit_sizes(clipart)[0], clipart.variant[0], 0).data.train.holdout == 500
    for settings_ in ({"holdout": 0}, {"part": "all"}):
        apart = load_sweep(path, settings=merge_tables(settings, {"data": {"train": settings_}}))
        with pytest.raises(UserError, match="CLIP would train on what the sweep measures on, or nothing is held out"):
            fit_sizes(apart)
    path.write_text(own.replace('own = "holdout"', 'own = "scenes:test?length=20"'))
    with pytest.raises(UserError, match="fit = true is for a sweep that measures on what it holds out"):
        fit_sizes(load_sweep(path, settings=settings))


def test_a_sweep_on_too_few_pairs_or_none_is_one_line():
    for path, message in (("", "--set data.train.path=DIR"), ("scenes:train?length=19", "at least 20")):
        with pytest.raises(UserError, match=message):
            fit_sizes(load_sweep(FOLDER / "own.toml", settings={"data": {"train": {"path": path}}}))


# The recipes that come with the library


@pytest.mark.parametrize("path", COMPLETE, ids=lambda path: path.stem)
def test_every_variant_of_every_sweep_is_a_valid_recipe(path):
    # The others bring their data and how to train.
    about_models = path.stem not in ("cheaper", "race") and not path.stem.startswith(("carry_", "study"))
    for files in ([path], *([path, where] for where in ELSEWHERE if about_models)):
        sweep = load_sweep(*files)
        made = [recipe_of(sweep, variant, 7) for variant in sweep.variant]
        assert all(recipe.seed == 7 for recipe in made)
        assert len({to_toml(recipe) for recipe in made}) == len(made), "two variants are the same"
        assert all(r.data == made[0].data for r in made)
        if about_models:
            models = [recipe.model.resolve() for recipe in made]
            assert len(set(models)) == len(models), "two variants are the same model"
            base = load_recipe(sweep.base)
            assert all((r.data, r.optimizer, r.loss) == (base.data, base.optimizer, base.loss) for r in made)


def test_a_second_map_is_compared_with_the_same_parameters_without_one(tmp_path):
    save(small_model("clip", size=RUN), tmp_path)
    sweep = load_sweep(FOLDER / "carry_tuned.toml", settings={"model": {"start": str(tmp_path)}})
    made = {variant.name: recipe_of(sweep, variant, 0) for variant in sweep.variant}
    kinds = {name: recipe.model.resolve().vision_attention for name, recipe in made.items()}
    assert kinds == {"plain": "standard", "no second map": "no_second_map", "second map": "differential_v2"}
    assert sweep.baseline == "no second map"
    assert len({(r.data, r.optimizer, r.training) for r in made.values()}) == 1


def test_figure_5_has_the_papers_models_and_its_six_groups():
    sweep = load_sweep(FOLDER / "figure5.toml")
    names = {v.name: recipe_of(sweep, v, 0).model.resolve() for v in sweep.variant}
    for name, recipe in {
        "CLIP": "clip",
        "DiffCLIP": "diffclip",
        "DiffCLIP*": "diffclip_dynamic",
        "DiffCLIP†": "diffclip_vision",
    }.items():
        assert names[name] == load_recipe(FOLDER.parent / "cc12m" / f"{recipe}.toml").model.resolve()
    assert len(sweep.group) == 6
    assert sweep.tasks()["cifar10"] == ("linear_probe", "few_shot")


def test_the_confounds_are_switched_one_by_one():
    sweep = load_sweep(FOLDER / "confounds.toml")
    found = [recipe_of(sweep, variant, 0).model.resolve() for variant in sweep.variant]
    switches = {(m.vision_attention, m.init, m.resolved_vision_norm_eps) for m in found}
    assert {("differential", init, eps) for init in ("matched", "released") for eps in (1e-6, 1e-5)} < switches


def test_every_key_is_in_the_reference():
    text = (FOLDER.parents[1] / "docs" / "sweeps.md").read_text()
    for kind in (Sweep, Variant, Outcome, Design):
        assert all(f"`{f.name}`" in text or f"[{f.name}]" in text for f in dataclasses.fields(kind))
    assert all(f"recipes/sweeps/{path.name}" in text for path in [*COMPLETE, *ELSEWHERE])


# Reading


def test_later_files_and_settings_win(tmp_path):
    path = write(tmp_path)
    other = tmp_path / "deeper" / "other.toml"
    other.parent.mkdir()
    other.write_text('extends = "../sweep.toml"\nseeds = [5]\n[set.training]\nepochs = 3\n')
    sweep = load_sweep(
        other, settings=parse_settings(["training.batch_size=4", "data.train.path=scenes:train", "seed=9"])
    )
    assert sweep.seeds == (5,)
    assert [v.name for v in sweep.variant] == ["CLIP", "DiffCLIP*"]
    recipe = recipe_of(sweep, sweep.variant[1], 5)
    assert (recipe.training.epochs, recipe.training.batch_size, recipe.seed) == (3, 4, 5)
    assert recipe.data.train.path == "scenes:train"
    assert recipe.model.overrides["lambda_schedule"] == "depth"
    assert recipe.model.overrides["vision_width"] == 32
    both = load_sweep(other, path)
    assert both.seeds == (0, 1)
    assert both.set == {"training": {"epochs": 3}}
    assert load_sweep(path, base=FOLDER.parent / "quickstart.toml").base.endswith("recipes/quickstart.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = [0, 1]", "seed = [0]", "seed: no such key"),
        ("seeds = [0, 1]", "seeds = []", "seeds: .*at least 1"),
        ("seeds = [0, 1]", "seeds = [1, 1]", "two of the seeds are called 1"),
        ("seeds = [0, 1]", 'baseline = "clip"', "baseline = 'clip' is no variant; there are CLIP, DiffCLIP"),
        ('name = "DiffCLIP*"', 'name = "clip"', "two of the variants are called 'clip'"),
        ("set.model", "model", "variant.1.model: no such key"),
        ('metric = "image_retrieval_recall@5"', "", "group 'image retrieval': give a metric of retrieval"),
        ("recall@5", "recall@7", "has no metric 'image_retrieval_recall@7'; did you mean .*it has image_retrieval_"),
        ('task = "zero_shot"', 'task = "few_shot"\nmetric = "std"', "few_shot has no metric 'std'.*it has acc1$"),
        ('task = "retrieval"', 'task = "juggling"', "group.1.task: .*found 'juggling'"),
        ("seeds = [0, 1]", 'extends = "sweep.toml"', "extends itself"),
        ("seeds = [0, 1]", "extends = 3", "extends: expected a file's name, found 3"),
        ('base = "base.toml"', "", "base: "),
    ],
)
def test_a_wrong_sweep_is_one_line(tmp_path, old, new, message):
    path = write(tmp_path, SWEEP.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as caught:
        load_sweep(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": ["training.epochs"]}, "expected SECTION.KEY=VALUE"),
        ({"settings": ["training.epoch=1"]}, "training.epoch: no such key"),
        ({"settings": ["model.overrides.lambda_int=1"]}, "no model setting 'lambda_int'"),
        ({"variants": ["CLAP"]}, "--variants CLAP: there are CLIP, DiffCLIP"),
        ({"base": Path("nowhere.toml")}, "cannot read the recipe .*nowhere.toml"),
    ],
)
def test_wrong_options_are_one_line_and_start_nothing(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run(write(tmp_path), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_metric_that_no_result_has_leaves_a_good_table(tmp_path):
    """A name that fits a pattern of the task, so that only results can tell: no cell is emptied."""
    text = SWEEP.replace('task = "retrieval"', 'task = "corruptions"').replace("image_retrieval_recall@5", "acc1/fogg")
    sweep, out = load_sweep(write(tmp_path, text)), tmp_path / "out"
    out.mkdir()
    (out / "table.md").write_text("good")
    names = {"dataset": "small", "model": "m", "pretrained": "out/clip/seed_0", "task": "corruptions"}
    results.append(out / "results.jsonl", results.Result(**names, metrics={"acc1": 0.5, "acc1/fog": 0.5}))
    with pytest.raises(UserError, match=r"no result of corruptions has the metric 'acc1/fogg'; did you mean acc1/fog"):
        write_table(sweep, out)
    assert (out / "table.md").read_text() == "good"


def test_a_data_set_that_nothing_knows(tmp_path):
    with pytest.raises(UserError, match=r"elsewhere: no such data set; give its path in \[data\], or one of .*cifar10"):
        run(write(tmp_path, SWEEP.replace('data = ["small"]', 'data = ["elsewhere"]')), tmp_path / "out")


def test_names_as_folders():
    names = ["DiffCLIP", "DiffCLIP*", "DiffCLIP†", "λ_init 0.5", "eps 1e-5", "../x", "..."]
    folders = [Variant(name=name).folder for name in names]
    assert folders[:5] == ["diffclip", "diffclip-star", "diffclip-dagger", "lambda-_init-0.5", "eps-1e-5"]
    assert all(re.fullmatch(r"\w[\w.-]*", folder) for folder in folders)


# Running


def test_every_variant_is_trained_with_every_seed_and_measured(finished):
    _, out = finished
    for variant, attention in (("clip", "standard"), ("diffclip-star", "differential")):
        for seed in (0, 1):
            recipe = load_recipe(out / variant / f"seed_{seed}" / "recipe.toml")
            assert recipe.seed == seed
            assert recipe.model.resolve().vision_attention == attention
    found = results.read(out / "results.jsonl")
    assert {(r.pretrained, r.task) for r in found} == {
        (f"out/{variant}/seed_{seed}", task)
        for variant in ("clip", "diffclip-star")
        for seed in (0, 1)
        for task in ("zeroshot_classification", "zeroshot_retrieval")
    }
    assert load_sweep(out / "sweep.toml").variant[1].name == "DiffCLIP*"


def test_the_table_is_what_the_results_say(finished):
    _, out = finished
    found = {(r.pretrained, r.task): r.metrics for r in results.read(out / "results.jsonl")}
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert [(row["group"], row["variant"]) for row in rows] == [
        (group, variant) for group in ("zero-shot", "image retrieval") for variant in ("CLIP", "DiffCLIP*")
    ]
    by_seed = [
        [found[f"out/{v}/seed_{seed}", "zeroshot_retrieval"]["image_retrieval_recall@5"] for seed in (0, 1)]
        for v in ("clip", "diffclip-star")
    ]
    last = rows[-1]
    assert float(last["mean"]) == pytest.approx(sum(by_seed[1]) / 2)
    assert float(last["sd"]) == pytest.approx(abs(by_seed[1][0] - by_seed[1][1]) / 2**0.5)
    difference = seeds.paired(dict(enumerate(by_seed[0])), dict(enumerate(by_seed[1])))
    assert float(last["difference"]) == pytest.approx(difference.mean)
    test = difference.by_test()
    assert [float(last["test_low"]), float(last["test_high"])] == pytest.approx([test.low, test.high])
    assert last["verdict"].startswith("undecided, ± ")  # two seeds, and hardly trained
    markdown = (out / "table.md").read_text()
    assert "| DiffCLIP\\* |" in markdown
    assert "exploratory" in markdown
    by_seed_too = list(csv.DictReader((out / "seeds.csv").open()))
    assert [float(row["score"]) for row in by_seed_too[-2:]] == by_seed[1]


def test_the_table_fits_80_columns(finished):
    path, out = finished
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    table = sweeps.write_table(load_sweep(path), out)
    longest = max((v.name for file in COMPLETE for v in load_sweep(file).variant), key=len)
    wide = tuple(
        dataclasses.replace(row, model=longest, verdict="undecided, ± 12.3") if row.difference else row for row in table
    )
    study = sweeps.study_of(load_sweep(path), out)
    console.print(comparison.sweep(wide, study))
    text = console.export_text()
    assert "undecided" in text
    assert "…" not in text
    assert f"  {longest} " in text  # not broken over two lines
    assert "exploratory" in text


def test_started_again_nothing_is_done_twice_and_more_seeds_are_added(finished, monkeypatch, capsys):
    path, out = finished
    before = (out / "results.jsonl").read_text()
    trained = []
    monkeypatch.setattr(trainer, "train", lambda recipe, run, **options: trained.append(run))
    run(path, out)
    assert not trained
    assert (out / "results.jsonl").read_text() == before
    assert "4 of 4: DiffCLIP*, seed 1" in capsys.readouterr().out
    monkeypatch.undo()
    run(path, out, seeds=(2,), variants=("CLIP",))
    assert (out / "clip" / "seed_2" / "model.safetensors").exists()
    first = next(csv.DictReader((out / "table.csv").open()))
    assert first["seeds"] == "3"  # also those that were not asked for this time


def test_two_at_a_time_come_to_the_same(finished, tmp_path, monkeypatch, capsys):
    path, out = write(tmp_path), tmp_path / "out"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(UserError, match=r"--jobs 3: there are 2 threads here"):
        run(path, out, jobs=3)
    with pytest.raises(UserError, match=r"--jobs 0: give 1 or more"):
        run(path, out, jobs=0)
    assert not out.exists()
    run(path, out, jobs=2)
    shown = capsys.readouterr()
    for number, name in enumerate(("CLIP, seed 0", "DiffCLIP*, seed 0", "CLIP, seed 1", "DiffCLIP*, seed 1"), start=1):
        assert f"{number} of 4: {name}: done" in shown.out
        assert f"{name.ljust(18)} step 8/8" in shown.err
    for folder in finished[1].glob("*/seed_[01]"):
        one, other = (
            load_file(of / folder.relative_to(finished[1]) / "model.safetensors") for of in (finished[1], out)
        )
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    before = {result.key: result.metrics for result in results.read(finished[1] / "results.jsonl")}
    found = {result.key: result.metrics for result in results.read(out / "results.jsonl")}
    assert len(found) == 8
    assert found.items() <= before.items()
    counts = []
    monkeypatch.setattr(side_by_side, "Team", lambda count, console: counts.append(count) or Team(count, console))
    run(path, out, jobs=2, variants=("CLIP",), seeds=(0,))
    assert counts == [2]  # one run has no more threads for being alone: its bits depend on them


def test_runs_whose_weights_were_deleted_count_by_their_results(finished, tmp_path, monkeypatch, capsys):
    """What a folder keeps of a run may be its recipe alone, as where results are kept in a repository."""
    path, out = tmp_path / "sweep.toml", tmp_path / "out"
    shutil.copytree(finished[0].parent, tmp_path, dirs_exist_ok=True)
    for file in [*out.rglob("seed_*/*"), *out.glob("features"), *out.glob("examples")]:
        if file.name != "recipe.toml":
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    before, keys = (out / "results.jsonl").read_text(), {result.key for result in results.read(out / "results.jsonl")}
    trained = []
    monkeypatch.setattr(trainer, "train", lambda recipe, run, **options: trained.append(run))
    main(["sweep", str(path), "--out", str(out), "--dry-run"])
    assert re.search(r"DiffCLIP\*, seed 1 +finished +0", capsys.readouterr().out)
    run(path, out)
    assert not trained
    assert capsys.readouterr().out.count("its weights were deleted") >= 4
    assert (out / "results.jsonl").read_text() == before
    with pytest.raises(UserError, match="holds a run of another recipe"):
        run(path, out, settings=("training.epochs=2",), variants=("CLIP",), seeds=(0,))
    monkeypatch.undo()
    (out / "results.jsonl").write_text("".join(line for line in before.splitlines(True)[1:]))
    run(path, out)  # a result is gone: the run is trained again
    first = out / "clip" / "seed_0"
    assert (first / "model.safetensors").exists()
    assert not (out / "clip" / "seed_1" / "model.safetensors").exists()
    assert {result.key for result in results.read(out / "results.jsonl")} == keys


def test_a_run_of_another_recipe_is_not_taken_for_this_one(finished, tmp_path):
    path, out = finished
    with pytest.raises(UserError, match="holds a run of another recipe"):
        run(path, out, settings=("training.epochs=2",), variants=("CLIP",), seeds=(0,))


def test_stopped_it_says_how_to_go_on(tmp_path, monkeypatch):
    def stop(self, number, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return 1.0, 0.0

    monkeypatch.setattr(step.TrainState, "step", stop)
    with pytest.raises(Stopped, match=r"stopped while training CLIP, seed 0, and saved; the same command goes on"):
        run(write(tmp_path), tmp_path / "out")


def test_killed_in_the_middle_it_goes_on_from_the_checkpoint(finished, tmp_path, monkeypatch):
    _, whole = finished
    path, out = write(tmp_path), tmp_path / "out"
    # The process kills itself in the second run, after the checkpoint of step 3: nothing can be tidied up.
    program = (
        "import os, signal, time; from diffclip.training import step; from diffclip.cli import main\n"
        "train = step.TrainState.step\n"
        "def killed(self, number, batch):\n"
        "    if number == 4 and 'star' in ' '.join(os.listdir(OUT)):\n"
        "        while not os.path.exists(CHECKPOINT): time.sleep(0.01)  # it is written in the background\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return train(self, number, batch)\n"
        "step.TrainState.step = killed\n"
        "main(['sweep', PATH, '--out', OUT])\n"
    )
    halfway = out / "diffclip-star" / "seed_0"
    made = str(halfway / "checkpoints" / "step_00000003")
    program = f"PATH, OUT, CHECKPOINT = {str(path)!r}, {str(out)!r}, {made!r}\n" + program
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [p.name for p in checkpoint.found(halfway)] == ["step_00000003"]
    steps = []
    train = step.TrainState.step
    monkeypatch.setattr(
        step.TrainState, "step", lambda self, number, batch: steps.append(number) or train(self, number, batch)
    )
    run(path, out, seeds=(0,))
    assert steps == [3, 4, 5, 6, 7]  # the first run was finished, this one had three steps
    for name in ("clip", "diffclip-star"):
        one, other = (load_file(folder / name / "seed_0" / "model.safetensors") for folder in (whole, out))
        assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_one_failure_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    train = trainer.train

    def failing(recipe, folder, **options):
        if "star" in str(folder) and recipe.seed == 0:
            raise UserError("the loss is nan at step 3")
        if "star" in str(folder):
            raise RuntimeError("out\nof memory")
        return train(recipe, folder, **options)

    monkeypatch.setattr(trainer, "train", failing)
    path = write(tmp_path, SWEEP + '[[group]]\nname = "few"\ntask = "zero_shot"\ndata = ["cifar10"]\n')
    with pytest.raises(UserError) as caught:
        run(path, tmp_path / "out", root=tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("3 could not be done")
    assert [line.strip() for line in lines[1:]] == [
        f"cifar10: not in {tmp_path}, as --root names it",
        "DiffCLIP*, seed 0: the loss is nan at step 3",
        "DiffCLIP*, seed 1: RuntimeError: out of memory",
    ]
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert [row["seeds"] for row in rows] == ["2", "", "2", "", "", ""]
    assert "few, CLIP: no whole result with seeds 0, 1" in capsys.readouterr().out


# The design

DESIGNED = SWEEP + '[design]\nprimary = "zero-shot"\nsecondary = ["image retrieval"]\nmargin = 1.0\n'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('primary = "zero-shot"', 'primary = "zero-shoot"', "'zero-shoot' is no group; did you mean zero-shot"),
        ('secondary = ["image retrieval"]', 'secondary = ["zero-shot"]', "'zero-shot' is named twice"),
        ("seeds = [0, 1]", "seeds = [0]", r"one seed judges nothing: give seeds = \[0, 1, 2\]"),
        ("margin = 1.0", "margin = 0", "design.margin: .*greater than 0"),
        ("margin = 1.0", 'test = "wilcoxon"', "design.test: .*'t' or 'permutation'"),
        ("margin = 1.0", 'test = "permutation"', "needs 6 to 16 seeds, the sweep has 2"),
        ("margin = 1.0", "margins = 1", "design.margins: no such key"),
        ('primary = "zero-shot"', "", "design.primary: "),
        ('task = "zero_shot"', 'task = "grounding"', "no evidence .* judge pointing_game_by_occlusion instead"),
    ],
)
def test_a_wrong_design_is_one_line(tmp_path, old, new, message):
    path = write(tmp_path, DESIGNED.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as caught:
        load_sweep(path)
    assert "\n" not in str(caught.value)


def test_sign_flips_must_be_able_to_reach_the_level(tmp_path):
    """Of six seeds 2 of 64 flips are the outermost: enough for one comparison, not for two."""
    text = DESIGNED.replace("margin = 1.0", 'test = "permutation"').replace("[0, 1]", "[0, 1, 2, 3, 4, 5]")
    assert load_sweep(write(tmp_path, text)).design.test == "permutation"
    third = '[[variant]]\nname = "third"\nset.model.overrides = { text_attention = "differential" }\n'
    with pytest.raises(UserError, match="2 variants against the baseline cannot reach 5 % by sign flips of 6 seeds"):
        load_sweep(write(tmp_path, text.replace("[data]", third + "[data]")))


def test_the_design_is_fixed_before_the_first_result(tmp_path, finished):
    """Other outcomes, seeds or a design at all: nothing is changed once something was seen."""
    _, whole = finished
    out = tmp_path / "out"
    sweep = load_sweep(write(tmp_path, DESIGNED))
    declared = sweeps.study_of(sweep, out)
    sweeps.declare(declared, out)
    changed = dataclasses.replace(declared, seeds=(0, 1, 2))
    sweeps.declare(changed, out)  # nothing was seen yet
    sweeps.declare(declared, out)
    assert read_study(out / "design.toml") == declared
    (out / "results.jsonl").write_text((whole / "results.jsonl").read_text())
    sweeps.declare(declared, out)
    others = dataclasses.replace(declared, design=None), dataclasses.replace(declared, baseline="DiffCLIP*")
    for other in (changed, *others):
        with pytest.raises(UserError, match=r"its design was another: Declared .* fixed before the first result"):
            sweeps.declare(other, out)
    (out / "design.toml").unlink()
    with pytest.raises(UserError, match="Nothing was declared"):
        sweeps.declare(declared, out)


def test_a_design_takes_no_seed_that_it_does_not_name(tmp_path):
    path = write(tmp_path, DESIGNED)
    with pytest.raises(UserError, match="--seeds 7: the design has 0, 1, and seeds that are added after"):
        run(path, tmp_path / "out", seeds=(0, 7))
    assert not (tmp_path / "out").exists()


def test_a_sweep_with_a_design_is_judged_by_it_once_all_seeds_are_there(tmp_path, capsys):
    path, out = write(tmp_path, DESIGNED), tmp_path / "out"
    run(path, out, seeds=(0,))
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert [(row["role"], row["verdict"]) for row in rows] == [
        ("primary", ""), ("primary", "1 of 2 seeds"), ("secondary", ""), ("secondary", "1 of 2 seeds")
    ]  # fmt: skip
    capsys.readouterr()
    run(path, out)
    printed = capsys.readouterr().out
    assert re.search(r"^ zero-shot +primary *$", printed, re.MULTILINE)
    assert re.search(r"zero-shot, DiffCLIP\*: \d+\.\d \(seed 0\), \d+\.\d \(seed 1\)", printed)
    markdown = (out / "table.md").read_text()
    assert "primary outcome zero-shot, against CLIP, by a paired t test over the 2 seeds 0, 1" in markdown
    assert "Equivalent is what lies within ± 1 points. Secondary outcomes: image retrieval" in markdown


def test_power_says_seeds_and_hours_and_trains_nothing(tmp_path, capsys):
    path = write(tmp_path, DESIGNED)
    main(["sweep", str(path), "--out", str(tmp_path / "new"), "--power", "--sd", "0.75"])
    text = capsys.readouterr().out
    for effect, count in (("0.5", 20), ("1", 7), ("2", 4), ("5", 3), ("equivalent, ± 1", 7)):
        assert re.search(rf"^{re.escape(effect)} +{count}, \d+\.\d h", text, re.MULTILINE), effect
    assert re.search(r"^with 5 seeds +1\.3 points", text, re.MULTILINE)
    assert not (tmp_path / "new").exists()
    for variant, by_seed in {"clip": (0.5, 0.5, 0.5), "diffclip-star": (0.51, 0.53, 0.52)}.items():
        for seed, score in enumerate(by_seed):
            where = {"dataset": "small", "model": "m", "pretrained": f"pilot/{variant}/seed_{seed}"}
            result = results.Result(**where, task="zeroshot_classification", metrics={"acc1": score})
            results.append(tmp_path / "pilot" / "results.jsonl", result)
    main(["sweep", str(path), "--out", str(tmp_path / "pilot"), "--power"])
    text = capsys.readouterr().out
    assert re.search(r"sd 1\.00 +sd 2\.12 *\n.*DiffCLIP\*, pilot of 3 seeds +upper 80 % bound of it", text)
    for options, message in (([], "has no pilot: two seeds or more"), (["--sd", "-1"], "--sd -1: give a number")):
        with pytest.raises(SystemExit, match=message):
            main(["sweep", str(path), "--out", str(tmp_path / "new"), "--power", *options])
    with pytest.raises(SystemExit, match="--sd 1 is for --power"):
        main(["sweep", str(path), "--out", str(tmp_path / "new"), "--sd", "1"])


def test_a_dry_run_says_what_is_left_and_writes_nothing(finished, tmp_path, capsys):
    path, out = finished
    before = sorted(p for p in out.rglob("*"))
    main(["sweep", str(path), "--out", str(out), "--seeds", "0", "9", "--dry-run"])
    text = capsys.readouterr().out
    assert re.search(r"CLIP, seed 0 +finished +0", text)
    assert re.search(r"DiffCLIP\*, seed 9 +new +8 +\d+\.\d", text)
    assert sorted(p for p in out.rglob("*")) == before
    base = BASE.replace('path = "scenes:train?size=16&length=64"', "").replace(
        "workers = 0", "workers = 0\nexamples = 800"
    )
    main(["sweep", str(write(tmp_path, base=base)), "--dry-run"])
    assert re.search(r"CLIP, seed 0 +new +100 +not known", capsys.readouterr().out)


def test_another_number_of_examples_is_told_once(tmp_path, caplog):
    path = write(
        tmp_path, base=BASE.replace("length=64", "length=72").replace("workers = 0", "workers = 0\nexamples = 99")
    )
    main(["sweep", str(path), "--dry-run"])
    main(["train", str(tmp_path / "base.toml"), "--dry-run", "--data.examples", "98"])
    told = [one.getMessage().rpartition(" has ")[2] for one in caplog.records]
    assert told == ["72 examples, the recipe expects 99", "72 examples, the recipe expects 98"]


def test_settings_of_the_command_line(capsys, tmp_path):
    path = write(tmp_path)
    main(["sweep", str(path), "--set", "training.epochs=3", "training.batch_size=16", "--dry-run"])
    assert re.search(r"seed 1 +new +12 ", capsys.readouterr().out)
    with pytest.raises(SystemExit) as caught:
        main(["sweep", "--dry-run"])
    assert "no sweep: give a TOML file" in str(caught.value.code)
    assert read_toml(path, "sweep")["seeds"] == [0, 1]
