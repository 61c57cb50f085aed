"""What lies beside images is not believed: names, masks and labels are compared with the images."""

import io
import json
import logging
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffclip import cli
from diffclip.data.sources import open_source
from diffclip.errors import UserError


def image(path, size=(6, 4), colour=0, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def shard(folder, labels):
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as archive:
        for number, label in enumerate(labels):
            file = io.BytesIO()
            Image.new("L", (4, 4), number).save(file, "PNG")
            for suffix, content in (("png", file.getvalue()), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{number:03d}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return folder


@pytest.mark.parametrize("file", ["classnames.txt", "zeroshot_classification_templates.txt"])
def test_an_empty_line_among_names_shifts_none(tmp_path, file):
    folder = shard(tmp_path / "s", [0, 1, 2])
    (folder / "classnames.txt").write_text("a\nb\nc\n\n")
    (folder / file).write_text("a {c}\n\nb {c}\n")
    with pytest.raises(UserError, match=f"{file} line 2 is empty"):
        open_source(str(folder))


def test_a_form_feed_in_a_name_ends_no_line(tmp_path):
    folder = shard(tmp_path / "s", [0, 1])
    (folder / "classnames.txt").write_text("a\x0cb\r\nc\u2028d\r\n")
    assert open_source(str(folder)).classnames == ("a\x0cb", "c\u2028d")


def test_folders_named_in_another_order_are_refused(tmp_path):
    for name in ("big_cat", "dog", "eel"):
        image(tmp_path / name / "a.png")
    with pytest.raises(UserError, match=r"in another order than its own: 'Dog' is given for class 0, 'big_cat'"):
        open_source(str(tmp_path), classnames=("Dog", "big cat", "eel"))
    assert open_source(str(tmp_path), classnames=("Big cat", "dog", "eel")).classnames[0] == "Big cat"
    assert open_source(str(tmp_path), classnames=("x", "y", "z")).classnames == ("x", "y", "z")


def in_a_tar(folder):
    (shard(folder, [0, 1, 2]) / "classnames.txt").write_text("big cat\ndog\neel\n")


def in_parquet(folder):
    features = {"label": {"names": ["big cat", "dog", "eel"], "_type": "ClassLabel"}}
    table = pa.table({"image": [b"x"] * 3, "label": [0, 1, 2]})
    folder.mkdir()
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
        folder / "0.parquet",
    )


@pytest.mark.parametrize("make", [in_a_tar, in_parquet])
def test_names_in_another_order_than_a_files_own_are_refused(tmp_path, make):
    make(tmp_path / "d")
    with pytest.raises(
        UserError, match=r"d: class names are in another order than its own: 'dog' is given for class 0"
    ):
        open_source(str(tmp_path / "d"), classnames=("dog", "big cat", "eel"))
    with pytest.raises(UserError, match="4 class names are given, but it has 3 classes"):
        open_source(str(tmp_path / "d"), classnames=("dog", "big cat", "eel", "fox"))
    assert open_source(str(tmp_path / "d")).classnames == ("big cat", "dog", "eel")
    assert open_source(str(tmp_path / "d"), classnames=("x", "y", "z")).classnames == ("x", "y", "z")


def test_empty_and_repeated_names(tmp_path, caplog):
    for name in ("a", "b"):
        image(tmp_path / name / "a.png")
    with pytest.raises(UserError, match="class 1 of 2 has an empty name"):
        open_source(str(tmp_path), classnames=("x", " "))
    with caplog.at_level(logging.WARNING):
        open_source(str(tmp_path), classnames=("x", "x"))
    assert "several classes have the same name, which no text can tell apart: x" in caplog.text


def verify(path, capsys):
    try:
        cli.main(["data", "verify", str(path), "--workers", "1"])
        code = None
    except SystemExit as ended:
        code = ended.code
    return capsys.readouterr().out, code


def test_masks_are_looked_at(tmp_path, capsys):
    rows = []
    masks = {"good": ((6, 4), 255), "empty": ((6, 4), 0), "other": ((4, 6), 1), "gone": None, "text": None}
    for number, (name, made) in enumerate(masks.items()):
        image(tmp_path / f"{name}.png", colour=number)
        if made:
            image(tmp_path / "masks" / f"{name}.png", *made)
        rows.append(f"{name}.png,a {name},masks/{name}.png")
    (tmp_path / "masks" / "text.png").write_text("no image")
    (tmp_path / "masks.csv").write_text("\n".join(["filepath,caption,mask", *rows]))
    out, code = verify(tmp_path, capsys)
    for told in ("empty_mask: 1", "mask_of_another_size: 1", "unreadable_mask: 2"):
        assert told in out
    assert "4 of 5 are wrong" in code


def test_names_without_an_image_are_told(tmp_path, capsys):
    folder = shard(tmp_path / "s", [0, 2])
    (folder / "classnames.txt").write_text("ant\nbee\ncow\ndog\n")
    out, code = verify(folder, capsys)
    assert "names       2 of 4 have no image: bee, dog" in out
    assert code is None


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("t.csv", 'filepath,caption\n0.png,"a\n1.png,b\n2.png,c"\n3.png,d\n', "read as 2 rows, but it has 4 lines"),
        ("t.tsv", 'filepath\tcaption\n0.png\ta\n1.png\t"b\n2.png\tc\n', "read as 2 rows, but it has 3 lines"),
        ("t.csv", 'filepath,caption\n0.png,"two\nlines"\n', "read as 1 rows, but it has 2 lines"),
        ("t.tsv", 'filepath\tcaption\n0.png\t"a" b\n1.png\tc\n', "a strict reader stops near line 2"),
        ("t.csv", 'filepath,caption\n0.png,"a \\"b\\" c"\n1.png,d\n', "a strict reader stops near line 2"),
        ("t.csv", 'filepath,caption\n0.png,"a, ""b"""\n\n1.png,6" pipe\n', ""),
        ("t.csv", "\ufefffilepath,caption\r\n0.png,a\r\n1.png,b", ""),
        ("t.csv", "filepath,caption\r0.png,a\x0cb\u2028c\r1.png,b\r", ""),
    ],
)
def test_a_table_that_another_reader_cuts_otherwise_is_told_of(tmp_path, caplog, name, text, told):
    for number in range(4):
        image(tmp_path / f"{number}.png", colour=number)
    (tmp_path / name).write_text(text, newline="")
    open_source(str(tmp_path / name))
    assert (told in caplog.text) if told else not caplog.text
