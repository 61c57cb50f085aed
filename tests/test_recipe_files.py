"""A recipe that is given is read, whatever its name and wherever it stands, or refused in one line."""

import os
import re
import threading
from pathlib import Path
from typing import get_type_hints

import pytest

from diffclip import cli
from diffclip.commands import train as train_command
from diffclip.config import Data, Evaluation, Loss, Model, Optimizer, SourceConfig, Training, load_recipe
from diffclip.errors import UserError
from diffclip.recipe_files import LISTS, PAIRS, find_recipe, recipe_argument, shipped
from diffclip.sweep_config import load_sweep, recipe_of

RECIPE = "[data]\nexamples = 77\n"


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """The recipes that `train --dry-run` is given, in a folder without any."""
    seen = []
    monkeypatch.setattr(train_command, "print_dry_run", seen.append)
    monkeypatch.chdir(tmp_path)
    return seen


def message(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert "\n" not in str(ended.value.code)
    return str(ended.value.code)


@pytest.mark.parametrize("name", ["x.toml", "x.conf", "x.TOML", "recipe", "x.toml.bak", "with space", "-x.toml"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_recipe_of_any_name_is_read(planned, name, mark):
    Path(name).write_text(mark + RECIPE, encoding="utf-8")
    given = ["--", name] if name.startswith("-") else [name]
    cli.main(["train", "--dry-run", *given])
    assert planned[0].data.examples == 77


@pytest.mark.parametrize(
    "arguments",
    [
        ["mine.toml", "--out", "a.toml"],
        ["--out", "a.toml", "mine.toml"],
        ["--out=a.toml", "mine.toml"],
        ["--resume", "mine.toml", "--data.train.templates", "a.toml", "{c}"],
        ["--data.train.path", "a.toml", "--dry-run", "mine.toml"],
        ["--data.scale", "0.1", "1", "mine.toml"],
        ["--data.train.classnames", "a.toml", "b", "--out", "c", "mine.toml"],
    ],
)
def test_the_recipe_is_told_from_the_values_of_options(planned, arguments):
    Path("mine.toml").write_text(RECIPE)
    Path("a.toml").write_text("[data]\nexamples = 1\n")
    cli.main(["train", *arguments, *(["--dry-run"] if "--dry-run" not in arguments else [])])
    assert planned[0].data.examples == 77


def test_every_setting_with_several_values_is_known_as_such():
    hints = [get_type_hints(part) for part in (Model, SourceConfig, Data, Loss, Optimizer, Training, Evaluation)]
    several = {name for of_part in hints for name, hint in of_part.items() if re.search(r"tuple|dict", str(hint))}
    assert several == PAIRS | LISTS


def test_a_pipe_is_read_once_and_needs_a_run_directory(planned):
    read, write = os.pipe()
    threading.Thread(target=lambda: (os.write(write, RECIPE.encode()), os.close(write))).start()
    cli.main(["train", f"/dev/fd/{read}", "--dry-run"])
    os.close(read)
    assert planned[0].data.examples == 77
    os.mkfifo("pipe")
    threading.Thread(target=lambda: Path("pipe").write_text(RECIPE), daemon=True).start()
    assert message("train", "pipe") == (
        "diffclip: pipe is a pipe, after which no run directory can be called: give --out"
    )


@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_name_that_is_nowhere_is_refused_with_what_there_is(planned, command):
    told = message(command, "nowhere")
    assert told.startswith("diffclip: cannot read the recipe nowhere: No such file or directory, nor has the package")
    assert "quickstart" in told
    assert message(command, "quikstart").endswith("; is it quickstart?")
    assert not planned


def test_an_empty_recipe_and_a_folder_are_refused(planned):
    Path("empty").write_text(" \n")
    Path("folder").mkdir()
    assert "is empty: it would be every default" in message("train", "empty", "--dry-run")
    assert "Is a directory" in message("train", "folder", "--dry-run")
    Path("other").write_bytes(RECIPE.encode("utf-16"))
    assert "not a UTF-8 text file" in message("train", "other", "--dry-run")
    assert not planned


def test_shipped_recipes_are_found_by_name(planned):
    assert {"quickstart", "cifar10", "openclipart", "cc12m/diffclip"} <= shipped().keys()
    Path("cifar10").mkdir()  # where the data lie, which is no recipe
    for name, file in shipped().items():
        assert find_recipe(name) == find_recipe(f"recipes/{name}.toml") == file
        assert load_recipe(name) == load_recipe(file)
    Path("quickstart").write_text(RECIPE)
    assert load_recipe("quickstart").data.examples == 77  # what lies here comes first
    cli.main(["train", "cc12m/diffclip", "--dry-run"])
    assert planned[0] == load_recipe(shipped()["cc12m/diffclip"])


def test_shipped_sweeps_are_found_by_name(planned):
    sweep = load_sweep("figure5", "on_scenes", base=Path("quickstart"))
    assert sweep == load_sweep("recipes/sweeps/figure5.toml", "sweeps/on_scenes", base=shipped()["quickstart"])
    Path("mine.toml").write_text('base = "quickstart"\n')
    mine = load_sweep("figure5", "mine.toml")
    assert recipe_of(mine, mine.variant[0], 0).model.overrides is not None
    with pytest.raises(UserError, match=r"cannot read the sweep figur5: .*; is it figure5"):
        load_sweep("figur5")
    os.mkfifo("pipe")
    with pytest.raises(UserError, match="every run of a sweep reads it, so give a file"):
        load_sweep("figure5", base=Path("pipe"))


def test_the_recipe_is_the_first_argument_that_is_no_option():
    assert recipe_argument(["--help"]) is None
    assert recipe_argument(["--out", "x"]) is None
    assert recipe_argument(["--out", "x", "y"]) == 2
