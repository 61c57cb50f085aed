"""What does each kind of attention cost: parameters and operations of ViT-B/16, time of its block, time of a step?

    python benchmarks/variants.py [--batch 32] [--rounds 5] [--threads 1] [--json FILE]

Parameters and operations are those of a ViT-B/16 with the kind in both towers. A block is one of its vision tower,
forward and backward, on four images of 197 tokens. A step is one of the quickstart's model, as it trains: forward,
loss, backward, AdamW. All in float32. Every kind gets the same input, in turn in one process, and the time is the
processor's own, so that other programs weigh little. What stands in the table is the median over rounds of the time
beside that of standard attention in the same round.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rounds import in_turn, medians, ratio, write_json
from timm.models.vision_transformer import Block
from train_step import Batches

from diffclip.config import Model, Recipe, Training
from diffclip.data.loading.loader import Batch
from diffclip.models.attention.kinds import ATTENTION
from diffclip.models.clip import CLIP, count_parameters
from diffclip.models.presets import PRESETS, VARIANTS
from diffclip.plan import flops
from diffclip.training.setup import new_state
from diffclip.training.step import Schedule

CAPTION = 12
"""Tokens of a usual caption, for the operations."""


def step_of(name: str) -> Callable[[Batch], object]:
    recipe = Recipe(model=Model(preset=f"{name}_vit_quickstart"), training=Training(precision="float32"))
    state = new_state(recipe, Schedule(steps_per_epoch=1000, steps=10_000, warmup_steps=1000))

    def step(batch: Batch) -> object:
        pixels = batch.pixels[..., :64, :64].contiguous()
        return state.step(0, Batch(pixels, batch.tokens, batch.groups, batch.indices))

    return step


def block_of(name: str) -> Callable[[int], object]:
    config = PRESETS[f"{name}_vit_b16"]
    torch.manual_seed(0)
    attention = ATTENTION[config.vision_attention]
    block = Block(config.vision_width, config.vision_heads, config.mlp_ratio, qkv_bias=True, attn_layer=attention)
    x = torch.randn(4, 197, config.vision_width)

    def run(_: int) -> object:
        out = block(x)
        out.backward(torch.ones_like(out))
        return out

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="of a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = ("clip", "diffclip", "diffclip_v2", "diffclip_v2_even", *list(VARIANTS)[1:])
    clock = time.process_time
    blocks = in_turn({name: block_of(name) for name in names}, options.rounds, clock=clock)
    batches = Batches(options.batch, None)
    made = {name: step_of(name) for name in names}
    steps = in_turn(
        {name: lambda number, step=step: step(batches(number)) for name, step in made.items()},
        options.rounds,
        clock=clock,
    )
    print(f"block of standard attention: {1e3 * medians(blocks)['clip']:.0f} ms; step: {medians(steps)['clip']:.2f} s")
    print("| preset | parameters beside CLIP | of them λ, norms, gates | GFLOPs of a pair | block | step |")
    print("|---|---:|---:|---:|---:|---:|")
    rows, clip = {}, 0
    for name in names:
        config = PRESETS[f"{name}_vit_b16"]
        with torch.device("meta"):
            counts = count_parameters(CLIP(config))
        clip = clip or counts["total"]
        row = {
            "parameters": counts["total"] - clip,
            "small": counts["lambda"] + counts["head_norm"] + counts["gate"],
            "gflops": sum(flops.training(config, 1, CAPTION).values()) / 1e9,
            "block": ratio(blocks, name, "clip"),
            "step": ratio(steps, name, "clip"),
        }
        rows[name] = row
        print(
            f"| `{name}_vit_b16` | {row['parameters']:+,} | {row['small']:,} | {row['gflops']:.1f} "
            f"| {row['block']:.2f} | {row['step']:.2f} |"
        )
    write_json(options.json, rows)


if __name__ == "__main__":
    main()
