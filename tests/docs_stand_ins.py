"""What the examples of the docs take for granted, made small, under the names that they use."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import tomli
import tomli_w
from PIL import Image
from safetensors.torch import save_file

from diffclip import cli
from diffclip.data.scenes import SceneSource
from small_language import save_language
from small_models import PICTURES

ROOT = Path(__file__).parents[1]
TRAINING = {"batch_size": 8, "epochs": 1, "precision": "float32", "log_every": 1, "monitor_every": 2}
# Run directories that pages name and do not make.
RUNS = ("runs/clip", "runs/cifar10-clip")
DIFFERENTIAL_RUNS = ("runs/diffclip", "runs/cifar10-diffclip", "runs/scenes")


def stand_ins(folder):
    """Fill a folder, which is the current one."""
    recipes(folder / "recipes")
    data(folder / "data")
    (folder / "docs/images").mkdir(parents=True)
    for name in ("docs/images/example.png", "image.png", "desk.jpg"):
        Image.open(ROOT / "docs/images/example.png").convert("RGB").save(folder / name)
    for kind in ("clip", "diffclip"):
        cli.main(
            [
                "train",
                "recipes/quickstart.toml",
                "--model.preset",
                f"{kind}_vit_quickstart",
                "--out",
                f"runs/quickstart/{kind}",
            ]
        )
    for kind, names in (("clip", RUNS), ("diffclip", DIFFERENTIAL_RUNS)):
        for name in names:
            shutil.copytree(f"runs/quickstart/{kind}", name)
    scenes = "scenes=scenes:test?size=16&length=16"
    cli.main(["eval", "runs/clip", "runs/diffclip", "--data", scenes, "--tasks", "zero_shot", "--out", "eval"])
    shutil.copytree("data/openclipart", "openclipart")
    save_language(folder / "language")
    open_clip_model(folder / "models/laion")
    sizes = [f"stage.{stage}.{key}" for stage in ("words", "answer") for key in ("length=24", "batch_size=8")]
    paths = ["encoder.path=runs/quickstart/diffclip", "language.path=language"]
    cli.main(["vlm", "train", "scenes", "--set", *paths, *sizes, "--out", "runs/vlm/diffclip"])


def open_clip_model(folder):
    """A folder as open_clip writes it, of a model that no CLIP of ours can be."""
    size = {"layers": 1, "width": 32}
    vision = size | {"image_size": 16, "patch_size": 8, "head_width": 16, "ls_init_value": 0.1}
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": size | {"heads": 2}}
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")


def recipes(folder):
    """The project's recipes and sweeps with tiny models, data and batches."""
    shutil.copytree(ROOT / "src/diffclip/recipes", folder)
    for path in folder.rglob("*.toml"):
        if path.parent.name == "sweeps":
            path.write_text(
                path.read_text().replace("size=64", "size=16").replace('00"', '"').replace("length=10", "length=24")
            )
            continue
        if path.parent.name == "vlm":
            continue
        recipe = tomli.loads(path.read_text())
        overrides = {key: value for key, value in recipe["model"].get("overrides", {}).items() if key not in PICTURES}
        recipe["model"]["overrides"] = overrides | PICTURES
        recipe["data"] |= {"workers": 0}
        train = recipe["data"].setdefault("train", {})
        if train.get("path", "").startswith("scenes"):
            train["path"] = "scenes:train?size=16&length=32"
        for part in (train, *(evaluation["data"] for evaluation in recipe.get("evaluation", []))):
            if "holdout" in part:
                part["holdout"] = 8
        recipe["training"] = {
            key: value for key, value in recipe.get("training", {}).items() if key == "evaluate_every"
        } | TRAINING
        recipe.setdefault("optimizer", {})["warmup_epochs"] = 0.5
        path.write_text(tomli_w.dumps(recipe))


def data(folder):
    scenes = SceneSource("train", 16, 32)
    cli.main(
        [
            "data",
            "pack",
            "scenes:train?size=16&length=32",
            "--out",
            str(folder / "shards"),
            "--shard-examples",
            "16",
            "--workers",
            "1",
        ]
    )
    shutil.copy(folder / "shards/00001.tar", folder / "shards/00100.tar")
    shutil.copytree(folder / "shards", folder.parent / "icons/train")
    for name in ("cc12m", "cc3m", "openclipart"):
        (folder / name).mkdir()
        for shard in ("00000.tar", "00001.tar"):
            shutil.copy(folder / "shards" / shard, folder / name / shard)
    with (folder / "photos.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filepath", "caption"])
        for i in range(4):
            Image.fromarray(scenes[i].image).save(folder / f"photo{i}.png")
            table.writerow([f"photo{i}.png", scenes[i].captions[0]])
    _hub(folder / "cifar10")
    for split in ("train", "test"):
        for name in ("Abyssinian", "Beagle"):
            (folder / "pets" / split / name).mkdir(parents=True)
            Image.fromarray(scenes[0].image).save(folder / "pets" / split / name / "1.jpg")
    _pope(folder / "pope", folder.parent)


def _hub(folder):
    """Ten classes of noise in the hub's parquet, as CIFAR-10 lies there."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 20)):
        images = [
            Image.fromarray((generator.integers(0, 99, (32, 32, 3)) + 15 * (i % 10)).astype(np.uint8))
            for i in range(count)
        ]
        stored = []
        for i, image in enumerate(images):
            image.save(folder / "image.png")
            stored.append({"bytes": (folder / "image.png").read_bytes(), "path": f"{i}.png"})
        (folder / "image.png").unlink()
        names = [f"class {i}" for i in range(10)]
        features = {"img": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = pa.table({"img": stored, "label": [i % 10 for i in range(count)]})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")


def _pope(folder, answers):
    """Four questions of each split and a language model's answers to them, in the benchmark's files."""
    folder.mkdir()
    listed = []
    for split in ("random", "popular", "adversarial"):
        questions = [
            {
                "question_id": i,
                "image": f"{i // 2}.jpg",
                "text": "Is there a dog in the image?",
                "label": ("yes", "no")[i % 2],
            }
            for i in range(4)
        ]
        (folder / f"coco_pope_{split}.json").write_text("\n".join(json.dumps(q) for q in questions))
        told = [{"question_id": q["question_id"], "text": "Yes, there is."} for q in questions]
        (answers / f"answers_{split}.jsonl").write_text("\n".join(json.dumps(a) for a in told))
        listed += [json.dumps(q | {"question_id": len(listed) + i, "category": split}) for i, q in enumerate(questions)]
    answered = [json.dumps({"question_id": i, "text": "No, there is not."}) for i in range(len(listed))]
    (answers / "llava_pope_test.jsonl").write_text("\n".join(listed))
    (answers / "answers.jsonl").write_text("\n".join(answered))
