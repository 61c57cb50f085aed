"""Folders and files of other users are refused in one line, and what is written has the modes that the umask says."""

import os

import pytest

from diffclip import cli


@pytest.mark.parametrize(
    "command",
    [
        ["data", "verify", "CLOSED/x", "--workers", "1"],
        ["data", "pack", "CLOSED/x", "--out", "packed"],
        ["train", "CLOSED/r.toml", "--dry-run"],
        ["sweep", "CLOSED/s.toml", "--dry-run"],
        ["report", "CLOSED/run", "--out", "report"],
        ["eval", "CLOSED/run", "--data", "s=scenes:test", "--out", "evaluated"],
        ["attend", "CLOSED/run", "CLOSED/x.jpg", "--text", "a", "--out", "a.png"],
        ["pope", "CLOSED/a.jsonl", "--labels", "CLOSED", "--out", "scores"],
        ["data", "list", "--root", "CLOSED/data"],
    ],
)
def test_a_folder_that_may_not_be_entered_is_one_line(tmp_path, monkeypatch, command):
    """As the system answers anybody but root, whom it refuses nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "CLOSED").mkdir()
    stat = os.stat

    def refused(path, *arguments, **options):
        if "CLOSED/" in os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else False:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refused)
    with pytest.raises(SystemExit, match=r"^diffclip: .*Permission denied") as caught:
        cli.main(command)
    assert "\n" not in str(caught.value.code)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_decides_who_may_read(tmp_path, umask):
    before = os.umask(umask)
    try:
        cli.main(["data", "pack", "scenes:test?length=4&size=16", "--out", f"{tmp_path}/packed", "--workers", "1"])
    finally:
        os.umask(before)
    for file in (tmp_path / "packed").iterdir():
        if file.name[0] != ".":
            assert file.stat().st_mode & 0o777 == 0o666 & ~umask
