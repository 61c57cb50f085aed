"""The attention maps of other libraries' models: those of the same weights as a `CLIP`, or a refusal."""

from pathlib import Path

import numpy as np
import pytest
import torch
from other_libraries import SIZES, TEXTS, clip_config, equal, images, transformers_folder
from test_other_libraries import FAMILIES, WORDS, open_clip_folder

import diffclip
from diffclip import cli
from diffclip.analysis import image_attention, relevance, text_attention
from diffclip.analysis.look import look
from diffclip.models.image_settings import ImageSettings
from diffclip.models.weights import open_clip as of_open_clip
from diffclip.models.weights.files import locate, read_tensors
from diffclip.models.weights.transformers_folder import Folder
from diffclip.models.wrapped import Wrapped
from diffclip.server.looks import _overlay, seen


def as_it_is(folder):
    """A model that can be a `CLIP`, used by its own library all the same."""
    if (folder / "open_clip_config.json").exists():
        path = locate(folder)
        content = of_open_clip.beside(path)
        settings = ImageSettings(**of_open_clip.image_settings(content, path))
        return of_open_clip.wrap(content, path, read_tensors(path)[0], settings, "nothing").eval()
    return Folder(folder).wrap("nothing").eval()


@pytest.mark.parametrize("library", ["open_clip", "transformers"])
def test_maps_and_relevance_are_those_of_the_same_weights_as_a_clip(library, tmp_path):
    folder = tmp_path / "model"
    if library == "open_clip":
        open_clip_folder(folder)
    else:
        transformers_folder(folder, clip_config())
    ours, preprocess, tokenize = diffclip.load(folder)
    theirs = as_it_is(folder)
    assert type(theirs) is Wrapped
    pixels, tokens = torch.stack([preprocess(image) for image in images()]), tokenize(TEXTS)
    for mine, other in zip(image_attention(ours, pixels), image_attention(theirs, pixels), strict=True):
        equal(other.combined, mine.combined)
        assert other.a2 is None
    for mine, other in zip(text_attention(ours, tokens), text_attention(theirs, tokens), strict=True):
        for row, end in enumerate(tokens.argmax(1).tolist()):  # what follows a text's end is padding
            equal(other.combined[row, :, : end + 1, : end + 1], mine.combined[row, :, : end + 1, : end + 1])
    equal(relevance(theirs, pixels, tokens[:3]), relevance(ours, pixels, tokens[:3]))
    with torch.no_grad():  # and afterwards it computes as before
        equal(theirs.encode_image(pixels), ours.encode_image(pixels))
        equal(theirs.image_maps(pixels)[0], theirs.encode_image(pixels))


@pytest.mark.parametrize("family", ["MetaClip2", "AltCLIP", "ChineseCLIP", "Blip"])
def test_families_of_transformers_that_read_a_class_token(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    text, joint = FAMILIES[family]
    vision = SIZES | {"image_size": 32, "patch_size": 16} | joint
    kind = getattr(transformers, f"{family}Config")
    transformers_folder(tmp_path / "hf", kind(vision_config=vision, text_config=WORDS | text, **joint))
    model, preprocess, tokenize = diffclip.load(tmp_path / "hf")
    pixels, tokens = torch.stack([preprocess(image) for image in images()]), tokenize(TEXTS[:3])
    with torch.no_grad():
        features, maps = model.image_maps(pixels)
        equal(features, model.encode_image(pixels))
    assert [layer.combined.shape for layer in maps] == [(3, 4, 5, 5)] * 2
    assert all(torch.allclose(layer.combined.sum(-1), torch.ones(3, 4, 5)) for layer in maps)
    assert len(model.text_maps(tokens)) == 2
    found = relevance(model, pixels, tokens)
    assert found.shape == (3, 2, 2)
    assert found.max() > 0


def test_a_mean_of_patches_is_read_at_all_of_them(tmp_path):
    open_clip_folder(tmp_path / "laion", vision={"pool_type": "avg", "no_ln_pre": True, "final_ln_after_pool": True})
    model, preprocess, tokenize = diffclip.load(tmp_path / "laion")
    pixels = preprocess(images()[0])[None].requires_grad_()
    tokens = tokenize(TEXTS[:1])
    features, layers = model.image_maps(pixels)
    score = torch.cosine_similarity(features, model.encode_text(tokens)).sum()
    total = torch.eye(5)
    for layer, gradient in zip(layers, torch.autograd.grad(score, [each.combined for each in layers]), strict=True):
        total = total + sum((layer.combined[0, h] * gradient[0, h]).clamp(min=0) for h in range(2)) / 2 @ total
    expected = torch.stack([total[1:, patch].mean() for patch in range(1, 5)]).view(1, 2, 2)
    equal(relevance(model, pixels.detach(), tokens), expected.detach())


def test_attend_draws_a_wrapped_model_and_refuses_what_has_no_maps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images()[0].save("a.png")
    open_clip_folder(Path("scaled"), vision={"ls_init_value": 0.5})
    command = ["attend", "a.png", "--text", "a dog", "--out", "b.png", "--layers", "c.png", "--maps", "d.npz"]
    cli.main([command[0], "scaled", *command[1:]])
    assert all(Path(name).stat().st_size for name in ("b.png", "c.png", "d.npz"))
    data = ["--data", "scenes=scenes:test?size=32&length=8", "--tasks", "grounding", "--workers", "0", "--sample", "4"]
    cli.main(["eval", "scaled", *data, "--out", "eval"])
    assert "grounding" in Path("eval/results.jsonl").read_text()
    open_clip_folder(Path("pooled"), vision={"attentional_pool": True, "attn_pooler_queries": 4})
    with pytest.raises(SystemExit, match="open_clip's CLIP shows no attention maps of its layers: it is used as it is"):
        cli.main([command[0], "pooled", *command[1:]])
    with pytest.raises(SystemExit, match="grounding"):
        cli.main(["eval", "pooled", *data, "--out", "eval"])


def test_the_page_shows_layers_of_a_wrapped_model_or_covers_parts(tmp_path):
    open_clip_folder(tmp_path / "scaled", vision={"ls_init_value": 0.5})
    open_clip_folder(tmp_path / "pooled", vision={"attentional_pool": True, "attn_pooler_queries": 4})
    model, picture = diffclip.load(tmp_path / "scaled")[0], np.array(images()[0])
    assert type(model) is Wrapped
    found, expected = seen(model, picture, "a dog"), look(model, picture, ["a dog"])
    assert found.how.startswith("relevance")
    assert found.overlay == _overlay(expected.image, expected.relevance[0])
    assert [layer["lam"] for layer in found.layers] == [None] * len(expected.class_token)
    assert all(set(layer["maps"]) == {"A"} for layer in found.layers)
    covered = seen(diffclip.load(tmp_path / "pooled")[0], picture, "a dog")
    assert covered.how.startswith("covered parts")
    assert covered.layers == []
