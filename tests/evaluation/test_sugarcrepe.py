"""SugarCrepe: the rule, its means, its files."""

import json

import pytest
import torch
from dataset_files import jpeg, write

from diffclip.data.images import BadImage
from diffclip.data.scenes.compositional import NegativeSource
from diffclip.data.tokenizer import get_tokenizer
from diffclip.data.transforms import EvalTransform, normalise
from diffclip.errors import UserError
from diffclip.evaluation.datasets import open_dataset
from diffclip.evaluation.datasets.named import data_set
from diffclip.evaluation.datasets.sugarcrepe import COUNTS, SugarCrepeSource
from diffclip.evaluation.run import suite
from diffclip.evaluation.run.suite import DataSet
from diffclip.evaluation.tasks import sugarcrepe
from diffclip.models.clip import create_model
from small_models import PICTURES


def test_the_caption_must_score_higher_than_its_negative():
    image = torch.tensor([[1.0, 0.0]]).expand(3, 2)
    captions = torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.6, 0.8]])
    negatives = torch.tensor([[0.6, 0.8], [0.8, 0.6], [0.6, -0.8]])  # lower, higher, equal
    assert sugarcrepe.right(image, captions, negatives).tolist() == [True, False, False]


def test_accuracy_is_the_mean_over_kinds_and_a_group_the_mean_over_its_own():
    kinds = ["replace_obj"] * 4 + ["replace_att"] * 2 + ["swap_obj"]
    hits = torch.tensor([1, 1, 1, 0, 1, 0, 0]).bool()
    found = sugarcrepe.evaluate(hits, kinds, torch.arange(7))
    assert found.metrics == pytest.approx(
        {
            "accuracy": (3 / 4 + 1 / 2 + 0) / 3,
            "accuracy/replace": (3 / 4 + 1 / 2) / 2,
            "accuracy/swap": 0,
            "accuracy/replace_obj": 3 / 4,
            "accuracy/replace_att": 1 / 2,
            "accuracy/swap_obj": 0,
        }
    )
    assert set(found.chance.values()) == {0.5}
    assert set(found.chance) == set(found.values)
    assert found.values["accuracy/swap"].isnan().tolist() == [True] * 6 + [False]


def test_every_example_is_scored_with_its_own_captions_also_after_one_that_is_unreadable():
    class Damaged(NegativeSource):
        def __getitem__(self, index):
            if index == 3:
                raise BadImage("truncated")
            return super().__getitem__(index)

    torch.manual_seed(0)
    model, source = create_model("diffclip_vit_t16", **PICTURES).eval(), Damaged(count=2, size=16)
    measured, skipped = suite.measure(model, DataSet("scenes", source, ("sugarcrepe",)))
    found = measured["sugarcrepe"]
    assert skipped == {"truncated": 1}
    assert found.indices.tolist() == [index for index in range(14) if index != 3]
    config, by_hand = model.config, {}
    for index in found.indices.tolist():
        example = source[index]
        pixels = normalise(EvalTransform(16)(example.image)[None], config.image_mean, config.image_std)
        with torch.no_grad():
            image = model.encode_image(pixels, normalize=True)[0]
            own, negative = model.encode_text(get_tokenizer()(list(example.captions)), normalize=True) @ image
        by_hand[index] = float(own > negative)
    assert 0 < sum(by_hand.values()) < 13
    hits = torch.stack([found.values[f"accuracy/{kind}"] for kind in COUNTS]).nansum(0)
    assert hits.tolist() == list(by_hand.values())
    assert [int((~found.values[f"accuracy/{kind}"].isnan()).sum()) for kind in COUNTS] == [2, 1, 2, 2, 2, 2, 2]


def write_sugarcrepe(folder, counts=None, place="val2017"):
    """Each kind as its authors publish it, over images 0.jpg, 1.jpg, …."""
    for kind in COUNTS:
        count = (counts or {}).get(kind, 2)
        rows = [
            {"filename": f"{i}.jpg", "caption": f"{kind} {i}", "negative_caption": f"not {i}"} for i in range(count)
        ]
        write(folder / f"{kind}.json", json.dumps({str(number): row for number, row in enumerate(rows)}))
    for number in range(2):
        write(folder / place / f"{number}.jpg", jpeg(number))
    return folder


@pytest.mark.parametrize("place", ["val2017", ".", "coco/images/val2017", "../val2017", "../coco/val2017"])
def test_reads_the_authors_files_and_finds_the_images(tmp_path, caplog, place):
    source = SugarCrepeSource(write_sugarcrepe(tmp_path / "sugarcrepe", place=place))
    assert len(source) == 14
    assert source.kinds[:3] == ("replace_obj", "replace_obj", "replace_att")
    assert (source[1].image, source[1].captions) == (jpeg(1), ("replace_obj 1", "not 1"))
    assert "other counts than the published ones: 2 of replace_obj (1,652), 2 of replace_att (788)" in caplog.text
    assert "2 of swap_obj (246)" in caplog.text


def test_published_counts_pass_without_a_warning(tmp_path, caplog):
    folder = write_sugarcrepe(tmp_path / "sugarcrepe", COUNTS)
    source = open_dataset("sugarcrepe", tmp_path)
    assert len(source) == 7512
    assert not caplog.text
    with pytest.raises(BadImage, match="missing"):
        source[2]
    assert data_set(f"mine={folder}", ("sugarcrepe",)).has("negatives")


def test_what_is_missing_or_of_another_form_is_said(tmp_path):
    folder = write_sugarcrepe(tmp_path / "sugarcrepe")
    write(folder / "add_att.json", json.dumps({"0": {"filename": "0.jpg", "caption": "a"}}))
    with pytest.raises(UserError, match=r"add_att.json is no file of SugarCrepe: KeyError 'negative_caption'"):
        SugarCrepeSource(folder)
    write(folder / "add_att.json", json.dumps({"0": {"filename": "../x.jpg", "caption": "a", "negative_caption": "b"}}))
    with pytest.raises(UserError, match=r"add_att.json: expected a file name such as 000000085329.jpg, found ../x.jpg"):
        SugarCrepeSource(folder)
    write(folder / "add_att.json", "{}")
    with pytest.raises(UserError, match=r"expected filename, caption and negative_caption as text, found nothing"):
        SugarCrepeSource(folder)
    (folder / "add_att.json").unlink()
    with pytest.raises(UserError, match=r"lacks add_att.json of SugarCrepe"):
        SugarCrepeSource(folder)
    write_sugarcrepe(folder)
    for image in (folder / "val2017").iterdir():
        image.unlink()
    with pytest.raises(UserError, match=r"none of the 2 images of .* is there: put COCO's val2017 into it"):
        SugarCrepeSource(folder)
