import dataclasses
import json
import math
import subprocess
import sys

import pytest

import diffclip
from diffclip.models.presets import PRESETS, ModelConfig, model_config

DIFFCLIP = [name for name in PRESETS if name.startswith("diffclip_vit_")]


def test_every_size_has_every_variant():
    for size in ("t16", "s16", "b32", "b16", "l14", "h14", "quickstart"):
        names = [f"clip_vit_{size}"] + [f"diffclip_vit_{size}{v}" for v in ("", "_dynamic", "_vision", "_text")]
        assert set(names) <= set(diffclip.list_models())
    assert len(diffclip.list_models()) == 7 * 5 + 3 * 11


@pytest.mark.parametrize("name", DIFFCLIP)
def test_a_diffclip_differs_from_its_clip_in_attention_alone(name):
    size, _, variant = name.removeprefix("diffclip_vit_").partition("_")
    config, clip = PRESETS[name], PRESETS[f"clip_vit_{size}"]
    differing = {f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(clip, f.name)}
    assert (
        differing
        == {
            "": {"vision_attention", "text_attention"},
            "dynamic": {"vision_attention", "text_attention", "lambda_schedule"},
            "vision": {"vision_attention"},
            "text": {"text_attention"},
        }[variant]
    )


def test_lambda_schedules():
    assert [ModelConfig(lambda_init=0.3).lambda_init_at(layer) for layer in (0, 11)] == [0.3, 0.3]
    depth = ModelConfig(lambda_schedule="depth")
    assert depth.lambda_init_at(0) == pytest.approx(0.2)
    assert depth.lambda_init_at(11) == pytest.approx(0.8 - 0.6 * math.exp(-3.3))
    own = {"lambda_depth_limit": 0.9, "lambda_depth_drop": 0.4, "lambda_depth_rate": 1.0}
    changed = ModelConfig(lambda_schedule="depth", **own)
    assert [changed.lambda_init_at(layer) for layer in (0, 2)] == pytest.approx([0.5, 0.9 - 0.4 * math.exp(-2)])
    assert ModelConfig(lambda_init=0.3, **own).lambda_init_at(0) == 0.3  # the coefficients belong to the schedule


def test_the_published_pairing_of_layer_norm_eps():
    assert model_config("clip_vit_b16").resolved_vision_norm_eps == 1e-6
    assert model_config("diffclip_vit_b16").resolved_vision_norm_eps == 1e-6
    assert model_config("diffclip_vit_b16", init="released").resolved_vision_norm_eps == 1e-5
    assert model_config("clip_vit_b16", init="released").resolved_vision_norm_eps == 1e-6
    assert model_config("diffclip_vit_b16_text", init="released").resolved_vision_norm_eps == 1e-6
    # Each by itself: the published initialisation with the baseline's eps, and the reverse.
    assert model_config("diffclip_vit_b16", init="released", vision_norm_eps=1e-6).resolved_vision_norm_eps == 1e-6
    assert model_config("diffclip_vit_b16", init="matched", vision_norm_eps=1e-5).resolved_vision_norm_eps == 1e-5


@pytest.mark.parametrize("name", PRESETS)
def test_survives_json(name):
    config = PRESETS[name]
    assert ModelConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("diffclip_vit_b17", {}, r"no model 'diffclip_vit_b17'; did you mean diffclip_vit_b16"),
        ("resnet", {}, r"no model 'resnet'; diffclip.list_models\(\)"),
        ("clip_vit_b16", {"lambda_int": 0.5}, "no model setting 'lambda_int'; did you mean lambda_init"),
        ("diffclip_vit_b16", {"vision_heads": 3}, "vision: .* even, not 3"),
        ("diffclip_vit_b16", {"text_heads": 1}, "text: .* even, not 1"),
        (
            "clip_vit_b16",
            {"vision_heads": 7},
            r"vision: width 768 is not a multiple of its 7 heads \(remainder 5\)",
        ),
        ("clip_vit_b16", {"image_size": 230}, r"image_size = 230 .* patch_size = 16 \(remainder 6\)"),
        ("clip_vit_b16", {"text_depth": 0}, "text_depth: .* greater than or equal to 1, found 0"),
        ("clip_vit_b16", {"embed_dim": 512.0}, "embed_dim: .* valid integer, found 512.0"),
        ("diffclip_vit_b16", {"lambda_init": 1.0}, "lambda_init = 1.0"),
        ("diffclip_vit_b16", {"lambda_init": float("nan")}, "lambda_init: .* finite number, found nan"),
        ("diffclip_vit_b16_dynamic", {"lambda_depth_drop": 0.9}, "λ_init = -0.1 in layer 0"),
        ("diffclip_vit_b16_dynamic", {"lambda_depth_limit": 1.1}, r"λ_init = 1.0\d* in layer 6"),
        (
            "diffclip_vit_b16_dynamic",
            {"lambda_depth_rate": float("nan")},
            "lambda_depth_rate: .* finite",
        ),
        (
            "diffclip_vit_b16_dynamic",
            {"lambda_depth_limit": float("nan")},
            "lambda_depth_limit: .* finite",
        ),
        ("clip_vit_b16", {"patch_dropout": 1.0}, "patch_dropout = 1.0"),
        ("clip_vit_b16", {"vision_norm_eps": 0.0}, "vision_norm_eps: .* greater than 0, found 0.0"),
        ("clip_vit_b16", {"image_mean": (0.5,)}, "image_mean"),
        (
            "clip_vit_b16",
            {"text_attention": "linear"},
            "text_attention: input should be 'standard', 'differential', .* found 'linear'",
        ),
    ],
)
def test_refuses_with_the_numbers_in_one_line(name, overrides, message):
    with pytest.raises(diffclip.UserError, match=message) as caught:
        model_config(name, **overrides)
    assert "\n" not in str(caught.value)


def test_is_imported_without_torch():
    code = "import sys, diffclip.models.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
