"""A run goes on with the data that it began with, or says that they have changed."""

import io
import json
import logging
import os
import shutil
import tarfile

import numpy as np
import pytest
from killed import recipe as small_recipe
from PIL import Image

from diffclip.config import Recipe, to_toml, validate
from diffclip.data.sources import open_source
from diffclip.errors import UserError
from diffclip.training import data_record, setup
from diffclip.training.data_record import DATA, facts_of
from diffclip.training.run_directory import claim_directory


def shard(path, count, seed=0):
    draw = np.random.default_rng(seed)
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            file = io.BytesIO()
            Image.fromarray(draw.integers(0, 255, (16, 16, 3), np.uint8)).save(file, "PNG")
            for suffix, content in (("png", file.getvalue()), ("txt", f"image {number}".encode())):
                info = tarfile.TarInfo(f"{path.stem}{number:03d}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def data(tmp_path):
    """Two shards, of which a run makes steps of 4 images, and a folder to evaluate on."""
    (tmp_path / "train").mkdir()
    shard(tmp_path / "train" / "0.tar", 8)
    shard(tmp_path / "train" / "1.tar", 8, seed=1)
    for name in ("cat", "dog"):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "test" / name / "a.png")
    return tmp_path


def recipe_of(data) -> Recipe:
    table = {
        "model": {"preset": "clip_vit_quickstart"},
        "data": {"train": {"path": str(data / "train")}, "workers": 0},
        "training": {"epochs": 2, "batch_size": 4},
        "evaluation": [{"name": "animals", "data": {"path": str(data / "test")}}],
    }
    return validate(table, "here")


def begin(data, accept=False):
    """What `train` does before the first step, resumed or not."""
    recipe = recipe_of(data)
    facts = facts_of(recipe, setup.training_source(recipe))
    run = data / "run"
    with claim_directory(run, to_toml(recipe), True, facts, accept_changed_data=accept):
        return json.loads((run / DATA).read_text())


def add(data):
    shard(data / "train" / "2.tar", 8, seed=2)


def remove(data):
    (data / "train" / "1.tar").unlink()


def replace(data):
    shard(data / "train" / "1.tar", 8, seed=3)
    os.utime(data / "train" / "1.tar", ns=(1, 1))


def swap(data):
    """The same examples in another order."""
    (data / "train" / "1.tar").rename(data / "train" / "2.tar")
    (data / "train" / "0.tar").rename(data / "train" / "3.tar")


def add_class(data):
    shutil.copytree(data / "test" / "cat", data / "test" / "cow")


def rename_class(data):
    (data / "test" / "cat").rename(data / "test" / "cow")


def replace_evaluation(data):
    Image.new("RGB", (8, 8), "red").save(data / "test" / "cat" / "a.png")


def rename(data):
    (data / "train" / "1.tar").rename(data / "train" / "2.tar")


def touch(data):
    os.utime(data / "test" / "cat" / "a.png", ns=(1, 1))


def copy(data):
    """As to the scratch disk of a node, or out of an archive: other times, all of them."""
    for name in ("train", "test"):
        shutil.copytree(data / name, data / "copied", copy_function=shutil.copyfile)
        shutil.rmtree(data / name)
        (data / "copied").rename(data / name)


def remove_evaluation(data):
    shutil.rmtree(data / "test")


CHANGES = {
    add: "data.train: 16 examples before, 24 now",
    remove: "data.train: 16 examples before, 8 now",
    replace: "data.train: as many examples, but other images, captions or labels, or in another order",
    swap: "data.train: as many examples, but other images, captions or labels, or in another order",
    add_class: "evaluation animals: 2 examples before, 3 now, 2 class names before, 3 now",
    rename_class: "evaluation animals: other class names or templates",
    replace_evaluation: "evaluation animals: as many examples, but other images",
    remove_evaluation: "evaluation animals cannot be opened any more",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_data_are_refused_or_accepted_in_writing(data, change, caplog):
    first = begin(data)
    assert begin(data) == first
    change(data)
    with pytest.raises(UserError, match="the data have changed since") as refused:
        begin(data)
    assert CHANGES[change] in str(refused.value)
    assert json.loads((data / "run" / DATA).read_text()) == first
    assert not caplog.text
    accepted = begin(data, accept=True)
    assert CHANGES[change] in accepted["changed"][0]["what"][0]
    assert CHANGES[change] in caplog.text
    assert begin(data) == accepted  # accepted once, it is what later starts are compared with


COPIES = {rename: "data.train: files of", touch: "evaluation animals: files of", copy: "data.train, evaluation animals"}


@pytest.mark.parametrize("change", COPIES, ids=lambda change: change.__name__)
def test_copies_count_as_the_same_with_a_warning(data, change, caplog):
    first = begin(data)
    change(data)
    second = begin(data)
    assert COPIES[change] in caplog.text
    assert caplog.text.count("counts as the same data") == 1
    assert second["changed"] == []
    assert second["data"]["data.train"]["sample"] == first["data"]["data.train"]["sample"]
    begin(data)  # the new places are known now
    assert caplog.text.count("counts as the same data") == 1


def test_a_record_without_a_sample_knows_no_copy(data):
    record = begin(data)
    for facts in record["data"].values():
        del facts["sample"]
    (data / "run" / DATA).write_text(json.dumps(record))
    begin(data)
    (data / "run" / DATA).write_text(json.dumps(record))
    copy(data)
    with pytest.raises(UserError, match="the data have changed since"):
        begin(data)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000])
def test_what_is_compared_is_spread_over_the_whole(count):
    places = data_record._spread(count)
    assert len(set(places)) == len(places) == min(count, data_record.SAMPLE)
    assert places[0] == 0
    assert count - 1 - places[-1] < count / len(places)


def test_class_names_count(data):
    source = open_source(str(data / "train"))
    source.classnames = ("cat", "dog")
    before = facts_of(recipe_of(data), source)
    source.classnames = ("cat", "cow")
    assert data_record.differences(before, facts_of(recipe_of(data), source)) == [
        "data.train: other class names or templates"
    ]


def test_a_run_of_an_earlier_version_goes_on_with_one_warning(data, caplog):
    begin(data)
    (data / "run" / DATA).unlink()
    with caplog.at_level(logging.WARNING):
        begin(data)
        begin(data)
    assert caplog.text.count("does not say which data it began with") == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"data": 3, "changed": []}', '{"data": {}}', "null"])
def test_a_damaged_record_is_told_of(data, content):
    begin(data)
    (data / "run" / DATA).write_text(content)
    with pytest.raises(UserError, match=r"data.json cannot be read: restore it, or delete it"):
        begin(data)


def test_a_finished_run_is_compared_too_where_its_data_are_there(data):
    begin(data)
    setup.check_data(recipe_of(data), data / "run")
    add(data)
    with pytest.raises(UserError, match="the data have changed"):
        setup.check_data(recipe_of(data), data / "run")
    shutil.rmtree(data / "train")
    setup.check_data(recipe_of(data), data / "run")


def test_training_writes_the_record_and_asks_it(tmp_path):
    recipe = small_recipe(0)
    setup.train(recipe, tmp_path / "run")
    record = json.loads((tmp_path / "run" / DATA).read_text())
    record["data"]["data.train"] |= {"stamp": "another", "sample": "another"}
    (tmp_path / "run" / DATA).write_text(json.dumps(record))
    with pytest.raises(UserError, match="--accept-changed-data"):
        setup.train(recipe, tmp_path / "run", resume=True)
    setup.train(recipe, tmp_path / "run", resume=True, accept_changed_data=True)
