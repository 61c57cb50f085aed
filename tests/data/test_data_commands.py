"""`diffclip data verify`, `pack` and `show`: everything wrong is counted, nothing good is lost, and it can be seen."""

import io
import json
import os
import subprocess
import sys
import tarfile
from functools import partial

import numpy as np
import pytest
from PIL import Image

from diffclip import cli
from diffclip.config import SourceConfig
from diffclip.data import parallel
from diffclip.data.images import decode
from diffclip.data.sources import open_source
from diffclip.data.tools import show
from diffclip.data.tools.pack import ShardPlan, pack
from diffclip.data.tools.verify import examine, lines, summary, verify
from diffclip.errors import UserError

RNG = np.random.default_rng(0)


def picture(width=40, height=30, format="PNG"):
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, format)
    return file.getvalue()


@pytest.fixture
def table(tmp_path):
    """Six good examples in four kinds of file, one of them twice, and four that are wrong in four ways."""
    folder = tmp_path / "data"
    folder.mkdir()
    jpeg = picture(300, 200, "JPEG")
    files = {
        "a.png": picture(),
        "b.jpg": jpeg,
        "c.webp": picture(20, 90, "WEBP"),
        "d.bmp": picture(7, 5, "BMP"),
        "twin.jpg": jpeg,
        "same.jpg": jpeg,
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "text.png": b"<html>",
        "silent.png": picture(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    rows = [
        ("a.png", "first"),
        ("a.png", "first\n again"),
        ("b.jpg", "a photo"),
        ("c.webp", "tall " + "very " * 90),
        ("d.bmp", "first"),
        ("twin.jpg", "another photo"),
        ("same.jpg", "a photo"),
        ("cut.jpg", "half"),
        ("text.png", "none"),
        ("silent.png", " "),
        ("gone.png", "none"),
    ]
    (folder / "t.csv").write_text("filepath,caption\n" + "".join(f'{file},"{text}"\n' for file, text in rows))
    return folder / "t.csv"


def test_everything_wrong_is_counted_and_found(table, tmp_path, capsys):
    with pytest.raises(UserError, match=r"5 of 10 are wrong: .*truncated 1"):
        verify(open_source(str(table)), workers=2, json_file=tmp_path / "out" / "report.json")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["wrong"] == dict.fromkeys(
        ["truncated", "not_an_image", "no_caption", "missing", "repeated_example"], 1
    )
    places = {reason: [one["place"].split("/")[-1] for one in found] for reason, found in report["where"].items()}
    assert places == {
        "truncated": ["cut.jpg"],
        "not_an_image": ["text.png"],
        "no_caption": ["silent.png"],
        "missing": ["gone.png"],
        "repeated_example": ["same.jpg"],
    }
    assert (report["examples"], report["usable"]) == (10, 6)
    assert report["shorter_edge"] == {"min": 5, "median": 115, "max": 200}
    assert report["aspect_ratio"]["max"] == 4.5
    assert report["shorter_than_224"] == 6
    assert report["images_with_the_same_bytes"] == 2
    assert (report["captions"], report["repeated_captions"]) == (7, 2)  # "first" and "a photo"
    assert report["longer_than_the_context"] == 1
    assert report["tokens"]["max"] == 93  # "tall", 90 times "very", start and end
    assert report["bytes"]["total"] == sum(
        (table.parent / name).stat().st_size for name in ("a.png", "b.jpg", "c.webp", "d.bmp", "twin.jpg", "same.jpg")
    )
    printed = capsys.readouterr().out
    assert "10 examples, 6 usable" in printed
    assert f"{table.parent}/cut.jpg" in printed


def test_the_number_of_workers_makes_no_difference(table):
    source = open_source(str(table))
    alone = examine(source, range(10))
    parts = list(parallel.in_order(partial(examine, source), [range(i, i + 1) for i in range(10)], 2))
    for name in ("usable", "shapes", "bytes", "images", "pairs", "captions", "tokens", "labels"):
        assert np.array_equal(getattr(alone, name), np.concatenate([getattr(part, name) for part in parts]))
    assert alone.bad == tuple(bad for part in parts for bad in part.bad)


def test_labels_are_judged_by_the_class_names(tmp_path):
    for i, name in enumerate(("cat", "cat", "dog")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{i}.png").write_bytes(picture())
    source = open_source(str(tmp_path))
    report = summary(source, examine(source, range(3)))
    assert report["wrong"] == {}
    assert (report["classes"], report["labelled"]) == (2, 3)
    assert any("2 classes with 1 to 2" in line for line in lines(report))
    source.classnames = ("cat",)
    assert summary(source, examine(source, range(3)))["wrong"] == {"label_without_name": 1}


def test_packing_keeps_files_captions_and_order(table, tmp_path):
    source = open_source(str(table))
    state = pack(source, tmp_path / "shards", ShardPlan(shard_bytes=150_000), workers=2)
    assert state["left_out"] == {"not_an_image": 1, "no_caption": 1, "missing": 1}  # cut.jpg is not looked into
    shards = sorted((tmp_path / "shards").glob("*.tar"))
    assert len(shards) == len(state["shards"]) > 1
    assert all(shard.stat().st_size <= 150_000 for shard in shards)
    again = open_source(str(tmp_path / "shards"))
    kept = [source[i] for i in range(7)]
    assert [again[i].image for i in range(len(again))] == [example.image for example in kept]
    assert again[0].captions == ("first", "first again")
    assert [again[i].captions for i in range(1, 7)] == [
        tuple(" ".join(text.split()) for text in example.captions) for example in kept[1:]
    ]
    with tarfile.open(shards[0]) as archive:
        assert archive.getnames()[:2] == ["0000000000.png", "0000000000.txt"]


def test_packing_shrinks_what_is_too_large(table, tmp_path):
    source = open_source(str(table))
    state = pack(source, tmp_path / "shards", ShardPlan(resize=100))
    assert state["left_out"]["truncated"] == 1
    again = open_source(str(tmp_path / "shards"))
    assert [decode(again[i].image).shape[:2] for i in range(4)] == [(30, 40), (100, 150), (90, 20), (5, 7)]
    assert again[0].image == source[0].image
    small = np.asarray(Image.fromarray(decode(source[1].image)).resize((150, 100), Image.Resampling.BICUBIC))
    assert np.abs(decode(again[1].image).astype(float) - small).mean() < 15  # noise, the worst for a JPEG


def test_labels_and_class_names_are_packed(tmp_path):
    drawn = open_source("scenes:test?length=5&size=32")
    pack(drawn, tmp_path / "shards", ShardPlan())
    again = open_source(str(tmp_path / "shards"))
    assert again.classnames == drawn.classnames
    for i in range(5):
        assert np.array_equal(decode(again[i].image), drawn[i].image)
        assert (again[i].captions, again[i].label) == (drawn[i].captions, drawn[i].label)


def test_packing_in_random_order(table, tmp_path):
    source = open_source(str(table))
    pack(source, tmp_path / "shards", ShardPlan(shuffle=3))
    again = open_source(str(tmp_path / "shards"))
    images = [again[i].image for i in range(len(again))]
    assert images != [source[i].image for i in range(7)]
    assert sorted(images) == sorted(source[i].image for i in range(7))


@pytest.mark.parametrize("broken_at", range(1, 8))
def test_packing_goes_on_where_it_was_stopped(table, tmp_path, monkeypatch, broken_at):
    """Stopped before any of its renames, it ends with the same bytes as one that was never stopped."""
    source, plan = open_source(str(table)), ShardPlan(shard_examples=2)
    whole = tmp_path / "whole"
    pack(source, whole, plan)
    out, replace, calls = tmp_path / "shards", os.replace, []

    def failing(*names):
        calls.append(names)
        if len(calls) == broken_at:
            raise KeyboardInterrupt
        replace(*names)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(KeyboardInterrupt):
            pack(source, out, plan)
    assert not (out / "00000.tar").exists() or (out / "00000.tar").read_bytes() == (whole / "00000.tar").read_bytes()
    pack(source, out, plan)
    assert sorted(file.name for file in out.iterdir()) == sorted(file.name for file in whole.iterdir())
    for file in whole.iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes(), file.name


def test_packing_refuses_what_is_not_its_own(table, tmp_path):
    source, out = open_source(str(table)), tmp_path / "shards"
    with pytest.raises(UserError, match=r"data is not empty \(a\.png, .*give a new folder"):
        pack(source, table.parent, ShardPlan())
    pack(source, out, ShardPlan())
    assert pack(source, out, ShardPlan())["finished"]
    with pytest.raises(UserError, match="another packing \\(its resize is None, not 64\\)"):
        pack(source, out, ShardPlan(resize=64))
    (table.parent / "a.png").write_bytes(picture())
    with pytest.raises(UserError, match="the source's files have changed"):
        pack(open_source(str(table)), out, ShardPlan())
    (out / "pack.json").write_text("[" * 5000)
    with pytest.raises(UserError, match=r"pack\.json cannot be read"):
        pack(source, out, ShardPlan())
    with pytest.raises(UserError, match="cannot write to /proc/nowhere"):
        pack(source, tmp_path.__class__("/proc/nowhere"), ShardPlan())


DAMAGE = {
    "missing": os.remove,
    "emptied": lambda path: os.truncate(path, 0),
    "truncated": lambda path: os.truncate(path, 1024),
    "edited": lambda path: path.write_bytes(path.read_bytes().replace(b"first", b"other")),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("../gone")),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_shard_is_packed_again(table, tmp_path, caplog, damage, finished):
    source, out, plan = open_source(str(table)), tmp_path / "shards", ShardPlan(shard_examples=2, shuffle=1)
    pack(source, out, plan)
    whole = {file.name: file.read_bytes() for file in out.iterdir()}
    if not finished:
        state = json.loads((out / "pack.json").read_text())
        last = state["shards"].pop()
        state |= {"finished": False, "done": state["shards"][-1]["until"], "left_out": {}}
        (out / "pack.json").write_text(json.dumps(state))
        (out / last["file"]).unlink()
    name = next(name for name in whole if name.endswith(".tar") and b"first" in whole[name] and (out / name).exists())
    DAMAGE[damage](out / name)
    caplog.clear()
    pack(source, out, plan)
    (message,) = caplog.messages
    assert message == f"{out / name} is not as it was packed: it is packed again"
    assert sorted(os.listdir(out)) == sorted(whole)
    assert all((out / shard).read_bytes() == whole[shard] for shard in whole if shard.endswith(".tar"))
    caplog.clear()
    pack(source, out, plan)
    assert not caplog.messages


def test_a_shard_that_comes_out_otherwise_is_refused_by_name(table, tmp_path):
    source, out = open_source(str(table)), tmp_path / "shards"
    pack(source, out, ShardPlan(shard_examples=2))
    state = json.loads((out / "pack.json").read_text())
    state["shards"][1]["sha256"] = "0" * 64
    (out / "pack.json").write_text(json.dumps(state))
    before = (out / "00001.tar").read_bytes()
    with pytest.raises(UserError, match=r"00001.tar cannot be made again"):
        pack(source, out, ShardPlan(shard_examples=2))
    assert (out / "00001.tar").read_bytes() == before
    del state["shards"][0]["sha256"]
    (out / "pack.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"pack.json cannot be read"):
        pack(source, out, ShardPlan(shard_examples=2))


def test_two_processes_do_not_pack_into_one_folder(table, tmp_path):
    out = tmp_path / "shards"
    out.mkdir()
    code = "import sys, fcntl; file = open(sys.argv[1], 'a+'); fcntl.lockf(file, fcntl.LOCK_EX); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, out / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match=f"another process is packing into {out}: wait for it"):
            pack(open_source(str(table)), out, ShardPlan())
        assert os.listdir(out) == [".lock"]
        other.kill()
    assert pack(open_source(str(table)), out, ShardPlan())["finished"]


def test_packing_nothing_says_why(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "t.csv").write_text("filepath,caption\na.png,x\n")
    with pytest.raises(UserError, match=r"none of 1 examples can be used: .*not_an_image"):
        pack(open_source(str(tmp_path / "t.csv")), tmp_path / "shards", ShardPlan())


def test_a_worker_that_dies_is_told_of():
    with pytest.raises(UserError, match="a worker process died"):
        list(parallel.in_order(parallel.os._exit, [1, 1], 2))


def test_the_sheet_shows_what_there_is(table, tmp_path, capsys):
    source = open_source(str(table))
    show.show(source, tmp_path / "sheet.png", count=24, columns=4, seed=0)
    assert "10 of 10 examples" in capsys.readouterr().out
    page = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert page.shape[1] == 16 + 4 * 240
    first = page[50 : 50 + 224, 16 : 16 + 224]  # a.png, 40×30, enlarged to 224×168 at the bottom of its tile
    assert (first[:56] == 255).all()
    enlarged = np.asarray(Image.fromarray(decode(source[0].image)).resize((224, 168), Image.Resampling.NEAREST))
    assert np.array_equal(first[56:], enlarged)
    grey = (page == show.MISSING).all(axis=2).sum()
    assert 0 <= grey - 3 * 224 * 224 < 500  # three without pixels, and the edges of letters
    for line in show._wrapped(["word " * 300]):
        assert show._font(show.TEXT).getlength(line) <= show.TILE + 12
    assert len(show._wrapped(["Z" * 5000])) == show.LINES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "scenes:test", "--out", "a.jpg"), "give a name that ends in .png"),
        (("show", "scenes:test", "--out", "a.png", "--count", "0"), "give 1 to 1000 examples"),
        (("pack", "scenes:test", "--out", "x", "--quality", "101"), "--quality 101: give a number from 1 to 100"),
        (("pack", "scenes:test", "--out", "x", "--resize", "0"), "--resize 0"),
        (("verify", "/nowhere"), "there is no /nowhere"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(arguments, message):
    with pytest.raises(SystemExit) as status:
        cli.main(["data", *arguments])
    assert message in str(status.value)
    assert "\n" not in str(status.value)


@pytest.mark.parametrize("command", [("verify",), ("pack", "--out", "x"), ("show", "--out", "x.png")])
def test_a_data_set_is_stated_as_in_a_recipe(command, monkeypatch):
    stated = {"path": "here", "format": "csv", "split": "test", "image_key": "i", "caption_key": "c", "label_key": "l"}
    opened = []

    def open_source(**arguments):
        opened.append(arguments)
        raise UserError("seen")

    monkeypatch.setattr("diffclip.data.sources.open_source", open_source)
    options = [word for name, value in stated.items() for word in (f"--{name.replace('_', '-')}", value)][2:]
    with pytest.raises(SystemExit, match="seen"):
        cli.main(["data", *command, *options, "here"])
    assert opened == [stated | {"allow_outside": False}]
    assert stated.items() <= vars(SourceConfig(**stated)).items()


def test_the_commands_run(tmp_path, capsys):
    cli.main(["data", "verify", "scenes:test?length=10", "--workers", "1"])
    cli.main(["data", "pack", "scenes:test?length=10", "--out", str(tmp_path / "p"), "--workers", "1"])
    cli.main(["data", "show", str(tmp_path / "p"), "--out", str(tmp_path / "s.png"), "--count", "3"])
    printed = capsys.readouterr().out
    assert "10 examples, 10 usable" in printed
    assert "  wrong       nothing\n" in printed
    assert "10 of 10 examples in 1 shards" in printed
    assert "3 of 10 examples" in printed
