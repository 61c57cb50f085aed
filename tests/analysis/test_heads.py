"""Numbers of heads against the same in loops over images, heads and tokens, and the gradient against autograd."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from diffclip import cli
from diffclip.analysis.heads import HIGH, effective_rank, head_numbers, high_patches
from diffclip.models.maps import forward_with_maps
from diffclip.models.weights.store import save
from diffclip.reporting.figures.heads import TEXTS
from small_models import EQUATIONS, RUN, small_model


def tiny(kind="differential", batch=3):
    torch.manual_seed(0)
    model = small_model("clip", size=EQUATIONS, vision_attention=kind).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    pixels = torch.randn(batch, 3, 8, 8, dtype=torch.float64)
    pixels[0, :, :4, :4] *= 30  # one patch that stands out
    tokens = torch.randint(1, 19, (batch, 6))
    tokens[:, 0], tokens[:, 4:] = 18, 19
    return model, pixels, tokens


def values_of(model, pixels):
    """Each layer's values, (B, N, C), as NumPy: by the model's own modules, one after the other."""
    found, streams = [], []
    hooks = [
        hook
        for block in model.visual.blocks
        for hook in (
            block.attn.qkv.register_forward_hook(lambda _m, _i, out: found.append(out.detach().numpy())),
            block.register_forward_pre_hook(lambda _m, inputs: streams.append(inputs[0].detach().numpy())),
        )
    ]
    _, maps = forward_with_maps(model.visual, pixels)
    for hook in hooks:
        hook.remove()
    return [qkv[..., qkv.shape[-1] * 2 // 3 :] for qkv in found], streams, maps


@pytest.mark.parametrize("kind", ["standard", "differential", "differential_v2", "dint", "standard_normed"])
def test_rank_size_and_shares_are_those_of_loops(kind):
    model, pixels, tokens = tiny(kind)
    numbers = head_numbers(model, pixels, tokens)
    values, streams, maps = values_of(model, pixels)
    assert len(numbers) == len(maps) == len(model.visual.blocks)
    for number, v, stream, layer in zip(numbers, values, streams, maps, strict=True):
        combined = layer.combined.detach().numpy()
        width = v.shape[-1] // combined.shape[1]
        for head in range(combined.shape[1]):
            ranks, squares, shares, high_shares = [], [], [], []
            for image in range(len(pixels)):
                context = combined[image, head] @ v[image, :, head * width :][:, :width]
                sigma = np.sqrt(np.clip(np.linalg.eigvalsh(context.T @ context), 0, None))
                p = sigma[sigma > 0] / sigma.sum()
                ranks.append(np.exp(-(p * np.log(p)).sum()))
                squares += (context**2).ravel().tolist()
                norms = [np.sqrt((token**2).sum()) for token in stream[image, 1:]]
                high = [norm > HIGH * sorted(norms)[(len(norms) - 1) // 2] for norm in norms]
                for row in np.abs(combined[image, head, 1:]):
                    shares.append(row[0] / row.sum())
                    high_shares += [row[1:][high].sum() / row.sum()] if any(high) else []
            name = "A" if layer.a2 is None else "A1 − λA2"
            assert number.rank[head] == pytest.approx(np.mean(ranks), abs=1e-6)
            assert number.size[head] == pytest.approx(np.sqrt(np.mean(squares)))
            assert number.class_share[name][head] == pytest.approx(np.mean(shares))
            expected = np.mean(high_shares) if high_shares else np.nan
            assert number.high_share[name][head] == pytest.approx(expected, nan_ok=True)
    first = next(iter(numbers[0].high_share.values()))
    assert torch.isfinite(first).all(), "no high patch: no test"


def test_the_gradient_before_the_norm_is_autograds():
    model, pixels, tokens = tiny("differential")
    numbers = head_numbers(model, pixels, tokens)
    before, after = [], []
    for block in model.visual.blocks:  # a hook makes the layer call the norm as a module
        block.attn.norm.register_forward_hook(lambda _m, inputs, out: before.append(inputs[0]))
        block.attn.proj.register_forward_pre_hook(lambda _m, inputs: after.append(inputs[0]))
    score = (model.encode_image(pixels, True) * model.encode_text(tokens, True).detach()).sum()
    gradients = torch.autograd.grad(score, [*before, *after])
    for layer, number in enumerate(numbers):
        one, other = gradients[layer], gradients[len(numbers) + layer].view_as(gradients[layer])
        for head in range(one.shape[2]):
            expected = float(one[:, :, head].norm() / other[:, :, head].norm())
            assert float(number.gain[head]) == pytest.approx(expected, rel=1e-9)


def test_rank_of_known_contexts():
    assert float(effective_rank(torch.eye(4).double())) == pytest.approx(4)
    assert float(effective_rank(torch.ones(5, 4).double())) == pytest.approx(1)
    two = torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0])).double()
    assert float(effective_rank(two)) == pytest.approx(4 / 3**0.75)


def test_a_patch_is_high_beside_its_own_images_patches():
    stream = torch.ones(2, 6, 4, dtype=torch.float64)
    stream[0, 3] = 2.1
    stream[1] *= 100
    stream[1, 0] = 1e6  # the class token is none
    assert high_patches(stream, 1).nonzero().tolist() == [[0, 3]]


def test_layers_without_a_norm_have_no_gain_and_the_model_is_left_as_it_was():
    model, pixels, tokens = tiny("standard")
    model.train()
    assert all(number.gain is None for number in head_numbers(model, pixels, tokens))
    assert model.training
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooks == []
    assert isinstance(model.visual.blocks[0].attn.qkv, nn.Linear)


def test_the_command_writes_each_figure_with_what_it_shows(tmp_path):
    for name, kind in (("clip", "clip"), ("diff", "diffclip")):
        save(small_model(kind, size=RUN), tmp_path / name)
    command = ["heads", str(tmp_path / "clip"), "--beside", str(tmp_path / "diff"), "--sample", "4"]
    cli.main([*command, "--data", "scenes:test?size=16&length=8", "--out", str(tmp_path / "out")])
    text = (tmp_path / "out/README.md").read_text()
    for name, said in TEXTS.items():
        assert (tmp_path / f"out/{name}.png").stat().st_size > 2000
        assert said in text
    numbers = json.loads((tmp_path / "out/heads.json").read_text())
    assert list(numbers) == ["clip", "diff"]
    assert numbers["clip"][0]["gain"] is None
    assert numbers["clip"][0]["tokens"] == 5
    assert list(numbers["diff"][0]["class_share"]) == ["A1", "A2", "A1 − λA2"]


def test_a_sample_of_nothing_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="--sample 0: give 1 to 1024"):
        cli.main(["heads", "x", "--data", "scenes:test", "--sample", "0", "--out", str(tmp_path)])
