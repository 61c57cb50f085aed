"""The forward passes of the released models, written from their published description, under their own names.

Plain functions of a state dict: separate query, key and value projections, heads in loops, no code of diffclip.
"""

import math

import torch
import torch.nn.functional as F


def released_state_dict(
    kind, *, width, depth, heads, text_width, text_depth, text_heads, embed_dim, grid=3, patch=4, device="cpu"
):
    """Random weights under the names of a released checkpoint. kind: diffclip, diffclip_vision, slip."""
    draw = torch.Generator(device).manual_seed(0) if device != "meta" else None
    tensors = {}

    def add(name, *shape, scale=0.1, mean=0.0):
        tensors[name] = mean + scale * torch.randn(*shape, generator=draw, device=device)

    def add_linear(name, out, inputs):
        add(f"{name}.weight", out, inputs, scale=1.5 * inputs**-0.5)
        add(f"{name}.bias", out)

    def add_norm(name, size):
        add(f"{name}.weight", size, mean=1.0)
        add(f"{name}.bias", size)

    def add_differential(name, size, count):
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            add_linear(f"{name}.{part}", size, size)
        for vector in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
            add(f"{name}.{vector}", size // count)
        add(f"{name}.diff_norm.weight", 2 * size // count, mean=1.0)

    add("visual.cls_token", 1, 1, width)
    add("visual.pos_embed", 1, grid * grid + 1, width)
    add("visual.patch_embed.proj.weight", width, 3, patch, patch)
    add("visual.patch_embed.proj.bias", width)
    add("positional_embedding", 77, text_width)
    add("token_embedding.weight", 49408, text_width)
    for tower, size, count, layers in (
        ("visual.blocks", width, heads, depth),
        ("transformer.resblocks", text_width, text_heads, text_depth),
    ):
        vision = tower == "visual.blocks"
        for i in range(layers):
            block = f"{tower}.{i}"
            add_norm(f"{block}.{'norm1' if vision else 'ln_1'}", size)
            add_norm(f"{block}.{'norm2' if vision else 'ln_2'}", size)
            add_linear(f"{block}.mlp.{'fc1' if vision else 'c_fc'}", 4 * size, size)
            add_linear(f"{block}.mlp.{'fc2' if vision else 'c_proj'}", size, 4 * size)
            if kind == "diffclip" or (kind == "diffclip_vision" and vision):
                add_differential(f"{block}.attn", size, count)
            elif vision:
                add_linear(f"{block}.attn.qkv", 3 * size, size)
                add_linear(f"{block}.attn.proj", size, size)
            else:
                add(f"{block}.attn.in_proj_weight", 3 * size, size, scale=1.5 * size**-0.5)
                add(f"{block}.attn.in_proj_bias", 3 * size)
                add_linear(f"{block}.attn.out_proj", size, size)
    add_norm("visual.norm", width)
    add_norm("ln_final", text_width)
    add("image_projection", width, embed_dim)
    add("text_projection", text_width, embed_dim)
    tensors["logit_scale"] = torch.tensor(math.log(1 / 0.07))
    return tensors


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(x, weights, name, eps):
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).pow(2).mean(-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def softmax_map(q, k, scale, is_causal):
    logits = q @ k.transpose(-2, -1) * scale  # (B, N, N)
    if is_causal:
        length = logits.shape[-1]
        logits = logits + torch.full((length, length), -math.inf, dtype=logits.dtype).triu(1)
    return logits.softmax(-1)


def differential_attention(x, weights, name, heads, is_causal, lambda_init):
    batch, length, dim = x.shape
    q, k, v = (linear(x, weights, f"{name}.{part}_proj") for part in "qkv")
    width = dim // heads
    q, k = q.view(batch, length, heads, width), k.view(batch, length, heads, width)
    v = v.view(batch, length, heads // 2, 2 * width)
    w = {part: weights[f"{name}.lambda_{part}"] for part in ("q1", "k1", "q2", "k2")}
    lam = (w["q1"] * w["k1"]).sum().exp() - (w["q2"] * w["k2"]).sum().exp() + lambda_init
    out = []
    for head in range(heads // 2):
        first = softmax_map(q[:, :, 2 * head], k[:, :, 2 * head], width**-0.5, is_causal)
        second = softmax_map(q[:, :, 2 * head + 1], k[:, :, 2 * head + 1], width**-0.5, is_causal)
        o = (first - lam * second) @ v[:, :, head]  # (B, N, 2·width)
        o = o * torch.rsqrt(o.pow(2).mean(-1, keepdim=True) + 1e-5) * weights[f"{name}.diff_norm.weight"]
        out.append(o * (1 - lambda_init))
    return linear(torch.cat(out, -1), weights, f"{name}.out_proj")


def standard_attention(x, q, k, v, heads, is_causal):
    width = x.shape[-1] // heads
    out = []
    for head in range(heads):
        c = slice(head * width, (head + 1) * width)
        out.append(softmax_map(q[..., c], k[..., c], width**-0.5, is_causal) @ v[..., c])
    return torch.cat(out, -1)


def attention(x, weights, name, heads, is_causal, lambda_init):
    if f"{name}.lambda_q1" in weights:
        return differential_attention(x, weights, name, heads, is_causal, lambda_init)
    if f"{name}.qkv.weight" in weights:
        q, k, v = linear(x, weights, f"{name}.qkv").chunk(3, -1)
        return linear(standard_attention(x, q, k, v, heads, is_causal), weights, f"{name}.proj")
    q, k, v = (x @ weights[f"{name}.in_proj_weight"].T + weights[f"{name}.in_proj_bias"]).chunk(3, -1)
    return linear(standard_attention(x, q, k, v, heads, is_causal), weights, f"{name}.out_proj")


def normalised(x):
    return x / x.norm(dim=-1, keepdim=True)


def encode_image(weights, pixels, heads, *, eps, lambda_init=lambda layer: 0.8):
    """Normalised image embeddings (B, embed_dim) of normalised pixels (B, 3, S, S)."""
    kernel = weights["visual.patch_embed.proj.weight"]
    patches = F.unfold(pixels, kernel.shape[-1], stride=kernel.shape[-1]).transpose(1, 2)  # (B, patches, 3·P·P)
    x = patches @ kernel.flatten(1).T + weights["visual.patch_embed.proj.bias"]
    x = torch.cat([weights["visual.cls_token"].expand(len(x), -1, -1), x], 1) + weights["visual.pos_embed"]
    layer = 0
    while f"visual.blocks.{layer}.norm1.weight" in weights:
        block = f"visual.blocks.{layer}"
        h = layer_norm(x, weights, f"{block}.norm1", eps)
        x = x + attention(h, weights, f"{block}.attn", heads, False, lambda_init(layer))
        h = linear(layer_norm(x, weights, f"{block}.norm2", eps), weights, f"{block}.mlp.fc1")
        h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))  # exact GELU
        x = x + linear(h, weights, f"{block}.mlp.fc2")
        layer += 1
    return normalised(layer_norm(x, weights, "visual.norm", eps)[:, 0] @ weights["image_projection"])


def encode_text(weights, tokens, heads, *, lambda_init=lambda layer: 0.8):
    """Normalised text embeddings (B, embed_dim) of tokens (B, 77)."""
    x = weights["token_embedding.weight"][tokens] + weights["positional_embedding"]
    layer = 0
    while f"transformer.resblocks.{layer}.ln_1.weight" in weights:
        block = f"transformer.resblocks.{layer}"
        h = layer_norm(x, weights, f"{block}.ln_1", 1e-5)
        x = x + attention(h, weights, f"{block}.attn", heads, True, lambda_init(layer))
        h = linear(layer_norm(x, weights, f"{block}.ln_2", 1e-5), weights, f"{block}.mlp.c_fc")
        x = x + linear(h * torch.sigmoid(1.702 * h), weights, f"{block}.mlp.c_proj")
        layer += 1
    x = layer_norm(x, weights, "ln_final", 1e-5)
    return normalised(x[torch.arange(len(x)), tokens.argmax(-1)] @ weights["text_projection"])
