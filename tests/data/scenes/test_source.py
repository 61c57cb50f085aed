"""Scenes as a source: deterministic, of the promised shape, with what each split promises."""

import pickle
from collections import Counter

import numpy as np
import pytest
from scene_reader import true_of

from diffclip.data.scenes import CLASSNAMES, HELD_OUT, SPLITS, TEMPLATES, SceneSource
from diffclip.data.scenes.vocabulary import CLASS_INDEX, COLOURS, SHAPES
from diffclip.data.sources import open_source
from diffclip.errors import UserError


@pytest.mark.parametrize("split", SPLITS)
def test_an_example_is_an_image_with_captions_and_a_label(split):
    source = SceneSource(split, size=40, length=30)
    assert (source.classnames, source.templates) == (CLASSNAMES, TEMPLATES)
    for index in range(len(source)):
        example, scene = source[index], source.scene(index)
        assert (example.image.shape, example.image.dtype) == ((40, 40, 3), np.uint8)
        assert example.image.flags.c_contiguous
        assert len(example.captions) == (3 if split == "train" else 2)
        assert all(true_of(caption, scene) for caption in example.captions)
        main = scene.groups[0].kind
        assert CLASSNAMES[example.label] == f"{main.colour} {main.shape}"


def test_scenes_depend_on_seed_split_and_index_alone():
    source = SceneSource("test", length=50, seed=3)
    forwards = [source[index] for index in range(50)]
    copy = pickle.loads(pickle.dumps(source))
    longer = SceneSource("test", length=60, seed=3)
    for index in reversed(range(50)):
        for other in (copy, longer):
            np.testing.assert_array_equal(other[index].image, forwards[index].image)
            assert other[index].captions == forwards[index].captions
    scenes = {source.scene(index) for index in range(50)}
    assert len(scenes) == 50
    assert not scenes & {SceneSource("test", length=50, seed=4).scene(index) for index in range(50)}
    assert not scenes & {SceneSource("test_v2", length=50, seed=3).scene(index) for index in range(50)}


def test_scenes_stay_as_they_are():
    """Results on scenes compare over time only while scenes are the same: what breaks this makes a new data set."""
    source = SceneSource("test")
    assert source[7].captions == (
        "there is a big red heart on a black background",
        "a drawing of a big whole red heart in the middle on a black striped background",
    )
    heart = source.scene(7).groups[0].kind
    assert heart.rgb == (214, 48, 47)
    assert (heart.x, heart.y, heart.radius) == pytest.approx((0.557560, 0.527140, 0.249145), abs=1e-6)


def test_training_never_shows_the_held_out_classes_and_the_test_sets_show_every_class():
    assert len(HELD_OUT) == len(SHAPES)
    train = SceneSource("train", length=3000)
    pairs = Counter(
        CLASS_INDEX.get((group.kind.colour, group.kind.shape))
        for index in range(3000)
        for group in train.scene(index).groups
    )
    assert not set(HELD_OUT) & set(pairs)
    assert set(range(len(CLASSNAMES))) - set(HELD_OUT) <= set(pairs)
    words = {word for index in HELD_OUT for word in CLASSNAMES[index].split()}
    assert words == {*COLOURS, *SHAPES}  # nothing is held out but combinations
    for split in SPLITS:
        if split != "train":
            source = SceneSource(split, length=1500)
            assert {source.scene(index).label for index in range(1500)} == set(range(len(CLASSNAMES)))


def test_masks_name_every_group_once():
    source = SceneSource("test_adversarial", size=64, length=60)
    for index in range(60):
        masks = source.masks(index)
        assert len({phrase for phrase, _ in masks}) == len(masks) == len(source.scene(index).groups)
        assert sum(mask.astype(int) for _, mask in masks).max() == 1
        for phrase, mask in masks:
            assert (mask.shape, mask.dtype) == ((64, 64), np.bool_)
            assert true_of(phrase, source.scene(index))


@pytest.mark.parametrize("split", ["test", "test_sketch", "test_adversarial"])
def test_clutter_adds_to_a_scene_and_hides_nothing_of_it(split):
    source = SceneSource(split, length=20)
    changed = []
    for index in range(20):
        picture, more = source[index].image, source.cluttered(index)
        assert np.array_equal(more, source.cluttered(index))
        if split != "test_sketch":  # whose things show what lies behind them
            for _, mask in source.masks(index):
                there = np.abs(more[mask].astype(int) - picture[mask])
                # Pixels of an edge are blended with what lies behind.
                assert (there.max(axis=1) > 8).mean() < 0.2
                assert np.median(there) == 0
        changed.append((more != picture).any(axis=2).mean())
    assert min(changed) > 0.03
    assert max(changed) < 0.4


def test_a_specification_opens_scenes():
    source = open_source("scenes:test_sketch?size=32&length=5&seed=9")
    assert len(source) == 5
    np.testing.assert_array_equal(source[4].image, SceneSource("test_sketch", 32, 5, 9)[4].image)


def test_wrong_requests_are_refused_in_one_line():
    with pytest.raises(UserError, match="no split 'tset': choose one of train, test,"):
        SceneSource("tset")
    with pytest.raises(UserError, match="7 pixels wide"):
        SceneSource(size=7)
    with pytest.raises(UserError, match="length 0"):
        SceneSource(length=0)
    with pytest.raises(IndexError):
        SceneSource(length=3)[3]
    assert (len(SceneSource()), len(SceneSource("test"))) == (100_000, 2_000)
