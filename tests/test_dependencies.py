"""What is installed is pinned, hashed and listed, and asks nothing of the network."""

import json
import os
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


# The environment in which a process of the command, or of torchrun, begins to load torch.
FRESH = """
import json, os, sys
from diffclip import __main__

class Torch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(json.dumps({name: os.environ.get(name) for name in __main__.SETTINGS}), flush=True)
            os._exit(0)

assert "torch" not in sys.modules
sys.meta_path.insert(0, Torch())
sys.argv = ["diffclip", "models"]
__main__._member(0) if "RANK" in os.environ else __main__.main()
"""


@pytest.mark.parametrize("ranks", [{}, {"RANK": "0", "WORLD_SIZE": "1"}])
@pytest.mark.parametrize("stated", [None, "active"])
def test_the_environment_is_set_unless_the_user_has_set_it(stated, ranks):
    """Telemetry is off, and threads sleep while they wait."""
    environment = {name: value for name, value in os.environ.items() if name not in __main__.SETTINGS}
    environment |= {name: stated for name in __main__.SETTINGS if stated}
    done = subprocess.run([sys.executable, "-c", FRESH], env=environment | ranks, capture_output=True, text=True)
    assert json.loads(done.stdout) == {name: stated or value for name, value in __main__.SETTINGS.items()}, done.stderr


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
