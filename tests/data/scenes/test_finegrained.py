"""Fine-grained pairs differ in just one thing, and their statements say which."""

import numpy as np
import pytest
from scene_reader import true_of

from diffclip.data.scenes import HELD_OUT, PATTERNS, FineGrainedSource, finegrained_pairs
from diffclip.data.scenes.vocabulary import CLASS_INDEX
from diffclip.errors import UserError

# What a pattern may change of one thing; a colour's two shades follow its name.
MAY_CHANGE = {
    "Orientation and Direction": [{"angle"}],
    "Presence of Specific Features": [{"dot"}],
    "State and Condition": [{"broken"}, {"open"}],
    "Positional and Relational Context": [{"x"}, {"y"}],
    "Color and Appearance": [{"colour", "rgb", "second"}],
    "Structural and Physical Characteristics": [{"shape"}, {"texture"}],
    "Text": [{"letter"}],
    "Viewpoint and Perspective": [{"above"}],
}


def things(scene):
    return [thing for group in scene.groups for thing in group.things]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pairs_differ_in_one_thing_alone(pattern):
    for pair in finegrained_pairs(pattern, 40, size=48):
        one, two = pair.scenes
        assert (one.background, one.bits, one.style) == (two.background, two.bits, two.style)
        if pattern == "Quantity and Count":
            fewer, more = sorted((things(one), things(two)), key=len)
            assert len(more) == len(fewer) + 1
            changed = [thing for thing in more if thing not in fewer]
            assert [thing for thing in more if thing not in changed] == fewer
        else:
            pairs = [(a, b) for a, b in zip(things(one), things(two), strict=True) if a != b]
            assert len(pairs) == 1
            changed = list(pairs[0])
            fields = {field for field in changed[0]._fields if getattr(changed[0], field) != getattr(changed[1], field)}
            assert fields in MAY_CHANGE[pattern]
        assert len(changed) >= 1
        different = (pair.images[0] != pair.images[1]).any(axis=2)
        inside = np.any([around(thing, 48) for thing in changed], axis=0)
        assert different.any()
        assert not different[~inside].any()


def around(thing, size):
    """The pixels of the square around a thing, and one more where anti-aliasing reaches."""
    rows, columns = (np.mgrid[:size, :size] + 0.5) / size
    return np.maximum(abs(columns - thing.x), abs(rows - thing.y)) < 1.1 * thing.radius + 1.5 / size


@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_statement_is_true_of_its_own_scene_alone(pattern):
    for pair in finegrained_pairs(pattern, 60, size=16):
        for own in (0, 1):
            assert true_of(pair.statements[own], pair.scenes[own]), pair
            assert not true_of(pair.statements[own], pair.scenes[1 - own]), pair


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pairs_are_visible_varied_and_in_either_order(pattern):
    pairs = finegrained_pairs(pattern, 40)
    for pair in pairs:
        difference = np.abs(pair.images[0].astype(int) - pair.images[1].astype(int)).max(axis=2)
        assert (difference > 40).sum() >= 8, pair.statements
    statements = [pair.statements for pair in pairs]
    assert len(set(statements)) >= 12
    if pattern not in ("Quantity and Count", "Positional and Relational Context"):  # too many to meet again
        assert len({first for first, _ in statements} & {second for _, second in statements}) >= 3


def test_pairs_hold_no_combination_that_training_never_shows():
    source = FineGrainedSource(count=20, size=8)
    for index in range(len(source)):
        for scene in source[index].scenes:
            for thing in things(scene):
                assert CLASS_INDEX.get((thing.colour, thing.shape)) not in HELD_OUT


def test_the_source_lists_every_pattern_in_turn_and_is_the_same_every_time():
    source = FineGrainedSource(count=3, size=24, seed=5)
    assert len(source) == 27
    assert [source[index].pattern for index in range(27)] == [pattern for pattern in PATTERNS for _ in range(3)]
    again, direct = FineGrainedSource(count=3, size=24, seed=5)[13], finegrained_pairs(PATTERNS[4], 2, 24, seed=5)[1]
    for pair in (again, direct):
        assert pair.scenes == source[13].scenes
        assert pair.statements == source[13].statements
        np.testing.assert_array_equal(pair.images, source[13].images)
    assert FineGrainedSource(count=3, seed=6)[13].scenes != source[13].scenes
    with pytest.raises(IndexError):
        source[27]


def test_wrong_requests_are_refused_in_one_line():
    with pytest.raises(UserError, match=r"no pattern 'Colour'.*Text"):
        finegrained_pairs("Colour", 1)
    with pytest.raises(UserError, match="count 0"):
        FineGrainedSource(count=0)
