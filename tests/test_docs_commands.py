"""The commands and Python examples of README and docs run, on stand-ins for their data and models.

Each block of code that calls diffclip goes through bash, where every program is a stub that writes down how it was
called. So quotes, loops, variables and continued lines mean what they mean to a reader. The calls of diffclip are then
made in this process, in a folder that holds tiny data under the names that the pages use, and with recipes that are
the project's own but for their sizes. What does not run is listed below with the reason.
"""

import re
import shlex
import shutil
import subprocess
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from diffclip import cli
from diffclip.data.scenes import FineGrainedSource
from diffclip.data.scenes.compositional import NegativeSource, SwapSource
from docs_stand_ins import stand_ins
from pages import PAGES, code_blocks

MEASUREMENTS = "commands that printed the numbers of the page: minutes to hours, on data that are not there"
NOT_RUN_PAGES = {
    "results.md": MEASUREMENTS,
    "performance.md": MEASUREMENTS,
    "log.md": MEASUREMENTS,
    "CONTRIBUTING.md": "make's targets, which are what runs the tests",
}
# Programs that are not diffclip: that they are called is as far as a test goes.
OTHERS = {
    "make": "installs into .venv; test_quickstart.py runs the quickstart",
    "pip": "installs packages",
    "hf": "downloads from the hub",
    "wget": "downloads",
    "img2dataset": "downloads images",
    "sed": "edits a file that was downloaded",
    "scontrol": "SLURM's",
    "srun": "SLURM's; it starts torchrun, which is looked at below",
    "head": "of SLURM's hosts",
    "python": "benchmarks, and module calls that draw pictures for the docs",
}
# Calls of diffclip that are not made: a pattern in the call, the reason.
NOT_RUN = {
    r"^quickstart": "test_quickstart.py runs it",
    r"hf:hammh0a/": "a released model, to be downloaded",
    r"^push (?!.*--dry-run)": "it writes to the hub: tests/reporting/test_push.py has a stand-in",
    r"photos\.index": "of such a model; the same on a model that is made here is in use.md",
    r"^serve": "serves until Ctrl-C: tests/search/test_server.py and test_browser.py",
    r"(https|s3|pipe):": "streams: tests/data/test_stream.py has a server, pipes and a stand-in for aws",
    r"^data icons": "a package to be fetched: tests/data/test_icons.py makes one",
    r"recipes/icons.toml": "its evaluations need what that command makes",
    r"^vlm (fetch|train|pope)": "a language model to be fetched; tests/vlm has one that is made on the spot",
    r"^report paper": "of the results of such a model",
    r"sugarcrepe winoground --root": "benchmarks to be downloaded; their tests have stand-ins, drawn scenes run here",
    r"--model.library transformers": "stand-ins have the sizes of our models; tests/models/test_library.py trains one",
    r"--model.start START": "printed the numbers beside it, from a model that is not there",
    r"sweeps/(carry_|study)": "their steps do not fit the stand-ins; tests/test_sweep.py reads each of them",
    r"imagenet1k=": "ImageNet in several processes: tests/training/test_distributed_runs.py, with other data",
}
# What is replaced in an argument, in this order.
ARGUMENTS = (
    (r"^/data/", "data/"),
    (r"^/data$", "data"),
    (r"=/data/", "=data/"),
    (r"\{00000\.\.\d+\}", "{00000..00001}"),
    (r"^\d+x(\w+)$", r"2x\1"),
    (r"(scenes:train).*", r"\1?size=16&length=32"),
    (r"(scenes:(?!train)\w+).*", r"\1?size=16&length=12"),
)
# What an option's value is replaced by.
OPTIONS = {"--sample": "2", "--training.epochs": "1", "--data.examples": "32"}
# What is added to a command.
ADDED = {"sweep": ["--seeds", "0", "--variants", "CLIP", "DiffCLIP"]}
SHELL = re.compile(r"^\s*(?:\w+=\S+ +)*(?:diffclip [a-z]|torchrun |srun torchrun |(?:srun )?python -m diffclip )", re.M)
PYTHON = re.compile(r"^(?:import|from) (?:diffclip|timm)", re.M)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stand_ins(folder)
    return folder


def make_small(monkeypatch):
    """What no argument can make small: what probes learn from, pairs, episodes, and figures as PNG and PDF."""
    named = "diffclip.evaluation.datasets.named"
    monkeypatch.setattr(f"{named}.SCENES_TO_LEARN_FROM", 320)
    for source in (FineGrainedSource, NegativeSource, SwapSource):
        monkeypatch.setattr(f"{named}.{source.__name__}", partial(source, count=2))
    monkeypatch.setattr("diffclip.reporting.figures.style.to_bytes", lambda figure, suffix, **_: b"a figure")
    monkeypatch.setattr("diffclip.reporting.figures.style.to_svg", lambda *_, **__: "<svg></svg>")


def calls(block, folder):
    """[program, arguments …] of each call that bash makes of a block."""
    bin_folder, log = folder / "bin", folder / "calls"
    for made in (bin_folder, log):
        made.mkdir(exist_ok=True)
    for call in log.iterdir():
        call.unlink()
    for program in ("diffclip", "torchrun", *OTHERS):
        stub = bin_folder / program
        # A file for each, named by its time: those of a loop with & run together.
        file = f'{shlex.quote(str(log))}/"$EPOCHREALTIME $$"'
        stub.write_text(f"#!/bin/bash\nprintf '%s\\0' {program} \"$@\" > {file}\n")
        stub.chmod(0o755)
    done = subprocess.run(
        ["/bin/bash", "-c", block],
        cwd=folder,
        env={"PATH": str(bin_folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not done.stderr, f"{done.stderr}\nin\n{block}"
    return [call.read_text().split("\0")[:-1] for call in sorted(log.iterdir())]


def command_of(call):
    """The arguments of diffclip in a call, or None for another program's; torchrun's are run in one process."""
    program, *arguments = call
    if program == "diffclip":
        return arguments
    if program in ("torchrun", "srun"):
        return arguments[arguments.index("diffclip") + 1 :]
    return None


def made_small(arguments):
    small = []
    for argument in arguments:
        for pattern, replacement in ARGUMENTS:
            argument = re.sub(pattern, replacement, argument)
        small.append(OPTIONS.get(small[-1], argument) if small else argument)
    return small + ADDED.get(small[0], [])


def make_room(arguments):
    """Delete the run that a training command would refuse to write over; pages may use the same name."""
    if arguments[0] == "train" and "--resume" not in arguments:
        run = Path(dict(pairwise(arguments)).get("--out", f"runs/{Path(arguments[1]).stem}"))
        if (run / "recipe.toml").exists():
            shutil.rmtree(run)


def why_not(arguments):
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, " ".join(arguments))), None)


DONE = set()


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in NOT_RUN_PAGES], ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page, here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    make_small(monkeypatch)
    for block in code_blocks(page):
        if PYTHON.search(block):
            exec(compile(block.replace('"/data', '"data'), page.name, "exec"), {})
        elif SHELL.search(block):
            for call in calls(block, here):
                arguments = command_of(call)
                if arguments is None or why_not(arguments):
                    continue
                arguments = made_small(arguments)
                if tuple(arguments) in DONE:
                    continue
                DONE.add(tuple(arguments))
                make_room(arguments)
                try:
                    cli.main(arguments)
                except SystemExit as ended:
                    shown = capsys.readouterr()
                    raise AssertionError(
                        f"{page.name}: diffclip {shlex.join(arguments)}\n{ended}\n{shown.err}"
                    ) from ended
        else:
            assert not re.search(r"^\s*diffclip [a-z]", block, re.M), f"{page.name}: neither shell nor Python:\n{block}"


def test_every_reason_is_still_needed():
    names = {page.name for page in PAGES}
    assert set(NOT_RUN_PAGES) <= names
    text = "\n".join(block for page in PAGES for block in code_blocks(page))
    for pattern in NOT_RUN:
        assert re.search(pattern.removeprefix("^"), text), pattern
    for program in OTHERS:
        assert re.search(rf"\b{program}\b", text), program
