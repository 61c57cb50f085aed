"""Operations by part, against what torch counts when real models run."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffclip.models.attention import layer as attention
from diffclip.models.clip import create_model
from diffclip.models.presets import model_config
from diffclip.plan import flops
from diffclip.training.loss import contrastive_loss

BATCH = 4
MODELS = {
    "both standard": ("clip_vit_quickstart", {"vision_stem": "patches", "vision_depth": 2}),
    "both differential": ("diffclip_vit_quickstart", {"vision_depth": 2}),
    "text alone differential": ("diffclip_vit_t16_text", {"vision_depth": 2, "text_depth": 3, "image_size": 64}),
    "patches dropped": ("diffclip_vit_quickstart", {"vision_depth": 2, "patch_dropout": 0.5}),
    "other widths": ("diffclip_vit_quickstart", {"mlp_ratio": 2.5, "embed_dim": 32, "vision_heads": 2}),
}


@pytest.fixture(autouse=True)
def plain_products(monkeypatch):
    """The counter sees PyTorch's operators, not what a compiled kernel does."""
    operation = attention.differential_attention
    monkeypatch.setattr(attention, "fastest", lambda *_: "eager")
    monkeypatch.setattr(attention, "differential_attention", lambda *a, **k: operation(*a, **k, backend="eager"))


class NoModules:
    """Which module is running: its hooks do not stand the gradient that Mlp asks for inside of a backward pass."""

    parents = ("Global",)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def counter_of(model, length, backward):
    config = model.config
    pixels = torch.randn(BATCH, 3, config.image_size, config.image_size)
    tokens = torch.ones(BATCH, length, dtype=torch.long)
    tokens[:, -1] = config.vocab_size - 1
    counter = FlopCounterMode(display=False)
    if backward:
        counter.mod_tracker = NoModules()
    with counter:
        output = model(image=pixels, text=tokens)
        if backward:
            contrastive_loss(output["image_features"], output["text_features"], output["logit_scale"]).backward()
    return counter


@pytest.mark.parametrize("length", [77, 5])
@pytest.mark.parametrize("name", MODELS)
def test_training_is_what_torch_counts(name, length):
    preset, overrides = MODELS[name]
    model = create_model(preset, **overrides).train()
    parts = flops.training(model.config, BATCH, text_tokens=length)
    assert counter_of(model, length, backward=True).get_total_flops() == BATCH * sum(parts.values())


@pytest.mark.parametrize("name", MODELS)
def test_each_part_is_what_torch_counts(name):
    preset, overrides = MODELS[name]
    model = create_model(preset, **overrides).train()
    parts = {part: BATCH * count for part, count in flops.forward(model.config, text_tokens=9).items()}
    counter = counter_of(model, 9, backward=False)
    found = {module: sum(counts.values()) for module, counts in counter.get_flop_counts().items()}
    for tower, module in (("image", "visual"), ("text", "text")):
        blocks = range(len(getattr(model, module).blocks))
        in_attention = sum(found[f"CLIP.{module}.blocks.{i}.attn"] for i in blocks)
        assert in_attention == sum(count for part, count in parts.items() if part.startswith(f"{tower}: attention"))
        assert sum(found[f"CLIP.{module}.blocks.{i}.mlp"] for i in blocks) == parts[f"{tower}: MLP"]
    assert found["CLIP.visual.patch_embed"] == parts["image: patches"]


def test_without_gradients_no_patch_is_dropped():
    config = model_config("clip_vit_b16", patch_dropout=0.75)
    assert flops.vision_tokens(config) == 1 + 49
    assert flops.forward(config, training=False) == flops.forward(model_config("clip_vit_b16"))


def test_differential_attention_has_the_operations_of_standard_attention():
    for size in ("s16", "b16", "h14"):
        kinds = (flops.training(model_config(f"{kind}_vit_{size}"), 4096) for kind in ("clip", "diffclip"))
        assert next(kinds) == next(kinds)


def test_the_vision_tower_of_vit_b16_has_the_operations_that_are_published():
    """17.58 billion multiply-adds: timm's table of models."""
    parts = flops.forward(model_config("clip_vit_b16"))
    tower = sum(count for part, count in parts.items() if part.startswith("image")) / 2
    assert tower == pytest.approx(17.58e9, rel=0.005)
