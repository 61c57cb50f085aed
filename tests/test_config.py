"""Recipes: read, checked, written back."""

from pathlib import Path

import pytest
import torch

from diffclip.config import Recipe, load_recipe, same_run, to_toml, validate
from diffclip.errors import UserError
from diffclip.evaluation.run.hooks import check_evaluations
from diffclip.evaluation.task import during_training
from diffclip.evaluation.tasks import retrieval, zero_shot

# Sweeps are read by another module, see test_sweep.py.
RECIPES = sorted(
    p for p in (Path(__file__).parents[1] / "recipes").rglob("*.toml") if p.parent.name not in ("sweeps", "vlm")
)


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
        clip, *others = (
            load_recipe(path) for path in RECIPES if path.parent.name == folder and not path.stem.endswith("_fast")
        )
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
            "training.precision: input should be 'auto', 'bf16', 'fp16' or 'float32'",
        ),
        (
            {"data": {"workers": -1}},
            "data.workers: input should be greater than or equal to 0, found -1; data.workers: input should be 'auto'",
        ),
        ({"training": {"compile": "maybe"}}, "training.compile: input should be 'auto', found 'maybe'"),
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


BEST = {"keep_best": 1, "best_by": "few/acc1", "evaluate_every": 1.0}


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"best_by": ""}, r"keep_best = 1 needs training.best_by"),
        ({"evaluate_every": 0.0}, r"training.evaluate_every above 0"),
        ({"best_by": "few/recall"}, r"'few/recall' is not measured; give one of few/acc1, few/acc5, few/mean_per"),
    ],
)
def test_the_best_by_what_has_to_be_said(training, message):
    evaluation = [{"name": "few", "tasks": ["zero_shot"]}]
    check_evaluations(validate({"training": BEST, "evaluation": evaluation}, where="test"))
    with pytest.raises(UserError, match=message):
        check_evaluations(validate({"training": BEST | training, "evaluation": evaluation}, where="test"))


def test_a_recipe_evaluates_by_what_the_test_split_alone_tells():
    recipe = validate(
        {"evaluation": [{"name": "few"}, {"name": "more", "tasks": ["retrieval", "noise"]}]}, where="test"
    )
    expected = "here: evaluation.1.tasks.1: input should be 'zero_shot' or 'retrieval', found 'noise'"
    with pytest.raises(UserError, match=expected):
        check_evaluations(recipe, "here")


def test_recipes_that_compute_the_same():
    one = validate({}, where="test")
    kept = {"keep_last": 5, "checkpoint_every": 3, "best_by": "x/acc1"}
    free = {"data": {"workers": 7}, "training": {"compile": False, **kept}}
    assert same_run(one, validate(free, where="test"))
    for table in ({"seed": 1}, {"training": {"ema": 0.9}}, {"training": {"log_every": 3}}, {"data": {"flip": 0.5}}):
        assert not same_run(one, validate(table, where="test"))


def test_the_metrics_are_those_that_tasks_measure():
    labels = torch.tensor([0, 1, 2, 3, 4])
    zero = zero_shot.scores(torch.eye(5), labels, torch.eye(5))
    assert set(during_training()["zero_shot"]) == set(zero)
    found = retrieval.scores(torch.eye(12), torch.eye(12), torch.arange(12), retrieval.KS)
    assert set(during_training()["retrieval"]) == set(found)


def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "r.toml"
    path.write_bytes(b"\xef\xbb\xbf" + b"seed = 7\n")
    assert load_recipe(path).seed == 7
