"""Tar shards: names that lead elsewhere, links, sparse files, lengths that lie, captions and labels that are none."""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

from hostile_case import Case, encoded, file, written

END = bytes(1024)


def header(
    name: bytes,
    size: int | bytes = 0,
    kind: bytes = b"0",
    *,
    magic: bytes = b"ustar\x0000",
    link: bytes = b"",
    prefix: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """One header of 512 bytes; `size` as bytes goes into its field as it is."""
    field = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(512)
    for at, width, value in (
        (0, 100, name),
        (100, 8, b"0000644\0"),
        (108, 8, b"0000000\0"),
        (116, 8, b"0000000\0"),
        (124, 12, field),
        (136, 12, b"00000000000\0"),
        (156, 1, kind),
        (157, 100, link),
        (257, 8, magic),
        (345, 155, prefix),
    ):
        block[at : at + min(width, len(value))] = value[:width]
    block[148:156] = b" " * 8
    block[148:156] = checksum if checksum is not None else b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: bytes, data: bytes, kind: bytes = b"0") -> bytes:
    """A header and its data."""
    return header(name, len(data), kind) + data + bytes(-len(data) % 512)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    """An extended header of records that are already written out."""
    return member(b"PaxHeader", b"".join(records), kind)


def record(key: bytes, value: bytes) -> bytes:
    """ "length key=value\\n", the length counting itself."""
    length = len(key) + len(value) + 3
    while len(b"%d" % length) + len(key) + len(value) + 3 != length:
        length = len(b"%d" % length) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


JPEG = encoded()
GOOD = b"".join(member(b"good%d.jpg" % i, JPEG) + member(b"good%d.txt" % i, b"a caption") for i in range(3))


def pair(name: bytes, before: bytes = b"", kind: bytes = b"0") -> bytes:
    """An example whose image has such a name."""
    stem = name.rpartition(b".")[0]
    return before + member(name, JPEG, kind) + member(stem + b".txt", b"another caption")


def tar(content: bytes, *, good: bytes = GOOD, end: bytes = END) -> Callable[[Path], Path]:
    """A shard of three good examples and then `content`."""
    return file("00000.tar", good + content + end)


def labelled(label: bytes) -> Callable[[Path], Path]:
    """Three images of classes, and one with such a label."""
    classes = b"".join(member(b"g%d.jpg" % i, JPEG) + member(b"g%d.cls" % i, b"%d" % (i % 2)) for i in range(3))

    def build(folder: Path) -> Path:
        written(folder, "classnames.txt", "cat\ndog\n")
        return tar(member(b"x.jpg", JPEG) + member(b"x.cls", label), good=classes)(folder)

    return build


def with_json(content: bytes) -> Callable[[Path], Path]:
    """Three images with captions in JSON, and one with this JSON."""
    entry = json.dumps({"caption": "a caption"}).encode()
    good = b"".join(member(b"g%d.jpg" % i, JPEG) + member(b"g%d.json" % i, entry) for i in range(3))
    return tar(member(b"x.jpg", JPEG) + member(b"x.json", content), good=good)


def beside(name: str, content: bytes) -> Callable[[Path], Path]:
    """Labelled images with this text file beside the shard."""

    def build(folder: Path) -> Path:
        if name != "classnames.txt":
            written(folder, "classnames.txt", "cat\ndog\n")
        path = tar(b"", good=member(b"a.jpg", JPEG) + member(b"a.cls", b"1"))(folder)
        written(folder, name, content)
        return path

    return build


def huge_member(folder: Path) -> Path:
    """A file with a hole in it, so that the nine gigabytes which its member states are there."""
    start = GOOD + header(b"x.jpg", b"\x80" + (9 << 30).to_bytes(11, "big"))
    path = written(folder, "00000.tar", start)
    os.truncate(path, len(start) + (9 << 30))
    with path.open("ab") as shard:
        shard.write(member(b"x.txt", b"caption") + END)
    return path


def huge_caption(folder: Path) -> Path:
    start = GOOD + member(b"x.jpg", JPEG) + header(b"x.txt", b"\x80" + (9 << 30).to_bytes(11, "big"))
    path = written(folder, "00000.tar", start)
    os.truncate(path, len(start) + (9 << 30))
    with path.open("ab") as shard:
        shard.write(END)
    return path


def zipped(folder: Path) -> Path:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("../../outside.jpg", JPEG)
    return written(folder, "00000.tar", stream.getvalue())


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "00000.tar")
    return folder / "00000.tar"


def dangling(folder: Path) -> Path:
    (folder / "00000.tar").symlink_to("/nonexistent/shard.tar")
    return folder / "00000.tar"


def cut(at: int) -> Callable[[Path], Path]:
    return file("00000.tar", GOOD[:at])


NO_HEADER = r"error: .*not a whole, uncompressed tar archive"
LYING = r"error: .*damaged or cut short: the member at byte"
NO_SIZE = r"error: .*states no readable size"
BAD_PAX = r"error: .*pax header at byte \d+ is damaged"
READ = "(read|warned: )"

CASES = [
    Case(f"tar/{name}", "data", expect, build)
    for name, expect, build in [
        # Names are data, never paths.
        ("name with ..", READ, tar(pair(b"../../../outside.jpg"))),
        ("absolute name", READ, tar(pair(b"/tmp/diffclip_hostile.jpg"))),
        (
            "name with .. in a pax header",
            r"skipped: no_caption 1",
            tar(pair(b"x.jpg", pax(record(b"path", b"../../outside.jpg")))),
        ),
        (
            "name with .. in a long name",
            r"skipped: no_caption 1",
            tar(pair(b"x.jpg", member(b"L", b"../" * 99 + b"o.jpg\0", b"L"))),
        ),
        ("prefix with ..", r"skipped: empty 1", tar(header(b"x.jpg", 0, prefix=b"../../..") + member(b"x.txt", b"c"))),
        ("name of control characters", READ, tar(pair(b"\x1b[2J\x07\r\n.jpg"))),
        ("name that is no UTF-8", READ, tar(pair(b"\xff\xfe\xed\xa0\x80.jpg"))),
        ("empty name", READ, tar(member(b"", JPEG))),
        ("name of slashes", READ, tar(member(b"/" * 100, JPEG))),
        ("same name many times", READ, tar(pair(b"x.jpg") * 50)),
        # What is no regular file has no data.
        *(
            (f"{what} named as an image", READ, tar(header(b"x.jpg", 0, kind, link=link) + member(b"x.txt", b"c")))
            for what, kind, link in (
                ("symbolic link out", b"2", b"/etc/passwd"),
                ("symbolic link up", b"2", b"../../../outside.jpg"),
                ("symbolic link to itself", b"2", b"x.jpg"),
                ("hard link out", b"1", b"/etc/passwd"),
                ("character device", b"3", b""),
                ("block device", b"4", b""),
                ("directory", b"5", b""),
                ("pipe", b"6", b""),
            )
        ),
        ("link that states a size", READ, tar(header(b"x.jpg", 1 << 30, b"2", link=b"/etc/passwd"))),
        ("unknown kind", READ, tar(member(b"x.jpg", JPEG, b"Z"))),
        ("only links", r"error: .*holds no images", tar(header(b"x.jpg", 0, b"2", link=b"/etc/passwd"), good=b"")),
        ("GNU sparse header", READ, tar(header(b"x.jpg", 512, b"S", magic=b"ustar  \0") + bytes(512))),
        ("GNU sparse header that lies", LYING, tar(header(b"x.jpg", 1 << 32, b"S", magic=b"ustar  \0"))),
        (
            "pax sparse file",
            r"skipped: \w+ 1",
            tar(
                pax(record(b"GNU.sparse.major", b"1"), record(b"GNU.sparse.realsize", b"9" * 15))
                + member(b"x.jpg", b"1\n0\n999999999999\n" + bytes(496))
                + member(b"x.txt", b"c")
            ),
        ),
        # Lengths that lie.
        ("size beyond the end", LYING, tar(header(b"x.jpg", 1 << 30))),
        ("size one block beyond the end", LYING, tar(header(b"x.jpg", 1024 + 1))),
        ("size of eight exabytes", LYING, tar(header(b"x.jpg", b"\x80" + b"\x7f" * 11))),
        ("negative size in base 256", NO_SIZE, tar(header(b"x.jpg", b"\xff" * 12))),
        ("negative size in octal", LYING, tar(header(b"x.jpg", b"-0000000777\0"))),
        ("size of letters", NO_SIZE, tar(header(b"x.jpg", b"zzzzzzzzzzz\0"))),
        ("size in digits that are not octal", NO_SIZE, tar(header(b"x.jpg", b"99999999999\0"))),
        ("size with an underscore", NO_SIZE, tar(header(b"x.jpg", b"0000_001\0"))),
        ("size with a prefix", NO_SIZE, tar(header(b"x.jpg", b"0o17\0"))),
        ("size is missing", r"skipped: empty 1", tar(header(b"x.jpg", bytes(12)) + member(b"x.txt", b"c"))),
        ("nine gigabytes that are there", r"skipped: \w+ 1", huge_member),
        ("caption of nine gigabytes", r"skipped: \w+ 1", huge_caption),
        *(
            (f"pax size {value!r}", expect, tar(pax(record(b"size", value)) + member(b"x.jpg", JPEG)))
            for value, expect in (
                (b"99999999999999999999", LYING),
                (b"-1", LYING),
                (b"1e3", NO_SIZE),
                (b"1_0", NO_SIZE),
                (b"0x10", NO_SIZE),
                ("１２".encode(), NO_SIZE),
                (b"9" * 5000, NO_SIZE),
                (b"", NO_SIZE),
            )
        ),
        ("pax record of length 0", BAD_PAX, tar(pax(b"0 path=x\n") + pair(b"x.jpg"))),
        ("pax record of length 2", BAD_PAX, tar(pax(b"2 path=x\n") + pair(b"x.jpg"))),
        ("pax record of negative length", BAD_PAX, tar(pax(b"-9 path=x\n") + pair(b"x.jpg"))),
        ("pax record longer than its header", BAD_PAX, tar(pax(b"999 path=x\n") + pair(b"x.jpg"))),
        ("pax record without =", BAD_PAX, tar(pax(b"7 path\n") + pair(b"x.jpg"))),
        ("pax record without a length", BAD_PAX, tar(pax(b"path=x\n") + pair(b"x.jpg"))),
        ("pax record of a 5000-digit length", BAD_PAX, tar(pax(b"9" * 5000 + b" path=x\n") + pair(b"x.jpg"))),
        ("pax header of two megabytes", r"error: .*extended header", tar(pax(bytes(1 << 21)) + pair(b"x.jpg"))),
        ("pax name with a null byte", r"skipped: no_caption 1", tar(pair(b"x.jpg", pax(record(b"path", b"x\0.jpg"))))),
        ("long name of two megabytes", r"error: .*extended header", tar(member(b"L", b"a" * (1 << 21), b"L"))),
        ("long name without an end", READ, tar(pair(b"x.jpg", member(b"L", b"a" * 512, b"L")))),
        (
            "a thousand long names",
            r"skipped: no_caption 1",
            tar(member(b"L", b"a.jpg\0", b"L") * 1000 + pair(b"x.jpg")),
        ),
        ("pax header of nothing", READ, tar(pax(record(b"path", b"x.jpg")))),
        ("global pax size", READ, tar(pax(record(b"size", b"9" * 18), kind=b"g") + pair(b"x.jpg"))),
        # Archives that are none, or not whole.
        ("wrong checksum", NO_HEADER, tar(header(b"x.jpg", 0, checksum=b"000000\0 "))),
        ("checksum of letters", NO_HEADER, tar(header(b"x.jpg", 0, checksum=b"checksum"))),
        ("negative checksum", NO_HEADER, tar(header(b"x.jpg", 0, checksum=b"-00001\0 "))),
        ("noise after good members", NO_HEADER, tar(bytes(range(256)) * 4)),
        ("noise", NO_HEADER, tar(bytes(range(1, 256)) * 9, good=b"")),
        ("gzip", NO_HEADER, file("00000.tar", gzip.compress(GOOD + END))),
        ("zip with ..", NO_HEADER, zipped),
        ("HTML", NO_HEADER, file("00000.tar", "<html>404 not found</html>" * 40)),
        ("empty file", r"error: .*holds no images", file("00000.tar", b"")),
        ("one byte", NO_HEADER, file("00000.tar", b"a")),
        ("zeros", r"error: .*holds no images", file("00000.tar", bytes(10240))),
        *((f"cut at {at}", LYING, cut(at)) for at in (600, 700)),
        ("cut between two members", r"warned: ", cut(2100)),
        *((f"cut at {at}", NO_HEADER, cut(at)) for at in (100, 511)),
        ("a pipe", r"error: there is no", fifo),
        ("link to nothing", r"error: there is no", dangling),
        # Captions and labels.
        *(
            (f"label {label[:12]!r}", r"skipped: bad_label 1", labelled(label))
            for label in (b"cat", b"", b"nan", b"1.5", b"0x1", b"\xff", b"9" * 5000, b"1\0", b"[1]", b"1e400")
        ),
        ("label beyond int64", r"skipped: bad_label 1", labelled(b"9" * 30)),
        ("label without a name", r"error: .*has the label 7, but only 2 class names", labelled(b"7")),
        ("negative label", r"skipped: no_caption 1", labelled(b"-3")),
        *(
            (f"JSON {what}", r"skipped: no_caption 1", with_json(content))
            for what, content in (
                ("cut short", b'{"caption": "a'),
                ("of a list", b'["caption"]'),
                ("of a number", b"7"),
                ("of noise", bytes(range(256))),
                ("empty", b""),
                ("nested 100,000 deep", b"[" * 100_000),
                ("object nested deep", b'{"caption":' * 50_000),
                ("caption a number", b'{"caption": 7}'),
                ("caption null", b'{"caption": null}'),
                ("caption NaN", b'{"caption": NaN}'),
                ("caption a list of numbers", b'{"caption": [1, 2]}'),
                ("caption of spaces", b'{"caption": " \\n "}'),
                ("number of 5000 digits", b'{"caption": ' + b"9" * 5000 + b"}"),
            )
        ),
        ("JSON caption of a lone surrogate", READ, with_json(b'{"caption": "\\ud800 x"}')),
        ("caption of null bytes", READ, tar(member(b"x.jpg", JPEG) + member(b"x.txt", b"\0" * 99))),
        ("caption that is no UTF-8", READ, tar(member(b"x.jpg", JPEG) + member(b"x.txt", b"\xff\xfe\xc0\xaf"))),
        (
            "caption of four megabytes",
            r"skipped: too_many_bytes 1",
            tar(member(b"x.jpg", JPEG) + member(b"x.txt", b"aaaa " * 800_000)),
        ),
        ("caption of one long word", READ, tar(member(b"x.jpg", JPEG) + member(b"x.txt", b"a" * 1_000_000))),
        (
            "caption of a million marks",
            READ,
            tar(member(b"x.jpg", JPEG) + member(b"x.txt", "a\u0301".encode() * 300_000)),
        ),
        ("caption of broken entities", READ, tar(member(b"x.jpg", JPEG) + member(b"x.txt", b"&amp;" * 200_000))),
        ("caption of nothing", r"skipped: no_caption 1", tar(member(b"x.jpg", JPEG) + member(b"x.txt", b"\n \n"))),
        # Files beside the shard.
        ("class names of noise", r"error: .*classnames.txt", beside("classnames.txt", bytes(range(128, 256)))),
        ("too few class names", r"error: .*has the label 1, but only 1 class names", beside("classnames.txt", b"cat")),
        ("empty class names", r"error: .*no class names", beside("classnames.txt", b"")),
        ("class name with braces", READ, beside("classnames.txt", b"{c}\n{0.__class__}")),
        *(
            (f"template {text[:24]!r}", r"error: .*template", beside("zeroshot_classification_templates.txt", text))
            for text in (
                b"no place",
                b"{c.__class__.__mro__}",
                b"{c:>9999999999}",
                b"{c!r:0<99999999999}",
                b"{c}{d}",
                b"{",
                b"{0}",
                b"{c[0]}",
                b"{c}}",
            )
        ),
        ("template of noise", r"error: .*templates.txt", beside("zeroshot_classification_templates.txt", b"\xff{c}")),
    ]
]
