"""Weights of the released DiffCLIP, of SLIP's CLIP and of open_clip, against those models' own forward passes."""

import argparse
import json
import logging

import open_clip
import pytest
import released_models as released
import torch
from other_libraries import TEXTS as WORDS
from other_libraries import equal, images

import diffclip
from diffclip.models.image_settings import OPENAI_MEAN
from diffclip.models.presets import PRESETS
from diffclip.models.weights.convert import convert

SMALL = {"width": 64, "depth": 2, "heads": 4, "text_width": 48, "text_depth": 2, "text_heads": 4, "embed_dim": 24}
HEADS = {"vision_heads": 4, "text_heads": 4}  # of standard attention weights do not tell
VISION = {"image_size": 48, "layers": 2, "width": 128, "patch_size": 16, "head_width": 64}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 3}
TEXTS = ["a photo of a dog", "two red cubes left of a small green ball", ""]


def saved(path, state_dict, prefix=""):
    arguments = argparse.Namespace(lr=5e-4, model="CLIP_VITB16", nested={"betas": (0.9, 0.98)}, names=["a"])
    state_dict = {prefix + name: tensor for name, tensor in state_dict.items()}
    torch.save({"epoch": 40, "state_dict": state_dict, "best_acc1": 33.8, "args": arguments}, path)
    return path


def inputs(size=12):
    return torch.randn(3, 3, size, size), diffclip.get_tokenizer()(TEXTS)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("kind", ["diffclip", "diffclip_vision", "slip"])
def test_released_embeddings(kind, prefix, tmp_path):
    weights = released.released_state_dict(kind, **SMALL)
    overrides = {} if kind == "diffclip" else HEADS
    model, _, _ = diffclip.load(saved(tmp_path / "checkpoint_best.pt", weights, prefix), **overrides)
    assert model.config.vision_attention == ("standard" if kind == "slip" else "differential")
    pixels, tokens = inputs()
    with torch.no_grad():
        image = released.encode_image(weights, pixels, 4, eps=1e-6 if kind == "slip" else 1e-5)
        text = released.encode_text(weights, tokens, 4)
        torch.testing.assert_close(model.encode_image(pixels, normalize=True), image, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.encode_text(tokens, normalize=True), text, rtol=0, atol=1e-5)
        assert (image[0] - image[1]).abs().max() > 1e-2
        assert (text[0] - text[1]).abs().max() > 1e-2


@pytest.mark.parametrize(
    "change",
    [
        {"vision_norm_eps": 1e-6},
        {"text_activation": "gelu"},
        {"vision_activation": "quick_gelu"},
        {"lambda_init": 0.7},
        {"lambda_schedule": "depth"},
    ],
)
def test_a_wrong_detail_of_the_released_numerics_would_show(change, tmp_path):
    """Each changes an embedding by more than the tolerance above."""
    weights = released.released_state_dict("diffclip", **SMALL)
    weights["visual.patch_embed.proj.weight"] *= 0.02  # small activations, on which eps tells
    weights["visual.patch_embed.proj.bias"] *= 0.02
    weights["visual.pos_embed"] *= 0.02
    path = saved(tmp_path / "checkpoint_best.pt", weights)
    pixels, tokens = inputs()
    with torch.no_grad():
        right, wrong = (diffclip.load(path, **options)[0](pixels, tokens) for options in ({}, change))
        image = released.encode_image(weights, pixels, 4, eps=1e-5)
    torch.testing.assert_close(right["image_features"], image, rtol=0, atol=1e-4)
    tower = "text_features" if "text_activation" in change else "image_features"
    assert (right[tower] - wrong[tower]).abs().max() > 2e-4


def test_the_dynamic_schedule_is_an_override(tmp_path, caplog):
    weights = released.released_state_dict("diffclip", **SMALL)
    path = saved(tmp_path / "checkpoint_best.pt", weights)
    with caplog.at_level(logging.WARNING):
        diffclip.load(path)
    assert 'lambda_schedule="depth"' in caplog.text
    caplog.clear()
    model, _, _ = diffclip.load(path, lambda_schedule="depth")
    assert not caplog.text
    pixels, tokens = inputs()
    schedule = model.config.lambda_init_at
    with torch.no_grad():
        image = released.encode_image(weights, pixels, 4, eps=1e-5, lambda_init=schedule)
        text = released.encode_text(weights, tokens, 4, lambda_init=schedule)
        torch.testing.assert_close(model.encode_image(pixels, normalize=True), image, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.encode_text(tokens, normalize=True), text, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "preset"), [("diffclip", "diffclip_vit_b16"), ("slip", "clip_vit_b16")])
def test_released_b16_has_the_preset_s_shape(kind, preset):
    sizes = {"width": 768, "depth": 12, "heads": 12, "text_width": 512, "text_depth": 12, "text_heads": 8}
    weights = released.released_state_dict(kind, **sizes, embed_dim=512, grid=14, patch=16, device="meta")
    config, tensors = convert(weights, "weights", {})
    expected = PRESETS[preset]
    for field in (
        "embed_dim",
        "image_size",
        "patch_size",
        "vision_width",
        "vision_depth",
        "vision_heads",
        "text_width",
        "text_depth",
        "text_heads",
        "vision_attention",
        "text_attention",
        "vision_activation",
        "text_activation",
        "mlp_ratio",
        "context_length",
        "vocab_size",
        "image_mean",
        "resize",
    ):
        assert getattr(config, field) == getattr(expected, field), field
    assert config.resolved_vision_norm_eps == (1e-5 if kind == "diffclip" else 1e-6)
    total = sum(tensor.numel() for tensor in tensors.values())
    assert total == {"diffclip": 149_629_185, "slip": 149_619_969}[kind]


def open_clip_model(quick_gelu=False):
    torch.manual_seed(0)
    model = open_clip.model.CLIP(
        embed_dim=32,
        vision_cfg=VISION,
        text_cfg=TEXT,
        quick_gelu=quick_gelu,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too
            parameter += 0.05 * torch.randn_like(parameter)
        model.token_embedding.weight *= 10
    return model


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_open_clip_embeddings(quick_gelu, suffix, tmp_path):
    theirs = open_clip_model(quick_gelu)
    path = tmp_path / f"open_clip_model{suffix}"
    if suffix == ".pt":
        torch.save(theirs.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(theirs.state_dict(), path)
    activations = {"vision_activation": "quick_gelu", "text_activation": "quick_gelu"} if quick_gelu else {}
    model, preprocess, tokenizer = diffclip.load(path, **activations)
    assert model.config.image_mean == OPENAI_MEAN
    assert torch.equal(tokenizer(WORDS), open_clip.SimpleTokenizer()(WORDS))
    for image in images():
        equal(preprocess(image), open_clip.image_transform(48, is_train=False)(image))
    pixels, tokens = inputs(48)
    with torch.no_grad():
        image, text, scale = theirs(pixels, tokens)
        found = model(pixels, tokens)
    torch.testing.assert_close(found["image_features"], image, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["text_features"], text, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["logit_scale"], scale)
    if quick_gelu:
        wrong, _, _ = diffclip.load(path)
        with torch.no_grad():
            assert (wrong(pixels, tokens)["image_features"] - image).abs().max() > 1e-4


def test_open_clips_configuration_beside_the_weights_is_used(tmp_path, caplog):
    theirs = open_clip_model(quick_gelu=True)
    torch.save(theirs.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    config = {"embed_dim": 32, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}
    statistics = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": statistics}))
    model, preprocess, _ = diffclip.load(tmp_path)
    assert model.config.vision_activation == model.config.text_activation == "quick_gelu"
    assert preprocess.config.image_mean == (0.5, 0.5, 0.5)
    assert not caplog.text
    (tmp_path / "open_clip_config.json").unlink()
    diffclip.load(tmp_path)
    assert 'vision_activation="quick_gelu"' in caplog.text


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-S-16"])
def test_open_clips_sizes_are_read_off_the_shapes(name):
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        model = open_clip.model.CLIP(**config)
    found, _ = convert(model.state_dict(), name, {})
    vision, text = config["vision_cfg"], config["text_cfg"]
    expected = (
        config["embed_dim"],
        vision["image_size"],
        vision["patch_size"],
        vision["width"],
        vision["layers"],
        vision["width"] // vision.get("head_width", 64),
        text["width"],
        text["layers"],
        text["heads"],
    )
    assert expected == (
        found.embed_dim,
        found.image_size,
        found.patch_size,
        found.vision_width,
        found.vision_depth,
        found.vision_heads,
        found.text_width,
        found.text_depth,
        found.text_heads,
    )


def test_every_fault_is_named(tmp_path):
    weights = released.released_state_dict("diffclip", **SMALL)
    del weights["ln_final.bias"], weights["visual.blocks.1.norm2.weight"]
    weights["visual.extra"] = torch.zeros(2)
    weights["text_projection"] = torch.zeros(48, 23)
    with pytest.raises(diffclip.UserError) as caught:
        diffclip.load(saved(tmp_path / "broken.pt", weights))
    message = str(caught.value)
    assert "missing: visual.blocks.1.norm2.weight, text.norm.bias" in message
    assert "unexpected: visual.extra" in message
    assert "wrong shape: text_projection (48, 23) instead of (48, 24)" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual.blocks.1.attn.k_proj.bias": None}, "visual.blocks.1.attn.k_proj.bias is missing"),
        ({"transformer.resblocks.0.attn.v_proj.weight": torch.zeros(3, 3)}, r"v_proj.weight is \(3, 3\)"),
        ({"visual.pos_embed": None}, "visual.pos_embed is missing"),
        ({"visual.pos_embed": torch.zeros(10, 64)}, r"visual.pos_embed is \(10, 64\)"),
        ({"visual.cls_token": None}, "neither a diffclip model's"),
    ],
)
def test_what_the_sizes_are_read_from_must_be_there(change, message, tmp_path):
    weights = released.released_state_dict("diffclip", **SMALL) | change
    weights = {name: tensor for name, tensor in weights.items() if tensor is not None}
    with pytest.raises(diffclip.UserError, match=message) as caught:
        diffclip.load(saved(tmp_path / "broken.pt", weights))
    assert "\n" not in str(caught.value)
