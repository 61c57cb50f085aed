"""Adapters of peft on our models: each is trained, and what is trained is what is evaluated."""

import pytest
import torch

import diffclip
from diffclip.models.parity import inputs
from small_models import TOWERS, small_model

peft = pytest.importorskip("peft")
LAYERS = ["qkv", "proj", "fc1", "fc2", "q2"]


@pytest.mark.parametrize("kind", ["clip", "diffclip", "differential_v2"])
def test_every_adapter_learns_and_merges(kind):
    model = small_model("diffclip" if kind == "diffclip" else "clip", size=TOWERS)
    model = diffclip.convert(model) if kind == "differential_v2" else model
    pixels, tokens = inputs(model.config)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=r".*\.blocks\.\d+\..*\.(" + "|".join(LAYERS) + ")")
    adapted = peft.get_peft_model(model, config)
    before = {name: p.detach().clone() for name, p in adapted.named_parameters() if p.requires_grad}
    per_layer = 5 if kind == "differential_v2" else 4
    assert len(before) == 4 * per_layer * 2  # layers, adapted matrices, A and B
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # A learns from the second step on, as B starts at zero
        optimizer.zero_grad()
        images, texts = model.encode_image(pixels, normalize=True), model.encode_text(tokens, normalize=True)
        (images @ texts.T).square().sum().backward()
        optimizer.step()
    still = [name for name, p in adapted.named_parameters() if name in before and torch.equal(p, before[name])]
    assert not still
    training = model.train().encode_image(pixels)
    with torch.no_grad():
        assert torch.allclose(model.eval().encode_image(pixels), training, atol=1e-5)
    merged = adapted.merge_and_unload()
    assert torch.allclose(merged.encode_image(pixels), training, atol=1e-4)
    assert merged.state_dict().keys() == small_or_converted(kind).state_dict().keys()


def small_or_converted(kind):
    model = small_model("diffclip" if kind == "diffclip" else "clip", size=TOWERS)
    return diffclip.convert(model) if kind == "differential_v2" else model


def test_hooks_on_the_norm_of_heads_fire():
    model, seen = small_model(size=TOWERS), []
    wanted = model.encode_image(inputs(model.config)[0])
    model.visual.blocks[0].attn.norm.register_forward_hook(lambda *_: seen.append("norm"))
    assert torch.allclose(model.encode_image(inputs(model.config)[0]), wanted, atol=1e-5)
    assert seen == ["norm"]
