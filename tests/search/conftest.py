"""One small model, and pictures in folders, for the tests of search and server."""

import pytest

from use_pictures import make_album, model_folder

pytest.importorskip("lancedb")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a tiny DiffCLIP."""
    return model_folder(tmp_path_factory.mktemp("models") / "diffclip")


@pytest.fixture
def album(tmp_path):
    """`make_album` of one test's own."""
    return make_album(tmp_path)
