"""Every form of every kind of data set, in tiny files with the real layout, and what is told of each."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from PIL import Image

from diffclip.data.sources import captions_of
from diffclip.errors import UserError
from diffclip.evaluation.datasets import entry, names, open_dataset, registry


def jpeg(shade=0):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (shade % 256,) * 3).save(file, "JPEG")
    return file.getvalue()


def write(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def labels_of(source):
    return [source[i].label for i in range(len(source))]


def error_of(*args, **options):
    with pytest.raises(UserError) as caught:
        open_dataset(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The registry


def test_the_registry_states_what_the_protocol_needs():
    found = registry()
    assert len(found) == 19
    assert {name for name, one in found.items() if one.mean_per_class} == {
        "caltech101", "pets", "flowers", "fgvc_aircraft"
    }  # fmt: skip
    for one in found.values():
        assert one.images
        assert one.source
        assert one.how
        assert (one.classes is None) == (one.name in ("flickr8k", "flickr30k", "mscoco_captions", "mmvp_vlm", "pope"))
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


def write_shards(folder, split, examples, per_shard=2):
    """examples: (suffix, text) each; the image is the same."""
    (folder / split).mkdir(parents=True)
    shards = [examples[i : i + per_shard] for i in range(0, len(examples), per_shard)]
    for number, shard in enumerate(shards):
        with tarfile.open(folder / split / f"{number}.tar", "w") as archive:
            for i, (suffix, text) in enumerate(shard):
                for name, data in ((f"s{number}{i:06}.webp", jpeg()), (f"s{number}{i:06}.{suffix}", text.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    write(folder / split / "nshards.txt", f"{len(shards)}\n")


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


def test_hub_parquet_with_two_label_columns(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {
        "img": {"_type": "Image"},
        "fine_label": {"_type": "ClassLabel", "names": ["apple", "aquarium_fish"]},
        "coarse_label": {"_type": "ClassLabel", "names": ["a", "b"]},
    }
    schema = pa.schema(
        [("img", kind), ("fine_label", pa.int64()), ("coarse_label", pa.int64())],
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = {"img": [{"bytes": jpeg(), "path": None}] * 2, "fine_label": [1, 0], "coarse_label": [0, 0]}
    (tmp_path / "cifar100" / "data").mkdir(parents=True)
    for split in ("train", "test"):
        pq.write_table(pa.table(rows, schema), tmp_path / "cifar100" / "data" / f"{split}-00000-of-00001.parquet")
    source = open_dataset("cifar100", tmp_path)
    assert labels_of(source) == [1, 0]
    assert source.classnames == ("apple", "aquarium fish")
    assert len(source.templates) == 18


# ImageNet and its shifts


def write_classes(folder, classes, images=1):
    for i, name in enumerate(classes):
        for j in range(images):
            write(folder / name / f"{name}_{j}.JPEG", jpeg(i))


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


def test_which_classes_the_shifts_have():
    """Numbers that their authors publish in the masks of their evaluation scripts, the first and the last."""
    assert names.imagenet_subset("imagenet-a")[:3] == (6, 11, 13)
    assert names.imagenet_subset("imagenet-r")[:3] == (1, 2, 4)
    assert names.imagenet_subset("imagenet1k") is None


def test_a_folder_that_is_no_class_of_imagenet(tmp_path):
    write_classes(tmp_path / "imagenet_sketch" / "sketch", ["n01440764", "n99999999"])
    assert "'n99999999' is neither a WordNet id nor a number of an ImageNet class" in error_of("sketch", tmp_path)
