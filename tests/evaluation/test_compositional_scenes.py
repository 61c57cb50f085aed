"""Drawn counterparts of SugarCrepe and Winoground: every caption is true, every negative false, words are the same."""

import numpy as np
import pytest

from diffclip.data.scenes import grammar
from diffclip.data.scenes.compositional import KINDS, SWAPS, NegativeSource, SwapSource
from diffclip.errors import UserError
from diffclip.evaluation.datasets.sugarcrepe import COUNTS


def is_true(scene, text):
    """Whether a scene shows what a caption says: things of a colour, a shape and perhaps a texture, and a relation."""
    for how in grammar.OPPOSITE:
        first, found, second = text.partition(f" {how} ")
        if found:
            pairs = [(a, b) for a in named(scene, first) for b in named(scene, second)]
            return any(grammar.relation(a, b) == how for a, b in pairs)
    return all(named(scene, phrase) for phrase in text.split(" and "))


def named(scene, phrase):
    _, *texture, colour, shape = phrase.split()
    return [
        group
        for group in scene.groups
        if (group.kind.colour, group.kind.shape) == (colour, shape) and texture in ([], [group.kind.texture])
    ]


def test_every_caption_is_true_and_every_negative_is_false():
    source = NegativeSource(count=15, size=16)
    assert tuple(KINDS) == tuple(COUNTS)
    assert len(source) == 7 * 15
    for index in range(len(source)):
        scene, (caption, negative) = source.scene(index)
        assert is_true(scene, caption), (source.kinds[index], caption)
        assert not is_true(scene, negative), (source.kinds[index], negative)
        swapped = sorted(caption.split()) == sorted(negative.split())
        assert swapped == source.kinds[index].startswith("swap"), (caption, negative)
        longer = len(negative.split()) > len(caption.split())
        assert longer == source.kinds[index].startswith("add"), (caption, negative)


def test_swapped_pairs_have_the_same_words_and_each_is_true_of_its_own_only():
    source = SwapSource(count=15, size=16)
    assert source.patterns == ("Place",) * 15 + ("Colour",) * 15
    assert set(source.patterns) == set(SWAPS)
    for index in range(len(source)):
        pair = source[index]
        first, second = pair.statements
        assert sorted(first.split()) == sorted(second.split())
        assert first != second
        truth = [[is_true(scene, text) for scene in pair.scenes] for text in pair.statements]
        assert truth == [[True, False], [False, True]], pair.statements
        assert not np.array_equal(*pair.images)


def test_an_example_depends_on_its_seed_and_place_alone():
    one, more, other = (NegativeSource(count=n, size=16, seed=seed) for n, seed in ((2, 0), (3, 0), (2, 1)))
    assert one[3].captions == more[4].captions
    np.testing.assert_array_equal(one[3].image, more[4].image)
    assert any(one[i].captions != other[i].captions for i in range(len(one)))
    assert one.stamp() != other.stamp()
    assert SwapSource(2, 16).stamp() == SwapSource(2, 16).stamp() != SwapSource(2, 16, seed=1).stamp()
    np.testing.assert_array_equal(SwapSource(2, 16)[3].images[0], SwapSource(3, 16)[4].images[0])


@pytest.mark.parametrize("kind", [NegativeSource, SwapSource])
def test_sizes_that_cannot_be_drawn_are_refused(kind):
    with pytest.raises(UserError, match="no scenes with count 0 and size 64"):
        kind(count=0)
    with pytest.raises(UserError, match="size 4: give a count of 1 and a size of 8 or more"):
        kind(size=4)
