"""Folders of sentence-transformers with a CLIP: the features that its encode gives, or a refusal by name."""

import json
import shutil

import pytest
import torch
from other_libraries import TEXTS, clip_config, equal, images, transformers_folder

import diffclip
from diffclip.models.clip import CLIP

library = pytest.importorskip("sentence_transformers")
LEGACY = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
NORMALIZE = {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A transformers CLIP, and what sentence-transformers saves of it."""
    folder = tmp_path_factory.mktemp("made")
    transformers_folder(folder / "hf", clip_config())
    library.SentenceTransformer(str(folder / "hf"), device="cpu").save(str(folder / "saved"))
    return folder


def legacy(made, folder, modules):
    """The layout of before version 5.4."""
    folder.mkdir()
    shutil.copytree(made / "hf", folder / "0_CLIPModel")
    (folder / "1_Normalize").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


@pytest.mark.parametrize("form", ["saved", "legacy", "normalised"])
def test_the_features_of_its_own_library(form, made, tmp_path):
    folder = made / "saved"
    if form != "saved":
        folder = legacy(made, tmp_path / "legacy", LEGACY + [NORMALIZE] * (form == "normalised"))
    model, preprocess, tokenize = diffclip.load(folder)
    assert type(model) is CLIP
    theirs = library.SentenceTransformer(str(folder), device="cpu")
    normalize = form == "normalised"
    with torch.no_grad():
        pixels = torch.stack([preprocess(image) for image in images()])
        equal(pixels, torch.as_tensor(theirs.preprocess(images())["pixel_values"]))
        equal(model.encode_image(pixels, normalize=normalize), torch.from_numpy(theirs.encode(images())))
        equal(model.encode_text(tokenize(TEXTS), normalize=normalize), torch.from_numpy(theirs.encode(TEXTS)))


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ([*LEGACY, {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}], "Dense after the encoder"),
        ([{"type": "sentence_transformers.models.Router", "path": ""}], "begins with sentence-transformers' Router"),
        ([{"type": "sentence_transformers.models.CLIPModel", "path": "../hf"}], "is not in the folder"),
        ([{"path": ""}], "expected a list of modules"),
        ({}, "expected a list of modules"),
    ],
)
def test_what_is_no_clip_alone_is_refused_by_name(modules, said, made, tmp_path):
    with pytest.raises(diffclip.UserError, match=said):
        diffclip.load(legacy(made, tmp_path / "other", modules))


def test_an_encoder_of_another_kind_is_refused(made, tmp_path):
    folder = legacy(made, tmp_path / "other", LEGACY)
    settings = folder / "0_CLIPModel" / "sentence_bert_config.json"
    settings.write_text(json.dumps({"modality_config": {"text": {"method": "forward"}}}))
    with pytest.raises(diffclip.UserError, match="its encoder gives forward, no features of a CLIP"):
        diffclip.load(folder)
    settings.write_text("{")
    with pytest.raises(diffclip.UserError, match=r"sentence_bert_config\.json is not JSON"):
        diffclip.load(folder)
