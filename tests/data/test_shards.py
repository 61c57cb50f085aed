"""The index of a shard agrees with tarfile on good archives, and says in one line what is wrong with others."""

import io
import json
import os
import pickle
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffclip.data.example import Options
from diffclip.data.formats.shards import TarSource
from diffclip.data.formats.tar import members, read
from diffclip.data.images import BadImage
from diffclip.errors import UserError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def jpeg(shade=0):
    file = io.BytesIO()
    Image.new("L", (8, 8), shade).save(file, "JPEG")
    return file.getvalue()


def write_tar(path, contents, format="pax"):
    with tarfile.open(path, "w", format=FORMATS[format]) as archive:
        for name, data in contents:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def open_tar(*files, **options):
    return TarSource(files, Options("test", **options))


def three(path):
    return write_tar(
        path,
        [(f"{i:03}.{kind}", data) for i in range(3) for kind, data in (("jpg", jpeg(i)), ("txt", f"no {i}".encode()))],
    )


@pytest.mark.parametrize("format", FORMATS)
def test_members_are_those_that_tarfile_finds(tmp_path, format):
    deep = "a" * 90 + "/" + "b" * 60 + ".jpg"
    long = "ü" * 120 + ".txt" if format != "ustar" else "ü" * 30 + ".txt"
    contents = [("x.jpg", b"1" * 513), (deep, b"2" * 512), (long, b""), ("y.tar", b"3" * 10_000), ("z/ä.txt", b"4")]
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=FORMATS[format]) as archive:
        for kind, name in ((tarfile.DIRTYPE, "z"), (tarfile.SYMTYPE, "link.jpg"), (tarfile.LNKTYPE, "hard.jpg")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "l" * 150 if format != "ustar" else "/etc/passwd"
            archive.addfile(info)
        for name, data in contents:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5
            archive.addfile(info, io.BytesIO(data))
    found, _ = members(path)
    with tarfile.open(path) as archive:
        assert [(m.name, m.offset, m.size) for m in found] == [
            (m.name, m.offset_data, m.size) for m in archive if m.isreg()
        ]
    assert read(path, [(m.offset, m.size) for m in found]) == [data for _, data in contents]
    assert not list(tmp_path.glob("*.jpg"))


def test_sizes_in_base_256_and_from_pax_headers(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.jpg", b"x" * 700)], "gnu")
    data = bytearray(path.read_bytes())
    data[124:136] = b"\x80" + (700).to_bytes(11, "big")
    path.write_bytes(with_checksum(data))
    assert [m.size for m in members(path)[0]] == [700]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.jpg")
        info.size, info.pax_headers = 700, {"size": "700", "comment": "ä = ö\n"}
        archive.addfile(info, io.BytesIO(b"x" * 700))
    assert [(m.name, m.size) for m in members(path)[0]] == [("a.jpg", 700)]
    path.write_bytes(path.read_bytes().replace(b" size=700\n", b" size=-99\n"))
    with pytest.raises(UserError, match="says it has -99 bytes"):
        members(path)[0]


def test_a_link_has_no_data_whatever_size_it_states(tmp_path):
    path = three(tmp_path / "a.tar")
    link = bytearray(512)
    link[:4], link[124:135], link[156:157] = b"l.ln", b"00000002000", b"1"
    path.write_bytes(with_checksum(link) + path.read_bytes())
    assert [m.name for m in members(path)[0]][:2] == ["000.jpg", "000.txt"]


def with_checksum(data, at=0):
    """The data with the checksum of the header at `at` made right."""
    data = bytearray(data)
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


def test_every_truncation_is_noticed(tmp_path, caplog):
    """Unless all that is lost is zeros at the end, it is an error or, where it falls between two members, a warning."""
    path = three(tmp_path / "a.tar")
    whole = path.read_bytes()
    good, _ = members(path)
    for length in range(0, len(whole), 64):
        path.write_bytes(whole[:length])
        caplog.clear()
        kept = [m for m in good if m.offset + m.size <= length]
        if length > good[-1].offset + 512:
            assert members(path)[0] == good
        elif any(m.offset - 512 < length < m.offset + m.size for m in good):
            with pytest.raises(UserError, match=r"a\.tar"):
                members(path)[0]
        else:
            assert members(path)[0] == kept
            assert "a.tar ends without an end mark" in caplog.text


def test_a_size_that_lies_is_noticed(tmp_path):
    path = three(tmp_path / "a.tar")
    whole = bytearray(path.read_bytes())
    for size in (b"77777777777\0", b"00000000000\0", b"-0000000001\0", b"zzzzzzzzzzz\0", b"\xff" * 12):
        whole[124:136] = size
        path.write_bytes(with_checksum(whole))
        with pytest.raises(UserError, match=r"a\.tar"):
            members(path)[0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x1f\x8b" + b"z" * 600, "not a whole, uncompressed tar archive: no valid header at byte 0"),
        (b"", "holds no images"),
        (b"\0" * 10_240, "holds no images"),
        (b"short", "no valid header"),
    ],
)
def test_what_is_no_shard(tmp_path, data, message):
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        open_tar(tmp_path / "a.tar")
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_missing_and_a_second_one_that_is_empty(tmp_path):
    with pytest.raises(UserError, match=r"cannot read shard .*b\.tar: No such file"):
        open_tar(tmp_path / "b.tar")
    write_tar(tmp_path / "b.tar", [])
    with pytest.raises(UserError, match=r"b\.tar holds no images"):
        open_tar(tmp_path / "b.tar")


def test_shards_without_images_are_left_out_and_named(tmp_path, caplog):
    write_tar(tmp_path / "a.tar", [])
    write_tar(tmp_path / "c.tar", [("000.txt", b"of no image"), ("000.json", b"{}")])
    source = open_tar(tmp_path / "a.tar", three(tmp_path / "b.tar"), tmp_path / "c.tar")
    assert [source[i].captions for i in range(len(source))] == [("no 0",), ("no 1",), ("no 2",)]
    assert f"2 of 3 shards hold no images; {tmp_path / 'a.tar'} is the first" in caplog.text


@pytest.mark.parametrize("order", ["kinds", "reversed", "odd first"])
def test_members_that_are_not_adjacent_are_joined(tmp_path, order):
    contents = [(f"./{i}.{kind}", data) for kind in ("jpg", "txt") for i in range(4) for data in [b"%d" % i]]
    if order == "reversed":
        contents.reverse()
    elif order == "odd first":
        contents.sort(key=lambda content: int(content[1]) % 2 == 0)
    source = open_tar(write_tar(tmp_path / "a.tar", contents))
    assert len(source) == 4
    assert all(source[i].image.decode() == source[i].captions[0] for i in range(4))


def test_a_key_that_comes_again_is_another_example(tmp_path):
    contents = [("0.jpg", b"a"), ("0.txt", b"a"), ("1.jpg", b"b"), ("1.txt", b"b"), ("0.jpg", b"c"), ("0.txt", b"c")]
    source = open_tar(write_tar(tmp_path / "a.tar", contents))
    assert [(e.image, e.captions) for e in map(source.__getitem__, range(3))] == [
        (b"a", ("a",)), (b"b", ("b",)), (b"c", ("c",))
    ]  # fmt: skip


def test_suffixes_of_several_parts(tmp_path):
    one = write_tar(tmp_path / "1.tar", [("0.input.jpg", b"in"), ("0.caption.txt", b"it")])
    two = write_tar(tmp_path / "2.tar", [("0.input.jpg", b"in"), ("0.target.PNG", b"out"), ("0.txt", b"it")])
    both = write_tar(tmp_path / "3.tar", [("0.mask.png", b"mask"), ("0.jpg", b"in"), ("0.txt", b"it")])
    assert (open_tar(one)[0].image, open_tar(one)[0].captions) == (b"in", ("it",))
    with pytest.raises(UserError, match=r"several images an example \(input.jpg, target.png\): choose .* image_key"):
        open_tar(two)
    assert open_tar(two, image_key="target.png")[0].image == b"out"
    assert (open_tar(both)[0].image, open_tar(both, image_key="mask.png")[0].image) == (b"in", b"mask")
    assert open_tar(both, image_key="jpg")[0].image == b"in"
    with pytest.raises(UserError, match="has no 'x': its members end in"):
        open_tar(both, image_key="x")


def test_a_caption_of_several_lines_is_whole_where_the_json_says_so(tmp_path):
    text = "A dog\nin the grass\n\nof spring"
    contents = [("0.jpg", b"i"), ("0.txt", text.encode()), ("0.json", json.dumps({"caption": text}).encode())]
    assert open_tar(write_tar(tmp_path / "a.tar", contents))[0].captions == ("A dog in the grass of spring",)
    contents[2] = ("0.json", b'{"caption": "another"}')
    assert open_tar(write_tar(tmp_path / "b.tar", contents))[0].captions == ("A dog", "in the grass", "of spring")


headers = st.fixed_dictionaries(
    {
        "name": st.one_of(
            st.sampled_from([b"0.jpg", b"0.txt", b"0.json", b"1.cls", b"../x.jpg"]), st.binary(max_size=99)
        ),
        "size": st.one_of(st.integers(-5, 3000).map(lambda n: b"%o" % n), st.binary(min_size=11, max_size=12)),
        "type": st.one_of(
            st.sampled_from(b"0071256xxgLKS\0").map(lambda n: bytes([n])), st.binary(min_size=1, max_size=1)
        ),
        "data": st.one_of(
            st.binary(max_size=600),
            st.sampled_from([b"9 size=4\n", b"12 path=a.jpg\n", b"0 a=b\n", b"99 a=b\n", b"{}"]),
        ),
    }
)


def archive_of(fields):
    blocks = bytearray()
    for field in fields:
        header = bytearray(512)
        header[: len(field["name"])] = field["name"]
        header[124 : 124 + len(field["size"])] = field["size"]
        header[156:157] = field["type"]
        header[257:263] = b"ustar\0"
        blocks += with_checksum(header) + field["data"] + bytes(-len(field["data"]) % 512)
    return bytes(blocks)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=2000), st.lists(headers, max_size=5).map(archive_of)))
def test_no_bytes_crash_the_index(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "random.tar"
    path.write_bytes(data)
    try:
        source = open_tar(path)
    except UserError:
        return
    for index in range(len(source)):
        try:
            example = source[index]
        except BadImage:
            continue
        assert example.image in data


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_damage_crashes_the_index(tmp_path_factory, data):
    path = three(tmp_path_factory.getbasetemp() / "damaged.tar")
    content = bytearray(path.read_bytes())
    at = 512 * data.draw(st.integers(0, 12)) + data.draw(st.integers(0, 511))
    content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        source = open_tar(path)
    except UserError:
        return
    assert all(source[i].image is not None for i in range(len(source)))


def test_examples_as_img2dataset_writes_them(tmp_path):
    first = write_tar(
        tmp_path / "0.tar",
        [
            ("000.jpg", jpeg(0)),
            ("._000.jpg", b"what macOS leaves"),
            ("000.txt", b"a caption\n"),
            ("000.json", b'{"caption": "other", "url": "u"}'),
            ("sub/000.JPEG", jpeg(1)),
            ("sub/000.txt", "zwei\n\n Zeilen ä\n".encode()),
            ("002.txt", b"an image that could not be fetched"),
            ("003.seg.png", jpeg(2)),
            ("003.png", jpeg(3)),
        ],
    )
    second = write_tar(tmp_path / "1.tar", [("004.webp", b""), ("004.txt", b"\xff")])
    source = open_tar(first, second)
    assert len(source) == 4
    assert [source[i].captions for i in range(4)] == [("a caption",), ("zwei", "Zeilen ä"), (), ("\ufffd",)]
    assert [source[i].image for i in range(4)] == [jpeg(0), jpeg(1), jpeg(3), b""]
    assert {source[i].label for i in range(4)} == {None}
    assert pickle.loads(pickle.dumps(source))[1] == source[1]


def test_entries_without_an_image_are_left_out_with_a_word_about_it(tmp_path, caplog):
    open_tar(write_tar(tmp_path / "a.tar", [("0.txt", b"a"), ("1.jpg", jpeg()), ("1.txt", b"b")]))
    assert "1 entries without an image are left out" in caplog.text


def test_captions_from_json(tmp_path):
    entries = [{"caption": "one", "all": ["x", " ", 3, "y"]}, {"caption": None}, ["no object"], {}]
    contents = [
        (f"{i}.{kind}", data)
        for i, entry in enumerate(entries)
        for kind, data in (("jpg", jpeg(i)), ("json", json.dumps(entry).encode()))
    ]
    broken = [(8, b"{broken"), (9, b"[" * 100_000)]
    path = write_tar(
        tmp_path / "a.tar",
        [*contents, *((f"{i}.{k}", d) for i, j in broken for k, d in (("jpg", jpeg(9)), ("json", j)))],
    )
    assert [open_tar(path)[i].captions for i in range(6)] == [("one",), (), (), (), (), ()]
    assert open_tar(path, caption_key="all")[0].captions == ("x", "y")
    with pytest.raises(UserError, match=r"no 'alt': its examples have image, json, and its \.json has caption, all"):
        open_tar(path, caption_key="alt")


def test_labels_class_names_and_templates_as_the_laion_benchmark_stores_them(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}.\nthe {c}.\n")
    labels = [b"1", b"0\n", b"-1", b"one", b""]
    contents = [(f"{i}.{kind}", data) for i, n in enumerate(labels) for kind, data in (("cls", n), ("webp", jpeg()))]
    source = open_tar(write_tar(tmp_path / "test" / "0.tar", contents))
    assert source.classnames == ("cat", "dog")
    assert source.templates == ("a {c}.", "the {c}.")
    assert [source[i].label for i in range(3)] == [1, 0, None]
    for index in (3, 4):
        with pytest.raises(BadImage, match="bad_label"):
            source[index]
    given = open_tar(tmp_path / "test" / "0.tar", classnames=("katze", "hund"), templates=("{c}",))
    assert (given.classnames, given.templates) == (("katze", "hund"), ("{c}",))


def test_labels_from_json(tmp_path):
    numbers = ["1", '"2"', "1e400", "null", "[]"]
    contents = [
        (f"{i}.{kind}", data)
        for i, n in enumerate(numbers)
        for kind, data in (("jpg", jpeg()), ("json", f'{{"y": {n}}}'.encode()))
    ]
    source = open_tar(write_tar(tmp_path / "a.tar", contents), label_key="y")
    assert [source[0].label, source[1].label] == [1, 2]
    for index in (2, 3, 4):
        with pytest.raises(BadImage, match="bad_label"):
            source[index]


def test_neither_captions_nor_labels(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.jpg", jpeg()), ("0.json", b'{"alt": "x"}')])
    with pytest.raises(UserError, match=r"neither captions nor labels recognised among its members \(image, json\)"):
        open_tar(path)


def test_a_shard_that_changes_after_it_was_opened(tmp_path):
    path = three(tmp_path / "a.tar")
    source = open_tar(path)
    os.truncate(path, 600)
    assert len(source[0].image) == 88
    path.unlink()
    with pytest.raises(BadImage, match="missing"):
        source[0]
