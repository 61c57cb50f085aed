"""A run that is killed at any moment and started again ends as one that never was."""

import json
import random
from hashlib import sha256

import pytest
from killed import KINDS, STEPS, trained
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from diffclip.training import checkpoint
from diffclip.training.logs import WALL_CLOCK

SEED = 5


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(what a run that was never killed leaves, how often each kind of moment comes in it)."""
    folder = tmp_path_factory.mktemp("whole")
    assert trained(folder / "run", counts=folder / "counts.json") == 0
    return result(folder / "run"), json.loads((folder / "counts.json").read_text())


def result(run):
    """All that a run leaves behind, wall-clock time aside."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in line.items() if key not in WALL_CLOCK} for line in lines]
    events = []
    for path in sorted((run / "tensorboard").iterdir()):
        for event in EventFileLoader(str(path)).Load():
            names = {value.tag: value.tensor.float_val for value in event.summary.value}
            events += [(event.step, name, list(value)) for name, value in names.items() if name not in WALL_CLOCK]
    paths = sorted(run.rglob("*.safetensors"))
    states = [json.loads((path / "state.json").read_text()) for path in checkpoint.found(run)]
    return {
        "files": sorted(str(path.relative_to(run)) for path in run.rglob("*") if "tfevents" not in path.name),
        "tensors": {
            f"{path.relative_to(run)} {name}": (
                tensor.dtype,
                tensor.shape,
                sha256(tensor.numpy().tobytes()).hexdigest(),
            )
            for path in paths
            for name, tensor in load_file(path).items()
        },
        "best": (run / "checkpoints" / "best").readlink().name,
        "states": [{key: value for key, value in state.items() if key != "seconds"} for state in states],
        "metrics": metrics,
        "events": events,
    }


def test_the_run_that_was_never_killed_is_complete(whole):
    found, counts = whole
    assert [line["step"] for line in found["metrics"]] == list(range(1, STEPS + 1))
    assert [step for step, name, _ in found["events"] if name == "loss"] == list(range(1, STEPS + 1))
    assert [state["step"] for state in found["states"]] == [3, 6, 8]
    assert found["best"] == "step_00000003"
    assert all(counts[kind] > 3 for kind in KINDS), counts


def moments():
    """Five runs, each killed twice: once in every kind of moment, and four more."""
    draw = random.Random(SEED)
    kinds = [*KINDS, *draw.choices(KINDS, k=4)]
    draw.shuffle(kinds)
    return [tuple((kind, draw.random()) for kind in kinds[i : i + 2]) for i in range(0, 10, 2)]


@pytest.mark.parametrize("number", range(5))
def test_killed_twice_and_started_again(whole, tmp_path, number):
    expected, counts = whole
    for kind, share in moments()[number]:
        moment = kind, 1 + int(share * (counts[kind] - 1) * 0.6)
        print(f"seed {SEED}, run {number}: killed at {moment}")
        assert trained(tmp_path / "run", moment, workers=number % 3) == -9
    assert trained(tmp_path / "run") == 0
    found = result(tmp_path / "run")
    for what in expected:
        assert found[what] == expected[what], what
