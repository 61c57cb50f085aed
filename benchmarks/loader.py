"""From shards to normalised batches: how many images a second and core, beside open_clip's own pipeline?

    python benchmarks/loader.py [--data /data/photos] [--rounds 7] [--json FILE]

open_clip's contestant is its `get_wds_dataset` (webdataset, Pillow, its training transform with RandomResizedCrop(224,
scale 0.5 to 1), its tokenizer), ours a `Loader` over the same shard with the same crops' distribution. open_clip's
batches come normalised, so ours are too; "uint8" are those that a GPU would normalise. All run in turn in one process
on one thread without workers; processor time is measured, so that other work on the machine counts less. Then the
parts, and how far their pixels differ on the same crops. Without --data, photographs' stand-ins of 500×375 are drawn.
Needs `pip install 'diffclip[stream]'` for open_clip's pipeline.
"""

import argparse
import functools
import importlib.util
import io
import random
import sys
import tarfile
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import rounds
import torch
from open_clip.transform import AugmentationCfg, PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms.v2 import functional

from diffclip.data.images import decode
from diffclip.data.loading.loader import Loader
from diffclip.data.sources import Source, captions_of, open_source
from diffclip.data.tokenizer import get_tokenizer
from diffclip.data.transforms import TrainTransform, normalise

if importlib.util.find_spec("pandas") is None:
    sys.modules["pandas"] = types.ModuleType("pandas")  # imported for open_clip's CSV data, which are not used here
from open_clip_train import data as open_clip_data

# Later versions of webdataset mark the end of a shard, which open_clip's grouping of members takes for a member.
open_clip_data.tar_file_expander = functools.partial(open_clip_data.tar_file_expander, eof_value=None)

SIZE, SCALE = 224, (0.5, 1.0)
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


def stand_ins(folder: Path, count: int = 200) -> Path:
    """A shard of JPEG files of 500×375 with the contrast and, at quality 90, about the bytes of a photograph."""
    rng = np.random.default_rng(0)
    path = folder / "00000.tar"
    with tarfile.open(path, "w") as shard:
        for number in range(count):
            layers = [
                np.asarray(
                    Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize((500, 375), 3)
                )
                for cells in (4, 16, 64, 256)
            ]
            pixels = np.average(layers, axis=0, weights=(8, 4, 2, 1))
            file = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=90)
            for suffix, content in (("jpg", file.getvalue()), ("txt", f"picture number {number}".encode())):
                member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    return path


def shards_of(data: Path) -> list[str]:
    return [str(data)] if data.is_file() else sorted(map(str, data.glob("*.tar")))


def open_clips_epoch(shards: list[str], examples: int, batch: int) -> Callable[[int], None]:
    transform = image_transform_v2(PreprocessCfg(), is_train=True, aug_cfg=AugmentationCfg(scale=SCALE))
    settings = argparse.Namespace(
        train_data="::".join(shards),
        train_data_upsampling_factors=None,
        train_num_samples=examples,
        seed=0,
        batch_size=batch,
        workers=0,
        world_size=1,
    )
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    data = open_clip_data.get_wds_dataset(settings, transform, is_train=True, floor=True, tokenizer=tokenizer)

    def run(number: int) -> None:
        data.set_epoch(number)
        seen = sum(len(pixels) for pixels, _ in data.dataloader)
        assert seen == examples // batch * batch, seen

    return run


def our_epoch(source: Source, batch: int, *, on_cpu: bool) -> Callable[[int], None]:
    loader = Loader(source, TrainTransform(SIZE, SCALE), get_tokenizer(), batch, seed=0)

    def run(number: int) -> None:
        for made in loader.epoch(number + 1):
            if on_cpu:
                normalise(made.pixels, MEAN, STD)

    return run


def parts(source: Source) -> dict[str, Callable[[int], None]]:
    """Name → the work of one part on every image; open_clip's parts first."""
    examples = [source[i] for i in range(len(source))]
    files = [bytes(example.image) for example in examples]
    captions = [captions_of(source, example)[0] for example in examples]
    arrays = [decode(file) for file in files]
    pictures = [Image.fromarray(array) for array in arrays]
    theirs = image_transform_v2(PreprocessCfg(), is_train=True, aug_cfg=AugmentationCfg(scale=SCALE))
    crop_and_resize, *_, to_tensor, to_normal = theirs.transforms
    ours = TrainTransform(SIZE, SCALE)
    small = [ours(array, np.random.default_rng(0)) for array in arrays]
    floats = [to_tensor(crop_and_resize(picture)) for picture in pictures[:64]]
    their_tokens, our_tokens = open_clip.get_tokenizer("ViT-B-16"), get_tokenizer()

    def each(function: Callable[[int], object]) -> Callable[[int], None]:
        def run(_: int) -> None:
            for i in range(len(files)):
                function(i)

        return run

    return {
        "open_clip: decode (Pillow)": each(lambda i: Image.open(io.BytesIO(files[i])).convert("RGB")),
        "open_clip: crop and resize (Pillow)": each(lambda i: crop_and_resize(pictures[i])),
        "open_clip: to float and normalise": each(lambda i: to_normal(to_tensor(floats_of(pictures[i])))),
        "open_clip: one batch of the floats": each(lambda i: torch.stack(floats) if i % 64 == 0 else None),
        "open_clip: tokenise": each(lambda i: their_tokens(captions[i])),
        "diffclip: read": each(lambda i: source[i]),
        "diffclip: decode (TurboJPEG)": each(lambda i: decode(files[i])),
        "diffclip: crop and resize (torch)": each(lambda i: ours(arrays[i], np.random.default_rng(i))),
        "diffclip: one batch of the bytes": each(lambda i: torch.stack(small[:64]) if i % 64 == 0 else None),
        "diffclip: tokenise": each(lambda i: our_tokens(captions[i : i + 64]) if i % 64 == 0 else None),
        "diffclip: normalise the batch": each(
            lambda i: normalise(torch.stack(small[:64]), MEAN, STD) if i % 64 == 0 else None
        ),
    }


def floats_of(picture: Image.Image) -> Image.Image:
    return picture.crop((0, 0, SIZE, SIZE))


def difference(source: Source) -> tuple[float, int]:
    """Grey levels between our pixels and Pillow's way to the same crops: mean and largest."""
    transform = TrainTransform(SIZE, SCALE)
    mean, largest = [], 0
    for index in range(min(100, len(source))):
        file = source[index].image
        image = decode(file)
        box = transform.region(*image.shape[:2], np.random.default_rng(index))
        pillow = Image.open(io.BytesIO(bytes(file))).convert("RGB")
        theirs = functional.resized_crop(pillow, *box, [SIZE, SIZE], functional.InterpolationMode.BICUBIC)
        ours = transform(image, np.random.default_rng(index)).permute(1, 2, 0).numpy().astype(int)
        apart = np.abs(ours - np.asarray(theirs))
        mean.append(apart.mean())
        largest = max(largest, int(apart.max()))
    return float(np.mean(mean)), largest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a shard, or a folder of them")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data or stand_ins(Path(folder))
        source = open_source(str(data))
        batch = min(arguments.batch_size, len(source))
        images = len(source) // batch * batch
        whole = {
            "open_clip": open_clips_epoch(shards_of(data), len(source), batch),
            "diffclip": our_epoch(source, batch, on_cpu=True),
            "diffclip, uint8": our_epoch(source, batch, on_cpu=False),
        }
        seconds = rounds.in_turn(whole, arguments.rounds, clock=time.process_time)
        rates = {name: images / value for name, value in rounds.medians(seconds).items()}
        faster = {name: rounds.ratio(seconds, "open_clip", name) for name in whole}
        print(f"{source.name}: {len(source)} images, batches of {batch}, one process, one thread\n")
        print(f"{'':16}{'images/s a core':>18}{'ms an image':>14}{'to open_clip':>14}")
        for name, rate in rates.items():
            print(f"{name:16}{rate:18.0f}{1e3 / rate:14.2f}{faster[name]:13.2f}×")
        work = rounds.in_turn(parts(source), max(1, arguments.rounds // 2), clock=time.process_time)
        milliseconds = {name: value / len(source) * 1e3 for name, value in rounds.medians(work).items()}
        print(f"\n{'':40}{'ms an image':>12}")
        for name, value in milliseconds.items():
            print(f"{name:40}{value:12.3f}")
        mean, largest = difference(source)
        print(f"\npixels beside Pillow's on the same crops: {mean:.2f} grey levels apart on average, {largest} at most")
        figures = {"images": images, "images_per_s": rates, "faster": faster, "parts_ms": milliseconds}
        rounds.write_json(arguments.json, {**figures, "apart": {"mean": mean, "largest": largest}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
