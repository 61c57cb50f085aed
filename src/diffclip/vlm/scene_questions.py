"""Drawn scenes to talk about: captions, lists, questions, and POPE's questions about what is not there.

Objects of scenes are even and independent by themselves, so that no absent object is more likely than another. The
scenes that a model learns from are therefore chosen by a seeded rejection that makes some objects, and some pairs of
them, frequent; POPE's popular and adversarial objects are counted on these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations
from random import Random
from typing import Literal, TypeVar

from diffclip.data.formats.stamp import stamp_of
from diffclip.data.scenes import SceneSource
from diffclip.data.scenes.grammar import article, name, relation
from diffclip.data.scenes.sample import pick
from diffclip.data.scenes.scene import Group, Scene
from diffclip.data.scenes.vocabulary import CLASSNAMES, COLOURS, NUMBERS, PROPS, SHAPES, plural
from diffclip.errors import UserError
from diffclip.vlm.conversation import Turn
from diffclip.vlm.samples import Sample, Symbol

T = TypeVar("T")

OBJECTS = (*CLASSNAMES, *(f"{colour} {prop}" for prop in PROPS for colour in COLOURS))
"""What a question may be about."""
LEAST = 2
"""Objects of a scene that is chosen: of one alone nothing is learned about which colour belongs to which shape."""
FREQUENT, RARE = 16, 0.4
"""So many objects keep their share of the scenes; a scene with another one is kept with this probability for each."""
UNPAIRED = 0.5
"""The probability that a scene is kept in which a frequent object is without its companion."""
CHOSEN_FROM = 1_000_000
TURNS, YES_NO = 6, 4
YES, NO = "Yes", "No"
NEAR = 0.25
"""Share of the noes whose object differs from one that is there in one word, or mixes two of them."""
LIST = "What is in the image?"
LISTED = 0.25
"""Share of conversations that end with it, so that a model does not unlearn it over the other questions."""
SURE, DOUBTED = (0.6, 1.2), (0.3, 1.0)
"""Amounts of words as symbols: of colours, and of shapes and numbers."""
Kind = Literal["captions", "lists", "questions", "text", "symbols"]
"""Captions, as the encoder learned from; lists of everything; questions; the same about a list in place of an image, or
about words that stand where the things are."""


def name_of(group: Group) -> str:
    return f"{group.kind.colour} {group.kind.shape}"


def objects_of(scene: Scene) -> tuple[str, ...]:
    """What a scene shows, each once, the foremost first."""
    return tuple(dict.fromkeys(name_of(group) for group in scene.groups))


def is_there(thing: str) -> str:
    """POPE's question."""
    return f"Is there {article(thing)} in the image?"


class UnevenScenes:
    """Training scenes in which some objects and pairs are frequent: `length` of them, a function of the seed."""

    def __init__(self, length: int, size: int, seed: int = 0) -> None:
        self.source, self.length, self.seed = SceneSource("train", size, CHOSEN_FROM), length, seed
        order = sorted(OBJECTS, key=lambda thing: Random(f"{seed}/{thing}/frequent").random())
        self._frequent = frozenset(order[:FREQUENT])
        self._companion = {one: order[number ^ 1] for number, one in enumerate(order[:FREQUENT])}

    @cached_property
    def indices(self) -> tuple[int, ...]:
        """The places of the chosen scenes in `scenes:train`, in their order. Raises UserError where there are fewer."""
        chosen = tuple(index for index, _ in zip(self._chosen(), range(self.length), strict=False))
        if len(chosen) < self.length:
            raise UserError(f"{len(chosen):,} scenes can be chosen to learn from, fewer than {self.length:,}")
        return chosen

    def _chosen(self) -> Iterator[int]:
        for index in range(len(self.source)):
            if self._keeps(objects_of(self.source.scene(index)), Random(f"{self.seed}/{index}/kept")):
                yield index

    def _keeps(self, things: Sequence[str], random: Random) -> bool:
        keep = 1.0 if len(things) >= LEAST else 0.0
        for thing in things:
            if thing not in self._frequent:
                keep *= RARE
            elif self._companion[thing] not in things:
                keep *= UNPAIRED
        return random.random() < keep

    @cached_property
    def counts(self) -> tuple[Counter[str], Counter[tuple[str, str]]]:
        """In how many of the chosen scenes each object is, and each pair of objects, both ways round."""
        alone, pairs = Counter[str](), Counter[tuple[str, str]]()
        for index in self.indices:
            things = objects_of(self.source.scene(index))
            alone.update(things)
            pairs.update(chain.from_iterable(((a, b), (b, a)) for a, b in combinations(things, 2)))
        return alone, pairs


class SceneConversations:
    """Conversations about drawn scenes: one turn of captions and lists, at most `TURNS` of questions."""

    def __init__(self, kind: Kind, length: int, size: int, seed: int = 0) -> None:
        self.name, self._kind = f"scenes/{kind}", kind
        self._scenes, self._seed = UnevenScenes(length, size, seed), seed

    def __len__(self) -> int:
        return self._scenes.length

    def __getitem__(self, index: int) -> Sample:
        place = self._scenes.indices[index]
        random = Random(f"{self._seed}/{place}/{self._kind}")
        scene = self._scenes.source.scene(place)
        if self._kind == "text":
            return Sample(self.id_of(index), None, turns_in_text(scene, random))
        if self._kind == "symbols":
            asked = turns_about(scene, random)
            return Sample(self.id_of(index), None, asked, tuple(symbols_of(scene, random)))
        example = self._scenes.source[place]
        if self._kind == "captions":
            turns: tuple[Turn, ...] = (Turn("Describe the image.", pick(random, example.captions)),)
        elif self._kind == "lists":
            turns = (Turn(LIST, listing(scene)),)
        else:
            turns = turns_about(scene, random)
        return Sample(self.id_of(index), example.image, turns)

    def id_of(self, index: int) -> str:
        return f"scenes:train {self._scenes.indices[index]}"

    def stamp(self) -> str:
        return stamp_of([], self._scenes.source.stamp(), len(self), self._seed, [self[index] for index in (0, 1)])


def listing(scene: Scene) -> str:
    """Everything in a scene, from left to right: "Two red stars, a blue ring"."""
    groups = sorted(scene.groups, key=lambda group: group.centre[0])
    text = ", ".join(name(group.kind, len(group.things)) for group in groups)
    return text[0].upper() + text[1:]


def symbols_of(scene: Scene, random: Random) -> Iterator[Symbol]:
    """A list's words where the things are: as a connector would see them, its doubts included.

    It is surer of colours than of shapes and numbers, and holds a shape drawn from all possible beside the right one.
    """
    for group in scene.groups:
        several = len(group.things) > 1
        for thing in group.things:
            if several:
                yield Symbol(thing.x, thing.y, f" {NUMBERS[len(group.things)]}", random.uniform(*DOUBTED))
            yield Symbol(thing.x, thing.y, f" {thing.colour}", random.uniform(*SURE))
            right = random.uniform(*DOUBTED)
            for shape, amount in ((thing.shape, right), (pick(random, SHAPES), right * random.uniform(0, 0.5))):
                yield Symbol(thing.x, thing.y, f" {plural(shape) if several else shape}", amount)


def turns_about(scene: Scene, random: Random) -> tuple[Turn, ...]:
    """Questions about a scene: first some by yes and no, then of the others what can be asked, at times a list."""
    others = (*_about(scene, random), *_places(scene))
    asked = (*yes_or_no(scene, random), *_shuffled(others, random))[:TURNS]
    return (*asked[: TURNS - 1], Turn(LIST, listing(scene))) if random.random() < LISTED else asked


def turns_in_text(scene: Scene, random: Random) -> tuple[Turn, ...]:
    """What can be asked of a list of the scene, which stands before the first question, and then the list itself."""
    asked = (*yes_or_no(scene, random), *_shuffled(tuple(_about(scene, random)), random))[: TURNS - 1]
    there = f"The image shows this: {listing(scene)}.\n"
    return (Turn(there + asked[0].question, asked[0].answer), *asked[1:], Turn(LIST, listing(scene)))


def yes_or_no(scene: Scene, random: Random) -> tuple[Turn, ...]:
    """Questions about objects, none twice, each answered by a yes with probability 1/2 whatever came before it.

    Were there as many of both in each conversation, or a question still when all objects were asked for, answers could
    be told from those before them without a look at the image. So they end with the last object that is there.
    """
    there, asked = _shuffled(objects_of(scene), random), list[Turn]()
    while there and len(asked) < YES_NO:
        if random.random() < 0.5:
            asked.append(Turn(is_there(there.pop()), YES))
            continue
        before = {turn.question for turn in asked}
        near = near_misses(scene) if random.random() < NEAR else []
        new, near = ([thing for thing in kind if is_there(thing) not in before] for kind in (absent(scene), near))
        asked.append(Turn(is_there(pick(random, near or new)), NO))
    return tuple(asked)


def _about(scene: Scene, random: Random) -> Iterator[Turn]:
    """Colour and number of each group, where the question names one group alone."""
    shapes = Counter(group.kind.shape for group in scene.groups)
    for group in scene.groups:
        kind, count = group.kind, len(group.things)
        if shapes[kind.shape] == 1:
            verb = f"are the {plural(kind.shape)}" if count > 1 else f"is the {kind.shape}"
            yield Turn(f"What color {verb}?", kind.colour.capitalize())
        if count > 1 or random.random() < 0.2:
            yield Turn(f"How many {kind.colour} {plural(kind.shape)} are there?", NUMBERS[count].capitalize())


def _places(scene: Scene) -> Iterator[Turn]:
    """Which of two single things lies where, as the grammar of captions tells it."""
    for one, other in combinations(scene.groups, 2):
        how = relation(one, other)
        if how is not None and len(one.things) == len(other.things) == 1:
            question = f"Is the {name_of(one)} left of, right of, above or below the {name_of(other)}?"
            yield Turn(question, how.split(" ")[0].capitalize())


def absent(scene: Scene) -> list[str]:
    return [thing for thing in OBJECTS if thing not in objects_of(scene)]


def near_misses(scene: Scene) -> list[str]:
    """Absent objects whose colour and whose shape are both in the scene, on different things; else one of the two."""
    things = [tuple(thing.split(" ")) for thing in objects_of(scene)]
    bound = [f"{a[0]} {b[1]}" for a in things for b in things]
    changed = [f"{colour} {shape}" for _, shape in things for colour in COLOURS]
    changed += [f"{colour} {shape}" for colour, old in things for shape in SHAPES if old in SHAPES]
    there = set(objects_of(scene))
    return [thing for thing in dict.fromkeys(bound) if thing not in there] or [
        thing for thing in dict.fromkeys(changed) if thing not in there
    ]


SPLITS = ("random", "popular", "adversarial", "near")


@dataclass(frozen=True)
class SceneQuestion:
    """A question of the scenes' POPE."""

    scene: int
    """Its place in `scenes:test`."""
    text: str
    yes: bool


def pope_questions(learned: UnevenScenes, split: str, images: int = 500) -> tuple[SceneQuestion, ...]:
    """Six questions for each of the first test scenes with three objects: what is there, and three absent objects.

    random: any; popular: the most frequent in the scenes that were learned from; adversarial: the most frequent beside
    the object that the question before is about; near: one whose colour and shape are there on different things, or
    one attribute of an object changed. As POPE asks about COCO (Li et al. 2023, section 4).
    """
    source = SceneSource("test", size=8)
    alone, pairs = learned.counts
    asked: list[SceneQuestion] = []
    for index in range(len(source)):
        scene = source.scene(index)
        things = objects_of(scene)[:3]
        if len(things) < 3:
            continue
        random = Random(f"pope/{split}/{index}")
        gone = sorted(absent(scene), key=lambda thing: random.random())
        for thing in things:
            if split == "popular":
                no = max(gone, key=lambda other: alone[other])
            elif split == "adversarial":
                no = max(gone, key=lambda other: pairs[thing, other])
            elif split == "near":
                near = [other for other in gone if other in near_misses(scene)]
                no = near[0] if near else gone[0]
            else:
                no = gone[0]
            gone.remove(no)
            asked += [SceneQuestion(index, is_there(thing), True), SceneQuestion(index, is_there(no), False)]
        if len(asked) == 6 * images:
            break
    return tuple(asked)


def _shuffled(things: Sequence[T], random: Random) -> list[T]:
    return sorted(things, key=lambda _: random.random())
