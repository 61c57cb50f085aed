"""Only regular files are read, whole or not at all, and nothing is waited for."""

import os
import socket

import pytest

from diffclip.errors import UserError
from diffclip.reading import check_regular, lines, opened, parse_json, read_bytes, read_text


def what_is_no_file(folder, kind):
    path = folder / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(folder / "y")
        path.symlink_to("y")
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        os.chdir(folder)  # whose path may be too long for one
        socket.socket(socket.AF_UNIX).bind("x")
    elif kind == "link in a circle":
        path.symlink_to("x")
    elif kind == "device":
        return "/dev/zero"
    elif kind == "null byte":
        return f"{path}\0"
    elif kind == "process":
        return "/proc/self/fd"
    return path


KINDS = ["pipe", "link to a pipe", "folder", "socket", "link in a circle", "device", "null byte", "process", "missing"]


@pytest.mark.parametrize("read", [read_bytes, read_text, opened, check_regular])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, monkeypatch, kind, read):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r".+") as caught:
        read(what_is_no_file(tmp_path, kind))
    assert caught.value.strerror


def test_what_is_too_large_is_refused_unread(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_bytes(path, 4)
    os.truncate(path, 1 << 40)
    with pytest.raises(OSError, match="larger than"):
        read_text(path)
    with pytest.raises(OSError, match="larger than 100 bytes"):
        read_bytes("/proc/self/maps", 100)  # which says that it has none


def test_text_and_lines(tmp_path):
    path = tmp_path / "x"
    path.write_bytes("\ufeffa\r\nb\x0cc \r\n\r\nd\n\n".encode())
    assert read_text(path, "utf-8-sig") == "a\nb\x0cc \n\nd\n\n"
    assert lines(path)[1:] == ["b\x0cc", "", "d"]
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="not UTF-8 text"):
        lines(path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "{", "9" * 5000])
def test_json_that_cannot_be_read_is_a_value_error(text):
    with pytest.raises(ValueError, match=r".+"):
        parse_json(text)
