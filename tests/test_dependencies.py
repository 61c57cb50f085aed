"""What is installed is pinned, hashed and listed, and asks nothing of the network."""

import re
import subprocess
import sys

import pytest
import tomli

from diffclip import __main__
from pages import ROOT

HASHED = (ROOT / "requirements-hashed.txt").read_text()

# Imports everything and runs the commands, in a process that dies of the first look at the network.
OFFLINE = """
import importlib, os, pkgutil, sys, traceback

def refuse(event, arguments):
    asks = event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")
    if asks and not (event == "socket.connect" and isinstance(arguments[1], (str, bytes))):  # which is a file
        traceback.print_stack()
        os._exit(99)

sys.addaudithook(refuse)
import diffclip
for module in pkgutil.walk_packages(diffclip.__path__, "diffclip."):
    if not module.name.endswith("__main__") and module.name != "diffclip.models.attention.triton_kernels":
        importlib.import_module(module.name)
from diffclip.cli import main
main(["models"])
scenes = "scenes:test?size=16&length=16"
small = ["--training.batch-size", "8", "--training.epochs", "1", "--data.train.path", scenes]
main(["train", "quickstart", *small, "--out", "run"])
main(["eval", "run", "--data", f"scenes={scenes}", "--tasks", "zero_shot", "--out", "results", "--workers", "0"])
main(["report", "run", "results", "--out", "report", "--scenes", "0"])
"""


def test_nothing_is_asked_of_the_network(tmp_path):
    done = subprocess.run([sys.executable, "-c", OFFLINE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report" / "report.html").exists()


@pytest.mark.parametrize("stated", [None, "0"])
def test_telemetry_is_off_unless_it_is_asked_for(monkeypatch, stated):
    for name in __main__.QUIET:
        monkeypatch.delenv(name, raising=False)
        if stated is not None:
            monkeypatch.setenv(name, stated)
    monkeypatch.setattr(sys, "argv", ["diffclip", "--version"])
    __main__.main()
    assert {__main__.os.environ[name] for name in __main__.QUIET} == {stated or "1"}
    for name in __main__.QUIET:
        monkeypatch.setenv(name, "")  # so that it is put back


def test_every_dependency_is_pinned_as_in_the_constraints_and_hashed():
    pins, constraints = versions(HASHED), versions((ROOT / "constraints.txt").read_text())
    assert {
        name: pins[name] - constraints[name] for name in pins if name in constraints and pins[name] - constraints[name]
    } == {}
    entries = re.split(r"\n(?=\w)", HASHED)[1:]
    assert len(entries) >= len(pins)
    assert all("--hash=sha256:" in entry for entry in entries)
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in (*project["dependencies"], *project["optional-dependencies"]["stream"]):
        assert normal(re.match(r"[\w.-]+", text)[0]) in pins


def versions(text):
    """Package → the versions that it is pinned to."""
    found = {}
    for name, version in re.findall(r"^([\w.-]+)==([\w.]+)", text, flags=re.MULTILINE):
        found.setdefault(normal(name), set()).add(version)
    return found


def normal(name):
    return re.sub(r"[-_.]+", "-", name.lower())


def test_the_licence_of_every_dependency_is_listed():
    page = (ROOT / "docs" / "dependencies.md").read_text()
    listed = set(re.findall(r"^\| ([\w.-]+) \| \S+ \| \S", page, flags=re.MULTILINE))
    pinned = set(re.findall(r"^([\w.-]+)==\S+ (?:; .*linux|\\\\)", HASHED, flags=re.MULTILINE))
    assert pinned <= listed, pinned - listed
