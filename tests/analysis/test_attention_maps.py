import numpy as np
import pytest
import torch

import diffclip.analysis
from diffclip.analysis import image_attention, relevance, text_attention
from diffclip.models.maps import forward_with_maps
from small_models import EQUATIONS, small_model


def tiny(kind, **changes):
    model = small_model({"standard": "clip", "differential": "diffclip"}[kind], size=EQUATIONS, **changes).double()
    with torch.no_grad():
        for parameter in model.parameters():  # far from initialisation: maps that are not flat, gradients of both signs
            parameter += 0.5 * torch.randn_like(parameter)
    return model


def pair(batch=1, size=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64)
    tokens = torch.randint(1, 19, (batch, 6), generator=generator)
    tokens[:, 0], tokens[:, 4:] = 18, 19
    return pixels, tokens


def softmax(rows):
    weights = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def layer_norm(x, norm):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + norm.eps)
    return x * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def linear(x, layer):
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def attention(x, layer, nudge):
    """One attention layer on (N, C), head by head, in NumPy; `nudge` is added to the maps. Returns (output,
    maps)."""
    q, k, v = np.split(linear(x, layer.qkv), 3, axis=-1)
    width = layer.head_dim
    parts = range(layer.num_heads)
    maps = [softmax(q[:, h * width :][:, :width] @ k[:, h * width :][:, :width].T / width**0.5) for h in parts]
    if hasattr(layer, "lambda_q1"):
        q1, k1, q2, k2 = (getattr(layer, f"lambda_{n}").detach().numpy() for n in ("q1", "k1", "q2", "k2"))
        lam = np.exp(q1 @ k1) - np.exp(q2 @ k2) + layer.lambda_init
        maps = [first - lam * second for first, second in zip(maps[::2], maps[1::2], strict=True)]
        width *= 2
    maps = [weights + nudge[h] for h, weights in enumerate(maps)]
    heads = [weights @ v[:, h * width :][:, :width] for h, weights in enumerate(maps)]
    if hasattr(layer, "lambda_q1"):
        heads = [head / np.sqrt((head**2).mean(-1, keepdims=True) + 1e-5) for head in heads]
        heads = [head * layer.norm.weight.detach().numpy() * (1 - layer.lambda_init) for head in heads]
    return linear(np.concatenate(heads, axis=-1), layer.proj), maps


def score(model, pixels, text, nudges):
    """Cosine of one pair, with the image tower written out in NumPy. Returns (cosine, maps of each layer)."""
    tower = model.visual
    x = tower.patch_embed(pixels)[0].detach().numpy()
    first = [token[0].detach().numpy() for token in (tower.cls_token, tower.reg_token) if token is not None]
    x = np.concatenate([*first, x]) + tower.pos_embed[0].detach().numpy()
    maps = []
    for block, nudge in zip(tower.blocks, nudges, strict=True):
        update, found = attention(layer_norm(x, block.norm1), block.attn, nudge)
        maps.append(found)
        x = x + update
        hidden = torch.nn.functional.gelu(torch.from_numpy(linear(layer_norm(x, block.norm2), block.mlp.fc1))).numpy()
        x = x + linear(hidden, block.mlp.fc2)
    image = layer_norm(x, tower.norm)[0] @ model.image_projection.detach().numpy()
    return image @ text / np.linalg.norm(image) / np.linalg.norm(text), maps


def reference(model, pixels, tokens, step=1e-6):
    """Relevance of one pair from finite differences of the score with respect to every entry of every map."""
    text = model.encode_text(tokens).detach().numpy()[0]
    layers = len(model.visual.blocks)
    heads = len(score(model, pixels, text, [np.zeros(99)] * layers)[1][0])
    size = model.visual.pos_embed.shape[1]
    nothing = np.zeros((layers, heads, size, size))
    maps = score(model, pixels, text, nothing)[1]
    total = np.eye(size)
    for layer in range(layers):
        mean = np.zeros((size, size))
        for head in range(heads):
            for i in range(size):
                for j in range(size):
                    nudge = nothing.copy()
                    nudge[layer, head, i, j] = step
                    up = score(model, pixels, text, nudge)[0]
                    down = score(model, pixels, text, -nudge)[0]
                    product = (up - down) / (2 * step) * maps[layer][head][i, j]
                    mean[i, j] += max(product, 0.0) / heads
        total = total + mean @ total
    return total[0, -4:].reshape(2, 2), np.array(maps)


def with_registers(model, count=2):
    """The model with register tokens, as timm keeps them, between the class token and the patches."""
    tower = model.visual
    tower.reg_token = torch.nn.Parameter(torch.randn(1, count, 8, dtype=torch.float64))
    tower.num_reg_tokens, tower.num_prefix_tokens = count, 1 + count
    places = torch.randn(1, count, 8, dtype=torch.float64)
    tower.pos_embed = torch.nn.Parameter(torch.cat([places, tower.pos_embed.detach()], 1))
    return model


@pytest.mark.parametrize("tower", ["patches", "convolutions", "registers"])
@pytest.mark.parametrize("kind", ["standard", "differential"])
def test_equals_finite_differences_through_a_written_out_tower(kind, tower):
    model = tiny(kind, vision_stem="convolutions" if tower == "convolutions" else "patches")
    if tower == "registers":
        model = with_registers(model)
    pixels, tokens = pair()
    expected, maps = reference(model, pixels, tokens)
    assert expected.min() > 0
    assert (maps.min() < 0) == (kind == "differential")  # signed maps are really met
    found = relevance(model, pixels, tokens)
    assert found.shape == (1, 2, 2)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-5, atol=1e-9)


def test_what_the_weights_of_a_differential_row_add_cancels_out():
    # Its RMSNorm takes away the size of a head, so growing all weights of a row together changes nothing.
    for kind, cancels in (("differential", True), ("standard", False)):
        model = tiny(kind)
        pixels, tokens = pair(batch=2)
        features, maps = forward_with_maps(model.visual, pixels)
        score = torch.cosine_similarity(features @ model.image_projection, model.encode_text(tokens)).sum()
        for layer, gradient in zip(maps, torch.autograd.grad(score, [m.combined for m in maps]), strict=True):
            terms = gradient * layer.combined
            share = terms.sum(-1).abs().sum() / terms.abs().sum()
            assert (share < 1e-2) == cancels, (kind, share)


@pytest.mark.parametrize("kind", ["standard", "differential"])
def test_pairs_of_a_batch_do_not_mix_and_the_text_matters(kind):
    model = tiny(kind)
    pixels, tokens = pair(batch=3)
    together = relevance(model, pixels, tokens)
    assert (together >= 0).all()
    for i in range(3):
        torch.testing.assert_close(together[i], relevance(model, pixels[i : i + 1], tokens[i : i + 1])[0])
    assert not torch.allclose(together, relevance(model, pixels, tokens.roll(1, 0)))


def test_leaves_the_model_as_it_was():
    model = tiny("differential", patch_dropout=0.5).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pixels, tokens = pair(batch=2)
    with torch.no_grad():
        first = relevance(model, pixels, tokens)
    assert model.training
    assert model.visual.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not first.requires_grad
    assert not pixels.requires_grad
    model.requires_grad_(False).eval()
    torch.testing.assert_close(relevance(model, pixels, tokens), first)  # no dropout, and frozen weights do not matter


def test_rows_and_columns_are_where_the_patches_are():
    model = tiny("standard", image_size=16)
    pixels, tokens = pair(size=16)
    found = relevance(model, pixels, tokens)[0]
    assert found.shape == (4, 4)
    # A patch's relevance goes where the patch goes when the grid is transposed, positions and all.
    tower = model.visual
    with torch.no_grad():
        grid = tower.pos_embed[:, 1:].unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
        tower.pos_embed[:, 1:] = grid
        tower.patch_embed.proj.weight.copy_(tower.patch_embed.proj.weight.mT.clone())
    torch.testing.assert_close(relevance(model, pixels.mT, tokens)[0], found.T)


@pytest.mark.parametrize("kind", ["standard", "differential"])
def test_maps_of_the_image_tower_equal_those_written_out(kind):
    model = with_registers(tiny(kind)).train()
    pixels, _ = pair(batch=2)
    layers = image_attention(model, pixels)
    assert model.training
    assert len(layers) == 3
    nothing = np.zeros((3, 4, 7, 7))
    for row in range(2):
        expected = score(model.eval(), pixels[row : row + 1], np.ones(6), nothing)[1]
        for layer, maps in zip(layers, expected, strict=True):
            np.testing.assert_allclose(layer.combined[row].numpy(), maps, atol=1e-12)
            rows = model.on_patches(layer.combined)
            assert rows.shape == (2, len(maps), 2, 2)
            np.testing.assert_allclose(rows[row].numpy(), np.array(maps)[:, 0, 3:].reshape(-1, 2, 2), atol=1e-12)
    layer = layers[1]
    assert not layer.a1.requires_grad
    torch.testing.assert_close(layer.a1.sum(-1), torch.ones_like(layer.a1[..., 0]))
    if kind == "differential":
        assert isinstance(layer.lam, float)
        torch.testing.assert_close(layer.combined, layer.a1 - layer.lam * layer.a2)
    else:
        assert layer.a2 is None
        assert layer.lam is None
        assert torch.equal(layer.a1, layer.combined)


def test_maps_of_the_text_tower_are_causal_and_end_with_the_longest_text():
    model = tiny("differential")
    _, tokens = pair(batch=2)
    layers = text_attention(model, tokens)
    assert len(layers) == 1
    assert layers[0].a1.shape == (2, 1, 5, 5)  # the texts end at their fifth of six tokens
    assert (layers[0].combined.triu(1) == 0).all()
    torch.testing.assert_close(layers[0].a2.sum(-1), torch.ones(2, 1, 5, dtype=torch.float64))


def test_public_names():
    assert diffclip.analysis.relevance is relevance
    assert diffclip.analysis.image_attention is image_attention
    assert diffclip.analysis.text_attention is text_attention
