"""POPE asked of a model: on COCO with the benchmark's questions, or on drawn scenes with questions of the same kind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from diffclip import durable
from diffclip.data.images import BadImage, read_image
from diffclip.data.scenes import SceneSource
from diffclip.errors import UserError
from diffclip.evaluation import pope, pope_rules
from diffclip.evaluation.datasets.pope import Question, pope_labels, read_questions
from diffclip.evaluation.results import PerExampleScores
from diffclip.evaluation.stats.bootstrap import Interval, mean_interval
from diffclip.text import slug
from diffclip.vlm import model as models
from diffclip.vlm.answering import Picture, VisionLanguageModel, answer_about
from diffclip.vlm.recipe import parse_vlm_recipe
from diffclip.vlm.scene_questions import SPLITS, UnevenScenes, pope_questions

SUFFIX = "\nAnswer the question using a single word or phrase."
"""What LLaVA's evaluation and lmms-eval put behind each of POPE's questions."""
LONGEST = 16  # tokens of an answer: enough for "Yes, there is a … in the image."


@dataclass(frozen=True)
class Asked:
    """The questions of a split, and where their images come from."""

    dataset: str
    """What results call it."""
    questions: tuple[Question, ...]
    texts: tuple[str, ...]
    picture: Callable[[str], Picture]
    """The image that a question names."""


def coco_questions(labels: Path, images: Path, suffix: str = SUFFIX) -> list[Asked]:
    """The benchmark's three splits. Raises UserError where questions or their images are missing."""
    files = pope_labels(labels)
    if not files:
        raise UserError(f"{labels} holds no coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json")
    sets = {split: read_questions(file) for split, file in files.items()}
    names = {question.image for questions in sets.values() for question in questions}
    missing = sorted(name for name in names if not (images / name).is_file())
    if missing:
        raise UserError(
            f"{images} lacks {len(missing):,} of {len(names):,} images, {missing[0]} first: they are COCO's val2014"
        )
    return [
        Asked(
            pope.dataset_name(split, len(questions)),
            questions,
            tuple(f"{question.text}{suffix}" for question in questions),
            lambda name: read_image(images / name),
        )
        for split, questions in sets.items()
    ]


def scene_sets(learned: UnevenScenes, *, size: int, images: int = 500) -> list[Asked]:
    """The scenes' four splits, of so many test images."""
    source = SceneSource("test", size)
    sets = []
    for split in SPLITS:
        asked = pope_questions(learned, split, images)
        questions = tuple(
            Question(str(number), str(one.scene), one.yes, one.text) for number, one in enumerate(asked, start=1)
        )
        texts = tuple(question.text for question in questions)
        sets.append(Asked(f"pope_scenes_{split}", questions, texts, lambda name: source[int(name)].image))
    return sets


@dataclass(frozen=True)
class Scored:
    """A split, answered with images and blindly."""

    asked: Asked
    answers: tuple[str, ...]
    blind: tuple[str, ...]

    def rules(self, *, blind: bool = False) -> Mapping[str, pope_rules.Counted]:
        """Rule → what it counts."""
        labels = [question.yes for question in self.asked.questions]
        given = self.blind if blind else self.answers
        return MappingProxyType({name: rule(given, labels) for name, rule in pope_rules.RULES.items()})

    def always_yes(self) -> pope_rules.Counted:
        return pope_rules.authors(["yes"] * len(self.answers), [question.yes for question in self.asked.questions])

    def examples(self) -> PerExampleScores:
        """By the authors' rule, an image a row; the same of the blind answers as `blind_…`."""
        seeing, blind = (pope.evaluate(self.asked.questions, given) for given in (self.answers, self.blind))
        values = {**seeing.values, **{f"blind_{name}": value for name, value in blind.values.items()}}
        values["above_blind"] = seeing.values["accuracy"] - blind.values["accuracy"]
        return PerExampleScores(seeing.indices, values, seeing.chance)

    def above_blind(self) -> Interval:
        """Accuracy minus the blind one, with a 95 % bootstrap interval over images."""
        return mean_interval(self.examples().values["above_blind"].numpy())

    def fingerprint(self) -> str:
        return hashlib.sha256("\0".join((*self.asked.texts, *self.answers, *self.blind)).encode()).hexdigest()


def ask(
    vlm: VisionLanguageModel,
    sets: Sequence[Asked],
    *,
    batch_size: int = 16,
    limit: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Scored]:
    """The model's answers to all splits, with the images and without; equal questions about an image are asked once.

    limit: of the images of each split, the first so many. Raises UserError for an image that cannot be read.
    """
    cut = [_first_images(asked, limit) for asked in sets]
    distinct = list(
        dict.fromkeys(
            (question.image, text) for asked in cut for question, text in zip(asked.questions, asked.texts, strict=True)
        )
    )
    picture = {question.image: asked.picture for asked in cut for question in asked.questions}
    given: dict[tuple[str, str], str] = {}
    for image, texts in _by_image(distinct).items():
        said = _asked(vlm, picture, image, texts, batch_size)
        given.update({(image, text): answer for text, answer in zip(texts, said, strict=True)})
        on_progress(len(given), len(distinct))
    # A blind model sees no image: what it is asked is the text alone.
    image, texts = distinct[0][0], list(dict.fromkeys(text for _, text in distinct))
    without = dict(zip(texts, _asked(vlm, picture, image, texts, batch_size, blind=True), strict=True))
    return [
        Scored(
            asked,
            tuple(given[question.image, text] for question, text in zip(asked.questions, asked.texts, strict=True)),
            tuple(without[text] for text in asked.texts),
        )
        for asked in cut
    ]


def _by_image(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Image → the questions about it."""
    found: dict[str, list[str]] = {}
    for image, text in pairs:
        found.setdefault(image, []).append(text)
    return found


def _asked(
    vlm: VisionLanguageModel,
    picture: Mapping[str, Callable[[str], Picture]],
    image: str,
    texts: Sequence[str],
    batch_size: int,
    *,
    blind: bool = False,
) -> list[str]:
    seen = picture[image]
    try:
        return answer_about(vlm, seen(image), texts, batch_size=batch_size, max_new_tokens=LONGEST, blind=blind)
    except BadImage as error:
        raise UserError(f"the image {image} cannot be used: {error.reason}") from None


def _first_images(asked: Asked, limit: int | None) -> Asked:
    if limit is None:
        return asked
    kept = set(list(dict.fromkeys(question.image for question in asked.questions))[:limit])
    places = [place for place, question in enumerate(asked.questions) if question.image in kept]
    return Asked(
        f"{asked.dataset}@{limit}",
        tuple(asked.questions[place] for place in places),
        tuple(asked.texts[place] for place in places),
        asked.picture,
    )


def write_answers(out: Path, model: str, scored: Sequence[Scored]) -> list[Path]:
    """Raw answers, a file a split, as `diffclip pope` reads them, with the question and the blind answer beside.

    Files are named by the model's path too, its end and a digest of it, so that models can share `out`, as they share
    its results.jsonl.
    """
    whose = f"{slug(model)[-40:].strip('-')}-{hashlib.sha256(model.encode(errors='surrogateescape')).hexdigest()[:6]}"
    paths = []
    for one in scored:
        path = out / f"answers_{whose}_{one.asked.dataset}.jsonl"
        rows = zip(one.asked.questions, one.asked.texts, one.answers, one.blind, strict=True)
        lines = [
            durable.json_line(
                {
                    "question_id": question.id,
                    "image": question.image,
                    "prompt": text,
                    "label": "yes" if question.yes else "no",
                    "answer": said,
                    "blind_answer": blind,
                }
            )
            for question, text, said, blind in rows
        ]
        durable.write_bytes(path, b"".join(lines))
        paths.append(path)
    return paths


def learned_scenes(vlm: VisionLanguageModel) -> UnevenScenes:
    """The scenes that a model's questions were about, whose objects tell what is popular.

    Raises UserError where it did not learn from scenes.
    """
    recipe = parse_vlm_recipe(vlm.model.config.diffclip["recipe"], "the model's recipe")
    stage = next((stage for stage in reversed(recipe.stage) if stage.data == "scenes:questions"), None)
    if stage is None:
        raise UserError("this model has not learned from scenes:questions: ask it --labels DIR --images DIR")
    return UnevenScenes(stage.length, image_size(vlm), recipe.seed)


def name_of(vlm: VisionLanguageModel) -> str:
    """What results call a model: by the attention of its encoder."""
    differential = models.image_settings(vlm.model).vision_attention != "standard"
    return "diffclip_vlm" if differential else "clip_vlm"


def image_size(vlm: VisionLanguageModel) -> int:
    return models.image_settings(vlm.model).image_size
