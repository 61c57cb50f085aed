"""Whose a run directory is: one recipe's, and one process's at a time."""

import dataclasses
import errno
import fcntl
import os
import shutil
import subprocess
import sys

import pytest
import torch
from killed import recipe, score
from safetensors.torch import load_file

from diffclip import durable
from diffclip.config import load_recipe, to_toml
from diffclip.errors import UserError
from diffclip.training.run_directory import claim_directory
from diffclip.training.setup import train

HOLDER = """
import sys, fcntl
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def claim(run, one=None, resume=False):
    with claim_directory(run, to_toml(one or recipe(0)), resume) as resumes:
        return resumes


def changed(**training):
    one = recipe(0)
    return dataclasses.replace(one, training=dataclasses.replace(one.training, **training))


def test_a_run_is_gone_on_with_only_on_request(tmp_path):
    assert claim(tmp_path / "run", resume=True) is True  # the same command, the first time and ever after
    assert claim(tmp_path / "run", resume=True) is True
    with pytest.raises(UserError, match="holds a run already: give --resume"):
        claim(tmp_path / "run")


def test_what_changes_no_number_may_change(tmp_path):
    run = tmp_path / "run"
    claim(run)
    for other in (recipe(5), changed(keep_last=7, checkpoint_every=9, keep_best=0)):
        claim(run, other, resume=True)
        assert load_recipe(run / "recipe.toml") == other
    with pytest.raises(UserError, match=r"holds a run of another recipe: resume with the settings of .*recipe.toml"):
        claim(run, changed(epochs=3.0), resume=True)


def test_two_processes_do_not_train_in_one_directory(tmp_path):
    run = tmp_path / "run"
    claim(run)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, run / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is training in"):
            claim(run, resume=True)
        other.kill()
        other.wait()
    claim(run, resume=True)


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    run = tmp_path / "run"
    claim(run)
    (run / "checkpoints" / ".step_00000003.unfinished").mkdir(parents=True)
    (run / ".model.safetensors.1.unfinished").write_text("half")
    (run / "notes.txt").write_text("a user's")
    claim(run, resume=True)
    assert sorted(path.name for path in run.rglob("*")) == [".lock", "checkpoints", "notes.txt", "recipe.toml"]


def test_a_worker_that_torchrun_restarts_goes_on_by_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert claim(tmp_path / "run") is False
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert claim(tmp_path / "run") is True
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")  # which was refused, and is restarted for that
    for count in "01":
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        with pytest.raises(UserError, match="holds a run already"):
            claim(tmp_path / "run")


LITTER = (
    "step_00000003 (copy)",
    "step_00000009.sync-conflict-1",
    "step_00000009~",
    "step_9",
    "step_x",
    "best (1)",
    ".DS_Store",
)


def test_what_people_and_tools_do_to_a_run_directory_stops_no_resume(tmp_path, caplog):
    """Copied with links as folders, backed up beside itself; its recipe touched, a checkpoint on another disk."""
    first, run = tmp_path / "first", tmp_path / "elsewhere" / "run 2"
    train(recipe(0), first, evaluators={"data": score})
    shutil.copytree(first, run)
    checkpoints = run / "checkpoints"
    assert not (checkpoints / "best").is_symlink()
    for name in ("step_00000006", "step_00000008"):
        shutil.rmtree(checkpoints / name)
    for name in LITTER:
        for folder in (run, checkpoints, run / "tensorboard"):
            shutil.copytree(checkpoints / "step_00000003", folder / name)
    (run / "tensorboard" / "old tfevents").mkdir()
    (checkpoints / "step_00000003").rename(tmp_path / "disk")
    (checkpoints / "step_00000003").symlink_to(tmp_path / "disk")
    (run / "recipe.toml").write_text("# mine\n" + (run / "recipe.toml").read_text().replace("\n", "\r\n"))
    train(recipe(0), run, resume=True, evaluators={"data": lambda model: {"score": 9.0}})  # so that best moves
    left = {path.name for path in checkpoints.iterdir()}
    copies = {name for name in left if name.startswith("best.copy-")}
    assert left == {*LITTER, "best", "step_00000006", "step_00000008", *copies}
    assert len(copies) == 1
    assert (checkpoints / "best").readlink().name == "step_00000006"
    ends = [load_file(folder / "model.safetensors") for folder in (first, run)]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    assert any("is called best.copy-" in message for message in caplog.messages)


def test_a_file_system_that_cannot_sync_lock_or_link_ends_no_training(tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    for module, function in ((os, "fsync"), (fcntl, "lockf"), (os, "symlink")):
        monkeypatch.setattr(module, function, refuse)
    durable._say_lacking.cache_clear()
    train(recipe(0), tmp_path / "run", evaluators={"data": score})
    assert (tmp_path / "run" / "model.safetensors").exists()
    said = [message for message in caplog.messages if "this file system" in message]
    assert len(said) == len(set(said)) == 3


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to the run directory .*: Not a directory"):
        claim(tmp_path / "file" / "run")
