"""The authors' archives of data sets, and captions that lie in a file beside the images."""

import hashlib
import io
import json
import pickle

import numpy as np
import pytest
import torchvision
from dataset_files import error_of, jpeg, labels_of, write, write_dtd
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import Flowers102

from diffclip.data.images import BadImage
from diffclip.errors import UserError
from diffclip.evaluation.datasets import open_dataset, registry
from diffclip.evaluation.datasets.folders import splits_in

# The authors' archives


def official(monkeypatch, cls, attribute, files):
    """Let torchvision take our files for the official ones, whose checksums it knows."""
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in files}
    monkeypatch.setattr(cls, attribute, [[name, value] for name, value in sums.items()])


def write_cifar(root, monkeypatch, hundred):
    cls = torchvision.datasets.CIFAR100 if hundred else torchvision.datasets.CIFAR10
    folder = root / cls.base_folder
    key = "fine_labels" if hundred else "labels"
    for attribute, names_, first in (
        ("train_list", [row[0] for row in cls.train_list], 0),
        ("test_list", [cls.test_list[0][0]], 1),
    ):
        batch = {"data": np.full((2, 3072), 100, np.uint8), key: [first, 1]}
        batch["data"][:, :1024] = 7  # the red plane comes first
        official(monkeypatch, cls, attribute, [write(folder / name, pickle.dumps(batch)) for name in names_])
    meta = write(folder / cls.meta["filename"], pickle.dumps({cls.meta["key"]: ["apple", "aquarium_fish"]}))
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": hashlib.md5(meta.read_bytes()).hexdigest()})
    return folder


@pytest.mark.parametrize("hundred", [False, True])
def test_torchvision_cifar(tmp_path, monkeypatch, hundred):
    folder = write_cifar(tmp_path, monkeypatch, hundred)
    name = "cifar100" if hundred else "cifar10"
    source = open_dataset(name, tmp_path)
    assert labels_of(source) == [1, 1]
    assert source[0].image.shape == (32, 32, 3)
    assert source[0].image[0, 0].tolist() == [7, 100, 100]
    assert source.classnames == ("apple", "aquarium fish")
    assert len(source.templates) == 18
    train = open_dataset(name, tmp_path, "train")
    assert labels_of(train) == ([0, 1] if hundred else [0, 1] * 5)
    assert labels_of(pickle.loads(pickle.dumps(train))) == labels_of(train)
    write(next(folder.glob("test*")), pickle.dumps("another file than the official one"))
    assert "cannot be read: Dataset not found or corrupted" in error_of(name, tmp_path)
    folder.rename(tmp_path / "unpacked")  # under any name
    assert "cannot be read: Dataset not found or corrupted" in error_of(name, tmp_path)


def write_pets(root):
    folder = root / "oxford-iiit-pet"
    for split, rows in (
        ("trainval", ["Abyssinian_1 1 1 1"]),
        ("test", ["american_bulldog_2 2 2 1", "Abyssinian_3 1 1 1"]),
    ):
        write(folder / "annotations" / f"{split}.txt", "\n".join(rows) + "\n")
        for row in rows:
            write(folder / "images" / f"{row.split()[0]}.jpg", jpeg())


def write_flowers(root):
    folder = root / "flowers-102"
    folder.mkdir(parents=True)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[102, 1, 1, 2]])})
    savemat(folder / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[4, 1]]})
    for i in range(1, 5):
        write(folder / "jpg" / f"image_{i:05}.jpg", jpeg(i))


def write_aircraft(root):
    folder = root / "fgvc-aircraft-2013b" / "data"
    write(folder / "variants.txt", "707-320\nF-16A/B\n")
    for split, rows in (("train", ["1 707-320"]), ("val", ["2 F-16A/B"]), ("test", ["3 F-16A/B", "4 707-320"])):
        write(folder / f"images_variant_{split}.txt", "\n".join(rows) + "\n")
        for row in rows:
            write(folder / "images" / f"{row.split()[0]}.jpg", jpeg(int(row[0])))


def write_food(root):
    for split, table in (
        ("train", {"apple_pie": ["apple_pie/1"]}),
        ("test", {"waffles": ["waffles/2"], "apple_pie": ["apple_pie/3"]}),
    ):
        write(root / "food-101" / "meta" / f"{split}.json", json.dumps(table))
        for name in (name for names_ in table.values() for name in names_):
            write(root / "food-101" / "images" / f"{name}.jpg", jpeg(int(name[-1])))


AUTHORS = {  # name → what writes it, splits, class names, labels of test, number of templates
    "dtd": (write_dtd, ("train", "val", "test"), ("banded", "dotted"), [1, 0], 8),
    "pets": (write_pets, ("train", "test"), ("Abyssinian", "American Bulldog"), [1, 0], 1),
    "fgvc_aircraft": (write_aircraft, ("train", "val", "test"), ("707-320", "F-16A/B"), [1, 0], 2),
    "food101": (write_food, ("train", "test"), ("apple pie", "waffles"), [1, 0], 1),
    "flowers": (write_flowers, ("train", "val", "test"), Flowers102.classes, [1, 101], 1),
}


@pytest.mark.parametrize("below", ["", "{name}"])  # as torchvision puts it into the root, or into a folder of its own
@pytest.mark.parametrize("name", AUTHORS)
def test_authors_archives_as_torchvision_reads_them(tmp_path, monkeypatch, below, name):
    make, splits, classnames, labels, templates = AUTHORS[name]
    root = tmp_path / below.format(name=name)
    make(root)
    assert tuple(registry()[name].images) == splits
    source = open_dataset(name, tmp_path)
    assert labels_of(source) == labels
    assert (source.classnames, len(source.templates)) == (tuple(classnames), templates)
    monkeypatch.setattr(Flowers102, "_check_integrity", lambda self: True)
    for split in splits:
        source = open_dataset(name, tmp_path, split)
        own = "trainval" if (name, split) == ("pets", "train") else split
        images = [Image.open(io.BytesIO(source[i].image)).tobytes() for i in range(len(source))]
        theirs = getattr(torchvision.datasets, registry()[name].torchvision)(root, own)
        names = [source.classnames[label].lower() for label in labels_of(source)]
        assert [(image.tobytes(), theirs.classes[label].replace("_", " ").lower()) for image, label in theirs] == [
            *zip(images, names, strict=True)
        ]


def unpacked(root, name):
    """The folder of the authors' archive: where its lists lie, or for Aircraft above them."""
    AUTHORS[name][0](root / "as_torchvision")
    deepest = {"dtd": "dtd/dtd"}.get(name)
    return root / "as_torchvision" / deepest if deepest else next((root / "as_torchvision").iterdir())


@pytest.mark.parametrize("place", [".", "data sets/x", "below/{name}"])
@pytest.mark.parametrize("name", AUTHORS)
def test_authors_archives_in_folders_of_any_name(tmp_path, place, name):
    folder = tmp_path / place.format(name=name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        for entry in unpacked(tmp_path / "made", name).iterdir():
            entry.rename(folder / entry.name)
    else:
        unpacked(tmp_path / "made", name).rename(folder)
    assert labels_of(open_dataset(name, folder, own=True)) == AUTHORS[name][3]  # `--data pets=FOLDER`
    assert labels_of(open_dataset(name, folder.parent if place != "." else folder)) == AUTHORS[name][3]  # `--root`
    assert labels_of(splits_in(folder)["test"]()) == AUTHORS[name][3]  # `--data mine=FOLDER`


def test_a_folder_of_several_archives_under_a_name_of_ones_own(tmp_path):
    write_pets(tmp_path)
    write_food(tmp_path)
    with pytest.raises(UserError, match="holds several data sets, food101, pets: name the folder of one"):
        splits_in(tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "text", "told"),
    [
        ("pets", "annotations/test.txt", "Abyssinian_3\n", "test.txt:1: expected an image, the number of its class"),
        ("pets", "annotations/test.txt", None, "has the lists of pets, but cannot be read: .*No such file"),
        ("dtd", "labels/test1.txt", "\n\nbanded.jpg", "test1.txt:3: expected a class, a slash and a file"),
        ("fgvc_aircraft", "images_variant_test.txt", "3 Concorde", "is in the class 'Concorde', which fgvc_aircraft"),
        ("food101", "meta/test.json", "[1]", "expected a list of images for each class"),
        ("food101", "meta/test.json", "{", "has the lists of food101, but cannot be read: Expecting"),
        ("flowers", "setid.mat", "no mat", "has the lists of flowers, but cannot be read"),
    ],
)
def test_lists_that_say_something_else(tmp_path, name, file, text, told):
    folder = unpacked(tmp_path, name)
    list_of_images = next(folder.rglob(file))
    list_of_images.unlink() if text is None else list_of_images.write_text(text)
    with pytest.raises(UserError, match=told):
        open_dataset(name, folder, own=True)


def test_an_image_that_a_list_names_and_that_is_not_there(tmp_path):
    folder = unpacked(tmp_path, "pets")
    (folder / "images" / "american_bulldog_2.jpg").unlink()
    with pytest.raises(BadImage, match="missing"):
        open_dataset("pets", folder, own=True)[0]


def test_labels_outside_the_classes_of_flowers(tmp_path):
    folder = unpacked(tmp_path, "flowers")
    savemat(folder / "imagelabels.mat", {"labels": np.array([[103, 1, 1, 2]])})
    assert "imagelabels.mat holds labels from 1 to 102, and no other" in error_of("flowers", folder, own=True)
    savemat(folder / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[5, 1]]})
    assert "setid.mat names images from 1 to 4" in error_of("flowers", folder, own=True)


@pytest.mark.parametrize("below", ["caltech101/101_ObjectCategories", "caltech-101/101_ObjectCategories", "any name"])
def test_caltech101_is_split_by_class_and_keeps_the_background(tmp_path, below):
    classes = ("BACKGROUND_Google", "Faces_easy", "accordion")
    for number, name in enumerate(classes):
        for i in range(31 + number):
            write(tmp_path / below / name / f"image_{i:04}.jpg", name.encode() + bytes([i]))
    write(tmp_path / below / "BACKGROUND_Google" / "tmp", "")
    train, test = (open_dataset("caltech101", tmp_path, split) for split in ("train", "test"))
    assert labels_of(train) == [0] * 30 + [1] * 30 + [2] * 30
    assert labels_of(test) == [0, 1, 1, 2, 2, 2]
    images = [source[i].image for source in (train, test) for i in range(len(source))]
    assert len(set(images)) == len(images) == 96
    assert all(
        image.startswith(classes[label].encode())
        for image, label in zip(images, labels_of(train) + labels_of(test), strict=True)
    )
    assert [source[0].image for source in (train, test)] == [
        b"BACKGROUND_Google\0",
        b"BACKGROUND_Google\x04",
    ]  # the same everywhere
    assert test.classnames == ("BACKGROUND Google", "Faces easy", "accordion")  # 3, not the 102 that have other names


def test_all_classes_of_caltech101_get_the_usual_names(tmp_path):
    folders = ["BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "Motorbikes", *(f"z{i:02}" for i in range(97))]
    for name in folders:
        write(tmp_path / "caltech101" / "101_ObjectCategories" / name / "1.jpg", jpeg())
    found = open_dataset("caltech101", tmp_path, "train").classnames
    assert found[:5] == ("background", "off-center face", "centered face", "leopard", "motorbike")


def test_sun397_by_the_authors_lists_or_as_a_whole(tmp_path, caplog):
    folder = tmp_path / "SUN397"
    write(folder / "ClassName.txt", "/a/abbey\n/a/apartment_building/outdoor\n")
    images = ["/a/abbey/sun_b.jpg", "/a/apartment_building/outdoor/sun_a.jpg", "/a/abbey/sun_c.jpg"]
    for i, name in enumerate(images):
        write(folder / name[1:], jpeg(i))
    whole = open_dataset("sun397", tmp_path)
    assert labels_of(whole) == [0, 0, 1]
    assert whole.classnames == ("abbey", "apartment building outdoor")
    assert "3 test images, but 19,850 are published" in caplog.text
    assert "has no Training_01.txt" in error_of("sun397", tmp_path, "train")
    write(folder / "Partitions" / "Training_01.txt", images[2])
    write(folder / "Partitions" / "Testing_01.txt", f"{images[1]}\r\n{images[0]}\r\n")
    assert [open_dataset("sun397", tmp_path)[i].image for i in range(2)] == [jpeg(1), jpeg(0)]
    assert labels_of(open_dataset("sun397", tmp_path, "train")) == [0]
    write(folder / "Partitions" / "Training_01.txt", "/q/quay/sun_q.jpg")
    assert "q/quay/sun_q.jpg is in the class 'q/quay', which sun397 does not have" in error_of(
        "sun397", tmp_path, "train"
    )


# Captions beside images


KARPATHY = {
    "images": [
        {"filename": "a.jpg", "split": "test", "sentences": [{"raw": "one "}, {"raw": "two"}]},
        {"filename": "b.jpg", "split": "train", "sentences": [{"raw": "three"}]},
        {"filepath": "val2014", "filename": "c.jpg", "split": "test", "sentences": [{"raw": "four"}]},
    ]
}
COCO = {
    "images": [{"id": 7, "file_name": "c.jpg"}, {"id": 5, "file_name": "a.jpg"}],
    "annotations": [
        {"image_id": 5, "caption": "one"},
        {"image_id": 7, "caption": "four"},
        {"image_id": 5, "caption": "two"},
    ],
}
LINES = "image,caption\na.jpg,one\na.jpg,two\n\nc.jpg,four, with a comma\n"


@pytest.mark.parametrize(
    ("name", "file", "content", "expected"),
    [
        ("mscoco_captions", "dataset_coco.json", json.dumps(KARPATHY), {"a": ("one", "two"), "c": ("four",)}),
        ("mscoco_captions", "coco_test_karpathy.json", json.dumps(COCO), {"a": ("one", "two"), "c": ("four",)}),
        ("flickr30k", "flickr30k_test_karpathy.txt", LINES, {"a": ("one", "two"), "c": ("four, with a comma",)}),
        ("flickr8k", "dataset_flickr8k.json", json.dumps(KARPATHY), {"a": ("one", "two"), "c": ("four",)}),
    ],
)
def test_captions_beside_images(tmp_path, name, file, content, expected):
    folder = tmp_path / name
    write(folder / file, content)
    assert "and none of them is in" in error_of(name, tmp_path)
    images = {image: write(folder / "val2014" / f"{image}.jpg", jpeg(ord(image))) for image in "abc"}
    source = open_dataset(name, tmp_path)
    found = {source[i].captions: source[i].image for i in range(len(source))}
    assert found == {captions: jpeg(ord(image)) for image, captions in expected.items()}
    assert source.classnames is None
    images["c"].unlink()
    with pytest.raises(BadImage, match="missing"):
        [source[i] for i in range(2)]
    write(folder / file, "nothing" if file.endswith("txt") else "{}")
    assert "captions" in error_of(name, tmp_path)
