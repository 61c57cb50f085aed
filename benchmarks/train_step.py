"""How long does a training step of CLIP and DiffCLIP ViT-B/16 take, and what memory, against open_clip's ViT-B-16?

    python benchmarks/train_step.py [--precision bf16 float32] [--timm] [--no-memory] [--data PATH] [--rounds 5]
        [--json FILE]

A step is what trains: pixels normalised, forward, loss, backward, AdamW. Every contestant gets the same images and
captions, in turn in one process, a new batch each round. open_clip is given fused AdamW too, which its own training
script is not. --timm adds our CLIP with timm's DiffAttention in both towers. With --data the captions are those of a
data set, in random order; else their lengths are drawn from those of 4,582 web-style captions, stored below.
Memory is the peak of a process that runs one contestant alone, less what it held before the model was made.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from rounds import in_turn, measured_apart, medians, peak_mib, ratio, write_json
from timm.layers import DiffAttention

from diffclip.config import Model, Recipe, Training
from diffclip.data.loading.loader import Batch
from diffclip.data.sources import captions_of, open_source
from diffclip.data.tokenizer import get_tokenizer
from diffclip.data.transforms import normalise
from diffclip.distributed import default_device
from diffclip.models.image_settings import OPENAI_MEAN, OPENAI_STD
from diffclip.training.optimizer import make_optimizer
from diffclip.training.setup import new_state
from diffclip.training.step import Schedule, TrainState, autocast_dtype

END, CONTEXT = 49407, 77
# How many of 4,582 titles and keywords of clip art have 3, 4, 5, … tokens, start and end included.
LENGTHS = (
    *(25, 21, 263, 489, 444, 292, 309, 299, 441, 442, 451, 234, 230, 161, 127, 72, 52, 38, 46, 29, 27, 15, 8, 9, 9),
    *(5, 6, 4, 4, 0, 0, 0, 3, 0, 1, 2, 0, 1, 6, 4, 3, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 1),
    *(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1),
)

Step = Callable[[Batch], object]


class Batches:
    """Batch number k, the same for everyone who asks: random pixels, and captions cut at the longest."""

    def __init__(self, size: int, data: str | None) -> None:
        self.size, self.captions = size, None
        if data is not None:
            source = open_source(data)
            found = [caption for index in range(len(source)) for caption in captions_of(source, source[index])]
            self.captions = get_tokenizer(CONTEXT)(found)  # (captions, 77)

    def __call__(self, number: int) -> Batch:
        rng = np.random.default_rng((7, number + 1))
        pixels = torch.from_numpy(rng.integers(0, 256, (self.size, 3, 224, 224), dtype=np.uint8))
        if self.captions is not None:
            tokens = self.captions[rng.choice(len(self.captions), self.size, replace=False)]
        else:
            lengths = 3 + rng.choice(len(LENGTHS), self.size, p=np.array(LENGTHS) / sum(LENGTHS))
            tokens = torch.from_numpy(rng.integers(1, END - 1, (self.size, CONTEXT)))
            place = torch.arange(CONTEXT)
            tokens[place >= torch.from_numpy(lengths - 1)[:, None]] = 0
            tokens[torch.arange(self.size), torch.from_numpy(lengths - 1)] = END
        longest = int((tokens == END).int().argmax(1).max()) + 1
        every = torch.arange(self.size)
        return Batch(pixels=pixels, tokens=tokens[:, :longest], groups=-1 - every, indices=every)


def recipe_of(preset: str, precision: str, compiled: bool = False) -> Recipe:
    return Recipe(model=Model(preset=preset), training=Training(batch_size=16, precision=precision, compile=compiled))


def ours(preset: str, precision: str, compiled: bool = False) -> TrainState:
    return new_state(
        recipe_of(preset, precision, compiled), Schedule(steps_per_epoch=1000, steps=10_000, warmup_steps=1000)
    )


def diffclip_step(preset: str, precision: str, compiled: bool = False) -> Step:
    trainer = ours(preset, precision, compiled)
    return lambda batch: trainer.step(0, batch)


def timm_step(precision: str) -> Step:
    """Our CLIP with timm's differential attention in place of ours."""
    trainer = ours("diffclip_vit_b16", precision)
    for tower in (trainer.model.visual, trainer.model.text):
        for depth, block in enumerate(tower.blocks):
            width, heads = block.attn.qkv.in_features, block.attn.num_heads
            block.attn = DiffAttention(width, heads // 2, qkv_bias=True, depth=depth)
    trainer.optimizer = make_optimizer(trainer.model, recipe_of("diffclip_vit_b16", precision).optimizer)
    return lambda batch: trainer.step(0, batch)


def open_clip_step(precision: str, compiled: bool = False) -> Step:
    """The step of open_clip's training script, texts at 77 tokens as its tokenizer makes them."""
    device = default_device()
    model = open_clip.create_model("ViT-B-16").to(device).train()
    forward = torch.compile(model) if compiled else model
    loss_of = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.98), weight_decay=0.5, fused=True)
    dtype = autocast_dtype(precision, device)

    def step(batch: Batch) -> float:
        optimizer.zero_grad()
        texts = torch.nn.functional.pad(batch.tokens, (0, CONTEXT - batch.tokens.shape[1]))  # (B, 77)
        pixels = normalise(batch.pixels.to(device, non_blocking=True), OPENAI_MEAN, OPENAI_STD)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            image_features, text_features, logit_scale = forward(pixels, texts.to(device, non_blocking=True))
            loss = loss_of(image_features, text_features, logit_scale)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, float(np.log(100)))
        return loss.item()

    return step


CONTESTANTS: dict[str, Callable[[str], Step]] = {
    "open_clip": open_clip_step,
    "clip_vit_b16": lambda precision: diffclip_step("clip_vit_b16", precision),
    "diffclip_vit_b16": lambda precision: diffclip_step("diffclip_vit_b16", precision),
    "timm": timm_step,
}


def peak(name: str, precision: str, batches: Batches) -> float:
    """Peak MiB of this process over a few steps of one contestant, above what it holds now."""
    batch = batches(0)
    idle = peak_mib()
    step = CONTESTANTS[name](precision)
    for _ in range(3):
        step(batch)
    return peak_mib() - idle


def measure(names: Sequence[str], precision: str, batches: Batches, rounds: int) -> dict[str, list[float]]:
    steps = {name: CONTESTANTS[name](precision) for name in names}
    made = {number: batches(number) for number in range(-1, rounds)}
    return in_turn({name: lambda number, step=step: step(made[number]) for name, step in steps.items()}, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", nargs="+", choices=("bf16", "float32"), default=["bf16"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--timm", action="store_true", help="also a tower with timm's DiffAttention")
    parser.add_argument("--data", help="a data set with captions: a path as open_source takes it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure memory too")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--peak-of", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    batches = Batches(arguments.batch_size, arguments.data)
    if arguments.peak_of:
        print(peak(arguments.peak_of, arguments.precision[0], batches))
        return
    names = [name for name in CONTESTANTS if arguments.timm or name != "timm"]
    results = []
    for precision in arguments.precision:
        same = ["--precision", precision, "--batch-size", str(arguments.batch_size)]
        if arguments.data:
            same += ["--data", arguments.data]
        memory = {name: measured_apart("--peak-of", name, *same) for name in names if arguments.memory}
        seconds = measure(names, precision, batches, arguments.rounds)
        found = medians(seconds)
        heading = f"{precision}, batch {arguments.batch_size}"
        print(f"{heading:22}{'s/step':>8}{'to open_clip':>14}{'peak MiB':>10}{'to open_clip':>14}")
        for name in names:
            space = f"{memory[name]:10.0f}{memory[name] / memory['open_clip']:14.3f}" if memory else ""
            print(f"{name:22}{found[name]:8.2f}{ratio(seconds, name, 'open_clip'):14.3f}{space}")
        print(f"diffclip_vit_b16 / clip_vit_b16: {ratio(seconds, 'diffclip_vit_b16', 'clip_vit_b16'):.3f}")
        results.append({"precision": precision, "seconds": seconds, "median": found, "peak_mib": memory})
    write_json(arguments.json, {"batch_size": arguments.batch_size, "results": results})


if __name__ == "__main__":
    main()
