"""What can be read off the features that a language model sees? Scenes' POPE, answered by a linear probe.

    python benchmarks/vlm_probe.py ENCODER… [--scenes 3000] [--shuffle 2] [--layer -2] [--json FILE]

A linear function tells the probability of each colour and of each shape at every token; an object is at a token by the
product of its two, and in the image unless it is at none. The probe learns from the scenes that `scenes:questions`
talks about; above which probability an answer is a yes is chosen on the questions about them. Then it answers what
`diffclip vlm pope --scenes` asks. A language model below it has not learned to read all that the encoder gives.
"""

import argparse
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from rounds import processor, write_json
from torch import Tensor, nn

import diffclip
from diffclip.data.scenes import SceneSource
from diffclip.data.scenes.vocabulary import COLOURS, PROPS, SHAPES
from diffclip.data.transforms import normalise
from diffclip.models.clip import CLIP
from diffclip.vlm.scene_questions import (
    OBJECTS,
    SPLITS,
    YES,
    UnevenScenes,
    is_there,
    objects_of,
    pope_questions,
    yes_or_no,
)
from diffclip.vlm.tower import tower_of

EPOCHS, BATCH, RATE, DECAY = 40, 64, 3e-3, 1e-3
WORDS = (*COLOURS, *SHAPES, *PROPS)
PARTS = torch.tensor([[WORDS.index(word) for word in thing.split(" ")] for thing in OBJECTS])  # (objects, 2)
PLACE = {is_there(thing): number for number, thing in enumerate(OBJECTS)}


@torch.no_grad()
def features(model: CLIP, source: SceneSource, places: list[int], shuffle: int, layer: int) -> Tensor:
    """(images, tokens, width) of one hidden state, without the class token."""
    tower, transform, found = tower_of(model, shuffle), model.config.transform, []
    for start in range(0, len(places), BATCH):
        pixels = torch.stack([transform(source[place].image) for place in places[start : start + BATCH]])
        states = tower(normalise(pixels, model.config.image_mean, model.config.image_std)).hidden_states
        found.append(states[layer][:, 1:])
    return torch.cat(found)


class Probe(nn.Module):
    """Features (B, tokens, width) → how probable each object is, as a logit (B, objects)."""

    def __init__(self, learned: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", learned.mean((0, 1)))
        self.register_buffer("scale", 1 / (learned.std((0, 1)) + 1e-6))
        self.score = nn.Linear(learned.shape[-1], len(WORDS))
        nn.init.constant_(self.score.bias, -4.0)  # most words are true of no token

    def forward(self, seen: Tensor) -> Tensor:
        words = F.logsigmoid(self.score((seen - self.mean) * self.scale))  # (B, tokens, words)
        at = words[..., PARTS].sum(-1).clamp(max=-1e-6)  # log-probability of each object at each token
        gone = torch.log(-torch.expm1(at)).sum(1).clamp(max=-1e-6)  # of its being at none
        return torch.log(-torch.expm1(gone)) - gone


def fitted(seen: Tensor, there: Tensor) -> Probe:
    torch.manual_seed(0)
    probe = Probe(seen)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=RATE, weight_decay=DECAY)
    steps = EPOCHS * (len(seen) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(epoch))
        for few in order[: len(seen) // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(probe(seen[few]), there[few]).backward()
            optimizer.step()
            schedule.step()
    return probe.eval()


def best_threshold(scores: Tensor, yes: Tensor) -> float:
    """Of all scores the one from which on a yes makes the fewest errors."""
    ordered, places = scores.sort()
    errors = yes[places].float().cumsum(0) + (~yes[places]).sum() - (~yes[places]).float().cumsum(0)
    return float(ordered[errors.argmin()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("encoders", nargs="+", metavar="ENCODER")
    parser.add_argument("--scenes", type=int, default=3000)
    parser.add_argument("--shuffle", type=int, default=2)
    parser.add_argument("--layer", type=int, default=-2)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"{processor()}: accuracy of a linear probe on scenes' POPE, {arguments.images} images")
    print(f"{'encoder':30}" + "".join(f"{split:>13}" for split in SPLITS))
    rows = {}
    for path in arguments.encoders:
        model = diffclip.load(path)[0].eval()
        assert isinstance(model, CLIP)
        learned = UnevenScenes(arguments.scenes, model.config.image_size)
        places = list(learned.indices)
        seen = features(model, learned.source, places, arguments.shuffle, arguments.layer)
        there = torch.zeros(len(places), len(OBJECTS))
        asked: list[tuple[int, int, bool]] = []
        for row, place in enumerate(places):
            scene = learned.source.scene(place)
            there[row, [OBJECTS.index(thing) for thing in objects_of(scene)]] = 1
            turns = yes_or_no(scene, Random(f"probe/{place}"))
            asked += [(row, PLACE[turn.question], turn.answer == YES) for turn in turns]
        probe = fitted(seen, there)
        rows_, objects, yes = (torch.tensor(column) for column in zip(*asked, strict=True))
        with torch.no_grad():
            threshold = best_threshold(probe(seen)[rows_, objects], yes)
        test, found = SceneSource("test", model.config.image_size), {}
        for split in SPLITS:
            questions = pope_questions(learned, split, arguments.images)
            order = list(dict.fromkeys(question.scene for question in questions))
            with torch.no_grad():
                scores = probe(features(model, test, order, arguments.shuffle, arguments.layer))
            said = [float(scores[order.index(one.scene), PLACE[one.text]]) >= threshold for one in questions]
            right = [answer == one.yes for answer, one in zip(said, questions, strict=True)]
            found[split] = sum(right) / len(right)
        rows[path] = found
        print(f"{path[-30:]:30}" + "".join(f"{100 * found[split]:12.1f}%" for split in SPLITS), flush=True)
    write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
