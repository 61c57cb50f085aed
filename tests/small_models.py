"""The small models of the tests, each named once.

Each is a dictionary of fields of `ModelConfig`: `create_model("diffclip_vit_t16", **PICTURES)`, or the overrides of a
recipe's model. A test that needs something else says what differs: `PICTURES | {"vision_depth": 2}`.
"""

import torch

from diffclip import create_model

# Evaluation, reports and commands: 16 pixels in four patches, one block a tower.
PICTURES = {
    **{"image_size": 16, "patch_size": 8, "vision_width": 32, "vision_depth": 1, "vision_heads": 2},
    **{"text_width": 16, "text_depth": 1, "text_heads": 2, "embed_dim": 16},
}

# Towers, maps and weight files, on the B/16 presets: 32 pixels in four patches, four heads.
TOWERS = {
    **{"image_size": 32, "vision_width": 32, "vision_depth": 2, "vision_heads": 4},
    **{"text_width": 32, "text_depth": 2, "text_heads": 4, "embed_dim": 16},
}

# A training step, on the quickstart presets: 32 pixels, two blocks a tower with one differential head each, and
# patch dropout, so that a step draws random numbers.
TRAINED = {
    **{"image_size": 32, "patch_size": 8, "vision_width": 32, "vision_depth": 2},
    **{"text_width": 32, "text_depth": 2, "embed_dim": 16, "patch_dropout": 0.25},
}

# A whole training run: the same at 16 pixels, with four heads.
RUN = TRAINED | {"image_size": 16, "vision_heads": 4, "text_heads": 4}

# What is estimated without being trained: memory, operations, shapes.
ESTIMATED = {"image_size": 32, "vision_width": 64, "text_width": 32, "context_length": 16, "embed_dim": 8}

# Equations written out in loops, in float64: 8 pixels in four patches, a vocabulary of 20 tokens.
EQUATIONS = {
    **{"image_size": 8, "patch_size": 4, "vision_width": 8, "vision_depth": 3, "vision_heads": 4, "embed_dim": 6},
    **{"text_width": 8, "text_depth": 1, "text_heads": 2, "context_length": 6, "vocab_size": 20},
}


def small_model(kind="diffclip", seed=0, size=PICTURES, **changes):
    """A `clip` or `diffclip` model of one of the sizes above, its weights drawn from the seed."""
    torch.manual_seed(seed)
    return create_model(f"{kind}_vit_t16", **size | changes)
