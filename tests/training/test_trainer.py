"""Whole runs, made small: they learn, stop, resume to the same bits, and refuse what they should."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

import diffclip
from diffclip.config import validate
from diffclip.data.images import BadImage
from diffclip.data.loading import loader as loading
from diffclip.data.sources import open_source
from diffclip.data.transforms import normalise
from diffclip.errors import Stopped, UserError
from diffclip.training import checkpoint, loop, setup, step
from diffclip.training.loss import LOSSES, contrastive_loss
from diffclip.training.setup import train
from diffclip.training.step import Schedule
from small_models import RUN

pytestmark = pytest.mark.usefixtures("two_threads")  # the same bits, although threads share the sums


def recipe(**training):
    return validate(
        {
            "model": {"preset": "diffclip_vit_quickstart", "overrides": RUN},
            "data": {"train": {"path": "scenes:train?size=16&length=64"}, "workers": 0},
            "optimizer": {"lr": 1e-3, "warmup_epochs": 0.5},
            "training": {
                "epochs": 2,
                "batch_size": 8,
                "log_every": 2,
                "checkpoint_every": 3,
                "monitor_every": 4,
                "precision": "float32",
            }
            | training,
        },
        where="test",
    )


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was never interrupted."""
    return train(recipe(), tmp_path_factory.mktemp("runs") / "whole")


def test_a_run_leaves_what_is_documented(finished):
    records = lines(finished)
    assert [r["step"] for r in records] == [1, 2, 4, 6, 8, 10, 12, 14, 16]
    assert records[-1]["epoch"] == 2
    assert {"loss", "lr", "logit_scale", "images_per_s", "data_wait", "seconds"} <= set(records[0])
    assert len(records[0]["lambda_visual"]) == len(records[0]["lambda_text"]) == 2
    assert all(0 <= value <= 1 for value in records[2]["entropy_visual"] + records[2]["entropy_text"])
    assert [p.name for p in checkpoint.found(finished)] == ["step_00000015", "step_00000016"]
    model, _preprocess, tokenizer = diffclip.load(str(finished))
    final = load_file(checkpoint.found(finished)[-1] / "model.safetensors")
    assert all(torch.equal(value, final[name]) for name, value in model.state_dict().items())
    assert tokenizer(["a dog"]).shape == (1, model.config.context_length)


@pytest.mark.parametrize("stop_after", [3, 7, 11])
def test_an_interrupted_run_ends_in_the_same_bits(finished, tmp_path, stop_after, monkeypatch):
    run = tmp_path / "run"
    train_step = step.TrainState.step

    def interrupted(self, number, batch):
        if number + 1 == stop_after and not run.joinpath("stopped").exists():
            run.joinpath("stopped").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self, number, batch)

    monkeypatch.setattr(step.TrainState, "step", interrupted)
    with pytest.raises(Stopped, match=f"step {stop_after} of 16 .* --resume"):
        train(recipe(), run)
    train(recipe(), run, resume=True)
    for name in ("model.safetensors", "checkpoints/step_00000016/optimizer.safetensors"):
        whole, resumed = load_file(finished / name), load_file(run / name)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    timings = {"images_per_s", "data_wait", "seconds"}
    assert [{k: v for k, v in r.items() if k not in timings} for r in lines(run)] == [
        {k: v for k, v in r.items() if k not in timings} for r in lines(finished)
    ]


class Damaged:
    """The scenes of `recipe`, of which those that come early in the first epoch cannot be read."""

    def __init__(self, count):
        self._scenes = open_source("scenes:train?size=16&length=64")
        self.name, self.classnames, self.templates = "damaged", None, None
        loader = setup.training_loader(recipe(), self._scenes)
        self._bad = torch.cat([batch.indices for batch in loader.epoch(0)])[:count].tolist()

    def __len__(self):
        return 64

    def __getitem__(self, index):
        if index in self._bad:
            raise BadImage("truncated")
        return self._scenes[index]


def test_a_resumed_run_counts_what_was_skipped_before(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "training_source", lambda recipe, **_: Damaged(9))
    monkeypatch.setattr(loading, "JUDGED_FROM", 60)  # the seventh of eight batches
    with pytest.raises(UserError, match=r"damaged: .* could not be used, more than 10%: truncated") as whole:
        train(recipe(), tmp_path / "whole")
    run = tmp_path / "run"
    train_step = step.TrainState.step

    def interrupted(self, number, batch):
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self, number, batch)

    with monkeypatch.context() as patch:
        patch.setattr(step.TrainState, "step", interrupted)
        with pytest.raises(Stopped):
            train(recipe(), run)
    newest = checkpoint.found(run)[-1]
    state = json.loads((newest / "state.json").read_text())
    assert state["skipped"]["truncated"] >= 9
    with pytest.raises(UserError) as resumed:
        train(recipe(), run, resume=True)
    assert str(resumed.value) == str(whole.value)
    assert [record["step"] for record in lines(run)] == [record["step"] for record in lines(tmp_path / "whole")]

    # A checkpoint of an earlier version does not say: what comes from there on is judged by itself.
    for later in checkpoint.found(run)[1:]:
        shutil.rmtree(later)
    assert checkpoint.found(run) == [newest]
    del state["skipped"]
    (newest / "state.json").write_text(json.dumps(state))
    digest = hashlib.sha256((newest / "state.json").read_bytes()).hexdigest()
    sums = (newest / "SHA256SUMS").read_text().splitlines()
    kept = [line for line in sums if not line.endswith("state.json")]
    (newest / "SHA256SUMS").write_text("".join(f"{line}\n" for line in [*kept, f"{digest}  state.json"]))
    with pytest.raises(UserError):
        train(recipe(), run, resume=True)
    assert lines(run)[-1]["step"] == 14  # stopped by the second epoch


def test_a_damaged_checkpoint_is_passed_over(finished, tmp_path, monkeypatch, caplog):
    run = tmp_path / "run"
    train(recipe(), run)
    newest = checkpoint.found(run)[-1]
    (newest / "optimizer.safetensors").write_bytes(b"\0" * 20)
    train(recipe(), run, resume=True)
    assert "step_00000016 is damaged: optimizer.safetensors" in caplog.text
    whole, resumed = load_file(finished / "model.safetensors"), load_file(run / "model.safetensors")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_a_run_directory_is_not_overwritten(finished):
    with pytest.raises(UserError, match="holds a run already: give --resume"):
        train(recipe(), finished)
    with pytest.raises(UserError, match="a run of another recipe"):
        train(recipe(epochs=3), finished, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(LOSSES, "contrastive", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(UserError, match="the loss is nan at step 1"):
        train(recipe(), tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "not_finite_step_00000001.json").read_text())
    assert len(saved["indices"]) == 8
    assert checkpoint.found(tmp_path / "run") == []


def test_evaluators_run_when_the_recipe_says(tmp_path):
    calls = []

    def evaluator(model):
        calls.append(model.training)
        return {"acc1": 0.5}

    train(recipe(evaluate_every=1.0), tmp_path / "run", evaluators={"cifar10": evaluator})
    assert calls == [False, False]
    assert [r["step"] for r in lines(tmp_path / "run") if "cifar10/acc1" in r] == [8, 16]


def test_fewer_examples_than_a_batch():
    with pytest.raises(UserError, match="has 7 examples, fewer than one batch of 8"):
        Schedule.of(recipe(), 7)


def test_labelled_batches_give_the_gradients_of_encoding_every_caption():
    plain = recipe()
    shared = dataclasses.replace(
        plain,
        loss=dataclasses.replace(plain.loss, shared_captions=True),
        model=dataclasses.replace(plain.model, overrides=RUN | {"patch_dropout": 0.0}),
    )
    batch = next(setup.training_loader(shared, setup.training_source(shared)).epoch(0))
    batch = dataclasses.replace(
        batch, tokens=batch.tokens[[0, 0, 2, 3, 2, 5, 6, 7]], groups=torch.tensor([0, 0, 2, 3, 2, 5, 6, 7])
    )
    stepped = setup.new_state(shared, Schedule.of(shared, 64))
    by_hand = setup.new_state(shared, Schedule.of(shared, 64))
    stepped.step(0, batch)
    pixels = normalise(batch.pixels, by_hand.model.config.image_mean, by_hand.model.config.image_std)
    outputs = by_hand.model(image=pixels, text=batch.tokens)
    contrastive_loss(**outputs, groups=batch.groups).backward()
    for (name, p), expected in zip(stepped.model.named_parameters(), by_hand.model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, expected.grad, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_the_second_signal_is_the_systems_own():
    before = signal.getsignal(signal.SIGINT)  # ignored where the suite runs in a shell's background
    with loop._stop_signal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert stop.requested
        assert signal.getsignal(signal.SIGINT) is before
    assert threading.current_thread() is threading.main_thread()


def test_a_step_keeps_the_temperature_in_its_range_and_changes_the_weights():
    one = setup.new_state(recipe(), Schedule.of(recipe(), 64))
    source = setup.training_source(recipe())
    before = {name: p.detach().clone() for name, p in one.model.named_parameters()}
    one.model.logit_scale.data.fill_(10.0)
    one.step(0, next(setup.training_loader(recipe(), source).epoch(0)))
    assert one.model.logit_scale.item() == pytest.approx(4.6052, abs=1e-4)
    moved = [name for name, p in one.model.named_parameters() if not torch.equal(p, before[name])]
    assert len(moved) == len(before)
