import numpy as np
import pytest
import torch

import diffclip.analysis
from diffclip.analysis import relevance
from diffclip.models.clip import create_model

TINY = {
    "embed_dim": 6, "image_size": 8, "patch_size": 4, "vision_width": 8, "vision_depth": 3, "vision_heads": 4,
    "text_width": 8, "text_depth": 1, "text_heads": 2, "context_length": 6, "vocab_size": 20,
}  # fmt: skip


def tiny(kind, **changes):
    torch.manual_seed(0)
    model = create_model(
        {"standard": "clip_vit_t16", "differential": "diffclip_vit_t16"}[kind], **(TINY | changes)
    ).double()
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
    x = np.concatenate([tower.cls_token[0].detach().numpy(), x]) + tower.pos_embed[0].detach().numpy()
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
    size = 5
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
    return total[0, 1:].reshape(2, 2), np.array(maps)


@pytest.mark.parametrize("kind", ["standard", "differential"])
def test_equals_finite_differences_through_a_written_out_tower(kind):
    model = tiny(kind)
    pixels, tokens = pair()
    expected, maps = reference(model, pixels, tokens)
    assert expected.min() > 0
    assert (maps.min() < 0) == (kind == "differential")  # signed maps are really met
    found = relevance(model, pixels, tokens)
    assert found.shape == (1, 2, 2)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-5, atol=1e-9)


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


def test_public_name():
    assert diffclip.analysis.relevance is relevance
