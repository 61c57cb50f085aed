"""One small model, and pictures in folders, for the tests of search and server."""

import pytest

from use_pictures import encoded, model_folder, picture, with_exif

pytest.importorskip("lancedb")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a tiny DiffCLIP."""
    return model_folder(tmp_path_factory.mktemp("models") / "diffclip")


@pytest.fixture
def album(tmp_path):
    """Six pictures in two folders, hidden and broken files, leftovers."""
    folder = tmp_path / "it's an album"
    for name in ("sea", "hills/high"):
        (folder / name).mkdir(parents=True)
    (folder / "sea/a.png").write_bytes(encoded(picture(1)))
    (folder / "sea/b.png").write_bytes(encoded(picture(2, (64, 48))))
    phone = {"orientation": 6, "taken": "2023:07:01 10:00:00", "camera": ("Apple", "iPhone 12")}
    (folder / "sea/c.jpg").write_bytes(with_exif(picture(3, (40, 30)), **phone))
    canon = {"taken": "2024:02:29 23:59:59", "camera": ("Canon", "Canon EOS R5")}
    (folder / "hills/d.jpg").write_bytes(with_exif(picture(4, (40, 30)), **canon))
    (folder / "hills/high/e.png").write_bytes(encoded(picture(5)))
    (folder / "hills/high/é ü.webp").write_bytes(encoded(picture(6), "WEBP", lossless=True))
    (folder / "sea/.hidden.png").write_bytes(encoded(picture(7)))
    (folder / "sea/._a.png").write_bytes(b"a resource fork")
    (folder / "sea/notes.txt").write_text("no picture")
    (folder / "@eaDir").mkdir()
    (folder / "@eaDir/thumb.jpg").write_bytes(encoded(picture(8), "JPEG"))
    (folder / "hills/broken.jpg").write_bytes(encoded(picture(9), "JPEG")[:300])
    return folder
