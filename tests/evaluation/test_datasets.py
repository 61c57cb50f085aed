"""Every form of every kind of data set, in tiny files with the real layout, and what is told of each."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from dataset_files import error_of, jpeg, labels_of, write, write_classes, write_dtd, write_shards

from diffclip import cli
from diffclip.data.sources import captions_of
from diffclip.errors import UserError
from diffclip.evaluation.datasets import entry, names, open_dataset, registry
from diffclip.evaluation.datasets.opening import from_its_authors, how_to_get

# The registry


def test_the_registry_states_what_the_protocol_needs():
    found = registry()
    assert len(found) == 21
    assert {name for name, one in found.items() if one.mean_per_class} == {
        "caltech101", "pets", "flowers", "fgvc_aircraft"
    }  # fmt: skip
    assert {name for name, one in found.items() if not one.paper} == {"sugarcrepe", "winoground"}
    without_classes = {"flickr8k", "flickr30k", "mscoco_captions", "mmvp_vlm", "pope", "sugarcrepe", "winoground"}
    for one in found.values():
        assert one.images
        assert one.source
        assert one.how
        assert (one.classes is None) == (one.name in without_classes)
        if one.torchvision:
            assert hasattr(torchvision.datasets, one.torchvision)
    assert sum("linear_probe" in one.tasks for one in found.values()) == 9
    assert dict(found["flowers"].images) == {"train": 1020, "val": 1020, "test": 6149}


def test_no_folder_name_belongs_to_two_data_sets():
    seen = {}
    for one in registry().values():
        for name in {name.lower() for name in (one.title, *one.folder_names)}:
            assert seen.setdefault(name, one.name) == one.name


def test_names_that_people_use():
    assert [entry(n).name for n in ("Caltech-101", "aircraft", "ImageNet", "coco", "wds_vtab-pets", "MMVP-VLM")] == [
        "caltech101", "fgvc_aircraft", "imagenet1k", "mscoco_captions", "pets", "mmvp_vlm"
    ]  # fmt: skip
    with pytest.raises(UserError, match="unknown data set 'mnist': choose one of caltech101, dtd"):
        entry("mnist")


# The LAION benchmark's WebDataset


def test_webdataset_of_the_laion_benchmark(tmp_path, caplog):
    folder = tmp_path / "wds_vtab-dtd"
    write_shards(folder, "test", [("cls", "1"), ("cls", "0"), ("cls", "1")])
    write_shards(folder, "train", [("cls", "0")])
    write(folder / "classnames.txt", "banded\npolka-dotted\n")
    write(folder / "zeroshot_classification_templates.txt", "{c}.\na {c} thing\n")
    source = open_dataset("dtd", tmp_path)
    assert (source.name, len(source), labels_of(source)) == ("dtd", 3, [1, 0, 1])
    assert source.classnames == ("banded", "polka-dotted")
    assert source.templates == ("{c}.", "a {c} thing")
    assert "3 test images, but 1,880 are published" in caplog.text
    assert "2 classes, but 47 are published" in caplog.text
    assert open_dataset("dtd", tmp_path, "train").name == "dtd:train"
    assert error_of("dtd", tmp_path, "val") == f"{folder} has no val split of dtd; it has test, train"
    (folder / "test" / "0.tar").unlink()
    assert "has 1 shards, but its nshards.txt says 2: download it again" in error_of("dtd", tmp_path)


def test_webdataset_with_captions(tmp_path):
    write_shards(tmp_path / "wds_flickr8k", "test", [("txt", "a dog\na brown dog"), ("txt", "a cat")])
    write(tmp_path / "wds_flickr8k" / "dataset_type.txt", "retrieval")
    source = open_dataset("flickr8k", tmp_path)
    assert [source[i].captions for i in range(2)] == [("a dog", "a brown dog"), ("a cat",)]


def test_a_folder_of_the_data_set_itself_may_be_the_root(tmp_path):
    write_shards(tmp_path / "flickr8k", "test", [("txt", "a dog")])
    assert len(open_dataset("flickr8k", tmp_path / "flickr8k")) == 1


# Hub parquet


def write_hub_table(file, columns):
    """columns: name → (labels, class names), as the hub's `datasets` library writes them."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {name: {"_type": "ClassLabel", "names": list(known)} for name, (_, known) in columns.items()}
    schema = pa.schema(
        [("img", kind), *((name, pa.int64()) for name in columns)],
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = {name: labels for name, (labels, _) in columns.items()}
    count = len(next(iter(rows.values())))
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"img": [{"bytes": jpeg(), "path": None}] * count, **rows}, schema), file)


def test_hub_parquet_with_two_label_columns(tmp_path):
    for split in ("train", "test"):
        write_hub_table(
            tmp_path / "cifar100" / "data" / f"{split}-00000-of-00001.parquet",
            {"coarse_label": ([0, 0], "ab"), "fine_label": ([1, 0], ["apple", "aquarium_fish"])},
        )
    source = open_dataset("cifar100", tmp_path)
    assert labels_of(source) == [1, 0]
    assert source.classnames == ("apple", "aquarium fish")
    assert len(source.templates) == 18


# ImageNet and its shifts


def test_imagenet_in_class_folders_beside_its_archives(tmp_path, caplog):
    wnids = names.imagenet_wnids()
    write_classes(tmp_path / "imagenet" / "val", wnids)
    write(tmp_path / "imagenet" / "ILSVRC2012_img_val.tar")
    source = open_dataset("imagenet", tmp_path)
    assert len(source) == 1000
    assert labels_of(source) == list(range(1000))
    assert source.classnames[:2] == ("tench", "goldfish")
    assert len(source.templates) == 80
    assert captions_of(source, source[1])[0] == "a bad photo of a goldfish."
    assert "1,000 test images, but 50,000 are published" in caplog.text
    assert "classes," not in caplog.text


def test_imagenet_v2_numbers_its_folders(tmp_path):
    write_classes(tmp_path / "imagenetv2-matched-frequency-format-val", [str(n) for n in range(1000)])
    source = open_dataset("imagenetv2", tmp_path)
    assert source[2].label == 10  # sorted as text, folder "10" is third
    assert all(source[i].image == jpeg(source[i].label) for i in (0, 2, 17, 999))
    assert sorted(labels_of(source)) == list(range(1000))
    assert source.classnames == names.imagenet_classnames()


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_shifts_of_200_classes(tmp_path, name, caplog):
    subset = names.imagenet_subset(name)
    assert len(subset) == 200
    wnids = [names.imagenet_wnids()[n] for n in subset]
    write_classes(tmp_path / name, wnids)
    write(tmp_path / name / "README.txt", "about")
    source = open_dataset(name, tmp_path)
    assert labels_of(source) == list(range(200))
    assert source.classnames == tuple(names.imagenet_classnames()[n] for n in subset)
    assert "classes," not in caplog.text
    everything = open_dataset(name, tmp_path, all_classes=True)
    assert labels_of(everything) == list(subset)
    assert everything.classnames == names.imagenet_classnames()


def test_shifts_in_webdataset_keep_their_own_200_names(tmp_path):
    write_shards(tmp_path / "wds_imagenet-r", "test", [("cls", "3")])
    write(tmp_path / "wds_imagenet-r" / "classnames.txt", "\n".join(f"name {i}" for i in range(200)))
    assert open_dataset("imagenet-r", tmp_path).classnames[3] == "name 3"
    everything = open_dataset("imagenet-r", tmp_path, all_classes=True)
    assert everything[0].label == names.imagenet_subset("imagenet-r")[3]


@pytest.mark.parametrize("kind", ["wnids", "synonyms", "200 wnids"])
def test_shifts_in_tables_that_number_all_classes(tmp_path, kind):
    wnids, subset = names.imagenet_wnids(), names.imagenet_subset("imagenet-a")
    known = {
        "wnids": wnids,
        "synonyms": [f"{name}, {i}" for i, name in enumerate(names.imagenet_classnames())],
        "200 wnids": [wnids[n] for n in reversed(subset)],
    }[kind]
    labels = [0, 199] if kind == "200 wnids" else [subset[199], subset[0], 0]  # class 0 is not among the 200
    write_hub_table(tmp_path / "imagenet-a" / "data" / "test-0.parquet", {"label": (labels, known)})
    assert labels_of(open_dataset("imagenet-a", tmp_path)) == [199, 0, None][: len(labels)]
    everything = open_dataset("imagenet-a", tmp_path, all_classes=True)
    assert labels_of(everything) == [subset[199], subset[0], 0][: len(labels)]


def test_which_classes_the_shifts_have():
    """Numbers that their authors publish in the masks of their evaluation scripts, the first and the last."""
    assert names.imagenet_subset("imagenet-a")[:3] == (6, 11, 13)
    assert names.imagenet_subset("imagenet-r")[:3] == (1, 2, 4)
    assert names.imagenet_subset("imagenet1k") is None


def test_a_folder_that_is_no_class_of_imagenet(tmp_path):
    write_classes(tmp_path / "imagenet_sketch" / "sketch", ["n01440764", "n99999999"])
    assert "'n99999999' is neither a WordNet id nor a number of an ImageNet class" in error_of("sketch", tmp_path)


# MMVP-VLM, POPE, and what is not there


def test_pairs_and_what_is_no_source(tmp_path, caplog):
    folder = tmp_path / "MMVP_VLM"
    with write(folder / "Questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("Question ID", "Type", "Statement"), (1, "Color", "red"), (2, "Color", "blue")])
    for i in (1, 2):
        write(folder / "MLLM_VLM Images" / "Color" / f"{i}.jpg", jpeg(i))
    pairs = open_dataset("MMVP-VLM", tmp_path)
    assert [pairs[i].captions for i in range(2)] == [("a photo of red",), ("a photo of blue",)]
    assert "2 test images, but 270 are published" in caplog.text
    assert error_of("pope", tmp_path) == (
        "POPE is answered by a language model: score its answers with `diffclip pope`"
    )


def test_what_is_missing_comes_with_the_way_to_get_it(tmp_path, monkeypatch):
    command = f"hf download clip-benchmark/wds_vtab-pets --repo-type dataset --local-dir {tmp_path}/wds_vtab-pets"
    assert error_of("pets", tmp_path) == f"pets is not in {tmp_path}: get it with: {command}"
    assert "cifar10 has no val split; it has train, test" in error_of("cifar10", tmp_path, "val")
    (tmp_path / "pets").mkdir()  # empty: not found
    monkeypatch.setenv("DIFFCLIP_DATA", str(tmp_path))
    assert f"pets is not in {tmp_path}" in error_of("pets")
    write_classes(tmp_path / "pets", ["a", "b"])
    assert error_of("pets", tmp_path) == (
        f"{tmp_path / 'pets'} is not divided into splits: expected folders or files named train, test"
    )
    for one in registry().values():
        for way in (how_to_get(one, tmp_path), from_its_authors(one, tmp_path)):
            assert str(tmp_path) in way
            assert "{" not in way


def test_class_folders_divided_into_splits(tmp_path):
    for split in ("train", "validation"):
        write_classes(tmp_path / "food-101" / split, ["apple_pie", "waffles"], images=2)
    source = open_dataset("food101", tmp_path)
    assert labels_of(source) == [0, 0, 1, 1]
    assert source.classnames == ("apple pie", "waffles")
    assert "is for imagenet-a and imagenet-r" in error_of("food101", tmp_path, all_classes=True)


def test_without_clip_benchmark_there_is_one_template_and_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(names, "find_spec", lambda name: None)
    write_dtd(tmp_path)
    assert open_dataset("dtd", tmp_path).templates == ("a photo of a {c}.",)
    assert (
        'the only template is "a photo of a {c}."; for the usual ones: pip install --no-deps clip-benchmark'
        in caplog.text
    )


# The list


def test_the_list(tmp_path, capsys):
    write_dtd(tmp_path)
    for split, count in (("random", 2), ("popular", 3), ("adversarial", 3)):
        rows = [{"question_id": i, "image": "x", "text": "?", "label": "no"} for i in range(count)]
        write(tmp_path / "pope" / "output" / "coco" / f"coco_pope_{split}.json", "\n".join(map(json.dumps, rows)))
    write_shards(tmp_path / "wds_sun397", "test", [("cls", "0")])
    cli.main(["data", "list", "--root", str(tmp_path)])
    text = capsys.readouterr().out
    assert f"dtd: train 1, val 1, test 2 images; 2 classes\n  in {tmp_path / 'dtd' / 'dtd'}\n" in text
    assert "warning: 1 train images, but 1,880 are published" in text
    assert f"pope: random 2, popular 3, adversarial 3 questions\n  in {tmp_path / 'pope'}" in text
    assert "sun397: test 1 images" in text
    assert "has no train split of sun397; it has test" in text
    assert "Missing: 18 of 21" in text
    assert "hf download clip-benchmark/wds_imagenet1k --repo-type dataset --local-dir" in text
    assert "torchvision.datasets.CIFAR10(" in text


# The document


def table_rows():
    """The rows of docs/datasets.md, as the registry has them."""
    rows = []
    for one in registry().values():
        images = ", ".join(f"{split} {count:,}" for split, count in one.images.items())
        otherwise = f"torchvision's `{one.torchvision}`" if one.torchvision else ""
        cells = (
            f"`{one.name}`",
            one.title,
            ", ".join(one.tasks),
            images + (" questions" if one.name == "pope" else ""),
            f"{one.classes:,}" if one.classes else "",
            "yes" if one.mean_per_class else "",
            f"`{one.laion}`" if one.laion else "",
            otherwise or one.how.replace("{root}", "the root").replace("{folder}", "its folder"),
        )
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def other_rows():
    return [
        f"- {one.title}: {count:,} is {why}."
        for one in registry().values()
        for count, why in one.other.items()
    ]  # fmt: skip


def test_the_document_says_what_the_registry_says():
    text = " ".join((Path(__file__).parents[2] / "docs" / "datasets.md").read_text().split())
    for row in [*table_rows(), *other_rows()]:
        assert " ".join(row.split()) in text, row
