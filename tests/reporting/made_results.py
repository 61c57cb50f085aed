"""Results and runs as files, small, with numbers that a test can foretell."""

import json
from pathlib import Path

import torch

from diffclip.evaluation import results
from diffclip.evaluation.results import PerExampleScores, Result

NINE = ("caltech101", "dtd", "pets", "flowers", "sun397", "fgvc_aircraft", "cifar10", "cifar100", "food101")
PATTERNS = (
    "orientation_and_direction",
    "presence_of_specific_features",
    "state_and_condition",
    "quantity_and_count",
    "positional_and_relational_context",
    "color_and_appearance",
    "structural_and_physical_characteristics",
    "text",
    "viewpoint_and_perspective",
)


def put(path: Path, dataset: str, model: str, pretrained: str, task: str, **metrics: float) -> None:
    """A result without the values of its examples; `__` in a metric's name stands for "/", `_at_` for "@"."""
    named = {name.replace("__", "/").replace("_at_", "@"): value for name, value in metrics.items()}
    results.append(path, Result(dataset=dataset, model=model, pretrained=pretrained, task=task, metrics=named))


def put_examples(
    path: Path, dataset: str, model: str, pretrained: str, task: str, right: list[float], *, metric: str = "acc1"
) -> None:
    """A result with the values of its examples."""
    examples = PerExampleScores(torch.arange(len(right)), {metric: torch.tensor(right)}, {metric: 0.1})
    key = (dataset, model, pretrained, task)
    results.append(
        path, Result(dataset=dataset, model=model, pretrained=pretrained, task=task, metrics=examples.metrics)
    )
    results.save_examples(path, key, examples, "x")


def make_run(path: Path, *, seed: int, preset: str, data: str = "scenes") -> Path:
    """A run directory: recipe, config and 20 logged steps."""
    path.mkdir(parents=True)
    differential = preset.startswith("diff")
    (path / "recipe.toml").write_text(f'seed = {seed}\n[model]\npreset = "{preset}"\n[data.train]\npath = "{data}"\n')
    config = {
        "vision_attention": "differential" if differential else "standard",
        "text_attention": "differential" if differential and not preset.endswith("_vision") else "standard",
        "lambda_schedule": "depth" if preset.endswith("_dynamic") else "constant",
    }
    (path / "config.json").write_text(json.dumps(config))
    lines = []
    for step in range(10, 210, 10):
        record = {"step": step, "loss": 5 / step + seed / 100, "logit_scale": 14.0}
        if differential:
            record |= {"lambda_visual": [0.8 + step / 1000, 0.7 - seed / 100]}
            record |= {} if preset.endswith("_vision") else {"lambda_text": [0.8, 0.9, 1.0]}
        lines.append(json.dumps(record))
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return path


def paper_results(path: Path) -> Path:
    """CLIP and DiffCLIP on the paper's data sets, CC12M, without DiffCLIP's Pets and without few-shot."""
    for model, pretrained, gain in (
        ("clip_vit_b16", "hub/clip_cc12m", 0.0),
        ("diffclip_vit_b16", "hub/diffclip_cc12m", 0.02),
    ):
        for place, name in enumerate(NINE):
            if not (gain and name == "pets"):
                metrics = {"acc1": 0.5 + place / 100 + gain, "mean_per_class_recall": 0.4 + place / 100 - gain}
                put(path, f"wds/vtab/{name}", model, pretrained, "linear_probe", **metrics)
        for place, name in enumerate(("flickr30k", "flickr8k", "mscoco_captions")):
            recalls = {"image_retrieval_recall@5": 0.3 + place / 10, "text_retrieval_recall@5": 0.4 + place / 10 + gain}
            put(path, f"wds/{name}", model, pretrained, "zeroshot_retrieval", **recalls)
        for name, value in (
            ("imagenet1k", 0.3),
            ("imagenetv2", 0.25),
            ("imagenet-a", 0.05),
            ("imagenet-r", 0.4),
            ("imagenet_sketch", 0.2),
        ):
            put(path, f"wds/{name}", model, pretrained, "zeroshot_classification", acc1=value + gain)
        pairs = {f"pair_accuracy/{name}": 0.2 + gain for name in PATTERNS}
        put(path, "mmvp_vlm", model, pretrained, "fine_grained", pair_accuracy=0.2 + gain, **pairs)
    return path


def scene_results(folder: Path, *, seeds: int = 3, apart: float = 0.0) -> Path:
    """Runs of CLIP, DiffCLIP and DiffCLIP† over seeds, and everything that is measured on scenes.

    apart: by how much a gain differs between seeds 0 and 1.
    """
    path = folder / "eval" / "results.jsonl"
    for preset, gain in (
        ("clip_vit_quickstart", 0.0),
        ("diffclip_vit_quickstart", 0.05),
        ("diffclip_vit_quickstart_vision", 0.01),
    ):
        for seed in range(seeds):
            run = make_run(folder / f"{preset}-seed{seed}", seed=seed, preset=preset)
            value = 0.5 + gain + seed / 50 + (apart * (seed % 2) if gain else 0)
            where = (preset, str(run))
            put(path, "scenes/test", *where, "zeroshot_classification", acc1=value, mean_per_class_recall=value)
            for place, name in enumerate(("test_v2", "test_sketch")):
                put(path, f"scenes/{name}", *where, "zeroshot_classification", acc1=value - (place + 1) / 10)
            put(path, "scenes/test", *where, "linear_probe", acc1=value + 0.1)
            put(path, "cifar10", *where, "linear_probe", acc1=value)
            put(path, "scenes/test", *where, "few_shot", acc1=value + 0.2)
            recalls = {f"{way}_retrieval_recall@{k}": value - 0.1 for way in ("image", "text") for k in (1, 5, 10)}
            put(path, "scenes/test", *where, "zeroshot_retrieval", **recalls)
            pairs = {f"pair_accuracy/{name}": value - 0.2 for name in PATTERNS}
            put(path, "scenes/finegrained", *where, "fine_grained", pair_accuracy=value - 0.2, **pairs)
            put(path, "scenes/test", *where, "grounding", pointing_game=value, energy_in_mask=value / 2)
            attacked = {f"acc1/{attack}/eps_{e:g}": value / (1 + e) for attack in ("fgsm", "pgd20") for e in (0.5, 2)}
            put(path, "scenes/test", *where, "robustness", acc1=value, **attacked)
            corrupted = {
                f"acc1/{kind}/{level}": value - level / 20 for kind in ("fog", "snow") for level in range(1, 6)
            }
            put(path, "scenes/test", *where, "corruptions", acc1=value - 0.15, **corrupted, **{"acc1/clean": value})
            alike = {
                f"a1_a2_correlation/layer_{layer:02d}/{condition}": 0.1 * layer
                for layer in (1, 2)
                for condition in ("clean", "cluttered", "noisy")
            }
            put(path, "scenes/test", *where, "noise", **alike)
    return folder
