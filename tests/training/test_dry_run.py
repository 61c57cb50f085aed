"""What a dry run says, without data and without doing it."""

import dataclasses

import pytest
import torch

from diffclip.config import validate
from diffclip.models.clip import create_model
from diffclip.training.dry_run import activation_bytes, describe, saved_bytes
from diffclip.training.loss import contrastive_loss
from small_models import ESTIMATED

SMALL = ESTIMATED | {"patch_size": 8}


def recipe(**model):
    return validate(
        {
            "model": {"preset": "diffclip_vit_quickstart", "overrides": SMALL | model},
            "data": {"examples": 1000},
            "training": {"batch_size": 10, "epochs": 3, "precision": "float32"},
        },
        where="test",
    )


def test_rows_without_data():
    rows = dict(describe(recipe()))
    parameters = sum(p.numel() for p in create_model("diffclip_vit_quickstart", **SMALL).parameters())
    assert rows["parameters"] == f"{parameters:,}"
    assert rows["images"] == "(10, 3, 32, 32), patches of 8"
    assert rows["steps"] == "300 = 3 epochs × 100"
    assert rows["examples"].startswith("1,000 as the recipe states")
    assert "5.00e-04 at step 100" in rows["learning rate"]
    assert f"{parameters * 16 / 2**30:.2f} GiB" in rows["memory, weights and optimizer"]


@pytest.mark.parametrize(
    ("path", "row"),
    [
        ("scenes:train?length=77", "77 in scenes:train?length=77"),
        ("scenes:train?length=1000", "1,000 in scenes:train?length=1000"),
        ("scenes:tran", "1,000 as the recipe states; the data cannot be counted: scenes has no split 'tran': choose"),
        ("pipe:cat {0..9}.tar", "1,000 as the recipe states; a stream is not counted"),
    ],
)
def test_the_examples_are_those_of_the_data_or_it_says_why_not(path, row):
    one = recipe()
    data = dataclasses.replace(one.data, train=dataclasses.replace(one.data.train, path=path))
    assert dict(describe(dataclasses.replace(one, data=data)))["examples"].startswith(row)


def test_activations_are_those_of_a_real_forward_pass():
    model = create_model("diffclip_vit_quickstart", **SMALL)
    owned = {p.untyped_storage()._cdata for p in model.parameters()}
    tokens = torch.zeros(4, 16, dtype=torch.long)
    with saved_bytes() as saved:
        image = model.encode_image(torch.randn(4, 3, 32, 32), normalize=True)
        text = model.encode_full_text(tokens, normalize=True)
        contrastive_loss(image, text, model.logit_scale.exp())
    real = sum(size for address, size in saved.storages.items() if address not in owned)
    assert abs(activation_bytes(recipe(), 4) - real) < 0.1 * real


def test_checkpointed_activations_are_counted_as_such():
    def bytes_at(depth, checkpointed):
        one = recipe(vision_depth=depth)
        one = dataclasses.replace(one, training=dataclasses.replace(one.training, checkpoint_activations=checkpointed))
        return activation_bytes(one, 4)

    assert bytes_at(4, True) < 0.7 * bytes_at(4, False)
    # Another block is another input of (images, class token and patches, width) floats, and nothing else.
    assert bytes_at(5, True) - bytes_at(4, True) == 4 * (1 + 16) * 64 * 4


def test_micro_batches_bound_the_activations():
    def activations(batch_size, micro_batch):
        one = recipe(embed_dim=256)
        changed = dataclasses.replace(one.training, batch_size=batch_size, micro_batch=micro_batch)
        rows = dict(
            describe(dataclasses.replace(one, data=dataclasses.replace(one.data, examples=10**6), training=changed))
        )
        assert rows["images"].endswith(f", {micro_batch} at a time") == (0 < micro_batch < batch_size)
        return float(rows["memory, activations"].split()[0])

    assert activations(8192, 0) > 10 * activations(8192, 256)
    assert activations(256, 256) == activations(256, 0)
