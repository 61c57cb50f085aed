"""benchmarks/gpu.py, rehearsed on a CPU."""

import importlib.util
import json
import subprocess
import sys

import pytest

from pages import ROOT

SCRIPT = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--cpu"]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not for this system")
def test_the_kernels_are_judged_and_tabled(tmp_path):
    done = subprocess.run(
        [*SCRIPT, "--only", "kernels", "train", "--json", str(tmp_path / "gpu.json")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| | float16 | float32 | twice |" in done.stdout
    assert "train: not run, since --cifar names no data" in done.stdout
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["rehearsal"]
    assert [list(row)[2] for row in written["parts"]["kernels"]["rows"]] == ["float16", "float32"] * 2 + ["twice"]


def test_what_passes_its_limit_is_named_and_the_others_go_on():
    done = subprocess.run([*SCRIPT, "--only", "machine", "waits", "--limit", "0.01"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-2:] == [f"FAILED {part}: stopped after 0.01 s" for part in ("machine", "waits")]
