"""An index is made once, holds as long as its shard is the same, and is believed in nothing that leads out of it."""

import io
import multiprocessing
import os
import pickle
import tarfile
import time

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffclip.data.example import Options
from diffclip.data.formats import shard_index, shards
from diffclip.data.formats.shard_index import SUFFIX, load, places
from diffclip.data.formats.shards import TarSource
from diffclip.data.loading.loader import Loader
from diffclip.data.tokenizer import get_tokenizer
from diffclip.data.transforms import TrainTransform
from diffclip.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def shard(path, count=3, age=60):
    """A shard of captioned pictures that was last changed `age` seconds ago."""
    picture = io.BytesIO()
    Image.new("L", (8, 8)).save(picture, "JPEG")
    with tarfile.open(path, "w") as archive:
        for i in range(count):
            for suffix, content in (("jpg", picture.getvalue()), ("txt", b"no %d" % i)):
                info = tarfile.TarInfo(f"{i:03}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    changed = time.time_ns() - age * 10**9
    os.utime(path, ns=(changed, changed))
    return path


def opened(*files):
    return TarSource(files, Options("test"))


def captions(source):
    return [source[i].captions[0] for i in range(len(source))]


@pytest.fixture
def walks(monkeypatch):
    """The shards whose headers are read."""
    seen, members = [], shard_index.members
    monkeypatch.setattr(shard_index, "members", lambda path: (seen.append(path.name), members(path))[1])
    return seen


def test_headers_are_read_once(tmp_path, walks):
    files = [shard(tmp_path / "a.tar"), shard(tmp_path / "b.tar", 5)]
    first = opened(*files)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tar", "a.tar" + SUFFIX, "b.tar", "b.tar" + SUFFIX]
    again = opened(*files)
    assert walks == ["a.tar", "b.tar"]
    assert [again[i] for i in range(8)] == [first[i] for i in range(8)]
    assert captions(again) == [f"no {i}" for i in (0, 1, 2, 0, 1, 2, 3, 4)]


def test_who_may_read_the_shard_may_read_its_index(tmp_path):
    file = shard(tmp_path / "a.tar")
    for mode in (0o640, 0o444):
        file.chmod(mode)
        opened(file)
        assert places(file)[0].stat().st_mode & 0o777 == mode & 0o666
        places(file)[0].unlink()


@pytest.mark.parametrize("change", ["size", "time", "both"])
def test_a_shard_that_changed_is_read_again(tmp_path, walks, change):
    file = shard(tmp_path / "a.tar")
    opened(file)
    before = file.stat()
    shard(file, 3 if change == "time" else 9, age=30)
    if change == "size":
        os.utime(file, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert len(opened(file)) == (3 if change == "time" else 9)
    assert walks == ["a.tar", "a.tar"]
    opened(file)
    assert len(walks) == 2


@pytest.mark.parametrize("age", [0, -3600])
def test_what_was_written_just_now_may_change_unnoticed_and_is_not_kept(tmp_path, age):
    assert len(opened(shard(tmp_path / "a.tar", age=age))) == 3
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar"]


def test_a_shard_without_an_end_mark_is_told_of_every_time(tmp_path, caplog):
    file = shard(tmp_path / "a.tar")
    os.truncate(file, 512 * 12)
    os.utime(file, (1, 1))
    for _ in range(2):
        caplog.clear()
        opened(file)
        assert "a.tar ends without an end mark" in caplog.text


def test_beside_a_shard_that_nobody_may_touch_the_index_goes_to_the_cache(tmp_path, walks):
    folder = tmp_path / "data"
    folder.mkdir()
    file = shard(folder / "a.tar")
    folder.chmod(0o555)
    for _ in range(2):
        assert captions(opened(file)) == ["no 0", "no 1", "no 2"]
    assert walks == ["a.tar"]
    assert [f.name for f in folder.iterdir()] == ["a.tar"]
    assert places(file)[1].is_file()
    folder.chmod(0o755)


def test_where_nothing_can_be_written_there_is_no_index(tmp_path, monkeypatch, walks):
    folder = tmp_path / "data"
    folder.mkdir()
    file = shard(folder / "a.tar")
    folder.chmod(0o555)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    for _ in range(2):
        assert captions(opened(file)) == ["no 0", "no 1", "no 2"]
    assert walks == ["a.tar", "a.tar"]
    folder.chmod(0o755)


def forged(place, **changes):
    tensors = dict(safetensors.numpy.load(place.read_bytes())) | changes
    place.write_bytes(safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in tensors.items()}))


FORGERIES = {
    "a member behind the end": {"offset": np.full(6, 1 << 40)},
    "a member before the beginning": {"offset": np.full(6, -512)},
    "in the middle of a block": {"offset": np.full(6, 600)},
    "a size beyond the end": {"size": np.full(6, 1 << 40)},
    "offset and size that overflow": {"size": np.full(6, (1 << 63) - 1)},
    "a negative size": {"size": np.full(6, -1)},
    "no such suffix": {"suffix": np.full(6, 7, np.int32)},
    "a suffix counted from the end": {"suffix": np.full(6, -1, np.int32)},
    "a great many examples": {"example": np.array([0, 0, 1, 1, 2, 1 << 30], np.int32)},
    "examples that do not begin at 0": {"example": np.array([1, 1, 2, 2, 3, 3], np.int32)},
    "examples that fall": {"example": np.array([0, 1, 0, 1, 2, 2], np.int32)},
    "other numbers": {"offset": np.full(6, 512.0)},
    "another length": {"size": np.full(5, 1)},
    "no list": {"offset": np.full((6, 1), 512)},
    "no JSON": {"about": np.frombuffer(b"{", np.uint8)},
    "JSON without end": {"about": np.frombuffer(b"[" * 4000, np.uint8)},
    "other JSON": {"about": np.frombuffer(b"[1]", np.uint8)},
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_index_is_made_again(tmp_path, walks, name):
    file = shard(tmp_path / "a.tar")
    opened(file)
    forged(places(file)[0], **FORGERIES[name])
    assert load(file) is None
    assert captions(opened(file)) == ["no 0", "no 1", "no 2"]
    assert len(walks) == 2
    assert load(file) is not None


@pytest.mark.parametrize("content", [b"", b"\xff" * 500, b"\0" * 100_000, pickle.dumps({"offset": [1]})])
def test_a_damaged_index_is_made_again(tmp_path, content):
    file = shard(tmp_path / "a.tar")
    places(file)[0].write_bytes(content)
    assert load(file) is None
    assert captions(opened(file)) == ["no 0", "no 1", "no 2"]
    assert load(file) is not None


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_damage_leads_out_of_the_shard(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "index"
    folder.mkdir(exist_ok=True)
    file = folder / "a.tar"
    if not file.exists():
        opened(shard(file))
        (folder / "whole").write_bytes(places(file)[0].read_bytes())
    content = bytearray((folder / "whole").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    places(file)[0].write_bytes(content)
    index = load(file)
    if index is not None:
        assert (index.offset >= 512).all()
        assert (index.offset + index.size <= file.stat().st_size).all()
        assert index.spans(["image", "txt"]).shape == (3, 2, 2)


def _open_in_a_process(file):
    return captions(opened(file))


def test_several_processes_make_it_at_once(tmp_path):
    files = [shard(tmp_path / f"{i}.tar", 40) for i in range(3)]
    with multiprocessing.get_context("fork").Pool(4) as pool:
        for found in pool.map(_open_in_a_process, files * 4, chunksize=1):
            assert found == [f"no {i}" for i in range(40)]
    assert len(list(tmp_path.iterdir())) == 6  # three shards, three indices, nothing unfinished


def test_shards_are_shared_among_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_index, "IN_PARALLEL", 0)
    monkeypatch.setattr(shard_index, "processors", lambda: 2)
    files = [shard(tmp_path / f"{i}.tar", i + 1) for i in range(4)]
    assert captions(opened(*files)) == [f"no {i}" for count in (1, 2, 3, 4) for i in range(count)]
    assert all(load(file) is not None for file in files)
    os.truncate(files[2], 700)
    with pytest.raises(UserError, match=r"2\.tar is damaged or cut short"):
        opened(*files)


def test_an_epoch_reads_every_image_once_and_no_header(tmp_path, monkeypatch):
    files = [shard(tmp_path / f"{i}.tar", 20) for i in range(2)]
    opened(*files)
    monkeypatch.setattr(shard_index, "members", None)
    reads, read = [], shards.read
    monkeypatch.setattr(shards, "read", lambda path, spans: (reads.append((path, spans[0][0])), read(path, spans))[1])
    loader = Loader(opened(*files), TrainTransform(8), get_tokenizer(), 10, seed=0)
    indices = np.concatenate([batch.indices.numpy() for batch in loader.epoch(0)])
    assert sorted(indices) == list(range(40))
    assert len(set(reads)) == len(reads) == 40
    assert np.mean(indices[:20] < 20) < 0.8  # of both shards from the beginning
