import pytest
import torch

import diffclip

SIZES = {"vision_width": 192, "vision_depth": 3, "vision_heads": 4, "text_width": 128, "text_depth": 3, "text_heads": 4}
SIZES |= {"image_size": 112, "embed_dim": 64, "vocab_size": 1000}


def build(name, seed=0, **overrides):
    torch.manual_seed(seed)
    return diffclip.create_model(name, **SIZES, **overrides)


def test_clip_and_diffclip_start_from_the_same_place():
    clip, both, vision = (
        dict(build(f"{n}").named_parameters()) for n in ("clip_vit_b16", "diffclip_vit_b16", "diffclip_vit_b16_vision")
    )
    assert set(clip) < set(vision) < set(both)
    for larger in (vision, both):
        for name, parameter in clip.items():
            assert torch.equal(larger[name], parameter), name
    for name in set(vision) - set(clip):
        assert torch.equal(both[name], vision[name]), name
    only = {name.rpartition(".")[2] for name in set(both) - set(clip)}
    assert only == {"lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2", "weight"}


def test_the_global_generator_advances_alike():
    following = []
    for name in ("clip_vit_b16", "diffclip_vit_b16"):
        build(name)
        following.append(torch.rand(4))
    assert torch.equal(*following)


def test_seeds_and_parameters_differ():
    first, second, other = build("diffclip_vit_b16"), build("diffclip_vit_b16"), build("diffclip_vit_b16", seed=1)
    drawn = {}
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        if a.numel() > 1 and a.std() > 0:
            assert not torch.equal(a, c), name
            values = tuple(a.flatten()[:8].tolist())
            assert values not in drawn, (name, drawn.get(values))
            drawn[values] = name


VISION_LINEAR = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def spread(model, name):
    return model.get_parameter(name).std().item()


@pytest.mark.parametrize("name", ["clip_vit_b16", "diffclip_vit_b16"])
def test_matched_vision_is_timms(name):
    model = build(name)
    for layer in VISION_LINEAR:
        assert spread(model, f"visual.blocks.1.{layer}.weight") == pytest.approx(0.02, rel=0.03)
        assert (model.get_parameter(f"visual.blocks.1.{layer}.bias") == 0).all()
    assert spread(model, "visual.pos_embed") == pytest.approx(0.02, rel=0.05)
    assert spread(model, "visual.cls_token") == pytest.approx(1e-6, rel=0.2)
    bound = (3 * 16 * 16) ** -0.5
    for kind in ("weight", "bias"):
        values = model.get_parameter(f"visual.patch_embed.proj.{kind}")
        assert bound * 0.95 < values.abs().max() <= bound
        assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    for parameter, value in (("weight", 1), ("bias", 0)):
        assert (model.get_parameter(f"visual.blocks.0.norm1.{parameter}") == value).all()


@pytest.mark.parametrize("name", ["clip_vit_b16", "diffclip_vit_b16"])
@pytest.mark.parametrize("init", ["matched", "released"])
def test_text_is_slips(name, init):
    model = build(name, init=init)
    width, depth = 128, 3
    expected = {
        "token_embedding.weight": 0.02,
        "positional_embedding": 0.01,
        "blocks.2.attn.qkv.weight": width**-0.5,
        "blocks.2.attn.proj.weight": width**-0.5 * (2 * depth) ** -0.5,
        "blocks.2.mlp.fc1.weight": (2 * width) ** -0.5,
        "blocks.2.mlp.fc2.weight": width**-0.5 * (2 * depth) ** -0.5,
        "blocks.2.mlp.fc1.bias": width**-0.5 / 3**0.5,
        "blocks.2.mlp.fc2.bias": (4 * width) ** -0.5 / 3**0.5,
        "blocks.2.attn.qkv.bias": 0,
        "blocks.2.attn.proj.bias": 0,
    }
    for parameter, std in expected.items():
        assert spread(model, f"text.{parameter}") == pytest.approx(std, rel=0.1), parameter
    assert spread(model, "text_projection") == pytest.approx(width**-0.5, rel=0.05)
    assert spread(model, "image_projection") == pytest.approx(192**-0.5, rel=0.05)


def test_released_leaves_differential_vision_blocks_with_pytorchs_default():
    matched, released = (build("diffclip_vit_b16", init=init) for init in ("matched", "released"))
    reference = torch.nn.Linear(192, 768)
    for layer, fan_in in (("attn.qkv", 192), ("attn.proj", 192), ("mlp.fc1", 192), ("mlp.fc2", 768)):
        for kind in ("weight", "bias"):
            values = released.get_parameter(f"visual.blocks.1.{layer}.{kind}")
            assert fan_in**-0.5 * 0.95 < values.abs().max() <= fan_in**-0.5, (layer, kind)
    assert spread(released, "visual.blocks.1.mlp.fc1.weight") == pytest.approx(reference.weight.std().item(), rel=0.02)
    for name in ("visual.pos_embed", "visual.patch_embed.proj.weight", "text.blocks.0.mlp.fc1.weight"):
        assert torch.equal(matched.get_parameter(name), released.get_parameter(name))
    # The published baseline is timm's in both.
    clips = [build("clip_vit_b16", init=init).state_dict() for init in ("matched", "released")]
    assert all(torch.equal(clips[0][name], clips[1][name]) for name in clips[0])


def test_lambda_vectors_and_norms():
    model = build("diffclip_vit_b16")
    vectors = [p for name, p in model.named_parameters() if ".lambda_" in name]
    assert torch.cat(vectors).std().item() == pytest.approx(0.1, rel=0.1)
    assert all(v.dtype == torch.float32 for v in vectors)
    assert all((p == 1).all() for name, p in model.named_parameters() if name.endswith("attn.norm.weight"))
