"""Pieces of work for a team, and a program that has one: what other processes import."""

import dataclasses
import logging
import os
import signal
import sys
import time
from pathlib import Path

import torch
from killed import recipe

from diffclip.errors import Stopped, UserError
from diffclip.terminal import Terminal
from diffclip.training.setup import train
from diffclip.training.side_by_side import Team

NAMES = ("one", "another")


def show(item, place):
    """Everything that a place takes; returns where it was done, and on how many threads."""
    with place.display(item, 3) as display:
        display.start(0)
        display.advance(3)
        display.record({"step": 3, "loss": 1.25, "images_per_s": 320.4})
        display.note(f"a note of {item}")
    place.console.print(f"a result of {item}")
    logging.getLogger("diffclip.test").warning("a warning of %s", item)
    return os.getpid(), torch.get_num_threads()


def train_or_fail(item, place):
    """A run that takes hours; or the failure that is asked for, once the other one trains."""
    run, other, how = item
    if how == "train":
        options = recipe(0)
        long = dataclasses.replace(options.training, epochs=100_000.0, checkpoint_every=1000, log_every=5)
        train(dataclasses.replace(options, training=long), run, resume=True, show=place.display)
    while not (Path(other) / "metrics.jsonl").exists() or not (Path(other) / "metrics.jsonl").stat().st_size:
        time.sleep(0.05)
    if how == "user":
        raise UserError("this cannot be used:", "first", "second")
    if how == "unexpected":
        raise ZeroDivisionError("not foreseen")
    os.kill(os.getpid(), signal.SIGKILL)


def never_end(item, place):
    """Not when it is asked to, either."""
    (item[0] / "metrics.jsonl").parent.mkdir()
    (item[0] / "metrics.jsonl").write_text("as if it trained")
    while True:
        try:
            time.sleep(60)
        except Stopped:
            (item[0] / "asked").touch()


if __name__ == "__main__":
    torch.set_num_threads(2)
    work = {"train": train_or_fail, "never end": never_end}[sys.argv[3]]
    runs = [Path(argument) for argument in sys.argv[1:3]]
    with Team(2, Terminal()) as team:
        try:
            team.run(work, {name: (run, run, "train") for name, run in zip(NAMES, runs, strict=True)})
        except Stopped:
            sys.exit("stopped in order")
