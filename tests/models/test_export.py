"""export: each other program opens the folder and computes what the model does, from images and texts on."""

import json
from pathlib import Path

import open_clip
import pytest
import torch

import diffclip
from diffclip import UserError, cli
from diffclip.models import parity
from small_models import PICTURES, TOWERS, small_model

FORMS = {
    "clip": {},
    "diffclip": {"resize": "longest", "fill": 255, "interpolation": "bilinear", "resizer": "pillow"},
    "differential_v2": {"vision_attention": "differential_v2", "text_attention": "differential_gated"},
}


def saved(folder, kind="clip", size=PICTURES, **changes):
    model = small_model("diffclip" if kind == "diffclip" else "clip", size=size, **FORMS[kind] | changes).eval()
    torch.manual_seed(1)
    with torch.no_grad():  # biases, λ and positions that are not the start's
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.add_(0.1 * torch.randn_like(parameter))
    diffclip.save(model, folder)
    return model


def exported(to, capsys):
    cli.main(["export", "model", "--to", to, "--out", "out"])
    report = json.loads(Path("out/parity.json").read_text())
    assert f"{report['image']:.1e}" in capsys.readouterr().out
    assert max(report["image"], report["text"] or 0) <= 1e-5
    assert (report["text"] is None) == (to == "timm")
    both = {"image", "text", "image_cosine", "text_cosine", "pixels", "agreement", "milliseconds"}
    assert report.keys() == both
    assert (report["milliseconds"] is None) == (to != "onnx")
    assert report["agreement"] is None
    assert (report["pixels"] is None) == (to == "onnx")


@pytest.mark.parametrize("kind", FORMS)
def test_transformers_opens_it_and_so_does_load(kind, tmp_path, monkeypatch, capsys):
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    model = saved("model", kind, logit_bias=-3.0)
    exported("transformers", capsys)
    assert json.loads(Path("out/parity.json").read_text())["pixels"] == 0
    pixels, tokens = parity.inputs(model.config)
    again, _, _ = diffclip.load("out")
    found = parity.compare(model, again.encode_image, again.encode_text)
    assert (found.image, found.text) == (0, 0)

    double = transformers.AutoModel.from_pretrained("out", trust_remote_code=True)
    said = double(pixel_values=pixels, input_ids=tokens)
    ours = model(pixels, tokens)
    logits = ours["logit_scale"] * ours["image_features"] @ ours["text_features"].T + ours["logit_bias"]
    assert torch.allclose(said.logits_per_image, logits, atol=1e-4)
    with torch.no_grad():
        double.clip.text_projection.add_(1)
    double.save_pretrained("tuned")
    tuned, _, _ = diffclip.load("tuned")
    assert torch.equal(tuned.text_projection, model.text_projection + 1)


def test_transformers_pipeline_takes_the_folder(tmp_path, monkeypatch, capsys):
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    saved("model")
    exported("transformers", capsys)
    classify = transformers.pipeline("zero-shot-image-classification", "out", trust_remote_code=True)
    images, texts = parity.examples()
    found = classify(images[0], candidate_labels=texts[:3], hypothesis_template="{}")
    model, preprocess, tokenizer = diffclip.load("model")
    said = model(preprocess(images[0])[None], tokenizer(texts[:3]))
    wanted = (said["logit_scale"] * said["image_features"] @ said["text_features"].T).softmax(-1)[0]
    assert {one["label"]: pytest.approx(one["score"], abs=1e-5) for one in found} == dict(
        zip(texts, wanted.tolist(), strict=False)
    )


def test_sentence_transformers_opens_it(tmp_path, monkeypatch, capsys):
    library = pytest.importorskip("sentence_transformers")
    monkeypatch.chdir(tmp_path)
    model = saved("model", "diffclip")
    exported("sentence-transformers", capsys)
    assert json.loads(Path("out/parity.json").read_text())["pixels"] == 0
    assert diffclip.load("out")[0].config == model.config
    double = library.SentenceTransformer("out", trust_remote_code=True, device="cpu")
    assert double.get_embedding_dimension() == model.config.embed_dim
    double.save("again")
    _, texts = parity.examples()
    again = library.SentenceTransformer("again", trust_remote_code=True, device="cpu")
    assert (again.encode(texts) == double.encode(texts)).all()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("clip", {}),
        ("clip", {"vision_pre_norm": True, "vision_norm_eps": 1e-5, "vision_activation": "quick_gelu"}),
        ("clip", {"resize": "squash", "interpolation": "bilinear", "resize_to": 20, "text_attention": "differential"}),
        ("diffclip", {"resize": "shortest", "vision_depth": 3}),
        ("diffclip", {"resize": "shortest", "vision_depth": 3, "lambda_init": 0.1, "vision_norm_eps": 1e-6}),
        ("diffclip", {"resize": "shortest", "vision_depth": 3, "lambda_schedule": "depth"}),
    ],
)
def test_timm_opens_the_image_tower(kind, changes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    saved("model", kind, **changes)
    exported("timm", capsys)
    with pytest.raises(UserError, match=r"out is timm's vit_base_patch16_.*224, an image tower alone"):
        diffclip.load("out")


def test_timm_opens_layers_whose_keys_of_lambda_are_zero(tmp_path):
    from diffclip.models.export.timm import export

    model = small_model("diffclip").eval()
    attention = model.visual.blocks[0].attn
    with torch.no_grad():
        attention.lambda_k1.zero_()
    assert export(model, tmp_path).image <= 1e-5


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("differential_v2", {}, "vision_attention = 'differential_v2'"),
        ("diffclip", {}, "resize = 'longest'"),
        ("clip", {"vision_stem": "convolutions"}, "vision_stem = 'convolutions'"),
        ("clip", {"vision_norm_eps": 1e-4, "crop": "floor"}, "resolved_vision_norm_eps = 0.0001, crop = 'floor'"),
    ],
)
def test_timm_has_no_place_for_it(kind, changes, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved("model", kind, **changes)
    with pytest.raises(SystemExit, match=f"timm has no place for {said}.*--to transformers"):
        cli.main(["export", "model", "--to", "timm", "--out", "out"])
    assert not Path("out").exists()


@pytest.mark.parametrize("kind", ["diffclip", "differential_v2"])
def test_onnx_takes_any_batch(kind, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    from diffclip.models.export.onnx import IMAGE, PREPROCESS, TEXT, runs

    monkeypatch.chdir(tmp_path)
    model = saved("model", kind)
    exported("onnx", capsys)
    pixels, tokens = parity.inputs(model.config)
    with torch.no_grad():
        for count in (1, 5):
            images, texts = (runs(Path("out") / name) for name in (IMAGE, TEXT))
            assert torch.allclose(images(pixels[:count]), model.encode_image(pixels[:count]), atol=1e-5)
            assert torch.allclose(texts(tokens[:count]), model.encode_text(tokens[:count]), atol=1e-5)
    how = json.loads((Path("out") / PREPROCESS).read_text())
    assert how["pixels"]["resize"] == model.config.resize
    assert how["logits"]["scale"] == pytest.approx(1 / 0.07)


def test_onnx_in_int8_says_what_it_costs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    from PIL import Image

    from diffclip.models.export.onnx import IMAGE, TEXT, runs

    monkeypatch.chdir(tmp_path)
    model = saved("model", "diffclip")
    cli.main(["export", "model", "--to", "onnx", "--int8", "--out", "out"])
    report = json.loads(Path("out/parity.json").read_text())
    assert 1e-4 < report["image"] < 0.2
    assert f"the same for {100 * report['agreement']:.1f} % of images" in capsys.readouterr().out
    assert set(report["milliseconds"]) == {
        f"{who}, {what}" for who in ("torch", "double") for what in ("image", "text")
    }
    encoders = [runs(Path("out") / name) for name in (IMAGE, TEXT)]
    images, texts = parity.examples()
    assert parity.agreement(model, model.encode_image, model.encode_text, images, texts[:3]) == 1.0
    pixels, tokens = parity.inputs(model.config)
    with torch.no_grad():  # the same, one image at a time
        ours = model.encode_image(pixels) @ torch.nn.functional.normalize(model.encode_text(tokens[:3]), dim=-1).T
        same = [int(row.argmax()) for row in ours]
        double = encoders[0](pixels) @ torch.nn.functional.normalize(encoders[1](tokens[:3]), dim=-1).T
    found = parity.agreement(model, *encoders, images, texts[:3])
    assert found == sum(int(row.argmax()) == best for row, best in zip(double, same, strict=True)) / len(images)
    images[0].save("a.png")
    Image.new("RGB", (9, 9)).save("b.png")
    cli.main(
        ["export", "model", "--to", "onnx", "--int8", "--images", "a.png", "b.png", "--texts", "a", "b", "--out", "two"]
    )
    assert json.loads(Path("two/parity.json").read_text())["agreement"] in (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--to", "timm", "--int8"], "--int8 goes with --to onnx, not with --to timm"),
        (["--to", "onnx", "--texts", "a", "b"], "--images and --texts go with --int8"),
        (["--to", "onnx", "--int8", "--texts", "a"], "--texts: give two or more"),
        (["--to", "onnx", "--int8", "--images", "model/config.json"], "config.json cannot be used as an image: not an"),
        (["--to", "onnx", "--int8", "--images", "absent.png"], "cannot read absent.png: No such file"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved("model")
    with pytest.raises(SystemExit, match=said):
        cli.main(["export", "model", "--out", "out", *options])
    assert not Path("out").exists()


OWN = {"vision_pre_norm": True, "vision_norm_eps": 1e-5, "vision_activation": "quick_gelu"}
# The smallest image tower that timm names, with the smallest text tower beside it.
TIMM = TOWERS | {"image_size": 224, "patch_size": 16, "vision_width": 192, "vision_depth": 12, "vision_heads": 3}


@pytest.mark.parametrize(
    "changes", [{**TOWERS, **OWN, "text_mlp_ratio": 2.0}, {**TIMM, "resize": "squash", "logit_bias": -3.0}]
)
def test_open_clip_opens_it(changes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = saved("model", size=changes)
    exported("open_clip", capsys)
    double, _, _ = open_clip.create_model_and_transforms("local-dir:out")
    assert double.logit_scale == model.logit_scale
    assert model.config.logit_bias is None or double.logit_bias == model.logit_bias


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("diffclip", {}, "vision_attention = 'differential', text_attention = 'differential'"),
        ("clip", {}, "an image tower of 16 pixels in patches of 8"),
        ("clip", {"vision_pre_norm": True}, "eps = 1e-06, two activations"),
        ("clip", OWN | {"crop": "floor", "resize_to": 20}, "resize_to = 20, crop = 'floor'"),
        ("clip", OWN | {"vision_stem": "convolutions"}, "vision_stem = 'convolutions'"),
    ],
)
def test_open_clip_has_no_place_for_it(kind, changes, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved("model", kind, **changes)
    with pytest.raises(SystemExit, match=f"open_clip has no place for {said}.*--to transformers"):
        cli.main(["export", "model", "--to", "open_clip", "--out", "out"])
    assert not Path("out").exists()


def test_a_double_that_computes_something_else_is_not_passed_over(tmp_path, monkeypatch):
    from diffclip.models.export import open_clip as ours

    monkeypatch.chdir(tmp_path)
    saved("model", size={**TOWERS, **OWN})
    for number, wrong in enumerate(((1e-3, 0.0, 1.0, 1.0), (0.0, float("nan"), 1.0, 1.0), (0.0, 0.0, 1.0, 1.0, 0.1))):
        monkeypatch.setattr(ours, "_compare", lambda *_, wrong=wrong: parity.Parity(*wrong))
        with pytest.raises(SystemExit, match="do not use it: on 16 drawn scenes"):
            cli.main(["export", "model", "--to", "open_clip", "--out", f"out{number}"])


def test_a_folder_that_holds_something_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved("model")
    with pytest.raises(SystemExit, match="model is no empty folder"):
        cli.main(["export", "model", "--to", "transformers", "--out", "model"])


def test_a_vocabulary_of_its_own_is_refused(tmp_path):
    from diffclip.models.export.transformers import export

    with pytest.raises(UserError, match="vocab_size = 100"):
        export(small_model(vocab_size=100), tmp_path)
