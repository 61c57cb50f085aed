"""float16: gradients pass back scaled, an overflow costs a step and no weight, and a run goes on with its scale."""

import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from test_step import batch, gradients, recipe_with, trainer
from test_trainer import lines
from test_trainer import recipe as run_recipe

from diffclip.errors import UserError
from diffclip.training import checkpoint
from diffclip.training.dry_run import describe
from diffclip.training.setup import new_state, train
from diffclip.training.statistics import gradient_norms
from diffclip.training.step import Schedule, autocast_dtype, training_dtype

CUDA = torch.device("cuda", 0)


def weights(one):
    return {name: parameter.detach().clone() for name, parameter in one.model.named_parameters()}


@pytest.mark.parametrize("micro_batch", [0, 4])
def test_gradients_are_those_of_float32_once_they_are_unscaled(micro_batch):
    exact, half = trainer(), trainer(precision="fp16", micro_batch=micro_batch)
    assert half.dtype == torch.float16
    half.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # 2^16, where it begins, overflows here
    assert exact.step(0, batch(1))[0] == pytest.approx(half.step(0, batch(1))[0], rel=1e-3)
    assert half.figures()["gradient_scale"] == 2**10
    for name, gradient in gradients(exact).items():
        difference = (gradients(half)[name] - gradient).norm()
        assert difference <= 0.05 * gradient.norm() + 2e-4, name  # λ's nearly cancels


def test_an_overflow_changes_no_weight_and_halves_the_scale():
    one = trainer(precision="fp16", ema=0.5)
    one.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before, average = weights(one), {name: tensor.clone() for name, tensor in one.average.tensors.items()}
    one.step(0, batch(1))
    assert one.figures()["gradient_scale"] == 2.0**59
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(one).items())
    assert all(torch.equal(tensor, average[name]) for name, tensor in one.average.tensors.items())
    assert gradient_norms(one.model).total == 0
    one.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    one.step(1, batch(1))
    assert not all(torch.equal(tensor, before[name]) for name, tensor in weights(one).items())


def test_what_no_scale_mends_is_left_for_the_loop_to_find():
    one = trainer(precision="fp16")
    one.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    before = weights(one)
    one.model.visual.blocks[0].mlp.fc1.weight.register_hook(lambda gradient: gradient * torch.nan)
    one.step(0, batch(1))
    assert not gradient_norms(one.model).finite
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(one).items())


def test_a_run_passes_an_overflow_over_and_ends_in_the_same_bits_after_a_resume(tmp_path, monkeypatch):
    """The first steps overflow; the steps since the scale has changed are counted over the interruption too."""
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**60, growth_interval=4, backoff_factor=2.0**-40)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    recipe = run_recipe(precision="fp16", log_every=1)
    run = train(recipe, tmp_path / "whole")
    first, *rest = lines(run)
    assert (first["grad_norm"], first["gradient_scale"]) == (0, 2.0**20)
    assert rest[-1]["grad_norm"] > 0
    assert len({line["gradient_scale"] for line in rest}) > 1
    again = tmp_path / "again"
    shutil.copytree(run, again)
    last, before = checkpoint.found(again)[-1], checkpoint.found(again)[-2]
    shutil.rmtree(last)
    assert load_file(before / "scaler.safetensors")["_growth_tracker"] > 0
    train(recipe, again, resume=True)
    for name in ("model", "optimizer", "scaler"):
        whole, resumed = (load_file(checkpoint.found(each)[-1] / f"{name}.safetensors") for each in (run, again))
        assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items()), name


def test_a_run_that_was_not_scaled_goes_on_with_a_fresh_scale(tmp_path):
    schedule = Schedule(steps_per_epoch=10, steps=20, warmup_steps=0)
    plain = new_state(recipe_with(), schedule)
    plain.step(0, batch(1))
    checkpoint.save(tmp_path, plain.config, plain.tensors(), {"step": 1, "seconds": 1.0})
    half = new_state(recipe_with(precision="fp16"), schedule)
    assert half.restore(tmp_path)["step"] == 1
    assert half.scaler.get_scale() == 2**16


@pytest.mark.parametrize(
    ("real", "capability", "dtype"),
    [
        (True, (8, 0), torch.bfloat16),
        (False, (7, 5), torch.float16),
        (False, (7, 0), torch.float16),
        (False, (6, 1), None),
    ],
)
def test_auto_is_float16_where_tensor_cores_know_no_bfloat16(monkeypatch, real, capability, dtype):
    """No GPU: what PyTorch says of one is given."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or real)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert training_dtype(recipe_with(precision="auto").training, CUDA) == dtype
    without = dtype if dtype == torch.bfloat16 else None
    auto_in_shards = recipe_with(precision="auto", layout="fsdp")
    assert autocast_dtype("auto", CUDA) == training_dtype(auto_in_shards.training, CUDA) == without


def test_shards_are_refused_and_a_dry_run_says_what_it_is():
    with pytest.raises(UserError, match=r'precision = "fp16" does not go with training\.layout = "fsdp"'):
        recipe_with(precision="fp16", layout="fsdp")
    recipe = run_recipe(precision="fp16")
    assert dict(describe(recipe))["precision"] == "float16 autocast, gradients scaled"
