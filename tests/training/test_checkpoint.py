"""Checkpoints on disk: verified, kept or deleted by rule, and never at the cost of a good one."""

import dataclasses
import errno
import os
import resource
import shutil
import subprocess
import threading

import pytest
import torch
from killed import recipe

import diffclip
from diffclip.errors import UserError
from diffclip.training import checkpoint
from diffclip.training.background import BackgroundCheckpoints
from diffclip.training.checkpoint import Keep
from diffclip.training.setup import new_state, training_loader, training_source
from diffclip.training.step import Schedule


@pytest.fixture(scope="module")
def trainer():
    """After one step, so that the optimizer has moments."""
    one = new_state(recipe(0), Schedule(4, 8, 0))
    one.step(0, next(training_loader(recipe(0), training_source(recipe(0))).epoch(0)))
    return one


ALL = Keep(last=9)


def save(run, trainer, step, keep=ALL, **metrics):
    tensors = checkpoint.state_tensors(trainer.model, trainer.optimizer)
    state = {"step": step, "seconds": 1.5 * step, "metrics": metrics}
    return checkpoint.save(run, trainer.model.config, tensors, state, keep)


def names(run):
    return [path.name for path in sorted((run / "checkpoints").iterdir())]


def restored(run):
    """(state, trainer) of what a new process would go on with."""
    fresh = new_state(recipe(0), Schedule(4, 8, 0))
    return checkpoint.restore(run, fresh.model, fresh.optimizer), fresh


def test_a_checkpoint_brings_back_every_bit_and_is_a_model(tmp_path, trainer):
    folder = save(tmp_path, trainer, 3, score=0.5)
    state, fresh = restored(tmp_path)
    assert state == {"step": 3, "seconds": 4.5, "metrics": {"score": 0.5}}
    old = checkpoint.state_tensors(trainer.model, trainer.optimizer)
    new = checkpoint.state_tensors(fresh.model, fresh.optimizer)
    assert old["optimizer"].keys() == new["optimizer"].keys() != set()
    for group, tensors in old.items():
        assert all(torch.equal(tensor, new[group][name]) for name, tensor in tensors.items())
    loaded, *_ = diffclip.load(folder)
    assert torch.equal(loaded.image_projection, trainer.model.image_projection)
    assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder, check=False).returncode == 0


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a bit of the weights": lambda folder: flip(folder / "model.safetensors"),
    "a bit of the moments": lambda folder: flip(folder / "optimizer.safetensors"),
    "a bit of the state": lambda folder: flip(folder / "state.json"),
    "a bit of the sums": lambda folder: flip(folder / "SHA256SUMS"),
    "weights cut short": lambda folder: os.truncate(folder / "model.safetensors", 1000),
    "sums cut short": lambda folder: os.truncate(folder / "SHA256SUMS", 160),
    "no sums": lambda folder: (folder / "SHA256SUMS").unlink(),
    "empty sums": lambda folder: os.truncate(folder / "SHA256SUMS", 0),
    "no moments": lambda folder: (folder / "optimizer.safetensors").unlink(),
    "a file in its place": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_left_alone(tmp_path, trainer, damage, caplog):
    save(tmp_path, trainer, 3)
    DAMAGE[damage](save(tmp_path, trainer, 6))
    state, _ = restored(tmp_path)
    assert state["step"] == 3
    (message,) = caplog.messages
    assert "step_00000006" in message
    assert "passed over" in message
    assert "\n" not in message
    save(tmp_path, trainer, 4, Keep(last=1))  # the damaged one is newer, and no reason to delete the only good one
    assert names(tmp_path) == ["step_00000004", "step_00000006"]
    save(tmp_path, trainer, 6, Keep(last=1))
    assert restored(tmp_path)[0]["step"] == 6
    assert names(tmp_path) == ["step_00000006"]


def test_when_none_is_good_it_is_said(tmp_path, trainer):
    flip(save(tmp_path, trainer, 3) / "state.json")
    with pytest.raises(UserError, match=r"none of the 1 checkpoints in .* can be used"):
        restored(tmp_path)
    assert names(tmp_path) == ["step_00000003"]


def test_checkpoints_of_another_model_are_refused(tmp_path, trainer):
    save(tmp_path, trainer, 3)
    one = recipe(0)
    other = dataclasses.replace(one.model, overrides=one.model.overrides | {"embed_dim": 16})
    fresh = new_state(dataclasses.replace(one, model=other), Schedule(4, 8, 0))
    with pytest.raises(UserError, match=r"are of another model \(image_projection\): resume with its recipe"):
        checkpoint.restore(tmp_path, fresh.model, fresh.optimizer)


def test_a_run_without_checkpoints_begins(tmp_path):
    assert restored(tmp_path)[0] is None


def test_a_full_disk_costs_no_checkpoint(tmp_path, trainer):
    """A limit on the size of files stands for the disk: the write fails in its middle."""
    save(tmp_path, trainer, 3)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write the checkpoint .*step_00000006: File too large; make room"):
            save(tmp_path, trainer, 6, Keep(last=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == ["step_00000003"]
    assert restored(tmp_path)[0]["step"] == 3


@pytest.mark.parametrize(("function", "error"), [("mkdir", errno.EROFS), ("fsync", errno.ENOSPC)])
def test_an_error_of_the_system_is_one_line(tmp_path, trainer, monkeypatch, function, error):
    save(tmp_path, trainer, 3)

    def refuse(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, function, refuse)
    with pytest.raises(UserError, match=f"step_00000006: {os.strerror(error)}; make room or give write permission"):
        save(tmp_path, trainer, 6, Keep(last=1))
    monkeypatch.undo()
    assert names(tmp_path) == ["step_00000003"]


def test_the_newest_and_the_best_are_kept(tmp_path, trainer):
    keep = Keep(last=2, best=2, by="score")
    for step, score in enumerate([0.1, 0.9, 0.3, 0.9, None, 0.2], start=1):
        save(tmp_path, trainer, step, keep, **({} if score is None else {"score": score}))
    assert names(tmp_path) == ["best", "step_00000002", "step_00000004", "step_00000005", "step_00000006"]
    assert (tmp_path / "checkpoints" / "best").readlink().name == "step_00000002"  # the first to reach it
    diffclip.load(tmp_path / "checkpoints" / "best")


def test_nothing_old_is_deleted_before_the_new_one_is_on_the_disk(tmp_path, trainer, monkeypatch):
    done = []
    replace, fsync, rmtree = os.replace, os.fsync, shutil.rmtree
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(f"rename {b.name}"), replace(a, b)))
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{fd}'))}"), fsync(fd))
    )
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: (done.append(f"delete {path.name}"), rmtree(path)))
    save(tmp_path, trainer, 1)
    done.clear()
    save(tmp_path, trainer, 2, Keep(last=1))
    renamed = done.index("rename step_00000002")
    for name in ("model.safetensors", "optimizer.safetensors", "config.json", "state.json", "SHA256SUMS"):
        assert f"sync {name}" in done[:renamed]
    assert done[renamed - 1].startswith("sync .step_00000002.")
    assert done[renamed + 1] == "sync checkpoints"
    (deleted,) = (at for at, what in enumerate(done) if what.startswith("delete .step_00000001."))
    assert deleted > renamed + 1


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, trainer, monkeypatch):
    go_on, real = threading.Event(), checkpoint.save

    def slow(*args):
        go_on.wait(10)
        return real(*args)

    monkeypatch.setattr(checkpoint, "save", slow)
    tensors = checkpoint.state_tensors(trainer.model, trainer.optimizer)
    scale = trainer.model.logit_scale
    before = scale.item()
    try:
        with BackgroundCheckpoints(tmp_path, trainer.model.config, Keep()) as checkpoints:
            checkpoints.save(tensors, {"step": 1})
            scale.data.fill_(1.0)  # training goes on: what is written is what was
            checkpoints.check()
            assert not (tmp_path / "checkpoints").exists()
            go_on.set()
        state, kept = checkpoint.read(checkpoint.found(tmp_path)[0])
        assert state["step"] == 1
        assert kept["model"]["logit_scale"].item() == before
    finally:
        scale.data.fill_(before)


def test_a_checkpoint_that_fails_in_the_background_is_said_at_the_next_step(tmp_path, trainer):
    (tmp_path / "checkpoints").write_text("in the way")
    tensors = checkpoint.state_tensors(trainer.model, trainer.optimizer)
    with BackgroundCheckpoints(tmp_path, trainer.model.config, Keep()) as checkpoints:
        checkpoints.save(tensors, {"step": 1})
        checkpoints._written.exception()  # wait for it, as a step would by taking its time
        with pytest.raises(UserError, match=r"cannot write the checkpoint .*step_00000001: File exists"):
            checkpoints.check()
        checkpoints.check()
    with (
        pytest.raises(UserError, match="step_00000002"),
        BackgroundCheckpoints(tmp_path, trainer.model.config, Keep()) as checkpoints,
    ):
        checkpoints.save(tensors, {"step": 2})


def test_a_failed_checkpoint_does_not_hide_what_ended_the_run(tmp_path, trainer, caplog):
    (tmp_path / "checkpoints").write_text("in the way")
    checkpoints = BackgroundCheckpoints(tmp_path, trainer.model.config, Keep())
    checkpoints.save(checkpoint.state_tensors(trainer.model, trainer.optimizer), {"step": 3})
    checkpoints.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert "step_00000003" in caplog.text
