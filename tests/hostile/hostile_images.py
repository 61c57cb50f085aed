"""Images inside a shard of good ones: cut short, larger than they say, of formats that are not read."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

from hostile_case import Case, encoded
from hostile_tars import member, tar
from PIL import Image


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    """A PNG chunk; `crc` replaces the right checksum."""
    return (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)
    )


def png(
    width: int, height: int, rows: bytes = b"", *, bits: int = 8, color: int = 0, before: bytes = b"", end: bool = True
) -> bytes:
    """A PNG of such a header whose image data are `rows`, deflated."""
    start = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(rows)) if rows else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + before + data + (chunk(b"IEND", b"") if end else b"")


def sized_jpeg(width: int, height: int) -> bytes:
    """A JPEG whose header states another size."""
    data = bytearray(encoded("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def many_scans(count: int) -> bytes:
    """A progressive JPEG of 4000 × 4000 whose last scan comes `count` times: each costs a pass over the image."""
    data = encoded("JPEG", (4000, 4000), "L", progressive=True, quality=30)
    starts = [i for i in range(len(data) - 1) if data[i : i + 2] == b"\xff\xda"]
    end = data.rindex(b"\xff\xd9")
    return data[:end] + data[starts[-1] : end] * count + b"\xff\xd9"


def webp(width: int, height: int) -> bytes:
    """An extended WebP whose canvas states this size."""
    vp8x = (
        b"VP8X"
        + struct.pack("<I", 10)
        + bytes(4)
        + (width - 1).to_bytes(3, "little")
        + (height - 1).to_bytes(3, "little")
    )
    body = b"WEBP" + vp8x + encoded("WEBP", lossless=True)[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif(width: int, height: int) -> bytes:
    data = bytearray(encoded("GIF", mode="P"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def bmp(width: int, height: int, bits: int = 24, compression: int = 0) -> bytes:
    data = bytearray(encoded("BMP"))
    data[18:34] = struct.pack("<iiHHI", width, height, 1, bits, compression)
    return bytes(data)


def tiff(entries: dict[int, tuple[int, int, int]], tail: bytes = b"", following: int = 0) -> bytes:
    """A little-endian TIFF of one directory: tag → (type, count, value)."""
    rows = b"".join(struct.pack("<HHII", tag, *value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + struct.pack("<I", following) + tail


def grey_tiff(width: int, height: int, **changes: tuple[int, int, int]) -> bytes:
    tags = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, 1, 8),
        259: (3, 1, 1),
        262: (3, 1, 1),
        273: (4, 1, 8),
        277: (3, 1, 1),
        278: (4, 1, height),
        279: (4, 1, 64),
    }
    return tiff(tags | {int(tag[1:]): value for tag, value in changes.items()}, bytes(64))


def in_shard(data: bytes | Callable[[], bytes]) -> Callable:
    def build(folder):
        content = data() if callable(data) else data
        return tar(member(b"x.jpg", content) + member(b"x.txt", b"another caption"))(folder)

    return build


def cuts(format: str, shares: tuple[float, ...], **options: object) -> list[tuple[str, str, bytes]]:
    data = encoded(format, (64, 64), **options)
    return [
        (f"{format}{' '.join(['', *options])} cut at {share:.0%}", BAD, data[: int(len(data) * share)])
        for share in shares
    ]


def deflated(size: int) -> bytes:
    """`size` zeros, a whole number of megabytes, as zlib packs them: one megabyte packed, and the same bytes again."""
    packer = zlib.compressobj(9, wbits=-15)
    megabyte = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = size % 65521 << 16 | 1  # Adler-32 of zeros
    return b"\x78\xda" + megabyte * (size >> 20) + packer.flush() + struct.pack(">I", checksum)


JPEG, PNG, WEBP = encoded("JPEG"), encoded("PNG"), encoded("WEBP")
# The bomb that a small image's data inflate to: 1.5 GB where one row of 4 pixels is wanted.
BOMB = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0))
BAD = r"skipped: (truncated|damaged|not_an_image|too_many_pixels|empty|unsupported_mode) 1"
LARGE = r"skipped: (too_many_pixels|damaged|not_an_image) 1"
FOREIGN = r"skipped: not_an_image 1"
EITHER = r"(skipped: \w+ 1|read)"  # some versions of Pillow read what there is

# Name, what comes of it, content.
IMAGES: list[tuple[str, str, bytes | Callable[[], bytes]]] = [
    *cuts("JPEG", (0.01, 0.1, 0.3, 0.5, 0.7, 0.9)),
    *cuts("JPEG", (0.95,), progressive=True),
    *cuts("PNG", (0.01, 0.1, 0.3, 0.5, 0.7)),
    *cuts("WEBP", (0.01, 0.1, 0.3, 0.5, 0.7, 0.95)),
    *cuts("WEBP", (0.5, 0.9), lossless=True),
    *cuts("GIF", (0.1, 0.3), mode="P"),
    *cuts("BMP", (0.01, 0.3, 0.9)),
    *cuts("TIFF", (0.001, 0.01, 0.9)),
    ("nothing", r"skipped: empty 1", b""),
    ("JPEG start alone", BAD, b"\xff\xd8"),
    ("JPEG start and end", BAD, b"\xff\xd8\xff\xd9"),
    ("JPEG of 65535 × 65535", LARGE, sized_jpeg(65535, 65535)),
    ("JPEG of 0 × 0", BAD, sized_jpeg(0, 0)),
    ("JPEG of 9000 × 1000", EITHER, sized_jpeg(9000, 1000)),
    ("JPEG of 2000 scans", r"skipped: damaged 1", lambda: many_scans(2000)),
    ("JPEG segment length 0", EITHER, b"\xff\xd8\xff\xe0\0\0" + JPEG[4:]),
    ("JPEG segment length beyond the end", BAD, b"\xff\xd8\xff\xe0\xff\xff" + JPEG[4:60]),
    ("JPEG of markers", BAD, b"\xff\xd8" + b"\xff\xff" * 50_000),
    ("JPEG without tables", BAD, JPEG[:20] + JPEG[JPEG.index(b"\xff\xc0") :]),
    ("JPEG whose tables are noise", EITHER, JPEG.replace(b"\xff\xdb\0\x43", b"\xff\xdb\xff\x43")),
    ("PNG of 2147483647 × 2147483647", LARGE, png(2**31 - 1, 2**31 - 1, bytes(9))),
    ("PNG of 65536 × 65536", LARGE, png(65536, 65536, bytes(9))),
    ("PNG of 65536 × 65536 in one bit", LARGE, png(65536, 65536, bytes(9), bits=1)),
    ("PNG of 0 × 0", BAD, png(0, 0, bytes(9))),
    ("PNG of 100000 × 600 and no data", BAD, png(100_000, 600)),
    ("PNG with too few rows", EITHER, png(64, 64, bytes(65 * 3))),
    (
        "PNG with 1 GB of rows too many",
        EITHER,
        lambda: BOMB + chunk(b"IDAT", deflated(1 << 30)) + chunk(b"IEND", b""),
    ),
    ("PNG text of 1 GB", BAD, lambda: png(4, 4, bytes(20), before=chunk(b"zTXt", b"a\0\0" + deflated(1 << 30)))),
    (
        "PNG profile of 1 GB",
        EITHER,
        lambda: png(4, 4, bytes(20), before=chunk(b"iCCP", b"a\0\0" + deflated(1 << 30))),
    ),
    ("PNG of bit depth 3", BAD, png(4, 4, bytes(20), bits=3)),
    ("PNG of colour type 9", BAD, png(4, 4, bytes(20), color=9)),
    ("PNG palette without one", EITHER, png(4, 4, bytes(20), color=3)),
    ("PNG with a wrong checksum", BAD, PNG[:40] + bytes([PNG[40] ^ 1]) + PNG[41:]),
    ("PNG chunk longer than the file", BAD, PNG[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT" + bytes(9)),
    ("PNG without end", EITHER, png(4, 4, bytes(20), end=False)),
    ("PNG without header", BAD, b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b"")),
    (
        "animated PNG of 2³¹ frames",
        EITHER,
        png(4, 4, bytes(20), before=chunk(b"acTL", b"\x7f\xff\xff\xff\0\0\0\0")),
    ),
    ("PNG of 5000 empty chunks", EITHER, png(4, 4, bytes(20), before=chunk(b"tEXt", b"a\0") * 5000)),
    ("PNG filter 9", BAD, png(4, 4, b"\x09" + bytes(19))),
    ("WebP canvas of 16384 × 16384", LARGE, webp(16384, 16384)),
    ("WebP canvas of 2²⁴ × 2²⁴", LARGE, webp(1 << 24, 1 << 24)),
    ("WebP length 0", BAD, b"RIFF" + bytes(4) + WEBP[8:]),
    ("WebP length 4 GB", BAD, b"RIFF" + b"\xff" * 4 + WEBP[8:]),
    ("WebP with no picture", BAD, b"RIFF" + struct.pack("<I", 4) + b"WEBP"),
    ("GIF of 65535 × 65535", LARGE, gif(65535, 65535)),
    ("GIF of 0 × 0", EITHER, gif(0, 0)),
    ("GIF of endless comments", BAD, encoded("GIF", mode="P")[:13] + b"\x21\xfe\xff" + b"a" * 100_000),
    ("BMP of 2³¹ × 2³¹", LARGE, bmp(2**31 - 1, 2**31 - 1)),
    ("BMP of negative height", BAD, bmp(16, -(2**31))),
    ("BMP of 0 bits", BAD, bmp(16, 16, 0)),
    ("BMP of 8000 × 8000 run lengths", BAD, bmp(8000, 8000, 8, 1)),
    ("TIFF of 2³² × 2³²", LARGE, grey_tiff(2**32 - 1, 2**32 - 1)),
    ("TIFF strip beyond the end", BAD, grey_tiff(8, 8, t273=(4, 1, 1 << 31))),
    ("TIFF of a billion strips", BAD, grey_tiff(8, 8, t273=(4, 1 << 30, 8), t279=(4, 1 << 30, 8))),
    ("TIFF directory that loops", EITHER, tiff({256: (4, 1, 8)}, following=8)),
    ("TIFF directory beyond the end", BAD, b"II*\0\xff\xff\xff\x7f"),
    ("TIFF tag of 2³² values", EITHER, grey_tiff(8, 8, t270=(2, 2**32 - 1, 8))),
    ("TIFF of 200 samples", BAD, grey_tiff(8, 8, t277=(3, 1, 200))),
    ("TIFF of floats", BAD, lambda: encoded("TIFF", mode="F")),
    ("LAB", r"skipped: unsupported_mode 1", lambda: lab()),
    ("EPS", FOREIGN, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/diffclip_hostile) (w) file\n"),
    ("PDF", FOREIGN, b"%PDF-1.4\n1 0 obj <</OpenAction 2 0 R>>"),
    ("SVG", FOREIGN, b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
    ("SVG of entities", FOREIGN, b'<!DOCTYPE x [<!ENTITY a "aaa"><!ENTITY b "&a;&a;">]><svg>&b;</svg>'),
    ("HTML", FOREIGN, b"<html>429 Too Many Requests</html>"),
    ("icon", FOREIGN, encoded("ICO")),
    ("JPEG 2000 box", FOREIGN, b"\0\0\0\x0cjP  \r\n\x87\n"),
    ("X bitmap", FOREIGN, b"#define a_width 99999\n#define a_height 99999\nstatic char a[] = {"),
    ("portable pixmap of 10¹⁰ pixels", FOREIGN, b"P6 100000 100000 255\n"),
    ("ELF", FOREIGN, b"\x7fELF" + bytes(200)),
    ("zip", FOREIGN, b"PK\x03\x04" + bytes(200)),
    ("noise", FOREIGN, bytes((i * 7919) % 256 for i in range(5000))),
    ("zeros", FOREIGN, bytes(5000)),
    ("JPEG with a zip behind", "read", JPEG + b"PK\x03\x04" + bytes(99)),
    ("one pixel", "read", encoded("PNG", (1, 1))),
    ("60000 × 1 pixels", "read", encoded("PNG", (60_000, 1))),
    ("1 × 60000 pixels", "read", encoded("JPEG", (1, 60_000))),
    ("33 million transparent pixels", "read", lambda: transparent()),
]
CASES = [Case(f"image/{name}", "data", expect, in_shard(data)) for name, expect, data in IMAGES]


def lab() -> bytes:
    stream = io.BytesIO()
    Image.new("LAB", (8, 8)).save(stream, "TIFF")
    return stream.getvalue()


def transparent() -> bytes:
    """Half as large as an image may be, in a palette with a transparent entry: a hundred kilobytes."""
    stream = io.BytesIO()
    Image.new("P", (8192, 4096)).save(stream, "PNG", transparency=0, compress_level=1)
    return stream.getvalue()
