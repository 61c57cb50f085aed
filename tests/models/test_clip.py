import math

import pytest
import torch

import diffclip
from diffclip.models.clip import CLIP, count_parameters, count_preset, evaluation_mode
from diffclip.models.presets import PRESETS, model_config

END = 99


def shrunk(name):
    """Any preset, small: its heads, attention and options, but narrow, shallow and with few words."""
    config = PRESETS[name]
    return diffclip.create_model(
        name,
        image_size=2 * config.patch_size,
        vision_width=8 * config.vision_heads,
        vision_depth=2,
        text_width=8 * config.text_heads,
        text_depth=2,
        embed_dim=16,
        vocab_size=END + 1,
    )


def inputs(model):
    size = model.config.image_size
    return torch.randn(3, 3, size, size), torch.tensor([[1, 5, END, 0], [1, END, 0, 0], [2, 3, 4, END]])


@pytest.mark.parametrize(
    ("name", "total", "added"),
    [("clip_vit_b16", 149_619_969, 0), ("diffclip_vit_b16", 149_629_185, 9_216)],
)
def test_published_parameter_counts(name, total, added):
    with torch.device("meta"):
        model = diffclip.create_model(name)
    counts = count_parameters(model)
    assert counts["total"] == total == sum(p.numel() for p in model.parameters())
    assert counts["visual"] + counts["text"] + 1 == total
    assert counts["lambda"] + counts["head_norm"] == added
    if added:
        assert (counts["lambda"], counts["head_norm"]) == (4 * 64 * 24, 128 * 24)
        assert f"{added / total:.3%}" == "0.006%"


@pytest.mark.parametrize(
    "name", [name for name in diffclip.list_models() if name.endswith(("quickstart", "b16_vision"))]
)
def test_one_block_of_each_tower_tells_how_many_parameters_there_are(name):
    """Towers of different depths, of every kind of attention."""
    changes = {"vision_depth": 3, "text_depth": 2, "logit_bias": -10.0}
    with torch.device("meta"):
        whole = diffclip.create_model(name, **changes)
    assert count_preset(model_config(name, **changes)) == count_parameters(whole)


@pytest.mark.parametrize("name", diffclip.list_models())
def test_every_preset_computes_learns_and_is_restored(name, tmp_path):
    torch.manual_seed(0)
    model = shrunk(name)
    if name.startswith("diffclip_gated"):  # λ starts at 0, and the second query learns from the second step on
        for block in (*model.visual.blocks, *model.text.blocks):
            torch.nn.init.constant_(block.attn.lambda_proj.bias, 0.1)
    pixels, tokens = inputs(model)
    output = model(image=pixels, text=tokens)
    image, text, scale = output["image_features"], output["text_features"], output["logit_scale"]
    assert image.shape == text.shape == (3, 16)
    torch.testing.assert_close(image.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(3))

    torch.nn.functional.cross_entropy(scale * image @ text.T, torch.arange(3)).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name

    diffclip.save(model, tmp_path)
    restored, _, _ = diffclip.load(tmp_path)
    assert restored.config == model.config
    with torch.no_grad():
        model.eval()
        assert torch.equal(restored.encode_image(pixels), model.encode_image(pixels))
        assert torch.equal(restored.encode_text(tokens), model.encode_text(tokens))


def test_normalised_features_are_float32_under_autocast():
    model = shrunk("diffclip_vit_b16")
    pixels, tokens = inputs(model)
    expected = model(pixels, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(pixels, tokens)
        assert model.encode_image(pixels).dtype == torch.bfloat16
    for key in ("image_features", "text_features"):
        assert found[key].dtype == torch.float32
        torch.testing.assert_close(found[key].norm(dim=-1), torch.ones(3))
        assert (found[key] - expected[key]).abs().max() < 2e-2


def test_one_modality_is_enough():
    model = shrunk("clip_vit_b16")
    pixels, tokens = inputs(model)
    assert model(image=pixels)["text_features"] is None
    assert model(text=tokens)["image_features"] is None


def test_encode_full_text_is_encode_text_at_full_length():
    model = shrunk("diffclip_vit_b16").eval()
    _, tokens = inputs(model)
    tokens = torch.nn.functional.pad(tokens, (0, 73))
    for normalize in (False, True):
        torch.testing.assert_close(model.encode_full_text(tokens, normalize), model.encode_text(tokens, normalize))
    torch.export.export(Wrapped(model), (tokens,))  # no look at the values


class Wrapped(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model.encode_full_text(tokens)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(1, 3, 32, 48), r"pixels \(1, 3, 32, 48\) torch.float32: .*\(batch, 3, 32, 32\)"),
        (torch.zeros(3, 32, 32), r"pixels \(3, 32, 32\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "torch.uint8: this model takes normalised floats"),
    ],
)
def test_refuses_pixels_it_cannot_take(pixels, message):
    with pytest.raises(diffclip.UserError, match=message):
        shrunk("clip_vit_b16").encode_image(pixels)


def test_the_temperature_starts_at_its_value_and_is_clamped():
    model = shrunk("clip_vit_b16")
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert model(text=inputs(model)[1])["logit_scale"].item() == pytest.approx(1 / 0.07)
    for value, expected in ((-1.0, 0.0), (7.0, 4.6052), (2.0, 2.0)):
        model.logit_scale.data.fill_(value)
        model.clamp_logit_scale()
        assert model.logit_scale.item() == pytest.approx(expected, abs=1e-4)


def test_lambdas_are_listed_for_differential_towers():
    assert shrunk("clip_vit_b16").lambdas() == {}
    model = shrunk("diffclip_vit_b16_text")
    lambdas = model.lambdas()
    assert set(lambdas) == {"text"}
    assert lambdas["text"].tolist() == [block.attn.lam().item() for block in model.text.blocks]
    assert set(shrunk("diffclip_vit_b16").lambdas()) == {"visual", "text"}


def test_under_the_meta_device_it_has_shapes_only():
    with torch.device("meta"):
        model = CLIP(PRESETS["diffclip_vit_h14"])
    assert all(p.is_meta for p in model.parameters())


def test_what_the_newer_interface_says_of_convolutions_stands():
    """PyTorch refuses to tell `allow_tf32` once `conv.fp32_precision` was set to something else."""
    model = CLIP(model_config("clip_vit_quickstart"))
    convolutions = torch.backends.cudnn.conv
    try:
        convolutions.fp32_precision = "ieee"
        with evaluation_mode(model):
            assert convolutions.fp32_precision == "ieee"
        assert convolutions.fp32_precision == "ieee"
    finally:
        convolutions.fp32_precision = "tf32"
    assert torch.backends.cudnn.allow_tf32
