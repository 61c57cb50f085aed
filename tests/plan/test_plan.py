"""Plans: against numbers worked out by hand, and as the command prints them."""

import dataclasses
import json
from pathlib import Path

import pytest

from diffclip import cli
from diffclip.config import load_recipe, validate
from diffclip.errors import UserError
from diffclip.plan import flops
from diffclip.plan.estimate import Assumptions, operations, plan, published, scales
from diffclip.plan.hardware import accelerators, machines
from diffclip.training.dry_run import activation_growth
from small_models import ESTIMATED

CC12M = Path(__file__).parents[2] / "src/diffclip/recipes/cc12m/diffclip.toml"


def recipe(model=ESTIMATED, **training):
    return validate(
        {
            "model": {"preset": "diffclip_vit_quickstart", "overrides": {"vision_depth": 1, "text_depth": 1} | model},
            "data": {"examples": 10_000},
            "training": {"batch_size": 1024, "epochs": 2, **training},
        },
        where="test",
    )


def test_machines_are_read_in_any_case_and_with_either_sign():
    assert (machines("8xA100").count, machines("8xA100").kind.name) == (8, "A100")
    assert (machines("h100").count, machines("16×h100").kind.name) == (1, "H100")
    assert machines("8xA100").slowest_link == 300e9
    assert machines("16xA100").slowest_link == 25e9
    for wrong in ("", "8", "x", "0xA100", "-1xA100", "8xA9000", "8 of A100", "9999999xA100", "٣xA100"):
        with pytest.raises(UserError, match="kinds are A100, A100-40GB"):
            machines(wrong)


def test_time_and_cost_are_those_worked_out_by_hand():
    found = plan(recipe(), machines("4xA100"), Assumptions(utilisation=0.5, price=2.0, cores=1000))
    assert found.steps == 2 * (10_000 // 1024)
    assert found.seconds["compute"] == pytest.approx(found.operations / (4 * 312e12 * 0.5))
    assert found.seconds["loading"] == pytest.approx(1024 / (4 * 1000 * 454))
    ring = 2 * 3 / 4 * 4 * found.parameters + 3 / 4 * 2 * 4 * 1024 * 8
    assert found.seconds["network"] == pytest.approx(ring / 300e9)
    moved = 28 * found.parameters + 2 * found.memory.activations
    assert found.seconds["memory bandwidth"] == pytest.approx(moved / 2039e9)
    assert found.step_seconds == max(found.seconds.values())
    assert found.dollars == pytest.approx(found.steps * found.step_seconds / 3600 * 4 * 2.0)
    assert plan(recipe(), machines("H200")).dollars is None


@pytest.mark.parametrize(
    ("limit", "assumptions", "where", "model"),
    [
        ("compute", {"utilisation": 1e-6}, "1xA100", ESTIMATED),
        ("loading", {"utilisation": 1.0, "cores": 1, "images_per_core": 1}, "1xA100", ESTIMATED),
        ("network", {"utilisation": 1.0, "cores": 10**6}, "512xV100", ESTIMATED | {"text_width": 256}),
        ("memory bandwidth", {"utilisation": 1.0, "cores": 10**6}, "1xA100", ESTIMATED),
    ],
)
def test_the_slowest_is_the_limit(limit, assumptions, where, model):
    assert plan(recipe(model), machines(where), Assumptions(**assumptions)).limit == limit


def test_what_is_computed_again_is_counted_apart():
    whole, cached, checkpointed = (
        plan(recipe(**training), machines("2xA100"))
        for training in ({}, {"micro_batch": 64}, {"checkpoint_activations": True})
    )
    assert whole.again == 0
    assert cached.again == pytest.approx(sum(count for part, count in whole.work.items() if part != "loss") / 3)
    blocks = sum(count for part, count in whole.work.items() if "attention" in part or "MLP" in part)
    assert checkpointed.again == pytest.approx(blocks / 3)
    assert cached.operations == whole.operations
    assert cached.seconds["compute"] > whole.seconds["compute"]
    assert cached.memory.micro_batch == 64
    assert plan(recipe(micro_batch=512), machines("2xA100")).again == 0  # a process has no more than these


def test_what_does_not_fit_is_said_with_what_would():
    def large(micro_batch):
        training = {"batch_size": 4096, "micro_batch": micro_batch}
        model = {"preset": "diffclip_vit_l14", "overrides": {"vision_depth": 1, "text_depth": 1, "vision_width": 8192}}
        return validate({"model": model, "data": {"examples": 10**6}, "training": training}, "test")

    where = machines("4xRTX4090")
    found = plan(large(0), where)
    assert not found.memory.fits
    assert 1 <= found.memory.fitting < 1024
    assert plan(large(found.memory.fitting), where).memory.fits
    assert not plan(large(2 * found.memory.fitting), where).memory.fits
    tiny = dataclasses.replace(where, kind=dataclasses.replace(accelerators()["RTX4090"], memory=1e9))
    assert plan(large(0), tiny).memory.fitting == 0


def test_memory_is_that_of_the_dry_run():
    found = plan(recipe(precision="float32", micro_batch=32), machines("2xA100"))
    growth, fixed = activation_growth(recipe(precision="float32"))
    assert found.memory.activations == growth * 32 + fixed
    assert found.memory.state == 16 * found.parameters


def test_what_changes_while_training_is_averaged():
    """Eight epochs at 16 pixels, then two at 32; of the patches half, but in the last epoch."""
    changing = recipe(ESTIMATED | {"patch_dropout": 0.5}, epochs=10, undropped_epochs=1, image_sizes=[[0, 16], [8, 32]])
    config = changing.model.resolve()
    small = flops.training(dataclasses.replace(config, image_size=16), 1024)
    large, whole = (flops.training(config, 1024, dropping=dropping) for dropping in (True, False))
    for part, count in operations(changing).items():
        assert count == pytest.approx(0.8 * small[part] + 0.1 * large[part] + 0.1 * whole[part])
    undropped = plan(recipe(), machines("A100")).memory.activations
    assert plan(changing, machines("A100")).memory.activations == undropped


def test_the_papers_run_is_at_14_percent_of_the_peak():
    paper = published()[0]
    assert (paper.days, paper.on) == (10, "A100")
    assert paper.utilisation == pytest.approx(0.144, abs=0.001)
    assert all(0.1 < run.utilisation < 0.2 for run in published())


def test_the_papers_recipe_takes_its_ten_days():
    found = plan(load_recipe(CC12M), machines("8xA100"))
    assert found.accelerator_days == pytest.approx(10, rel=0.05)
    assert found.limit == "compute"
    assert found.memory.fits


def test_sizes_grow_and_so_does_what_they_take():
    rows = scales("diffclip_vit_", machines("A100"))
    assert [row.preset[-3:] for row in rows] == ["s16", "b32", "b16", "l14", "h14"]
    days = [row.days["CC12M"] for row in rows]
    assert days == sorted(days)
    for row in rows:
        assert row.days["LAION-400M"] / row.days["CC3M"] == pytest.approx(413 * 32 / (2.3 * 40))
        assert row.dollars["CC3M"] == pytest.approx(row.days["CC3M"] * 24 * 1.49)


def test_wrong_assumptions_are_refused():
    for wrong in ({"utilisation": 0}, {"utilisation": 1.1}, {"price": -1}, {"cores": 0}, {"images_per_core": 0}):
        with pytest.raises(UserError, match=f"--{next(iter(wrong)).replace('_', '-')}"):
            Assumptions(**wrong)
    with pytest.raises(UserError, match="cannot be divided among 3"):
        plan(recipe(), machines("3xA100"))


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "r.toml"
    overrides = ", ".join(f"{key} = {value}" for key, value in ESTIMATED.items())
    file.write_text(
        f"[model]\npreset = 'diffclip_vit_quickstart'\noverrides = {{{overrides}}}\n"
        "[data]\nexamples = 10000\n[training]\nbatch_size = 1024\n"
    )
    return str(file)


def test_the_command_prints_tables(capsys, monkeypatch, path):
    monkeypatch.setenv("COLUMNS", "200")
    cli.main(["plan", path, "--on", "8xA100", "--scale"])
    output = capsys.readouterr().out
    for expected in ("8 × NVIDIA A100", "the limit", "April 2026", "image: MLP", "arXiv 2503.06626", "h14", "fits"):
        assert expected in output
    cli.main(["plan", path, "--on", "H200"])
    assert "no price of H200 is known: give --price" in capsys.readouterr().out


def test_the_command_prints_json(capsys, path):
    cli.main(["plan", path, "--on", "2xH100", "--price", "3", "--json"])
    content = json.loads(capsys.readouterr().out)
    expected = plan(load_recipe(path), machines("2xH100"), Assumptions(price=3.0))
    assert content["days"] == pytest.approx(expected.days)
    assert content["dollars"] == pytest.approx(expected.dollars)
    assert content["limit"] == expected.limit
    assert content["machines"]["kind"]["name"] == "H100"
    assert sum(content["work"].values()) == pytest.approx(content["operations"])
