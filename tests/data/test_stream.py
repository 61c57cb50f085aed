"""A stream gives every example once an epoch, the same batches on any number of workers, and says what breaks it."""

import functools
import io
import shutil
import tarfile
import threading
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from diffclip.config import Recipe, load_recipe
from diffclip.data.formats import stream as module
from diffclip.data.formats.stream import Stream, is_stream, open_stream
from diffclip.data.images import BadImage
from diffclip.data.loading.stream_loader import StreamLoader
from diffclip.data.sources import open_source
from diffclip.data.tokenizer import get_tokenizer
from diffclip.data.transforms import TrainTransform
from diffclip.errors import UserError
from diffclip.training.setup import training_loader, training_source

SHARDS, EACH = 3, 20


def member(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path):
    """Three shards of twenty captioned pictures; the 7th, 17th, … image is no image, the 19th has no caption."""
    for shard in range(SHARDS):
        with tarfile.open(tmp_path / f"{shard:05d}.tar", "w") as archive:
            for i in range(shard * EACH, shard * EACH + EACH):
                file = io.BytesIO()
                pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(file, "PNG")
                member(archive, f"{i:05d}.png", b"<html>" if i % 10 == 7 else file.getvalue())
                member(archive, f"{i:05d}.json", b'{"url": "u"}')
                if i != 19:
                    member(archive, f"{i:05d}.txt", f"picture {i} {'very ' * (i % 5)}".encode())
    return tmp_path


def piped(folder, command="cat"):
    return f"pipe:{command} {folder}/{{00000..{SHARDS - 1:05d}}}.tar"


def loader(stream, batch_size=8, seed=0, **options):
    return StreamLoader(stream, TrainTransform(16, flip=0.5), get_tokenizer(), batch_size, seed=seed, **options)


def same(a, b):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("pixels", "tokens", "groups", "indices"))


@functools.cache
def _number_of_tokens(text):
    return tuple(t for t in get_tokenizer()([text])[0].tolist() if t)


def seen(batches):
    """The numbers of the pictures in batches, by their captions."""
    number = {_number_of_tokens(f"picture {i} {'very ' * (i % 5)}"): i for i in range(SHARDS * EACH)}
    return [number[tuple(t for t in row.tolist() if t)] for batch in batches for row in batch.tokens]


GOOD = [i for i in range(SHARDS * EACH) if i % 10 != 7 and i != 19]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("http://a/b.tar", True),
        ("https://a/{0..9}.tar", True),
        ("s3://bucket/a.tar", True),
        ("pipe:cat a", True),
        ("/data/a.tar", False),
        ("C:/data", False),
        ("scenes:train", False),
    ],
)
def test_what_is_a_stream(path, found):
    assert is_stream(path) == found


def test_an_epoch_has_every_example_once_in_random_order(shards):
    stream = open_stream(piped(shards), 60)
    made = loader(stream, batch_size=10, max_skipped=0.2)
    assert len(made) == 6
    batches = list(islice(made.epoch(0), 5))
    assert sorted(seen(batches)) != seen(batches)
    assert len(set(seen(batches))) == 50
    again = list(made.epoch(0))
    assert all(map(same, batches, again))
    assert set(seen(again)) == set(GOOD)  # 53, then the stream begins again to fill the sixth batch
    assert made.skipped["not_an_image"] >= 6
    assert seen(list(made.epoch(1))) != seen(again)
    assert seen(list(loader(stream, 10, seed=1, max_skipped=0.2).epoch(0))) != seen(again)


def test_a_small_buffer_still_loses_nothing(shards, monkeypatch):
    monkeypatch.setattr(module, "BUFFER", 7)
    examples = list(islice(open_stream(piped(shards), 60).examples(0, 0, (0, 1)), 60))
    captions = [e.captions[0] for e in examples if not isinstance(e, BadImage) and e.captions]
    assert len(set(captions)) == len(captions) == 59


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_resuming_make_no_difference(shards, workers):
    stream = open_stream(piped(shards), 60)
    one = loader(stream, max_skipped=0.2)
    alone = list(one.epoch(2))
    assert len(alone) == 7
    helped = list(loader(stream, max_skipped=0.2, num_workers=workers).epoch(2))
    other = loader(stream, max_skipped=0.2, num_workers=workers)
    resumed = list(other.epoch(2, start=4, skipped={"not_an_image": 3}))
    assert other.skipped == one.skipped  # counted again, not added up
    assert len(helped) == 7
    assert all(map(same, alone, helped))
    assert len(resumed) == 3
    assert all(map(same, alone[4:], resumed))


def test_parts_share_the_shards(shards):
    stream = open_stream(piped(shards), 60)
    parts = [list(loader(stream, 6, part=(which, 3), max_skipped=0.3).epoch(0)) for which in range(3)]
    assert [len(batches) for batches in parts] == [10, 10, 10]
    assert {len(batch.indices) for batches in parts for batch in batches} == {2}
    numbers = [{i // EACH for i in seen(batches[:8])} for batches in parts]  # then each begins again
    assert sorted(map(sorted, numbers)) == [[0], [1], [2]]
    assert len({int(i) for batches in parts for batch in batches for i in batch.indices}) == 60
    with pytest.raises(UserError, match="has 3 shards for 4 processes"):
        next(loader(stream, 8, part=(0, 4)).epoch(0))


def test_too_many_bad_examples_stop_the_epoch(shards, monkeypatch):
    monkeypatch.setattr("diffclip.data.loading.loader.JUDGED_FROM", 20)
    with pytest.raises(UserError, match=r"\d of \d+ examples could not be used, more than 5%: "):
        list(loader(open_stream(piped(shards), 60), max_skipped=0.05).epoch(0))


def test_a_shard_that_breaks_off_is_read_again(shards, monkeypatch, caplog):
    """Every other reading of a shard ends after some bytes: what comes out is what an unbroken stream gives."""
    monkeypatch.setattr(module, "PAUSES", (0.0, 0.0))
    whole = list(islice(open_stream(piped(shards), 60).examples(0, 0, (0, 1)), 60))
    script = shards / "flaky.sh"
    script.write_text(
        f'n="{shards}/count$(basename "$1")"\necho x >> "$n"\n'
        'if [ $(( $(wc -l < "$n") % 2 )) = 0 ]; then head -c 9000 "$1"; else cat "$1"; fi\n'
    )
    stream = open_stream(piped(shards, f"sh {script}"), 60)
    found = list(islice(stream.examples(0, 0, (0, 1)), 60))
    assert "broke off after" in caplog.text
    assert [e if not isinstance(e, BadImage) else e.reason for e in found] == [
        e if not isinstance(e, BadImage) else e.reason for e in whole
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_stays_broken_is_told_in_one_line(shards, monkeypatch, workers):
    monkeypatch.setattr(module, "PAUSES", (0.0,))
    stream = open_stream(piped(shards), 60)
    (shards / "00001.tar").write_bytes((shards / "00001.tar").read_bytes()[:3000])
    with pytest.raises(UserError, match=r"shard pipe:cat .*00001\.tar cannot be read: ") as caught:
        list(loader(stream, num_workers=workers, max_skipped=0.5).epoch(0))
    assert "\n" not in str(caught.value)


def test_a_program_that_fails_at_the_end_is_no_end(shards):
    """All the bytes of the archive came, but the program says that something went wrong."""
    with pytest.raises(UserError, match="exit 3"):
        list(module._read(f"pipe:cat {shards}/00000.tar; exit 3", 0, ()))
    assert len(list(module._read(f"pipe:cat {shards}/00000.tar", 0, ()))) == EACH


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset reads http with curl")
def test_over_http(shards):
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(shards))
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        batches = list(loader(open_stream(f"{url}/{{00000..00002}}.tar", 60), max_skipped=0.2).epoch(2))
        with pytest.raises(UserError, match=r"shard http://.*/00009\.tar cannot be read"):
            open_stream(f"{url}/00009.tar", 60)
        server.shutdown()
    assert all(map(same, batches, loader(open_stream(piped(shards), 60), max_skipped=0.2).epoch(2)))


def test_s3_is_read_by_the_aws_program(shards, monkeypatch):
    program = shards / "aws"
    program.write_text(f'#!/bin/sh\ntest "$1 $2 $4" = "s3 cp -" && cat "{shards}/$(basename "$3")"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(shards), prepend=":")
    stream = open_stream("s3://bucket/it.s%20here/{00000..00002}.tar", 60)
    assert len(list(islice(stream.examples(0, 0, (0, 1)), 60))) == 60
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"s3://bucket/a\.tar is read by the program aws, which is not there"):
        open_stream("s3://bucket/a.tar", 60)


@pytest.mark.parametrize(
    "url",
    [
        *(f"{scheme}://host/a'; touch PWNED; '.tar" for scheme in ("http", "https", "s3", "gs")),
        *(f"https://host/a{c}b.tar" for c in ' "`\\<>|^[]\n\r\t\0\x1b\x7f\x85\u202e\u2028\udcff'),
        "http://-oProxyCommand=x/a.tar",
        "http://user@-x/a.tar",
        "http:a.tar",
        "http:///a.tar",
        "https://host/[1-100000].tar",
    ],
)
def test_what_is_no_url_is_refused_before_any_program_starts(url, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(module, "_read", lambda *_: pytest.fail("a program was started"))
    with pytest.raises(UserError, match="is no URL of a shard"):
        open_stream(url, 60)


@pytest.mark.parametrize("url", ["https://u:p@host:8080/a%20b/c.tar?x=1&y=$2#z", "http://[::1]:80/a.tar", "s3://b-1/k"])
def test_usual_urls_are_none_of_these(url, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(module, "_read", lambda *_: iter([{"image": b"", "txt": b"x"}]))
    assert len(open_stream(url, 60)) == 60


@pytest.mark.parametrize(
    "path",
    ["ais://b/a.tar", "sftp://h/a.tar", "scp:h/a.tar", "hf://a/b", "file:///etc/passwd", "PIPE:ls", "HTTP://a/b"],
)
def test_other_schemes_are_refused_by_name(path):
    assert not is_stream(path)
    with pytest.raises(UserError, match=rf"{path.partition(':')[0]}: is not read: give files"):
        open_source(path)


def test_what_unpacks_to_too_much_is_skipped(tmp_path, monkeypatch):
    """Members, texts, and headers that the reader would take whole."""
    monkeypatch.setattr(module, "MAX_BYTES", 5000)
    monkeypatch.setattr(module, "BUFFER_BYTES", 9000)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        for i, (size, words) in enumerate([(5001, 1), (5000, 1), (4000, 1 << 20), (4000, 2), (4000, 3)]):
            member(archive, f"{i}.jpg", bytes(size))
            member(archive, f"{i}.txt", b"x " * words)
    stream = open_stream(f"pipe:cat {tmp_path}/a.tar.gz", 5)
    found = list(islice(stream.examples(0, 0, (0, 1)), 5))
    assert Counter(getattr(e, "reason", "good") for e in found) == {"too_many_bytes": 2, "good": 3}
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.jpg")
        info.pax_headers = {"comment": "x" * (2 << 20)}
        archive.addfile(info)
    with pytest.raises(UserError, match="a header of 2097"):
        open_stream(f"pipe:cat {tmp_path}/b.tar.gz", 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"examples": 0}, "set data.examples"),
        ({"split": "train"}, "no split, holdout, part or allow_outside"),
        ({"holdout": 5, "part": "train"}, "no split, holdout, part or allow_outside"),
        ({"format": "parquet"}, "made of tar shards, not of parquet"),
        ({"image_key": "target.png"}, r"has no 'target.png': its members end in json, txt, image"),
        ({"caption_key": "alt"}, r"has no 'alt': its examples have json, txt, image, and its \.json has url"),
    ],
)
def test_settings_that_a_stream_cannot_have(shards, settings, message):
    with pytest.raises(UserError, match=message):
        open_stream(piped(shards), **{"examples": 60, **settings})


def test_one_of_several_images_is_chosen_as_in_files(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, content in (("0.input.jpg", b"in"), ("0.target.PNG", b"out"), ("0.txt", b"it")):
            member(archive, name, content)
    where = f"pipe:cat {tmp_path}/0.tar"
    for key, content in ((".Target.png", b"out"), ("input.jpg", b"in")):
        (example,) = islice(open_stream(where, 1, image_key=key).examples(0, 0, (0, 1)), 1)
        assert (example.image, example.captions) == (content, ("it",))
    with pytest.raises(UserError, match=r"several images an example \(input.jpg, target.png\): choose .* image_key"):
        open_stream(where, 1)


def test_what_is_no_shard(tmp_path):
    for content in (b"", b"no archive" * 100):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(UserError, match=r"shard pipe:cat .* (cannot be read|holds no images)"):
            open_stream(f"pipe:cat {tmp_path}/a.tar", 60)


def test_all_but_training_says_that_it_is_a_stream(shards):
    with pytest.raises(UserError, match="is a stream"):
        open_source(piped(shards))
    with pytest.raises(UserError, match="is a stream"):
        open_stream(piped(shards), 60)[0]


def test_a_recipe_trains_on_it(shards, tmp_path):
    (tmp_path / "r.toml").write_text(
        "[model]\npreset = 'diffclip_vit_quickstart'\n[training]\nbatch_size = 8\n"
        f"[data]\nexamples = 60\nworkers = 0\nmax_skipped = 0.2\n[data.train]\npath = '{piped(shards)}'\n"
    )
    recipe = load_recipe(tmp_path / "r.toml")
    assert isinstance(recipe, Recipe)
    with pytest.raises(UserError, match="a recipe runs none by itself"):
        training_source(recipe)
    source = training_source(recipe, allow_pipe=True)
    assert isinstance(source, Stream)
    batch = next(training_loader(recipe, source).epoch(0))
    assert batch.pixels.shape == (8, 3, 64, 64)
    assert Counter(batch.indices.tolist()).most_common(1)[0][1] == 1
