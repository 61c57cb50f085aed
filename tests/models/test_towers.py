import pytest
import torch
from torch import nn

import diffclip
from diffclip import create_model
from diffclip.errors import UserError
from diffclip.models import towers
from diffclip.models.attention.layer import DifferentialAttention, StandardAttention
from diffclip.models.towers import TextTower, VisionTower
from small_models import TOWERS

SMALL = TOWERS | {"text_depth": 3}
KINDS = ("clip_vit_b16", "diffclip_vit_b16")
END = 49407


def small(name, **overrides):
    return diffclip.create_model(name, **SMALL, **overrides).eval()


def texts(lengths, total=77):
    """Rows of random tokens that end at the given lengths; what follows the end is zero."""
    tokens = torch.zeros(len(lengths), total, dtype=torch.long)
    for row, length in zip(tokens, lengths, strict=True):
        row[: length - 1] = torch.randint(1, END - 1, (length - 1,))
        row[length - 1] = END
    return tokens


@pytest.mark.parametrize("name", KINDS)
def test_texts_are_the_same_at_77_and_at_the_longest_caption(name):
    torch.manual_seed(0)
    tower, tokens = small(name).text, texts([3, 9, 1, 14])
    lengths = []
    hook = tower.blocks[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    cut = tower(tokens)
    full = tower.token_features(tokens)[torch.arange(4), torch.tensor([2, 8, 0, 13])]
    hook.remove()
    assert lengths == [14, 77]
    torch.testing.assert_close(cut, full, rtol=0, atol=1e-6 * full.abs().max().item())
    alone = torch.cat([tower(row[None]) for row in tokens])
    torch.testing.assert_close(cut, alone, rtol=0, atol=2e-6 * full.abs().max().item())


@pytest.mark.parametrize("name", KINDS)
def test_what_follows_the_end_of_a_text_does_not_matter(name):
    torch.manual_seed(0)
    tower, tokens = small(name).text, texts([4, 9])
    changed = tokens.clone()
    changed[0, 4:9] = torch.tensor([5, END, 7, END, 2])  # the first end counts
    torch.testing.assert_close(tower(changed)[0], tower(tokens)[0])
    changed[0, 2] += 1
    assert (tower(changed)[0] - tower(tokens)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_texts_are_computed_at_few_lengths_on_a_gpu(name, monkeypatch):
    """Of the CPU the number of tokens is that of the longest text; longer ones have the same features."""
    lengths = [towers.computed_length(longest, 77, "cuda") for longest in (0, 1, 16, 17, 64, 65, 77)]
    assert lengths == [0, 16, 16, 32, 64, 77, 77]
    assert towers.computed_length(17, 77, "cpu") == 17
    torch.manual_seed(0)
    tower, tokens = small(name).text, texts([4, 9])[:, :10]
    expected = tower(tokens)
    seen = []
    computed, features = towers.computed_length, tower.token_features
    monkeypatch.setattr(towers, "computed_length", lambda longest, most, _: computed(longest, most, "cuda"))
    monkeypatch.setattr(tower, "token_features", lambda x: seen.append(x.shape[1]) or features(x))
    torch.testing.assert_close(tower(tokens), expected)
    assert seen == [16]


def test_the_end_is_the_last_id_of_the_vocabulary():
    model = small("clip_vit_b16", vocab_size=100)
    tokens = torch.tensor([[1, 99, 0], [99, 5, 99]])
    assert model.text.find_ends(tokens).tolist() == [1, 0]


def test_a_text_without_end_is_refused_by_its_row():
    tokens = texts([3, 5, 2])
    tokens[1, 4] = 7
    with pytest.raises(ValueError, match=r"row 1 .*end-of-text token \(49407\)"):
        small("clip_vit_b16").encode_text(tokens)


def test_texts_of_a_wrong_shape_are_refused():
    model = small("clip_vit_b16")
    with pytest.raises(diffclip.UserError, match=r"not \(5,\)"):
        model.encode_text(torch.full((5,), END))
    with pytest.raises(diffclip.UserError, match=r"\(1, 78\): this model reads at most 77"):
        model.encode_text(texts([78], total=78))


def test_a_standard_text_tower_equals_torchs_transformer():
    """torch.nn.TransformerEncoder, pre-norm and causal, with our weights."""
    torch.manual_seed(0)
    tower = small("clip_vit_b16", text_activation="gelu").text
    layer = nn.TransformerEncoderLayer(32, 4, 128, 0.0, nn.functional.gelu, 1e-5, batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoder(layer, 3, nn.LayerNorm(32), enable_nested_tensor=False).eval()
    names = {"self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj": "attn.proj", "linear1": "mlp.fc1"}
    names |= {"linear2": "mlp.fc2", "layers.": "blocks."}
    weights = {}
    for name in theirs.state_dict():
        ours = name
        for old, new in names.items():
            ours = ours.replace(old, new)
        weights[name] = tower.state_dict()[ours]
    theirs.load_state_dict(weights)
    tokens = texts([6, 9], total=9)
    x = tower.token_embedding(tokens) + tower.positional_embedding[:9]
    expected = theirs(x, nn.Transformer.generate_square_subsequent_mask(9), is_causal=True)
    torch.testing.assert_close(tower.token_features(tokens), expected)


def test_the_image_feature_is_the_normalised_class_token():
    tower = small("diffclip_vit_b16").visual
    pixels = torch.randn(2, 3, 32, 32)
    tokens = tower.forward_features(pixels)
    assert tokens.shape == (2, 5, 32)
    torch.testing.assert_close(tower(pixels), tokens[:, 0])
    assert tokens.mean(-1).abs().max() < 1e-5  # after the final LayerNorm, whose weight is still 1


@pytest.mark.parametrize("schedule", ["constant", "depth"])
def test_lambda_init_by_layer(schedule):
    model = small("diffclip_vit_b16", lambda_schedule=schedule, lambda_init=0.4)
    for tower in (model.visual, model.text):
        for index, block in enumerate(tower.blocks):
            assert block.attn.lambda_init == model.config.lambda_init_at(index)


def test_configuration_reaches_the_layers():
    model = small("diffclip_vit_b16_vision", vision_pre_norm=True, vision_norm_eps=1e-4, text_norm_eps=1e-3)
    assert isinstance(model.visual, VisionTower)
    assert isinstance(model.text, TextTower)
    assert {type(block.attn) for block in model.visual.blocks} == {DifferentialAttention}
    assert {type(block.attn) for block in model.text.blocks} == {StandardAttention}
    assert {m.eps for m in model.visual.modules() if isinstance(m, nn.LayerNorm)} == {1e-4}
    assert {m.eps for m in model.text.modules() if isinstance(m, nn.LayerNorm)} == {1e-3}
    assert isinstance(model.visual.norm_pre, nn.LayerNorm)
    assert model.visual.patch_embed.proj.bias is None
    activations = [type(block.mlp.act).__name__ for tower in (model.visual, model.text) for block in tower.blocks[:1]]
    assert activations == ["GELU", "QuickGELU"]


def test_patch_dropout_leaves_patches_out_in_training_only():
    model = small("diffclip_vit_b16", patch_dropout=0.5)
    seen = []
    model.visual.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    pixels = torch.randn(1, 3, 32, 32)
    model.train().encode_image(pixels)
    model.eval().encode_image(pixels)
    assert seen == [1 + 2, 1 + 4]


def test_a_stem_of_convolutions_gives_the_same_tokens_and_learns_from_all_its_weights():
    small = {"image_size": 32, "patch_size": 8, "vision_width": 32, "vision_heads": 2, "vision_depth": 1}
    model = create_model("diffclip_vit_b16", vision_stem="convolutions", **small)
    stem = model.visual.patch_embed
    assert (stem.num_patches, stem.grid_size) == (16, (4, 4))
    assert stem(torch.randn(2, 3, 32, 32)).shape == (2, 16, 32)
    model.encode_image(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in stem.parameters())
    with pytest.raises(UserError, match="patch_size = 12: a stem of convolutions needs a power of two"):
        create_model("diffclip_vit_b16", vision_stem="convolutions", image_size=48, patch_size=12)
