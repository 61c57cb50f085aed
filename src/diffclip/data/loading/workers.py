"""The processes that decode: how they start and end, and how their pixels come back."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import util
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from diffclip.data.parallel import processors
from diffclip.errors import UserError

logger = logging.getLogger(__name__)

Pixels = torch.Tensor | NDArray[Any]
"""Out of a worker a tensor comes by shared memory, an array through a pipe."""

FEW, MANY = 2, 16  # workers of a process that was told no number
AHEAD = 2  # items, batches or pieces of one, that torch's DataLoader asks of each worker before the first is taken
LONGEST_SOCKET = 60  # characters of the folder of temporary files: the name of a socket in it may have 107
DESCRIPTORS = 64  # free ones that a process needs to take or give memory by them


def worker_count(device: torch.device, processes: int, item_bytes: int) -> int:
    """How many workers a process takes that was told no number, of `processes` that share this machine.

    A GPU waits for as many as there are cores. Each worker keeps AHEAD items in shared memory, half of which may be
    filled.
    """
    if device.type != "cuda":
        return FEW
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:  # no such folder: batches come through pipes
        return FEW
    return max(FEW, min(processors() // processes, MANY, free // (2 * processes * AHEAD * item_bytes)))


def batches_of(
    dataset: Dataset[Any],
    *,
    num_workers: int,
    sampler: Sampler[Any] | Sequence[Any] | None = None,
    batch_sampler: Sequence[list[int]] | None = None,
    collate: Callable[[Any], Any],
    pin: bool = False,
) -> Iterator[Any]:
    """What a torch DataLoader gives, in the same order by any number of workers.

    The workers start at once, not with the first item. pin: where there is a GPU, a thread calls each item's
    `pin_memory()`, so that its tensors go there without the main process waiting. Raises UserError where the workers
    cannot start, and where one dies.
    """
    num_workers = num_workers if num_workers and _can_wait() else 0
    loader = DataLoader(
        dataset,
        sampler=sampler,  # type: ignore[arg-type]
        **({"batch_size": None} if batch_sampler is None else {"batch_sampler": batch_sampler}),  # type: ignore[arg-type]
        collate_fn=collate,
        pin_memory=pin and torch.cuda.is_available(),
        num_workers=num_workers,  # not persistent: at exit, torch would wait 5 s for each
        worker_init_fn=_start,
        generator=torch.Generator(),  # or starting an epoch would draw from the global one
    )
    try:
        with _starting():
            iterator = iter(loader)
    except OSError as error:
        raise UserError(
            f"{num_workers} worker processes cannot start: {error.strerror or error}: take fewer workers (0: none), "
            "raise `ulimit -n` and `ulimit -u`, or give a container more shared memory (docker run --shm-size=1g)"
        ) from None
    return _taken(iterator, num_workers)


def _can_wait() -> bool:
    """Whether processes can be made to wait for each other, which takes a /dev/shm that can be written."""
    try:
        multiprocessing.Lock()
    except OSError as error:
        logger.warning("no worker processes, as locks between them cannot be made: %s", error.strerror or error)
        return False
    return True


def _taken(iterator: Iterator[Any], num_workers: int) -> Iterator[Any]:
    while True:
        said = None
        try:
            item = next(iterator)
        except StopIteration:
            return
        except (RuntimeError, OSError) as error:
            said = died(error) if num_workers else None
            if said is None:
                raise
        if said is not None:  # raised out here, or it would hold on to the frames of the other, and they to workers
            raise UserError(said)
        yield item


def died(error: BaseException) -> str | None:
    """What to tell a person of an error that comes of a worker's end, or of too few descriptors; None for others."""
    text = " ".join(str(error).split())
    if "ancdata" in text or "Too many open files" in text:
        return "too many open files: raise `ulimit -n`, or take fewer workers"
    if "DataLoader worker" in text and ("exited unexpectedly" in text or "killed by signal" in text):
        return (
            "a worker process died, perhaps for lack of memory: take fewer workers, or give a container more memory "
            "and shared memory (docker run --shm-size=1g)"
        )
    return None


def stacked(images: Sequence[torch.Tensor]) -> Pixels:
    """Images of one shape, one after the other: in a worker in shared memory or, where there is too little, an array.

    A shared tensor costs the main process next to nothing. An array is copied through a pipe, which needs no
    /dev/shm, no socket, and no descriptor.
    """
    if get_worker_info() is None:
        return torch.stack(list(images))
    if _shares:
        try:
            shared: torch.Tensor = default_collate(list(images))  # in a worker, straight to shared memory
            return shared
        except RuntimeError as error:  # no space left in /dev/shm, or no descriptor
            if "shape" in str(error):
                raise
            _say_once(str(error))
    return torch.stack(list(images)).numpy()


def as_sent(pixels: torch.Tensor) -> Pixels:
    """The same pixels as they are to be pickled: a tensor only where they are in shared memory."""
    return pixels if pixels.untyped_storage().is_shared() else pixels.numpy()


_shares = True
_said = False


def _say_once(why: str) -> None:
    global _said
    worker = get_worker_info()
    if not _said and (worker is None or worker.id == 0):
        _said = True
        logger.warning(
            "too little shared memory for a worker's images (%s): they go through pipes, which takes longer; "
            "docker run --shm-size=1g or fewer workers avoid it",
            why.rpartition(": ")[2][:80],
        )


def _can_share() -> bool:
    """Whether memory can be handed over: that takes a socket among the temporary files, and descriptors."""
    try:
        if len(util.get_temp_dir()) > LONGEST_SOCKET:  # type: ignore[attr-defined]
            return False
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - len(os.listdir("/proc/self/fd")) >= DESCRIPTORS
    except FileNotFoundError:  # no folder for temporary files can be written; or there is no /proc
        return os.path.isdir("/proc/self/fd") is False
    except OSError:
        return False


@contextmanager
def _starting() -> Iterator[None]:
    """Inside the `with`, where workers start, SIGTERM waits: they inherit that, with whatever threads they have."""
    held = {signal.SIGTERM} if _TOLD_APART else set()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal. The main one finishes its step and saves, and needs its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # So it is with the SIGTERM of timeout or of SLURM to every process of a job; but the main one's own ends a worker.
    if _TOLD_APART:
        threading.Thread(target=_end_when_told, name="end", daemon=True).start()
    global _shares
    _shares = _can_share()
    # What is inherited stays as it is: collecting the main process's garbage here would copy memory and run finalizers.
    gc.freeze()


_TOLD_APART = hasattr(signal, "sigwaitinfo")  # whose signal it is; not on macOS


def _end_when_told() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
