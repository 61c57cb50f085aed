"""How much faster is diffclip's tokenizer than open_clip's, on captions that neither has seen?

    python benchmarks/tokenizer.py [--data PATH] [--rounds 7] [--json FILE]

Both run in turn in one process, on one thread, each round with new tokenizers whose caches are empty ("new
words") and then once more on the same captions ("known words", the state of a long run). Medians over the
rounds. The captions are prompts for the ImageNet classes, the same with punctuation that needs repair, and,
with --data, the captions of any data set that `open_source` reads. It fails if any id differs.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # open_clip sets it too; here it is said

from open_clip.tokenizer import SimpleTokenizer
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

from diffclip.data import tokenizer
from diffclip.data.sources import captions_of, open_source


def caption_sets(data: str | None, count: int) -> dict[str, list[str]]:
    """Name → distinct captions in random order."""
    rng = np.random.default_rng(0)
    every = [t(c) for c in IMAGENET_CLASSNAMES for t in OPENAI_IMAGENET_TEMPLATES]
    prompts = [every[i] for i in rng.permutation(len(every))[:count]]
    sets = {"ImageNet prompts": prompts, "in curly quotes": [f"“{p[:-1]}” – it’s a café" for p in prompts]}
    if data is not None:
        source = open_source(data)
        captions = [caption for i in range(len(source)) for caption in captions_of(source, source[i])]
        captions = list(dict.fromkeys(captions))
        sets[source.name] = [captions[i] for i in rng.permutation(len(captions))[:count]]
    return sets


def seconds(tokenize, captions: list[str]) -> float:
    start = time.perf_counter()
    tokenize(captions)
    return time.perf_counter() - start


def measure(captions: list[str], rounds: int) -> dict[str, float]:
    """Median microseconds a caption of both, with new and with known words; ValueError if the ids differ."""
    times: dict[str, list[float]] = {"new": [], "new_open_clip": [], "known": [], "known_open_clip": []}
    for _ in range(rounds):
        tokenizer._vocabulary_and_model.cache_clear()  # the Rust library keeps words too
        ours, theirs = tokenizer.Tokenizer(), SimpleTokenizer()
        for words in ("new", "known"):
            times[f"{words}_open_clip"].append(seconds(theirs, captions))
            times[words].append(seconds(ours, captions))
    if not torch.equal(ours(captions), theirs(captions)):
        raise ValueError("the ids differ")
    return {name: statistics.median(values) / len(captions) * 1e6 for name, values in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a data set with captions: a path as open_source takes it")
    parser.add_argument("--captions", type=int, default=4000, help="captions of each kind")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    print(f"{'µs a caption':24}{'captions':>10}{'words':>8}{'open_clip':>11}{'diffclip':>10}{'faster':>9}")
    for name, captions in caption_sets(arguments.data, arguments.captions).items():
        found = measure(captions, arguments.rounds)
        for words in ("new", "known"):
            theirs, ours = found[f"{words}_open_clip"], found[words]
            print(f"{name:24}{len(captions):10}{words:>8}{theirs:11.2f}{ours:10.2f}{theirs / ours:8.1f}×")
        results.append({"captions": name, "count": len(captions), "microseconds": found})
    if arguments.json:
        arguments.json.write_text(json.dumps({"rounds": arguments.rounds, "results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
