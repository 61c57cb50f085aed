"""Small runs in processes of their own, which die by SIGKILL at a chosen moment.

A moment is (kind, n): the n-th time that
    step         a training step begins
    metrics      a line of metrics.jsonl is written; half of it is
    tensorboard  an event is written; half of it is
    weights      a file of tensors is written; half of it is
    files        the training thread opens, syncs, renames or removes a file or folder of the run; does not come to it
    background   the same in the thread that writes checkpoints
"""

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import save

from diffclip import durable
from diffclip.config import validate
from diffclip.training import logs, step
from diffclip.training.setup import train

KINDS = ("step", "metrics", "tensorboard", "weights", "files", "background")
STEPS = 8

# Every child is a fork of one fresh process that has imported all of this.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["diffclip.training.loop", "diffclip.data.scenes.source", "timm", "torch._dynamo"])


def recipe(workers):
    model = {
        "image_size": 16,
        "patch_size": 8,
        "vision_width": 16,
        "vision_depth": 2,
        "vision_heads": 2,
        "text_width": 16,
        "text_depth": 1,
        "text_heads": 2,
        "embed_dim": 8,
        "patch_dropout": 0.25,
    }
    training = {
        "epochs": 2,
        "batch_size": 4,
        "log_every": 1,
        "monitor_every": 3,
        "checkpoint_every": 2,
        "evaluate_every": 0.75,
        "keep_best": 1,
        "best_by": "data/score",
        "precision": "float32",
        "ema": 0.5,
        "image_sizes": [[0, 8], [1, 16]],
        "undropped_epochs": 0.5,
    }
    return validate(
        {
            "model": {"preset": "diffclip_vit_quickstart", "overrides": model},
            "data": {"train": {"path": "scenes:train?size=16&length=16"}, "workers": workers},
            "optimizer": {"lr": 1e-3, "warmup_epochs": 0.5},
            "training": training,
        },
        where="test",
    )


def score(model):
    """Depends on the weights, and falls."""
    return {"score": float(model.image_projection.detach().norm())}


def trained(run, moment=None, workers=0, counts=None):
    """Train in a process, with `resume`. Returns its exit status: −9 where it was killed at the moment."""
    process = PROCESSES.Process(target=_train, args=(run, moment, workers, counts))
    process.start()
    process.join(300)
    return process.exitcode


class Moments:
    """Counts what happens in this process, and ends it at the chosen moment."""

    def __init__(self, run, moment):
        self.run, self.moment = str(run), moment
        self.counts = Counter()

    def comes(self, kind):
        self.counts[kind] += 1
        return (kind, self.counts[kind]) == self.moment

    def file(self):
        if self.comes("files" if threading.current_thread() is threading.main_thread() else "background"):
            die()

    def audited(self, event, arguments):
        watched = event == "open" or event.startswith(("os.re", "os.mk", "os.rm", "os.sym"))
        if watched and isinstance(arguments[0], str | bytes | Path) and os.fsdecode(arguments[0]).startswith(self.run):
            self.file()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def _train(run, moment, workers, counts):
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of data workers: the child of a fork server would ask it
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    moments = Moments(run, moment)
    sys.addaudithook(moments.audited)
    _interrupt(step.TrainState, "step", moments, "step", lambda *_: die())
    _interrupt(logs.RunLog, "write", moments, "metrics", _half_a_line)
    _interrupt(logs.Events, "_event", moments, "tensorboard", _half_an_event)
    _interrupt(durable, "save_file", moments, "weights", _half_a_file)
    sync = os.fsync
    os.fsync = lambda descriptor: (moments.file(), sync(descriptor))
    train(recipe(workers), run, resume=True, evaluators={"data": score})
    if counts:
        Path(counts).write_text(json.dumps(moments.counts))


def _interrupt(owner, name, moments, kind, instead):
    real = getattr(owner, name)

    def call(*args, **kwargs):
        if moments.comes(kind):
            instead(*args, **kwargs)
        return real(*args, **kwargs)

    setattr(owner, name, call)


def _half_a_line(log, record):
    line = json.dumps(record).encode()
    log._file.write(line[: len(line) // 2])
    log._file.flush()
    die()


def _half_an_event(events, *_, **__):
    events._file.write(b"\x18\0\0\0\0\0\0\0half")
    events.flush()
    die()


def _half_a_file(tensors, path, *_):
    content = save(tensors)
    path.write_bytes(content[: len(content) // 2])
    die()
