"""Captions are true, readable, varied, and mostly tell a scene from others."""

import re
from random import Random

import pytest
from scene_reader import true_of

from diffclip.data.scenes import CLASSNAMES, SPLITS, TEMPLATES, SceneSource
from diffclip.data.scenes.grammar import captions


@pytest.mark.parametrize("split", SPLITS)
def test_every_caption_is_true_of_its_scene(split):
    source = SceneSource(split, length=400)
    random = Random(1)
    for index in range(len(source)):
        scene = source.scene(index)
        for caption in captions(scene, random, ("class", "focus", "pair", "full")):
            assert true_of(caption, scene), (index, caption, scene)


def test_captions_of_other_scenes_are_false():
    source = SceneSource("test", length=300)
    pairs = [(source[index].captions[0], source.scene((index + 1) % 300)) for index in range(300)]
    assert sum(true_of(caption, scene) for caption, scene in pairs) <= 3


def test_a_full_caption_mostly_tells_its_scene_from_two_hundred():
    source = SceneSource("test", length=200)
    scenes = [source.scene(index) for index in range(200)]
    fitting = [sum(true_of(source[index].captions[0], scene) for scene in scenes) for index in range(0, 200, 8)]
    assert min(fitting) == 1
    assert sum(count == 1 for count in fitting) >= 18


def test_training_captions_name_what_the_fine_grained_pairs_ask():
    source = SceneSource("train", length=2000)
    texts = [caption for index in range(2000) for caption in source[index].captions]
    words = "pointing,facing,with a dot,without a dot,open,closed,broken,whole,two ,three ,left of,above,striped,letter"
    for said in (*words.split(","), "seen from above", "seen from the side"):
        assert sum(said in text for text in texts) >= 40, said
    assert len(set(texts)) > 2500  # most captions occur once or twice
    assert len(set(re.findall(r"\w+", " ".join(texts)))) < 100


def test_class_prompts_are_captions_that_training_shows():
    source = SceneSource("train", length=3000)
    texts = {caption for index in range(3000) for caption in source[index].captions}
    for template in TEMPLATES:
        assert any(template.format(c=name) in texts for name in CLASSNAMES), template
    for name in CLASSNAMES:
        assert name[0] not in "aeiou"
