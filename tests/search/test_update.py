"""`diffclip index`: what is new, changed, moved or deleted costs only itself, and nothing is lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from diffclip import cli
from diffclip.errors import UserError
from diffclip.search import exif, store, update
from diffclip.search.files import scan
from diffclip.search.rows import matrix, path_of
from diffclip.search.store import Index
from diffclip.use.encoder import open_encoder
from use_pictures import encoded, model_folder, picture, with_exif


@pytest.fixture
def encoder(model):
    return open_encoder(model)


@pytest.fixture
def index(encoder, album, tmp_path):
    """An index of the album, up to date."""
    uri = str(tmp_path / "index")
    run(uri, encoder, [str(album)])
    return uri


def run(uri, encoder, folders=(), exclude=()):
    with update.open_index(uri, encoder, folders, exclude) as opened:
        return update.update(opened, encoder)


def counts(report):
    return report.encoded, report.reused, report.deleted, report.unchanged


def test_pictures_go_in_and_nothing_else(index, album, encoder):
    known = Index.open(index).known()
    names = sorted(os.path.relpath(path, album) for path in known)
    assert names == ["hills/d.jpg", "hills/high/e.png", "hills/high/é ü.webp", "sea/a.png", "sea/b.png", "sea/c.jpg"]
    rows = Index.open(index).pictures.search().limit(None).to_arrow()
    vectors = matrix(rows["vector"]).astype(np.float32)
    paths = [path_of(row) for row in rows.select(["path", "raw"]).to_pylist()]
    expected = encoder.images([encoder.pixels(Path(path).read_bytes()) for path in paths])
    np.testing.assert_allclose(vectors, expected, atol=1e-3)
    facts = {os.path.basename(row["path"]): row for row in rows.to_pylist()}
    assert (facts["c.jpg"]["width"], facts["c.jpg"]["height"]) == (30, 40)
    assert facts["c.jpg"]["camera"] == "Apple iPhone 12"
    assert facts["d.jpg"]["camera"] == "Canon EOS R5"
    assert str(facts["d.jpg"]["taken"]) == "2024-02-29 23:59:59"
    assert facts["a.png"]["taken"] is facts["a.png"]["camera"] is None


def test_each_change_costs_only_itself(index, album, encoder, monkeypatch):
    assert counts(run(index, encoder)) == (0, 0, 0, 6)
    opened = []
    read = update.read_image
    monkeypatch.setattr(update, "read_image", lambda path: (opened.append(os.path.basename(path)), read(path))[1])
    (album / "new.png").write_bytes(encoded(picture(20)))
    assert counts(run(index, encoder)) == (1, 0, 0, 6)
    (album / "sea/b.png").write_bytes(encoded(picture(21, (65, 48))))
    assert counts(run(index, encoder)) == (1, 0, 0, 6)
    (album / "sea").rename(album / "ocean")
    assert counts(run(index, encoder)) == (0, 3, 3, 4)
    os.utime(album / "new.png", (1, 1))
    shutil.copy(album / "new.png", album / "copy.png")
    assert counts(run(index, encoder)) == (0, 2, 0, 6)
    (album / "hills/d.jpg").unlink()
    assert counts(run(index, encoder)) == (0, 0, 1, 7)
    assert opened == ["new.png", "b.png", "a.png", "b.png", "c.jpg", "copy.png", "new.png"]
    paths = Index.open(index).known()
    assert set(paths) == set(scan([str(album)]).files) - {str(album / "hills/broken.jpg")}


def test_a_broken_file_is_told_once_and_tried_again_when_it_changes(album, encoder, tmp_path):
    uri = str(tmp_path / "i")
    assert list(run(uri, encoder, [str(album)]).problems.values()) in (["truncated"], ["damaged"])
    again = run(uri, encoder)
    assert (again.problems, again.known_problems) == ({}, 1)
    (album / "hills/broken.jpg").write_bytes(encoded(picture(9), "JPEG"))
    mended = run(uri, encoder)
    assert (mended.encoded, mended.known_problems) == (1, 0)
    (album / "sea/a.png").write_bytes(b"broken now")
    broken = run(uri, encoder)
    assert list(broken.problems) == [str(album / "sea/a.png")]
    assert str(album / "sea/a.png") in Index.open(uri).known()


def test_what_is_excluded_goes_out_and_stays_out(index, album, encoder):
    assert counts(run(index, encoder, exclude=["*.webp", "sea"])) == (0, 0, 4, 2)
    assert counts(run(index, encoder)) == (0, 0, 0, 2)
    assert counts(run(index, encoder, exclude=["hills/high"])) == (3, 0, 1, 1)


def test_a_folder_that_is_away_or_emptied_loses_nothing(index, album, encoder, tmp_path, capsys):
    (tmp_path / "more").mkdir()
    (tmp_path / "more/x.png").write_bytes(encoded(picture(30)))
    assert counts(run(index, encoder, [str(tmp_path / "more")])) == (1, 0, 0, 6)
    album.rename(tmp_path / "unplugged")
    assert run(index, encoder).missing == [str(album)]
    album.mkdir()
    assert run(index, encoder).missing == [str(album)]
    assert len(Index.open(index)) == 7
    cli.main(["index", encoder.source, "--to", index, "--forget", str(album)])
    shown = capsys.readouterr().out
    assert "6 pictures taken out" in shown
    assert f"{index}: 1 picture;" in shown
    with pytest.raises(SystemExit, match="is no folder of"):
        cli.main(["index", encoder.source, "--to", index, "--forget", str(tmp_path)])


def test_links_are_not_followed(album, encoder, tmp_path):
    outside = tmp_path / "secret"
    outside.mkdir()
    (outside / "s.png").write_bytes(encoded(picture(40)))
    (album / "link").symlink_to(outside)
    (album / "link.png").symlink_to(outside / "s.png")
    report = run(str(tmp_path / "i"), encoder, [str(album)])
    assert (report.encoded, report.links) == (6, 2)


def test_names_of_any_bytes(encoder, tmp_path, capfdbinary):
    folder = tmp_path / "odd"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9 'n\"\n.png")
    (folder / name).write_bytes(encoded(picture(1)))
    uri = str(tmp_path / "i")
    assert counts(run(uri, encoder, [str(folder)])) == (1, 0, 0, 0)
    assert counts(run(uri, encoder)) == (0, 0, 0, 1)
    cli.main(["search", uri, "a", "--format", "paths"])
    assert os.fsencode(folder / name) + b"\n" in capfdbinary.readouterr().out
    (folder / name).unlink()
    (folder / "b.png").write_bytes(encoded(picture(1)))
    assert counts(run(uri, encoder)) == (0, 1, 1, 0)


def test_another_model_is_refused(index, encoder, tmp_path):
    other = open_encoder(model_folder(tmp_path / "other", seed=1))
    with pytest.raises(UserError, match="features of two models do not compare"):
        run(index, other)
    with pytest.raises(UserError, match="was encoded in float32, not bfloat16"):
        run(index, open_encoder(encoder.source, "bfloat16"))


def test_two_writers_and_half_an_index(index, encoder, album, tmp_path):
    code = (
        "import fcntl, os, sys; f = os.open(sys.argv[1], os.O_RDWR); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print(1, flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, f"{index}/{store.LOCK}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    with pytest.raises(UserError, match="is being written by another process"):
        run(index, encoder)
    assert len(Index.open(index)) == 6  # reading goes on
    holder.communicate()
    shutil.rmtree(f"{index}/about.lance")
    with pytest.raises(UserError, match="half written index"):
        Index.open(index)
    with pytest.raises(UserError, match="no index and no empty folder"):
        run(str(album), encoder, [str(album)])
    with pytest.raises(UserError, match="no images in"):
        run(str(tmp_path / "i"), encoder, [str(album / "@eaDir/..") + "/sea/.."][:0] or [_empty(tmp_path)])
    assert not (tmp_path / "i").exists()


def _empty(tmp_path):
    (tmp_path / "empty").mkdir()
    return str(tmp_path / "empty")


def test_a_full_disk_is_said_in_a_line_and_what_was_committed_stays(index, album, encoder, monkeypatch):
    (album / "new.png").write_bytes(encoded(picture(20)))

    def full(self, rows):
        raise RuntimeError("lance error: LanceError(IO): Generic LocalFileSystem error: No space left on device")

    monkeypatch.setattr(Index, "add", full)
    with pytest.raises(UserError, match="No space left on device; what was committed before stays"):
        run(index, encoder)
    monkeypatch.undo()
    assert len(Index.open(index)) == 6
    assert counts(run(index, encoder)) == (1, 0, 0, 6)


def test_a_killed_run_goes_on(encoder, tmp_path):
    folder, uri = tmp_path / "many", str(tmp_path / "i")
    folder.mkdir()
    for number in range(200):
        (folder / f"{number}.png").write_bytes(encoded(picture(number)))
    code = (
        "import sys, time, diffclip.search.update as u; from diffclip.cli import main; u.COMMIT = 16\n"
        "read = u.read_image; u.read_image = lambda path: (time.sleep(0.01), read(path))[1]; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "index", encoder.source, str(folder), "--to", uri]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while time.monotonic() < until and not (os.path.isdir(f"{uri}/about.lance") and len(Index.open(uri)) >= 48):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = len(Index.open(uri))
    assert 48 <= kept < 200
    assert counts(run(uri, encoder)) == (200 - kept, 0, 0, kept)
    rows = Index.open(uri).pictures.search().select(["id"]).limit(None).to_arrow()["id"].to_pylist()
    assert len(rows) == len(set(rows)) == 200


def test_the_size_of_a_jpeg_without_exif_is_read_off_its_header(monkeypatch):
    plain = encoded(picture(1, (40, 30)), "JPEG")
    by_pillow = exif.facts_of(with_exif(picture(1, (40, 30))))
    assert exif.facts_of(plain) == by_pillow == exif.Facts(40, 30)
    assert exif.facts_of(plain[:20]) == exif.Facts()

    def refused(image):
        raise ValueError

    monkeypatch.setattr(exif.simplejpeg, "decode_jpeg_header", refused)
    assert exif.facts_of(plain) == by_pillow  # where TurboJPEG would have to warn, Pillow is asked
    monkeypatch.undo()
    monkeypatch.delattr(exif, "opened")
    assert exif.facts_of(plain) == by_pillow  # and only there
