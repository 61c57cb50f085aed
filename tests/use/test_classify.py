"""`diffclip classify` and `diffclip.classify`: any pictures, any labels."""

import csv
import io
import json
import math
import re
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps

import diffclip
from diffclip import cli
from diffclip.data.images import BadImage
from diffclip.data.scenes import SceneSource
from diffclip.evaluation.features.encode import class_embeddings, image_features
from diffclip.use.encoder import open_encoder
from diffclip.use.pictures import open_pictures
from diffclip.use.upright import decode_upright
from use_pictures import encoded, picture, with_exif

LABELS = ["a cat", "a dog", "a red star"]


def ended(*arguments):
    """What a command says as it fails."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(map(str, arguments)))
    return str(end.value.code)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "album"
    (place / "deep").mkdir(parents=True)
    for number, name in enumerate(("b.png", "deep/a.png", "c.JPG", ".hidden.png", "Thumbs.db")):
        (place / name).write_bytes(encoded(picture(number), "JPEG" if name.endswith("JPG") else "PNG"))
    (place / "broken.jpg").write_bytes(encoded(picture(9), "JPEG")[:200])
    return place


def test_probabilities_are_the_softmax_of_scaled_cosines_in_float64(model):
    scenes = SceneSource("test", size=32, length=5)
    found = diffclip.classify(model, [scenes[i].image for i in range(5)], LABELS, templates=["{c}", "my {c}"])
    net, _, tokenizer = diffclip.load(model)
    images = image_features(net, scenes).features.double()
    texts = class_embeddings(net, tokenizer, LABELS, ["{c}", "my {c}"]).double()
    for row, of_image in zip(found, images, strict=True):
        scale = float(net.logit_scale.detach().exp())
        terms = [
            math.exp(scale * sum(a * b for a, b in zip(of_image.tolist(), t, strict=True))) for t in texts.tolist()
        ]
        np.testing.assert_allclose(row.probabilities, [term / sum(terms) for term in terms], rtol=1e-4)


def test_a_model_of_sigmoids_judges_each_label_by_itself():
    net = diffclip.create_model("clip_vit_quickstart", logit_bias=-3.0).eval()
    (row,) = diffclip.classify(net, picture(1, (64, 64)), LABELS)
    expected = torch.sigmoid(net.logit_scale.detach().exp() * torch.tensor(row.cosines) - 3.0)
    np.testing.assert_allclose(row.probabilities, expected, rtol=1e-5)


def test_the_command_reads_folders_files_patterns_shards_and_standard_input(
    model,
    folder,
    tmp_path,
    capsys,
    monkeypatch,
):
    cli.main(["data", "pack", "scenes:test?size=16&length=3", "--out", str(tmp_path / "shards"), "--workers", "1"])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(encoded(picture(5)))))
    out = tmp_path / "labels.csv"
    given = [folder, folder / "b.png", f"{folder}/*.png", tmp_path / "shards", "scenes:test?size=16&length=2", "-"]
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1 picture could not be read, everything else is done") as ended:
        cli.main(["classify", model, *map(str, given), "--labels", *LABELS, "--out", str(out), "--threshold", "1"])
    shown = capsys.readouterr()
    assert f"Written to {out}" in shown.out
    rows = list(csv.DictReader(out.open()))
    names = [row["picture"] for row in rows]
    assert names[:6] == [str(folder / n) for n in ("b.png", "broken.jpg", "c.JPG", "deep/a.png", "b.png", "b.png")]
    assert len(rows) == 6 + 3 + 2 + 1
    assert names[-1] == "-"
    assert re.search(r"broken\.jpg: (truncated|damaged)", str(ended.value.code))
    assert shown.out.count("none of these") == len(rows) - 1
    assert {row["label"] for row in rows} == {""}
    read = [row for row in rows if not row["problem"]]
    assert all(abs(sum(float(row[f"p:{label}"]) for label in LABELS) - 1) < 1e-4 for row in read)


def test_every_form_of_table_says_the_same(model, folder, tmp_path, capsys):
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(LABELS) + "\n\n")
    for ending in ("csv", "jsonl", "parquet"):
        out = tmp_path / f"o.{ending}"
        with pytest.raises(SystemExit, match=r"broken\.jpg"):
            cli.main(["classify", model, str(folder), "--labels-file", str(labels), "--out", str(out), "--top", "2"])
    table = pq.read_table(tmp_path / "o.parquet").to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    for row, line, of_csv in zip(table, lines, csv.DictReader((tmp_path / "o.csv").open()), strict=True):
        assert row["picture"] == line["picture"] == of_csv["picture"]
        assert row["label"] == line["label"] == (of_csv["label"] or None)
        assert row["problem"] == line.get("problem") == (of_csv["problem"] or None)
        for label, probability in line.get("probabilities", {}).items():
            assert probability == pytest.approx(row[f"p:{label}"], rel=1e-5)
            assert probability == pytest.approx(float(of_csv[f"p:{label}"]), rel=1e-5)
    assert capsys.readouterr().out.splitlines()[0].count("%") == 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_pillow_turns_them(orientation):
    image = with_exif(picture(3, (40, 24)), orientation=orientation)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(image))).convert("RGB"))
    np.testing.assert_array_equal(decode_upright(image), expected)


def test_large_photographs_are_decoded_smaller_and_look_the_same(model):
    image = encoded(picture(3, (1600, 1200)), "JPEG", quality=95)
    assert decode_upright(image, shorter_edge=100).shape == (150, 200, 3)
    encoder = open_encoder(model)
    small, whole = encoder.pixels(image), encoder.pixels(decode_upright(image))
    assert (small.int() - whole.int()).abs().max() <= 3
    with pytest.raises(BadImage, match="too_many_pixels"):
        decode_upright(image, 1000, shorter_edge=10)


def test_heic_stands_upright_or_says_what_it_needs(monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    heif.from_pillow(picture(3, (64, 48))).save(buffer, quality=95)
    assert decode_upright(buffer.getvalue()).shape == (48, 64, 3)
    with pytest.raises(BadImage, match="damaged"):
        decode_upright(buffer.getvalue()[:100])
    with pytest.raises(BadImage, match="too_many_pixels"):
        decode_upright(buffer.getvalue(), 1000)
    monkeypatch.setattr("diffclip.use.heic.available", lambda: False)
    with pytest.raises(BadImage, match="needs_heic_extra"):
        decode_upright(buffer.getvalue())


def test_int8_and_bfloat16_are_near_float32(model, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    exact, half, quantised = (open_encoder(model, precision) for precision in ("float32", "bfloat16", "int8"))
    assert exact.fingerprint == half.fingerprint == quantised.fingerprint
    pixels = [exact.pixels(np.asarray(picture(seed))) for seed in range(3)]
    for other, least in ((half, 0.999), (quantised, 0.95)):
        cosines = (exact.images(pixels) * other.images(pixels)).sum(1)
        assert (cosines > least).all()
        assert (cosines < 1 - 1e-9).any()
    assert [path.suffix for path in (tmp_path / "diffclip" / "int8").iterdir()] == [".onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no labels"),
        (("--labels", "a", "a"), "'a' is given twice"),
        (("--labels", "a", ""), "label 2 is empty"),
        (("--labels", "a", "--templates", "no place"), "must have {c}"),
        (("--labels", "a", "--threshold", "2"), "a probability from 0 to 1"),
        (("--labels", "a", "--top", "0"), "at least 1"),
        (("--labels", "a", "--batch-size", "0"), "at least 1"),
        (("--labels", "a", "--out", "o.txt"), "must end in one of .csv"),
        (("--labels-file", "none.txt"), "cannot read none.txt"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(model, folder, arguments, message):
    assert message in ended("classify", model, folder, *arguments)


def test_pictures_that_are_not_there(model, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    assert "no images in" in ended("classify", model, tmp_path / "empty", "--labels", "a")
    assert "there is no" in ended("classify", model, tmp_path / "none.png", "--labels", "a")
    assert "no picture could be read" in ended("classify", model, tmp_path / "text.png", "--labels", "a")
    assert "no pictures" in ended("classify", model, "--labels", "a")
    assert len(open_pictures([str(tmp_path / "text.png")])) == 1


def test_a_precision_of_a_model_that_is_loaded_is_refused(model):
    with pytest.raises(diffclip.UserError, match="of a model still to be loaded"):
        diffclip.classify(diffclip.load(model)[0], "x.png", ["a", "b"], precision="bfloat16")
