"""`diffclip`, in which the second of torchrun's processes breaks once: at its sixth step, if MARKER is not there."""

import os
import runpy
from pathlib import Path

from diffclip.training import step

train_step = step.TrainState.step


def failing(self, number, batch):
    marker = Path(os.environ["MARKER"])
    if self.world.rank == 1 and number == 5 and not marker.exists():
        marker.touch()
        raise RuntimeError("the second process broke")
    return train_step(self, number, batch)


step.TrainState.step = failing
runpy.run_module("diffclip", run_name="__main__", alter_sys=True)
