"""convert: the start is exact, everything new learns, and what cannot be converted is refused with what was found."""

import pytest
import timm
import torch
import torch.nn.functional as F

import diffclip
from diffclip import UserError, cli
from diffclip.models.parity import compare, inputs
from small_models import TOWERS, small_model

EXACT = ("differential_v2", "differential_gated", "no_second_map")
NEW = (".attn.q2.", ".attn.lambda_proj.")


def clip(**changes):
    """A standard model whose biases and temperature are not the start's, so that each has to be carried over."""
    model = small_model("clip", size=TOWERS, **changes)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("attention", EXACT)
@pytest.mark.parametrize("towers", ["both", "vision", "text"])
@pytest.mark.parametrize("layers", [None, (1,)])
def test_the_start_gives_what_the_model_gave(attention, towers, layers):
    model = clip()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    converted = diffclip.convert(model, attention, towers=towers, layers=layers)
    found = compare(model, converted.encode_image, converted.encode_text)
    assert max(found.image, found.text) <= 1e-6
    double = diffclip.convert(model.double(), attention, towers=towers, layers=layers)
    found = compare(model, double.encode_image, double.encode_text)
    assert max(found.image, found.text) <= 1e-14
    assert all(torch.equal(before[name], tensor.float()) for name, tensor in model.state_dict().items())
    kinds = converted.config.vision_attention, converted.config.text_attention
    expected = {"both": (attention, attention), "vision": (attention, "standard"), "text": ("standard", attention)}
    assert kinds == expected[towers]


@pytest.mark.parametrize("lambda_init", [0.2, 0.8])
def test_a_mirror_starts_exactly_whatever_its_lambda(lambda_init):
    model = clip().double()
    converted = diffclip.convert(model, lambda_init=lambda_init)
    found = compare(model, converted.encode_image, converted.encode_text)
    assert max(found.image, found.text) <= 1e-14
    assert converted.lambdas()["visual"].tolist() == pytest.approx([lambda_init] * 2)


def test_released_weights_keep_their_eps():
    model = clip(init="released")
    converted = diffclip.convert(model)
    assert converted.config.resolved_vision_norm_eps == model.config.resolved_vision_norm_eps == 1e-6


@pytest.mark.parametrize("attention", EXACT)
def test_every_new_tensor_learns_within_two_steps(attention):
    model = clip()
    converted = diffclip.convert(model, attention).train()
    new = {name: p for name, p in converted.named_parameters() if any(part in name for part in NEW)}
    assert len(new) == 4 * 4  # weight and bias of two maps, in four layers
    assert new.keys() == dict(converted.named_parameters()).keys() - dict(model.named_parameters()).keys()
    before = {name: p.detach().clone() for name, p in new.items()}
    optimizer = torch.optim.SGD(converted.parameters(), lr=0.1)
    pixels, tokens = inputs(converted.config)
    for _ in range(2):
        logits = converted.encode_image(pixels, normalize=True) @ converted.encode_text(tokens, normalize=True).T
        loss = F.cross_entropy(20 * logits, torch.arange(len(logits)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    still = [name for name, p in new.items() if torch.equal(p, before[name])]
    assert not still


def test_it_saves_and_reloads_and_converts_one_tower_after_the_other(tmp_path):
    model = clip()
    converted = diffclip.convert(
        diffclip.convert(model, towers="text", layers=(0,)), "differential_gated", towers="vision"
    )
    diffclip.save(converted, tmp_path)
    again, _, _ = diffclip.load(tmp_path)
    assert again.config == converted.config
    assert again.config.text_attention_layers == (0,)
    found = compare(converted, again.encode_image, again.encode_text)
    assert max(found.image, found.text) == 0
    assert again.lambdas()["text"].tolist() == [0.5, 0.0]


def test_the_papers_form_says_how_far_it_moves_and_asks(tmp_path):
    model = clip()
    with pytest.raises(UserError, match=r"lowest cosine -?0\.\d+.*inexact"):
        diffclip.convert(model, "differential")
    torch.manual_seed(0)
    converted = diffclip.convert(model, "differential", lambda_init=0.2, inexact=True)
    assert compare(model, converted.encode_image, converted.encode_text).image > 1e-3
    assert converted.config.lambda_init == 0.2
    assert [block.attn.lambda_init for block in converted.visual.blocks] == [0.2] * 2
    diffclip.save(converted, tmp_path)
    again, _, _ = diffclip.load(tmp_path)
    assert compare(converted, again.encode_image, again.encode_text).image == 0


def test_a_timm_transformer():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=5).eval()
    pixels = torch.randn(2, 3, 32, 32)
    converted = diffclip.convert(model, layers=(0, 2))
    assert (converted(pixels) - model(pixels)).abs().max() <= 1e-6
    kinds = [type(block.attn).__name__ for block in converted.blocks]
    assert kinds == ["DifferentialAttentionV2", "Attention", "DifferentialAttentionV2"]
    fresh = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=5).eval()
    again = diffclip.convert(fresh, layers=(0, 2))
    again.load_state_dict(converted.state_dict())
    assert torch.equal(again(pixels), converted(pixels))


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (lambda: clip(), {"attention": "linear"}, "choose one of"),
        (lambda: clip(), {"layers": (2,)}, "layers 0 to 1"),
        (lambda: clip(), {"layers": ()}, "layers 0 to 1"),
        (lambda: clip(), {"lambda_init": 1.0}, r"\(0, 1\)"),
        (lambda: clip(), {"attention": "differential_gated", "lambda_init": 0.5}, "starts at 0"),
        (lambda: small_model(size=TOWERS), {"towers": "text"}, "text tower has differential attention already"),
        (lambda: torch.nn.Linear(2, 2), {}, "Linear cannot be converted.*no attention layers"),
        (lambda: torch.nn.TransformerEncoderLayer(4, 2), {}, "its attention is MultiheadAttention"),
        (lambda: timm.create_model("vit_tiny_patch16_224", depth=1, qk_norm=True), {}, "its attention is Attention"),
        (lambda: torch.nn.Linear(2, 2), {"towers": "text"}, "only a CLIP has two"),
    ],
)
def test_what_cannot_be_converted_is_refused(model, options, said):
    with pytest.raises(UserError, match=said):
        diffclip.convert(model(), **options)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    diffclip.save(clip(), "before")
    cli.main(["convert", "before", "--out", "after", "--layers", "1"])
    assert "parameters added; on 16 drawn scenes" in capsys.readouterr().out
    assert diffclip.load("after")[0].config.text_attention_layers == (1,)
    with pytest.raises(SystemExit, match="after is no empty folder"):
        cli.main(["convert", "before", "--out", "after"])
    with pytest.raises(SystemExit, match="--inexact"):
        cli.main(["convert", "before", "--out", "v1", "--attention", "differential"])
    assert not (tmp_path / "v1").exists()
    cli.main(["convert", "before", "--out", "v1", "--attention", "differential", "--inexact"])
    assert diffclip.load("v1")[0].config.vision_attention == "differential"
