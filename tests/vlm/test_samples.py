"""LLaVA's JSON, scenes to talk about, and POPE's rules on odd answers."""

import io
import json
import tarfile
from collections import Counter
from random import Random

import pytest
from PIL import Image

from diffclip.data.images import BadImage
from diffclip.data.scenes.vocabulary import NUMBERS, plural
from diffclip.data.transforms import EvalTransform
from diffclip.errors import UserError
from diffclip.evaluation.pope_rules import RULES
from diffclip.vlm import pope
from diffclip.vlm import scene_questions as scenes
from diffclip.vlm.conversation import Turn, prepare_tokenizer
from diffclip.vlm.loading import Reader, check_samples, open_samples
from diffclip.vlm.samples import BadSample, LlavaJson
from diffclip.vlm.scene_questions import UnevenScenes, pope_questions
from small_language import tokenizer


def png(shade=0):
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (shade,) * 3).save(file, "PNG")
    return file.getvalue()


def said(*texts):
    return [{"from": who, "value": text} for who, text in zip(("human", "gpt") * 9, texts, strict=False)]


ROWS = [
    {"id": "a", "image": "x/1.png", "conversations": said("<image>\nWhat?", "A cat.", "Why?", "So.")},
    {"id": "text", "conversations": said("Hello", "Hi")},
    {"id": "two", "image": ["x/1.png", "x/2.png"], "conversations": said("Which?", "None")},
    {"id": "twice", "image": "x/1.png", "conversations": said("<image> and <image>?", "None")},
    {"id": "none", "conversations": said("<image>?", "None")},
    {"id": "gone", "image": "x/9.png", "conversations": said("What?", "A dog")},
    {"id": "out", "image": "../secret.png", "conversations": said("What?", "A dog")},
    {"id": "odd", "image": "x/1.png", "conversations": said("What?")},
    {"id": "empty", "image": "x/1.png", "conversations": said("What?", "  ")},
    {"id": "other"},
]
BAD = {
    **{"two": "several_images", "twice": "several_images", "none": "no_image_named", "gone": "missing"},
    **{"out": "outside", "odd": "turns_out_of_order", "empty": "empty_answer", "other": "no_conversation"},
}


@pytest.fixture
def llava(tmp_path):
    (tmp_path / "images" / "x").mkdir(parents=True)
    for name in ("1", "2"):
        (tmp_path / "images" / "x" / f"{name}.png").write_bytes(png(int(name)))
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "mix.json").write_text(json.dumps(ROWS))
    return tmp_path


def test_llavas_json(llava):
    samples = LlavaJson(llava / "mix.json", llava / "images")
    first = samples[0]
    assert (first.id, first.image) == ("a", png(1))
    assert first.turns == (Turn("What?", "A cat."), Turn("Why?", "So."))
    assert samples[1].image is None
    for place, row in enumerate(ROWS):
        if row["id"] in BAD:
            with pytest.raises((BadSample, BadImage)) as caught:
                samples[place]
            assert caught.value.reason == BAD[row["id"]], row["id"]
            assert samples.id_of(place) == row["id"]


def test_images_in_a_tar(llava):
    with tarfile.open(llava / "images.tar", "w") as archive:
        archive.add(llava / "images" / "x", "x")
    samples = LlavaJson(llava / "mix.json", llava / "images.tar")
    assert samples[0].image == png(1)
    with pytest.raises(BadSample, match="missing"):
        samples[5]


@pytest.mark.parametrize(
    ("content", "images", "told"),
    [
        ("{", "images", "cannot be read as LLaVA's JSON"),
        ("{}", "images", "expected a list of objects"),
        (json.dumps(ROWS), None, "names images: say in which folder"),
        (json.dumps(ROWS), "nowhere", "there is no such folder"),
    ],
)
def test_files_that_cannot_be_read(llava, content, images, told):
    (llava / "mix.json").write_text(content)
    with pytest.raises(UserError, match=told):
        LlavaJson(llava / "mix.json", images and llava / images)


def test_what_cannot_be_learned_is_told_by_reason_and_id_before_the_first_step(llava):
    words = tokenizer()
    prepare_tokenizer(words, "chat")
    reader = Reader(LlavaJson(llava / "mix.json", llava / "images"), words, EvalTransform(16), 4, 30, "conversation")
    with pytest.raises(UserError, match=r"8 of 10 conversations .* more than 1% .* several_images.*; the first: two s"):
        check_samples(reader, 0.01)
    found = check_samples(reader, 0.9)
    assert "1 longer than 30 tokens, which are cut" in found
    assert "1 without an image" in found


def test_words_in_place_of_things_name_them_with_doubts():
    """Of the shapes at a place the right one weighs most; colours and numbers are not doubted."""
    learned = UnevenScenes(100, 16)
    doubted = 0
    for index in learned.indices:
        scene = learned.source.scene(index)
        things = [(thing, len(group.things)) for group in scene.groups for thing in group.things]
        symbols = list(scenes.symbols_of(scene, Random(index)))
        for thing, count in things:
            here = [symbol for symbol in symbols if (symbol.x, symbol.y) == (thing.x, thing.y)]
            number, here = (here[:1], here[1:]) if count > 1 else ([], here)
            assert [symbol.words for symbol in number] == [f" {NUMBERS[count]}" for _ in number]
            colour, right, other = here
            assert colour.words == f" {thing.colour}"
            assert right.words == f" {plural(thing.shape) if count > 1 else thing.shape}"
            assert right.amount >= 2 * other.amount
            doubted += other.words != right.words and other.amount > 0.2
    assert doubted > 20


def test_some_conversations_end_with_a_list():
    talk = scenes.SceneConversations("questions", 200, 16)
    last = [talk[index].turns[-1] for index in range(200)]
    lists = [turn for turn in last if turn.question == scenes.LIST]
    assert 0.15 < len(lists) / 200 < 0.35
    assert all(turn.answer[0].isupper() and ", " in turn.answer for turn in lists)


def test_scenes_are_uneven_and_their_questions_true():
    learned = UnevenScenes(600, 16)
    alone, pairs = learned.counts
    ordered = [count for _, count in alone.most_common()]
    assert ordered[0] > 2 * ordered[len(ordered) // 2], "some objects are frequent"
    assert UnevenScenes(600, 16).indices == learned.indices
    talk = scenes.SceneConversations("questions", 200, 16)
    answers = Counter()
    for index in range(200):
        sample = talk[index]
        scene = learned.source.scene(learned.indices[index])
        there = scenes.objects_of(scene)
        assert len(set(sample.turns)) == len(sample.turns) <= scenes.TURNS
        for turn in sample.turns:
            answers[turn.answer] += 1
            if turn.question.startswith("Is there "):
                thing = turn.question.split(" ", 3)[3].removesuffix(" in the image?")
                assert (turn.answer == "Yes") == (thing in there)
    assert 0.8 < answers["No"] / answers["Yes"] < 1.25
    assert min(len(scenes.objects_of(learned.source.scene(place))) for place in learned.indices) == scenes.LEAST
    first = [talk[index].turns for index in range(200)]
    assert 0.4 < sum(turns[0].answer == "Yes" for turns in first) / 200 < 0.6
    for before in ("Yes", "No"):
        after = [turns[1].answer for turns in first if turns[0].answer == before and len(turns) > 1]
        after = [said for said in after if said in ("Yes", "No")]
        assert 0.3 < after.count("Yes") / len(after) < 0.7, "an answer says nothing of the next"
    for split in scenes.SPLITS:
        asked = pope_questions(learned, split, 30)
        assert len(asked) == 180
        assert sum(question.yes for question in asked) == 90
        for question in asked:
            things = scenes.objects_of(talk._scenes.source.__class__("test", size=16).scene(question.scene))
            thing = question.text.split(" ", 3)[3].removesuffix(" in the image?")
            assert question.yes == (thing in things)
    popular = Counter(q.text for q in pope_questions(learned, "popular", 30) if not q.yes)
    spread = Counter(q.text for q in pope_questions(learned, "random", 30) if not q.yes)
    assert len(popular) < len(spread) / 3
    assert pairs


def test_a_list_names_everything_from_left_to_right_and_can_stand_for_the_image():
    lists, text = (scenes.SceneConversations(kind, 100, 16) for kind in ("lists", "text"))
    for index in range(100):
        scene = lists._scenes.source.scene(lists._scenes.indices[index])
        (turn,) = lists[index].turns
        nouns = [noun.lower().split(" ")[1:] for noun in turn.answer.split(", ")]
        across = sorted(scene.groups, key=lambda group: sum(thing.x for thing in group.things) / len(group.things))
        assert [noun[0] for noun in nouns] == [group.kind.colour for group in across]
        assert all(noun[1].startswith(group.kind.shape) for noun, group in zip(nouns, across, strict=True))
        sample = text[index]
        assert sample.image is None
        assert sample.turns[0].question.startswith(f"The image shows this: {turn.answer}.\nIs there ")
        assert sample.turns[-1] == turn
        assert all(" left of, " not in turn.question for turn in sample.turns), "a list does not say what is above"
    with pytest.raises(UserError, match=r"data = 'scenes:lizts'.*scenes:captions, scenes:lists, scenes:questions"):
        open_samples("scenes:lizts", "", size=16, length=10, seed=0)


ODD = {  # answer → read as yes by the authors, lmms-eval, VLMEvalKit; None: neither
    "Yes": (True, True, True),
    "yes.": (True, None, True),
    "No": (False, False, False),
    "No, there is not.": (False, None, False),
    "NO": (True, False, False),
    "": (True, None, None),
    "Yes, no doubt.": (False, None, None),
    "There is not.": (False, None, None),
}


@pytest.mark.parametrize("said_", ODD)
@pytest.mark.parametrize("rule", RULES)
def test_popes_rules_on_odd_answers(said_, rule):
    meaning = dict(zip(RULES, ODD[said_], strict=True))[rule]
    for label in (True, False):
        counted = RULES[rule]([said_], [label])
        assert counted.accuracy == (meaning is label)
        assert counted.precision == (meaning is True and label)


def test_the_yes_ratio_of_lmms_eval_is_that_of_the_labels():
    answers, labels = ["no"] * 4, [True, True, True, False]
    assert RULES["lmms-eval"](answers, labels).yes_ratio == 0.75
    assert RULES["authors"](answers, labels).yes_ratio == 0
    counted = RULES["authors"](["yes", "yes", "no", "no"], labels)
    assert (counted.precision, round(counted.recall, 3), round(counted.f1, 3)) == (1.0, 0.667, 0.8)


def test_models_that_share_a_folder_keep_their_answers(tmp_path):
    sets = pope.scene_sets(UnevenScenes(60, 16), size=16, images=2)
    end = "é" * 120 + "/clip"  # longer than a file's name may be
    for model, answer in (("runs/clip", "Yes"), ("runs/diffclip", "No"), (f"a/{end}", "Yes"), (f"b/{end}", "No")):
        scored = [pope.Scored(asked, (answer,) * 12, ("Yes",) * 12) for asked in sets]
        paths = pope.write_answers(tmp_path, model, scored)
        assert len(paths) == len(scenes.SPLITS)
    assert len(list(tmp_path.iterdir())) == 4 * len(scenes.SPLITS)
    (near,) = tmp_path.glob("answers_runs-clip-*_pope_scenes_near.jsonl")
    rows = [json.loads(line) for line in near.read_text().splitlines()]
    assert {row["answer"] for row in rows} == {"Yes"}
    assert len(rows) == 12
