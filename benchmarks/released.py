"""How large are released models, and how much work is an image? Computed from their configurations, without weights.

    python benchmarks/released.py

Parameters are counted and multiplications traced on tensors without content, so that nothing is downloaded. Megabytes
are of float32, as these models are published. Of an image: billions of multiplications and additions in the image
tower, and that as a share of CLIP's ViT-B/16, of which `benchmarks/use.py --what encode` has the seconds.
"""

from typing import Any

import open_clip
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffclip.models.clip import CLIP
from diffclip.models.presets import model_config

MODELS = {
    "hf:openai/clip-vit-base-patch16": "ViT-B-16-quickgelu",
    "hf:hammh0a/DiffCLIP_ViTB16_CC12M": "diffclip_vit_b16",
    "hf:openai/clip-vit-base-patch32": "ViT-B-32-quickgelu",
    "hf:openai/clip-vit-large-patch14": "ViT-L-14-quickgelu",
    "hf:openai/clip-vit-large-patch14-336": "ViT-L-14-336-quickgelu",
    "ViT-B-32/laion2b_s34b_b79k": "ViT-B-32",
    "ViT-B-16/laion2b_s34b_b88k": "ViT-B-16",
    "ViT-L-14/laion2b_s32b_b82k": "ViT-L-14",
    "ViT-H-14/laion2b_s32b_b79k": "ViT-H-14",
    "hf:google/siglip-base-patch16-224": "ViT-B-16-SigLIP",
    "hf:google/siglip-so400m-patch14-384": "ViT-SO400M-14-SigLIP-384",
}
"""How a command names a model → a preset of ours, or a configuration of open_clip's with the same sizes.

The first is what the others are compared with.
"""


def built(name: str) -> tuple[Any, int]:
    """A model without content, and the side of its images."""
    with torch.device("meta"):
        if name.startswith("diffclip"):
            config = model_config(name)
            return CLIP(config), config.image_size
        stated = open_clip.get_model_config(name)
        custom = stated.pop("custom_text", False)
        kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
        return kind(**stated), stated["vision_cfg"]["image_size"]


def main() -> None:
    print(f"{'':38}{'image':>6}{'M parameters':>14}{'MB':>7}{'GFLOP':>8}{'× ViT-B/16':>12}")
    reference = 0.0
    for name, configuration in MODELS.items():
        model, side = built(configuration)
        model.requires_grad_(False)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.encode_image(torch.empty(1, 3, side, side, device="meta"))
        count, work = sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 1e9
        reference = reference or work
        print(
            f"{name:38}{side:6}{count / 1e6:14.1f}{4 * count / 1e6:7.0f}{work:8.1f}{work / reference:12.2f}", flush=True
        )


if __name__ == "__main__":
    main()
