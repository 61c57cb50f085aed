"""The data sets that a command names: their splits, their protocol, and what of them is missing."""

import pytest
from dataset_files import jpeg, write
from pictures import pictures
from PIL import Image

from diffclip.errors import UserError
from diffclip.evaluation.datasets.named import data_set, data_sets


@pytest.mark.parametrize(
    ("splits", "test", "others"),
    [
        (("train", "test"), "test", {"train"}),
        (("train", "val", "test"), "test", {"train", "val"}),
        (("train", "validation"), "validation", {"train"}),
        (("training", "testing"), "testing", {"train"}),
        (("test",), "test", set()),
    ],
)
def test_splits_are_found_by_the_names_of_folders(tmp_path, splits, test, others):
    found = data_set(f"x={pictures(tmp_path / 'x', splits, count=1)}", ("zero_shot",))
    assert found.test.name == f"x:{test}"
    assert set(found.others) == others
    for split in others:
        assert len(found.split(split)) == 2


def test_images_in_class_folders_may_be_called_like_splits(tmp_path):
    folder = pictures(tmp_path / "x", ("all",), count=3) / "all"
    for number, file in enumerate(sorted(folder.rglob("*.*"))):
        file.rename(file.with_name(f"{('test', 'val', 'train')[number % 3]}_{number}{file.suffix}"))
    found = data_set(f"x={folder}", ("zero_shot",))
    assert (len(found.test), found.test.name, set(found.others)) == (6, "all", set())


def test_a_folder_without_splits_and_a_data_set_of_the_registry(tmp_path):
    plain = data_set(f"x={pictures(tmp_path, ('all',), count=3) / 'all'}", ("zero_shot",))
    assert (len(plain.test), set(plain.others), plain.mean_per_class) == (6, set(), False)
    pets = data_set(f"pets={pictures(tmp_path / 'any name', ('trainval', 'test'), count=2)}", ("zero_shot",))
    assert (len(pets.test), set(pets.others), pets.mean_per_class) == (4, {"train"}, True)
    assert pets.test.templates == ("a photo of a {c}, a type of pet.",)
    assert len(pets.split("train")) == 4


def test_imagenet_a_among_its_own_classes_or_all_of_imagenet(tmp_path):
    for wnid in ("n01498041", "n01531178"):  # 6, stingray, and 11, goldfinch, in ImageNet
        (tmp_path / wnid).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / wnid / "0.png")
    own = data_set(f"imagenet-a={tmp_path}", ("zero_shot",))
    assert (own.name, own.test.classnames, own.test[1].label) == ("imagenet-a", ("stingray", "goldfinch"), 1)
    whole = data_set(f"imagenet-a={tmp_path}", ("zero_shot",), all_classes=True)
    assert (whole.name, len(whole.test.classnames), whole.test[1].label) == ("imagenet-a@1000", 1000, 11)
    assert data_set(f"pets={tmp_path}", ("zero_shot",), all_classes=True).name == "pets"


def test_names_alone_are_looked_for_below_the_root_with_the_papers_tasks(tmp_path):
    pictures(tmp_path / "pets", ("trainval", "test"), count=2)
    found, missing = data_sets(["pets", "flickr8k", "mine=scenes:test"], (), tmp_path)
    assert [(one.name, one.tasks) for one in found] == [
        ("pets", ("linear_probe", "few_shot")),
        ("mine", ()),  # what it can serve, once it is opened
    ]
    assert [one.data for one in missing] == ["flickr8k"]
    found, _ = data_sets(["pets", "mine=scenes:test"], ("noise",), tmp_path)
    assert [one.tasks for one in found] == [("noise",)] * 2


def test_a_folder_of_ones_own_under_a_name_of_the_registry_says_so(tmp_path):
    """Of any name of the registry and any folder that is not that data set."""
    pictures(tmp_path, ("own",), count=2)
    for name in ("pets", "dtd", "cifar10"):
        mine = data_set(f"{name}={tmp_path / 'own'}", ("zero_shot",))
        with pytest.raises(UserError, match=rf"{name} names a data set that .* such as my-{name}={tmp_path / 'own'}"):
            assert mine.test


@pytest.mark.parametrize(
    ("classes", "told"), [("cat", "only in train: dog"), ("cat cow dog", "only in test: cow"), ("cat dog", "")]
)
def test_tables_whose_splits_name_other_classes_are_refused(tmp_path, classes, told):
    for split, names in (("train", "cat dog"), ("test", classes)):
        rows = [f"{split}{i}.jpg,{name}" for i, name in enumerate(names.split())]
        for i in range(len(rows)):
            write(tmp_path / f"{split}{i}.jpg", jpeg(i))
        write(tmp_path / f"{split}.csv", "\n".join(["filepath,label", *rows]))
    opened = data_set(f"mine={tmp_path}", ("zero_shot",))
    if told:
        with pytest.raises(UserError, match=f"the splits test and train have other classes; {told}"):
            _ = opened.test
    else:
        assert opened.test.classnames == ("cat", "dog")


def test_columns_are_chosen_behind_the_path_and_a_question_mark_alone_is_a_pattern(tmp_path):
    write(tmp_path / "a.jpg", jpeg())
    write(tmp_path / "t1.csv", b"filepath,kind,label\na.jpg,x,y\n")
    chosen = data_set(f"mine={tmp_path}/t1.csv?label_key=kind", ("zero_shot",))
    assert chosen.test.classnames == ("x",)
    assert data_set(f"mine={tmp_path}/t?.csv", ("zero_shot",)).test.classnames == ("y",)
    with pytest.raises(UserError, match="no column 'nope'"):
        _ = data_set(f"mine={tmp_path}/t1.csv?label_key=nope", ("zero_shot",)).test


@pytest.mark.parametrize("names", [("TRAIN", "TEST"), ("Train", "Val"), ("training", "testing")])
def test_splits_in_any_case(tmp_path, names):
    for split in names:
        for place in ("a", "b"):
            write(tmp_path / split / place / "0.jpg", jpeg())
    data = data_set(f"mine={tmp_path}", ("zero_shot",))
    assert data.has("train")
    assert len(data.test) == len(data.split("train")) == 2
