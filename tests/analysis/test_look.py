"""What a model makes of one image and some texts."""

import numpy as np
import pytest
import torch

from diffclip.analysis.look import look, visible
from diffclip.errors import UserError
from diffclip.models.clip import create_model

TEXTS = ("a red star", "a ring beside a very long wall")


def tiny(kind, seed=0):
    torch.manual_seed(seed)
    vision = {"image_size": 16, "patch_size": 4, "vision_width": 32, "vision_depth": 2, "vision_heads": 4}
    text = {"text_width": 16, "text_depth": 1, "text_heads": 2}
    return create_model(f"{kind}_vit_t16", embed_dim=16, **vision, **text).eval()


def picture(height=30, width=50):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_layers_are_in_multiples_of_the_even_share():
    model = tiny("diffclip")
    seen = look(model, picture(), TEXTS)
    assert [set(layer.maps) for layer in seen.class_token] == [{"A1", "A2", "A1 − λA2"}] * 2
    layer, raw = seen.class_token[1], seen.image_layers[1]
    np.testing.assert_allclose(layer.maps["A1"], raw.a1[0, :, 0, 1:].reshape(2, 4, 4).numpy() * 17, rtol=1e-6)
    np.testing.assert_allclose(
        layer.maps["A1 − λA2"], layer.maps["A1"] - layer.lam * layer.maps["A2"], rtol=1e-5, atol=1e-6
    )


def test_the_part_that_a_model_sees_is_as_large_as_is_asked_and_there_is():
    model = tiny("clip")
    assert np.array_equal(
        visible(model.config, picture(), 448), picture()[:, 10:40]
    )  # the centre, no larger than it is
    assert visible(model.config, picture(), 20).shape == (20, 20, 3)


def test_a_broken_model_is_an_error():
    model = tiny("clip")
    with torch.no_grad():
        model.image_projection.fill_(float("nan"))
    with pytest.raises(UserError, match="1 of 1 image features are not finite"):
        look(model, picture(), TEXTS)
