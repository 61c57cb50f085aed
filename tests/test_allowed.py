"""What a file that somebody else wrote may make the program do: nothing that the command line did not ask for."""

import pytest

from diffclip import cli

RECIPE = """
[model]
preset = "diffclip_vit_quickstart"
[data]
examples = 60
[data.train]
path = 'PATH'
[training]
batch_size = 8
"""
SWEEP = """
base = "recipe.toml"
seeds = [0]
[[variant]]
name = "A"
[data]
small = "scenes:test?size=64&length=24"
[[group]]
name = "zero-shot"
task = "zero_shot"
data = ["small"]
"""
STOPPED = "a recipe runs none by itself"


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Two recipes and a sweep that train on the output of a command, which leaves a file."""
    monkeypatch.chdir(tmp_path)
    path = f"pipe:touch {tmp_path}/RUN"
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("PATH", path))
    (tmp_path / "harmless.toml").write_text(RECIPE.replace("PATH", ""))
    (tmp_path / "sweep.toml").write_text(SWEEP)
    (tmp_path / "child.toml").write_text(f'extends = "sweep.toml"\nset.data.train.path = "{path} "\n')
    return path


def ended(*arguments):
    """How a command ended."""
    try:
        cli.main(list(arguments))
    except SystemExit as end:
        return str(end.code)
    return ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "recipe.toml", "--out", "run"], STOPPED),
        (["train", "recipe.toml", "--out", "run", "--resume", "--training.epochs", "2"], STOPPED),
        (["train", "recipe.toml", "--dry-run"], ""),
        (["train", "recipe.toml", "--dry-run", "--allow-pipe"], ""),
        (["plan", "recipe.toml"], ""),
        (["sweep", "sweep.toml"], STOPPED),
        (["sweep", "child.toml"], STOPPED),
        (["sweep", "sweep.toml", "--base", "recipe.toml"], STOPPED),
        (["sweep", "sweep.toml", "--set", "data.train.path=scenes:train", "training.epochs=1", "--dry-run"], ""),
        (["sweep", "sweep.toml", "--dry-run"], ""),
        (["sweep", "child.toml", "--dry-run", "--allow-pipe"], ""),
        (["data", "verify", "pipe:touch RUN"], "is a stream"),
        (["data", "pack", "pipe:touch RUN", "--out", "packed"], "is a stream"),
    ],
)
def test_a_command_in_a_file_is_not_run(command, tmp_path, arguments, message):
    end = ended(*arguments)
    assert message in end
    assert bool(message) == bool(end)
    assert not (tmp_path / "RUN").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "recipe.toml", "--out", "run", "--allow-pipe"],
        ["train", "recipe.toml", "--out", "run", "--data.train.path", "PATH"],
        ["train", "recipe.toml", "--out", "run", "--data.train.path=PATH"],
        ["train", "harmless.toml", "--out", "run", "--data.train.path", "PATH"],
        ["sweep", "sweep.toml", "--allow-pipe"],
        ["sweep", "sweep.toml", "--set", "data.train.path=PATH"],
    ],
)
def test_it_is_run_where_it_is_typed_or_allowed(command, tmp_path, monkeypatch, arguments):
    monkeypatch.setattr("diffclip.data.formats.stream.PAUSES", ())
    assert "cannot be read" in ended(*(argument.replace("PATH", command) for argument in arguments))
    assert (tmp_path / "RUN").exists()
