"""torchvision's forms of the data sets, and captions that lie in a file beside the images."""

import hashlib
import json
import pickle

import numpy as np
import pytest
import torchvision
from dataset_files import error_of, jpeg, labels_of, write, write_dtd
from scipy.io import savemat

from diffclip.data.images import BadImage
from diffclip.evaluation.datasets import open_dataset, registry

# torchvision's forms


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


def write_pets(root):
    folder = root / "oxford-iiit-pet"
    for split, rows in (
        ("trainval", ["Abyssinian_1 1 1 1"]),
        ("test", ["american_bulldog_2 2 2 1", "Abyssinian_3 1 1 1"]),
    ):
        write(folder / "annotations" / f"{split}.txt", "\n".join(rows) + "\n")
        for row in rows:
            write(folder / "images" / f"{row.split()[0]}.jpg", jpeg())


def write_flowers(root, monkeypatch):
    folder = root / "flowers-102"
    folder.mkdir(parents=True)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[102, 1, 1, 2]])})
    savemat(folder / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[4, 1]]})
    sums = {
        key: (file, hashlib.md5((folder / file).read_bytes()).hexdigest())
        for key, file in (("label", "imagelabels.mat"), ("setid", "setid.mat"))
    }
    cls = torchvision.datasets.Flowers102
    monkeypatch.setattr(cls, "_file_dict", {**cls._file_dict, **sums})
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


@pytest.mark.parametrize("below", ["", "{name}"])  # as torchvision puts it into the root, or into a folder of its own
@pytest.mark.parametrize(
    ("name", "make", "splits", "first", "classnames", "templates"),
    [
        ("dtd", write_dtd, ("train", "val", "test"), "c.jpg", ("banded", "dotted"), 8),
        ("pets", write_pets, ("train", "test"), "american_bulldog_2.jpg", ("Abyssinian", "American Bulldog"), 1),
        ("fgvc_aircraft", write_aircraft, ("train", "val", "test"), "3.jpg", ("707-320", "F-16A/B"), 2),
        ("food101", write_food, ("train", "test"), "2.jpg", ("apple pie", "waffles"), 1),
    ],
)
def test_torchvision_folders(tmp_path, below, name, make, splits, first, classnames, templates):
    make(tmp_path / below.format(name=name))
    assert tuple(registry()[name].images) == splits
    for split in splits:
        assert len(open_dataset(name, tmp_path, split)) == (2 if split == "test" else 1)
    source = open_dataset(name, tmp_path)
    assert labels_of(source) == [1, 0]
    assert (source.classnames, len(source.templates)) == (classnames, templates)
    assert isinstance(source[0].image, bytes) or source[0].image.shape == (6, 8, 3)
    (image,) = tmp_path.rglob(first)
    image.write_bytes(b"no image")
    assert source[0].image == b"no image"  # torchvision decodes none of them
    image.unlink()
    with pytest.raises(BadImage, match="missing"):
        source[0]


def test_torchvision_flowers(tmp_path, monkeypatch):
    write_flowers(tmp_path / "flowers", monkeypatch)
    source = open_dataset("flowers", tmp_path)
    assert labels_of(source) == [1, 101]
    assert (len(source.classnames), source.classnames[0]) == (102, "pink primrose")
    assert source[1].image == jpeg(1)
    assert labels_of(open_dataset("flowers", tmp_path, "val")) == [0, 1]


@pytest.mark.parametrize("below", ["caltech101/101_ObjectCategories", "caltech-101/101_ObjectCategories"])
def test_caltech101_is_split_by_class_and_keeps_the_background(tmp_path, below):
    classes = ("BACKGROUND_Google", "Faces", "accordion")
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
    assert test.classnames == ("BACKGROUND Google", "Faces", "accordion")  # 3, not the 102 that have other names


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
    assert "/q/quay/sun_q.jpg is in no class of ClassName.txt" in error_of("sun397", tmp_path, "train")


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
