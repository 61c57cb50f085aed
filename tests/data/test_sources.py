"""Every format gives the same examples back, and every mistake is one line that says what is there."""

import csv
import errno
import io
import json
import os
import pickle
import re
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffclip.data import sources
from diffclip.data.formats import parquet
from diffclip.data.images import BadImage
from diffclip.data.sources import Example, captions_of, open_source
from diffclip.errors import UserError


def jpeg(shade=0):
    file = io.BytesIO()
    Image.new("L", (8, 8), shade).save(file, "JPEG")
    return file.getvalue()


IMAGES = [jpeg(10 * i) for i in range(6)]


def hub_table(images=IMAGES, labels=(0, 1, 2, 1, 0, -1), names=("cat", "dog", "ice cream"), image="img", label="label"):
    """A table as the hub's `datasets` library writes it."""
    features = {image: {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"}}
    rows = [{"bytes": data, "path": None} for data in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [(image, kind), (label, pa.int64())], {"huggingface": json.dumps({"info": {"features": features}})}
    )
    return pa.table({image: pa.array(rows, kind), label: pa.array(labels)}, schema)


def captioned(captions, kind, image="image"):
    return pa.table({image: pa.array(IMAGES[: len(captions)], pa.binary()), "caption": pa.array(captions, kind)})


def error_of(*args, **options):
    with pytest.raises(UserError) as caught:
        open_source(*map(str, args), **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def everything(source):
    return [source[i] for i in range(len(source))]


# Parquet


def test_parquet_of_the_hub(tmp_path):
    pq.write_table(hub_table(), tmp_path / "train-00000-of-00001.parquet")
    source = open_source(str(tmp_path))
    assert len(source) == 6
    assert source.classnames == ("cat", "dog", "ice cream")
    assert source.templates == ("a photo of a {c}.",)
    assert everything(source) == [
        Example(image, label=label) for image, label in zip(IMAGES, [0, 1, 2, 1, 0, None], strict=True)
    ]
    assert captions_of(source, source[2]) == ("a photo of a ice cream.",)
    assert captions_of(source, source[5]) == ()
    copy = pickle.loads(pickle.dumps(source))
    assert everything(copy) == everything(source)


@pytest.mark.parametrize("small_memory", [False, True])
def test_parquet_in_many_files_and_row_groups(tmp_path, monkeypatch, caplog, small_memory):
    if small_memory:
        monkeypatch.setattr(parquet, "KEPT_IN_MEMORY", 700)
    table = hub_table(IMAGES * 3, [0, 1, 2] * 6)
    for number, (first, last, group) in enumerate([(0, 7, 2), (7, 8, 9), (8, 18, 3)]):
        pq.write_table(table.slice(first, last - first), tmp_path / f"train-{number}.parquet", row_group_size=group)
    source = open_source(str(tmp_path))
    order = np.random.default_rng(0).permutation(18)
    assert [(source[i].image, source[i].label) for i in order] == [((IMAGES * 3)[i], i % 3) for i in order]
    assert ("convert it to tar shards" in caplog.text) == small_memory
    if small_memory:
        assert len(source._kept) <= 2


@pytest.mark.parametrize(
    ("captions", "kind", "expected"),
    [
        (["a cat", "", None], pa.string(), [("a cat",), (), ()]),
        ([["a", " ", "b"], [], None], pa.list_(pa.string()), [("a", "b"), (), ()]),
        (["ä", "b", "c"], pa.large_string(), [("ä",), ("b",), ("c",)]),
    ],
)
def test_parquet_with_captions(tmp_path, captions, kind, expected):
    pq.write_table(captioned(captions, kind), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert [e.captions for e in everything(source)] == expected
    assert (source.classnames, source.templates) == (None, None)


def test_parquet_with_a_column_for_each_caption(tmp_path):
    table = pa.table({"image": IMAGES[:2], "caption_0": ["a", None], "caption_1": ["b", "c"], "md5": ["x", "y"]})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert [e.captions for e in everything(source)] == [("a", "b"), ("c",)]


def test_parquet_columns_can_be_chosen(tmp_path):
    table = captioned(["a", "b"], pa.string(), "x").append_column("y", pa.array(["dog", "cat"]))
    table = table.append_column("thumb", pa.array([b"1", b"2"])).append_column("alt", pa.array(["c", "d"]))
    file = tmp_path / "a.parquet"
    pq.write_table(table, file)
    source = open_source(str(file), image_key="thumb", caption_key="alt", label_key="y")
    assert everything(source) == [Example(b"1", ("c",), 1), Example(b"2", ("d",), 0)]
    assert source.classnames == ("cat", "dog")
    assert error_of(file, image_key="img") == f"{file} has no column 'img'; it has x, caption, y, thumb, alt"
    assert error_of(file, image_key="alt") == f"{file}: column 'alt' holds string, not encoded images"
    assert error_of(file, caption_key="thumb") == f"{file}: column 'thumb' holds binary, not captions"
    assert "has no column 'z'" in error_of(file, label_key="z")
    message = error_of(file, label_key="y", classnames=["dog"])
    assert message == f"{file}: the label 'cat' is not among the 1 class names given"


def test_parquet_mistakes(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"url": ["u"], "caption": ["c"]}), file)
    assert error_of(file) == f"{file}: no column holds encoded images; it has url (string), caption (string)"
    pq.write_table(pa.table({"image": [b""], "md5": ["c"]}), file)
    assert "neither captions nor labels recognised among its columns (image, md5)" in error_of(file)
    pq.write_table(hub_table().slice(0, 0), file)
    assert error_of(file) == f"{file} holds no rows"
    pq.write_table(hub_table(), file)
    assert error_of(file, classnames=["a", "b"]) == f"{file} has labels up to 2, but there are 2 class names"
    pq.write_table(hub_table(image="image"), tmp_path / "b.parquet")
    assert error_of(tmp_path) == f"{tmp_path / 'b.parquet'} has no column 'img'; it has image, label; is it image?"
    file.write_bytes(b"PAR1 no")
    assert error_of(file).startswith(f"{file} cannot be read as parquet: ")
    fine, coarse = hub_table(label="fine_label"), hub_table(label="coarse_label")
    both = fine.append_column(coarse.schema.field("coarse_label"), coarse["coarse_label"])
    features = {name: {"_type": "ClassLabel", "names": ["a", "b", "c"]} for name in ("fine_label", "coarse_label")}
    both = both.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(both, file)
    assert "several label columns (fine_label, coarse_label): choose one with label_key" in error_of(file)
    assert open_source(str(file), label_key="coarse_label").classnames == ("a", "b", "c")


def test_parquet_damaged_inside(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(hub_table(), file, compression="gzip")
    data = bytearray(file.read_bytes())
    data[4:600] = bytes(596)
    file.write_bytes(data)
    assert error_of(file).startswith(f"{file}: row group 0 cannot be read: ")


# Tables of paths


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "images").mkdir()
    for i, data in enumerate(IMAGES):
        (tmp_path / "images" / f"{i}.jpg").write_bytes(data)
    return tmp_path


def write_table(path, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t"), ("b.csv", "\t")])
def test_tables_of_captions(pictures, name, delimiter):
    rows = [
        ("filepath", "title"),
        ("images/0.jpg", 'a "quoted", cat'),
        (str(pictures / "images" / "1.jpg"), "two\nlines"),
        ("images/0.jpg", "another of the same, ä"),
        ("images/none.jpg", "gone"),
        ("images/2.jpg", ""),
    ]
    source = open_source(str(write_table(pictures / name, rows, delimiter)))
    assert [source[i] for i in (0, 1, 3)] == [
        Example(IMAGES[0], ('a "quoted", cat', "another of the same, ä")),
        Example(IMAGES[1], ("two\nlines",)),
        Example(IMAGES[2]),
    ]
    with pytest.raises(BadImage, match="missing"):
        source[2]
    assert pickle.loads(pickle.dumps(source))[1] == source[1]


def test_tables_of_labels(pictures):
    rows = [("path", "label"), *((f"images/{i}.jpg", name) for i, name in enumerate(["dog", "cat", "", "dog"]))]
    source = open_source(str(write_table(pictures / "a.csv", rows)))
    assert source.classnames == ("cat", "dog")
    assert [e.label for e in everything(source)] == [1, 0, None, 1]
    numbers = [(a, {"dog": "1", "cat": "0"}.get(b, b)) for a, b in rows]
    source = open_source(str(write_table(pictures / "a.csv", numbers)), classnames=["Katze", "Hund"])
    assert [e.label for e in everything(source)] == [1, 0, None, 1]
    assert captions_of(source, source[0]) == ("a photo of a Hund.",)
    unnamed = open_source(str(pictures / "a.csv"))
    with pytest.raises(UserError, match="has labels but no class names"):
        captions_of(unnamed, unnamed[0])


def test_mistakes_in_tables(pictures):
    file = pictures / "a.csv"
    message = error_of(write_table(file, [("url", "caption"), ("u", "c")]))
    told = "no column of image paths among url, caption; name it with image_key, in `eval` as PATH?image_key=NAME"
    assert message == f"{file}: {told}"
    assert error_of(file, image_key="file") == f"{file} has no column 'file'; it has url, caption"
    assert "neither captions nor labels" in error_of(write_table(file, [("path", "size"), ("images/0.jpg", "3")]))
    assert error_of(write_table(file, [("path", "caption")])) == f"{file} holds a heading and no rows"
    message = error_of(write_table(file, [("path", "caption"), ("0.jpg", "c")]))
    assert message == f"{file}: its first images do not exist; {pictures / '0.jpg'} was looked for first"
    assert "name the columns, each once; it is 'path,path'" in error_of(write_table(file, [("path", "path")]))
    file.write_bytes(b"\xef\xbb\xbfpath,caption\r\nimages/0.jpg,a\r\n")  # as spreadsheets write it
    assert open_source(str(file))[0].captions == ("a",)
    file.write_text("path,caption\nimages/0.jpg,a,b\n")
    assert f"{file} cannot be read as a table: " in error_of(file)
    file.write_bytes(b"path,caption\nimages/0.jpg,\xff\n")
    assert f"{file} cannot be read as a table: " in error_of(file)
    file.write_bytes(b"")
    assert "must name the columns" in error_of(file)


# Class folders


def test_class_folders(tmp_path):
    for name, count in (("dog", 2), ("ice_cream", 1), ("empty", 0), (".hidden", 1)):
        (tmp_path / name / "deeper").mkdir(parents=True)
        for i in range(count):
            (tmp_path / name / "deeper" / f"{i}.JPG").write_bytes(IMAGES[i])
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    source = open_source(str(tmp_path))
    assert everything(source) == [Example(IMAGES[0], label=0), Example(IMAGES[1], label=0), Example(IMAGES[0], label=1)]
    assert source.classnames == ("dog", "ice cream")
    assert captions_of(source, source[2]) == ("a photo of a ice cream.",)
    chosen = open_source(str(tmp_path), classnames=["a", "b"], templates=["x {c}", "{c} y"])
    assert captions_of(chosen, chosen[2]) == ("x b", "b y")
    assert "has 2 class folders, but 1 class names are given" in error_of(tmp_path, classnames=["a"])
    (tmp_path / "dog" / "deeper" / "0.JPG").unlink()
    with pytest.raises(BadImage, match="missing"):
        source[0]


def test_folders_that_hold_nothing_of_use(tmp_path):
    assert error_of(tmp_path) == (
        f"{tmp_path} holds no parquet, tar, csv or tsv files and no class folders of images; it is empty"
    )
    (tmp_path / "readme.md").write_text("")
    assert error_of(tmp_path).endswith("; it has readme.md")
    assert error_of(tmp_path, format="tar") == (
        f"{tmp_path} holds no tar files, neither itself nor one folder down; it has readme.md"
    )
    (tmp_path / "0.JPG").write_bytes(IMAGES[0])
    assert error_of(tmp_path).startswith(f"{tmp_path} holds 1 images in no class folder: move them into a folder for")


# Paths, patterns and splits


def write_shard(path, caption):
    with tarfile.open(path, "w") as archive:
        for name, data in (("0.jpg", IMAGES[0]), ("0.txt", caption.encode())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def captions(source):
    return [e.captions[0] for e in everything(source)]


def test_patterns_of_shards(tmp_path):
    for i in range(12):
        write_shard(tmp_path / f"{i:05}.tar", str(i))
    for pattern, expected in [
        ("{00000..00011}.tar", range(12)),
        ("{00009..00010}.tar", (9, 10)),
        ("{00003,00001}.tar", (3, 1)),
        ("0000[12].tar", (1, 2)),
        ("0001?.tar", (10, 11)),
        ("*.tar", range(12)),
        ("", range(12)),
        ("00007.tar", (7,)),
    ]:
        source = open_source(str(tmp_path / pattern))
        assert captions(source) == [str(i) for i in expected]
    assert open_source(str(tmp_path / "*.tar")).name == tmp_path.name
    shards = f"{tmp_path} has {', '.join(f'{i:05}.tar' for i in range(8))} and 4 more"
    anything = "; give a folder, a file, a pattern of shards, or scenes:SPLIT"
    assert error_of(tmp_path / "{00011..00013}.tar").startswith(
        f"there is no {tmp_path / '00012.tar'}: {shards}; is it"
    )
    assert error_of(tmp_path / "x*") == f"there is no {tmp_path / 'x*'}: {shards}{anything}"
    assert error_of(tmp_path / "x" / "y") == f"there is no {tmp_path / 'x' / 'y'}: {shards}{anything}"


def test_what_is_not_there_is_told_with_what_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert error_of("nosuch").startswith(f"there is no nosuch: {tmp_path} is empty; give a folder, a file, ")
    (tmp_path / "photos").mkdir()
    (tmp_path / ".hidden").mkdir()
    assert error_of("photo/a/b.tar") == f"there is no photo/a/b.tar: {tmp_path} has photos; is it photos?"
    for drawn in ("Scenes:test", "scene:test", "scenes/test", "scens"):
        assert error_of(drawn).endswith("; is it scenes:SPLIT, such as scenes:test?")
    assert error_of("") == "no path: give a folder, a file, a pattern of shards, or scenes:SPLIT"


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    def iterdir(_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(sources.Path, "iterdir", iterdir)  # root may read every folder
    assert error_of(tmp_path) == f"cannot read the folder {tmp_path}: Permission denied"


def test_a_folder_of_img2dataset_has_parquet_files_without_images(tmp_path):
    write_shard(tmp_path / "00000.tar", "a caption")
    pq.write_table(pa.table({"url": ["u"], "caption": ["c"]}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    assert captions(open_source(str(tmp_path))) == ["a caption"]
    assert "no column holds encoded images" in error_of(tmp_path, format="parquet")


@pytest.mark.parametrize(
    "names",
    [("train-0-of-1.tar", "test-0-of-1.tar"), ("train/0.tar", "test/0.tar"), ("data/train_0.tar", "data/test.tar")],
)
def test_splits_of_files(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_shard(tmp_path / name, name)
    assert captions(open_source(str(tmp_path), split="train")) == [names[0]]
    assert captions(open_source(str(tmp_path), split="test")) == [names[1]]
    assert open_source(str(tmp_path), split="test").name == f"{tmp_path.name}:test"
    assert error_of(tmp_path) == f"{tmp_path} holds the splits test, train: choose one with split"
    assert error_of(tmp_path, split="val") == f"{tmp_path} holds no split 'val': choose one of test, train"


def test_splits_of_class_folders(tmp_path):
    for split, shade in (("train", 0), ("test", 1)):
        (tmp_path / split / "dog").mkdir(parents=True)
        (tmp_path / split / "dog" / "0.jpg").write_bytes(IMAGES[shade])
    assert open_source(str(tmp_path), split="test")[0].image == IMAGES[1]
    assert error_of(tmp_path) == f"{tmp_path} holds the splits test, train: choose one with split"
    assert error_of(tmp_path, split="val") == f"{tmp_path} holds no split 'val': choose one of test, train"
    assert error_of(tmp_path / "test", split="val") == (
        f"{tmp_path / 'test'} is not divided into splits: leave split 'val' out; it has dog"
    )
    assert error_of(tmp_path / "train" / "dog" / "0.jpg") == (
        f"{tmp_path / 'train' / 'dog' / '0.jpg'} is of no known format: give a file that ends in .tar, .parquet, .csv, "
        ".tsv, a folder of these or of class folders, or say what it is with format"
    )
    assert error_of(tmp_path / "train" / "dog" / "0.jpg", format="folder").endswith(
        "is a file, not a folder of class folders; leave format out"
    )


def test_a_key_or_split_that_would_be_ignored_is_refused(tmp_path):
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "0.jpg").write_bytes(IMAGES[0])
    write_shard(tmp_path / "a.tar", "mine")
    for path, key in (("scenes:test", "label_key"), (tmp_path, "caption_key")):
        message = error_of(path, **{key: "x"}, format="folder" if path == tmp_path else "auto")
        assert message.startswith(f"{path}: ")
        assert message.endswith(f"have no {key} to choose: leave {key} 'x' out")
    assert error_of("scenes:test", split="train").endswith("but split = 'train': leave one of them out")
    assert len(open_source("scenes:test", split="test")) == 2000
    assert "drawn scenes are called scenes:SPLIT" in error_of(tmp_path, format="scenes")


def test_options_that_make_no_sense(tmp_path):
    assert error_of(tmp_path, format="zip").startswith("unknown data format 'zip': choose one of auto, parquet, tar")
    for template in ("a photo", "a {c} and a {d}", "{", "{}"):
        assert error_of(tmp_path, templates=[template]).startswith(f"template {template!r} must have {{c}}")


# Parts


def test_the_held_out_part_is_fixed_and_the_rest_is_the_rest(tmp_path):
    pq.write_table(hub_table([bytes([i]) for i in range(100)], [0] * 100), tmp_path / "a.parquet")
    parts = {
        part: [e.image[0] for e in everything(open_source(str(tmp_path), holdout=20, part=part))]
        for part in ("all", "train", "holdout")
    }
    assert parts["all"] == list(range(100))
    assert len(parts["holdout"]) == 20
    assert sorted(parts["holdout"] + parts["train"]) == parts["all"]
    assert parts["holdout"] == sorted(parts["holdout"])
    assert parts["holdout"][:5] == [0, 6, 20, 21, 23]
    held_out = open_source(str(tmp_path), holdout=20, part="holdout")
    assert (held_out.classnames, held_out.templates) == (("cat", "dog", "ice cream"), ("a photo of a {c}.",))
    assert held_out.name == f"{tmp_path.name} (holdout)"
    assert pickle.loads(pickle.dumps(held_out))[3] == held_out[3]
    for holdout, part in ((0, "holdout"), (100, "train"), (-1, "train"), (101, "holdout")):
        assert f"holdout must be between 1 and 99 for {tmp_path.name}, not {holdout}" in error_of(
            tmp_path, holdout=holdout, part=part
        )
    assert len(open_source(str(tmp_path), part="train")) == 100


# Captions


class Labelled:
    name, classnames, templates = "labelled", ("cat", "dog"), None


def test_captions_of_an_example():
    own = Example(b"", ("mine",), 1)
    assert captions_of(Labelled(), own) == ("mine",)
    assert captions_of(Labelled(), Example(b"", label=1)) == ("a photo of a dog.",)
    assert captions_of(Labelled(), Example(b"")) == ()
    with pytest.raises(UserError, match="labelled has the label 2, but only 2 class names"):
        captions_of(Labelled(), Example(b"", label=2))


# Scenes


def test_scenes_by_name():
    source = open_source("scenes?length=7&size=16")
    assert len(source) == 7
    assert source[0].image.shape == (16, 16, 3)
    test = open_source("scenes:test?length=5", templates=["only {c}"])
    assert (len(test), test.templates) == (5, ("only {c}",))
    assert np.array_equal(open_source("scenes", split="test")[3].image, open_source("scenes:test")[3].image)
    for wrong in ("scenes?length=x", "scenes?colour=3", "scenes?length=", "scenes?length=-3"):
        assert "after the ? come size=…, length=…, seed=… with whole numbers below 10⁹" in error_of(wrong)
    assert "'nowhere'" in error_of("scenes:nowhere")


def test_a_folder_called_scenes_is_reached_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenes").mkdir()
    write_shard(tmp_path / "scenes" / "0.tar", "mine")
    assert captions(open_source("./scenes")) == ["mine"]
    assert sources.FORMATS[-1] == "scenes"


def test_a_table_with_masks_names_what_each_shows(tmp_path):
    plain = np.zeros((6, 8, 3), np.uint8)
    for name in ("a", "b"):
        Image.fromarray(plain).save(tmp_path / f"{name}.png")
    where = np.zeros((6, 8), bool)
    where[1:4, 2:7] = True
    kinds = {
        "L": (where * np.uint8(1), "L"),
        "1": (where, None),
        "I": (where.astype(np.uint16), None),
        "RGB": (np.stack([where * np.uint8(0), where * np.uint8(3), where * np.uint8(0)], -1), "RGB"),
        "RGBA": (np.stack([np.full(where.shape, 9, np.uint8)] * 3 + [where * np.uint8(255)], -1), "RGBA"),
    }
    for name, (pixels, _) in kinds.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    palette = Image.fromarray(where * np.uint8(2), "P")
    palette.putpalette([255, 255, 255, 0, 0, 0, 0, 0, 0])
    palette.save(tmp_path / "P.png")
    rows = [f"a.png,a thing in {name},{name}.png" for name in (*kinds, "P")]
    (tmp_path / "t.csv").write_text("\n".join(["filepath,caption,Mask", *rows, "b.png,nothing,", "a.png,,L.png"]))
    source = open_source(str(tmp_path / "t.csv"))
    assert len(source) == 2
    assert source[0].captions == tuple(f"a thing in {name}" for name in (*kinds, "P"))
    found = source.masks(0)
    assert [phrase for phrase, _ in found] == list(source[0].captions)
    assert all(np.array_equal(mask, where) for _, mask in found)
    assert source.masks(1) == []
    before = source.stamp()
    Image.fromarray(~where).save(tmp_path / "L.png")
    os.utime(tmp_path / "L.png", (1, 1))
    assert source.stamp() != before
    (tmp_path / "L.png").write_bytes(b"no mask")
    with pytest.raises(UserError, match=r"cannot read the mask .*L\.png"):
        source.masks(0)
    (tmp_path / "u.csv").write_text("filepath,label,mask\na.png,1,L.png")
    with pytest.raises(UserError, match="masks without captions"):
        open_source(str(tmp_path / "u.csv"))


def picture_folder(root, *folders):
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / folder / "a.png")


@pytest.mark.parametrize(
    ("folders", "split", "told"),
    [
        (("train/n1", "train/n2", "val/images"), "val", "only in val: images; only in train: n1, n2: give both"),
        (("train/n1", "train/n2", "val/pictures"), "val", "only in val: pictures; only in train: n1, n2: give both"),
        (("train/n1", "train/n2", "val/n1"), "val", "the splits val and train have other classes; only in train: n2"),
        (("train/n1", "test/n1", "test/n2"), "train", "the splits train and test have other classes; only in test: n2"),
        (("Images",), None, "holds images in one folder, Images, which is no class"),
        (("train/Cat", "test/cat"), "test", "only in test: cat; only in train: Cat"),
        ((*(f"train/{i}" for i in range(9)), "val/0"), "val", "only in train: 1, 2, 3, 4, 5 and 3 more"),
    ],
)
def test_splits_with_other_classes_are_refused_with_the_difference(tmp_path, folders, split, told):
    picture_folder(tmp_path, *folders)
    with pytest.raises(UserError, match=re.escape(told)):
        open_source(str(tmp_path), split=split)


def test_splits_of_the_same_classes_are_read_and_empty_folders_are_none(tmp_path):
    picture_folder(tmp_path, "train/n1", "train/n2", "val/n1", "val/n2")
    (tmp_path / "train" / "n3").mkdir()
    (tmp_path / "training").mkdir()  # not unpacked yet
    picture_folder(tmp_path, "test/images")  # without labels
    assert open_source(str(tmp_path), split="val").classnames == ("n1", "n2")
    with pytest.raises(UserError, match="which is no class"):
        open_source(str(tmp_path / "test"))


KINDS = {
    "views": (pa.binary_view(), pa.string_view()),
    "large": (pa.large_binary(), pa.large_string()),
    "dictionaries": (pa.dictionary(pa.int32(), pa.binary()), pa.dictionary(pa.int32(), pa.string())),
}


@pytest.mark.parametrize("kind", KINDS)
def test_parquet_types_of_newer_writers(tmp_path, kind):
    images, texts = KINDS[kind]
    columns = {"image": (IMAGES[:2], images), "text": (["a", "b"], texts), "label": (["x", "y"], texts)}
    arrays = {name: pa.array(values).cast(to) for name, (values, to) in columns.items()}
    pq.write_table(pa.table(arrays), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    found = [source[i] for i in range(2)]
    assert [(e.image, e.captions, e.label) for e in found] == [(IMAGES[0], ("a",), 0), (IMAGES[1], ("b",), 1)]
    assert source.classnames == ("x", "y")


def test_parquet_of_lists_of_fixed_size_and_of_images_in_files(tmp_path):
    (tmp_path / "own.jpg").write_bytes(IMAGES[1])
    cells = [{"bytes": IMAGES[0], "path": "x"}, {"bytes": None, "path": "own.jpg"}, {"bytes": None, "path": "gone.jpg"}]
    texts = pa.array([["a", "b"]] * 3, pa.list_(pa.string(), 2))
    pq.write_table(pa.table({"image": cells, "text": texts}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert [source[i].image for i in range(2)] == IMAGES[:2]
    assert source[0].captions == ("a", "b")
    with pytest.raises(BadImage, match="missing"):
        source[2]
    before = source.stamp()
    (tmp_path / "own.jpg").write_bytes(IMAGES[0] + b"0")
    assert source.stamp() != before


def test_images_by_rarer_names(tmp_path):
    for name in ("cat/0.jfif", "cat/1.JPE", "dog/2.Jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(IMAGES[0])
    assert len(open_source(str(tmp_path))) == 3


def test_what_lies_in_class_folders_beside_images(tmp_path, caplog):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for name in (
        "cat/0.jpg",
        "cat/._0.jpg",
        "cat/.cache/1.jpg",
        "dog/a/2.jpg",
        "empty/notes.txt",
        "dog/a.HEIC",
        "cat/1",
        "cat/Thumbs.db",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(IMAGES[0])
    elsewhere.mkdir()
    (elsewhere / "3.jpg").write_bytes(IMAGES[1])
    (root / "dog" / "linked").symlink_to(elsewhere)
    (root / "dog" / "loop").symlink_to(root / "dog")
    (root / "cat" / "scores.csv").write_text("a,b\n1,2\n")
    source = open_source(str(root))
    assert [os.path.basename(source.place(i)) for i in range(len(source))] == ["0.jpg", "2.jpg", "3.jpg"]
    assert source.classnames == ("cat", "dog")
    assert "no images in empty: not classes" in caplog.text
    assert "left out that are no images by their names: 1 without an ending, 1 .csv, 1 .heic, 1 .txt" in caplog.text


def test_tables_one_folder_down_are_tables_where_every_folder_of_images_has_one(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "0.jpg").write_bytes(IMAGES[0])
        (tmp_path / split / "list.csv").write_text("filepath,caption\n0.jpg,it\n")
    assert open_source(str(tmp_path), split="test")[0].captions == ("it",)


@pytest.fixture
def outside(tmp_path):
    """A folder `set` with an image, a linked folder and a linked image in it, and an image beside the folder."""
    for place in ("set/in.png", "set/sub/in.png", "out.png", "set-2/x.png", "elsewhere/far.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / place)
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "out.png")
    return tmp_path / "set"


def named_by(folder, form, name):
    """A table of a form that names one good image and another."""
    if form == "parquet":
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        images = pa.array([{"bytes": None, "path": n} for n in ("in.png", name)], kind)
        pq.write_table(pa.table({"image": images, "caption": ["a", "b"]}), folder / "t.parquet")
    elif form == "mask":
        (folder / "t.csv").write_text(f"filepath,caption,mask\nin.png,a,{name}\n")
    else:
        comma = "," if form == "csv" else "\t"
        (folder / f"t.{form}").write_text(f"filepath,label\nin.png,0\n{name},1\n".replace(",", comma))
    return str(folder / ("t.csv" if form == "mask" else f"t.{form}"))


@pytest.mark.parametrize("form", ["csv", "tsv", "mask", "parquet"])
@pytest.mark.parametrize(
    "name",
    ["../out.png", "DIR/../out.png", "DIR-2/x.png", "/etc/passwd", "sub/../../out.png", "./../out.png", "..", "/", "//",
     "linked/../out.png/../../out.png", "sub/../../set-2/x.png"],
)  # fmt: skip
def test_images_outside_of_a_tables_folder_are_refused_unless_that_is_allowed(outside, monkeypatch, form, name):
    name = name.replace("DIR", str(outside))
    path = named_by(outside, form, name)
    with pytest.raises(UserError, match=r"which lies outside of .*: give --allow-outside"):
        open_source(path)
    monkeypatch.chdir(outside)
    with pytest.raises(UserError, match="which lies outside of"):
        open_source(path.rpartition("/")[2])
    assert len(open_source(path, allow_outside=True)) == (1 if form == "mask" else 2)


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize(
    "name",
    [
        "sub/in.png",
        "DIR/sub/in.png",
        "sub/../link.png",
        "linked/far.png",
        "link.png",
        "./sub//in.png",
        "linked/../sub/in.png",
    ],
)
def test_what_lies_inside_is_read_through_the_links_that_are_there(outside, monkeypatch, form, name):
    """`..` leads back along the name: linked/.. is the folder itself, not where the link leads."""
    path = named_by(outside, form, name.replace("DIR", str(outside)))
    assert len(open_source(path)[1].image) > 50
    monkeypatch.chdir(outside)
    assert len(open_source(path.rpartition("/")[2])[1].image) > 50


def test_names_that_are_no_utf8_are_read_as_they_are(tmp_path):
    folder = tmp_path / os.fsdecode(b"f\xe9")
    (folder / "a").mkdir(parents=True)
    name = os.fsencode(folder) + b"/a/\xff.png"
    Image.new("RGB", (4, 4)).save(os.fsdecode(name), "PNG")
    (folder / "t.csv").write_bytes(b"filepath,caption\na/\xff.png,x\n")
    with (folder / "t.parquet").open("wb") as file:
        pq.write_table(pa.table({"image": [b"an image"], "caption": ["a"]}), file)
    for source in (open_source(str(folder / "t.csv")), open_source(str(folder), format="folder")):
        assert os.fsencode(source.place(0)) == name
        assert len(source[0].image) > 50
        assert len(source.stamp()) == 64
    assert open_source(str(folder / "t.parquet"))[0].image == b"an image"
