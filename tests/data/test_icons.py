"""`diffclip data icons`: nothing of training is asked about, and what is left out is told by its reason."""

import io
import json
import sys
import tarfile
from collections import Counter
from random import Random

import numpy as np
import pytest

pytest.importorskip("resvg_py")

from diffclip import cli
from diffclip.data.icons import choose as choosing
from diffclip.data.icons.choose import choose
from diffclip.data.icons.draw import COLOURS, CONTRAST, Look, contrast, look, png, svg
from diffclip.data.icons.names import taken_apart
from diffclip.data.icons.package import read
from diffclip.data.images import decode
from diffclip.data.sources import open_source
from diffclip.errors import UserError

THINGS = [f"{kind} {thing}" for kind in ("red", "old") for thing in ("cat", "dog", "fish", "bird")]


def square(number, extra=""):
    """A drawing unlike all with other numbers."""
    return {"body": f'<path fill="currentColor" d="M2 2h{4 + number % 16}v{4 + number // 16}h-3z"/>{extra}'}


def icon_set(prefix, author, icons, category="Thematic", licence="MIT", **more):
    info = {"name": prefix.title(), "author": {"name": author}, "license": {"spdx": licence, "url": "https://x"}}
    return {"prefix": prefix, "info": info, "icons": icons, "width": 24, "height": 24, "_category": category} | more


def archive(path, sets):
    listed = {table["prefix"]: {"category": table.pop("_category")} for table in sets}
    files = {f"json/{table['prefix']}.json": table for table in sets}
    files |= {"collections.json": listed, "package.json": {"version": "0.0.1"}}
    with tarfile.open(path, "w:gz") as tar:
        for name, table in files.items():
            content = json.dumps(table).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def three_sets():
    """One set to train on, two that are unseen; half of the names are in all of them."""
    many = {f"thing-of-{word}": square(number) for number, word in enumerate(words(150))}
    shared = {name.replace(" ", "-"): square(200 + number) for number, name in enumerate(THINGS)}
    train = many | shared | {"heart": square(220), "heart-bold": square(221), "traffic-light": square(222)}
    game = {name.replace(" ", "-"): square(230 + number) for number, name in enumerate(THINGS)}
    moji = {name.replace(" ", "-"): square(240 + number) for number, name in enumerate(THINGS)}
    return [
        icon_set(
            "mini", "Ann", train, aliases={"puss": {"parent": "red-cat"}, "turned": {"parent": "heart", "rotate": 1}}
        ),
        icon_set("game-icons", "Bob", game),
        icon_set("openmoji", "Cid", moji, licence="CC-BY-SA-4.0"),
    ]


def words(count):
    letters = Random(0)
    return ["".join(letters.choice("bdfgklmnprst") + letters.choice("aeiou") for _ in range(4)) for _ in range(count)]


@pytest.fixture
def package(tmp_path):
    return archive(tmp_path / "package.tgz", three_sets())


@pytest.mark.parametrize(
    ("name", "others", "says", "styles"),
    [
        ("arrow-left-bold", {"arrow-left"}, "arrow left", ("bold",)),
        ("heart-light", {"heart-bold"}, "heart", ("light",)),
        ("traffic-light", {"traffic-sign"}, "traffic light", ()),
        ("outline-access-alarm", {"sharp-access-alarm"}, "access alarm", ("outline",)),
        ("access-time-20-filled", {"access-time-20-regular"}, "access time", ("filled",)),
        ("cat-outline-two-tone", {"cat-sharp"}, "cat", ("outline", "duotone")),
        ("24-hours", set(), "24 hours", ()),
        ("outline", set(), "outline", ()),
    ],
)
def test_a_style_is_one_where_the_set_has_the_name_in_another_too(name, others, says, styles):
    found = taken_apart(name, {*others, name})
    assert (str(found), found.styles) == (says, styles)


def test_no_name_of_training_is_held_out_and_no_set_of_training_is_unseen(package):
    choice = choose(read(package), seed=0)
    trained = {icon.key for icon in choice.train} | {" ".join(sorted(n.split())) for i in choice.train for n in i.also}
    held_out = [icon.key for icon in choice.heldout]
    assert held_out
    assert len(held_out) == len(set(held_out))
    assert not trained & set(held_out)
    assert {icon.icons.prefix for icon in choice.train} == {"mini"}
    assert {icon.icons.prefix for icon in choice.unseen} == {"game-icons", "openmoji"}
    assert {icon.key for icon in choice.unseen} <= trained
    assert sorted(choice.classnames) == sorted(THINGS)
    assert [choice.classnames[label] for label in choice.labels] == [str(icon.says) for icon in choice.unseen]


def test_another_seed_holds_out_other_names(package):
    first, again, other = (choose(read(package), seed) for seed in (0, 0, 1))
    assert first == again
    assert {icon.key for icon in first.heldout} != {icon.key for icon in other.heldout}


def test_a_held_out_name_is_no_further_name_either(package, monkeypatch):
    monkeypatch.setattr(choosing, "_held_out", lambda key, seed: key == "puss" or key.startswith("ba"))
    also = [name for icon in choose(read(package), 0).train for name in icon.also]
    assert also == []


def test_what_is_left_out_is_counted_by_reason(tmp_path):
    sets = three_sets()
    trained = sets[0]["icons"]
    trained |= {
        "again": trained["heart"],
        "runs": square(250, "<animate/>"),
        "links": square(251, '<image href="file:///etc/passwd"/>'),
        "gone": square(252) | {"hidden": True},
        "brand-shop": square(253),
        "acme": square(255),
        "7": square(254),
    }
    emoji = ("flag-france", "hand-dark-skin-tone", "chef-light", "chef-dark", "traffic-light")
    sets += [
        *(icon_set(f"acme{n}", "Dan", {"acme": square(300 + n)}, category="Logos") for n in range(choosing.BRANDS)),
        icon_set("my-flags", "Eve", {"fr": square(2)}, category="Flags / Maps"),
        icon_set("closed", "Fay", {"a-b": square(3)}, licence="CC-BY-NC-4.0"),
        icon_set("mini-v1", "Ann", {"heart": square(4)}),
        icon_set("noto", "Gus", {f"{name}": square(310 + n) for n, name in enumerate(emoji)}, category="Emoji"),
        icon_set("sized", "Hal", {"pen-16": square(320), "pen-24": square(321)}, suffixes={"16": "16", "24": "24"}),
    ]
    package = read(archive(tmp_path / "package.tgz", sets))
    choice = choose(package, 0)
    assert Counter(choice.left_out) - Counter({"has a held-out name": 9}) == {
        "the drawing of an earlier icon": 1,
        "it moves": 1,
        "it refers to other files or fonts": 1,
        "the icon is withdrawn": 1,
        "a brand": 2,
        "its name has no word": 1,
        "the set is of logos and products": choosing.BRANDS,
        "the set is of flags": 1,
        "the licence forbids some uses, or is not stated": 1,
        "an older set, whose author has a newer one": 1,
        "an emoji's skin tone, or a flag": 4,
        "another size of an icon": 1,
    }
    splits = [*choice.train, *choice.heldout, *choice.unseen]
    assert len(splits) + sum(choice.left_out.values()) == sum(len(icons.icons) for icons in package.sets)
    assert "pen-24" in {icon.name for icon in splits}


def test_colours_differ_enough():
    random = Random(0)
    for _ in range(200):
        how = look(random, multicoloured=False)
        assert contrast(how.colour, how.ground) >= CONTRAST
    assert contrast("black", "white") == pytest.approx(18.07, abs=0.05)
    assert {look(random, False).ground for _ in range(500)} == set(COLOURS)


def test_an_icon_is_drawn_in_the_middle_in_its_colour():
    how = Look("red", "white", 0.0)
    pixels = decode(png(svg('<path fill="currentColor" d="M0 0h8v24h-8z"/>', (0, 0, 8, 24), how), how))
    red = (pixels == [0xD6, 0x28, 0x28]).all(-1)
    assert pixels.shape == (64, 64, 3)
    assert np.flatnonzero(red.all(0)).tolist() == list(range(22, 42))  # a third of the width, but for blended edges


def test_shards_are_read_by_the_projects_own_reader(package, tmp_path, capsys):
    out = tmp_path / "icons"
    command = ["data", "icons", "--package", str(package), "--workers", "1", "--out"]
    cli.main([*command, str(out)])
    said = capsys.readouterr().out
    train, unseen = (open_source(str(out), split=split) for split in ("train", "test"))
    heldout = open_source(str(out / "val"))
    assert f"{len(train):,} icons, 1 sets" in said
    with pytest.raises(UserError, match="holds the splits test, train, val: choose one"):
        open_source(str(out))
    assert (unseen.classnames, len(unseen)) == (choose(read(package), 0).classnames, 16)
    assert unseen.templates[0] == "{c}"
    assert {unseen[i].label for i in range(16)} == set(range(8))
    captions = [train[i].captions for i in range(len(train))]
    assert any("puss" in caption for said in captions for caption in said)
    assert any(" on " in caption for said in captions for caption in said)
    assert not any(" a orange" in f" {caption}" for said in captions for caption in said)
    assert all(len(heldout[i].captions) == 1 for i in range(len(heldout)))
    assert decode(train[0].image).shape == (64, 64, 3)
    with tarfile.open(out / "test/00000.tar") as tar:
        about = json.load(tar.extractfile("0000000008.json"))
    assert (about["set"], about["author"], about["licence"]) == ("openmoji", "Cid", "CC-BY-SA-4.0")
    assert "Openmoji (`openmoji`) | Cid | [CC-BY-SA-4.0]" in (out / "README.md").read_text()
    cli.main([*command, str(tmp_path / "again")])
    for split in ("train", "val", "test"):
        assert (out / split / "00000.tar").read_bytes() == (tmp_path / "again" / split / "00000.tar").read_bytes()


def test_what_cannot_be_seen_is_left_out(tmp_path, capsys):
    sets = three_sets()
    sets[0]["icons"]["red-cow"] = {"body": "<g/>"}
    sets[0]["icons"]["old-cow"] = {"body": "<path d='M0 0h9"}
    package = archive(tmp_path / "package.tgz", sets)
    cli.main(["data", "icons", "--package", str(package), "--out", str(tmp_path / "icons"), "--workers", "1"])
    said = capsys.readouterr().out
    assert "1 nothing is to be seen" in said
    assert "1 it cannot be drawn" in said


@pytest.mark.parametrize(
    ("content", "wrong"),
    [(b"", "cannot read"), (b"<html>", "cannot read"), (None, "No such file"), ([], "is no archive of @iconify/json")],
)
def test_another_file_is_refused_in_one_line(content, wrong, tmp_path):
    path = tmp_path / "package.tgz"
    if content == []:
        archive(path, [])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=wrong):
        read(path)


def npm(folder, lines):
    """A program called npm that does what is said."""
    folder.mkdir()
    (folder / "npm").write_text("\n".join([f"#!{sys.executable}", "import sys, shutil", *lines]))
    (folder / "npm").chmod(0o755)
    return str(folder)


def test_npm_fetches_once(package, tmp_path, monkeypatch, capsys):
    lines = ["assert sys.argv[1:3] == ['pack', '@iconify/json@0.0.1'], sys.argv"]
    lines += [f"shutil.copy({str(package)!r}, sys.argv[-1] + '/iconify-json-0.0.1.tgz')"]
    monkeypatch.setenv("PATH", npm(tmp_path / "bin", lines))
    command = ["data", "icons", "--version", "0.0.1", "--out", str(tmp_path / "icons"), "--workers", "1"]
    cli.main(command)
    first = capsys.readouterr().out
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    cli.main(command)
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [(None, "npm is not installed"), (["sys.exit('npm error code ENOTFOUND')"], "ENOTFOUND.*--package FILE")],
)
def test_without_npm_or_network_one_line_says_what_to_do(lines, wrong, tmp_path, monkeypatch):
    folder = npm(tmp_path / "bin", lines) if lines else str(tmp_path)
    monkeypatch.setenv("PATH", folder)
    with pytest.raises(SystemExit, match=wrong):
        cli.main(["data", "icons", "--out", str(tmp_path / "icons")])
