"""The compiled kernel is built once, found again, and never in the way where it cannot be built."""

import ctypes
import logging
import multiprocessing
import os
import subprocess
import sys

import pytest
import torch

from diffclip import durable
from diffclip.models.attention import native as native_attention


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and no memory of a library found before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native_attention._library.cache_clear()
    yield tmp_path / "diffclip" / "kernel"
    native_attention._library.cache_clear()


def needs_compiler():
    if not native_attention.available(torch.float32):
        pytest.skip("no C++ compiler here")


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
        ({"CXX": "nice false"}, "failed: no message"),
        ({"CXX": "'g++"}, "CXX is no command"),
        ({"XDG_CACHE_HOME": "/proc/nowhere"}, "No such file or directory"),
        ({"DIFFCLIP_NATIVE": "0"}, None),
    ],
)
def test_does_without(cache, monkeypatch, caplog, environment, reason):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        assert not native_attention.available(torch.float32)
    assert [record.levelno for record in caplog.records] == ([logging.WARNING] if reason else [])
    assert all(reason in message and "1.4 times as long" in message for message in caplog.messages)
    assert not cache.exists() or not list(cache.iterdir())


def test_a_command_of_several_words_and_any_umask(cache, monkeypatch):
    needs_compiler()
    monkeypatch.setenv("CXX", "nice -n 1 g++")
    before = os.umask(0)
    try:
        for _ in range(2):  # built, found
            native_attention._library.cache_clear()
            assert native_attention.available(torch.float32)
    finally:
        os.umask(before)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in cache.iterdir()] == [0o700] * 2


def flipped(content):
    return content[:3000] + bytes([content[3000] ^ 1]) + content[3001:]


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:5000], lambda content: b""])
def test_a_damaged_library_is_never_loaded_but_built_again(cache, caplog, damage):
    needs_compiler()
    (built,) = cache.iterdir()
    whole = built.read_bytes()
    built.unlink()  # this process has it in its memory
    built.write_bytes(damage(whole))
    built.chmod(0o700)
    assert native_attention._built() == built
    assert len(built.read_bytes()) == len(whole)
    (message,) = caplog.messages
    assert f"{built} is damaged: it is compiled again" in message


def test_a_library_that_others_could_have_written_is_never_loaded(cache, monkeypatch, caplog):
    needs_compiler()
    (built,) = cache.iterdir()
    monkeypatch.setattr(ctypes, "CDLL", lambda path: pytest.fail(f"{path} was loaded"))

    def refused(where):
        native_attention._library.cache_clear()
        caplog.clear()
        assert not native_attention.available(torch.float32)
        assert [f"others may write to {where}:" in message for message in caplog.messages] == [True], caplog.messages

    for place, safe in ((built, 0o700), (cache, 0o700), (cache.parent, 0o755)):
        for mode in (0o777, 0o722) if place == cache.parent else (0o777, 0o722, 0o720):
            place.chmod(mode)
            refused(place)
        place.chmod(safe)
    (cache.parent / "open").mkdir()
    (cache.parent / "open").chmod(0o777)
    cache.rename(cache.parent / "open" / "kernel")
    cache.symlink_to(cache.parent / "open" / "kernel")
    refused(cache.parent / "open")
    (cache.parent / "open").chmod(0o1777)  # sticky, as /tmp is
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent.parent))
    native_attention._library.cache_clear()
    assert native_attention.available(torch.float32)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_library_or_a_folder_of_another_user_is_never_loaded(cache, monkeypatch, caplog):
    needs_compiler()
    monkeypatch.setattr(ctypes, "CDLL", lambda path: pytest.fail(f"{path} was loaded"))
    for place in (*cache.iterdir(), cache, cache.parent):
        os.chown(place, 65534, 65534)
        native_attention._library.cache_clear()
        assert not native_attention.available(torch.float32)
        os.chown(place, 0, 0)
    assert len(caplog.messages) == 3


def test_a_user_without_a_home_has_a_cache(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert durable.cache_folder().is_absolute()


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


HELD = """
import torch
from diffclip.models.attention import choice, native
from diffclip.models.attention.ops import differential_attention

assert (choice.processor(), native._target()) == ("AVX2", "-march=x86-64-v3")
assert native.available(torch.float32) and not native.available(torch.bfloat16)
for batch, heads, tokens, width, causal in ((2, 4, 197, 64, False), (3, 2, 33, 64, True), (1, 2, 577, 32, False)):
    inputs = [
        torch.randn(batch, h, tokens, w, dtype=torch.float64)
        for h, w in ((heads, width), (heads, width), (heads // 2, 2 * width))
    ]
    inputs.append(torch.tensor(0.7, dtype=torch.float64))
    found = []
    for dtype, backend in ((torch.float64, "eager"), (torch.float32, "fused")):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        out = differential_attention(*leaves, is_causal=causal, backend=backend)
        grads = torch.autograd.grad((out * torch.linspace(0, 1, 2 * width)).sum(), leaves)
        found.append([out, *grads])
    for exact, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine.double(), exact, atol=1e-5, rtol=1e-4)
choice.rows("differential", "cpu")  # nobody computes in bfloat16 here
print("before", flush=True)
q, v = torch.ones(1, 2, 3, 4).bfloat16(), torch.ones(1, 1, 3, 8).bfloat16()
differential_attention(q, q, v, 0.5)
"""


def test_gives_the_same_without_avx512():
    """PyTorch, oneDNN and the compiler held to AVX2: what most laptops have."""
    needs_compiler()
    levels = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", HELD],
        env=os.environ | levels,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    before, _, after = done.stdout.partition("before")
    assert "bfloat16" not in before
    assert "does not multiply bfloat16" in after
