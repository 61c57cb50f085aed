import numpy as np
import pytest
from made_results import make_run
from PIL import Image

from diffclip.analysis import relevance
from diffclip.data.sources import Example
from diffclip.data.tokenizer import get_tokenizer
from diffclip.data.transforms import EvalTransform, normalise
from diffclip.errors import UserError
from diffclip.models.weights.store import save
from diffclip.reporting.collect import collect
from diffclip.reporting.families import find_groups
from diffclip.reporting.figures.panels import attention_panel, group_panels, pair_of, scenes_that_name
from small_models import small_model


def tiny(kind):
    return small_model(kind, vision_depth=2).eval()


def picture(seed=0, height=30, width=50):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_a_panel_holds_each_model_s_maps_and_the_part_they_see():
    clip, diffclip = tiny("clip"), tiny("diffclip")
    panel = attention_panel(clip, diffclip, picture(), ["a red star", "a ring"])
    assert panel.queries == ("a red star", "a ring")
    assert np.array_equal(panel.image, picture()[:, 10:40])  # the centre, at the picture's own resolution
    for model, maps in ((clip, panel.baseline), (diffclip, panel.candidate)):
        pixels = normalise(EvalTransform(16)(picture())[None], model.config.image_mean, model.config.image_std)
        for query, found in zip(panel.queries, maps, strict=True):
            expected = relevance(model, pixels, get_tokenizer()([query]))[0]
            np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-7)


class Named:
    name = "named"

    def __len__(self):
        return 9

    def __getitem__(self, index):
        return Example(picture(index, 16, 16))

    def masks(self, index):
        return [(f"thing {n} of {index}", np.ones((16, 16), bool)) for n in range(index % 4)]


def test_the_first_scenes_that_name_enough_are_shown():
    found = scenes_that_name(Named(), count=3)
    names = [("thing 0 of 2", "thing 1 of 2"), ("thing 0 of 3", "thing 1 of 3"), ("thing 0 of 6", "thing 1 of 6")]
    assert [queries for _, queries in found] == names
    assert np.array_equal(found[2][0], picture(6, 16, 16))
    assert len(scenes_that_name(Named(), count=99)) == 4


def trained(folder, name, *, seed, data="scenes"):
    """A run directory with the weights of a tiny model."""
    run = make_run(folder / f"{name}-seed{seed}", seed=seed, preset=f"{name}_vit_t16", data=data)
    save(tiny(name), run)
    return run


def test_a_group_s_models_are_shown_with_one_seed(tmp_path):
    for name, seed in (("clip", 0), ("clip", 1), ("diffclip", 1), ("diffclip", 2)):
        trained(tmp_path, name, seed=seed)
    Image.fromarray(picture()).save(tmp_path / "desk.png")
    (one,) = find_groups(collect([tmp_path]))
    found = group_panels(one, [(tmp_path / "desk.png", ("a mug", "a lamp"))], scenes=1)
    assert (found.baseline, found.candidate) == ("CLIP", "DiffCLIP")
    mine, scene = found.panels
    assert mine.queries == ("a mug", "a lamp")
    assert len(scene.queries) == 2
    assert list(found.looks) == ["CLIP", "DiffCLIP"]
    assert np.array_equal(found.looks["CLIP"].image, mine.image)
    _, first, _, second = pair_of(one)
    assert (first.seed, second.seed) == (1, 1)
    (tmp_path / "no.png").write_text("x")
    with pytest.raises(UserError, match=r"no\.png is no image that can be read"):
        group_panels(one, [(tmp_path / "no.png", ("a mug",))], scenes=0)


def test_models_of_other_data_are_not_shown_scenes(tmp_path):
    for name in ("clip", "diffclip"):
        trained(tmp_path, name, seed=0, data="cc3m")
    (one,) = find_groups(collect([tmp_path]))
    assert group_panels(one, [], scenes=2) is None
    (tmp_path / "clip-seed0" / "model.safetensors").unlink()
    (one,) = find_groups(collect([tmp_path]))
    assert pair_of(one) is None
