"""Fine-tuning: frozen towers and blocks, rates by tower, adapters, the warm-up of λ, and a recipe for few pairs."""

import json

import pytest
import torch

import diffclip
from diffclip.config import validate
from diffclip.errors import UserError
from diffclip.models.parity import compare
from diffclip.training import checkpoint, setup
from diffclip.training.setup import train, training_loader, training_source
from diffclip.training.step import Schedule
from diffclip.training.tuning import has_adapters, merged
from small_models import RUN, small_model

PLAIN = RUN | {"patch_dropout": 0.0}


def recipe(tuning, preset="diffclip_vit_quickstart", **parts):
    training = {"epochs": 2, "batch_size": 8, "precision": "float32", "checkpoint_every": 2}
    table = {
        "model": {"preset": preset, "overrides": PLAIN} | parts.pop("model", {}),
        "data": {"train": {"path": "scenes:train?size=16&length=32"}, "workers": 0},
        "optimizer": {"lr": 1e-3, "warmup_epochs": 0.0, "weight_decay": 0.0},
        "training": training | parts.pop("training", {}),
        "tuning": tuning,
    }
    return validate(table | parts, "test")


def steps(chosen, count=2):
    """A state, what its weights were, and the loss of each step."""
    state = setup.new_state(chosen, Schedule.of(chosen, 32))
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    batches = training_loader(chosen, training_source(chosen)).epoch(0)
    return state, before, [state.step(number, next(batches))[0] for number in range(count)]


def moved(state, before):
    return {name for name, p in state.model.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("micro_batch", [0, 3])
@pytest.mark.parametrize(("tower", "other"), [("vision", "text"), ("text", "vision")])
def test_a_frozen_tower_stays_and_the_other_learns_as_it_would(tower, other, micro_batch):
    state, before, losses = steps(recipe({f"{tower}_rate": 0.0}, training={"micro_batch": micro_batch}))
    starts = {"vision": ("visual.", "image_projection"), "text": ("text",)}
    changed = moved(state, before)
    assert not [name for name in changed if name.startswith(starts[tower])]
    everything = [name for name in before if name.startswith(starts[other])]
    assert set(everything) <= changed | {"text.positional_embedding"}
    _, _, whole = steps(recipe({}, training={"micro_batch": micro_batch}), 1)
    assert losses[0] == pytest.approx(whole[0], rel=1e-6)


def test_rates_are_multiples_of_the_recipes():
    # Adam's first step moves a weight by its learning rate, whatever the gradient.
    state, before, _ = steps(recipe({"vision_rate": 0.5, "text_rate": 2.0, "lambda_rate": 3.0}), 1)
    found = {name: float((p.detach() - before[name]).abs().max()) for name, p in state.model.named_parameters()}
    wanted = {"visual.blocks.0.mlp.fc1.weight": 0.5, "text.blocks.0.mlp.fc1.weight": 2, "logit_scale": 1}
    wanted |= {"visual.blocks.0.attn.lambda_q1": 1.5, "text.blocks.0.attn.lambda_k2": 6, "image_projection": 0.5}
    assert {name: found[name] for name in wanted} == pytest.approx({n: 1e-3 * r for n, r in wanted.items()}, rel=0.02)


def test_the_last_blocks_and_what_comes_after_them():
    state, before, _ = steps(recipe({"last_blocks": 1}))
    changed = moved(state, before)
    parts = {name.split(".attn")[0].split(".mlp")[0].split(".norm")[0] for name in changed}
    assert parts == {
        *("visual.blocks.1", "text.blocks.1", "visual", "text"),
        *("image_projection", "text_projection", "logit_scale"),
    }
    assert "visual.norm.weight" in changed


@pytest.mark.parametrize("kind", ["diffclip", "diffclip_v2"])
def test_adapters_learn_resume_and_are_merged_in_what_is_saved(kind, tmp_path):
    pytest.importorskip("peft")
    chosen = recipe({"lora_rank": 2, "last_blocks": 1}, preset=f"{kind}_vit_quickstart")
    state, before, _ = steps(chosen, 3)
    changed = moved(state, before)
    assert {name for name in before if ".lora_" in name} <= changed
    assert not [name for name in changed if ".base_layer." in name or "blocks.0" in name]
    assert any("lambda" in name for name in changed)
    whole = train(chosen, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_prune", lambda *_: None)
        train(recipe({"lora_rank": 2, "last_blocks": 1}, preset=f"{kind}_vit_quickstart"), tmp_path / "again")
    for folder in checkpoint.found(tmp_path / "again")[1:]:
        torch.save(None, folder / "optimizer.safetensors")  # damaged: it goes on from the first
    (tmp_path / "again" / "model.safetensors").unlink()
    again = train(chosen, tmp_path / "again", resume=True)
    first, second = (diffclip.load(run)[0] for run in (whole, again))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    state = setup.new_state(chosen, Schedule.of(chosen, 32))
    state.restore(whole)
    assert has_adapters(state.model)
    found = compare(first, state.model.eval().encode_image, state.model.encode_text)
    assert max(found.image, found.text) <= 1e-5
    assert merged(state.model).keys() == first.state_dict().keys()


@pytest.mark.parametrize("attention", ["differential", "differential_gated", "no_second_map"])
def test_lambda_rises_from_nothing(attention, tmp_path):
    fields = {"vision_attention": attention, "text_attention": attention}
    model = {"preset": "clip_vit_quickstart", "overrides": PLAIN | fields}
    chosen = recipe({"lambda_warmup_epochs": 1.0}, model=model, training={"log_every": 1})
    state, _, _ = steps(chosen, 1)
    scales = {module.lambda_scale for module in state.model.modules() if hasattr(module, "lambda_scale")}
    assert scales == {0.25}  # a step of four
    run = train(chosen, tmp_path / "run")
    logged = [json.loads(line)["lambda_visual"][0] for line in (run / "metrics.jsonl").read_text().splitlines()]
    if attention == "differential":
        assert logged[0] < 0.4 < logged[4] == pytest.approx(logged[7], abs=0.1)
    assert diffclip.load(run)[0].lambdas()["visual"][0].item() == pytest.approx(logged[-1], abs=1e-6)


@pytest.mark.parametrize(
    ("tuning", "parts", "said"),
    [
        ({"vision_rate": 0, "text_rate": 0}, {}, "nothing would be trained"),
        ({"last_blocks": 3}, {}, "has 2 blocks"),
        ({"lora_rank": 2}, {"training": {"ema": 0.9}}, r"does not go with training\.ema"),
        ({"lora_rank": 2}, {"training": {"layout": "fsdp"}}, "does not go with"),
        ({"lambda_rate": 2}, {"model": {"preset": "clip_vit_quickstart"}}, "neither λ nor gates"),
        ({"lambda_warmup_epochs": 1}, {"model": {"preset": "gated_vit_quickstart"}}, "no λ that could rise"),
        ({"lambda_warmup_epochs": 3}, {}, "longer than training"),
        ({"lambda_warmup_epochs": 1}, {"training": {"compile": True}}, r"training\.compile"),
        ({"last_block": 1}, {}, "last_block"),
    ],
)
def test_what_a_recipe_may_not_say(tuning, parts, said):
    with pytest.raises(UserError, match=said):
        recipe(tuning, **parts)


def test_a_mirror_keeps_its_lambda(tmp_path):
    diffclip.save(small_model("clip", size=PLAIN), tmp_path)
    start = {"preset": "", "overrides": {}, "start": str(tmp_path), "convert": {"attention": "differential_v2"}}
    with pytest.raises(UserError, match="with its own λ alone"):
        recipe({"lambda_warmup_epochs": 1}, model=start)


def test_transformers_models_take_rates_alone():
    pytest.importorskip("transformers")
    model = {"preset": "", "library": "transformers", "architecture": "siglip_quickstart"}
    for name in ("last_blocks", "lora_rank"):
        with pytest.raises(UserError, match="for models of ours"):
            validate({"model": model, "tuning": {name: 1}}, "test")
    assert validate({"model": model, "tuning": {"vision_rate": 0}}, "test").tuning.vision_rate == 0
