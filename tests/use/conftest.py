"""One small model for all tests of the commands that use one."""

import pytest

from use_pictures import model_folder


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a tiny DiffCLIP."""
    return model_folder(tmp_path_factory.mktemp("models") / "diffclip")
