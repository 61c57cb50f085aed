"""The command as a person runs it: exit status, error lines, help."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
import tyro
from tyro.conf import Positional

from diffclip import __main__, cli
from diffclip.commands import train as train_command
from diffclip.commands.repeated import GivenTwice, join, options

SOURCE = Path(cli.__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "diffclip.cli", *arguments], capture_output=True, text=True, timeout=120
    )


def main(capsys, *arguments: str) -> tuple[object, str, str]:
    """(exit status or message, stdout, stderr) of a command run in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_help_does_not_load_torch():
    program = (
        "import sys, diffclip.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60).stdout
    assert "quickstart" in output
    assert output.splitlines()[-1] == "False"


def test_a_wrong_recipe_is_one_line(capsys, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text("[optimizer]\nlr = 'fast'\n")
    status, _, _ = main(capsys, "train", str(recipe))
    expected = "optimizer.lr: input should be a valid number, unable to parse string as a number, found 'fast'"
    assert status == f"diffclip: {recipe}: {expected}"


def test_training_without_data_says_what_to_set(capsys, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text("[model]\npreset = 'clip_vit_quickstart'\n")
    status, _, _ = main(capsys, "train", str(recipe), "--out", str(tmp_path / "run"))
    assert "data.train.path" in str(status)
    assert not (tmp_path / "run").exists()


def test_settings_of_the_recipe_are_options(capsys, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text("[model]\npreset = 'diffclip_vit_quickstart'\n[data]\nexamples = 1000\n")
    cli.main(["train", str(recipe), "--dry-run", "--training.batch_size", "10", "--training.epochs", "3"])
    output = capsys.readouterr().out
    assert "300 = 3 epochs × 100" in output
    status, _, err = main(capsys, "train", str(recipe), "--dry-run", "--training.batch_size", "ten")
    assert status == 2
    assert "batch" in err


def test_a_switch_may_be_written_as_in_a_recipe(tmp_path, monkeypatch):
    recipe = tmp_path / "r.toml"
    recipe.write_text("[training]\nepochs = 1.0\n")
    seen = []
    monkeypatch.setattr(train_command, "print_dry_run", seen.append)
    for value in ("true", "True", "false"):
        cli.main(["train", str(recipe), "--dry-run", "--training.compile", value])
    assert [one.training.compile for one in seen] == [True, True, False]


INTERRUPTED = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == NAME:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.argv = ["diffclip", "models"]
from diffclip.__main__ import main
main()
"""


@pytest.mark.parametrize("name", ["diffclip.cli", "tyro", "diffclip.commands.models", "rich.table"])
def test_ctrl_c_while_modules_are_read_is_quiet(name):
    code = INTERRUPTED.replace("NAME", repr(name))
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job is started deaf to it
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, preexec_fn=heard)
    assert (done.returncode, done.stderr) == (130, "")


EVERY = {**{name: c for name, c in cli.COMMANDS.items() if name != "data"}, **cli.DATA_COMMANDS}


def test_options_are_found_as_the_parser_has_them():
    """By tyro's own parser: each command has these options, and those take any number of values."""
    for name, command in EVERY.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            actions = tyro.extras.get_parser(command)._actions
        expected = {
            action.option_strings[0].removeprefix("--"): action.nargs == "*"
            for action in actions
            if action.option_strings and action.dest != "help"
        }
        assert options(command) == expected, name


SEVERAL = [(name, option) for name, command in EVERY.items() for option, many in options(command).items() if many]
ONE = [(name, option) for name, command in EVERY.items() for option, many in options(command).items() if not many]


@pytest.mark.parametrize(("name", "option"), SEVERAL, ids=" --".join)
def test_an_option_of_several_values_may_be_repeated(name, option):
    command, once = EVERY[name], ["first", f"--{option}", "a", "b=c", "-1"]
    assert join(command, once) == once
    twice = ["first", f"--{option}", "a", "b=c", f"--{option.replace('-', '_')}", "-1"]
    assert join(command, twice) == once
    equals = [f"--{option}=a", "first", f"--{option}=b=c", f"--{option}=-1"]
    assert join(command, equals) == once


@pytest.mark.parametrize(("name", "option"), ONE, ids=" --".join)
def test_an_option_of_one_value_is_refused_twice(name, option):
    with pytest.raises(GivenTwice, match=f"--{option} is given 2 times"):
        join(EVERY[name], ["first", f"--{option}", "a", f"--{option}=b"])


def test_both_forms_reach_the_command(monkeypatch):
    seen = []

    def command(models: Positional[tuple[str, ...]], /, *, data: tuple[str, ...], out: str = "") -> None:
        seen.append((models, data, out))

    monkeypatch.setitem(cli.COMMANDS, "eval", command)
    cli.main(["eval", "m", "--data", "a=1", "b=2", "--out", "o"])
    cli.main(["eval", "m", "--data", "a=1", "--out", "o", "--data", "b=2"])
    cli.main(["eval", "--data=a=1", "m", "--data=b=2", "--out=o"])
    assert seen == [(("m",), ("a=1", "b=2"), "o")] * 3


def test_a_value_twice_is_a_wrong_argument(capsys):
    status, _, err = main(capsys, "eval", "m", "--data", "a=b", "--out", "x", "--out", "y")
    assert status == 2
    assert err == "diffclip eval: --out is given 2 times: it takes one value, so give it once\n"


# Both `models` and the help of `train` print λ; only the first loads torch, which takes seconds.
PLAIN = {"PYTHONIOENCODING": "ascii"}
BARE = {"HOME": "/nonexistent", "TMPDIR": "/nonexistent", "TERM": "dumb", "COLUMNS": "40"}


@pytest.mark.parametrize(
    ("command", "environment", "status", "said"),
    [
        ("{} models", PLAIN | BARE, 0, ""),
        ("{} train --help", PLAIN, 0, ""),
        ("{} train --help", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, 0, ""),
        ("umask 077; {} models <&- >&- 2>&-", {}, 0, ""),
        ("set -o pipefail; {} train --help | :", {}, 141, ""),
        ("{} models > /dev/full", {}, 1, "diffclip: what it prints cannot be written: No space left on device\n"),
        ("mkdir gone; cd gone; rmdir ../gone; {} models", {}, 1, "diffclip: the folder in which it is started does"),
    ],
)
def test_any_terminal_and_environment(tmp_path, command, environment, status, said):
    done = subprocess.run(
        ["bash", "-c", command.format(f"{sys.executable} -m diffclip")],
        env=os.environ | {"PYTHONPATH": str(SOURCE)} | environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith(said)
    assert said or not done.stderr


def test_no_folder_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "gone")])
    monkeypatch.setattr(cli, "main", tempfile.mkdtemp)
    with pytest.raises(SystemExit, match=r"no folder for temporary files can be written, .*: set TMPDIR"):
        __main__.main()


@pytest.mark.parametrize("command", [[], *([name] for name in cli.COMMANDS), *(["data", n] for n in cli.DATA_COMMANDS)])
def test_help_fits_into_80_columns(capsys, monkeypatch, command):
    """But for the list of commands, which tyro writes on one line."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 3
    assert [line for line in lines if len(line) > 80 and not line.startswith("usage: diffclip [-h] {")] == []


def test_the_version(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"diffclip {version('diffclip')}\n"


def test_no_console_reads_markup_or_emoji_in_names():
    """A split `:train:` and a folder `br[red]2` are printed as they are."""
    for file in (SOURCE / "diffclip").rglob("*.py"):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(r"\bConsole\(", line) and "quiet=True" not in line:
                assert "markup=False, emoji=False" in line, f"{file}, line {number}"


@pytest.mark.parametrize(
    ("platform", "given", "wanted"),
    [
        ("linux", {}, {"GOMP_SPINCOUNT": "30000"}),
        ("darwin", {}, {"OMP_WAIT_POLICY": "passive"}),
        ("linux", {"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
        ("linux", {"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ],
)
def test_how_threads_wait_is_the_users_choice_first(platform, given, wanted):
    code = (
        f"import sys; sys.platform = {platform!r}; import os; from diffclip.__main__ import set_environment as s; s(); "
        "print({k: v for k, v in os.environ.items() if k in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')})"
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", code], env=clean | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(wanted)
