"""Recipes: read, checked, written back."""

from pathlib import Path

import pytest

from diffclip.config import Recipe, load_recipe, to_toml, validate
from diffclip.errors import UserError

# Sweeps are read by another module, see test_sweep.py.
RECIPES = sorted(p for p in (Path(__file__).parents[1] / "recipes").rglob("*.toml") if p.parent.name != "sweeps")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_resolves_and_survives_being_written(path, tmp_path):
    recipe = load_recipe(path)
    copy = tmp_path / "recipe.toml"
    copy.write_text(to_toml(recipe))
    assert load_recipe(copy) == recipe


def test_defaults_are_the_papers():
    recipe = Recipe()
    optimizer, training = recipe.optimizer, recipe.training
    assert (optimizer.lr, optimizer.weight_decay, optimizer.betas, optimizer.eps) == (
        5e-4,
        0.5,
        (0.9, 0.98),
        1e-8,
    )
    assert (optimizer.warmup_epochs, optimizer.warmup_lr, optimizer.final_lr) == (1, 1e-6, 1e-5)
    assert (training.epochs, training.batch_size, recipe.data.scale) == (40, 4096, (0.5, 1))
    assert not recipe.loss.shared_captions


def test_the_paper_recipes_differ_in_the_model_alone():
    for folder in ("cc3m", "cc12m"):
        clip, *others = (load_recipe(path) for path in RECIPES if path.parent.name == folder)
        assert others
        for other in others:
            assert (other.data, other.loss, other.optimizer, other.training) == (
                clip.data,
                clip.loss,
                clip.optimizer,
                clip.training,
            )
            assert other.model != clip.model


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"optimiser": {}}, "optimiser: no such key"),
        ({"optimizer": {"learning_rate": 1}}, "optimizer.learning_rate: no such key"),
        ({"optimizer": {"lr": -1.0}}, "optimizer.lr: input should be greater than 0, found -1.0"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr: input should be a finite number, found nan"),
        ({"training": {"batch_size": "many"}}, "training.batch_size: input should be a valid integer"),
        (
            {"training": {"precision": "fp8"}},
            "training.precision: input should be 'auto', 'bf16' or 'float32'",
        ),
        ({"model": {"preset": "diffclip_vit_b17"}}, "diffclip_vit_b17"),
        ({"model": {"overrides": {"widht": 3}}}, "widht"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(table, message):
    with pytest.raises(UserError) as caught:
        validate(table, where="r.toml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_recipes(tmp_path):
    with pytest.raises(UserError, match=r"absent\.toml: No such file"):
        load_recipe(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[model\n")
    with pytest.raises(UserError, match=r"broken\.toml is not valid TOML"):
        load_recipe(broken)
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a UTF-8 text file"):
        load_recipe(broken)
