"""Checkpoints that are written while training goes on."""

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from diffclip.distributed import get_world
from diffclip.errors import UserError
from diffclip.models.library_config import LibraryConfig
from diffclip.models.presets import ModelConfig
from diffclip.training import checkpoint
from diffclip.training.checkpoint import Keep, Tensors
from diffclip.training.parallel import full_tensor

log = logging.getLogger(__name__)


class Snapshot:
    """A copy of tensors in the CPU's memory, in buffers that are used again."""

    def __init__(self) -> None:
        self._buffers: Tensors = {}

    def take(self, tensors: Tensors) -> Tensors:
        """Copies of `tensors`, whose values may change once this returns. The copies last until the next `take`.

        Tensors in shards are put together one at a time, all processes taking part by this or by `take_part`.
        """
        copies: Tensors = {
            group: {name: self._buffer(group, name, tensor) for name, tensor in named.items()}
            for group, named in tensors.items()
        }
        devices = set()
        for group, named in tensors.items():
            for name, tensor in named.items():
                copies[group][name].copy_(full_tensor(tensor), non_blocking=True)
                devices.add(tensor.device)
        for device in devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        self._buffers = copies
        return copies

    @staticmethod
    def take_part(tensors: Tensors) -> None:
        """In a process that writes nothing: give the one that does its shards."""
        for named in tensors.values():
            for tensor in named.values():
                full_tensor(tensor)

    def _buffer(self, group: str, name: str, tensor: Tensor) -> Tensor:
        kept = self._buffers.get(group, {}).get(name)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return kept


class BackgroundCheckpoints:
    """Writes checkpoints in a thread, at most one at a time. Use as a context manager: leaving it waits for the last.

    The training thread pays for a copy of the tensors, and for waiting where the one before is still being written.
    """

    def __init__(self, run: Path, config: ModelConfig | LibraryConfig | None, keep: Keep) -> None:
        self._run, self._config, self._keep = run, config, keep
        self._snapshot = Snapshot()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written: Future[Path] | None = None

    def save(self, tensors: Tensors, state: Mapping[str, Any]) -> None:
        """Copy, and write what was copied meanwhile. Raises UserError where the one before could not be written.

        Of several processes the first writes.
        """
        if not get_world().is_main:
            return self._snapshot.take_part(tensors)
        self.wait()
        self._written = self._thread.submit(
            checkpoint.save, self._run, self._config, self._snapshot.take(tensors), state, self._keep
        )

    def check(self) -> None:
        """Raises UserError where the checkpoint being written has failed meanwhile; never waits."""
        if self._written is not None and self._written.done():
            self.wait()

    def wait(self) -> None:
        """Return once nothing is being written. Raises UserError where it failed."""
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def __enter__(self) -> "BackgroundCheckpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.wait()
        except UserError as failed:
            if error is None:
                raise
            log.warning("%s", failed)  # what ended the run is said by itself
        finally:
            self._thread.shutdown()
