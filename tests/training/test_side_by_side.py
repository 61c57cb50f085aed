"""Trainings side by side: shown together, ended together, and nothing lost."""

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pieces
import pytest
from rich.console import Console

from diffclip.errors import UserError
from diffclip.terminal import Terminal
from diffclip.training import checkpoint, side_by_side
from diffclip.training.side_by_side import Team

pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.fixture(scope="module")
def team(two_threads):
    with Team(2, Terminal()) as team:
        yield team


def saved(run):
    """The step of the newest checkpoint of a run; None where there is none."""
    kept = checkpoint.found(run)
    return int(kept[-1].name.removeprefix("step_")) if kept else None


def wait_until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def trains(run):
    path = run / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


def test_each_has_a_process_and_its_share_and_all_is_shown(team, capsys, caplog):
    items = {name: name for name in pieces.NAMES}
    places = team.run(pieces.show, items)
    assert set(places) == set(pieces.NAMES)
    assert len({process for process, _ in places.values()} | {os.getpid()}) == 3
    assert {threads for _, threads in places.values()} == {1}
    again = team.run(pieces.show, items)
    assert again == places
    shown = capsys.readouterr()
    for name in pieces.NAMES:
        assert shown.out.count(f"a result of {name}\n") == 2
        assert shown.err.count(f"a note of {name}\n") == 2
        assert shown.err.count(f"{name} step 3/3  loss 1.250") == 2
        assert caplog.messages.count(f"{name}: a warning of {name}") == 2


def test_on_a_terminal_there_is_a_bar_of_80_columns_for_each(team, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(
        side_by_side, "Terminal", lambda stderr: Console(file=out, width=80, force_terminal=True, color_system=None)
    )
    team.run(pieces.show, {name: f"{name}_with_a_name_that_is_far_too_long" for name in pieces.NAMES})
    lines = [line for line in out.getvalue().replace("\r", "\n").splitlines() if "3/3" in line]
    assert {line.split("…")[0].strip() for line in lines} >= {"one_with_a_name_t", "another_with_a_na"}
    assert "loss 1.250" in lines[-1]
    assert max(len(line) for line in lines) <= 80 + len("\x1b[2K\x1b[1A\x1b[2K")


def test_one_process_is_this_one(capsys):
    with Team(1, Terminal()) as team:
        places = team.run(pieces.show, {name: name for name in pieces.NAMES})
    assert team.threads == 0
    assert {process for process, _ in places.values()} == {os.getpid()}
    assert "a result of one" in capsys.readouterr().out


def test_more_pieces_than_processes_are_dealt_out_as_these_become_free(team, capsys):
    done = []
    items = {f"piece {n}": f"piece {n}" for n in range(5)}
    places = team.run(pieces.show, items, lambda name, result: done.append((name, result)))
    assert dict(done) == places
    assert set(places) == set(items)
    assert len({process for process, _ in places.values()}) == 2
    assert capsys.readouterr().out.count("a result of piece") == 5


def test_all_is_done_here_where_no_process_can_be_started(monkeypatch, caplog):
    monkeypatch.setattr(
        side_by_side.multiprocessing.context.SpawnProcess, "start", lambda _: (_ for _ in ()).throw(OSError(12, "no"))
    )
    with Team(2, Terminal()) as team:
        places = team.run(pieces.show, {name: name for name in pieces.NAMES})
    assert {process for process, _ in places.values()} == {os.getpid()}
    assert "no process can start (no): all is done in turn, on 2 threads" in caplog.text


FAILURES = {
    "user": (UserError, r"^this cannot be used:\n  first\n  second$"),
    "unexpected": (RuntimeError, "ZeroDivisionError: not foreseen"),
    "killed": (UserError, r"^the process that worked on another ended by signal 9, perhaps for lack of memory: the "),
}


@pytest.mark.parametrize("how", FAILURES)
def test_one_that_fails_ends_the_other_which_saves_itself(tmp_path, team, how):
    kind, message = FAILURES[how]
    run = tmp_path / "run"
    with pytest.raises(kind, match=message):
        team.run(pieces.train_or_fail, {"one": (run, run, "train"), "another": (run, run, how)})
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert saved(run) >= last
    if how == "user":
        assert len(team.run(pieces.show, {name: name for name in pieces.NAMES})) == 2  # both are there still


@pytest.fixture(params=["train"])
def program(tmp_path, request):
    """A program with a team that trains two runs, or what else is asked for, started; and the runs."""
    runs = [tmp_path / name for name in pieces.NAMES]
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, str(here / "pieces.py"), *map(str, runs), request.param],
        env=os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: all(map(trains, runs)))
    yield process, runs
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_asked_to_stop_both_save_themselves(program, how):
    process, runs = program
    if how == "Ctrl-C":  # which a terminal sends to all
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert "Traceback" not in said
    assert said.rstrip().endswith("stopped in order")
    assert process.returncode == 1
    assert all(saved(run) for run in runs)


@pytest.mark.parametrize("program", ["never end"], indirect=True)
def test_asked_twice_it_waits_for_none(program):
    process, runs = program
    process.send_signal(signal.SIGINT)
    wait_until(lambda: all((run / "asked").exists() for run in runs))
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert said.rstrip().endswith("KeyboardInterrupt")
    wait_until(lambda: not is_there(process.pid))


def test_where_their_program_dies_both_save_themselves_and_end(program):
    process, runs = program
    process.kill()
    wait_until(lambda: all(saved(run) for run in runs))
    for run in runs:
        wait_until(lambda run=run: (run / ".lock").exists() and not locked(run / ".lock"))


def is_there(group):
    """Whether any process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def locked(path):
    with path.open("rb+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
