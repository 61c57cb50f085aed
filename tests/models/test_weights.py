import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import diffclip
from diffclip import durable
from diffclip.models.clip import CLIP
from diffclip.models.weights import store as weights
from small_models import TOWERS


@pytest.fixture
def model():
    return diffclip.create_model("diffclip_vit_b16", **TOWERS, lambda_init=0.3, image_mean=(0.1, 0.2, 0.3))


@pytest.fixture
def run(model, tmp_path):
    weights.save(model, tmp_path / "run", step=7, note="λ")
    return tmp_path / "run"


def embeddings(model):
    model.eval()
    with torch.no_grad():
        tokens = diffclip.get_tokenizer()(["a dog", "a red cube"])
        return torch.cat([model.encode_image(torch.ones(2, 3, 32, 32)), model.encode_text(tokens)])


@pytest.mark.parametrize("kind", ["directory", "file", "file alone", "string", "config beside"])
def test_round_trip(model, run, kind):
    source = {"directory": run, "string": str(run)}.get(kind, run / "model.safetensors")
    if kind == "file alone":
        (run / "config.json").unlink()
    if kind == "config beside":  # and none inside, as another program may have written it
        save_file(load_file(source), source)
    restored, preprocess, tokenizer = diffclip.load(source)
    assert restored.config == model.config == preprocess.config
    assert not restored.training
    assert torch.equal(embeddings(restored), embeddings(model))
    assert all(p.requires_grad for p in restored.parameters())
    assert tokenizer(["a"]).shape == (1, 77)


def test_what_is_written(run):
    assert sorted(os.listdir(run)) == ["config.json", "model.safetensors"]
    content = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert content["step"] == 7
    assert content["note"] == "λ"
    assert content["version"] == diffclip.__version__
    assert content["model"]["lambda_init"] == 0.3


def test_saving_replaces_at_once(model, run, monkeypatch):
    before = (run / "model.safetensors").read_bytes()

    def fails(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(durable, "save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        weights.save(model, run)
    assert (run / "model.safetensors").read_bytes() == before
    diffclip.load(run)


def test_overrides_reach_the_configuration(run):
    restored, preprocess, _ = diffclip.load(run, image_std=(0.5, 0.5, 0.5), patch_dropout=0.25)
    assert restored.config.patch_dropout == 0.25
    assert preprocess.config.image_std == (0.5, 0.5, 0.5)
    with pytest.raises(diffclip.UserError, match="no model setting 'image_sdt'"):
        diffclip.load(run, image_sdt=(0.5, 0.5, 0.5))
    with pytest.raises(diffclip.UserError, match=r"visual.pos_embed \(1, 5, 32\) instead of \(1, 10, 32\)"):
        diffclip.load(run, image_size=48)


def edit(run, **changes):
    path = run / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"] |= changes
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_configuration_that_was_changed_is_noticed(run):
    """λ_init is not among the tensors: nothing else would tell."""
    edit(run, lambda_init=0.8)
    with pytest.raises(diffclip.UserError, match=r"disagree: lambda_init is 0\.8 and 0\.3"):
        diffclip.load(run)


def test_tensors_must_fit_the_configuration(run):
    path = run / "model.safetensors"
    save_file(load_file(path), path)  # without the configuration inside
    edit(run, vision_depth=1, text_attention="standard", embed_dim=24)
    with pytest.raises(diffclip.UserError) as caught:
        diffclip.load(run)
    message = str(caught.value)
    assert "unexpected: " in message
    assert "text.blocks.0.attn.lambda_k1" in message
    assert "visual.blocks.1.attn.qkv.weight" in message
    assert "text_projection (32, 16) instead of (32, 24)" in message
    assert "\n" not in message


def test_our_weights_without_any_configuration_are_refused(run):
    path = run / "model.safetensors"
    save_file(load_file(path), path)
    (run / "config.json").unlink()
    with pytest.raises(diffclip.UserError, match="lacks the configuration it was saved with"):
        diffclip.load(path)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_configuration_is_named(run, text):
    (run / "config.json").write_text(text)
    with pytest.raises(diffclip.UserError, match=r"config\.json"):
        diffclip.load(run)


def test_half_precision_weights_become_float32(model, run):
    path = run / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    restored, _, _ = diffclip.load(run)
    assert {p.dtype for p in restored.parameters()} == {torch.float32}
    torch.testing.assert_close(embeddings(restored), embeddings(model), rtol=0, atol=2e-2)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1"])
def test_preprocess_takes_pillow_images_of_any_mode(run, mode):
    _, preprocess, _ = diffclip.load(run)
    pixels = preprocess(Image.new("RGB", (60, 40), (255, 0, 0)).convert(mode))
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.float32
    if mode in ("RGB", "RGBA"):
        mean, std = preprocess.config.image_mean, preprocess.config.image_std
        expected = [(c - m) / s for c, m, s in zip((1, 0, 0), mean, std, strict=True)]
        np.testing.assert_allclose(pixels[:, 5, 5].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_in_another_dtype_keep_lambda_and_temperature(model, run, dtype):
    restored, preprocess, tokenizer = diffclip.load(run, dtype=dtype)
    high = torch.promote_types(dtype, torch.float32)
    for name, parameter in restored.named_parameters():
        delicate = "lambda_" in name or name == "logit_scale"
        assert parameter.dtype == (high if delicate else dtype), name
    for tower, values in restored.lambdas().items():
        torch.testing.assert_close(values.float(), model.lambdas()[tower], rtol=1e-6, atol=0)
    with torch.no_grad():
        pixels = preprocess(Image.new("RGB", (40, 40), (9, 99, 199)))[None]  # float32
        tokens = tokenizer(["a dog"])
        image, text = restored.encode_image(pixels, normalize=True), restored.encode_text(tokens, normalize=True)
        model.eval()
        assert image.dtype == text.dtype == high
        assert restored.encode_image(pixels).dtype == restored.encode_text(tokens).dtype == dtype
        torch.testing.assert_close(image.float(), model.encode_image(pixels, normalize=True), rtol=0, atol=2e-2)
        torch.testing.assert_close(text.float(), model.encode_text(tokens, normalize=True), rtol=0, atol=2e-2)


def test_weights_in_another_dtype_are_saved_and_read_back(run, tmp_path):
    half = diffclip.load(run, dtype=torch.bfloat16)[0]
    weights.save(half, tmp_path / "half")
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert stored["text.blocks.0.attn.lambda_q1"].dtype == torch.float32
    assert stored["image_projection"].dtype == torch.bfloat16
    assert torch.equal(embeddings(diffclip.load(tmp_path / "half", dtype=torch.bfloat16)[0]), embeddings(half))


def test_weights_are_floats(run):
    with pytest.raises(diffclip.UserError, match=r"dtype = torch\.int8: weights are floats"):
        diffclip.load(run, dtype=torch.int8)


def test_a_compiled_model_encodes_the_same(model, run, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_towers = CLIP.compile
    monkeypatch.setattr(CLIP, "compile", lambda restored: compile_towers(restored, backend=backend))
    assert torch.equal(embeddings(diffclip.load(run)[0]), embeddings(model))
    assert graphs == []
    restored, _, _ = diffclip.load(run, compile=True)
    torch.testing.assert_close(embeddings(restored), embeddings(model))
    assert len(graphs) >= 2
    assert restored.state_dict().keys() == model.state_dict().keys()
