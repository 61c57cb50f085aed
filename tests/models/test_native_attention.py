"""The compiled kernel is built once, found again, and never in the way where it cannot be built."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffclip.models import native_attention


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and no memory of a library found before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native_attention._library.cache_clear()
    yield tmp_path / "diffclip"
    native_attention._library.cache_clear()


def needs_compiler():
    if not native_attention.available(torch.float32):
        pytest.skip("no C++ compiler here, or a processor without AVX-512")


def test_is_built_once(cache, monkeypatch):
    needs_compiler()
    (built,) = cache.iterdir()
    native_attention._library.cache_clear()
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("compiled again"))
    assert native_attention.available(torch.float32)
    assert list(cache.iterdir()) == [built]
    assert not native_attention.available(torch.float64)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "no-such-compiler"}, "there is no C++ compiler"),
        ({"CXX": "false"}, "failed: no message"),
        ({"XDG_CACHE_HOME": "/proc/nowhere"}, "No such file or directory"),
        ({"DIFFCLIP_NATIVE": "0"}, None),
    ],
)
def test_does_without(cache, monkeypatch, caplog, environment, reason):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.INFO):
        assert not native_attention.available(torch.float32)
    assert [reason in record.getMessage() for record in caplog.records] == ([True] if reason else [])
    assert not cache.exists() or not list(cache.iterdir())


def test_processes_that_start_together_build_one_library(cache):
    code = "import torch; from diffclip.models import native_attention as n; print(n.available(torch.float32))"
    source = str(Path(native_attention.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": source}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate()[0].strip() for process in running]
    assert answers[0] == answers[1]
    assert len(list(cache.iterdir())) == (answers[0] == "True")
