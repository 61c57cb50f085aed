"""The compiled kernel is built once, found again, and never in the way where it cannot be built."""

import logging
import multiprocessing
import subprocess

import pytest
import torch

from diffclip.models.attention import native as native_attention


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


def _ask(start, answers):
    start.wait()
    answers.put(native_attention.available(torch.float32))


def test_processes_that_start_together_build_one_library(cache):
    context = multiprocessing.get_context("fork")  # of this process, which has looked for no library yet
    start, answers = context.Barrier(2), context.SimpleQueue()
    running = [context.Process(target=_ask, args=(start, answers)) for _ in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0, 0]
    found = [answers.get() for _ in running]
    assert found[0] == found[1]
    assert len(list(cache.iterdir())) == found[0]
