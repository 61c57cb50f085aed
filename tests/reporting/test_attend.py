import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from diffclip import cli
from diffclip.analysis import image_attention, relevance, text_attention
from diffclip.analysis.look import LayerMaps, Look
from diffclip.commands.attend import _labels
from diffclip.data.tokenizer import get_tokenizer
from diffclip.data.transforms import EvalTransform, normalise
from diffclip.models.weights.store import save
from diffclip.reporting.figures import attention as figures
from small_models import small_model

TEXTS = ("a red star", "a ring beside a very long wall")


def tiny(kind):
    return small_model(kind, patch_size=4, vision_depth=2, vision_heads=4).eval()


def picture(height=30, width=50):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with both models in it and an image."""
    folder = tmp_path_factory.mktemp("attend")
    for kind in ("clip", "diffclip"):
        save(tiny(kind), folder / kind)
    Image.fromarray(picture()).save(folder / "image.png")
    return folder


def run(folder, *arguments):
    cli.main(["attend", str(folder / "clip"), str(folder / "image.png"), *map(str, arguments)])


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_the_command_writes_figures_and_every_map(here, tmp_path, ending, capsys):
    out, layers, heads, maps = (tmp_path / "new" / name for name in ("a.png", "b.pdf", "c.svg", f"d.{ending}"))
    asked = [argument for text in TEXTS for argument in ("--text", text)]
    run(here, "--beside", here / "diffclip", *asked, "--out", out, "--layers", layers, "--heads", heads, "--maps", maps)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.png", "b.pdf", "c.svg", f"d.{ending}"]
    assert Image.open(out).size[0] > 600
    printed = capsys.readouterr().out
    arrays = dict(np.load(maps)) if ending == "npz" else load_file(maps)
    tokens = get_tokenizer(77)(list(TEXTS))
    for number, kind in enumerate(("clip", "diffclip"), start=1):
        model, prefix = tiny(kind), f"model_{number}"
        batch = normalise(EvalTransform(16)(picture())[None], model.config.image_mean, model.config.image_std)
        assert np.array_equal(arrays[f"{prefix}/image"], picture()[:, 10:40])
        expected = relevance(model, batch.expand(2, -1, -1, -1), tokens)
        np.testing.assert_allclose(arrays[f"{prefix}/relevance"], expected.numpy(), rtol=1e-4, atol=1e-7)
        cosines = model.encode_image(batch, normalize=True) @ model.encode_text(tokens, normalize=True).T
        assert all(f"{kind}  {t}:  cosine {c:.3f}" in printed for t, c in zip(TEXTS, cosines[0].tolist(), strict=True))
        towers = {prefix: image_attention(model, batch), f"{prefix}/text_2": text_attention(model, tokens[1:])}
        for where, found in towers.items():
            for place, layer in enumerate(found, start=1):
                at = f"{where}/layer_{place:02d}"
                np.testing.assert_allclose(arrays[f"{at}/a1"], layer.a1[0].numpy(), atol=1e-6)
                if kind == "diffclip":
                    np.testing.assert_allclose(arrays[f"{at}/a2"], layer.a2[0].numpy(), atol=1e-6)
                    np.testing.assert_allclose(arrays[f"{at}/combined"], layer.combined[0].numpy(), atol=1e-6)
                    assert arrays[f"{at}/lambda"] == pytest.approx(layer.lam)
                else:
                    assert f"{at}/a2" not in arrays


def drawn(figure):
    """All that is shown as an image in a figure: its (data or pixels, limits)."""
    return [(image.get_array(), image.get_clim()) for axes in figure.axes for image in axes.get_images()]


def layers(seed, count, *, differential):
    generator = np.random.default_rng(seed)
    names = ("A1", "A2", "A1 − λA2") if differential else ("A",)
    lam = 0.8 if differential else None
    maps = ({name: generator.normal(size=(2, 4, 4)) for name in names} for _ in range(count))
    return Look(picture(), (), (), tuple(LayerMaps(of_layer, lam) for of_layer in maps), (), ())


def test_layer_and_head_figures_show_every_map_on_one_symmetric_scale():
    models = {
        "clip": layers(0, 2, differential=False),
        "diffclip": layers(1, 3, differential=True),
    }
    every = [m for of_model in models.values() for layer in of_model.class_token for m in layer.maps.values()]
    for figure, expected in (
        (figures.layer_figure(models), [m.mean(0) for m in every]),
        (figures.head_figure(models), [one for m in every for one in m]),
    ):
        shown = [(array, limits) for array, limits in drawn(figure) if array.shape == (4, 4)]
        assert len(shown) == len(expected) == len({tuple(m.ravel()) for m in expected})
        assert {tuple(array.ravel().tolist()) for array, _ in shown} == {tuple(m.ravel().tolist()) for m in expected}
        (low, high) = {limits for _, limits in shown}.pop()
        assert low == -high
        assert high == pytest.approx(np.quantile(np.abs(expected), figures.SCALE_QUANTILE))
        assert len({limits for _, limits in shown}) == 1


def test_the_relevance_figure_has_a_row_for_each_model_and_a_column_for_each_text():
    one = Look(picture(20, 20), (np.eye(4), np.zeros((4, 4))), (0.25, -0.001), (), (), ())
    figure = figures.relevance_figure({"one": one, "two": one}, TEXTS)
    assert len(drawn(figure)) == 2 * (1 + 2)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["", *TEXTS]
    assert [axes.get_xlabel() for axes in figure.axes[:3]] == ["", "cosine 0.25", "cosine 0.00, low: dimmed"]
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["one", "two"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.png"], "no text to look for"),
        (["--text", " ", "--out", "x.png"], "no text to look for"),
        (["--text", "a", "--out", "x.jpg"], "x.jpg: its name must end in one of .png, .pdf, .svg"),
        (["--text", "a", "--out", "x.png", "--maps", "x.pt"], "x.pt: its name must end in one of .safetensors, .npz"),
    ],
)
def test_what_is_wrong_is_told_before_any_model_is_read(here, arguments, message):
    with pytest.raises(SystemExit) as ended:
        cli.main(["attend", "no-such-model", str(here / "image.png"), *arguments])
    assert message in str(ended.value.code)


def test_an_image_that_is_none_is_told(here, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    for path, message in (
        (tmp_path / "absent.png", "cannot read .*absent.png: No such file"),
        (tmp_path / "broken.png", "broken.png cannot be used as an image: not an image"),
    ):
        with pytest.raises(SystemExit, match=message):
            cli.main(["attend", str(here / "clip"), str(path), "--text", "a", "--out", str(tmp_path / "x.png")])
    assert not (tmp_path / "x.png").exists()


def test_labels_tell_models_apart():
    assert _labels(["runs/clip", "runs/diffclip/"]) == ["clip", "diffclip"]
    assert _labels(["a/model", "b/model"]) == ["a/model", "b/model"]
    assert _labels(["a", "a"]) == ["a (1)", "a (2)"]


def test_maps_of_a_low_cosine_are_dimmed_and_controls_marked():
    def look(*scores):
        maps = tuple(np.arange(16.0).reshape(4, 4) for _ in scores)
        return Look(picture(), maps, scores, (), (), ())

    texts = ("a red star", "a blue arrow", "a heart")
    figure = figures.relevance_figure({"m": look(0.6, 0.35, 0.05)}, texts, controls=1)
    _, *places = figure.axes
    assert [place.get_title() for place in places] == ["a red star", "a blue arrow", "control: a heart"]
    assert [place.get_xlabel().endswith("low: dimmed") for place in places] == [False, False, True]
    bright = [place.images[0].get_array().max() for place in places]
    assert bright[2] < bright[0] == bright[1]
    assert figure.get_suptitle() == "Relevance, each map to its own scale"
    assert [figures.is_low(score, (0.3, 0.14, -0.1)) for score in (0.3, 0.14, -0.1)] == [False, True, True]
    assert figures.is_low(0.05, (0.05,))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--text", " "], "no text to look for"),
        (["--text", "x", "--out", "a.gif"], "must end in one of"),
        (["--text", "x", "--maps", "a.png"], "must end in one of"),
        (["--text", "x", "--layers", "a"], "must end in one of"),
    ],
)
def test_arguments_are_checked_before_torch_is_loaded(tmp_path, changed, message):
    Image.fromarray(picture()).save(tmp_path / "image.png")
    out = [] if "--out" in changed else ["--out", "a.png"]
    words = ["attend", str(tmp_path), str(tmp_path / "image.png"), *out, *changed]
    program = f"import sys, diffclip.cli as c\ntry: c.main({words!r})\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert message in done.stderr
    assert done.stdout.splitlines()[-1] == "False"
