"""Parquet with wrong types and bombs in it, CSV with null bytes, folders of what is no image."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hostile_case import Case, encoded, file, written

JPEG = encoded()


def parquet(
    columns: dict[str, object], metadata: dict[bytes, bytes] | None = None, **options
) -> Callable[[Path], Path]:
    """One file of these columns, lists or arrow arrays."""

    def build(folder: Path) -> Path:
        table = pa.table(columns)
        if metadata:
            table = table.replace_schema_metadata(metadata)
        pq.write_table(table, folder / "a.parquet", **options)
        return folder / "a.parquet"

    return build


def good(rows: int = 4) -> pa.Table:
    return pa.table({"image": [JPEG] * rows, "caption": ["a caption"] * rows})


def broken(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """A good file, changed."""

    def build(folder: Path) -> Path:
        pq.write_table(good(), folder / "a.parquet")
        return written(folder, "a.parquet", change((folder / "a.parquet").read_bytes()))

    return build


def noisy(seed: int) -> Callable[[bytes], bytes]:
    """Thirty of the footer's bytes are others: everything that says what lies where."""

    def change(data: bytes) -> bytes:
        rng = np.random.default_rng(seed)
        noise = bytearray(data)
        (length,) = struct.unpack("<I", data[-8:-4])
        for at in rng.integers(len(data) - 8 - length, len(data) - 8, size=30):
            noise[at] = rng.integers(256)
        return bytes(noise)

    return change


def noisy_pages(seed: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        rng = np.random.default_rng(seed)
        noise = bytearray(data)
        for at in rng.integers(4, 60, size=6):
            noise[at] = rng.integers(256)
        return bytes(noise)

    return change


def repeated(folder: Path) -> Path:
    """3 GB of images in some kilobytes: one value of a megabyte in a dictionary, 3,000 times."""
    image = pa.DictionaryArray.from_arrays(pa.array(np.zeros(3000, np.int32)), pa.array([bytes(1_000_000)]))
    table = pa.table({"image": image, "caption": ["a caption"] * 3000})
    pq.write_table(table, folder / "a.parquet", compression="zstd", store_schema=False)
    return folder / "a.parquet"


def two_files(folder: Path) -> Path:
    pq.write_table(good(), folder / "a.parquet")
    pq.write_table(pa.table({"picture": [JPEG], "words": ["x"]}), folder / "b.parquet")
    return folder


def hub(features: object) -> dict[bytes, bytes]:
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def table(content: bytes | str, name: str = "a.csv") -> Callable[[Path], Path]:
    """A table beside one good image, x.jpg."""

    def build(folder: Path) -> Path:
        written(folder, "x.jpg", JPEG)
        return written(folder, name, content)

    return build


def listing(path: str) -> Callable[[Path], Path]:
    """A table of one good row and one whose image is `path`."""
    return table(f'filepath,caption\nx.jpg,a caption\n"{path}",another\n')


def pipe_in_table(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.jpg")
    return listing("pipe.jpg")(folder)


def huge_in_table(folder: Path) -> Path:
    written(folder, "huge.jpg", JPEG)
    os.truncate(folder / "huge.jpg", 9 << 30)
    return listing("huge.jpg")(folder)


def masks(name: str, content: bytes) -> Callable[[Path], list[str]]:
    def build(folder: Path) -> list[str]:
        written(folder, "x.jpg", JPEG)
        written(folder, name, content)
        return [str(written(folder, "a.csv", f"filepath,caption,mask\nx.jpg,a caption,{name}\n"))]

    return build


def classes(make: Callable[[Path], object]) -> Callable[[Path], Path]:
    """A folder of one class with two good images, and what `make` puts beside them."""

    def build(folder: Path) -> Path:
        written(folder, "data/cat/a.jpg", JPEG)
        written(folder, "data/cat/b.jpg", JPEG)
        make(folder / "data" / "cat")
        return folder / "data"

    return build


def links_in_a_circle(folder: Path) -> None:
    (folder / "again").symlink_to(folder)
    (folder / "x.jpg").symlink_to(folder / "x.jpg")


IMAGES, CAPTIONS = [JPEG] * 4, ["a caption"] * 4
UNREADABLE = r"error: .*(cannot be read|row group)"
NO_IMAGE = r"error: .*no column holds encoded images"
OUTSIDE = r"error: .*lies outside of .*--allow-outside"
TABLE = r"error: .*(cannot be read as a table|the first line must name)"

CASES = [
    *(
        Case(f"parquet/{name}", "data", expect, build)
        for name, expect, build in [
            *(
                (f"image of {kind}", NO_IMAGE, parquet({"image": pa.array(values), "caption": CAPTIONS}))
                for kind, values in (
                    ("integers", [1, 2, 3, 4]),
                    ("floats", [1.0, 2.0, float("nan"), 4.0]),
                    ("strings", ["a.jpg"] * 4),
                    ("lists", [[1, 2]] * 4),
                    ("structs without bytes", [{"path": "/etc/passwd"}] * 4),
                    ("structs with bytes as text", [{"bytes": "x", "path": "a"}] * 4),
                    ("nulls", pa.nulls(4)),
                )
            ),
            (
                "image null in a row",
                r"skipped: empty 1",
                parquet({"image": [*IMAGES, None], "caption": [*CAPTIONS, "x"]}),
            ),
            (
                "image struct null",
                r"skipped: empty 1",
                parquet({"image": [*({"bytes": b, "path": None} for b in IMAGES), None], "caption": [*CAPTIONS, "x"]}),
            ),
            (
                "image with a path alone",
                OUTSIDE,
                parquet(
                    {
                        "image": [
                            *({"bytes": b, "path": None} for b in IMAGES),
                            {"bytes": None, "path": "/etc/passwd"},
                        ],
                        "caption": [*CAPTIONS, "x"],
                    }
                ),
            ),
            (
                "caption of integers",
                r"error: .*neither captions nor labels",
                parquet({"image": IMAGES, "caption": [1] * 4}),
            ),
            (
                "caption of bytes",
                r"error: .*neither captions nor labels",
                parquet({"image": IMAGES, "caption": [b"x"] * 4}),
            ),
            (
                "caption of lists of lists",
                r"error: .*neither captions",
                parquet({"image": IMAGES, "caption": [[["x"]]] * 4}),
            ),
            (
                "caption of maps",
                r"error: .*neither captions",
                parquet({"image": IMAGES, "caption": pa.array([[("a", "b")]] * 4, pa.map_(pa.string(), pa.string()))}),
            ),
            (
                "caption null in a row",
                r"skipped: no_caption 1",
                parquet({"image": [*IMAGES, JPEG], "caption": [*CAPTIONS, None]}),
            ),
            (
                "caption list with nulls",
                r"skipped: no_caption 1",
                parquet({"image": [*IMAGES, JPEG], "caption": [*([c] for c in CAPTIONS), [None, ""]]}),
            ),
            (
                "caption that is no UTF-8",
                r"(read|error: |skipped: )",
                parquet(
                    {
                        "image": [JPEG],
                        "caption": pa.Array.from_buffers(
                            pa.string(), 1, [None, pa.py_buffer(struct.pack("<ii", 0, 2)), pa.py_buffer(b"\xff\xfe")]
                        ),
                    }
                ),
            ),
            *(
                (
                    f"label of {kind}",
                    r"(error: .*(label|class names|no_caption 100)|read)",
                    parquet({"image": IMAGES, "label": pa.array(values)}),
                )
                for kind, values in (
                    ("floats with NaN", [0.5, float("nan"), float("inf"), 1.0]),
                    ("lists", [[1]] * 4),
                    ("bytes", [b"\xff"] * 4),
                    ("structs", [{"a": 1}] * 4),
                    ("nulls", pa.nulls(4)),
                    ("dates", pa.array([0] * 4, pa.timestamp("ns"))),
                    ("maps", pa.array([[("a", 1)]] * 4, pa.map_(pa.string(), pa.int32()))),
                    ("large numbers", pa.array([2**64 - 1] * 4, pa.uint64())),
                    ("digits", ["9" * 5000] * 4),
                    ("digits beyond int64", ["9" * 30] * 4),
                    ("Arabic digits and signs", ["--٣"] * 4),
                    ("negative numbers", [-5] * 4),
                    ("numbers without names", [1, 2, 3, 4]),
                )
            ),
            (
                "label above the names",
                r"error: .*labels up to 9",
                parquet({"image": IMAGES, "label": [9] * 4}, hub({"label": {"_type": "ClassLabel", "names": ["cat"]}})),
            ),
            *(
                (
                    f"hub metadata: {what}",
                    r"(read|error: .*label)",
                    parquet({"image": IMAGES, "caption": CAPTIONS, "label": [0] * 4}, meta),
                )
                for what, meta in (
                    ("noise", {b"huggingface": bytes(range(256))}),
                    ("nested deep", {b"huggingface": b"[" * 100_000}),
                    ("a list", {b"huggingface": b"[1]"}),
                    ("features a list", hub([1, 2])),
                    ("features a number", hub(7)),
                    ("names a number", hub({"label": {"_type": "ClassLabel", "names": 7}})),
                    ("names of numbers", hub({"label": {"_type": "ClassLabel", "names": [1, None]}})),
                    ("names a string", hub({"label": {"_type": "ClassLabel", "names": "cat"}})),
                    ("type a list", hub({"label": {"_type": ["ClassLabel"]}})),
                )
            ),
            ("column twice", r"error: .*", lambda folder: twice(folder)),
            (
                "no rows",
                r"error: .*holds no rows",
                parquet({"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())}),
            ),
            ("no columns", r"error: .*", parquet({})),
            ("second file of other columns", r"error: .*has no column 'image'", two_files),
            ("bomb: a megabyte 3,000 times", r"error: .*row group 0", repeated),
            ("a CSV", UNREADABLE, file("a.parquet", "image,caption\nx.jpg,y\n")),
            ("empty", UNREADABLE, file("a.parquet", b"")),
            ("magic alone", UNREADABLE, file("a.parquet", b"PAR1")),
            ("encrypted magic", UNREADABLE, broken(lambda data: data[:-4] + b"PARE")),
            ("footer length 0", UNREADABLE, broken(lambda data: data[:-8] + bytes(4) + b"PAR1")),
            ("footer of 4 GB", UNREADABLE, broken(lambda data: data[:-8] + b"\xff" * 4 + b"PAR1")),
            ("footer of zeros", UNREADABLE, broken(lambda data: data[:-108] + bytes(100) + data[-8:])),
            *(
                (f"cut at {share:.0%}", UNREADABLE, broken(lambda data, share=share: data[: int(len(data) * share)]))
                for share in (0.1, 0.5, 0.9, 0.99)
            ),
            (
                "pages of zeros",
                r"(error: .*row group|skipped: )",
                broken(lambda data: data[:4] + bytes(400) + data[404:]),
            ),
            *((f"noise in the footer {seed}", r"(error: |skipped: |read)", broken(noisy(seed))) for seed in range(10)),
            *((f"noise in a page {seed}", r"(error: |skipped: |read)", broken(noisy_pages(seed))) for seed in range(6)),
        ]
    ),
    *(
        Case(f"csv/{name}", "data", expect, build)
        for name, expect, build in [
            ("null bytes in the heading", r"error: ", table(b"file\0path,cap\0tion\nx.jpg,a\n")),
            ("null bytes in a path", r"skipped: missing \d", table(b"filepath,caption\nx.jpg,a\ny\0.jpg,b\n")),
            ("null bytes in a caption", "read", table(b"filepath,caption\nx.jpg,a\0b\n")),
            ("null bytes alone", r"error: ", table(bytes(5000))),
            ("UTF-16", TABLE, table("filepath,caption\nx.jpg,a\n".encode("utf-16"))),
            ("noise", r"error: ", table(bytes((i * 7919) % 256 for i in range(5000)))),
            ("empty", TABLE, table(b"")),
            ("a heading alone", r"error: .*no rows", table(b"filepath,caption\n")),
            ("a byte order mark alone", TABLE, table(b"\xef\xbb\xbf")),
            ("a column twice", TABLE, table(b"filepath,filepath\nx.jpg,x.jpg\n")),
            ("rows that are too long", TABLE, table(b"filepath,caption\nx.jpg,a,b,c\n")),
            ("rows that are too short", TABLE, table(b"filepath,caption\nx.jpg\n")),
            (
                "a quote that never ends",
                r"warned: .*read as 1 rows, but it has 2 lines",
                table(b'filepath,caption\nx.jpg,"a\nx.jpg,b\n'),
            ),
            ("a heading that never ends", r"error: ", table(b"a" * 5_000_000)),
            ("20,000 columns", r"error: ", table(b",".join(b"c%d" % i for i in range(20_000)) + b"\n")),
            ("caption that is no UTF-8", TABLE, table(b"filepath,caption\nx.jpg,\xff\xfe\n")),
            ("no column of paths", r"error: .*no column of image paths", table("a,b\n1,2\n")),
            ("a parquet file", r"error: ", table(b"PAR1" + bytes(100) + b"PAR1")),
            ("image is /etc/passwd", OUTSIDE, listing("/etc/passwd")),
            ("image is ../../etc/passwd", OUTSIDE, listing("../" * 30 + "etc/passwd")),
            ("image is /dev/zero", OUTSIDE, listing("/dev/zero")),
            ("image is /dev/stdin", OUTSIDE, listing("/dev/stdin")),
            ("image is /proc/self/mem", OUTSIDE, listing("/proc/self/mem")),
            ("image is a folder", r"skipped: missing \d", listing(".")),
            ("image is a pipe", r"skipped: missing \d", pipe_in_table),
            ("image of nine gigabytes", r"skipped: \w+ \d", huge_in_table),
            ("image name of 10,000 letters", r"skipped: missing \d", listing("a" * 10_000)),
            ("image name of nothing", r"skipped: missing \d", listing("")),
            *(
                (f"label {value[:40]!r}", r"(error: |skipped: |read)", table(f"filepath,label\nx.jpg,{value}\n"))
                for value in ("9" * 5000, "9" * 30, "-9", "٣", "--3", "", "nan")
            ),
            ("TSV with null bytes", r"skipped: missing \d", table(b"filepath\tcaption\nx.jpg\ta\n\0\tb\n", "a.tsv")),
            ("unknown ending", r"error: .*no known format", table(b"x", "a.exe")),
        ]
    ),
    *(
        Case(f"folder/{name}", "data", expect, build)
        for name, expect, build in [
            ("text named as an image", r"skipped: not_an_image \d", classes(lambda f: written(f, "x.jpg", "no image"))),
            ("links in a circle", r"skipped: missing \d", classes(links_in_a_circle)),
            ("link to nothing", r"skipped: missing \d", classes(lambda f: (f / "x.jpg").symlink_to("/nonexistent"))),
            ("link to /dev/zero", r"skipped: missing \d", classes(lambda f: (f / "x.jpg").symlink_to("/dev/zero"))),
            ("pipe named as an image", r"skipped: missing \d", classes(lambda f: os.mkfifo(f / "x.jpg"))),
            ("folder named as an image, which holds none", "read", classes(lambda f: (f / "x.jpg").mkdir())),
            (
                "name of control characters",
                r"skipped: not_an_image \d",
                classes(lambda f: written(f, "\x1b[2J\n.jpg", "x")),
            ),
            (
                "name that is no UTF-8",
                r"skipped: not_an_image \d",
                classes(lambda f: written(f, os.fsdecode(b"\xff\xfe.jpg"), "x")),
            ),
            ("class name that is no UTF-8", "read", classes(lambda f: f.rename(f.with_name(os.fsdecode(b"\xff\xfe"))))),
            ("class name with braces", "read", classes(lambda f: f.rename(f.with_name("{0.__class__}")))),
            ("empty", r"error: .*holds no parquet", lambda folder: (folder / "data").mkdir() or folder / "data"),
        ]
    ),
]


def twice(folder: Path) -> Path:
    """Two columns of one name."""
    same = pa.Table.from_arrays(
        [pa.array(IMAGES), pa.array(IMAGES), pa.array(CAPTIONS)], names=["image", "image", "caption"]
    )
    pq.write_table(same, folder / "a.parquet")
    return folder / "a.parquet"
