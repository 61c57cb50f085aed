"""Features on disk: the same as in memory, found again by content only, and whole after a kill or damage."""

import io
import json
import multiprocessing
import os
import signal
import tarfile
import time

import numpy as np
import pytest
import torch
from PIL import Image

from diffclip.data.content import content_digest
from diffclip.data.images import BadImage
from diffclip.data.sources import Example, open_source
from diffclip.data.transforms import EvalTransform, normalise
from diffclip.evaluation.features import cache as feature_cache
from diffclip.evaluation.features.cache import FeatureCache
from diffclip.evaluation.features.encode import image_features
from small_models import small_model as tiny


class Noise:
    """Images of noise, labelled, one of them unreadable. Counts its readings and may be stamped."""

    name, classnames, templates = "noise", ("a", "b"), None

    def __init__(self, count=10, seed=0, words="it is"):
        self.count, self.seed, self.words, self.read = count, seed, words, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read += 1
        if index == 4:
            raise BadImage("truncated")
        image = np.random.default_rng((self.seed, index)).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        return Example(image, (f"{self.words} {index} “é”",) * (index % 3), index % 2 if index else None)


class Stamped(Noise):
    def stamp(self):
        return f"{self.count} {self.seed} {self.words}"


@pytest.fixture(autouse=True)
def _parts_of_four(monkeypatch):
    monkeypatch.setattr(feature_cache, "PART", 4)


def test_features_from_disk_are_those_of_the_model(tmp_path):
    model, cache = tiny().eval(), FeatureCache(tmp_path)
    first = image_features(model, Noise(), cache=cache, batch_size=3)
    again = image_features(model, Noise(), cache=cache, batch_size=3)
    for found in (first, again):
        assert found.indices.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
        assert found.labels.tolist() == [-1, 1, 0, 1, 1, 0, 1, 0, 1]
        assert found.captions == tuple((f"it is {i} “é”",) * (i % 3) for i in found.indices.tolist())
        assert found.skipped == {"truncated": 1}
        pixels = torch.stack([EvalTransform(16)(Noise()[i].image) for i in found.indices.tolist()])
        with torch.no_grad():
            pixels = normalise(pixels, model.config.image_mean, model.config.image_std)
            torch.testing.assert_close(found.tower, model.visual(pixels), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found.features, model.encode_image(pixels, normalize=True), rtol=0, atol=1e-6)
    assert torch.equal(first.tower, again.tower)
    (index,) = tmp_path.glob("*/index.json")
    assert json.loads(index.read_text())["parts"] == [f"part-{start:09d}.safetensors" for start in (0, 4, 8)]
    assert json.loads(index.read_text())["examples"] == 10


def test_a_second_pass_decodes_nothing_and_reads_nothing_if_the_stamp_is_the_same(tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path)
    source = Stamped()
    assert cache.missing("w", tiny().config, source) == 10
    image_features(tiny(), source, cache=cache, weights="w")
    assert source.read == 20  # once for the digest, once for the features
    assert cache.missing("w", tiny().config, source) == 0
    monkeypatch.setattr("diffclip.evaluation.features.decode.decode", None)
    image_features(tiny(), source, cache=cache, weights="w")
    assert source.read == 20
    unstamped = Noise()
    image_features(tiny(), unstamped, cache=cache, weights="w")  # the same content, which is read to know it
    assert unstamped.read == 10


@pytest.mark.parametrize(
    ("model", "source"),
    [
        (tiny(seed=1), Noise()),
        (tiny(resize="squash"), Noise()),
        (tiny(lambda_init=0.7), Noise()),
        (tiny(), Noise(seed=1)),
        (tiny(), Noise(words="it was")),
        (tiny(), Noise(count=9)),
    ],
    ids=["weights", "transform", "config", "images", "captions", "count"],
)
def test_whatever_changes_the_features_has_its_own(tmp_path, model, source):
    cache = FeatureCache(tmp_path)
    image_features(tiny(), Noise(), cache=cache)
    image_features(model, source, cache=cache)
    assert len(list(tmp_path.glob("*/index.json"))) == 2
    alone = image_features(model, source)
    assert torch.equal(image_features(model, source, cache=cache).features, alone.features)


def test_the_same_examples_are_the_same_in_any_place_and_format(tmp_path):
    def png(shade):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(file, "PNG")
        return file.getvalue()

    for place in ("here", "there"):
        for name in ("cat", "dog"):
            (tmp_path / place / name).mkdir(parents=True)
            for i in range(3):
                (tmp_path / place / name / f"{i}.png").write_bytes(png(40 * i + len(name) + (name == "dog")))
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar" / "0.tar", "w") as tar:
        for number, file in enumerate(sorted((tmp_path / "here").rglob("*.png"))):
            for suffix, content in (("png", file.read_bytes()), ("cls", b"%d" % (file.parent.name == "dog"))):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    here, there, tar = (open_source(str(tmp_path / place)) for place in ("here", "there", "tar"))
    assert content_digest(here) == content_digest(there) == content_digest(tar)
    assert here.stamp() != there.stamp()
    before = here.stamp()
    assert before == open_source(str(tmp_path / "here")).stamp()
    file = tmp_path / "here" / "cat" / "0.png"
    file.write_bytes(png(200))
    os.utime(file, ns=(1, 1))
    assert here.stamp() != before
    assert content_digest(here) != content_digest(there)


@pytest.mark.parametrize("damage", ["cut", "one bit", "empty", "other tensors"])
def test_a_damaged_part_is_made_anew_with_a_warning(tmp_path, caplog, damage):
    cache, source = FeatureCache(tmp_path), Stamped()
    whole = image_features(tiny(), source, cache=cache)
    part = sorted(tmp_path.glob("*/part-*"))[1]
    content = bytearray(part.read_bytes())
    if damage == "cut":
        content = content[:-20]
    elif damage == "one bit":
        # Of a feature: of what else a part holds, the form alone would tell.
        header = int.from_bytes(content[:8], "little")
        content[8 + header + json.loads(content[8 : 8 + header])["features"]["data_offsets"][0]] ^= 1
    elif damage == "empty":
        content.clear()
    else:
        content = bytearray(sorted(tmp_path.glob("*/part-*"))[0].read_bytes().replace(b"indices", b"indexes"))
    part.write_bytes(content)
    source.read = 0
    found = image_features(tiny(), source, cache=cache)
    assert source.read == 4
    assert torch.equal(found.features, whole.features)
    assert found.captions == whole.captions
    assert f"{part.name} is damaged" in caplog.text
    assert not list(tmp_path.glob("*/.*.unfinished"))


class Slow(Stamped):
    """Comes to a halt in the second pass, in the middle of the last part, and says so."""

    def __init__(self, there):
        super().__init__()
        self.there = there

    def __getitem__(self, index):
        if self.read >= 18 and index == 9:
            self.there.set()
            time.sleep(60)
        return super().__getitem__(index)


def _encode_until_killed(folder, there):
    image_features(tiny(), Slow(there), cache=FeatureCache(folder), batch_size=1)


def test_a_killed_run_loses_one_part(tmp_path):
    context = multiprocessing.get_context("fork")
    there = context.Event()
    process = context.Process(target=_encode_until_killed, args=(tmp_path, there))
    process.start()
    assert there.wait(60)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*/part-*"))) == 2
    assert not list(tmp_path.glob("*/index.json"))
    cache, source, told = FeatureCache(tmp_path), Stamped(), []
    found = image_features(tiny(), source, cache=cache, batch_size=1, on_progress=told.append)
    assert source.read == 2  # of ten
    assert told == [8, 9, 10]
    assert list(tmp_path.glob("*/index.json"))
    assert torch.equal(found.features, image_features(tiny(), Noise(), batch_size=1).features)


def test_what_a_killed_process_left_unfinished_goes_when_it_is_old(tmp_path):
    cache = FeatureCache(tmp_path)
    image_features(tiny(), Noise(), cache=cache)
    (folder,) = (index.parent for index in tmp_path.glob("*/index.json"))
    old, young = folder / ".part-0.1.unfinished", folder / ".part-1.1.unfinished"
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    image_features(tiny(), Noise(), cache=cache)
    assert not old.exists()
    assert young.exists()
