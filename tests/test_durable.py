"""Files that are whole or not there."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import time
from contextlib import suppress

import pytest
import torch

from diffclip import durable
from diffclip.errors import UserError


def refuse(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def in_a_process(function, *arguments):
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def test_a_file_is_there_once_it_is_whole(tmp_path):
    path = tmp_path / "made" / "text"
    with durable.writing(path) as unfinished:
        unfinished.write_text("half")
        assert unfinished.parent == path.parent
        assert not path.exists()
        unfinished.write_text("whole")
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["text"]


def test_what_is_renamed_is_on_the_disk_and_the_name_is_too(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("rename"), replace(*names)))
    durable.write_text(tmp_path / "text", "whole")
    file, renamed, folder = done
    assert file.endswith(durable.UNFINISHED)
    assert (renamed, folder) == ("rename", str(tmp_path))


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    for name in ("x" * 255, "é" * 127, "漢" * 85):
        durable.write_text(tmp_path / name, "whole")
        assert (tmp_path / name).read_text() == "whole"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_leaves_the_old_file_and_no_litter(tmp_path, error):
    path = tmp_path / "text"
    durable.write_text(path, "old")

    def fail():
        with durable.writing(path) as unfinished:
            unfinished.write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["text"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, function):
    path = tmp_path / "text"
    durable.write_text(path, "old")
    monkeypatch.setattr(os, function, refuse)
    with pytest.raises(OSError, match="No space left"):
        durable.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["text"]


def _killed_in_the_middle(path):
    with durable.writing(path) as unfinished:
        unfinished.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_writer_leaves_the_old_file_and_what_can_be_told_from_others(tmp_path):
    path = tmp_path / "text"
    durable.write_text(path, "old")
    killed = in_a_process(_killed_in_the_middle, path)
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    assert path.read_text() == "old"
    (left,) = {file.name for file in tmp_path.iterdir()} - {"text"}
    assert left.startswith(".text.")
    durable.remove_unfinished(tmp_path, older_than=60)
    assert (tmp_path / left).exists()
    os.utime(tmp_path / left, (time.time() - 100,) * 2)
    durable.remove_unfinished(tmp_path, older_than=60)
    assert os.listdir(tmp_path) == ["text"]


def test_two_writers_of_one_file_do_not_collide(tmp_path, monkeypatch):
    path = tmp_path / "text"
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in two containers
    with durable.writing(path) as first:
        first.write_text("first")
        with durable.writing(path) as second:
            assert second != first
            second.write_text("second")
        assert path.read_text() == "second"
        assert first.read_text() == "first"
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["text"]


LACKING = ("EINVAL", "ENOSYS", "EOPNOTSUPP", "EPERM")


@pytest.fixture
def lacking(monkeypatch):
    """Make the file system unable to sync, lock and link."""

    def set_up(name):
        def refuse(*_, **__):
            raise OSError(getattr(errno, name), name)

        for module, function in ((os, "fsync"), (fcntl, "lockf"), (os, "symlink")):
            monkeypatch.setattr(module, function, refuse)
        durable._say_lacking.cache_clear()

    return set_up


@pytest.mark.parametrize("name", LACKING)
def test_what_a_file_system_cannot_do_ends_nothing_and_is_said_once(tmp_path, lacking, caplog, name):
    lacking(name)
    for _ in range(2):
        durable.write_text(tmp_path / "text", "whole")
        durable.append(tmp_path / "lines", b"line\n")
        durable.link(tmp_path / "link", "text")
        with durable.locked(tmp_path / "lock", "busy"), durable.writing(tmp_path / "folder") as unfinished:
            unfinished.mkdir()
            (unfinished / "part").write_text("whole")
    assert sorted(os.listdir(tmp_path)) == ["folder", "lines", "lock", "text"]
    assert (tmp_path / "text").read_text() == (tmp_path / "folder" / "part").read_text() == "whole"
    assert (tmp_path / "lines").read_bytes() == b"line\n" * 2
    said = caplog.messages
    assert len(said) == len(set(said)) == 4  # two kinds of lock
    assert all(message.startswith("this file system cannot ") for message in said)


def test_a_folder_is_there_once_it_is_whole_and_replaces_another(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd)))
    with durable.writing(path) as unfinished:
        (unfinished / "deep").mkdir(parents=True)
        (unfinished / "deep" / "part").write_text("new")
        assert (path / "old").exists()
    assert [file.name for file in path.rglob("*")] == ["deep", "part"]
    assert {os.path.basename(name) for name in synced} == {"deep", "part", unfinished.name, tmp_path.name}
    assert os.listdir(tmp_path) == ["folder"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "text").symlink_to("disk/text")
    for text in ("first", "second"):
        durable.write_text(tmp_path / "text", text)
        assert (tmp_path / "disk" / "text").read_text() == text
    assert (tmp_path / "text").is_symlink()


def test_a_device_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link"):
        with suppress(FileExistsError):
            path.symlink_to("pipe")
        with pytest.raises(UserError, match=f"cannot write {path}: it is a device or a pipe"):
            durable.write_text(path, "text")
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_a_text_with_a_name_that_is_no_utf_8_is_written(tmp_path):
    durable.write_text(tmp_path / "text", "a file called \udcff")
    assert (tmp_path / "text").read_text() == "a file called \\udcff"


NASTY = [
    "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg",
    "nul \0 inside",
    "two\nlines\r\n\r",
    "\ud800 alone",
    "\\\udfff",
    "λ 漢 😀",
    "\ufeff",
    "",
]


@pytest.mark.parametrize("text", NASTY)
def test_any_text_and_number_comes_out_of_a_line_as_it_went_in(tmp_path, text):
    table = {text: [text, 10**40, -(10**40), 1e308, -0.0, float("inf")], "n": {"x": text}}
    path = tmp_path / "lines.jsonl"
    for _ in range(3):
        durable.append(path, durable.json_line(table))
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [table] * 3
    assert lines[-1] == ""


def test_a_line_cut_short_is_ended_and_one_that_does_not_fit_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    path.write_bytes(b"whole\nhal")
    durable.append(path, b"next\n")
    assert path.read_bytes() == b"whole\nhal\nnext\n"
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]) if len(data) > 3 else refuse())
    with pytest.raises(OSError, match="No space left"):
        durable.append(path, b"line\n")
    assert path.read_bytes() == b"whole\nhal\nnext\n"


def test_a_full_disk_under_tensors_is_an_error_of_the_system(tmp_path, monkeypatch):
    def fails(*_):
        raise durable.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(durable, "save_file", fails)
    with pytest.raises(OSError, match="No space left") as caught:
        durable.write_tensors(tmp_path / "weights", {"a": torch.zeros(1)})
    assert caught.value.errno == errno.ENOSPC
    assert not os.listdir(tmp_path)


def test_an_error_of_the_system_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "deep" / "below"
    with pytest.raises(UserError, match=f"^cannot write {path}: Not a directory$"):
        durable.write_text(path, "text")
