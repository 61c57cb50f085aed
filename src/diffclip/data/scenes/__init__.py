"""The embedded data set: drawn scenes with captions, labels and masks, none on disk. See docs/scenes.md."""

from diffclip.data.scenes.finegrained import PATTERNS, FineGrainedSource, Pair, finegrained_pairs
from diffclip.data.scenes.sample import SPLITS
from diffclip.data.scenes.source import SceneSource
from diffclip.data.scenes.vocabulary import CLASSNAMES, HELD_OUT, TEMPLATES

__all__ = [
    "CLASSNAMES",
    "HELD_OUT",
    "PATTERNS",
    "SPLITS",
    "TEMPLATES",
    "FineGrainedSource",
    "Pair",
    "SceneSource",
    "finegrained_pairs",
]
