"""How the suite runs: one thread a process, a file's tests in one process, the files that take longest first."""

import gc
import os
import socket
import sys
from pathlib import Path

import pytest

# Read when torch and NumPy are loaded; child processes inherit them. With two threads each, two workers on two cores
# take far longer: an idle thread would spin, and keep a core from the one that it waits for.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

HERE = {None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::", socket.gethostname()}


def refuse_others(event, arguments):
    """An audit hook: no test, nor what it forks, may talk to another machine."""
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        address = arguments[0 if event == "socket.getaddrinfo" else 1]
        host = address[0] if isinstance(address, tuple) else address if event == "socket.getaddrinfo" else None
        if (host.decode() if isinstance(host, bytes) else host) not in HERE:
            raise OSError(f"tests have no network: {event} {address}")


sys.addaudithook(refuse_others)

# Processes, compilers and whole runs. What begins last should be short, or one worker ends long after the other.
FIRST = (
    *("hostile/test_hostile.py", "training", "test_quickstart.py", "test_docs_commands.py", "test_sweep.py"),
    *("reporting", "models", "data"),
)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Import the tests without collecting garbage, and let no later collection look at what importing left.

    Before Python 3.11.8, code that a garbage collection runs while pytest parses a file makes the parser fail ("AST
    constructor recursion depth mismatch", python/cpython#106905).
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent

    def place(item):
        path = item.path.relative_to(here)
        return next((n for n, name in enumerate(FIRST) if name in (path.as_posix(), path.parts[0])), len(FIRST))

    items.sort(key=place)


@pytest.fixture(scope="module")
def two_threads():
    """For what could depend on how many threads share the work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
