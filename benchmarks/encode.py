"""How fast are images and prompts encoded, against open_clip's ViT-B-16?

    python benchmarks/encode.py [--precision bf16 float32] [--images 16] [--classes 3] [--rounds 5]
        [--batch-sizes 8 32 128 256] [--json FILE]

Images: a batch in evaluation mode, weights in bfloat16 and in float32. Zero-shot classifier: 80 ImageNet prompts for
each of a few random ImageNet classes, from names to embeddings, by class_embeddings and by open_clip's
build_zero_shot_classifier, in float32; the same prompts by our text tower at 77 tokens show what cutting them brings.
All 1,000 classes would take open_clip half an hour on two cores, hence the sample, drawn with a fixed seed; it is to
our disadvantage, since more prompts fill batches of like length better. With --batch-sizes only our image encoder is
timed.
Contestants run in turn in one process; medians, and ratios within a round.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from rounds import in_turn, medians, ratio, write_json
from torch import Tensor

import diffclip
from diffclip.evaluation.tasks.zero_shot import class_embeddings
from diffclip.models.clip import CLIP

PRESETS = ("clip_vit_b16", "diffclip_vit_b16")
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
Contestants = dict[str, Callable[[int], object]]


def ours(preset: str, precision: str) -> CLIP:
    """Random weights, through `load` as a user gets them."""
    with tempfile.TemporaryDirectory() as folder:
        diffclip.save(diffclip.create_model(preset), folder)
        return diffclip.load(folder, dtype=DTYPES[precision])[0]


def theirs(precision: str) -> torch.nn.Module:
    return open_clip.create_model("ViT-B-16", precision={"bf16": "pure_bf16", "float32": "fp32"}[precision]).eval()


def image_encoders(precision: str, pixels: Tensor) -> Contestants:
    """pixels (B, 3, 224, 224), normalised, in the dtype of the weights."""
    pixels = pixels.to(DTYPES[precision])
    models = {"open_clip": theirs(precision)} | {preset: ours(preset, precision) for preset in PRESETS}
    return {name: lambda _, model=model: model.encode_image(pixels) for name, model in models.items()}


def classifiers(classes: int) -> tuple[Contestants, int]:
    """Ways from class names to class embeddings, and how many prompts there are."""
    chosen = np.random.default_rng(0).permutation(len(IMAGENET_CLASSNAMES))[:classes]
    names = [IMAGENET_CLASSNAMES[index] for index in chosen]
    templates = [template("{c}") for template in OPENAI_IMAGENET_TEMPLATES]
    prompts = [template.format(c=name) for name in names for template in templates]
    peer, its_tokenizer = theirs("float32"), open_clip.get_tokenizer("ViT-B-16")
    tokenizer = diffclip.get_tokenizer()
    contestants: Contestants = {
        "open_clip": lambda _: open_clip.build_zero_shot_classifier(
            peer, its_tokenizer, names, OPENAI_IMAGENET_TEMPLATES
        )
    }
    for preset in PRESETS:
        model = ours(preset, "float32")
        contestants[preset] = lambda _, model=model: class_embeddings(model, tokenizer, names, templates)
    contestants[f"{PRESETS[-1]}, 77 tokens"] = lambda _, model=model: [
        model.encode_full_text(tokens, normalize=True) for tokens in torch.split(tokenizer(prompts), 256)
    ]
    return contestants, len(prompts)


def compare(what: str, unit: str, count: int, contestants: Contestants, rounds: int) -> dict[str, object]:
    """Time contestants, print a table of milliseconds per unit, and return the figures."""
    seconds = in_turn(contestants, rounds)
    found = medians(seconds)
    print(f"{what:34}{f'ms/{unit}':>12}{'to open_clip':>14}")
    for name, value in found.items():
        print(f"{name:34}{value / count * 1e3:12.2f}{ratio(seconds, name, 'open_clip'):14.3f}")
    return {"what": what, "count": count, "seconds": seconds, "median": found}


def by_batch_size(sizes: list[int], precisions: list[str], rounds: int) -> list[dict[str, object]]:
    """diffclip_vit_b16: milliseconds an image at each batch size."""
    results: list[dict[str, object]] = []
    for precision in precisions:
        model, pixels = ours(PRESETS[-1], precision), torch.randn(max(sizes), 3, 224, 224).to(DTYPES[precision])
        encode = model.encode_image
        seconds = in_turn({str(n): lambda _, batch=pixels[:n], encode=encode: encode(batch) for n in sizes}, rounds)
        found = {size: value / int(size) * 1e3 for size, value in medians(seconds).items()}
        print(f"{f'ms/image, {precision}, batches of':34}" + "".join(f"{size:>8}" for size in found))
        print(f"{PRESETS[-1]:34}" + "".join(f"{value:8.1f}" for value in found.values()))
        results.append({"what": f"batch size, {precision}", "seconds": seconds, "ms_per_image": found})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", nargs="+", choices=DTYPES, default=list(DTYPES), help="of image encoders")
    parser.add_argument("--images", type=int, default=16, help="images of a batch; 0: do not encode images")
    parser.add_argument("--classes", type=int, default=3, help="ImageNet classes; 0: no classifier")
    parser.add_argument("--batch-sizes", type=int, nargs="+", help="time our image encoder at these sizes, and no more")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    results = []
    with torch.inference_mode():
        if arguments.batch_sizes:
            results += by_batch_size(arguments.batch_sizes, arguments.precision, arguments.rounds)
        if arguments.images and not arguments.batch_sizes:
            pixels = torch.randn(arguments.images, 3, 224, 224)
            for precision in arguments.precision:
                what = f"{arguments.images} images, {precision}"
                encoders = image_encoders(precision, pixels)
                results.append(compare(what, "image", arguments.images, encoders, arguments.rounds))
        if arguments.classes and not arguments.batch_sizes:
            contestants, prompts = classifiers(arguments.classes)
            what = f"{arguments.classes} classes × {prompts // arguments.classes} prompts, float32"
            results.append(compare(what, "prompt", prompts, contestants, arguments.rounds))
    write_json(arguments.json, {"results": results})


if __name__ == "__main__":
    main()
