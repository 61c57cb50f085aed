"""Several processes that train together, for tests: gloo on this machine, started from one that has imported torch."""

import multiprocessing
import shutil
import signal
import sys
import tempfile
import time
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

# What the processes import, read once, before they are forked: FSDP and compilation take seconds in each of them.
PRELOADED = [
    *("diffclip.training.setup", "diffclip.evaluation.run.hooks", "diffclip.data.scenes", "diffclip.models.clip"),
    *("timm", "torch._dynamo", "torch.distributed.fsdp", "pytest"),
]


def together(size, function, folder, *arguments):
    """`function(folder, *arguments)` in `size` processes that are a world; raises what went wrong in any of them.

    gloo's own thread crashes once in many runs on a busy machine. A run in which a process died by a segmentation
    fault starts once more, from the folder as it was, and says so; a second such death fails the test.
    """
    with tempfile.TemporaryDirectory() as kept:
        shutil.copytree(folder, kept, dirs_exist_ok=True)
        exits, told = _run(size, function, folder, arguments)
        if -signal.SIGSEGV in exits:
            print(f"processes ended with {exits}: started once more", file=sys.stderr)
            shutil.rmtree(folder)
            shutil.copytree(kept, folder)
            exits, told = _run(size, function, folder, arguments)
    assert not told, "\n".join(told)
    assert exits == [0] * size, f"processes ended with {exits}; -9 is one that hung and was killed"


def _run(size, function, folder, arguments):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    store, errors = folder / f"store_{size}_{function.__name__}", context.SimpleQueue()
    processes = [
        context.Process(target=_member, args=(rank, size, str(store), errors, function, folder, arguments))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 400  # for all of them: the last to end may have written for the others
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    told = []
    while not errors.empty():  # the first to be told of is often the one that only lost its company
        told.append(errors.get())
    return [process.exitcode for process in processes], told


def _member(rank, size, store, errors, function, folder, arguments):
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=300)
        )
        function(folder, *arguments)
        dist.destroy_process_group()
    except BaseException:
        errors.put(f"rank {rank}: {traceback.format_exc()}")
        raise SystemExit(1) from None
