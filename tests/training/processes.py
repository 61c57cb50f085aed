"""Several processes that train together, for tests: gloo on this machine, started from one that has imported torch."""

import multiprocessing
import time
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist


def together(size, function, folder, *arguments):
    """`function(folder, *arguments)` in `size` processes that are a world; raises what went wrong in any of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["diffclip.training.loop"])
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
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    assert errors.empty(), errors.get()
    assert not late, f"{len(late)} of {size} processes hang"
    assert [process.exitcode for process in processes] == [0] * size


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
