"""The moving average of the weights: against a loop in float64, as the model that is kept, and after a resume."""

import os
import signal
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file
from test_trainer import lines, recipe

import diffclip
from diffclip.config import load_recipe, validate
from diffclip.errors import Stopped, UserError
from diffclip.training import checkpoint, setup, step
from diffclip.training.ema import WeightAverage
from diffclip.training.logs import WALL_CLOCK
from diffclip.training.setup import train

DECAY = 0.6


def run_recorded(folder, monkeypatch, **training):
    """A run and its weights after every step, the first being those it starts with."""
    weights = []
    real, made = step.TrainState.step, setup.new_model

    def keep(model):
        weights.append({name: p.detach().clone() for name, p in model.named_parameters()})

    def recorded(self, number, batch):
        found = real(self, number, batch)
        keep(self.model)
        return found

    def first(*arguments, **options):
        model = made(*arguments, **options)
        keep(model)
        return model

    monkeypatch.setattr(step.TrainState, "step", recorded)
    monkeypatch.setattr(setup, "new_model", first)
    train(recipe(**training), folder, evaluators={"data": lambda model: {"norm": float(norm(model))}})
    monkeypatch.undo()
    return weights


@torch.no_grad()
def norm(model):
    return torch.sqrt(sum(p.double().square().sum() for p in model.parameters()))


def averaged(weights, decay):
    """Written out as sums: the share of step k in the average after the last."""
    last = len(weights) - 1
    factors = [0.0] + [min(decay, (1 + t) / (10 + t)) for t in range(1, last + 1)]
    shares = []
    for k in range(last + 1):
        share = 1.0 if k == 0 else 1 - factors[k]
        for t in range(k + 1, last + 1):
            share *= factors[t]
        shares.append(share)
    assert sum(shares) == pytest.approx(1)
    return {name: sum(s * w[name].double() for s, w in zip(shares, weights, strict=True)) for name in weights[0]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("runs") / "whole"
        return folder, run_recorded(folder, monkeypatch, ema=DECAY, evaluate_every=1.0)


def test_the_model_that_is_kept_is_the_average(finished):
    run, weights = finished
    expected = averaged(weights, DECAY)
    newest = checkpoint.found(run)[-1]
    for path in (run / "model.safetensors", newest / "model.safetensors"):
        for name, tensor in load_file(path).items():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-7)
    trained = load_file(newest / "trained.safetensors")
    assert all(torch.equal(trained[name], tensor) for name, tensor in weights[-1].items())
    model, *_ = diffclip.load(str(run))
    assert not torch.equal(model.image_projection, weights[-1]["image_projection"])


def test_the_average_is_what_is_evaluated_and_training_does_not_notice(finished, tmp_path, monkeypatch):
    run, weights = finished
    measured = {record["step"]: record["data/norm"] for record in lines(run) if "data/norm" in record}
    for number, value in measured.items():
        flat = torch.cat([tensor.flatten() for tensor in averaged(weights[: number + 1], DECAY).values()])
        assert value == pytest.approx(float(flat.norm()), rel=1e-6)
    without = run_recorded(tmp_path / "without", monkeypatch)
    assert all(torch.equal(tensor, weights[-1][name]) for name, tensor in without[-1].items())
    assert not (checkpoint.found(tmp_path / "without")[-1] / "trained.safetensors").exists()


def test_a_resumed_run_has_the_same_average(finished, tmp_path, monkeypatch):
    whole, _ = finished
    run, real = tmp_path / "run", step.TrainState.step

    def interrupted(self, number, batch):
        if number + 1 == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, number, batch)

    evaluators = {"data": lambda model: {"norm": float(norm(model))}}
    options = {"ema": DECAY, "evaluate_every": 1.0}
    monkeypatch.setattr(step.TrainState, "step", interrupted)
    with pytest.raises(Stopped):
        train(recipe(**options), run, evaluators=evaluators)
    monkeypatch.undo()
    train(recipe(**options), run, resume=True, evaluators=evaluators)
    for name in ("model", "checkpoints/step_00000016/trained", "checkpoints/step_00000016/optimizer"):
        a, b = (load_file(folder / f"{name}.safetensors") for folder in (whole, run))
        assert a.keys() == b.keys()
        assert all(torch.equal(tensor, b[key]) for key, tensor in a.items())
    first, second = ([{k: v for k, v in r.items() if k not in WALL_CLOCK} for r in lines(f)] for f in (whole, run))
    assert first == second


def test_the_weights_come_back_to_the_bit():
    model = torch.nn.Linear(3, 2)
    average = WeightAverage(model, 0.5)
    own = torch.full((2, 3), 0.1)
    with torch.no_grad():
        model.weight.copy_(own)
    before = {name: tensor.clone() for name, tensor in average.tensors.items()}
    with suppress(KeyboardInterrupt), average.in_place(model):
        assert torch.equal(model.weight, before["weight"])
        raise KeyboardInterrupt
    assert torch.equal(model.weight, own)
    assert all(torch.equal(tensor, before[name]) for name, tensor in average.tensors.items())


def test_the_decay_is_below_one():
    with pytest.raises(UserError, match=r"training.ema: .*less than 1"):
        validate({"training": {"ema": 1.0}}, where="test")


def test_an_average_is_not_begun_in_the_middle_of_a_run(finished):
    run, _ = finished
    assert load_recipe(run / "recipe.toml").training.ema == DECAY
    with pytest.raises(UserError, match="a run of another recipe"):
        train(recipe(), run, resume=True)
