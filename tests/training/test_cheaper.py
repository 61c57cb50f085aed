"""Ways to cheaper training: each does what it says, is the same on a resume, and is off unless a recipe asks for it."""

import numpy as np
import pytest
import torch
from test_step import SMALL, batch, gradients, recipe_with, trainer

from diffclip.config import Recipe, load_recipe, to_toml, validate
from diffclip.data.loading.loader import Batch, Loader
from diffclip.data.sources import open_source
from diffclip.data.tokenizer import get_tokenizer
from diffclip.data.transforms import ByEpoch, TrainTransform
from diffclip.errors import UserError
from diffclip.models.clip import create_model
from diffclip.models.weights.store import load, save
from diffclip.training.setup import new_state
from diffclip.training.step import Schedule

PLAIN = {name: value for name, value in SMALL.items() if name != "patch_dropout"}


def sigmoid_trainer(**training):
    recipe = validate(
        {
            "model": {"preset": "diffclip_vit_quickstart", "overrides": SMALL},
            "loss": {"kind": "sigmoid"},
            "training": {"batch_size": 6, "precision": "float32"} | training,
        },
        where="test",
    )
    return new_state(recipe, Schedule(steps_per_epoch=10, steps=20, warmup_steps=0))


def test_all_of_it_is_off_by_default():
    recipe = Recipe()
    assert recipe.loss.kind == "contrastive"
    assert (recipe.training.undropped_epochs, recipe.training.image_sizes, recipe.training.ema) == (0, (), 0)
    assert "logit_bias" not in create_model("diffclip_vit_quickstart", **SMALL).state_dict()


def test_the_sigmoid_loss_trains_its_bias_and_starts_where_the_paper_does(tmp_path):
    one = sigmoid_trainer()
    assert one.model.logit_bias.item() == -10
    assert one.model.logit_scale.exp().item() == pytest.approx(10)
    before = one.step(0, batch(1))[0]
    assert one.model.logit_bias.item() != -10
    for step in range(1, 12):
        after = one.step(step, batch(1))[0]
    assert after < before
    # A bias is no matrix: it does not decay.
    plain = next(group for group in one.optimizer.param_groups if group["weight_decay"] == 0)
    assert any(parameter is one.model.logit_bias for parameter in plain["params"])
    save(one.model, tmp_path)
    again, _, _ = load(tmp_path, dtype=torch.bfloat16)
    assert again.logit_bias.dtype == torch.float32
    assert again.logit_bias.item() == one.model.logit_bias.item()


def test_the_sigmoid_loss_has_the_same_gradients_in_micro_batches():
    whole, parts = (sigmoid_trainer(micro_batch=size) for size in (0, 2))
    assert whole.step(0, batch(2))[0] == pytest.approx(parts.step(0, batch(2))[0], rel=1e-6)
    for name, gradient in gradients(whole).items():
        assert (gradients(parts)[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name  # λ's nearly cancels


def test_no_patch_is_dropped_in_the_last_epochs():
    one = trainer(undropped_epochs=0.5)  # of two epochs of ten steps: the last five
    lengths = []
    one.model.visual.blocks[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    for step in (0, 14, 15, 19):
        one.step(step, batch(1))
    assert lengths == [13, 13, 17, 17]  # the class token and 12 or all 16 patches
    one.step(3, batch(1))  # a resumed run begins anywhere
    assert lengths[-1] == 13
    with pytest.raises(UserError, match=r"undropped_epochs: set model\.overrides\.patch_dropout"):
        trainer(model=PLAIN, undropped_epochs=1)


@pytest.mark.parametrize("stem", ["patches", "convolutions"])
def test_smaller_images_see_resampled_positions(stem):
    model = create_model("diffclip_vit_quickstart", **PLAIN | {"vision_stem": stem}).double().train()
    small = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    tower = model.visual
    # The same by hand: positions of a grid of 2 × 2, each patch's tokens, then timm's blocks.
    tokens = tower.patch_embed(small)
    grid = tower.pos_embed[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    halved = torch.nn.functional.interpolate(grid.float(), (2, 2), mode="bicubic", antialias=True, align_corners=False)
    patches = tokens + halved.double().flatten(2).mT
    x = torch.cat([(tower.cls_token + tower.pos_embed[:, :1]).expand(2, -1, -1), patches], 1)
    expected = tower.norm(tower.blocks(x))[:, 0] @ model.image_projection
    torch.testing.assert_close(model.encode_image(small), expected, rtol=1e-6, atol=1e-8)
    model.encode_image(small).sum().backward()
    assert tower.pos_embed.grad.abs().sum(-1).min() > 0  # every position learns from smaller images
    for wrong in (torch.randn(2, 3, 20, 20), torch.randn(2, 3, 64, 64), torch.randn(2, 3, 16, 32)):
        with pytest.raises(UserError, match="this model takes"):
            model.encode_image(wrong)
    with pytest.raises(UserError, match="this model takes"):
        model.eval().encode_image(small)


def test_images_grow_by_epoch_and_a_resume_sees_the_same():
    source = open_source("scenes:train?size=32&length=12")
    transform = ByEpoch(((0, TrainTransform(16)), (2, TrainTransform(32))))
    loader = Loader(source, transform, get_tokenizer(16), 4, seed=0)
    assert [next(loader.epoch(epoch)).pixels.shape[-1] for epoch in range(4)] == [16, 16, 32, 32]
    resumed = next(loader.epoch(1, start=2))
    assert torch.equal(resumed.pixels, list(loader.epoch(1))[2].pixels)


@pytest.mark.parametrize("micro_batch", [0, 4])
def test_a_step_takes_smaller_images_with_patch_dropout(micro_batch):
    one = trainer(image_sizes=[[0, 16], [1, 32]], micro_batch=micro_batch)
    large = batch(1)
    small = Batch(large.pixels[..., ::2, ::2], large.tokens, large.groups, large.indices)
    for step, given in enumerate((small, large)):
        assert np.isfinite(one.step(step, given)[0])
    assert one.statistics(small)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([[1, 32]], "from epoch 0 on"),
        ([[0, 16]], "last the model's 32"),
        ([[0, 16], [0, 32]], "later epochs after"),
        ([[0, 12], [1, 32]], "12 is no multiple of the patch size 8"),
        ([[0, 64], [1, 32]], "64 is no multiple"),
        ([[0, 16, 1]], "image_sizes"),
        ([[-1, 16]], "greater than or equal to 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        trainer(image_sizes=sizes)


def test_they_survive_toml(tmp_path):
    recipe = recipe_with(image_sizes=[[0, 16], [1, 32]], undropped_epochs=0.5)
    (tmp_path / "r.toml").write_text(to_toml(recipe))
    assert load_recipe(tmp_path / "r.toml") == recipe
