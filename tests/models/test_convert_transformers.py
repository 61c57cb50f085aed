"""convert on models of transformers: the start is exact, and what is new learns."""

import pytest
import torch

import diffclip
from diffclip import UserError

transformers = pytest.importorskip("transformers")
EXACT = ("differential_v2", "differential_gated")


def of_transformers(name, implementation):
    """A small model of transformers', random, and a function of it that returns what it gives."""
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = small | {"image_size": 16, "patch_size": 8}
    text = small | {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 49}
    tokens = torch.randint(1, 48, (3, 7))
    tokens[:, 6], mask = 49, torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    pixels = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    configs = {
        "clip": lambda: transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8),
        "siglip": lambda: transformers.SiglipConfig(text_config=text, vision_config=vision),
        "dinov2": lambda: transformers.Dinov2Config(**vision),
        "bert": lambda: transformers.BertConfig(**text),
        "align_text": lambda: transformers.AlignTextConfig(**text),
    }
    torch.manual_seed(0)
    config = configs[name]()
    config._attn_implementation = implementation
    kind = {"clip": "CLIP", "siglip": "Siglip", "dinov2": "Dinov2", "bert": "Bert", "align_text": "AlignText"}[name]
    model = getattr(transformers, f"{kind}Model")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)

    def run(model):
        if name in ("clip", "siglip"):
            return model(input_ids=tokens, pixel_values=pixels, attention_mask=mask).logits_per_image
        if name == "dinov2":
            return model(pixels).last_hidden_state
        return model(input_ids=tokens, attention_mask=mask).last_hidden_state

    return model.double(), run


@pytest.mark.parametrize("attention", EXACT)
@pytest.mark.parametrize(
    ("name", "implementation"),
    [*((name, "sdpa") for name in ("clip", "siglip", "dinov2", "bert")), ("clip", "eager"), ("align_text", "eager")],
)
def test_models_of_transformers(name, implementation, attention):
    model, run = of_transformers(name, implementation)
    converted = diffclip.convert(model, attention)
    torch.testing.assert_close(run(converted), run(model), rtol=1e-10, atol=1e-10)
    new = {n: p for n, p in converted.named_parameters() if ".second." in n or ".lambda_proj." in n}
    assert len(new) == 4 * (4 if name in ("clip", "siglip") else 2)
    before = {n: p.detach().clone() for n, p in new.items()}
    optimizer = torch.optim.SGD(converted.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        run(converted).square().sum().backward()
        optimizer.step()
    assert not [n for n, p in new.items() if torch.equal(p, before[n])]
    again = diffclip.convert(of_transformers(name, implementation)[0], attention)
    again.load_state_dict(converted.state_dict())
    assert torch.equal(run(again), run(converted))
    with pytest.raises(UserError, match="cannot be converted"):
        diffclip.convert(converted, attention)


def test_another_family_is_refused_with_what_was_found():
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    blip = transformers.BlipVisionModel(transformers.BlipVisionConfig(**small, image_size=16, patch_size=8))
    with pytest.raises(UserError, match=r"CLIPAttention.* of transformers, and its attention is BlipAttention"):
        diffclip.convert(blip)
