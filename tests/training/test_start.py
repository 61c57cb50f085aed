"""A run that starts from the weights of a model: it begins there, resumes, and sees that they are the same."""

import dataclasses
import re

import pytest
import torch

import diffclip
from diffclip.config import load_recipe, validate
from diffclip.errors import UserError
from diffclip.models.parity import compare
from diffclip.training import dry_run, setup
from diffclip.training.setup import train
from diffclip.training.step import Schedule
from small_models import RUN, small_model


@pytest.fixture
def start(tmp_path):
    """A converted model on disk."""
    model = small_model("clip", size=RUN | {"patch_dropout": 0.0})
    diffclip.save(diffclip.convert(model, layers=(1,)), tmp_path / "start")
    return tmp_path / "start"


def recipe(start, loss="contrastive", **model):
    table = {
        "model": {"start": str(start)} | model,
        "data": {"train": {"path": "scenes:train?size=16&length=16"}, "workers": 0},
        "loss": {"kind": loss},
        "optimizer": {"lr": 1e-3, "warmup_epochs": 0.5},
        "training": {"epochs": 1, "batch_size": 8, "precision": "float32"},
    }
    return validate(table, "test")


def test_it_starts_where_the_model_is_trains_and_resumes(start, tmp_path):
    before = diffclip.load(start)[0]
    chosen = recipe(start, overrides={"patch_dropout": 0.25})
    state = setup.new_state(chosen, Schedule.of(chosen, 16))
    found = compare(before, state.model.eval().encode_image, state.model.encode_text)
    assert max(found.image, found.text) == 0
    assert state.model.config == dataclasses.replace(before.config, patch_dropout=0.25)
    assert dict(dry_run.describe(chosen))["model"] == f"{start} patch_dropout=0.25"
    run = train(chosen, tmp_path / "run")
    assert load_recipe(run / "recipe.toml") == chosen
    after = diffclip.load(run)[0]
    assert after.config.vision_attention_layers == (1,)
    new = "visual.blocks.1.attn.q2.weight"
    assert not torch.equal(after.state_dict()[new], before.state_dict()[new])
    assert train(chosen, run, resume=True) == run


def test_a_run_does_not_go_on_from_other_weights(start, tmp_path):
    chosen = recipe(start)
    run = train(chosen, tmp_path / "run")
    diffclip.save(small_model("clip", size=RUN | {"patch_dropout": 0.0}, seed=9), start)
    with pytest.raises(UserError, match=r"model\.start: other weights"):
        train(chosen, run, resume=True)


def test_sigmoid_gives_a_bias_to_a_start_without_one(start):
    chosen = recipe(start, loss="sigmoid")
    model = setup.new_state(chosen, Schedule.of(chosen, 16)).model
    assert model.logit_bias == setup.SIGMOID_BIAS
    assert model.logit_scale == diffclip.load(start)[0].logit_scale


def test_a_preset_beside_a_start_or_no_start_is_refused(start):
    with pytest.raises(UserError, match="leave the preset out"):
        recipe(start, preset="clip_vit_b16")
    assert recipe(start, preset="").model.resolve() == diffclip.load(start)[0].config
    with pytest.raises(UserError, match=re.escape(f"model.start: {start}/none")):
        recipe(start / "none")
    with pytest.raises(UserError, match="does not fit its configuration"):
        recipe(start, overrides={"vision_width": 64})
