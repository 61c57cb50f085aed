"""What share of training goes into watching it?

    python benchmarks/monitoring.py [--model diffclip_vit_quickstart] [--batch-size 128] [--rounds 7] [--json FILE]

In turn: a step; the gradients' norms, which every line of metrics.jsonl has; the statistics by layer. The share is what
the two come to at the default intervals, training.log_every and training.monitor_every.
"""

import argparse
from pathlib import Path

import torch
from rounds import in_turn, medians, ratio, write_json

from diffclip.config import Training, validate
from diffclip.data.loading.loader import Batch
from diffclip.training.setup import new_state
from diffclip.training.statistics import gradient_norms
from diffclip.training.step import Schedule

END_OF_TEXT = 49407
CAPTION = 16  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="diffclip_vit_quickstart")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    size = options.batch_size
    recipe = validate({"model": {"preset": options.model}, "training": {"batch_size": size}}, where="benchmark")
    trainer = new_state(recipe, Schedule(1000, 1000, 0))
    image = trainer.model.config.image_size
    tokens = torch.randint(1, END_OF_TEXT, (size, CAPTION))
    tokens[:, -1] = END_OF_TEXT
    batch = Batch(
        torch.randint(256, (size, 3, image, image), dtype=torch.uint8),
        tokens,
        -1 - torch.arange(size),
        torch.arange(size),
    )
    seconds = in_turn(
        {
            "step": lambda number: trainer.step(number + 1, batch),
            "gradient norms": lambda number: gradient_norms(trainer.model),
            "statistics": lambda number: trainer.statistics(batch),
        },
        options.rounds,
        fixed_order=True,  # the norms are of the step's gradients
    )
    every = {"gradient norms": Training().log_every, "statistics": Training().monitor_every}
    print(f"{options.model}, {size} images, {trainer.dtype or 'float32'}, {torch.get_num_threads()} threads")
    print(f"{'':16}{'ms':>9}{'to a step':>11}{'every':>7}{'share':>9}")
    middle, total = medians(seconds), 0.0
    for name, value in middle.items():
        part = ratio(seconds, name, "step")
        share = part / every[name] if name in every else 1.0
        total += share
        print(f"{name:16}{value * 1e3:9.1f}{part:11.3f}{every.get(name, 1):7}{share:9.3%}")
    print(f"watching costs {total - 1:.2%} of the steps")
    write_json(options.json, {"model": options.model, "batch": size, "seconds": seconds, "share": total - 1})


if __name__ == "__main__":
    main()
