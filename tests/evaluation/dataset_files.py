"""Tiny data sets in the layouts of the real ones, for the tests of `evaluation.datasets`."""

import io
import tarfile

import pytest
from PIL import Image

from diffclip.errors import UserError
from diffclip.evaluation.datasets import open_dataset


def jpeg(shade=0):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (shade % 256,) * 3).save(file, "JPEG")
    return file.getvalue()


def write(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def labels_of(source):
    return [source[i].label for i in range(len(source))]


def error_of(*args, **options):
    with pytest.raises(UserError) as caught:
        open_dataset(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_shards(folder, split, examples, per_shard=2):
    """examples: (suffix, text) each; the image is the same."""
    (folder / split).mkdir(parents=True)
    shards = [examples[i : i + per_shard] for i in range(0, len(examples), per_shard)]
    for number, shard in enumerate(shards):
        with tarfile.open(folder / split / f"{number}.tar", "w") as archive:
            for i, (suffix, text) in enumerate(shard):
                for name, data in ((f"s{number}{i:06}.webp", jpeg()), (f"s{number}{i:06}.{suffix}", text.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    write(folder / split / "nshards.txt", f"{len(shards)}\n")


def write_classes(folder, classes, images=1):
    for i, name in enumerate(classes):
        for j in range(images):
            write(folder / name / f"{name}_{j}.JPEG", jpeg(i))


def write_dtd(root):
    for split, names_ in (
        ("train", ["banded/a.jpg"]),
        ("val", ["dotted/b.jpg"]),
        ("test", ["dotted/c.jpg", "banded/d.jpg"]),
    ):
        write(root / "dtd" / "dtd" / "labels" / f"{split}1.txt", "\n".join(names_) + "\n")
        for name in names_:
            write(root / "dtd" / "dtd" / "images" / name, jpeg(ord(name[-5])))
