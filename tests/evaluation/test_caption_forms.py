"""Captions beside images as people have them: `eval` and `diffclip data` read the same, and say what does not fit."""

import json
import logging
from functools import partial

import pytest
from dataset_files import jpeg, write

from diffclip.data.options import Located
from diffclip.errors import UserError
from diffclip.evaluation.datasets import open_dataset
from diffclip.evaluation.datasets.captions import caption_form
from diffclip.evaluation.datasets.dataset import offers
from diffclip.evaluation.datasets.folders import open_given
from diffclip.evaluation.datasets.named import data_set
from diffclip.evaluation.datasets.opening import locate
from diffclip.evaluation.datasets.registry import registry

TEXTS = {"1_a.jpg": ("A dog, and a cat", 'The "big" one'), "2_b.jpg": ("one", "two"), "3_c.jpg": ("x", "y")}


def images(folder, names=TEXTS):
    for number, name in enumerate(names):
        write(folder / name, jpeg(number))


def kaggle8k(root):
    images(root / "Images")
    lines = ['1_a.jpg,"A dog, and a cat"', '1_a.jpg,"The ""big"" one"', "2_b.jpg,one", "2_b.jpg,two", "3_c.jpg,x"]
    write(root / "captions.txt", "\r\n".join(["image,caption", *lines, "3_c.jpg,y", ""]))


def kaggle30k(root):
    images(root / "flickr30k_images" / "flickr30k_images")
    lines = [f"{name}| {i}| {text} ." for name, texts in TEXTS.items() for i, text in enumerate(texts)]
    write(root / "results.csv", "\n".join(["image_name| comment_number| comment", *lines]))


def authors8k(root):
    images(root / "Flicker8k_Dataset")
    lines = [f"{name}#{i}\t{text}" for name, texts in TEXTS.items() for i, text in enumerate(texts)]
    write(root / "Flickr8k_text" / "Flickr8k.token.txt", "\n".join(lines))


def authors8k_divided(root):
    authors8k(root)
    for own, name in (("train", "1_a.jpg"), ("dev", "2_b.jpg"), ("test", "3_c.jpg")):
        write(root / "Flickr8k_text" / f"Flickr_8k.{own}Images.txt", f"{name}\n")


def authors30k(root):
    images(root / "flickr30k-images")
    lines = [f"{name}#{i}\t{text}" for name, texts in TEXTS.items() for i, text in enumerate(texts)]
    write(root / "results_20130124.token", "\n".join(lines))


def karpathy(root):
    images(root / "img")
    splits = ("restval", "val", "test")
    table = [
        {"filename": name, "split": split, "sentences": [{"raw": text} for text in texts]}
        for split, (name, texts) in zip(splits, TEXTS.items(), strict=True)
    ]
    write(root / "dataset_flickr8k.json", json.dumps({"images": table}))


def coco(root, split="val2017"):
    images(root / split)
    table = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(TEXTS)],
        "annotations": [{"image_id": i, "caption": t} for i, texts in enumerate(TEXTS.values()) for t in texts],
    }
    write(root / "annotations" / f"captions_{split}.json", json.dumps(table))
    write(root / "annotations" / f"instances_{split}.json", "{}")


def captions_of(source):
    return {source[i].image: source[i].captions for i in range(len(source))}


WHOLE = {jpeg(i): texts for i, texts in enumerate(TEXTS.values())}


@pytest.mark.parametrize("form", [kaggle8k, authors8k, authors30k, coco])
def test_undivided_forms(tmp_path, form):
    form(tmp_path / "mine")
    expected = WHOLE
    assert captions_of(open_given(Located(path=str(tmp_path / "mine")))) == expected
    opened = data_set(f"some={tmp_path / 'mine'}", ("retrieval",))
    assert "captions" in offers(opened)
    assert captions_of(opened.test) == expected


def test_a_table_cut_by_bars(tmp_path):
    kaggle30k(tmp_path / "mine")
    expected = {image: tuple(f"{text} ." for text in texts) for image, texts in WHOLE.items()}
    assert captions_of(open_given(Located(path=str(tmp_path / "mine")))) == expected


@pytest.mark.parametrize("form", [karpathy, authors8k_divided])
def test_divided_forms(tmp_path, form):
    form(tmp_path / "mine")
    with pytest.raises(UserError, match="holds the splits train, val, test: choose one with split"):
        open_given(Located(path=str(tmp_path / "mine")))
    with pytest.raises(UserError, match="holds no split 'all': it has train, val, test"):
        open_given(Located(path=str(tmp_path / "mine"), split="all"))
    opened = data_set(f"some={tmp_path / 'mine'}", ("retrieval",))
    for place, split in enumerate(("train", "val", "test")):
        expected = {jpeg(place): list(TEXTS.values())[place]}
        assert captions_of(open_given(Located(path=str(tmp_path / "mine"), split=split))) == expected
        assert captions_of(opened.split(split)) == expected


@pytest.mark.parametrize(
    ("name", "form", "count"),
    [
        ("flickr8k", kaggle8k, 3),
        ("flickr8k", authors8k_divided, 1),
        ("flickr8k", karpathy, 1),
        ("flickr30k", authors30k, 3),
        ("mscoco_captions", coco, 3),
        ("mscoco_captions", partial(coco, split="val2014"), 3),
    ],
)
def test_names_of_the_registry_have_the_same_forms(tmp_path, caplog, monkeypatch, name, form, count):
    form(tmp_path / name)
    assert len(open_dataset(name, tmp_path)) == count
    divided = form in (karpathy, authors8k_divided)
    assert ("are taken, not the published one" in caplog.text) == (not divided)
    monkeypatch.setenv("DIFFCLIP_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path.parent)
    assert len(open_given(Located(path=name))) == count


def test_torchvision_s_folders(tmp_path):
    folder = tmp_path / "data" / "oxford-iiit-pet"
    for number, name in enumerate(("Abyssinian_1", "beagle_2")):
        write(folder / "images" / f"{name}.jpg", jpeg(number))
    for file in ("trainval.txt", "test.txt"):
        write(folder / "annotations" / file, "Abyssinian_1 1 1 1\nbeagle_2 2 2 1\n")
    for place in (folder, folder.parent):
        source = open_given(Located(path=str(place), split="test"))
        assert (len(source), source.classnames) == (2, ("Abyssinian", "Beagle"))
        assert data_set(f"mine={place}", ("zero_shot",)).test.classnames == source.classnames
        with pytest.raises(UserError, match="holds the splits train, test: choose one"):
            open_given(Located(path=str(place)))


def test_what_does_not_fit_is_told(tmp_path, caplog):
    images(tmp_path / "Images", [*TEXTS, "4_d.jpg"])
    lines = ["1_a.jpg,one", "1_a.jpg,", "no picture here", "2_b.jpg,two", "gone.jpg,there", "3_c.jpg,  "]
    write(tmp_path / "captions.txt", "\n".join(["image,caption", *lines]))
    with caplog.at_level(logging.WARNING):
        source = open_given(Located(path=str(tmp_path)))
    assert [len(source._captions[i]) for i in range(4)] == [1, 1, 1, 0]
    for remark in (
        "captions.txt: 1 of 7 lines have no image and caption; the first is line 4",
        "2 captions are empty and are left out",
        "1 images have no caption",
        "1 of 4 images below",
    ):
        assert remark in caplog.text


def test_files_of_several_data_sets_need_a_name(tmp_path):
    karpathy(tmp_path / "mine")
    write(tmp_path / "mine" / "dataset_coco.json", "{}")
    with pytest.raises(UserError, match="has the captions of several data sets"):
        caption_form(tmp_path / "mine")
    assert caption_form(tmp_path / "mine", "flickr8k").splits == ("train", "val", "test")


def test_images_without_known_captions_are_refused_by_a_set_of_captions(tmp_path):
    images(tmp_path / "flickr8k" / "Flicker8k_Dataset")
    with pytest.raises(UserError, match=r"flickr8k has images but no captions of flickr8k in a known form"):
        open_dataset("flickr8k", tmp_path)


def test_captions_of_one_data_set_are_no_other_s(tmp_path):
    kaggle8k(tmp_path / "flickr8k")
    karpathy(tmp_path / "flickr30k")  # with the file of another
    assert locate(registry()["flickr8k"], tmp_path).path == tmp_path / "flickr8k"
    assert locate(registry()["mscoco_captions"], tmp_path) is None
    write(tmp_path / "dataset_coco.json", "{")  # which is read only when it is opened
    write(tmp_path / "dataset_flickr30k.json", "{")
    assert locate(registry()["mscoco_captions"], tmp_path).path == tmp_path


def test_images_behind_links_are_found(tmp_path):
    coco(tmp_path / "real")
    (tmp_path / "mine").mkdir()
    for name in ("val2017", "annotations"):
        (tmp_path / "mine" / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "mine" / "loop").symlink_to(tmp_path / "mine")
    assert captions_of(open_given(Located(path=str(tmp_path / "mine")))) == WHOLE
